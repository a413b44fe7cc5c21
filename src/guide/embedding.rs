//! Embedding: a worker in your program's own loop, whichever that is.
//!
//! A [`Worker`](crate::Worker) is one epoll instance and what hangs on it. It does nothing by itself: no thread, no signal handler, no callback from nowhere. Everything
//! happens inside [`turn`](crate::Worker::turn), and what is yours to do comes back from it, as events.
//!
//! ```text
//!                          your loop                                             other threads, other tasks
//!  ┌───────────────────────────────────────────────────────────┐        ┌──────────────────────────────────────────┐
//!  │ wait until the worker's descriptor is readable            │◄─wake──┤ Handle::start, stop, query, wait, stream │
//!  │ worker.turn(&mut events, Some(ZERO))                      │        │   └─► Answer: .await or .wait()          │
//!  │   1 wait(0) ─► dispatch: pidfds, pipes, inotify, timer    │        └──────────────────────────────────────────┘
//!  │   2 requests of handles, for up to 2 ms                   │        ┌──────────────────────────────────────────┐
//!  │   3 a step of a shutdown, a step of retention             │─answer─►                                          │
//!  │   4 answers, then task wakers                             │─waker──► LogStream::poll_fill_buf, AsyncBufRead   │
//!  │ for event in events.drain() { … }  ◄ your code            │        └──────────────────────────────────────────┘
//!  └───────────────────────────────────────────────────────────┘
//! ```
//!
//! # Which way to choose
//!
//! | you have | take | example |
//! |---|---|---|
//! | nothing yet, one job at a time | [`run_job`](crate::Worker::run_job), [`wait`](crate::Worker::wait), [`follow`](crate::Worker::follow) | the crate's front page |
//! | nothing yet, many jobs | `while … { worker.turn(&mut events, None)? }` | the crate's front page |
//! | a loop that can wait for a descriptor: epoll, poll, mio, libuv, GLib, asyncio | the worker's [`AsFd`](std::os::fd::AsFd) | `in_epoll`, `in_mio` |
//! | calloop | `iron_exec::calloop::WorkerSource` (feature `calloop`) | `in_calloop` |
//! | tokio | `iron_exec::tokio::AsyncWorker` in one task, a [`Handle`](crate::Handle) in each of the others (feature `tokio`) | `in_tokio` |
//! | another runtime, or several | [`Worker::run`](crate::Worker::run) in a thread of its own, a [`Handle`](crate::Handle) in each task: its answers are plain futures | `in_futures` |
//! | threads | the same, and [`Answer::wait`](crate::Answer::wait) | `in_threads` |
//! | C, or whatever can call C | the C interface, `sys/capi` | `two_jobs.c`, `asyncio_jobs.py` |
//!
//! The examples stand in `examples/` (`cargo run --example in_epoll`), those for C and Python in `sys/capi/examples/`.
//!
//! # By descriptor: the promise
//!
//! **The descriptor is readable whenever a turn has something to do, and quiet when it has not.** Deadlines (a timerfd inside), left-over work and what handles ask for
//! are included, and every public method that adds work sees to it before it returns. So:
//!
//! - Level-triggered: turn once each time that it is readable, without waiting: `turn(&mut events, Some(Duration::ZERO))`. No timeout of yours is needed.
//! - Edge-triggered: the same. One turn for each edge is enough; if your loop keeps a note of readiness, as tokio's `AsyncFd` does, clear it *before* the turn.
//! - Never read from it, and never add anything to it.
//! - A wait of yours may come back with EINTR although nobody has a signal handler: while a start has all signals blocked in its thread, a SIGCHLD may be put to another one,
//!   which ignores it and is interrupted all the same (as with posix_spawn(3)). Wait again.
//!
//! What it costs while nothing happens: nothing. A thousand idle jobs make the descriptor readable as often as none.
//!
//! ```
//! use std::os::fd::AsFd;
//! use std::time::Duration;
//! use iron_exec::{Capture, Command, Events, Worker};
//! use rustix::event::{PollFd, PollFlags, poll};
//!
//! let mut worker = Worker::new()?;
//! let job = worker.start(Command::shell("exit 7").capture(Capture::Discard))?;
//! let mut events = Events::new();
//! while !worker.query(job)?.is_finished() {
//!     poll(&mut [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN)], None)?; // and whatever else you wait for
//!     worker.turn(&mut events, Some(Duration::ZERO))?;
//! }
//! assert_eq!(worker.query(job)?.exit_code, 7);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Who calls what, and in which thread
//!
//! - A [`Worker`](crate::Worker) is `Send` and not `Sync`: one thread at a time has it, and it may go from one to another, with its jobs.
//! - A [`Handle`](crate::Handle) is for everybody else. What it asks for is done at the end of a turn, in the order in which it was asked; so somebody has to turn the worker.
//!   An [`Answer`](crate::Answer) that is dropped does no harm, but for that to a start, or a [`run_job`](crate::Handle::run_job): the job is taken back, since nobody could ever stop it.
//! - Waiting for an answer on the thread that turns the worker would wait for ever. It is an error instead ([`HandleError::OwnThread`](crate::HandleError::OwnThread)): at once
//!   inside of [`run`](crate::Worker::run) and of a turn, after five seconds outside of them (the worker may be on its way to another thread). *Awaiting* it there is fine.
//! - A [`LogStream`](crate::LogStream) reads its log itself, wherever it is; the loop only tells it that there is more. A reader that is slow slows down nobody.
//! - Your code runs in three places: what you do between turns, what you give to [`Handle::call`](crate::Handle::call), and wakers. None of them runs in the midst of the
//!   dispatch, and all may use the worker, or ask its handles, as they like; a call holds up the loop and who else has asked for something. A panic in a call is told to its asker, and one in a waker to nobody; the loop goes on. One
//!   of yours between turns unwinds through the worker: that kills its jobs and leaves nothing behind, or, if you catch it further in, just goes on: the events that were not told yet come with the next turn.
//!
//! # Fairness
//!
//! A turn is short, whatever the jobs do; what it leaves undone makes the descriptor readable again. The knobs:
//!
//! | what | knob | default |
//! |---|---|---|
//! | output read from one job in a turn | [`read_budget_bytes`](crate::Builder::read_budget_bytes) | 256 KiB |
//! | descriptors looked at in one wait (up to four in a turn) | [`poll_events_max`](crate::Builder::poll_events_max) | 1024 |
//! | events told by a turn | [`Events::with_capacity`](crate::Events::with_capacity) | 1024 |
//! | requests of handles in a turn | | as many as begin within 2 ms |
//! | files of a log directory that retention looks at, or deletes, in a turn | | some 50 names, 16 deletions |
//! | how long the output of a job that writes in small pieces gathers | [`coalesce_time`](crate::Builder::coalesce_time) | 1 ms |
//! | how long a start on the loop's own thread waits for its program | [`confirm_timeout`](crate::Builder::confirm_timeout), [`confirm`](crate::Builder::confirm) | 100 ms |
//!
//! A loop with other things to do makes the first three smaller, and turns more often.
//!
//! # What may block, and how to live with it
//!
//! Linux has no way to do everything without waiting. These calls may take their time, with the thread that turns:
//!
//! - **Confirmed starts** wait for the program to be executed, up to `confirm_timeout`: long enough to notice where the program is on a network file system that hangs. Take
//!   [`confirm(false)`](crate::Builder::confirm), and a failure comes as [`Event::StartFailed`](crate::Event::StartFailed); or start through a [`Handle`](crate::Handle), or tokio's
//!   `AsyncWorker`, which never waits on the loop and tells you of the failure all the same. The child itself may hang in its exec for hours: it holds one of
//!   [`spawn_slots_max`](crate::Builder::spawn_slots_max) slots, and nobody else ([`guide::spawning`](crate::guide::spawning)).
//! - **Writes into logs** go to the page cache. Where the kernel holds a writer back because too much is dirty (`vm.dirty_ratio`), or the log directory is on a file system
//!   that hangs, a write waits, in the kernel, and nothing can be done about that from here. Logs belong on a local disk, or a tmpfs with bounds
//!   ([`LogPolicy`](crate::LogPolicy), [`Retention`](crate::Retention)). For jobs whose logs may be slow there is [`Capture::Direct`](crate::Capture::Direct): then it is the job that waits.
//! - **Making and removing cgroups** takes a lock of the whole machine, and waits for others who do the same.
//! - **Looking up a place in a log** ([`stream_with`](crate::Worker::stream_with): the last lines, a time) reads the log's files. Ask for the stream where it is read:
//!   [`LogReader`](crate::LogReader) does the same in any thread, from the file's path.
//! - **Deleting** a log of many gigabytes ([`delete_log`](crate::Worker::delete_log), retention) waits for the file system.
//! - **[`kill_leftovers`](crate::Worker::kill_leftovers)**, [`wait`](crate::Worker::wait), [`run_job`](crate::Worker::run_job), [`follow`](crate::Worker::follow) and
//!   [`shutdown`](crate::Worker::shutdown) wait because that is what they are for; the first is for the start of a host.
//! - **Dropping** a worker with jobs waits for their end, for milliseconds as a rule and never longer than [`drain_total_max`](crate::Builder::drain_total_max) and a second.
//!
//! If none of that may ever hold up your loop, give the worker a thread of its own, and use handles: [`Worker::run`](crate::Worker::run).
//!
//! # The end
//!
//! [`shutdown`](crate::Worker::shutdown), or [`begin_shutdown`](crate::Worker::begin_shutdown) in a loop that must not wait, ends all jobs as a
//! [`ShutdownMode`](crate::ShutdownMode) says: at once, gently, or not at all. It comes back when the last byte is in its log. From a handle, it ends `run` as well. After that the worker
//! starts nothing more, and can still be asked. A worker that is dropped without it kills its jobs.
//!
//! # fork
//!
//! A host that forks, and goes on in the child without an exec, has a copy of every descriptor of the worker there, and must not use it: no more than any other epoll
//! instance. The jobs stay the parent's.
