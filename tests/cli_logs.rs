//! Promise: `iron-exec logs` prints what a job wrote, no more and no less, while it runs and long after.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use cli_tool::{Ran, Running, assert_nothing_left, bare_tool, only_log, run, tool};
use common::{Host, wait_until};
use rustix::process::Signal;

/// The log of `script`, run to its end.
fn log_of(host: &Host, options: &[&str], script: &str) -> PathBuf {
    assert_eq!(run(tool(host, "run").arg("--quiet").args(options).args(["--", "sh", "-c", script])).code, 0);
    only_log(host)
}

fn logs(options: &[&str], path: &Path) -> Ran {
    run(bare_tool("logs").args(options).arg(path))
}

fn follow(path: &Path) -> Running {
    Running::start(bare_tool("logs").arg("--follow").arg(path).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// Starts a job that writes each line of its stdin; returns it with the path of its log.
fn start_cat(host: &Host) -> (Running, PathBuf) {
    let mut command = tool(host, "run");
    let mut running = Running::start(command.args(["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    running.write(b"first\n");
    running.read_until("first\n");
    (running, only_log(host))
}

#[test]
fn a_log_gives_both_streams_back_byte_for_byte() {
    let host = Host::new();
    let log = log_of(&host, &[], "head -c 300000 /dev/zero; printf 'no end'; echo err >&2; printf x >&2");
    let ran = logs(&[], &log);
    let mut expected = vec![0; 300_000];
    expected.extend_from_slice(b"no end");
    assert_eq!((ran.code, ran.err().as_str()), (0, "err\nx"));
    assert!(ran.stdout == expected, "{} bytes", ran.stdout.len());
}

#[test]
fn a_raw_log_is_printed_on_stdout_and_has_neither_times_nor_streams() {
    let host = Host::new();
    let log = log_of(&host, &["--log-format", "raw"], "echo out; echo err >&2");
    let ran = logs(&[], &log);
    assert_eq!((ran.code, ran.out().as_str(), ran.err().as_str()), (0, "out\nerr\n", ""));
    for options in [&["--timestamps"][..], &["--stream", "stdout"], &["--since", "1h"]] {
        let ran = logs(options, &log);
        assert_eq!(ran.code, 125);
        assert!(ran.err().contains("raw"), "{}", ran.err());
    }
}

#[test]
fn one_stream_can_be_had_alone() {
    let host = Host::new();
    let log = log_of(&host, &[], "echo out; echo err >&2");
    let ran = logs(&["--stream", "stdout"], &log);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("out\n", ""));
    let ran = logs(&["--stream", "stderr"], &log);
    assert_eq!((ran.out().as_str(), ran.err().as_str()), ("", "err\n"));
}

#[test]
fn timestamps_begin_each_record_on_a_line_of_its_own() {
    let host = Host::new();
    let log = log_of(&host, &[], "echo one; printf two; echo err >&2");
    let ran = logs(&["--timestamps"], &log);
    let time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z";
    let out = regex::Regex::new(&format!("^{time} stdout one\n{time} stdout two\n$")).unwrap();
    let err = regex::Regex::new(&format!("^{time} stderr err\n$")).unwrap();
    assert!(out.is_match(&ran.out()) && err.is_match(&ran.err()), "{ran:?}");
}

#[test]
fn escaping_leaves_nothing_that_a_terminal_obeys() {
    let host = Host::new();
    let log = log_of(&host, &[], "printf '\\033[2J\\tgr\\303\\274n\\r\\377\\n'");
    assert_eq!(logs(&["--escape"], &log).out(), "\\x1b[2J\tgrün\\r\\xff\n");
    assert_eq!(logs(&[], &log).stdout, b"\x1b[2J\tgr\xc3\xbcn\r\xff\n");
}

#[test]
fn following_is_live_and_ends_with_the_job() {
    let host = Host::new();
    let (mut job, log) = start_cat(&host);
    let mut follower = follow(&log);
    follower.read_until("first\n");
    assert_eq!(follower.threads(), 1);
    job.write(b"second\n");
    follower.read_until("second\n");
    drop(job.child.stdin.take());
    assert_eq!(job.finish().code, 0);
    let ran = follower.finish();
    assert_eq!((ran.code, ran.out().as_str()), (0, "first\nsecond\n"));
    assert_eq!(logs(&["-f"], &log).out(), "first\nsecond\n", "a log that has ended is followed to its end");
    assert_nothing_left(&host);
}

#[test]
fn following_ends_when_the_worker_dies() {
    let host = Host::new();
    let (mut job, log) = start_cat(&host);
    let mut follower = follow(&log);
    follower.read_until("first\n");
    job.signal(Signal::KILL);
    assert_eq!(job.wait(), 137);
    let ran = follower.finish();
    assert_eq!((ran.code, ran.out().as_str()), (0, "first\n"));
    fs::remove_dir_all(fs::read_dir(host.log_dir.path()).unwrap().flatten().find(|entry| entry.path().is_dir()).unwrap().path()).unwrap();
}

#[test]
fn a_malformed_record_is_reported_and_the_rest_printed() {
    let host = Host::new();
    let path = host.log_dir.path().join("broken.log");
    let record = |text: &str| format!("2026-01-02T03:04:05.000000006Z stdout F {text}\n");
    fs::write(&path, format!("{}nonsense\n{}", record("one"), record("two"))).unwrap();
    let ran = logs(&[], &path);
    assert_eq!((ran.code, ran.out().as_str()), (1, "one\ntwo\n"));
    assert!(ran.err().contains("malformed record at byte 44"), "{}", ran.err());
}

/// The log of a job that has written 500 lines, `line 1000` to `line 1499`, of which three files are kept.
fn rotated_log(host: &Host) -> PathBuf {
    let script = "i=1000; while [ $i -lt 1500 ]; do echo line $i; i=$((i+1)); done";
    let options = ["--log-max-bytes", "4096", "--log-files", "3", "--quiet"];
    assert_eq!(run(tool(host, "run").args(options).args(["--", "sh", "-c", script])).code, 0);
    let mut paths = host.logs().into_iter().map(|name| host.log_dir.path().join(name));
    paths.find(|path| path.extension() == Some("log".as_ref())).expect("a log")
}

#[test]
fn the_last_lines_or_what_is_not_older_are_printed_alone_also_of_a_rotated_log() {
    let host = Host::new();
    let log = rotated_log(&host);
    let ran = logs(&["--tail", "120"], &log);
    let expected: String = (1380..1500).map(|number| format!("line {number}\n")).collect::<Vec<_>>().concat();
    assert_eq!((ran.code, ran.out(), ran.err()), (0, expected, String::new()));
    assert_eq!(logs(&["--tail", "0"], &log).stdout, b"");
    assert_eq!(logs(&["--tail", "2", "--stream", "stderr"], &log).stdout, b"");
    assert_eq!(logs(&["--since", "2020-01-01T00:00:00Z"], &log).out().lines().last(), Some("line 1499"));
    assert_eq!(logs(&["--since", "10m"], &log).out().lines().last(), Some("line 1499"));
    let later = host.log_dir.path().join("later.log");
    let record = |second: u64| format!("2026-01-02T03:04:{second:02}.000000000Z stdout F {second}\n");
    fs::write(&later, (0..60).map(record).collect::<Vec<_>>().concat()).unwrap();
    assert_eq!(logs(&["--since", "2026-01-02T03:04:58Z"], &later).out(), "58\n59\n");
    assert_eq!(logs(&["--since", "2026-01-02 03:04:58.5"], &later).out(), "59\n");
    assert_eq!(logs(&["--since", "1s"], &later).out(), "");
}

#[test]
fn that_a_rotated_log_does_not_reach_back_to_its_beginning_is_said_and_no_failure() {
    let host = Host::new();
    let log = rotated_log(&host);
    let ran = logs(&[], &log);
    assert_eq!((ran.code, ran.out().lines().last()), (0, Some("line 1499")));
    assert!(ran.err().contains("bytes of the log") && ran.err().contains("were deleted"), "{}", ran.err());
    let middle = fs::read_dir(host.log_dir.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        name.contains(".log.")
    });
    let middle = middle.max().expect("a rotated file");
    let alone = logs(&[], &middle);
    assert_eq!((alone.code, alone.err().as_str()), (0, ""), "a file that is named is read alone");
    fs::remove_file(middle).unwrap();
    let ran = logs(&[], &log);
    assert_eq!(ran.code, 1, "in the middle it is");
    assert_eq!(ran.err().matches("were deleted").count(), 2, "{}", ran.err());
}

#[test]
fn a_log_is_found_by_the_id_of_its_job() {
    let host = Host::new();
    let log = log_of(&host, &[], "echo found");
    let id = log.file_stem().unwrap().to_str().unwrap().rsplit_once('_').unwrap().1.to_owned();
    let of = |id: &str| run(bare_tool("logs").arg("--log-dir").arg(host.log_dir.path()).arg(id));
    assert_eq!((of(&id).code, of(&id).out().as_str()), (0, "found\n"));
    let missing = of("0190d3b1-7c8a-7def-8123-456789abcdef");
    assert_eq!(missing.code, 125);
    assert!(missing.err().contains("--log-dir") && missing.err().contains("0190d3b1"), "{}", missing.err());
}

#[test]
fn a_log_is_found_by_the_id_of_its_job_whatever_else_is_called_so() {
    let host = Host::new();
    let log = log_of(&host, &[], "echo found");
    let id = log.file_stem().unwrap().to_str().unwrap().rsplit_once('_').unwrap().1.to_owned();
    let of_id = || run(bare_tool("logs").arg("--log-dir").arg(host.log_dir.path()).arg(&id));
    // Whatever the order of the directory, some of them come before the log.
    let name = |program: &str| host.log_dir.path().join(format!("{program}_{id}.log"));
    for number in 0..20 {
        fs::create_dir(name(&format!("directory{number}"))).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", name(&format!("link{number}"))).unwrap();
        let fifo = std::process::Command::new("mkfifo").arg(name(&format!("fifo{number}"))).status().unwrap();
        assert!(fifo.success());
    }
    assert_eq!((of_id().code, of_id().out().as_str()), (0, "found\n"));
    if common::not_root() {
        return;
    }
    let of_nobody = |program: &str| {
        fs::write(name(program), "forged\n").unwrap();
        std::os::unix::fs::chown(name(program), Some(65534), None).unwrap();
    };
    (0..20).for_each(|number| of_nobody(&format!("forged{number}")));
    assert_eq!((of_id().code, of_id().out().as_str()), (0, "found\n"), "our own is the one");
    fs::remove_file(&log).unwrap();
    let ran = of_id();
    assert_eq!((ran.code, ran.out().as_str()), (125, ""));
    assert!(ran.err().contains("give the file itself"), "{}", ran.err());
    (1..20).for_each(|number| fs::remove_file(name(&format!("forged{number}"))).unwrap());
    assert_eq!((of_id().code, of_id().out().as_str()), (0, "forged\n"), "root reads what others have");
}

#[test]
fn what_is_missing_or_truncated_or_deleted_is_said_and_not_all_is_well() {
    let host = Host::new();
    let path = host.log_dir.path().join("gap.log");
    let gap = "2026-01-02T03:04:05.000000000+00:00 stdout F [iron-exec: 1234 bytes of output are missing here: the log is full]\n";
    fs::write(&path, format!("2026-01-02T03:04:05.000000000Z stdout F one\n{gap}2026-01-02T03:04:05.000000000Z stdout F two\n")).unwrap();
    let ran = logs(&[], &path);
    assert_eq!((ran.code, ran.out().as_str()), (1, "one\ntwo\n"));
    assert!(ran.err().contains("1234 bytes of output are missing"), "{}", ran.err());
    fs::remove_file(path).unwrap();

    let (mut job, log) = start_cat(&host);
    let mut follower = follow(&log);
    follower.read_until("first\n");
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(0).unwrap();
    // Shorter than what was read: nobody could tell otherwise.
    job.write(b"2nd\n");
    follower.read_until("2nd\n");
    fs::remove_file(&log).unwrap();
    let ran = follower.finish();
    assert_eq!((ran.code, ran.out().as_str()), (1, "first\n2nd\n"));
    assert!(ran.err().contains("was truncated") && ran.err().contains("was deleted"), "{}", ran.err());
    drop(job.child.stdin.take());
    job.wait();
}

#[test]
fn on_a_terminal_control_sequences_are_escaped_unless_asked_for() {
    let host = Host::new();
    let log = log_of(&host, &[], "printf '\\033[31mred\\n'");
    let on_terminal = |options: &[&str]| {
        let mut command = std::process::Command::new("python3");
        command.args(["-c", "import pty, sys; pty.spawn(sys.argv[1:])", env!("CARGO_BIN_EXE_iron-exec"), "logs"]);
        run(command.args(options).arg(&log).stdin(Stdio::null())).out()
    };
    assert_eq!(on_terminal(&[]).trim_end(), "\\x1b[31mred");
    assert_eq!(on_terminal(&["--raw-control"]).trim_end(), "\x1b[31mred");
    assert_eq!(logs(&[], &log).out(), "\x1b[31mred\n", "a pipe is no terminal");
}

#[test]
fn a_log_that_cannot_be_read_is_125_and_says_which() {
    let host = Host::new();
    for path in [host.log_dir.path().join("none.log"), host.log_dir.path().to_owned(), PathBuf::from("/dev/null")] {
        let ran = logs(&[], &path);
        assert_eq!(ran.code, 125);
        assert!(ran.err().contains(path.to_str().unwrap()), "{}", ran.err());
    }
    assert_eq!(run(&mut bare_tool("logs")).code, 125);
    for options in [&["--tail", "3", "--since", "1h"][..], &["--since", "yesterday"], &["--tail", "-1"], &["--escape", "--raw-control"]] {
        assert_eq!(logs(options, Path::new("x.log")).code, 125, "{options:?}");
    }
}

#[test]
fn when_the_reader_goes_printing_ends() {
    let host = Host::new();
    let log = log_of(&host, &[], "head -c 10000000 /dev/zero");
    let mut running = Running::start(bare_tool("logs").arg(&log).stdout(Stdio::piped()).stderr(Stdio::piped()));
    running.read_until("\0");
    running.close_stdout();
    assert_eq!(running.wait(), 141);
    // Also a follower of a job that still runs.
    fs::remove_file(log).unwrap();
    let (mut job, log) = start_cat(&host);
    let mut follower = follow(&log);
    follower.read_until("first\n");
    follower.close_stdout();
    job.write(b"second\n");
    assert_eq!(follower.wait(), 141);
    drop(job.child.stdin.take());
    wait_until("the job does not care", || job.child.try_wait().unwrap().is_some());
    assert_eq!(job.wait(), 0);
}
