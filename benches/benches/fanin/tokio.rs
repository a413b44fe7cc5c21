//! tokio, on a runtime of one thread, with a task for each pipe.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use iron_exec::framing::cri::{self, Stamp};
use iron_exec::framing::{Ending, Piece};
use iron_exec::{OutputStream, Timestamp};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe::Receiver;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use crate::Result;
use crate::contender::{Drain, Pipe};
use crate::epoll::unix_nanos;

pub(crate) struct Tokio {
    runtime: Runtime,
    ends: Vec<(PathBuf, PathBuf)>,
    /// Open for who writes.
    _write: Vec<std::os::fd::OwnedFd>,
    tally: Arc<Tally>,
}

/// How many lines are still to come.
#[derive(Default)]
struct Tally {
    left: AtomicUsize,
    done: Notify,
}

impl Tokio {
    pub(crate) fn new(jobs: usize, directory: &Path) -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let tally = Arc::<Tally>::default();
        let (mut ends, mut writes) = (Vec::new(), Vec::new());
        let _guard = runtime.enter();
        for number in 0..jobs {
            let pipe = Pipe::new(number, directory)?;
            ends.push(pipe.ends());
            writes.push(pipe.write);
            runtime.spawn(pump(Receiver::from_owned_fd(pipe.read)?, pipe.log, Arc::clone(&tally)));
        }
        drop(_guard);
        Ok(Self { runtime, ends, _write: writes, tally })
    }
}

/// Lines into the log; it is written when there are no more for now. (Not through tokio's own files: they hand each write to a thread, and take a hundred times as long.)
async fn pump(pipe: Receiver, log: File, tally: Arc<Tally>) -> io::Result<()> {
    let (mut lines, mut log) = (BufReader::new(pipe).lines(), BufWriter::new(log));
    let (mut stamp, mut record, mut count) = (Stamp::new(), Vec::new(), 0);
    while let Some(line) = lines.next_line().await? {
        let piece = Piece { bytes: line.as_bytes(), ending: Ending::Newline };
        cri::encode(&mut record, stamp.at(Timestamp::from_unix_nanos(unix_nanos())), OutputStream::Stdout, piece);
        log.write_all(&record)?;
        record.clear();
        count += 1;
        if lines.get_ref().buffer().is_empty() {
            log.flush()?;
            tally.take(count);
            count = 0;
        }
    }
    Ok(())
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

    fn drain(&mut self, lines: usize, _bytes: u64) -> Result<Duration> {
        self.tally.left.store(lines * self.ends.len(), Ordering::Relaxed);
        let began = Instant::now();
        self.runtime.block_on(self.tally.done.notified());
        Ok(began.elapsed())
    }

    fn end(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
