//! What is to be run.

use std::ffi::{OsStr, c_char};
use std::time::Duration;

use iron_exec::{Limits, LogPolicy};

use crate::border::{self, Draft};
use crate::config::log_format;
use crate::error::{Fault, ResultCode};
use crate::id::OwnerId;

/// A program to run, and everything about the process that it becomes: a template, which iron_exec_start only reads. Setters that are given something that
/// cannot be answer INVALID_ARGUMENT, and iron_exec_start says again what it was, so that only that needs to be asked.
///
/// One thread at a time.
#[derive(Clone, Debug)]
pub struct Command {
    inner: iron_exec::Command,
    limits: Limits,
    policy: Option<LogPolicy>,
    fault: Option<Fault>,
}

/// What a job reads on its stdin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Stdin {
    /// Nothing: /dev/null.
    Null = 0,
    /// A pipe, whose other end iron_exec_take_pipe gives to the caller.
    Piped = 1,
    /// The host's own stdin.
    Inherit = 2,
}

/// Where the two output streams of a job go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Capture {
    /// Two pipes into the log: each line keeps its stream.
    Split = 0,
    /// One pipe into the log: exactly the order in which the job wrote, everything counts as stdout.
    Merged = 1,
    /// The log file itself is the job's stdout and stderr. The log is raw, and has no bounds.
    Direct = 2,
    /// No log: the host's own stdout and stderr.
    Inherit = 3,
    /// No log: two pipes, whose other ends iron_exec_take_pipe gives to the caller.
    Piped = 4,
    /// No log: /dev/null.
    Discard = 5,
}

/// Makes a command that runs `program`; a name without a slash is looked up in the PATH that the job will have. A `program` that is NULL is told of by
/// iron_exec_start: NULL comes back through a bug in the library alone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_new(program: *const c_char) -> *mut Command {
    // SAFETY: the caller's promise.
    let program = unsafe { border::string(program, "the program") };
    border::make(|| {
        let (program, fault) = program.map_or_else(|fault| (OsStr::new(""), Some(fault)), |program| (program, None));
        Command { inner: iron_exec::Command::new(program), limits: Limits::new(), policy: None, fault }
    })
}

/// Frees a command, and sets the pointer to NULL. Of a NULL it does nothing. Jobs that were started with it are not concerned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_free(command: *mut *mut Command) {
    // SAFETY: the caller's promise, and commands come from `iron_exec_command_new` alone.
    unsafe { border::free(command) }
}

/// Adds one argument.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_arg(command: *mut Command, arg: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let arg = unsafe { border::string(arg, "an argument") };
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.arg(arg?))) }
}

/// Sets an environment variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_env(command: *mut Command, name: *const c_char, value: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let name = unsafe { border::string(name, "the name of an environment variable") };
    // SAFETY: the caller's promise.
    let value = unsafe { border::string(value, "the value of an environment variable") };
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.env(name?, value?))) }
}

/// Removes an environment variable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_env_remove(command: *mut Command, name: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let name = unsafe { border::string(name, "the name of an environment variable") };
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.env_remove(name?))) }
}

/// Starts from an empty environment: drops the host's and what was set so far.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_env_clear(command: *mut Command) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.env_clear())) }
}

/// The working directory, entered with the job's credentials. Default: the host's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_cwd(command: *mut Command, directory: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let directory = unsafe { border::string(directory, "the working directory") };
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.cwd(directory?))) }
}

/// The job's name in the names of its log and cgroup, made safe for a file name. It must be UTF-8. Default: the program's base name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_name(command: *mut Command, name: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let name = unsafe { border::string(name, "the name") };
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.name(border::utf8(name?, "the name")?))) }
}

/// What the job reads: an iron_exec_stdin. Default: NULL, nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_stdin(command: *mut Command, input: i32) -> ResultCode {
    let change = |command: iron_exec::Command| match input {
        _ if input == Stdin::Null as i32 => Ok(command.stdin_null()),
        _ if input == Stdin::Piped as i32 => Ok(command.stdin_piped()),
        _ if input == Stdin::Inherit as i32 => Ok(command.stdin_inherit()),
        _ => Err(Fault::unknown("what stdin is", input)),
    };
    // SAFETY: the caller's promise.
    unsafe { set(command, change) }
}

/// Where the output goes: an iron_exec_capture. Default: SPLIT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_capture(command: *mut Command, capture: i32) -> ResultCode {
    let change = |command: iron_exec::Command| {
        Ok(command.capture(match capture {
            _ if capture == Capture::Split as i32 => iron_exec::Capture::Split,
            _ if capture == Capture::Merged as i32 => iron_exec::Capture::Merged,
            _ if capture == Capture::Direct as i32 => iron_exec::Capture::Direct,
            _ if capture == Capture::Inherit as i32 => iron_exec::Capture::Inherit,
            _ if capture == Capture::Piped as i32 => iron_exec::Capture::Piped,
            _ if capture == Capture::Discard as i32 => iron_exec::Capture::Discard,
            _ => return Err(Fault::unknown("the capture mode", capture)),
        }))
    };
    // SAFETY: the caller's promise.
    unsafe { set(command, change) }
}

/// The format of the log: an iron_exec_log_format. Default: the worker's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_log_format(command: *mut Command, format: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.log_format(log_format(format)?))) }
}

/// The most bytes of one file of the log, as iron_exec_config_log_bytes_max. A command that says this, or how many files, has none of the worker's bounds.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_log_bytes_max(command: *mut Command, bytes: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_policy(command, |policy| policy.bytes_max(bytes)) }
}

/// The most files of the log, as iron_exec_config_log_files_max. Needs iron_exec_command_log_bytes_max.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_log_files_max(command: *mut Command, files: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_policy(command, |policy| policy.files_max(files)) }
}

/// Stops the job so many milliseconds after its start: its whole tree, with SIGKILL unless iron_exec_command_timeout_signal says more. Default: never.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_timeout(command: *mut Command, timeout_ms: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.timeout(Duration::from_millis(timeout_ms)))) }
}

/// At the timeout sends `signal` (1 to 64) to the job's process group first, and SIGKILL to its whole tree `grace_ms` milliseconds later.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_timeout_signal(command: *mut Command, signal: i32, grace_ms: u64) -> ResultCode {
    let change = |command: iron_exec::Command| Ok(command.timeout_signal(border::signal(signal)?, Duration::from_millis(grace_ms)));
    // SAFETY: the caller's promise.
    unsafe { set(command, change) }
}

/// The most memory of the job's whole tree, in bytes (memory.max): beyond it the kernel reclaims, then kills. UINT64_MAX is no limit. Needs a cgroup.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_memory_max(command: *mut Command, bytes: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_limits(command, |limits| limits.memory_max(bytes)) }
}

/// The most CPU time of the job's whole tree, in CPUs, from 0.01 (cpu.max): 1.5 is one and a half. Infinity is no limit. Needs a cgroup.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_cpu_max(command: *mut Command, cores: f64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_limits(command, |limits| limits.cpu_max(cores)) }
}

/// The most processes and threads of the job, 1 to 4,194,304 (pids.max). UINT64_MAX is no limit. Needs a cgroup.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_pids_max(command: *mut Command, pids: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_limits(command, |limits| limits.pids_max(pids)) }
}

/// The client that owns the job: iron_exec_query tells it. Default: nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_owner(command: *mut Command, owner: OwnerId) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.owner(owner.into()))) }
}

/// The user id to run as; the group id stays the host's unless iron_exec_command_gid says otherwise. Needs CAP_SETUID and CAP_SETGID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_uid(command: *mut Command, uid: u32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.uid(uid))) }
}

/// The group id to run as. Needs CAP_SETGID.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_gid(command: *mut Command, gid: u32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.gid(gid))) }
}

/// Whether (1, or 0) iron_exec_start waits for the program to be executed. Default: what the worker's configuration says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_command_confirm(command: *mut Command, confirm: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(command, |command| Ok(command.confirm(border::flag(confirm, "confirm")?))) }
}

impl Command {
    /// The command as it is to be started.
    pub(crate) fn to_command(&self) -> Result<iron_exec::Command, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let command = self.inner.clone().limits(self.limits.clone());
        Ok(match self.policy {
            Some(policy) => command.log_policy(policy),
            None => command,
        })
    }
}

impl Draft for Command {
    fn fault(&mut self) -> &mut Option<Fault> {
        &mut self.fault
    }
}

/// # Safety
/// The caller's promise for `command`.
unsafe fn set(command: *mut Command, change: impl FnOnce(iron_exec::Command) -> Result<iron_exec::Command, Fault>) -> ResultCode {
    let change = |draft: &mut Command| {
        // If the change fails there is a fault, and the command that it was is not asked for any more.
        let command = std::mem::replace(&mut draft.inner, iron_exec::Command::new(""));
        draft.inner = change(command)?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { border::edit(command, change) }
}

/// # Safety
/// The caller's promise for `command`.
unsafe fn set_limits(command: *mut Command, change: impl FnOnce(Limits) -> Limits) -> ResultCode {
    let change = |draft: &mut Command| {
        let limits = change(draft.limits.clone());
        limits.check()?;
        draft.limits = limits;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { border::edit(command, change) }
}

/// # Safety
/// The caller's promise for `command`.
unsafe fn set_policy(command: *mut Command, change: impl FnOnce(LogPolicy) -> LogPolicy) -> ResultCode {
    let change = |draft: &mut Command| {
        draft.policy = Some(change(draft.policy.unwrap_or_default()));
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { border::edit(command, change) }
}
