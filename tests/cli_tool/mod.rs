//! What the tests of the command-line tool share: the tool as a process, run to its end or watched while it runs, always with a deadline.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::{DEADLINE, Host, wait_until};

/// The tool's `subcommand`, with the directories of `host`.
pub fn tool(host: &Host, subcommand: &str) -> Command {
    let mut command = bare_tool(subcommand);
    command.arg("--log-dir").arg(host.log_dir.path());
    match &host.base {
        Some(base) => command.arg("--cgroup-base").arg(base),
        None => command.arg("--no-cgroup"),
    };
    command
}

/// The tool's `subcommand` and nothing more; its stdin is empty.
pub fn bare_tool(subcommand: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iron-exec"));
    command.arg(subcommand).stdin(Stdio::null());
    command
}

/// What a run to the end gave.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Ran {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The lines of stdout, each a JSON value.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        self.out().lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ran {
    Running::start(command.stdout(Stdio::piped()).stderr(Stdio::piped())).finish()
}

/// Runs a command to its end with `input` as its stdin.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(input).expect("the input is written");
    std::io::Seek::rewind(&mut file).expect("the input is read from its start");
    run(command.stdin(file))
}

/// The tool while it runs. Dropping it kills it.
pub struct Running {
    pub child: Child,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    pub seen: Vec<u8>,
    seen_err: Vec<u8>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().expect("the tool starts");
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        Self { child, stdout, stderr, seen: Vec::new(), seen_err: Vec::new() }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the tool is there");
    }

    /// Writes to the tool's stdin.
    pub fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().expect("stdin is piped").write_all(bytes).expect("stdin takes it");
    }

    /// Reads its stdout until `text` has come.
    pub fn read_until(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !String::from_utf8_lossy(&self.seen).contains(text) {
            assert!(self.read_some(deadline), "stdout ended without {text:?}: {}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Closes our end of its stdout.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Reads the rest of its output and waits for its end.
    pub fn finish(mut self) -> Ran {
        let deadline = Instant::now() + DEADLINE;
        while self.stdout.is_some() || self.stderr.is_some() {
            self.read_some(deadline);
        }
        let code = self.wait();
        Ran { code, stdout: std::mem::take(&mut self.seen), stderr: std::mem::take(&mut self.seen_err) }
    }

    /// Waits for its end, whatever it still has to say; returns the exit code (128 + N for signal N).
    pub fn wait(&mut self) -> i32 {
        let mut status = None;
        wait_until("the tool ends", || {
            status = self.child.try_wait().expect("the tool is our child");
            status.is_some()
        });
        let status = status.expect("it has ended");
        status.code().unwrap_or_else(|| 128 + status.signal().expect("it ended somehow"))
    }

    /// The number of its threads.
    pub fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).expect("the tool is there").count()
    }

    /// Reads once from whichever output has something; an output that has ended goes. `false`: stdout has ended.
    fn read_some(&mut self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).expect("a sane time");
        let fds = [self.stdout.as_ref().map(AsFd::as_fd), self.stderr.as_ref().map(AsFd::as_fd)];
        let mut waited: Vec<PollFd<'_>> = fds.into_iter().flatten().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let ready = rustix::io::retry_on_intr(|| poll(&mut waited, Some(&timeout))).expect("poll works");
        assert!(ready > 0, "the deadline has passed; stdout so far: {}", String::from_utf8_lossy(&self.seen));
        let mut is_ready = waited.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>().into_iter();
        let mut buffer = [0; 16 << 10];
        if self.stdout.is_some() && is_ready.next() == Some(true) {
            match self.stdout.as_mut().expect("it is there").read(&mut buffer).expect("stdout is readable") {
                0 => self.stdout = None,
                count => self.seen.extend_from_slice(&buffer[..count]),
            }
        }
        if self.stderr.is_some() && is_ready.next() == Some(true) {
            match self.stderr.as_mut().expect("it is there").read(&mut buffer).expect("stderr is readable") {
                0 => self.stderr = None,
                count => self.seen_err.extend_from_slice(&buffer[..count]),
            }
        }
        self.stdout.is_some()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The one log in the host's directory.
pub fn only_log(host: &Host) -> std::path::PathBuf {
    let logs = host.logs();
    assert_eq!(logs.len(), 1, "{logs:?}");
    host.log_dir.path().join(&logs[0])
}

/// Nothing but logs is left of what ran: no cgroup, no lock. (Where files have no attributes, there is the table that says what the logs are.)
pub fn assert_nothing_left(host: &Host) {
    assert_eq!(host.cgroups(), Vec::<String>::new());
    assert!(host.base.as_ref().is_none_or(|base| !base.exists()), "the cgroup base is gone");
    let entries = fs::read_dir(host.log_dir.path()).expect("the log directory").flatten().map(|entry| entry.file_name());
    let is_table = |name: &std::ffi::OsStr| name.to_string_lossy().ends_with(".logs");
    let holds_tables_only = |name: &std::ffi::OsStr| {
        fs::read_dir(host.log_dir.path().join(name))
            .is_ok_and(|mut entries| entries.all(|entry| is_table(&entry.expect("an entry").file_name())))
    };
    let others: Vec<_> = entries.filter(|name| !name.to_string_lossy().ends_with(".log") && !holds_tables_only(name)).collect();
    assert!(others.is_empty(), "{others:?}");
}
