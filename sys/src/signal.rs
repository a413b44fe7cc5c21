//! Signals by number, real-time ones included, to a process by its pidfd or to a process group.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends signal `number` to the process of `pidfd`, never to another one.
///
/// # Errors
/// ESRCH if it was reaped, EPERM, EINVAL for a number that is no signal. Man page: pidfd_send_signal(2).
#[doc(alias = "pidfd_send_signal")]
pub fn send(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    let no_info: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: the kernel takes a null siginfo for "as kill(2) does it"; all other arguments are integers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, no_info, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sends signal `number` to every process of a group. The leader must not be reaped yet, or the id may be another group's.
///
/// # Errors
/// ESRCH if there is no such group, EPERM, EINVAL for a number that is no signal or an id below 2. Man page: kill(2).
#[doc(alias = "kill")]
pub fn send_to_group(group: i32, number: i32) -> io::Result<()> {
    if group < 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: kill takes two integers and touches no memory; the id is negated, which cannot overflow above 1.
    let result = unsafe { libc::kill(-group, number) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
