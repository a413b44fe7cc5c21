//! Promise: what a job writes is in its log, byte for byte and line for line, in a format that others read too; and where the log cannot be written,
//! every byte that is not in it is counted, and the job lives.

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Host, finish, isolated, output_of, turn_until};
use iron_exec::{Builder, Capture, Command, Event, JobId, JobState, LogFormat, LogStream, OutputStream, ReadOptions, Status, Worker};
use regex::bytes::Regex;

const ENOENT: i32 = 2;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const ELOOP: i32 = 40;
const ESTALE: i32 = 116;
const ENXIO: i32 = 6;

const LINE_BYTES_MAX: usize = 16 << 10;

/// A time to flush that no test waits for: lines are written when they end.
const NEVER: Duration = Duration::from_hours(1);

// An independent reader of the CRI format.

/// The rule that fluent-bit publishes for this format.
static FLUENT_BIT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?-u)^(?<time>.+) (?<stream>stdout|stderr) (?<logtag>F|P) (?<message>.*)$").expect("the rule is an expression")
});

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    nanos: u64,
    stream: String,
    is_full: bool,
    message: Vec<u8>,
    /// Whether no job has written it.
    is_word: bool,
}

/// Reads a whole CRI log; every byte of it has to belong to a record. Those that tell of missing output are left out: see [`missing_in`].
fn parse_cri(log: &[u8]) -> Vec<Line> {
    let (missing, lines) = parse_all(log).into_iter().partition::<Vec<_>, _>(is_word_of_missing);
    assert_eq!(missing.len(), missing_in(log).len());
    lines
}

/// What the log says of missing output: how many bytes, and why.
fn missing_in(log: &[u8]) -> Vec<(u64, String)> {
    let words = parse_all(log).into_iter().filter(is_word_of_missing).map(|line| String::from_utf8(line.message).expect("a sentence"));
    let parts = words.map(|word| {
        let (number, reason) = word.trim_end().strip_prefix("[iron-exec: ")?.split_once(" bytes of output are missing here: ")?;
        Some((number.parse().ok()?, reason.strip_suffix(']')?.to_owned()))
    });
    parts.map(|parts| parts.expect("a sentence of its kind")).collect()
}

fn is_word_of_missing(line: &Line) -> bool {
    line.is_word
}

fn parse_all(log: &[u8]) -> Vec<Line> {
    assert!(log.is_empty() || log.ends_with(b"\n"), "the log ends in the middle of a record");
    let lines = log.split_inclusive(|byte| *byte == b'\n').map(|line| &line[..line.len() - 1]);
    let lines = lines.map(|line| {
        let parts = FLUENT_BIT.captures(line).unwrap_or_else(|| panic!("no record: {:?}", String::from_utf8_lossy(line)));
        let text = |name: &str| String::from_utf8(parts[name].to_vec()).expect("the header is ASCII");
        let (time, is_word) = match text("time").strip_suffix("+00:00") {
            Some(time) => (format!("{time}Z"), true),
            None => (text("time"), false),
        };
        let (nanos, is_full) = (nanos_of(&time), &text("logtag") == "F");
        Line { nanos, stream: text("stream"), is_full, message: parts["message"].to_vec(), is_word }
    });
    let lines: Vec<Line> = lines.collect();
    assert!(lines.is_sorted_by_key(|line| line.nanos), "times run backwards");
    lines
}

/// Nanoseconds since 1970 of `2026-11-23T03:26:58.123456789Z`, counted day by day.
fn nanos_of(text: &str) -> u64 {
    assert!(text.is_ascii() && text.len() == 30 && text.ends_with('Z') && &text[19..20] == ".", "{text:?} is no time");
    assert_eq!((&text[4..5], &text[7..8], &text[10..11], &text[13..14], &text[16..17]), ("-", "-", "T", ":", ":"), "{text:?}");
    let number = |range: std::ops::Range<usize>| text[range].parse::<u64>().expect("a number");
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let year = number(0..4);
    let months = [31, if is_leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let (month, day) = (number(5..7), number(8..10));
    assert!((1..=12).contains(&month) && (1..=months[month as usize - 1]).contains(&day), "{text:?} is not in the calendar");
    let days = (1970..year).map(|year| if is_leap(year) { 366 } else { 365 }).sum::<u64>()
        + months[..month as usize - 1].iter().sum::<u64>()
        + day
        - 1;
    let seconds = days * 86_400 + number(11..13) * 3600 + number(14..16) * 60 + number(17..19);
    seconds * 1_000_000_000 + number(20..29)
}

fn unix_nanos(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()).expect("before 2554")
}

/// The bytes that the records of one stream stand for.
fn bytes_of(lines: &[Line], stream: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        bytes.extend_from_slice(&line.message);
        bytes.extend_from_slice(if line.is_full { b"\n" } else { b"" });
    }
    bytes
}

/// The tag and message of each record.
fn tagged(lines: &[Line]) -> Vec<(&str, char, String)> {
    let text = |line: &Line| String::from_utf8_lossy(&line.message).into_owned();
    lines.iter().map(|line| (line.stream.as_str(), if line.is_full { 'F' } else { 'P' }, text(line))).collect()
}

fn cri_of(status: &Status) -> Vec<Line> {
    parse_cri(&fs::read(status.log.as_ref().expect("the job has a log")).expect("the log"))
}

fn sh(script: &str) -> Command {
    Command::shell(script)
}

/// Starts `cat` with a stdin that the test writes.
fn start_echo(worker: &mut Worker, command: Command) -> (JobId, std::io::PipeWriter) {
    let job = worker.start(command.stdin_piped()).expect("the job starts");
    let stdin = worker.take_stdin(job).expect("the job").expect("a piped stdin");
    (job, stdin)
}

/// Turns the loop until so many bytes of the job's stdout were read.
fn read_bytes(worker: &mut Worker, job: JobId, count: u64) -> Vec<Event> {
    turn_until(worker, |worker, _| worker.query(job).expect("the job").output.stdout_bytes >= count)
}

/// Pieces of random bytes, none of them a line feed.
struct LinePool {
    bytes: Vec<u8>,
    random: fastrand::Rng,
}

impl LinePool {
    fn new(seed: u64) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut bytes = vec![0; 3 << 20];
        random.fill(&mut bytes);
        bytes.retain(|byte| *byte != b'\n');
        Self { bytes, random }
    }

    fn push(&mut self, length: usize, out: &mut Vec<u8>) {
        let start = self.random.usize(..self.bytes.len() - length);
        out.extend_from_slice(&self.bytes[start..start + length]);
    }

    /// `length` bytes of lines of all sizes: none, a few bytes, about as long as a record takes, far longer. The last one has no end.
    fn lines(&mut self, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length + (2 << 20));
        while out.len() < length {
            let line = match self.random.u32(..100) {
                0..10 => 0,
                10..80 => self.random.usize(1..400),
                80..95 => self.random.usize(400..LINE_BYTES_MAX - 2),
                95..98 => self.random.usize(LINE_BYTES_MAX - 2..LINE_BYTES_MAX + 3),
                98 => self.random.usize(LINE_BYTES_MAX..10 * LINE_BYTES_MAX),
                _ => self.random.usize(..2 << 20),
            };
            self.push(line, &mut out);
            out.push(b'\n');
        }
        out.truncate(length);
        out.pop_if(|byte| *byte == b'\n');
        assert!(out.contains(&0) && std::str::from_utf8(&out).is_err());
        out
    }
}

/// A stream, and what it has to yield.
struct Expected<'a> {
    stream: LogStream,
    bytes: &'a [u8],
    at: usize,
    /// How often bytes came although the job was not at its end.
    early: usize,
    has_ended: bool,
}

impl<'a> Expected<'a> {
    fn new(stream: LogStream, bytes: &'a [u8]) -> Self {
        Self { stream, bytes, at: 0, early: 0, has_ended: false }
    }

    /// Reads what there is.
    fn read(&mut self, is_early: bool) {
        while let std::task::Poll::Ready(read) = self.stream.try_fill_buf() {
            let read = read.expect("the log reads");
            assert!(self.bytes[self.at..].starts_with(read), "byte {} and following differ", self.at);
            let count = read.len();
            self.at += count;
            self.stream.consume(count);
            if count == 0 {
                assert_eq!(self.at, self.bytes.len(), "the stream has ended early");
                self.has_ended = true;
                return;
            }
            self.early += usize::from(is_early);
        }
    }
}

/// Sends 26 MB of any bytes through a job, its log and a stream that reads while the job runs; then reads the log once more from outside.
fn any_bytes_come_through(seed: u64, format: LogFormat, capture: Capture) {
    const BYTES: usize = 26 << 20;
    let host = Host::new();
    let mut worker = host.worker();
    let mut pool = LinePool::new(seed);
    // A raw log of two pipes has no way to tell them apart.
    let is_two = format == LogFormat::Cri && capture == Capture::Split;
    let stdout = pool.lines(if is_two { BYTES / 2 } else { BYTES });
    let stderr = if is_two { pool.lines(BYTES / 2) } else { Vec::new() };
    let files = [host.log_dir.path().join("stdout"), host.log_dir.path().join("stderr")];
    fs::write(&files[0], &stdout).unwrap();
    fs::write(&files[1], &stderr).unwrap();

    let command = sh("cat \"$STDERR\" >&2 & cat \"$STDOUT\"; wait").env("STDOUT", &files[0]).env("STDERR", &files[1]);
    let job = worker.start(command.capture(capture).log_format(format)).unwrap();
    let mut readers = if is_two {
        let selected = |stream| worker.stream_with(job, &ReadOptions::new().only(stream)).unwrap();
        vec![Expected::new(selected(OutputStream::Stdout), &stdout), Expected::new(selected(OutputStream::Stderr), &stderr)]
    } else {
        vec![Expected::new(worker.stream(job).unwrap(), &stdout)]
    };
    turn_until(&mut worker, |worker, _| {
        let is_early = worker.query(job).unwrap().state == JobState::Running;
        for reader in &mut readers {
            reader.read(is_early);
        }
        readers.iter().all(|reader| reader.has_ended)
    });
    assert!(readers.iter().all(|reader| reader.early > 100), "the streams read while the job ran");

    let status = finish(&mut worker, job);
    assert!(status.success(), "{status:?}");
    assert_eq!((status.output.stdout_bytes, status.output.stderr_bytes), (stdout.len() as u64, stderr.len() as u64));
    assert_eq!(status.output.dropped_bytes, 0);
    if is_two {
        assert_eq!(output_of(&status).len(), stdout.len() + stderr.len());
    } else {
        assert!(output_of(&status) == stdout, "read from outside it is the same");
        let is_raw = fs::read(status.log.as_ref().unwrap()).unwrap() == stdout;
        assert_eq!(is_raw, format == LogFormat::Raw, "a raw log is the bytes themselves");
    }
}

#[test]
fn any_bytes_of_two_streams_come_through_a_cri_log() {
    any_bytes_come_through(1, LogFormat::Cri, Capture::Split);
}

#[test]
fn any_bytes_of_one_pipe_come_through_a_cri_log() {
    any_bytes_come_through(2, LogFormat::Cri, Capture::Merged);
}

#[test]
fn any_bytes_of_a_stream_come_through_a_raw_log() {
    any_bytes_come_through(3, LogFormat::Raw, Capture::Split);
}

#[test]
fn any_bytes_of_one_pipe_come_through_a_raw_log() {
    any_bytes_come_through(4, LogFormat::Raw, Capture::Merged);
}

#[test]
fn a_cri_log_is_read_by_the_rule_of_others_and_its_times_never_run_backwards() {
    let host = Host::new();
    let mut worker = host.worker();
    let stdout = LinePool::new(5).lines(300_000);
    let stderr = LinePool::new(6).lines(300_000);
    fs::write(host.log_dir.path().join("out"), &stdout).unwrap();
    fs::write(host.log_dir.path().join("err"), &stderr).unwrap();
    let before = SystemTime::now();
    let script = "echo; echo ' two  spaces '; printf '\\r\\n'; echo P x; cat err >&2 & cat out; wait";
    let job = worker.start(sh(script).cwd(host.log_dir.path())).unwrap();
    let status = finish(&mut worker, job);

    let lines = cri_of(&status);
    let head = tagged(&lines).into_iter().filter(|(stream, ..)| *stream == "stdout").take(4);
    assert!(head.eq(["", " two  spaces ", "\r", "P x"].map(|text| ("stdout", 'F', text.to_owned()))));
    assert!(bytes_of(&lines, "stdout") == [&b"\n two  spaces \n\r\nP x\n"[..], &stdout].concat());
    assert!(bytes_of(&lines, "stderr") == stderr);
    assert!(lines.iter().all(|line| line.message.len() <= LINE_BYTES_MAX));
    let range = unix_nanos(before)..=unix_nanos(SystemTime::now());
    assert!(lines.iter().all(|line| range.contains(&line.nanos)), "a record's time is that at which it was read");
}

/// `count` numbered lines of any length up to `LINE_BYTES_MAX`, each begun with `tag`.
fn numbered_lines(tag: char, count: usize, random: &mut fastrand::Rng) -> Vec<String> {
    let line = |number| {
        let length = if random.u32(..20) == 0 { random.usize(4000..LINE_BYTES_MAX) } else { random.usize(20..200) };
        format!("{tag} {number:08} {}", "x".repeat(length - 11))
    };
    (0..count).map(line).collect()
}

/// Two streams write at the same time, read in pieces that end anywhere.
fn lines_stay_whole(format: LogFormat, read_budget_bytes: usize) {
    let host = Host::new();
    let mut worker = host.builder().line_flush_time(NEVER).read_budget_bytes(read_budget_bytes).build().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let lines = ['o', 'e'].map(|tag| numbered_lines(tag, 1200, &mut random));
    for (name, lines) in ["out", "err"].iter().zip(&lines) {
        fs::write(host.log_dir.path().join(name), lines.join("\n") + "\n").unwrap();
    }
    let write = |name| format!("{{ head -c 50000 {name}; : > {name}-begun; tail -c +50001 {name}; }}");
    let script = format!("{} >&2 & {}; wait", write("err"), write("out"));
    let job = worker.start(sh(&script).cwd(host.log_dir.path()).log_format(format)).unwrap();
    common::wait_until("both have begun", || ["out", "err"].iter().all(|name| host.log_dir.path().join(format!("{name}-begun")).exists()));
    let status = finish(&mut worker, job);
    assert_eq!(status.output.lines, 2400);

    let log = fs::read(status.log.as_ref().unwrap()).unwrap();
    let logged: Vec<(bool, String)> = if format == LogFormat::Raw {
        String::from_utf8(log).unwrap().lines().map(|line| (line.starts_with('o'), line.to_owned())).collect()
    } else {
        let lines = parse_cri(&log);
        assert!(lines.iter().all(|line| line.is_full));
        lines.into_iter().map(|line| (line.stream == "stdout", String::from_utf8(line.message).unwrap())).collect()
    };
    for (is_stdout, lines) in [(true, &lines[0]), (false, &lines[1])] {
        let of_stream = logged.iter().filter(|(stdout, _)| *stdout == is_stdout).map(|(_, line)| line);
        assert!(of_stream.eq(lines), "every line of the stream is there, whole and in its place");
    }
    let changes = logged.windows(2).filter(|pair| pair[0].0 != pair[1].0).count();
    assert!(changes > 1, "the streams were written at the same time: {changes} changes");
}

#[test]
fn lines_of_two_streams_are_never_torn_or_mixed_in_a_cri_log() {
    lines_stay_whole(LogFormat::Cri, 256 << 10);
}

#[test]
fn lines_of_two_streams_are_never_torn_or_mixed_in_a_raw_log() {
    lines_stay_whole(LogFormat::Raw, 256 << 10);
}

#[test]
fn lines_of_two_streams_are_never_torn_or_mixed_when_little_is_read_at_a_time() {
    lines_stay_whole(LogFormat::Cri, 4096);
    lines_stay_whole(LogFormat::Raw, 4096);
}

#[test]
fn a_loud_stdout_does_not_silence_stderr() {
    let host = Host::new();
    let mut worker = host.builder().read_budget_bytes(4096).build().unwrap();
    let (job, mut stdin) = start_echo(&mut worker, sh("yes & read line; echo heard >&2; wait"));
    read_bytes(&mut worker, job, 100_000);
    stdin.write_all(b"\n").unwrap();
    let stdout_bytes = |worker: &Worker| worker.query(job).unwrap().output.stdout_bytes;
    let before = stdout_bytes(&worker);
    turn_until(&mut worker, |worker, _| {
        assert!(stdout_bytes(worker) - before < 100 << 20, "stderr was not read");
        worker.query(job).unwrap().output.stderr_bytes == 6
    });
}

#[test]
fn a_prompt_is_logged_within_the_flush_time_and_its_line_ends_later() {
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let host = Host::new();
        let flush_time = Duration::from_millis(200);
        let mut worker = host.builder().line_flush_time(flush_time).build().unwrap();
        let script = "echo first; printf 'name? '; read name; echo \"I am $name\"";
        let (job, mut stdin) = start_echo(&mut worker, sh(script).log_format(format));
        let log = worker.query(job).unwrap().log.unwrap();

        read_bytes(&mut worker, job, 12);
        let read = Instant::now();
        assert!(
            !fs::read(&log).unwrap().ends_with(b"name? ") && !fs::read(&log).unwrap().ends_with(b"name? \n"),
            "it is held back at first"
        );
        turn_until(&mut worker, |_, _| fs::read(&log).unwrap().trim_ascii_end().ends_with(b"name?"));
        let held = read.elapsed();
        assert!(held < flush_time + Duration::from_secs(5), "held for {held:?}");
        if format == LogFormat::Cri {
            assert_eq!(tagged(&cri_of(&worker.query(job).unwrap())), [("stdout", 'F', "first".into()), ("stdout", 'P', "name? ".into())]);
        }
        assert_eq!(worker.query(job).unwrap().state, JobState::Running, "the job waits for an answer");

        stdin.write_all(b"Bob\n").unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(output_of(&status), b"first\nname? I am Bob\n");
        assert_eq!(status.output.lines, 2);
        if format == LogFormat::Cri {
            assert_eq!(tagged(&cri_of(&status))[2..], [("stdout", 'F', "I am Bob".into())]);
        }
    }
}

#[test]
fn a_line_that_ends_within_the_flush_time_is_one_record() {
    let host = Host::new();
    let mut worker = host.builder().line_flush_time(NEVER).build().unwrap();
    let (job, mut stdin) = start_echo(&mut worker, Command::new("cat"));
    for (count, piece) in (1..).zip(["o", "n", "e", "\n"]) {
        stdin.write_all(piece.as_bytes()).unwrap();
        read_bytes(&mut worker, job, count);
    }
    drop(stdin);
    assert_eq!(tagged(&cri_of(&finish(&mut worker, job))), [("stdout", 'F', "one".into())]);
}

#[test]
fn a_slow_line_is_logged_each_time_the_flush_time_has_passed() {
    let host = Host::new();
    let mut worker = host.builder().line_flush_time(Duration::from_millis(20)).build().unwrap();
    let (job, mut stdin) = start_echo(&mut worker, Command::new("cat"));
    let log = worker.query(job).unwrap().log.unwrap();
    for (count, piece) in (1..).zip(["a", "b", "c"]) {
        stdin.write_all(piece.as_bytes()).unwrap();
        turn_until(&mut worker, |_, _| parse_cri(&fs::read(&log).unwrap()).len() == count);
    }
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    let status = finish(&mut worker, job);
    let tags = [('P', "a"), ('P', "b"), ('P', "c"), ('F', "")].map(|(tag, text)| ("stdout", tag, text.to_owned()));
    assert_eq!(tagged(&cri_of(&status)), tags);
    assert_eq!((output_of(&status), status.output.lines), (b"abc\n".to_vec(), 1));
}

#[test]
fn a_line_that_ended_in_time_is_one_record_also_when_the_loop_is_behind() {
    let host = Host::new();
    let flush_time = Duration::from_millis(30);
    let mut worker = host.builder().line_flush_time(flush_time).poll_events_max(1).build().unwrap();
    let flag = |number: usize| host.log_dir.path().join(format!("flag-{number}"));
    let command = |number: usize, script| sh(script).env("FLAG", flag(number));
    let (job, mut stdin) = start_echo(&mut worker, command(0, "printf 'one '; read line; echo line; : > \"$FLAG\"; read line"));
    let mut others: Vec<_> =
        (1..20).map(|number| start_echo(&mut worker, command(number, "read line; echo x; : > \"$FLAG\"; read line"))).collect();
    read_bytes(&mut worker, job, 4);
    let read = Instant::now();
    // Everybody writes, this job last, while the loop does something else for longer than the flush time.
    for (number, (_, stdin)) in (1..).zip(&mut others) {
        stdin.write_all(b"\n").unwrap();
        common::wait_until("the others have written", || flag(number).exists());
    }
    stdin.write_all(b"\n").unwrap();
    common::wait_until("the line has ended", || flag(0).exists() && read.elapsed() > flush_time);
    read_bytes(&mut worker, job, 9);
    drop(stdin);
    assert_eq!(tagged(&cri_of(&finish(&mut worker, job))), [("stdout", 'F', "one line".into())]);
}

#[test]
fn a_last_line_without_an_end_is_kept_as_it_is() {
    let host = Host::new();
    let mut worker = host.builder().line_flush_time(NEVER).build().unwrap();
    for (script, out, err) in
        [("printf 'a\\nb'", "a\nb", ""), ("printf x; printf y >&2", "x", "y"), ("printf '\\n\\n'", "\n\n", ""), ("true", "", "")]
    {
        let job = worker.start(sh(script)).unwrap();
        let status = finish(&mut worker, job);
        let lines = cri_of(&status);
        assert_eq!((bytes_of(&lines, "stdout"), bytes_of(&lines, "stderr")), (out.into(), err.into()), "{script}");
        assert_eq!(
            lines.iter().filter(|line| !line.is_full).count(),
            usize::from(out.ends_with(['b', 'x'])) + usize::from(!err.is_empty())
        );

        let job = worker.start(sh(script).log_format(LogFormat::Raw)).unwrap();
        assert_eq!(output_of(&finish(&mut worker, job)).len(), out.len() + err.len(), "{script}");
    }
}

#[test]
fn a_line_as_long_as_allowed_is_one_record_and_a_longer_one_is_cut() {
    let host = Host::new();
    let mut worker = host.builder().line_bytes_max(100).line_flush_time(NEVER).build().unwrap();
    let input: Vec<u8> = [99, 100, 101, 200, 201].iter().flat_map(|length| [&b"x".repeat(*length)[..], b"\n"].concat()).collect();
    let job = worker.start(Command::new("cat").stdin_bytes(input.clone())).unwrap();
    let status = finish(&mut worker, job);
    let pieces: Vec<_> = cri_of(&status).iter().map(|line| (line.message.len(), line.is_full)).collect();
    assert_eq!(
        pieces,
        [(99, true), (100, true), (100, false), (1, true), (100, false), (100, true), (100, false), (100, false), (1, true)]
    );
    assert_eq!((output_of(&status), status.output.lines), (input, 5));
}

#[test]
fn a_line_may_be_as_long_as_the_largest_that_can_be_asked_for() {
    let host = Host::new();
    let mut worker = host.builder().line_bytes_max(usize::MAX).line_flush_time(NEVER).build().unwrap();
    let line = [&b"x".repeat(17 << 20)[..], b"\n"].concat();
    let file = host.log_dir.path().join("line");
    fs::write(&file, &line).unwrap();
    let job = worker.start(Command::new("cat").arg(&file)).unwrap();
    let status = finish(&mut worker, job);
    assert!(output_of(&status) == line, "what is written can be read");
}

#[test]
fn one_pipe_keeps_the_order_of_writes_to_both_streams() {
    let host = Host::new();
    let mut worker = host.worker();
    let expected: Vec<u8> = (0..500).flat_map(|number| format!("out {number}\nerr {number}\n").into_bytes()).collect();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let script = "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
        let job = worker.start(sh(script).capture(Capture::Merged).log_format(format)).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(output_of(&status), expected);
        assert_eq!((status.output.stdout_bytes, status.output.stderr_bytes, status.output.lines), (expected.len() as u64, 0, 1000));
        match format {
            LogFormat::Raw => assert_eq!(fs::read(status.log.unwrap()).unwrap(), expected),
            _ => assert_eq!(bytes_of(&cri_of(&status), "stdout"), expected),
        }
    }
}

#[test]
fn a_raw_log_holds_the_jobs_bytes_and_nothing_else() {
    let host = Host::new();
    let mut worker = host.builder().log_format(LogFormat::Raw).build().unwrap();
    let bytes = b"\0\xff\xfe no end\n\n2026-11-23T03:26:58.123456789Z stdout F not a record\nlast".to_vec();
    let job = worker.start(Command::new("cat").stdin_bytes(bytes.clone())).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!(fs::read(status.log.as_ref().unwrap()).unwrap(), bytes);
    assert_eq!(output_of(&status), bytes);
}

#[test]
fn the_status_counts_bytes_and_lines() {
    let host = Host::new();
    let mut worker = host.worker();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        for (capture, bytes) in [(Capture::Split, (12, 7)), (Capture::Merged, (19, 0))] {
            let script = "echo one; printf 'two\\n\\nend'; printf 'err\\nend' >&2";
            let job = worker.start(sh(script).capture(capture).log_format(format)).unwrap();
            let output = finish(&mut worker, job).output;
            assert_eq!((output.stdout_bytes, output.stderr_bytes), bytes, "{format:?} {capture:?}");
            assert_eq!((output.lines, output.dropped_bytes, output.cut_off), (4, 0, false), "{format:?} {capture:?}");
        }
    }
}

#[test]
fn a_log_is_named_after_its_job_and_can_be_written_only_while_that_runs() {
    let host = Host::new();
    let mut worker = host.worker();
    for (command, name) in [
        (Command::new("/bin/cat"), "cat"),
        (Command::new("cat").name("a b/../../.c\n"), "_c_"),
        (Command::new("cat").name("nightly"), "nightly"),
    ] {
        let (job, stdin) = start_echo(&mut worker, command);
        let log = host.log_dir.path().join(format!("{name}_{job}.log"));
        assert_eq!(worker.query(job).unwrap().log.as_ref(), Some(&log));
        let meta = fs::symlink_metadata(&log).unwrap();
        assert!(meta.is_file() && meta.nlink() == 1);
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        drop(stdin);
        assert_eq!(finish(&mut worker, job).log.as_ref(), Some(&log));
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o400, "sealed");
    }
    assert_eq!(host.logs().len(), 3);
}

#[test]
fn without_a_log_directory_the_logs_are_in_tmp() {
    isolated("without_a_log_directory_the_logs_are_in_tmp", || {
        let mut worker = Worker::new().unwrap();
        let job = worker.start(sh("echo here")).unwrap();
        let status = finish(&mut worker, job);
        let log = status.log.clone().unwrap();
        let output = output_of(&status);
        fs::remove_file(&log).unwrap();
        assert_eq!(log, PathBuf::from(format!("/tmp/sh_{job}.log")));
        assert_eq!(output, b"here\n");
    });
}

#[test]
fn a_job_whose_output_is_not_logged_has_no_log() {
    let host = Host::new();
    let mut worker = host.worker();
    for (capture, script) in [(Capture::Inherit, "true"), (Capture::Piped, "echo x"), (Capture::Discard, "echo x; echo y >&2")] {
        let job = worker.start(sh(script).capture(capture)).unwrap();
        let status = finish(&mut worker, job);
        assert!(status.success(), "{capture:?}");
        assert_eq!((status.log, status.output), (None, iron_exec::OutputCount::default()), "{capture:?}");
        assert_eq!(host.logs(), Vec::<String>::new(), "{capture:?}");
    }
}

// Logs that cannot be written.

/// Writes `line` to the job and turns the loop until all of it has been read; returns the events on the way.
fn echo(worker: &mut Worker, job: JobId, stdin: &mut impl Write, line: &[u8]) -> Vec<Event> {
    let read = worker.query(job).unwrap().output.stdout_bytes;
    stdin.write_all(line).unwrap();
    read_bytes(worker, job, read + line.len() as u64)
}

/// A turn that does not wait, for events that were not fetched yet.
fn fetch(worker: &mut Worker, seen: &mut Vec<Event>) {
    let mut events = iron_exec::Events::new();
    worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    seen.extend(events.drain());
}

fn faults(events: &[Event]) -> Vec<i32> {
    events.iter().filter_map(|event| if let Event::LogFault { errno, .. } = event { Some(*errno) } else { None }).collect()
}

fn resumptions(events: &[Event]) -> Vec<u64> {
    let resumed = |event: &Event| if let Event::LogResumed { dropped_bytes, .. } = event { Some(*dropped_bytes) } else { None };
    events.iter().filter_map(resumed).collect()
}

/// A log in `builder`'s directory has no room (`set_full(log, true)`) and has it again: what was dropped is counted to the byte and told once each time.
fn full_logs_cost_counted_bytes(builder: Builder, format: LogFormat, errno: i32, mut set_full: impl FnMut(&Path, bool)) {
    let mut worker = builder.line_flush_time(NEVER).log_format(format).build().unwrap();
    let (job, mut stdin) = start_echo(&mut worker, sh("cat; exit 7"));
    let log = worker.query(job).unwrap().log.unwrap();
    let line = |byte: u8| [&[byte].repeat(9000)[..], b"\n"].concat();
    let dropped = |worker: &Worker| worker.query(job).unwrap().output.dropped_bytes;
    let mut kept = Vec::new();
    let mut seen = Vec::new();

    for (letter, full) in [(b'a', false), (b'b', true), (b'c', true), (b'd', false), (b'e', true), (b'f', true), (b'g', false)] {
        set_full(&log, full);
        let before = dropped(&worker);
        seen.extend(echo(&mut worker, job, &mut stdin, &line(letter)));
        fetch(&mut worker, &mut seen);
        assert_eq!(dropped(&worker) - before, if full { 9001 } else { 0 }, "line {}", char::from(letter));
        kept.extend((!full).then_some(letter));
        let text = fs::read(&log).unwrap();
        let lines: Vec<u8> = match format {
            LogFormat::Raw => {
                text.split_inclusive(|byte| *byte == b'\n').inspect(|line| assert_eq!(line.len(), 9001)).map(|line| line[0]).collect()
            }
            _ => parse_cri(&text)
                .iter()
                .inspect(|line| assert!(line.is_full && line.message.len() == 9000))
                .map(|line| line.message[0])
                .collect(),
        };
        assert_eq!(lines, kept, "the file ends in whole records");
    }
    assert_eq!(faults(&seen), [errno, errno], "told once for each run of failures");
    assert_eq!(resumptions(&seen), [2 * 9001, 4 * 9001], "so is that it works again");
    if format == LogFormat::Cri {
        let reason = if errno == ENOSPC { "no space left on device" } else { "file too large" };
        let missing = vec![(2 * 9001, reason.to_owned()); 2];
        assert_eq!(missing_in(&fs::read(&log).unwrap()), missing, "the log says what is missing, where it is missing");
    }
    drop(stdin);
    let status = finish(&mut worker, job);
    assert_eq!(
        (status.exit_code, status.output.dropped_bytes, status.output.stdout_bytes, status.output.lines),
        (7, 4 * 9001, 7 * 9001, 7)
    );
    assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o400);
    assert_eq!(output_of(&status).len(), 3 * 9001);
}

#[test]
fn a_full_disk_costs_counted_bytes_and_the_log_goes_on_when_there_is_room() {
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let Some(disk) = common::SmallDisk::mount() else { return };
        let host = Host::new();
        let builder = host.builder().log_dir(disk.path());
        full_logs_cost_counted_bytes(builder, format, ENOSPC, |_, is_full| disk.set_full(is_full));
    }
}

#[test]
fn a_record_that_does_not_fit_takes_nothing_of_others_with_it() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let mut worker = host.builder().log_dir(disk.path()).line_flush_time(NEVER).build().unwrap();
    let (job, mut stdin) = start_echo(&mut worker, Command::new("cat"));
    let log = worker.query(job).unwrap().log.unwrap();
    echo(&mut worker, job, &mut stdin, b"one\n");
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(b"a line of a stranger\n").unwrap();
    echo(&mut worker, job, &mut stdin, b"two\n");
    let before = fs::read(&log).unwrap();
    disk.set_full(true);
    // The last page has room for some of it.
    echo(&mut worker, job, &mut stdin, &[&b"x".repeat(12_000)[..], b"\n"].concat());
    assert_eq!(worker.query(job).unwrap().output.dropped_bytes, 12_001);
    assert_eq!(String::from_utf8(fs::read(&log).unwrap()), String::from_utf8(before));
}

#[test]
fn a_limit_on_file_sizes_costs_counted_bytes_and_the_log_goes_on_when_it_is_raised() {
    const NAME: &str = "a_limit_on_file_sizes_costs_counted_bytes_and_the_log_goes_on_when_it_is_raised";
    isolated_ignoring_sigxfsz(NAME, || {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let maximum = getrlimit(Resource::Fsize).maximum;
        for format in [LogFormat::Cri, LogFormat::Raw] {
            let host = Host::new();
            full_logs_cost_counted_bytes(host.builder(), format, EFBIG, |log, is_full| {
                // Half of a line would fit.
                let current = if is_full { Some(fs::metadata(log).unwrap().len() + 4500) } else { maximum };
                setrlimit(Resource::Fsize, Rlimit { current, maximum }).unwrap();
            });
        }
    });
}

/// As `common::isolated`, in a process that ignores SIGXFSZ, as a host with such a limit has to.
fn isolated_ignoring_sigxfsz(name: &str, body: impl FnOnce()) {
    const ISOLATED: &str = "IRON_EXEC_TEST_NO_SIGXFSZ";
    if std::env::var_os(ISOLATED).is_some() {
        return body();
    }
    let mut command = process::Command::new("/bin/sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(ISOLATED, "1").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_job_that_writes_much_to_a_full_disk_lives_and_every_byte_is_logged_or_counted() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let mut worker = host.builder().log_dir(disk.path()).build().unwrap();
    let job =
        worker.start(sh("i=0; while [ $i -lt 3000 ]; do echo line $i of some length; echo error >&2; i=$((i+1)); done; exit 3")).unwrap();
    let mut stream = worker.stream(job).unwrap();
    let (mut streamed, mut told) = (0, 0);
    let mut read = || {
        while let std::task::Poll::Ready(bytes) = stream.try_fill_buf() {
            let count = match bytes {
                Ok(bytes) => bytes.len(),
                Err(iron_exec::StreamError::Gap { bytes, kind: iron_exec::GapKind::Output, .. }) => {
                    told += bytes;
                    continue;
                }
                Err(error) => panic!("{error:?}"),
            };
            streamed += count as u64;
            stream.consume(count);
            if count == 0 {
                return true;
            }
        }
        false
    };
    let events = turn_until(&mut worker, |_, _| read());
    let status = finish(&mut worker, job);
    let output = status.output;
    assert_eq!((status.exit_code, output.lines), (3, 6000));
    assert!(output.dropped_bytes > 0 && !faults(&events).is_empty() && faults(&events).iter().all(|errno| *errno == ENOSPC));
    let lines = cri_of(&status);
    let logged = (bytes_of(&lines, "stdout").len() + bytes_of(&lines, "stderr").len()) as u64;
    assert_eq!(logged + output.dropped_bytes, output.stdout_bytes + output.stderr_bytes);
    assert_eq!(streamed, logged, "a stream yields what is in the log");
    // What was dropped last is not said where there is no room even for that.
    let said: u64 = missing_in(&fs::read(status.log.as_ref().unwrap()).unwrap()).iter().map(|(bytes, _)| bytes).sum();
    assert!(told == said && said <= output.dropped_bytes, "and says what is not: {told}, {said} of {}", output.dropped_bytes);
    assert!(lines.iter().all(|line| line.message == b"error" || line.message.ends_with(b" of some length")));
}

// Logs that are not kept open.

/// How many logs this process has open.
fn open_logs() -> usize {
    common::open_fds().values().filter(|target| target.contains(".log")).count()
}

#[test]
fn idle_jobs_above_the_limit_of_open_logs_cost_three_descriptors_each() {
    isolated("idle_jobs_above_the_limit_of_open_logs_cost_three_descriptors_each", || {
        let host = Host::new();
        let mut worker = host.builder().open_logs_max(5).build().unwrap();
        let fds = || common::open_fds().len();
        let before = fds();
        let jobs: Vec<JobId> = (0..50).map(|_| worker.start(Command::new("sleep").arg("1000")).unwrap()).collect();
        let mut seen = Vec::new();
        fetch(&mut worker, &mut seen);
        assert!(fds() - before <= 50 * 3 + 5, "{} descriptors for 50 jobs", fds() - before);
        let logs = open_logs();
        assert!(logs <= 5, "{logs} logs are open");
        for job in jobs {
            worker.stop(job).unwrap();
            finish(&mut worker, job);
        }
        assert_eq!(fds(), before);
    });
}

#[test]
fn many_jobs_that_write_by_turns_share_a_few_open_logs() {
    isolated("many_jobs_that_write_by_turns_share_a_few_open_logs", || {
        for (open_logs_max, format) in [(0, LogFormat::Cri), (1, LogFormat::Raw), (3, LogFormat::Cri)] {
            let host = Host::new();
            let mut worker = host.builder().open_logs_max(open_logs_max).log_format(format).build().unwrap();
            let mut jobs: Vec<_> = (0..12).map(|_| start_echo(&mut worker, Command::new("cat"))).collect();
            let mut random = fastrand::Rng::with_seed(8);
            let mut written = vec![Vec::new(); jobs.len()];
            for round in 0..200 {
                let index = random.usize(..jobs.len());
                let (job, stdin) = &mut jobs[index];
                let line = format!("round {round}\n");
                written[index].extend_from_slice(line.as_bytes());
                echo(&mut worker, *job, stdin, line.as_bytes());
                let open = open_logs();
                assert!(open <= open_logs_max, "{open} of {open_logs_max} logs are open");
            }
            for ((job, stdin), written) in jobs.into_iter().zip(written) {
                drop(stdin);
                let status = finish(&mut worker, job);
                assert_eq!((output_of(&status), status.output.dropped_bytes), (written, 0));
                assert_eq!(fs::metadata(status.log.unwrap()).unwrap().permissions().mode() & 0o7777, 0o400);
            }
        }
    });
}

#[test]
fn a_place_among_the_open_logs_goes_to_a_job_that_writes() {
    isolated("a_place_among_the_open_logs_goes_to_a_job_that_writes", || {
        let host = Host::new();
        let mut worker = host.builder().open_logs_max(2).build().unwrap();
        let idle: Vec<_> = (0..4).map(|_| start_echo(&mut worker, Command::new("cat"))).collect();
        let (job, mut stdin) = start_echo(&mut worker, Command::new("cat").name("loud"));
        let is_open = || {
            let links = fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
            links.into_iter().any(|target| target.file_name().is_some_and(|name| name.to_string_lossy().starts_with("loud_")))
        };
        for _ in 0..4 {
            echo(&mut worker, job, &mut stdin, b"line\n");
        }
        assert!(is_open(), "the log of the job that writes is kept open");
        drop((idle, stdin));
        finish(&mut worker, job);
    });
}

#[test]
fn a_worker_remembers_nothing_of_logs_that_are_closed() {
    let host = Host::new();
    let mut worker = host.builder().read_budget_bytes(4096).build().unwrap();
    let mut run = |count| {
        for _ in 0..count {
            let job = worker.start(Command::new("true")).unwrap();
            finish(&mut worker, job);
            worker.forget(job).unwrap();
        }
        // The worker shows all that it holds.
        format!("{worker:?}").matches("generation").count()
    };
    let early = run(100);
    let late = run(200);
    assert!(late < early + 100, "{early} keys are remembered after 100 jobs, {late} after 300");
}

/// What somebody puts where a job's log was.
#[derive(Clone, Copy, Debug)]
enum Stranger {
    Nothing,
    File,
    Link,
    Fifo,
}

#[test]
fn a_log_that_somebody_replaced_while_it_was_closed_is_not_written_into() {
    for (stranger, errno) in [(Stranger::Nothing, ENOENT), (Stranger::File, ESTALE), (Stranger::Link, ELOOP), (Stranger::Fifo, ENXIO)] {
        let host = Host::new();
        let mut worker = host.builder().open_logs_max(0).build().unwrap();
        let (job, mut stdin) = start_echo(&mut worker, Command::new("cat"));
        let log = worker.query(job).unwrap().log.unwrap();
        let (aside, target) = (host.log_dir.path().join("aside"), host.log_dir.path().join("target"));
        let mut seen = echo(&mut worker, job, &mut stdin, b"before\n");

        fs::rename(&log, &aside).unwrap();
        fs::write(&target, "a stranger's").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o666)).unwrap();
        match stranger {
            Stranger::Nothing => {}
            Stranger::File => fs::hard_link(&target, &log).unwrap(),
            Stranger::Link => std::os::unix::fs::symlink(&target, &log).unwrap(),
            Stranger::Fifo => assert!(process::Command::new("mkfifo").arg(&log).status().unwrap().success()),
        }
        seen.extend(echo(&mut worker, job, &mut stdin, b"dropped\n"));
        seen.extend(echo(&mut worker, job, &mut stdin, b"dropped too\n"));
        fetch(&mut worker, &mut seen);
        assert_eq!(faults(&seen), [errno], "{stranger:?}");
        assert_eq!(worker.query(job).unwrap().output.dropped_bytes, 20, "{stranger:?}");

        if !matches!(stranger, Stranger::Nothing) {
            fs::remove_file(&log).unwrap();
        }
        fs::rename(&aside, &log).unwrap();
        echo(&mut worker, job, &mut stdin, b"after\n");
        fs::rename(&log, &aside).unwrap();
        fs::hard_link(&target, &log).unwrap();
        drop(stdin);
        let status = finish(&mut worker, job);
        assert!(status.success(), "{stranger:?}");
        let lines = parse_cri(&fs::read(&aside).unwrap());
        assert_eq!(bytes_of(&lines, "stdout"), b"before\nafter\n", "{stranger:?}");
        let meta = fs::metadata(&target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"a stranger's", "{stranger:?}");
        assert_eq!(meta.permissions().mode() & 0o777, 0o666, "a stranger's file is not sealed");
        assert!(!meta.file_type().is_fifo());
    }
}

#[test]
fn a_log_that_was_deleted_while_open_costs_the_job_nothing() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_echo(&mut worker, Command::new("cat"));
    let mut stream = worker.stream(job).unwrap();
    fs::remove_file(worker.query(job).unwrap().log.unwrap()).unwrap();
    echo(&mut worker, job, &mut stdin, b"still read\n");
    drop(stdin);
    let status = finish(&mut worker, job);
    assert!(status.success());
    let std::task::Poll::Ready(Ok(bytes)) = stream.try_fill_buf() else { panic!("the stream has its own descriptor") };
    assert_eq!(bytes, b"still read\n");
    assert!(matches!(worker.stream(job), Err(iron_exec::StreamError::Io { .. })));
}
