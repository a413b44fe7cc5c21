//! `struct clone_args` and the flags that libc gets wrong.

use core::ffi::c_void;
use core::mem::{offset_of, size_of};
use core::ptr;

use crate::arch::{clone3_on_stack, syscall6};
use crate::raw::{Errno, check};

/// The kernel's `struct clone_args` (linux/sched.h), version 2 of Linux 5.7.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CloneArgs {
    pub(crate) flags: u64,
    pub(crate) pidfd: u64,
    pub(crate) child_tid: u64,
    pub(crate) parent_tid: u64,
    pub(crate) exit_signal: u64,
    pub(crate) stack: u64,
    pub(crate) stack_size: u64,
    pub(crate) tls: u64,
    pub(crate) set_tid: u64,
    pub(crate) set_tid_size: u64,
    pub(crate) cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);
const _: () = assert!(offset_of!(CloneArgs, pidfd) == 8);
const _: () = assert!(offset_of!(CloneArgs, child_tid) == 16);
const _: () = assert!(offset_of!(CloneArgs, exit_signal) == 32);
const _: () = assert!(offset_of!(CloneArgs, stack) == 40);
const _: () = assert!(offset_of!(CloneArgs, stack_size) == 48);
const _: () = assert!(offset_of!(CloneArgs, cgroup) == 80);

/// Own constants: the two beyond 32 bits overflow libc's `c_int` to 0.
pub(crate) const CLONE_VM: u64 = 0x100;
pub(crate) const CLONE_FILES: u64 = 0x400;
pub(crate) const CLONE_SIGHAND: u64 = 0x800;
pub(crate) const CLONE_PIDFD: u64 = 0x1000;
pub(crate) const CLONE_VFORK: u64 = 0x4000;
pub(crate) const CLONE_CHILD_CLEARTID: u64 = 0x20_0000;
pub(crate) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
pub(crate) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

const _: () = assert!(CLONE_VM == libc::CLONE_VM as u64);
const _: () = assert!(CLONE_FILES == libc::CLONE_FILES as u64);
const _: () = assert!(CLONE_VFORK == libc::CLONE_VFORK as u64);
const _: () = assert!(CLONE_CHILD_CLEARTID == libc::CLONE_CHILD_CLEARTID as u64);
const _: () = assert!(CLONE_SIGHAND == libc::CLONE_SIGHAND as u64);
const _: () = assert!(CLONE_PIDFD == libc::CLONE_PIDFD as u64);

/// Whether the kernel, and a seccomp filter if there is one, let us call clone3 with what we need of it (Linux 5.7).
///
/// Asks with a combination of flags that is invalid whatever else holds (CLONE_SIGHAND without CLONE_VM): EINVAL says that the call is there and
/// understands the whole structure. No permission of a cgroup is involved, so EPERM and ENOSYS are a filter's.
pub(crate) fn probe() -> Result<(), Errno> {
    let mut args = CloneArgs { flags: CLONE_SIGHAND | CLONE_INTO_CGROUP, cgroup: 1, ..CloneArgs::default() };
    // SAFETY: the structure is whole and holds no pointer; the kernel must refuse its flags, so no child can come of it.
    match unsafe { clone3(&mut args) } {
        Err(libc::EINVAL) => Ok(()),
        Err(errno) => Err(errno),
        Ok(_) => Err(libc::ENOSYS),
    }
}

/// A fork-like child: its own copy of memory and file descriptors, on the same stack. Returns its pid and pidfd, or `None` in the child.
///
/// # Safety
/// The child must make raw system calls only, and end in execve or exit_group.
pub(crate) unsafe fn fork_like(cgroup: Option<i32>) -> Result<Option<(i32, i32)>, Errno> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup as u64;
    }
    // SAFETY: `args` is a whole clone_args; its only pointer is `pidfd`, an i32 of this frame. The child's conduct is the caller's promise.
    let pid = unsafe { clone3(&mut args) }?;
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: the kernel has written the number before the call returned; read it where it was written, not where it was last known.
    let pidfd = unsafe { ptr::read_volatile(&raw const pidfd) };
    Ok(Some((pid, pidfd)))
}

/// Where a child that shares our memory begins, and the word that tells when it is through with that.
pub(crate) struct OnStack {
    /// The lowest byte of its stack, and how many there are, a multiple of 16.
    pub(crate) stack: *mut c_void,
    pub(crate) stack_bytes: usize,
    /// The kernel puts 0 here, and wakes a waiter, when the child executes its program or ends.
    pub(crate) word: *mut u32,
    pub(crate) entry: extern "C" fn(*const c_void) -> !,
    pub(crate) argument: *const c_void,
}

/// A child on this very memory and table of descriptors, on a stack of its own. Returns its pid and pidfd: at once, or, with `is_vfork`, when it has
/// executed its program or ended.
///
/// # Safety
/// The stack must be the child's alone, and stack and word must stay mapped, until the word is 0. `entry` must make raw system calls only, must not
/// touch what the C library keeps for the thread, must leave the shared table of descriptors before it changes one, and must end in execve or
/// exit_group; `argument` must be good for it until the word is 0.
pub(crate) unsafe fn share_memory(place: &OnStack, is_vfork: bool, cgroup: Option<i32>) -> Result<(i32, i32), Errno> {
    let mut pidfd: i32 = -1;
    let mut args = CloneArgs {
        flags: CLONE_PIDFD | CLONE_VM | CLONE_FILES | CLONE_CLEAR_SIGHAND | CLONE_CHILD_CLEARTID,
        pidfd: (&raw mut pidfd) as u64,
        child_tid: place.word as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: place.stack as u64,
        stack_size: place.stack_bytes as u64,
        ..CloneArgs::default()
    };
    if is_vfork {
        args.flags |= CLONE_VFORK;
    }
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup as u64;
    }
    // SAFETY: `args` is a whole clone_args; its pointers are `pidfd`, an i32 of this frame that is written before the call returns, and the
    // stack and the word, which are the caller's promise, as is the child's conduct.
    let pid = check(unsafe { clone3_on_stack(&args, place.entry, place.argument) })? as i32;
    // SAFETY: the kernel has written the number before the call returned; read it where it was written, not where it was last known.
    let pidfd = unsafe { ptr::read_volatile(&raw const pidfd) };
    Ok((pid, pidfd))
}

/// The call itself: the child's pid, or 0 in the child.
///
/// # Safety
/// The pointers in `arguments` must be valid for what its flags make of them. Without CLONE_VM the child goes on with a copy of this memory and
/// must make raw system calls only: the C library's idea of the thread is the parent's.
unsafe fn clone3(arguments: &mut CloneArgs) -> Result<i32, Errno> {
    let args = [ptr::from_mut(arguments) as usize, size_of::<CloneArgs>(), 0, 0, 0, 0];
    // SAFETY: the kernel reads the whole structure, which the reference is; its pointers are the caller's promise.
    check(unsafe { syscall6(libc::SYS_clone3, args) }).map(|pid| pid as i32)
}
