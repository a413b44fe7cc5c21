//! Limits as people write them. Whatever is given, it is a limit or an error that says what is expected.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use iron_exec::{IoDevice, IoMax, Limits};
use parse_size::Config;
use rustix::system::sysinfo;

const CPU_ADVICE: &str = "give CPUs (1.5), a share of one (50%), QUOTA/PERIOD in microseconds (50000/100000) or max";
const SIZE_ADVICE: &str = "give bytes, with K, M, G or T for powers of 1024 (64M), a share of the machine's memory (10%) or max";
const RATE_ADVICE: &str = "give bytes a second, with K, M, G or T for powers of 1024 (10M), or max";
const COUNT_ADVICE: &str = "give a whole number or max";
const LIST_ADVICE: &str = "give numbers and ranges, such as 0-3,7";
const IO_ADVICE: &str =
    "give [DEVICE:]KEY=VALUE[,KEY=VALUE]... with the keys rbps, wbps, riops and wiops, such as /dev/sda:wbps=10M,riops=100";

/// The text for "no limit", as the kernel has it.
const NO_LIMIT: &str = "max";

/// What `--cpu-max` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CpuMax {
    /// So many CPUs' worth of time; infinity is no limit.
    Cores(f64),
    /// So much time in each period.
    Quota { quota: Duration, period: Duration },
}

impl CpuMax {
    pub(crate) fn set(self, limits: Limits) -> Limits {
        match self {
            CpuMax::Cores(cores) => limits.cpu_max(cores),
            CpuMax::Quota { quota, period } => limits.cpu_quota(quota, period),
        }
    }
}

/// `1.5`, `50%`, `50000/100000` or `max`.
pub(crate) fn cpu_max(text: &str) -> Result<CpuMax, String> {
    // What std reads as infinity and as no number at all is neither here.
    let number = |text: &str| text.parse::<f64>().ok().filter(|number| number.is_finite()).ok_or_else(|| CPU_ADVICE.to_owned());
    let micros = |text: &str| count(text).map(Duration::from_micros).ok_or_else(|| CPU_ADVICE.to_owned());
    let max = if text == NO_LIMIT {
        CpuMax::Cores(f64::INFINITY)
    } else if let Some(percent) = text.strip_suffix('%') {
        CpuMax::Cores(number(percent)? / 100.0)
    } else if let Some((quota, period)) = text.split_once('/') {
        CpuMax::Quota { quota: micros(quota)?, period: micros(period)? }
    } else {
        CpuMax::Cores(number(text)?)
    };
    checked(max, &max.set(Limits::new()), CPU_ADVICE)
}

/// The CPUs or memory nodes of `--cpuset-cpus` and `--cpuset-mems`.
pub(crate) fn number_list(text: &str) -> Result<String, String> {
    if text.is_empty() {
        // A variable of a script that is not set is no wish for all of them.
        return Err(format!("it is empty: {LIST_ADVICE}; leave the option out for no limit"));
    }
    Limits::new().cpuset_cpus(text).check().map_err(|_| LIST_ADVICE.to_owned())?;
    Ok(text.to_owned())
}

/// An amount of memory: `64M`, `10%` or `max`.
pub(crate) fn memory(text: &str) -> Result<u64, String> {
    memory_of(text, || {
        let info = sysinfo();
        // The numbers' types differ between architectures.
        #[allow(clippy::useless_conversion, reason = "an unsigned long is shorter elsewhere")]
        let (total, unit) = (u64::from(info.totalram), u64::from(info.mem_unit));
        total.saturating_mul(unit)
    })
}

/// An amount of bytes: `64K`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    match memory(text)? {
        Limits::UNLIMITED => Err("leave the option out for no limit".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A number of bytes: `64M`, or `max` for any number.
#[cfg(feature = "s3")]
pub(crate) fn bytes_or_max(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| "give bytes, with K, M, G or T for powers of 1024 (64M), or max".to_owned())
}

/// The most processes: a number or `max`.
pub(crate) fn pids_max(text: &str) -> Result<u64, String> {
    let pids = count_or_max(text)?;
    checked(pids, &Limits::new().pids_max(pids), COUNT_ADVICE)
}

/// `[DEVICE:]KEYS`, split at the last colon: keys have none, devices may. A device is a path, or `MAJ:MIN`.
pub(crate) fn io_max(text: &OsStr) -> Result<(IoDevice, IoMax), String> {
    let bytes = text.as_bytes();
    let (device, keys) = match bytes.iter().rposition(|byte| *byte == b':') {
        Some(0) => return Err(format!("there is no device before the colon: {IO_ADVICE}")),
        Some(at) => (io_device(&bytes[..at]), &bytes[at + 1..]),
        None => (IoDevice::All, bytes),
    };
    let keys = str::from_utf8(keys).map_err(|_| IO_ADVICE.to_owned())?;
    let mut seen = Vec::new();
    let mut max = IoMax::new();
    for part in keys.split(',') {
        let (key, value) = part.split_once('=').ok_or_else(|| format!("there is no `=` in {part:?}: {IO_ADVICE}"))?;
        let about = |advice: String| format!("{key}={value}: {advice}");
        max = match key {
            "rbps" => max.read_bytes(rate(value).map_err(about)?),
            "wbps" => max.write_bytes(rate(value).map_err(about)?),
            "riops" => max.read_ops(count_or_max(value).map_err(about)?),
            "wiops" => max.write_ops(count_or_max(value).map_err(about)?),
            _ => return Err(format!("{key:?} is no key: {IO_ADVICE}")),
        };
        if seen.contains(&key) {
            return Err(format!("{key} is given twice: give each key once"));
        }
        seen.push(key);
    }
    let limits = Limits::new().io_max(device.clone(), max);
    checked((device, max), &limits, "give at least 2 for each, or max")
}

fn io_device(bytes: &[u8]) -> IoDevice {
    let number = |text: &str| count(text).and_then(|number| u32::try_from(number).ok());
    let numbers = str::from_utf8(bytes).ok().and_then(|text| text.split_once(':')).and_then(|(major, minor)| {
        let (major, minor) = (number(major)?, number(minor)?);
        Some(IoDevice::Number { major, minor })
    });
    numbers.unwrap_or_else(|| IoDevice::Path(PathBuf::from(OsStr::from_bytes(bytes))))
}

fn memory_of(text: &str, machine_bytes: impl FnOnce() -> u64) -> Result<u64, String> {
    let Some(percent) = text.strip_suffix('%') else { return size(text).ok_or_else(|| SIZE_ADVICE.to_owned()) };
    let percent = percent.parse::<f64>().ok().filter(|percent| (0.01..=100.0).contains(percent));
    let percent = percent.ok_or("give 0.01% to 100% of the machine's memory")?;
    // At most 10,000, so that nothing is lost but what is behind the point.
    let hundredths = (percent * 100.0).round() as u128;
    Ok(u64::try_from(u128::from(machine_bytes()) * hundredths / 10_000).unwrap_or(u64::MAX))
}

fn rate(text: &str) -> Result<u64, String> {
    size(text).ok_or_else(|| RATE_ADVICE.to_owned())
}

/// A number of bytes, and not `max`.
pub(crate) fn byte_count(text: &str) -> Result<u64, String> {
    let bytes = size(text).filter(|bytes| *bytes != Limits::UNLIMITED);
    bytes.ok_or_else(|| "give bytes, with K, M, G or T for powers of 1024 (10G)".to_owned())
}

/// A number of bytes, or `max`.
fn size(text: &str) -> Option<u64> {
    if text == NO_LIMIT {
        return Some(Limits::UNLIMITED);
    }
    // What is 0 in the end was either meant so or is a slip of the point, such as `0.1`.
    let bytes = Config::new().with_binary().parse_size(text).ok()?;
    let is_zero = text.bytes().all(|byte| !matches!(byte, b'1'..=b'9'));
    (bytes > 0 || is_zero).then_some(bytes)
}

fn count_or_max(text: &str) -> Result<u64, String> {
    if text == NO_LIMIT {
        return Ok(Limits::UNLIMITED);
    }
    count(text).ok_or_else(|| COUNT_ADVICE.to_owned())
}

/// A whole number: digits and nothing else, no sign either.
fn count(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// `value`, if the library takes the limits that are made of it.
fn checked<T>(value: T, limits: &Limits, advice: &str) -> Result<T, String> {
    limits.check().map_err(|error| format!("{error}: {advice}"))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What no option takes.
    const NOTHING: [&str; 14] = ["", " ", "-1", "nan", "inf", "-inf", "1e300", "K", "%", "/", "1,5", "\0", "½", "99999999999999999999999"];

    #[test]
    fn cpu_time_is_cpus_a_share_of_one_or_a_quota() {
        let quota = |quota, period| CpuMax::Quota { quota: Duration::from_micros(quota), period: Duration::from_micros(period) };
        for (text, max) in [
            ("1.5", CpuMax::Cores(1.5)),
            ("2", CpuMax::Cores(2.0)),
            ("50%", CpuMax::Cores(0.5)),
            ("250%", CpuMax::Cores(2.5)),
            ("50000/100000", quota(50_000, 100_000)),
            ("max", CpuMax::Cores(f64::INFINITY)),
        ] {
            assert_eq!(cpu_max(text), Ok(max), "{text:?}");
        }
        let wrong = ["0", "0.001", "0%", "max%", "1e300%", "nan%", "1/", "/1", "-1/100000", "1/1", "50000/0", "1/2/3", "1.5/2", "1.5 CPUs"];
        for text in NOTHING.iter().chain(&wrong) {
            let error = cpu_max(text).expect_err(text);
            assert!(error.contains("50000/100000") && error.contains("max"), "{text:?}: {error}");
        }
    }

    #[test]
    fn memory_is_bytes_in_powers_of_1024_or_a_share_of_the_machines() {
        let memory = |text| memory_of(text, || 1000 << 20);
        for (text, bytes) in [
            ("0", 0),
            ("0M", 0),
            ("4096", 4096),
            ("64K", 64 << 10),
            ("64k", 64 << 10),
            ("64M", 64 << 20),
            ("64MB", 64 << 20),
            ("64MiB", 64 << 20),
            ("1.5G", 3 << 29),
            ("2T", 2 << 40),
            ("max", u64::MAX),
            ("10%", 100 << 20),
            ("0.5%", 5 << 20),
            ("100%", 1000 << 20),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text:?}");
        }
        let wrong = ["64Q", "M64", "64MM", "0x40", "0.1", "1e-9", "1e99999999999999999999", "1e-99999999999999999999", "17000000T"];
        for text in NOTHING.iter().chain(&wrong) {
            let error = memory(text).expect_err(text);
            assert!(error.contains("give "), "{text:?}: {error}");
        }
        for text in ["0%", "-1%", "101%", "nan%", "inf%", "1e300%", "max%"] {
            assert!(memory(text).expect_err(text).contains("100%"), "{text:?}");
        }
        assert_eq!(memory_of("100%", || u64::MAX), Ok(u64::MAX));
        assert!(super::memory("1%").is_ok_and(|bytes| bytes > 0), "a machine has memory");
    }

    #[test]
    fn processes_are_a_number_in_its_range() {
        assert_eq!(pids_max("1"), Ok(1));
        assert_eq!(pids_max("4194304"), Ok(4_194_304));
        assert_eq!(pids_max("max"), Ok(u64::MAX));
        for text in NOTHING.iter().chain(&["0", "4194305", "18446744073709551614", "1K", "+1", "1.5", "MAX"]) {
            assert!(pids_max(text).expect_err(text).contains(COUNT_ADVICE), "{text:?}");
        }
    }

    #[test]
    fn a_list_of_cpus_is_the_kernels_and_never_empty() {
        for text in ["0", "0-3,7", "0-31:1/4"] {
            assert_eq!(number_list(text), Ok(text.to_owned()));
        }
        for text in ["", " ", "a", "0-", "-1", "0,,1", "0 1", "0\n", "\0", "99999999999999999999"] {
            assert!(number_list(text).expect_err(text).contains(LIST_ADVICE), "{text:?}");
        }
    }

    #[test]
    fn io_is_limited_by_device_or_on_all_of_them() {
        let path = |text: &str| IoDevice::Path(PathBuf::from(text));
        let all_of_it = IoMax::new().read_bytes(1 << 20).write_bytes(10 << 20).read_ops(100).write_ops(u64::MAX);
        for (text, device, max) in [
            ("rbps=1M,wbps=10M,riops=100,wiops=max", IoDevice::All, all_of_it),
            ("wiops=max,riops=100,wbps=10M,rbps=1M", IoDevice::All, all_of_it),
            ("/dev/sda:wbps=2", path("/dev/sda"), IoMax::new().write_bytes(2)),
            ("/a:b=c,d:wbps=2", path("/a:b=c,d"), IoMax::new().write_bytes(2)),
            ("8:16:riops=5", IoDevice::Number { major: 8, minor: 16 }, IoMax::new().read_ops(5)),
            ("8:x:riops=5", path("8:x"), IoMax::new().read_ops(5)),
        ] {
            assert_eq!(io_max(OsStr::new(text)), Ok((device, max)), "{text:?}");
        }
        assert_eq!(io_max(OsStr::from_bytes(b"/\xff:riops=2")).unwrap().0, IoDevice::Path(OsStr::from_bytes(b"/\xff").into()));
    }

    #[test]
    fn io_limits_that_say_nothing_or_too_much_are_refused() {
        let wrong = [
            (":rbps=2", "no device"),
            ("/dev/sda", "no `=`"),
            ("/dev/sda:", "no `=`"),
            ("8:0", "no `=`"),
            ("rbps=2,", "no `=`"),
            ("rbps", "no `=`"),
            ("speed=1", "is no key"),
            ("=1", "is no key"),
            ("RBPS=1", "is no key"),
            ("rbps=2,rbps=2", "twice"),
            ("rbps=", RATE_ADVICE),
            ("wbps=-1", RATE_ADVICE),
            ("wbps=1e300", RATE_ADVICE),
            ("riops=nan", COUNT_ADVICE),
            ("riops=1K", COUNT_ADVICE),
            ("wiops=99999999999999999999", COUNT_ADVICE),
            ("rbps=1", "at least 2"),
            ("/dev/a\0b:rbps=2", "cannot be the path"),
        ];
        for (text, part) in wrong {
            let error = io_max(OsStr::new(text)).expect_err(text);
            assert!(error.contains(part), "{text:?}: {error}");
        }
        assert!(io_max(OsStr::from_bytes(b"rbps=\xff")).is_err());
        for text in NOTHING {
            assert!(io_max(OsStr::new(text)).is_err(), "{text:?}");
        }
    }
}
