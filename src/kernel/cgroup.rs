//! Control groups, version 2: where they are, one for each job.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use crate::logic::kernel_text;
use crate::logic::ladder::LimitsAbove;
use crate::model::capabilities::CgroupReport;
use crate::model::error::BuildError;
use crate::model::settings::CgroupBase;

/// The name of our directory at the root of the hierarchy.
const BASE_NAME: &str = "iron-exec";

/// The extended attribute of a base that a worker made; one that somebody else has made, with limits maybe, is not ours to remove.
const MADE_XATTR: &str = "user.iron-exec";

/// cgroups nested deeper than this by a job are left to whoever made them.
const NESTING_MAX: usize = 64;

/// `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The base directory, in which every job gets a directory of its own.
#[derive(Debug)]
pub(crate) struct CgroupTree {
    mount: PathBuf,
    base: PathBuf,
    directory: OwnedFd,
    /// Whether the base is a directory of workers only: made when it is not there, removed by the last one to leave.
    is_own: bool,
    /// The base and the cgroups above it, as far as the host is not in them; `None` if they are out of sight.
    above: Option<Vec<Above>>,
    /// A descriptor in reserve: a tree is killed also when this process, or the machine, can open no more files.
    spare: Option<OwnedFd>,
}

/// What was found: the base, or why there is none.
#[derive(Debug)]
pub(crate) enum Discovery {
    Found(CgroupTree),
    Missing(String),
}

impl CgroupTree {
    /// Finds or makes the base.
    ///
    /// # Errors
    /// If a base was asked for by path and cannot be used. Otherwise a base that cannot be used is one that is missing.
    pub(crate) fn discover(base: &CgroupBase) -> Result<Discovery, BuildError> {
        match base {
            CgroupBase::Off => Ok(Discovery::Missing("cgroups are switched off".to_owned())),
            CgroupBase::Path(path) => {
                let failed = |source| BuildError::CgroupBase { path: path.clone(), source };
                // It stays right when the host changes its working directory.
                let path = std::path::absolute(path).map_err(failed)?;
                let mount = mounts().map_err(failed)?.into_iter().find(|mount| path.starts_with(mount)).unwrap_or_default();
                Ok(Discovery::Found(Self::open(mount, path).map_err(failed)?))
            }
            CgroupBase::Auto => Ok(match Self::find_base() {
                Ok((mount, base)) => match Self::open(mount, base.clone()) {
                    Ok(tree) => Discovery::Found(tree),
                    Err(error) => Discovery::Missing(format!("{} cannot be used: {error}", base.display())),
                },
                Err(reason) => Discovery::Missing(reason),
            }),
        }
    }

    /// The mount and the default base.
    fn find_base() -> Result<(PathBuf, PathBuf), String> {
        let unreadable = |error: io::Error| format!("/proc/self cannot be read: {error}");
        let mountinfo = fs::read("/proc/self/mountinfo").map_err(unreadable)?;
        let Some(mount) = kernel_text::cgroup2_mounts(&mountinfo).into_iter().find(|mount| !mount.read_only) else {
            return Err("no writable cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none DIRECTORY`".to_owned());
        };
        let own = fs::read("/proc/self/cgroup").map_err(unreadable)?;
        if let Some(own) = kernel_text::own_cgroup(&own).and_then(|own| below_mount(&mount, &own))
            && is_delegated(&own)
        {
            return Ok((mount.mount_point, own));
        }
        if rustix::process::geteuid().is_root() {
            let base = mount.mount_point.join(BASE_NAME);
            return Ok((mount.mount_point, base));
        }
        Err("our cgroup is not delegated to us: run under `systemd-run --user --scope -p Delegate=yes`, or give a base that we may write"
            .to_owned())
    }

    fn open(mount: PathBuf, base: PathBuf) -> io::Result<Self> {
        let (directory, is_own) = open_base(&base)?;
        // Linux 5.14 has it; without it a tree could not be killed in one go.
        match rustix::fs::accessat(&directory, "cgroup.kill", rustix::fs::Access::WRITE_OK, AtFlags::EACCESS) {
            Ok(()) => {
                // It is a tree from here on: one that is not finished goes, with the base that it made.
                let mut tree = Self { mount, base, directory, is_own, above: None, spare: None };
                tree.spare = Some(rustix::io::fcntl_dupfd_cloexec(&tree.directory, 3)?);
                tree.above = cgroups_above(&tree.base)?;
                Ok(tree)
            }
            Err(Errno::NOENT) => {
                Err(io::Error::other("it has no cgroup.kill: Linux 5.14 is needed, and the root of a hierarchy cannot be the base"))
            }
            Err(errno) => Err(errno.into()),
        }
    }

    pub(crate) fn report(&self) -> CgroupReport {
        let controllers = read_at(self.directory.as_fd(), "cgroup.controllers").unwrap_or_default();
        CgroupReport { mount: self.mount.clone(), base: self.base.clone(), controllers: kernel_text::words(&controllers) }
    }

    pub(crate) fn path_of(&self, cgroup: &JobCgroup) -> PathBuf {
        self.path_named(&cgroup.name)
    }

    /// The path of the job cgroup of this name, whether or not it is there.
    pub(crate) fn path_named(&self, name: &str) -> PathBuf {
        self.base.join(name)
    }

    /// Makes a job's cgroup, without limits yet.
    pub(crate) fn make(&mut self, name: &str) -> io::Result<JobCgroup> {
        match rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755)) {
            // Another worker, ending, has removed the base that we share.
            Err(Errno::NOENT) => {
                (self.directory, self.is_own) = open_base(&self.base)?;
                self.above = cgroups_above(&self.base)?;
                rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))?;
            }
            other => other?,
        }
        Ok(JobCgroup { name: name.into() })
    }

    /// Writes one limit of a job's cgroup. A controller that the base has, but does not hand down yet, is enabled.
    pub(crate) fn set_limit(&self, cgroup: &JobCgroup, file: &str, value: &str) -> io::Result<()> {
        let write = || write_at(self.directory.as_fd(), &cgroup.file(file), value);
        match (write(), file.split_once('.')) {
            (Err(error), Some((controller, _))) if error.kind() == io::ErrorKind::NotFound => {
                write_at(self.directory.as_fd(), "cgroup.subtree_control", &format!("+{controller}"))?;
                write()
            }
            (written, _) => written,
        }
    }

    /// What limits the cgroups above the jobs' own, as far as they are not above the host's.
    pub(crate) fn limits_above(&mut self) -> LimitsAbove {
        let Some(above) = &mut self.above else { return LimitsAbove::ALL };
        above.iter_mut().map(Above::limits).fold(LimitsAbove::default(), LimitsAbove::or)
    }

    /// Whether the job's cgroup is frozen, as one is from birth below a frozen one.
    pub(crate) fn is_frozen(&self, cgroup: &JobCgroup) -> bool {
        read_at(self.directory.as_fd(), &cgroup.file("cgroup.events")).is_ok_and(|events| kernel_text::frozen(&events))
    }

    /// The job's directory, for clone3.
    pub(crate) fn open_directory(&self, cgroup: &JobCgroup) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, &*cgroup.name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The job's `cgroup.procs`, for a child that writes itself into it.
    pub(crate) fn open_procs(&self, cgroup: &JobCgroup) -> io::Result<OwnedFd> {
        Ok(rustix::fs::openat(&self.directory, cgroup.file("cgroup.procs"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// The path of the job's `cgroup.events`.
    pub(crate) fn events_path(&self, cgroup: &JobCgroup) -> PathBuf {
        self.base.join(cgroup.file("cgroup.events"))
    }

    /// Kills every process in the job's cgroup and below, also those being forked at this moment.
    pub(crate) fn kill(&mut self, cgroup: &JobCgroup) -> io::Result<()> {
        let open = || rustix::fs::openat(&self.directory, cgroup.file("cgroup.kill"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
        let opened = match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                drop(self.spare.take());
                open()
            }
            opened => opened,
        };
        let killed = opened.and_then(|file| rustix::io::retry_on_intr(|| rustix::io::write(&file, b"1")));
        self.spare = self.spare.take().or_else(|| rustix::io::fcntl_dupfd_cloexec(&self.directory, 3).ok());
        killed.map(drop).map_err(Into::into)
    }

    /// Removes the job's cgroup, and those that the job has made inside it. `false`: processes are left in it.
    pub(crate) fn remove(&self, cgroup: &JobCgroup) -> io::Result<bool> {
        match rustix::fs::unlinkat(&self.directory, &*cgroup.name, AtFlags::REMOVEDIR) {
            // Somebody else has removed it: just as well.
            Ok(()) | Err(Errno::NOENT) => return Ok(true),
            Err(Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
        if self.is_populated(cgroup)? {
            return Ok(false);
        }
        let name = CString::new(&*cgroup.name).map_err(|_| Errno::INVAL)?;
        remove_nested(self.directory.as_fd(), &name, NESTING_MAX)
    }

    /// Waits, up to `timeout`, until no process is left in the job's cgroup; for the rare case that the loop cannot be left to see to it.
    pub(crate) fn wait_empty(&self, cgroup: &JobCgroup, timeout: Duration) -> io::Result<()> {
        let deadline = Instant::now() + timeout;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let events = match rustix::fs::openat(&self.directory, cgroup.file("cgroup.events"), flags, Mode::empty()) {
            Ok(events) => events,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let mut content = [0_u8; 256];
        loop {
            // POLLPRI tells of changes since the last read.
            let length = rustix::io::retry_on_intr(|| rustix::io::pread(&events, &mut content, 0))?;
            let left = deadline.saturating_duration_since(Instant::now());
            if kernel_text::populated(content.get(..length).unwrap_or_default()) != Some(true) || left.is_zero() {
                return Ok(());
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)))?;
        }
    }

    fn is_populated(&self, cgroup: &JobCgroup) -> io::Result<bool> {
        match read_at(self.directory.as_fd(), &cgroup.file("cgroup.events")) {
            Ok(events) => Ok(kernel_text::populated(&events).unwrap_or(true)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for CgroupTree {
    fn drop(&mut self) {
        if self.is_own {
            // EBUSY: other workers have jobs in it; the last one out succeeds.
            let _ = rustix::fs::rmdir(&self.base);
        }
    }
}

/// The files of a cgroup above that are looked at.
const ABOVE_FILES: [&str; 3] = ["memory.max", "memory.oom.group", "cpu.max"];

/// A cgroup that holds jobs but not the host.
#[derive(Debug)]
struct Above {
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
    fn limits(&mut self) -> LimitsAbove {
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
        let [memory_max, oom_group, cpu_max] = &self.files;
        Ok(LimitsAbove {
            memory_max: !starts_with(memory_max, b"max")?,
            oom_group: !starts_with(oom_group, b"0")?,
            cpu_max: !starts_with(cpu_max, b"max")?,
        })
    }
}

/// A job's own cgroup, by name below the base.
#[derive(Clone, Debug)]
pub(crate) struct JobCgroup {
    name: Box<str>,
}

impl JobCgroup {
    fn file(&self, file: &str) -> String {
        format!("{}/{file}", self.name)
    }
}

fn mounts() -> io::Result<Vec<PathBuf>> {
    let mountinfo = fs::read("/proc/self/mountinfo")?;
    Ok(kernel_text::cgroup2_mounts(&mountinfo).into_iter().map(|mount| mount.mount_point).collect())
}

/// The base and the cgroups above it, up to the root of the hierarchy (which has no limits) or the first that holds this process, too: what that one
/// runs out of, the host does anyway. `None` if some of them are out of sight: behind a mount of a part of the hierarchy in which this process is not.
fn cgroups_above(base: &Path) -> io::Result<Option<Vec<Above>>> {
    // What stands above a symbolic link is not above what it leads to.
    let base = fs::canonicalize(base)?;
    let mountinfo = fs::read("/proc/self/mountinfo")?;
    let mounts = kernel_text::cgroup2_mounts(&mountinfo);
    let Some(mount) =
        mounts.iter().filter(|mount| base.starts_with(&mount.mount_point)).max_by_key(|mount| mount.mount_point.as_os_str().len())
    else {
        return Ok(None);
    };
    let own = kernel_text::own_cgroup(&fs::read("/proc/self/cgroup")?);
    // One that is outside our cgroup namespace has a path that leads upwards.
    let own = own.filter(|own| !own.components().any(|part| part == Component::ParentDir));
    let own = own.and_then(|own| below_mount(mount, &own));
    let mut above = Vec::new();
    for directory in base.ancestors().take_while(|directory| directory.starts_with(&mount.mount_point)) {
        if own.as_ref().is_some_and(|own| own.starts_with(directory)) {
            return Ok(Some(above));
        }
        above.push(Above::open(directory)?);
    }
    Ok((mount.root == Path::new("/")).then_some(above))
}

/// Where `own`, a path inside the hierarchy, is to be found below `mount`, which may show only a part of it.
fn below_mount(mount: &kernel_text::Cgroup2Mount, own: &Path) -> Option<PathBuf> {
    Some(mount.mount_point.join(own.strip_prefix(&mount.root).ok()?))
}

/// Whether whoever manages the hierarchy has marked `directory` as handed over, as systemd does.
fn is_delegated(directory: &Path) -> bool {
    ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0_u8; 8];
        matches!(rustix::fs::getxattr(directory, name, &mut value), Ok(1) if value[0] == b'1')
    })
}

/// Opens the base, and makes it if it is not there; says whether a worker made it, this one or another.
fn open_base(base: &Path) -> io::Result<(OwnedFd, bool)> {
    let made = match rustix::fs::mkdir(base, Mode::from_raw_mode(0o755)) {
        Ok(()) => true,
        Err(Errno::EXIST) => false,
        // A base that is there but whose parent we may not write answers EACCES or EROFS: opening it tells.
        Err(_) if base.is_dir() => false,
        Err(errno) => return Err(errno.into()),
    };
    let directory = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let system = rustix::fs::fstatfs(&directory)?;
    if system.f_type as u64 != CGROUP2_SUPER_MAGIC {
        if made {
            let _ = rustix::fs::rmdir(base);
        }
        return Err(io::Error::other("it is not on a cgroup2 file system"));
    }
    if made {
        // Before Linux 5.7 there are no such marks: then the one that made it has to be the last.
        let _ = rustix::fs::setxattr(base, MADE_XATTR, b"1", XattrFlags::empty());
    }
    let is_own = made || rustix::fs::getxattr(base, MADE_XATTR, &mut [0_u8; 8]).is_ok();
    Ok((directory, is_own))
}

fn write_at(directory: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let file = rustix::fs::openat(directory, name, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes()))?;
    Ok(())
}

fn read_at(directory: BorrowedFd<'_>, name: &str) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = vec![0; 4096];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(&file, &mut content[..], 0))?;
    content.truncate(length);
    Ok(content)
}

/// Removes an empty cgroup and the empty ones in it, from the bottom up. `false`: one of them is not empty, or they are nested too deep.
fn remove_nested(parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> io::Result<bool> {
    if depth == 0 {
        return Ok(false);
    }
    let directory = match rustix::fs::openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(directory) => directory,
        Err(Errno::NOENT) => return Ok(true),
        Err(errno) => return Err(errno.into()),
    };
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let nested = entry.file_name();
        let is_nested = entry.file_type() == FileType::Directory && nested != c"." && nested != c"..";
        if is_nested && !remove_nested(directory.as_fd(), nested, depth - 1)? {
            return Ok(false);
        }
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::BUSY) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
