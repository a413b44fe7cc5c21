//! How long it takes from a job's write of a line until somebody who follows its log has the line in hand.
//!
//! The job writes the time (CLOCK_MONOTONIC) into each of its lines, one every few milliseconds; the follower subtracts it from its own. In between lie the pipe, the worker, the
//! log file, and the follower's way to learn that it has grown. All read a log of the same kind, in the CRI format; each round of each follower has a job, and a worker, of its own.
//!
//! `in-process`: the worker is turned by the follower. `in another thread`: by another thread of the same process. For all others the worker is another process.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iron_exec::{CgroupBase, Command, Events, LogPosition, LogReader, ReadOptions, ShutdownMode, Worker};
use iron_exec_benches::host::{Ours, again, end_with_parent};
use iron_exec_benches::{Result, Results, tool};
use linemux::MuxedLines;
use notify::{RecursiveMode, Watcher};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::Way;

/// From one line to the next.
const GAP: Duration = Duration::from_millis(3);
/// A job ends after this even if nobody ends it.
const JOB_TIME_MAX: Duration = Duration::from_mins(1);
/// Lines that are not counted: the follower, and all that it reads, are there for the first time.
const LINES_BEFORE: usize = 20;

/// Fills the table `latency-line`.
pub(crate) fn measure(results: &mut Results) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let path = directory.path().to_owned();
    // In a directory of its own each: nobody is told of the files of others.
    let fresh = move || tempfile::tempdir_in(&path);
    let of_host = |follow: fn(&Path, Samples) -> Result<Vec<Duration>>| {
        let fresh = fresh.clone();
        move |samples| {
            let directory = fresh()?;
            let (_host, log) = start_host(directory.path())?;
            follow(&log, Samples::new(samples))
        }
    };
    let of_worker = |follow: fn(Worker, Samples) -> Result<Vec<Duration>>| {
        let fresh = fresh.clone();
        move |samples| {
            let directory = fresh()?;
            follow(new_worker(directory.path())?, Samples::new(samples))
        }
    };
    let mut ways = vec![
        Way::new("floor", of_host(raw_inotify)),
        Way::new("iron-exec in-process", of_worker(in_process)),
        Way::new("iron-exec in another thread", of_worker(in_another_thread)),
        Way::new("iron-exec another process", of_host(log_reader)),
        Way::new("notify crate", of_host(notify_crate)),
        Way::new("linemux", of_host(linemux)),
        Way::new("tail -F", of_host(tail)),
    ];
    match tool::build() {
        Ok(tool) => {
            let fresh = fresh.clone();
            let follow = move |samples| {
                let directory = fresh()?;
                let (_host, log) = start_host(directory.path())?;
                from_program(&tool, &["logs", "-f", "--tail", "0"], &log, Samples::new(samples))
            };
            ways.push(Way::new("iron-exec logs -f", follow));
        }
        Err(error) => {
            results.fail(format!("latency-line, iron-exec logs -f: {error}"));
            ways.push(Way::missing("iron-exec logs -f"));
        }
    }
    let pace = results.pace.of((1, 3), (5, 50), (27, 100));
    crate::take_turns(results, "latency-line", "From a job's line to its follower; floor: inotify and read(2)", ways, pace)?;
    crate::goal(
        results,
        "line to follower in another process: p50, times raw inotify's",
        1.15,
        ("latency-line", "iron-exec another process"),
    );
    crate::goal(results, "line to follower in the process: p50, times raw inotify's", 1.0, ("latency-line", "iron-exec in-process"));
    Ok(())
}

/// The time of the clock that all processes share, in nanoseconds.
fn now() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// The job: writes its lines until nobody reads them any more.
pub(crate) fn write() -> Result<()> {
    let began = Instant::now();
    let mut stdout = io::stdout();
    let mut line = Vec::new();
    while began.elapsed() < JOB_TIME_MAX {
        std::thread::sleep(GAP);
        line.clear();
        writeln!(line, "{}", now())?;
        // One write(2): the line ends with its line feed.
        if stdout.write_all(&line).is_err() {
            break;
        }
    }
    Ok(())
}

/// A host of its own: starts the job, says where its log is, and turns its worker until it is ended.
pub(crate) fn host(log_dir: &Path) -> Result<()> {
    end_with_parent()?;
    let mut worker = new_worker(log_dir)?;
    let job = worker.start(job()?)?;
    let log = worker.query(job)?.log.ok_or("the job has no log")?;
    println!("{}", log.display());
    let mut events = Events::new();
    while !worker.query(job)?.is_finished() {
        worker.turn(&mut events, None)?;
    }
    Ok(())
}

/// Becomes another program that does not outlive its parent.
pub(crate) fn turn_into(program: &str, args: &[&str]) -> Result<()> {
    end_with_parent()?;
    Err(std::process::Command::new(program).args(args).exec().into())
}

fn start_host(log_dir: &Path) -> Result<(Ours, PathBuf)> {
    let mut host = Ours(again()?.arg("host").arg(log_dir).spawn()?);
    let mut log = String::new();
    BufReader::new(host.0.stdout.take().ok_or("no stdout")?).read_line(&mut log)?;
    if log.is_empty() {
        return Err("the host has ended before it has said where its log is".into());
    }
    Ok((host, log.trim_end().into()))
}

fn new_worker(log_dir: &Path) -> Result<Worker> {
    Ok(Worker::builder().log_dir(log_dir).cgroup_base(CgroupBase::Off).build()?)
}

fn job() -> Result<Command> {
    Ok(Command::new(std::env::current_exe()?).arg("write"))
}

/// How long each line took.
struct Samples {
    wanted: usize,
    lines_before: usize,
    times: Vec<Duration>,
}

impl Samples {
    fn new(wanted: usize) -> Self {
        Self { wanted, lines_before: LINES_BEFORE, times: Vec::with_capacity(wanted) }
    }

    /// A line is in hand, or a record of the log, which ends with the line. `true` if more are wanted.
    fn take(&mut self, line: &[u8]) -> Result<bool> {
        let now = now();
        let written = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
        let written: i64 =
            std::str::from_utf8(written)?.parse().map_err(|_| format!("no line of the job: {:?}", line.escape_ascii().to_string()))?;
        if self.lines_before > 0 {
            self.lines_before -= 1;
        } else if self.times.len() < self.wanted {
            self.times.push(Duration::from_nanos(u64::try_from(now - written)?));
        }
        Ok(self.times.len() < self.wanted)
    }

    fn take_lines(&mut self, mut lines: impl BufRead) -> Result<Vec<Duration>> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Err("the lines have come to an end".into());
            }
            if !self.take(&line)? {
                return Ok(std::mem::take(&mut self.times));
            }
        }
    }
}

fn in_process(mut worker: Worker, mut samples: Samples) -> Result<Vec<Duration>> {
    let job = worker.start(job()?)?;
    samples.take_lines(worker.follow(job)?)
}

fn in_another_thread(mut worker: Worker, mut samples: Samples) -> Result<Vec<Duration>> {
    let handle = worker.handle();
    std::thread::scope(|scope| {
        scope.spawn(move || worker.run());
        let mut follow = || {
            let job = handle.start(job()?).wait()?;
            samples.take_lines(handle.follow(job).wait()?)
        };
        let times = follow();
        handle.shutdown(ShutdownMode::Kill).wait()?;
        times
    })
}

fn log_reader(log: &Path, mut samples: Samples) -> Result<Vec<Duration>> {
    let mut reader = LogReader::follow_with(log, &ReadOptions::new().position(LogPosition::End))?;
    while let Some(record) = reader.next_record()? {
        if !samples.take(record.bytes)? {
            return Ok(samples.times);
        }
    }
    Err("the log has come to an end".into())
}

/// What has come into a file since the last look, line by line.
struct Growth {
    file: File,
    read: Vec<u8>,
}

impl Growth {
    fn of(log: &Path) -> Result<Self> {
        let mut file = File::open(log)?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, read: vec![0; 64 << 10] })
    }

    /// As [`Samples::take`]. (The worker writes whole lines.)
    fn take(&mut self, samples: &mut Samples) -> Result<bool> {
        let count = self.file.read(&mut self.read)?;
        let mut wants_more = true;
        for line in self.read[..count].split_inclusive(|byte| *byte == b'\n') {
            wants_more = samples.take(line)?;
        }
        Ok(wants_more)
    }
}

fn raw_inotify(log: &Path, mut samples: Samples) -> Result<Vec<Duration>> {
    let inotify = File::from(inotify::init(CreateFlags::CLOEXEC)?);
    inotify::add_watch(&inotify, log, WatchFlags::MODIFY)?;
    let mut growth = Growth::of(log)?;
    let mut notices = [0; 4096];
    while growth.take(&mut samples)? {
        if (&inotify).read(&mut notices)? == 0 {
            return Err("inotify has come to an end".into());
        }
    }
    Ok(samples.times)
}

fn notify_crate(log: &Path, mut samples: Samples) -> Result<Vec<Duration>> {
    let (sender, notices) = mpsc::channel();
    let mut watcher = notify::recommended_watcher(sender)?;
    watcher.watch(log, RecursiveMode::NonRecursive)?;
    let mut growth = Growth::of(log)?;
    while growth.take(&mut samples)? {
        while !notices.recv()??.kind.is_modify() {}
    }
    Ok(samples.times)
}

fn linemux(log: &Path, mut samples: Samples) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut lines = MuxedLines::new()?;
        lines.add_file(log).await?;
        while let Some(line) = lines.next_line().await? {
            if !samples.take(line.line().as_bytes())? {
                return Ok(samples.times);
            }
        }
        Err("the lines have come to an end".into())
    })
}

fn tail(log: &Path, samples: Samples) -> Result<Vec<Duration>> {
    from_program("tail".as_ref(), &["-n", "0", "-F"], log, samples)
}

/// From the stdout of a program that follows the log.
fn from_program(program: &Path, args: &[&str], log: &Path, mut samples: Samples) -> Result<Vec<Duration>> {
    let mut program = Ours(again()?.arg("become").arg(program).args(args).arg(log).stderr(Stdio::null()).spawn()?);
    samples.take_lines(BufReader::new(program.0.stdout.take().ok_or("no stdout")?))
}
