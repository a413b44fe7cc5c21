//! Limits, written into a job's cgroup; and why one cannot be had.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use super::{CgroupTree, JobCgroup, write_at};
use crate::logic::{cgroup_text, kernel_text};
use crate::model::capabilities::LimitReport;
use crate::model::limits::{DiskMax, Limits};

/// The files of every limit.
const LIMIT_FILES: [&str; 11] = [
    "cpu.max",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.mems",
    "memory.max",
    "memory.high",
    "memory.swap.max",
    OOM_GROUP,
    "pids.max",
    "io.max",
    IO_WEIGHT,
];

const OOM_GROUP: &str = "memory.oom.group";
const IO_WEIGHT: &str = "io.weight";

/// The weights of the BFQ scheduler have a file, and a range, of their own.
const BFQ_WEIGHT: &str = "io.bfq.weight";

/// The controllers that a cgroup hands down.
const SUBTREE_CONTROL: &str = "cgroup.subtree_control";

/// The controllers that tell what a job has used.
const ACCOUNTING: [&str; 4] = ["cpu", "memory", "io", "pids"];

/// A limit that could not be set.
#[derive(Debug)]
pub(crate) struct LimitFault {
    /// The file that it was to be written to, or the device that it is about.
    pub(crate) path: PathBuf,
    pub(crate) error: io::Error,
    /// Why, and what to do about it, where that is known.
    pub(crate) advice: Option<String>,
}

impl CgroupTree {
    /// Writes the limits of a job's cgroup, all but `memory.oom.group`: it is only seen that this can be written. A controller that the base has, but does not
    /// hand down yet, is enabled. `disks` is what is said about I/O.
    pub(crate) fn set_limits(&self, cgroup: &JobCgroup, limits: &Limits, disks: &[DiskMax]) -> Result<(), LimitFault> {
        if let Some((quota, period)) = limits.cpu_micros() {
            self.set(cgroup, "cpu.max", &format!("{} {period}", Number(quota)))?;
        }
        let numbers = [
            ("cpu.weight", limits.cpu_weight),
            ("memory.max", limits.memory_max),
            ("memory.high", limits.memory_high),
            ("memory.swap.max", limits.memory_swap_max),
            ("pids.max", limits.pids_max),
        ];
        for (file, value) in numbers.into_iter().filter_map(|(file, value)| Some((file, value?))) {
            self.set(cgroup, file, &Number(Some(value)).to_string())?;
        }
        for (file, list) in [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)] {
            if let Some(list) = list {
                // An empty write would not reach the file.
                self.set(cgroup, file, &format!("{list}\n"))?;
            }
        }
        if let Some(weight) = limits.io_weight {
            self.set_io_weight(cgroup, weight)?;
        }
        for disk in disks {
            let mut line = format!("{}:{}", disk.major, disk.minor);
            for (name, value) in disk.max.named() {
                if let Some(value) = value {
                    // Writing to a string cannot fail.
                    let _ = write!(line, " {name}={}", Number(Some(value)));
                }
            }
            match self.set(cgroup, "io.max", &line) {
                Err(fault) if !disk.is_named && matches!(Errno::from_io_error(&fault.error), Some(Errno::NODEV | Errno::NXIO)) => {}
                set => set?,
            }
        }
        if limits.oom_group().is_some() {
            self.enable_for(cgroup, OOM_GROUP, || {
                Ok(rustix::fs::accessat(&self.directory, cgroup.file(OOM_GROUP), Access::WRITE_OK, AtFlags::EACCESS)?)
            })?;
        }
        Ok(())
    }

    /// Writes `memory.oom.group`.
    pub(crate) fn set_oom_group(&self, cgroup: &JobCgroup, whole: bool) -> Result<(), LimitFault> {
        self.set(cgroup, OOM_GROUP, if whole { "1" } else { "0" })
    }

    fn set_io_weight(&self, cgroup: &JobCgroup, weight: u64) -> Result<(), LimitFault> {
        let is_missing = |fault: &LimitFault| fault.error.kind() == io::ErrorKind::NotFound;
        let generic = self.set(cgroup, IO_WEIGHT, &weight.to_string());
        if generic.as_ref().is_err_and(|fault| !is_missing(fault)) {
            return generic;
        }
        match self.set(cgroup, BFQ_WEIGHT, &bfq_weight(weight).to_string()) {
            // One of the two is enough.
            Err(fault) if is_missing(&fault) => generic,
            set => set,
        }
    }

    fn set(&self, cgroup: &JobCgroup, file: &'static str, value: &str) -> Result<(), LimitFault> {
        self.enable_for(cgroup, file, || write_at(&self.directory, cgroup.file(file), value))
    }

    /// Does what needs a file of a job's cgroup, if need be once the file's controller is enabled.
    fn enable_for(&self, cgroup: &JobCgroup, file: &'static str, act: impl Fn() -> io::Result<()>) -> Result<(), LimitFault> {
        let is_missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        let controller = controller_of(file);
        let mut path = self.path_of(cgroup).join(file);
        let error = match act() {
            Ok(()) => return Ok(()),
            Err(error) if is_missing(&error) => match self.enable(controller) {
                Ok(()) => match act() {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                // The base does not have it either: the file is what is missing.
                Err((_, refused)) if is_missing(&refused) => error,
                Err((control, refused)) => {
                    path = control;
                    refused
                }
            },
            Err(error) => error,
        };
        let advice = match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::BUSY | Errno::ACCESS | Errno::PERM | Errno::OPNOTSUPP) => self.why_missing(file),
            Some(Errno::INVAL | Errno::RANGE) => Some("the kernel does not take this value here".to_owned()),
            Some(Errno::NOSPC) if controller == "cpuset" => Some(
                "this kernel does not let a cgroup that holds processes go back to an empty list: write out what the cgroup above has"
                    .to_owned(),
            ),
            _ => None,
        };
        Err(LimitFault { path, error, advice })
    }

    /// Has the base hand a controller down; where it was asked for, also the cgroups above, as far as they have it. The error names the file.
    fn enable(&self, controller: &str) -> Result<(), (PathBuf, io::Error)> {
        let hand_down = |directory: &Path| {
            let control = directory.join(SUBTREE_CONTROL);
            // The kernel refuses this only for controllers that threads cannot share. With one of the others (cpu, cpuset, pids) such a cgroup would become
            // the root of a threaded subtree (cgroups(7)), and none of those in it could take a process any more.
            let is_refused = lists(directory, "cgroup.controllers", controller) && why_nothing_is_handed_down(directory).is_some();
            let handed_down = if is_refused { Err(Errno::BUSY.into()) } else { write_at(CWD, &control, &format!("+{controller}")) };
            handed_down.map_err(|error| (control, error))
        };
        match hand_down(&self.base) {
            Err((_, error)) if error.kind() == io::ErrorKind::NotFound && self.enables_above => {
                // What hands it down already need not be ours to write.
                for directory in self.ancestors().into_iter().filter(|directory| !lists(directory, SUBTREE_CONTROL, controller)) {
                    hand_down(directory)?;
                }
                hand_down(&self.base)
            }
            enabled => enabled,
        }
    }

    /// Enables what tells what jobs have used, as far as it can be had.
    pub(super) fn enable_accounting(&self) {
        for controller in ACCOUNTING {
            // Usage says which were not to be had, by what it does not tell.
            let _ = self.enable(controller);
        }
    }

    /// The cgroups above the base, from the top of the mount downwards.
    fn ancestors(&self) -> Vec<&Path> {
        let mut above: Vec<_> = self.base.ancestors().skip(1).take_while(|directory| directory.starts_with(&self.mount)).collect();
        above.reverse();
        above
    }

    /// Which limits can be had.
    pub(crate) fn limit_reports(&self) -> Vec<LimitReport> {
        LIMIT_FILES.into_iter().map(|file| LimitReport { file, missing: self.why_missing(file) }).collect()
    }

    /// Why the limit of this file cannot be had, and what to do about it; `None` if it can, as far as can be seen.
    fn why_missing(&self, file: &'static str) -> Option<String> {
        let controller = controller_of(file);
        let has = |directory: &Path, list| lists(directory, list, controller);
        if has(&self.base, "cgroup.controllers") {
            let exists = |file| rustix::fs::accessat(&self.directory, file, Access::EXISTS, AtFlags::empty()).is_ok();
            if file == IO_WEIGHT && !exists(IO_WEIGHT) && !exists(BFQ_WEIGHT) {
                return Some("the kernel has no I/O weights: it needs CONFIG_BLK_CGROUP_IOCOST, or the BFQ scheduler".to_owned());
            }
            if file != IO_WEIGHT && !exists(file) {
                return Some(format!("this kernel has no {file}"));
            }
            if has(&self.base, SUBTREE_CONTROL) {
                return None;
            }
            let control = rustix::fs::accessat(&self.directory, SUBTREE_CONTROL, Access::WRITE_OK, AtFlags::EACCESS);
            if control.is_err() {
                let base = self.base.display();
                return Some(format!(
                    "{base}/{SUBTREE_CONTROL} cannot be written: have the cgroup delegated to this user, that file included"
                ));
            }
            return why_nothing_is_handed_down(&self.base);
        }
        let mut above = self.ancestors().into_iter();
        if let Some(top) = above.next() {
            if !has(top, "cgroup.controllers") {
                return Some(why_not_in_hierarchy(controller, top));
            }
            for directory in std::iter::once(top).chain(above) {
                if !has(directory, SUBTREE_CONTROL) {
                    if let Some(reason) = why_nothing_is_handed_down(directory) {
                        return Some(reason);
                    }
                    let advice = if self.enables_above { "that failed" } else { "Builder::enable_controllers does it" };
                    return Some(format!(
                        "the controller {controller} is not enabled above the base: write \"+{controller}\" to {}/{SUBTREE_CONTROL} ({advice})",
                        directory.display()
                    ));
                }
            }
        }
        Some(format!("the controller {controller} is not handed down to {}", self.base.display()))
    }
}

/// Why the top of what we see of the hierarchy does not have a controller.
fn why_not_in_hierarchy(controller: &str, top: &Path) -> String {
    let name = if controller == "io" { "blkio" } else { controller };
    let known = fs::read("/proc/cgroups").ok().map(|text| kernel_text::hierarchy_of(&text, name));
    match known {
        Some(None) => format!("this kernel has no controller {controller}"),
        Some(Some(found)) if !found.enabled => format!("the controller {controller} is disabled: boot without cgroup_disable={name}"),
        Some(Some(found)) if found.hierarchy != 0 => format!(
            "the controller {controller} belongs to a version 1 hierarchy: boot with cgroup_no_v1={name} (or systemd.unified_cgroup_hierarchy=1)"
        ),
        _ => format!(
            "the controller {controller} is not handed down to {}: whoever runs this container, or this session, has to",
            top.display()
        ),
    }
}

/// Why a cgroup cannot hand controllers down: it has processes of its own. Only the root of the hierarchy, which has no `cgroup.kill`, may.
fn why_nothing_is_handed_down(directory: &Path) -> Option<String> {
    let holds_processes = fs::read(directory.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty());
    (holds_processes && directory.join("cgroup.kill").exists()).then(|| {
        format!(
            "{} holds processes of its own, so it cannot hand controllers down (\"no internal processes\"): use Builder::take_over_cgroup, or \
             move them to another cgroup",
            directory.display()
        )
    })
}

/// Whether a file of a cgroup, a list of words, has this one.
fn lists(directory: &Path, file: &str, wanted: &str) -> bool {
    fs::read(directory.join(file)).is_ok_and(|text| cgroup_text::words(&text).iter().any(|word| word == wanted))
}

/// The controller that a file belongs to.
fn controller_of(file: &str) -> &str {
    file.split_once('.').map_or(file, |(controller, _)| controller)
}

/// The weight of BFQ, 1 to 1000, that stands in the same proportion to the default, 100.
fn bfq_weight(weight: u64) -> u64 {
    if weight <= 100 { weight } else { 100 + (weight - 100) * (1000 - 100) / (10_000 - 100) }
}

/// A number as the kernel takes it; none, or the largest, is no limit.
struct Number(Option<u64>);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            None | Some(Limits::UNLIMITED) => f.write_str("max"),
            Some(number) => write!(f, "{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_bfq_keep_their_order_and_stay_in_its_range() {
        let weights: Vec<u64> = [1, 50, 100, 101, 200, 10_000].into_iter().map(bfq_weight).collect();
        assert_eq!(weights, [1, 50, 100, 100, 109, 1000]);
    }
}
