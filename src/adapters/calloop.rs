//! A worker in a [calloop](https://docs.rs/calloop) (feature `calloop`).
//!
//! ```
//! use calloop::EventLoop;
//! use iron_exec::calloop::WorkerSource;
//! use iron_exec::{Capture, Command, Event, Worker};
//!
//! let mut event_loop: EventLoop<Vec<i32>> = EventLoop::try_new()?;
//! let mut worker = Worker::new()?;
//! worker.start(Command::shell("exit 3").capture(Capture::Discard))?;
//!
//! let source = WorkerSource::new(worker)?;
//! event_loop.handle().insert_source(source, |event, worker, codes| {
//!     if let Event::Finished { job, .. } = event {
//!         codes.push(worker.query(job).expect("a job that was just told of").exit_code);
//!     }
//! })?;
//!
//! let mut codes = Vec::new();
//! while codes.is_empty() {
//!     event_loop.dispatch(None, &mut codes)?;
//! }
//! assert_eq!(codes, [3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use calloop::generic::Generic;
use calloop::ping::{Ping, PingSource, make_ping};
use calloop::{EventSource, Interest, Mode, Poll, PostAction, Readiness, Token, TokenFactory};

use crate::model::error::TurnError;
use crate::model::event::{Event, Events};
use crate::worker::Worker;

/// A [`Worker`] as an event source: the callback gets each [`Event`], and the worker, to answer it with.
///
/// Each time that the worker has something to do it is turned once, without waiting; what a turn leaves comes with the next round of the loop, after everybody
/// else's events. So a busy worker starves nobody.
///
/// Jobs can be started before the source is inserted, from its callback, or from anywhere else through a [`Dispatcher`](calloop::Dispatcher):
///
/// ```
/// use std::time::Duration;
/// use calloop::timer::{TimeoutAction, Timer};
/// use calloop::{Dispatcher, EventLoop};
/// use iron_exec::calloop::WorkerSource;
/// use iron_exec::{Capture, Command, Event, Worker};
///
/// let mut event_loop: EventLoop<bool> = EventLoop::try_new()?;
/// let dispatcher = Dispatcher::new(WorkerSource::new(Worker::new()?)?, |event: Event, _: &mut Worker, is_over: &mut bool| {
///     *is_over |= matches!(event, Event::Finished { .. });
/// });
/// event_loop.handle().register_dispatcher(dispatcher.clone())?;
///
/// let timer = Timer::from_duration(Duration::from_millis(10));
/// event_loop.handle().insert_source(timer, move |_, _, _| {
///     let started = dispatcher.as_source_mut().worker_mut().start(Command::new("true").capture(Capture::Discard));
///     started.expect("true starts");
///     TimeoutAction::Drop
/// })?;
///
/// let mut is_over = false;
/// while !is_over {
///     event_loop.dispatch(None, &mut is_over)?;
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A start waits for its program, up to [`Builder::confirm_timeout`](crate::Builder::confirm_timeout), and the loop with it, unless it is told not to
/// ([`Command::confirm`](crate::Command::confirm)), or comes from a [`Handle`](crate::Handle).
///
/// As long as it is disabled, nothing of the worker's happens: outputs are not read, times pass unnoticed. Nothing is lost by that. Removed from its loop and
/// dropped, it kills its jobs, as a worker does that is dropped.
///
/// If the callback panics, and the host goes on, the events that were not handed out yet come with the next round of the loop. If a turn fails, so does
/// [`EventLoop::dispatch`](calloop::EventLoop::dispatch), with a [`TurnError`] inside, once the events that it had are handed out.
///
/// The source waits for the worker that it was made with: do not swap another into its place.
#[derive(Debug)]
pub struct WorkerSource {
    worker: Worker,
    /// A duplicate of the worker's descriptor, for calloop to hold.
    readiness: Generic<OwnedFd, TurnError>,
    events: Events,
    /// What is to be handed out; empty between rounds, unless the callback has panicked.
    pending: VecDeque<Event>,
    /// Makes a round come for what a panic has left: the worker may have nothing more to say.
    ping: Ping,
    pinged: PingSource,
}

impl WorkerSource {
    /// Makes a worker an event source that hands out at most 1024 events a round.
    ///
    /// # Errors
    /// If its two descriptors cannot be had. The worker is dropped then, and its jobs with it.
    pub fn new(worker: Worker) -> io::Result<Self> {
        Self::with_events(worker, Events::new())
    }

    /// As [`new`](Self::new), with a buffer of events that has the [capacity](Events::with_capacity) for one round.
    ///
    /// # Errors
    /// As `new`.
    pub fn with_events(worker: Worker, events: Events) -> io::Result<Self> {
        let fd = worker.as_fd().try_clone_to_owned()?;
        let (ping, pinged) = make_ping()?;
        let readiness = Generic::new_with_error(fd, Interest::READ, Mode::Level);
        Ok(Self { worker, readiness, events, pending: VecDeque::new(), ping, pinged })
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The worker, to start and stop jobs. The loop hears of what that brings; the source need not be updated.
    pub fn worker_mut(&mut self) -> &mut Worker {
        &mut self.worker
    }

    /// The worker, with its jobs. What a panic of the callback has left of a round is dropped.
    pub fn into_worker(self) -> Worker {
        self.worker
    }
}

impl EventSource for WorkerSource {
    type Event = Event;
    type Metadata = Worker;
    type Ret = ();
    type Error = TurnError;

    fn process_events<F>(&mut self, readiness: Readiness, token: Token, mut callback: F) -> Result<PostAction, TurnError>
    where
        F: FnMut(Event, &mut Worker),
    {
        let mut turned = Ok(());
        let (worker, events) = (&mut self.worker, &mut self.events);
        self.readiness.process_events(readiness, token, |_, _| {
            turned = worker.turn(events, Some(Duration::ZERO));
            Ok(PostAction::Continue)
        })?;
        // That there is a round is all that a ping is for.
        let heard = self.pinged.process_events(readiness, token, |(), ()| {});
        heard.map_err(|error| TurnError::new("reading the ping")(io::Error::other(error)))?;

        self.pending.extend(self.events.drain());
        let rest = Rest { pending: &mut self.pending, ping: &self.ping };
        while let Some(event) = rest.pending.pop_front() {
            callback(event, &mut self.worker);
        }
        drop(rest);
        turned.map(|()| PostAction::Continue)
    }

    fn register(&mut self, poll: &mut Poll, token_factory: &mut TokenFactory) -> calloop::Result<()> {
        self.readiness.register(poll, token_factory)?;
        let registered = self.pinged.register(poll, token_factory);
        if registered.is_err() {
            // All or nothing: it may be inserted again.
            let _ = self.readiness.unregister(poll);
        }
        registered
    }

    fn reregister(&mut self, poll: &mut Poll, token_factory: &mut TokenFactory) -> calloop::Result<()> {
        self.readiness.reregister(poll, token_factory)?;
        self.pinged.reregister(poll, token_factory)
    }

    fn unregister(&mut self, poll: &mut Poll) -> calloop::Result<()> {
        let unregistered = self.readiness.unregister(poll);
        self.pinged.unregister(poll).and(unregistered)
    }
}

/// The events of a round. If there are any left at its end, there is to be another one.
struct Rest<'a> {
    pending: &'a mut VecDeque<Event>,
    ping: &'a Ping,
}

impl Drop for Rest<'_> {
    fn drop(&mut self) {
        if !self.pending.is_empty() {
            self.ping.ping();
        }
    }
}
