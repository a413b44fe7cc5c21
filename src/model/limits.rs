//! What a job may use, as its cgroup holds it to.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::model::error::CommandError;

/// The period of `cpu.max` unless it is said: the kernel's own.
const CPU_PERIOD: Duration = Duration::from_millis(100);

/// The bounds of a period and of a quota, in microseconds (`min_bw_runtime`, `max_bw_period` of the kernel's scheduler; the largest quota is what it
/// can count in).
const CPU_PERIOD_MICROS: (u64, u64) = (1_000, 1_000_000);
const CPU_QUOTA_MICROS: (u64, u64) = (1_000, 1 << 44);

/// The bounds of `cpu.weight` and `io.weight`.
const WEIGHT: (u64, u64) = (1, 10_000);

/// The most processes that `pids.max` takes as a number (PID_MAX_LIMIT).
const PIDS_MAX: (u64, u64) = (1, 4 << 20);

/// The least that the kernel takes in `io.max`; it refuses 1.
const IO_MAX_MIN: u64 = 2;

/// The longest list of CPUs or memory nodes, in bytes: the kernel takes a page.
const LIST_BYTES_MAX: usize = 4000;

/// Limits of a job's whole process tree, written into its cgroup before the first process is in it (`memory.oom.group` of a job that is made in the
/// host's memory: as soon as it has left that). Nothing is started without a limit that was asked for.
///
/// What is not named is not limited, and [`Worker::set_limits`](crate::Worker::set_limits) leaves it as it is. A number at its "no limit"
/// ([`Limits::UNLIMITED`], [`f64::INFINITY`] cores) lifts a limit.
///
/// Each needs its controller in the cgroup base ([`Capabilities::limits`](crate::Capabilities::limits) tells), and what the files mean in full is told
/// by the kernel's document "Control Group v2".
///
/// ```
/// use iron_exec::{Command, IoDevice, IoMax, Limits};
///
/// let limits = Limits::new()
///     .cpu_max(1.5) // cores
///     .memory_max(512 << 20)
///     .pids_max(100)
///     .io_max(IoDevice::All, IoMax::new().write_bytes(10 << 20));
/// Command::new("make").limits(limits).check()?;
/// # Ok::<(), iron_exec::CommandError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Limits {
    pub(crate) cpu_max: Option<CpuMax>,
    pub(crate) cpu_weight: Option<u64>,
    pub(crate) cpuset_cpus: Option<String>,
    pub(crate) cpuset_mems: Option<String>,
    pub(crate) memory_max: Option<u64>,
    pub(crate) memory_high: Option<u64>,
    pub(crate) memory_swap_max: Option<u64>,
    pub(crate) memory_oom_group: Option<bool>,
    pub(crate) pids_max: Option<u64>,
    pub(crate) io_weight: Option<u64>,
    pub(crate) io_max: Vec<(IoDevice, IoMax)>,
}

/// What `cpu.max` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum CpuMax {
    /// So many CPUs' worth of time.
    Cores(f64),
    /// So much time in each period.
    Quota { quota: Duration, period: Duration },
}

impl Limits {
    /// "No limit" of everything that is counted in bytes, processes or operations.
    pub const UNLIMITED: u64 = u64::MAX;

    /// No limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most CPU time, in CPUs: 0.25 is a quarter of one, 1.5 one and a half. From 0.01; infinity is no limit. (`cpu.max` with the kernel's period of
    /// 100 ms, of the controller "cpu".)
    pub fn cpu_max(mut self, cores: f64) -> Self {
        self.cpu_max = Some(CpuMax::Cores(cores));
        self
    }

    /// The most CPU time as the kernel has it: `quota`, from 1 ms, in each `period`, 1 ms to 1 s, both in whole microseconds. A short period makes the
    /// job's pauses short. (`cpu.max`, of the controller "cpu".)
    pub fn cpu_quota(mut self, quota: Duration, period: Duration) -> Self {
        self.cpu_max = Some(CpuMax::Quota { quota, period });
        self
    }

    /// The job's share of CPU time where there is not enough for all, against the other cgroups beside it: 1 to 10,000; theirs is 100 unless they say.
    /// (`cpu.weight`, of the controller "cpu".)
    pub fn cpu_weight(mut self, weight: u32) -> Self {
        self.cpu_weight = Some(weight.into());
        self
    }

    /// The CPUs that the job may run on, as the kernel lists them: "0-3,7". Empty: those of the cgroup above; older kernels (6.1, say) refuse to go back to
    /// that while the job runs. (`cpuset.cpus`, of the controller "cpuset".)
    pub fn cpuset_cpus(mut self, list: impl Into<String>) -> Self {
        self.cpuset_cpus = Some(list.into());
        self
    }

    /// The memory nodes that the job may use, as the kernel lists them: "0,2". Empty: as for [`cpuset_cpus`](Self::cpuset_cpus). (`cpuset.mems`, of the controller
    /// "cpuset".)
    pub fn cpuset_mems(mut self, list: impl Into<String>) -> Self {
        self.cpuset_mems = Some(list.into());
        self
    }

    /// The most memory, in bytes, rounded down to whole pages: beyond it the kernel reclaims, then kills. (`memory.max`, of the controller "memory".)
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }

    /// The amount of memory, in bytes, above which the job is slowed down and its memory taken back, but not killed. (`memory.high`, of the controller
    /// "memory".)
    pub fn memory_high(mut self, bytes: u64) -> Self {
        self.memory_high = Some(bytes);
        self
    }

    /// The most swap, in bytes; 0 is none. (`memory.swap.max`, of the controller "memory".)
    pub fn memory_swap_max(mut self, bytes: u64) -> Self {
        self.memory_swap_max = Some(bytes);
        self
    }

    /// Whether the out-of-memory killer takes the whole job, not only the largest of its processes: half a job is rarely of use. Default: yes, for a job
    /// that has a limit on memory; without one this says it. (`memory.oom.group`, of the controller "memory".)
    pub fn memory_oom_group(mut self, whole: bool) -> Self {
        self.memory_oom_group = Some(whole);
        self
    }

    /// The most processes and threads at a time, 1 to 4,194,304. (`pids.max`, of the controller "pids".)
    pub fn pids_max(mut self, pids: u64) -> Self {
        self.pids_max = Some(pids);
        self
    }

    /// The job's share of a disk's time where there is not enough for all, 1 to 10,000; others have 100 unless they say. The kernel has it only with an
    /// I/O cost model or the BFQ scheduler, whose own weights end at 1000. (`io.weight`, `io.bfq.weight`, of the controller "io".)
    pub fn io_weight(mut self, weight: u32) -> Self {
        self.io_weight = Some(weight.into());
        self
    }

    /// The most I/O on a device, or on all of them; for several devices say it several times. One device said by itself goes before
    /// [`IoDevice::All`]. (`io.max`, of the controller "io".)
    pub fn io_max(mut self, device: IoDevice, max: IoMax) -> Self {
        self.io_max.push((device, max));
        self
    }

    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the out-of-memory killer is to take the whole job; `None`: nothing is to be written.
    pub(crate) fn oom_group(&self) -> Option<bool> {
        let limits_memory =
            [self.memory_max, self.memory_high, self.memory_swap_max].into_iter().flatten().any(|bytes| bytes != Self::UNLIMITED);
        self.memory_oom_group.or(limits_memory.then_some(true))
    }

    /// The limit on memory that a process meets first.
    pub(crate) fn memory_floor(&self) -> Option<u64> {
        self.memory_max.into_iter().chain(self.memory_high).min()
    }

    /// The quota and the period of `cpu.max`, in microseconds; the quota is `None` for no limit.
    pub(crate) fn cpu_micros(&self) -> Option<(Option<u64>, u64)> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Some(match self.cpu_max? {
            CpuMax::Cores(cores) if cores.is_infinite() => (None, micros(CPU_PERIOD)),
            // A float that is too large for the integer becomes the largest.
            CpuMax::Cores(cores) => (Some((cores * CPU_PERIOD.as_secs_f64() * 1e6).round() as u64), micros(CPU_PERIOD)),
            CpuMax::Quota { quota, period } => (Some(micros(quota)), micros(period)),
        })
    }

    /// Checks everything that can be checked without a machine.
    ///
    /// # Errors
    /// The first number that is out of its range, or text that cannot be a list.
    pub fn check(&self) -> Result<(), CommandError> {
        if let Some(CpuMax::Cores(cores)) = self.cpu_max
            && (cores.is_nan() || cores < 0.01)
        {
            return Err(CommandError::CpuMax { cores: cores.to_string() });
        }
        if let Some((quota, period)) = self.cpu_micros() {
            in_range("the period of cpu.max (in microseconds)", Some(period), CPU_PERIOD_MICROS)?;
            in_range("the quota of cpu.max (in microseconds)", quota, CPU_QUOTA_MICROS)?;
        }
        in_range("cpu.weight", self.cpu_weight, WEIGHT)?;
        in_range("io.weight", self.io_weight, WEIGHT)?;
        in_range("pids.max", self.pids_max.filter(|pids| *pids != Self::UNLIMITED), PIDS_MAX)?;
        for (what, list) in [("cpuset.cpus", &self.cpuset_cpus), ("cpuset.mems", &self.cpuset_mems)] {
            if let Some(list) = list
                && !is_number_list(list)
            {
                return Err(CommandError::NumberList { what, list: list.clone() });
            }
        }
        for (device, max) in &self.io_max {
            if let IoDevice::Path(path) = device
                && (path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().contains(&0))
            {
                return Err(CommandError::IoDevice { path: path.clone() });
            }
            for (what, value) in max.named() {
                in_range(what, value.filter(|value| *value != Self::UNLIMITED), (IO_MAX_MIN, Self::UNLIMITED))?;
            }
        }
        Ok(())
    }
}

fn in_range(what: &'static str, value: Option<u64>, (min, max): (u64, u64)) -> Result<(), CommandError> {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(CommandError::OutOfRange { what, value: signed(value), min: signed(min), max: signed(max) })
        }
        _ => Ok(()),
    }
}

/// Whether a text is a list of numbers and ranges as the kernel takes it: `0-3,7`, or `0-31:1/4` (of each four the first).
fn is_number_list(list: &str) -> bool {
    let is_number = |text: &str| text.parse::<u32>().is_ok() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_range = |part: &str| {
        let (range, group) = part.split_once(':').map_or((part, None), |(range, group)| (range, Some(group)));
        let is_group = group.is_none_or(|group| group.split_once('/').is_some_and(|(used, of)| is_number(used) && is_number(of)));
        is_group && range.split_once('-').map_or_else(|| is_number(range), |(first, last)| is_number(first) && is_number(last))
    };
    list.len() <= LIST_BYTES_MAX && (list.is_empty() || list.split(',').all(is_range))
}

/// A device whose I/O is limited. The kernel limits whole disks: a partition stands for the disk that it lies on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum IoDevice {
    /// The device's file, for instance `/dev/sda`, or any file or directory: the disk that it is stored on.
    Path(PathBuf),
    /// The device's numbers, as in `/proc/partitions`.
    Number {
        /// The major number.
        major: u32,
        /// The minor number.
        minor: u32,
    },
    /// Every whole disk that the machine has when the limit is set.
    All,
}

impl fmt::Display for IoDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IoDevice::Path(path) => write!(f, "{}", path.display()),
            IoDevice::Number { major, minor } => write!(f, "{major}:{minor}"),
            IoDevice::All => f.write_str("all disks"),
        }
    }
}

/// The most I/O on one device, per second; each at least 2, [`Limits::UNLIMITED`] lifts it. What is not named is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoMax {
    pub(crate) read_bytes: Option<u64>,
    pub(crate) write_bytes: Option<u64>,
    pub(crate) read_ops: Option<u64>,
    pub(crate) write_ops: Option<u64>,
}

impl IoMax {
    /// Nothing limited.
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes read per second (`rbps`).
    pub fn read_bytes(mut self, per_second: u64) -> Self {
        self.read_bytes = Some(per_second);
        self
    }

    /// Bytes written per second (`wbps`).
    pub fn write_bytes(mut self, per_second: u64) -> Self {
        self.write_bytes = Some(per_second);
        self
    }

    /// Read operations per second (`riops`).
    pub fn read_ops(mut self, per_second: u64) -> Self {
        self.read_ops = Some(per_second);
        self
    }

    /// Write operations per second (`wiops`).
    pub fn write_ops(mut self, per_second: u64) -> Self {
        self.write_ops = Some(per_second);
        self
    }

    /// The kernel's names and the values.
    pub(crate) fn named(self) -> [(&'static str, Option<u64>); 4] {
        [("rbps", self.read_bytes), ("wbps", self.write_bytes), ("riops", self.read_ops), ("wiops", self.write_ops)]
    }
}

/// What is to hold for one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DiskMax {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) max: IoMax,
    /// Whether it was named; of all the disks one may go at any moment.
    pub(crate) is_named: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_takes_is_taken() {
        let good = [
            Limits::new(),
            Limits::new().cpu_max(0.01).cpu_weight(1).io_weight(10_000).pids_max(1),
            Limits::new().cpu_max(f64::INFINITY).pids_max(Limits::UNLIMITED).memory_max(Limits::UNLIMITED).memory_max(0),
            Limits::new().cpu_quota(Duration::from_millis(1), Duration::from_secs(1)),
            Limits::new().cpuset_cpus("0-3,7,8-31:1/4").cpuset_mems(""),
            Limits::new().io_max(IoDevice::All, IoMax::new().read_bytes(2).write_ops(Limits::UNLIMITED)),
        ];
        for limits in good {
            limits.check().unwrap_or_else(|error| panic!("{limits:?}: {error}"));
        }
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let wrong = [
            Limits::new().cpu_max(0.0),
            Limits::new().cpu_max(-1.0),
            Limits::new().cpu_max(f64::NAN),
            Limits::new().cpu_max(f64::NEG_INFINITY),
            Limits::new().cpu_max(1e300),
            Limits::new().cpu_quota(Duration::from_micros(999), Duration::from_millis(100)),
            Limits::new().cpu_quota(Duration::from_millis(1), Duration::from_micros(999)),
            Limits::new().cpu_quota(Duration::from_millis(1), Duration::from_micros(1_000_001)),
            Limits::new().cpu_weight(0),
            Limits::new().cpu_weight(10_001),
            Limits::new().io_weight(0),
            Limits::new().pids_max(0),
            Limits::new().pids_max(Limits::UNLIMITED - 1),
            Limits::new().cpuset_cpus("0-"),
            Limits::new().cpuset_cpus("a"),
            Limits::new().cpuset_cpus("0,,1"),
            Limits::new().cpuset_cpus("+1"),
            Limits::new().cpuset_mems("0\n1"),
            Limits::new().cpuset_mems("0 "),
            Limits::new().cpuset_mems("0,".repeat(4000)),
            Limits::new().io_max(IoDevice::All, IoMax::new().write_bytes(0)),
            Limits::new().io_max(IoDevice::Path(PathBuf::new()), IoMax::new()),
            Limits::new().io_max(IoDevice::Path("/dev/a\0b".into()), IoMax::new()),
        ];
        for limits in wrong {
            assert!(limits.check().is_err(), "{limits:?}");
        }
    }

    #[test]
    fn cores_are_counted_in_the_kernels_period() {
        assert_eq!(Limits::new().cpu_max(0.25).cpu_micros(), Some((Some(25_000), 100_000)));
        assert_eq!(Limits::new().cpu_max(1.5).cpu_micros(), Some((Some(150_000), 100_000)));
        assert_eq!(Limits::new().cpu_max(f64::INFINITY).cpu_micros(), Some((None, 100_000)));
        assert_eq!(Limits::new().cpu_micros(), None);
    }

    #[test]
    fn the_whole_job_is_taken_where_memory_is_limited_unless_it_is_said() {
        assert_eq!(Limits::new().oom_group(), None);
        assert_eq!(Limits::new().cpu_max(1.0).oom_group(), None);
        assert_eq!(Limits::new().memory_max(Limits::UNLIMITED).oom_group(), None);
        assert_eq!(Limits::new().memory_high(1).oom_group(), Some(true));
        assert_eq!(Limits::new().memory_max(1).memory_oom_group(false).oom_group(), Some(false));
        assert_eq!(Limits::new().memory_oom_group(true).oom_group(), Some(true));
    }
}
