//! What the handles of a worker ask for, and what they wait for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, mpsc};
use std::time::Instant;

use super::Worker;
use crate::handle::Handle;
use crate::handle::answer::{Claim, Reply, give};
use crate::handle::shared::{Inside, Request, Shared};
use crate::job::Job;
use crate::logic::token::Key;
use crate::model::command::Command;
use crate::model::error::{HandleError, JobError, StartError, TurnError};
use crate::model::event::{Event, Events};
use crate::model::id::{JobId, OwnerId};
use crate::model::shutdown::ShutdownMode;
use crate::model::status::Status;

/// Requests that are done in one turn before the caller gets a word in.
const REQUESTS_PER_TURN: usize = 256;

/// The worker's end of what its handles ask for.
#[derive(Debug)]
pub(super) struct Inbox {
    shared: Arc<Shared>,
    /// `None` once the worker takes no more.
    requests: Option<mpsc::Receiver<Request>>,
    /// Starts that are not confirmed yet.
    starts: HashMap<JobId, (Reply<Claim, StartError>, Handle)>,
    /// When a start is answered although it is not confirmed, in the order of time.
    starts_due: VecDeque<(Instant, JobId)>,
    /// Those who wait for the end of a job.
    waits: HashMap<JobId, Vec<Reply<Status, JobError>>>,
    shutdowns: Vec<Reply<usize, HandleError>>,
    /// Whether a request is being done: it may turn the loop, but others wait for its end.
    is_serving: bool,
}

impl Worker {
    /// A handle for other threads, or tasks, to work with this worker's jobs. They are served by whatever turns the loop.
    pub fn handle(&mut self) -> Handle {
        let inbox = self.inbox.get_or_insert_with(|| {
            let (sender, requests) = mpsc::channel();
            Box::new(Inbox {
                shared: Arc::new(Shared::new(sender, self.reactor.waker())),
                requests: Some(requests),
                starts: HashMap::new(),
                starts_due: VecDeque::new(),
                waits: HashMap::new(),
                shutdowns: Vec::new(),
                is_serving: false,
            })
        });
        Handle::new(Arc::clone(&inbox.shared))
    }

    /// Turns the loop, for the sake of its [handles](Self::handle), until one of them has [shut](Handle::shutdown) it down, or all of them are gone and all jobs have
    /// finished: then nothing more can happen. The events are dropped; see [`run_with`](Self::run_with).
    ///
    /// # Errors
    /// As [`turn`](Self::turn); it can be called again.
    pub fn run(&mut self) -> Result<(), TurnError> {
        self.run_with(|_, _| {})
    }

    /// As [`run`](Self::run), with something to be done at each event, between two turns.
    ///
    /// # Errors
    /// As [`turn`](Self::turn), once the events of that turn are handed out; it can be called again.
    pub fn run_with(&mut self, mut on_event: impl FnMut(&mut Self, Event)) -> Result<(), TurnError> {
        let _inside = self.note_turn();
        let mut events = Events::new();
        loop {
            let timeout = if self.is_run_over() { Some(std::time::Duration::ZERO) } else { None };
            let turned = self.turn(&mut events, timeout);
            for event in events.drain() {
                on_event(self, event);
            }
            turned?;
            if self.is_run_done() {
                return Ok(());
            }
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
        let Some(inbox) = self.inbox.as_mut().filter(|inbox| inbox.shared.is_announced() && !inbox.is_serving) else { return };
        inbox.is_serving = true;
        let mut served = 0;
        while served < REQUESTS_PER_TURN
            && let Some(request) = self.next_request()
        {
            request(self);
            served += 1;
        }
        let Some(inbox) = &mut self.inbox else { return };
        inbox.is_serving = false;
        if served == REQUESTS_PER_TURN {
            inbox.shared.announce();
        }
    }

    fn next_request(&self) -> Option<Request> {
        self.inbox.as_ref()?.requests.as_ref()?.try_recv().ok()
    }

    /// Answers those who have waited for what has happened now.
    pub(super) fn answer_handles(&mut self) {
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
        let start = inbox.starts.remove(&id);
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
            (Some((reply, _)), Some(failure)) => {
                // Nothing is left of a job that was not started.
                self.discard(id);
                give(reply, Err(StartError::Failed(failure)));
            }
            (Some((reply, handle)), None) => give(reply, Ok(Claim::new(id, handle))),
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
        while let Some((_, job)) = inbox.starts_due.pop_front_if(|(due, job)| *due <= now || !inbox.starts.contains_key(job)) {
            if let Some((reply, handle)) = inbox.starts.remove(&job) {
                give(reply, Ok(Claim::new(job, handle)));
            }
        }
    }

    /// When the next of the starts is to be answered at the latest.
    pub(super) fn answer_due(&self) -> Option<Instant> {
        self.inbox.as_ref()?.starts_due.front().map(|(due, _)| *due)
    }

    /// A job is taken out of sight: who waits for its end hears that there is no such job. That it was started is true all the same.
    pub(super) fn answer_discarded(&mut self, job: JobId) {
        let Some(inbox) = &mut self.inbox else { return };
        let (start, waits) = (inbox.starts.remove(&job), inbox.waits.remove(&job));
        if let Some((reply, handle)) = start {
            give(reply, Ok(Claim::new(job, handle)));
        }
        for reply in waits.into_iter().flatten() {
            give(reply, Err(JobError::NotFound { job }));
        }
    }

    /// Takes no more requests; those that were not done are answered by their being dropped.
    pub(super) fn close_inbox(&mut self) {
        if let Some(inbox) = &mut self.inbox {
            inbox.requests = None;
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
            inbox.starts_due.push_back((due, job));
            inbox.starts.insert(job, (reply, handle));
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
        // Those who have stopped waiting make room.
        replies.retain(|reply| !reply.is_closed());
        replies.push(reply);
    }

    /// Begins a shutdown for a handle.
    pub(crate) fn shutdown_asked(&mut self, mode: ShutdownMode, reply: Reply<usize, HandleError>) {
        self.begin_shutdown(mode);
        if let Some(inbox) = &mut self.inbox {
            inbox.shutdowns.push(reply);
        }
    }

    /// Nobody has got a job that was started: it is killed and forgotten.
    pub(crate) fn take_back(&mut self, job: JobId) {
        if self.stop(job).is_ok() || self.table.by_id(job).is_some_and(Job::is_finished) {
            self.discard(job);
        }
    }
}
