//! What the loop tells its caller.

use crate::model::error::StartFailure;
use crate::model::id::JobId;
use crate::model::pressure::PressureResource;
use crate::model::status::Exit;

/// Something that happened to a job. What one turn tells of a job comes in the order of this list. `Started`, `StartFailed`, `Exited`, `TreeEmpty`, `Finished` and
/// `Left` come at most once, the others whenever there is something to tell.
///
/// Every job whose id `start` returned ends with exactly one `StartFailed`, `Finished` or `Left`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The program was executed. (A start that was confirmed has said so by returning, and this does not come. Rarely, if the child was killed in that very moment, `StartFailed` follows.)
    Started {
        /// The job.
        job: JobId,
    },
    /// The program was not executed; the job has failed.
    StartFailed {
        /// The job.
        job: JobId,
        /// Which step failed, and why.
        failure: StartFailure,
    },
    /// A reader of the job's log that had come to its end has more to read now, or the log has ended. Comes only to jobs with a
    /// [`LogStream`](crate::LogStream), and only after that has answered "not yet".
    LogReady {
        /// The job.
        job: JobId,
    },
    /// The job's log could not be written. What follows from that is the policy's ([`OnLogFault`](crate::OnLogFault)). Reported once per run of failures. (A host
    /// under RLIMIT_FSIZE must ignore SIGXFSZ, or the kernel ends it before it hears of EFBIG.)
    LogFault {
        /// The job.
        job: JobId,
        /// The error number, for instance ENOSPC.
        errno: i32,
    },
    /// The job's log can be written again.
    LogResumed {
        /// The job.
        job: JobId,
        /// Bytes of the job's output that are missing in the log by now, in all: see [`OutputCount::dropped_bytes`](crate::OutputCount::dropped_bytes).
        dropped_bytes: u64,
    },
    /// The job's log is full, and from here on its end is dropped: see [`WhenFull::DropTail`](crate::WhenFull::DropTail).
    LogFull {
        /// The job.
        job: JobId,
    },
    /// The out-of-memory killer has killed a process of the job, or all of them: it was at its `memory.max`, or a cgroup above was. Of the main process
    /// [`Status::oom_killed`](crate::Status::oom_killed) tells. Comes while the job runs if it has a limit on memory; else at its end.
    OutOfMemory {
        /// The job.
        job: JobId,
    },
    /// The job is above its `memory.high`, and being slowed down. At most once a second.
    MemoryHigh {
        /// The job.
        job: JobId,
    },
    /// The job was refused a process or a thread by its `pids.max`. At most once a second.
    PidsMax {
        /// The job.
        job: JobId,
    },
    /// The job's processes are frozen now, or going on again: see [`Worker::freeze`](crate::Worker::freeze).
    Frozen {
        /// The job.
        job: JobId,
        /// Whether they are frozen.
        frozen: bool,
    },
    /// The job's processes wait for a resource as much as was asked about: see [`Worker::watch_pressure`](crate::Worker::watch_pressure).
    Pressure {
        /// The job.
        job: JobId,
        /// What they wait for.
        resource: PressureResource,
    },
    /// The main process has ended. The last of its output may still be on its way into the log.
    Exited {
        /// The job.
        job: JobId,
        /// How it ended.
        exit: Exit,
    },
    /// Processes of the job had outlived its main process; now the last of them is gone. The last of the output may still be on its way into the log.
    TreeEmpty {
        /// The job.
        job: JobId,
    },
    /// All over: every byte is in the log, the process tree is gone, the cgroup is removed.
    Finished {
        /// The job.
        job: JobId,
        /// How the main process ended.
        exit: Exit,
    },
    /// The worker was shut down, and the job let go of: it runs on, and nothing more will be heard of it ([`ShutdownMode::Leave`](crate::ShutdownMode::Leave)).
    Left {
        /// The job.
        job: JobId,
    },
}

impl Event {
    /// The job it is about.
    pub fn job(&self) -> JobId {
        match self {
            Event::Started { job }
            | Event::StartFailed { job, .. }
            | Event::LogReady { job }
            | Event::LogFault { job, .. }
            | Event::LogResumed { job, .. }
            | Event::LogFull { job }
            | Event::OutOfMemory { job }
            | Event::MemoryHigh { job }
            | Event::PidsMax { job }
            | Event::Frozen { job, .. }
            | Event::Pressure { job, .. }
            | Event::TreeEmpty { job }
            | Event::Left { job }
            | Event::Exited { job, .. }
            | Event::Finished { job, .. } => *job,
        }
    }
}

/// A buffer that [`Worker::turn`](crate::Worker::turn) fills. Made once and used again: no allocation per turn.
#[derive(Debug)]
pub struct Events {
    list: Vec<Event>,
    capacity: usize,
}

/// Events delivered by one turn, unless [`Events::with_capacity`] says otherwise.
const EVENTS_CAPACITY: usize = 1024;

impl Events {
    /// A buffer of 1024 events.
    pub fn new() -> Self {
        Self::with_capacity(EVENTS_CAPACITY)
    }

    /// A buffer of `capacity` events, at least 1. What does not fit in one turn comes with the next; nothing is lost.
    pub fn with_capacity(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        // A huge capacity says "no limit"; that much memory is not taken for it.
        Self { list: Vec::with_capacity(capacity.min(EVENTS_CAPACITY)), capacity }
    }

    /// Takes the events out, oldest first.
    pub fn drain(&mut self) -> impl Iterator<Item = Event> {
        self.list.drain(..)
    }

    /// Looks at the events, oldest first.
    pub fn iter(&self) -> std::slice::Iter<'_, Event> {
        self.list.iter()
    }

    /// The number of events.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    pub(crate) fn is_full(&self) -> bool {
        self.list.len() >= self.capacity
    }

    pub(crate) fn push(&mut self, event: Event) {
        self.list.push(event);
    }
}

impl Default for Events {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> IntoIterator for &'a Events {
    type Item = &'a Event;
    type IntoIter = std::slice::Iter<'a, Event>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
