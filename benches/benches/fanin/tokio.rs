//! tokio, on a runtime of one thread, with a task for each pipe.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iron_exec::framing::cri::{self, Stamp};
use iron_exec::framing::{Ending, Piece};
use iron_exec::{OutputStream, Timestamp};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::Result;
use crate::contender::{Clock, Cost, Drain, Pipe};
use crate::epoll::unix_nanos;

pub(crate) struct Tokio {
    runtime: Runtime,
    ends: Vec<(PathBuf, PathBuf)>,
    /// Open for who writes.
    _write: Vec<OwnedFd>,
    tally: Arc<Tally>,
}

/// How many lines are still to come.
#[derive(Default)]
struct Tally {
    left: AtomicUsize,
    done: Notify,
}

impl Tokio {
    /// `is_async`: the logs are tokio's own files.
    pub(crate) fn new(jobs: usize, is_async: bool, directory: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tally = Arc::<Tally>::default();
        let (mut ends, mut writes) = (Vec::new(), Vec::new());
        let guard = runtime.enter();
        for number in 0..jobs {
            let pipe = Pipe::new(number, directory)?;
            ends.push(pipe.ends());
            writes.push(pipe.write);
            let log =
                if is_async { Log::Async(tokio::io::BufWriter::new(pipe.log.into())) } else { Log::Blocking(BufWriter::new(pipe.log)) };
            runtime.spawn(pump(Receiver::from_owned_fd(pipe.read)?, log, Arc::clone(&tally)));
        }
        drop(guard);
        Ok(Self { runtime, ends, _write: writes, tally })
    }
}

/// Lines into the log; it is written when there are no more for now.
async fn pump(pipe: Receiver, mut log: Log, tally: Arc<Tally>) -> io::Result<()> {
    let mut lines = BufReader::new(pipe).lines();
    let (mut stamp, mut record, mut count) = (Stamp::new(), Vec::new(), 0);
    while let Some(line) = lines.next_line().await? {
        let piece = Piece { bytes: line.as_bytes(), ending: Ending::Newline };
        cri::encode(&mut record, stamp.at(Timestamp::from_unix_nanos(unix_nanos())), OutputStream::Stdout, piece);
        log.write(&record).await?;
        record.clear();
        count += 1;
        if lines.get_ref().buffer().is_empty() {
            log.flush().await?;
            tally.take(count);
            count = 0;
        }
    }
    Ok(())
}

enum Log {
    /// Written by the task itself: a write to the page cache is short.
    Blocking(BufWriter<File>),
    /// Each write is handed to a thread.
    Async(tokio::io::BufWriter<tokio::fs::File>),
}

impl Log {
    async fn write(&mut self, record: &[u8]) -> io::Result<()> {
        match self {
            Log::Blocking(log) => log.write_all(record),
            Log::Async(log) => log.write_all(record).await,
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        match self {
            Log::Blocking(log) => log.flush(),
            Log::Async(log) => log.flush().await,
        }
    }
}

impl Tally {
    fn take(&self, lines: usize) {
        if self.left.fetch_sub(lines, Ordering::Relaxed) == lines {
            self.done.notify_one();
        }
    }
}

impl Drain for Tokio {
    fn ends(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        Ok(self.ends.clone())
    }

    fn drain(&mut self, lines: usize, _bytes: u64, _is_filled: bool) -> Result<Cost> {
        self.tally.left.store(lines * self.ends.len(), Ordering::Relaxed);
        let clock = Clock::start();
        self.runtime.block_on(self.tally.done.notified());
        Ok(clock.cost())
    }

    fn end(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
