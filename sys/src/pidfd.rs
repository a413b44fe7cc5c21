//! What a pidfd still knows when the process has been reaped.

use core::mem::{offset_of, size_of};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::wait::Ended;

/// The kernel's `struct pidfd_info` (linux/pidfd.h), version 0 of Linux 6.13.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct PidfdInfo {
    mask: u64,
    cgroup_id: u64,
    pid: u32,
    tgid: u32,
    ppid: u32,
    ids: [u32; 8],
    exit_code: i32,
}

const _: () = assert!(size_of::<PidfdInfo>() == 64);
const _: () = assert!(offset_of!(PidfdInfo, exit_code) == 60);

/// `_IOWR(0xFF, 0x0B, struct pidfd_info)`.
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | ((size_of::<PidfdInfo>() as libc::c_ulong) << 16) | (0xFF << 8) | 0x0B;
const _: () = assert!(PIDFD_GET_INFO == 0xC040_FF0B);

const PIDFD_INFO_EXIT: u64 = 1 << 3;

/// How the process of `pidfd` ended, once it was reaped, by whomever (Linux 6.15). `None` while it is not reaped.
///
/// # Errors
/// ENOTTY or EINVAL on older kernels. `PIDFD_GET_INFO` in linux/pidfd.h.
#[doc(alias = "PIDFD_GET_INFO")]
pub fn exit_info(pidfd: BorrowedFd<'_>) -> io::Result<Option<Ended>> {
    let mut info = PidfdInfo { mask: PIDFD_INFO_EXIT, ..PidfdInfo::default() };
    // SAFETY: PIDFD_GET_INFO reads and writes as many bytes at the pointer as its number says, 64, which `info` is.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((info.mask & PIDFD_INFO_EXIT != 0).then(|| Ended::from_wait_status(info.exit_code)))
}
