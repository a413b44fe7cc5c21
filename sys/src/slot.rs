//! Spawn slots: what a child stands on while it shares the host's memory.
//!
//! A slot is a stack with a guard page, a page of words that host and child share, a socket pair by which the child gets its descriptors, and a hold on
//! /dev/null, which it has by its number. While
//! a child is on it, it is the child's: the host touches nothing of it but those words, which are atomics, and neither unmaps nor reuses it before
//! the kernel has put 0 into the last of them. A slot that must go before that stays mapped for good, and is counted.

use std::ffi::c_void;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mm::{MapFlags, MprotectFlags, ProtFlags};
use rustix::thread::futex;

use crate::child::{self, ChildStep, Plan, SENT};
use crate::clone3::{self, OnStack};
use crate::message;
use crate::spawn::Report;

/// Bytes of a child's stack. Seen in use: 1.3 KiB, 3.1 KiB without optimization.
const STACK_BYTES: usize = 32 << 10;

/// Slots that could not be freed, of the whole process: their memory is gone from everybody's books.
static LEAKED: AtomicUsize = AtomicUsize::new(0);

/// How many slots of this process stay mapped for good, because a child was still on them when their worker went.
pub fn leaked_slots() -> usize {
    LEAKED.load(Ordering::Relaxed)
}

/// The words that host and child share.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Control {
    /// 1 while a child may use the slot; the kernel puts 0 here at its exec or end (CLONE_CHILD_CLEARTID).
    word: AtomicU32,
    /// 1 once nothing is left in its socket: the child has emptied it, or nothing was sent.
    received: AtomicU32,
    /// The step that failed; 0 if none has.
    step: AtomicU32,
    errno: AtomicI32,
    index: AtomicU32,
    /// The child's end of the socket pair.
    socket: AtomicI32,
    /// The number below which the child keeps the host's descriptors for a moment.
    top: AtomicU32,
    /// What the child does: its own while it is on the slot.
    plan: AtomicPtr<Plan>,
}

impl Control {
    pub(crate) fn socket(&self) -> i32 {
        self.socket.load(Ordering::Relaxed)
    }

    /// The number below which the child keeps the host's descriptors for a moment.
    pub(crate) fn top(&self) -> u32 {
        self.top.load(Ordering::Relaxed)
    }

    pub(crate) fn note_received(&self) {
        self.received.store(1, Ordering::Release);
    }

    pub(crate) fn note_failed(&self, step: u32, errno: i32, index: u32) {
        self.errno.store(errno, Ordering::Relaxed);
        self.index.store(index, Ordering::Relaxed);
        self.step.store(step, Ordering::Release);
    }

    fn is_free(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }
}

/// A slot: see the module.
#[derive(Debug)]
pub struct Slot {
    /// Guard page, stack, control page, in this order.
    map: NonNull<c_void>,
    page: usize,
    ours: OwnedFd,
    /// The child's end.
    theirs: OwnedFd,
    /// /dev/null, which a child has from the host's table of descriptors, by its number.
    null: Arc<OwnedFd>,
}

// SAFETY: the mapping is the slot's alone, and of it only atomics are touched; no thread is special to it.
unsafe impl Send for Slot {}

impl Slot {
    /// Makes a slot. Its descriptor for the child gets the lowest free number: what is open below that costs every spawn a little, what is above nothing. The one for
    /// the host gets a number from `ours_from` up, if there is one. `null` is /dev/null: a child that is given that very descriptor is not sent it.
    ///
    /// # Errors
    /// Those of socketpair(2) and mmap(2).
    pub fn new(null: Arc<OwnedFd>, ours_from: i32) -> io::Result<Self> {
        let (theirs, ours) = message::pair()?;
        let ours = rustix::io::fcntl_dupfd_cloexec(&ours, ours_from).unwrap_or(ours);
        let page = rustix::param::page_size();
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::STACK;
        // SAFETY: a new mapping at a place of the kernel's choice.
        let map = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes(page), ProtFlags::READ | ProtFlags::WRITE, flags) }?;
        let Some(start) = NonNull::new(map) else { return Err(Errno::NOMEM.into()) };
        let slot = Self { map: start, page, ours, theirs, null };
        slot.control().socket.store(slot.theirs.as_raw_fd(), Ordering::Relaxed);
        // SAFETY: the first page of our own mapping, of which nothing is used.
        unsafe { rustix::mm::mprotect(map, page, MprotectFlags::empty()) }?;
        Ok(slot)
    }

    /// The number from which on the host's descriptors stay out of a child's sight.
    pub fn top(&self) -> i32 {
        self.theirs.as_raw_fd().max(self.null.as_raw_fd()) + 1
    }

    fn stack(&self) -> *mut c_void {
        self.map.as_ptr().wrapping_byte_add(self.page)
    }

    /// Under AddressSanitizer (`--cfg iron_exec_asan`): what it noted of the frames of children, who all leave the stack without a return. The next child on it, or
    /// the next mapping at its place, would be accused of touching them.
    #[cfg(iron_exec_asan)]
    fn forget_frames(&self) {
        unsafe extern "C" {
            fn __asan_unpoison_memory_region(start: *const c_void, bytes: usize);
        }
        // SAFETY: the range is the stack's, of our own mapping, and no child is on it.
        unsafe { __asan_unpoison_memory_region(self.stack(), STACK_BYTES) }
    }

    #[cfg(not(iron_exec_asan))]
    #[expect(clippy::unused_self, reason = "it is the sanitizer's")]
    fn forget_frames(&self) {}

    fn control(&self) -> &Control {
        let control = self.map.as_ptr().wrapping_byte_add(self.page + STACK_BYTES).cast::<Control>();
        // SAFETY: the last page of our mapping, which is as large as a Control, aligned, and zeroed, which is a valid one; it is mapped as long as
        // the slot is there, and everybody touches it by its atomics only.
        unsafe { &*control }
    }

    /// Starts a child on this slot. On an error the slot and the descriptors are as before.
    pub(crate) fn launch(
        self,
        mut plan: Box<Plan>,
        fds: &[(BorrowedFd<'_>, i32)],
        is_vfork: bool,
        cgroup: Option<i32>,
    ) -> Result<Launched, NotLaunched> {
        // What the slot holds keeps its number, also if the child never comes off: it is not sent.
        let null = self.null.as_raw_fd();
        let sent: Vec<BorrowedFd<'_>> = fds.iter().map(|(fd, _)| *fd).filter(|fd| fd.as_raw_fd() != null).collect();
        let is_sent = !sent.is_empty();
        if is_sent && message::send(self.ours.as_fd(), &sent).is_err() {
            return Err(NotLaunched { slot: self, cause: Cause::NotSent(plan) });
        }
        for fd in plan.moves.iter_mut().filter(|fd| fd.from != null) {
            fd.from = SENT;
        }
        let plan = Box::into_raw(plan);
        let control = self.control();
        let top = if is_sent { self.top() } else { null.wrapping_add(1) };
        control.top.store(top as u32, Ordering::Relaxed);
        control.received.store(u32::from(!is_sent), Ordering::Relaxed);
        control.step.store(0, Ordering::Relaxed);
        control.plan.store(plan, Ordering::Relaxed);
        control.word.store(1, Ordering::Release);
        self.forget_frames();
        let place = OnStack {
            stack: self.stack(),
            stack_bytes: STACK_BYTES,
            word: control.word.as_ptr(),
            entry,
            argument: ptr::from_ref(control).cast(),
        };
        // SAFETY: stack and word are this slot's, which was free and is neither reused nor unmapped until the word is 0 (see `Flight`); the plan is
        // a box that nobody else touches until then. The conduct of `entry` is that of `child::run_on_slot`: raw system calls only, first of all
        // the one that leaves the shared table, at last execve or exit_group.
        match unsafe { clone3::share_memory(&place, is_vfork, cgroup) } {
            Ok((pid, pidfd)) => {
                // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Launched { pid, pidfd, flight: Flight { slot: Some(self), plan } })
            }
            Err(errno) => {
                control.word.store(0, Ordering::Relaxed);
                // SAFETY: the box of just now; no child has come to be that could know it.
                drop(unsafe { Box::from_raw(plan) });
                self.drain();
                Err(NotLaunched { slot: self, cause: Cause::NotCloned(errno) })
            }
        }
    }

    /// Closes what a child that has come to nothing has not taken.
    fn drain(&self) {
        drop(message::receive(self.theirs.as_fd()));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.forget_frames();
        // SAFETY: our own mapping. No child is on it (a `Flight` gives its slot out only then), and nothing borrowed from it outlives the slot.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr(), bytes(self.page)) };
    }
}

fn bytes(page: usize) -> usize {
    page + STACK_BYTES + page
}

/// Where the child begins.
extern "C" fn entry(control: *const c_void) -> ! {
    // SAFETY: the argument that `launch` gave, the control page of a slot that stays mapped until we are off.
    let control = unsafe { &*control.cast::<Control>() };
    // SAFETY: the box that `launch` made for us alone: the host takes it back when the word is 0, which is when we are off.
    let plan = unsafe { &mut *control.plan.load(Ordering::Relaxed) };
    child::run_on_slot(plan, control)
}

/// A child that was started on a slot.
pub(crate) struct Launched {
    pub(crate) pid: i32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) flight: Flight,
}

/// Why no child was started; the slot is free.
pub(crate) struct NotLaunched {
    pub(crate) slot: Slot,
    pub(crate) cause: Cause,
}

pub(crate) enum Cause {
    /// Its descriptors could not be sent. The plan is as before.
    NotSent(Box<Plan>),
    /// The clone failed with this error number.
    NotCloned(i32),
}

/// A slot with a child on it, or that was on it.
#[derive(Debug)]
pub struct Flight {
    /// `None` once it was taken back.
    slot: Option<Slot>,
    plan: *mut Plan,
}

// SAFETY: the plan is a box's, and is touched only when no child is on the slot, then by whoever owns this.
unsafe impl Send for Flight {}

impl Flight {
    /// Whether the child is off: it has executed its program, or is dead. It may still be in the memory map for a moment (it has, as the kernel does
    /// this, no way back to its stack).
    fn is_off(&self) -> bool {
        self.control().is_none_or(Control::is_free)
    }

    /// What became of it so far.
    pub(crate) fn report(&self) -> Report {
        let Some(control) = self.control() else { return Report::Closed };
        if !control.is_free() {
            return Report::Pending;
        }
        match ChildStep::from_wire(control.step.load(Ordering::Acquire)) {
            None => Report::Closed,
            Some(step) => {
                Report::Failed { step, errno: control.errno.load(Ordering::Relaxed), index: control.index.load(Ordering::Relaxed) }
            }
        }
    }

    /// Waits up to `timeout` for the child to be off.
    ///
    /// # Errors
    /// Those of futex(2) that are not part of waiting.
    pub(crate) fn wait(&self, timeout: Duration) -> io::Result<()> {
        let Some(control) = self.control() else { return Ok(()) };
        let deadline = Instant::now().checked_add(timeout);
        while !control.is_free() {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| rustix::thread::Timespec::try_from(left).ok());
            // Not FUTEX_PRIVATE_FLAG: the kernel wakes those who wait for the word of a child in the shared way.
            match futex::wait(&control.word, futex::Flags::empty(), 1, left.as_ref()) {
                Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(Errno::TIMEDOUT) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// The plan of a child that is off.
    pub(crate) fn plan(&self) -> Option<&Plan> {
        if !self.is_off() {
            return None;
        }
        // SAFETY: the box that `launch` made; the child that it was lent to is off, and nobody writes it any more.
        Some(unsafe { &*self.plan })
    }

    /// The slot, to be used again, if the child is off; otherwise it is left to the child for good.
    pub fn into_slot(mut self) -> Option<Slot> {
        self.take_back()
    }

    fn control(&self) -> Option<&Control> {
        self.slot.as_ref().map(Slot::control)
    }

    fn take_back(&mut self) -> Option<Slot> {
        let slot = self.slot.take()?;
        if !slot.control().is_free() {
            // A child is on it that may never come off: a tenant has stopped it, its program is on a hung file system. Its stack and its plan stay,
            // and the numbers of its socket and of /dev/null, so that it does not find other files there. What was sent for it goes, or a pipe would never end.
            slot.drain();
            mem::forget(slot);
            LEAKED.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        // SAFETY: the box that `launch` made; the child that it was lent to is off, and `slot` having been there says that this happens once.
        drop(unsafe { Box::from_raw(self.plan) });
        if slot.control().received.load(Ordering::Acquire) == 0 {
            slot.drain();
        }
        Some(slot)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        drop(self.take_back());
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs::File;

    use super::*;
    use crate::ExecImage;
    use crate::spawn::{ChildSetup, Program, Rung, SLOT_FDS_MAX, Start, spawn};
    use crate::wait::{self, Mode};

    fn free_slot() -> Slot {
        let null = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        Slot::new(Arc::new(null.into()), 0).unwrap()
    }

    /// Spawns on `slot`, waits for the end, gives the slot back and says what was reported.
    fn run(slot: Slot, program: &str, setup: ChildSetup, fds: &[(BorrowedFd<'_>, i32)]) -> (Slot, Report) {
        let path = OsStr::new("/nowhere:/usr/nowhere:/bin:/usr/bin");
        let image = ExecImage::new(OsStr::new(program), std::iter::empty(), std::iter::empty(), path, Some(OsStr::new("/"))).unwrap();
        let mut slot = Some(slot);
        let spawned = spawn(Rung::Detached, Program { image, setup }, fds, None, &mut slot).unwrap();
        assert!(slot.is_none());
        assert!(crate::spawn::wait_readable(spawned.pidfd.as_fd(), Duration::from_secs(30)).unwrap());
        let report = spawned.start.report().unwrap();
        assert!(wait::wait(spawned.pidfd.as_fd(), Mode::Reap).unwrap().is_some());
        let Start::Slot(flight) = spawned.start else { panic!("it was not on a slot") };
        (flight.into_slot().expect("a dead child is off its slot"), report)
    }

    #[test]
    fn a_child_uses_a_small_part_of_its_stack() {
        let null = File::open("/dev/null").unwrap();
        let fds: Vec<_> = (0..SLOT_FDS_MAX as i32).map(|number| (null.as_fd(), number)).collect();
        let setup = ChildSetup { rlimits: vec![(4, 0, 0)], umask: Some(0o22), nice: Some(5), no_new_privs: true, ..ChildSetup::default() };
        let mut slot = free_slot();
        for program in ["true", "no-such-program", "/", "/etc/passwd"] {
            (slot, _) = run(slot, program, setup.clone(), &fds);
        }
        let start: *const u8 = slot.stack().cast();
        // SAFETY: the slot's stack, which is mapped, initialized by the kernel, and nobody's at this moment.
        let stack = unsafe { std::slice::from_raw_parts(start, STACK_BYTES) };
        let used = stack.iter().position(|byte| *byte != 0).map_or(0, |lowest| STACK_BYTES - lowest);
        println!("{used} of {STACK_BYTES} bytes");
        assert!((1..STACK_BYTES / 2).contains(&used), "{used} bytes");
    }

    #[test]
    fn a_slot_is_used_again_and_tells_each_childs_own_story() {
        let null = File::open("/dev/null").unwrap();
        let fds = [0, 1, 2].map(|number| (null.as_fd(), number));
        let mut slot = free_slot();
        let mut report;
        for _ in 0..50 {
            (slot, report) = run(slot, "no-such-program", ChildSetup::default(), &fds);
            assert!(matches!(report, Report::Failed { step: ChildStep::Exec, errno: libc::ENOENT, .. }), "{report:?}");
            (slot, report) = run(slot, "true", ChildSetup::default(), &fds);
            assert_eq!(report, Report::Closed);
        }
    }

    #[test]
    fn what_a_slot_holds_is_not_sent() {
        let slot = free_slot();
        let null = Arc::clone(&slot.null);
        let (slot, report) = run(slot, "true", ChildSetup::default(), &[0, 1, 2].map(|number| (null.as_fd(), number)));
        assert_eq!(report, Report::Closed);
        assert_eq!(slot.control().received.load(Ordering::Acquire), 1);
        assert_eq!(slot.control().top(), null.as_raw_fd() as u32 + 1, "nothing above is copied");
        assert!(message::receive(slot.theirs.as_fd()).is_err(), "its socket is empty");
    }

    #[test]
    fn what_is_held_and_what_is_sent_get_to_their_numbers_in_any_order() {
        use std::io::Read;
        let mut slot = free_slot();
        let null = Arc::clone(&slot.null);
        let own_numbers = [null.as_raw_fd(), slot.theirs.as_raw_fd()];
        for numbers in [[0, 1, 2], [2, 1, 0], [own_numbers[0], 1, 0], [own_numbers[1], 1, own_numbers[0]]] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let [first, second, third] = numbers;
            // /dev/null at the first and the last number, the pipe between.
            let fds = [(null.as_fd(), first), (writer.as_fd(), second), (null.as_fd(), third)];
            let path = OsStr::new("/bin:/usr/bin");
            let script = format!("readlink /proc/self/fd/{first} /proc/self/fd/{third} >&{second}");
            let args = [OsStr::new("-c"), OsStr::new(&script)];
            let image = ExecImage::new(OsStr::new("sh"), args.into_iter(), std::iter::empty(), path, None).unwrap();
            let mut free = Some(slot);
            let spawned = spawn(Rung::Detached, Program { image, setup: ChildSetup::default() }, &fds, None, &mut free).unwrap();
            drop(writer);
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert_eq!(text, "/dev/null\n/dev/null\n", "{numbers:?}");
            assert!(crate::spawn::wait_readable(spawned.pidfd.as_fd(), Duration::from_secs(30)).unwrap());
            assert!(wait::wait(spawned.pidfd.as_fd(), Mode::Reap).unwrap().is_some());
            let Start::Slot(flight) = spawned.start else { panic!("it was not on a slot") };
            slot = flight.into_slot().expect("a dead child is off its slot");
        }
    }

    #[test]
    fn what_a_rung_needs_is_asked_for() {
        let image = || ExecImage::new(OsStr::new("/bin/true"), std::iter::empty(), std::iter::empty(), OsStr::new(""), None).unwrap();
        let program = |setup| Program { image: image(), setup };
        assert!(spawn(Rung::Detached, program(ChildSetup::default()), &[], None, &mut None).is_err());
        let mut slot = Some(free_slot());
        let setup = ChildSetup { oom_score_adj: Some(500), ..ChildSetup::default() };
        assert!(spawn(Rung::Detached, program(setup), &[], None, &mut slot).is_err());
        assert!(slot.is_some(), "it was not used");
    }
}
