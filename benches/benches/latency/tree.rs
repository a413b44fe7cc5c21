//! How long it takes from the word that a job is to end until nothing of it is left: its whole process tree, and its cgroup.
//!
//! The job is a shell with three children that sleep. All of it sleeps for a while before the clock runs: the kernel tells of changes in a cgroup at most every 10 ms.
//!
//! Tokio knows of the one process that it has started. What its users do for a tree is done here: a process group, killed as one; then the wait for the child,
//! and then looks, with sleeps of a millisecond in between, whether the group has gone. (What has left the group is not even noticed.) The process is the reaper of its
//! orphans for that: the machine's init may take its time.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use iron_exec::{Capture, Command, Event, Events, Worker};
use iron_exec_benches::{Result, Results};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use crate::Way;

/// The job.
const TREE: &str = "sleep 1000 & sleep 1000 & sleep 1000 & wait";
const CHILDREN: usize = 3;
/// The same, once it has put itself into the cgroup that is its first argument.
const TREE_IN_CGROUP: &str = "echo 0 > \"$0/cgroup.procs\"; sleep 1000 & sleep 1000 & sleep 1000 & wait";
/// How long it sleeps before it is stopped.
const SETTLE_TIME: Duration = Duration::from_millis(20);
/// What takes longer is stuck.
const TIME_MAX: Duration = Duration::from_secs(10);
/// How often somebody looks who is not told.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Fills the table `latency-stop`.
pub(crate) fn measure(results: &mut Results) -> Result<()> {
    let mut ways = vec![Way::new("tokio", tokio_group)];
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let worker = Worker::builder().log_dir(directory.path()).build()?;
    if let Some(cgroups) = &worker.capabilities().cgroup {
        // Beside that of the workers, which is gone when there is none.
        let base = cgroups.base.parent().unwrap_or(&cgroups.mount).to_owned();
        ways.insert(0, Way::new("floor", move |samples| floor(&base, samples)));
        ways.insert(1, Way::new("iron-exec", move |samples| iron_exec(directory.path(), samples)));
    } else {
        let why = worker.capabilities().cgroup_missing.as_deref().unwrap_or("unknown");
        results.notes.push(format!("latency-stop: floor and iron-exec need cgroups: {why}"));
    }
    drop(worker);
    let pace = results.pace.of((1, 3), (3, 20), (5, 100));
    crate::take_turns(
        results,
        "latency-stop",
        "From the stop of a tree of four processes until it is gone; floor: cgroup.kill, cgroup.events, rmdir",
        ways,
        pace,
    )
}

/// Waits until all of the tree sleeps, and a while longer.
fn settle(shell: i32) -> Result<()> {
    let began = Instant::now();
    loop {
        // In /proc of the shell, its one thread.
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let sleep = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains("(sleep) S"));
        if children.split_whitespace().filter(|pid| sleep(pid)).count() == CHILDREN {
            std::thread::sleep(SETTLE_TIME);
            return Ok(());
        }
        if began.elapsed() > TIME_MAX {
            return Err("the tree does not come to be".into());
        }
        std::thread::yield_now();
    }
}

/// A cgroup that does not outlive its time.
struct Cgroup {
    path: PathBuf,
    is_there: bool,
}

impl Cgroup {
    fn make(base: &Path) -> Result<Self> {
        let path = base.join(format!("bench-latency-{}", std::process::id()));
        fs::create_dir(&path)?;
        Ok(Self { path, is_there: true })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let began = Instant::now();
        while self.is_there && began.elapsed() < TIME_MAX {
            // Those that are killed are gone a moment later.
            let _ = fs::write(self.path.join("cgroup.kill"), "1");
            self.is_there = fs::remove_dir(&self.path).is_err() && self.path.exists();
        }
    }
}

/// The system calls that it takes, and nothing else.
fn floor(base: &Path, samples: usize) -> Result<Vec<Duration>> {
    let one = |_| {
        let mut cgroup = Cgroup::make(base)?;
        let events = File::open(cgroup.path.join("cgroup.events"))?;
        // A session of its own, as every job has.
        let mut shell = Process::new("setsid");
        let mut shell = shell.args(["sh", "-c", TREE_IN_CGROUP]).arg(&cgroup.path).stdin(Stdio::null()).spawn()?;
        settle(i32::try_from(shell.id())?)?;
        let mut told = [0; 256];
        events.read_at(&mut told, 0)?;
        let began = Instant::now();
        fs::write(cgroup.path.join("cgroup.kill"), "1")?;
        loop {
            poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], None)?;
            let count = events.read_at(&mut told, 0)?;
            if told[..count].starts_with(b"populated 0") {
                break;
            }
        }
        shell.wait()?;
        fs::remove_dir(&cgroup.path)?;
        let took = began.elapsed();
        cgroup.is_there = false;
        Ok(took)
    };
    (0..samples).map(one).collect()
}

fn iron_exec(log_dir: &Path, samples: usize) -> Result<Vec<Duration>> {
    let mut worker = Worker::builder().log_dir(log_dir).build()?;
    let mut events = Events::new();
    let mut one = || {
        let job = worker.start(Command::shell(TREE).capture(Capture::Discard))?;
        settle(worker.query(job)?.pid)?;
        // What the start had to tell is not to be counted.
        worker.turn(&mut events, Some(Duration::ZERO))?;
        let began = Instant::now();
        worker.stop(job)?;
        while !events.iter().any(|event| matches!(event, Event::Finished { .. })) {
            worker.turn(&mut events, Some(TIME_MAX))?;
        }
        let took = began.elapsed();
        let status = worker.query(job)?;
        if status.cgroup.is_none() || status.cgroup_left {
            return Err("the job's cgroup was not made, or is left".into());
        }
        worker.forget(job)?;
        Ok(took)
    };
    (0..samples).map(|_| one()).collect()
}

/// A process group that does not outlive its time.
struct Group(Pid);

impl Drop for Group {
    fn drop(&mut self) {
        // It may have gone already.
        let _ = killpg(self.0, Signal::SIGKILL);
    }
}

fn tokio_group(samples: usize) -> Result<Vec<Duration>> {
    prctl::set_child_subreaper(true)?;
    let times = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut times = Vec::new();
        for _ in 0..samples {
            let mut shell = tokio::process::Command::new("sh").args(["-c", TREE]).stdin(Stdio::null()).process_group(0).spawn()?;
            let group = Group(Pid::from_raw(i32::try_from(shell.id().unwrap_or_default())?));
            settle(group.0.as_raw())?;
            let began = Instant::now();
            killpg(group.0, Signal::SIGKILL)?;
            shell.wait().await?;
            loop {
                match waitpid(Pid::from_raw(-group.0.as_raw()), Some(WaitPidFlag::WNOHANG)) {
                    Err(Errno::ECHILD) => break,
                    Ok(WaitStatus::StillAlive) if began.elapsed() > TIME_MAX => return Err("the process group does not go".into()),
                    Ok(WaitStatus::StillAlive) => tokio::time::sleep(LOOK_EVERY).await,
                    Ok(_) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            times.push(began.elapsed());
        }
        Ok(times)
    });
    prctl::set_child_subreaper(false)?;
    times
}
