//! Floor 6: the public face of a worker.

mod follow;
mod owned;
mod requests;
mod shutdown;
#[cfg(feature = "tokio")]
mod steps;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime};

use crate::handle::shield::shielded;
use crate::job::{Host, Job, SLOT_WAIT_MAX};
use crate::kernel::cgroup::CgroupTree;
use crate::kernel::process;
use crate::kernel::stream::LogStream;
use crate::lent::{Lent, unix_nanos};
use crate::logic::token::Key;
use crate::model::capabilities::{Capabilities, Rung};
use crate::model::command::Command;
use crate::model::error::{JobError, RunError, StartError, StartFailure, Step, StreamError, TurnError, errno};
use crate::model::event::{Event, Events};
use crate::model::id::{JobId, OwnerId};
use crate::model::leftover::Leftover;
use crate::model::limits::Limits;
use crate::model::log_policy::LogPolicy;
use crate::model::output::{LogFormat, OutputStream};
use crate::model::pressure::{Pressure, PressureResource};
use crate::model::reading::ReadOptions;
use crate::model::retention::RetentionStats;
use crate::model::signal::Signal;
use crate::model::status::{Status, StopReason};
use crate::model::usage::CgroupUsage;
use crate::reactor::Reactor;
use crate::retention::{ArchiveEnd, Collector};
use crate::table::Table;
pub use crate::worker::follow::Follow;
pub(crate) use crate::worker::follow::read_shown;
pub use crate::worker::owned::OwnedJobs;
use crate::worker::requests::Inbox;
use crate::worker::shutdown::Closing;

/// How often, at least, a confirming start that waits for a spawn slot looks at all of them.
const SLOT_LOOK_EVERY: Duration = Duration::from_millis(1);

/// Finished jobs that are looked at in one turn, whether they are to be forgotten.
const FORGOTTEN_PER_TURN: usize = 256;

/// What everything that runs jobs can do: a [`Worker`], a [`Handle`](crate::Handle), and the view of one owner on either.
pub trait ProcessRunner {
    /// Starts a job.
    ///
    /// # Errors
    /// See [`StartError`]: nothing is left of a job that was not started.
    fn start(&mut self, command: Command) -> Result<JobId, StartError>;

    /// Kills a job's whole process tree with SIGKILL. Does nothing to one that has finished.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Io`] if the kernel refuses.
    fn stop(&mut self, job: JobId) -> Result<(), JobError>;

    /// Everything known about a job.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    fn query(&self, job: JobId) -> Result<Status, JobError>;

    /// A reader of a job's log, from its start: every byte that the job wrote or will write.
    ///
    /// # Errors
    /// [`StreamError::NotFound`]; [`StreamError::NotLogged`]; [`StreamError::Io`] if the log file is gone.
    fn stream(&self, job: JobId) -> Result<LogStream, StreamError>;
}

/// Starts, watches, logs and stops processes, from the one thread that turns it.
///
/// Everything happens inside its methods; there is no thread, no signal handler and nothing global behind it. In between, its file descriptor
/// ([`AsFd`], an epoll instance) becomes readable whenever [`turn`](Self::turn) has something to do: put it into any other loop.
///
/// With [`Builder::retention`](crate::Builder::retention) it also keeps its log directory in order: see [`Retention`](crate::Retention).
///
/// Dropping a worker kills its jobs and waits, for a bounded time, until nothing of them is left.
///
/// A worker may be moved to another thread, but not used by two at a time:
///
/// ```
/// fn is_send<T: Send>() {}
/// is_send::<iron_exec::Worker>();
/// ```
/// ```compile_fail
/// fn is_sync<T: Sync>() {}
/// is_sync::<iron_exec::Worker>();
/// ```
#[derive(Debug)]
pub struct Worker {
    table: Table,
    reactor: Reactor,
    host: Host,
    capabilities: Capabilities,
    is_rung_forced: bool,
    /// Tasks being woken; empty between turns.
    wakers: Vec<Waker>,
    retention: Option<Box<Keeping>>,
    closing: Option<Closing>,
    inbox: Option<Box<Inbox>>,
    /// Events that [`run_with`](Self::run_with) has not told, because what is done at them has panicked.
    untold: VecDeque<Event>,
}

/// What the worker knows of the retention of logs.
#[derive(Debug)]
struct Keeping {
    collector: Collector,
    /// The job that archives.
    archiving: Option<Key>,
    /// Jobs that finished before this time are being forgotten, and the last one that was looked at.
    forgetting: Option<(SystemTime, Option<JobId>)>,
}

impl Worker {
    pub(crate) fn assemble(reactor: Reactor, host: Host, capabilities: Capabilities, collector: Option<Collector>) -> Self {
        let is_rung_forced = reactor.settings.rung.is_some();
        let retention = collector.map(|collector| Box::new(Keeping { collector, archiving: None, forgetting: None }));
        let mut worker = Self {
            table: Table::default(),
            reactor,
            host,
            capabilities,
            is_rung_forced,
            wakers: Vec::new(),
            retention,
            closing: None,
            inbox: None,
            untold: VecDeque::new(),
        };
        // If arming fails, so does the next turn, which says so.
        let _ = worker.arm_errands();
        worker
    }

    /// What this machine lets the worker do.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Starts a job, in the name of [`Command::owner`].
    ///
    /// With confirmation (the default) it waits, up to [`Builder::confirm_timeout`](crate::Builder::confirm_timeout), until the program was executed.
    ///
    /// # Errors
    /// See [`StartError`]: nothing is left of a job that was not started.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "a command is used up: the descriptors that it holds are closed once the job has them"
    )]
    pub fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        let (owner, confirm) = (command.owner, self.confirms(&command));
        self.start_for(&command, owner, confirm)
    }

    /// One turn of the loop: waits until there is something to do, up to `timeout` (for ever without one), does it, and fills `events`, whose
    /// former content goes.
    ///
    /// # Errors
    /// If the loop's own descriptors fail; no job is affected.
    pub fn turn(&mut self, events: &mut Events, timeout: Option<Duration>) -> Result<(), TurnError> {
        events.clear();
        while !events.is_full()
            && let Some(event) = self.untold.pop_front()
        {
            events.push(event);
        }
        let timeout = if self.reactor.has_reports() || !events.is_empty() { Some(Duration::ZERO) } else { timeout };
        let turned = self.turn_reactor(timeout);
        self.collect(events);
        turned.and(self.announce_events())
    }

    /// Everything known about a job.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn query(&self, job: JobId) -> Result<Status, JobError> {
        let found = self.table.by_id(job).ok_or(JobError::NotFound { job })?;
        Ok(self.status_of(found))
    }

    /// The ids of all jobs in the table, in the order of their start.
    pub fn jobs(&self) -> Vec<JobId> {
        let mut jobs: Vec<JobId> = self.table.visible().map(|job| job.id).collect();
        jobs.sort_unstable();
        jobs
    }

    /// The number of jobs that have not finished.
    pub fn unfinished_jobs(&self) -> usize {
        let archiving = self.retention.as_ref().and_then(|retention| self.table.get(retention.archiving?));
        self.reactor.queues.unfinished - usize::from(archiving.is_some_and(|job| !job.is_finished()))
    }

    /// Kills a job's whole process tree with SIGKILL. Does nothing to one that has finished.
    ///
    /// With a cgroup the tree is everything in it, however it was forked (`cgroup.kill`); without, it is the main process's group.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Io`] if the kernel refuses.
    pub fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        self.with_job(job, |found, lent| found.stop(StopReason::Requested, lent))
    }

    /// Sends `signal` to a job's process group, and SIGKILL to the whole tree after `grace`, if the job has not finished by then.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Io`] if the kernel refuses.
    pub fn stop_with(&mut self, job: JobId, signal: Signal, grace: Duration) -> Result<(), JobError> {
        self.with_job(job, |found, lent| found.stop_with(StopReason::Requested, signal, grace, lent))
    }

    /// Sends a signal to a job's main process; it can never hit another process.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Ended`] if that process has ended; [`JobError::Io`] if the kernel refuses.
    pub fn signal(&self, job: JobId, signal: Signal) -> Result<(), JobError> {
        self.table.by_id(job).ok_or(JobError::NotFound { job })?.signal(signal)
    }

    /// Sets limits of a job that runs. What `limits` does not name stays as it is; see [`Limits`] for how a limit is lifted.
    ///
    /// A `memory.max` below what the job uses has the kernel take memory back from it, and kill if that is not enough; before Linux 6.15 it does so before this
    /// returns.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NoCgroup`]; [`JobError::Starting`] as long as the program has not been executed; [`JobError::Ended`] if nothing is
    /// left of the job; [`JobError::InvalidLimits`]; [`JobError::Limit`], with what to do about it.
    pub fn set_limits(&mut self, job: JobId, limits: &Limits) -> Result<(), JobError> {
        self.with_cgroup_of(job, |found, missing, lent| found.set_limits(limits, missing, lent))
    }

    /// What a job's whole tree has used so far; of one that is over, in all, if that was read ([`Status::cgroup_usage`] says when it is).
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NoCgroup`]; [`JobError::Ended`] if it is over and nobody has asked in time; [`JobError::Io`].
    pub fn usage(&self, job: JobId) -> Result<CgroupUsage, JobError> {
        let found = self.table.by_id(job).ok_or(JobError::NotFound { job })?;
        found.cgroup_usage(self.host.cgroup_missing.as_deref(), self.reactor.cgroups.as_ref())
    }

    /// Freezes all processes of a job (`cgroup.freeze`): they get no CPU time until [`thaw`](Self::thaw). [`Event::Frozen`](crate::Event::Frozen) tells when all of
    /// them are. A [`stop`](Self::stop) kills a frozen job all the same. A signal, and with it a gentle stop, ends those for which that is the signal's default;
    /// those that handle it hear of it once they are thawed.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NoCgroup`]; [`JobError::Ended`] if nothing is left of the job; [`JobError::Io`].
    pub fn freeze(&mut self, job: JobId) -> Result<(), JobError> {
        self.with_cgroup_of(job, |found, missing, lent| found.freeze(true, missing, lent))
    }

    /// Lets the processes of a frozen job go on.
    ///
    /// # Errors
    /// As [`freeze`](Self::freeze).
    pub fn thaw(&mut self, job: JobId) -> Result<(), JobError> {
        self.with_cgroup_of(job, |found, missing, lent| found.freeze(false, missing, lent))
    }

    /// Asks to be told ([`Event::Pressure`](crate::Event::Pressure)) when a job's processes wait for a resource as long as `pressure` says: at most once in each of
    /// its windows. What was asked before about the same resource is forgotten. It takes a file descriptor, until the job has ended or
    /// [`unwatch_pressure`](Self::unwatch_pressure).
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NoCgroup`]; [`JobError::Ended`] if nothing is left of the job; [`JobError::InvalidPressure`]; [`JobError::Io`]: ENOENT or
    /// EOPNOTSUPP where the kernel does not measure pressure (CONFIG_PSI, `psi=1` on its command line), EINVAL for a window that is no multiple of 2 s from a
    /// host without privilege, or one older than Linux 6.5.
    pub fn watch_pressure(&mut self, job: JobId, resource: PressureResource, pressure: &Pressure) -> Result<(), JobError> {
        self.with_cgroup_of(job, |found, missing, lent| found.watch_pressure(resource, Some(pressure), missing, lent))
    }

    /// Asks to be told no more of a job's pressure on a resource.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NoCgroup`]; [`JobError::Ended`].
    pub fn unwatch_pressure(&mut self, job: JobId, resource: PressureResource) -> Result<(), JobError> {
        self.with_cgroup_of(job, |found, missing, lent| found.watch_pressure(resource, None, missing, lent))
    }

    /// The cgroups below the base of jobs whose worker is dead, because its host crashed for instance. Those of live workers are not among them: each holds a lock
    /// for life.
    ///
    /// # Errors
    /// If the base cannot be read. Without cgroups nothing is left over.
    pub fn leftovers(&self) -> io::Result<Vec<Leftover>> {
        self.reactor.cgroups.as_ref().map_or(Ok(Vec::new()), CgroupTree::leftovers)
    }

    /// Kills what is left of dead workers, waits up to `timeout` in all until it is gone, and removes its cgroups. This is for the start of a host: it blocks.
    /// What could not be removed is still among the [`leftovers`](Self::leftovers).
    ///
    /// # Errors
    /// If the base cannot be read, or the kernel refuses to kill or remove a cgroup; the others are, all the same. That the time was too short is no error.
    pub fn kill_leftovers(&mut self, timeout: Duration) -> io::Result<()> {
        self.reactor.cgroups.as_mut().map_or(Ok(()), |tree| tree.kill_leftovers(timeout))
    }

    /// A reader of a job's log, from its start: every byte that the job wrote or will write, on both streams.
    ///
    /// # Errors
    /// [`StreamError::NotFound`]; [`StreamError::NotLogged`]; [`StreamError::Io`] if the log file is gone.
    pub fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        self.stream_with(job, &ReadOptions::new())
    }

    /// As [`stream`](Self::stream), for one of the two streams or both, and from where `options` say. It blocks while that place is looked up in the files: for
    /// [`LastLines`](crate::LogPosition::LastLines) of a stream that has written little, they may be read to their beginning.
    ///
    /// # Errors
    /// As `stream`, and [`StreamError::NotSeparable`] for one stream of a raw log that has two, [`StreamError::NoTimes`] for a time in a raw log.
    pub fn stream_with(&self, job: JobId, options: &ReadOptions) -> Result<LogStream, StreamError> {
        self.table.by_id(job).ok_or(StreamError::NotFound { job })?.stream(options, &self.reactor.log_dir, &self.reactor.watcher)
    }

    /// A job's output as a blocking reader, which turns the loop while it waits. Events are kept for the next [`turn`](Self::turn). A read fails where something
    /// in the log is to be told ([`StreamError::is_passable`]); the next one goes on behind it.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn follow(&mut self, job: JobId) -> Result<Follow<'_>, StreamError> {
        let stream = self.stream(job)?;
        Ok(Follow { worker: self, stream })
    }

    /// Turns the loop until a job has finished. The events of this job are dropped, those of others kept for the next [`turn`](Self::turn).
    ///
    /// A piped stdin that nobody has taken is closed first, or the job might wait for it for ever.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::Turn`] if the loop fails.
    pub fn wait(&mut self, job: JobId) -> Result<Status, JobError> {
        drop(self.take_stdin(job)?);
        loop {
            if let Some(status) = self.take_end(job)? {
                return Ok(status);
            }
            self.turn_reactor(None).map_err(|source| JobError::Turn { job, source })?;
        }
    }

    /// The status of a job that has finished; its events are dropped. `None` as long as it has not.
    pub(crate) fn take_end(&mut self, job: JobId) -> Result<Option<Status>, JobError> {
        let found = self.table.by_id_mut(job).ok_or(JobError::NotFound { job })?;
        if !found.is_finished() {
            return Ok(None);
        }
        let was_queued = found.drop_notices();
        if was_queued && let Some(key) = self.table.key_of(job) {
            self.reactor.queues.reports.retain(|queued| *queued != key);
        }
        self.untold.retain(|event| event.job() != job);
        let status = self.query(job)?;
        self.note_told(job);
        self.reactor.announce_reports().map_err(|source| JobError::Turn { job, source })?;
        Ok(Some(status))
    }

    /// Starts a job and waits until it has finished: [`start`](Self::start) and [`wait`](Self::wait).
    ///
    /// # Errors
    /// Those of the two. A job that runs and fails is not an error: see [`Status::success`].
    pub fn run_job(&mut self, command: Command) -> Result<Status, RunError> {
        let job = self.start(command)?;
        Ok(self.wait(job)?)
    }

    /// Forgets a finished job: its status goes, its log file stays.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NotFinished`].
    pub fn forget(&mut self, job: JobId) -> Result<(), JobError> {
        let found = self.table.by_id(job).ok_or(JobError::NotFound { job })?;
        if !found.is_finished() {
            return Err(JobError::NotFinished { job });
        }
        self.discard(job);
        Ok(())
    }

    /// Deletes the log of a finished job, with all its files; its status stays, without one. What somebody else has put in the place of a file is left alone. A job
    /// that has no log is no error.
    ///
    /// # Errors
    /// [`JobError::NotFound`]; [`JobError::NotFinished`]; [`JobError::Io`] if a file could not be deleted (the others are): the job knows nothing of it any more.
    pub fn delete_log(&mut self, job: JobId) -> Result<(), JobError> {
        let found = self.table.by_id_mut(job).ok_or(JobError::NotFound { job })?;
        if !found.is_finished() {
            return Err(JobError::NotFinished { job });
        }
        let deleted = found.outputs.forget_log(&self.reactor.log_dir);
        deleted.map_err(|source| JobError::Io { job, operation: "deleting the log", source })
    }

    /// The end of a job's stdin pipe ([`Command::stdin_piped`]); `None` if it has none, or it was taken. Dropping it is the end of file.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn take_stdin(&mut self, job: JobId) -> Result<Option<io::PipeWriter>, JobError> {
        let found = self.table.by_id_mut(job).ok_or(JobError::NotFound { job })?;
        Ok(found.take_stdin().map(Into::into))
    }

    /// The end of a job's stdout pipe ([`Capture::Piped`](crate::Capture::Piped)); `None` if it has none, or it was taken.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn take_stdout(&mut self, job: JobId) -> Result<Option<io::PipeReader>, JobError> {
        self.take_output(job, OutputStream::Stdout)
    }

    /// The end of a job's stderr pipe ([`Capture::Piped`](crate::Capture::Piped)); `None` if it has none, or it was taken.
    ///
    /// # Errors
    /// [`JobError::NotFound`].
    pub fn take_stderr(&mut self, job: JobId) -> Result<Option<io::PipeReader>, JobError> {
        self.take_output(job, OutputStream::Stderr)
    }

    /// The view of one owner: it starts jobs in that owner's name and sees no others.
    pub fn owned_by(&mut self, owner: OwnerId) -> OwnedJobs<'_> {
        OwnedJobs { worker: self, owner }
    }

    /// Has a pass of retention begin with the next turn, or right after the one that goes on. It takes many turns;
    /// [`retention_stats`](Self::retention_stats) tells of its end. An archive that has failed is tried again. Does nothing without
    /// [`Builder::retention`](crate::Builder::retention).
    pub fn collect_logs(&mut self) {
        if let Some(retention) = &mut self.retention {
            retention.collector.ask(Instant::now());
            // If arming fails, so does the next turn, which says so.
            let _ = self.arm_errands();
        }
    }

    /// What retention has done so far.
    pub fn retention_stats(&self) -> RetentionStats {
        self.retention.as_ref().map(|retention| retention.collector.stats()).unwrap_or_default()
    }

    /// Sees to it that the descriptor tells of events that were kept.
    pub(crate) fn announce_events(&mut self) -> Result<(), TurnError> {
        if self.untold.is_empty() { self.reactor.announce_reports() } else { self.reactor.wake() }
    }

    fn confirms(&self, command: &Command) -> bool {
        command.confirm.unwrap_or(self.reactor.settings.confirm)
    }

    fn start_for(&mut self, command: &Command, owner: OwnerId, confirm: bool) -> Result<JobId, StartError> {
        if self.closing.is_some() {
            return Err(StartError::ShuttingDown);
        }
        command.check()?;
        let plan = command.log_plan(self.reactor.settings.log_format, self.reactor.settings.log_policy)?;
        let jobs_max = self.reactor.settings.jobs_max;
        if self.unfinished_jobs() >= jobs_max {
            return Err(StartError::TooManyJobs { jobs_max });
        }
        let started = match self.try_start(command, plan, owner, confirm) {
            Err(failure) if self.is_clone3_refused(&failure) => self.try_start(command, plan, owner, confirm),
            started => started,
        };
        // If arming fails, so does the next turn, which says so.
        let _ = self.arm_errands();
        let _ = self.reactor.announce_reports();
        Ok(started?)
    }

    fn try_start(&mut self, command: &Command, plan: (LogFormat, LogPolicy), owner: OwnerId, confirm: bool) -> Result<JobId, StartFailure> {
        let key = self.table.next_key();
        let job = Job::prepare(command, plan, owner, key, &mut self.host, &mut self.reactor.lend())?;
        let id = job.id;
        self.table.insert(key, job);
        if !self.reactor.spawner.has_slot() || !self.reactor.queues.waiting_for_slot.is_empty() {
            // Children may have come off since the last turn, and those that waited may have gone.
            self.reactor.look_at_starts(&mut self.table);
        }
        if let Some(job) = self.table.get_mut(key) {
            job.spawn_or_wait(&mut self.reactor.lend());
        }
        let started = self.see_started(key, confirm);
        if let Err(failure) = started {
            // What is left of it, if anything is, is the loop's.
            self.discard(id);
            return Err(failure);
        }
        Ok(id)
    }

    /// Sees the start through: confirmed here, or left to the loop.
    fn see_started(&mut self, key: Key, confirm: bool) -> Result<(), StartFailure> {
        let mut timeout = self.reactor.settings.confirm_timeout;
        if confirm {
            let began = Instant::now();
            // Half of the time is for the slot, the other half for the program.
            let slot_timeout = SLOT_WAIT_MAX.min(timeout / 2);
            while self.table.get(key).is_some_and(Job::is_waiting_for_slot) && began.elapsed() < slot_timeout {
                self.reactor.wait_for_slot(&mut self.table, SLOT_LOOK_EVERY);
            }
            if let Some(job) = self.table.get_mut(key).filter(|job| job.is_waiting_for_slot()) {
                job.on_slot(true, &mut self.reactor.lend());
            }
            timeout = timeout.saturating_sub(began.elapsed());
        }
        let Some(job) = self.table.get_mut(key) else { return Ok(()) };
        let lent = &mut self.reactor.lend();
        if let Some(failure) = job.failure() {
            return Err(failure.clone());
        }
        if job.is_waiting_for_slot() {
            return Ok(());
        }
        if confirm && let Some(failure) = job.confirm(timeout, lent) {
            return Err(failure);
        }
        job.watch_start(lent).map_err(|error| {
            let _ = job.stop(StopReason::WorkerDropped, lent);
            StartFailure::new(Step::Watch, None, &error)
        })
    }

    /// Whether a seccomp filter has come over us since the rungs were probed; then the next rung is taken from now on.
    fn is_clone3_refused(&mut self, failure: &StartFailure) -> bool {
        let was = self.capabilities.rung;
        if self.is_rung_forced || was == Rung::Fork || failure.step() != Step::Clone {
            return false;
        }
        if !matches!(failure.errno(), errno::ENOSYS | errno::EPERM) {
            return false;
        }
        self.capabilities.rungs = process::probe_rungs();
        let rung = process::best_rung(&self.capabilities.rungs);
        (self.reactor.spawner.best, self.capabilities.rung) = (rung, rung);
        rung != was
    }

    fn take_output(&mut self, job: JobId, stream: OutputStream) -> Result<Option<io::PipeReader>, JobError> {
        let found = self.table.by_id_mut(job).ok_or(JobError::NotFound { job })?;
        Ok(found.take_output(stream).map(Into::into))
    }

    /// As [`with_job`](Self::with_job), for what needs a cgroup: also hands out why there may be none.
    fn with_cgroup_of(
        &mut self,
        job: JobId,
        handle: impl FnOnce(&mut Job, Option<&str>, &mut Lent<'_>) -> Result<(), JobError>,
    ) -> Result<(), JobError> {
        let missing = self.host.cgroup_missing.clone();
        self.with_job(job, |found, lent| handle(found, missing.as_deref(), lent))
    }

    /// Handles something in a job, if it is there.
    fn with_key(&mut self, key: Key, handle: impl FnOnce(&mut Job, &mut Lent<'_>)) {
        if let Some(job) = self.table.get_mut(key) {
            handle(job, &mut self.reactor.lend());
        }
    }

    fn with_job(&mut self, job: JobId, handle: impl FnOnce(&mut Job, &mut Lent<'_>) -> Result<(), JobError>) -> Result<(), JobError> {
        let found = self.table.by_id_mut(job).ok_or(JobError::NotFound { job })?;
        let handled = handle(found, &mut self.reactor.lend());
        let armed = self.reactor.arm().and_then(|()| self.reactor.announce_reports());
        handled.and(armed.map_err(|source| JobError::Turn { job, source }))
    }

    /// A turn without events for the caller; tasks are woken at its end.
    fn turn_reactor(&mut self, timeout: Option<Duration>) -> Result<(), TurnError> {
        let _inside = self.note_turn();
        // What is due is done in this turn; when the next of it is due is known only after that.
        self.reactor.errand_at = None;
        let turned = self.reactor.turn(&mut self.table, timeout);
        self.serve_handles();
        self.go_on_closing();
        self.turn_retention();
        self.answer_handles();
        let armed = self.arm_errands();
        self.wake_tasks();
        turned.and(armed)
    }

    /// Does what is due of retention: one step.
    fn turn_retention(&mut self) {
        let Some(mut retention) = self.retention.take() else { return };
        self.see_archiving(&mut retention);
        if self.closing.is_some() {
            self.retention = Some(retention);
            return;
        }
        self.forget_finished(&mut retention);
        let now = Instant::now();
        if retention.collector.due().is_some_and(|due| due <= now) {
            let step = retention.collector.step(now, unix_nanos(), &self.reactor.log_dir);
            for job in step.deleted {
                self.forget_told(job);
            }
            if let Some(before) = step.forget_before {
                retention.forgetting = Some((before, None));
            }
            if let Some(command) = step.archive {
                match self.start_internal(&command) {
                    Ok(key) => {
                        retention.archiving = Some(key);
                        self.see_archiving(&mut retention);
                    }
                    Err(failure) => {
                        let detail = format!("the command was not started: {failure}");
                        retention.collector.archive_ended(&ArchiveEnd::Failed { errno: failure.errno(), detail }, now);
                    }
                }
            }
        }
        self.retention = Some(retention);
    }

    /// When the next step of retention is due.
    fn retention_due(&self) -> Option<Instant> {
        let retention = self.retention.as_ref().filter(|_| self.closing.is_none())?;
        let has_archived = retention.archiving.and_then(|key| self.table.get(key)).is_some_and(Job::is_finished);
        let is_at_once = has_archived || retention.forgetting.is_some();
        if is_at_once { Some(Instant::now()) } else { retention.collector.due() }
    }

    /// Sees to it that what the worker does by itself comes in its time.
    fn arm_errands(&mut self) -> Result<(), TurnError> {
        self.reactor.errand_at = self.retention_due().into_iter().chain(self.closing_due()).chain(self.answer_due()).min();
        self.reactor.arm()
    }

    /// Hands over how the archive's command has ended, once it has.
    fn see_archiving(&mut self, retention: &mut Keeping) {
        let Some(key) = retention.archiving else { return };
        let Some(job) = self.table.get(key).filter(|job| job.is_finished()) else { return };
        let end = ArchiveEnd::of(&self.status_of(job));
        retention.archiving = None;
        retention.collector.archive_ended(&end, Instant::now());
        if let Some(job) = self.table.get_mut(key) {
            job.hide(&mut self.reactor.queues);
        }
        self.reactor.remove_gone(&mut self.table);
    }

    /// Starts a job of the worker's own.
    fn start_internal(&mut self, command: &Command) -> Result<Key, StartFailure> {
        let key = self.table.next_key();
        // Its output is nobody's: it has no log.
        let plan = (LogFormat::default(), LogPolicy::default());
        let mut job = Job::prepare(command, plan, OwnerId::default(), key, &mut self.host, &mut self.reactor.lend())?;
        job.make_internal();
        let id = job.id;
        self.table.insert(key, job);
        self.table.hide(id);
        if let Some(job) = self.table.get_mut(key) {
            job.spawn_or_wait(&mut self.reactor.lend());
        }
        // Whatever fails from here on ends the job, and is seen by that.
        let _ = self.see_started(key, false);
        Ok(key)
    }

    /// Forgets a few of the jobs that finished too long ago.
    fn forget_finished(&mut self, retention: &mut Keeping) {
        let Some((before, last)) = retention.forgetting.take() else { return };
        let told = self.table.told_after(last, FORGOTTEN_PER_TURN);
        let last = told.last().copied();
        for job in told {
            if self.table.by_id(job).and_then(Job::finished_at).is_some_and(|finished| finished <= before) {
                self.discard(job);
            }
        }
        if last.is_some() {
            retention.forgetting = Some((before, last));
        }
    }

    /// Forgets a job whose log is gone, if its end was told.
    fn forget_told(&mut self, job: JobId) {
        if self.table.is_told(job) {
            self.discard(job);
        }
    }

    /// Wakes the tasks that wait for streams. They are user code: not before nothing of the loop is lent out any more.
    fn wake_tasks(&mut self) {
        std::mem::swap(&mut self.wakers, &mut self.reactor.queues.wakers);
        for waker in self.wakers.drain(..) {
            // One that panics is not to stop the others, nor the loop.
            shielded(|| waker.wake());
        }
    }

    /// Moves what jobs have to tell into `events`, as far as they take it.
    fn collect(&mut self, events: &mut Events) {
        while !events.is_full() {
            let Some(key) = self.reactor.queues.reports.pop_front() else { return };
            let Some(job) = self.table.get_mut(key) else { continue };
            job.reports_taken();
            while !events.is_full()
                && let Some(event) = job.next_event()
            {
                events.push(event);
            }
            job.queue_reports(&mut self.reactor.queues);
            let (id, is_told) = (job.id, job.is_finished() && job.is_told());
            if is_told {
                self.note_told(id);
            }
        }
    }

    /// A job's end was told: it may go when the table has too many of its kind.
    fn note_told(&mut self, job: JobId) {
        if let Some(oldest) = self.table.note_told(job, self.reactor.settings.finished_jobs_max) {
            self.discard(oldest);
        }
    }

    /// Takes a job out of sight. What is left of it (a child that will not die, a cgroup that will not empty) is still seen to by the loop.
    fn discard(&mut self, id: JobId) {
        let Some(key) = self.table.key_of(id) else { return };
        self.table.hide(id);
        let Some(job) = self.table.get_mut(key) else { return };
        let is_awaited = job.is_awaited();
        job.set_awaited(false);
        if job.drop_notices() {
            self.reactor.queues.reports.retain(|queued| *queued != key);
        }
        if job.is_gone() {
            self.table.remove(key);
        } else {
            job.hide(&mut self.reactor.queues);
        }
        if is_awaited {
            self.answer_discarded(id);
        }
    }

    fn status_of(&self, job: &Job) -> Status {
        job.status(&self.reactor.log_dir, self.reactor.cgroups.as_ref(), Instant::now())
    }
}

impl ProcessRunner for Worker {
    fn start(&mut self, command: Command) -> Result<JobId, StartError> {
        self.start(command)
    }

    fn stop(&mut self, job: JobId) -> Result<(), JobError> {
        self.stop(job)
    }

    fn query(&self, job: JobId) -> Result<Status, JobError> {
        self.query(job)
    }

    fn stream(&self, job: JobId) -> Result<LogStream, StreamError> {
        self.stream(job)
    }
}

impl AsFd for Worker {
    /// The epoll instance: readable whenever a turn has something to do. Only to be waited for, never to be read or changed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.reactor.as_fd()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}
