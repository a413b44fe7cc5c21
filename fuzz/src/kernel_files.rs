//! The body of `kernel_files`: what the readers of files below /proc and /sys promise.

use std::ffi::{OsStr, OsString};
use std::fmt::{Debug, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use iron_exec::fuzzing as read;
use iron_exec::{CpuUsage, IoUsage, MemoryEvents};

use crate::chunk;

/// Lines that a later kernel might write, and that no reader here knows.
const UNKNOWN_LINES: [&[u8]; 12] = [
    b"",
    b" ",
    b"unknown",
    b"unknown 1",
    b"populated",
    b"unfrozen 1",
    b"maximum 7",
    b"nr_periodicals 7",
    b"usage_usec: 7",
    b"8:0 cost.vrate=100.00 cost.usage=7",
    b"0:cpu:/unknown",
    b"1 2 0:3 / / rw - tmpfs none rw",
];

const CPU_KEYS: [&str; 6] = ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"];
const MEMORY_KEYS: [&str; 6] = ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"];
const IO_KEYS: [&str; 6] = ["rbytes", "wbytes", "rios", "wios", "dbytes", "dios"];
const CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "memory", "blkio", "pids", "misc"];

/// The files from which jobs' limits and usage are read: any text, and what the kernel would write for any values.
///
/// # Panics
///
/// When a value does not come back as the kernel has written it, or when a reader takes something from a line that is none of its own.
pub fn kernel_files(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let _ = match input.arbitrary() {
        Ok(true) => render_and_read_back(&mut input),
        Ok(false) => {
            read_any_text(input.take_rest());
            Ok(())
        }
        Err(_) => Ok(()),
    };
}

/// Mount point, root and whether it is read-only. Not as paths, to which `//` is `/`.
type Mount = (OsString, OsString, bool);

fn cgroup2_mounts(text: &[u8]) -> Vec<Mount> {
    let mounts = read::cgroup2_mounts(text).into_iter();
    mounts.map(|(mount_point, root, is_read_only)| (mount_point.into(), root.into(), is_read_only)).collect()
}

fn own_cgroup(text: &[u8]) -> Option<OsString> {
    read::own_cgroup(text).map(OsString::from)
}

/// What the readers of whole lines take from a text.
#[derive(Debug, PartialEq)]
struct Readings {
    mounts: Vec<Mount>,
    own_cgroup: Option<OsString>,
    controllers: [Option<(u32, bool)>; CONTROLLERS.len()],
    populated: Option<bool>,
    frozen: bool,
    cpu: CpuUsage,
    memory: MemoryEvents,
    max_events: u64,
    io: Vec<IoUsage>,
}

impl Readings {
    fn of(text: &[u8]) -> Self {
        Self {
            mounts: cgroup2_mounts(text),
            own_cgroup: own_cgroup(text),
            controllers: CONTROLLERS.map(|controller| read::hierarchy_of(text, controller)),
            populated: read::populated(text),
            frozen: read::frozen(text),
            cpu: read::cpu_stat(text),
            memory: read::memory_events(text),
            max_events: read::max_events(text),
            io: read::io_stat(text),
        }
    }
}

fn read_any_text(text: &[u8]) {
    let readings = Readings::of(text);
    let lines: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();

    assert_eq!(Readings::of(&[text, b"\n"].concat()), readings, "a last line feed must not matter");
    let mut woven = Vec::new();
    for (line, unknown) in lines.iter().zip(UNKNOWN_LINES.iter().cycle()) {
        woven.extend([*unknown, b"\n", line, b"\n"].concat());
    }
    assert_eq!(Readings::of(&woven), readings, "lines of others must not matter");
    assert_eq!(lines.iter().flat_map(|line| cgroup2_mounts(line)).collect::<Vec<_>>(), readings.mounts);
    assert_eq!(lines.iter().flat_map(|line| read::io_stat(line)).collect::<Vec<_>>(), readings.io);

    // The same by other means.
    let cpu = CPU_KEYS.map(|key| value_of(&lines, key));
    assert_eq!(cpu_values(&readings.cpu), expected_cpu(cpu));
    assert_eq!(memory_values(&readings.memory), MEMORY_KEYS.map(|key| value_of(&lines, key).unwrap_or(0)));
    assert_eq!(readings.max_events, value_of(&lines, "max").unwrap_or(0));
    assert_eq!(readings.frozen, lines.contains(&b"frozen 1".as_slice()));
    if let Some(populated) = readings.populated {
        assert!(lines.contains(&format!("populated {}", u8::from(populated)).as_bytes()));
    }
    for (controller, reading) in CONTROLLERS.iter().zip(readings.controllers) {
        let is_own = |line: &&&[u8]| line.starts_with(format!("{controller}\t").as_bytes());
        assert_eq!(lines.iter().filter(is_own).find_map(|line| read::hierarchy_of(line, controller)), reading);
    }

    // What was understood can be said again.
    for (mount_point, root, is_read_only) in readings.mounts {
        let options = if is_read_only { "ro" } else { "rw" };
        let line = mount_line(&mount_point, &root, &["rw"], "", "cgroup2", options);
        assert_eq!(cgroup2_mounts(&line), [(mount_point, root, is_read_only)]);
    }
    if let Some(own) = readings.own_cgroup {
        assert!(own.as_bytes().starts_with(b"/"));
        assert_eq!(own_cgroup(&[b"0::", own.as_bytes()].concat()), Some(own));
    }
    for usage in readings.io {
        let (device, values) = io_values(&usage);
        assert_eq!(read::io_stat(io_line(device, values.map(Some)).as_bytes()), [usage]);
    }

    // Files of one line.
    let line = text.strip_suffix(b"\n").unwrap_or_default();
    assert_eq!(read::number(text), parse(line));
    let device = line.iter().position(|&byte| byte == b':').and_then(|colon| {
        let part = |digits| u32::try_from(parse(digits)?).ok();
        Some((part(&line[..colon])?, part(&line[colon + 1..])?))
    });
    assert_eq!(read::device_number(text), device);
    if let Some(bracket) = text.iter().rposition(|&byte| byte == b')') {
        assert_eq!(read::ends_before_exec(&[b"1 (", &text[bracket..]].concat()), read::ends_before_exec(text), "the name must not matter");
    }
    assert!(!(read::ends_before_exec(text) && read::is_past_exec(text)), "a process has executed its program, or has not");
    let words: Vec<_> = lines.iter().flat_map(|line| read::words(line)).collect();
    assert_eq!(read::words(text), words);
    assert_eq!(read::words(words.join(" ").as_bytes()), words);
    assert!(words.iter().all(|word| !word.is_empty() && !word.contains([' ', '\t', '\n'])));
}

fn render_and_read_back(input: &mut Unstructured<'_>) -> Result<()> {
    match input.arbitrary::<u8>()? % 10 {
        0 => mounts(input),
        1 => proc_self_cgroup(input),
        2 => cgroup_events(input),
        3 => flat_keys(input),
        4 => io_stat(input),
        5 => proc_cgroups(input),
        6 => {
            let number = input.arbitrary()?;
            same(read::number, format!("{number}\n").as_bytes(), &Some(number))
        }
        7 => {
            let (major, minor) = input.arbitrary()?;
            same(read::device_number, format!("{major}:{minor}\n").as_bytes(), &Some((major, minor)))
        }
        8 => {
            let flags: u32 = input.arbitrary()?;
            let stat = [b"42 (", chunk(input)?, format!(") Z 1 42 42 0 -1 {flags} 7 0\n").as_bytes()].concat();
            same(read::ends_before_exec, &stat, &(flags & 0x44 == 0x44))?;
            same(read::is_past_exec, &stat, &(flags & 0x40 == 0))
        }
        _ => {
            let words = many(input, word)?;
            same(read::words, format!("{}\n", words.join(" ")).as_bytes(), &words)
        }
    }
}

fn mounts(input: &mut Unstructured<'_>) -> Result<()> {
    let mut expected = Vec::new();
    let lines = many(input, |input| {
        let kind = input.arbitrary::<u8>()?;
        let (mount_point, root) = (path(input)?, path(input)?);
        let options: &[&str] = input.choose(&[&["rw"] as &[_], &["ro"], &["rw", "nosuid", "relatime"], &["noexec", "ro"]])?;
        let optional = *input.choose(&["", "shared:1 ", "shared:1 master:2 propagate_from:3 unbindable "])?;
        let super_options = *input.choose(&["rw", "ro", "rw,nsdelegate,memory_recursiveprot", "ro,nsdelegate"])?;
        let file_system = *input.choose(&["cgroup2", "cgroup2", "cgroup", "tmpfs", "fuse.cgroup2"])?;
        if kind % 8 == 0 {
            return Ok(input.choose(&UNKNOWN_LINES)?.to_vec());
        }
        let line = mount_line(&mount_point, &root, options, optional, file_system, super_options);
        if file_system == "cgroup2" {
            expected.push((mount_point, root, options.contains(&"ro") || super_options.starts_with("ro")));
        }
        Ok(line)
    })?;
    same(cgroup2_mounts, &lines.join(&b'\n'), &expected)
}

fn proc_self_cgroup(input: &mut Unstructured<'_>) -> Result<()> {
    let own = path(input)?;
    let mut lines = many(input, |input| {
        let (hierarchy, controller, cgroup) = (input.arbitrary::<u32>()?, word(input)?, word(input)?);
        Ok(format!("{hierarchy}:{controller}:/{cgroup}").into_bytes())
    })?;
    // The kernel writes the path as it is. It has no line feeds.
    let own: Vec<u8> = own.into_vec().into_iter().filter(|&byte| byte != b'\n').collect();
    // Version 1 hierarchies have a name or controllers.
    lines.retain(|line| !line.starts_with(b"0::"));
    same(own_cgroup, &lines.join(&b'\n'), &None)?;
    lines.push([b"0::", &own[..]].concat());
    shuffle(input, &mut lines)?;
    same(own_cgroup, &lines.join(&b'\n'), &Some(OsString::from_vec(own)))
}

fn cgroup_events(input: &mut Unstructured<'_>) -> Result<()> {
    let (populated, frozen): (Option<bool>, Option<bool>) = input.arbitrary()?;
    let key = |name: &str, value: Option<bool>| value.map(|value| format!("{name} {}", u8::from(value)).into_bytes());
    let text = weave(input, [key("populated", populated), key("frozen", frozen)].into_iter().flatten().collect())?;
    same(read::populated, &text, &populated)?;
    same(read::frozen, &text, &(frozen == Some(true)))
}

/// `cpu.stat`, `memory.events` and `pids.events`.
fn flat_keys(input: &mut Unstructured<'_>) -> Result<()> {
    let is_memory = input.arbitrary()?;
    let values: [Option<u64>; 6] = input.arbitrary()?;
    let keys = if is_memory { MEMORY_KEYS } else { CPU_KEYS };
    let lines = keys.iter().zip(values).filter_map(|(key, value)| Some(format!("{key} {}", value?).into_bytes()));
    let text = weave(input, lines.collect())?;
    let none = [None; 6];
    let (cpu, memory) = if is_memory { (none, values) } else { (values, none) };
    same(|text| cpu_values(&read::cpu_stat(text)), &text, &expected_cpu(cpu))?;
    same(|text| memory_values(&read::memory_events(text)), &text, &memory.map(Option::unwrap_or_default))?;
    same(read::max_events, &text, &memory[2].unwrap_or(0))
}

fn io_stat(input: &mut Unstructured<'_>) -> Result<()> {
    let mut expected = Vec::new();
    let lines = many(input, |input| {
        let (device, values): ([u32; 2], [Option<u64>; 6]) = input.arbitrary()?;
        let before = *input.choose(&["", "", "7:7 7:6 ", "(unknown) ", "-"])?;
        if values != [None; 6] && before != "-" {
            expected.push((device, values.map(Option::unwrap_or_default)));
        }
        let mut line = format!("{before}{}", io_line(device, values));
        line.push_str(input.choose(&["", "", " ", " cost.vrate=100.00", " use_delay=0 delay_nsec=0 x"])?);
        Ok(line)
    })?;
    same(|text| read::io_stat(text).iter().map(io_values).collect::<Vec<_>>(), lines.join("\n").as_bytes(), &expected)
}

fn proc_cgroups(input: &mut Unstructured<'_>) -> Result<()> {
    let values: [Option<(u32, u32, bool)>; CONTROLLERS.len()] = input.arbitrary()?;
    let line = |(controller, value): (&str, Option<(u32, u32, bool)>)| {
        let (hierarchy, cgroups, is_enabled) = value?;
        Some(format!("{controller}\t{hierarchy}\t{cgroups}\t{}", u8::from(is_enabled)).into_bytes())
    };
    let text = weave(input, CONTROLLERS.into_iter().zip(values).filter_map(line).collect())?;
    let text = [b"#subsys_name\thierarchy\tnum_cgroups\tenabled\n", &text[..]].concat();
    let expected = values.map(|value| value.map(|(hierarchy, _, is_enabled)| (hierarchy, is_enabled)));
    same(|text| CONTROLLERS.map(|controller| read::hierarchy_of(text, controller)), &text, &expected)
}

/// Fails when `text` does not read as `expected`. Is never an error: the type is its callers'.
#[expect(clippy::unnecessary_wraps, reason = "the last expression of functions that may run out of input")]
fn same<T: Debug + PartialEq>(read: impl Fn(&[u8]) -> T, text: &[u8], expected: &T) -> Result<()> {
    assert_eq!(read(text), *expected, "b\"{}\"", text.escape_ascii());
    Ok(())
}

/// `/proc/self/mountinfo`'s line of a mount.
fn mount_line(mount_point: &OsStr, root: &OsStr, options: &[&str], optional: &str, file_system: &str, super_options: &str) -> Vec<u8> {
    let escape = |path: &OsStr| {
        let mut escaped = Vec::new();
        for &byte in path.as_bytes() {
            match byte {
                b' ' | b'\t' | b'\n' | b'\\' | b'#' => escaped.extend(format!("\\{byte:03o}").into_bytes()),
                _ => escaped.push(byte),
            }
        }
        escaped
    };
    let behind = format!(" {} {optional}- {file_system} none {super_options}", options.join(","));
    [b"36 35 0:28 ", &escape(root)[..], b" ", &escape(mount_point), behind.as_bytes()].concat()
}

/// A device's line of `io.stat`.
fn io_line([major, minor]: [u32; 2], values: [Option<u64>; 6]) -> String {
    let mut line = format!("{major}:{minor}");
    for (key, value) in IO_KEYS.iter().zip(values) {
        if let Some(value) = value {
            write!(line, " {key}={value}").expect("a string takes everything");
        }
    }
    line
}

/// The values in the order of [`IO_KEYS`], behind the device.
fn io_values(usage: &IoUsage) -> ([u32; 2], [u64; 6]) {
    let values = [usage.read_bytes, usage.write_bytes, usage.reads, usage.writes, usage.discard_bytes, usage.discards];
    ([usage.major, usage.minor], values)
}

/// The values in the order of [`MEMORY_KEYS`].
fn memory_values(events: &MemoryEvents) -> [u64; 6] {
    [events.low, events.high, events.max, events.oom, events.oom_kill, events.oom_group_kill]
}

/// The times, and the values of throttling in the order of [`CPU_KEYS`].
type CpuValues = ([Duration; 3], Option<(u64, u64, Duration)>);

fn cpu_values(usage: &CpuUsage) -> CpuValues {
    let throttled = usage.throttled.map(|throttled| (throttled.periods, throttled.throttled_periods, throttled.time));
    ([usage.total, usage.user, usage.system], throttled)
}

/// What the values of [`CPU_KEYS`] say.
fn expected_cpu([total, user, system, periods, throttled, time]: [Option<u64>; 6]) -> CpuValues {
    let micros = |value: Option<u64>| Duration::from_micros(value.unwrap_or(0));
    let throttled = periods.map(|periods| (periods, throttled.unwrap_or(0), micros(time)));
    ([micros(total), micros(user), micros(system)], throttled)
}

/// The number behind a key, by other means than the library's.
fn value_of(lines: &[&[u8]], key: &str) -> Option<u64> {
    lines.iter().filter_map(|line| parse(line.strip_prefix(format!("{key} ").as_bytes())?)).next_back()
}

fn parse(digits: &[u8]) -> Option<u64> {
    let digits = str::from_utf8(digits).ok()?;
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

/// Up to eight of something.
fn many<T>(input: &mut Unstructured<'_>, mut one: impl FnMut(&mut Unstructured<'_>) -> Result<T>) -> Result<Vec<T>> {
    let len = input.arbitrary::<u8>()? % 9;
    (0..len).map(|_| one(input)).collect()
}

/// A path of any bytes but NUL.
fn path(input: &mut Unstructured<'_>) -> Result<OsString> {
    let mut path = vec![b'/'];
    path.extend(chunk(input)?.iter().filter(|&&byte| byte != 0));
    Ok(OsString::from_vec(path))
}

/// A word of letters, digits and more, but no white space.
fn word(input: &mut Unstructured<'_>) -> Result<String> {
    let bytes = chunk(input)?;
    Ok(if bytes.is_empty() { "x".to_owned() } else { bytes.iter().map(|byte| char::from(b'!' + byte % 94)).collect() })
}

/// The lines in any order, with unknown ones among them.
fn weave(input: &mut Unstructured<'_>, mut lines: Vec<Vec<u8>>) -> Result<Vec<u8>> {
    lines.extend(many(input, |input| Ok(input.choose(&UNKNOWN_LINES)?.to_vec()))?);
    shuffle(input, &mut lines)?;
    Ok(lines.join(&b'\n'))
}

fn shuffle<T>(input: &mut Unstructured<'_>, items: &mut [T]) -> Result<()> {
    for last in (1..items.len()).rev() {
        items.swap(last, input.int_in_range(0..=last)?);
    }
    Ok(())
}
