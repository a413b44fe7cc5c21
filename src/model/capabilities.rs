//! What this machine lets a worker do.

use std::fmt;
use std::path::PathBuf;

/// A way to make a process, from the best to the one that always works. Each start takes the best one that is safe for it: see
/// [`Status::rung`](crate::Status::rung) and the guide, [`spawning`](crate::guide::spawning).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Rung {
    /// clone3(2) straight into the cgroup; until its exec the child stands in the host's memory, and the host does not wait for it. What it costs
    /// depends neither on the host's memory nor on its open files nor on how busy the CPUs are (Linux 5.16).
    Detached,
    /// The same, but the host waits until the child has executed its program: for what would not be safe otherwise (Linux 5.16).
    Vfork,
    /// clone3(2) straight into the cgroup; the child gets a copy of the host's page tables and descriptors (Linux 5.7).
    ForkLike,
    /// fork(2); the child's first act is to write itself into `cgroup.procs`. For where clone3 is refused.
    Fork,
}

impl Rung {
    /// Every rung, best first.
    pub const ALL: [Rung; 4] = [Rung::Detached, Rung::Vfork, Rung::ForkLike, Rung::Fork];

    /// The rung's name: `detached`, `vfork`, `fork-like` or `fork`.
    pub fn as_str(self) -> &'static str {
        match self {
            Rung::Detached => "detached",
            Rung::Vfork => "vfork",
            Rung::ForkLike => "fork-like",
            Rung::Fork => "fork",
        }
    }

    /// Whether the child stands in the host's memory until its exec.
    pub(crate) fn shares_memory(self) -> bool {
        matches!(self, Rung::Detached | Rung::Vfork)
    }
}

impl fmt::Display for Rung {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a start took the rung that it took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RungReason {
    /// It is the best that can be had, or the best that [`Builder::rung`](crate::Builder::rung) allows.
    #[default]
    Best,
    /// A cgroup above the job's, in which the host is not, has a `memory.max`: an out-of-memory kill there could take the host along.
    MemoryMaxAbove,
    /// A cgroup above the job's, in which the host is not, has `memory.oom.group`: a kill there takes all that share memory.
    OomGroupAbove,
    /// The job's own `memory.max` or `memory.high` is too small for the exec to be sure of its memory.
    SmallMemoryMax,
    /// The job's own `cpu.max` is so small that the child could use it up before its exec, with a lock of the host's memory in its hands.
    SmallCpuMax,
    /// The job's own `io.max` would hold back the reading of its program, and the host with it, which would have to wait for that.
    IoMax,
    /// A cgroup above the job's, in which the host is not, has a `memory.high`: a child above it is slowed down, and the host would have to wait for it.
    MemoryHighAbove,
    /// The job sets its `oom_score_adj`, which those who share memory share.
    OomScoreAdj,
    /// The job runs as another user, who could stop it on its way while the host waits for it.
    OtherUser,
    /// The job's cgroup is frozen.
    Frozen,
    /// `fs.suid_dumpable` is 1: the host's memory would stay dumpable while a process of another user stands in it.
    SuidDumpable,
    /// The job runs with other ids, and the host is to stay dumpable ([`Builder::keep_dumpable`](crate::Builder::keep_dumpable)).
    KeepDumpable,
    /// The job gets more descriptors than one message carries.
    ManyFds,
    /// One of the job's descriptors cannot be sent to a process (an io_uring instance, say), or too many are on their way.
    NotSendable,
    /// A cgroup above the job's, in which the host is not, has a `cpu.max`: a child that is not let run may hold a lock of the host's memory.
    CpuMaxAbove,
    /// A child with another user id cannot keep a capability until its exec, which is one of the two locks on its memory (capabilities(7):
    /// SECBIT_KEEP_CAPS_LOCKED).
    KeepCapsLocked,
    /// Every spawn slot was held for too long by a child that cannot come off, or none could be made.
    SlotsBusy,
}

impl RungReason {
    /// The reason in a few words, for instance "memory.max above".
    pub fn as_str(self) -> &'static str {
        match self {
            RungReason::Best => "best",
            RungReason::MemoryMaxAbove => "memory.max above",
            RungReason::OomGroupAbove => "memory.oom.group above",
            RungReason::SmallMemoryMax => "small memory.max",
            RungReason::SmallCpuMax => "small cpu.max",
            RungReason::IoMax => "io.max",
            RungReason::MemoryHighAbove => "memory.high above",
            RungReason::OomScoreAdj => "oom_score_adj",
            RungReason::OtherUser => "other user",
            RungReason::Frozen => "frozen cgroup",
            RungReason::SuidDumpable => "fs.suid_dumpable",
            RungReason::KeepDumpable => "keep_dumpable",
            RungReason::ManyFds => "many descriptors",
            RungReason::NotSendable => "descriptors not sendable",
            RungReason::CpuMaxAbove => "cpu.max above",
            RungReason::KeepCapsLocked => "keep_caps locked",
            RungReason::SlotsBusy => "spawn slots busy",
        }
    }
}

impl fmt::Display for RungReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One rung, and whether it can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RungReport {
    /// The rung.
    pub rung: Rung,
    /// Why it cannot be had; `None` if it can.
    pub missing: Option<&'static str>,
}

/// The cgroup2 hierarchy below which jobs get their cgroups.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CgroupReport {
    /// Where cgroup2 is mounted.
    pub mount: PathBuf,
    /// The directory in which each job's cgroup is made.
    pub base: PathBuf,
    /// The controllers that the base has, for instance "cpu" or "memory".
    pub controllers: Vec<String>,
}

/// One limit, and whether it can be had.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitReport {
    /// The limit, by its file in a cgroup, for instance "memory.max".
    pub file: &'static str,
    /// Why it cannot be had, and what to do about it; `None` if it can.
    pub missing: Option<String>,
}

/// What this machine lets a worker do; see [`Worker::capabilities`](crate::Worker::capabilities).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The kernel's release, for instance "6.18.2".
    pub kernel: String,
    /// The best rung: what a start takes unless something about the job or its cgroup makes another one safer; see
    /// [`Status::rung`](crate::Status::rung).
    pub rung: Rung,
    /// Every rung, best first.
    pub rungs: Vec<RungReport>,
    /// Where jobs get their cgroups; `None` if they run without.
    pub cgroup: Option<CgroupReport>,
    /// Why jobs run without cgroups, and what to do about it; `None` if they have them.
    pub cgroup_missing: Option<String>,
    /// Which [`Limits`](crate::Limits) jobs can be given; empty without cgroups.
    pub limits: Vec<LimitReport>,
    /// Whether the kernel still tells the exit status of a process that somebody else has reaped (PIDFD_INFO_EXIT, Linux 6.15).
    pub exit_info: bool,
    /// The soft limit of open files of this process (RLIMIT_NOFILE). An idle job costs three.
    pub nofile: u64,
}
