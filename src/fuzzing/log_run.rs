//! A job's outputs and log without a job: the harness writes the pipes, and moves the clock by hand.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;

use crate::kernel::log_dir::{LogDir, read_mark};
use crate::kernel::log_file::LogFile;
use crate::kernel::spawner::Spawner;
use crate::kernel::stdio;
use crate::kernel::stream::LogStream;
use crate::lent::{Alarm, Lent};
use crate::log::{Log, LogNews};
use crate::logic::ids::Ids;
use crate::logic::mark::Place;
use crate::logic::names::{entry_name, log_name};
use crate::logic::token::{Key, Source};
use crate::model::capabilities::Rung;
use crate::model::id::JobId;
use crate::model::log_policy::LogPolicy;
use crate::model::output::LogFormat;
use crate::model::reading::ReadOptions;
use crate::model::settings::{CgroupBase, Settings};
use crate::model::status::OutputCount;
use crate::outputs::{Outputs, Readiness};
use crate::reactor::Reactor;

/// Deadlines of one log that may come due in one [`LogRun::pass`] before that counts as a loop that does not rest.
const ALARMS_MAX: usize = 10_000;

const KEY: Key = Key { index: 0, generation: 0 };

/// How the log is to be kept.
#[derive(Clone, Copy, Debug)]
pub struct LogWay {
    pub format: LogFormat,
    pub is_merged: bool,
    pub policy: LogPolicy,
    pub line_bytes_max: usize,
    pub open_logs_max: usize,
    pub read_budget_bytes: usize,
    pub coalesce_time: Duration,
}

/// What the job's owner would have been told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told {
    pub faults: u64,
    pub resumptions: u64,
    pub fulls: u64,
    /// Whether the job is to be killed.
    pub kill: bool,
}

/// The outputs of one job, on their way into its log.
#[derive(Debug)]
pub struct LogRun {
    reactor: Reactor,
    outputs: Outputs,
    writers: [Option<OwnedFd>; 2],
    path: PathBuf,
    now: Instant,
    turn: u64,
    told: Told,
    has_ended: bool,
}

impl LogRun {
    /// Begins a log in this directory.
    ///
    /// # Panics
    ///
    /// When the kernel refuses what a worker needs.
    pub fn new(directory: &Path, way: LogWay) -> Self {
        assert_eq!(way.policy.check(), Ok(()));
        let settings = Settings {
            log_dir: directory.to_owned(),
            cgroup_base: CgroupBase::Off,
            line_bytes_max: way.line_bytes_max,
            open_logs_max: way.open_logs_max,
            read_budget_bytes: way.read_budget_bytes,
            coalesce_time: way.coalesce_time,
            ..Settings::default()
        };
        let mut ids = Ids::default();
        let (worker, id) = (ids.next(0), JobId::from(ids.next(0)));
        let log_dir = LogDir::open(directory, worker).expect("a log directory");
        let null = Arc::new(stdio::open_null().expect("/dev/null"));
        let spawner = Spawner::new(Rung::Fork, true, 0, 0, &null).expect("a spawner without slots");
        let mut reactor = Reactor::new(settings, spawner, log_dir, None).expect("a loop");
        let name = log_name(&entry_name("fuzz", id));
        let file = LogFile::create(reactor.log_dir.as_fd(), name.clone()).expect("a log file");
        reactor.log_dir.mark(file.fd().expect("it is open"), &name, way.format, Place::FIRST).expect("a mark");
        let (mut readers, mut writers) = ([None, None], [None, None]);
        for index in 0..if way.is_merged { 1 } else { 2 } {
            let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).expect("a pipe");
            (readers[index], writers[index]) = (Some(read), Some(write));
        }
        let now = Instant::now();
        let log = Log::new(KEY, file, way.format, way.policy, if way.is_merged { 1 } else { 2 }, now);
        for (fd, source) in readers.iter().flatten().zip([Source::Stdout, Source::Stderr]) {
            reactor.lend().register(fd.as_raw_fd(), KEY, source).expect("a pipe in the loop");
        }
        let mut outputs = Outputs::new(KEY, readers, Some(log), way.line_bytes_max);
        outputs.keep_log_open(&mut reactor.lend());
        let path = directory.join(name);
        Self { reactor, outputs, writers, path, now, turn: 0, told: Told::default(), has_ended: false }
    }

    /// The job writes; says how much of it the pipe took. The loop reads.
    pub fn feed(&mut self, index: usize, bytes: &[u8]) -> usize {
        let written = self.writers[index].as_ref().map_or(0, |fd| rustix::io::write(fd, bytes).unwrap_or(0));
        self.act(|outputs, lent| {
            if written > 0 {
                outputs.set_readable(index as u8, false, lent);
            }
            outputs.read(lent)
        });
        written
    }

    /// Time passes, and what comes due in it is done.
    ///
    /// # Panics
    ///
    /// When that has no end.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..ALARMS_MAX {
            let next = self.reactor.lend().deadlines.next().filter(|next| *next <= end);
            let Some(next) = next else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            let now = self.now;
            let Some((_, alarm)) = self.reactor.lend().deadlines.pop(now) else { continue };
            self.act(|outputs, lent| match alarm {
                Alarm::Flush(index) => outputs.flush_line(index, lent),
                Alarm::Gather => outputs.gathered(lent),
                Alarm::Log => outputs.go_on(lent),
                other => panic!("a log has no {other:?}"),
            });
        }
        panic!("the loop does not rest");
    }

    /// The log is closed for idleness, unless it was written since this was asked last.
    pub fn make_room(&mut self) {
        self.outputs.make_room(&mut self.reactor.queues);
    }

    /// The job ends. Its log is waited for, if it cannot be written, for so long; then every byte is in the log or counted, and the log is sealed.
    pub fn finish(&mut self, drain_total_max: Duration) {
        self.writers = [None, None];
        self.act(|outputs, lent| {
            outputs.read_to_the_end();
            outputs.read(lent)
        });
        if self.outputs.is_open() {
            self.pass(drain_total_max);
        }
        self.act(|outputs, lent| {
            outputs.note_cut_off(true);
            outputs.close(lent);
            (0, Readiness::Closed)
        });
        self.has_ended = true;
        self.act(|outputs, lent| {
            outputs.seal_log(lent);
            (0, Readiness::Closed)
        });
        let lent = self.reactor.lend();
        assert_eq!(lent.deadlines.next(), None, "a deadline is left");
        assert_eq!(lent.queues.open_logs_count, 0, "a log that is closed counts as open");
    }

    /// The log is deleted with all its files, once the job is over.
    ///
    /// # Errors
    ///
    /// When one of them is not the log's any more.
    pub fn delete(&mut self) -> io::Result<()> {
        self.outputs.forget_log(&self.reactor.log_dir)
    }

    pub fn count(&self) -> OutputCount {
        self.outputs.count()
    }

    /// Whether the job's output waits for its log.
    pub fn is_held(&self) -> bool {
        self.outputs.is_held()
    }

    pub fn told(&self) -> Told {
        self.told
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A reader of the log in this process; `None` if that cannot be opened.
    pub fn stream(&self) -> Option<LogStream> {
        let reactor = &self.reactor;
        self.outputs.stream(&ReadOptions::default(), self.has_ended, &reactor.log_dir, &reactor.watcher)?.ok()
    }

    /// One step, and the turns after it in which the outputs are read on.
    fn act(&mut self, step: impl FnOnce(&mut Outputs, &mut Lent<'_>) -> (usize, Readiness)) {
        self.turn += 1;
        let mut lent = self.reactor.lend();
        (lent.now, lent.turn) = (self.now, self.turn);
        let (_, mut readiness) = step(&mut self.outputs, &mut lent);
        while readiness == Readiness::More {
            lent.turn += 1;
            (_, readiness) = self.outputs.read(&mut lent);
        }
        self.turn = lent.turn;
        let kill = self.outputs.take_kill();
        let LogNews { fault, resumed, full, ready: _, kill: _ } = self.outputs.take_news();
        self.told.faults += u64::from(fault);
        self.told.resumptions += u64::from(resumed);
        self.told.fulls += u64::from(full);
        self.told.kill |= kill;
    }
}

/// The number and the start that the mark of a log file says.
pub fn place_of(path: &Path) -> Option<(u64, u64)> {
    let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mark = read_mark(file.as_fd(), path).ok()??;
    Some((mark.place.number, mark.place.start))
}
