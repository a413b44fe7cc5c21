//! What this machine lets a worker do.

use std::fmt;
use std::path::PathBuf;

/// A way to make a process, from the best to the one that always works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Rung {
    /// clone3(2) straight into the cgroup; the child gets a copy of the host's page tables and descriptors (Linux 5.7).
    ForkLike,
    /// fork(2); the child's first act is to write itself into `cgroup.procs`. For where clone3 is refused.
    Fork,
}

impl Rung {
    /// Every rung, best first.
    pub const ALL: [Rung; 2] = [Rung::ForkLike, Rung::Fork];

    /// The rung's name: `fork-like` or `fork`.
    pub fn as_str(self) -> &'static str {
        match self {
            Rung::ForkLike => "fork-like",
            Rung::Fork => "fork",
        }
    }
}

impl fmt::Display for Rung {
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

/// What this machine lets a worker do; see [`Worker::capabilities`](crate::Worker::capabilities).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// The kernel's release, for instance "6.18.2".
    pub kernel: String,
    /// The rung that jobs are started on.
    pub rung: Rung,
    /// Every rung, best first.
    pub rungs: Vec<RungReport>,
    /// Where jobs get their cgroups; `None` if they run without.
    pub cgroup: Option<CgroupReport>,
    /// Why jobs run without cgroups, and what to do about it; `None` if they have them.
    pub cgroup_missing: Option<String>,
    /// Whether the kernel still tells the exit status of a process that somebody else has reaped (PIDFD_INFO_EXIT, Linux 6.15).
    pub exit_info: bool,
    /// The soft limit of open files of this process (RLIMIT_NOFILE). An idle job costs three.
    pub nofile: u64,
}
