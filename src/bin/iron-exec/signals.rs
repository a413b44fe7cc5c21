//! The signals that ask us to stop, as bytes on a socket that poll(2) can wait for.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};

/// Requests to stop: SIGINT, SIGTERM, SIGHUP and SIGQUIT.
#[derive(Debug)]
pub(crate) struct StopRequests {
    receiver: UnixStream,
}

impl StopRequests {
    /// Listens from now on. A signal that was ignored when we were started stays ignored: that is what nohup(1) asks for.
    pub(crate) fn listen() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        let ignored = ignored_signals(&fs::read_to_string("/proc/self/status").unwrap_or_default());
        for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
            if ignored & (1 << (signal - 1)) == 0 {
                signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
            }
        }
        Ok(Self { receiver })
    }

    /// The number of requests since the last look.
    pub(crate) fn take(&self) -> usize {
        let mut buffer = [0_u8; 64];
        // An error is "nothing there": nothing else can go wrong with a socket whose other end we hold.
        rustix::io::retry_on_intr(|| rustix::io::read(&self.receiver, &mut buffer)).unwrap_or_default()
    }
}

impl AsFd for StopRequests {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}

/// The set of ignored signals in a `/proc/PID/status`: signal N is bit N - 1. Nothing found is none ignored.
fn ignored_signals(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ignored_signals_are_found() {
        assert_eq!(ignored_signals("Name:\tx\nSigBlk:\t0000000000000002\nSigIgn:\t0000000000001001\nSigCgt:\t0\n"), 0x1001);
        for text in ["", "SigIgn:", "SigIgn:\tzzz"] {
            assert_eq!(ignored_signals(text), 0, "{text:?}");
        }
    }
}
