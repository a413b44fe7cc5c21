//! Those who write the output of a job to a file.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use iron_exec::{CgroupBase, LogFormat, Worker};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, alarm};
use rustix::pipe::fcntl_setpipe_size;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, Lines};
use tokio::process::ChildStdout;

use crate::way::{LINE_BYTES, line};
use crate::{Result, conmon, end_with_parent};

/// A sink that takes so long is stuck.
const TIME_MAX_SECONDS: u32 = 60;
const PIPE_BYTES: usize = 1 << 20;
const BUFFER_BYTES: usize = 64 << 10;

/// One who writes the output of a job to a file.
pub(crate) struct Sink {
    /// The row.
    pub(crate) name: &'static str,
    /// What goes wrong with it is no failure of the benchmark.
    pub(crate) is_peer: bool,
    /// Why it cannot be had.
    pub(crate) missing: fn() -> Option<String>,
    /// Runs a job, from its start until it is reaped.
    run: fn(&Job, &Path) -> Result<Done>,
    /// Whether the file holds records.
    has_records: bool,
}

pub(crate) const SINKS: [Sink; 7] = [
    Sink { name: "read + write", is_peer: false, missing: || None, run: read_and_write, has_records: false },
    Sink { name: "cat", is_peer: false, missing: || None, run: cat, has_records: false },
    Sink {
        name: "iron-exec raw",
        is_peer: false,
        missing: || None,
        run: |job, directory| iron_exec(job, directory, LogFormat::Raw),
        has_records: false,
    },
    Sink {
        name: "iron-exec CRI",
        is_peer: false,
        missing: || None,
        run: |job, directory| iron_exec(job, directory, LogFormat::Cri),
        has_records: true,
    },
    Sink { name: "tokio", is_peer: true, missing: || None, run: tokio, has_records: false },
    Sink { name: "tokio, tokio::fs", is_peer: true, missing: || None, run: tokio_fs, has_records: false },
    Sink { name: "conmon", is_peer: true, missing: conmon::missing, run: conmon::run, has_records: true },
];

/// What is run.
pub(crate) struct Job {
    /// Program and arguments.
    pub(crate) command: Vec<String>,
}

/// How that went.
pub(crate) struct Done {
    pub(crate) time: Duration,
    /// The sink's, not the job's.
    pub(crate) cpu_time: Duration,
    pub(crate) file: PathBuf,
}

impl Job {
    /// Started by std, its stdout a pipe.
    fn spawn(&self) -> Result<Child> {
        Ok(Command::new(&self.command[0]).args(&self.command[1..]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
    }
}

/// Plays a sink, and says how many seconds that took, and how many of a CPU.
pub(crate) fn play(sink: &str, way: &str, bytes: &str, directory: &Path) -> Result<()> {
    end_with_parent()?;
    alarm::set(TIME_MAX_SECONDS);
    let program = std::env::current_exe()?.into_os_string().into_string().map_err(|_| "the path of this program is not text")?;
    let job = Job { command: vec![program, "write".to_owned(), way.to_owned(), bytes.to_owned()] };
    let sink = SINKS.iter().find(|known| known.name == sink).ok_or("no such sink")?;
    let own = tempfile::tempdir_in(directory)?;
    let done = (sink.run)(&job, own.path())?;
    check(&done.file, bytes.parse()?, sink.has_records)?;
    own.close()?;
    println!("{} {}", done.time.as_secs_f64(), done.cpu_time.as_secs_f64());
    Ok(())
}

/// A loop of this process. The job's pipe is as large as it may be.
fn read_and_write(job: &Job, directory: &Path) -> Result<Done> {
    measured(directory, |file| {
        let (mut file, mut buffer) = (File::create(file)?, vec![0; BUFFER_BYTES]);
        let mut job = job.spawn()?;
        let mut pipe = job.stdout.take().ok_or("the job has no stdout")?;
        fcntl_setpipe_size(&pipe, PIPE_BYTES)?;
        loop {
            match pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => file.write_all(&buffer[..count])?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        job.wait()?;
        Ok(())
    })
}

/// `job | cat > file`.
fn cat(job: &Job, directory: &Path) -> Result<Done> {
    let file = directory.join("log");
    let began = Instant::now();
    let mut job = job.spawn()?;
    let pipe = job.stdout.take().ok_or("the job has no stdout")?;
    let cat = Command::new("cat").stdin(pipe).stdout(File::create(&file)?).spawn()?;
    let cpu_time = cpu_time_of(cat)?;
    job.wait()?;
    Ok(Done { time: began.elapsed(), cpu_time, file })
}

fn iron_exec(job: &Job, directory: &Path, format: LogFormat) -> Result<Done> {
    let mut worker = Worker::builder().log_dir(directory).log_format(format).cgroup_base(CgroupBase::Off).build()?;
    let command = iron_exec::Command::new(&job.command[0]).args(&job.command[1..]);
    let mut file = None;
    let done = measured(directory, |_| {
        let job = worker.start(command)?;
        file = worker.wait(job)?.log;
        Ok(())
    })?;
    Ok(Done { file: file.ok_or("the job has no log")?, ..done })
}

/// The lines of a piped child into a buffered file, which the runtime's thread itself writes: a write to the page cache is short.
fn tokio(job: &Job, directory: &Path) -> Result<Done> {
    let runtime = runtime()?;
    measured(directory, |file| {
        runtime.block_on(async {
            let mut file = BufWriter::new(File::create(file)?);
            let (mut job, mut lines) = tokio_lines(job)?;
            while let Some(line) = lines.next_line().await? {
                file.write_all(line.as_bytes())?;
                file.write_all(b"\n")?;
            }
            file.flush()?;
            job.wait().await?;
            Ok(())
        })
    })
}

/// The same with a file of tokio's: each write is handed to a thread.
fn tokio_fs(job: &Job, directory: &Path) -> Result<Done> {
    let runtime = runtime()?;
    measured(directory, |file| {
        runtime.block_on(async {
            let mut file = tokio::io::BufWriter::new(tokio::fs::File::create(file).await?);
            let (mut job, mut lines) = tokio_lines(job)?;
            while let Some(line) = lines.next_line().await? {
                file.write_all(line.as_bytes()).await?;
                file.write_all(b"\n").await?;
            }
            file.flush().await?;
            job.wait().await?;
            Ok(())
        })
    })
}

/// Of one thread, which is the faster one for that.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

fn tokio_lines(job: &Job) -> Result<(tokio::process::Child, Lines<tokio::io::BufReader<ChildStdout>>)> {
    let mut job = tokio::process::Command::new(&job.command[0]).args(&job.command[1..]).stdout(Stdio::piped()).spawn()?;
    let pipe = job.stdout.take().ok_or("the job has no stdout")?;
    Ok((job, tokio::io::BufReader::new(pipe).lines()))
}

/// Of a sink that is this process. It may take the file that it is given.
fn measured(directory: &Path, run: impl FnOnce(&Path) -> Result<()>) -> Result<Done> {
    let file = directory.join("log");
    let (began, worked) = (Instant::now(), cpu_time()?);
    run(&file)?;
    Ok(Done { time: began.elapsed(), cpu_time: cpu_time()?.saturating_sub(worked), file })
}

/// How long this process has worked.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs());
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// Waits for the end of a process of one thread. Returns how long it has worked, but not those that it has waited for, as getrusage(2) would.
pub(crate) fn cpu_time_of(mut child: Child) -> Result<Duration> {
    waitid(Id::Pid(Pid::from_raw(i32::try_from(child.id())?)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
    let nanos = fs::read_to_string(format!("/proc/{}/schedstat", child.id()))?;
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("the sink ended: {status}").into());
    }
    let nanos = nanos.split(' ').next().and_then(|nanos| nanos.parse().ok()).ok_or("the kernel does not tell CPU times")?;
    Ok(Duration::from_nanos(nanos))
}

/// Whether the file holds the lines, all of them and nothing else; in records they may lie in pieces.
fn check(file: &Path, bytes: usize, has_records: bool) -> Result<()> {
    let (mut reader, expected) = (BufReader::with_capacity(1 << 20, File::open(file)?), line());
    let (mut row, mut line, mut seen) = (Vec::new(), Vec::new(), 0);
    while reader.read_until(b'\n', &mut row)? > 0 {
        if has_records {
            // The time, the stream, a tag, and the bytes.
            let mut fields = row.splitn(4, |byte| *byte == b' ').skip(2);
            let (tag, piece) = fields.next().zip(fields.next()).ok_or("something is no record")?;
            line.extend_from_slice(if tag == b"P" { piece.strip_suffix(b"\n").unwrap_or(piece) } else { piece });
            if tag == b"P" {
                row.clear();
                continue;
            }
        } else {
            std::mem::swap(&mut line, &mut row);
        }
        if line != expected {
            return Err(format!("line {} is not what was written", seen / LINE_BYTES + 1).into());
        }
        seen += line.len();
        line.clear();
        row.clear();
    }
    if seen + line.len() == bytes { Ok(()) } else { Err(format!("{seen} of {bytes} bytes are in the file").into()) }
}
