//! The jobs whose costs are counted.

use std::path::Path;

use iron_exec::{Capture, CgroupBase, Command, EnvBase, Event, Events, JobId, Worker};
use iron_exec_benches::Result;
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

/// A way to run jobs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) has_cgroup: bool,
    pub(crate) is_logged: bool,
    at_a_time: usize,
}

pub(crate) const SCENARIOS: [Scenario; 4] = [
    Scenario { name: "plain", has_cgroup: false, is_logged: false, at_a_time: 1 },
    Scenario { name: "logged", has_cgroup: false, is_logged: true, at_a_time: 1 },
    Scenario { name: "full", has_cgroup: true, is_logged: true, at_a_time: 1 },
    // As many as share a turn.
    Scenario { name: "full x 32", has_cgroup: true, is_logged: true, at_a_time: 32 },
];

/// A worker that is the same whatever the environment. `start` does not wait: a poll in it would be there or not, as the child is fast or slow.
pub(crate) fn worker(log_dir: &Path, has_cgroup: bool) -> Result<Worker> {
    let cgroups = if has_cgroup { CgroupBase::Auto } else { CgroupBase::Off };
    Ok(Worker::builder().log_dir(log_dir).cgroup_base(cgroups).env_base(EnvBase::Clear).confirm(false).build()?)
}

impl Scenario {
    /// No output and no log, or one line into a log of its own.
    pub(crate) fn command(&self) -> Command {
        if self.is_logged { Command::new("/bin/echo").arg("a line of output") } else { Command::new("/bin/true").capture(Capture::Discard) }
    }

    /// Runs so many jobs from their start until they are forgotten; `turn` makes a turn of the worker.
    pub(crate) fn run(&self, worker: &mut Worker, jobs: usize, mut turn: impl FnMut(&mut Worker, &mut Events) -> Result<()>) -> Result<()> {
        let mut events = uncounted(Events::new);
        let mut running: Vec<JobId> = uncounted(|| Vec::with_capacity(self.at_a_time));
        for _ in 0..jobs / self.at_a_time {
            for _ in 0..self.at_a_time {
                let command = uncounted(|| self.command());
                running.push(worker.start(command)?);
            }
            for job in &running {
                let pid = uncounted(|| worker.query(*job))?.pid;
                wait_for_end(pid)?;
            }
            let mut finished = 0;
            while finished < self.at_a_time {
                turn(worker, &mut events)?;
                for event in &events {
                    match event {
                        Event::Finished { .. } => finished += 1,
                        Event::StartFailed { failure, .. } => return Err(format!("a job was not started: {failure}").into()),
                        _ => {}
                    }
                }
            }
            for job in running.drain(..) {
                let status = uncounted(|| worker.query(job))?;
                if !status.success() || status.output.lines != u64::from(self.is_logged) {
                    return Err(format!("a job did not do what it should: {status:?}").into());
                }
                worker.forget(job)?;
            }
        }
        Ok(())
    }
}

/// What the bench needs for itself is not counted.
pub(crate) fn uncounted<T>(make: impl FnOnce() -> T) -> T {
    let mut made = None;
    allocation_counter::opt_out(|| made = Some(make()));
    made.expect("the closure was called")
}

/// Waits until a process is a zombie; the worker reaps it. All that it has written is in its pipes then, and they are at their end.
pub(crate) fn wait_for_end(pid: i32) -> Result<()> {
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::__WALL)?;
    Ok(())
}
