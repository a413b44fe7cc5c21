//! The floor: the system calls of a job, and nothing else.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use iron_exec::OutputStream;
use iron_exec_benches::Result;
use iron_exec_benches::floor::{Floor, reap};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, mkdirat, openat, unlinkat};
use rustix::io::{read, write};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::contender::{Contender, Place, Records};
use crate::heat::Heat;

/// As many as a worker has by default.
const SLOTS: usize = 64;
/// If nothing happens for so long, something is wrong.
const SILENCE_MAX: Duration = Duration::from_secs(10);
const READ_BYTES: usize = 64 << 10;
const EVENTS_MAX: usize = 1024;
/// What an event is about: a pipe of the job, by its stream, or its process.
const STREAMS: [OutputStream; 2] = [OutputStream::Stdout, OutputStream::Stderr];
const PROCESS: usize = 2;
const KINDS: usize = 3;

pub(crate) struct Bare {
    floor: Floor,
    logs: OwnedFd,
    prefix: String,
    cgroup: Option<OwnedFd>,
    epoll: OwnedFd,
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Jobs of all heats.
    started: usize,
    records: Records,
    input: Vec<u8>,
    record: Vec<u8>,
}

struct Job {
    name: String,
    log: OwnedFd,
    /// `None` once it has ended.
    pidfd: Option<OwnedFd>,
    /// `None` at its end.
    pipes: [Option<OwnedFd>; 2],
}

impl Bare {
    pub(crate) fn new(place: &Place, in_flight_max: usize) -> Result<Self> {
        let directory = |path: &Path| File::open(path).map(OwnedFd::from);
        Ok(Self {
            floor: Floor::new(&place.program, &[], SLOTS)?.beginning_session(),
            logs: directory(place.logs.path())?,
            prefix: place.prefix(),
            cgroup: place.cgroup.as_deref().map(directory).transpose()?,
            epoll: epoll::create(CreateFlags::CLOEXEC)?,
            jobs: (0..in_flight_max).map(|_| None).collect(),
            free: (0..in_flight_max).collect(),
            started: 0,
            records: Records::new(),
            input: vec![0; READ_BYTES],
            record: Vec::new(),
        })
    }

    fn start(&mut self) -> Result<()> {
        let slot = self.free.pop().ok_or("no room for a job")?;
        self.started += 1;
        let name = format!("{}_{}", self.prefix, self.started);
        let log_flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let log = openat(&self.logs, format!("{name}.log"), log_flags, Mode::from_raw_mode(0o600))?;
        let cgroup = match &self.cgroup {
            Some(base) => {
                mkdirat(base, &name, Mode::from_raw_mode(0o755))?;
                Some(openat(base, &name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
            }
            None => None,
        };
        let (stdout, to_stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr, to_stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdio = [None, Some(to_stdout.as_fd()), Some(to_stderr.as_fd())];
        let running = self.floor.spawn(stdio, cgroup.as_ref().map(AsFd::as_fd))?;
        for (kind, fd) in [&stdout, &stderr, &running.pidfd].into_iter().enumerate() {
            epoll::add(&self.epoll, fd, EventData::new_u64((slot * KINDS + kind) as u64), EventFlags::IN)?;
        }
        self.jobs[slot] = Some(Job { name, log, pidfd: Some(running.pidfd), pipes: [Some(stdout), Some(stderr)] });
        Ok(())
    }

    fn handle(&mut self, slot: usize, kind: usize) -> Result<()> {
        let Some(job) = &mut self.jobs[slot] else { return Ok(()) };
        if kind == PROCESS {
            let Some(pidfd) = job.pidfd.take() else { return Ok(()) };
            epoll::delete(&self.epoll, &pidfd)?;
            let code = reap(pidfd.as_fd())?;
            if code != 0 {
                return Err(format!("a job ended with {code}").into());
            }
        } else {
            let Some(pipe) = job.pipes[kind].take() else { return Ok(()) };
            let bytes = read(&pipe, &mut self.input[..])?;
            if bytes == 0 {
                // A child on its way may hold a copy: to close it would not end its registration.
                epoll::delete(&self.epoll, &pipe)?;
            } else {
                self.record.clear();
                for line in self.input[..bytes].split_inclusive(|byte| *byte == b'\n') {
                    self.records.encode(&mut self.record, STREAMS[kind], line.trim_ascii_end());
                }
                write(&job.log, &self.record)?;
                job.pipes[kind] = Some(pipe);
            }
        }
        if job.pidfd.is_none() && job.pipes.iter().all(Option::is_none) {
            if let Some(base) = &self.cgroup {
                unlinkat(base, &job.name, AtFlags::REMOVEDIR)?;
            }
            self.jobs[slot] = None;
            self.free.push(slot);
        }
        Ok(())
    }
}

impl Contender for Bare {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let timeout = Timespec::try_from(SILENCE_MAX)?;
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            while heat.starts_one(self.jobs.len() - self.free.len()) {
                self.start()?;
            }
            if self.free.len() == self.jobs.len() {
                return Ok(());
            }
            events.clear();
            epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), Some(&timeout))?;
            if events.is_empty() {
                return Err("nothing happens any more".into());
            }
            for event in &events {
                let token = usize::try_from(event.data.u64())?;
                self.handle(token / KINDS, token % KINDS)?;
            }
        }
    }
}
