//! The readers of kernel files, for the fuzz targets only: no promise of stability.

use std::path::PathBuf;

use crate::logic::{cgroup_text, kernel_text};
use crate::model::usage::{CpuUsage, IoUsage, MemoryEvents};

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
    kernel_text::ends_before_exec(stat)
}

pub fn is_past_exec(stat: &[u8]) -> bool {
    kernel_text::is_past_exec(stat)
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
