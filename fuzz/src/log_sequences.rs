//! The body of `log_sequences`: what a log promises, whatever is written to it, when, and whatever fails meanwhile.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;
use std::{env, fs, process};

use arbitrary::{Result, Unstructured};
use iron_exec::framing::cri::{Decoded, Decoder};
use iron_exec::fuzzing::log_run::{LogRun, LogWay, place_of};
use iron_exec::{GapKind, LogFormat, LogPolicy, LogStream, OnLogFault, OutputStream, OverRate, StreamError, Timestamp, WhenFull};
use memchr::memmem;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};

use crate::chunk;

/// Operations of one input.
const STEPS_MAX: usize = 64;

/// What a job writes in one of them, and in all: some dozen files.
const FEED_BYTES_MAX: usize = 16 << 10;
const FED_BYTES_MAX: usize = 96 << 10;

/// Where a record is mostly header, so many times less.
const SHORT_LINE_BYTES: usize = 50;
const SHORT_LINES_PART: usize = 16;

/// How much longer than its content a record is that has a file of its own.
const RECORD_MARGIN_BYTES: u64 = 64;

/// Any sequence of operations on a job's log: the job writes, time passes, the disk refuses, the log is closed for idleness, the job ends. Beside it stands what the
/// job has written; the files are to hold it, but for what is counted, and to say what is missing where it is missing.
///
/// # Panics
///
/// When bytes are lost, changed, repeated or counted wrongly, or a file is not as the documentation says.
pub fn log_sequences(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((way, bounds)) = way(&mut input) else { return };
    block_sigxfsz();
    let scratch = Scratch::new();
    let mut test = Test::new(&scratch.0, way, bounds);
    // That the input ended in the middle of an operation is no failure.
    let _ = test.run(&mut input);
}

/// What the log's policy says.
struct Bounds {
    bytes_max: Option<u64>,
    files_max: u64,
    when_full: WhenFull,
    on_fault: OnLogFault,
    /// Whether the disk is well again when the job ends.
    ends_well: bool,
}

/// How the log is to be kept.
fn way(input: &mut Unstructured<'_>) -> Result<(LogWay, Bounds)> {
    let format = if input.ratio(1, 3)? { LogFormat::Raw } else { LogFormat::Cri };
    let bytes_max = if input.ratio(3, 4)? { Some(input.int_in_range(4096..=9000)?) } else { None };
    let when_full = match *input.choose(&[WhenFull::Rotate, WhenFull::Rotate, WhenFull::DropMiddle, WhenFull::DropTail])? {
        WhenFull::DropMiddle if format == LogFormat::Raw => WhenFull::Rotate,
        when_full => when_full,
    };
    let on_fault = *input.choose(&[OnLogFault::Drop, OnLogFault::Drop, OnLogFault::Pause, OnLogFault::Kill])?;
    let files_max = if when_full == WhenFull::DropTail { 1 } else { input.int_in_range(2..=6)? };
    let mut policy = LogPolicy::new().on_fault(on_fault);
    if let Some(bytes) = bytes_max {
        policy = policy.bytes_max(bytes).when_full(when_full);
        if when_full != WhenFull::DropTail {
            policy = policy.files_max(files_max);
        }
    }
    if input.ratio(1, 4)? {
        policy = policy.rate_max(input.int_in_range(1024..=40_000)?, *input.choose(&[OverRate::Drop, OverRate::Pause])?);
    }
    let way = LogWay {
        format,
        is_merged: input.arbitrary()?,
        policy,
        line_bytes_max: *input.choose(&[1, 20, 100, 1000, 10_000])?,
        open_logs_max: *input.choose(&[1, 1, 0])?,
        read_budget_bytes: *input.choose(&[256 << 10, 4096])?,
        coalesce_time: Duration::from_millis(*input.choose(&[0, 1])?),
    };
    Ok((way, Bounds { bytes_max, files_max, when_full, on_fault, ends_well: input.ratio(3, 4)? }))
}

/// What is wrong with the disk.
#[derive(Default)]
struct Fault {
    /// No file can grow beyond so many bytes.
    file_bytes_max: Option<u64>,
    /// Somebody's file, at the number that the next rotation needs.
    planted: Option<PathBuf>,
    /// Where the log was moved to.
    moved: Option<PathBuf>,
}

impl Fault {
    fn is_on(&self) -> bool {
        self.file_bytes_max.is_some() || self.planted.is_some() || self.moved.is_some()
    }
}

/// What stands in the files of a log.
enum Item {
    Record {
        stream: usize,
        bytes: Vec<u8>,
    },
    /// The word that so many bytes are missing.
    Missing(u64),
}

/// A file of the log.
struct File {
    /// `None`: the newest.
    number: Option<u64>,
    path: PathBuf,
    text: Vec<u8>,
    mode: u32,
}

struct Test {
    way: LogWay,
    bounds: Bounds,
    run: LogRun,
    fault: Fault,
    /// Whether ever something was wrong with the disk.
    had_fault: bool,
    /// Whether ever the log was moved away, or somebody's file stood at one of its numbers: that may mislead a reader, who goes by names.
    had_other_names: bool,
    fed: [Vec<u8>; 2],
    line: u32,
    reader: Option<Reader>,
}

impl Test {
    fn new(directory: &Path, way: LogWay, bounds: Bounds) -> Self {
        let run = LogRun::new(directory, way);
        Self {
            way,
            bounds,
            run,
            fault: Fault::default(),
            had_fault: false,
            had_other_names: false,
            fed: [Vec::new(), Vec::new()],
            line: 0,
            reader: None,
        }
    }

    fn run(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let outcome = self.steps(input);
        // Whoever reads the log's directory finds it under its name at the end, so that it can be sealed.
        self.put_back();
        if self.bounds.ends_well {
            self.end_fault();
        }
        let is_faultless = !self.fault.is_on();
        self.with_disk(|run| run.finish(Duration::from_secs(5)));
        self.fault.file_bytes_max = None;
        self.look(true);
        self.account(is_faultless);
        self.read_along(true);
        self.run.delete().expect("every file is the log's own");
        // The locks, and what is somebody else's.
        let left = fs::read_dir(self.run.path().parent().expect("it is in a directory")).expect("it can be read").count();
        assert_eq!(left, 1 + usize::from(self.fault.planted.is_some()), "a file is left");
        outcome
    }

    fn steps(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if input.is_empty() || self.run.told().kill {
                break;
            }
            match input.arbitrary::<u8>()? % 12 {
                0..=2 => {
                    let index = self.index(input)?;
                    let times = usize::from(input.arbitrary::<u8>()?);
                    let chunk = chunk(input)?;
                    let times = times.min(FEED_BYTES_MAX / chunk.len().max(1));
                    self.feed(index, chunk.repeat(times));
                }
                3..=5 => {
                    let index = self.index(input)?;
                    let (count, len) = (input.int_in_range(1..=100)?, input.int_in_range(0..=150)?);
                    let lines = self.lines(count, len);
                    self.feed(index, lines);
                }
                6 => {
                    let unit = *input.choose(&[1_u64, 1000, 30_000, 1_000_000])?;
                    let time = Duration::from_micros(unit * u64::from(input.arbitrary::<u8>()? % 16));
                    self.with_disk(|run| run.pass(time));
                }
                7 => self.begin_fault(input)?,
                8 => self.end_fault(),
                9 => self.run.make_room(),
                10 => {
                    let stream = self.run.stream();
                    assert!(stream.is_some() || self.fault.moved.is_some(), "the log cannot be read");
                    self.reader = self.reader.take().or(stream.map(Reader::new));
                }
                _ => self.look(false),
            }
            self.read_along(false);
        }
        Ok(())
    }

    fn index(&self, input: &mut Unstructured<'_>) -> Result<usize> {
        Ok(if self.way.is_merged { 0 } else { usize::from(input.arbitrary::<bool>()?) })
    }

    /// Lines that are all different.
    fn lines(&mut self, count: u32, len: usize) -> Vec<u8> {
        let mut lines = Vec::new();
        for _ in 0..count {
            lines.extend(format!("{:06}{:.<len$}\n", self.line, "").into_bytes());
            self.line += 1;
        }
        lines.truncate(FEED_BYTES_MAX);
        lines
    }

    fn feed(&mut self, index: usize, mut bytes: Vec<u8>) {
        if self.way.format == LogFormat::Raw && !self.way.is_merged {
            // So that the two can be told apart in one file.
            for byte in bytes.iter_mut().filter(|byte| **byte != b'\n') {
                *byte = (*byte & 0x7f) | if index == 1 { 0x80 } else { 0 };
                *byte += u8::from(*byte == b'\n');
            }
        }
        let fed: usize = self.fed.iter().map(Vec::len).sum();
        let part = if self.way.format == LogFormat::Cri && self.way.line_bytes_max < SHORT_LINE_BYTES { SHORT_LINES_PART } else { 1 };
        bytes.truncate((FEED_BYTES_MAX / part).min((FED_BYTES_MAX / part).saturating_sub(fed)));
        let written = self.with_disk(|run| run.feed(index, &bytes));
        self.fed[index].extend_from_slice(&bytes[..written]);
    }

    /// Does something while the disk is as it is.
    fn with_disk<T>(&mut self, act: impl FnOnce(&mut LogRun) -> T) -> T {
        let _limit = self.fault.file_bytes_max.map(FileBytesMax::set);
        act(&mut self.run)
    }

    fn begin_fault(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        self.had_fault = true;
        let log = self.run.path();
        match input.arbitrary::<u8>()? % 4 {
            0 | 1 => {
                let length = fs::metadata(self.fault.moved.as_deref().unwrap_or(log)).map_or(0, |meta| meta.len());
                self.fault.file_bytes_max = Some(length + u64::from(input.arbitrary::<u16>()? % 2048));
            }
            2 if self.fault.planted.is_none() => {
                let path = with_suffix(log, &format!(".{:06}", self.run.count().rotations + 1));
                fs::write(&path, "a stranger's").expect("there is room");
                self.had_other_names = true;
                self.fault.planted = Some(path);
            }
            3 if self.fault.moved.is_none() => {
                let path = with_suffix(log, "-moved");
                fs::rename(log, &path).expect("it is there");
                self.had_other_names = true;
                self.fault.moved = Some(path);
            }
            _ => {}
        }
        Ok(())
    }

    fn end_fault(&mut self) {
        self.fault.file_bytes_max = None;
        if let Some(path) = self.fault.planted.take() {
            assert_eq!(fs::read(&path).expect("a stranger's file is left alone"), b"a stranger's");
            fs::remove_file(path).expect("it is there");
        }
        self.put_back();
    }

    fn put_back(&mut self) {
        if let Some(path) = self.fault.moved.take() {
            assert!(!self.run.path().exists(), "a log that was moved away was made anew");
            fs::rename(path, self.run.path()).expect("it is there");
        }
    }

    /// Whether the log loses nothing but what its policy says.
    fn is_lossless(&self) -> bool {
        let count = self.run.count();
        count.dropped_bytes == 0 && count.discarded_bytes == 0
    }

    /// Whether the oldest files are gone, with their bytes and their words.
    fn is_beheaded(&self) -> bool {
        self.bounds.when_full == WhenFull::Rotate && self.run.count().rotations >= self.bounds.files_max
    }

    /// The files of the log, oldest first.
    fn files(&self) -> Vec<File> {
        let log = self.run.path();
        let name = log.file_name().and_then(|name| name.to_str()).expect("a name");
        let mut files = Vec::new();
        for entry in fs::read_dir(log.parent().expect("it is in a directory")).expect("it can be read") {
            let path = entry.expect("an entry").path();
            let Some(suffix) = path.file_name().and_then(|entry| entry.to_str()?.strip_prefix(name)) else { continue };
            if self.fault.planted.as_ref() == Some(&path) {
                continue;
            }
            let number = match suffix {
                "" | "-moved" => None,
                _ => {
                    let digits = suffix.strip_prefix('.').expect("a name with a number");
                    assert!(digits.len() == 6, "{suffix}");
                    Some(digits.parse().expect("a number"))
                }
            };
            let mode = fs::metadata(&path).expect("it is there").permissions().mode() & 0o7777;
            files.push(File { number, text: fs::read(&path).expect("it can be read"), path, mode });
        }
        files.sort_by_key(|file| file.number.unwrap_or(u64::MAX));
        files
    }

    /// The files are named, numbered, marked, bounded and sealed as they should be.
    fn look(&self, has_ended: bool) {
        let (count, files) = (self.run.count(), self.files());
        let (files_max, is_middle) = (self.bounds.files_max, self.bounds.when_full == WhenFull::DropMiddle);
        // With the file that stands for what was dropped.
        let most = files_max + u64::from(is_middle && count.rotations >= files_max);
        assert!(files.len() as u64 <= most, "{} files", files.len());
        assert_eq!(files.iter().filter(|file| file.number.is_none()).count(), 1, "one is the newest");
        let last = files.last().expect("there is one");
        assert_eq!(last.mode, if has_ended { 0o400 } else { 0o600 }, "the newest");
        let mut place = None;
        for (index, file) in files.iter().enumerate() {
            let number = file.number.unwrap_or(count.rotations + 1);
            if file.number.is_some() {
                assert_eq!(file.mode, 0o400, "{}", file.path.display());
            }
            let (marked, start) = place_of(&file.path).unwrap_or_else(|| panic!("{} has no mark", file.path.display()));
            assert_eq!(marked, number, "{}", file.path.display());
            let is_stand_in = is_middle && most > files_max && index == 1;
            match place {
                _ if number == 1 => assert_eq!(start, 0),
                // What stands for the files that were dropped has the place of the first of them.
                Some((before, end)) if before + 1 == number => assert_eq!(start, end, "{}", file.path.display()),
                Some((_, end)) => assert!(is_middle && index == 2 && start >= end, "{} follows {place:?}", file.path.display()),
                None => {}
            }
            place = if is_stand_in { Some((0, start)) } else { Some((number, start + file.text.len() as u64)) };
            if let Some(bytes_max) = self.bounds.bytes_max {
                let longest = file.text.split(|byte| *byte == b'\n').map(<[u8]>::len).max().unwrap_or(0) as u64;
                let is_one = self.way.format == LogFormat::Cri && memchr::memchr_iter(b'\n', &file.text).count() == 1;
                let length = file.text.len() as u64;
                let is_bounded = length <= bytes_max || is_one && longest <= self.way.line_bytes_max as u64 + RECORD_MARGIN_BYTES;
                assert!(is_bounded, "{} has {length} bytes", file.path.display());
            }
        }
        self.items(&files);
    }

    /// What stands in the files; every line is to be a record, and no record older than the one before it.
    fn items(&self, files: &[File]) -> Vec<Item> {
        let mut items = Vec::new();
        let (mut decoder, mut last) = (Decoder::new(), Timestamp::from_unix_nanos(0));
        for file in files {
            let mut rest = &*file.text;
            if self.way.format == LogFormat::Raw {
                items.push(Item::Record { stream: 0, bytes: rest.to_vec() });
                continue;
            }
            while !rest.is_empty() {
                let (time, len, item) = match decoder.decode(rest) {
                    Decoded::Record { time, stream, partial, content, len } => {
                        let bytes = [content, if partial { b"" } else { b"\n" }].concat();
                        (time, len, Item::Record { stream: usize::from(stream == OutputStream::Stderr), bytes })
                    }
                    Decoded::Dropped { time, bytes, len } => (time, len, Item::Missing(bytes)),
                    other => panic!("{}: {other:?} at \"{}\"", file.path.display(), rest.escape_ascii()),
                };
                assert!(time >= last, "{}: times run backwards at \"{}\"", file.path.display(), rest[..len].escape_ascii());
                last = time;
                items.push(item);
                rest = &rest[len..];
            }
        }
        items
    }

    /// At the end of the job every byte is in the log, or counted, and the log says what is missing where it is missing.
    fn account(&self, is_faultless: bool) {
        let count = self.run.count();
        let fed = self.fed.iter().map(|fed| fed.len() as u64).sum::<u64>();
        assert_eq!([count.stdout_bytes, count.stderr_bytes], self.fed.each_ref().map(|fed| fed.len() as u64), "all was read");
        let items = self.items(&self.files());
        let (mut kept, mut said) = (0, 0);
        for item in &items {
            match item {
                Item::Record { bytes, .. } => kept += bytes.len() as u64,
                Item::Missing(bytes) => said += bytes,
            }
        }
        let missing = count.dropped_bytes + count.discarded_bytes;
        assert_eq!(kept + missing + count.deleted_bytes, fed, "every byte is in the log, or counted once: {count:?}");
        let told = self.run.told();
        assert!(told.faults - told.resumptions <= 1, "a fault is told, then its end: {told:?}");
        let can_be_full = self.bounds.bytes_max.is_some() && self.bounds.when_full == WhenFull::DropTail;
        assert!(told.fulls <= u64::from(can_be_full), "that it is full is told once: {told:?}");
        if !self.had_fault {
            assert_eq!((count.dropped_bytes, self.run.told().faults), (0, 0), "nothing failed");
        }
        if is_faultless && self.bounds.on_fault == OnLogFault::Pause {
            assert_eq!(count.dropped_bytes, 0, "a job that waits loses nothing");
        }
        if self.way.format == LogFormat::Raw {
            return self.compare_raw(&items);
        }
        // What was said in files that are deleted is not there any more.
        let is_whole = !self.is_beheaded();
        assert!(said <= missing);
        if is_whole && is_faultless {
            assert_eq!(said, missing, "what is missing is said");
        }
        if self.way.is_merged && (is_whole || is_faultless) {
            let mut at = if is_whole { 0 } else { (fed - kept - said) as usize };
            assert!(at as u64 >= count.deleted_bytes);
            for item in &items {
                match item {
                    Item::Record { bytes, .. } => {
                        assert!(self.fed[0][at..].starts_with(bytes), "at {at}: {:?}", bytes.escape_ascii().to_string());
                        at += bytes.len();
                    }
                    Item::Missing(bytes) => at += *bytes as usize,
                }
            }
            assert!(at as u64 <= fed && (!is_faultless || at as u64 == fed));
            return;
        }
        for (stream, fed) in self.fed.iter().enumerate() {
            // Pieces between the words are in the order of the job's output.
            let mut pieces = vec![Vec::new()];
            for item in &items {
                match item {
                    Item::Record { stream: of, bytes } if *of == stream => pieces.last_mut().expect("one").extend_from_slice(bytes),
                    Item::Record { .. } => {}
                    Item::Missing(_) => pieces.push(Vec::new()),
                }
            }
            let mut at = 0;
            for (index, piece) in pieces.iter().enumerate() {
                let found = memmem::find(&fed[at..], piece);
                let found = found.unwrap_or_else(|| panic!("not in order: \"{}\"", piece.escape_ascii()));
                assert!(index > 0 || found == 0 || !is_whole, "the beginning is missing");
                at += found + piece.len();
            }
        }
    }

    /// As far as that can be told without words.
    fn compare_raw(&self, items: &[Item]) {
        let bytes: Vec<u8> =
            items.iter().flat_map(|item| if let Item::Record { bytes, .. } = item { &**bytes } else { &[] }).copied().collect();
        let is_whole = !self.is_beheaded();
        for (stream, fed) in self.fed.iter().enumerate() {
            let is_ours = |byte: &u8| self.way.is_merged || (*byte != b'\n' && usize::from(*byte >= 0x80) == stream);
            if self.way.is_merged && stream == 1 {
                continue;
            }
            let kept: Vec<u8> = bytes.iter().copied().filter(is_ours).collect();
            let fed: Vec<u8> = fed.iter().copied().filter(is_ours).collect();
            if self.is_lossless() {
                assert!(fed.ends_with(&kept) && (kept.len() == fed.len() || !is_whole));
            }
            let mut rest = fed.iter();
            assert!(kept.iter().all(|byte| rest.any(|other| other == byte)), "bytes in another order");
        }
    }

    /// A reader in this process has every byte that is in the log, and is told of those that are not.
    fn read_along(&mut self, has_ended: bool) {
        // What went with whole files is said in bytes of the log, not of the job.
        let is_whole = !self.is_beheaded() && self.bounds.when_full != WhenFull::DropMiddle;
        let Some(reader) = self.reader.as_mut().filter(|_| !self.had_other_names) else { return };
        let is_at_end = reader.read();
        assert!(is_at_end == has_ended, "the reader is at its end: {is_at_end}, the job at its: {has_ended}");
        let count = self.run.count();
        if !has_ended || !is_whole {
            return;
        }
        assert!(!reader.has_missed_files, "files were missed, but none is gone");
        let [read, fed] = [&reader.bytes, &self.fed].map(|bytes| bytes.iter().map(|bytes| bytes.len() as u64).sum::<u64>());
        let missing = count.dropped_bytes + count.discarded_bytes;
        assert_eq!(read + missing, fed, "{count:?}");
        assert!(reader.missing <= missing);
        if missing == 0 && (self.way.format == LogFormat::Cri || self.way.is_merged) {
            assert!(reader.bytes == self.fed, "what was read is not what was written");
        }
    }
}

struct Reader {
    stream: LogStream,
    bytes: [Vec<u8>; 2],
    /// Bytes of the job of which the log said that they are missing.
    missing: u64,
    has_missed_files: bool,
}

impl Reader {
    fn new(stream: LogStream) -> Self {
        Self { stream, bytes: [Vec::new(), Vec::new()], missing: 0, has_missed_files: false }
    }

    /// Reads what is there; whether that is all there will be.
    fn read(&mut self) -> bool {
        loop {
            match self.stream.try_next_record() {
                Poll::Ready(Ok(Some(record))) => {
                    self.bytes[usize::from(record.stream == Some(OutputStream::Stderr))].extend_from_slice(record.bytes);
                }
                Poll::Ready(Ok(None)) => return true,
                Poll::Ready(Err(StreamError::Gap { bytes, kind: GapKind::Output, .. })) => self.missing += bytes,
                Poll::Ready(Err(StreamError::Gap { .. })) => self.has_missed_files = true,
                Poll::Ready(Err(error)) => panic!("{error}"),
                Poll::Pending => return false,
            }
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

/// No file of this process can grow beyond so many bytes, for as long as this lives.
struct FileBytesMax;

impl FileBytesMax {
    fn set(bytes: u64) -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("it can be read");
        setrlimit(Resource::RLIMIT_FSIZE, bytes.min(hard), hard).expect("it can be lowered");
        Self
    }
}

impl Drop for FileBytesMax {
    fn drop(&mut self) {
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap_or((0, RLIM_INFINITY));
        let _ = setrlimit(Resource::RLIMIT_FSIZE, hard, hard);
    }
}

/// A write beyond the limit on file sizes is an error, and not the end of this thread's process.
fn block_sigxfsz() {
    thread_local!(static IS_BLOCKED: Cell<bool> = const { Cell::new(false) });
    if !IS_BLOCKED.replace(true) {
        SigSet::from_iter([Signal::SIGXFSZ]).thread_block().expect("a signal can be blocked");
    }
}

/// A directory in memory. When a fault is found it stays, to be looked at.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { env::temp_dir() };
        let path = parent.join(format!("iron-exec-log-sequences-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).expect("a directory");
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}
