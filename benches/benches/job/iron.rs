//! A worker of iron-exec.

use std::time::{Duration, Instant};

use iron_exec::{CgroupBase, Command, Event, Events, Exit, Worker};
use iron_exec_benches::Result;

use crate::contender::{Contender, Place};
use crate::heat::Heat;

/// If the loop has nothing to tell for so long, something is wrong.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// A worker as it is by default, but for its place.
pub(crate) struct IronExec {
    worker: Worker,
    events: Events,
    command: Command,
}

impl IronExec {
    pub(crate) fn new(place: &Place, confirm: bool) -> Result<Self> {
        let base = place.cgroup.clone().map_or(CgroupBase::Off, CgroupBase::Path);
        let worker = Worker::builder().cgroup_base(base).log_dir(place.logs.path()).confirm(confirm).build()?;
        Ok(Self { worker, events: Events::new(), command: Command::new(&place.program) })
    }
}

impl Contender for IronExec {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let mut told = Instant::now();
        loop {
            while heat.starts_one(self.worker.unfinished_jobs()) {
                self.worker.start(self.command.clone())?;
            }
            if self.worker.unfinished_jobs() == 0 {
                return Ok(());
            }
            self.worker.turn(&mut self.events, Some(SILENCE_MAX))?;
            if !self.events.is_empty() {
                told = Instant::now();
            } else if told.elapsed() > SILENCE_MAX {
                return Err("the loop has nothing to tell any more".into());
            }
            for event in self.events.drain() {
                match event {
                    Event::StartFailed { failure, .. } => return Err(failure.into()),
                    Event::Finished { exit, .. } if exit != Exit::Code(0) => return Err(format!("a job ended with {exit:?}").into()),
                    _ => {}
                }
            }
        }
    }
}
