//! System calls as the child half needs them: no libc, no errno, no allocation, no lock, nothing that can panic.
//!
//! The wrappers that take no pointer are safe functions: whatever their arguments, the kernel touches none of our memory.

use core::ffi::CStr;
use core::mem::{offset_of, size_of};

use libc::{c_char, c_long};

use crate::arch::syscall6;

/// An error number, positive.
pub(crate) type Errno = i32;

const _: () = assert!(size_of::<libc::msghdr>() == 56);
const _: () = assert!(offset_of!(libc::msghdr, msg_iov) == 16 && offset_of!(libc::msghdr, msg_iovlen) == 24);
const _: () = assert!(offset_of!(libc::msghdr, msg_control) == 32 && offset_of!(libc::msghdr, msg_controllen) == 40);
const _: () = assert!(size_of::<libc::cmsghdr>() == 16 && offset_of!(libc::cmsghdr, cmsg_level) == 8);
const _: () = assert!(cfg!(target_endian = "little"));

/// The size of the kernel's signal set, in bytes.
const SIGSET_BYTES: usize = 8;

pub(crate) fn check(result: isize) -> Result<usize, Errno> {
    // The kernel answers errors as -4095 to -1.
    if (-4095..0).contains(&result) { Err(-result as Errno) } else { Ok(result as usize) }
}

/// A call without pointers among its arguments.
fn plain(number: c_long, args: [usize; 6]) -> Result<usize, Errno> {
    // SAFETY: the callers below pass integers only, to calls that take only integers.
    check(unsafe { syscall6(number, args) })
}

pub(crate) fn dup_from(fd: i32, lowest: i32) -> Result<i32, Errno> {
    plain(libc::SYS_fcntl, [fd as usize, libc::F_DUPFD_CLOEXEC as usize, lowest as usize, 0, 0, 0]).map(|fd| fd as i32)
}

pub(crate) fn dup3(from: i32, to: i32) -> Result<(), Errno> {
    plain(libc::SYS_dup3, [from as usize, to as usize, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn clear_cloexec(fd: i32) -> Result<(), Errno> {
    plain(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn set_cloexec(fd: i32) -> Result<(), Errno> {
    plain(libc::SYS_fcntl, [fd as usize, libc::F_SETFD as usize, libc::FD_CLOEXEC as usize, 0, 0, 0]).map(drop)
}

pub(crate) fn close(fd: i32) {
    // Linux frees the number whatever close answers.
    let _ = plain(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn close_range(first: u32, last: u32) -> Result<(), Errno> {
    plain(libc::SYS_close_range, [first as usize, last as usize, 0, 0, 0, 0]).map(drop)
}

/// Leaves the shared table of descriptors for a copy that ends below `first` (Linux 5.9): what lies above is never looked at.
pub(crate) fn close_range_unshare(first: u32) -> Result<(), Errno> {
    const CLOSE_RANGE_UNSHARE: usize = 2;
    plain(libc::SYS_close_range, [first as usize, u32::MAX as usize, CLOSE_RANGE_UNSHARE, 0, 0, 0]).map(drop)
}

/// Leaves the shared table of descriptors for a copy of all of it.
pub(crate) fn unshare_files() -> Result<(), Errno> {
    plain(libc::SYS_unshare, [libc::CLONE_FILES as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn setsid() -> Result<(), Errno> {
    plain(libc::SYS_setsid, [0; 6]).map(drop)
}

pub(crate) fn umask(mask: u32) {
    let _ = plain(libc::SYS_umask, [mask as usize, 0, 0, 0, 0, 0]);
}

pub(crate) fn setpriority_self(nice: i32) -> Result<(), Errno> {
    plain(libc::SYS_setpriority, [libc::PRIO_PROCESS as usize, 0, nice as usize, 0, 0, 0]).map(drop)
}

/// Our nice value; 0 if it cannot be had.
pub(crate) fn nice() -> i32 {
    // The raw call answers 20 minus the value, which is never an error number.
    plain(libc::SYS_getpriority, [libc::PRIO_PROCESS as usize, 0, 0, 0, 0, 0])
        .map_or(0, |twenty_minus| 20_i32.wrapping_sub(twenty_minus as i32))
}

pub(crate) fn setresgid(gid: u32) -> Result<(), Errno> {
    plain(libc::SYS_setresgid, [gid as usize, gid as usize, gid as usize, 0, 0, 0]).map(drop)
}

pub(crate) fn setresuid(uid: u32) -> Result<(), Errno> {
    plain(libc::SYS_setresuid, [uid as usize, uid as usize, uid as usize, 0, 0, 0]).map(drop)
}

/// Lets the permitted capabilities live through the next change of the user id, up to the exec.
pub(crate) fn keep_capabilities() -> Result<(), Errno> {
    plain(libc::SYS_prctl, [libc::PR_SET_KEEPCAPS as usize, 1, 0, 0, 0, 0]).map(drop)
}

/// CAP_SETUID of linux/capability.h, as a bit of a set.
pub(crate) const CAP_SETUID: u32 = 1 << 7;

/// Leaves `permitted` in the permitted capability set, and nothing in the effective, the inheritable and with them the ambient one.
pub(crate) fn permit_capabilities(permitted: u32) -> Result<(), Errno> {
    // struct __user_cap_header_struct: version 3 (0x20080522), this process. Two struct __user_cap_data_struct: effective, permitted, inheritable.
    let header = [0x2008_0522_u32, 0];
    let data = [0, permitted, 0, 0, 0, 0];
    let args = [(&raw const header) as usize, (&raw const data) as usize, 0, 0, 0, 0];
    // SAFETY: capset reads 8 bytes at the header and, for version 3, 24 at the data; both are arrays of this frame.
    check(unsafe { syscall6(libc::SYS_capset, args) }).map(drop)
}

/// Makes this memory one that nobody may dump or trace who could not do so to root.
pub(crate) fn set_not_dumpable() -> Result<(), Errno> {
    plain(libc::SYS_prctl, [libc::PR_SET_DUMPABLE as usize, 0, 0, 0, 0, 0]).map(drop)
}

pub(crate) fn set_no_new_privs() -> Result<(), Errno> {
    plain(libc::SYS_prctl, [libc::PR_SET_NO_NEW_PRIVS as usize, 1, 0, 0, 0, 0]).map(drop)
}

/// Kills this process with SIGKILL.
pub(crate) fn die() -> ! {
    if let Ok(own) = plain(libc::SYS_getpid, [0; 6]) {
        let _ = plain(libc::SYS_kill, [own, libc::SIGKILL as usize, 0, 0, 0, 0]);
    }
    exit_group(127)
}

pub(crate) fn exit_group(code: i32) -> ! {
    loop {
        let _ = plain(libc::SYS_exit_group, [code as usize, 0, 0, 0, 0, 0]);
    }
}

pub(crate) fn setrlimit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    // struct rlimit64: two u64, soft first.
    let limit = [soft, hard];
    let args = [0, resource as usize, (&raw const limit) as usize, 0, 0, 0];
    // SAFETY: prlimit64(0, resource, new, NULL) reads 16 bytes at `new`, which `limit` is.
    check(unsafe { syscall6(libc::SYS_prlimit64, args) }).map(drop)
}

pub(crate) fn setgroups(groups: &[u32]) -> Result<(), Errno> {
    let args = [groups.len(), groups.as_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: setgroups(n, list) reads n gid_t at list; gid_t is u32 on both architectures, `groups` holds n of them.
    check(unsafe { syscall6(libc::SYS_setgroups, args) }).map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<(), Errno> {
    let args = [path.as_ptr() as usize, 0, 0, 0, 0, 0];
    // SAFETY: chdir reads a NUL-terminated string, which a CStr is.
    check(unsafe { syscall6(libc::SYS_chdir, args) }).map(drop)
}

pub(crate) fn exists(path: &CStr) -> bool {
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, libc::F_OK as usize, 0, 0, 0];
    // SAFETY: faccessat reads a NUL-terminated string, which a CStr is.
    check(unsafe { syscall6(libc::SYS_faccessat, args) }).is_ok()
}

pub(crate) fn open(path: &CStr, flags: i32) -> Result<i32, Errno> {
    let args = [libc::AT_FDCWD as usize, path.as_ptr() as usize, (flags | libc::O_CLOEXEC) as usize, 0, 0, 0];
    // SAFETY: openat reads a NUL-terminated string, which a CStr is.
    check(unsafe { syscall6(libc::SYS_openat, args) }).map(|fd| fd as i32)
}

pub(crate) fn write(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    let args = [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0];
    // SAFETY: write reads `len` bytes at the pointer, which the slice is.
    check(unsafe { syscall6(libc::SYS_write, args) })
}

pub(crate) fn read(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args = [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: read writes at most `len` bytes at the pointer, which the slice is.
    check(unsafe { syscall6(libc::SYS_read, args) })
}

pub(crate) fn getdents64(fd: i32, buffer: &mut [u8]) -> Result<usize, Errno> {
    let args = [fd as usize, buffer.as_mut_ptr() as usize, buffer.len(), 0, 0, 0];
    // SAFETY: getdents64 writes at most `len` bytes at the pointer, which the slice is.
    check(unsafe { syscall6(libc::SYS_getdents64, args) })
}

/// The most descriptors in one message: SCM_MAX_FD of the kernel's net/scm.h.
pub const MESSAGE_FDS_MAX: usize = 253;

/// Takes the descriptors of one message from a socket, close-on-exec, and stores them in `fds` as far as they go. Returns how many came. Never blocks.
pub(crate) fn receive_fds<'a>(socket: i32, fds: impl Iterator<Item = &'a mut i32>) -> Result<usize, Errno> {
    const HEADER_BYTES: usize = 16;
    const WORDS: usize = (HEADER_BYTES + MESSAGE_FDS_MAX * 4).div_ceil(8);
    let mut byte = 0_u8;
    let mut control = [0_u64; WORDS];
    let vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // struct user_msghdr, whose six words are those of libc's on both architectures but for padding: name, its length, iovecs, their number,
    // control, its length, flags.
    let mut header: [usize; 7] = [0, 0, (&raw const vector) as usize, 1, control.as_mut_ptr() as usize, WORDS * 8, 0];
    let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT) as usize;
    let args = [socket as usize, (&raw mut header) as usize, flags, 0, 0, 0];
    // SAFETY: recvmsg reads and writes one user_msghdr, which `header` is laid out as, one byte through its iovec and at most WORDS * 8 bytes at its
    // control buffer; all four live in this frame.
    check(unsafe { syscall6(libc::SYS_recvmsg, args) })?;
    // struct cmsghdr: length as a word, level and type in the two halves of the next one (both architectures are little-endian); then the fds.
    let [length, kind, ..] = control;
    let rights = (libc::SOL_SOCKET as u64) | ((libc::SCM_RIGHTS as u64) << 32);
    if header[5] < HEADER_BYTES || kind != rights {
        return Ok(0);
    }
    let count = ((length as usize).wrapping_sub(HEADER_BYTES) / 4).min(MESSAGE_FDS_MAX);
    let mut numbers = control.iter().skip(HEADER_BYTES / 8).flat_map(|word| [*word as u32 as i32, (*word >> 32) as i32]).take(count);
    for fd in fds {
        let Some(number) = numbers.next() else { break };
        *fd = number;
    }
    Ok(count)
}

/// Sleeps for `milliseconds`, less than 1000; a signal ends it early.
pub(crate) fn sleep_ms(milliseconds: u64) {
    // struct __kernel_timespec: seconds and nanoseconds, 64 bits each.
    let time = [0_u64, milliseconds.wrapping_mul(1_000_000)];
    let args = [(&raw const time) as usize, 0, 0, 0, 0, 0];
    // SAFETY: nanosleep(time, NULL) reads 16 bytes at `time`.
    let _ = check(unsafe { syscall6(libc::SYS_nanosleep, args) });
}

/// Gives signal `number` a handler that does not come back, or its default action.
pub(crate) fn set_action(number: i32, handler: Option<extern "C" fn(i32) -> !>) -> Result<(), Errno> {
    // Of the kernel, the same on both architectures; x86-64 wants one, which is not used here.
    const SA_RESTORER: u64 = 0x0400_0000;
    // The kernel's struct sigaction: handler (SIG_DFL is 0), flags, restorer, mask: 32 bytes. All signals are blocked in the handler.
    let action = match handler {
        Some(handler) => [handler as usize as u64, SA_RESTORER, handler as usize as u64, u64::MAX],
        None => [0; 4],
    };
    let args = [number as usize, (&raw const action) as usize, 0, SIGSET_BYTES, 0, 0];
    // SAFETY: rt_sigaction(number, new, NULL, 8) reads a kernel sigaction of at most 32 bytes at `new`, which `action` is. A handler is sound as any
    // function is: it takes the number, as the kernel calls it, and does not return.
    check(unsafe { syscall6(libc::SYS_rt_sigaction, args) }).map(drop)
}

/// Replaces the thread's signal mask and returns the old one.
pub(crate) fn set_signal_mask(mask: u64) -> Result<u64, Errno> {
    let mut old = 0_u64;
    let args = [libc::SIG_SETMASK as usize, (&raw const mask) as usize, (&raw mut old) as usize, SIGSET_BYTES, 0, 0];
    // SAFETY: rt_sigprocmask reads 8 bytes at `new` and writes 8 at `old`; both are u64 of this frame.
    check(unsafe { syscall6(libc::SYS_rt_sigprocmask, args) }).map(|_| old)
}

/// Executes a program; comes back only with an error.
///
/// # Safety
/// `argv` and `envp` must point to arrays of pointers to NUL-terminated strings, each array ended by a null pointer.
pub(crate) unsafe fn execve(path: &CStr, argv: *const *const c_char, envp: *const *const c_char) -> Errno {
    let args = [path.as_ptr() as usize, argv as usize, envp as usize, 0, 0, 0];
    // SAFETY: execve reads the path, a CStr, and the two arrays, which the caller promises.
    match check(unsafe { syscall6(libc::SYS_execve, args) }) {
        Err(errno) => errno,
        Ok(_) => 0,
    }
}
