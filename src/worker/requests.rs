//! What the handles of a worker ask for, and what they wait for.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use super::Worker;
use crate::handle::Handle;
use crate::handle::answer::{Claim, Reply, give};
use crate::handle::shared::{Inside, Request, Shared};
use crate::handle::shield::shielded;
use crate::logic::token::Key;
use crate::model::command::Command;
use crate::model::error::{HandleError, JobError, StartError, TurnError};
use crate::model::event::{Event, Events};
use crate::model::id::{JobId, OwnerId};
use crate::model::shutdown::ShutdownMode;
use crate::model::status::Status;

/// How long requests are done in one turn before the caller gets a word in.
const SERVE_TIME_MAX: Duration = Duration::from_millis(2);

/// The worker's end of what its handles ask for.
#[derive(Debug)]
pub(super) struct Inbox {
    shared: Arc<Shared>,
    /// `None` once the worker takes no more.
    requests: Option<mpsc::Receiver<Request>>,
    /// Starts that are not confirmed yet.
    starts: HashMap<JobId, Start>,
    /// When they are answered all the same, soonest first.
    starts_due: BTreeSet<(Instant, JobId)>,
    /// Those who wait for the end of a job.
    waits: HashMap<JobId, Vec<Reply<Status, JobError>>>,
    shutdowns: Vec<Reply<usize, HandleError>>,
}

/// Events are being told.
struct Telling<'a>(&'a mut Worker);

impl Drop for Telling<'_> {
    fn drop(&mut self) {
        // Left by a panic, if there are any. If this fails, so does the next turn, which says so.
        let _ = self.0.announce_events();
    }
}

/// A start that is not confirmed yet.
#[derive(Debug)]
struct Start {
    reply: Reply<Claim, StartError>,
    handle: Handle,
    due: Instant,
}

impl Inbox {
    fn take_start(&mut self, job: JobId) -> Option<Start> {
        let start = self.starts.remove(&job)?;
        self.starts_due.remove(&(start.due, job));
        Some(start)
    }
}

impl Start {
    /// The job is started: whoever has asked for it gets it.
    fn succeed(self, job: JobId) {
        give(self.reply, Ok(Claim::new(job, self.handle)));
    }
}

impl Worker {
    /// A handle for other threads, or tasks, to work with this worker's jobs. They are served by whatever turns the loop.
    pub fn handle(&mut self) -> Handle {
        Handle::new(Arc::clone(self.share()))
    }

    /// What is shared with the handles, from now on if not before.
    fn share(&mut self) -> &Arc<Shared> {
        let inbox = self.inbox.get_or_insert_with(|| {
            let (sender, requests) = mpsc::channel();
            Box::new(Inbox {
                shared: Arc::new(Shared::new(sender, self.reactor.waker())),
                requests: Some(requests),
                starts: HashMap::new(),
                starts_due: BTreeSet::new(),
                waits: HashMap::new(),
                shutdowns: Vec::new(),
            })
        });
        &inbox.shared
    }

    /// Turns the loop, for the sake of its [handles](Self::handle), until one of them has [shut](Handle::shutdown) it down, or all of them are gone and all jobs have
    /// finished: then nothing more can happen. (An [`Answer`](crate::Answer) and a [`BlockingLogStream`](crate::BlockingLogStream) have a handle each.) After that nobody is
    /// answered until the worker is turned again, or dropped. The events are dropped; see [`run_with`](Self::run_with).
    ///
    /// # Errors
    /// As [`turn`](Self::turn); it can be called again.
    pub fn run(&mut self) -> Result<(), TurnError> {
        self.run_with(|_, _| {})
    }

    /// As [`run`](Self::run), with something to be done at each event, between two turns. If that panics, the events that were not told yet are told by the next
    /// [`turn`](Self::turn), or run.
    ///
    /// # Errors
    /// As [`turn`](Self::turn), once the events of that turn are handed out; it can be called again.
    pub fn run_with(&mut self, mut on_event: impl FnMut(&mut Self, Event)) -> Result<(), TurnError> {
        let _inside = self.share().turn();
        let mut events = Events::new();
        loop {
            let timeout = if self.is_run_over() { Some(Duration::ZERO) } else { None };
            let turned = self.turn(&mut events, timeout);
            self.tell(&mut events, &mut on_event);
            turned?;
            if self.is_run_done() {
                // What was done at the events may have brought answers.
                self.answer_handles();
                return Ok(());
            }
        }
    }

    /// Does what is to be done at each event. If that panics the rest is kept.
    pub(crate) fn tell(&mut self, events: &mut Events, on_event: &mut impl FnMut(&mut Self, Event)) {
        self.untold.extend(events.drain());
        let telling = Telling(self);
        while let Some(event) = telling.0.untold.pop_front() {
            on_event(telling.0, event);
        }
    }

    /// Whether [`run`](Self::run) has nothing more to do, and nothing more to tell.
    pub(crate) fn is_run_done(&self) -> bool {
        self.is_run_over() && !self.reactor.has_reports()
    }

    fn is_run_over(&self) -> bool {
        let is_asked = self.inbox.as_ref().is_some_and(|inbox| inbox.shared.is_open());
        self.is_shut_down() || (!is_asked && self.unfinished_jobs() == 0)
    }

    /// Notes, for the handles, that this thread has the worker and turns it.
    pub(super) fn note_turn(&self) -> Option<Inside> {
        self.inbox.as_ref().map(|inbox| inbox.shared.turn())
    }

    /// Does what the handles have asked for.
    pub(super) fn serve_handles(&mut self) {
        // A turn inside of a request hears of others, too, or nobody would be woken for the next: they are done after this one.
        let Some(shared) = self.inbox.as_ref().map(|inbox| &inbox.shared).filter(|shared| shared.hear()) else { return };
        let shared = Arc::clone(shared);
        let Some(_serving) = shared.serve() else { return };
        let until = Instant::now() + SERVE_TIME_MAX;
        while let Some(request) = self.next_request() {
            request(self);
            if Instant::now() >= until {
                // There may be more of them.
                return shared.announce();
            }
        }
    }

    fn next_request(&self) -> Option<Request> {
        self.inbox.as_ref()?.requests.as_ref()?.try_recv().ok()
    }

    /// Answers those who have waited for what has happened now.
    pub(crate) fn answer_handles(&mut self) {
        if self.inbox.is_none() {
            return;
        }
        let mut awaited = std::mem::take(&mut self.reactor.queues.awaited);
        for key in awaited.drain(..) {
            self.answer_awaited(key);
        }
        if self.reactor.queues.awaited.is_empty() {
            self.reactor.queues.awaited = awaited;
        }
        self.answer_overdue_starts();
        if self.is_shut_down() {
            let unfinished = self.unfinished_jobs();
            let shutdowns = self.inbox.as_mut().map(|inbox| std::mem::take(&mut inbox.shutdowns));
            for reply in shutdowns.into_iter().flatten() {
                give(reply, Ok(unfinished));
            }
        }
    }

    /// There is news of a job: its start is decided, or it is over.
    fn answer_awaited(&mut self, key: Key) {
        let (Some(job), Some(inbox)) = (self.table.get_mut(key), self.inbox.as_mut()) else { return };
        let (id, is_finished) = (job.id, job.is_finished());
        if job.is_starting() {
            return;
        }
        let start = inbox.take_start(id);
        let failure = job.failure().filter(|_| is_finished).cloned();
        if is_finished || !inbox.waits.contains_key(&id) {
            job.set_awaited(false);
        }
        let waits = if is_finished { inbox.waits.remove(&id) } else { None };
        if let Some(replies) = waits {
            let status = self.table.get(key).map(|job| self.status_of(job));
            for reply in replies {
                give(reply, status.clone().ok_or(JobError::NotFound { job: id }));
            }
        }
        match (start, failure) {
            (Some(start), Some(failure)) => {
                // Nothing is left of a job that was not started.
                self.discard(id);
                give(start.reply, Err(StartError::Failed(failure)));
            }
            (Some(start), None) => {
                // The answer is what tells of it.
                if let Some(job) = self.table.get_mut(key) {
                    job.drop_started();
                }
                start.succeed(id);
            }
            (None, _) => {}
        }
    }

    /// Answers the starts that were to be confirmed and were not, in time: they go on.
    fn answer_overdue_starts(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        if inbox.starts_due.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some((_, job)) = inbox.starts_due.first().copied().filter(|(due, _)| *due <= now) {
            if let Some(start) = inbox.take_start(job) {
                start.succeed(job);
            }
        }
    }

    /// When the next of the starts is to be answered at the latest.
    pub(super) fn answer_due(&self) -> Option<Instant> {
        self.inbox.as_ref()?.starts_due.first().map(|(due, _)| *due)
    }

    /// A job is taken out of sight: who waits for its end hears that there is no such job. That it was started is true all the same.
    pub(super) fn answer_discarded(&mut self, job: JobId) {
        let Some(inbox) = &mut self.inbox else { return };
        let (start, waits) = (inbox.take_start(job), inbox.waits.remove(&job));
        if let Some(start) = start {
            start.succeed(job);
        }
        for reply in waits.into_iter().flatten() {
            give(reply, Err(JobError::NotFound { job }));
        }
    }

    /// Takes no more requests; those that were not done are answered by their being dropped.
    pub(super) fn close_inbox(&mut self) {
        let Some(inbox) = &self.inbox else { return };
        inbox.shared.close();
        while let Some(request) = self.next_request() {
            shielded(|| drop(request));
        }
        let requests = self.inbox.as_mut().and_then(|inbox| inbox.requests.take());
        shielded(|| drop(requests));
    }

    /// The worker is gone, for everybody who still waits.
    pub(super) fn answer_gone(&mut self) {
        let Some(inbox) = self.inbox.take() else { return };
        let Inbox { starts, waits, shutdowns, .. } = *inbox;
        for start in starts.into_values() {
            give(start.reply, Err(HandleError::Gone.into()));
        }
        for reply in waits.into_values().flatten() {
            give(reply, Err(HandleError::Gone.into()));
        }
        for reply in shutdowns {
            give(reply, Err(HandleError::Gone));
        }
    }

    /// Starts a job for a handle, without waiting for it. `end`: who waits for its end.
    pub(crate) fn start_asked(
        &mut self,
        command: &Command,
        owner: OwnerId,
        handle: Handle,
        reply: Reply<Claim, StartError>,
        end: Option<Reply<Status, JobError>>,
    ) {
        if reply.is_closed() {
            return;
        }
        let job = match self.start_for(command, owner, false) {
            Ok(job) => job,
            Err(error) => return give(reply, Err(error)),
        };
        let confirms = self.confirms(command);
        let due = Instant::now() + self.reactor.settings.confirm_timeout;
        let (Some(inbox), Some(found)) = (self.inbox.as_mut(), self.table.by_id_mut(job)) else { return };
        let is_awaited = confirms && found.is_starting();
        found.set_awaited(is_awaited || end.is_some());
        inbox.waits.extend(end.map(|end| (job, vec![end])));
        if is_awaited {
            inbox.starts_due.insert((due, job));
            inbox.starts.insert(job, Start { reply, handle, due });
        } else {
            give(reply, Ok(Claim::new(job, handle)));
        }
    }

    /// Notes that a handle waits for a job's end; only for a job of `owner`, if that is given.
    pub(crate) fn wait_asked(&mut self, job: JobId, owner: Option<OwnerId>, reply: Reply<Status, JobError>) {
        let found = self.table.by_id_mut(job).filter(|found| owner.is_none_or(|owner| found.owner == owner));
        let (Some(found), Some(inbox)) = (found, self.inbox.as_mut()) else { return give(reply, Err(JobError::NotFound { job })) };
        if found.is_finished() {
            return give(reply, self.query(job));
        }
        drop(found.take_stdin());
        found.set_awaited(true);
        let replies = inbox.waits.entry(job).or_default();
        if replies.len().is_power_of_two() {
            // Those who have stopped waiting make room, now and then.
            replies.retain(|reply| !reply.is_closed());
        }
        replies.push(reply);
    }

    /// Begins a shutdown for a handle.
    pub(crate) fn shutdown_asked(&mut self, mode: ShutdownMode, reply: Reply<usize, HandleError>) {
        self.begin_shutdown(mode);
        if let Some(inbox) = &mut self.inbox {
            inbox.shutdowns.push(reply);
        }
    }

    /// Takes back the starts whose answer nobody waits for any more.
    pub(crate) fn take_back_unwanted(&mut self) {
        let Some(inbox) = &mut self.inbox else { return };
        let unwanted: Vec<JobId> = inbox.starts.iter().filter(|(_, start)| start.reply.is_closed()).map(|(job, _)| *job).collect();
        for job in unwanted {
            self.take_back(job);
        }
    }

    /// Nobody has got a job that was started: it is killed and forgotten.
    pub(crate) fn take_back(&mut self, job: JobId) {
        // One that cannot be killed is still seen to by the loop.
        let _ = self.stop(job);
        self.discard(job);
    }
}
