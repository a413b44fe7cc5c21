//! The floor: what the kernel can do at its best, by bare system calls and without any library between.
//!
//! A child is cloned onto the memory of this process (CLONE_VM) and onto its table of descriptors (CLONE_FILES), on a small stack of its own, and runs
//! on by itself: the caller is not held up until the exec (no CLONE_VFORK). The child's first act is to leave the table for a copy of its low end; see
//! clone(2) and close_range(2). Its descriptors come through a socket (SCM_RIGHTS), so that the caller may close its own at once and the child needs none of
//! the table but that socket. What is prepared once: program, arguments, environment, stacks, sockets.
//!
//! It is for programs that can be executed, in hosts that leave the child alone until then: nothing is told of a failed exec but the exit code 127, and a
//! child that is killed before its exec may leave descriptors in its socket.

use std::arch::asm;
use std::ffi::{CString, OsStr, c_char, c_void};
use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::ptr::{self, NonNull};
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType, sendmsg, socketpair};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use rustix::thread::futex;
use syscalls::{Errno, Sysno, syscall};

/// The exit code of a child that could not execute its program.
const NOT_EXECUTED: usize = 127;
/// 16 KiB: several times what the child uses, also without optimization. In pieces of 16 bytes, as the machines want a stack aligned.
const STACK_PIECES: usize = 1024;
/// In the place of a descriptor's number: it comes through the socket.
const SENT: i32 = -1;

/// Starts one program, over and over.
#[derive(Debug)]
pub struct Floor {
    image: Rc<Image>,
    /// A box, which children may be on: everybody has it by shared references only.
    slots: NonNull<[Slot]>,
    /// Where the search for a free slot begins.
    next: usize,
    shares_table: bool,
    begins_session: bool,
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    /// Its process id.
    pub pid: i32,
    /// Readable once it has ended; what [`reap`] wants.
    pub pidfd: OwnedFd,
}

impl Floor {
    /// For a program with its arguments and the environment of this process; up to `slots` children are between clone and exec at a time.
    ///
    /// Descriptors that are open by now have lower numbers than the floor's own, and cost each child a little.
    ///
    /// # Errors
    /// If a string holds a NUL; those of open(2) and socketpair(2).
    pub fn new(program: &Path, args: &[&str], slots: usize) -> io::Result<Self> {
        // The child's end first: the lower its number, the less has to be copied.
        let pair = || Ok(Some(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?));
        Self::with(program, args, slots, pair)
    }

    /// The same for programs that are never given a descriptor but /dev/null: it makes no sockets, which would be in the way of whoever copies the table.
    ///
    /// # Errors
    /// If a string holds a NUL; those of open(2).
    pub fn on_null(program: &Path, args: &[&str], slots: usize) -> io::Result<Self> {
        Self::with(program, args, slots, || Ok(None))
    }

    fn with(program: &Path, args: &[&str], slots: usize, pair: impl Fn() -> io::Result<Option<(OwnedFd, OwnedFd)>>) -> io::Result<Self> {
        let image = Rc::new(Image::new(program, args)?);
        let slots = (0..slots.max(1)).map(|_| Ok(Slot::new(Rc::clone(&image), pair()?))).collect::<io::Result<Box<[Slot]>>>()?;
        Ok(Self { image, slots: NonNull::from(Box::leak(slots)), next: 0, shares_table: true, begins_session: false })
    }

    /// Without CLONE_FILES: each child has a copy of the whole table of descriptors, which is made before the clone returns.
    #[must_use]
    pub fn copying_table(mut self) -> Self {
        self.shares_table = false;
        self
    }

    /// Each program begins a session of its own, as the jobs of a worker do.
    #[must_use]
    pub fn beginning_session(mut self) -> Self {
        self.begins_session = true;
        self
    }

    /// Starts the program on these three descriptors, each of which may be closed right after, or on /dev/null; in a cgroup, or in ours. Comes back
    /// before the program is executed.
    ///
    /// # Errors
    /// Those of clone3(2) and sendmsg(2); the slot is lost then. EINVAL for a descriptor where there is no socket for it ([`Floor::on_null`]), and for one
    /// below 3 where the table is copied.
    pub fn spawn(&mut self, stdio: [Option<BorrowedFd<'_>>; 3], cgroup: Option<BorrowedFd<'_>>) -> io::Result<Running> {
        let index = self.free_slot()?;
        let slot = &self.slots()[index];
        slot.begins_session.store(self.begins_session.into(), Ordering::Relaxed);
        if self.shares_table {
            slot.hand_over(stdio)?;
        } else {
            slot.name(stdio)?;
        }
        slot.clone_onto(self.shares_table, cgroup)
    }

    /// The next slot that no child is on; if there is none, the one that was taken first, as soon as it is free.
    fn free_slot(&mut self) -> io::Result<usize> {
        let slots = self.slots();
        let index = (self.next..slots.len()).chain(0..self.next).find(|&index| slots[index].is_free()).unwrap_or(self.next);
        let slot = &slots[index];
        while !slot.is_free() {
            // The kernel wakes those who wait in the shared way.
            match futex::wait(&slot.word, futex::Flags::empty(), 1, None) {
                Ok(()) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        self.next = (index + 1) % slots.len();
        Ok(index)
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: the box that `with` made, which is as long as this is; there are shared references to it only.
        unsafe { self.slots.as_ref() }
    }

    /// The floor's own /dev/null.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.image.null.as_fd()
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        // A child that is on its slot stays there, and the slots with it.
        if self.slots().iter().all(Slot::is_free) {
            // SAFETY: the box that `with` made; no child is on it any more, and nothing borrowed from it outlives this.
            drop(unsafe { Box::from_raw(self.slots.as_ptr()) });
        }
    }
}

/// Waits for the end of a program, and takes its exit code.
///
/// # Errors
/// Those of waitid(2); if a signal has ended the program.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<i32> {
    let ended = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)?;
    ended.and_then(|ended| ended.exit_status()).ok_or_else(|| io::Error::other("a signal has ended the program"))
}

/// Gives a command a hook that does nothing. With any hook the standard library can no longer use posix_spawn: it has to fork.
pub fn std_with_pre_exec(command: &mut Command) -> &mut Command {
    // SAFETY: what runs between fork and exec must be fit for that: this does nothing, so it takes no lock and allocates nothing.
    unsafe { command.pre_exec(|| Ok(())) }
}

/// Gives a command a hook by which its process moves itself into a cgroup before it executes the program: no moment in which it runs outside, but a fork. `procs`
/// is the open `cgroup.procs`, and goes with the command.
pub fn std_into_cgroup(command: &mut Command, procs: OwnedFd) -> &mut Command {
    let hook = move || Ok(rustix::io::write(&procs, b"0").map(drop)?);
    // SAFETY: what runs between fork and exec must be fit for that: this makes one bare system call, on a descriptor that is open as long as the hook is there,
    // takes no lock and allocates nothing, not even for an error, which is a number.
    unsafe { command.pre_exec(hook) }
}

/// What is executed.
#[derive(Debug)]
struct Image {
    null: File,
    /// The first is the program.
    argv: Strings,
    envp: Strings,
}

impl Image {
    fn new(program: &Path, args: &[&str]) -> io::Result<Self> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
        if null.as_raw_fd() < 3 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "stdin, stdout or stderr is closed"));
        }
        let args = args.iter().map(|arg| CString::new(*arg));
        let argv = [CString::new(program.as_os_str().as_bytes())].into_iter().chain(args).collect::<Result<_, _>>()?;
        let variable = |(key, value)| CString::new([OsStr::as_bytes(key), OsStr::as_bytes(value)].join(&b'='));
        let environment: Vec<_> = std::env::vars_os().collect();
        let envp = environment.iter().map(|(key, value)| variable((key, value))).collect::<Result<_, _>>()?;
        Ok(Self { null, argv: Strings::new(argv), envp: Strings::new(envp) })
    }
}

/// An array as execve(2) wants it.
#[derive(Debug)]
struct Strings {
    /// Ends with a null pointer.
    pointers: Vec<*const c_char>,
    /// What they point to.
    _strings: Vec<CString>,
}

impl Strings {
    fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect();
        Self { pointers, _strings: strings }
    }

    fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

/// Where a child is between clone and exec. Parent and child both write it by atomics only.
#[derive(Debug)]
struct Slot {
    /// 1 while a child may be on it; the kernel puts 0 here at its exec or end (CLONE_CHILD_CLEARTID).
    word: AtomicU32,
    /// The number from which on the child closes every descriptor as it leaves the shared table; 0 if it has its own.
    top: AtomicI32,
    begins_session: AtomicU32,
    /// The number of each of stdin, stdout and stderr, or [`SENT`].
    stdio: [AtomicI32; 3],
    /// The child's end, and ours.
    sockets: Option<(OwnedFd, OwnedFd)>,
    image: Rc<Image>,
    /// A box, which is the child's while it is on the slot.
    stack: *mut [u128; STACK_PIECES],
}

impl Slot {
    fn new(image: Rc<Image>, sockets: Option<(OwnedFd, OwnedFd)>) -> Self {
        let stack = Box::into_raw(Box::new([0; STACK_PIECES]));
        let [word, begins_session] = [0, 0].map(AtomicU32::new);
        Self { word, top: AtomicI32::new(0), begins_session, stdio: [0; 3].map(AtomicI32::new), sockets, image, stack }
    }

    fn is_free(&self) -> bool {
        self.word.load(Ordering::Acquire) == 0
    }

    /// Sends descriptors to the child to be, which will share the table.
    fn hand_over(&self, stdio: [Option<BorrowedFd<'_>>; 3]) -> io::Result<()> {
        let null = self.image.null.as_fd();
        let mut sent = [null; 3];
        let mut count = 0;
        for (fd, number) in stdio.into_iter().zip(&self.stdio) {
            number.store(if fd.is_some() { SENT } else { null.as_raw_fd() }, Ordering::Relaxed);
            if let Some(fd) = fd {
                sent[count] = fd;
                count += 1;
            }
        }
        let mut highest = null.as_raw_fd();
        if count > 0 {
            let (theirs, ours) = self.sockets.as_ref().ok_or(io::ErrorKind::InvalidInput)?;
            highest = highest.max(theirs.as_raw_fd());
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            control.push(SendAncillaryMessage::ScmRights(&sent[..count]));
            sendmsg(ours, &[IoSlice::new(b"f")], &mut control, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?;
        }
        self.top.store(highest + 1, Ordering::Relaxed);
        Ok(())
    }

    /// Notes the numbers that the child to be will find in its own table.
    fn name(&self, stdio: [Option<BorrowedFd<'_>>; 3]) -> io::Result<()> {
        self.top.store(0, Ordering::Relaxed);
        for (fd, number) in stdio.into_iter().zip(&self.stdio) {
            let fd = fd.map_or(self.image.null.as_raw_fd(), |fd| fd.as_raw_fd());
            if fd < 3 {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            number.store(fd, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Starts a child on this slot, which is free and prepared.
    fn clone_onto(&self, shares_table: bool, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Running> {
        let mut pidfd: i32 = -1;
        let mut args = CloneArgs {
            flags: CLONE_VM | CLONE_PIDFD | CLONE_CHILD_CLEARTID | CLONE_CLEAR_SIGHAND,
            pidfd: (&raw mut pidfd) as u64,
            child_tid: self.word.as_ptr() as u64,
            exit_signal: SIGCHLD,
            stack: self.stack as u64,
            stack_size: size_of::<[u128; STACK_PIECES]>() as u64,
            ..CloneArgs::default()
        };
        if shares_table {
            args.flags |= CLONE_FILES;
        }
        if let Some(cgroup) = cgroup {
            args.flags |= CLONE_INTO_CGROUP;
            args.cgroup = cgroup.as_raw_fd() as u64;
        }
        self.word.store(1, Ordering::Release);
        // SAFETY: `args` is a whole clone_args; its pointers are an i32 of this frame, which is written before the call returns, and a word and a stack that
        // are the child's alone, for its slot was free, and stay until the word is 0, as does its argument. `child` makes bare system calls only, changes no
        // descriptor before it has left a shared table, and does not return.
        let pid = unsafe { clone3_on_stack(&args, child, ptr::from_ref(self).cast()) };
        if pid < 0 {
            return Err(io::Error::from_raw_os_error(-pid as i32));
        }
        // SAFETY: a local variable, read where the kernel has written it, not where it was last known.
        let pidfd = unsafe { ptr::read_volatile(&raw const pidfd) };
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows its number.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        Ok(Running { pid: pid as i32, pidfd })
    }

    /// The child's way to its program. Comes back only with an error.
    fn execute(&self) -> Result<(), Errno> {
        let top = self.top.load(Ordering::Relaxed);
        if top > 0 {
            // SAFETY: close_range takes integers only. The table that it closes in is this process's own, by CLOSE_RANGE_UNSHARE.
            unsafe { syscall!(Sysno::close_range, top, u32::MAX, CLOSE_RANGE_UNSHARE) }?;
        }
        let mut received =
            if self.stdio.iter().any(|fd| fd.load(Ordering::Relaxed) == SENT) { self.receive()? } else { [SENT; 3] }.into_iter();
        for (number, fd) in (0..).zip(&self.stdio) {
            let fd = match fd.load(Ordering::Relaxed) {
                SENT => received.next().unwrap_or(SENT),
                fd => fd,
            };
            // SAFETY: dup3 takes integers only, and changes the child's own table.
            unsafe { syscall!(Sysno::dup3, fd, number, 0) }?;
        }
        if self.begins_session.load(Ordering::Relaxed) != 0 {
            // SAFETY: setsid takes nothing, and changes the child only.
            unsafe { syscall!(Sysno::setsid) }?;
        }
        let Image { argv, envp, .. } = &*self.image;
        // SAFETY: an array with at least the program's name.
        let program = unsafe { *argv.as_ptr() };
        // SAFETY: a NUL-terminated string, and two arrays of pointers to such, each ended by a null pointer.
        unsafe { syscall!(Sysno::execve, program, argv.as_ptr(), envp.as_ptr()) }.map(drop)
    }

    /// What was sent.
    fn receive(&self) -> Result<[i32; 3], Errno> {
        let socket = self.sockets.as_ref().map_or(SENT, |(theirs, _)| theirs.as_raw_fd());
        let mut byte = 0_u8;
        let vector = [(&raw mut byte) as usize, 1];
        let mut control = Rights { length: 0, level: 0, kind: 0, fds: [SENT; 4] };
        // struct user_msghdr: name and its length, vectors and their number, control and its length, flags.
        let mut header: [usize; 7] = [0, 0, (&raw const vector) as usize, 1, (&raw mut control) as usize, size_of::<Rights>(), 0];
        // SAFETY: recvmsg reads and writes one user_msghdr, which `header` is laid out as, one byte through its vector, and at most a `Rights` at its
        // control buffer; all of them live in this frame.
        unsafe { syscall!(Sysno::recvmsg, socket, &raw mut header, MSG_CMSG_CLOEXEC) }?;
        // SAFETY: a local variable, read where the kernel has written it, not where it was last known.
        let Rights { fds: [first, second, third, _], .. } = unsafe { ptr::read_volatile(&raw const control) };
        Ok([first, second, third])
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // SAFETY: the box that `new` made; no child is on the slot (see `Floor`'s drop).
        drop(unsafe { Box::from_raw(self.stack) });
    }
}

/// Where the child begins. It shares what the C library keeps for its parent's thread: bare system calls only, no allocation, no lock, no panic.
extern "C" fn child(slot: *const c_void) -> ! {
    // SAFETY: the argument that `clone_onto` gave, a slot that stays until we are off.
    let slot = unsafe { &*slot.cast::<Slot>() };
    let _ = slot.execute();
    loop {
        // SAFETY: exit_group takes an integer, and ends the child only.
        let _ = unsafe { syscall!(Sysno::exit_group, NOT_EXECUTED) };
    }
}

/// One message of SCM_RIGHTS: struct cmsghdr, and room for its descriptors.
#[derive(Clone, Copy)]
#[repr(C)]
struct Rights {
    length: usize,
    level: i32,
    kind: i32,
    fds: [i32; 4],
}

/// struct clone_args of linux/sched.h, as of Linux 5.7.
#[derive(Default)]
#[repr(C, align(8))]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88 && offset_of!(CloneArgs, stack) == 40 && offset_of!(CloneArgs, cgroup) == 80);
const _: () = assert!(size_of::<Rights>() == 32 && offset_of!(Rights, fds) == 16);

// Of linux/sched.h, linux/close_range.h, linux/socket.h and asm/signal.h, the same on both architectures.
const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLOSE_RANGE_UNSHARE: u32 = 2;
const MSG_CMSG_CLOEXEC: u32 = 0x4000_0000;
const SIGCHLD: u64 = 17;

/// clone3 with a stack of its own for the child, which begins (and ends) in `entry(argument)`. The child's pid, or minus the error number.
///
/// # Safety
/// `args` must be whole and ask for a stack that is the child's alone; every pointer in it must be valid for what its flags make of it. `entry` must be
/// fit to run there on `argument`, on memory that it shares with this process, with the thread pointer of this thread.
#[cfg(target_arch = "x86_64")]
unsafe fn clone3_on_stack(args: &CloneArgs, entry: extern "C" fn(*const c_void) -> !, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: the kernel's convention: number in rax, arguments in rdi and rsi, result in rax, rcx and r11 overwritten. The parent comes back with its
    // own stack. In the child rsp is the end of the new one, a multiple of 16, and every other register as it was, so the two inputs are still there; the
    // call pushes its return address, as the C convention wants it, and does not come back. The rest is the caller's promise.
    unsafe {
        asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, {argument}",
            "call {entry}",
            "ud2",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            inlateout("rax") Sysno::clone3 as isize => result,
            in("rdi") ptr::from_ref(args), in("rsi") size_of::<CloneArgs>(),
            // Not late: the inputs must not stand where the kernel overwrites.
            out("rcx") _, out("r11") _,
        );
    }
    result
}

/// clone3 with a stack of its own for the child, which begins (and ends) in `entry(argument)`. The child's pid, or minus the error number.
///
/// # Safety
/// `args` must be whole and ask for a stack that is the child's alone; every pointer in it must be valid for what its flags make of it. `entry` must be
/// fit to run there on `argument`, on memory that it shares with this process, with the thread pointer of this thread.
#[cfg(target_arch = "aarch64")]
unsafe fn clone3_on_stack(args: &CloneArgs, entry: extern "C" fn(*const c_void) -> !, argument: *const c_void) -> isize {
    let result: isize;
    // SAFETY: the kernel's convention: number in x8, arguments in x0 and x1, result in x0. The parent comes back with its own stack. In the child sp is the
    // end of the new one, a multiple of 16, and every other register as it was, so the two inputs are still there; frame pointer and link register are
    // cleared, where a backtrace ends, and `entry` does not come back. The rest is the caller's promise.
    unsafe {
        asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x30, xzr",
            "mov x0, {argument}",
            "blr {entry}",
            "brk #1",
            "2:",
            entry = in(reg) entry,
            argument = in(reg) argument,
            in("x8") Sysno::clone3 as usize,
            inlateout("x0") ptr::from_ref(args) => result,
            in("x1") size_of::<CloneArgs>(),
            // The child alone overwrites it, but the compiler is to know.
            out("x30") _,
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{self, Read, Seek, Write};
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::process::Command;

    use super::{Floor, reap, std_into_cgroup, std_with_pre_exec};
    use crate::host;

    /// Starts a shell that says on stdout what it has on stdin, and something on stderr.
    fn run(floor: &mut Floor) -> io::Result<(String, String, i32)> {
        let (stdin, mut to_stdin) = io::pipe()?;
        let (mut from_stdout, stdout) = io::pipe()?;
        let (mut from_stderr, stderr) = io::pipe()?;
        let running = floor.spawn([Some(stdin.as_fd()), Some(stdout.as_fd()), Some(stderr.as_fd())], None)?;
        if floor.shares_table {
            // The child has them, or will have them: they are not ours to keep open.
            drop((stdin, stdout, stderr));
        }
        to_stdin.write_all(b"in\n")?;
        drop(to_stdin);
        let code = reap(running.pidfd.as_fd())?;
        let (mut out, mut err) = ([0; 16], [0; 16]);
        let lengths = [from_stdout.read(&mut out)?, from_stderr.read(&mut err)?];
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&out[..lengths[0]]), text(&err[..lengths[1]]), code))
    }

    fn shell(slots: usize) -> Floor {
        Floor::new(Path::new("/bin/sh"), &["-c", "read line; echo got $line; echo err >&2; exit 7"], slots).unwrap()
    }

    #[test]
    fn a_program_gets_its_descriptors_and_gives_its_exit_code() {
        let expected = ("got in\n".to_owned(), "err\n".to_owned(), 7);
        for mut floor in [shell(2), shell(2).copying_table(), shell(1).beginning_session()] {
            for _ in 0..20 {
                assert_eq!(run(&mut floor).unwrap(), expected);
            }
        }
    }

    #[test]
    fn many_open_descriptors_are_in_nobodys_way() {
        const MANY: usize = 3000;
        host::raise_nofile(MANY + 100).unwrap();
        let expected = ("got in\n".to_owned(), "err\n".to_owned(), 7);
        let before = shell(2);
        let _fds = host::open(MANY).unwrap();
        for mut floor in [before, shell(2), shell(2).copying_table()] {
            assert_eq!(run(&mut floor).unwrap(), expected);
        }
    }

    #[test]
    fn slots_are_waited_for() {
        let mut floor = Floor::new(Path::new("/bin/true"), &[], 1).unwrap();
        let running: Vec<_> = (0..20).map(|_| floor.spawn([None; 3], None).unwrap()).collect();
        for running in running {
            assert_eq!(reap(running.pidfd.as_fd()).unwrap(), 0);
        }
    }

    #[test]
    fn what_cannot_be_executed_ends_with_127() {
        let mut floor = Floor::new(Path::new("/dev/null"), &[], 1).unwrap();
        let null = File::open("/dev/null").unwrap();
        let running = floor.spawn([None, Some(null.as_fd()), None], None).unwrap();
        assert_eq!(reap(running.pidfd.as_fd()).unwrap(), 127);
    }

    #[test]
    fn a_hook_changes_nothing_but_the_way() {
        assert!(std_with_pre_exec(&mut Command::new("/bin/true")).status().unwrap().success());
    }

    #[test]
    fn a_process_moves_itself() {
        let mut procs = tempfile::tempfile().unwrap();
        let own = procs.try_clone().unwrap().into();
        assert!(std_into_cgroup(&mut Command::new("/bin/true"), own).status().unwrap().success());
        procs.rewind().unwrap();
        assert_eq!(io::read_to_string(procs).unwrap(), "0");
    }
}
