//! What spawning needs from one start to the next: the best rung, the spawn slots, and the sysctl that bears upon the rungs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

pub(crate) use iron_exec_sys::spawn::Slot;
use iron_exec_sys::spawn::{SLOT_FDS_MAX, Start};
use rustix::fs::{Mode, OFlags};
use rustix::thread::CapabilitiesSecureBits;

use crate::logic::ladder::{self, Ask, LimitsAbove, Surroundings};
use crate::model::capabilities::{Rung, RungReason};

/// Of the descriptors that the process may have open, one in so many pays for a slot; a slot takes two.
const NOFILE_PER_SLOT: u64 = 64;

/// How many spawn slots (some 40 KiB of memory and two descriptors each, and their worker's /dev/null) this process has lost: when their worker was dropped, a child was still on
/// them that did not die in time, held by a hung file system for instance. A host can do nothing about them but know.
pub fn leaked_spawn_slots() -> usize {
    iron_exec_sys::spawn::leaked_slots()
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Spawner {
    /// The best rung that starts take.
    pub(crate) best: Rung,
    keep_dumpable: bool,
    suid_dumpable: Option<OwnedFd>,
    keep_caps_locked: bool,
    /// Slots that nobody is on. All are made with the spawner, before the host opens much else: the descriptors below them are a child's, too, for a
    /// moment, and cost it time.
    idle: Vec<Slot>,
    low_fds: i32,
}

impl Spawner {
    /// A spawner with up to `slots_max` slots, fewer where `nofile`, the soft limit of open files, is low. `null`: what most jobs have as their stdin.
    pub(crate) fn new(best: Rung, keep_dumpable: bool, slots_max: usize, nofile: u64, null: &Arc<OwnedFd>) -> io::Result<Self> {
        let affordable = usize::try_from(nofile / NOFILE_PER_SLOT).unwrap_or(usize::MAX).max(1);
        let slots = if best.shares_memory() { slots_max.min(affordable) } else { 0 };
        let mut idle: Vec<Slot> = Vec::with_capacity(slots);
        for _ in 0..slots {
            // The host's ends stand above those of children, as far as there is room: they would cost every child a little.
            let ours_from = idle.first().map_or(null.as_raw_fd(), Slot::top).saturating_add(slots as i32);
            idle.push(Slot::new(Arc::clone(null), ours_from)?);
        }
        // The lowest ones are taken first.
        idle.reverse();
        let low_fds = idle.iter().map(Slot::top).max().unwrap_or_default();
        let suid_dumpable = rustix::fs::open("/proc/sys/fs/suid_dumpable", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok();
        // A host that is not root would lose its own /proc/self to root with the first job of another user.
        let keep_dumpable = keep_dumpable || !rustix::process::geteuid().is_root();
        let bits = rustix::thread::capabilities_secure_bits();
        let keep_caps_locked = bits.is_ok_and(|bits| bits.contains(CapabilitiesSecureBits::KEEP_CAPS_LOCKED));
        Ok(Self { best, keep_dumpable, suid_dumpable, keep_caps_locked, idle, low_fds })
    }

    /// Chooses the rung of a start; `is_frozen` is asked only where that matters.
    pub(crate) fn choose(&self, ask: &Ask, above: LimitsAbove, is_frozen: impl FnOnce() -> bool) -> (Rung, RungReason) {
        let around = Surroundings {
            above,
            keep_dumpable: self.keep_dumpable,
            suid_dumpable: ask.changes_ids && self.best.shares_memory() && self.is_suid_dumpable(),
            keep_caps_locked: self.keep_caps_locked,
            fds_max: SLOT_FDS_MAX,
            page_bytes: rustix::param::page_size() as u64,
        };
        ladder::choose(self.best, ask, &around, is_frozen)
    }

    /// Whether memory stays dumpable when a process in it takes other ids: `fs.suid_dumpable` is 1, or nobody knows.
    pub(crate) fn is_suid_dumpable(&self) -> bool {
        let mut value = [0_u8; 4];
        let read = self.suid_dumpable.as_ref().map(|file| rustix::io::pread(file, &mut value[..], 0));
        !matches!(read, Some(Ok(1..))) || !matches!(value[0], b'0' | b'2')
    }

    /// The number below which descriptors are in a child's hands for a moment: nothing of a job that others wait for the end of belongs there.
    pub(crate) fn low_fds(&self) -> i32 {
        self.low_fds
    }

    /// Whether a slot is free.
    pub(crate) fn has_slot(&self) -> bool {
        !self.idle.is_empty()
    }

    /// A free slot, if there is one.
    pub(crate) fn take_slot(&mut self) -> Option<Slot> {
        self.idle.pop()
    }

    /// Takes back a slot that nobody is on.
    pub(crate) fn return_slot(&mut self, slot: Slot) {
        self.idle.push(slot);
    }

    /// Lets go of a start that is decided. Its slot comes back, unless the child is still on it: that one is lost.
    pub(crate) fn end(&mut self, start: Start) {
        if let Start::Slot(flight) = start {
            self.idle.extend(flight.into_slot());
        }
    }
}
