//! Floor 4: one job put together: its process, outputs, log and cgroup, driven by its [`Lifecycle`].

use std::cell::OnceCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};

use crate::kernel::cgroup::{CgroupTree, JobCgroup};
use crate::kernel::log_dir::LogDir;
use crate::kernel::log_file::LogFile;
use crate::kernel::process::{Launch, Outcome, Process};
use crate::kernel::stdio::{PIPE_BYTES, ReadOutcome, Stdio, enlarge_pipe, read_output};
use crate::kernel::stream::{LogProgress, LogStream};
use crate::kernel::watcher::{Watch, Watcher};
use crate::logic::cri::{self, Stamp};
use crate::logic::deadlines::{Deadline, DeadlineQueue};
use crate::logic::ids::Ids;
use crate::logic::lifecycle::{Action, Input, Lifecycle, Timer};
use crate::logic::lines::{Ending, LineSplitter, Piece};
use crate::logic::names;
use crate::logic::token::{Key, Source, Target};
use crate::model::capabilities::Rung;
use crate::model::command::Command;
use crate::model::error::{JobError, StartFailure, Step, StreamError, errno};
use crate::model::event::Event;
use crate::model::id::{JobId, OwnerId};
use crate::model::output::{Capture, LogFormat, OutputStream, StreamSelect, Timestamp};
use crate::model::settings::Settings;
use crate::model::signal::Signal;
use crate::model::status::{Exit, OutputCount, ResourceUsage, Status, StopReason};

/// When to look again at a cgroup that was not empty although its job had ended, before its notice is waited for: those come up to 10 ms late.
const TREE_LOOKS: [Duration; 2] = [Duration::from_micros(200), Duration::from_millis(2)];

/// What a deadline of a job is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    Life(Timer),
    /// The unfinished line of this output was held long enough.
    Flush(OutputIndex),
    /// Look again whether the cgroup is empty.
    Tree,
}

/// Which of a job's outputs: 0 is stdout or both, 1 is stderr.
pub(crate) type OutputIndex = u8;

/// What a job is lent while it handles something. Never the loop itself.
pub(crate) struct Lent<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) deadlines: &'a mut DeadlineQueue<(Key, Alarm)>,
    pub(crate) watcher: &'a mut Watcher,
    pub(crate) cgroups: &'a mut Option<CgroupTree>,
    pub(crate) log_dir: &'a mut LogDir,
    pub(crate) scratch: &'a mut Scratch,
    pub(crate) queues: &'a mut Queues,
    pub(crate) settings: &'a Settings,
    pub(crate) now: Instant,
    /// Counts turns: a job's read budget is renewed by a new number.
    pub(crate) turn: u64,
}

/// What every start of a worker has in common.
#[derive(Debug)]
pub(crate) struct Host {
    /// Where the ids of jobs come from.
    pub(crate) ids: Ids,
    /// The rung that jobs are started on.
    pub(crate) rung: Rung,
    /// `/dev/null`.
    pub(crate) null: Arc<OwnedFd>,
    /// The limit of open files, soft and hard, that jobs get because the host's own was raised.
    pub(crate) nofile: Option<(u64, u64)>,
}

/// Memory that every job uses in its turn and none keeps.
#[derive(Debug)]
pub(crate) struct Scratch {
    read: Box<[u8]>,
    /// The records of the job whose turn it is; empty between jobs.
    records: Vec<u8>,
    /// How many of the job's bytes are in them.
    content_bytes: u64,
    stamp: Stamp,
}

impl Scratch {
    pub(crate) fn new(read_bytes: usize) -> Self {
        Self { read: vec![0; read_bytes.max(1)].into(), records: Vec::new(), content_bytes: 0, stamp: Stamp::new() }
    }

    /// Adds a piece of a line to the records.
    fn push_piece(records: &mut Vec<u8>, content_bytes: &mut u64, stamp: &[u8; cri::STAMP_BYTES], stream: OutputStream, piece: Piece<'_>) {
        *content_bytes += piece.bytes.len() as u64 + u64::from(piece.ending == Ending::Newline);
        cri::encode(records, stamp, stream, piece);
    }

    /// Adds bytes of a raw log to the records.
    fn push_raw(records: &mut Vec<u8>, content_bytes: &mut u64, bytes: &[u8]) {
        *content_bytes += bytes.len() as u64;
        records.extend_from_slice(bytes);
    }
}

/// What jobs leave for the loop to do once they are done.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    /// Jobs that spent their budget with output left to read.
    pub(crate) ready: VecDeque<Key>,
    /// Jobs with something to tell.
    pub(crate) reports: VecDeque<Key>,
    /// Tasks to wake once dispatch is over.
    pub(crate) wakers: Vec<Waker>,
    /// Jobs whose log is open, longest since they were last looked at first.
    pub(crate) open_logs: VecDeque<Key>,
    /// How many logs are open.
    pub(crate) open_logs_count: usize,
    /// How many logs had to be closed at once because too many were open: so many idle ones are to make room.
    pub(crate) open_logs_wanted: usize,
    /// Jobs that have not finished.
    pub(crate) unfinished: usize,
    /// Hidden jobs (see [`Job::hide`]) that may be over.
    pub(crate) gone: Vec<Key>,
}

/// What asking a job for the room of its open log came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// The log was closed.
    Made,
    /// It was written lately: ask again.
    Later,
    /// It is not open.
    None,
}

/// What a job has to tell, in the order in which it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Notice {
    Started = 1,
    LogFault = 2,
    Exited = 4,
    LogReady = 8,
    Over = 16,
}

const NOTICES: [Notice; 5] = [Notice::Started, Notice::LogFault, Notice::Exited, Notice::LogReady, Notice::Over];

/// One captured output.
#[derive(Debug)]
struct Output {
    fd: OwnedFd,
    splitter: LineSplitter,
    /// Whether a read is worth trying.
    readable: bool,
    /// Whether the other end is closed, so that a short read is not the end yet.
    hung_up: bool,
    /// Whether the pipe was enlarged.
    enlarged: bool,
}

/// A log and what its readers are told.
#[derive(Debug)]
struct Log {
    file: LogFile,
    format: LogFormat,
    /// Whether both outputs come through one pipe.
    merged: bool,
    progress: OnceCell<Arc<LogProgress>>,
    /// The time of the last record: times never run backwards in a file.
    last_time: u64,
    /// Whether the last write failed.
    failing: bool,
    /// The error number of the last write that failed.
    fault: i32,
    /// Whether it was written since the open logs were last looked through.
    recent: bool,
    /// Whether it stands in the list of open logs.
    listed: bool,
}

/// One job.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) id: JobId,
    pub(crate) owner: OwnerId,
    key: Key,
    name: Box<str>,
    pid: i32,
    rung: Rung,
    life: Lifecycle,
    launch: Option<Box<Launch>>,
    process: Option<Process>,
    report_registered: bool,
    to_stdin: Option<OwnedFd>,
    piped: [Option<OwnedFd>; 2],
    outputs: [Option<Output>; 2],
    log: Option<Log>,
    cgroup: Option<JobCgroup>,
    had_cgroup: bool,
    watch: Option<Watch>,
    tree_looks: usize,
    deadlines: Deadlines,
    turn: u64,
    budget_left: usize,
    /// The output that is read first: 1 after a turn in which output 0 used up the budget.
    reads_first: usize,
    count: OutputCount,
    started: SystemTime,
    started_at: Instant,
    exited_at: Option<Instant>,
    finished: Option<SystemTime>,
    usage: Option<Box<ResourceUsage>>,
    failure: Option<Box<StartFailure>>,
    notices: u8,
    reports_queued: bool,
    ready_queued: bool,
    hidden: bool,
    confirmed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Deadlines {
    timeout: Deadline,
    grace: Deadline,
    drain_idle: Deadline,
    drain_total: Deadline,
    flush: [Deadline; 2],
    tree: Deadline,
}

impl Deadlines {
    fn of(&mut self, alarm: Alarm) -> &mut Deadline {
        match alarm {
            Alarm::Life(Timer::Timeout) => &mut self.timeout,
            Alarm::Life(Timer::Grace) => &mut self.grace,
            Alarm::Life(Timer::DrainIdle) => &mut self.drain_idle,
            Alarm::Life(Timer::DrainTotal) => &mut self.drain_total,
            Alarm::Flush(0) => &mut self.flush[0],
            Alarm::Flush(_) => &mut self.flush[1],
            Alarm::Tree => &mut self.tree,
        }
    }

    const ALL: [Alarm; 7] = [
        Alarm::Life(Timer::Timeout),
        Alarm::Life(Timer::Grace),
        Alarm::Life(Timer::DrainIdle),
        Alarm::Life(Timer::DrainTotal),
        Alarm::Flush(0),
        Alarm::Flush(1),
        Alarm::Tree,
    ];
}

/// The parts of a start that exist already; each is undone when a later one fails.
struct Undo<'a, 'b> {
    lent: &'a mut Lent<'b>,
    log: Option<LogFile>,
    cgroup: Option<JobCgroup>,
    process: Option<Process>,
    registered: Vec<i32>,
}

impl Drop for Undo<'_, '_> {
    fn drop(&mut self) {
        for fd in &self.registered {
            let _ = self.lent.registry.deregister(&mut SourceFd(fd));
        }
        if let Some(mut process) = self.process.take() {
            // Not blocked on a child that cannot die at once: it is a child of ours, and ends up reaped with the host.
            let _ = process.signal(Signal::KILL);
            let _ = wait_readable(process.pidfd(), Duration::from_secs(1));
            let _ = process.reap();
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
    /// Starts a job that will be at `key` in the table: log, pipes, cgroup, exec image, process, in this order.
    pub(crate) fn start(command: &Command, owner: OwnerId, key: Key, host: &mut Host, lent: &mut Lent<'_>) -> Result<Self, StartFailure> {
        let (id, rung) = (JobId::from(host.ids.next(unix_millis())), host.rung);
        let name = names::safe_name(command.name.as_ref().map_or(command.program.as_os_str(), |name| name.as_ref()));
        let entry = names::entry_name(&name, id);
        let settings = lent.settings;
        let (started, started_at) = (SystemTime::now(), lent.now);
        let mut undo = Undo { lent, log: None, cgroup: None, process: None, registered: Vec::new() };

        let format = command.log_format.unwrap_or(settings.log_format);
        if command.capture.is_logged() {
            let file_name = format!("{entry}.log");
            let path = undo.lent.log_dir.path_of(&file_name);
            let failed = |error: io::Error| StartFailure::new(Step::Log, Some(&path), &error);
            let log = undo.log.insert(LogFile::create(undo.lent.log_dir.as_fd(), file_name).map_err(failed)?);
            if let Some(fd) = log.fd() {
                undo.lent.log_dir.mark(fd, log.name(), format).map_err(failed)?;
            }
        }
        let mut stdio =
            Stdio::new(&command.stdin, command.capture, &host.null).map_err(|error| StartFailure::new(Step::Pipe, None, &error))?;
        if let Some(tree) = undo.lent.cgroups.as_mut() {
            let path = tree.path_named(&entry);
            undo.cgroup = Some(tree.make(&entry).map_err(|error| StartFailure::new(Step::Cgroup, Some(&path), &error))?);
        }
        let launch = Launch::new(command, settings.env_base)?;

        let cgroup_path = cgroup_path(undo.lent.cgroups.as_ref(), undo.cgroup.as_ref());
        let place = match (undo.lent.cgroups.as_ref(), undo.cgroup.as_ref()) {
            (Some(tree), Some(cgroup)) => {
                let opened = match rung {
                    Rung::ForkLike => tree.open_directory(cgroup),
                    Rung::Fork => tree.open_procs(cgroup),
                };
                Some(opened.map_err(|error| StartFailure::new(Step::Cgroup, cgroup_path.as_deref(), &error))?)
            }
            _ => None,
        };
        let place = place.as_ref().zip(cgroup_path.as_deref()).map(|(fd, path)| (fd.as_fd(), path));
        undo.process = Some(launch.spawn(command, rung, stdio.child_ends(), place, host.nofile)?);

        let captured = command.capture.is_logged();
        let mut watched = Vec::with_capacity(3);
        if captured {
            let sources = [Source::Stdout, Source::Stderr];
            watched.extend(stdio.from.iter().zip(sources).filter_map(|(fd, source)| Some((fd.as_ref()?.as_raw_fd(), source))));
        }
        watched.extend(undo.process.as_ref().map(|process| (process.pidfd().as_raw_fd(), Source::Pidfd)));
        for (fd, source) in watched {
            register(undo.lent.registry, fd, key, source).map_err(|error| StartFailure::new(Step::Watch, None, &error))?;
            undo.registered.push(fd);
        }

        // Everything exists: from here on the job owns it.
        undo.registered.clear();
        let from = std::mem::take(&mut stdio.from);
        let new_output =
            |fd| Output { fd, splitter: LineSplitter::new(settings.line_bytes_max), readable: false, hung_up: false, enlarged: false };
        let (outputs, piped) = if captured { (from.map(|fd| fd.map(new_output)), [None, None]) } else { ([None, None], from) };
        let log = undo.log.take().map(|file| Log {
            file,
            format,
            merged: command.capture == Capture::Merged,
            progress: OnceCell::new(),
            last_time: 0,
            failing: false,
            fault: 0,
            recent: false,
            listed: false,
        });
        let (process, cgroup) = (undo.process.take(), undo.cgroup.take());
        drop(undo);
        let mut job = Self {
            id,
            owner,
            key,
            name: name.into(),
            pid: process.as_ref().map_or(0, Process::pid),
            rung,
            life: Lifecycle::new(command.tree, captured, command.timeout_signal),
            launch: Some(Box::new(launch)),
            process,
            report_registered: false,
            to_stdin: stdio.to_stdin.take(),
            piped,
            outputs,
            log,
            had_cgroup: cgroup.is_some(),
            cgroup,
            watch: None,
            tree_looks: 0,
            deadlines: Deadlines::default(),
            turn: 0,
            budget_left: 0,
            reads_first: 0,
            count: OutputCount::default(),
            started,
            started_at,
            exited_at: None,
            finished: None,
            usage: None,
            failure: None,
            notices: 0,
            reports_queued: false,
            ready_queued: false,
            hidden: false,
            confirmed: false,
        };
        lent.queues.unfinished += 1;
        job.keep_log_open(lent);
        if let Some(timeout) = command.timeout {
            // A timeout beyond what the clock can say never comes.
            if let Some(due) = started_at.checked_add(timeout) {
                job.arm(Alarm::Life(Timer::Timeout), due, lent);
            }
        }
        Ok(job)
    }

    /// Waits up to `timeout` for the program to be executed.
    pub(crate) fn confirm(&mut self, timeout: Duration, lent: &mut Lent<'_>) -> Option<StartFailure> {
        self.confirmed = true;
        if let Some(link) = self.process.as_ref().and_then(Process::report) {
            // A failing wait is one that confirms nothing: the loop will.
            let _ = wait_readable(link, timeout);
        }
        self.on_report(lent);
        if self.failure.is_some() {
            // The child is on its last instruction; one that is held there (stopped, frozen) is left to the loop.
            if let Some(process) = &self.process {
                let _ = wait_readable(process.pidfd(), timeout.max(Duration::from_millis(100)));
            }
            self.on_pidfd(lent);
        }
        self.confirmed = !self.life.is_starting();
        self.failure.as_deref().cloned()
    }

    /// Lets the loop wait for the program to be executed.
    pub(crate) fn watch_start(&mut self, lent: &mut Lent<'_>) -> io::Result<()> {
        if let Some(link) = self.process.as_ref().and_then(Process::report) {
            register(lent.registry, link.as_raw_fd(), self.key, Source::Report)?;
            self.report_registered = true;
        }
        Ok(())
    }

    /// One of the job's descriptors is ready.
    pub(crate) fn on_ready(&mut self, source: Source, closed: bool, lent: &mut Lent<'_>) {
        match source {
            Source::Stdout => self.on_output(0, closed, lent),
            Source::Stderr => self.on_output(1, closed, lent),
            Source::Pidfd => self.on_pidfd(lent),
            Source::Report => self.on_report(lent),
        }
    }

    /// A deadline of the job may be due.
    pub(crate) fn on_alarm(&mut self, alarm: Alarm, lent: &mut Lent<'_>) {
        let key = (self.key, alarm);
        if !lent.deadlines.settle(self.deadlines.of(alarm), lent.now, key) {
            return;
        }
        match alarm {
            Alarm::Life(timer) => {
                let _ = self.feed(Input::Deadline(timer), lent);
            }
            Alarm::Flush(index) => self.flush_line(index, lent),
            Alarm::Tree => self.on_tree_notice(lent),
        }
    }

    /// The job spent its budget in an earlier turn; it goes on reading.
    pub(crate) fn on_turn(&mut self, lent: &mut Lent<'_>) {
        self.ready_queued = false;
        self.read_outputs(lent);
    }

    /// Something changed in the job's cgroup.
    pub(crate) fn on_tree_notice(&mut self, lent: &mut Lent<'_>) {
        let (Some(tree), Some(cgroup)) = (lent.cgroups.as_ref(), self.cgroup.as_ref()) else { return };
        if self.life.exit().is_none() && self.failure.is_none() {
            return;
        }
        if let Ok(true) = tree.remove(cgroup) {
            self.tree_gone(lent);
        } else {
            self.tree_looks += 1;
            self.look_again(lent);
        }
    }

    /// Kills the tree.
    pub(crate) fn stop(&mut self, reason: StopReason, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        self.feed(Input::Stop(reason), lent).map_err(|source| JobError::Io { job, operation: "killing the process tree", source })
    }

    /// Signals the process group, kills the tree after `grace`.
    pub(crate) fn stop_with(&mut self, signal: Signal, grace: Duration, lent: &mut Lent<'_>) -> Result<(), JobError> {
        let job = self.id;
        let input = Input::StopGently(StopReason::Requested, signal, grace);
        self.feed(input, lent).map_err(|source| JobError::Io { job, operation: "signalling the process group", source })
    }

    /// Sends a signal to the main process.
    pub(crate) fn signal(&self, signal: Signal) -> Result<(), JobError> {
        match &self.process {
            Some(process) if self.life.exit().is_none() => process.signal(signal).map_err(|source| match source.raw_os_error() {
                Some(errno::ESRCH) => JobError::Ended { job: self.id },
                _ => JobError::Io { job: self.id, operation: "signalling the main process", source },
            }),
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
    pub(crate) fn stream(&self, select: StreamSelect, log_dir: &LogDir) -> Result<LogStream, StreamError> {
        let Some(log) = &self.log else { return Err(StreamError::NotLogged { job: self.id }) };
        let path = log_dir.path_of(log.file.name());
        let file = match log.file.open_reader(log_dir.as_fd()) {
            Ok(file) => file,
            Err(source) => return Err(StreamError::Io { path, source }),
        };
        let progress = log.progress.get_or_init(|| {
            let progress = LogProgress::default();
            progress.publish(log.file.length(), self.life.state().is_finished(), &mut Vec::new());
            Arc::new(progress)
        });
        LogStream::live(file, path, Arc::clone(progress), log.format, select, log.merged.then_some(OutputStream::Stdout))
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.life.state().is_finished()
    }

    /// Everything known about the job.
    pub(crate) fn status(&self, log_dir: &LogDir, cgroups: Option<&CgroupTree>, now: Instant) -> Status {
        let exit = self.life.exit();
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
            finished: self.finished,
            run_time: self.exited_at.unwrap_or(now).saturating_duration_since(self.started_at),
            usage: self.usage.as_deref().copied(),
            output: self.count,
            log: self.log.as_ref().map(|log| log_dir.path_of(log.file.name())),
            cgroup: cgroups.filter(|_| self.had_cgroup).map(|tree| tree.path_named(&entry())),
            cgroup_left: self.life.tree_is_left() && self.cgroup.is_some(),
            rung: self.rung,
        }
    }

    /// The next thing to tell; `None` when all is told.
    pub(crate) fn next_event(&mut self) -> Option<Event> {
        let notice = NOTICES.into_iter().find(|notice| self.notices & *notice as u8 != 0)?;
        self.notices &= !(notice as u8);
        let job = self.id;
        let exit = self.life.exit().unwrap_or(Exit::Unknown);
        Some(match notice {
            Notice::Started => Event::Started { job },
            Notice::LogFault => Event::LogFault { job, errno: self.log.as_ref().map_or(0, |log| log.fault) },
            Notice::Exited => Event::Exited { job, exit },
            Notice::LogReady => Event::LogReady { job },
            Notice::Over => match self.failure.as_deref() {
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
        if self.notices != 0 && !self.reports_queued {
            self.reports_queued = true;
            queues.reports.push_back(self.key);
        }
    }

    /// Forgets what was not told: somebody has seen the end in another way.
    pub(crate) fn drop_notices(&mut self) {
        self.notices = 0;
    }

    /// Takes the job out of everybody's sight; it goes once nothing is left of it.
    pub(crate) fn hide(&mut self, queues: &mut Queues) {
        self.hidden = true;
        self.notices = 0;
        queues.gone.push(self.key);
    }

    /// The worker is going: a cgroup that could not be removed before gets its last chance.
    pub(crate) fn abandon_cgroup(&mut self, lent: &mut Lent<'_>) {
        let _ = self.end_tree(self.had_cgroup, lent);
    }

    /// Whether the job may be removed from the table without losing anything.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_finished() && self.cgroup.is_none()
    }

    pub(crate) fn is_hidden(&self) -> bool {
        self.hidden
    }

    /// The worker goes, although the job is not over: its streams end with what was read.
    pub(crate) fn end_streams(&mut self, lent: &mut Lent<'_>) {
        for index in 0..self.outputs.len() {
            self.close_output(index, lent);
        }
        self.write_records(lent);
        self.publish_log(true, lent);
    }

    /// Whether its log is open; one that has ended stays in the list of open logs until that is cleared.
    pub(crate) fn has_open_log(&self) -> bool {
        self.log.as_ref().is_some_and(|log| log.file.fd().is_some())
    }

    /// Makes room among the open logs by closing this one; one that was written lately is passed over once.
    pub(crate) fn make_room(&mut self, queues: &mut Queues) -> Room {
        let Some(log) = self.log.as_mut().filter(|log| log.listed) else { return Room::None };
        if log.file.fd().is_none() {
            log.listed = false;
            return Room::None;
        }
        if std::mem::take(&mut log.recent) {
            return Room::Later;
        }
        log.listed = false;
        log.file.close();
        queues.open_logs_count = queues.open_logs_count.saturating_sub(1);
        Room::Made
    }

    fn on_report(&mut self, lent: &mut Lent<'_>) {
        let Some(input) = self.read_report(lent) else { return };
        self.decide_start(lent);
        let _ = self.feed(input, lent);
    }

    fn read_report(&mut self, lent: &Lent<'_>) -> Option<Input> {
        let (launch, process) = (self.launch.as_ref()?, self.process.as_ref()?);
        let path = cgroup_path(lent.cgroups.as_ref(), self.cgroup.as_ref());
        match launch.outcome(process, path.as_deref()) {
            Outcome::Pending => None,
            Outcome::Executed => Some(Input::Executed),
            Outcome::Failed(failure) => {
                self.failure = Some(Box::new(failure));
                Some(Input::StartFailed)
            }
        }
    }

    /// The start is decided: its link and image go.
    fn decide_start(&mut self, lent: &Lent<'_>) {
        self.launch = None;
        if let Some(process) = &mut self.process {
            if let Some(link) = process.report()
                && self.report_registered
            {
                deregister(lent.registry, link);
            }
            process.close_report();
        }
        self.report_registered = false;
    }

    fn on_output(&mut self, index: usize, closed: bool, lent: &mut Lent<'_>) {
        if let Some(output) = &mut self.outputs[index] {
            output.readable = true;
            output.hung_up |= closed;
            self.read_outputs(lent);
        }
    }

    fn on_pidfd(&mut self, lent: &mut Lent<'_>) {
        if self.life.is_starting() {
            // A failure would stand on the link by now. That may still be open, in a child of another thread between its fork and its exec.
            let input = self.read_report(lent).unwrap_or(Input::Executed);
            self.decide_start(lent);
            let _ = self.feed(input, lent);
        }
        if self.life.exit().is_some() {
            return;
        }
        let Some(process) = &mut self.process else { return };
        // Without a cgroup the group is killed while its leader is a zombie; then its id cannot be somebody else's.
        let ended = if self.had_cgroup || self.failure.is_some() { process.reap() } else { process.peek() };
        let Ok(Some((exit, usage))) = ended else { return };
        self.usage = usage.map(Box::new);
        self.exited_at = Some(lent.now);
        self.drop_reaped_process(lent);
        let _ = self.feed(Input::Exited(exit), lent);
    }

    fn drop_reaped_process(&mut self, lent: &Lent<'_>) {
        if let Some(process) = self.process.take_if(|process| process.is_reaped()) {
            deregister(lent.registry, process.pidfd());
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
            // Nobody is left to write: what the pipes hold now is all.
            for output in self.outputs.iter_mut().flatten() {
                output.readable = true;
            }
            self.read_outputs(lent);
        }
        self.queue_reports(lent.queues);
        result
    }

    fn apply(&mut self, action: Action, lent: &mut Lent<'_>) -> io::Result<Option<Input>> {
        match action {
            Action::SignalGroup(signal) => self.process.as_ref().map_or(Ok(()), |process| process.signal_group(signal))?,
            Action::KillTree => self.kill_tree(lent)?,
            Action::EndTree { kill } => return self.end_tree(kill, lent).map(Some),
            Action::ArmGrace(grace) => {
                let due = lent.now.checked_add(grace).unwrap_or(lent.now);
                self.arm(Alarm::Life(Timer::Grace), due, lent);
            }
            Action::ArmDrain => {
                self.arm(Alarm::Life(Timer::DrainIdle), lent.now + lent.settings.drain_idle_max, lent);
                self.arm(Alarm::Life(Timer::DrainTotal), lent.now + lent.settings.drain_total_max, lent);
            }
            Action::CloseOutputs => {
                for index in 0..self.outputs.len() {
                    // After a failed start there is nobody who could still have written.
                    self.count.cut_off |= self.outputs[index].is_some() && self.failure.is_none() && !self.life.is_tree_gone();
                    self.close_output(index, lent);
                }
                self.write_records(lent);
            }
            Action::ReportStarted => {
                if !self.confirmed {
                    self.notices |= Notice::Started as u8;
                }
            }
            Action::ReportExited => self.notices |= Notice::Exited as u8,
            Action::Finish => self.finish(lent),
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
    fn end_tree(&mut self, kill: bool, lent: &mut Lent<'_>) -> io::Result<Input> {
        if !self.had_cgroup {
            let killed = if kill { self.kill_tree(lent) } else { Ok(()) };
            if kill {
                self.reap_for_good(lent);
            }
            return killed.map(|()| Input::TreeUntracked);
        }
        let (Some(tree), Some(cgroup)) = (lent.cgroups.as_mut(), self.cgroup.as_ref()) else { return Ok(Input::TreeGone) };
        if let Ok(true) = tree.remove(cgroup) {
            self.unwatch(lent);
            self.cgroup = None;
            return Ok(Input::TreeGone);
        }
        if kill {
            // If that fails the drain's deadline decides.
            let _ = tree.kill(cgroup);
        }
        if self.watch.is_none() {
            // Out of watches (fs.inotify.max_user_watches): the looks and the deadline remain.
            self.watch = lent.watcher.watch(&tree.events_path(cgroup), self.key).ok();
        }
        self.tree_looks = 0;
        self.look_again(lent);
        Ok(Input::TreeLeft)
    }

    /// Arms the next look at a cgroup that is not empty; after the last one its notice has to come.
    fn look_again(&mut self, lent: &mut Lent<'_>) {
        let wait = match TREE_LOOKS.get(self.tree_looks) {
            Some(wait) => *wait,
            // No notice will come without a watch.
            None if self.watch.is_none() => lent.settings.drain_idle_max,
            None => return,
        };
        self.arm(Alarm::Tree, lent.now + wait, lent);
    }

    fn tree_gone(&mut self, lent: &mut Lent<'_>) {
        self.unwatch(lent);
        self.cgroup = None;
        if self.is_finished() {
            lent.deadlines.remove(&mut self.deadlines.tree, (self.key, Alarm::Tree));
            if self.hidden {
                lent.queues.gone.push(self.key);
            }
            return;
        }
        let _ = self.feed(Input::TreeGone, lent);
    }

    fn unwatch(&mut self, lent: &mut Lent<'_>) {
        if let Some(watch) = self.watch.take() {
            lent.watcher.unwatch(watch);
        }
    }

    fn reap_for_good(&mut self, lent: &Lent<'_>) {
        if let Some(process) = &mut self.process {
            let _ = process.reap();
        }
        self.drop_reaped_process(lent);
    }

    /// Reads what is there, within the budget of this turn; one write to the log at the end.
    fn read_outputs(&mut self, lent: &mut Lent<'_>) {
        if self.turn != lent.turn {
            self.turn = lent.turn;
            self.budget_left = lent.settings.read_budget_bytes;
        }
        let mut seen = 0;
        for index in [self.reads_first, 1 - self.reads_first] {
            seen += self.read_output(index, lent);
        }
        if seen > 0 {
            // A loud output must not leave the other unread for ever.
            self.reads_first = if self.budget_left == 0 { 1 - self.reads_first } else { 0 };
        }
        self.write_records(lent);
        if seen > 0 && self.life.is_draining_by_deadline() {
            self.arm(Alarm::Life(Timer::DrainIdle), lent.now + lent.settings.drain_idle_max, lent);
        }
        if self.outputs.iter().flatten().any(|output| output.readable) {
            if !self.ready_queued {
                self.ready_queued = true;
                lent.queues.ready.push_back(self.key);
            }
            return;
        }
        if self.outputs.iter().all(Option::is_none) {
            let _ = self.feed(Input::OutputsClosed, lent);
        } else if self.life.ends_when_quiet() {
            let _ = self.feed(Input::OutputsQuiet, lent);
        }
    }

    /// Reads one output until it is empty, at its end, or the budget is spent. Returns the number of bytes.
    fn read_output(&mut self, index: usize, lent: &mut Lent<'_>) -> usize {
        let mut total = 0;
        while let Some(output) = self.outputs[index].as_mut().filter(|output| output.readable && self.budget_left > 0) {
            let wanted = lent.scratch.read.len();
            let buffer = &mut lent.scratch.read[..];
            match read_output(output.fd.as_fd(), buffer) {
                Ok(ReadOutcome::Bytes(count)) => {
                    // A pipe gives what it has: less than asked for means empty, unless its end is still to be read.
                    output.readable = count == wanted || output.hung_up;
                    if count >= PIPE_BYTES && !std::mem::replace(&mut output.enlarged, true) {
                        enlarge_pipe(output.fd.as_fd());
                    }
                    total += count;
                    self.budget_left = self.budget_left.saturating_sub(count);
                    self.take_bytes(index, count, lent);
                }
                Ok(ReadOutcome::WouldBlock) => output.readable = false,
                // A pipe cannot fail to be read; whatever it is, nothing more will come of it.
                Ok(ReadOutcome::End) | Err(_) => self.close_output(index, lent),
            }
        }
        total
    }

    /// Turns the first `count` bytes of the read buffer into records.
    fn take_bytes(&mut self, index: usize, count: usize, lent: &mut Lent<'_>) {
        let Scratch { read, records, content_bytes, stamp } = &mut *lent.scratch;
        let (Some(output), Some(log), Some(chunk)) = (self.outputs[index].as_mut(), self.log.as_mut(), read.get(..count)) else { return };
        let stream = if index == 0 { OutputStream::Stdout } else { OutputStream::Stderr };
        match stream {
            OutputStream::Stdout => self.count.stdout_bytes += count as u64,
            OutputStream::Stderr => self.count.stderr_bytes += count as u64,
        }
        let held_before = output.splitter.held();
        let mut lines = 0;
        match log.format {
            // One pipe: nothing to keep apart.
            LogFormat::Raw if log.merged => Scratch::push_raw(records, content_bytes, chunk),
            LogFormat::Raw => output.splitter.push_bulk(chunk, |bytes| Scratch::push_raw(records, content_bytes, bytes)),
            LogFormat::Cri => {
                log.last_time = log.last_time.max(unix_nanos());
                let stamp = stamp.at(Timestamp::from_unix_nanos(log.last_time));
                output.splitter.push(chunk, |piece| {
                    lines += u64::from(piece.ending == Ending::Newline);
                    Scratch::push_piece(records, content_bytes, stamp, stream, piece);
                });
            }
        }
        if log.format == LogFormat::Raw {
            lines = memchr::memchr_iter(b'\n', chunk).count() as u64;
        }
        self.count.lines += lines;
        let held = output.splitter.held();
        // The flush time runs from when the unfinished line began; a line that went on keeps its deadline.
        if held == 0 {
            self.deadlines.flush[index].disarm();
        } else if held_before == 0 || lines > 0 {
            self.arm(Alarm::Flush(index as OutputIndex), lent.now + lent.settings.line_flush_time, lent);
        }
    }

    /// Writes the unfinished line of an output as it stands.
    fn flush_line(&mut self, index: OutputIndex, lent: &mut Lent<'_>) {
        self.flush_splitter(usize::from(index), lent);
        self.write_records(lent);
    }

    fn flush_splitter(&mut self, index: usize, lent: &mut Lent<'_>) {
        let Scratch { records, content_bytes, stamp, .. } = &mut *lent.scratch;
        let (Some(output), Some(log)) = (self.outputs[index].as_mut(), self.log.as_mut()) else { return };
        if output.splitter.held() == 0 {
            return;
        }
        let stream = if index == 0 { OutputStream::Stdout } else { OutputStream::Stderr };
        log.last_time = log.last_time.max(unix_nanos());
        let stamp = stamp.at(Timestamp::from_unix_nanos(log.last_time));
        output.splitter.flush(|piece| match log.format {
            LogFormat::Raw => Scratch::push_raw(records, content_bytes, piece.bytes),
            LogFormat::Cri => Scratch::push_piece(records, content_bytes, stamp, stream, piece),
        });
    }

    /// Writes the records of this pass, all in one.
    fn write_records(&mut self, lent: &mut Lent<'_>) {
        if lent.scratch.records.is_empty() {
            return;
        }
        let Some(log) = &mut self.log else { return };
        let was_open = log.file.fd().is_some();
        let written = log.file.append(lent.log_dir.as_fd(), &lent.scratch.records);
        lent.scratch.records.clear();
        let content_bytes = std::mem::take(&mut lent.scratch.content_bytes);
        match written {
            Ok(()) => {
                log.failing = false;
                log.recent = true;
            }
            Err(fault) => {
                self.count.dropped_bytes += content_bytes;
                log.fault = fault.errno;
                if !std::mem::replace(&mut log.failing, true) {
                    self.notices |= Notice::LogFault as u8;
                }
            }
        }
        self.publish_log(false, lent);
        if !was_open {
            self.keep_log_open(lent);
        }
        self.queue_reports(lent.queues);
    }

    /// Counts a log that has just been opened, and closes it again if too many are open.
    fn keep_log_open(&mut self, lent: &mut Lent<'_>) {
        let Some(log) = self.log.as_mut().filter(|log| log.file.fd().is_some()) else { return };
        if lent.queues.open_logs_count >= lent.settings.open_logs_max {
            log.file.close();
            lent.queues.open_logs_wanted += 1;
            return;
        }
        lent.queues.open_logs_count += 1;
        if !std::mem::replace(&mut log.listed, true) {
            lent.queues.open_logs.push_back(self.key);
        }
    }

    /// Tells the streams of the log how far it reaches.
    fn publish_log(&mut self, ended: bool, lent: &mut Lent<'_>) {
        let Some(log) = &self.log else { return };
        if let Some(progress) = log.progress.get()
            && progress.publish(log.file.length(), ended, &mut lent.queues.wakers)
        {
            self.notices |= Notice::LogReady as u8;
        }
    }

    /// Lets go of an output; its unfinished line goes into the records of this pass.
    fn close_output(&mut self, index: usize, lent: &mut Lent<'_>) {
        self.flush_splitter(index, lent);
        lent.deadlines.remove(&mut self.deadlines.flush[index], (self.key, Alarm::Flush(index as OutputIndex)));
        if let Some(output) = self.outputs[index].take() {
            deregister(lent.registry, output.fd.as_fd());
        }
    }

    /// The job is over: lets go of everything.
    fn finish(&mut self, lent: &mut Lent<'_>) {
        self.decide_start(lent);
        self.reap_for_good(lent);
        self.finished = Some(SystemTime::now());
        self.to_stdin = None;
        if self.failure.is_some() {
            // No program has run, so the cgroup is empty, and goes.
            let _ = self.end_tree(true, lent);
        }
        let tree_left = self.cgroup.is_some();
        for alarm in Deadlines::ALL {
            if alarm != Alarm::Tree || !tree_left {
                lent.deadlines.remove(self.deadlines.of(alarm), (self.key, alarm));
            }
        }
        self.end_log(lent);
        lent.queues.unfinished = lent.queues.unfinished.saturating_sub(1);
        self.notices |= Notice::Over as u8;
        if self.hidden {
            lent.queues.gone.push(self.key);
        }
    }

    fn end_log(&mut self, lent: &mut Lent<'_>) {
        self.publish_log(true, lent);
        let Some(log) = &mut self.log else { return };
        if log.file.fd().is_some() {
            lent.queues.open_logs_count = lent.queues.open_logs_count.saturating_sub(1);
        }
        // A log that was deleted or replaced by somebody has no seal to get.
        if self.failure.is_some() {
            let _ = log.file.delete(lent.log_dir.as_fd());
            self.log = None;
        } else {
            let _ = log.file.seal(lent.log_dir.as_fd());
        }
    }

    fn arm(&mut self, alarm: Alarm, due: Instant, lent: &mut Lent<'_>) {
        lent.deadlines.arm(self.deadlines.of(alarm), due, (self.key, alarm));
    }
}

fn cgroup_path(tree: Option<&CgroupTree>, cgroup: Option<&JobCgroup>) -> Option<PathBuf> {
    Some(tree?.path_of(cgroup?))
}

fn register(registry: &Registry, fd: i32, key: Key, source: Source) -> io::Result<()> {
    registry.register(&mut SourceFd(&fd), Token(Target::Job(key, source).pack()), Interest::READABLE)
}

/// Before a close: a child between clone and exec may still hold the file, and the registration would outlive our descriptor.
fn deregister(registry: &Registry, fd: BorrowedFd<'_>) {
    let _ = registry.deregister(&mut SourceFd(&fd.as_raw_fd()));
}

fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let deadline = Instant::now().checked_add(timeout);
    loop {
        let left = deadline.map_or(timeout, |deadline| deadline.saturating_duration_since(Instant::now()));
        let left = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The wall clock in milliseconds since 1970.
pub(crate) fn unix_millis() -> u64 {
    unix_nanos() / 1_000_000
}

/// The wall clock; before 1970 it says 1970.
fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_job_costs_less_than_a_kibibyte() {
        assert!(size_of::<Job>() <= 896, "{} bytes", size_of::<Job>());
    }
}
