//! Promise: a log can be read from outside its worker, by path: while its job runs, to the end that comes with the seal, the death of the worker or the
//! deletion of the file; and long after, also on file systems without extended attributes.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, PipeWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, finish, not_root, turn_until};
use iron_exec::{Capture, CgroupBase, Command, JobId, LogFormat, LogReader, OutputStream, StreamError, Worker};

/// A time to flush that no test waits for: lines are written when they end.
const NEVER: Duration = Duration::from_hours(1);

/// The directory that a host process of a test is told to use.
const HOST_DIR: &str = "IRON_EXEC_TEST_HOST_DIR";

/// The log that a follower process of a test is told to follow.
const FOLLOWED_LOG: &str = "IRON_EXEC_TEST_FOLLOWED_LOG";

const RECORD: &str = "2026-11-23T03:26:58.123456789Z stdout F one\n";

fn start_cat(worker: &mut Worker, command: Command) -> (JobId, PipeWriter) {
    let job = worker.start(command.stdin_piped()).unwrap();
    (job, worker.take_stdin(job).unwrap().unwrap())
}

fn cat() -> Command {
    Command::new("cat")
}

/// Sends a line through the job and turns the loop until it is in the log.
fn echo(worker: &mut Worker, job: JobId, stdin: &mut impl Write, line: &str) {
    let lines = worker.query(job).unwrap().output.lines;
    stdin.write_all(line.as_bytes()).unwrap();
    turn_until(worker, |worker, _| worker.query(job).unwrap().output.lines > lines);
}

fn log_of(worker: &Worker, job: JobId) -> PathBuf {
    worker.query(job).unwrap().log.unwrap()
}

fn read_all(mut reader: LogReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).expect("the log reads");
    bytes
}

/// What a follower in a thread of its own hears, line by line; ends with the log.
struct Follower(Receiver<Vec<u8>>);

impl Follower {
    fn new(path: &Path) -> Self {
        let path = path.to_owned();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            let mut reader = LogReader::follow(path).expect("the log can be followed");
            loop {
                let mut line = Vec::new();
                reader.read_until(b'\n', &mut line).expect("the log reads");
                if line.is_empty() || sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self(receiver)
    }

    /// The next line; nothing at the end.
    fn hear(&self) -> String {
        match self.0.recv_timeout(DEADLINE) {
            Ok(line) => String::from_utf8(line).unwrap(),
            Err(mpsc::RecvTimeoutError::Disconnected) => String::new(),
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("the follower hears nothing"),
        }
    }
}

fn follow_to_the_end(path: &Path) -> Vec<u8> {
    let (path, (sender, receiver)) = (path.to_owned(), mpsc::channel());
    thread::spawn(move || sender.send(read_all(LogReader::follow(path).unwrap())));
    receiver.recv_timeout(DEADLINE).expect("the log ends")
}

/// This very test, run again in a process of its own.
struct OtherProcess {
    child: process::Child,
    lines: std::io::Lines<BufReader<process::ChildStdout>>,
}

impl OtherProcess {
    fn start(name: &str, variable: &str, value: &Path) -> Self {
        let mut command = process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(variable, value).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next; nothing at its end.
    fn hear(&mut self) -> Option<String> {
        self.lines.find_map(|line| line.unwrap().split_once("SAYS ").map(|(_, said)| said.to_owned()))
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The body of a host process: a worker and a job that has written two lines and waits.
fn be_host(log_dir: &Path, format: LogFormat) {
    let mut worker = Worker::builder().log_dir(log_dir).cgroup_base(CgroupBase::Off).log_format(format).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    echo(&mut worker, job, &mut stdin, RECORD);
    echo(&mut worker, job, &mut stdin, "two\n");
    println!("SAYS {}", log_of(&worker, job).display());
    turn_until(&mut worker, |_, _| false);
}

// Finished logs.

#[test]
fn a_finished_log_is_read_as_the_jobs_bytes() {
    let host = Host::new();
    let mut worker = host.builder().line_bytes_max(5).build().unwrap();
    let bytes = b"one\n\na longer line\n\0\xff no end".to_vec();
    let mut logs = Vec::new();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let job = worker.start(cat().stdin_bytes(bytes.clone()).log_format(format)).unwrap();
        finish(&mut worker, job);
        logs.push((log_of(&worker, job), format));
    }
    for is_worker_there in [true, false] {
        for (log, format) in &logs {
            let reader = LogReader::open(log).unwrap();
            assert_eq!(reader.format(), *format);
            assert_eq!(read_all(reader), bytes);
            assert_eq!(follow_to_the_end(log), bytes, "worker there: {is_worker_there}");
        }
        if is_worker_there {
            drop(std::mem::replace(&mut worker, Host::new().worker()));
        }
    }
}

#[test]
fn a_raw_log_that_looks_like_records_is_read_as_it_is() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(cat().stdin_bytes(RECORD.as_bytes()).log_format(LogFormat::Raw)).unwrap();
    finish(&mut worker, job);
    let log = log_of(&worker, job);
    drop(worker);
    assert_eq!(read_all(LogReader::open(log).unwrap()), RECORD.as_bytes());
}

#[test]
fn a_log_is_read_record_by_record() {
    let host = Host::new();
    let mut worker = host.builder().line_bytes_max(4).line_flush_time(NEVER).build().unwrap();
    let script = "printf 'out\\nlonger'; echo err >&2";
    let job = worker.start(Command::shell(script)).unwrap();
    finish(&mut worker, job);
    let mut reader = LogReader::open(log_of(&worker, job)).unwrap();
    let mut records = Vec::new();
    while let Some(record) = reader.next_record().unwrap() {
        assert!(record.time.is_some());
        records.push((record.stream.unwrap(), String::from_utf8(record.bytes.to_vec()).unwrap()));
    }
    let of = |stream| records.iter().filter(|record| record.0 == stream).map(|record| record.1.as_str()).collect::<Vec<_>>();
    assert_eq!(of(OutputStream::Stdout), ["out\n", "long", "er"]);
    assert_eq!(of(OutputStream::Stderr), ["err\n"]);
    assert_eq!(reader.next_record().unwrap(), None);

    let job = worker.start(Command::shell(script).log_format(LogFormat::Raw)).unwrap();
    finish(&mut worker, job);
    let mut reader = LogReader::open(log_of(&worker, job)).unwrap();
    let mut length = 0;
    while let Some(record) = reader.next_record().unwrap() {
        assert_eq!((record.time, record.stream), (None, None));
        length += record.bytes.len();
    }
    assert_eq!(length, 14);
}

#[test]
fn a_log_that_was_opened_and_not_followed_ends_where_it_ends_now() {
    let host = Host::new();
    let mut worker = host.worker();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let (job, mut stdin) = start_cat(&mut worker, cat().log_format(format));
        assert_eq!(read_all(LogReader::open(log_of(&worker, job)).unwrap()), b"");
        echo(&mut worker, job, &mut stdin, "one\n");
        assert_eq!(read_all(LogReader::open(log_of(&worker, job)).unwrap()), b"one\n");
    }
}

// Following.

#[test]
fn a_follower_hears_each_line_as_it_is_written_and_ends_with_the_seal() {
    let host = Host::new();
    let mut worker = host.worker();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        for capture in [Capture::Split, Capture::Merged] {
            let (job, mut stdin) = start_cat(&mut worker, cat().log_format(format).capture(capture));
            let early = Follower::new(&log_of(&worker, job));
            echo(&mut worker, job, &mut stdin, "one\n");
            assert_eq!(early.hear(), "one\n");
            let late = Follower::new(&log_of(&worker, job));
            for line in ["two\n", "\n", "three\n"] {
                echo(&mut worker, job, &mut stdin, line);
                assert_eq!(early.hear(), line);
            }
            stdin.write_all(b"no end").unwrap();
            drop(stdin);
            finish(&mut worker, job);
            assert_eq!([early.hear(), early.hear()], ["no end", ""]);
            assert_eq!([(); 6].map(|()| late.hear()), ["one\n", "two\n", "\n", "three\n", "no end", ""]);
        }
    }
}

#[test]
fn a_follower_is_told_of_the_end_and_does_not_find_it_by_looking() {
    let host = Host::new();
    let mut worker = host.worker();
    let begin = Instant::now();
    for _ in 0..10 {
        let (job, mut stdin) = start_cat(&mut worker, cat());
        let follower = Follower::new(&log_of(&worker, job));
        echo(&mut worker, job, &mut stdin, "one\n");
        assert_eq!(follower.hear(), "one\n");
        drop(stdin);
        finish(&mut worker, job);
        assert_eq!(follower.hear(), "");
    }
    // A follower looks once a second, however quiet the file.
    assert!(begin.elapsed() < Duration::from_secs(6), "{:?}", begin.elapsed());
}

#[test]
fn a_follower_that_reads_while_much_is_written_gets_every_byte() {
    let host = Host::new();
    let mut worker = host.worker();
    let expected: Vec<u8> = (0..100_000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let (job, mut stdin) = start_cat(&mut worker, cat().log_format(format));
        let log = log_of(&worker, job);
        let follower = thread::spawn(move || follow_to_the_end(&log));
        let writer = thread::spawn({
            let expected = expected.clone();
            move || stdin.write_all(&expected).unwrap()
        });
        assert!(finish(&mut worker, job).success());
        writer.join().unwrap();
        assert!(follower.join().unwrap() == expected);
    }
}

#[test]
fn a_log_is_followed_from_another_process() {
    const NAME: &str = "a_log_is_followed_from_another_process";
    if let Some(log) = std::env::var_os(FOLLOWED_LOG) {
        for line in LogReader::follow(log).unwrap().lines() {
            println!("SAYS {}", line.unwrap());
        }
        return;
    }
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let mut follower = OtherProcess::start(NAME, FOLLOWED_LOG, &log_of(&worker, job));
    for line in ["one", "two", "three"] {
        echo(&mut worker, job, &mut stdin, &format!("{line}\n"));
        assert_eq!(follower.hear().as_deref(), Some(line));
    }
    drop(stdin);
    finish(&mut worker, job);
    assert_eq!(follower.hear(), None);
    assert!(follower.child.wait().unwrap().success());
}

#[test]
fn a_follower_ends_when_the_worker_of_another_process_is_killed() {
    const NAME: &str = "a_follower_ends_when_the_worker_of_another_process_is_killed";
    if let Some(directory) = std::env::var_os(HOST_DIR) {
        return be_host(Path::new(&directory), LogFormat::Cri);
    }
    let host = Host::new();
    let mut process = OtherProcess::start(NAME, HOST_DIR, host.log_dir.path());
    let log = PathBuf::from(process.hear().unwrap());
    let follower = Follower::new(&log);
    assert_eq!([follower.hear(), follower.hear()], [RECORD, "two\n"]);
    process.kill();
    assert_eq!(follower.hear(), "");
    assert_eq!(follow_to_the_end(&log), [RECORD, "two\n"].concat().as_bytes(), "and one that comes later ends at once");
}

#[test]
fn a_follower_ends_when_the_worker_goes() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let follower = Follower::new(&log_of(&worker, job));
    echo(&mut worker, job, &mut stdin, "one\n");
    assert_eq!(follower.hear(), "one\n");
    stdin.write_all(b"two").unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == 7);
    drop(worker);
    assert_eq!([follower.hear(), follower.hear()], ["two", ""]);
}

#[test]
fn a_log_that_is_deleted_ends() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let log = log_of(&worker, job);
    let follower = Follower::new(&log);
    echo(&mut worker, job, &mut stdin, "one\n");
    assert_eq!(follower.hear(), "one\n");
    fs::remove_file(log).unwrap();
    assert_eq!(follower.hear(), "");
}

#[test]
fn a_log_is_found_through_links_and_relative_paths() {
    let (host, elsewhere) = (Host::new(), tempfile::tempdir().unwrap());
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, cat());
    let link = elsewhere.path().join("current.log");
    std::os::unix::fs::symlink(log_of(&worker, job), &link).unwrap();
    let follower = Follower::new(&link);
    echo(&mut worker, job, &mut stdin, "one\n");
    assert_eq!(follower.hear(), "one\n");
    drop(stdin);
    finish(&mut worker, job);
    assert_eq!(follower.hear(), "");
}

// Logs without a mark, and what is no log.

#[test]
fn a_copy_of_a_log_is_read_as_what_it_looks_like_and_ends_where_it_ends() {
    let (host, elsewhere) = (Host::new(), tempfile::tempdir().unwrap());
    let mut worker = host.builder().line_bytes_max(1 << 20).line_flush_time(NEVER).build().unwrap();
    let long = [&b"x".repeat(300_000)[..], b"\nend"].concat();
    for bytes in [&b"one\ntwo"[..], b"", &long] {
        for format in [LogFormat::Cri, LogFormat::Raw] {
            let job = worker.start(cat().stdin_bytes(bytes.to_vec()).log_format(format)).unwrap();
            finish(&mut worker, job);
            let copy = elsewhere.path().join(format!("{job}.log"));
            fs::write(&copy, fs::read(log_of(&worker, job)).unwrap()).unwrap();
            let reader = LogReader::open(&copy).unwrap();
            assert!(bytes.is_empty() || reader.format() == format, "{format:?} is guessed as {:?}", reader.format());
            assert!(read_all(reader) == bytes);
            assert!(follow_to_the_end(&copy) == bytes);
        }
    }
}

#[test]
fn a_path_that_is_no_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for path in [directory.path().join("missing"), directory.path().to_owned(), fifo, "/dev/zero".into(), "".into()] {
        for opened in [LogReader::open(&path), LogReader::follow(&path)] {
            let Err(StreamError::Io { path: named, .. }) = opened else { panic!("{opened:?}") };
            assert_eq!(named, path);
        }
    }
}

#[test]
fn what_is_no_record_is_told_once_and_reading_goes_on_behind_it() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("echo one; echo two")).unwrap();
    finish(&mut worker, job);
    let log = log_of(&worker, job);
    fs::set_permissions(&log, fs::Permissions::from_mode(0o600)).unwrap();
    let length = fs::metadata(&log).unwrap().len();
    let mut file = fs::OpenOptions::new().append(true).open(&log).unwrap();
    file.write_all(b"a line of a stranger\n").unwrap();
    file.write_all(RECORD.as_bytes()).unwrap();
    file.write_all(b"torn").unwrap();

    let mut reader = LogReader::open(&log).unwrap();
    for line in [&b"one\n"[..], b"two\n"] {
        assert_eq!(reader.next_record().unwrap().unwrap().bytes, line);
    }
    let error = reader.next_record().unwrap_err();
    let StreamError::Malformed { path, offset } = &error else { panic!("{error:?}") };
    assert_eq!((path, *offset), (&log, length));
    assert!(error.to_string().contains(&length.to_string()), "{error}");
    assert_eq!(reader.next_record().unwrap().unwrap().bytes, b"one\n");
    assert_eq!(reader.next_record().unwrap(), None, "a torn record at the end is none");

    let mut reader = LogReader::open(&log).unwrap();
    let mut bytes = Vec::new();
    let error = reader.read_to_end(&mut bytes).unwrap_err();
    assert!(matches!(error.get_ref().and_then(|source| source.downcast_ref()), Some(StreamError::Malformed { .. })), "{error:?}");
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"one\ntwo\none\n");
}

#[test]
fn a_file_of_zeros_costs_bounded_memory_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let file = fs::File::create(&log).unwrap();
    (&file).write_all(RECORD.as_bytes()).unwrap();
    file.set_len(20 << 20).unwrap();
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(format!("\n{RECORD}").as_bytes()).unwrap();
    let mut reader = LogReader::open(&log).unwrap();
    let (mut records, mut malformed) = (0, 0);
    loop {
        match reader.next_record() {
            Ok(None) => break,
            Ok(Some(record)) => {
                assert_eq!(record.bytes, b"one\n");
                records += 1;
            }
            Err(StreamError::Malformed { .. }) => malformed += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!(records, 2);
    assert!((1..=2).contains(&malformed), "16 MiB are given up at a time: {malformed}");
}

// File systems without extended attributes.

/// A file system that keeps no user attributes, for as long as it lives.
struct PlainDisk(tempfile::TempDir);

impl PlainDisk {
    /// `None` if the test is to be skipped.
    fn mount() -> Option<Self> {
        if not_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mounted = process::Command::new("mount").args(["-t", "ramfs", "none"]).arg(directory.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            let _ = common::cannot_run("a ramfs cannot be mounted");
            return None;
        }
        let disk = Self(directory);
        let refused = rustix::fs::setxattr(disk.0.path(), "user.test", b"", rustix::fs::XattrFlags::empty());
        assert_eq!(refused, Err(rustix::io::Errno::OPNOTSUPP), "it keeps no attributes");
        Some(disk)
    }

    fn tables(&self) -> usize {
        let locks = self.0.path().join(".iron-exec-0");
        let entries = fs::read_dir(locks).into_iter().flatten();
        entries.filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().extension() == Some("logs".as_ref()))).count()
    }
}

impl Drop for PlainDisk {
    fn drop(&mut self) {
        let _ = process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn without_attributes_a_table_says_what_a_log_is() {
    let Some(disk) = PlainDisk::mount() else { return };
    let host = Host::new();
    let mut workers = [(); 2].map(|()| host.builder().log_dir(disk.0.path()).build().unwrap());
    for format in [LogFormat::Raw, LogFormat::Cri] {
        for worker in &mut workers {
            let (job, mut stdin) = start_cat(worker, cat().log_format(format));
            let log = log_of(worker, job);
            let follower = Follower::new(&log);
            echo(worker, job, &mut stdin, RECORD);
            assert_eq!(follower.hear(), RECORD, "a raw log that looks like records is raw");
            assert_eq!(LogReader::open(&log).unwrap().format(), format);
            drop(stdin);
            let status = finish(worker, job);
            assert_eq!(follower.hear(), "");
            assert_eq!(common::output_of(&status), RECORD.as_bytes());
            assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o7777, 0o400);
        }
    }
    assert_eq!(disk.tables(), 2);
    drop(workers);
    assert_eq!(disk.tables(), 2, "the tables stay with the logs");
    let mut worker = host.builder().log_dir(disk.0.path()).build().unwrap();
    let (job, stdin) = start_cat(&mut worker, cat());
    let log = log_of(&worker, job);
    drop(stdin);
    finish(&mut worker, job);
    assert_eq!(disk.tables(), 3);
    fs::remove_file(log).unwrap();
    drop(worker);
    assert_eq!(disk.tables(), 2, "a table goes with a worker whose logs are gone");
}

#[test]
fn without_attributes_a_follower_ends_with_its_worker_too() {
    const NAME: &str = "without_attributes_a_follower_ends_with_its_worker_too";
    if let Some(directory) = std::env::var_os(HOST_DIR) {
        return be_host(Path::new(&directory), LogFormat::Raw);
    }
    let Some(disk) = PlainDisk::mount() else { return };
    let mut process = OtherProcess::start(NAME, HOST_DIR, disk.0.path());
    let log = PathBuf::from(process.hear().unwrap());
    let follower = Follower::new(&log);
    assert_eq!([follower.hear(), follower.hear()], [RECORD, "two\n"]);
    process.kill();
    assert_eq!(follower.hear(), "");
    assert_eq!(disk.tables(), 1, "it tells what the left-overs are");
    assert_eq!(follow_to_the_end(&log), [RECORD, "two\n"].concat().as_bytes());
}
