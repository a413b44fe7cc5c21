//! What a job's cgroup says it has used.

use std::time::Duration;

/// What a job's whole process tree has used, from the files of its cgroup. What a controller would tell that is not enabled for the job's cgroup is
/// `None`: a limit enables its controller, [`Builder::accounting`](crate::Builder::accounting) all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CgroupUsage {
    /// CPU time (`cpu.stat`). It is there without a controller.
    pub cpu: CpuUsage,
    /// Memory (`memory.current`, `memory.peak`, `memory.swap.current`, `memory.events`).
    pub memory: Option<MemoryUsage>,
    /// I/O of each device that was used (`io.stat`).
    pub io: Option<Vec<IoUsage>>,
    /// Processes (`pids.current`, `pids.peak`, `pids.events`).
    pub pids: Option<PidsUsage>,
}

/// CPU time of a job's cgroup: `cpu.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CpuUsage {
    /// All of it, in microseconds' resolution.
    pub total: Duration,
    /// In user mode.
    pub user: Duration,
    /// In the kernel.
    pub system: Duration,
    /// How `cpu.max` has held it back; `None` without the controller.
    pub throttled: Option<Throttled>,
}

/// How a job was held back by `cpu.max`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Throttled {
    /// The time for which it was not let run, summed over CPUs.
    pub time: Duration,
    /// Periods in which it wanted to run.
    pub periods: u64,
    /// Periods in which it used its quota up.
    pub throttled_periods: u64,
}

/// Memory of a job's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryUsage {
    /// Bytes in use: `memory.current`.
    pub current_bytes: u64,
    /// The most bytes ever in use: `memory.peak` (Linux 5.19).
    pub peak_bytes: Option<u64>,
    /// Bytes in swap: `memory.swap.current`; `None` where swap is not accounted for.
    pub swap_bytes: Option<u64>,
    /// What happened on the way.
    pub events: MemoryEvents,
}

/// What happened to a job for want of memory: `memory.events`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct MemoryEvents {
    /// How often memory was taken from it although it was below `memory.low`.
    pub low: u64,
    /// How often it was held back for being above `memory.high`.
    pub high: u64,
    /// How often it was about to go above `memory.max`.
    pub max: u64,
    /// How often it was out of memory: an allocation was about to fail.
    pub oom: u64,
    /// Processes that the out-of-memory killer has killed. One that is killed twice, first by itself and then with its whole group, is counted twice.
    pub oom_kill: u64,
    /// How often it has killed all of them at once, by `memory.oom.group` (Linux 5.17).
    pub oom_group_kill: u64,
}

/// I/O on one device: a line of `io.stat`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct IoUsage {
    /// The device's major number.
    pub major: u32,
    /// The device's minor number.
    pub minor: u32,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub write_bytes: u64,
    /// Read operations.
    pub reads: u64,
    /// Write operations.
    pub writes: u64,
    /// Bytes discarded.
    pub discard_bytes: u64,
    /// Discard operations.
    pub discards: u64,
}

/// Processes and threads of a job's cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PidsUsage {
    /// How many there are: `pids.current`.
    pub current: u64,
    /// The most there ever were: `pids.peak` (Linux 6.1).
    pub peak: Option<u64>,
    /// How often `pids.max` has refused one more: `pids.events`.
    pub max_events: u64,
}
