//! Promise: a stream yields exactly what its job writes, while that runs and after, to any number of readers, each at its own pace; it says when
//! there is more, and it always ends.

mod common;

use std::fs;
use std::io::{BufRead, PipeWriter, Read, Write};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{DEADLINE, Host, finish, not_root, turn_until, wait_until};
use iron_exec::{
    Capture, Command, Event, Events, GapKind, JobId, JobState, LogFormat, LogStream, OutputStream, ReadOptions, Record, StreamError,
    StreamSelect, Timestamp, Worker,
};

/// A time to flush that no test waits for: lines are written when they end.
const NEVER: Duration = Duration::from_hours(1);

fn start_cat(worker: &mut Worker, command: Command) -> (JobId, PipeWriter) {
    let job = worker.start(command.stdin_piped()).expect("the job starts");
    (job, worker.take_stdin(job).expect("the job").expect("a piped stdin"))
}

fn cat() -> Command {
    Command::new("cat")
}

/// Sends a line through the job and turns the loop until it is in the log; returns the events on the way.
fn echo(worker: &mut Worker, job: JobId, stdin: &mut PipeWriter, line: &[u8]) -> Vec<Event> {
    let lines = worker.query(job).unwrap().output.lines;
    stdin.write_all(line).unwrap();
    let mut events = turn_until(worker, |worker, _| worker.query(job).unwrap().output.lines > lines);
    events.extend(fetch(worker));
    events
}

/// The events that were not fetched yet.
fn fetch(worker: &mut Worker) -> Vec<Event> {
    let mut events = Events::new();
    worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    events.drain().collect()
}

fn log_readies(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::LogReady { .. })).count()
}

/// What a stream has now.
#[derive(Debug, Default, PartialEq, Eq)]
struct Now {
    bytes: Vec<u8>,
    has_ended: bool,
}

fn read_now(stream: &mut LogStream) -> Now {
    let mut now = Now::default();
    while let Poll::Ready(read) = stream.try_fill_buf() {
        let read = read.expect("the log reads");
        let count = read.len();
        now.bytes.extend_from_slice(read);
        stream.consume(count);
        if count == 0 {
            now.has_ended = true;
            break;
        }
    }
    now
}

fn more(bytes: &[u8]) -> Now {
    Now { bytes: bytes.to_vec(), has_ended: false }
}

fn last(bytes: &[u8]) -> Now {
    Now { bytes: bytes.to_vec(), has_ended: true }
}

/// `line 0` and the following.
fn numbered_lines(count: usize) -> Vec<u8> {
    (0..count).flat_map(|number| format!("line {number}\n").into_bytes()).collect()
}

/// A record that owns its bytes.
type Owned = (Option<Timestamp>, Option<OutputStream>, Vec<u8>);

fn owned(record: Record<'_>) -> Owned {
    (record.time, record.stream, record.bytes.to_vec())
}

/// All records to the end of a stream that has ended.
fn records(stream: &mut LogStream) -> Vec<Owned> {
    let mut records = Vec::new();
    loop {
        match stream.try_next_record() {
            Poll::Ready(Ok(Some(record))) => records.push(owned(record)),
            Poll::Ready(Ok(None)) => return records,
            other => panic!("{other:?}"),
        }
    }
}

/// Counts how often it was woken.
#[derive(Debug, Default)]
struct Count(AtomicUsize);

impl Count {
    fn so_far(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_stream_yields_each_line_as_it_comes_and_then_the_end() {
    for (format, capture) in [
        (LogFormat::Cri, Capture::Split),
        (LogFormat::Cri, Capture::Merged),
        (LogFormat::Raw, Capture::Split),
        (LogFormat::Raw, Capture::Merged),
    ] {
        let host = Host::new();
        let mut worker = host.worker();
        let (job, mut stdin) = start_cat(&mut worker, cat().log_format(format).capture(capture));
        let mut stream = worker.stream(job).unwrap();
        assert_eq!(stream.path(), worker.query(job).unwrap().log.unwrap());
        assert_eq!(read_now(&mut stream), more(b""));
        for line in [&b"one\n"[..], b"\n", b"\0\xff\xfe\r\n", &[&b"x".repeat(100_000)[..], b"\n"].concat()] {
            echo(&mut worker, job, &mut stdin, line);
            assert_eq!(read_now(&mut stream), more(line));
        }
        stdin.write_all(b"no end").unwrap();
        drop(stdin);
        finish(&mut worker, job);
        assert_eq!(read_now(&mut stream), last(b"no end"));
        assert_eq!(read_now(&mut stream), last(b""), "the end stays the end");
    }
}

#[test]
fn one_stream_both_or_the_records_of_a_log_can_be_read() {
    let host = Host::new();
    let mut worker = host.builder().line_bytes_max(8).line_flush_time(NEVER).build().unwrap();
    let before = SystemTime::now();
    let job = worker.start(Command::shell("echo out; printf 'a longer line\\nend'; echo err >&2; echo >&2")).unwrap();
    let mut early = worker.stream(job).unwrap();
    finish(&mut worker, job);

    let select = |select| worker.stream_with(job, &ReadOptions::new().select(select)).unwrap();
    let stdout = &b"out\na longer line\nend"[..];
    assert_eq!(read_now(&mut select(StreamSelect::Only(OutputStream::Stdout))), last(stdout));
    assert_eq!(read_now(&mut select(StreamSelect::Only(OutputStream::Stderr))), last(b"err\n\n"));
    let both = read_now(&mut select(StreamSelect::Both));
    assert_eq!(both.bytes.len(), stdout.len() + 5);

    let all = records(&mut early);
    assert_eq!(all.iter().flat_map(|(.., bytes)| bytes.clone()).collect::<Vec<u8>>(), both.bytes, "records are the bytes, cut");
    let of = |stream| all.iter().filter(|record| record.1 == Some(stream)).map(|(.., bytes)| bytes.as_slice()).collect::<Vec<_>>();
    assert_eq!(of(OutputStream::Stdout), [&b"out\n"[..], b"a longer", b" line\n", b"end"]);
    assert_eq!(of(OutputStream::Stderr), [b"err\n", &b"\n"[..]]);
    let times: Vec<SystemTime> = all.iter().map(|(time, ..)| time.expect("a record has a time").into()).collect();
    assert!(times.is_sorted() && times.iter().all(|time| (before..=SystemTime::now()).contains(time)));
    assert_eq!(records(&mut select(StreamSelect::Only(OutputStream::Stderr))).len(), 2);
}

#[test]
fn what_a_log_does_not_say_a_record_does_not_either() {
    let host = Host::new();
    let mut worker = host.builder().log_format(LogFormat::Raw).build().unwrap();
    for (capture, stream) in [(Capture::Split, None), (Capture::Merged, Some(OutputStream::Stdout))] {
        let job = worker.start(Command::shell("echo out; echo err >&2").capture(capture)).unwrap();
        finish(&mut worker, job);
        let records = records(&mut worker.stream(job).unwrap());
        assert!(records.iter().all(|record| (record.0, record.1) == (None, stream)), "{records:?}");
        assert_eq!(records.iter().map(|record| record.2.len()).sum::<usize>(), 8);
    }
}

#[test]
fn one_stream_of_a_single_pipe_is_everything_and_the_other_nothing() {
    let host = Host::new();
    let mut worker = host.worker();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let job = worker.start(Command::shell("echo out; echo err >&2").capture(Capture::Merged).log_format(format)).unwrap();
        let mut early = worker.stream_with(job, &ReadOptions::new().only(OutputStream::Stderr)).unwrap();
        finish(&mut worker, job);
        let select = |stream| worker.stream_with(job, &ReadOptions::new().only(stream)).unwrap();
        assert_eq!(read_now(&mut select(OutputStream::Stdout)), last(b"out\nerr\n"));
        assert_eq!(read_now(&mut early), last(b""));
    }
}

#[test]
fn a_stream_that_cannot_be_had_is_refused_with_the_reason() {
    let host = Host::new();
    let mut worker = host.worker();
    for capture in [Capture::Inherit, Capture::Piped, Capture::Discard] {
        let job = worker.start(Command::new("true").capture(capture)).unwrap();
        assert!(matches!(worker.stream(job), Err(StreamError::NotLogged { job: named }) if named == job));
        assert!(matches!(worker.follow(job), Err(StreamError::NotLogged { .. })));
    }

    let job = worker.start(Command::new("true").log_format(LogFormat::Raw)).unwrap();
    for stream in [OutputStream::Stdout, OutputStream::Stderr] {
        let refused = worker.stream_with(job, &ReadOptions::new().only(stream));
        assert!(matches!(refused, Err(StreamError::NotSeparable { stream: named }) if named == stream));
    }

    finish(&mut worker, job);
    worker.forget(job).unwrap();
    assert!(matches!(worker.stream(job), Err(StreamError::NotFound { job: named }) if named == job));
    let mut other = host.worker();
    let job = other.start(Command::new("true")).unwrap();
    assert!(matches!(worker.stream(job), Err(StreamError::NotFound { .. })));

    fs::remove_file(other.query(job).unwrap().log.unwrap()).unwrap();
    let gone = other.stream(job).unwrap_err();
    assert!(gone.to_string().contains(&job.to_string()), "it names the file: {gone}");
    let source = std::error::Error::source(&gone).unwrap().downcast_ref::<std::io::Error>().unwrap();
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
}

// When to read again.

#[test]
fn log_ready_comes_only_to_one_who_was_told_not_yet_and_once() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut events = echo(&mut worker, job, &mut stdin, b"nobody reads\n");
    let mut stream = worker.stream(job).unwrap();
    events.extend(echo(&mut worker, job, &mut stdin, b"a reader that has asked for nothing\n"));
    let Poll::Ready(Ok(bytes)) = stream.try_fill_buf() else { panic!("there are bytes") };
    let count = bytes.len();
    stream.consume(count);
    events.extend(echo(&mut worker, job, &mut stdin, b"a reader that got what it asked for\n"));
    assert_eq!(log_readies(&events), 0);

    assert!(!read_now(&mut stream).has_ended);
    let events = echo(&mut worker, job, &mut stdin, b"more\n");
    assert_eq!(log_readies(&events), 1);
    let events = echo(&mut worker, job, &mut stdin, b"still more\n");
    assert_eq!(log_readies(&events), 0, "it was told");
    assert_eq!(read_now(&mut stream), more(b"more\nstill more\n"));

    drop(stdin);
    let mut events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
    events.extend(fetch(&mut worker));
    let place = |wanted: fn(&Event) -> bool| events.iter().position(wanted).expect("the event came");
    assert!(place(|event| matches!(event, Event::LogReady { .. })) < place(|event| matches!(event, Event::Finished { .. })));
    assert_eq!(log_readies(&events), 1);
    assert_eq!(read_now(&mut stream), last(b""));
}

#[test]
fn log_ready_comes_only_if_there_is_more() {
    let host = Host::new();
    let mut worker = host.builder().open_logs_max(0).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut stream = worker.stream(job).unwrap();
    let log = worker.query(job).unwrap().log.unwrap();
    fs::rename(&log, log.with_extension("aside")).unwrap();
    assert_eq!(read_now(&mut stream), more(b""));
    let events = echo(&mut worker, job, &mut stdin, b"dropped\n");
    assert!(events.iter().any(|event| matches!(event, Event::LogFault { .. })));
    assert_eq!(log_readies(&events), 0, "nothing was written");
    fs::rename(log.with_extension("aside"), &log).unwrap();
    let events = echo(&mut worker, job, &mut stdin, b"kept\n");
    assert_eq!(log_readies(&events), 1);
    let Poll::Ready(Err(StreamError::Gap { bytes: 8, kind: GapKind::Output, .. })) = stream.try_fill_buf() else { panic!("a gap") };
    assert_eq!(read_now(&mut stream), more(b"kept\n"));
}

#[test]
fn a_task_is_woken_when_there_is_more_and_at_the_end() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut stream = worker.stream(job).unwrap();
    let count = Arc::new(Count::default());
    let waker = Waker::from(Arc::clone(&count));
    let cx = &mut Context::from_waker(&waker);

    assert!(stream.poll_fill_buf(cx).is_pending() && stream.poll_fill_buf(cx).is_pending());
    fetch(&mut worker);
    assert_eq!(count.so_far(), 0);
    echo(&mut worker, job, &mut stdin, b"one\n");
    assert_eq!(count.so_far(), 1);
    echo(&mut worker, job, &mut stdin, b"two\n");
    assert_eq!(count.so_far(), 1, "it has not asked again");
    for line in [&b"one\n"[..], b"two\n"] {
        let Poll::Ready(Ok(bytes)) = stream.poll_fill_buf(cx) else { panic!("there are bytes") };
        assert_eq!(bytes, line);
        stream.consume(line.len());
    }
    assert!(stream.poll_next_record(cx).is_pending());
    drop(stdin);
    finish(&mut worker, job);
    assert_eq!(count.so_far(), 2, "the end wakes too");
    assert!(matches!(stream.poll_fill_buf(cx), Poll::Ready(Ok([]))));
    assert!(matches!(stream.poll_next_record(cx), Poll::Ready(Ok(None))));
}

#[test]
fn a_stream_that_was_dropped_wakes_nobody() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let counts = [(); 3].map(|()| Arc::new(Count::default()));
    let mut streams: Vec<LogStream> = counts.iter().map(|_| worker.stream(job).unwrap()).collect();
    for (stream, count) in streams.iter_mut().zip(&counts) {
        assert!(stream.poll_fill_buf(&mut Context::from_waker(&Waker::from(Arc::clone(count)))).is_pending());
    }
    drop(streams.remove(1));
    assert_eq!(Arc::strong_count(&counts[1]), 1, "its waker is gone with it");
    echo(&mut worker, job, &mut stdin, b"line\n");
    assert_eq!(counts.each_ref().map(|count| count.so_far()), [1, 0, 1]);

    let newer = Arc::new(Count::default());
    for stream in &mut streams {
        assert_eq!(read_now(stream), more(b"line\n"));
        for waker in [&counts[0], &newer] {
            assert!(stream.poll_fill_buf(&mut Context::from_waker(&Waker::from(Arc::clone(waker)))).is_pending());
        }
    }
    echo(&mut worker, job, &mut stdin, b"line\n");
    assert_eq!((counts[0].so_far(), newer.so_far()), (1, 2), "the last waker counts");
}

/// Looks, when it is woken, at whether the logs of several jobs have all been written.
#[derive(Debug)]
struct Look {
    logs: Vec<PathBuf>,
    seen: Mutex<Vec<bool>>,
}

impl Wake for Look {
    fn wake(self: Arc<Self>) {
        let have_all = self.logs.iter().all(|log| fs::metadata(log).is_ok_and(|meta| meta.len() > 0));
        self.seen.lock().unwrap().push(have_all);
    }
}

#[test]
fn tasks_are_woken_only_after_everything_that_was_ready_has_been_handled() {
    let host = Host::new();
    let mut worker = host.worker();
    let flag = |number: usize| host.log_dir.path().join(format!("flag-{number}"));
    let script = "echo ready; : > \"$FLAG\"; read line";
    let jobs: Vec<_> = (0..5).map(|number| start_cat(&mut worker, Command::shell(script).env("FLAG", flag(number)))).collect();
    let logs = jobs.iter().map(|(job, _)| worker.query(*job).unwrap().log.unwrap()).collect();
    let look = Arc::new(Look { logs, seen: Mutex::default() });
    let waker = Waker::from(Arc::clone(&look));
    let mut streams: Vec<LogStream> = jobs.iter().map(|(job, _)| worker.stream(*job).unwrap()).collect();
    for stream in &mut streams {
        assert!(stream.poll_fill_buf(&mut Context::from_waker(&waker)).is_pending());
    }
    wait_until("all jobs have written", || (0..5).all(|number| flag(number).exists()));
    fetch(&mut worker);
    assert_eq!(*look.seen.lock().unwrap(), [true; 5]);
}

/// Wakes a thread that waits.
struct Unpark(thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Reads a stream to its end in a thread of its own, asleep while there is nothing.
fn read_in_thread(mut stream: LogStream) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let cx = &mut Context::from_waker(&waker);
        let (mut bytes, deadline) = (Vec::new(), Instant::now() + DEADLINE);
        loop {
            match stream.poll_fill_buf(cx) {
                Poll::Ready(Ok([])) => return bytes,
                Poll::Ready(read) => {
                    let read = read.expect("the log reads");
                    let count = read.len();
                    bytes.extend_from_slice(read);
                    stream.consume(count);
                }
                Poll::Pending => {
                    assert!(Instant::now() < deadline, "nobody woke the thread");
                    thread::park_timeout(DEADLINE);
                }
            }
        }
    })
}

#[test]
fn streams_are_read_in_other_threads_while_this_one_turns_the_loop() {
    let host = Host::new();
    let mut worker = host.worker();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let job =
            worker.start(Command::shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done").log_format(format)).unwrap();
        let threads: Vec<_> = (0..4).map(|_| read_in_thread(worker.stream(job).unwrap())).collect();
        assert!(finish(&mut worker, job).success());
        for thread in threads {
            assert!(thread.join().unwrap() == numbered_lines(20_000));
        }
    }
}

#[test]
fn streams_may_go_to_other_threads_and_workers_too() {
    fn may_be_sent<T: Send>() {}
    may_be_sent::<LogStream>();
    may_be_sent::<Worker>();
}

// Any number of readers, at any time.

#[test]
fn a_reader_that_goes_takes_nothing_from_another() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let (mut one, mut other) = (worker.stream(job).unwrap(), worker.stream(job).unwrap());
    echo(&mut worker, job, &mut stdin, b"for both\n");
    assert_eq!((read_now(&mut one), read_now(&mut other)), (more(b"for both\n"), more(b"for both\n")));
    drop(one);
    let events = echo(&mut worker, job, &mut stdin, b"for one\n");
    assert_eq!(log_readies(&events), 1);
    drop(stdin);
    finish(&mut worker, job);
    assert_eq!(read_now(&mut other), last(b"for one\n"));
}

#[test]
fn a_reader_made_at_any_time_reads_everything_and_ends() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut readers = vec![worker.stream(job).unwrap()];
    echo(&mut worker, job, &mut stdin, b"one\n");
    readers.push(worker.stream(job).unwrap());
    stdin.write_all(b"two\n").unwrap();
    drop(stdin);
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().state != JobState::Running);
    readers.push(worker.stream(job).unwrap());
    finish(&mut worker, job);
    readers.push(worker.stream(job).unwrap());
    for reader in &mut readers {
        assert_eq!(read_now(reader), last(b"one\ntwo\n"));
    }

    let mut readers = [(); 3].map(|()| worker.stream(job).unwrap());
    fetch(&mut worker);
    worker.forget(job).unwrap();
    fetch(&mut worker);
    assert_eq!(read_now(&mut readers[0]), last(b"one\ntwo\n"), "the job is forgotten");
    drop(worker);
    assert_eq!(read_now(&mut readers[1]), last(b"one\ntwo\n"), "the worker is gone");
    drop(host);
    assert_eq!(read_now(&mut readers[2]), last(b"one\ntwo\n"), "the file is deleted");
}

#[test]
fn a_stream_ends_with_what_its_job_wrote_when_the_worker_goes() {
    let host = Host::new();
    let mut worker = host.builder().line_flush_time(NEVER).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut stream = worker.stream(job).unwrap();
    echo(&mut worker, job, &mut stdin, b"one\n");
    stdin.write_all(b"two").unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == 7);
    let count = Arc::new(Count::default());
    assert_eq!(read_now(&mut stream), more(b"one\n"));
    assert!(stream.poll_fill_buf(&mut Context::from_waker(&Waker::from(Arc::clone(&count)))).is_pending());
    drop(worker);
    assert_eq!(count.so_far(), 1);
    assert_eq!(read_now(&mut stream), last(b"two"));
}

/// A cgroup of the old hierarchy whose processes stand still, and so do not even die.
struct Freezer {
    path: PathBuf,
    /// Where the hierarchy was mounted for this test, if it was.
    mount: Option<tempfile::TempDir>,
}

impl Freezer {
    /// `None` if the test is to be skipped.
    fn new() -> Option<Self> {
        if not_root() {
            return None;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let is_freezer = |fields: &[&str]| fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "freezer");
        let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| is_freezer(fields));
        let (hierarchy, mount) = if let Some(fields) = found {
            (PathBuf::from(fields[1]), None)
        } else {
            let directory = tempfile::tempdir().unwrap();
            let mounted = process::Command::new("mount").args(["-t", "cgroup", "-o", "freezer", "none"]).arg(directory.path()).status();
            if !mounted.is_ok_and(|status| status.success()) {
                let _ = common::cannot_run("it needs the freezer of cgroup v1");
                return None;
            }
            (directory.path().to_owned(), Some(directory))
        };
        let path = hierarchy.join(format!("iron-exec-test-{}", process::id()));
        fs::create_dir(&path).unwrap();
        Some(Self { path, mount })
    }

    fn freeze(&self, pid: i32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
        fs::write(self.path.join("freezer.state"), "FROZEN").unwrap();
        wait_until("it is frozen", || fs::read_to_string(self.path.join("freezer.state")).unwrap() == "FROZEN\n");
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        fs::write(self.path.join("freezer.state"), "THAWED").unwrap();
        wait_until("its processes are gone", || fs::remove_dir(&self.path).is_ok());
        if let Some(mount) = &self.mount {
            let _ = process::Command::new("umount").arg("-l").arg(mount.path()).status();
        }
    }
}

#[test]
fn a_stream_ends_with_its_worker_even_if_the_job_cannot_be_killed() {
    let host = Host::new();
    let Some(freezer) = Freezer::new() else { return };
    let mut worker = host.builder().drain_total_max(Duration::ZERO).drain_idle_max(Duration::ZERO).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut stream = worker.stream(job).unwrap();
    echo(&mut worker, job, &mut stdin, b"one\n");
    assert_eq!(read_now(&mut stream), more(b"one\n"));
    let count = Arc::new(Count::default());
    assert!(stream.poll_fill_buf(&mut Context::from_waker(&Waker::from(Arc::clone(&count)))).is_pending());
    freezer.freeze(worker.query(job).unwrap().pid);
    drop(worker);
    assert_eq!(read_now(&mut stream), last(b""));
    assert_eq!(count.so_far(), 1, "the task that waits hears of it");
}

#[test]
fn a_stream_of_a_job_that_never_ran_is_empty_and_ends() {
    let host = Host::new();
    let mut worker = host.builder().confirm(false).build().unwrap();
    let job = worker.start(Command::new("/no/such/program")).unwrap();
    let mut stream = worker.stream(job).unwrap();
    assert_eq!(read_now(&mut stream), more(b""));
    let mut events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
    events.extend(fetch(&mut worker));
    assert_eq!(worker.query(job).unwrap().state, JobState::Failed);
    assert_eq!(log_readies(&events), 1);
    assert_eq!(read_now(&mut stream), last(b""));
    assert!(host.logs().is_empty());
}

#[test]
fn a_reader_that_does_not_read_slows_no_job() {
    const BYTES: usize = 20 << 20;
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::new("head").args(["-c", &BYTES.to_string(), "/dev/zero"])).unwrap();
    let mut stream = worker.stream(job).unwrap();
    let Poll::Pending = stream.try_fill_buf() else { panic!("nothing was read yet") };
    assert!(finish(&mut worker, job).success(), "the job has ended before anything was read");
    let now = read_now(&mut stream);
    assert!(now.has_ended && now.bytes.len() == BYTES && now.bytes.iter().all(|byte| *byte == 0));
}

#[test]
fn a_hundred_readers_of_a_job_all_read_everything() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done")).unwrap();
    let mut readers: Vec<_> = (0..100).map(|_| (worker.stream(job).unwrap(), Now::default())).collect();
    turn_until(&mut worker, |worker, _| {
        // Each at a pace of its own.
        for (pace, (stream, all)) in readers.iter_mut().enumerate().filter(|(_, (_, all))| !all.has_ended) {
            for _ in 0..=10 * pace {
                let Poll::Ready(bytes) = stream.try_fill_buf() else { break };
                let count = bytes.as_ref().unwrap().len();
                all.bytes.extend_from_slice(bytes.unwrap());
                all.has_ended = count == 0;
                stream.consume(count);
            }
        }
        worker.query(job).unwrap().is_finished()
    });
    for (mut stream, mut all) in readers {
        all.bytes.extend(read_now(&mut stream).bytes);
        assert!(all.bytes == numbered_lines(2000));
    }
}

#[test]
fn what_is_not_consumed_is_shown_again() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("echo first; echo second; echo third; echo fourth")).unwrap();
    finish(&mut worker, job);
    let mut stream = worker.stream(job).unwrap();
    let mut shown = |consume: usize| {
        let Poll::Ready(Ok(bytes)) = stream.try_fill_buf() else { panic!("there are bytes") };
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        stream.consume(consume);
        text
    };
    assert_eq!([shown(0), shown(1), shown(2), shown(0)], ["first\n", "first\n", "irst\n", "st\n"]);
    assert_eq!([shown(1000), shown(3)], ["st\n", "second\n"], "more than is shown counts as all of it");
    let Poll::Ready(Ok(Some(record))) = stream.try_next_record() else { panic!("a record") };
    assert_eq!(record.bytes, b"third\n", "a record is never the rest of one");
    assert_eq!(read_now(&mut stream), last(b"fourth\n"));
}

#[test]
fn bytes_that_somebody_appends_to_a_log_cost_the_job_none_of_its_own() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut stream = worker.stream(job).unwrap();
    echo(&mut worker, job, &mut stdin, b"one\n");
    assert_eq!(read_now(&mut stream), more(b"one\n"));
    let log = worker.query(job).unwrap().log.unwrap();
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(b"a line of a stranger\n").unwrap();
    echo(&mut worker, job, &mut stdin, b"two\n");
    drop(stdin);
    finish(&mut worker, job);
    let offset = b"2026-11-23T03:26:58.123456789Z stdout F one\n".len() as u64;
    let Poll::Ready(Err(StreamError::Malformed { path, offset: named })) = stream.try_fill_buf() else { panic!("a malformed record") };
    assert_eq!((path, named), (log, offset));
    assert_eq!(read_now(&mut stream), last(b"two\n"));
}

// Following.

#[test]
fn a_job_is_followed_line_by_line_and_its_events_are_kept() {
    let host = Host::new();
    let mut worker = host.worker();
    let other = worker.start(Command::new("true")).unwrap();
    let job = worker.start(Command::shell("echo one; echo two >&2; echo three; printf end; exit 4").capture(Capture::Merged)).unwrap();
    let lines: Vec<String> = worker.follow(job).unwrap().lines().map(Result::unwrap).collect();
    assert_eq!(lines, ["one", "two", "three", "end"]);

    let ready = rustix::event::poll(
        &mut [rustix::event::PollFd::new(&worker, rustix::event::PollFlags::IN)],
        Some(&rustix::time::Timespec::default()),
    );
    assert_eq!(ready, Ok(1), "an outer loop hears that there are events");
    let mut events = Vec::new();
    while events.iter().filter(|event| matches!(event, Event::Finished { .. })).count() < 2 {
        events.extend(turn_until(&mut worker, |_, seen| !seen.is_empty()));
    }
    assert!(events.iter().any(|event| matches!(event, Event::Exited { job: named, exit: iron_exec::Exit::Code(4) } if *named == job)));
    assert!(events.iter().any(|event| event.job() == other));

    let mut text = String::new();
    worker.follow(job).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "one\ntwo\nthree\nend", "a job that has finished is followed from its start to its end");
}

#[test]
fn a_follower_may_stop_anywhere_and_the_job_goes_on() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    stdin.write_all(b"one\ntwo\n").unwrap();
    let mut line = String::new();
    worker.follow(job).unwrap().read_line(&mut line).unwrap();
    assert_eq!(line, "one\n");
    drop(stdin);
    assert!(finish(&mut worker, job).success());
    let mut byte = [0; 3];
    worker.follow(job).unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"one");
}
