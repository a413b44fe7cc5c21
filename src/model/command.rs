//! What is asked: one program to run, and how.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::error::CommandError;
use crate::model::id::OwnerId;
use crate::model::limits::Limits;
use crate::model::log_policy::LogPolicy;
use crate::model::output::{Capture, LogFormat};
use crate::model::resource::Resource;
use crate::model::signal::Signal;

/// A program to run, its arguments, and everything about the process it becomes.
///
/// A value, built by chaining; nothing exists before [`Worker::start`](crate::Worker::start) takes it. It can be cloned and used as a template:
/// clones share the file descriptors handed in, which stay open as long as one of them lives.
///
/// Without further words a job runs in a new session, in its own cgroup where there is one, with the host's environment, credentials and
/// working directory, an empty stdin, both outputs in its log, no signal blocked or ignored and no file descriptor above 2.
///
/// ```
/// use std::time::Duration;
/// use iron_exec::{Command, Signal};
///
/// let command = Command::new("make")
///     .args(["-j4", "all"])
///     .env("CC", "clang")
///     .cwd("/src/project")
///     .timeout(Duration::from_secs(600))
///     .timeout_signal(Signal::TERM, Duration::from_secs(5));
/// assert!(command.check().is_ok());
/// ```
#[derive(Clone, Debug)]
pub struct Command {
    pub(crate) program: OsString,
    pub(crate) args: Vec<OsString>,
    pub(crate) env_clear: bool,
    pub(crate) env_changes: Vec<(OsString, Option<OsString>)>,
    pub(crate) cwd: Option<PathBuf>,
    pub(crate) stdin: Stdin,
    pub(crate) capture: Capture,
    pub(crate) log_format: Option<LogFormat>,
    pub(crate) log_policy: Option<LogPolicy>,
    pub(crate) fds: Vec<(i32, Arc<OwnedFd>)>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) groups: Option<Vec<u32>>,
    pub(crate) umask: Option<u32>,
    pub(crate) rlimits: Vec<(Resource, u64, u64)>,
    pub(crate) nice: Option<i32>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) limits: Limits,
    pub(crate) no_new_privs: bool,
    pub(crate) owner: OwnerId,
    pub(crate) name: Option<String>,
    pub(crate) timeout: Option<Duration>,
    pub(crate) timeout_signal: Option<(Signal, Duration)>,
    pub(crate) tree: TreePolicy,
    pub(crate) confirm: Option<bool>,
}

/// What the job reads on file descriptor 0.
#[derive(Clone, Debug, Default)]
pub(crate) enum Stdin {
    #[default]
    Null,
    Bytes(Arc<[u8]>),
    File(Arc<OwnedFd>),
    Inherit,
    Piped,
}

/// What happens to the rest of a job's process tree when its main process has exited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TreePolicy {
    /// It is killed (SIGKILL), the job ends.
    #[default]
    Kill,
    /// The job goes on until the last process of its cgroup has ended. Without a cgroup: until its outputs are closed.
    Wait,
}

/// The highest number at which a file descriptor can be passed to a job.
pub(crate) const FD_NUMBER_MAX: i32 = (1 << 20) - 1;

impl Command {
    /// A command that runs `program`.
    ///
    /// A name without a slash is looked up in the `PATH` that the job will have (`/bin:/usr/bin` without one), by the child, with the job's
    /// credentials, as execvp(3) does it; but a file without a `#!` line that is no binary either is an error (ENOEXEC), not handed to a shell.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env_clear: false,
            env_changes: Vec::new(),
            cwd: None,
            stdin: Stdin::Null,
            capture: Capture::default(),
            log_format: None,
            log_policy: None,
            fds: Vec::new(),
            uid: None,
            gid: None,
            groups: None,
            umask: None,
            rlimits: Vec::new(),
            nice: None,
            oom_score_adj: None,
            limits: Limits::default(),
            no_new_privs: false,
            owner: OwnerId::default(),
            name: None,
            timeout: None,
            timeout_signal: None,
            tree: TreePolicy::default(),
            confirm: None,
        }
    }

    /// A command that has `/bin/sh` run `script` (`sh -c script`), named "sh".
    pub fn shell(script: impl AsRef<OsStr>) -> Self {
        Self::new("/bin/sh").arg("-c").arg(script)
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env_changes.push((key.as_ref().to_owned(), Some(value.as_ref().to_owned())));
        self
    }

    /// Removes an environment variable.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.env_changes.push((key.as_ref().to_owned(), None));
        self
    }

    /// Starts from an empty environment: drops the inherited one and everything set so far.
    pub fn env_clear(mut self) -> Self {
        self.env_clear = true;
        self.env_changes.clear();
        self
    }

    /// The working directory; entered by the child with the job's credentials. Default: the host's.
    pub fn cwd(mut self, directory: impl AsRef<Path>) -> Self {
        self.cwd = Some(directory.as_ref().to_owned());
        self
    }

    /// Lets the job read nothing: `/dev/null`. The default.
    pub fn stdin_null(mut self) -> Self {
        self.stdin = Stdin::Null;
        self
    }

    /// Lets the job read these bytes. They are put in a memfd_create(2) file: no pipe, nothing to pump, any size that memory holds.
    pub fn stdin_bytes(mut self, bytes: impl Into<Arc<[u8]>>) -> Self {
        self.stdin = Stdin::Bytes(bytes.into());
        self
    }

    /// Lets the job read an open file, pipe or socket. Clones of the command share its file offset.
    pub fn stdin_file(mut self, file: impl Into<OwnedFd>) -> Self {
        self.stdin = Stdin::File(Arc::new(file.into()));
        self
    }

    /// Lets the job read the host's own stdin.
    pub fn stdin_inherit(mut self) -> Self {
        self.stdin = Stdin::Inherit;
        self
    }

    /// Lets the job read a pipe whose other end [`Worker::take_stdin`](crate::Worker::take_stdin) gives to the caller.
    pub fn stdin_piped(mut self) -> Self {
        self.stdin = Stdin::Piped;
        self
    }

    /// Where stdout and stderr go. Default: [`Capture::Split`].
    pub fn capture(mut self, capture: Capture) -> Self {
        self.capture = capture;
        self
    }

    /// The format of this job's log. Default: the worker's; with [`Capture::Direct`] it can only be raw.
    pub fn log_format(mut self, format: LogFormat) -> Self {
        self.log_format = Some(format);
        self
    }

    /// The bounds of this job's log, and what happens at them. Default: the worker's; with [`Capture::Direct`] there are none.
    pub fn log_policy(mut self, policy: LogPolicy) -> Self {
        self.log_policy = Some(policy);
        self
    }

    /// Passes an open file descriptor to the job under a number of its own, from 3 to 1,048,575 (and below the host's RLIMIT_NOFILE).
    pub fn fd(mut self, number: i32, fd: impl Into<OwnedFd>) -> Self {
        self.fds.push((number, Arc::new(fd.into())));
        self
    }

    /// The user id to run as (real, effective and saved). Needs CAP_SETUID, and CAP_SETGID: a job of another user than the host has none of the
    /// host's supplementary groups, but for those that [`groups`](Self::groups) gives it, and, unless it is root, no capabilities. Its group id
    /// stays the host's without [`gid`](Self::gid): give both.
    pub fn uid(mut self, uid: u32) -> Self {
        self.uid = Some(uid);
        self
    }

    /// The group id to run as (real, effective and saved). Needs CAP_SETGID.
    pub fn gid(mut self, gid: u32) -> Self {
        self.gid = Some(gid);
        self
    }

    /// The supplementary groups. Needs CAP_SETGID.
    pub fn groups<I: IntoIterator<Item = u32>>(mut self, groups: I) -> Self {
        self.groups = Some(groups.into_iter().collect());
        self
    }

    /// The file mode creation mask, 0 to 0o777; see umask(2).
    pub fn umask(mut self, mask: u32) -> Self {
        self.umask = Some(mask);
        self
    }

    /// A resource limit, soft and hard, in the resource's unit ([`Resource::UNLIMITED`] for none); see setrlimit(2).
    /// Raising a hard limit needs CAP_SYS_RESOURCE.
    pub fn rlimit(mut self, resource: Resource, soft: u64, hard: u64) -> Self {
        self.rlimits.push((resource, soft, hard));
        self
    }

    /// The nice value, -20 (favoured) to 19. Going below the host's needs CAP_SYS_NICE.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = Some(nice);
        self
    }

    /// How readily the OOM killer picks the job, -1000 (never) to 1000. Going below the host's needs CAP_SYS_RESOURCE.
    pub fn oom_score_adj(mut self, score: i32) -> Self {
        self.oom_score_adj = Some(score);
        self
    }

    /// What the job's whole process tree may use. Needs a cgroup.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets PR_SET_NO_NEW_PRIVS: set-user-ID programs and file capabilities give the job nothing.
    pub fn no_new_privs(mut self) -> Self {
        self.no_new_privs = true;
        self
    }

    /// The client that owns the job; see [`Worker::owned_by`](crate::Worker::owned_by), which stamps its own.
    pub fn owner(mut self, owner: OwnerId) -> Self {
        self.owner = owner;
        self
    }

    /// The job's name in the names of its log file and cgroup, made safe for a file name. Default: the program's base name.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Stops the job this long after its start (wall clock): the whole tree, with SIGKILL unless [`timeout_signal`](Self::timeout_signal) says more.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// At the timeout send `signal` to the job's process group first, and SIGKILL to the whole tree after `grace`.
    pub fn timeout_signal(mut self, signal: Signal, grace: Duration) -> Self {
        self.timeout_signal = Some((signal, grace));
        self
    }

    /// What happens to the rest of the process tree when the main process has exited. Default: it is killed.
    pub fn tree(mut self, policy: TreePolicy) -> Self {
        self.tree = policy;
        self
    }

    /// How the job's output is logged, where the command leaves it to the worker.
    pub(crate) fn log_plan(&self, format: LogFormat, policy: LogPolicy) -> Result<(LogFormat, LogPolicy), CommandError> {
        if self.capture == Capture::Direct || !self.capture.is_logged() {
            return Ok((LogFormat::Raw, LogPolicy::default()));
        }
        let (format, policy) = (self.log_format.unwrap_or(format), self.log_policy.unwrap_or(policy));
        policy.check_for(self.capture, format)?;
        Ok((format, policy))
    }

    /// Whether `start` waits for the program to be executed. Default: what the builder says.
    pub fn confirm(mut self, confirm: bool) -> Self {
        self.confirm = Some(confirm);
        self
    }

    /// The program, as given.
    pub fn program(&self) -> &OsStr {
        &self.program
    }

    /// Checks everything that can be checked before anything exists; `start` calls it first.
    ///
    /// # Errors
    /// The first thing found wrong: an empty program, a NUL byte, a value out of its range, a file descriptor number given twice, two things that exclude
    /// each other.
    pub fn check(&self) -> Result<(), CommandError> {
        if self.program.is_empty() {
            return Err(CommandError::EmptyProgram);
        }
        no_nul("the program", &self.program)?;
        for arg in &self.args {
            no_nul("an argument", arg)?;
        }
        if let Some(cwd) = &self.cwd {
            if cwd.as_os_str().is_empty() {
                return Err(CommandError::EmptyCwd);
            }
            no_nul("the working directory", cwd.as_os_str())?;
        }
        for (key, value) in &self.env_changes {
            no_nul("the name of an environment variable", key)?;
            if key.is_empty() || key.as_encoded_bytes().contains(&b'=') {
                return Err(CommandError::EnvName { name: key.clone() });
            }
            if let Some(value) = value {
                no_nul("the value of an environment variable", value)?;
            }
        }
        for (index, (number, _)) in self.fds.iter().enumerate() {
            if !(3..=FD_NUMBER_MAX).contains(number) {
                return Err(CommandError::OutOfRange {
                    what: "a file descriptor number",
                    value: i64::from(*number),
                    min: 3,
                    max: i64::from(FD_NUMBER_MAX),
                });
            }
            if self.fds[..index].iter().any(|(other, _)| other == number) {
                return Err(CommandError::FdTwice { number: *number });
            }
        }
        in_range("the umask", self.umask.map(i64::from), 0, 0o777)?;
        in_range("the nice value", self.nice.map(i64::from), -20, 19)?;
        in_range("oom_score_adj", self.oom_score_adj.map(i64::from), -1000, 1000)?;
        for (what, id) in [("the uid", self.uid), ("the gid", self.gid)] {
            // (uid_t) -1 means "leave as it is" to setresuid(2): asking for it would silently keep the host's credentials.
            in_range(what, id.map(i64::from), 0, i64::from(u32::MAX - 1))?;
        }
        self.limits.check()?;
        if self.capture == Capture::Direct && self.log_format == Some(LogFormat::Cri) {
            return Err(CommandError::Conflict {
                what: "the CRI format with direct capture",
                reason: "the job writes its bytes and nothing else",
            });
        }
        if let Some(policy) = &self.log_policy {
            policy.check()?;
            policy.check_for(self.capture, self.log_format.unwrap_or_default())?;
        }
        for (resource, soft, hard) in &self.rlimits {
            if soft > hard {
                return Err(CommandError::Rlimit { resource: *resource, soft: *soft, hard: *hard });
            }
        }
        Ok(())
    }
}

fn no_nul(what: &'static str, text: &OsStr) -> Result<(), CommandError> {
    if text.as_encoded_bytes().contains(&0) {
        return Err(CommandError::Nul { what, text: text.to_owned() });
    }
    Ok(())
}

fn in_range(what: &'static str, value: Option<i64>, min: i64, max: i64) -> Result<(), CommandError> {
    match value {
        Some(value) if !(min..=max).contains(&value) => Err(CommandError::OutOfRange { what, value, min, max }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_plain_command_is_fine_and_arguments_need_not_be_utf8() {
        Command::new("true").check().unwrap();
        Command::new("true").arg(OsStr::from_bytes(b"\xff\xfe")).check().unwrap();
    }

    #[test]
    fn what_cannot_work_is_refused_before_anything_exists() {
        let fd = || std::fs::File::open("/dev/null").unwrap();
        let wrong = [
            Command::new(""),
            Command::new("a\0b"),
            Command::new("true").arg("a\0b"),
            Command::new("true").env("A\0", "b"),
            Command::new("true").env("A", "b\0"),
            Command::new("true").env("", "b"),
            Command::new("true").env("A=B", "c"),
            Command::new("true").cwd(""),
            Command::new("true").cwd("/a\0b"),
            Command::new("true").umask(0o1000),
            Command::new("true").nice(20),
            Command::new("true").nice(-21),
            Command::new("true").oom_score_adj(1001),
            Command::new("true").uid(u32::MAX),
            Command::new("true").gid(u32::MAX),
            Command::new("true").rlimit(Resource::Nofile, 2, 1),
            Command::new("true").fd(2, fd()),
            Command::new("true").fd(-1, fd()),
            Command::new("true").fd(FD_NUMBER_MAX + 1, fd()),
            Command::new("true").fd(5, fd()).fd(5, fd()),
            Command::new("true").capture(Capture::Direct).log_format(LogFormat::Cri),
            Command::new("true").capture(Capture::Direct).log_policy(LogPolicy::new().bytes_max(1 << 20)),
            Command::new("true").capture(Capture::Discard).log_policy(LogPolicy::new().bytes_max(1 << 20)),
            Command::new("true").log_policy(LogPolicy::new().bytes_max(1)),
        ];
        for command in wrong {
            assert!(command.check().is_err(), "{command:?}");
        }
    }
}
