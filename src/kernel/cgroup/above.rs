//! What limits the cgroups above the jobs' own.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::base::View;
use crate::logic::ladder::LimitsAbove;

/// The files of a cgroup above that are looked at.
const ABOVE_FILES: [&str; 4] = ["memory.max", "memory.high", "memory.oom.group", "cpu.max"];

/// A cgroup that holds jobs but not the host.
#[derive(Debug)]
pub(super) struct Above {
    directory: OwnedFd,
    controllers: OwnedFd,
    /// What stood in `cgroup.controllers` when `files` were opened.
    had: Vec<u8>,
    /// Those of `ABOVE_FILES` that it has.
    files: [Option<OwnedFd>; ABOVE_FILES.len()],
}

impl Above {
    fn open(directory: &Path) -> io::Result<Self> {
        let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let controllers = rustix::fs::openat(&directory, "cgroup.controllers", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut above = Self { directory, controllers, had: Vec::new(), files: Default::default() };
        // Its files are opened now, as far as it has them.
        above.limits();
        Ok(above)
    }

    /// Its limits. What cannot be read counts as limited.
    pub(super) fn limits(&mut self) -> LimitsAbove {
        let mut content = [0_u8; 256];
        let Ok(length) = rustix::io::pread(&self.controllers, &mut content[..], 0) else { return LimitsAbove::ALL };
        let controllers = content.get(..length).unwrap_or_default();
        // Once more if a controller was taken away and given back in between.
        for _ in 0..2 {
            if self.had != controllers && !self.open_files(controllers) {
                return LimitsAbove::ALL;
            }
            match self.read_files() {
                Err(Errno::NODEV) => self.had.clear(),
                Err(_) => return LimitsAbove::ALL,
                Ok(limits) => return limits,
            }
        }
        LimitsAbove::ALL
    }

    fn open_files(&mut self, controllers: &[u8]) -> bool {
        for (file, name) in self.files.iter_mut().zip(ABOVE_FILES) {
            *file = match rustix::fs::openat(&self.directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
                Ok(file) => Some(file),
                // No such controller here: the limits of a cgroup further up hold.
                Err(Errno::NOENT) => None,
                Err(_) => return false,
            };
        }
        self.had = controllers.to_vec();
        true
    }

    fn read_files(&self) -> rustix::io::Result<LimitsAbove> {
        let starts_with = |file: &Option<OwnedFd>, unlimited: &[u8]| {
            let Some(file) = file else { return Ok(true) };
            let mut value = [0_u8; 3];
            let length = rustix::io::pread(file, &mut value[..], 0)?;
            Ok(value.get(..length).unwrap_or_default().starts_with(unlimited))
        };
        let [memory_max, memory_high, oom_group, cpu_max] = &self.files;
        Ok(LimitsAbove {
            memory_max: !starts_with(memory_max, b"max")?,
            memory_high: !starts_with(memory_high, b"max")?,
            oom_group: !starts_with(oom_group, b"0")?,
            cpu_max: !starts_with(cpu_max, b"max")?,
        })
    }
}

/// The base and the cgroups above it, up to the root of the hierarchy (which has no limits) or the first that holds this process, too: what that one
/// runs out of, the host does anyway. `None` if some of them are out of sight: behind a mount of a part of the hierarchy in which this process is not.
pub(super) fn cgroups_above(view: &View, base: &Path) -> io::Result<Option<Vec<Above>>> {
    // What stands above a symbolic link is not above what it leads to.
    let base = fs::canonicalize(base)?;
    let Some(mount) = view.mount_of(&base) else { return Ok(None) };
    let own = view.own_below(mount);
    let mut above = Vec::new();
    for directory in base.ancestors().take_while(|directory| directory.starts_with(&mount.mount_point)) {
        if own.as_ref().is_some_and(|own| own.starts_with(directory)) {
            return Ok(Some(above));
        }
        above.push(Above::open(directory)?);
    }
    Ok((mount.root == Path::new("/")).then_some(above))
}
