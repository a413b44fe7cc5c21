//! Making a process: the rungs of the spawn ladder.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

pub use crate::child::ChildStep;
use crate::child::{self, FdMove, Plan, RECORD_BYTES};
use crate::clone3;
use crate::image::ExecImage;
use crate::raw;

/// A way to make a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rung {
    /// `clone3` with CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND: the child has its own copy of memory, and is born in its cgroup.
    ForkLike,
    /// `fork`, for where clone3 is refused: the child's first act is to write itself into `cgroup.procs`.
    Fork,
}

/// Whether `rung` can be had here; the error is the kernel's answer to a harmless call.
///
/// # Errors
/// ENOSYS (no such call, or a seccomp filter), EPERM (a filter of an old container host), E2BIG (a kernel before 5.7).
pub fn probe(rung: Rung) -> io::Result<()> {
    match rung {
        Rung::ForkLike => clone3::probe().map_err(io::Error::from_raw_os_error),
        Rung::Fork => Ok(()),
    }
}

/// What the child does to itself before the exec.
#[derive(Clone, Copy, Debug, Default)]
pub struct ChildSetup<'a> {
    /// Descriptors and the numbers they get, each number once. Every other descriptor is closed by the exec.
    pub fds: &'a [(BorrowedFd<'a>, i32)],
    /// Resource (RLIMIT_ number), soft and hard limit.
    pub rlimits: &'a [(u32, u64, u64)],
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Nice value.
    pub nice: Option<i32>,
    /// What to write to `/proc/self/oom_score_adj`.
    pub oom_score_adj: Option<i32>,
    /// Supplementary groups.
    pub groups: Option<&'a [u32]>,
    /// Real, effective and saved group id.
    pub gid: Option<u32>,
    /// Real, effective and saved user id.
    pub uid: Option<u32>,
    /// Whether the child gives up every capability that it has left once it is that user.
    pub drop_capabilities: bool,
    /// Whether to set PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// The cgroup a child is born in: its directory for clone3, its `cgroup.procs` for fork.
#[derive(Clone, Copy, Debug)]
pub enum Cgroup<'a> {
    /// The directory, opened with O_PATH.
    Directory(BorrowedFd<'a>),
    /// `cgroup.procs`, open for writing.
    Procs(BorrowedFd<'a>),
}

/// A child on its way to its program.
#[derive(Debug)]
pub struct Spawned {
    /// Its process id.
    pub pid: i32,
    /// Its pidfd, close-on-exec.
    pub pidfd: OwnedFd,
    /// Where it reports: readable once the program was executed or a step failed. Non-blocking, close-on-exec.
    pub report: OwnedFd,
}

/// The parent's step that failed. No process is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParentStep {
    /// Making the pipe on which the child reports.
    Report,
    /// clone3(2) or fork(2).
    Clone,
    /// clone3(2), because of the cgroup.
    Cgroup,
    /// pidfd_open(2).
    Pidfd,
}

/// Why no child came to be.
#[derive(Debug)]
pub struct SpawnError {
    /// The step.
    pub step: ParentStep,
    /// The kernel's error.
    pub source: io::Error,
}

impl fmt::Display for SpawnError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} failed", self.step)
    }
}

impl std::error::Error for SpawnError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What a child has reported so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// Nothing yet.
    Pending,
    /// The program was executed, or the child was killed before: the link is closed without a record.
    Closed,
    /// A step failed; the child is ending.
    Failed {
        /// The step.
        step: ChildStep,
        /// The kernel's error number.
        errno: i32,
        /// Which of several; see [`ChildStep`].
        index: u32,
    },
}

/// Reads what a child has reported. Never blocks.
///
/// # Errors
/// Those of read(2); EPROTO if the record is not one of ours.
pub fn read_report(link: BorrowedFd<'_>) -> io::Result<Report> {
    let mut record = [0_u8; RECORD_BYTES];
    match rustix::io::retry_on_intr(|| rustix::io::read(link, &mut record)) {
        // ECONNRESET: a forked child was killed before it took our word, which stays unread.
        Ok(0) | Err(Errno::CONNRESET) => Ok(Report::Closed),
        Ok(RECORD_BYTES) => {
            let [s0, s1, s2, s3, e0, e1, e2, e3, i0, i1, i2, i3] = record;
            let step = ChildStep::from_wire(u32::from_le_bytes([s0, s1, s2, s3])).ok_or(Errno::PROTO)?;
            Ok(Report::Failed { step, errno: i32::from_le_bytes([e0, e1, e2, e3]), index: u32::from_le_bytes([i0, i1, i2, i3]) })
        }
        Ok(_) => Err(Errno::PROTO.into()),
        Err(Errno::AGAIN) => Ok(Report::Pending),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes a child that becomes the program of `image`. Returns as soon as it exists: what it meets on its way it reports (see [`read_report`]).
///
/// # Errors
/// A [`SpawnError`] naming the step; no process and no descriptor is left.
pub fn spawn(rung: Rung, image: &ExecImage, setup: &ChildSetup<'_>, cgroup: Option<Cgroup<'_>>) -> Result<Spawned, SpawnError> {
    let mut moves: Vec<FdMove> = setup.fds.iter().map(|(fd, number)| FdMove { from: fd.as_raw_fd(), to: *number }).collect();
    let mut numbers: Vec<i32> = moves.iter().map(|fd| fd.to).collect();
    numbers.sort_unstable();
    let score = setup.oom_score_adj.map(|score| score.to_string());
    let (link, child_link) = link(rung).map_err(at(ParentStep::Report))?;
    let plan = Plan {
        image,
        moves: &mut moves,
        numbers: &numbers,
        report: child_link.as_raw_fd(),
        rlimits: setup.rlimits,
        umask: setup.umask,
        nice: setup.nice,
        oom_score_adj: score.as_deref().map(str::as_bytes),
        groups: setup.groups,
        gid: setup.gid,
        uid: setup.uid,
        drop_capabilities: setup.drop_capabilities,
        no_new_privs: setup.no_new_privs,
    };
    // No handler of the host may run in the child, and a signal to the host's group must not be lost to it either: all wait.
    let mask = raw::set_signal_mask(u64::MAX).map_err(|errno| at(ParentStep::Clone)(io::Error::from_raw_os_error(errno)))?;
    let made = match rung {
        Rung::ForkLike => clone_child(plan, cgroup),
        Rung::Fork => fork_child(plan, cgroup, link.as_fd()),
    };
    // The call that blocked them went through, so this one does.
    let _ = raw::set_signal_mask(mask);
    let (pid, pidfd) = made?;
    Ok(Spawned { pid, pidfd, report: link })
}

fn at(step: ParentStep) -> impl Fn(io::Error) -> SpawnError {
    move |source| SpawnError { step, source }
}

/// The two ends on which the child reports, ours first and non-blocking. The fork rung's can carry the word "go" the other way, too.
fn link(rung: Rung) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};
    match rung {
        Rung::ForkLike => Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?),
        Rung::Fork => {
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            Ok((ours, theirs))
        }
    }
}

fn clone_child(plan: Plan<'_>, cgroup: Option<Cgroup<'_>>) -> Result<(i32, OwnedFd), SpawnError> {
    let directory = match cgroup {
        Some(Cgroup::Directory(directory)) => Some(directory.as_raw_fd()),
        Some(Cgroup::Procs(_)) => return Err(at(ParentStep::Cgroup)(io::ErrorKind::InvalidInput.into())),
        None => None,
    };
    // SAFETY: the child runs `child::run`, which makes raw system calls only and ends in execve or exit_group.
    match unsafe { clone3::fork_like(directory) } {
        Ok(Some((pid, pidfd))) => {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid, pidfd))
        }
        Ok(None) => child::run(plan),
        Err(errno) => {
            // What clone3 answers only because of the cgroup: no permission, "no internal processes", a threaded or dying cgroup.
            let of_cgroup =
                directory.is_some() && matches!(errno, libc::EACCES | libc::EBUSY | libc::EOPNOTSUPP | libc::ENODEV | libc::EBADF);
            let step = if of_cgroup { ParentStep::Cgroup } else { ParentStep::Clone };
            Err(at(step)(io::Error::from_raw_os_error(errno)))
        }
    }
}

fn fork_child(plan: Plan<'_>, cgroup: Option<Cgroup<'_>>, link: BorrowedFd<'_>) -> Result<(i32, OwnedFd), SpawnError> {
    let procs = match cgroup {
        Some(Cgroup::Procs(procs)) => Some(procs.as_raw_fd()),
        Some(Cgroup::Directory(_)) => return Err(at(ParentStep::Cgroup)(io::ErrorKind::InvalidInput.into())),
        None => None,
    };
    // SAFETY: the child makes raw system calls only, which are async-signal-safe, and ends in execve or exit_group.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Child) => {
            // Our copy of the parent's end would keep the link open if the parent died before its word.
            raw::close(link.as_raw_fd());
            child::enter_cgroup_and_wait(procs, plan.report);
            child::run(plan)
        }
        Ok(nix::unistd::ForkResult::Parent { child }) => {
            let pid = child.as_raw();
            // The child waits for our word, so it cannot have ended and its id cannot have been reused.
            let opened = Pid::from_raw(pid).ok_or(Errno::SRCH).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
            match opened {
                Ok(pidfd) => {
                    // If the child was killed meanwhile, its pidfd says so; the host is to get no SIGPIPE for that.
                    let _ = rustix::io::retry_on_intr(|| rustix::net::send(link, b"g", SendFlags::NOSIGNAL));
                    Ok((pid, pidfd))
                }
                Err(errno) => {
                    abandon(pid);
                    Err(at(ParentStep::Pidfd)(errno.into()))
                }
            }
        }
        Err(errno) => Err(at(ParentStep::Clone)(io::Error::from_raw_os_error(errno as i32))),
    }
}

/// Kills and reaps a forked child that is waiting for our word.
fn abandon(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let _ = rustix::process::kill_process(pid, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()));
}
