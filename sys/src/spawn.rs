//! Making a process: the rungs of the spawn ladder.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::SendFlags;
use rustix::process::{Pid, PidfdFlags, Signal};

pub use crate::child::ChildStep;
use crate::child::{self, FdMove, Plan, RECORD_BYTES};
use crate::clone3;
use crate::image::ExecImage;
use crate::message;
use crate::raw;
use crate::slot::{Cause, Launched, NotLaunched};
pub use crate::slot::{Flight, Slot, leaked_slots};

/// A way to make a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rung {
    /// `clone3` with CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_VM | CLONE_FILES | CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID: the child stands on a
    /// [`Slot`] in the host's memory, and the host goes on at once.
    Detached,
    /// The same with CLONE_VFORK: the calling thread waits until the child has executed its program or ended.
    Vfork,
    /// `clone3` with CLONE_PIDFD | CLONE_INTO_CGROUP | CLONE_CLEAR_SIGHAND: the child has its own copy of memory, and is born in its cgroup.
    ForkLike,
    /// `fork`, for where clone3 is refused: the child's first act is to write itself into `cgroup.procs`.
    Fork,
}

/// The most descriptors that a child on a slot can be given: what one message carries.
pub const SLOT_FDS_MAX: usize = message::FDS_MAX;

impl Rung {
    /// Whether a child on this rung stands on a [`Slot`].
    pub fn needs_slot(self) -> bool {
        matches!(self, Rung::Detached | Rung::Vfork)
    }
}

/// Whether `rung` can be had here; the error is the kernel's answer to a harmless call.
///
/// # Errors
/// ENOSYS (no such call, or a seccomp filter), EPERM (a filter of an old container host), E2BIG (a kernel before 5.7), EOPNOTSUPP (a kernel before
/// 5.16, where a child that dumps core takes all with it that share its memory).
pub fn probe(rung: Rung) -> io::Result<()> {
    match rung {
        Rung::Detached | Rung::Vfork => {
            clone3::probe().map_err(io::Error::from_raw_os_error)?;
            if !is_at_least(rustix::system::uname().release().to_bytes(), (5, 16)) {
                return Err(Errno::OPNOTSUPP.into());
            }
            // The first descriptor above the last: EINVAL, unless the call is not to be had.
            match raw::close_range(1, 0) {
                Err(libc::EINVAL) => Ok(()),
                Err(errno) => Err(io::Error::from_raw_os_error(errno)),
                Ok(()) => Err(Errno::NOSYS.into()),
            }
        }
        Rung::ForkLike => clone3::probe().map_err(io::Error::from_raw_os_error),
        Rung::Fork => Ok(()),
    }
}

/// Whether a kernel release, "5.16.0-rc1" for instance, is `wanted` or later.
fn is_at_least(release: &[u8], wanted: (u32, u32)) -> bool {
    let mut numbers = release.split(|byte| !byte.is_ascii_digit()).map(|digits| str::from_utf8(digits).ok()?.parse::<u32>().ok());
    match (numbers.next().flatten(), numbers.next().flatten()) {
        (Some(major), Some(minor)) => (major, minor) >= wanted,
        _ => false,
    }
}

/// What the child does to itself before the exec.
#[derive(Clone, Debug, Default)]
pub struct ChildSetup {
    /// Resource (RLIMIT_ number), soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Nice value.
    pub nice: Option<i32>,
    /// What to write to `/proc/self/oom_score_adj`. Not on the detached rung, where it would be the host's, too.
    pub oom_score_adj: Option<i32>,
    /// Supplementary groups.
    pub groups: Option<Vec<u32>>,
    /// Real, effective and saved group id.
    pub gid: Option<u32>,
    /// Real, effective and saved user id.
    pub uid: Option<u32>,
    /// Whether the child gives up every capability that it has left once it is that user, and is kept from that user until the exec.
    pub drop_capabilities: bool,
    /// Whether a child that cannot keep a capability, which keeps that user out, has to fail: `fs.suid_dumpable` is 1, and nothing else would. On a
    /// slot it always has to.
    pub needs_capability: bool,
    /// Whether to set PR_SET_NO_NEW_PRIVS.
    pub no_new_privs: bool,
}

/// What is to be executed, and how.
#[derive(Debug)]
pub struct Program {
    /// The exec image.
    pub image: ExecImage,
    /// What the child does before.
    pub setup: ChildSetup,
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
    /// How it fares.
    pub start: Start,
    /// The rung that it was made on.
    pub rung: Rung,
}

/// The way of a child to its program, and what it is told by.
#[derive(Debug)]
pub enum Start {
    /// A child with memory of its own.
    Link {
        /// Where it reports: readable once the program was executed or a step failed. Non-blocking, close-on-exec.
        report: OwnedFd,
        /// The exec image.
        image: ExecImage,
    },
    /// A child on a slot.
    Slot(Flight),
}

impl Start {
    /// What the child has reported so far. Never blocks.
    ///
    /// # Errors
    /// Those of read(2); EPROTO if the record is not one of ours.
    pub fn report(&self) -> io::Result<Report> {
        match self {
            Start::Link { report, .. } => read_report(report.as_fd()),
            Start::Slot(flight) => Ok(flight.report()),
        }
    }

    /// A descriptor that becomes readable when there is something to report; a child on a slot has none, and is to be looked at.
    pub fn link(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Start::Link { report, .. } => Some(report.as_fd()),
            Start::Slot(_) => None,
        }
    }

    /// Waits up to `timeout` until there is something to report.
    ///
    /// # Errors
    /// Those of poll(2) and futex(2) that are not part of waiting.
    pub fn wait(&self, timeout: Duration) -> io::Result<()> {
        match self {
            Start::Link { report, .. } => wait_readable(report.as_fd(), timeout).map(drop),
            Start::Slot(flight) => flight.wait(timeout),
        }
    }

    /// The exec image of a child that has reported.
    pub fn image(&self) -> Option<&ExecImage> {
        match self {
            Start::Link { image, .. } => Some(image),
            Start::Slot(flight) => flight.plan().map(|plan| &plan.image),
        }
    }
}

/// Waits up to `timeout` for `fd` to be readable; whether it is.
///
/// # Errors
/// Those of poll(2) but EINTR.
pub fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now().checked_add(timeout);
    loop {
        let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        match rustix::event::poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
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

fn read_report(link: BorrowedFd<'_>) -> io::Result<Report> {
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

/// Makes a child that becomes `program`, with `fds` at the numbers beside them, each number once; every other descriptor is closed. Returns as soon
/// as the child exists ([`Rung::Vfork`]: when it is off): what it meets on its way is told by [`Spawned::start`]. The caller's copies of `fds` may be
/// closed at once.
///
/// A rung that needs a slot takes it from `slot`; if it was not used it is there again. Descriptors that cannot be sent to a child on a slot (an
/// io_uring instance, say, or too many in flight, see unix(7)) make it a child of the rung [`Rung::ForkLike`].
///
/// # Errors
/// A [`SpawnError`] naming the step; no process and no descriptor is left.
pub fn spawn(
    mut rung: Rung,
    program: Program,
    fds: &[(BorrowedFd<'_>, i32)],
    cgroup: Option<Cgroup<'_>>,
    slot: &mut Option<Slot>,
) -> Result<Spawned, SpawnError> {
    let invalid = |step| at(step)(io::ErrorKind::InvalidInput.into());
    let cgroup = match (rung, cgroup) {
        (_, None) => None,
        (rung, Some(Cgroup::Procs(fd) | Cgroup::Directory(fd))) if (rung == Rung::Fork) == matches!(cgroup, Some(Cgroup::Procs(_))) => {
            Some(fd.as_raw_fd())
        }
        (_, Some(_)) => return Err(invalid(ParentStep::Cgroup)),
    };
    let Program { image, setup } = program;
    let moves: Vec<FdMove> = fds.iter().map(|(fd, number)| FdMove { from: fd.as_raw_fd(), to: *number }).collect();
    let mut numbers: Vec<i32> = moves.iter().map(|fd| fd.to).collect();
    numbers.sort_unstable();
    let oom_score_adj = setup.oom_score_adj.map(|score| score.to_string());
    let mut plan = Box::new(Plan { image, setup, oom_score_adj, moves, numbers });
    if rung.needs_slot() {
        let Some(taken) = slot.take() else { return Err(invalid(ParentStep::Clone)) };
        // It would be the host's own score that changes.
        if rung == Rung::Detached && plan.oom_score_adj.is_some() {
            *slot = Some(taken);
            return Err(invalid(ParentStep::Clone));
        }
        let launched = with_signals_blocked(|| Ok(taken.launch(plan, fds, rung == Rung::Vfork, cgroup)))?;
        let NotLaunched { slot: given_back, cause } = match launched {
            Ok(Launched { pid, pidfd, flight }) => return Ok(Spawned { pid, pidfd, start: Start::Slot(flight), rung }),
            Err(not_launched) => not_launched,
        };
        *slot = Some(given_back);
        match cause {
            Cause::NotCloned(errno) => return Err(clone_error(errno, cgroup)),
            Cause::NotSent(unused) => (rung, plan) = (Rung::ForkLike, unused),
        }
    }
    let (link, child_link) = link(rung).map_err(at(ParentStep::Report))?;
    let (pid, pidfd) = with_signals_blocked(|| match rung {
        Rung::Fork => fork_child(&mut plan, child_link.as_raw_fd(), cgroup, link.as_fd()),
        _ => clone_child(&mut plan, child_link.as_raw_fd(), cgroup),
    })?;
    Ok(Spawned { pid, pidfd, start: Start::Link { report: link, image: plan.image }, rung })
}

/// Makes a child with every signal blocked: no handler of the host may run in it, and a signal to the host's group must not be lost to it either. They
/// all wait: the child's until its exec, ours until this is over.
fn with_signals_blocked<T>(make: impl FnOnce() -> Result<T, SpawnError>) -> Result<T, SpawnError> {
    let mask = raw::set_signal_mask(u64::MAX).map_err(|errno| at(ParentStep::Clone)(io::Error::from_raw_os_error(errno)))?;
    let made = make();
    // The call that blocked them went through, so this one does.
    let _ = raw::set_signal_mask(mask);
    made
}

fn at(step: ParentStep) -> impl Fn(io::Error) -> SpawnError {
    move |source| SpawnError { step, source }
}

/// The two ends on which a child off the slots reports, ours first and non-blocking. The fork rung's can carry the word "go" the other way, too.
fn link(rung: Rung) -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pipe::{PipeFlags, pipe_with};
    match rung {
        Rung::Fork => {
            let (ours, theirs) = message::pair()?;
            rustix::io::ioctl_fionbio(&ours, true)?;
            Ok((ours, theirs))
        }
        _ => Ok(pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?),
    }
}

/// The failure of a clone3.
fn clone_error(errno: i32, cgroup: Option<i32>) -> SpawnError {
    // What clone3 answers only because of the cgroup: no permission, "no internal processes", a threaded or dying cgroup.
    let of_cgroup = cgroup.is_some() && matches!(errno, libc::EACCES | libc::EBUSY | libc::EOPNOTSUPP | libc::ENODEV | libc::EBADF);
    let step = if of_cgroup { ParentStep::Cgroup } else { ParentStep::Clone };
    at(step)(io::Error::from_raw_os_error(errno))
}

fn clone_child(plan: &mut Plan, report: i32, directory: Option<i32>) -> Result<(i32, OwnedFd), SpawnError> {
    // SAFETY: the child runs `child::run`, which makes raw system calls only and ends in execve or exit_group.
    match unsafe { clone3::fork_like(directory) } {
        Ok(Some((pid, pidfd))) => {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((pid, pidfd))
        }
        Ok(None) => child::run(plan, report),
        Err(errno) => Err(clone_error(errno, directory)),
    }
}

fn fork_child(plan: &mut Plan, report: i32, procs: Option<i32>, link: BorrowedFd<'_>) -> Result<(i32, OwnedFd), SpawnError> {
    // SAFETY: the child makes raw system calls only, which are async-signal-safe, and ends in execve or exit_group.
    match unsafe { nix::unistd::fork() } {
        Ok(nix::unistd::ForkResult::Child) => {
            // Our copy of the parent's end would keep the link open if the parent died before its word.
            raw::close(link.as_raw_fd());
            child::enter_cgroup_and_wait(procs, report);
            child::run(plan, report)
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

#[cfg(test)]
mod tests {
    use super::is_at_least;

    #[test]
    fn a_kernel_release_is_compared_by_its_first_two_numbers() {
        for release in ["5.16.0", "5.16", "5.100.1", "6.1.0-44-amd64", "6.0-rc1", "10.0.0"] {
            assert!(is_at_least(release.as_bytes(), (5, 16)), "{release}");
        }
        for release in ["5.15.209", "4.19.0", "5", "", "next"] {
            assert!(!is_at_least(release.as_bytes(), (5, 16)), "{release}");
        }
    }
}
