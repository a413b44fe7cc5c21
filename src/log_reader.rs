//! Floor 4: a log file of any worker, read from outside: by path, blocking, to its end or as it grows.

use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::task::Poll;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{Mode, OFlags};

use crate::kernel::log_dir;
use crate::kernel::stream::LogStream;
use crate::logic::cri::{Decoded, Decoder};
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, Record, StreamSelect};

/// Bytes looked at to tell the format of a log without a mark.
const GUESS_BYTES: usize = 64 << 10;

/// How often a follower looks at the writer's lock, however quiet the file: a lock is let go of without a word where the worker was killed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon it looks again after the lock file was closed: that word comes just before the lock is let go of.
const LOOK_SOON: Duration = Duration::from_millis(10);

/// Reads a log file from outside its worker, also after that is gone: the job's exact bytes, or its records.
///
/// ```no_run
/// use std::io::Read;
/// use iron_exec::LogReader;
///
/// let mut output = Vec::new();
/// LogReader::open("/tmp/make_0190d3b1-7c8a-7def-8123-456789abcdef.log")?.read_to_end(&mut output)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct LogReader {
    stream: LogStream,
    format: LogFormat,
    follow: Option<Following>,
}

/// What a follower knows of the writer.
#[derive(Debug)]
struct Following {
    inotify: OwnedFd,
    lock: Option<PathBuf>,
    look_soon: bool,
}

impl LogReader {
    /// Reads what is in the log now.
    ///
    /// # Errors
    /// [`StreamError::Io`] if the file cannot be opened, or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), false)
    }

    /// Reads the log and waits for more, until it is sealed or its worker is dead. A log of no known worker ends where it ends now.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if an inotify instance cannot be had.
    pub fn follow(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), true)
    }

    /// The log's format: as its worker noted it, else told by its first line.
    pub fn format(&self) -> LogFormat {
        self.format
    }

    /// The next record; `None` at the end. Waits if the log is followed. In a raw log a record is whatever one read gave.
    ///
    /// # Errors
    /// [`StreamError::Io`], or [`StreamError::Malformed`] for a line that is no record; reading goes on behind it.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, StreamError> {
        self.wait_for_bytes()?;
        Ok(self.stream.take_shown_record())
    }

    fn new(path: &Path, follow: bool) -> Result<Self, StreamError> {
        let failed = |source: io::Error| StreamError::Io { path: path.to_owned(), source };
        // Where its directory of locks is must not depend on links.
        let path = path.canonicalize().map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(failed(io::Error::other("it is not a regular file")));
        }
        let mark = log_dir::read_mark(file.as_fd(), &path).map_err(failed)?;
        let format = match mark {
            Some(mark) => mark.format,
            None => guess_format(&file).map_err(failed)?,
        };
        let following = if follow {
            let lock = match mark {
                Some(mark) => log_dir::lock_path(file.as_fd(), &path, mark.worker).map_err(failed)?,
                None => None,
            };
            Some(Following::new(&path, lock).map_err(failed)?)
        } else {
            None
        };
        let mut stream = LogStream::file(file, path, format, StreamSelect::Both)?;
        if following.is_none() {
            stream.set_ended();
        }
        Ok(Self { stream, format, follow: following })
    }

    /// Waits until the stream has something to show, or has ended.
    fn wait_for_bytes(&mut self) -> Result<(), StreamError> {
        loop {
            match self.stream.try_fill_buf() {
                Poll::Ready(Ok(_)) => return Ok(()),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
            let Some(following) = &mut self.follow else {
                self.stream.set_ended();
                continue;
            };
            // The end is looked for first: what is read after it was seen is all there is.
            match following.has_ended(&self.stream) {
                Ok(true) => self.stream.set_ended(),
                Ok(false) => following.wait().map_err(|source| StreamError::Io { path: self.stream.path().to_owned(), source })?,
                Err(source) => return Err(StreamError::Io { path: self.stream.path().to_owned(), source }),
            }
        }
    }
}

impl Following {
    fn new(path: &Path, lock: Option<PathBuf>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&inotify, path, WatchFlags::MODIFY | WatchFlags::ATTRIB)?;
        if let Some(lock) = &lock {
            // A lock that is gone already needs no watch.
            let _ = inotify::add_watch(&inotify, lock, WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB);
        }
        Ok(Self { inotify, lock, look_soon: false })
    }

    /// Whether nothing more will be written: the log is sealed, deleted, or its worker is dead.
    fn has_ended(&self, stream: &LogStream) -> io::Result<bool> {
        let stat = rustix::fs::fstat(stream.fd())?;
        if stat.st_mode & 0o222 == 0 || stat.st_nlink == 0 {
            return Ok(true);
        }
        match &self.lock {
            Some(lock) => Ok(!log_dir::is_locked(lock)?),
            None => Ok(true),
        }
    }

    fn wait(&mut self) -> io::Result<()> {
        let timeout = if std::mem::take(&mut self.look_soon) { LOOK_SOON } else { LOOK_EVERY };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        let ready = rustix::io::retry_on_intr(|| rustix::event::poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout)))?;
        if ready == 0 {
            return Ok(());
        }
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut notices = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(notice) = notices.next() {
            self.look_soon |= notice.events().contains(inotify::ReadFlags::CLOSE_WRITE);
        }
        Ok(())
    }
}

impl BufRead for LogReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.wait_for_bytes().map_err(io::Error::other)?;
        Ok(self.stream.shown())
    }

    fn consume(&mut self, amount: usize) {
        self.stream.consume(amount);
    }
}

impl Read for LogReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

fn guess_format(file: &OwnedFd) -> io::Result<LogFormat> {
    let mut start = vec![0; GUESS_BYTES];
    let length = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut start[..], 0))?;
    start.truncate(length);
    // A first record that is longer is told by its beginning.
    start.push(b'\n');
    Ok(match Decoder::new().decode(&start) {
        Decoded::Record { .. } | Decoded::Dropped { .. } => LogFormat::Cri,
        Decoded::Incomplete | Decoded::Malformed { .. } => LogFormat::Raw,
    })
}
