//! Reads the text of files below /proc and /sys, but for those of cgroups. What is not understood is left out, never guessed.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A place where the unified cgroup hierarchy is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup2Mount {
    /// Where, as this process sees it.
    pub(crate) mount_point: PathBuf,
    /// Which cgroup is seen there, from our cgroup namespace's root: `/` but for bind mounts.
    pub(crate) root: PathBuf,
    /// Whether the mount, or the whole file system, refuses writes.
    pub(crate) read_only: bool,
}

/// The cgroup2 mounts in the text of `/proc/self/mountinfo`, in its order: of two at the same place the later one is seen.
pub(crate) fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<Cgroup2Mount> {
    lines(mountinfo).filter_map(cgroup2_mount).collect()
}

/// `36 35 98:0 /root /mount/point rw,noatime shared:1 master:2 - cgroup2 source rw,errors=continue`, with any number of optional fields
/// before the dash. A field may be empty, so exactly one space separates two.
fn cgroup2_mount(line: &[u8]) -> Option<Cgroup2Mount> {
    let mut fields = line.split(|&byte| byte == b' ');
    let root = fields.nth(3)?;
    let mount_point = fields.next()?;
    let mount_options = fields.next()?;
    fields.find(|field| field == b"-")?;
    if fields.next()? != b"cgroup2" {
        return None;
    }
    let super_options = fields.nth(1).unwrap_or_default();
    let is_read_only = |options: &[u8]| options.split(|&byte| byte == b',').any(|option| option == b"ro");
    Some(Cgroup2Mount {
        mount_point: unescape(mount_point),
        root: unescape(root),
        read_only: is_read_only(mount_options) || is_read_only(super_options),
    })
}

/// The path of our cgroup in the unified hierarchy, from the text of `/proc/self/cgroup`: the line `0::/path`. It starts with `/..` when
/// our cgroup lies outside our cgroup namespace's root. `None` without a unified hierarchy.
pub(crate) fn own_cgroup(proc_self_cgroup: &[u8]) -> Option<PathBuf> {
    lines(proc_self_cgroup).find_map(|line| line.strip_prefix(b"0::")).filter(|path| path.starts_with(b"/")).map(path)
}

/// How far a process has come on its way to a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Passage {
    /// It has not executed one.
    OnItsWay,
    /// It ends, or has ended, without having executed one.
    EndsBefore,
    /// It has executed one, and stands in memory of its own.
    Past,
}

/// How far a process has come, from the text of `/proc/PID/stat`: by PF_EXITING and PF_FORKNOEXEC among its flags, the ninth field. (The kernel takes the latter
/// back once it has switched to the program's memory.) The second field is a name in brackets, which can hold anything, brackets too.
pub(crate) fn passage(stat: &[u8]) -> Option<Passage> {
    const PF_EXITING: u64 = 0x4;
    const PF_FORKNOEXEC: u64 = 0x40;
    let flags = process_flags(stat)?;
    Some(match (flags & PF_FORKNOEXEC != 0, flags & PF_EXITING != 0) {
        (true, false) => Passage::OnItsWay,
        (true, true) => Passage::EndsBefore,
        (false, _) => Passage::Past,
    })
}

fn process_flags(stat: &[u8]) -> Option<u64> {
    const FLAGS_AFTER_NAME: usize = 6;
    let (_, after_name) = stat.split_at_checked(stat.iter().rposition(|&byte| byte == b')')? + 1)?;
    after_name.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty()).nth(FLAGS_AFTER_NAME).and_then(decimal)
}

/// What `/proc/cgroups` says of a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProcController {
    /// The version 1 hierarchy that it is bound to; 0 is none.
    pub(crate) hierarchy: u32,
    /// Whether it is switched on: `cgroup_disable=` on the kernel's command line switches it off.
    pub(crate) enabled: bool,
}

/// What the text of `/proc/cgroups` says of a controller, which goes by its version 1 name there ("blkio" for "io"). A line is
/// `memory\t4\t9\t1`: name, hierarchy, number of cgroups, enabled.
pub(crate) fn hierarchy_of(proc_cgroups: &[u8], controller: &str) -> Option<ProcController> {
    lines(proc_cgroups).find_map(|line| {
        let mut fields = line.split(|&byte| byte == b'\t');
        if fields.next()? != controller.as_bytes() {
            return None;
        }
        let hierarchy = u32::try_from(decimal(fields.next()?)?).ok()?;
        let enabled = match fields.nth(1)? {
            b"0" => false,
            b"1" => true,
            _ => return None,
        };
        Some(ProcController { hierarchy, enabled })
    })
}

/// A block device's major and minor number, from the text of its file `dev` in sysfs: `8:16` and a line feed.
pub(crate) fn device_number(dev: &[u8]) -> Option<(u32, u32)> {
    device(dev.strip_suffix(b"\n")?)
}

/// `8:16`: a device's major and minor number.
pub(super) fn device(name: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = split_once(name, b':')?;
    let part = |digits| u32::try_from(decimal(digits)?).ok();
    Some((part(major)?, part(minor)?))
}

/// A number that stands as nothing but decimal digits, as the kernel writes it, and that a `u64` can hold.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// What stands before and behind the first separator.
pub(super) fn split_once(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|&byte| byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

/// The lines of a kernel file, without their line feeds; behind the last line feed an empty one, which no reader here takes for anything.
pub(super) fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|&byte| byte == b'\n')
}

/// Undoes the kernel's escapes in a path: a space, tab, line feed, backslash or hash is written as a backslash and three octal digits.
/// A backslash before anything else stands for itself.
fn unescape(escaped: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped;
    while let Some((&first, after)) = rest.split_first() {
        if let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', after @ ..] = rest {
            bytes.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
            rest = after;
        } else {
            bytes.push(first);
            rest = after;
        }
    }
    path(&bytes)
}

fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn mount(mount_point: &str, root: &str, read_only: bool) -> Cgroup2Mount {
        Cgroup2Mount { mount_point: mount_point.into(), root: root.into(), read_only }
    }

    #[test]
    fn the_cgroup2_mount_of_a_unified_host_is_found() {
        let mountinfo = b"\
            22 28 0:20 / /sys rw,nosuid,nodev,noexec,relatime shared:2 - sysfs sysfs rw\n\
            33 22 0:28 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n\
            34 22 0:29 / /sys/fs/pstore rw,nosuid shared:10 - pstore pstore rw\n";
        assert_eq!(cgroup2_mounts(mountinfo), [mount("/sys/fs/cgroup", "/", false)]);
    }

    #[test]
    fn on_a_hybrid_host_version_1_mounts_are_not_taken_for_version_2() {
        let mountinfo = b"\
            31 24 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            32 31 0:27 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup rw\n\
            35 31 0:31 / /sys/fs/cgroup/cgroup2 rw - cgroup cgroup2 rw,memory\n";
        assert_eq!(cgroup2_mounts(mountinfo), [mount("/sys/fs/cgroup/unified", "/", false)]);
    }

    #[test]
    fn a_mount_line_may_have_any_number_of_optional_fields() {
        for optional in ["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "] {
            let line = format!("1 2 0:3 / /cg rw {optional}- cgroup2 none rw");
            assert_eq!(cgroup2_mounts(line.as_bytes()), [mount("/cg", "/", false)], "{line}");
        }
    }

    #[test]
    fn a_mount_is_read_only_when_the_mount_or_the_file_system_is() {
        for (options, super_options, read_only) in
            [("rw", "rw", false), ("ro", "rw", true), ("nosuid,ro", "rw", true), ("rw", "rw,ro", true), ("rw,errors=ro", "root,rot", false)]
        {
            let line = format!("1 2 0:3 / /cg {options} - cgroup2 none {super_options}\n");
            assert_eq!(cgroup2_mounts(line.as_bytes()), [mount("/cg", "/", read_only)], "{line}");
        }
    }

    #[test]
    fn an_empty_mount_source_does_not_shift_the_fields() {
        assert_eq!(cgroup2_mounts(b"1 2 0:3 / /cg rw - cgroup2  ro\n"), [mount("/cg", "/", true)]);
    }

    #[test]
    fn escapes_in_paths_are_undone() {
        let line = br"1 2 0:3 /a\134040b/\377 /mnt/a\040b\011c\012d\043e\999\400\04 rw - cgroup2 none rw";
        let [mount] = &cgroup2_mounts(line)[..] else { panic!("one mount") };
        assert_eq!(mount.mount_point, Path::new("/mnt/a b\tc\nd#e\\999\\400\\04"));
        assert_eq!(mount.root.as_os_str().as_encoded_bytes(), b"/a\\040b/\xff");
    }

    #[test]
    fn a_broken_mount_line_is_left_out() {
        let mountinfo = b"\n - cgroup2\n1 2 0:3 / /cg rw shared:1\n1 2 0:3 / /cg rw - \n1 2 0:3 / /cg\n1 2 0:3 / /ok rw - cgroup2 none rw";
        assert_eq!(cgroup2_mounts(mountinfo), [mount("/ok", "/", false)]);
    }

    #[test]
    fn the_own_cgroup_is_that_of_the_unified_hierarchy() {
        assert_eq!(own_cgroup(b"12:memory:/v1\n1:name=systemd:/x\n0::/user.slice/a b:c\n"), Some("/user.slice/a b:c".into()));
        assert_eq!(own_cgroup(b"0::/"), Some("/".into()));
        assert_eq!(own_cgroup(b"0::/../outside\n"), Some("/../outside".into()));
    }

    #[test]
    fn without_a_unified_hierarchy_there_is_no_own_cgroup() {
        for text in ["", "\n", "12:memory:/v1\n", "10::/x\n", "0::\n", "0::relative\n"] {
            assert_eq!(own_cgroup(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_process_that_ends_before_its_program_is_told_by_its_flags() {
        let stat = |flags: u32| format!("42 (a) b) (c) Z 1 42 42 0 -1 {flags} 7 0 0\n").into_bytes();
        for (flags, expected) in [
            (0x44, Passage::EndsBefore),
            (0x0040_0044, Passage::EndsBefore),
            (0x40, Passage::OnItsWay),
            (0x4, Passage::Past),
            (0x0040_0000, Passage::Past),
        ] {
            assert_eq!(passage(&stat(flags)), Some(expected), "{flags:#x}");
        }
        assert_eq!((passage(b"42 (a) Z 1 42"), passage(b"")), (None, None));
    }

    #[test]
    fn a_controller_is_bound_to_the_hierarchy_in_its_line() {
        let proc_cgroups = b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n\
            cpuset\t3\t1\t1\ncpu\t1\t1\t1\ncpuacct\t2\t1\t1\nblkio\t7\t1\t1\nmemory\t4\t11\t1\nhugetlb\t0\t1\t1\nmisc\t0\t1\t0\n";
        let of = |controller| hierarchy_of(proc_cgroups, controller).map(|of| (of.hierarchy, of.enabled));
        assert_eq!(of("cpu"), Some((1, true)));
        assert_eq!(of("blkio"), Some((7, true)));
        assert_eq!(of("memory"), Some((4, true)));
        assert_eq!(of("hugetlb"), Some((0, true)), "free for version 2");
        assert_eq!(of("misc"), Some((0, false)));
        for controller in ["io", "mem", "pids", "#subsys_name", ""] {
            assert_eq!(of(controller), None, "{controller:?}");
        }
    }

    #[test]
    fn a_broken_line_says_nothing_of_its_controller() {
        for line in
            ["pids", "pids\t1", "pids\t1\t1", "pids\t1\t1\t2", "pids\t-1\t1\t1", "pids\t4294967296\t1\t1", "pids 1 1 1", " pids\t1\t1\t1"]
        {
            assert_eq!(hierarchy_of(line.as_bytes(), "pids"), None, "{line:?}");
        }
    }

    #[test]
    fn a_device_number_is_two_numbers_and_a_line_feed() {
        assert_eq!(device_number(b"8:16\n"), Some((8, 16)));
        assert_eq!(device_number(b"254:1048575\n"), Some((254, 1_048_575)));
        assert_eq!(device_number(b"4294967295:4294967295\n"), Some((u32::MAX, u32::MAX)));
        for text in ["", "\n", "8:16", "8\n", "8:\n", ":16\n", "8:16:0\n", "8: 16\n", "+8:16\n", "8:-1\n", "8:16\n\n", "4294967296:0\n"] {
            assert_eq!(device_number(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn a_number_is_digits_alone() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"18446744073709551615"), Some(u64::MAX));
        for text in ["", "+1", "-1", " 1", "1 ", "1_000", "0x1", "1.5", "max", "18446744073709551616", "99999999999999999999999", "\u{661}"]
        {
            assert_eq!(decimal(text.as_bytes()), None, "{text:?}");
        }
    }

    /// The kernel's side of the escapes.
    fn escape(path: &[u8]) -> Vec<u8> {
        path.iter().flat_map(|byte| if b" \t\n\\#".contains(byte) { format!("\\{byte:03o}").into_bytes() } else { vec![*byte] }).collect()
    }

    proptest! {
        #[test]
        fn any_path_survives_the_escapes(path in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b" \t\n\\#01234567"[..])], 0..40)) {
            prop_assert_eq!(unescape(&escape(&path)).into_os_string().into_vec(), path);
        }

        #[test]
        fn any_text_is_read_without_a_panic(text in prop::collection::vec(prop_oneof![3 => prop::sample::select(&b" \n-\\0123:/,"[..]), 1 => any::<u8>()], 0..200)) {
            let line = [b"1 2 0:3 / ", &text[..], b" rw - cgroup2 none rw"].concat();
            for text in [text, line] {
                cgroup2_mounts(&text);
                own_cgroup(&text);
                passage(&text);
                hierarchy_of(&text, "memory");
                device_number(&text);
            }
        }
    }
}
