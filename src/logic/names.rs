//! Names for what belongs to a job in a directory shared with others: its log file, its cgroup.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::model::id::JobId;

/// The length in bytes to which a program's name is cut: with the id, a suffix and a rotation number it stays far below 255.
const NAME_BYTES_MAX: usize = 64;

/// What a job is called whose program's path has no last part (`/`, `..`, the empty one).
const NAMELESS: &str = "job";

/// The last part of a program's path, made safe as (the start of) a file's name: of letters, digits and `._+-`, with `_` for all else,
/// starting with neither a dot (it would be hidden) nor a dash (it would be taken for an option), 1 to 64 bytes long.
pub(crate) fn safe_name(program: &OsStr) -> String {
    let Some(name) = Path::new(program).file_name() else { return NAMELESS.to_owned() };
    let mut at_start = true;
    let safe = |&byte: &u8| {
        at_start &= matches!(byte, b'.' | b'-');
        if !at_start && (byte.is_ascii_alphanumeric() || b"._+-".contains(&byte)) { char::from(byte) } else { '_' }
    };
    name.as_bytes().iter().take(NAME_BYTES_MAX).map(safe).collect()
}

/// What a job's log file and cgroup are called: `{name}_{id}`.
pub(crate) fn entry_name(name: &str, id: JobId) -> String {
    format!("{name}_{id}")
}

/// The end of a log file's name; a rotated one has its number behind it.
const LOG_SUFFIX: &str = ".log";

/// What a job's log is called: `{name}_{id}.log`.
pub(crate) fn log_name(entry: &str) -> String {
    [entry, LOG_SUFFIX].concat()
}

/// What a log's file of this number is called once it is full: `{log}.000017`. Numbers begin with 1 and are never used again.
pub(crate) fn rotated_name(log: &str, number: u64) -> String {
    format!("{log}.{number:06}")
}

/// The name of a log file, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogName<'a> {
    /// The name of the log's newest file: `{name}_{id}.log`.
    pub(crate) log: &'a str,
    /// Whose it is.
    pub(crate) job: JobId,
    /// The number of a file that was rotated; `None` for the newest one.
    pub(crate) number: Option<u64>,
}

impl<'a> LogName<'a> {
    /// Takes apart a name that [`log_name`] or [`rotated_name`] has made; `None` for any other.
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (log, number) = if name.ends_with(LOG_SUFFIX) {
            (name, None)
        } else {
            let (log, digits) = name.rsplit_once('.')?;
            let number = digits.parse().ok().filter(|number| *number > 0)?;
            // One file has one name.
            (log, Some(number).filter(|number| rotated_name(log, *number) == name).map(Some)?)
        };
        let (_, id) = log.strip_suffix(LOG_SUFFIX)?.rsplit_once('_')?;
        let job: JobId = id.parse().ok()?;
        (job.to_string() == id).then_some(Self { log, job, number })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn safe(program: &[u8]) -> String {
        safe_name(OsStr::from_bytes(program))
    }

    #[test]
    fn a_name_is_the_last_part_of_the_path() {
        assert_eq!(safe(b"/usr/bin/make"), "make");
        assert_eq!(safe(b"g++-12.x_y"), "g++-12.x_y");
        assert_eq!(safe(b"./run/"), "run");
    }

    #[test]
    fn what_is_unsafe_in_a_name_becomes_an_underscore() {
        assert_eq!(safe(b"a b\n\x1b[31m\xff\0*'"), "a_b___31m____");
        assert_eq!(safe("naïve".as_bytes()), "na__ve");
    }

    #[test]
    fn a_log_file_is_told_by_its_name() {
        let id: JobId = "0190d3b1-7c8a-7def-8123-456789abcdef".parse().unwrap();
        let log = log_name(&entry_name("my_job", id));
        assert_eq!(LogName::parse(&log), Some(LogName { log: &log, job: id, number: None }));
        for number in [1, 17, 999_999, 1_000_000, u64::MAX] {
            let rotated = rotated_name(&log, number);
            assert_eq!(LogName::parse(&rotated), Some(LogName { log: &log, job: id, number: Some(number) }));
        }
        assert_eq!(rotated_name(&log, 17), format!("{log}.000017"));
        for wrong in [
            "",
            ".log",
            "a.log",
            "a_b.log",
            &log[1..5],
            &format!("{log}.1"),
            &format!("{log}.000000"),
            &format!("{log}.+00001"),
            &format!("{log}."),
        ] {
            assert_eq!(LogName::parse(wrong), None, "{wrong:?}");
        }
        assert_eq!(LogName::parse(&log.to_uppercase().replace("LOG", "log").replace("MY_JOB", "my_job")), None);
    }

    #[test]
    fn a_name_starts_with_neither_a_dot_nor_a_dash() {
        assert_eq!(safe(b".hidden"), "_hidden");
        assert_eq!(safe(b"-rf"), "_rf");
        assert_eq!(safe(b"/tmp/...-x.-y"), "____x.-y");
        assert_eq!(safe(b"---"), "___");
    }

    #[test]
    fn a_long_name_is_cut() {
        assert_eq!(safe(&[b'x'; 5000]), "x".repeat(64));
    }

    #[test]
    fn a_program_without_a_name_is_a_job() {
        for program in ["", "/", "..", ".", "a/..", "//"] {
            assert_eq!(safe(program.as_bytes()), "job", "{program:?}");
        }
    }

    #[test]
    fn an_entry_is_named_after_the_program_and_the_id() {
        let id = JobId::from(Uuid::from_u128(0x0193_5a2c_0000_7000_8000_0000_0000_0001));
        assert_eq!(entry_name("make", id), "make_01935a2c-0000-7000-8000-000000000001");
    }

    proptest! {
        #[test]
        fn any_program_gives_a_safe_name(program in prop::collection::vec(any::<u8>(), 0..100)) {
            let name = safe(&program);
            prop_assert!((1..=64).contains(&name.len()));
            prop_assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._+-".contains(&byte)));
            prop_assert!(!name.starts_with(['.', '-']));
        }
    }
}
