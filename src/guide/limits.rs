//! Limits: how to have them, what they do, and what they do not.
//!
//! ```
//! use iron_exec::{Command, IoDevice, IoMax, Limits};
//!
//! let limits = Limits::new()
//!     .memory_max(512 << 20) // bytes
//!     .memory_swap_max(0)
//!     .cpu_max(1.5) // CPUs
//!     .pids_max(200)
//!     .io_max(IoDevice::Path("/var/lib/jobs".into()), IoMax::new().write_bytes(20 << 20).read_ops(500)); // per second
//! let command = Command::new("make").arg("-j4").limits(limits);
//! assert!(command.check().is_ok());
//! ```
//!
//! Each job has a cgroup of its own, `{base}/{name}_{job id}`. Its limits are written there before it has a process, and the process is made inside: not one
//! instruction of it runs without them. They hold for the whole tree, however it forks. Nothing is started without a limit that was asked for: where one cannot
//! be had, [`Worker::start`](crate::Worker::start) fails with [`Step::Limit`](crate::Step::Limit), the file, and what to do.
//!
//! # Where the base is
//!
//! | the host runs as | [`CgroupBase::Auto`](crate::CgroupBase::Auto) is |
//! |---|---|
//! | a service or scope with `Delegate=yes` | its own cgroup |
//! | a user who owns its own cgroup's `cgroup.procs` and `cgroup.subtree_control` | its own cgroup |
//! | root | `iron-exec` at the top of the hierarchy |
//! | anybody else | none: jobs run without cgroups, [`Capabilities::cgroup_missing`](crate::Capabilities::cgroup_missing) says why, limits are refused |
//!
//! A cgroup that holds processes of its own cannot hand controllers down ("no internal processes", cgroups(7)). Where the base is the host's own cgroup, build
//! the worker with [`Builder::take_over_cgroup`](crate::Builder::take_over_cgroup): the host moves to a leaf, `supervisor`, and stays there. In a container that is
//! what makes limits possible, too, provided that the container may write its cgroups.
//!
//! A controller must be handed down from the top to the base. systemd does so for what its units need;
//! [`Builder::enable_controllers`](crate::Builder::enable_controllers) does what is missing, in cgroups that are not the worker's own, hence only when asked.
//! [`Capabilities::limits`](crate::Capabilities::limits), and `iron-exec info`, tell for each limit whether it can be had, and if not, why.
//!
//! # What they do
//!
//! | limit | beyond it | told by |
//! |---|---|---|
//! | `cpu.max` | the job is not let run until the next period | [`CpuUsage::throttled`](crate::CpuUsage::throttled) |
//! | `memory.high` | it is slowed down while its memory is taken back | [`Event::MemoryHigh`](crate::Event::MemoryHigh) |
//! | `memory.max` | memory is taken back; if that is not enough, the whole job is killed | [`Event::OutOfMemory`](crate::Event::OutOfMemory), [`Status::oom_killed`](crate::Status::oom_killed) |
//! | `pids.max` | fork(2) and clone(2) answer EAGAIN | [`Event::PidsMax`](crate::Event::PidsMax) |
//! | `io.max` | requests wait | [`CgroupUsage::io`](crate::CgroupUsage::io) |
//!
//! Weights (`cpu.weight`, `io.weight`) say nothing as long as there is enough for all.
//!
//! The kernel kills the largest process of a job that is out of memory. What is left of a build, or of a pipeline, is rarely of use, so `memory.oom.group` is set
//! for jobs with a limit on memory: then it kills all of them. It is set a moment *after* the start where the child stands in the host's memory until its exec
//! ([`guide::spawning`](crate::guide::spawning)): before that, the group would be the host's.
//!
//! # What they do not
//!
//! - A file's pages count for whoever read or wrote them first, and writes to a disk go out later: `io.max` holds back direct and synchronous I/O, and what is
//!   written back for the job's cgroup on file systems that know about cgroups (ext4, btrfs, xfs). What is written back after the job has ended is in nobody's usage.
//! - A tmpfs is memory: files there count for the job that wrote them, and stay when it has gone, for the cgroup above.
//! - `io.max` knows disks, not file systems: of a file on several disks, on a network or an overlay name the disk.
//! - A job that runs as root, or as the host's user, may write its own cgroup's files. Give jobs a user of their own.
//!
//! # After a crash
//!
//! When a host dies without its workers being dropped, its jobs go on, without anybody to watch them. Each worker holds a lock in its base (flock(2) on an empty
//! cgroup, `.worker_{id}`) that goes with it, and the ids of jobs tell their worker. A later worker on the same base finds them
//! ([`Worker::leftovers`](crate::Worker::leftovers)) and ends them when asked ([`Worker::kill_leftovers`](crate::Worker::kill_leftovers)), those of live workers
//! never.
