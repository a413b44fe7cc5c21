//! Floor 5: wait, dispatch, deadlines. What a job is, it does not know.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Poll, Token};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::job::Job;
use crate::kernel::cgroup::CgroupTree;
use crate::kernel::log_dir::LogDir;
use crate::kernel::spawner::Spawner;
use crate::kernel::watcher::{Watched, Watcher};
use crate::lent::{Alarm, Lent, Queues, Records};
use crate::log::Room;
use crate::logic::deadlines::DeadlineQueue;
use crate::logic::token::{Key, Target};
use crate::model::error::{BuildError, TurnError};
use crate::model::settings::Settings;
use crate::table::Table;

/// Readiness events handled in one turn before the caller gets a word in, in units of the poll's capacity.
const BATCHES_PER_TURN: usize = 4;

/// Logs that have ended and still stand in the list of open ones, above as many as are open, before that is cleared of them.
const ENDED_LOGS_LISTED_MAX: usize = 64;

/// When to look at a child that has taken a spawn slot: most are off by then.
const LOOK_AFTER_MIN: Duration = Duration::from_micros(250);

/// How often, at least, to look at one that stays on it.
const LOOK_AFTER_MAX: Duration = Duration::from_millis(64);

/// The loop: one epoll instance with every pipe and pidfd in it, one inotify, one timerfd, one waker.
#[derive(Debug)]
pub(crate) struct Reactor {
    poll: Poll,
    ready_events: mio::Events,
    waker: Arc<mio::Waker>,
    /// Whether the waker was used since the last turn.
    woken: bool,
    timer: OwnedFd,
    /// When the timerfd goes off.
    timer_at: Option<Instant>,
    deadlines: DeadlineQueue<(Key, Alarm)>,
    /// When to look again at the children on spawn slots, and how long the look after that is off.
    next_look: Option<(Instant, Duration)>,
    /// When the worker has something to do that no job asks for.
    pub(crate) errand_at: Option<Instant>,
    pub(crate) watcher: Watcher,
    pub(crate) spawner: Spawner,
    read_buffer: Vec<u8>,
    records: Records,
    pub(crate) queues: Queues,
    /// Whether there may be more notices than were read.
    has_notices: bool,
    /// Owners of inotify notices; empty between turns.
    noticed: Vec<(Key, Watched)>,
    pub(crate) cgroups: Option<CgroupTree>,
    pub(crate) log_dir: LogDir,
    pub(crate) settings: Settings,
    turn: u64,
}

impl Reactor {
    pub(crate) fn new(settings: Settings, spawner: Spawner, log_dir: LogDir, cgroups: Option<CgroupTree>) -> Result<Self, BuildError> {
        let failed = |operation| move |source| BuildError::Io { operation, source };
        let poll = Poll::new().map_err(failed("making the epoll instance"))?;
        let waker = mio::Waker::new(poll.registry(), Token(Target::Waker.pack())).map_err(failed("making the waker"))?;
        let watcher = Watcher::new().map_err(failed("making the inotify instance"))?;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK);
        let timer = timer.map_err(|errno| failed("making the timerfd")(errno.into()))?;
        for (fd, target) in [(timer.as_fd(), Target::Timer), (watcher.as_fd(), Target::Inotify)] {
            let registered = poll.registry().register(&mut SourceFd(&fd.as_raw_fd()), Token(target.pack()), Interest::READABLE);
            registered.map_err(failed("filling the epoll instance"))?;
        }
        Ok(Self {
            ready_events: mio::Events::with_capacity(settings.poll_events_max.max(1)),
            poll,
            waker: Arc::new(waker),
            woken: false,
            timer,
            timer_at: None,
            deadlines: DeadlineQueue::new(Instant::now()),
            next_look: None,
            errand_at: None,
            watcher,
            spawner,
            read_buffer: Vec::new(),
            records: Records::default(),
            queues: Queues::default(),
            has_notices: false,
            noticed: Vec::new(),
            cgroups,
            log_dir,
            settings,
            turn: 0,
        })
    }

    /// Lends a job what it may touch, outside a turn.
    pub(crate) fn lend(&mut self) -> Lent<'_> {
        Lent {
            registry: self.poll.registry(),
            deadlines: &mut self.deadlines,
            watcher: &mut self.watcher,
            spawner: &mut self.spawner,
            cgroups: &mut self.cgroups,
            log_dir: &mut self.log_dir,
            read_buffer: &mut self.read_buffer,
            records: &mut self.records,
            queues: &mut self.queues,
            settings: &self.settings,
            now: Instant::now(),
            turn: self.turn,
        }
    }

    /// One turn: waits until something is ready, up to `timeout` (for ever without one), and handles it. Does not wait while work is left over. What comes next is
    /// still to be [armed](Self::arm).
    pub(crate) fn turn(&mut self, table: &mut Table, timeout: Option<Duration>) -> Result<(), TurnError> {
        self.turn += 1;
        self.woken = false;
        let carried_on = self.queues.ready.len();
        let mut timeout = if carried_on > 0 { Some(Duration::ZERO) } else { timeout };
        let capacity = self.ready_events.capacity();
        let mut handled = 0;
        loop {
            self.wait(timeout)?;
            let batch = self.dispatch(table)?;
            handled += batch;
            // A full batch may have more behind it. An edge-triggered outer loop hears of that only now, or never.
            if self.ready_events.iter().count() < capacity {
                break;
            }
            if handled >= capacity.saturating_mul(BATCHES_PER_TURN) {
                self.wake()?;
                break;
            }
            timeout = Some(Duration::ZERO);
        }
        self.look_at_starts(table);
        self.go_on_reading(table, carried_on);
        self.let_deadlines_pass(table);
        self.close_idle_logs(table);
        self.remove_gone(table);
        Ok(())
    }

    /// What makes the epoll descriptor readable from other threads.
    pub(crate) fn waker(&self) -> Weak<mio::Waker> {
        Arc::downgrade(&self.waker)
    }

    /// Whether some job has something to tell.
    pub(crate) fn has_reports(&self) -> bool {
        !self.queues.reports.is_empty()
    }

    /// Makes the epoll descriptor readable if some job has something to tell that the caller, or somebody who waits for it, has not heard.
    pub(crate) fn announce_reports(&mut self) -> Result<(), TurnError> {
        if self.has_reports() || !self.queues.awaited.is_empty() { self.wake() } else { Ok(()) }
    }

    /// Sees to it that the epoll descriptor becomes readable when there is something to do: for left-over work at once, for deadlines in time.
    pub(crate) fn arm(&mut self) -> Result<(), TurnError> {
        if !self.queues.ready.is_empty() {
            self.wake()?;
        }
        let look = self.time_of_look();
        match self.deadlines.next().into_iter().chain(look).chain(self.errand_at).min() {
            Some(next) if self.timer_at.is_none_or(|at| next < at) => self.set_timer(next),
            _ => Ok(()),
        }
    }

    fn wait(&mut self, timeout: Option<Duration>) -> Result<(), TurnError> {
        match self.poll.poll(&mut self.ready_events, timeout) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.ready_events.clear();
                Ok(())
            }
            Err(error) => Err(TurnError::new("waiting for events")(error)),
        }
    }

    /// Looks at the children on spawn slots, and gives the slots that have come free to those who wait.
    pub(crate) fn look_at_starts(&mut self, table: &mut Table) {
        let mut index = 0;
        while let Some(&key) = self.queues.in_flight.get(index) {
            let lent = &mut self.lend();
            if table.get_mut(key).is_some_and(|job| job.on_look(lent)) {
                index += 1;
            } else {
                self.queues.in_flight.swap_remove(index);
            }
        }
        while self.spawner.has_slot()
            && let Some(key) = self.queues.waiting_for_slot.pop_front()
        {
            self.with_job(table, key, |job, lent| job.on_slot(false, lent));
        }
    }

    /// Waits up to `timeout` for one of the children on spawn slots to come off, and looks.
    pub(crate) fn wait_for_slot(&mut self, table: &mut Table, timeout: Duration) {
        match self.queues.in_flight.first().and_then(|key| table.get(*key)) {
            Some(job) => job.wait_for_start(timeout),
            // Nobody is on a slot, and still there is none: they are lost.
            None => std::thread::sleep(timeout),
        }
        self.look_at_starts(table);
    }

    /// When to look next at the children on spawn slots: soon after one has taken its slot, then less and less often. None of them, no look.
    fn time_of_look(&mut self) -> Option<Instant> {
        let is_soon = std::mem::take(&mut self.queues.look_soon);
        if self.queues.in_flight.is_empty() {
            self.next_look = None;
            return None;
        }
        let now = Instant::now();
        let first = (now + LOOK_AFTER_MIN, 2 * LOOK_AFTER_MIN);
        let next = match self.next_look {
            None => first,
            Some((at, after)) if at <= now => (now + after, LOOK_AFTER_MAX.min(2 * after)),
            Some((at, _)) if is_soon && first.0 < at => first,
            Some(next) => next,
        };
        self.next_look = Some(next);
        Some(next.0)
    }

    /// Handles one batch; returns how many events were more than the waker's.
    fn dispatch(&mut self, table: &mut Table) -> Result<usize, TurnError> {
        let mut handled = 0;
        let (mut notices, mut timer_went_off) = (self.has_notices, false);
        // Out of the way while everything else is lent.
        let ready_events = std::mem::replace(&mut self.ready_events, mio::Events::with_capacity(0));
        let mut lent = self.lend();
        for event in &ready_events {
            let Some(target) = Target::unpack(event.token().0) else { continue };
            handled += usize::from(target != Target::Waker);
            match target {
                // A stale event names a place that has another job now, or none: not found, and that is all.
                Target::Job(key, source) => {
                    if let Some(job) = table.get_mut(key) {
                        job.on_ready(source, event.is_read_closed() || event.is_error(), &mut lent);
                    }
                }
                Target::Inotify => notices = true,
                Target::Timer => timer_went_off = true,
                Target::Waker => {}
            }
        }
        self.ready_events = ready_events;
        if timer_went_off {
            self.timer_at = None;
        }
        if notices {
            self.read_notices(table)?;
        }
        Ok(handled)
    }

    /// Tells the owners of inotify notices.
    fn read_notices(&mut self, table: &mut Table) -> Result<(), TurnError> {
        let noticed = &mut self.noticed;
        let read = self.watcher.read(|owner| noticed.push(owner)).map_err(TurnError::new("reading inotify notices"));
        // Each file is looked at once, however many notices it has sent.
        self.noticed.sort_unstable();
        self.noticed.dedup();
        while let Some((key, watched)) = self.noticed.pop() {
            self.with_job(table, key, |job, lent| job.on_notice(watched, lent));
        }
        self.has_notices = read?;
        if self.has_notices { self.wake() } else { Ok(()) }
    }

    /// Lets the jobs go on that had spent their budget before this turn, each once.
    fn go_on_reading(&mut self, table: &mut Table, count: usize) {
        for _ in 0..count {
            let Some(key) = self.queues.ready.pop_front() else { return };
            self.with_job(table, key, Job::on_turn);
        }
    }

    fn let_deadlines_pass(&mut self, table: &mut Table) {
        let now = Instant::now();
        while let Some((key, alarm)) = self.deadlines.pop(now) {
            self.with_job(table, key, |job, lent| job.on_alarm(alarm, lent));
        }
    }

    /// Closes as many idle logs as had to make do with being opened and closed for each write.
    fn close_idle_logs(&mut self, table: &mut Table) {
        let queues = &mut self.queues;
        if queues.open_logs.len() > 2 * queues.open_logs_count + ENDED_LOGS_LISTED_MAX {
            queues.open_logs.retain(|key| table.get(*key).is_some_and(|job| job.outputs.has_open_log()));
        }
        let mut looks = self.queues.open_logs.len();
        while self.queues.open_logs_wanted > 0 && looks > 0 {
            looks -= 1;
            let Some(key) = self.queues.open_logs.pop_front() else { break };
            match table.get_mut(key).map_or(Room::None, |job| job.outputs.make_room(&mut self.queues)) {
                Room::Made => self.queues.open_logs_wanted -= 1,
                Room::Later => self.queues.open_logs.push_back(key),
                Room::None => {}
            }
        }
        self.queues.open_logs_wanted = 0;
    }

    /// Removes hidden jobs of which nothing is left.
    pub(crate) fn remove_gone(&mut self, table: &mut Table) {
        while let Some(key) = self.queues.gone.pop() {
            if table.get(key).is_some_and(|job| job.is_hidden() && job.is_gone()) {
                table.remove(key);
            }
        }
    }

    fn with_job(&mut self, table: &mut Table, key: Key, handle: impl FnOnce(&mut Job, &mut Lent<'_>)) {
        if let Some(job) = table.get_mut(key) {
            handle(job, &mut self.lend());
        }
    }

    /// Makes the epoll descriptor readable, until the next turn.
    pub(crate) fn wake(&mut self) -> Result<(), TurnError> {
        if !std::mem::replace(&mut self.woken, true) {
            self.waker.wake().map_err(TurnError::new("waking the loop"))?;
        }
        Ok(())
    }

    fn set_timer(&mut self, at: Instant) -> Result<(), TurnError> {
        // Zero would disarm it; a deadline in the past goes off at once.
        let wait = at.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
        let value = Timespec::try_from(wait).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        let setting = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        let set = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &setting);
        set.map_err(|errno| TurnError::new("setting the timerfd")(errno.into()))?;
        self.timer_at = Some(at);
        Ok(())
    }
}

impl AsFd for Reactor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.poll.registry().as_fd()
    }
}
