//! Runs other programs, on Linux, from one thread.
//!
//! A [`Worker`] is an event loop over epoll and pidfd. It starts processes straight into their cgroup, watches them by pidfd, writes their output
//! line by line to log files, streams those logs live, and stops whole process trees. There are no helper threads, no SIGCHLD handler and no
//! global state behind it: a host that runs ten thousand jobs pays for ten thousand processes and nothing else.
//!
//! ```
//! use iron_exec::{Command, Event, Events, Worker};
//!
//! let mut worker = Worker::new()?;
//! let job = worker.start(Command::new("sh").args(["-c", "echo hello; exit 3"]))?;
//!
//! let mut events = Events::new();
//! while !worker.query(job)?.is_finished() {
//!     worker.turn(&mut events, None)?; // one turn of the loop; never spawns a thread
//!     for event in events.drain() {
//!         if let Event::Finished { job, exit } = event {
//!             println!("{job} ended: {exit:?}");
//!         }
//!     }
//! }
//! assert_eq!(worker.query(job)?.exit_code, 3);
//! # std::fs::remove_file(worker.query(job)?.log.unwrap())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where to go on
//!
//! - [`Command`]: everything about the process to be. [`Builder`]: everything about the worker.
//! - [`Worker::run_job`], [`Worker::wait`], [`Worker::follow`] for simple programs; [`Worker::turn`] and [`Events`] for hosts of many jobs.
//! - [`LogStream`]: a job's exact output while it runs; [`LogReader`]: a log file from another process, or long after; [`ReadOptions`]: from where.
//! - [`Worker`] is [`AsFd`](std::os::fd::AsFd): put it into the loop that you have. [`guide::embedding`]: which way, for epoll, mio, calloop, tokio, threads, C.
//! - [`Handle`]: a worker's jobs from other threads and tasks; [`Worker::run`]: the loop for that. [`Worker::shutdown`]: how it ends.
//! - [`Retention`]: how long logs are kept, and where they are stored before they go.
//! - [`framing`]: the line splitter and the log format by themselves.
//! - [`Limits`]: what a job may use; [`Worker::usage`]: what it has used; [`guide::limits`]: how to have them, and what they do.
//! - [`LogPolicy`]: rotation, caps, and what happens where a log cannot be written; [`Retention`]: how long logs are kept; [`guide::logs`]: all about them.
//! - [`guide::spawning`]: how a job is started, and why that is safe.
//!
//! # Features
//!
//! None of them is on by default, and none adds anything to what others use.
//!
//! | feature | what it brings |
//! |---|---|
//! | `calloop` | `calloop::WorkerSource`: a worker as an event source |
//! | `tokio` | `tokio::AsyncWorker`: a worker in a runtime; [`LogStream`] as tokio's `AsyncBufRead` |
//! | `futures-io` | [`LogStream`] as the `AsyncBufRead` of the futures crates |
//! | `cli` | the command-line tool |
//! | `s3` | its command `archive` |
//!
//! # What it does not do
//!
//! No sandbox (namespaces, images, seccomp profiles), no daemon, no restarts, no scheduling. The user id is the boundary: a job that runs with the
//! host's uid can do what the host can. Without a cgroup, descendants that call setsid(2) escape a stop.
//!
//! # Map of the code, by floor
//!
//! A module uses only what lies below it.
//!
//! | floor | module | what lives there |
//! |---|---|---|
//! | 6 | `worker`, `builder`, `handle`, `adapters` | the public face; the worker from other threads, and in other loops |
//! | 5 | `reactor` | wait, dispatch, deadlines |
//! | 4 | `job`, `outputs`, `log`, `control`, `table`, `lent`, `log_reader`, `retention` | one job put together; its outputs; its log; its limits and what it used; where jobs are kept; what they are lent; a log from outside; the logs that go |
//! | 3 | `kernel` | one kernel object per file: process, cgroup, log file, inotify … |
//! | 2 | `logic` | no clock, no descriptor: lifecycle, line splitter, record codec, deadlines |
//! | 1 | `model` | plain values: what is asked, what is answered, what went wrong |
//! | 0 | crate `iron-exec-sys` | raw kernel calls; all unsafe code |

#![cfg(target_os = "linux")]
#![forbid(unsafe_code)]

mod adapters;
mod builder;
mod control;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod guide;
mod handle;
mod job;
mod kernel;
mod lent;
mod log;
mod log_reader;
mod logic;
mod model;
mod outputs;
mod reactor;
mod retention;
mod table;
mod worker;

#[cfg(feature = "calloop")]
pub use adapters::calloop;
#[cfg(feature = "tokio")]
pub use adapters::tokio;
pub use builder::Builder;
pub use handle::Handle;
pub use handle::answer::Answer;
pub use handle::blocking::BlockingLogStream;
pub use handle::owned::OwnedHandle;
pub use kernel::spawner::leaked_spawn_slots;
pub use kernel::stream::LogStream;
pub use log_reader::LogReader;
pub use model::capabilities::{Capabilities, CgroupReport, LimitReport, Rung, RungReason, RungReport};
pub use model::command::{Command, TreePolicy};
pub use model::error::{BuildError, CommandError, HandleError, JobError, RunError, StartError, StartFailure, Step, StreamError, TurnError};
pub use model::event::{Event, Events};
pub use model::id::{JobId, OwnerId};
pub use model::leftover::Leftover;
pub use model::limits::{IoDevice, IoMax, Limits};
pub use model::log_policy::{LogPolicy, OnLogFault, OverRate, WhenFull};
pub use model::output::{Capture, LogFormat, OutputStream, Record, StreamSelect, Timestamp};
pub use model::pressure::{Pressure, PressureResource};
pub use model::reading::{GapKind, LogEnd, LogPosition, ReadOptions};
pub use model::resource::Resource;
pub use model::retention::{Archive, DeleteReason, LogState, PlannedLog, Retention, RetentionFailure, RetentionPlan, RetentionStats};
pub use model::settings::{CgroupBase, EnvBase};
pub use model::shutdown::ShutdownMode;
pub use model::signal::{Signal, UnknownSignal};
pub use model::status::{Exit, JobState, OutputCount, ResourceUsage, Status, StopReason};
pub use model::usage::{CgroupUsage, CpuUsage, IoUsage, MemoryEvents, MemoryUsage, PidsUsage, Throttled};
pub use worker::{Follow, OwnedJobs, ProcessRunner, Worker};

/// The framing of logs by itself: lines out of a stream of bytes, and the CRI format.
///
/// Neither knows of a file or a clock: bytes in, bytes out. Both take hostile input; both are fuzzed.
pub mod framing {
    pub use crate::logic::cri;
    pub use crate::logic::lines::{Ending, LineSplitter, Piece};
}

/// The README's example, compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
