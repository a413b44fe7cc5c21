//! What can be made of tokio: a task for each job, on a runtime of one thread, which is this one.

use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;

use iron_exec_benches::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::runtime::{self, Runtime};
use tokio::task::{JoinSet, LocalSet};

use crate::play::{Contender, Place};

pub(crate) struct Tokio {
    place: Place,
    is_logged: bool,
    runtime: Runtime,
    tasks: LocalSet,
    running: JoinSet<Result<()>>,
    pids: Vec<Pid>,
    /// All that there ever were.
    jobs: usize,
    /// Of these, those whose tasks have come so far as to wait.
    waiting: Rc<Cell<usize>>,
}

impl Tokio {
    pub(crate) fn new(place: Place, is_logged: bool) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self {
            place,
            is_logged,
            runtime,
            tasks: LocalSet::new(),
            running: JoinSet::new(),
            pids: Vec::new(),
            jobs: 0,
            waiting: Rc::default(),
        })
    }
}

impl Contender for Tokio {
    fn start(&mut self, jobs: usize) -> Result<()> {
        let Self { place, is_logged, runtime, tasks, running, pids, jobs: number, waiting } = self;
        tasks.block_on(runtime, async {
            for _ in 0..jobs {
                *number += 1;
                let mut command = Command::new(&place.program);
                let output = || if *is_logged { Stdio::piped() } else { Stdio::null() };
                command.stdin(Stdio::null()).stdout(output()).stderr(output()).kill_on_drop(true);
                let child = command.spawn()?;
                pids.push(Pid::from_raw(i32::try_from(child.id().unwrap_or_default())?));
                if *is_logged {
                    let log = place.logs.join(format!("job_{number}.log"));
                    let log = BufWriter::new(OpenOptions::new().append(true).create_new(true).open(log)?);
                    running.spawn_local(run(child, Rc::new(RefCell::new(log)), Rc::clone(waiting)));
                } else {
                    running.spawn_local(wait(child, Rc::clone(waiting)));
                }
            }
            while waiting.get() < *number {
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }

    fn idle(&mut self, time: Duration) -> Result<()> {
        self.tasks.block_on(&self.runtime, async { tokio::time::sleep(time).await });
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let Self { runtime, tasks, running, pids, .. } = self;
        tasks.block_on(runtime, async {
            for pid in pids.drain(..) {
                kill(pid, Signal::SIGKILL)?;
            }
            while let Some(ended) = running.join_next().await {
                ended??;
            }
            Ok(())
        })
    }

    fn talk(&mut self, _: usize, _: Duration) -> Result<Option<Duration>> {
        Ok(None)
    }
}

async fn wait(mut child: Child, waiting: Rc<Cell<usize>>) -> Result<()> {
    waiting.set(waiting.get() + 1);
    child.wait().await?;
    Ok(())
}

async fn run(mut child: Child, log: Rc<RefCell<BufWriter<File>>>, waiting: Rc<Cell<usize>>) -> Result<()> {
    waiting.set(waiting.get() + 1);
    let (stdout, stderr) = (child.stdout.take().ok_or("no stdout")?, child.stderr.take().ok_or("no stderr")?);
    tokio::try_join!(copy(stdout, &log), copy(stderr, &log))?;
    child.wait().await?;
    Ok(log.borrow_mut().flush()?)
}

async fn copy(output: impl AsyncRead + Unpin, log: &RefCell<BufWriter<File>>) -> Result<()> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        writeln!(log.borrow_mut(), "{line}")?;
    }
    Ok(())
}
