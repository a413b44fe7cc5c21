//! The hosts that are played.

use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iron_exec::framing::cri::RECORD_OVERHEAD_BYTES;
use iron_exec_benches::Results;
use iron_exec_benches::host::{end_with_parent, raise_nofile};
use nix::unistd::alarm;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::time::{ClockId, clock_gettime};

use crate::epoll::Epoll;
use crate::iron_exec::IronExec;
use crate::tokio::Tokio;
use crate::{LINE_BYTES, Result};

const RECORD_BYTES: usize = LINE_BYTES - 1 + RECORD_OVERHEAD_BYTES;
/// Of the read end, of the write end or the process, and of the log.
const FDS_PER_JOB: usize = 3;
/// Descriptors beside those.
const FDS_SPARE: usize = 300;
/// A host that is left alone, or takes longer for one answer, is stuck.
const TIME_MAX_SECONDS: u32 = 120;

/// A row.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    is_peer: bool,
    make: fn(usize, &Path) -> Result<Box<dyn Drain>>,
}

impl Contender {
    /// Something went wrong with it: that is a failure, but a note if it is a peer.
    pub(crate) fn fault(&self, what: &str, results: &mut Results) {
        let what = format!("{}, {what}", self.name);
        if self.is_peer {
            results.note(what);
        } else {
            results.fail(what);
        }
    }
}

pub(crate) const CONTENDERS: [Contender; 5] = [
    Contender { name: "floor", is_peer: false, make: |jobs, directory| Ok(Box::new(Epoll::new(jobs, directory)?)) },
    Contender { name: "iron-exec", is_peer: false, make: |jobs, directory| Ok(Box::new(IronExec::new(jobs, None, directory)?)) },
    Contender {
        name: "iron-exec, all logs open",
        is_peer: false,
        make: |jobs, directory| Ok(Box::new(IronExec::new(jobs, Some(jobs), directory)?)),
    },
    Contender { name: "tokio", is_peer: true, make: |jobs, directory| Ok(Box::new(Tokio::new(jobs, false, directory)?)) },
    Contender { name: "tokio, tokio::fs", is_peer: true, make: |jobs, directory| Ok(Box::new(Tokio::new(jobs, true, directory)?)) },
];

/// One who reads from many pipes, and writes what comes to as many logs.
pub(crate) trait Drain {
    /// Where the pipes can be opened to be written to, and the logs.
    fn ends(&self) -> Result<Vec<(PathBuf, PathBuf)>>;

    /// So many lines are in each pipe, or on their way there. Brings them into the logs; these have `bytes` bytes each then. Returns what that took.
    /// `is_filled`: all is there, and it is the CPU time that counts, otherwise the time.
    fn drain(&mut self, lines: usize, bytes: u64, is_filled: bool) -> Result<Cost>;

    /// Lets go of everything.
    fn end(self: Box<Self>) -> Result<()>;
}

/// How many descriptors a host of so many jobs needs.
pub(crate) fn fds(jobs: usize) -> usize {
    FDS_PER_JOB * jobs + FDS_SPARE
}

/// Plays a host: says where its pipes are, and then, for each line that it is told, what it took to bring so many lines of each into its log: nanoseconds,
/// and nanoseconds of a CPU; or empties the logs.
pub(crate) fn play(name: &str, jobs: &str, directory: &Path) -> Result<()> {
    end_with_parent()?;
    // A line each: what goes wrong is one, too.
    let answered = answer(name, jobs.parse()?, directory);
    if let Err(error) = answered {
        println!("{}", error.to_string().replace('\n', " "));
    }
    Ok(())
}

fn answer(name: &str, jobs: usize, directory: &Path) -> Result<()> {
    alarm::set(TIME_MAX_SECONDS);
    raise_nofile(fds(jobs))?;
    let own = tempfile::tempdir_in(directory)?;
    let contender = CONTENDERS.iter().find(|known| known.name == name).ok_or("no such contender")?;
    let mut contender = (contender.make)(jobs, own.path())?;
    let (pipes, logs): (Vec<PathBuf>, Vec<PathBuf>) = contender.ends()?.into_iter().unzip();
    let mut stdout = io::stdout().lock();
    for pipe in pipes {
        writeln!(stdout, "ok {}", pipe.display())?;
    }
    let mut bytes = 0;
    for ask in io::stdin().lock().lines() {
        alarm::set(TIME_MAX_SECONDS);
        let ask = ask?;
        let (how, lines) = ask.split_once(' ').ok_or("what is to be done?")?;
        let lines: usize = lines.parse()?;
        if how == "empty" {
            logs.iter().try_for_each(|log| File::options().write(true).open(log)?.set_len(0))?;
            bytes = 0;
            writeln!(stdout, "ok 0 0")?;
            continue;
        }
        bytes += (lines * RECORD_BYTES) as u64;
        let Cost { time, cpu_time } = contender.drain(lines, bytes, how == "filled")?;
        for log in &logs {
            let length = fs::metadata(log)?.len();
            if length != bytes {
                return Err(format!("{}: has {length} bytes instead of {bytes}", log.display()).into());
            }
        }
        writeln!(stdout, "ok {} {}", time.as_nanos(), cpu_time.as_nanos())?;
    }
    contender.end()
}

/// What something took.
pub(crate) struct Cost {
    pub(crate) time: Duration,
    /// Of this process.
    pub(crate) cpu_time: Duration,
}

/// Since when something takes what it takes.
pub(crate) struct Clock(Instant, Duration);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), cpu_time())
    }

    pub(crate) fn time(&self) -> Duration {
        self.0.elapsed()
    }

    pub(crate) fn cost(&self) -> Cost {
        Cost { time: self.time(), cpu_time: cpu_time().saturating_sub(self.1) }
    }
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::ProcessCPUTime).try_into().unwrap_or_default()
}

/// A pipe that is no job's, and its log.
pub(crate) struct Pipe {
    /// Does not block.
    pub(crate) read: OwnedFd,
    /// To be opened again by who writes.
    pub(crate) write: OwnedFd,
    pub(crate) log: File,
    path: PathBuf,
}

impl Pipe {
    pub(crate) fn new(number: usize, directory: &Path) -> Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let path = directory.join(number.to_string());
        let log = File::options().append(true).create_new(true).open(&path)?;
        Ok(Self { read, write, log, path })
    }

    pub(crate) fn ends(&self) -> (PathBuf, PathBuf) {
        (place(std::process::id(), self.write.as_raw_fd()), self.path.clone())
    }
}

/// Where a descriptor of a process can be opened again.
pub(crate) fn place(pid: u32, fd: i32) -> PathBuf {
    format!("/proc/{pid}/fd/{fd}").into()
}
