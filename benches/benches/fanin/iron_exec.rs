//! iron-exec, with jobs that wait.

use std::fs::{self, File};
use std::io::{self, PipeWriter};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iron_exec::{Capture, CgroupBase, Command, Events, JobId, ShutdownMode, Worker};
use iron_exec_benches::program;

use crate::Result;
use crate::contender::{Clock, Cost, Drain, place};

const TIMEOUT: Duration = Duration::from_mins(1);
const IDLE: Duration = Duration::from_millis(1);
const ASK_AFTER: Duration = Duration::from_micros(100);

pub(crate) struct IronExec {
    worker: Worker,
    events: Events,
    jobs: Vec<JobId>,
    logs: Vec<PathBuf>,
    /// Of the job whose pipe is written to last.
    last_log: File,
    /// All jobs read from it: they end at its end, also if this process is killed.
    _life: PipeWriter,
}

impl IronExec {
    /// `open_logs_max`: other than the default.
    pub(crate) fn new(jobs: usize, open_logs_max: Option<usize>, directory: &Path) -> Result<Self> {
        let mut builder = Worker::builder().log_dir(directory).cgroup_base(CgroupBase::Off);
        if let Some(logs) = open_logs_max {
            builder = builder.open_logs_max(logs);
        }
        let (mut worker, mut events) = (builder.build()?, Events::new());
        let (stdin, life) = io::pipe()?;
        let command = Command::new(program::write_wait(directory)?).name("job").stdin_file(stdin).capture(Capture::Merged);
        let mut started = Vec::with_capacity(jobs);
        for _ in 0..jobs {
            started.push(worker.start(command.clone())?);
            worker.turn(&mut events, Some(Duration::ZERO))?;
        }
        let log = |job: &JobId| Result::Ok(worker.query(*job)?.log.ok_or("the job has no log")?);
        let logs: Vec<PathBuf> = started.iter().map(log).collect::<Result<_>>()?;
        let last_log = File::open(logs.last().ok_or("no jobs")?)?;
        Ok(Self { worker, events, jobs: started, logs, last_log, _life: life })
    }
}

impl Drain for IronExec {
    fn ends(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        let ends = |(job, log): (&JobId, &PathBuf)| Ok((place(self.worker.query(*job)?.pid.unsigned_abs(), 1), log.clone()));
        self.jobs.iter().zip(&self.logs).map(ends).collect()
    }

    /// The worker does not say when all is written, and to ask after each turn costs a system call that the others do not make: so while lines come it is asked
    /// now and then, and the end is known a little late.
    fn drain(&mut self, _lines: usize, bytes: u64, is_filled: bool) -> Result<Cost> {
        let (clock, mut ask_at, mut complete) = (Clock::start(), Duration::ZERO, 0);
        while clock.time() < TIMEOUT {
            self.worker.turn(&mut self.events, Some(IDLE))?;
            if !is_filled && clock.time() < ask_at {
                continue;
            }
            let cost = clock.cost();
            // The last one is the last to be written, mostly: the others need not be looked at before.
            while self.last_log.metadata()?.len() >= bytes && fs::metadata(&self.logs[complete])?.len() >= bytes {
                complete += 1;
                if complete == self.logs.len() {
                    return Ok(cost);
                }
            }
            ask_at = clock.time() + ASK_AFTER;
        }
        Err("lines are missing".into())
    }

    fn end(mut self: Box<Self>) -> Result<()> {
        self.worker.shutdown(ShutdownMode::Kill)?;
        Ok(())
    }
}
