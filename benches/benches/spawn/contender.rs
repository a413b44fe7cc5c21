//! Those that are compared. All start the same program with the same environment, its stdin, stdout and stderr on /dev/null.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::process::{self, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use iron_exec::{Capture, CgroupBase, Event, Events, Exit, Rung, Worker};
use iron_exec_benches::Result;
use iron_exec_benches::floor::{self, Floor};
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, posix_spawn};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::runtime::{self, Runtime};
use tokio::task::JoinSet;

/// If iron-exec's loop has nothing to tell for so long, something is wrong.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// One way to start programs.
pub(crate) trait Contender {
    /// Starts and reaps programs as long as the heat wants more, then reaps the rest.
    fn run(&mut self, heat: &mut Heat) -> Result<()>;
}

/// Builds one.
pub(crate) type Build = fn(&Setting) -> Result<Box<dyn Contender>>;

/// What a contender is told when it is built.
#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) program: PathBuf,
    pub(crate) log_dir: PathBuf,
    pub(crate) in_flight: usize,
}

/// All of them, in the order of the rows.
pub(crate) const ROWS: [(&str, Build); 13] = [
    ("floor", |setting| boxed(floor(setting).map(Floor::beginning_session))),
    ("floor no session", |setting| boxed(floor(setting))),
    ("floor VM only", |setting| boxed(floor(setting).map(Floor::beginning_session).map(Floor::copying_table))),
    ("iron-exec detached", |setting| boxed(IronExec::new(setting, Rung::Detached, false))),
    ("iron-exec, confirmed", |setting| boxed(IronExec::new(setting, Rung::Detached, true))),
    ("iron-exec vfork", |setting| boxed(IronExec::new(setting, Rung::Vfork, false))),
    ("iron-exec fork-like", |setting| boxed(IronExec::new(setting, Rung::ForkLike, false))),
    ("iron-exec fork", |setting| boxed(IronExec::new(setting, Rung::Fork, false))),
    ("posix_spawn", |setting| boxed(PosixSpawn::new(setting))),
    ("std::process", |setting| boxed(Ok(Std { program: setting.program.clone(), has_hook: false }))),
    ("std + pre_exec", |setting| boxed(Ok(Std { program: setting.program.clone(), has_hook: true }))),
    ("tokio::process", |setting| boxed(Tokio::new(setting))),
    ("async-process", |setting| boxed(Ok(AsyncProcess { program: setting.program.clone() }))),
];

/// Whether a row is somebody else's, so that it is none of our failures if it cannot be had.
pub(crate) fn is_peer(row: &str) -> bool {
    !row.starts_with("iron-exec") && !row.starts_with("floor")
}

fn boxed(contender: Result<impl Contender + 'static>) -> Result<Box<dyn Contender>> {
    Ok(Box::new(contender?))
}

/// One contender's go at one cell of the table.
pub(crate) struct Heat {
    in_flight: usize,
    spawns_min: u32,
    /// The host sleeps for so long before each start.
    pause: Duration,
    began: Instant,
    time: Duration,
    took: Duration,
    spawns: u32,
    /// How long each start took.
    stalls: Vec<Duration>,
}

impl Heat {
    /// `in_flight` programs at a time, for `time`, and longer if these were not `spawns_min`.
    pub(crate) fn new(in_flight: usize, spawns_min: u32, time: Duration) -> Self {
        Self {
            in_flight,
            spawns_min,
            pause: Duration::ZERO,
            began: Instant::now(),
            time,
            took: Duration::ZERO,
            spawns: 0,
            stalls: Vec::new(),
        }
    }

    /// With a sleep before each start.
    pub(crate) fn pausing(mut self, pause: Duration) -> Self {
        self.pause = pause;
        self
    }

    /// Has the contender run it. The clock stops when it has come back: what it keeps is dropped later.
    pub(crate) fn run(mut self, contender: &mut dyn Contender) -> Result<Self> {
        self.began = Instant::now();
        contender.run(&mut self)?;
        self.took = self.began.elapsed();
        Ok(self)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Of the whole heat, for one program.
    pub(crate) fn time_per_spawn(&self) -> Duration {
        self.took / self.spawns.max(1)
    }

    /// How long each start took.
    pub(crate) fn stalls(&self) -> &[Duration] {
        &self.stalls
    }

    /// Whether to start one more while `running` are.
    fn wants_more(&self, running: usize) -> bool {
        running < self.in_flight && (self.spawns < self.spawns_min || self.began.elapsed() < self.time)
    }

    /// Starts one, and takes the time.
    fn start<T>(&mut self, start: impl FnOnce() -> T) -> T {
        if !self.pause.is_zero() {
            std::thread::sleep(self.pause);
        }
        let before = Instant::now();
        let started = start();
        self.stalls.push(before.elapsed());
        self.spawns += 1;
        started
    }
}

/// Bare system calls; the oldest is waited for.
impl Contender for Floor {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let mut running = VecDeque::new();
        loop {
            while heat.wants_more(running.len()) {
                running.push_back(heat.start(|| self.spawn([None; 3], None))?);
            }
            let Some(oldest) = running.pop_front() else { return Ok(()) };
            match floor::reap(oldest.pidfd.as_fd())? {
                0 => {}
                code => return Err(format!("the program ended with {code}").into()),
            }
        }
    }
}

fn floor(setting: &Setting) -> Result<Floor> {
    Ok(Floor::on_null(&setting.program, &[], setting.in_flight)?)
}

/// A worker that is held to one rung.
struct IronExec {
    worker: Worker,
    rung: Rung,
    events: Events,
    command: iron_exec::Command,
}

impl IronExec {
    fn new(Setting { program, log_dir, .. }: &Setting, rung: Rung, confirm: bool) -> Result<Self> {
        let worker = Worker::builder().rung(rung).confirm(confirm).cgroup_base(CgroupBase::Off).log_dir(log_dir);
        // What is over is forgotten: the memory of the host stays as it is.
        let worker = worker.finished_jobs_max(0).build()?;
        let command = iron_exec::Command::new(program).capture(Capture::Discard).stdin_null();
        Ok(Self { worker, rung, events: Events::new(), command })
    }
}

impl Contender for IronExec {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let mut told = Instant::now();
        loop {
            while heat.wants_more(self.worker.unfinished_jobs()) {
                let command = self.command.clone();
                let job = heat.start(|| self.worker.start(command))?;
                // The rung is an upper bound: a row that measures another one would lie. A look at every 64th is enough for that.
                if heat.spawns % 64 == 1 {
                    let status = self.worker.query(job)?;
                    if status.rung != self.rung {
                        return Err(format!("was started on {}: {}", status.rung, status.rung_reason).into());
                    }
                }
            }
            if self.worker.unfinished_jobs() == 0 {
                return Ok(());
            }
            self.worker.turn(&mut self.events, Some(TURN_TIMEOUT))?;
            if !self.events.is_empty() {
                told = Instant::now();
            } else if told.elapsed() > TURN_TIMEOUT {
                return Err("the loop has nothing to tell any more".into());
            }
            for event in self.events.drain() {
                match event {
                    Event::StartFailed { failure, .. } => return Err(failure.into()),
                    Event::Finished { exit, .. } if exit != Exit::Code(0) => return Err(format!("the program ended with {exit:?}").into()),
                    _ => {}
                }
            }
        }
    }
}

/// The C library's function by itself, as it is used at its best: prepared once, the oldest waited for.
struct PosixSpawn {
    program: CString,
    environment: Vec<CString>,
    /// Open as long as the actions name it.
    _null: File,
    actions: PosixSpawnFileActions,
    attributes: PosixSpawnAttr,
}

impl PosixSpawn {
    fn new(Setting { program, .. }: &Setting) -> Result<Self> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        let mut actions = PosixSpawnFileActions::init()?;
        for number in 0..3 {
            actions.add_dup2(null.as_raw_fd(), number)?;
        }
        let variable = |(key, value): (OsString, OsString)| CString::new([key.into_vec(), value.into_vec()].join(&b'='));
        Ok(Self {
            program: CString::new(program.as_os_str().as_bytes())?,
            environment: std::env::vars_os().map(variable).collect::<std::result::Result<_, _>>()?,
            _null: null,
            actions,
            attributes: PosixSpawnAttr::init()?,
        })
    }

    fn spawn(&self) -> nix::Result<Pid> {
        posix_spawn(self.program.as_c_str(), &self.actions, &self.attributes, &[&self.program], &self.environment)
    }
}

impl Contender for PosixSpawn {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let mut running = VecDeque::new();
        loop {
            while heat.wants_more(running.len()) {
                running.push_back(heat.start(|| self.spawn())?);
            }
            let Some(oldest) = running.pop_front() else { return Ok(()) };
            match waitpid(oldest, None)? {
                WaitStatus::Exited(_, 0) => {}
                other => return Err(format!("the program ended with {other:?}").into()),
            }
        }
    }
}

/// The standard library; the oldest is waited for.
struct Std {
    program: PathBuf,
    /// Whether there is one between fork and exec, which does nothing.
    has_hook: bool,
}

impl Contender for Std {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let mut running = VecDeque::new();
        loop {
            while heat.wants_more(running.len()) {
                let mut command = process::Command::new(&self.program);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                if self.has_hook {
                    floor::std_with_pre_exec(&mut command);
                }
                running.push_back(heat.start(|| command.spawn())?);
            }
            let Some(mut oldest) = running.pop_front() else { return Ok(()) };
            check(oldest.wait()?)?;
        }
    }
}

/// Tokio, on a runtime of one thread: this one.
struct Tokio {
    program: PathBuf,
    runtime: Runtime,
}

impl Tokio {
    fn new(Setting { program, .. }: &Setting) -> Result<Self> {
        Ok(Self { program: program.clone(), runtime: runtime::Builder::new_current_thread().enable_all().build()? })
    }
}

impl Contender for Tokio {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        self.runtime.block_on(async {
            let mut running = JoinSet::new();
            loop {
                while heat.wants_more(running.len()) {
                    let mut command = tokio::process::Command::new(&self.program);
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    let mut child = heat.start(|| command.spawn())?;
                    running.spawn(async move { child.wait().await });
                }
                match running.join_next().await {
                    Some(ended) => check(ended??)?,
                    None => return Ok(()),
                }
            }
        })
    }
}

/// Async-process, on this thread; the oldest is waited for.
struct AsyncProcess {
    program: PathBuf,
}

impl Contender for AsyncProcess {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        async_io::block_on(async {
            let mut running = VecDeque::new();
            loop {
                while heat.wants_more(running.len()) {
                    let mut command = async_process::Command::new(&self.program);
                    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                    running.push_back(heat.start(|| command.spawn())?);
                }
                let Some(mut oldest) = running.pop_front() else { return Ok(()) };
                check(oldest.status().await?)?;
            }
        })
    }
}

fn check(status: ExitStatus) -> Result<()> {
    if status.success() { Ok(()) } else { Err(format!("the program ended: {status}").into()) }
}
