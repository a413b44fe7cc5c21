//! Floor 4: a job's cgroup as far as it is more than a place: its limits, what happens in it, what it has used.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::kernel::cgroup::{CgroupTree, JobCgroup, LimitFault};
use crate::kernel::disk;
use crate::kernel::watcher::{Watch, Watched};
use crate::lent::{Alarm, Lent};
use crate::logic::deadlines::Deadline;
use crate::logic::token::{Key, Source};
use crate::model::limits::Limits;
use crate::model::pressure::{Pressure, PressureResource};
use crate::model::usage::{CgroupUsage, MemoryEvents};

/// How often, at most, it is told that a job is being slowed down, or refused processes: the kernel counts that many times a second.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// When to look again whether a child has left the host's memory: most have when one looks first.
const LEAVE_LOOK_MIN: Duration = Duration::from_micros(250);
const LEAVE_LOOK_MAX: Duration = Duration::from_millis(64);

/// What is known, and was asked for, of a job's cgroup. Only jobs of which something was asked have one.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Whether `memory.oom.group` is still to be set: not while the child stands in the host's memory, or the killer would take the host, too.
    is_oom_group_due: bool,
    /// Whether a limit on memory was asked for before.
    limits_memory: bool,
    leave: Deadline,
    leave_looks: u32,
    memory: Counter,
    pids: Counter,
    /// Processes killed for want of memory, as far as was told.
    oom_kills: u64,
    /// Whether notices of `cgroup.events` are, while the job runs, about its being frozen.
    pub(crate) watches_frozen: bool,
    pub(crate) is_frozen: bool,
    triggers: [Option<OwnedFd>; PressureResource::ALL.len()],
    /// What it has used in all.
    pub(crate) usage: Option<CgroupUsage>,
}

/// Something that the kernel counts, and tells by a watch.
#[derive(Debug, Default)]
struct Counter {
    watch: Option<Watch>,
    seen: u64,
    told_at: Option<Instant>,
}

impl Counter {
    /// Takes a new count; whether it is to be told.
    fn is_news(&mut self, count: u64, now: Instant) -> bool {
        let has_grown = count > std::mem::replace(&mut self.seen, count);
        let is_due = self.told_at.is_none_or(|told_at| now.saturating_duration_since(told_at) >= TOLD_EVERY);
        if has_grown && is_due {
            self.told_at = Some(now);
        }
        has_grown && is_due
    }

    fn watch(&mut self, path: &Path, key: Key, watched: Watched, lent: &mut Lent<'_>) {
        if self.watch.is_none() {
            // Out of watches (fs.inotify.max_user_watches): then the end of the job tells.
            self.watch = lent.watcher.watch(path, key, watched).ok();
        }
    }

    fn unwatch(&mut self, lent: &mut Lent<'_>) {
        if let Some(watch) = self.watch.take() {
            lent.watcher.unwatch(watch);
        }
    }
}

/// What happened in the cgroup since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryNews {
    pub(crate) out_of_memory: bool,
    pub(crate) high: bool,
}

impl Control {
    /// Sets the limits of a job's cgroup that has no process yet.
    pub(crate) fn begin(&mut self, limits: &Limits, key: Key, cgroup: &JobCgroup, lent: &mut Lent<'_>) -> Result<(), LimitFault> {
        let Some(tree) = lent.cgroups.as_ref() else { return Ok(()) };
        write_limits(limits, tree, cgroup)?;
        self.is_oom_group_due = limits.oom_group() == Some(true);
        self.watch_limits(limits, key, cgroup, lent);
        Ok(())
    }

    /// Sets limits while the job runs, and its child has left the host's memory.
    pub(crate) fn change(&mut self, limits: &Limits, key: Key, cgroup: &JobCgroup, lent: &mut Lent<'_>) -> Result<(), LimitFault> {
        let Some(tree) = lent.cgroups.as_ref() else { return Ok(()) };
        write_limits(limits, tree, cgroup)?;
        // What was said of it at the start holds unless it is said again.
        let oom_group = if self.limits_memory { limits.memory_oom_group } else { limits.oom_group() };
        if let Some(whole) = oom_group {
            tree.set_oom_group(cgroup, whole)?;
            self.is_oom_group_due = false;
        }
        self.watch_limits(limits, key, cgroup, lent);
        Ok(())
    }

    fn watch_limits(&mut self, limits: &Limits, key: Key, cgroup: &JobCgroup, lent: &mut Lent<'_>) {
        let Some(tree) = lent.cgroups.as_ref() else { return };
        let (memory, pids) = (tree.file_path(cgroup, "memory.events"), tree.file_path(cgroup, "pids.events"));
        if limits.oom_group().is_some() {
            self.limits_memory = true;
            self.memory.watch(&memory, key, Watched::Memory, lent);
        }
        if limits.pids_max.is_some() {
            self.pids.watch(&pids, key, Watched::Pids, lent);
        }
    }

    /// Sets `memory.oom.group` now, before there is a child, for one that will have memory of its own.
    pub(crate) fn set_oom_group_early(&mut self, tree: &CgroupTree, cgroup: &JobCgroup) -> Result<(), LimitFault> {
        if std::mem::take(&mut self.is_oom_group_due) {
            tree.set_oom_group(cgroup, true)?;
        }
        Ok(())
    }

    /// Sets `memory.oom.group` if the child `has_left` the host's memory, else looks again.
    pub(crate) fn set_oom_group(&mut self, key: Key, has_left: impl FnOnce() -> bool, cgroup: &JobCgroup, lent: &mut Lent<'_>) {
        if !self.is_oom_group_due {
            return;
        }
        let is_set = has_left() && lent.cgroups.as_ref().is_some_and(|tree| tree.set_oom_group(cgroup, true).is_ok());
        if is_set {
            self.is_oom_group_due = false;
            return;
        }
        // Also where it could not be written: for want of descriptors, say.
        let wait = LEAVE_LOOK_MIN.saturating_mul(1 << self.leave_looks.min(16)).min(LEAVE_LOOK_MAX);
        self.leave_looks += 1;
        lent.deadlines.arm(&mut self.leave, lent.now + wait, (key, Alarm::Leave));
    }

    /// Whether that is still to be done.
    pub(crate) fn is_oom_group_due(&self) -> bool {
        self.is_oom_group_due
    }

    /// Whether the deadline of the next such look has come.
    pub(crate) fn is_leave_due(&mut self, key: Key, lent: &mut Lent<'_>) -> bool {
        lent.deadlines.settle(&mut self.leave, lent.now, (key, Alarm::Leave))
    }

    /// Takes what `memory.events` says.
    pub(crate) fn note_memory(&mut self, events: &MemoryEvents, now: Instant) -> MemoryNews {
        let out_of_memory = events.oom_kill > std::mem::replace(&mut self.oom_kills, events.oom_kill);
        MemoryNews { out_of_memory, high: self.memory.is_news(events.high, now) }
    }

    /// Takes what `pids.events` says; whether it is to be told.
    pub(crate) fn note_pids(&mut self, max_events: u64, now: Instant) -> bool {
        self.pids.is_news(max_events, now)
    }

    /// Asks for word of pressure, instead of what was asked about that resource before.
    pub(crate) fn watch_pressure(
        &mut self,
        resource: PressureResource,
        pressure: &Pressure,
        key: Key,
        cgroup: &JobCgroup,
        lent: &mut Lent<'_>,
    ) -> io::Result<()> {
        let Some(tree) = lent.cgroups.as_ref() else { return Ok(()) };
        let trigger = tree.open_pressure(cgroup, resource, pressure)?;
        lent.register_priority(trigger.as_raw_fd(), key, Source::Pressure(resource))?;
        self.unwatch_pressure(resource, lent);
        self.triggers[resource as usize] = Some(trigger);
        Ok(())
    }

    pub(crate) fn unwatch_pressure(&mut self, resource: PressureResource, lent: &Lent<'_>) {
        if let Some(trigger) = self.triggers[resource as usize].take() {
            lent.deregister(trigger.as_fd());
        }
    }

    /// The cgroup is going, or nobody asks any more: nothing is watched from here on.
    pub(crate) fn end(&mut self, key: Key, lent: &mut Lent<'_>) {
        self.memory.unwatch(lent);
        self.pids.unwatch(lent);
        for resource in PressureResource::ALL {
            self.unwatch_pressure(resource, lent);
        }
        lent.deadlines.remove(&mut self.leave, (key, Alarm::Leave));
        self.is_oom_group_due = false;
        (self.watches_frozen, self.is_frozen) = (false, false);
    }
}

/// Writes all of them but `memory.oom.group`.
fn write_limits(limits: &Limits, tree: &CgroupTree, cgroup: &JobCgroup) -> Result<(), LimitFault> {
    let disks = disk::resolve(&limits.io_max).map_err(|fault| LimitFault {
        path: fault.path,
        error: fault.error,
        advice: Some(fault.advice.to_owned()),
    })?;
    tree.set_limits(cgroup, limits, &disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_and_on_is_told_once_a_second() {
        let begin = Instant::now();
        let mut counter = Counter::default();
        let told: Vec<bool> = [(0, 0), (3, 1), (3, 2), (9, 500), (20, 1001), (20, 5000)]
            .map(|(count, millis)| counter.is_news(count, begin + Duration::from_millis(millis)))
            .into();
        assert_eq!(told, [false, true, false, false, true, false]);
    }
}
