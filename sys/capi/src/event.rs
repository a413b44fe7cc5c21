//! What a turn tells.

use iron_exec::Exit;

use crate::id::JobId;

/// What an event is about. What one turn tells of a job comes in the order of this list. Every job that iron_exec_start gave an id ends with exactly one
/// START_FAILED, FINISHED or LEFT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i32)]
pub enum EventKind {
    /// Something that this header does not know.
    #[default]
    Other = 0,
    /// The program was executed.
    Started = 1,
    /// The program was not executed; the job has failed. iron_exec_failure_text tells more.
    StartFailed = 2,
    /// A stream of the job that had answered AGAIN has more to read, or has ended.
    LogReady = 3,
    /// The job's log could not be written.
    LogFault = 4,
    /// The job's log can be written again.
    LogResumed = 5,
    /// The job's log is full, and from here on its end is dropped.
    LogFull = 6,
    /// The out-of-memory killer has killed a process of the job, or all of them.
    OutOfMemory = 7,
    /// The job is above its memory.high.
    MemoryHigh = 8,
    /// The job was refused a process or a thread by its pids.max.
    PidsMax = 9,
    /// The job's processes are frozen now.
    Frozen = 10,
    /// The job's processes go on again.
    Thawed = 11,
    /// The job's processes wait for a resource as much as was asked about.
    Pressure = 12,
    /// The main process has ended. The last of its output may still be on its way into the log.
    Exited = 13,
    /// Processes of the job had outlived its main process; now the last of them is gone.
    TreeEmpty = 14,
    /// All over: every byte is in the log, the process tree is gone, the cgroup is removed.
    Finished = 15,
    /// The worker was shut down, and the job let go of: it runs on, and nothing more will be heard of it (IRON_EXEC_SHUTDOWN_MODE_LEAVE).
    Left = 16,
}

/// Something that happened to a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Event {
    /// The job.
    pub job: JobId,
    /// What happened: an iron_exec_event_kind.
    pub kind: i32,
    /// EXITED, FINISHED: the exit code, 0 to 255; -1 after a signal, or if it is not to be known. Else 0.
    pub exit_code: i32,
    /// EXITED, FINISHED, START_FAILED: the signal that killed the main process, or the child before its program was executed. Else, or if none did, 0.
    pub signal: i32,
    /// START_FAILED, LOG_FAULT: the error number. Else, or if the failure was not the kernel's, 0.
    pub error_number: i32,
    /// LOG_RESUMED: bytes of the output that are missing in the log by now, in all. Else 0.
    pub dropped_bytes: u64,
}

/// The bytes of an iron_exec_event in the library: to be compared with sizeof(iron_exec_event) where the library is loaded dynamically.
#[unsafe(no_mangle)]
pub extern "C" fn iron_exec_event_size() -> usize {
    size_of::<Event>()
}

/// The exit code and the signal of an end, each as the header has them.
pub(crate) fn exit_numbers(exit: Exit) -> (i32, i32) {
    match exit {
        Exit::Code(code) => (code, 0),
        Exit::Signal { signal, .. } => (-1, signal.number()),
        Exit::Unknown => (-1, 0),
    }
}

impl From<&iron_exec::Event> for Event {
    fn from(event: &iron_exec::Event) -> Self {
        use iron_exec::Event as Told;
        let mut place = Self { job: event.job().into(), ..Self::default() };
        let kind = match event {
            Told::Started { .. } => EventKind::Started,
            Told::StartFailed { failure, .. } => {
                place.error_number = failure.errno();
                place.signal = failure.signal().map_or(0, iron_exec::Signal::number);
                EventKind::StartFailed
            }
            Told::LogReady { .. } => EventKind::LogReady,
            Told::LogFault { errno, .. } => {
                place.error_number = *errno;
                EventKind::LogFault
            }
            Told::LogResumed { dropped_bytes, .. } => {
                place.dropped_bytes = *dropped_bytes;
                EventKind::LogResumed
            }
            Told::LogFull { .. } => EventKind::LogFull,
            Told::OutOfMemory { .. } => EventKind::OutOfMemory,
            Told::MemoryHigh { .. } => EventKind::MemoryHigh,
            Told::PidsMax { .. } => EventKind::PidsMax,
            Told::Frozen { frozen: true, .. } => EventKind::Frozen,
            Told::Frozen { frozen: false, .. } => EventKind::Thawed,
            Told::Pressure { .. } => EventKind::Pressure,
            Told::Exited { exit, .. } => {
                (place.exit_code, place.signal) = exit_numbers(*exit);
                EventKind::Exited
            }
            Told::TreeEmpty { .. } => EventKind::TreeEmpty,
            Told::Left { .. } => EventKind::Left,
            Told::Finished { exit, .. } => {
                (place.exit_code, place.signal) = exit_numbers(*exit);
                EventKind::Finished
            }
            _ => EventKind::Other,
        };
        place.kind = kind as i32;
        place
    }
}
