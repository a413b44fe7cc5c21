//! A worker of iron-exec.

use std::io::{PipeWriter, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use iron_exec::{Capture, CgroupBase, Command, Event, Events, JobId, Worker};
use iron_exec_benches::Result;

use crate::play::{Contender, Place, READY};

/// If the loop has nothing to tell for so long, something is wrong.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// So many are on their way to their program at a time: as many as a worker has room for. It would take more, and keep them until there is.
const ON_THEIR_WAY_MAX: usize = 64;
/// Jobs that write a line when they are told to.
const TALKER: &str = "/bin/cat";

pub(crate) struct IronExec {
    worker: Worker,
    events: Events,
    command: Command,
    sleepers: Vec<JobId>,
    /// Only those that have a log.
    talkers: Vec<(JobId, PipeWriter)>,
    /// The worker's, if there is one, once it is gone.
    _base: Option<Base>,
}

/// A cgroup that is removed.
struct Base(PathBuf);

impl Drop for Base {
    fn drop(&mut self) {
        // What is left the benchmark itself takes away.
        let _ = std::fs::remove_dir(&self.0);
    }
}

impl IronExec {
    pub(crate) fn new(place: &Place, has_cgroup: bool, is_logged: bool) -> Result<Self> {
        let base = has_cgroup.then(|| Base(place.cgroup.join(format!("host_{}", std::process::id()))));
        let cgroups = base.as_ref().map_or(CgroupBase::Off, |base| CgroupBase::Path(base.0.clone()));
        let worker = Worker::builder().cgroup_base(cgroups).log_dir(&place.logs).confirm(false).build()?;
        let capture = if is_logged { Capture::Split } else { Capture::Discard };
        let command = Command::new(&place.program).capture(capture);
        let mut this = Self { worker, events: Events::new(), command, sleepers: Vec::new(), talkers: Vec::new(), _base: base };
        if is_logged && !has_cgroup {
            this.start_talkers()?;
        }
        Ok(this)
    }

    fn start_talkers(&mut self) -> Result<()> {
        for _ in 0..READY[READY.len() - 1] {
            let job = self.worker.start(Command::new(TALKER).stdin_piped())?;
            let stdin = self.worker.take_stdin(job)?.ok_or("a job has no stdin")?;
            self.talkers.push((job, stdin));
        }
        self.await_events(READY[READY.len() - 1], |event| matches!(event, Event::Started { .. }))
    }

    /// Turns the loop until there were so many events of a kind.
    fn await_events(&mut self, mut count: usize, is_awaited: impl Fn(&Event) -> bool) -> Result<()> {
        let mut told = Instant::now();
        while count > 0 {
            self.worker.turn(&mut self.events, Some(SILENCE_MAX))?;
            count -= self.take_events(&is_awaited)?;
            if !self.events.is_empty() {
                told = Instant::now();
            } else if told.elapsed() > SILENCE_MAX {
                return Err(format!("the loop has nothing to tell any more, {count} jobs are missing").into());
            }
        }
        Ok(())
    }

    /// Looks at the events of the last turn.
    fn take_events(&self, is_awaited: impl Fn(&Event) -> bool) -> Result<usize> {
        let failed = self.events.iter().find(|event| matches!(event, Event::StartFailed { .. }));
        failed.map_or(Ok(()), |event| Err(format!("a job was not started: {event:?}")))?;
        Ok(self.events.iter().filter(|event| is_awaited(event)).count())
    }

    fn lines(&self, talkers: usize) -> Result<u64> {
        let lines = |(job, _): &(JobId, PipeWriter)| Ok(self.worker.query(*job)?.output.lines);
        self.talkers[..talkers].iter().map(lines).sum()
    }
}

impl Contender for IronExec {
    fn start(&mut self, jobs: usize) -> Result<()> {
        let is_started = |event: &Event| matches!(event, Event::Started { .. });
        let mut started = 0;
        for begun in 1..=jobs {
            self.sleepers.push(self.worker.start(self.command.clone())?);
            if begun - started >= ON_THEIR_WAY_MAX {
                self.worker.turn(&mut self.events, Some(SILENCE_MAX))?;
                started += self.take_events(is_started)?;
            }
        }
        self.await_events(jobs - started, is_started)
    }

    fn idle(&mut self, time: Duration) -> Result<()> {
        let began = Instant::now();
        while let Some(left) = time.checked_sub(began.elapsed()) {
            self.worker.turn(&mut self.events, Some(left))?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        for job in &self.sleepers {
            self.worker.stop(*job)?;
        }
        let jobs = self.sleepers.len();
        self.sleepers.clear();
        self.await_events(jobs, |event| matches!(event, Event::Finished { .. }))
    }

    fn talk(&mut self, jobs: usize, talk_time: Duration) -> Result<Option<Duration>> {
        if self.talkers.len() < jobs {
            return Ok(None);
        }
        let lines = self.lines(jobs)?;
        for (_, stdin) in &mut self.talkers[..jobs] {
            stdin.write_all(b"a line of output of a job that talks\n")?;
        }
        std::thread::sleep(talk_time);
        let mut time = Duration::ZERO;
        while self.lines(jobs)? < lines + jobs as u64 {
            let began = Instant::now();
            self.worker.turn(&mut self.events, Some(SILENCE_MAX))?;
            time += began.elapsed();
        }
        Ok(Some(time))
    }
}
