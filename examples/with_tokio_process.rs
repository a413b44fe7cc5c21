//! What `in_tokio` does, with tokio's own processes: to compare. Each job's output goes into a log, line by line, with the time and the stream.

use std::error::Error;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio::time::timeout;

type Failure = Box<dyn Error + Send + Sync>;

/// How long the output is waited for once the process has ended: a descendant may hold the pipes open.
const DRAIN_MAX: Duration = Duration::from_secs(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let logs = tempfile::tempdir()?;
    let free = Arc::new(Semaphore::new(10));
    let mut jobs = JoinSet::new();
    for number in 0..100 {
        let (free, log) = (Arc::clone(&free), logs.path().join(format!("{number}.log")));
        jobs.spawn(async move {
            let _place = free.acquire().await?;
            let script = format!("echo out {number}; echo err {number} >&2; exit {}", number % 3);
            Ok::<_, Failure>((number, run(&script, log).await?))
        });
    }
    let mut count = 0;
    while let Some(done) = jobs.join_next().await {
        let (number, (code, output)) = done??;
        assert_eq!(code, number % 3);
        assert!(output.contains(&format!("out {number}\n")) && output.contains(&format!("err {number}\n")), "{output}");
        count += 1;
    }
    println!("{count} jobs, each with its exit code and its log");
    Ok(())
}

/// Runs a command; its exit code, and what is in its log. Where this is dropped the process group is killed: what has left it (setsid(2)) is not.
async fn run(script: &str, path: PathBuf) -> Result<(i32, String), Failure> {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    // The time until the program is executed is waited for here, on the runtime's thread.
    let mut child = command.spawn()?;
    let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let log = Arc::new(Mutex::new(OpenOptions::new().create_new(true).append(true).open(&path).await?));
    let mut copies = JoinSet::new();
    copies.spawn(copy(child.stdout.take().expect("a pipe"), "stdout", Arc::clone(&log)));
    copies.spawn(copy(child.stderr.take().expect("a pipe"), "stderr", Arc::clone(&log)));
    // It is reaped here, so the number of its group may be another one's from now on: what it has left behind cannot be killed any more.
    let status = child.wait().await?;
    group.0 = None;
    let drained = timeout(DRAIN_MAX, async {
        while let Some(copied) = copies.join_next().await {
            copied??;
        }
        Ok::<_, Failure>(())
    });
    // What comes after that is lost, and the writer is sent SIGPIPE.
    drained.await.unwrap_or(Ok(()))?;
    log.lock().await.flush().await?;
    let records = tokio::fs::read_to_string(&path).await?;
    let contents = records.split_inclusive('\n').filter_map(|record| record.splitn(3, ' ').nth(2));
    Ok((status.code().unwrap_or(-1), contents.collect()))
}

/// Copies lines into the log, each with its time and stream. One that never ends fills the memory, and where the log cannot be written the job is held up, then told.
async fn copy(pipe: impl AsyncRead + Unpin, stream: &str, log: Arc<Mutex<File>>) -> Result<(), Failure> {
    let (mut pipe, mut line) = (BufReader::new(pipe), Vec::new());
    while pipe.read_until(b'\n', &mut line).await? > 0 {
        let time = SystemTime::UNIX_EPOCH.elapsed()?;
        let mut record = format!("{}.{:09} {stream} ", time.as_secs(), time.subsec_nanos()).into_bytes();
        record.append(&mut line);
        if !record.ends_with(b"\n") {
            record.push(b'\n');
        }
        log.lock().await.write_all(&record).await?;
    }
    Ok(())
}

/// A process group, killed where this is dropped before its leader was reaped.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}
