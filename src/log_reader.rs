//! Floor 4: a log of any worker, read from outside: by path, to its end or as it grows, blocking or not.

use std::io::{self, BufRead, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::fs::{FileType, Mode, OFlags};

use crate::kernel::log_dir;
use crate::kernel::stream::files::{LogFiles, open_below};
use crate::kernel::stream::{LogStream, Source};
use crate::logic::cri::{Decoded, Decoder};
use crate::logic::names::{LogName, rotated_name};
use crate::model::error::StreamError;
use crate::model::output::{LogFormat, Record};
use crate::model::reading::{LogEnd, ReadOptions};

/// Bytes looked at to tell the format of a log without a mark.
const GUESS_BYTES: usize = 64 << 10;

/// How often a follower looks at the writer's lock, however quiet the file: a lock is let go of without a word where the worker was killed.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How soon it looks again after the lock file was closed: that word comes just before the lock is let go of.
const LOOK_SOON: Duration = Duration::from_millis(10);

/// How often, and how soon after one another, a log is tried to be opened that has earlier files but not its newest: where a file system cannot exchange two
/// names in one step, there is a moment without it.
const OPEN_TRIES: usize = 50;
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(1);

/// Reads a log from outside its worker, also after that is gone: the job's exact bytes, or its records.
///
/// ```no_run
/// use std::io::Read;
/// use iron_exec::LogReader;
///
/// let mut output = Vec::new();
/// LogReader::open("/tmp/make_0190d3b1-7c8a-7def-8123-456789abcdef.log")?.read_to_end(&mut output)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// It is given the log's own name, and reads its earlier files (`….log.000001`) first, if it was rotated. Given the name of one of those, it reads that one only.
///
/// As [`Read`] it fails where something in the log is to be told ([`StreamError::is_passable`]), and goes on behind it when it is asked again.
#[derive(Debug)]
pub struct LogReader {
    stream: LogStream,
    follow: Option<Following>,
}

/// What a follower knows of the writer.
#[derive(Debug)]
struct Following {
    inotify: OwnedFd,
    /// The watch on the file that is read, and the number of that file.
    watch: Option<(i32, u64)>,
    lock: Option<PathBuf>,
    look_soon: bool,
}

impl LogReader {
    /// Reads what is in the log, to the end that it has when it is reached: a log that is being written faster than it is read has none before its writer slows
    /// down.
    ///
    /// # Errors
    /// [`StreamError::Io`] if the file cannot be opened, or is no regular file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), false, &ReadOptions::new())
    }

    /// As [`open`](Self::open), for one of the two streams or both, and from where `options` say.
    ///
    /// # Errors
    /// As `open`; [`StreamError::NotSeparable`] for one stream of a raw log, [`StreamError::NoTimes`] for a time in one.
    pub fn open_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), false, options)
    }

    /// Reads the log and waits for more, until it is sealed or deleted, or its worker is dead. A log of no known worker ends where it ends now.
    ///
    /// # Errors
    /// As [`open`](Self::open), and if an inotify instance cannot be had.
    pub fn follow(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), true, &ReadOptions::new())
    }

    /// As [`follow`](Self::follow), for one of the two streams or both, and from where `options` say.
    ///
    /// # Errors
    /// As `follow` and [`open_with`](Self::open_with).
    pub fn follow_with(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Self, StreamError> {
        Self::new(path.as_ref(), true, options)
    }

    /// The log's format: as its worker noted it, else told by its first line.
    pub fn format(&self) -> LogFormat {
        self.stream.format()
    }

    /// Where in the log stands what comes next; see [`LogStream::offset`].
    pub fn offset(&self) -> u64 {
        self.stream.offset()
    }

    /// How the log has ended; `None` before that was seen.
    pub fn end(&self) -> Option<LogEnd> {
        self.stream.end()
    }

    /// The next record; `None` at the end. Waits if the log is followed. In a raw log a record is whatever one read gave.
    ///
    /// # Errors
    /// [`StreamError::Io`]; what is [passable](StreamError::is_passable) tells of something in the log, and reading goes on behind it.
    pub fn next_record(&mut self) -> Result<Option<Record<'_>>, StreamError> {
        self.wait_for_bytes(true)?;
        Ok(self.stream.take_shown_record())
    }

    /// As [`next_record`](Self::next_record), and `Pending` instead of waiting.
    ///
    /// It is worth asking again when the reader's descriptor ([`AsFd`]) is readable, and once a second in any case: a worker that is killed says nothing.
    ///
    /// # Errors
    /// As `next_record`.
    pub fn try_next_record(&mut self) -> Poll<Result<Option<Record<'_>>, StreamError>> {
        match self.wait_for_bytes(false) {
            Ok(true) => Poll::Ready(Ok(self.stream.take_shown_record())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn new(path: &Path, follow: bool, options: &ReadOptions) -> Result<Self, StreamError> {
        let failed = |source: io::Error| StreamError::Io { path: path.to_owned(), source };
        let Newest { directory, path, file, stands_at } = Newest::open(path).map_err(failed)?;
        let mark = log_dir::read_mark(file.as_fd(), &stands_at).map_err(failed)?;
        let worker = mark.map(|mark| mark.worker);
        let files = LogFiles::new(directory, path.clone(), file.as_fd(), worker, log_dir::read_mark).map_err(failed)?;
        let places = files.places(file.as_fd(), mark.map(|mark| mark.place)).map_err(failed)?;
        let format = if let Some(mark) = mark {
            mark.format
        } else {
            let oldest = places.split_last().and_then(|(_, earlier)| earlier.first());
            let oldest = oldest.map(|place| files.open(place.number, false)).transpose().map_err(failed)?.flatten();
            guess_format(oldest.as_ref().map_or(&file, |oldest| &oldest.file)).map_err(failed)?
        };
        let following = if follow {
            let lock = match worker {
                Some(worker) => log_dir::lock_path(file.as_fd(), &path, worker).map_err(failed)?,
                None => None,
            };
            Some(Following::new(lock).map_err(failed)?)
        } else {
            None
        };
        let source = Source::File { follows: follow, is_given_up: false };
        let stream = LogStream::open(files, &file, (&places, None), source, (format, None), options)?;
        Ok(Self { stream, follow: following })
    }

    /// Waits, if it may, until the stream has something to show, or has ended; `false` if it has not.
    fn wait_for_bytes(&mut self, may_wait: bool) -> Result<bool, StreamError> {
        loop {
            match self.stream.try_fill_buf() {
                Poll::Ready(Ok(_)) => return Ok(true),
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
            // One that does not follow is never told "not yet".
            let Some(following) = &mut self.follow else { return Ok(false) };
            match following.look(&mut self.stream, may_wait) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(source) => return Err(StreamError::Io { path: self.stream.path().to_owned(), source }),
            }
        }
    }
}

impl Following {
    fn new(lock: Option<PathBuf>) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        if let Some(lock) = &lock {
            // A lock that is gone already needs no watch.
            let _ = inotify::add_watch(&inotify, lock, WatchFlags::CLOSE_WRITE | WatchFlags::ATTRIB);
        }
        Ok(Self { inotify, lock, watch: None, look_soon: false })
    }

    /// The stream has nothing more for now: sees to it that it is told of more. `false` if that has not come yet, and must not be waited for; else it is worth
    /// asking again.
    fn look(&mut self, stream: &mut LogStream, may_wait: bool) -> io::Result<bool> {
        let (file, number) = stream.file();
        if self.watch.is_none_or(|(_, watched)| watched != number) {
            if let Some((former, _)) = self.watch.take() {
                // EINVAL: the file is gone, and its watch with it.
                let _ = inotify::remove_watch(&self.inotify, former);
            }
            // The file itself, whatever stands at its name by now; that is only for where there is no /proc. What is written before this is seen by asking again.
            let flags = WatchFlags::MODIFY | WatchFlags::ATTRIB | WatchFlags::MOVE_SELF;
            let watch = inotify::add_watch(&self.inotify, format!("/proc/self/fd/{}", file.as_raw_fd()), flags);
            self.watch = Some((watch.or_else(|_| inotify::add_watch(&self.inotify, stream.path(), flags))?, number));
            return Ok(true);
        }
        let is_writer_alive = self.lock.as_ref().map_or(Ok(false), |lock| log_dir::is_locked(lock))?;
        if !is_writer_alive {
            // What was written before that is still to be read.
            stream.give_up();
            return Ok(true);
        }
        if may_wait {
            let timeout = if std::mem::take(&mut self.look_soon) { LOOK_SOON } else { LOOK_EVERY };
            let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&timeout)))?;
        }
        Ok(self.take_notices() || may_wait)
    }

    /// Takes the notices that have come; whether there were any. What they say is nothing that is not looked for anyway: an overflow loses nothing.
    fn take_notices(&mut self) -> bool {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
        let mut notices = inotify::Reader::new(&self.inotify, &mut buffer);
        let mut has_some = false;
        while let Ok(notice) = notices.next() {
            has_some = true;
            self.look_soon |= notice.events().contains(inotify::ReadFlags::CLOSE_WRITE);
            // If there are more, they are there at once when they are waited for.
            if notices.is_buffer_empty() {
                break;
            }
        }
        has_some
    }
}

/// The newest file of a log, opened.
struct Newest {
    directory: Arc<OwnedFd>,
    /// The log's own path.
    path: PathBuf,
    file: OwnedFd,
    /// Where the file stands: at that path, unless it is gone.
    stands_at: PathBuf,
}

impl Newest {
    /// Opens the log at `path`. If there is none, but earlier files of it are, the last of those is taken.
    fn open(path: &Path) -> io::Result<Self> {
        for _ in 0..OPEN_TRIES {
            // Where its directory of locks is must not depend on links.
            match path.canonicalize().and_then(|path| Self::open_at(path.clone(), path)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                opened => return opened,
            }
            if last_rotated(path)?.is_none() {
                break;
            }
            std::thread::sleep(OPEN_AGAIN_AFTER);
        }
        let (path, last) = last_rotated(path)?.ok_or(io::ErrorKind::NotFound)?;
        Self::open_at(path, last)
    }

    fn open_at(path: PathBuf, stands_at: PathBuf) -> io::Result<Self> {
        let no_file = || io::Error::other("it is not a regular file");
        let (parent, name) = path.parent().zip(stands_at.file_name()).ok_or_else(no_file)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        let file = open_below(directory.as_fd(), name)?;
        if !FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_file() {
            return Err(no_file());
        }
        Ok(Self { directory: Arc::new(directory), path, file, stands_at })
    }
}

/// The path of the log at `path` free of links, and that of the last of its earlier files; `None` if there are none.
fn last_rotated(path: &Path) -> io::Result<Option<(PathBuf, PathBuf)>> {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(None) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = parent.canonicalize()?;
    let mut last = None;
    for entry in std::fs::read_dir(&parent)? {
        let file_name = entry?.file_name();
        let parsed = file_name.to_str().and_then(LogName::parse).filter(|parsed| parsed.log == name);
        last = last.max(parsed.and_then(|parsed| parsed.number));
    }
    Ok(last.map(|last| (parent.join(name), parent.join(rotated_name(name, last)))))
}

impl AsFd for LogReader {
    /// Of a follower, what becomes readable when it is worth asking for more; of a reader that does not follow, the file. Only to be waited for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.follow.as_ref().map_or(self.stream.file().0.as_fd(), |following| following.inotify.as_fd())
    }
}

impl BufRead for LogReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.wait_for_bytes(true).map_err(io::Error::other)?;
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
