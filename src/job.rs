//! Floor 4: one job put together: its process, outputs, log and cgroup, driven by its [`Lifecycle`].

use std::cell::LazyCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::control::Control;
use crate::kernel::cgroup::{CgroupTree, JobCgroup, LimitFault, Removal};
use crate::kernel::log_dir::LogDir;
use crate::kernel::log_file::LogFile;
use crate::kernel::process::{self, Launch, Outcome, Process};
use crate::kernel::spawner::Slot;
use crate::kernel::stdio::{ChildFds, Stdio};
use crate::kernel::stream::LogStream;
use crate::kernel::watcher::{Watch, Watched, Watcher};
use crate::lent::{Alarm, Lent, OutputIndex, Queues, unix_millis};
use crate::log::Log;
use crate::logic::deadlines::Deadline;
use crate::logic::ids::Ids;
use crate::logic::kernel_text::Passage;
use crate::logic::ladder::{Ask, LimitsAbove};
use crate::logic::lifecycle::{Action, Input, Lifecycle, Timer};
use crate::logic::mark::Place;
use crate::logic::names;
use crate::logic::token::{Key, Source};
use crate::model::capabilities::{Rung, RungReason};
use crate::model::command::{Command, TreePolicy};
use crate::model::error::{JobError, StartFailure, Step, StreamError, errno};
use crate::model::event::Event;
use crate::model::id::{JobId, OwnerId};
use crate::model::limits::Limits;
use crate::model::log_policy::LogPolicy;
use crate::model::output::{LogFormat, OutputStream};
use crate::model::pressure::{Pressure, PressureResource};
use crate::model::reading::ReadOptions;
use crate::model::signal::Signal;
use crate::model::status::{Exit, JobState, ResourceUsage, Status, StopReason};
use crate::model::usage::{CgroupUsage, MemoryEvents};
use crate::outputs::{Outputs, Readiness};

/// When to look again at a cgroup that was not empty although its job had ended, before its notice is waited for. The kernel holds one back for some 10 ms
/// after another, and forgets it if somebody else removes the cgroup meanwhile: the last look comes after that time.
const TREE_LOOKS: [Duration; 3] = [Duration::from_micros(200), Duration::from_millis(2), Duration::from_millis(25)];

/// How long a start waits for a spawn slot before it takes a rung that needs none: children that cannot come off (a hung file system, a frozen cgroup)
/// are not to hold up the others.
pub(crate) const SLOT_WAIT_MAX: Duration = Duration::from_millis(100);

/// How long a start that failed in the host, after the child was made, may wait for that to be gone.
const UNDO_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a change of limits waits for a child that has just executed its program to be out of the host's memory: that is microseconds.
const LEAVE_TIME_MAX: Duration = Duration::from_millis(10);

/// How often, at most, it is looked at where no notice can be had.
const TREE_LOOK_EVERY: Duration = Duration::from_millis(10);

/// What every start of a worker has in common.
#[derive(Debug)]
pub(crate) struct Host {
    /// Where the ids of jobs come from.
    pub(crate) ids: Ids,
    /// `/dev/null`.
    pub(crate) null: Arc<OwnedFd>,
    /// The limit of open files, soft and hard, that jobs get because the host's own was raised.
    pub(crate) nofile: Option<(u64, u64)>,
    /// Why jobs have no cgroups, if they have none.
    pub(crate) cgroup_missing: Option<String>,
}

/// What a job has to tell, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Notice {
    Started = 1,
    LogFault = 1 << 1,
    LogResumed = 1 << 2,
    LogFull = 1 << 3,
    OutOfMemory = 1 << 4,
    MemoryHigh = 1 << 5,
    PidsMax = 1 << 6,
    Frozen = 1 << 7,
    CpuPressure = 1 << 8,
    MemoryPressure = 1 << 9,
    IoPressure = 1 << 10,
    Exited = 1 << 11,
    LogReady = 1 << 12,
    TreeEmpty = 1 << 13,
    Over = 1 << 14,
}

const NOTICES: [Notice; 15] = [
    Notice::Started,
    Notice::LogFault,
    Notice::LogResumed,
    Notice::LogFull,
    Notice::OutOfMemory,
    Notice::MemoryHigh,
    Notice::PidsMax,
    Notice::Frozen,
    Notice::CpuPressure,
    Notice::MemoryPressure,
    Notice::IoPressure,
    Notice::Exited,
    Notice::LogReady,
    Notice::TreeEmpty,
    Notice::Over,
];

/// One job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) owner: OwnerId,
    key: Key,
    name: Box<str>,
    pid: i32,
    rung: Rung,
    rung_reason: RungReason,
    life: Lifecycle,
    unspawned: Option<Box<Unspawned>>,
    process: Option<Process>,
    report_registered: bool,
    to_stdin: Option<OwnedFd>,
    piped: [Option<OwnedFd>; 2],
    pub(crate) outputs: Outputs,
    cgroup: Option<JobCgroup>,
    had_cgroup: bool,
    watch: Option<Watch>,
    tree_looks: usize,
    control: Option<Box<Control>>,
    deadlines: Deadlines,
    started: SystemTime,
    started_at: Instant,
    ended: Option<Box<Ended>>,
    failure: Option<Box<StartFailure>>,
    notices: u16,
    oom_killed: bool,
    reports_queued: bool,
    ready_queued: bool,
    sight: Sight,
    /// Whether a handle waits for its start or its end.
    is_awaited: bool,
    confirmed: bool,
    /// Whether its program is known to have been executed, beyond doubt: see [`Job::doubt_start`].
    was_seen_past_exec: bool,
    /// Whether the pidfd is kept after the reap: for signals to what is left of the process group.
    keeps_pidfd: bool,
}

/// What is known of the end of a job, as it comes. Most of a job's life there is nothing, and no room is taken.
#[derive(Clone, Copy, Debug, Default)]
struct Ended {
    exited_at: Option<Instant>,
    finished: Option<SystemTime>,
    usage: Option<ResourceUsage>,
}

/// In whose sight a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Callers,
    /// It is the worker's own, which says when it may go.
    Workers,
    /// It goes as soon as it can.
    Nobodys,
}

#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    timeout: Deadline,
    grace: Deadline,
    drain_idle: Deadline,
    drain_total: Deadline,
    tree: Deadline,
    reap: Deadline,
    slot: Deadline,
}

impl Deadlines {
    fn of(&mut self, timer: Timer) -> &mut Deadline {
        match timer {
            Timer::Timeout => &mut self.timeout,
            Timer::Grace => &mut self.grace,
            Timer::DrainIdle => &mut self.drain_idle,
            Timer::DrainTotal => &mut self.drain_total,
        }
    }
}

/// A job that has no process yet: what that is to be made of.
#[derive(Debug)]
struct Unspawned {
    launch: Launch,
    fds: ChildFds,
    /// Whether it has waited for a slot for long enough.
    is_overdue: bool,
    is_queued: bool,
}

/// The parts of a start that exist already; each is undone when a later one fails.
struct Undo<'a, 'b> {
    lent: &'a mut Lent<'b>,
    key: Key,
    log: Option<LogFile>,
    cgroup: Option<JobCgroup>,
    control: Option<Box<Control>>,
    registered: Vec<i32>,
}

impl Drop for Undo<'_, '_> {
    fn drop(&mut self) {
        for fd in &self.registered {
            self.lent.deregister_number(*fd);
        }
        if let Some(mut control) = self.control.take() {
            control.end(self.key, self.lent);
        }
        if let (Some(cgroup), Some(tree)) = (self.cgroup.take(), self.lent.cgroups.as_ref()) {
            let _ = tree.remove(&cgroup);
        }
        if let Some(mut log) = self.log.take() {
            let _ = log.delete(self.lent.log_dir.as_fd());
        }
    }
}

impl Job {
    /// Makes a job that will be at `key` in the table, with everything but its process: log, pipes, cgroup, exec image, in this order.
    pub(crate) fn prepare(
        command: &Command,
        (format, policy): (LogFormat, LogPolicy),
        owner: OwnerId,
        key: Key,
        host: &mut Host,
        lent: &mut Lent<'_>,
    ) -> Result<Self, StartFailure> {
        let id = JobId::from(host.ids.next(unix_millis()));
        let name = names::safe_name(command.name.as_ref().map_or(command.program.as_os_str(), |name| name.as_ref()));
        let entry = LazyCell::new(|| names::entry_name(&name, id));
        let settings = lent.settings;
        let (started, started_at) = (SystemTime::now(), lent.now);
        let mut undo = Undo { lent, key, log: None, cgroup: None, control: None, registered: Vec::new() };

        if command.capture.is_logged() {
            let log_dir = &mut *undo.lent.log_dir;
            let failed = |log_dir: &LogDir, error| StartFailure::new(Step::Log, Some(&log_dir.path_of(&names::log_name(&entry))), &error);
            let log = LogFile::create(log_dir.as_fd(), names::log_name(&entry)).map_err(|error| failed(log_dir, error))?;
            let log = undo.log.insert(log);
            if let Some(fd) = log.fd() {
                log_dir.mark(fd, log.name(), format, Place::FIRST).map_err(|error| failed(log_dir, error))?;
            }
        }
        let log_fd = undo.log.as_ref().and_then(LogFile::fd);
        let mut stdio = Stdio::new(&command.stdin, command.capture, log_fd, &host.null, undo.lent.spawner.low_fds())
            .map_err(|error| StartFailure::new(Step::Pipe, None, &error))?;
        if let Some(uid) = command.uid {
            stdio.give_to(uid, command.gid);
        }
        if let Some(tree) = undo.lent.cgroups.as_mut() {
            let made = tree.make(&entry);
            undo.cgroup = Some(made.map_err(|error| StartFailure::new(Step::Cgroup, Some(&tree.path_named(&entry)), &error))?);
        }
        if !command.limits.is_empty() {
            let cgroup = undo.cgroup.as_ref().ok_or_else(|| no_cgroup(host.cgroup_missing.as_deref()))?;
            let begun = undo.control.insert(Box::default()).begin(&command.limits, key, cgroup, undo.lent);
            begun.map_err(|fault| StartFailure::limit(Some(&fault.path), &fault.error, fault.advice))?;
        } else if settings.accounting && undo.cgroup.is_some() {
            undo.control = Some(Box::default());
        }
        let launch = Launch::new(command, settings.env_base, host.nofile)?;

        let captured = command.capture.is_pumped();
        if captured {
            let sources = [Source::Stdout, Source::Stderr];
            for (fd, source) in stdio.from.iter().zip(sources).filter_map(|(fd, source)| Some((fd.as_ref()?.as_raw_fd(), source))) {
                undo.lent.register(fd, key, source).map_err(|error| StartFailure::new(Step::Watch, None, &error))?;
                undo.registered.push(fd);
            }
        }

        // Everything exists: from here on the job owns it.
        undo.registered.clear();
        let from = std::mem::take(&mut stdio.from);
        let (pipes, piped) = if captured { (from, [None, None]) } else { ([None, None], from) };
        let pipes_count = pipes.iter().flatten().count();
        let mut log = undo.log.take().map(|file| Log::new(key, file, format, policy, pipes_count, started_at));
        if let Some(log) = log.as_mut().filter(|_| !captured) {
            // The job has its own copy of the descriptor, and we do not write.
            log.close();
        }
        let (cgroup, control) = (undo.cgroup.take(), undo.control.take());
        drop(undo);
        let mut job = Self {
            id,
            owner,
            key,
            name: name.into(),
            pid: 0,
            rung: lent.spawner.best,
            rung_reason: RungReason::default(),
            life: Lifecycle::new(command.tree, captured, command.timeout_signal),
            process: None,
            report_registered: false,
            to_stdin: stdio.to_stdin.take(),
            unspawned: Some(Box::new(Unspawned {
                launch,
                fds: ChildFds::Open { stdio, own: command.fds.clone() },
                is_overdue: false,
                is_queued: false,
            })),
            piped,
            outputs: Outputs::new(key, pipes, log, settings.line_bytes_max),
            had_cgroup: cgroup.is_some(),
            cgroup,
            watch: None,
            tree_looks: 0,
            control,
            deadlines: Deadlines::default(),
            started,
            started_at,
            ended: None,
            failure: None,
            notices: 0,
            oom_killed: false,
            reports_queued: false,
            ready_queued: false,
            sight: Sight::Callers,
            is_awaited: false,
            confirmed: false,
            was_seen_past_exec: false,
            keeps_pidfd: command.tree == TreePolicy::Wait,
        };
        lent.queues.unfinished += 1;
        job.outputs.keep_log_open(lent);
        if let Some(timeout) = command.timeout {
            // A timeout beyond what the clock can say never comes.
            if let Some(due) = started_at.checked_add(timeout) {
                job.arm(Timer::Timeout, due, lent);
            }
        }
        Ok(job)
    }

    /// Makes the process, on the rung that is safe for it, unless that needs a spawn slot and none is free: then the job waits for one. A failure
    /// ends the job.
    pub(crate) fn spawn_or_wait(&mut self, lent: &mut Lent<'_>) {
        let Some(mut unspawned) = self.unspawned.take() else { return };
        let (mut rung, mut reason) = self.choose_rung(unspawned.launch.ask(), lent);
        let mut slot = None;
        if rung.shares_memory() {
            // Those that wait come first.
            let is_my_turn = unspawned.is_queued || lent.queues.waiting_for_slot.is_empty();
            slot = if is_my_turn { lent.spawner.take_slot() } else { None };
            if slot.is_none() && unspawned.is_overdue {
                (rung, reason) = (Rung::ForkLike, RungReason::SlotsBusy);
            } else if slot.is_none() {
                if !std::mem::replace(&mut unspawned.is_queued, true) {
                    unspawned.fds.park();
                    lent.queues.waiting_for_slot.push_back(self.key);
                    lent.deadlines.arm(&mut self.deadlines.slot, lent.now + SLOT_WAIT_MAX, (self.key, Alarm::Slot));
                }
                self.unspawned = Some(unspawned);
                return;
            }
        }
        lent.deadlines.remove(&mut self.deadlines.slot, (self.key, Alarm::Slot));
        (self.rung, self.rung_reason) = (rung, reason);
        let spawned = self.ready_cgroup(lent).and_then(|()| self.spawn(*unspawned, &mut slot, lent));
        if let Some(slot) = slot {
            lent.spawner.return_slot(slot);
        }
        match spawned {
            Ok(process) => {
                self.pid = process.pid();
                if process.rung() != rung {
                    (self.rung, self.rung_reason) = (process.rung(), RungReason::NotSendable);
                }
                if process.is_to_be_looked_at() {
                    lent.queues.in_flight.push(self.key);
                    lent.queues.look_soon = true;
                }
                self.process = Some(process);
            }
            Err(failure) => self.fail_without_process(failure, lent),
        }
    }

    fn choose_rung(&self, ask: &Ask, lent: &mut Lent<'_>) -> (Rung, RungReason) {
        let above = match lent.cgroups.as_mut().filter(|_| lent.spawner.best.shares_memory()) {
            Some(tree) => tree.limits_above(),
            None => LimitsAbove::default(),
        };
        let is_frozen = || match (lent.cgroups.as_ref(), self.cgroup.as_ref()) {
            (Some(tree), Some(cgroup)) => tree.is_frozen(cgroup),
            _ => false,
        };
        lent.spawner.choose(ask, above, is_frozen)
    }

    /// Sets what only a child that shares the host's memory has to be spared, if this one does not.
    fn ready_cgroup(&mut self, lent: &mut Lent<'_>) -> Result<(), StartFailure> {
        match (self.control.as_mut(), self.cgroup.as_ref(), lent.cgroups.as_ref()) {
            (Some(control), Some(cgroup), Some(tree)) if !self.rung.shares_memory() => control
                .set_oom_group_early(tree, cgroup)
                .map_err(|fault| StartFailure::limit(Some(&fault.path), &fault.error, fault.advice)),
            _ => Ok(()),
        }
    }

    fn spawn(&self, unspawned: Unspawned, slot: &mut Option<Slot>, lent: &mut Lent<'_>) -> Result<Process, StartFailure> {
        let place = match (lent.cgroups.as_ref(), self.cgroup.as_ref()) {
            (Some(tree), Some(cgroup)) => {
                let path = || tree.path_of(cgroup);
                let opened = if self.rung == Rung::Fork { tree.open_procs(cgroup) } else { tree.open_directory(cgroup) };
                Some((opened.map_err(|error| StartFailure::new(Step::Cgroup, Some(&path()), &error))?, path))
            }
            _ => None,
        };
        let place = place.as_ref().map(|(fd, path)| process::Place { fd: fd.as_fd(), path });
        let Unspawned { launch, mut fds, .. } = unspawned;
        fds.unpark(lent.spawner.low_fds()).map_err(|error| StartFailure::new(Step::Pipe, None, &error))?;
        let is_suid_dumpable = launch.ask().changes_ids && lent.spawner.is_suid_dumpable();
        let mut process = launch.spawn(self.rung, is_suid_dumpable, &fds.list(), place, slot)?;
        // From here on the child alone holds its ends of the pipes.
        drop(fds);
        if let Err(error) = lent.register(process.pidfd().as_raw_fd(), self.key, Source::Pidfd) {
            self.undo_process(&mut process, lent);
            return Err(StartFailure::new(Step::Watch, None, &error));
        }
        Ok(process)
    }

    /// Kills a process that the loop cannot watch, and waits for its end, though not for long.
    fn undo_process(&self, process: &mut Process, lent: &mut Lent<'_>) {
        // Its program may run already, and have children.
        let _ = process.signal(Signal::KILL);
        let _ = process.wait_dead(UNDO_TIME_MAX);
        if let (Some(cgroup), Some(tree)) = (&self.cgroup, lent.cgroups.as_mut()) {
            let _ = tree.kill(cgroup);
            let _ = tree.wait_empty(cgroup, UNDO_TIME_MAX);
        } else {
            let _ = process.signal_group(Signal::KILL);
        }
        let _ = process.reap();
        if let Some(start) = process.take_start() {
            lent.spawner.end(start);
        }
    }

    /// There is no process, and there will be none.
    fn fail_without_process(&mut self, failure: StartFailure, lent: &mut Lent<'_>) {
        self.unspawned = None;
        self.failure = Some(Box::new(failure));
        let _ = self.feed(Input::NotSpawned, lent);
    }

    /// Why the start failed, if it did.
    pub(crate) fn failure(&self) -> Option<&StartFailure> {
        self.failure.as_deref()
    }

    /// Whether the job waits for a spawn slot.
    pub(crate) fn is_waiting_for_slot(&self) -> bool {
        self.unspawned.is_some()
    }

    /// Waits up to `timeout` for the program to be executed.
    pub(crate) fn confirm(&mut self, timeout: Duration, lent: &mut Lent<'_>) -> Option<StartFailure> {
        self.confirmed = true;
        self.wait_for_start(timeout);
        self.on_report(lent);
        // A child that was killed on its way lets go of its link, or slot, as one does that executes its program.
        let passage = if self.life.is_starting() { None } else { self.process.as_ref().and_then(Process::passage) };
        self.was_seen_past_exec |= passage == Some(Passage::Past);
        if self.failure.is_some() || passage == Some(Passage::EndsBefore) {
            // The child is on its last instruction; one that is held there (stopped, frozen) is left to the loop.
            if let Some(process) = &self.process {
                process.wait_dead(timeout.max(Duration::from_millis(100)));
            }
            self.on_pidfd(lent);
        }
        self.confirmed = !self.life.is_starting();
        // Nobody has to look at it any more, and no timer to go off for that.
        if self.confirmed && lent.queues.in_flight.last() == Some(&self.key) {
            lent.queues.in_flight.pop();
        }
        self.failure.as_deref().cloned()
    }

    /// Waits up to `timeout` for the start to be decided, without taking note of it.
    pub(crate) fn wait_for_start(&self, timeout: Duration) {
        if let Some(process) = &self.process {
            process.wait_for_start(timeout);
        }
    }

    /// Lets the loop wait for the program to be executed.
    pub(crate) fn watch_start(&mut self, lent: &mut Lent<'_>) -> io::Result<()> {
        if let Some(link) = self.process.as_ref().and_then(Process::link).filter(|_| !self.report_registered) {
            lent.register(link.as_raw_fd(), self.key, Source::Report)?;
            self.report_registered = true;
        }
        Ok(())
    }

    /// Looks whether the child is off its slot; whether it has to be looked at again.
    pub(crate) fn on_look(&mut self, lent: &mut Lent<'_>) -> bool {
        self.on_report(lent);
        self.process.as_ref().is_some_and(Process::is_to_be_looked_at)
    }

    /// A slot may be free for the job, or it has waited for long enough.
    pub(crate) fn on_slot(&mut self, is_overdue: bool, lent: &mut Lent<'_>) {
        let Some(unspawned) = &mut self.unspawned else { return };
        unspawned.is_overdue |= is_overdue;
        self.spawn_or_wait(lent);
        if let Err(error) = self.watch_start(lent) {
            // Without the link its end is all that will tell of the start.
            self.failure = Some(Box::new(StartFailure::new(Step::Watch, None, &error)));
            let _ = self.process.as_ref().map(|process| process.signal(Signal::KILL));
            let _ = self.feed(Input::StartFailed, lent);
        }
    }

    /// One of the job's descriptors is ready.
    pub(crate) fn on_ready(&mut self, source: Source, closed: bool, lent: &mut Lent<'_>) {
        match source {
            Source::Stdout => self.on_output(0, closed, lent),
            Source::Stderr => self.on_output(1, closed, lent),
            Source::Pidfd => self.on_pidfd(lent),
            Source::Report => self.on_report(lent),
            // Somebody has taken the cgroup away.
            Source::Pressure(resource) if closed => {
                if let Some(control) = &mut self.control {
                    control.unwatch_pressure(resource, lent);
                }
            }
            Source::Pressure(resource) => self.note(
                match resource {
                    PressureResource::Cpu => Notice::CpuPressure,
                    PressureResource::Memory => Notice::MemoryPressure,
                    PressureResource::Io => Notice::IoPressure,
                },
                lent,
            ),
        }
    }

    /// A deadline of the job may be due.
    pub(crate) fn on_alarm(&mut self, alarm: Alarm, lent: &mut Lent<'_>) {
        let key = (self.key, alarm);
        match alarm {
            // The time of silence does not run while the output waits for its log; that of the whole drain does.
            Alarm::Life(Timer::DrainIdle) if self.outputs.is_held() => {
                if lent.deadlines.settle(&mut self.deadlines.drain_idle, lent.now, key) {
                    self.arm(Timer::DrainIdle, lent.now + lent.settings.drain_idle_max, lent);
                }
            }
            Alarm::Life(timer) => {
                if lent.deadlines.settle(self.deadlines.of(timer), lent.now, key) {
                    let _ = self.feed(Input::Deadline(timer), lent);
                }
            }
            Alarm::Flush(index) => {
                let read = self.outputs.flush_line(index, lent);
                self.after_read(read, lent);
            }
            Alarm::Gather => {
                let read = self.outputs.gathered(lent);
                self.after_read(read, lent);
            }
            Alarm::Log => {
                let read = self.outputs.go_on(lent);
                self.after_read(read, lent);
            }
            Alarm::Slot => {
                if lent.deadlines.settle(&mut self.deadlines.slot, lent.now, key) {
                    self.on_slot(true, lent);
                }
            }
            Alarm::Leave => {
                if self.control.as_mut().is_some_and(|control| control.is_leave_due(self.key, lent)) {
                    self.set_oom_group(lent);
                }
            }
            Alarm::Reap => {
                if lent.deadlines.settle(&mut self.deadlines.reap, lent.now, key) {
                    self.on_reap_alarm(lent);
                }
            }
            Alarm::Tree => {
                if lent.deadlines.settle(&mut self.deadlines.tree, lent.now, key) {
                    self.on_tree_notice(lent);
                }
            }
        }
    }

    /// The job spent its budget in an earlier turn; it goes on reading.
    pub(crate) fn on_turn(&mut self, lent: &mut Lent<'_>) {
        self.ready_queued = false;
        self.read_outputs(lent);
    }

    /// Something changed in the job's cgroup.
    pub(crate) fn on_notice(&mut self, watched: Watched, lent: &mut Lent<'_>) {
        match watched {
            Watched::Tree => self.on_tree_notice(lent),
            Watched::Memory => self.look_at_memory(lent),
            Watched::Log => {
                self.outputs.look_at_log(lent);
                self.queue_reports(lent.queues);
            }
            Watched::Pids => {
                if let Some(count) = self.with_cgroup(lent, CgroupTree::pids_max_events) {
                    self.note_pids(count, lent);
                }
            }
        }
    }

    /// Processes may have gone from the job's cgroup, or been frozen.
    fn on_tree_notice(&mut self, lent: &mut Lent<'_>) {
        if self.cgroup.is_none() {
            return;
        }
        // Also of what has outlived the main process.
        self.look_at_freeze(lent);
        if self.life.exit().is_none() && self.failure.is_none() {
            return;
        }
        let removed = self.remove_cgroup(lent);
        if let Ok(Removal::Gone) = removed {
            self.tree_gone(lent);
        } else {
            self.tree_looks += 1;
            self.look_again(removed.is_ok(), lent);
            if let Ok(Removal::Stuck) = removed {
                let _ = self.feed(Input::TreeStuck, lent);
            }
        }
    }

    /// Kills the tree.
    pub(crate) fn stop(&mut self, reason: StopReason, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        self.feed(Input::Stop(reason), lent).map_err(|source| JobError::Io { job, operation: "killing the process tree", source })
    }

    /// Signals the process group, kills the tree after `grace`.
    pub(crate) fn stop_with(&mut self, reason: StopReason, signal: Signal, grace: Duration, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        let input = Input::StopGently(reason, signal, grace);
        self.feed(input, lent).map_err(|source| JobError::Io { job, operation: "signalling the process group", source })
    }

    /// When the grace time of a gentle stop ends; `None` if there is none.
    pub(crate) fn grace_due(&self, lent: &Lent<'_>) -> Option<Instant> {
        lent.deadlines.due(&self.deadlines.grace)
    }

    /// Lets the job run on without the worker, if its program runs, and nothing of its start is left to do.
    pub(crate) fn leave(&mut self, lent: &mut Lent<'_>) {
        if self.process.as_ref().is_some_and(|process| process.wait_dead(Duration::ZERO)) {
            // It has ended, and the loop has not come to hear of it.
            self.on_pidfd(lent);
        }
        self.set_oom_group(lent);
        if self.control.as_ref().is_some_and(|control| control.is_oom_group_due()) {
            return;
        }
        let _ = self.feed(Input::Leave, lent);
    }

    /// Sets limits while the job runs. `missing`: why it may have no cgroup.
    pub(crate) fn set_limits(&mut self, limits: &Limits, missing: Option<&str>, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        limits.check().map_err(|source| JobError::InvalidLimits { job, source })?;
        self.check_cgroup(missing)?;
        if !self.is_out_of_host_memory() {
            return Err(JobError::Starting { job });
        }
        let Some(cgroup) = &self.cgroup else { return Err(JobError::Ended { job }) };
        let changed = self.control.get_or_insert_default().change(limits, self.key, cgroup, lent);
        if limits.oom_group().is_some() {
            // A limit below what is used kills while it is written: before it is watched for, maybe.
            self.look_at_memory(lent);
        }
        changed.map_err(|LimitFault { path, error, advice }| JobError::Limit { job, path, advice, source: error })
    }

    /// What the job has used so far, or in all.
    pub(crate) fn cgroup_usage(&self, missing: Option<&str>, cgroups: Option<&CgroupTree>) -> Result<CgroupUsage, JobError> {
        let job = self.id;
        match (self.control.as_ref().and_then(|control| control.usage.as_ref()), self.cgroup.as_ref().zip(cgroups)) {
            (Some(usage), None) => Ok(usage.clone()),
            (_, Some((cgroup, tree))) => {
                tree.usage(cgroup).map_err(|source| JobError::Io { job, operation: "reading the cgroup's usage", source })
            }
            (None, None) => self.check_cgroup(missing).and(Err(JobError::Ended { job })),
        }
    }

    /// Freezes the job's processes, or lets them go on.
    pub(crate) fn freeze(&mut self, freeze: bool, missing: Option<&str>, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        self.check_cgroup(missing)?;
        let (Some(cgroup), Some(tree)) = (self.cgroup.as_ref(), lent.cgroups.as_ref()) else { return Err(JobError::Ended { job }) };
        let failed = |operation| move |source| JobError::Io { job, operation, source };
        if self.watch.is_none() {
            let watched = lent.watcher.watch(&tree.file_path(cgroup, "cgroup.events"), self.key, Watched::Tree);
            self.watch = Some(watched.map_err(failed("watching the cgroup"))?);
        }
        tree.freeze(cgroup, freeze).map_err(failed(if freeze { "freezing the processes" } else { "thawing the processes" }))?;
        self.control.get_or_insert_default().watches_frozen = true;
        // It may have happened before the watch.
        self.look_at_freeze(lent);
        Ok(())
    }

    /// Asks for word of pressure; `None`: of no more.
    pub(crate) fn watch_pressure(
        &mut self,
        resource: PressureResource,
        pressure: Option<&Pressure>,
        missing: Option<&str>,
        lent: &mut Lent<'_>,
    ) -> Result<(), JobError> {
        let job = self.id;
        self.check_cgroup(missing)?;
        let Some(cgroup) = &self.cgroup else { return Err(JobError::Ended { job }) };
        let Some(pressure) = pressure else {
            if let Some(control) = &mut self.control {
                control.unwatch_pressure(resource, lent);
            }
            return Ok(());
        };
        if !pressure.is_valid() {
            return Err(JobError::InvalidPressure { job });
        }
        let watched = self.control.get_or_insert_default().watch_pressure(resource, pressure, self.key, cgroup, lent);
        watched.map_err(|source| JobError::Io { job, operation: "watching the pressure", source })
    }

    fn check_cgroup(&self, missing: Option<&str>) -> Result<(), JobError> {
        if self.had_cgroup {
            return Ok(());
        }
        let reason = missing.unwrap_or("the worker has none").to_owned();
        Err(JobError::NoCgroup { job: self.id, reason })
    }

    /// Whether the job's child stands in memory of its own, waiting a moment for one that has just executed its program.
    fn is_out_of_host_memory(&self) -> bool {
        if self.was_seen_past_exec || self.life.is_starting() {
            return self.was_seen_past_exec;
        }
        let Some(process) = self.process.as_ref().filter(|process| process.rung().shares_memory()) else { return true };
        let deadline = Instant::now() + LEAVE_TIME_MAX;
        while !process.is_past_exec() {
            if process.is_reaped() || process.wait_dead(Duration::ZERO) {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Sends a signal to the main process.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), JobError> {
        match &self.process {
            Some(process) if self.life.exit().is_none() => process.signal(signal).map_err(|source| match source.raw_os_error() {
                Some(errno::ESRCH) => JobError::Ended { job: self.id },
                _ => JobError::Io { job: self.id, operation: "signalling the main process", source },
            }),
            None if self.is_waiting_for_slot() => Err(JobError::NotStarted { job: self.id }),
            _ => Err(JobError::Ended { job: self.id }),
        }
    }

    /// The end of the job's stdin pipe, if it has one and nobody took it.
    pub(crate) fn take_stdin(&mut self) -> Option<OwnedFd> {
        self.to_stdin.take()
    }

    /// The end of one of its output pipes, if they are piped and nobody took it.
    pub(crate) fn take_output(&mut self, stream: OutputStream) -> Option<OwnedFd> {
        self.piped[usize::from(stream == OutputStream::Stderr)].take()
    }

    /// A reader of the job's log.
    pub(crate) fn stream(&self, options: &ReadOptions, log_dir: &LogDir, watcher: &Watcher) -> Result<LogStream, StreamError> {
        self.outputs.stream(options, self.is_finished(), log_dir, watcher).unwrap_or(Err(StreamError::NotLogged { job: self.id }))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.life.state().is_finished()
    }

    /// Everything known about the job.
    pub(crate) fn status(&self, log_dir: &LogDir, cgroups: Option<&CgroupTree>, now: Instant) -> Status {
        let exit = self.life.exit();
        let ended = self.ended.as_deref().copied().unwrap_or_default();
        let entry = || names::entry_name(&self.name, self.id);
        Status {
            id: self.id,
            owner: self.owner,
            name: self.name.to_string(),
            pid: self.pid,
            state: self.life.state(),
            exit,
            exit_code: if let Some(Exit::Code(code)) = exit { code } else { -1 },
            stop_reason: self.life.stop_reason(),
            failure: self.failure.as_deref().cloned(),
            started: self.started,
            finished: ended.finished,
            run_time: ended.exited_at.unwrap_or(now).saturating_duration_since(self.started_at),
            usage: ended.usage,
            oom_killed: self.oom_killed,
            frozen: self.control.as_ref().is_some_and(|control| control.is_frozen),
            cgroup_usage: self.control.as_ref().and_then(|control| control.usage.clone()),
            output: self.outputs.count(),
            log: self.outputs.log_path(log_dir),
            cgroup: cgroups.filter(|_| self.had_cgroup).map(|tree| tree.path_named(&entry())),
            cgroup_left: self.life.tree_is_left() && self.cgroup.is_some(),
            rung: self.rung,
            rung_reason: self.rung_reason,
        }
    }

    /// The next thing to tell; `None` when all is told.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let notice = NOTICES.into_iter().find(|notice| self.notices & *notice as u16 != 0)?;
        self.notices &= !(notice as u16);
        let job = self.id;
        let exit = self.life.exit().unwrap_or(Exit::Unknown);
        Some(match notice {
            Notice::Started => Event::Started { job },
            Notice::LogFault => Event::LogFault { job, errno: self.outputs.fault() },
            Notice::LogResumed => Event::LogResumed { job, dropped_bytes: self.outputs.count().dropped_bytes },
            Notice::LogFull => Event::LogFull { job },
            Notice::OutOfMemory => Event::OutOfMemory { job },
            Notice::MemoryHigh => Event::MemoryHigh { job },
            Notice::PidsMax => Event::PidsMax { job },
            Notice::Frozen => Event::Frozen { job, frozen: self.control.as_ref().is_some_and(|control| control.is_frozen) },
            Notice::CpuPressure => Event::Pressure { job, resource: PressureResource::Cpu },
            Notice::MemoryPressure => Event::Pressure { job, resource: PressureResource::Memory },
            Notice::IoPressure => Event::Pressure { job, resource: PressureResource::Io },
            Notice::TreeEmpty => Event::TreeEmpty { job },
            Notice::Exited => Event::Exited { job, exit },
            Notice::LogReady => Event::LogReady { job },
            Notice::Over => match self.failure.as_deref() {
                _ if self.life.state() == JobState::Left => Event::Left { job },
                Some(failure) => Event::StartFailed { job, failure: failure.clone() },
                None => Event::Finished { job, exit },
            },
        })
    }

    /// Whether everything was told.
    pub(crate) fn is_told(&self) -> bool {
        self.notices == 0
    }

    /// The job left the queue of those with something to tell.
    pub(crate) fn reports_taken(&mut self) {
        self.reports_queued = false;
    }

    /// Puts the job back into that queue if it has more to tell.
    pub(crate) fn queue_reports(&mut self, queues: &mut Queues) {
        let news = self.outputs.take_news();
        if self.sight != Sight::Callers {
            self.notices = 0;
            return;
        }
        if news.fault && self.notices & Notice::LogResumed as u16 != 0 {
            // What was to be told is no longer so, and the fault was told before.
            self.notices &= !(Notice::LogResumed as u16);
        } else if news.fault {
            self.notices |= Notice::LogFault as u16;
        }
        self.notices |= if news.resumed { Notice::LogResumed as u16 } else { 0 };
        self.notices |= if news.full { Notice::LogFull as u16 } else { 0 };
        self.notices |= if news.ready { Notice::LogReady as u16 } else { 0 };
        if self.notices != 0 && !self.reports_queued {
            self.reports_queued = true;
            queues.reports.push_back(self.key);
        }
    }

    /// Forgets what was not told, somebody having seen the end in another way; whether it still stands in that queue.
    pub(crate) fn drop_notices(&mut self) -> bool {
        self.notices = 0;
        std::mem::take(&mut self.reports_queued)
    }

    /// Forgets that the program was executed is to be told, somebody having heard of it in another way.
    pub(crate) fn drop_started(&mut self) {
        self.notices &= !(Notice::Started as u16);
    }

    /// Makes the job the worker's own: it tells nobody anything, and stays until it is hidden.
    pub(crate) fn make_internal(&mut self) {
        self.sight = Sight::Workers;
        self.notices = 0;
    }

    pub(crate) fn is_internal(&self) -> bool {
        self.sight == Sight::Workers
    }

    /// Whether somebody is to be told, by way of the queue of those who are awaited, that its program runs, or that it is over.
    pub(crate) fn set_awaited(&mut self, is_awaited: bool) {
        self.is_awaited = is_awaited;
    }

    pub(crate) fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Whether its start is not decided yet.
    pub(crate) fn is_starting(&self) -> bool {
        self.life.state() == JobState::Starting
    }

    /// When the job finished.
    pub(crate) fn finished_at(&self) -> Option<SystemTime> {
        self.ended.as_ref()?.finished
    }

    /// Takes the job out of everybody's sight; it goes once nothing is left of it.
    pub(crate) fn hide(&mut self, queues: &mut Queues) {
        self.sight = Sight::Nobodys;
        self.notices = 0;
        queues.gone.push(self.key);
    }

    /// The worker is going: a cgroup that could not be removed before gets its last chance.
    pub(crate) fn abandon_cgroup(&mut self, lent: &mut Lent<'_>) {
        self.end_tree(self.had_cgroup, lent);
    }

    /// Whether the job may be removed from the table without losing anything.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_finished() && self.cgroup.is_none() && self.process.is_none()
    }

    pub(crate) fn is_hidden(&self) -> bool {
        self.sight == Sight::Nobodys
    }

    /// The worker goes, although the job is not over: its streams end with what was read.
    pub(crate) fn end_streams(&mut self, lent: &mut Lent<'_>) {
        self.outputs.close(lent);
        self.outputs.end_streams(lent);
    }

    fn on_report(&mut self, lent: &mut Lent<'_>) {
        let Some(input) = self.read_report(lent) else { return };
        self.decide_start(lent);
        let _ = self.feed(input, lent);
    }

    fn read_report(&mut self, lent: &Lent<'_>) -> Option<Input> {
        let process = self.process.as_ref()?;
        match process.outcome(|| cgroup_path(lent.cgroups.as_ref(), self.cgroup.as_ref())) {
            Outcome::Pending => None,
            // It was stopped on its way, and lets go of its link, or slot, as it dies: its end tells the rest.
            Outcome::Executed if self.life.stop_reason().is_some() && process.ends_before_exec() => None,
            Outcome::Executed => Some(Input::Executed),
            Outcome::Failed(failure) => {
                // It is on its last instruction, unless somebody holds it there: a tenant may stop its own.
                let _ = process.signal(Signal::KILL);
                self.failure = Some(Box::new(failure));
                Some(Input::StartFailed)
            }
        }
    }

    /// The start is decided: its link and image go, its slot is free.
    fn decide_start(&mut self, lent: &mut Lent<'_>) {
        if let Some(process) = &mut self.process {
            if let Some(link) = process.link()
                && self.report_registered
            {
                lent.deregister(link);
            }
            if let Some(start) = process.take_start() {
                lent.spawner.end(start);
            }
        }
        self.report_registered = false;
    }

    fn on_output(&mut self, index: OutputIndex, closed: bool, lent: &mut Lent<'_>) {
        self.outputs.set_readable(index, closed, lent);
        self.read_outputs(lent);
    }

    fn on_pidfd(&mut self, lent: &mut Lent<'_>) {
        if self.life.exit().is_some() || self.is_finished() {
            self.reap_late(lent);
            return;
        }
        // What has written something has executed its program; what it has written may not have been read yet.
        self.was_seen_past_exec |= self.outputs.count().stdout_bytes + self.outputs.count().stderr_bytes > 0;
        if self.was_seen_past_exec && self.life.is_starting() {
            self.on_report(lent);
        }
        let is_decided = self.process.as_ref().is_none_or(Process::is_decided);
        // Without a cgroup the group is killed while its leader is a zombie; then its id cannot be somebody else's.
        let mut peeked = Ok(None);
        if !(self.had_cgroup && is_decided && self.was_seen_past_exec) {
            peeked = self.process.as_mut().map_or(Ok(None), Process::peek);
            self.doubt_start(peeked.as_ref().ok().copied().flatten().map(|(exit, _)| exit), lent);
        }
        let is_decided = self.process.as_ref().is_none_or(Process::is_decided);
        if self.life.is_starting() && !is_decided {
            // A failure would stand on the link by now. That may still be open, in a child of another thread between its fork and its exec.
            let input = self.read_report(lent).unwrap_or(Input::Executed);
            self.decide_start(lent);
            let _ = self.feed(input, lent);
        }
        let Some(process) = &mut self.process else { return };
        let ended = if self.had_cgroup || self.failure.is_some() { process.reap() } else { peeked };
        match ended {
            Ok(Some((exit, usage))) => {
                self.ended.get_or_insert_default().usage = usage;
                self.exited(exit, lent);
            }
            // Dead, but not for us to see: a process that traces it comes first, and may take its time.
            Ok(None) if process.wait_dead(Duration::ZERO) && !self.deadlines.reap.is_armed() => {
                let due = lent.now + lent.settings.drain_total_max;
                lent.deadlines.arm(&mut self.deadlines.reap, due, (self.key, Alarm::Reap));
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// A child that is killed on its way closes its link, and leaves its slot, as one does that executes its program; only then is it seen to be dead.
    /// A look at the zombie tells the two apart. (One that the kernel kills past the point of no return, in the midst of the exec, cannot be told
    /// from a program that dies at its first instruction.)
    fn doubt_start(&mut self, ended: Option<Exit>, lent: &mut Lent<'_>) {
        let Some(Exit::Signal { signal, .. }) = ended else { return };
        // Once it was said to have started, a job that was told to stop is not asked whether it had.
        let is_asked = !self.was_seen_past_exec && self.failure.is_none() && (self.life.stop_reason().is_none() || self.life.is_starting());
        if !is_asked || !self.process.as_ref().is_some_and(Process::ends_before_exec) {
            return;
        }
        self.decide_start(lent);
        self.drop_started();
        // A stop that was asked for is told as one.
        if self.life.stop_reason().is_none() {
            self.failure = Some(Box::new(StartFailure::killed(signal)));
            let _ = self.feed(Input::StartFailed, lent);
        }
    }

    /// The process has been dead for long enough, and still nobody tells how it ended.
    fn on_reap_alarm(&mut self, lent: &mut Lent<'_>) {
        self.on_pidfd(lent);
        if self.life.exit().is_none() && self.process.is_some() && self.deadlines.reap.is_armed() {
            self.exited(Exit::Unknown, lent);
        }
    }

    fn exited(&mut self, exit: Exit, lent: &mut Lent<'_>) {
        lent.deadlines.remove(&mut self.deadlines.reap, (self.key, Alarm::Reap));
        self.ended.get_or_insert_default().exited_at = Some(lent.now);
        self.judge(exit, lent);
        if !self.keeps_pidfd {
            self.drop_reaped_process(lent);
        }
        let _ = self.feed(Input::Exited(exit), lent);
    }

    /// A zombie that outlived its job, because somebody traced it, can be reaped now.
    fn reap_late(&mut self, lent: &mut Lent<'_>) {
        if self.is_finished() {
            self.reap_for_good(lent);
            if self.is_hidden() {
                lent.queues.gone.push(self.key);
            }
        }
    }

    fn drop_reaped_process(&mut self, lent: &Lent<'_>) {
        if let Some(process) = self.process.take_if(|process| process.is_reaped()) {
            lent.deregister(process.pidfd());
        }
    }

    /// Takes an input, and every further one that follows from what it caused. The first error is returned, the rest is done all the same.
    fn feed(&mut self, input: Input, lent: &mut Lent<'_>) -> io::Result<()> {
        let mut result = Ok(());
        let mut next = Some(input);
        while let Some(input) = next.take() {
            for action in self.life.handle(input) {
                match self.apply(action, lent) {
                    Ok(None) => {}
                    Ok(Some(input)) => next = Some(input),
                    Err(error) => result = result.and(Err(error)),
                }
            }
        }
        if self.life.ends_when_quiet() {
            self.outputs.read_to_the_end();
            self.read_outputs(lent);
        }
        self.queue_reports(lent.queues);
        result
    }

    fn apply(&mut self, action: Action, lent: &mut Lent<'_>) -> io::Result<Option<Input>> {
        match action {
            // There is nobody to kill yet, and there will not be.
            Action::SignalGroup(_) | Action::KillTree if self.is_waiting_for_slot() => {
                self.unspawned = None;
                self.failure = Some(Box::new(StartFailure::cancelled()));
                return Ok(Some(Input::NotSpawned));
            }
            Action::SignalGroup(signal) => self.process.as_ref().map_or(Ok(()), |process| process.signal_group(signal))?,
            Action::KillTree => self.kill_tree(lent)?,
            Action::EndTree { kill } => return Ok(Some(self.end_tree(kill, lent))),
            Action::ArmGrace(grace) => {
                // A later stop does not put off a kill that is decided; one beyond what the clock can say never comes.
                if let Some(due) = lent.now.checked_add(grace) {
                    lent.deadlines.arm_sooner(&mut self.deadlines.grace, due, (self.key, Alarm::Life(Timer::Grace)));
                }
            }
            Action::ArmDrain => {
                if self.outputs.lift_rate() && !std::mem::replace(&mut self.ready_queued, true) {
                    lent.queues.ready.push_back(self.key);
                }
                self.arm(Timer::DrainIdle, lent.now + lent.settings.drain_idle_max, lent);
                self.arm(Timer::DrainTotal, lent.now + lent.settings.drain_total_max, lent);
            }
            Action::CloseOutputs => {
                // After a failed start there is nobody who could have written.
                if self.failure.is_none() {
                    self.outputs.give_up_waiting(lent);
                    self.outputs.note_cut_off(self.life.is_tree_gone());
                }
                self.outputs.close(lent);
            }
            Action::ReportStarted => {
                if !self.confirmed {
                    self.notices |= Notice::Started as u16;
                }
                if self.is_awaited {
                    lent.queues.awaited.push(self.key);
                }
                self.set_oom_group(lent);
            }
            Action::ReportExited => self.notices |= Notice::Exited as u16,
            Action::Finish => self.finish(lent),
            Action::LetGo => self.let_go(lent),
        }
        Ok(None)
    }

    fn kill_tree(&mut self, lent: &mut Lent<'_>) -> io::Result<()> {
        match (lent.cgroups.as_mut(), self.cgroup.as_ref()) {
            (Some(tree), Some(cgroup)) => {
                let killed = tree.kill(cgroup);
                // A forked child may not stand in its cgroup yet; and where that cannot be killed, the process group is what can be had.
                if killed.is_err() || self.life.is_starting() {
                    let _ = self.process.as_ref().map(|process| process.signal_group(Signal::KILL));
                }
                killed
            }
            _ => self.process.as_ref().map_or(Ok(()), |process| process.signal_group(Signal::KILL)),
        }
    }

    /// The main process has ended: what of its tree?
    fn end_tree(&mut self, kill: bool, lent: &mut Lent<'_>) -> Input {
        if !self.had_cgroup {
            if kill {
                // A host that may not signal the job's user has done what it can.
                let _ = self.kill_tree(lent);
                self.reap_for_good(lent);
            }
            return Input::TreeUntracked;
        }
        let removed = self.remove_cgroup(lent);
        if let Ok(Removal::Gone) = removed {
            self.unwatch(lent);
            self.cgroup = None;
            return Input::TreeGone;
        }
        let (Some(tree), Some(cgroup)) = (lent.cgroups.as_mut(), self.cgroup.as_ref()) else { return Input::TreeGone };
        if kill {
            // If that fails the drain's deadline decides.
            let _ = tree.kill(cgroup);
        }
        if self.watch.is_none() {
            // Out of watches (fs.inotify.max_user_watches): the looks and the deadline remain.
            self.watch = lent.watcher.watch(&tree.file_path(cgroup, "cgroup.events"), self.key, Watched::Tree).ok();
        }
        self.tree_looks = 0;
        self.look_again(true, lent);
        if let Ok(Removal::Stuck) = removed { Input::TreeStuck } else { Input::TreeLeft }
    }

    /// Arms the next look at a cgroup that is not empty; after the last one its notice has to come.
    fn look_again(&mut self, was_seen: bool, lent: &mut Lent<'_>) {
        let wait = match TREE_LOOKS.get(self.tree_looks) {
            Some(wait) => *wait,
            // No notice will come without a watch, nor again where the last look failed (out of descriptors, say).
            None if self.watch.is_none() || !was_seen => lent.settings.drain_idle_max.max(TREE_LOOK_EVERY),
            None => return,
        };
        lent.deadlines.arm(&mut self.deadlines.tree, lent.now + wait, (self.key, Alarm::Tree));
    }

    fn tree_gone(&mut self, lent: &mut Lent<'_>) {
        self.unwatch(lent);
        self.cgroup = None;
        if self.is_finished() {
            lent.deadlines.remove(&mut self.deadlines.tree, (self.key, Alarm::Tree));
            if self.is_hidden() {
                lent.queues.gone.push(self.key);
            }
            return;
        }
        self.notices |= Notice::TreeEmpty as u16;
        let _ = self.feed(Input::TreeGone, lent);
    }

    fn unwatch(&mut self, lent: &mut Lent<'_>) {
        if let Some(control) = &mut self.control {
            control.end(self.key, lent);
        }
        if let Some(watch) = self.watch.take() {
            lent.watcher.unwatch(watch);
        }
    }

    fn reap_for_good(&mut self, lent: &Lent<'_>) {
        if let Some(process) = self.process.as_mut().filter(|process| !process.is_reaped()) {
            let _ = process.reap();
        }
        self.drop_reaped_process(lent);
    }

    /// Reads what the outputs have, and tells the lifecycle where they stand.
    fn read_outputs(&mut self, lent: &mut Lent<'_>) {
        let read = self.outputs.read(lent);
        self.after_read(read, lent);
    }

    fn after_read(&mut self, (bytes, readiness): (usize, Readiness), lent: &mut Lent<'_>) {
        if bytes > 0 && self.life.is_draining_by_deadline() {
            self.arm(Timer::DrainIdle, lent.now + lent.settings.drain_idle_max, lent);
        }
        if self.outputs.take_kill() {
            // If that fails, the job goes on without its log.
            let _ = self.feed(Input::Stop(StopReason::LogFault), lent);
        }
        match readiness {
            Readiness::More => {
                if !std::mem::replace(&mut self.ready_queued, true) {
                    lent.queues.ready.push_back(self.key);
                }
            }
            Readiness::Quiet if self.life.ends_when_quiet() => {
                let _ = self.feed(Input::OutputsQuiet, lent);
            }
            Readiness::Quiet | Readiness::Held => {}
            Readiness::Closed => {
                let _ = self.feed(Input::OutputsClosed, lent);
            }
        }
        self.queue_reports(lent.queues);
    }

    /// Something is to be told.
    fn note(&mut self, notice: Notice, lent: &mut Lent<'_>) {
        self.notices |= notice as u16;
        self.queue_reports(lent.queues);
    }

    /// Reads something of the job's cgroup.
    fn with_cgroup<T>(&self, lent: &Lent<'_>, read: impl FnOnce(&CgroupTree, &JobCgroup) -> io::Result<T>) -> Option<T> {
        read(lent.cgroups.as_ref()?, self.cgroup.as_ref()?).ok()
    }

    /// Sets `memory.oom.group`, if that is to be done and can be.
    fn set_oom_group(&mut self, lent: &mut Lent<'_>) {
        let (Some(control), Some(cgroup)) = (self.control.as_mut(), self.cgroup.as_ref()) else { return };
        let has_ended = self.life.exit().is_some();
        let process = self.process.as_ref().filter(|process| !has_ended && process.rung().shares_memory());
        let has_left = || self.was_seen_past_exec || process.is_none_or(Process::is_past_exec);
        control.set_oom_group(self.key, has_left, cgroup, lent);
    }

    /// Takes note of what `memory.events` says.
    fn look_at_memory(&mut self, lent: &mut Lent<'_>) {
        if let Some(Some(events)) = self.with_cgroup(lent, CgroupTree::memory_events) {
            self.note_memory(&events, lent);
        }
    }

    fn note_memory(&mut self, events: &MemoryEvents, lent: &mut Lent<'_>) {
        let news = self.control.get_or_insert_default().note_memory(events, lent.now);
        if news.out_of_memory {
            self.note(Notice::OutOfMemory, lent);
        }
        if news.high {
            self.note(Notice::MemoryHigh, lent);
        }
    }

    fn note_pids(&mut self, max_events: u64, lent: &mut Lent<'_>) {
        if self.control.get_or_insert_default().note_pids(max_events, lent.now) {
            self.note(Notice::PidsMax, lent);
        }
    }

    /// The main process has ended: was it for want of memory?
    fn judge(&mut self, exit: Exit, lent: &mut Lent<'_>) {
        let is_killed = matches!(exit, Exit::Signal { signal: Signal::KILL, .. });
        if !is_killed || self.life.is_killed() || self.failure.is_some() {
            return;
        }
        if let Some(Some(events)) = self.with_cgroup(lent, CgroupTree::memory_events)
            && events.oom_kill > 0
        {
            self.oom_killed = true;
            self.note_memory(&events, lent);
        }
    }

    fn look_at_freeze(&mut self, lent: &mut Lent<'_>) {
        if !self.control.as_ref().is_some_and(|control| control.watches_frozen) {
            return;
        }
        let Some(is_frozen) = self.with_cgroup(lent, |tree, cgroup| Ok(tree.is_frozen(cgroup))) else { return };
        let Some(control) = &mut self.control else { return };
        if std::mem::replace(&mut control.is_frozen, is_frozen) != is_frozen {
            self.note(Notice::Frozen, lent);
        }
    }

    /// Removes the job's cgroup if it is empty, having read what it tells about the job.
    fn remove_cgroup(&mut self, lent: &mut Lent<'_>) -> io::Result<Removal> {
        let (Some(tree), Some(cgroup)) = (lent.cgroups.as_ref(), self.cgroup.as_ref()) else { return Ok(Removal::Gone) };
        if self.control.is_some() && self.failure.is_none() {
            if tree.is_populated(cgroup)? {
                return Ok(Removal::Populated);
            }
            self.read_usage(lent);
        }
        let (Some(tree), Some(cgroup)) = (lent.cgroups.as_ref(), self.cgroup.as_ref()) else { return Ok(Removal::Gone) };
        tree.remove(cgroup)
    }

    /// Reads what the job has used in all, as far as that is asked.
    fn read_usage(&mut self, lent: &mut Lent<'_>) {
        let Some(usage) = self.with_cgroup(lent, CgroupTree::usage) else { return };
        // The last notices may not have come yet, or there was no watch for them.
        if let Some(memory) = &usage.memory {
            self.note_memory(&memory.events, lent);
        }
        if let Some(pids) = &usage.pids {
            self.note_pids(pids.max_events, lent);
        }
        self.control.get_or_insert_default().usage = Some(usage);
    }

    /// The job is over: lets go of everything.
    fn finish(&mut self, lent: &mut Lent<'_>) {
        self.decide_start(lent);
        self.reap_for_good(lent);
        let ended = self.ended.get_or_insert_default();
        ended.finished = Some(SystemTime::now());
        ended.exited_at.get_or_insert(lent.now);
        self.to_stdin = None;
        if self.failure.is_some() {
            // No program has run, so the cgroup is empty, and goes.
            self.end_tree(true, lent);
        }
        self.disarm(lent);
        if self.cgroup.is_some() && self.control.is_some() && self.failure.is_none() {
            // Something of it cannot be ended: this is what is known for now.
            self.read_usage(lent);
        }
        if let Some(control) = &mut self.control {
            control.end(self.key, lent);
        }
        if self.cgroup.is_none() {
            lent.deadlines.remove(&mut self.deadlines.tree, (self.key, Alarm::Tree));
        }
        if self.failure.is_some() {
            self.outputs.delete_log(lent);
        } else {
            self.outputs.seal_log(lent);
        }
        self.note_over(lent);
    }

    /// The job runs on without the worker: lets go of everything, and does nothing to it.
    fn let_go(&mut self, lent: &mut Lent<'_>) {
        self.outputs.read_what_is_there(lent);
        self.outputs.note_cut_off(false);
        // It is not over, so its log is not sealed.
        self.end_streams(lent);
        self.outputs.close_log(lent);
        let is_frozen = self.control.as_ref().is_some_and(|control| control.is_frozen);
        self.decide_start(lent);
        if self.control.is_some() {
            self.read_usage(lent);
        }
        self.unwatch(lent);
        self.cgroup = None;
        if let Some(process) = self.process.take() {
            lent.deregister(process.pidfd());
        }
        if let Some(control) = &mut self.control {
            control.is_frozen = is_frozen;
        }
        (self.to_stdin, self.piped) = (None, [None, None]);
        self.ended.get_or_insert_default().exited_at.get_or_insert(lent.now);
        self.disarm(lent);
        lent.deadlines.remove(&mut self.deadlines.tree, (self.key, Alarm::Tree));
        lent.deadlines.remove(&mut self.deadlines.reap, (self.key, Alarm::Reap));
        self.note_over(lent);
    }

    fn note_over(&mut self, lent: &mut Lent<'_>) {
        lent.queues.unfinished = lent.queues.unfinished.saturating_sub(1);
        self.notices |= Notice::Over as u16;
        if self.is_awaited {
            lent.queues.awaited.push(self.key);
        }
        if self.is_hidden() {
            lent.queues.gone.push(self.key);
        }
    }

    fn disarm(&mut self, lent: &mut Lent<'_>) {
        for timer in [Timer::Timeout, Timer::Grace, Timer::DrainIdle, Timer::DrainTotal] {
            lent.deadlines.remove(self.deadlines.of(timer), (self.key, Alarm::Life(timer)));
        }
        lent.deadlines.remove(&mut self.deadlines.slot, (self.key, Alarm::Slot));
    }

    fn arm(&mut self, timer: Timer, due: Instant, lent: &mut Lent<'_>) {
        lent.deadlines.arm(self.deadlines.of(timer), due, (self.key, Alarm::Life(timer)));
    }
}

/// A job with limits was to be started where there are no cgroups.
fn no_cgroup(missing: Option<&str>) -> StartFailure {
    let advice = missing.map(|missing| format!("jobs have no cgroups here: {missing}"));
    StartFailure::limit(None, &io::Error::from_raw_os_error(errno::EOPNOTSUPP), advice)
}

fn cgroup_path(tree: Option<&CgroupTree>, cgroup: Option<&JobCgroup>) -> Option<PathBuf> {
    Some(tree?.path_of(cgroup?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_job_costs_less_than_a_kibibyte() {
        assert!(size_of::<Job>() <= 800, "{} bytes", size_of::<Job>());
    }
}
