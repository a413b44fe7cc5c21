//! The floor: an epoll instance, a read and a write.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use iron_exec::framing::cri::{self, Stamp};
use iron_exec::framing::{Ending, Piece};
use iron_exec::{OutputStream, Timestamp};
use memchr::memchr_iter;
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};

use crate::Result;
use crate::contender::{Clock, Cost, Drain, Pipe};

/// As many as iron-exec and tokio take.
const EVENTS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 64 << 10;
/// All is there: to wait means that something is wrong.
const TIMEOUT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

pub(crate) struct Epoll {
    queue: OwnedFd,
    events: Vec<epoll::Event>,
    pipes: Vec<Pipe>,
    buffer: Vec<u8>,
    records: Vec<u8>,
    stamp: Stamp,
}

impl Epoll {
    pub(crate) fn new(jobs: usize, directory: &Path) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut pipes = Vec::with_capacity(jobs);
        for number in 0..jobs {
            let pipe = Pipe::new(number, directory)?;
            epoll::add(&epoll, &pipe.read, epoll::EventData::new_u64(number as u64), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
            pipes.push(pipe);
        }
        let (events, buffer) = (Vec::with_capacity(EVENTS_MAX), vec![0; BUFFER_BYTES]);
        Ok(Self { queue: epoll, events, pipes, buffer, records: Vec::new(), stamp: Stamp::new() })
    }
}

impl Drain for Epoll {
    fn ends(&self) -> Result<Vec<(PathBuf, PathBuf)>> {
        Ok(self.pipes.iter().map(Pipe::ends).collect())
    }

    fn drain(&mut self, lines: usize, _bytes: u64, _is_filled: bool) -> Result<Cost> {
        let clock = Clock::start();
        let mut left = lines * self.pipes.len();
        while left > 0 {
            self.events.clear();
            if epoll::wait(&self.queue, spare_capacity(&mut self.events), Some(&TIMEOUT))? == 0 {
                return Err(format!("{left} lines are missing").into());
            }
            for event in &self.events {
                let pipe = &self.pipes[event.data.u64() as usize];
                // A pipe gives all that it has: less than there is room for means empty.
                let count = rustix::io::read(&pipe.read, &mut self.buffer)?;
                let chunk = &self.buffer[..count];
                let stamp = self.stamp.at(Timestamp::from_unix_nanos(unix_nanos()));
                let mut start = 0;
                for end in memchr_iter(b'\n', chunk) {
                    let piece = Piece { bytes: &chunk[start..end], ending: Ending::Newline };
                    cri::encode(&mut self.records, stamp, OutputStream::Stdout, piece);
                    start = end + 1;
                    left -= 1;
                }
                if rustix::io::write(&pipe.log, &self.records)? != self.records.len() {
                    return Err("a short write".into());
                }
                self.records.clear();
            }
        }
        Ok(clock.cost())
    }

    fn end(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}

pub(crate) fn unix_nanos() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
