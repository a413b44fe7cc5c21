//! Where the base is: found, opened, made, taken over.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Access, AtFlags, Mode, OFlags, XattrFlags};
use rustix::io::Errno;

use super::{CGROUP2_SUPER_MAGIC, write_at};
use crate::logic::kernel_text::{self, Cgroup2Mount};

/// The name of our directory at the root of the hierarchy.
const BASE_NAME: &str = "iron-exec";

/// The leaf that this process moves to when it takes its cgroup over.
const SUPERVISOR_NAME: &str = "supervisor";

/// The extended attribute of a base that a worker made; one that somebody else has made, with limits maybe, is not ours to remove.
const MADE_XATTR: &str = "user.iron-exec";

/// What `/proc/self` says about the hierarchy.
#[derive(Debug)]
pub(super) struct View {
    /// Every mount of it that can be reached, in the order of `/proc/self/mountinfo`.
    mounts: Vec<Cgroup2Mount>,
    /// Our own cgroup, from the root of the hierarchy as we see it; `None` if it is out of our cgroup namespace, or there is none.
    own: Option<PathBuf>,
}

impl View {
    pub(super) fn take() -> io::Result<Self> {
        let own = kernel_text::own_cgroup(&fs::read("/proc/self/cgroup")?);
        // One that is outside our cgroup namespace has a path that leads upwards.
        let own = own.filter(|own| !own.components().any(|part| part == Component::ParentDir));
        let mounts = kernel_text::cgroup2_mounts(&fs::read("/proc/self/mountinfo")?);
        let is_seen = |at: usize, mount: &Cgroup2Mount| {
            // Of two at the same place the later one is seen; and something else may be mounted over one, or over a directory above it.
            !mounts.iter().skip(at + 1).any(|later| later.mount_point == mount.mount_point) && is_cgroup2(&mount.mount_point)
        };
        let seen = mounts.iter().enumerate().filter(|(at, mount)| is_seen(*at, mount)).map(|(_, mount)| mount.clone()).collect();
        Ok(Self { mounts: seen, own })
    }

    /// The mount that shows `path`.
    pub(super) fn mount_of(&self, path: &Path) -> Option<&Cgroup2Mount> {
        let shows = |mount: &&Cgroup2Mount| path.starts_with(&mount.mount_point);
        self.mounts.iter().filter(shows).max_by_key(|mount| mount.mount_point.as_os_str().len())
    }

    /// Our own cgroup, as a path below `mount`, which may show only a part of the hierarchy.
    pub(super) fn own_below(&self, mount: &Cgroup2Mount) -> Option<PathBuf> {
        let own = self.own.as_ref()?.strip_prefix(&mount.root).ok()?;
        // Not joined with nothing: that would add a slash.
        Some(if own.as_os_str().is_empty() { mount.mount_point.clone() } else { mount.mount_point.join(own) })
    }

    /// The mount and the default base; with `take_over` our own cgroup is the base if it can be one. The error says what to do.
    pub(super) fn default_base(&self, take_over: bool) -> Result<(PathBuf, PathBuf), String> {
        if self.mounts.is_empty() {
            return Err("no cgroup2 hierarchy is mounted: mount one with `mount -t cgroup2 none DIRECTORY`".to_owned());
        }
        let Some(mount) = self.mounts.iter().find(|mount| !mount.read_only) else {
            let mount = self.mounts.first().map(|mount| mount.mount_point.display().to_string()).unwrap_or_default();
            return Err(format!(
                "the cgroup2 hierarchy at {mount} is read-only: have it mounted read-write, as container hosts do when asked"
            ));
        };
        let found = |base: PathBuf| Ok((mount.mount_point.clone(), base));
        if let Some(own) = self.own_below(mount) {
            // A worker that takes a cgroup over moves this process into a leaf of it.
            let home = if own.file_name() == Some(SUPERVISOR_NAME.as_ref()) { own.parent().unwrap_or(&own) } else { &own };
            let can_be_base = || rustix::fs::access(home, Access::WRITE_OK).is_ok() && home.join("cgroup.kill").exists();
            if is_delegated(home) || (take_over && can_be_base()) {
                return found(home.to_owned());
            }
        }
        if rustix::process::geteuid().is_root() {
            return found(mount.mount_point.join(BASE_NAME));
        }
        Err("our cgroup is not delegated to us: run under `systemd-run --user --scope -p Delegate=yes`, or give a base that we may write"
            .to_owned())
    }
}

/// Whether `directory` was handed over to us: whoever manages the hierarchy has marked it, as systemd does, or has given us the files that say so (man page
/// cgroups(7), "Delegating a hierarchy"), which root always has.
fn is_delegated(directory: &Path) -> bool {
    let is_marked = ["user.delegate", "trusted.delegate"].into_iter().any(|name| {
        let mut value = [0_u8; 8];
        matches!(rustix::fs::getxattr(directory, name, &mut value), Ok(1) if value[0] == b'1')
    });
    let is_given = || {
        let files = ["", "cgroup.procs", "cgroup.subtree_control"];
        files.iter().all(|file| rustix::fs::access(directory.join(file), Access::WRITE_OK).is_ok())
    };
    is_marked || (!rustix::process::geteuid().is_root() && is_given())
}

fn is_cgroup2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|system| system.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

/// Opens the base, and makes it if it is not there; says whether a worker made it, this one or another.
pub(super) fn open_base(base: &Path) -> io::Result<(OwnedFd, bool)> {
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
    // Linux 5.14 has it; without it a tree could not be killed in one go. That of the base itself is not written, nor delegated to other users: those of
    // jobs belong to who makes them.
    let can_kill = rustix::fs::accessat(&directory, "cgroup.kill", Access::EXISTS, AtFlags::empty());
    if let Err(errno) = can_kill {
        if made {
            let _ = rustix::fs::rmdir(base);
        }
        let is_gone = rustix::fs::accessat(&directory, "cgroup.procs", Access::EXISTS, AtFlags::empty()).is_err();
        return Err(match errno {
            Errno::NOENT if !is_gone => {
                io::Error::other("it has no cgroup.kill: Linux 5.14 is needed, and the root of a hierarchy cannot be the base")
            }
            errno => errno.into(),
        });
    }
    let is_own = made || rustix::fs::getxattr(base, MADE_XATTR, &mut [0_u8; 8]).is_ok();
    Ok((directory, is_own))
}

/// Moves this process from `base`, if it is there, to a leaf of it: a cgroup with processes of its own cannot hand controllers down.
pub(super) fn take_over(view: &View, base: &Path, directory: &OwnedFd) -> io::Result<()> {
    let is_ours = view.mount_of(base).and_then(|mount| view.own_below(mount)).is_some_and(|own| own == base);
    if !is_ours {
        return Ok(());
    }
    match rustix::fs::mkdirat(directory, SUPERVISOR_NAME, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno.into()),
    }
    // 0 is whoever writes it, with all its threads.
    write_at(directory, format!("{SUPERVISOR_NAME}/cgroup.procs"), "0")
}
