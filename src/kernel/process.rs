//! One process: made, watched by its pidfd, signalled, reaped.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iron_exec_sys::spawn::{self, Cgroup, ChildSetup, ChildStep, ParentStep, Program, Report, Slot, Spawned, Start};
use iron_exec_sys::wait::{self, Ended, Mode};
use iron_exec_sys::{ExecImage, pidfd};
use rustix::fs::{Mode as FileMode, OFlags};
use rustix::io::Errno;
use rustix::process::PidfdFlags;

use crate::logic::kernel_text::{self, Passage};
use crate::logic::ladder::Ask;
use crate::model::capabilities::{Rung, RungReport};
use crate::model::command::Command;
use crate::model::error::{StartFailure, Step};
use crate::model::resource::Resource;
use crate::model::settings::EnvBase;
use crate::model::signal::Signal;
use crate::model::status::{Exit, ResourceUsage};

/// Where execvp(3) looks when there is no PATH.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// The main process of a job, from its clone to its reap.
#[derive(Debug)]
pub(crate) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    rung: Rung,
    /// How its start fares, until that is decided.
    start: Option<Box<Start>>,
    reaped: bool,
}

/// What the child has reported about its start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Pending,
    Executed,
    Failed(StartFailure),
}

/// How a process ended, and what it used if that is known.
pub(crate) type Ending = (Exit, Option<ResourceUsage>);

/// A program on its way into a process, with every allocation made that the child needs.
#[derive(Debug)]
pub(crate) struct Launch {
    program: Program,
    ask: Ask,
}

/// Where a process is put: its cgroup.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    /// The descriptor that its rung wants.
    pub(crate) fd: BorrowedFd<'a>,
    /// Tells its path, of which only a failure speaks.
    pub(crate) path: &'a dyn Fn() -> PathBuf,
}

impl Launch {
    /// Lays out everything that the child needs. `nofile` is the limit of open files that it gets unless the command has its own.
    pub(crate) fn new(command: &Command, base: EnvBase, nofile: Option<(u64, u64)>) -> Result<Self, StartFailure> {
        let env = environment(command, base);
        let path = env.iter().find(|(key, _)| key == "PATH").map_or(OsStr::new(DEFAULT_PATH), |(_, value)| value.as_os_str());
        let image = ExecImage::new(
            &command.program,
            command.args.iter().map(OsString::as_os_str),
            env.iter().map(|(key, value)| (key.as_os_str(), value.as_os_str())),
            path,
            command.cwd.as_ref().map(|cwd| cwd.as_os_str()),
        );
        // The command was checked for NUL bytes, and the host's environment cannot have any.
        let image = image.map_err(|_| StartFailure::new(Step::Exec, None, &Errno::INVAL.into()))?;
        // The command's own limits come last, so that they win.
        let host_nofile = nofile.map(|(soft, hard)| (Resource::Nofile, soft, hard));
        let rlimits = host_nofile.iter().chain(&command.rlimits);
        // A job of another user keeps neither the host's groups nor its capabilities.
        let is_other_user = command.uid.is_some_and(|uid| uid != rustix::process::geteuid().as_raw());
        let setup = ChildSetup {
            rlimits: rlimits.map(|(resource, soft, hard)| (rlimit_number(*resource), *soft, *hard)).collect(),
            umask: command.umask,
            nice: command.nice,
            oom_score_adj: command.oom_score_adj,
            groups: command.groups.clone().or(is_other_user.then(Vec::new)),
            gid: command.gid,
            uid: command.uid,
            drop_capabilities: is_other_user && command.uid != Some(0),
            needs_capability: false,
            no_new_privs: command.no_new_privs,
        };
        let ask = Ask {
            stack_bytes: image.stack_bytes(),
            fds: 3 + command.fds.len(),
            changes_ids: is_other_user || command.gid.is_some_and(|gid| gid != rustix::process::getegid().as_raw()),
            is_other_user,
            keeps_capability: is_other_user && command.uid != Some(0),
            sets_oom_score_adj: command.oom_score_adj.is_some(),
            memory_max: command.limits.memory_floor(),
            cpu_quota_micros: command.limits.cpu_micros().and_then(|(quota, _)| quota),
            limits_io: !command.limits.io_max.is_empty(),
        };
        Ok(Self { program: Program { image, setup }, ask })
    }

    /// What bears upon the rung that it takes.
    pub(crate) fn ask(&self) -> &Ask {
        &self.ask
    }

    /// Makes the process. A slot that it did not use stays in `slot`. With `is_suid_dumpable`, changed ids leave memory open to the new user.
    pub(crate) fn spawn(
        mut self,
        rung: Rung,
        is_suid_dumpable: bool,
        fds: &[(BorrowedFd<'_>, i32)],
        place: Option<Place<'_>>,
        slot: &mut Option<Slot>,
    ) -> Result<Process, StartFailure> {
        self.program.setup.needs_capability = is_suid_dumpable;
        let cgroup = place.map(|Place { fd, .. }| if rung == Rung::Fork { Cgroup::Procs(fd) } else { Cgroup::Directory(fd) });
        match spawn::spawn(sys_rung(rung), self.program, fds, cgroup, slot) {
            Ok(Spawned { pid, pidfd, start, rung: taken }) => {
                // Descriptors that cannot be sent have it made on another rung.
                let rung = if taken == sys_rung(rung) { rung } else { Rung::ForkLike };
                Ok(Process { pid, pidfd, rung, start: Some(Box::new(start)), reaped: false })
            }
            Err(error) => {
                let (step, path) = match error.step {
                    ParentStep::Report => (Step::Pipe, None),
                    ParentStep::Clone => (Step::Clone, None),
                    ParentStep::Cgroup => (Step::Cgroup, place.map(|place| (place.path)())),
                    ParentStep::Pidfd => (Step::Watch, None),
                };
                Err(StartFailure::new(step, path.as_deref(), &error.source))
            }
        }
    }
}

/// The failure of a step that the child took.
fn failure(image: Option<&ExecImage>, step: ChildStep, errno: i32, index: u32, cgroup: Option<&Path>) -> StartFailure {
    let candidate = || image?.candidate(index).map(Path::new);
    let (step, path) = match step {
        ChildStep::Cgroup => (Step::Cgroup, cgroup),
        ChildStep::Dup => (Step::Dup, None),
        ChildStep::CloseFds => (Step::CloseFds, None),
        ChildStep::Setsid => (Step::Setsid, None),
        ChildStep::Rlimit => (Step::Rlimit, None),
        ChildStep::Nice => (Step::Nice, None),
        ChildStep::OomScoreAdj => (Step::OomScoreAdj, Some(Path::new("/proc/self/oom_score_adj"))),
        ChildStep::Setgroups => (Step::Setgroups, None),
        ChildStep::Setgid => (Step::Setgid, None),
        ChildStep::Setuid => (Step::Setuid, None),
        ChildStep::Chdir => (Step::Chdir, image.and_then(ExecImage::directory).map(Path::new)),
        ChildStep::NoNewPrivs => (Step::NoNewPrivs, None),
        ChildStep::Signals => (Step::Signals, None),
        // Found nowhere: no candidate is more to blame than another.
        ChildStep::Exec if errno == Errno::NOENT.raw_os_error() => (Step::Exec, image.map(|image| Path::new(image.program()))),
        ChildStep::Exec => (Step::Exec, candidate()),
        ChildStep::Interpreter => (Step::Interpreter, candidate()),
    };
    StartFailure::new(step, path, &io::Error::from_raw_os_error(errno))
}

impl Process {
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// The rung that it was made on.
    pub(crate) fn rung(&self) -> Rung {
        self.rung
    }

    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What the child has reported. Never blocks.
    pub(crate) fn outcome(&self, cgroup: impl FnOnce() -> Option<PathBuf>) -> Outcome {
        let Some(start) = &self.start else { return Outcome::Executed };
        match start.report() {
            Ok(Report::Pending) => Outcome::Pending,
            Ok(Report::Closed) => Outcome::Executed,
            Ok(Report::Failed { step, errno, index }) => Outcome::Failed(failure(start.image(), step, errno, index, cgroup().as_deref())),
            Err(error) => Outcome::Failed(StartFailure::new(Step::Exec, None, &error)),
        }
    }

    /// Waits up to `timeout` for the start to be decided. A wait that fails is one that decides nothing.
    pub(crate) fn wait_for_start(&self, timeout: Duration) {
        let _ = self.start.as_ref().map(|start| start.wait(timeout));
    }

    /// The descriptor that tells of the start, until that is decided; a child on a slot has none.
    pub(crate) fn link(&self) -> Option<BorrowedFd<'_>> {
        self.start.as_ref()?.link()
    }

    /// Whether the start is decided.
    pub(crate) fn is_decided(&self) -> bool {
        self.start.is_none()
    }

    /// Whether the start is not decided, and nothing but a look at it will tell.
    pub(crate) fn is_to_be_looked_at(&self) -> bool {
        self.start.as_ref().is_some_and(|start| start.link().is_none())
    }

    /// Hands out the start: it is decided.
    pub(crate) fn take_start(&mut self) -> Option<Start> {
        self.start.take().map(|start| *start)
    }

    /// Whether it ends, or has ended, without having executed any program.
    pub(crate) fn ends_before_exec(&self) -> bool {
        self.passage() == Some(Passage::EndsBefore)
    }

    /// Whether its program was executed: it stands in its own memory then. Not told of one that was reaped.
    pub(crate) fn is_past_exec(&self) -> bool {
        self.passage() == Some(Passage::Past)
    }

    /// How far it has come on its way to its program, as `/proc/PID/stat` has it. `None` if that cannot be read, or it was reaped: only until then its number is
    /// its own. (If a stranger has reaped it, behind our back, the number may be somebody else's.)
    pub(crate) fn passage(&self) -> Option<Passage> {
        // What is asked for stands at the beginning.
        let mut text = [0; 512];
        if self.reaped {
            return None;
        }
        let file = rustix::fs::open(format!("/proc/{}/stat", self.pid), OFlags::RDONLY | OFlags::CLOEXEC, FileMode::empty()).ok()?;
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut text)).ok()?;
        kernel_text::passage(text.get(..length)?)
    }

    /// Whether it is dead, waiting up to `timeout` for that.
    pub(crate) fn wait_dead(&self, timeout: Duration) -> bool {
        spawn::wait_readable(self.pidfd(), timeout).is_ok_and(|dead| dead)
    }

    pub(crate) fn is_reaped(&self) -> bool {
        self.reaped
    }

    /// How it ended; `None` while it runs. The zombie stays, so that its process group can still be signalled.
    pub(crate) fn peek(&mut self) -> io::Result<Option<Ending>> {
        self.wait(Mode::Peek)
    }

    /// How it ended; `None` while it runs. Its process id is free after that.
    pub(crate) fn reap(&mut self) -> io::Result<Option<Ending>> {
        let ending = self.wait(Mode::Reap)?;
        self.reaped |= ending.is_some();
        Ok(ending)
    }

    fn wait(&mut self, mode: Mode) -> io::Result<Option<Ending>> {
        match wait::wait(self.pidfd(), mode) {
            Ok(ended) => Ok(ended.map(|(ended, usage)| (exit(ended), Some(resource_usage(&usage))))),
            Err(error) if error.raw_os_error() == Some(Errno::CHILD.raw_os_error()) => {
                self.reaped = true;
                Ok(self.stolen())
            }
            Err(error) => Err(error),
        }
    }

    /// Somebody else has reaped it, or the host ignores SIGCHLD. The kernel may still know.
    fn stolen(&self) -> Option<Ending> {
        match pidfd::exit_info(self.pidfd()) {
            Ok(Some(ended)) => Some((exit(ended), None)),
            // It is being reaped at this moment; the pidfd speaks up again (EPOLLHUP) when that is done.
            Ok(None) => None,
            Err(_) => Some((Exit::Unknown, None)),
        }
    }

    /// Sends a signal to the process; it can never hit another one.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        iron_exec_sys::signal::send(self.pidfd(), signal.number())
    }

    /// Sends a signal to its process group, and to no other, also when the process itself has been reaped; before Linux 6.9 only while that has not.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        use iron_exec_sys::signal::{send_to_group, send_to_group_id};
        let is = |error: &io::Error, errno: Errno| error.raw_os_error() == Some(errno.raw_os_error());
        let sent = match send_to_group(self.pidfd(), signal.number()) {
            // The kernel does not know the flag. A look at the zombie makes sure that the id is still its own.
            Err(error) if is(&error, Errno::INVAL) => match wait::wait(self.pidfd(), Mode::Peek) {
                Ok(_) => send_to_group_id(self.pid, signal.number()),
                Err(_) => Ok(()),
            },
            sent => sent,
        };
        match sent {
            // Before its setsid it has no group of its own: the process itself is all there is.
            Err(error) if is(&error, Errno::SRCH) => match self.signal(signal) {
                Err(error) if is(&error, Errno::SRCH) => Ok(()),
                other => other,
            },
            other => other,
        }
    }
}

/// Which rungs can be had here.
pub(crate) fn probe_rungs() -> Vec<RungReport> {
    Rung::ALL
        .into_iter()
        .map(|rung| {
            let has_clone3 = || spawn::probe(spawn::Rung::ForkLike).is_ok();
            let missing = spawn::probe(sys_rung(rung)).err().map(|error| match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::NOSYS | Errno::PERM) if has_clone3() => {
                    "close_range is refused by a seccomp filter: use a newer container host"
                }
                Some(Errno::NOSYS) => "clone3 is missing: Linux 5.7 is needed, or a seccomp filter answers ENOSYS",
                Some(Errno::PERM) => "a seccomp filter refuses clone3 with EPERM: use a newer container host",
                Some(Errno::TOOBIG) => "clone3 does not know CLONE_INTO_CGROUP: Linux 5.7 is needed",
                Some(Errno::OPNOTSUPP) => "a child that dumps core would take the host along: Linux 5.16 is needed",
                _ => "clone3 is refused",
            });
            RungReport { rung, missing }
        })
        .collect()
}

/// The best rung of those that can be had; fork always can.
pub(crate) fn best_rung(rungs: &[RungReport]) -> Rung {
    rungs.iter().find(|report| report.missing.is_none()).map_or(Rung::Fork, |report| report.rung)
}

/// Whether the kernel tells how a process ended that somebody else has reaped.
pub(crate) fn probe_exit_info() -> bool {
    rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).is_ok_and(|own| pidfd::exit_info(own.as_fd()).is_ok())
}

fn sys_rung(rung: Rung) -> spawn::Rung {
    match rung {
        Rung::Detached => spawn::Rung::Detached,
        Rung::Vfork => spawn::Rung::Vfork,
        Rung::ForkLike => spawn::Rung::ForkLike,
        Rung::Fork => spawn::Rung::Fork,
    }
}

fn exit(ended: Ended) -> Exit {
    match ended {
        Ended::Exited(code) => Exit::Code(code),
        Ended::Signaled { signal, core_dumped } => match Signal::new(signal) {
            Some(signal) => Exit::Signal { signal, core_dumped },
            None => Exit::Unknown,
        },
    }
}

fn resource_usage(usage: &wait::Rusage) -> ResourceUsage {
    const BLOCK_BYTES: u64 = 512;
    ResourceUsage {
        user: usage.user,
        system: usage.system,
        max_rss_bytes: usage.max_rss_kib.saturating_mul(1024),
        minor_faults: usage.minor_faults,
        major_faults: usage.major_faults,
        read_bytes: usage.blocks_in.saturating_mul(BLOCK_BYTES),
        write_bytes: usage.blocks_out.saturating_mul(BLOCK_BYTES),
        voluntary_switches: usage.voluntary_switches,
        involuntary_switches: usage.involuntary_switches,
    }
}

/// The RLIMIT_ number, the same on x86-64 and AArch64 (asm-generic/resource.h).
fn rlimit_number(resource: Resource) -> u32 {
    match resource {
        Resource::Cpu => 0,
        Resource::Fsize => 1,
        Resource::Data => 2,
        Resource::Stack => 3,
        Resource::Core => 4,
        Resource::Rss => 5,
        Resource::Nproc => 6,
        Resource::Nofile => 7,
        Resource::Memlock => 8,
        Resource::As => 9,
        Resource::Locks => 10,
        Resource::Sigpending => 11,
        Resource::Msgqueue => 12,
        Resource::Nice => 13,
        Resource::Rtprio => 14,
        Resource::Rttime => 15,
    }
}

/// The environment that the job gets.
fn environment(command: &Command, base: EnvBase) -> Vec<(OsString, OsString)> {
    let inherit = base == EnvBase::Inherit && !command.env_clear;
    let mut env: Vec<(OsString, OsString)> = if inherit { std::env::vars_os().collect() } else { Vec::new() };
    for (key, value) in &command.env_changes {
        let place = env.iter().position(|(existing, _)| existing == key);
        match (value, place) {
            (Some(value), Some(place)) => env[place].1.clone_from(value),
            (Some(value), None) => env.push((key.clone(), value.clone())),
            (None, Some(place)) => drop(env.remove(place)),
            (None, None) => {}
        }
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(env: &[(OsString, OsString)]) -> Vec<(&str, &str)> {
        env.iter().map(|(key, value)| (key.to_str().unwrap(), value.to_str().unwrap())).collect()
    }

    #[test]
    fn later_words_about_a_variable_win() {
        let command = Command::new("x").env("A", "1").env("B", "2").env("A", "3").env_remove("B");
        assert_eq!(pairs(&environment(&command, EnvBase::Clear)), [("A", "3")]);
    }

    #[test]
    fn a_cleared_environment_holds_what_was_set_after() {
        let command = Command::new("x").env("A", "1").env_clear().env("B", "2");
        assert_eq!(pairs(&environment(&command, EnvBase::Inherit)), [("B", "2")]);
    }
}
