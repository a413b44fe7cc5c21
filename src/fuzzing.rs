//! The readers of kernel files, retention, and logs without jobs, for the fuzz targets only: no promise of stability.

use std::path::PathBuf;
use std::time::Duration;

use uuid::Uuid;

use crate::logic::archive::{self, Outcome};
use crate::logic::cgroup_text;
use crate::logic::kernel_text::{self, Passage};
use crate::logic::names::{self, LogName};
use crate::logic::retention::{Bounds, FileSeen, LogFileSeen, Planner};
use crate::model::id::JobId;
use crate::model::retention::LogState;
use crate::model::usage::{CpuUsage, IoUsage, MemoryEvents};

pub mod log_run;

/// Mount point, root and whether it is read-only, of each.
pub fn cgroup2_mounts(mountinfo: &[u8]) -> Vec<(PathBuf, PathBuf, bool)> {
    kernel_text::cgroup2_mounts(mountinfo).into_iter().map(|mount| (mount.mount_point, mount.root, mount.read_only)).collect()
}

pub fn own_cgroup(proc_self_cgroup: &[u8]) -> Option<PathBuf> {
    kernel_text::own_cgroup(proc_self_cgroup)
}

/// The hierarchy, and whether the controller is enabled.
pub fn hierarchy_of(proc_cgroups: &[u8], controller: &str) -> Option<(u32, bool)> {
    kernel_text::hierarchy_of(proc_cgroups, controller).map(|controller| (controller.hierarchy, controller.enabled))
}

pub fn ends_before_exec(stat: &[u8]) -> bool {
    kernel_text::passage(stat) == Some(Passage::EndsBefore)
}

pub fn is_past_exec(stat: &[u8]) -> bool {
    kernel_text::passage(stat) == Some(Passage::Past)
}

pub fn device_number(dev: &[u8]) -> Option<(u32, u32)> {
    kernel_text::device_number(dev)
}

pub fn populated(cgroup_events: &[u8]) -> Option<bool> {
    cgroup_text::populated(cgroup_events)
}

pub fn frozen(cgroup_events: &[u8]) -> bool {
    cgroup_text::frozen(cgroup_events)
}

pub fn words(content: &[u8]) -> Vec<String> {
    cgroup_text::words(content)
}

pub fn cpu_stat(cpu_stat: &[u8]) -> CpuUsage {
    cgroup_text::cpu_stat(cpu_stat)
}

pub fn memory_events(memory_events: &[u8]) -> MemoryEvents {
    cgroup_text::memory_events(memory_events)
}

pub fn max_events(pids_events: &[u8]) -> u64 {
    cgroup_text::max_events(pids_events)
}

pub fn io_stat(io_stat: &[u8]) -> Vec<IoUsage> {
    cgroup_text::io_stat(io_stat)
}

pub fn number(content: &[u8]) -> Option<u64> {
    cgroup_text::number(content)
}

/// The most of each that is kept.
#[derive(Clone, Copy, Debug)]
pub struct PlanBounds {
    pub age_max_nanos: Option<u64>,
    pub bytes_max: Option<u64>,
    pub logs_max: Option<u64>,
}

/// A file of a log.
#[derive(Clone, Copy, Debug)]
pub struct PlanFile {
    pub log: u64,
    /// Its number, if it was rotated.
    pub rotated: Option<u64>,
    pub bytes: u64,
    pub changed_nanos: u64,
    pub is_sealed: bool,
    pub worker_lives: bool,
}

/// The logs that go, and their bytes, in this order.
pub fn plan_logs(bounds: PlanBounds, files: &[PlanFile], now: u64) -> Vec<(u64, u64)> {
    let age = bounds.age_max_nanos.map(Duration::from_nanos);
    let mut planner = Planner::new(Bounds { age, bytes: bounds.bytes_max, logs: bounds.logs_max });
    for file in files {
        let job = JobId::from(Uuid::from_u128(u128::from(file.log)));
        let log = names::log_name(&names::entry_name("fuzz", job));
        let state = match (file.is_sealed, file.worker_lives) {
            (true, _) => LogState::Sealed,
            (false, true) => LogState::Live,
            (false, false) => LogState::Leftover,
        };
        let seen = FileSeen { inode: 1, bytes: file.bytes, changed: file.changed_nanos };
        planner.add(&LogName { log: &log, job, number: file.rotated }, LogFileSeen { file: seen, state, worker_lives: file.worker_lives });
    }
    let planned = std::iter::from_fn(|| planner.next(now));
    planned.map(|doomed| (doomed.job.as_uuid().as_u128() as u64, doomed.bytes)).collect()
}

/// The size of the object that each file is stored as; `None` for one that is not.
pub fn archive_report(report: &[u8], names: &[&str]) -> Vec<Option<u64>> {
    let stored = |outcome| if let Outcome::Stored { object_bytes } = outcome { Some(object_bytes) } else { None };
    archive::parse_report(report, names).outcomes.into_iter().map(stored).collect()
}
