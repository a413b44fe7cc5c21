//! What a job's cgroup tells: what it has used, what happened in it; and what else can be done to it: freezing, pressure triggers.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};

use super::{CgroupTree, JobCgroup, is_gone, read_at, write_at};
use crate::logic::cgroup_text;
use crate::model::pressure::{Pressure, PressureResource};
use crate::model::usage::{CgroupUsage, MemoryEvents, MemoryUsage, PidsUsage};

impl CgroupTree {
    /// What the job's cgroup has used.
    pub(crate) fn usage(&self, cgroup: &JobCgroup) -> io::Result<CgroupUsage> {
        let cpu = cgroup_text::cpu_stat(&read_at(&self.directory, &cgroup.file("cpu.stat"))?);
        let number = |file| Ok::<_, io::Error>(self.read(cgroup, file)?.as_deref().and_then(cgroup_text::number));
        let memory = match self.memory_events(cgroup)? {
            Some(events) => Some(MemoryUsage {
                current_bytes: number("memory.current")?.unwrap_or(0),
                peak_bytes: number("memory.peak")?,
                swap_bytes: number("memory.swap.current")?,
                events,
            }),
            None => None,
        };
        let io = self.read(cgroup, "io.stat")?.map(|text| cgroup_text::io_stat(&text));
        let pids = match number("pids.current")? {
            Some(current) => Some(PidsUsage { current, peak: number("pids.peak")?, max_events: self.pids_max_events(cgroup)? }),
            None => None,
        };
        Ok(CgroupUsage { cpu, memory, io, pids })
    }

    /// What happened for want of memory; `None` without the controller.
    pub(crate) fn memory_events(&self, cgroup: &JobCgroup) -> io::Result<Option<MemoryEvents>> {
        Ok(self.read(cgroup, "memory.events")?.map(|text| cgroup_text::memory_events(&text)))
    }

    /// How often `pids.max` has refused a process.
    pub(crate) fn pids_max_events(&self, cgroup: &JobCgroup) -> io::Result<u64> {
        Ok(self.read(cgroup, "pids.events")?.map_or(0, |text| cgroup_text::max_events(&text)))
    }

    /// Freezes the job's processes, or lets them go on. It takes the kernel a moment: `is_frozen` tells.
    pub(crate) fn freeze(&self, cgroup: &JobCgroup, freeze: bool) -> io::Result<()> {
        write_at(&self.directory, cgroup.file("cgroup.freeze"), if freeze { "1" } else { "0" })
    }

    /// Asks for word of pressure: the descriptor is ready with POLLPRI each time the threshold is crossed, at most once a window.
    pub(crate) fn open_pressure(&self, cgroup: &JobCgroup, resource: PressureResource, pressure: &Pressure) -> io::Result<OwnedFd> {
        let file = cgroup.file(resource.file());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.directory, file, flags, Mode::empty())?;
        rustix::io::retry_on_intr(|| rustix::io::write(&opened, pressure.trigger().as_bytes()))?;
        Ok(opened)
    }

    /// Reads a file of a job's cgroup; `None` if its controller is not there.
    fn read(&self, cgroup: &JobCgroup, file: &str) -> io::Result<Option<Vec<u8>>> {
        match read_at(&self.directory, &cgroup.file(file)) {
            Ok(text) => Ok(Some(text)),
            // A controller that is taken away while its file is read answers the same as one that was never there.
            Err(error) if is_gone(&error) || error.raw_os_error() == Some(rustix::io::Errno::OPNOTSUPP.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
