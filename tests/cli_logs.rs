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
    for options in [&["--timestamps"][..], &["--stream", "stdout"]] {
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

#[test]
fn a_log_that_cannot_be_read_is_125_and_says_which() {
    let host = Host::new();
    for path in [host.log_dir.path().join("none.log"), host.log_dir.path().to_owned(), PathBuf::from("/dev/null")] {
        let ran = logs(&[], &path);
        assert_eq!(ran.code, 125);
        assert!(ran.err().contains(path.to_str().unwrap()), "{}", ran.err());
    }
    assert_eq!(run(&mut bare_tool("logs")).code, 125);
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
