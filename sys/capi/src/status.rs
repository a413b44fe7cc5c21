//! What is answered about a job.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use iron_exec::Exit;

use crate::config::rung_number;
use crate::id::{JobId, OwnerId};

/// Where a job stands. It only moves downwards in this list, and ends in one of the last four. (-1 of a status is a state that this header does not know.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum State {
    /// Its program was not executed yet, as far as is known.
    Starting = 0,
    /// The program runs.
    Running = 1,
    /// It was told to stop.
    Stopping = 2,
    /// The main process has ended; the rest of its tree is ending, its last output is being read.
    Draining = 3,
    /// All over: the exit status is final, every byte is in the log.
    Finished = 4,
    /// The start failed: iron_exec_failure_text tells why.
    Failed = 5,
    /// All over, but how the main process ended is not to be known: somebody else reaped it, and the kernel is too old to tell.
    Unknown = 6,
    /// It was let go of, and runs on without anybody watching it: IRON_EXEC_SHUTDOWN_MODE_LEAVE.
    Left = 7,
}

/// Why a job was stopped. (-1 of a status is a reason that this header does not know.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum StopReason {
    /// It was not.
    None = 0,
    /// The caller asked for it.
    Requested = 1,
    /// Its timeout passed.
    Timeout = 2,
    /// The worker was freed.
    WorkerDropped = 3,
    /// Its log could not be written.
    LogFault = 4,
    /// The worker was shut down.
    Shutdown = 5,
}

/// Everything known about a job, but for its texts (iron_exec_log_path, iron_exec_failure_text). It does not change when the job goes on. Times by the wall
/// clock are nanoseconds since 1970-01-01 00:00:00 UTC.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Status {
    /// The job.
    pub job: JobId,
    /// Who owns it.
    pub owner: OwnerId,
    /// Where it stands: an iron_exec_state.
    pub state: i32,
    /// The main process's id; 0 while there is none yet. Signals go by iron_exec_signal: kill(2) could hit another process.
    pub pid: i32,
    /// The exit code, 0 to 255; -1 while there is none, and after a signal.
    pub exit_code: i32,
    /// The signal that killed the main process; 0 if none did.
    pub signal: i32,
    /// Why it was stopped: an iron_exec_stop_reason.
    pub stop_reason: i32,
    /// The error number of a start that failed; 0 if it did not, or if the failure was not the kernel's.
    pub error_number: i32,
    /// How it was started, or is to be: an iron_exec_rung.
    pub rung: i32,
    /// Whether nothing more will happen to it.
    pub finished: bool,
    /// Whether the main process dumped core.
    pub core_dumped: bool,
    /// Whether the main process was killed because there was no memory for it.
    pub oom_killed: bool,
    /// Whether its outputs were closed before their end: a process that escaped the job's tree still held them.
    pub cut_off: bool,
    /// Bytes read from stdout (from both, where they share one pipe).
    pub stdout_bytes: u64,
    /// Bytes read from stderr.
    pub stderr_bytes: u64,
    /// Line feeds among them.
    pub lines: u64,
    /// Bytes that are not in the log because it could not be written.
    pub dropped_bytes: u64,
    /// Bytes that are not in the log because it was full, or has files of it deleted since.
    pub discarded_bytes: u64,
    /// When it was started, by the wall clock, in nanoseconds.
    pub started_ns: u64,
    /// When it finished, by the wall clock, in nanoseconds; 0 if it has not.
    pub finished_ns: u64,
    /// How long the main process ran, or has run so far, in nanoseconds.
    pub run_time_ns: u64,
    /// The CPU time in user mode, in nanoseconds, of the main process and the children it waited for; 0 while it runs.
    pub user_time_ns: u64,
    /// Their CPU time in the kernel, in nanoseconds; 0 while it runs.
    pub system_time_ns: u64,
    /// The largest resident set of one of them, in bytes; 0 while it runs.
    pub max_rss_bytes: u64,
}

/// The bytes of an iron_exec_status in the library: to be compared with sizeof(iron_exec_status) where the library is loaded dynamically.
#[unsafe(no_mangle)]
pub extern "C" fn iron_exec_status_size() -> usize {
    size_of::<Status>()
}

impl From<&iron_exec::Status> for Status {
    fn from(status: &iron_exec::Status) -> Self {
        let usage = status.usage.unwrap_or_default();
        Self {
            job: status.id.into(),
            owner: status.owner.into(),
            state: state_number(status.state),
            pid: status.pid,
            exit_code: status.exit_code,
            signal: status.signal().map_or(0, iron_exec::Signal::number),
            stop_reason: status.stop_reason.map_or(StopReason::None as i32, reason_number),
            error_number: status.failure.as_ref().map_or(0, iron_exec::StartFailure::errno),
            rung: rung_number(status.rung),
            finished: status.is_finished(),
            core_dumped: matches!(status.exit, Some(Exit::Signal { core_dumped: true, .. })),
            oom_killed: status.oom_killed,
            cut_off: status.output.cut_off,
            stdout_bytes: status.output.stdout_bytes,
            stderr_bytes: status.output.stderr_bytes,
            lines: status.output.lines,
            dropped_bytes: status.output.dropped_bytes,
            discarded_bytes: status.output.discarded_bytes.saturating_add(status.output.deleted_bytes),
            started_ns: unix_nanos(status.started),
            finished_ns: status.finished.map_or(0, unix_nanos),
            run_time_ns: nanos(status.run_time),
            user_time_ns: nanos(usage.user),
            system_time_ns: nanos(usage.system),
            max_rss_bytes: usage.max_rss_bytes,
        }
    }
}

fn state_number(state: iron_exec::JobState) -> i32 {
    use iron_exec::JobState;
    match state {
        JobState::Starting => State::Starting as i32,
        JobState::Running => State::Running as i32,
        JobState::Stopping => State::Stopping as i32,
        JobState::Draining => State::Draining as i32,
        JobState::Finished => State::Finished as i32,
        JobState::Failed => State::Failed as i32,
        JobState::Unknown => State::Unknown as i32,
        JobState::Left => State::Left as i32,
        _ => -1,
    }
}

fn reason_number(reason: iron_exec::StopReason) -> i32 {
    match reason {
        iron_exec::StopReason::Requested => StopReason::Requested as i32,
        iron_exec::StopReason::Timeout => StopReason::Timeout as i32,
        iron_exec::StopReason::WorkerDropped => StopReason::WorkerDropped as i32,
        iron_exec::StopReason::LogFault => StopReason::LogFault as i32,
        iron_exec::StopReason::Shutdown => StopReason::Shutdown as i32,
        _ => -1,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Before 1970 it is 0.
fn unix_nanos(time: SystemTime) -> u64 {
    nanos(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}
