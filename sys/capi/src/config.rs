//! What a worker is built with.

use std::ffi::c_char;
use std::path::PathBuf;
use std::time::Duration;

use iron_exec::{Builder, LogPolicy};

use crate::border::{self, Draft};
use crate::error::{Fault, ResultCode};

/// What a worker is built with: every setting has a default. Settings are made by functions; one that is given something that cannot be answers
/// INVALID_ARGUMENT, and iron_exec_worker_new says again what it was, so that only that needs to be asked.
///
/// One thread at a time.
#[derive(Clone, Debug, Default)]
pub struct Config {
    builder: Builder,
    policy: Option<LogPolicy>,
    fault: Option<Fault>,
}

/// Where jobs get their cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum CgroupBase {
    /// The host's own cgroup if that is delegated to it, else one below the root of the hierarchy if the host is root, else none.
    Auto = 0,
    /// None: jobs run without cgroups, and limits cannot be had.
    Off = 1,
    /// A directory of a cgroup2 mount; made if it is not there.
    Path = 2,
}

/// How output stands in a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum LogFormat {
    /// The Kubernetes CRI text format: one record a line, with its time and stream.
    Cri = 0,
    /// The job's bytes and nothing else.
    Raw = 1,
}

/// A way to make a process, from the best to the one that always works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Rung {
    /// clone3(2); until its exec the child stands in the host's memory, and the host does not wait for it (Linux 5.16).
    Detached = 0,
    /// The same, but the host waits until the child has executed its program (Linux 5.16).
    Vfork = 1,
    /// clone3(2), with a copy of the host's page tables and descriptors (Linux 5.7).
    ForkLike = 2,
    /// fork(2). For where clone3 is refused, and for tools that do not know it, such as valgrind.
    Fork = 3,
}

/// Makes a configuration in which everything is at its default. NULL comes back through a bug in the library alone.
#[unsafe(no_mangle)]
pub extern "C" fn iron_exec_config_new() -> *mut Config {
    border::make(Config::default)
}

/// Frees a configuration, and sets the pointer to NULL. Of a NULL it does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_free(config: *mut *mut Config) {
    // SAFETY: the caller's promise, and configurations come from `iron_exec_config_new` alone.
    unsafe { border::free(config) }
}

/// The directory of the log files, which must exist. Default: "/tmp".
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_log_dir(config: *mut Config, directory: *const c_char) -> ResultCode {
    // SAFETY: the caller's promise.
    let directory = unsafe { border::string(directory, "the log directory") };
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.log_dir(PathBuf::from(directory?)))) }
}

/// The format of the logs of commands that do not say: an iron_exec_log_format. Default: CRI.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_log_format(config: *mut Config, format: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.log_format(log_format(format)?))) }
}

/// The most bytes of one log file, from 4096: then it is renamed to "{log}.000001" (the next to "{log}.000002", and so on), and a new one begun. Default: no
/// bound. For commands that say nothing of log files.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_log_bytes_max(config: *mut Config, bytes: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_policy(config, |policy| policy.bytes_max(bytes)) }
}

/// The most files of one log, the one being written included, from 2 to 10,000; the oldest goes first. Needs iron_exec_config_log_bytes_max. Default: 5.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_log_files_max(config: *mut Config, files: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set_policy(config, |policy| policy.files_max(files)) }
}

/// Where jobs get their cgroups: an iron_exec_cgroup_base. `path` is looked at for IRON_EXEC_CGROUP_BASE_PATH only. Default: AUTO.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_cgroup_base(config: *mut Config, base: i32, path: *const c_char) -> ResultCode {
    const PATH: i32 = CgroupBase::Path as i32;
    // SAFETY: the caller's promise; a pointer that is not to be looked at is not.
    let path = if base == PATH { unsafe { border::string(path, "the cgroup base") } } else { Ok("".as_ref()) };
    let change = |builder: Builder| {
        Ok(builder.cgroup_base(match base {
            _ if base == CgroupBase::Auto as i32 => iron_exec::CgroupBase::Auto,
            _ if base == CgroupBase::Off as i32 => iron_exec::CgroupBase::Off,
            PATH => iron_exec::CgroupBase::Path(path?.into()),
            _ => return Err(Fault::unknown("the cgroup base", base)),
        }))
    };
    // SAFETY: the caller's promise.
    unsafe { set(config, change) }
}

/// Whether (1, or 0) this process moves to a leaf of its cgroup, "supervisor", so that jobs can have theirs beside it, with limits: for a service or a
/// container that has a cgroup to itself. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_take_over_cgroup(config: *mut Config, take_over: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.take_over_cgroup(border::flag(take_over, "take_over")?))) }
}

/// Whether (1, or 0) a controller that a limit needs is enabled also in the cgroups above the base. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_enable_controllers(config: *mut Config, enable: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.enable_controllers(border::flag(enable, "enable")?))) }
}

/// The best way to make a process that starts may take: an iron_exec_rung. Default: the best that the machine has.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_rung(config: *mut Config, rung: i32) -> ResultCode {
    let change = |builder: Builder| {
        let known = iron_exec::Rung::ALL.into_iter().find(|known| rung_number(*known) == rung);
        Ok(builder.rung(known.ok_or_else(|| Fault::unknown("the rung", rung))?))
    };
    // SAFETY: the caller's promise.
    unsafe { set(config, change) }
}

/// Whether (1, or 0) iron_exec_start waits until the program was executed, and so says "no such program" itself. With 0 nothing waits, and that comes as
/// an event, IRON_EXEC_EVENT_KIND_START_FAILED. Default: 1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_confirm(config: *mut Config, confirm: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.confirm(border::flag(confirm, "confirm")?))) }
}

/// How many milliseconds iron_exec_start waits for that at most; after them the job is STARTING. Default: 100.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_confirm_timeout(config: *mut Config, timeout_ms: u64) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.confirm_timeout(Duration::from_millis(timeout_ms)))) }
}

/// Whether (1, or 0) jobs start from an empty environment instead of the host's: for hosts whose environment holds secrets. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_env_clear(config: *mut Config, clear: i32) -> ResultCode {
    let change = |builder: Builder| {
        let base = if border::flag(clear, "clear")? { iron_exec::EnvBase::Clear } else { iron_exec::EnvBase::Inherit };
        Ok(builder.env_base(base))
    };
    // SAFETY: the caller's promise.
    unsafe { set(config, change) }
}

/// Whether (1, or 0) this process's soft limit of open files is raised to its hard limit (RLIMIT_NOFILE). Jobs keep what was. Default: 0.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_raise_nofile(config: *mut Config, raise: i32) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.raise_nofile(border::flag(raise, "raise")?))) }
}

/// The number of unfinished jobs above which iron_exec_start answers TOO_MANY_JOBS. Default: 100,000.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_jobs_max(config: *mut Config, jobs: usize) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.jobs_max(jobs))) }
}

/// The number of finished jobs, their end told, that can still be asked about; the oldest are forgotten first. Default: 10,000.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_config_finished_jobs_max(config: *mut Config, jobs: usize) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { set(config, |builder| Ok(builder.finished_jobs_max(jobs))) }
}

pub(crate) fn log_format(format: i32) -> Result<iron_exec::LogFormat, Fault> {
    match format {
        _ if format == LogFormat::Cri as i32 => Ok(iron_exec::LogFormat::Cri),
        _ if format == LogFormat::Raw as i32 => Ok(iron_exec::LogFormat::Raw),
        _ => Err(Fault::unknown("the log format", format)),
    }
}

/// The number of a rung in the header; -1 of one that the header does not know.
pub(crate) fn rung_number(rung: iron_exec::Rung) -> i32 {
    match rung {
        iron_exec::Rung::Detached => Rung::Detached as i32,
        iron_exec::Rung::Vfork => Rung::Vfork as i32,
        iron_exec::Rung::ForkLike => Rung::ForkLike as i32,
        iron_exec::Rung::Fork => Rung::Fork as i32,
        _ => -1,
    }
}

impl Config {
    /// The builder as it was configured.
    pub(crate) fn to_builder(&self) -> Result<Builder, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        let builder = self.builder.clone();
        Ok(match self.policy {
            Some(policy) => builder.log_policy(policy),
            None => builder,
        })
    }
}

impl Draft for Config {
    fn fault(&mut self) -> &mut Option<Fault> {
        &mut self.fault
    }
}

/// # Safety
/// The caller's promise for `config`.
unsafe fn set(config: *mut Config, change: impl FnOnce(Builder) -> Result<Builder, Fault>) -> ResultCode {
    let change = |config: &mut Config| {
        config.builder = change(config.builder.clone())?;
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { border::edit(config, change) }
}

/// # Safety
/// The caller's promise for `config`.
unsafe fn set_policy(config: *mut Config, change: impl FnOnce(LogPolicy) -> LogPolicy) -> ResultCode {
    let change = |config: &mut Config| {
        config.policy = Some(change(config.policy.unwrap_or_default()));
        Ok(())
    };
    // SAFETY: the caller's promise.
    unsafe { border::edit(config, change) }
}
