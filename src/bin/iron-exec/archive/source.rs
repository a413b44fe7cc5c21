//! The file to be stored: opened without trust in what its name stands for, read piece by piece, and looked at again at the end.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use zstd::stream::write::Encoder;

use crate::archive::target::Packing;

/// Bytes read at a time. zstd's output depends on how its input is cut up: this is part of what makes it the same each time.
const READ_BYTES: usize = 128 << 10;

/// zstd's own default: logs shrink to a tenth or so, at hundreds of megabytes a second.
const ZSTD_LEVEL: i32 = 3;

/// A sealed log: a file that nobody is supposed to write any more.
#[derive(Debug)]
pub(crate) struct Source {
    directory: Arc<OwnedFd>,
    name: OsString,
    file: Arc<File>,
    identity: Identity,
}

/// What tells that a file is still the one that it was, with the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// A file's bytes on their way into an object.
pub(crate) struct Packer {
    file: Arc<File>,
    identity: Identity,
    offset: u64,
    sink: Sink,
    original: Sha256,
    stored: Sha256,
    stored_bytes: u64,
    buffer: Vec<u8>,
}

/// Where bytes of an object wait until there are enough of them.
enum Sink {
    Plain(Vec<u8>),
    Zstd(Box<Encoder<'static, Vec<u8>>>),
    /// The file has ended, and this is the rest.
    Ended(Vec<u8>),
}

/// What an object will be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Digests {
    /// The bytes of the object.
    pub(crate) stored_bytes: u64,
    /// Their SHA-256, in hex.
    pub(crate) stored_sha256: String,
    /// The bytes of the file.
    pub(crate) original_bytes: u64,
    /// Their SHA-256, in hex.
    pub(crate) original_sha256: String,
}

/// What keeps a file from being read to its end.
#[derive(Debug)]
pub(crate) enum PackError {
    /// It is not what it was.
    Changed,
    /// There was no time for it.
    TooLate,
    /// Reading, or compressing, failed.
    Failed(io::Error),
}

/// Opens a directory of files to be stored.
///
/// # Errors
/// The directory cannot be opened.
pub(crate) fn open_directory(path: &Path) -> Result<Arc<OwnedFd>, Errno> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map(Arc::new)
}

impl Source {
    /// Opens a file in `directory`: never through a link, never waiting, and only a regular file of ours that nobody can write and that has no
    /// other name.
    ///
    /// # Errors
    /// It is not such a file; the message says why, and what to do.
    pub(crate) fn open(directory: &Arc<OwnedFd>, name: &OsStr) -> Result<Self, String> {
        if name.as_bytes().contains(&b'/') {
            return Err("it is no plain name: give the directory with --directory".to_owned());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(directory, name, flags, Mode::empty()).map_err(|errno| match errno {
            Errno::LOOP => "it is a symbolic link: only regular files are stored".to_owned(),
            Errno::NXIO => "it is no regular file: only regular files are stored".to_owned(),
            errno => format!("opening it failed: {}", io::Error::from(errno)),
        })?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| format!("looking at it failed: {}", io::Error::from(errno)))?;
        check(&stat)?;
        Ok(Self { directory: Arc::clone(directory), name: name.to_owned(), file: Arc::new(File::from(fd)), identity: Identity::of(&stat) })
    }

    /// The file's name in its directory.
    pub(crate) fn name(&self) -> &OsStr {
        &self.name
    }

    /// Whether the name still stands for the file that was opened, and that is as it was.
    pub(crate) fn is_unchanged(&self) -> bool {
        let is_same = |stat: Stat| check(&stat).is_ok() && Identity::of(&stat) == self.identity;
        rustix::fs::fstat(self.file.as_fd()).is_ok_and(is_same)
            && rustix::fs::statat(&*self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(is_same)
    }

    /// Begins to read it from its start.
    ///
    /// # Errors
    /// There is no memory for a compressor.
    pub(crate) fn packer(&self, packing: Packing) -> io::Result<Packer> {
        let sink = match packing {
            Packing::Plain => Sink::Plain(Vec::new()),
            Packing::Zstd => {
                let mut encoder = Encoder::new(Vec::new(), ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                encoder.set_pledged_src_size(Some(self.identity.bytes))?;
                Sink::Zstd(Box::new(encoder))
            }
        };
        Ok(Packer {
            file: Arc::clone(&self.file),
            identity: self.identity,
            offset: 0,
            sink,
            original: Sha256::new(),
            stored: Sha256::new(),
            stored_bytes: 0,
            buffer: vec![0; READ_BYTES],
        })
    }
}

impl Packer {
    /// The next `bytes` of the object; fewer at its end only, none after it.
    ///
    /// # Errors
    /// The file is not as it was, or cannot be read before `deadline`.
    pub(crate) fn next(&mut self, bytes: usize, deadline: Instant) -> Result<Vec<u8>, PackError> {
        while self.sink.waiting() < bytes && !matches!(self.sink, Sink::Ended(_)) {
            if Instant::now() >= deadline {
                return Err(PackError::TooLate);
            }
            self.read()?;
        }
        let waiting = self.sink.waiting_bytes();
        let rest = waiting.split_off(waiting.len().min(bytes));
        let chunk = std::mem::replace(waiting, rest);
        self.stored.update(&chunk);
        self.stored_bytes += chunk.len() as u64;
        Ok(chunk)
    }

    /// What the object is, once all of it was taken.
    pub(crate) fn digests(self) -> Digests {
        Digests {
            stored_bytes: self.stored_bytes,
            stored_sha256: hex(&self.stored.finalize()),
            original_bytes: self.offset,
            original_sha256: hex(&self.original.finalize()),
        }
    }

    /// Reads once.
    fn read(&mut self) -> Result<(), PackError> {
        let mut filled = 0;
        // Whole pieces, so that they are the same ones each time.
        while let Some(space) = self.buffer.get_mut(filled..)
            && !space.is_empty()
        {
            match self.file.read_at(space, self.offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(PackError::Failed(error)),
            }
        }
        let read = self.buffer.get(..filled).unwrap_or_default();
        self.offset += filled as u64;
        if self.offset > self.identity.bytes || (filled < READ_BYTES && self.offset < self.identity.bytes) {
            return Err(PackError::Changed);
        }
        self.original.update(read);
        self.sink.push(read).map_err(PackError::Failed)?;
        if self.offset == self.identity.bytes {
            self.sink.end().map_err(PackError::Failed)?;
        }
        Ok(())
    }
}

impl Sink {
    /// The number of bytes that wait.
    fn waiting(&self) -> usize {
        match self {
            Sink::Plain(bytes) | Sink::Ended(bytes) => bytes.len(),
            Sink::Zstd(encoder) => encoder.get_ref().len(),
        }
    }

    fn waiting_bytes(&mut self) -> &mut Vec<u8> {
        match self {
            Sink::Plain(bytes) | Sink::Ended(bytes) => bytes,
            Sink::Zstd(encoder) => encoder.get_mut(),
        }
    }

    fn push(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::Plain(waiting) | Sink::Ended(waiting) => {
                waiting.extend_from_slice(bytes);
                Ok(())
            }
            Sink::Zstd(encoder) => encoder.write_all(bytes),
        }
    }

    fn end(&mut self) -> io::Result<()> {
        let rest = match std::mem::replace(self, Sink::Ended(Vec::new())) {
            Sink::Plain(bytes) | Sink::Ended(bytes) => bytes,
            Sink::Zstd(encoder) => encoder.finish()?,
        };
        *self = Sink::Ended(rest);
        Ok(())
    }
}

impl Identity {
    #[allow(clippy::useless_conversion, reason = "the fields' types differ between architectures")]
    fn of(stat: &Stat) -> Self {
        Self {
            device: u64::from(stat.st_dev),
            inode: u64::from(stat.st_ino),
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            modified: (i64::from(stat.st_mtime), stat.st_mtime_nsec as i64),
        }
    }
}

impl PackError {
    /// In words, for the report.
    pub(crate) fn reason(&self) -> String {
        match self {
            PackError::Changed => "changed: it is not the file that it was, or was written to".to_owned(),
            PackError::TooLate => "the time was up before it was read: give more --timeout".to_owned(),
            PackError::Failed(error) => format!("reading it failed: {error}"),
        }
    }
}

/// Whether a file is one to be stored.
fn check(stat: &Stat) -> Result<(), String> {
    let own = rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        Err("it is no regular file: only regular files are stored".to_owned())
    } else if stat.st_uid != own {
        Err(format!("it belongs to user {}, not to us (user {own})", stat.st_uid))
    } else if stat.st_nlink != 1 {
        Err(format!("it has {} names (hard links): only files with one are stored", stat.st_nlink))
    } else if stat.st_mode & 0o222 != 0 {
        Err(format!(
            "it is not sealed: its mode {:03o} lets somebody write it; a log is sealed when its job ends (or use chmod a-w)",
            stat.st_mode & 0o777
        ))
    } else {
        Ok(())
    }
}

/// Bytes as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = ['0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f'];
    bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;

    fn sealed(bytes: &[u8]) -> (tempfile::TempDir, Source) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        let source = Source::open(&open_directory(directory.path()).unwrap(), OsStr::new("log")).unwrap();
        (directory, source)
    }

    fn deadline() -> Instant {
        Instant::now() + Duration::from_mins(1)
    }

    fn packed(source: &Source, packing: Packing, bytes: usize) -> (Vec<u8>, Digests) {
        let mut packer = source.packer(packing).unwrap();
        let mut object = Vec::new();
        loop {
            let chunk = packer.next(bytes, deadline()).unwrap();
            assert!(chunk.len() <= bytes);
            if chunk.is_empty() {
                return (object, packer.digests());
            }
            object.extend_from_slice(&chunk);
        }
    }

    #[test]
    fn an_object_is_the_file_however_it_is_cut_up() {
        let text: Vec<u8> = (0..100_000_u32).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
        for bytes in [&b""[..], b"x", &text, &text[..READ_BYTES], &text[..=2 * READ_BYTES]] {
            let (_directory, source) = sealed(bytes);
            let (plain, digests) = packed(&source, Packing::Plain, 1000);
            assert!(plain == bytes);
            assert_eq!((&digests.stored_sha256, digests.original_bytes), (&hex(&Sha256::digest(bytes)), bytes.len() as u64));
            let (one, digests_of_one) = packed(&source, Packing::Zstd, 777);
            let (other, digests_of_other) = packed(&source, Packing::Zstd, 8 << 20);
            assert!(one == other, "the same object each time");
            assert_eq!(digests_of_one, digests_of_other);
            assert_eq!(digests_of_one.original_sha256, digests.original_sha256);
            assert!(zstd::decode_all(one.as_slice()).unwrap() == bytes);
            assert!(source.is_unchanged());
        }
    }

    #[test]
    fn a_file_that_grows_or_shrinks_or_is_replaced_is_noticed() {
        let (directory, source) = sealed(&vec![b'x'; 300_000]);
        let path = directory.path().join("log");
        let mut packer = source.packer(Packing::Plain).unwrap();
        packer.next(10, deadline()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(!source.is_unchanged(), "it can be written");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(200_000).unwrap();
        assert!(matches!(packer.next(1 << 20, deadline()), Err(PackError::Changed)));
        let mut packer = source.packer(Packing::Plain).unwrap();
        file.set_len(300_001).unwrap();
        assert!(matches!(packer.next(1 << 20, deadline()), Err(PackError::Changed)));
        assert!(matches!(source.packer(Packing::Plain).unwrap().next(1, Instant::now()), Err(PackError::TooLate)));
        drop((directory, source));
        let (directory, source) = sealed(b"x");
        let path = directory.path().join("log");
        std::fs::rename(&path, directory.path().join("other")).unwrap();
        assert!(!source.is_unchanged());
        std::fs::write(&path, b"x").unwrap();
        assert!(!source.is_unchanged());
    }
}
