//! Promise: a log is read from wherever one wants, by any number of readers, through all its files: no byte is lost or repeated by its rotation, and what is
//! missing is counted. Its deletion is an end, its truncation an event.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, finish, isolated, turn_until};
use iron_exec::framing::cri::{self, Stamp};
use iron_exec::framing::{Ending, Piece};
use iron_exec::{
    Command, Event, GapKind, JobId, LogEnd, LogFormat, LogPolicy, LogPosition, LogReader, LogStream, OutputStream, ReadOptions,
    StreamError, StreamSelect, Timestamp, WhenFull, Worker,
};
use rustix::fs::{FlockOperation, RenameFlags, XattrFlags};

use OutputStream::{Stderr, Stdout};

const FORMATS: [LogFormat; 2] = [LogFormat::Cri, LogFormat::Raw];

/// The log that a follower process of a test is told to follow.
const FOLLOWED_LOG: &str = "IRON_EXEC_TEST_FOLLOWED_LOG";

// A log that the test writes itself, as a worker of its own would.

/// The name of every log of these tests.
const LOG: &str = "job_0190d3b1-7c8a-7def-8123-456789abcdef.log";

/// A worker that holds its lock, and the files of one log.
struct Writer {
    directory: tempfile::TempDir,
    format: LogFormat,
    lock: Option<File>,
    newest: File,
    number: u64,
    /// The bytes of the log before the newest file.
    start: u64,
    /// The bytes in the newest file.
    length: u64,
    /// Whether files carry their mark.
    is_marked: bool,
}

const WORKER: &str = "0190d3b1-0000-7000-8000-000000000001";

impl Writer {
    fn new(format: LogFormat) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let locks = directory.path().join(format!(".iron-exec-{}", rustix::process::geteuid().as_raw()));
        fs::create_dir(&locks).unwrap();
        fs::set_permissions(&locks, fs::Permissions::from_mode(0o700)).unwrap();
        let lock = File::create(locks.join(format!("{WORKER}.lock"))).unwrap();
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
        let newest = File::create(directory.path().join(LOG)).unwrap();
        let writer = Self { directory, format, lock: Some(lock), newest, number: 1, start: 0, length: 0, is_marked: true };
        writer.mark(&writer.newest, 1, 0);
        writer
    }

    fn unmarked(format: LogFormat) -> Self {
        let mut writer = Self::new(format);
        rustix::fs::fremovexattr(&writer.newest, "user.iron-exec").unwrap();
        writer.is_marked = false;
        writer
    }

    fn mark(&self, file: &File, number: u64, start: u64) {
        let format = if self.format == LogFormat::Cri { "cri" } else { "raw" };
        let mark = if number == 1 { format!("{WORKER} {format}") } else { format!("{WORKER} {format} {number} {start}") };
        rustix::fs::fsetxattr(file, "user.iron-exec", mark.as_bytes(), XattrFlags::empty()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join(LOG)
    }

    fn rotated(&self, number: u64) -> PathBuf {
        self.directory.path().join(format!("{LOG}.{number:06}"))
    }

    fn end(&self) -> u64 {
        self.start + self.length
    }

    fn put(&mut self, bytes: &[u8]) {
        self.newest.write_all(bytes).unwrap();
        self.length += bytes.len() as u64;
    }

    /// A line, or a piece of one, at second `time`; returns the bytes that it takes in the log.
    fn write(&mut self, time: u64, stream: OutputStream, text: &str) -> u64 {
        let bytes = match (self.format, text.strip_suffix('\n')) {
            (LogFormat::Raw, _) => text.as_bytes().to_vec(),
            (_, Some(line)) => record(time, stream, line, Ending::Newline),
            (_, None) => record(time, stream, text, Ending::Partial),
        };
        self.put(&bytes);
        bytes.len() as u64
    }

    /// Renames the full file and begins the next, as the worker does.
    fn rotate(&mut self) {
        let (full, next) = (self.rotated(self.number), self.path());
        let file = File::options().append(true).create_new(true).open(&full).unwrap();
        if self.is_marked {
            self.mark(&file, self.number + 1, self.end());
        }
        let cwd = rustix::fs::CWD;
        rustix::fs::renameat_with(cwd, &next, cwd, &full, RenameFlags::EXCHANGE).unwrap();
        seal(&self.newest);
        (self.newest, self.number, self.start, self.length) = (file, self.number + 1, self.end(), 0);
    }

    fn seal(&self) {
        seal(&self.newest);
    }
}

fn seal(file: &File) {
    file.set_permissions(fs::Permissions::from_mode(0o400)).unwrap();
}

fn record(time: u64, stream: OutputStream, content: &str, ending: Ending) -> Vec<u8> {
    let mut bytes = Vec::new();
    cri::encode(&mut bytes, Stamp::new().at(at(time)), stream, Piece { bytes: content.as_bytes(), ending });
    bytes
}

fn dropped(time: u64, bytes: u64) -> Vec<u8> {
    let mut record = Vec::new();
    cri::encode_dropped(&mut record, Stamp::new().at(at(time)), bytes, "the log is full");
    record
}

fn at(second: u64) -> Timestamp {
    Timestamp::from_unix_nanos((1_795_404_418 + second) * 1_000_000_000)
}

/// What a reader gave: output, or what it told.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Heard {
    Text(String),
    Gap(u64, GapKind),
    Malformed(u64),
    Truncated,
    End(LogEnd),
}

use Heard::{End, Gap, Malformed, Truncated};

fn text(text: &str) -> Heard {
    Heard::Text(text.to_owned())
}

fn told(error: &StreamError) -> Heard {
    assert!(error.is_passable(), "{error:?}");
    match error {
        StreamError::Gap { bytes, kind, .. } => Gap(*bytes, *kind),
        StreamError::Malformed { offset, .. } => Malformed(*offset),
        StreamError::Truncated { .. } => Truncated,
        other => panic!("{other:?}"),
    }
}

/// Adds output to what was heard; neighbours are joined.
fn push(heard: &mut Vec<Heard>, bytes: &[u8]) {
    let more = String::from_utf8_lossy(bytes);
    match heard.last_mut() {
        Some(Heard::Text(text)) => text.push_str(&more),
        _ => heard.push(Heard::Text(more.into_owned())),
    }
}

/// Everything that a reader gives now; its end, if it has come.
fn hear_now(reader: &mut LogReader) -> Vec<Heard> {
    let mut heard = Vec::new();
    loop {
        match reader.try_next_record() {
            Poll::Ready(Ok(Some(record))) => push(&mut heard, record.bytes),
            Poll::Ready(Ok(None)) => {
                heard.push(End(reader.end().expect("it has ended")));
                return heard;
            }
            Poll::Ready(Err(error)) => heard.push(told(&error)),
            Poll::Pending => return heard,
        }
    }
}

/// As `hear_now`, of a stream of this process.
fn stream_now(stream: &mut LogStream) -> Vec<Heard> {
    let mut heard = Vec::new();
    loop {
        match stream.try_next_record() {
            Poll::Ready(Ok(Some(record))) => push(&mut heard, record.bytes),
            Poll::Ready(Ok(None)) => {
                heard.push(End(stream.end().expect("it has ended")));
                return heard;
            }
            Poll::Ready(Err(error)) => heard.push(told(&error)),
            Poll::Pending => return heard,
        }
    }
}

fn from(position: LogPosition) -> ReadOptions {
    ReadOptions::new().position(position)
}

fn open(writer: &Writer, options: &ReadOptions) -> Vec<Heard> {
    hear_now(&mut LogReader::open_with(writer.path(), options).unwrap())
}

const UNFINISHED: Heard = End(LogEnd::Unfinished);
const COMPLETE: Heard = End(LogEnd::Complete);

/// A log of ten lines, `line 0` to `line 9` at seconds 0 to 9, with a new file after each of `rotations`, and where each line begins.
fn ten_lines(format: LogFormat, rotations: &[u64]) -> (Writer, Vec<u64>) {
    let mut writer = Writer::new(format);
    let mut starts = Vec::new();
    for number in 0..10 {
        starts.push(writer.end());
        writer.write(number, Stdout, &format!("line {number}\n"));
        if rotations.contains(&number) {
            writer.rotate();
        }
    }
    (writer, starts)
}

fn lines(range: std::ops::Range<u64>) -> String {
    range.map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat()
}

fn lines_then(range: std::ops::Range<u64>, end: Heard) -> Vec<Heard> {
    let lines = lines(range);
    if lines.is_empty() { vec![end] } else { vec![text(&lines), end] }
}

/// The ways in which the ten lines stand in files.
const ROTATIONS: [&[u64]; 4] = [&[], &[4], &[0, 1, 4, 8], &[2, 9]];

// From where.

#[test]
fn every_position_begins_where_it_says_in_every_format_rotated_or_not() {
    for format in FORMATS {
        for rotations in ROTATIONS {
            let (writer, starts) = ten_lines(format, rotations);
            let read = |position| open(&writer, &from(position));
            assert_eq!(read(LogPosition::Start), lines_then(0..10, UNFINISHED));
            assert_eq!(read(LogPosition::End), [UNFINISHED]);
            for count in 0..=12 {
                let first = 10_u64.saturating_sub(count);
                assert_eq!(
                    read(LogPosition::LastLines(count)),
                    lines_then(first..10, UNFINISHED),
                    "last {count}, {format:?} {rotations:?}"
                );
            }
            for (number, start) in (0..).zip(&starts) {
                assert_eq!(read(LogPosition::Offset(*start)), lines_then(number..10, UNFINISHED), "{start}, {format:?} {rotations:?}");
            }
            for beyond in [writer.end(), writer.end() + 1, u64::MAX] {
                assert_eq!(read(LogPosition::Offset(beyond)), [UNFINISHED]);
            }
        }
    }
}

#[test]
fn an_offset_inside_a_record_means_the_next_one_and_inside_a_raw_line_that_very_byte() {
    for rotations in ROTATIONS {
        let (writer, starts) = ten_lines(LogFormat::Cri, rotations);
        for offset in 0..writer.end() {
            let next = starts.iter().filter(|start| **start < offset).count() as u64;
            assert_eq!(open(&writer, &from(LogPosition::Offset(offset))), lines_then(next..10, UNFINISHED), "{offset} {rotations:?}");
        }
        let (writer, _) = ten_lines(LogFormat::Raw, rotations);
        for offset in 0..writer.end() {
            let rest = &lines(0..10)[offset as usize..];
            assert_eq!(open(&writer, &from(LogPosition::Offset(offset))), [text(rest), UNFINISHED]);
        }
    }
}

#[test]
fn a_time_begins_with_the_first_record_that_is_not_older() {
    for rotations in ROTATIONS {
        let (writer, _) = ten_lines(LogFormat::Cri, rotations);
        let since = |time| open(&writer, &from(LogPosition::Since(time)));
        assert_eq!(since(Timestamp::from_unix_nanos(0)), lines_then(0..10, UNFINISHED));
        for number in 0..10 {
            assert_eq!(since(at(number)), lines_then(number..10, UNFINISHED), "{number} {rotations:?}");
            let just_after = Timestamp::from_unix_nanos(at(number).as_unix_nanos() + 1);
            assert_eq!(since(just_after), lines_then(number + 1..10, UNFINISHED), "{number} {rotations:?}");
        }
    }
    let (writer, _) = ten_lines(LogFormat::Raw, &[]);
    let refused = LogReader::open_with(writer.path(), &from(LogPosition::Since(at(0)))).unwrap_err();
    assert!(matches!(&refused, StreamError::NoTimes { path } if *path == writer.path()), "{refused:?}");
    assert!(refused.to_string().contains("raw"), "{refused}");
}

#[test]
fn a_time_is_found_in_a_long_log_with_long_records_and_strange_lines() {
    let mut writer = Writer::new(LogFormat::Cri);
    let long = "x".repeat(100_000);
    for second in 0..400 {
        if second % 50 == 7 {
            writer.put(format!("{}\n", "no record ".repeat(20_000)).as_bytes());
            writer.put(&dropped(second, 5));
        }
        writer.write(second, if second % 3 == 0 { Stderr } else { Stdout }, if second % 20 == 0 { &long } else { "short\n" });
        if second % 130 == 129 {
            writer.rotate();
        }
    }
    for second in [0, 1, 19, 20, 21, 57, 58, 129, 130, 131, 399, 400] {
        let mut reader = LogReader::open_with(writer.path(), &from(LogPosition::Since(at(second)))).unwrap();
        let first = loop {
            match reader.next_record() {
                Ok(record) => break record.and_then(|record| record.time),
                Err(error) => assert!(error.is_passable()),
            }
        };
        assert_eq!(first, (second < 400).then_some(at(second)), "{second}");
    }
}

#[test]
fn a_line_in_pieces_is_one_line_also_across_files_and_at_the_end() {
    let mut writer = Writer::new(LogFormat::Cri);
    for (number, piece) in ["one\n", "tw", "o an", "d a half\n", "three", " and\n", "four", " unfin", "ished"].iter().enumerate() {
        writer.write(number as u64, Stdout, piece);
        if [2, 4, 7].contains(&number) {
            writer.rotate();
        }
    }
    let last = |count| open(&writer, &from(LogPosition::LastLines(count)));
    let all = ["one\n", "two and a half\n", "three and\n", "four unfinished"];
    for count in 1..=4 {
        assert_eq!(last(count), [text(&all[4 - count as usize..].concat()), UNFINISHED]);
    }
    assert_eq!(last(5), [text(&all.concat()), UNFINISHED]);
}

#[test]
fn the_last_lines_are_those_of_the_stream_that_is_read_and_each_is_whole() {
    let mut writer = Writer::new(LogFormat::Cri);
    for (stream, piece) in [
        (Stdout, "out 1\n"),
        (Stderr, "err 1 begins, "),
        (Stdout, "out 2\n"),
        (Stderr, "goes on, "),
        (Stdout, "out 3\n"),
        (Stdout, "out 4\n"),
        (Stderr, "ends\n"),
        (Stdout, "out 5\n"),
    ] {
        writer.write(0, stream, piece);
    }
    let last = |count, select| open(&writer, &ReadOptions::new().select(select).position(LogPosition::LastLines(count)));
    let only = StreamSelect::Only;
    assert_eq!(last(2, only(Stdout)), [text("out 4\nout 5\n"), UNFINISHED]);
    assert_eq!(last(1, only(Stderr)), [text("err 1 begins, goes on, ends\n"), UNFINISHED]);
    assert_eq!(last(1, StreamSelect::Both), [text("out 5\n"), UNFINISHED]);
    assert_eq!(last(2, StreamSelect::Both), [text("err 1 begins, goes on, ends\nout 5\n"), UNFINISHED], "and no line in between");
    assert_eq!(last(3, StreamSelect::Both), [text("err 1 begins, goes on, out 4\nends\nout 5\n"), UNFINISHED]);
    assert_eq!(
        last(5, StreamSelect::Both),
        [text("err 1 begins, out 2\ngoes on, out 3\nout 4\nends\nout 5\n"), UNFINISHED],
        "five lines end behind the first"
    );
}

#[test]
fn the_last_lines_of_a_log_far_longer_than_a_block_are_found() {
    for format in FORMATS {
        let mut writer = Writer::new(format);
        let wide = format!("{}\n", "y".repeat(150_000));
        for number in 0..3000 {
            writer.write(number, Stdout, &format!("line {number}\n"));
            if number % 1000 == 500 {
                writer.write(number, Stdout, &wide);
            }
        }
        for count in [1, 499, 500, 2000, 3003] {
            let mut reader = LogReader::open_with(writer.path(), &from(LogPosition::LastLines(count))).unwrap();
            assert_eq!(reader.by_ref().lines().count() as u64, count);
        }
    }
}

#[test]
fn a_reader_goes_on_later_where_it_was() {
    for format in FORMATS {
        let (mut writer, _) = ten_lines(format, &[2, 6]);
        let (mut heard, mut offset) = (Vec::new(), 0);
        for round in 0..25 {
            let mut reader = LogReader::open_with(writer.path(), &from(LogPosition::Offset(offset))).unwrap();
            if let Some(record) = reader.next_record().unwrap() {
                push(&mut heard, record.bytes);
            } else {
                let number = 10 + round;
                writer.write(number, Stdout, &format!("line {number}\n"));
                push(&mut heard, b"|");
            }
            offset = reader.offset();
        }
        let Heard::Text(heard) = &heard[0] else { panic!("{heard:?}") };
        let first: String = heard.chars().take_while(|character| *character != '|').collect();
        assert_eq!(first, lines(0..10));
        assert_eq!(
            heard.matches("line").count() as u64,
            10 + heard.matches('|').count() as u64 - u64::from(heard.ends_with('|')),
            "{heard}"
        );
    }
}

#[test]
fn what_is_not_consumed_whole_comes_again_from_its_offset() {
    for (format, rest) in [(LogFormat::Cri, "line 0\n"), (LogFormat::Raw, "e 0\n")] {
        let (writer, _) = ten_lines(format, &[0]);
        let mut reader = LogReader::open(writer.path()).unwrap();
        assert_eq!(reader.fill_buf().unwrap(), b"line 0\n");
        reader.consume(3);
        let mut again = LogReader::open_with(writer.path(), &from(LogPosition::Offset(reader.offset()))).unwrap();
        assert_eq!(again.next_record().unwrap().unwrap().bytes, rest.as_bytes());
    }
}

// Rotation.

#[test]
fn a_follower_goes_on_through_every_rotation_and_ends_with_the_seal_of_the_newest() {
    for format in FORMATS {
        let mut writer = Writer::new(format);
        let mut reader = LogReader::follow(writer.path()).unwrap();
        let mut expected = String::new();
        for number in 0..20 {
            assert_eq!(hear_now(&mut reader), []);
            for line in 0..number % 4 {
                let line = format!("line {number}.{line}\n");
                writer.write(number, Stdout, &line);
                expected.push_str(&line);
            }
            if number % 3 != 0 {
                writer.rotate();
            }
            let heard = hear_now(&mut reader);
            assert_eq!(heard, if expected.is_empty() { vec![] } else { vec![text(&std::mem::take(&mut expected))] });
            assert_eq!(reader.offset(), writer.end());
        }
        writer.write(20, Stdout, "end\n");
        writer.seal();
        assert_eq!(hear_now(&mut reader), [text("end\n"), COMPLETE]);
        assert_eq!(hear_now(&mut reader), [COMPLETE], "the end stays the end");
    }
}

#[test]
fn a_rotated_file_that_is_named_is_read_alone() {
    let (writer, _) = ten_lines(LogFormat::Cri, &[2, 6]);
    for follows in [false, true] {
        let options = ReadOptions::new();
        let path = writer.rotated(2);
        let mut reader = if follows { LogReader::follow_with(&path, &options) } else { LogReader::open_with(&path, &options) }.unwrap();
        assert_eq!(hear_now(&mut reader), lines_then(3..7, COMPLETE));
    }
}

#[test]
fn files_that_were_deleted_before_they_were_read_are_a_gap_of_so_many_bytes() {
    for format in FORMATS {
        let (writer, starts) = ten_lines(format, &[0, 2, 5, 7]);
        let mut slow = LogReader::follow(writer.path()).unwrap();
        assert_eq!(slow.next_record().unwrap().unwrap().bytes, b"line 0\n");
        fs::remove_file(writer.rotated(1)).unwrap();
        fs::remove_file(writer.rotated(2)).unwrap();
        fs::remove_file(writer.rotated(3)).unwrap();
        let gap = |from: usize| Gap(starts[6] - starts[from], GapKind::Files);
        assert_eq!(hear_now(&mut slow), [gap(1), text(&lines(6..10))]);
        let read = |position| open(&writer, &from(position));
        assert_eq!(read(LogPosition::Start), [gap(0), text(&lines(6..10)), UNFINISHED]);
        assert_eq!(read(LogPosition::Offset(starts[4])), [gap(4), text(&lines(6..10)), UNFINISHED]);
        assert_eq!(read(LogPosition::Offset(starts[6])), lines_then(6..10, UNFINISHED));
        assert_eq!(read(LogPosition::LastLines(4)), lines_then(6..10, UNFINISHED), "as many as were asked for");
        assert_eq!(read(LogPosition::LastLines(5)), [gap(0), text(&lines(6..10)), UNFINISHED]);
        if format == LogFormat::Cri {
            assert_eq!(read(LogPosition::Since(at(7))), lines_then(7..10, UNFINISHED));
            assert_eq!(read(LogPosition::Since(at(3))), [gap(0), text(&lines(6..10)), UNFINISHED]);
        }
    }
}

#[test]
fn a_file_that_stands_for_dropped_ones_says_so_once() {
    let (mut writer, _) = ten_lines(LogFormat::Cri, &[1, 3, 5, 7]);
    // As a worker that drops the middle: the second file is replaced by the word that it and the third are gone.
    let start = fs::metadata(writer.rotated(1)).unwrap().len();
    fs::remove_file(writer.rotated(2)).unwrap();
    fs::remove_file(writer.rotated(3)).unwrap();
    let mut file = File::create_new(writer.rotated(2)).unwrap();
    writer.mark(&file, 2, start);
    file.write_all(&dropped(5, 28)).unwrap();
    seal(&file);
    let whole = [text(&lines(0..2)), Gap(28, GapKind::Output), text(&lines(6..10)), UNFINISHED];
    assert_eq!(open(&writer, &ReadOptions::new()), whole);
    assert_eq!(open(&writer, &from(LogPosition::Since(at(6)))), lines_then(6..10, UNFINISHED));
    // More is dropped while a reader holds the old word.
    let mut reader = LogReader::follow(writer.path()).unwrap();
    let mut heard = Vec::new();
    while heard.last() != Some(&Gap(28, GapKind::Output)) {
        match reader.next_record() {
            Ok(record) => push(&mut heard, record.expect("it has not ended").bytes),
            Err(error) => heard.push(told(&error)),
        }
    }
    fs::remove_file(writer.rotated(2)).unwrap();
    fs::remove_file(writer.rotated(4)).unwrap();
    writer.write(10, Stdout, "line 10\n");
    let heard = hear_now(&mut reader);
    assert!(matches!(heard[0], Gap(_, GapKind::Files)), "{heard:?}");
    assert_eq!(heard[1..], [text(&lines(8..11))]);
}

#[test]
fn a_copy_of_a_rotated_log_is_read_through_its_files_too() {
    for format in FORMATS {
        let mut writer = Writer::unmarked(format);
        for number in 0..10 {
            writer.write(number, Stdout, &format!("line {number}\n"));
            if number % 3 == 2 {
                writer.rotate();
            }
        }
        let copy = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(writer.directory.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file()) {
            fs::write(copy.path().join(entry.file_name().unwrap()), fs::read(&entry).unwrap()).unwrap();
        }
        let path = copy.path().join(LOG);
        let mut reader = LogReader::open(&path).unwrap();
        assert_eq!(reader.format(), format);
        assert_eq!(hear_now(&mut reader), lines_then(0..10, UNFINISHED));
        let last = from(LogPosition::LastLines(5));
        assert_eq!(hear_now(&mut LogReader::open_with(&path, &last).unwrap()), lines_then(5..10, UNFINISHED));
        assert_eq!(hear_now(&mut LogReader::follow(&path).unwrap()), lines_then(0..10, End(LogEnd::WriterGone)));
        fs::remove_file(copy.path().join(format!("{LOG}.000002"))).unwrap();
        let expected = [text(&lines(0..3)), Gap(0, GapKind::UncountedFiles), text(&lines(6..10)), UNFINISHED];
        assert_eq!(hear_now(&mut LogReader::open(&path).unwrap()), expected);
    }
}

#[test]
fn a_strangers_file_among_those_of_a_log_is_not_read() {
    let (mut writer, _) = ten_lines(LogFormat::Cri, &[4]);
    let mut reader = LogReader::follow(writer.path()).unwrap();
    assert_eq!(hear_now(&mut reader), [text(&lines(0..10))]);
    // Of another worker, a link, a directory, a FIFO.
    let other = File::create_new(writer.rotated(7)).unwrap();
    let mark = WORKER.replace("01", "02") + " cri 7 100";
    rustix::fs::fsetxattr(&other, "user.iron-exec", mark.as_bytes(), XattrFlags::empty()).unwrap();
    (&other).write_all(&record(0, Stdout, "a stranger", Ending::Newline)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", writer.rotated(8)).unwrap();
    fs::create_dir(writer.rotated(9)).unwrap();
    assert!(process::Command::new("mkfifo").arg(writer.rotated(10)).status().unwrap().success());
    writer.write(10, Stdout, "line 10\n");
    writer.rotate();
    writer.write(11, Stdout, "line 11\n");
    assert_eq!(hear_now(&mut reader), [text(&lines(10..12))]);
    assert_eq!(open(&writer, &ReadOptions::new()), lines_then(0..12, UNFINISHED));
    writer.seal();
    assert_eq!(hear_now(&mut reader), [COMPLETE]);
}

#[test]
fn what_a_stranger_puts_where_files_of_a_log_were_deleted_ends_no_reader() {
    for format in FORMATS {
        let (writer, starts) = ten_lines(format, &[0, 1, 2, 5, 7]);
        let mut readers: Vec<LogReader> = (0..2).map(|_| LogReader::follow(writer.path()).unwrap()).collect();
        for reader in &mut readers {
            assert_eq!(reader.next_record().unwrap().unwrap().bytes, b"line 0\n");
        }
        for number in 2..=4 {
            fs::remove_file(writer.rotated(number)).unwrap();
        }
        // Before a file that is left, and then before nothing but the newest.
        fs::create_dir(writer.rotated(3)).unwrap();
        let other = File::create_new(writer.rotated(4)).unwrap();
        let mark = WORKER.replace("01", "02") + " cri 4 100";
        rustix::fs::fsetxattr(&other, "user.iron-exec", mark.as_bytes(), XattrFlags::empty()).unwrap();
        (&other).write_all(b"a stranger\n").unwrap();
        let gap = |to: usize| Gap(starts[to] - starts[1], GapKind::Files);
        assert_eq!(hear_now(&mut readers[0]), [gap(6), text(&lines(6..10))]);
        fs::remove_file(writer.rotated(5)).unwrap();
        assert_eq!(hear_now(&mut readers[1]), [gap(8), text(&lines(8..10))]);
    }
}

#[test]
fn marks_and_names_that_make_no_sense_are_read_without_harm() {
    for (number, start) in [(u64::MAX, u64::MAX), (2, u64::MAX), (1, 5), (0, 0), (3, 0)] {
        let (mut writer, _) = ten_lines(LogFormat::Cri, &[4]);
        writer.mark(&writer.newest, number.max(2), start);
        File::create_new(writer.directory.path().join(format!("{LOG}.{}", u64::MAX))).unwrap().write_all(b"no record\n").unwrap();
        File::create_new(writer.directory.path().join(format!("{LOG}.{}", u64::MAX - 1))).unwrap().write_all(b"no record\n").unwrap();
        for position in
            [LogPosition::Start, LogPosition::End, LogPosition::Offset(u64::MAX), LogPosition::LastLines(7), LogPosition::Since(at(3))]
        {
            for follows in [false, true] {
                let options = from(position);
                let path = writer.path();
                let opened = if follows { LogReader::follow_with(path, &options) } else { LogReader::open_with(path, &options) };
                let heard = hear_now(&mut opened.unwrap());
                assert!(follows || matches!(heard.last(), Some(End(_))), "{position:?}: {heard:?}");
            }
        }
        writer.write(10, Stdout, "line 10\n");
        writer.seal();
        // A file of a stranger, if it stands behind all others, ends with the worker at the latest.
        writer.lock = None;
        let heard = hear_now(&mut LogReader::follow(writer.path()).unwrap());
        assert!(matches!(heard.last(), Some(End(_))), "{heard:?}");
    }
}

// Faults.

#[test]
fn a_log_that_was_deleted_ends_with_what_was_in_it() {
    for rotations in ROTATIONS {
        let (mut writer, _) = ten_lines(LogFormat::Cri, rotations);
        let mut reader = LogReader::follow(writer.path()).unwrap();
        let mut late = LogReader::follow(writer.path()).unwrap();
        assert_eq!(hear_now(&mut reader), [text(&lines(0..10))]);
        writer.write(10, Stdout, "line 10\n");
        for number in 1..writer.number {
            fs::remove_file(writer.rotated(number)).unwrap();
        }
        fs::remove_file(writer.path()).unwrap();
        assert_eq!(hear_now(&mut reader), [text("line 10\n"), End(LogEnd::Deleted)]);
        let heard = hear_now(&mut late);
        assert_eq!(heard.last(), Some(&End(LogEnd::Deleted)), "{heard:?}");
    }
    let (writer, _) = ten_lines(LogFormat::Cri, &[4]);
    fs::remove_file(writer.path()).unwrap();
    let mut left = LogReader::open(writer.path()).unwrap();
    assert_eq!(hear_now(&mut left), lines_then(0..5, End(LogEnd::Deleted)), "what is left of it is read");
}

#[test]
fn a_log_that_is_moved_away_is_followed_all_the_same() {
    let mut writer = Writer::new(LogFormat::Cri);
    let mut reader = LogReader::follow(writer.path()).unwrap();
    fs::rename(writer.path(), writer.directory.path().join("elsewhere")).unwrap();
    writer.write(0, Stdout, "line 0\n");
    assert_eq!(hear_now(&mut reader), [text("line 0\n")]);
    writer.seal();
    assert_eq!(hear_now(&mut reader), [COMPLETE]);
}

#[test]
fn a_log_that_was_truncated_says_so_and_goes_on_with_what_is_left() {
    for format in FORMATS {
        let mut writer = Writer::new(format);
        // The worker appends.
        writer.newest = File::options().append(true).open(writer.path()).unwrap();
        let mut reader = LogReader::follow(writer.path()).unwrap();
        for number in 0..3 {
            writer.write(number, Stdout, &format!("line {number}\n"));
        }
        assert_eq!(hear_now(&mut reader), [text(&lines(0..3))]);
        writer.newest.set_len(0).unwrap();
        assert_eq!(hear_now(&mut reader), [Truncated]);
        assert_eq!(hear_now(&mut reader), []);
        writer.write(3, Stdout, "line 3\n");
        assert_eq!(hear_now(&mut reader), [text("line 3\n")]);
        writer.newest.set_len(0).unwrap();
        writer.seal();
        assert_eq!(hear_now(&mut reader), [Truncated, COMPLETE]);
    }
}

#[test]
fn a_torn_record_that_its_writer_takes_back_is_no_truncation() {
    let mut writer = Writer::new(LogFormat::Cri);
    writer.newest = File::options().append(true).open(writer.path()).unwrap();
    let mut reader = LogReader::follow(writer.path()).unwrap();
    let whole = writer.write(0, Stdout, "line 0\n");
    writer.newest.write_all(&record(1, Stdout, "torn", Ending::Newline)[..40]).unwrap();
    assert_eq!(hear_now(&mut reader), [text("line 0\n")]);
    writer.newest.set_len(whole).unwrap();
    assert_eq!(hear_now(&mut reader), []);
    writer.write(1, Stdout, "line 1\n");
    assert_eq!(hear_now(&mut reader), [text("line 1\n")]);
}

#[test]
fn a_log_that_has_lost_its_end_is_not_read_again() {
    for format in FORMATS {
        for begin in [LogPosition::Start, LogPosition::Offset(1), LogPosition::LastLines(2), LogPosition::End] {
            let mut writer = Writer::new(format);
            // The worker appends.
            writer.newest = File::options().append(true).open(writer.path()).unwrap();
            let ends: Vec<u64> = (0..3).map(|number| (writer.write(number, Stdout, &format!("line {number}\n")), writer.end()).1).collect();
            let mut reader = LogReader::follow_with(writer.path(), &from(begin)).unwrap();
            let mut at_end = LogReader::follow_with(writer.path(), &from(LogPosition::End)).unwrap();
            hear_now(&mut reader);
            // A batch of which whole records were written, and one that was not, because the disk is full.
            writer.write(3, Stdout, "line 3\n");
            writer.write(4, Stdout, "line 4\n");
            writer.newest.write_all(&record(5, Stdout, "torn", Ending::Newline)[..if format == LogFormat::Cri { 40 } else { 0 }]).unwrap();
            assert_eq!(hear_now(&mut reader), [text(&lines(3..5))]);
            writer.newest.set_len(ends[2]).unwrap();
            assert_eq!(hear_now(&mut reader), [Truncated]);
            assert_eq!(reader.offset(), ends[2]);
            writer.write(6, Stdout, "line 6\n");
            assert_eq!(hear_now(&mut reader), [text("line 6\n")]);
            // And again, at the end.
            writer.newest.set_len(ends[1]).unwrap();
            writer.seal();
            assert_eq!(hear_now(&mut reader), [Truncated, COMPLETE]);
            assert_eq!(hear_now(&mut at_end), [Truncated, COMPLETE], "what is left is before what was asked for");
        }
    }
}

#[test]
fn a_log_that_is_cut_in_the_middle_of_a_record_goes_on_with_the_next() {
    let mut writer = Writer::new(LogFormat::Cri);
    writer.newest = File::options().append(true).open(writer.path()).unwrap();
    let mut reader = LogReader::follow(writer.path()).unwrap();
    let whole = writer.write(0, Stdout, "line 0\n");
    writer.write(1, Stdout, "line 1\n");
    assert_eq!(hear_now(&mut reader), [text(&lines(0..2))]);
    writer.newest.set_len(whole + 40).unwrap();
    assert_eq!(hear_now(&mut reader), [Truncated]);
    writer.newest.write_all(b" ended\n").unwrap();
    writer.write(2, Stdout, "line 2\n");
    assert_eq!(hear_now(&mut reader), [text("line 2\n")]);
}

#[test]
fn a_log_that_was_begun_anew_before_it_was_looked_at_is_read_from_its_beginning() {
    for format in FORMATS {
        let mut writer = Writer::new(format);
        writer.newest = File::options().append(true).open(writer.path()).unwrap();
        for number in 0..3 {
            writer.write(number, Stdout, &format!("line {number}\n"));
        }
        let mut time = 3;
        for begin in [LogPosition::Start, LogPosition::LastLines(1)] {
            let mut reader = LogReader::follow_with(writer.path(), &from(begin)).unwrap();
            hear_now(&mut reader);
            writer.write(3, Stdout, "line 3\n");
            assert_eq!(hear_now(&mut reader), [text("line 3\n")]);
            time += 1;
            writer.newest.set_len(0).unwrap();
            writer.write(time, Stdout, &format!("{time}\n"));
            assert_eq!(hear_now(&mut reader), [Truncated, text(&format!("{time}\n"))]);
        }
    }
}

#[test]
fn a_torn_record_is_none_at_the_end_and_told_once_in_the_middle() {
    for tail in [&record(9, Stdout, "torn", Ending::Newline)[..37], b"2026", &[0; 5000]] {
        let (mut writer, _) = ten_lines(LogFormat::Cri, &[3]);
        let end = writer.end();
        writer.put(tail);
        assert_eq!(open(&writer, &ReadOptions::new()), lines_then(0..10, UNFINISHED));
        assert_eq!(open(&writer, &from(LogPosition::LastLines(2))), lines_then(8..10, UNFINISHED));
        assert_eq!(open(&writer, &from(LogPosition::End)), [UNFINISHED]);
        assert_eq!(open(&writer, &from(LogPosition::Since(at(9)))), lines_then(9..10, UNFINISHED));
        writer.rotate();
        writer.write(10, Stdout, "line 10\n");
        let expected = [text(&lines(0..10)), Malformed(end), text("line 10\n"), UNFINISHED];
        assert_eq!(open(&writer, &ReadOptions::new()), expected);
        writer.lock = None;
        let mut reader = LogReader::follow(writer.path()).unwrap();
        assert_eq!(hear_now(&mut reader), [text(&lines(0..10)), Malformed(end), text("line 10\n"), End(LogEnd::WriterGone)]);
    }
}

#[test]
fn output_that_never_came_into_the_log_is_a_gap_where_it_is_missing() {
    let mut writer = Writer::new(LogFormat::Cri);
    writer.write(0, Stdout, "before\n");
    writer.put(&dropped(1, 1234));
    writer.write(2, Stderr, "after\n");
    let expected = [text("before\n"), Gap(1234, GapKind::Output), text("after\n"), UNFINISHED];
    assert_eq!(open(&writer, &ReadOptions::new()), expected);
    assert_eq!(open(&writer, &ReadOptions::new().only(Stderr)), expected[1..], "whose it was is not known");
    assert_eq!(open(&writer, &from(LogPosition::LastLines(2))), expected, "it is no line");
    assert_eq!(open(&writer, &from(LogPosition::Since(at(2)))), expected[2..]);
}

// Waiting.

/// Whether a descriptor is readable within `timeout`.
fn is_readable(fd: impl AsFd, timeout: Duration) -> bool {
    let timeout = rustix::time::Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
    let fds = &mut [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::io::retry_on_intr(|| rustix::event::poll(fds, Some(&timeout))).unwrap() > 0
}

#[test]
fn the_descriptor_of_a_follower_tells_when_to_ask_again() {
    type Step = (&'static str, fn(&mut Writer));
    let mut writer = Writer::new(LogFormat::Cri);
    let mut reader = LogReader::follow(writer.path()).unwrap();
    let steps: [Step; 4] = [
        ("a line", |writer| writer.put(&record(0, Stdout, "line 0", Ending::Newline))),
        ("a rotation", Writer::rotate),
        ("a line in the next file", |writer| writer.put(&record(1, Stdout, "line 1", Ending::Newline))),
        ("the end", |writer| writer.seal()),
    ];
    let mut heard = Vec::new();
    for (what, step) in steps {
        heard.extend(hear_now(&mut reader));
        assert!(!is_readable(&reader, Duration::ZERO), "before {what}");
        step(&mut writer);
        assert!(is_readable(&reader, DEADLINE), "{what}");
    }
    heard.extend(hear_now(&mut reader));
    assert_eq!(heard, [text("line 0\n"), text("line 1\n"), COMPLETE]);
}

#[test]
fn when_the_notices_overflow_nothing_is_lost() {
    let mut writer = Writer::new(LogFormat::Cri);
    let mut reader = LogReader::follow(writer.path()).unwrap();
    assert_eq!(hear_now(&mut reader), []);
    // The same notice twice in a row is one: these two alternate, more often than the queue has room for (16,384).
    let other = writer.newest.try_clone().unwrap();
    let mut expected = String::new();
    for number in 0..10_000 {
        let line = format!("line {number}\n");
        writer.write(number, Stdout, &line);
        expected.push_str(&line);
        other.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
    }
    writer.rotate();
    writer.write(0, Stdout, "the next file\n");
    writer.seal();
    expected.push_str("the next file\n");
    assert_eq!(hear_now(&mut reader), [text(&expected), COMPLETE]);
}

#[test]
fn readers_that_wait_hold_no_descriptor_too_many_and_leave_none() {
    isolated("readers_that_wait_hold_no_descriptor_too_many_and_leave_none", || {
        let (writer, _) = ten_lines(LogFormat::Cri, &[1, 3, 5]);
        let before = common::open_fds();
        let mut readers: Vec<LogReader> = (0..10).map(|_| LogReader::follow(writer.path()).unwrap()).collect();
        for reader in &mut readers {
            assert_eq!(hear_now(reader), [text(&lines(0..10))]);
        }
        assert_eq!(common::open_fds().len(), before.len() + 30, "the file, its directory and the notices of each");
        assert_eq!(common::inotify_watches(), 20, "the file and the lock of each");
        drop(readers);
        assert_eq!(common::open_fds(), before);
    });
}

// Against a model.

/// What a follower should still hear.
struct Expectation {
    reader: LogReader,
    /// How many lines it has heard.
    next: u64,
}

#[test]
fn any_sequence_of_writes_rotations_and_deletions_is_heard_as_a_model_says() {
    for seed in 0..60 {
        let mut random = fastrand::Rng::with_seed(seed);
        let format = FORMATS[random.usize(..2)];
        let mut writer = Writer::new(format);
        // Line by line: where it begins, and the number of its file.
        let mut model: Vec<(u64, u64)> = Vec::new();
        let mut oldest = 1;
        let mut followers: Vec<Expectation> = Vec::new();
        for _ in 0..random.usize(20..120) {
            match random.u32(..10) {
                0..4 => {
                    for _ in 0..random.u64(1..5) {
                        let number = model.len() as u64;
                        model.push((writer.end(), writer.number));
                        writer.write(number, Stdout, &format!("line {number}\n"));
                    }
                }
                4 | 5 if writer.length > 0 => writer.rotate(),
                6 if oldest < writer.number => {
                    fs::remove_file(writer.rotated(oldest)).unwrap();
                    oldest += 1;
                }
                7 => {
                    let kept = model.iter().filter(|(_, file)| *file >= oldest).count() as u64;
                    let count = random.u64(..=kept);
                    let next = model.len() as u64 - count;
                    let position = match random.u32(..3) {
                        0 => LogPosition::LastLines(count),
                        // Before the first record that is left there may have been more of that time.
                        1 if format == LogFormat::Cri && count < kept => LogPosition::Since(at(next)),
                        _ => LogPosition::Offset(model.get(next as usize).map_or(writer.end(), |line| line.0)),
                    };
                    let reader = LogReader::follow_with(writer.path(), &from(position)).unwrap();
                    followers.push(Expectation { reader, next });
                }
                _ => {
                    if let Some(follower) = followers.get_mut(random.usize(..10)) {
                        check(follower, &model, oldest, &writer, seed);
                    }
                }
            }
        }
        for follower in &mut followers {
            check(follower, &model, oldest, &writer, seed);
        }
        writer.seal();
        for follower in &mut followers {
            assert_eq!(hear_now(&mut follower.reader), [COMPLETE], "seed {seed}");
        }
    }
}

/// Lets a follower hear all there is, and compares.
fn check(follower: &mut Expectation, model: &[(u64, u64)], oldest: u64, writer: &Writer, seed: u64) {
    let heard = hear_now(&mut follower.reader);
    let mut expected = follower.next;
    for one in &heard {
        match one {
            Heard::Text(text) => {
                for line in text.lines() {
                    assert_eq!(line, format!("line {expected}"), "seed {seed}: {heard:?}");
                    expected += 1;
                }
            }
            Gap(bytes, GapKind::Files) => {
                // From where it was to the beginning of a line of another file; all that lies between is deleted.
                let start_of = |line: u64| model.get(line as usize).map_or(writer.end(), |line| line.0);
                let to = start_of(expected) + bytes;
                let next = model.iter().take_while(|line| line.0 < to).count() as u64;
                assert_eq!(start_of(next), to, "seed {seed}: {heard:?}");
                assert!(model[expected as usize..next as usize].iter().all(|(_, file)| *file < oldest), "seed {seed}: {heard:?}");
                expected = next;
            }
            other => panic!("seed {seed}: {other:?}"),
        }
    }
    assert_eq!(expected, model.len() as u64, "seed {seed}: {heard:?}");
    assert_eq!(follower.reader.offset(), writer.end(), "seed {seed}");
    follower.next = expected;
}

// With a worker.

fn cat() -> Command {
    Command::new("cat")
}

fn start_cat(worker: &mut Worker, command: Command) -> (JobId, PipeWriter) {
    let job = worker.start(command.stdin_piped()).unwrap();
    (job, worker.take_stdin(job).unwrap().unwrap())
}

/// Sends text through the job and turns the loop until it was read.
fn echo(worker: &mut Worker, job: JobId, stdin: &mut impl Write, text: &str) -> Vec<Event> {
    let read = worker.query(job).unwrap().output.stdout_bytes;
    stdin.write_all(text.as_bytes()).unwrap();
    turn_until(worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == read + text.len() as u64)
}

fn log_of(worker: &Worker, job: JobId) -> PathBuf {
    worker.query(job).unwrap().log.unwrap()
}

/// A policy with which every few dozen lines fill a file.
fn small_files(files_max: u64) -> LogPolicy {
    LogPolicy::new().bytes_max(4096).files_max(files_max)
}

/// Follows a log in a thread of its own to its end; what was heard is sent.
fn follow_in_thread(path: &Path, options: ReadOptions) -> Receiver<Vec<Heard>> {
    let (path, (sender, receiver)) = (path.to_owned(), mpsc::channel());
    thread::spawn(move || {
        let mut reader = LogReader::follow_with(path, &options).unwrap();
        let mut heard = Vec::new();
        loop {
            match reader.next_record() {
                Ok(Some(record)) => push(&mut heard, record.bytes),
                Ok(None) => break,
                Err(error) => heard.push(told(&error)),
            }
        }
        heard.push(End(reader.end().unwrap()));
        sender.send(heard)
    });
    receiver
}

#[test]
fn a_stream_of_this_process_goes_on_through_rotation_without_losing_or_repeating_a_byte() {
    for format in FORMATS {
        let host = Host::new();
        let mut worker = host.builder().log_format(format).log_policy(small_files(1000)).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let mut live = worker.stream(job).unwrap();
        let mut waiting = worker.stream(job).unwrap();
        let mut expected = String::new();
        for round in 0..40 {
            let text_now: String =
                (0..30).map(|line| format!("line {round} {line} of a job that writes much\n")).collect::<Vec<_>>().concat();
            let events = echo(&mut worker, job, &mut stdin, &text_now);
            assert!(round == 0 || !events.is_empty(), "a reader that waits is told");
            assert_eq!(stream_now(&mut live), [text(&text_now)]);
            expected.push_str(&text_now);
            let mut late = worker.stream(job).unwrap();
            assert_eq!(stream_now(&mut late), [text(&expected)], "one that comes later begins at the beginning");
            let mut tail = worker.stream_with(job, &from(LogPosition::LastLines(45))).unwrap();
            let count = expected.lines().count().min(45);
            let lines: Vec<&str> = expected.lines().rev().take(count).collect();
            let last: String = lines.iter().rev().map(|line| format!("{line}\n")).collect::<Vec<_>>().concat();
            assert_eq!(stream_now(&mut tail), [text(&last)]);
            let mut resumed = worker.stream_with(job, &from(LogPosition::Offset(live.offset()))).unwrap();
            assert_eq!(stream_now(&mut resumed), []);
        }
        drop(stdin);
        let status = finish(&mut worker, job);
        assert!(status.output.rotations > 5, "{:?}", status.output);
        assert_eq!(stream_now(&mut live), [COMPLETE]);
        assert_eq!(stream_now(&mut waiting), [text(&expected), COMPLETE]);
        assert_eq!(hear_now(&mut LogReader::open(log_of(&worker, job)).unwrap()), [text(&expected), COMPLETE]);
    }
}

#[test]
fn a_stream_that_is_too_slow_is_told_how_many_bytes_are_gone() {
    for format in FORMATS {
        let host = Host::new();
        let mut worker = host.builder().log_format(format).log_policy(small_files(3)).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let mut slow = worker.stream(job).unwrap();
        let mut follower = LogReader::follow(log_of(&worker, job)).unwrap();
        let mut expected = String::new();
        for round in 0..60 {
            let some = (0..50).map(|line| format!("line {round} {line}\n")).collect::<Vec<_>>().concat();
            echo(&mut worker, job, &mut stdin, &some);
            expected.push_str(&some);
        }
        drop(stdin);
        let status = finish(&mut worker, job);
        let log = log_of(&worker, job);
        // The first file is held open by both; what lies between it and the files that are left is gone.
        for heard in [stream_now(&mut slow), hear_now(&mut follower)] {
            let [Heard::Text(first), Gap(bytes, GapKind::Files), Heard::Text(last), COMPLETE] = &heard[..] else { panic!("{heard:?}") };
            assert!(expected.starts_with(first.as_str()) && expected.ends_with(last.as_str()));
            let missing = expected.len() - first.len() - last.len();
            let lines_missing = expected[first.len()..expected.len() - last.len()].lines().count();
            let overhead = if format == LogFormat::Cri { cri::HEADER_BYTES * lines_missing } else { 0 };
            assert_eq!(*bytes as usize, missing + overhead, "exactly");
        }
        assert!(status.output.rotations > 3);
        let start = open_path(&log, &ReadOptions::new());
        assert!(matches!(&start[..], [Gap(_, GapKind::Files), Heard::Text(_), COMPLETE]), "{start:?}");
    }
}

fn open_path(path: &Path, options: &ReadOptions) -> Vec<Heard> {
    hear_now(&mut LogReader::open_with(path, options).unwrap())
}

#[test]
fn fifty_followers_and_fifty_streams_of_a_log_that_is_rotated_under_load_hear_every_byte() {
    for format in FORMATS {
        let host = Host::new();
        let mut worker = host.builder().log_format(format).log_policy(LogPolicy::new().bytes_max(8192).files_max(10_000)).build().unwrap();
        let expected: String = (0..6000).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let log = log_of(&worker, job);
        let followers: Vec<_> = (0..50).map(|_| follow_in_thread(&log, ReadOptions::new())).collect();
        let mut streams: Vec<(LogStream, Vec<Heard>)> = (0..50).map(|_| (worker.stream(job).unwrap(), Vec::new())).collect();
        let feeder = thread::spawn({
            let expected = expected.clone();
            move || stdin.write_all(expected.as_bytes()).unwrap()
        });
        turn_until(&mut worker, |worker, _| {
            for (pace, (stream, heard)) in streams.iter_mut().enumerate() {
                for _ in 0..pace * 10 {
                    let Poll::Ready(Ok(Some(record))) = stream.try_next_record() else { break };
                    push(heard, record.bytes);
                }
            }
            worker.query(job).unwrap().is_finished()
        });
        feeder.join().unwrap();
        assert!(worker.query(job).unwrap().output.rotations > 5);
        for follower in followers {
            let heard = follower.recv_timeout(DEADLINE).expect("the log ends");
            assert!(heard == [text(&expected), COMPLETE], "{format:?}: {} pieces", heard.len());
        }
        for (mut stream, mut heard) in streams {
            for one in stream_now(&mut stream) {
                match one {
                    Heard::Text(text) => push(&mut heard, text.as_bytes()),
                    other => heard.push(other),
                }
            }
            assert!(heard == [text(&expected), COMPLETE], "{format:?}: {} pieces", heard.len());
        }
    }
}

#[test]
fn streams_read_in_other_threads_while_the_log_is_rotated() {
    for format in FORMATS {
        let host = Host::new();
        let mut worker = host.builder().log_format(format).log_policy(LogPolicy::new().bytes_max(8192).files_max(10_000)).build().unwrap();
        let expected: String = (0..30_000).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let mut stream = worker.stream(job).unwrap();
                thread::spawn(move || {
                    let (mut heard, deadline) = (Vec::new(), Instant::now() + DEADLINE);
                    while !matches!(heard.last(), Some(End(_))) {
                        assert!(Instant::now() < deadline, "the stream does not end");
                        for one in stream_now(&mut stream) {
                            match one {
                                Heard::Text(text) => push(&mut heard, text.as_bytes()),
                                other => heard.push(other),
                            }
                        }
                    }
                    heard
                })
            })
            .collect();
        let feeder = thread::spawn({
            let expected = expected.clone();
            move || stdin.write_all(expected.as_bytes()).unwrap()
        });
        assert!(finish(&mut worker, job).success());
        feeder.join().unwrap();
        for reader in readers {
            let heard = reader.join().unwrap();
            assert!(heard == [text(&expected), COMPLETE], "{format:?}: {:?}", heard.iter().skip(1).collect::<Vec<_>>());
        }
    }
}

#[test]
fn streams_in_other_threads_that_are_too_slow_read_every_byte_in_its_place_or_hear_that_it_is_gone() {
    let deadline = Instant::now() + Duration::from_secs(3);
    let mut gaps = 0;
    for _ in 0..50 {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(4096).files_max(2);
        // In a raw log every byte has its place: how far it is from the beginning.
        let mut worker = host.builder().log_format(LogFormat::Raw).log_policy(policy).build().unwrap();
        let expected: Arc<str> = (0..60_000).map(|number| format!("line {number:08}\n")).collect::<Vec<_>>().concat().into();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let readers: Vec<_> = (0..8)
            .map(|_| {
                let (mut stream, expected) = (worker.stream(job).unwrap(), Arc::clone(&expected));
                thread::spawn(move || {
                    let (mut place, mut gaps, limit) = (0, 0, Instant::now() + DEADLINE);
                    loop {
                        assert!(Instant::now() < limit, "the stream does not end");
                        match stream.try_next_record() {
                            Poll::Ready(Ok(Some(record))) => {
                                let end = place + record.bytes.len();
                                let wanted = &expected.as_bytes()[place..end];
                                assert!(record.bytes == wanted, "at byte {place}: {:?}", String::from_utf8_lossy(&record.bytes[..14]));
                                place = end;
                            }
                            Poll::Ready(Err(error)) => {
                                let Gap(bytes, GapKind::Files) = told(&error) else { panic!("{error:?}") };
                                (place, gaps) = (place + bytes as usize, gaps + 1);
                            }
                            Poll::Ready(Ok(None)) => break,
                            Poll::Pending => thread::yield_now(),
                        }
                    }
                    assert_eq!((stream.end(), place), (Some(LogEnd::Complete), expected.len()));
                    gaps
                })
            })
            .collect();
        let feeder = thread::spawn({
            let expected = Arc::clone(&expected);
            move || stdin.write_all(expected.as_bytes()).unwrap()
        });
        assert!(finish(&mut worker, job).success());
        feeder.join().unwrap();
        gaps += readers.into_iter().map(|reader| reader.join().unwrap()).sum::<u32>();
        if Instant::now() > deadline {
            break;
        }
    }
    assert!(gaps > 0, "none of them was too slow");
}

#[test]
fn a_log_is_followed_from_another_process_through_rotation() {
    const NAME: &str = "a_log_is_followed_from_another_process_through_rotation";
    if let Some(log) = std::env::var_os(FOLLOWED_LOG) {
        for line in LogReader::follow(log).unwrap().lines() {
            println!("SAYS {}", line.unwrap());
        }
        return;
    }
    let host = Host::new();
    let mut worker = host.builder().log_policy(small_files(10_000)).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut command = process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture", "--test-threads=1"]).env(FOLLOWED_LOG, log_of(&worker, job)).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = thread::spawn({
        let output = BufReader::new(child.stdout.take().unwrap());
        move || output.lines().filter_map(|line| line.unwrap().split_once("SAYS ").map(|(_, said)| said.to_owned())).collect::<Vec<_>>()
    });
    let expected: Vec<String> = (0..5000).map(|number| format!("line {number}")).collect();
    for some in expected.chunks(100) {
        echo(&mut worker, job, &mut stdin, &(some.join("\n") + "\n"));
    }
    drop(stdin);
    assert!(finish(&mut worker, job).output.rotations > 20);
    assert_eq!(said.join().unwrap(), expected);
    assert!(child.wait().unwrap().success());
}

#[test]
fn where_names_are_not_exchanged_in_one_step_a_log_is_opened_and_followed_all_the_same() {
    isolated("where_names_are_not_exchanged_in_one_step_a_log_is_opened_and_followed_all_the_same", || {
        let host = Host::new();
        let mut worker = host.builder().log_policy(small_files(10_000)).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let log = log_of(&worker, job);
        let expected = (0..8000).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
        let mut live = worker.stream(job).unwrap();
        let follower = follow_in_thread(&log, ReadOptions::new());
        // One after the other is opened while it is being rotated.
        let openers = thread::spawn({
            let (log, expected) = (log.clone(), expected.clone());
            move || {
                loop {
                    let heard = open_path(&log, &ReadOptions::new());
                    match &heard[..] {
                        [End(LogEnd::Unfinished)] => {}
                        [Heard::Text(text), End(LogEnd::Unfinished)] => assert!(expected.starts_with(text.as_str())),
                        [Heard::Text(text), COMPLETE] => return assert!(*text == expected),
                        other => panic!("{:?}", &other[1..]),
                    }
                }
            }
        });
        let feeder = thread::spawn({
            let expected = expected.clone();
            move || stdin.write_all(expected.as_bytes()).unwrap()
        });
        common::refuse_renameat2();
        assert!(finish(&mut worker, job).output.rotations > 20);
        feeder.join().unwrap();
        assert!(stream_now(&mut live) == [text(&expected), COMPLETE]);
        assert!(follower.recv_timeout(DEADLINE).expect("the log ends") == [text(&expected), COMPLETE]);
        openers.join().unwrap();
    });
}

#[test]
fn a_log_that_drops_its_middle_gives_its_beginning_a_counted_gap_and_its_end() {
    let host = Host::new();
    let policy = small_files(3).when_full(WhenFull::DropMiddle);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let expected: String = (0..2000).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
    let job = worker.start(cat().stdin_bytes(expected.as_bytes())).unwrap();
    let status = finish(&mut worker, job);
    for heard in [stream_now(&mut worker.stream(job).unwrap()), open_path(&log_of(&worker, job), &ReadOptions::new())] {
        let [Heard::Text(first), Gap(bytes, GapKind::Output), Heard::Text(last), COMPLETE] = &heard[..] else { panic!("{heard:?}") };
        assert!(expected.starts_with(first.as_str()) && expected.ends_with(last.as_str()));
        assert_eq!(*bytes as usize, expected.len() - first.len() - last.len());
        assert_eq!(*bytes, status.output.discarded_bytes);
    }
}

#[test]
fn a_stream_of_this_process_hears_of_a_truncation_and_still_ends() {
    for format in FORMATS {
        let host = Host::new();
        let mut worker = host.builder().log_format(format).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let mut stream = worker.stream(job).unwrap();
        echo(&mut worker, job, &mut stdin, "one\ntwo\n");
        assert_eq!(stream_now(&mut stream), [text("one\ntwo\n")]);
        File::options().write(true).open(log_of(&worker, job)).unwrap().set_len(0).unwrap();
        assert_eq!(stream_now(&mut stream), []);
        echo(&mut worker, job, &mut stdin, "three\n");
        assert_eq!(stream_now(&mut stream), [Truncated, text("three\n")]);
        assert_eq!(stream_now(&mut stream), []);
        echo(&mut worker, job, &mut stdin, "four\n");
        assert_eq!(stream_now(&mut stream), [text("four\n")]);
        drop(stdin);
        finish(&mut worker, job);
        assert_eq!(stream_now(&mut stream), [COMPLETE]);
    }
}

#[test]
fn a_stream_of_this_process_begins_where_it_is_asked_to() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    echo(&mut worker, job, &mut stdin, "one\ntwo\nthree\n");
    let mut streams = [LogPosition::End, LogPosition::LastLines(1), LogPosition::Since(Timestamp::from_unix_nanos(u64::MAX))]
        .map(|position| worker.stream_with(job, &from(position)).unwrap());
    echo(&mut worker, job, &mut stdin, "four\n");
    assert_eq!(streams.each_mut().map(stream_now), [vec![text("four\n")], vec![text("three\nfour\n")], vec![]]);
    let raw = worker.start(Command::new("true").log_format(LogFormat::Raw)).unwrap();
    assert!(matches!(worker.stream_with(raw, &from(LogPosition::Since(at(0)))), Err(StreamError::NoTimes { .. })));
}

#[test]
fn without_attributes_a_rotated_log_is_followed_by_the_table() {
    if common::not_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = process::Command::new("mount").args(["-t", "ramfs", "none"]).arg(directory.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        let _ = common::cannot_run("a ramfs cannot be mounted");
        return;
    }
    let host = Host::new();
    let outcome = std::panic::catch_unwind(|| {
        for format in FORMATS {
            let mut worker = host.builder().log_dir(directory.path()).log_format(format).log_policy(small_files(3)).build().unwrap();
            let (job, mut stdin) = start_cat(&mut worker, cat());
            let mut stream = worker.stream(job).unwrap();
            let mut follower = LogReader::follow(log_of(&worker, job)).unwrap();
            for round in 0..40 {
                let now: String =
                    (0..30).map(|line| format!("line {round} {line} of a job that writes much\n")).collect::<Vec<_>>().concat();
                echo(&mut worker, job, &mut stdin, &now);
                assert_eq!(stream_now(&mut stream), [text(&now)]);
                assert_eq!(hear_now(&mut follower), [text(&now)]);
                assert_eq!(follower.offset(), stream.offset());
            }
            let start = open_path(&log_of(&worker, job), &ReadOptions::new());
            assert!(matches!(&start[..], [Gap(_, GapKind::Files), Heard::Text(_), UNFINISHED]), "{start:?}");
            drop(stdin);
            assert!(finish(&mut worker, job).output.rotations > 3);
            assert_eq!((stream_now(&mut stream), hear_now(&mut follower)), (vec![COMPLETE], vec![COMPLETE]));
        }
    });
    let _ = process::Command::new("umount").arg("-l").arg(directory.path()).status();
    outcome.unwrap();
}

#[test]
fn on_a_disk_that_is_full_a_follower_reads_nothing_twice() {
    if common::not_root() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mounted = process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "none"]).arg(directory.path()).status();
    if !mounted.is_ok_and(|status| status.success()) {
        let _ = common::cannot_run("a tmpfs cannot be mounted");
        return;
    }
    let host = Host::new();
    let outcome = std::panic::catch_unwind(|| {
        let until = Instant::now() + Duration::from_secs(3);
        while Instant::now() < until {
            let mut worker = host.builder().log_dir(directory.path()).build().unwrap();
            let (job, mut stdin) = start_cat(&mut worker, cat());
            let log = log_of(&worker, job);
            let followers: Vec<_> = (0..4).map(|_| follow_numbers(LogReader::follow(&log).unwrap())).collect();
            let lines: String = (0..60_000).map(|number| format!("{number}\n")).collect::<Vec<_>>().concat();
            let feeder = thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
            let status = finish(&mut worker, job);
            feeder.join().unwrap();
            assert!(status.output.dropped_bytes > 0, "the disk is not full");
            for follower in followers {
                follower.join().unwrap();
            }
            fs::remove_file(log).unwrap();
        }
    });
    let _ = process::Command::new("umount").arg("-l").arg(directory.path()).status();
    outcome.unwrap();
}

/// Reads numbers, one a line, to the end of the log: each is greater than the one before. It asks without a pause, so that now and then it finds what is taken
/// back a moment later.
fn follow_numbers(mut reader: LogReader) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let (mut next, limit) = (0, Instant::now() + DEADLINE);
        loop {
            assert!(Instant::now() < limit, "the log does not end");
            match reader.try_next_record() {
                Poll::Ready(Ok(Some(record))) => {
                    let number: u32 = str::from_utf8(record.bytes).unwrap().trim_end().parse().unwrap();
                    assert!(number >= next, "line {number} comes again: {next} was to be next");
                    next = number + 1;
                }
                Poll::Ready(Ok(None)) => return,
                Poll::Ready(Err(error)) => drop(told(&error)),
                Poll::Pending => {}
            }
        }
    })
}
