//! How long it takes from the word that a job is to end until nothing of it is left: its whole process tree, and its cgroup.
//!
//! The job is a shell with three children that sleep. All of it sleeps for a while before the clock runs: the kernel tells of changes in a cgroup at most every 10 ms.
//! The shell waits for the end of a pipe that this process has in hand, and its children end with it: nothing outlives the benchmark.
//!
//! Tokio knows of the one process that it has started. What its users do for a tree is done here: a process group, killed as one; then the wait for the child,
//! and then looks, with sleeps of a millisecond in between, whether the group has gone. (What has left the group is not even noticed.) The process is the reaper of its
//! orphans for that: the machine's init may take its time.

use std::fs::{self, File};
use std::io::{self, PipeReader};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use iron_exec::{Capture, CgroupBase, Command, Event, Events, Worker};
use iron_exec_benches::floor::Floor;
use iron_exec_benches::stage::Cgroup;
use iron_exec_benches::{Result, Results, program};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::{TIME_MAX, Way};

const SHELL: &str = "/bin/sh";
/// The job: `$0` is a program that sleeps, and ends with the shell.
const TREE: &str = "\"$0\" & \"$0\" & \"$0\" & read end";
const CHILDREN: usize = 3;
/// How long it sleeps before it is stopped.
const SETTLE_TIME: Duration = Duration::from_millis(20);
/// How often somebody looks who is not told.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// What all jobs are made of.
struct Tree {
    /// What sleeps.
    idle: PathBuf,
    /// What the shells wait for the end of.
    stdin: PipeReader,
}

/// Fills the table `latency-stop`.
pub(crate) fn measure(results: &mut Results) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let (stdin, _life) = io::pipe()?;
    let tree = Arc::new(Tree { idle: program::write_idle(directory.path())?, stdin });
    let way = |name, take: fn(&Tree, usize) -> Result<Vec<Duration>>| {
        let tree = Arc::clone(&tree);
        Way::new(name, move |samples| take(&tree, samples))
    };
    let in_cgroup = |name, base: &Path, take: fn(&Tree, &Path, usize) -> Result<Vec<Duration>>| {
        let (tree, base) = (Arc::clone(&tree), base.to_owned());
        Way::new(name, move |samples| take(&tree, &base, samples))
    };
    let cgroup = cgroup();
    let mut ways = match &cgroup {
        Ok(cgroup) => vec![in_cgroup("floor", cgroup.path(), floor), in_cgroup("iron-exec", cgroup.path(), iron_exec)],
        Err(error) => {
            results.note(format!("latency-stop: floor and iron-exec need cgroups: {error}"));
            vec![Way::missing("floor"), Way::missing("iron-exec")]
        }
    };
    ways.push(way("tokio", tokio_group));
    if !Path::new("/proc/thread-self/children").exists() {
        results.note("latency-stop: not measured: the kernel does not tell who is whose child (CONFIG_PROC_CHILDREN)");
        ways = ways.into_iter().map(|way| Way::missing(way.name)).collect();
    }
    let pace = results.pace.of((1, 3), (3, 20), (5, 200));
    crate::take_turns(
        results,
        "latency-stop",
        "From the stop of a tree of four processes until it is gone; floor: cgroup.kill, cgroup.events, rmdir",
        ways,
        pace,
    )
}

/// One for the cgroups of all jobs, which can be killed as one.
fn cgroup() -> Result<Cgroup> {
    let cgroup = Cgroup::new()?;
    if cgroup.path().join("cgroup.kill").exists() { Ok(cgroup) } else { Err("there is no cgroup.kill, which Linux 5.14 has".into()) }
}

/// Waits until all of the tree sleeps, and a while longer.
fn settle(shell: i32) -> Result<()> {
    let began = Instant::now();
    loop {
        // In /proc of the shell, its one thread.
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let sleep = |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains("(idle) S"));
        if children.split_whitespace().filter(|pid| sleep(pid)).count() == CHILDREN {
            std::thread::sleep(SETTLE_TIME);
            return Ok(());
        }
        if began.elapsed() > TIME_MAX {
            return Err(format!("the tree does not come to sleep in {TIME_MAX:?}").into());
        }
        std::thread::yield_now();
    }
}

/// The system calls that it takes, and nothing else.
fn floor(tree: &Tree, base: &Path, samples: usize) -> Result<Vec<Duration>> {
    let idle = tree.idle.to_str().ok_or("the path of the program is not UTF-8")?;
    // A session of its own, as every job has.
    let mut floor = Floor::new(SHELL.as_ref(), &["-c", TREE, idle], 1)?.beginning_session();
    let path = base.join("floor");
    let one = |_| {
        fs::create_dir(&path)?;
        let (cgroup, events) = (File::open(&path)?, File::open(path.join("cgroup.events"))?);
        let shell = floor.spawn([Some(tree.stdin.as_fd()), None, None], Some(cgroup.as_fd()))?;
        settle(shell.pid)?;
        let mut told = [0; 256];
        events.read_at(&mut told, 0)?;
        let began = Instant::now();
        fs::write(path.join("cgroup.kill"), "1")?;
        loop {
            poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], None)?;
            let count = events.read_at(&mut told, 0)?;
            if told[..count].starts_with(b"populated 0") {
                break;
            }
        }
        waitid(WaitId::PidFd(shell.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        fs::remove_dir(&path)?;
        Ok(began.elapsed())
    };
    (0..samples).map(one).collect()
}

fn iron_exec(tree: &Tree, base: &Path, samples: usize) -> Result<Vec<Duration>> {
    let base = CgroupBase::Path(base.to_owned());
    let mut worker = Worker::builder().log_dir(std::env::temp_dir()).cgroup_base(base).build()?;
    let mut events = Events::new();
    let mut one = || {
        let shell = Command::new(SHELL).args(["-c", TREE]).arg(&tree.idle);
        let job = worker.start(shell.stdin_file(tree.stdin.try_clone()?).capture(Capture::Discard))?;
        settle(worker.query(job)?.pid)?;
        // What the start had to tell is not to be counted.
        worker.turn(&mut events, Some(Duration::ZERO))?;
        let began = Instant::now();
        worker.stop(job)?;
        while !events.iter().any(|event| matches!(event, Event::Finished { .. })) {
            worker.turn(&mut events, None)?;
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

fn tokio_group(tree: &Tree, samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    prctl::set_child_subreaper(true)?;
    let times = runtime.block_on(async {
        let mut times = Vec::new();
        for _ in 0..samples {
            let mut shell = tokio::process::Command::new(SHELL);
            let mut shell = shell.args(["-c", TREE]).arg(&tree.idle).stdin(tree.stdin.try_clone()?).process_group(0).spawn()?;
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
