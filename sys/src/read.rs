//! `read(2)` into memory that need not be written before.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Reads at most `bytes_max` bytes behind the end of `bytes`, which grows for them if it must. Returns how many came: 0 at the end of the file, or if none
/// were asked for.
///
/// # Errors
///
/// Those of `read(2)`; `bytes` is then as it was.
pub fn read_behind(fd: BorrowedFd<'_>, bytes: &mut Vec<u8>, bytes_max: usize) -> io::Result<usize> {
    bytes.reserve(bytes_max);
    let room = bytes.spare_capacity_mut();
    let room = room.get_mut(..bytes_max).unwrap_or_default();
    let count = loop {
        match rustix::io::read(fd, &mut *room) {
            Ok((read, _)) => break read.len(),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    };
    // SAFETY: `set_len` wants what lies below the new length to be written and within the capacity: these `count` bytes of the room were written by read.
    unsafe { bytes.set_len(bytes.len() + count) };
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_read_stands_behind_what_was_there_and_is_no_more_than_was_asked_for() {
        let (read, write) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&write, b"0123456789").unwrap();
        let mut bytes = Vec::with_capacity(100);
        bytes.extend_from_slice(b"held: ");
        assert_eq!(read_behind(read.as_fd(), &mut bytes, 4).unwrap(), 4);
        assert_eq!(bytes, b"held: 0123");
        assert_eq!(read_behind(read.as_fd(), &mut bytes, 1000).unwrap(), 6);
        assert_eq!(bytes, b"held: 0123456789");
        assert!(bytes.capacity() >= 10 + 1000);
        drop(write);
        assert_eq!(read_behind(read.as_fd(), &mut bytes, 1000).unwrap(), 0);
        assert_eq!(bytes, b"held: 0123456789");
    }

    #[test]
    fn a_read_that_fails_leaves_the_bytes_as_they_were() {
        let (_read, write) = rustix::pipe::pipe().unwrap();
        let mut bytes = b"held".to_vec();
        assert_eq!(read_behind(write.as_fd(), &mut bytes, 10).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(bytes, b"held");
    }
}
