//! How a process ended: `waitid(2)` on a pidfd, with resource usage.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It called exit with this code, 0 to 255.
    Exited(i32),
    /// A signal killed it.
    Signaled {
        /// The signal's number.
        signal: i32,
        /// Whether a core was dumped.
        core_dumped: bool,
    },
}

impl Ended {
    /// Decodes the status word of wait(2), as `PIDFD_GET_INFO` gives it.
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Exited((status >> 8) & 0xff),
            signal => Self::Signaled { signal, core_dumped: status & 0x80 != 0 },
        }
    }
}

/// What the process and the children it waited for used; see getrusage(2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rusage {
    /// CPU time in user mode.
    pub user: Duration,
    /// CPU time in the kernel.
    pub system: Duration,
    /// Largest resident set of one of the processes, in KiB.
    pub max_rss_kib: u64,
    /// Page faults served without I/O.
    pub minor_faults: u64,
    /// Page faults that needed I/O.
    pub major_faults: u64,
    /// Blocks of 512 bytes read from disk.
    pub blocks_in: u64,
    /// Blocks of 512 bytes written to disk.
    pub blocks_out: u64,
    /// Times it gave up the CPU by itself.
    pub voluntary_switches: u64,
    /// Times the CPU was taken from it.
    pub involuntary_switches: u64,
}

/// Whether the process is to be reaped or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Reap it: its process id becomes free.
    Reap,
    /// Leave the zombie as it is (WNOWAIT).
    Peek,
}

/// How the process of `pidfd` ended and what it used; `None` while it runs. Never blocks.
///
/// # Errors
/// ECHILD if it is not our child, or somebody else has reaped it. Man page: waitid(2); the usage is the raw call's fifth argument.
#[doc(alias = "waitid")]
pub fn wait(pidfd: BorrowedFd<'_>, mode: Mode) -> io::Result<Option<(Ended, Rusage)>> {
    // __WALL: a child that dies before its exec may not count as SIGCHLD's.
    let mut options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
    if mode == Mode::Peek {
        options |= libc::WNOWAIT;
    }
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the kernel writes one siginfo_t and one rusage, for which the two pointers are valid; all other arguments are integers.
    let result =
        unsafe { libc::syscall(libc::SYS_waitid, libc::P_PIDFD, pidfd.as_raw_fd(), info.as_mut_ptr(), options, usage.as_mut_ptr()) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: siginfo_t is plain integers; it was zeroed and then at most written by the kernel.
    let info = unsafe { info.assume_init() };
    // SAFETY: rusage is plain integers; it was zeroed and then at most written by the kernel.
    let usage = unsafe { usage.assume_init() };
    // SAFETY: si_status is valid for the codes of SIGCHLD, the only ones that waitid gives; in a zeroed structure it is 0.
    let status = unsafe { info.si_status() };
    let ended = match info.si_code {
        libc::CLD_EXITED => Ended::Exited(status),
        libc::CLD_KILLED => Ended::Signaled { signal: status, core_dumped: false },
        libc::CLD_DUMPED => Ended::Signaled { signal: status, core_dumped: true },
        _ => return Ok(None),
    };
    Ok(Some((ended, rusage(&usage))))
}

fn rusage(usage: &libc::rusage) -> Rusage {
    // The kernel counts these in longs that are never negative.
    let count = |value: libc::c_long| u64::try_from(value).unwrap_or(0);
    let time = |time: libc::timeval| Duration::from_secs(count(time.tv_sec)) + Duration::from_micros(count(time.tv_usec));
    Rusage {
        user: time(usage.ru_utime),
        system: time(usage.ru_stime),
        max_rss_kib: count(usage.ru_maxrss),
        minor_faults: count(usage.ru_minflt),
        major_faults: count(usage.ru_majflt),
        blocks_in: count(usage.ru_inblock),
        blocks_out: count(usage.ru_oublock),
        voluntary_switches: count(usage.ru_nvcsw),
        involuntary_switches: count(usage.ru_nivcsw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_word_is_decoded_as_wait_does() {
        assert_eq!(Ended::from_wait_status(0x0300), Ended::Exited(3));
        assert_eq!(Ended::from_wait_status(9), Ended::Signaled { signal: 9, core_dumped: false });
        assert_eq!(Ended::from_wait_status(0x86), Ended::Signaled { signal: 6, core_dumped: true });
    }
}
