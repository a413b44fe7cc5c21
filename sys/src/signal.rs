//! Signals by number, real-time ones included, to a process by its pidfd or to a process group.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `PIDFD_SIGNAL_PROCESS_GROUP` (linux/pidfd.h), Linux 6.9.
const PIDFD_SIGNAL_PROCESS_GROUP: libc::c_uint = 1 << 2;

/// Sends signal `number` to the process of `pidfd`, never to another one.
///
/// # Errors
/// ESRCH if it was reaped, EPERM, EINVAL for a number that is no signal. Man page: pidfd_send_signal(2).
#[doc(alias = "pidfd_send_signal")]
pub fn send(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    send_with(pidfd, number, 0)
}

/// Sends signal `number` to the process group that the process of `pidfd` leads or led, never to another one (Linux 6.9).
///
/// # Errors
/// ESRCH if there is no such group (any more, or yet), EPERM, EINVAL for a number that is no signal and on older kernels.
pub fn send_to_group(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    send_with(pidfd, number, PIDFD_SIGNAL_PROCESS_GROUP)
}

fn send_with(pidfd: BorrowedFd<'_>, number: i32, flags: libc::c_uint) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the kernel takes a null siginfo for "as kill(2) does it"; all other arguments are integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends signal `number` to every process of a group, for kernels before 6.9. The leader must not be reaped yet, or the id may be another group's.
///
/// # Errors
/// ESRCH if there is no such group, EPERM, EINVAL for a number that is no signal or an id below 2. Man page: kill(2).
#[doc(alias = "kill")]
pub fn send_to_group_id(group: i32, number: i32) -> io::Result<()> {
    if group < 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes two integers and touches no memory; the id is negated, which cannot overflow above 1.
    let result = unsafe { libc::kill(-group, number) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
