//! iron-exec, with jobs that wait.

use std::fs::{self, File};
use std::io::{self, PipeWriter};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iron_exec::{Capture, CgroupBase, Command, Events, JobId, ShutdownMode, Worker};
use iron_exec_benches::program;

use crate::Result;
use crate::contender::{Clock, Cost, Drain, place};

const TIMEOUT: Duration = Duration::from_mins(1);
const IDLE: Duration = Duration::from_millis(1);
const ASK_AFTER: Duration = Duration::from_micros(100);

pub(crate) struct Ours {
    worker: Worker,
    events: Events,
    jobs: Vec<JobId>,
    logs: Vec<PathBuf>,
    /// Of the job whose pipe is written to last.
    last_log: File,
    /// All jobs read from it: they end at its end, also if this process is killed.
    _life: PipeWriter,
}

impl Ours {
    /// `open_logs_max`: other than the default.
    pub(crate) fn new(jobs: usize, open_logs_max: Option<usize>, directory: &Path) -> Result<Self> {
        let mut builder = Worker::builder().log_dir(directory).cgroup_base(CgroupBase::Off);
        if let Some(logs) = open_logs_max {
            builder = builder.open_logs_max(logs);
        }
        let (mut worker, mut events) = (builder.build()?, Events::new());
        let (stdin, life) = io::pipe()?;
        let command = Command::new(waiting_program(directory)?).name("job").stdin_file(stdin).capture(Capture::Merged);
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

impl Drain for Ours {
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

/// read(0, stack, 1) and exit(0).
#[cfg(target_arch = "x86_64")]
const WAIT: &[u8] = &[
    0x31, 0xff, // xor edi, edi
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xba, 1, 0, 0, 0, // mov edx, 1
    0x31, 0xc0, // xor eax, eax
    0x0f, 0x05, // syscall
    0x31, 0xff, // xor edi, edi
    0xb8, 60, 0, 0, 0, // mov eax, 60
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "aarch64")]
const WAIT: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0xe1, 0x03, 0x00, 0x91, // mov x1, sp
    0x22, 0x00, 0x80, 0xd2, // mov x2, 1
    0xe8, 0x07, 0x80, 0xd2, // mov x8, 63
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0xa8, 0x0b, 0x80, 0xd2, // mov x8, 93
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// The headers of the program that exits, and where in them is how long it is, in the file and in memory.
const HEADER_BYTES: usize = 120;
const LENGTHS_AT: [usize; 2] = [96, 104];

/// A program that waits until its stdin is at its end: the one that exits, with other code.
fn waiting_program(directory: &Path) -> Result<PathBuf> {
    let mut file = fs::read(program::write(directory)?)?;
    file.truncate(HEADER_BYTES);
    file.extend_from_slice(WAIT);
    for at in LENGTHS_AT {
        let length = file.len() as u64;
        file[at..at + 8].copy_from_slice(&length.to_le_bytes());
    }
    let path = directory.join("wait");
    fs::write(&path, file)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}
