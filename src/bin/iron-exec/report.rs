//! What is said at the end: exit codes, messages, one line for people, one line of JSON.

use std::error::Error;
use std::fmt::{self, Write};
use std::path::Path;
use std::time::Duration;

use iron_exec::{Exit, OutputStream, StartError, StartFailure, Status, Step, StopReason};
use rustix::io::Errno;
use serde::Serialize;

use crate::outlet::{Outlet, escape};

/// The exit codes of the tool itself; see also the help texts.
pub(crate) mod exit {
    pub(crate) const SUCCESS: u8 = 0;
    pub(crate) const NOT_ALL_WELL: u8 = 1;
    pub(crate) const TIMEOUT: u8 = 124;
    pub(crate) const OWN_FAILURE: u8 = 125;
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    pub(crate) const NOT_FOUND: u8 = 127;
    pub(crate) const SIGNAL_BASE: u8 = 128;
    /// As a filter that SIGPIPE has killed.
    pub(crate) const READER_GONE: u8 = SIGNAL_BASE + 13;
}

/// A failure of the tool itself, as a message.
#[derive(Debug)]
pub(crate) struct Fault(String);

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// `operation` failed because of `error` and what caused that.
    pub(crate) fn caused(operation: &str, error: &dyn Error) -> Self {
        Self(format!("{operation}: {}", with_causes(error)))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An error and everything that caused it, in one line.
pub(crate) fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// A message on stderr, while nothing else is being written there.
pub(crate) fn complain(message: &str) {
    say(format!("iron-exec: {message}\n").as_bytes());
}

/// Bytes on stderr, while nothing else is being written there. If nobody takes them there is nobody to tell.
pub(crate) fn say(bytes: &[u8]) {
    let mut outlet = Outlet::new();
    outlet.push(OutputStream::Stderr, bytes);
    let _ = outlet.write_all();
}

/// The exit code that says how a job ended.
pub(crate) fn exit_code(status: &Status) -> u8 {
    if let Some(failure) = &status.failure {
        return exit_code_of_failure(failure);
    }
    if status.stop_reason == Some(StopReason::Timeout) {
        return exit::TIMEOUT;
    }
    match status.exit {
        Some(Exit::Code(code)) => u8::try_from(code).unwrap_or(exit::OWN_FAILURE),
        Some(Exit::Signal { signal, .. }) => exit::SIGNAL_BASE.saturating_add(u8::try_from(signal.number()).unwrap_or(0)),
        Some(Exit::Unknown) | None => exit::OWN_FAILURE,
    }
}

/// The exit code that says why a job was not started.
pub(crate) fn exit_code_of_failure(failure: &StartFailure) -> u8 {
    match failure.step() {
        Step::Exec if failure.errno() == Errno::NOENT.raw_os_error() => exit::NOT_FOUND,
        Step::Exec | Step::Interpreter => exit::NOT_EXECUTABLE,
        _ => exit::OWN_FAILURE,
    }
}

/// How a job ended, in a few words.
pub(crate) fn ending(status: &Status) -> String {
    if let Some(failure) = &status.failure {
        return format!("not started: {failure}");
    }
    let end = match status.exit {
        Some(Exit::Code(code)) => format!("exit code {code}"),
        Some(Exit::Signal { signal, core_dumped: true }) => format!("killed by {signal} (core dumped)"),
        Some(Exit::Signal { signal, core_dumped: false }) => format!("killed by {signal}"),
        Some(Exit::Unknown) | None => "ended in an unknown way: its exit status was taken by somebody else".to_owned(),
    };
    match status.stop_reason {
        Some(StopReason::Timeout) => format!("timeout, {end}"),
        Some(StopReason::Requested) => format!("stopped, {end}"),
        Some(_) | None => end,
    }
}

/// What of a job's output is lost; `None` if nothing is.
pub(crate) fn lost_output(status: &Status) -> Option<String> {
    let log = status.log.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    match (status.output.dropped_bytes, status.output.cut_off) {
        (0, false) => None,
        (0, true) => Some("a process that escaped the job still held its output, which was cut off there".to_owned()),
        (bytes, _) => {
            Some(format!("{bytes} bytes of output are lost, because the log {log} could not be written: is its file system full?"))
        }
    }
}

/// The summary of a job for people, in one line.
pub(crate) fn summary(status: &Status) -> String {
    let mut text = format!("{} after {}", ending(status), seconds(status.run_time));
    if let Some(usage) = &status.usage {
        let (user, system) = (seconds(usage.user), seconds(usage.system));
        let _ = write!(text, ", cpu {user} user {system} system, max rss {}", bytes(usage.max_rss_bytes));
    }
    if let Some(log) = &status.log {
        let output = status.output.stdout_bytes + status.output.stderr_bytes;
        let _ = write!(text, ", output {output} bytes in {} lines, log {}", status.output.lines, log.display());
    }
    text
}

/// `1.234s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut unit = "bytes";
    let mut whole = count;
    let mut tenths = 0;
    for larger in UNITS {
        if whole < 1024 {
            break;
        }
        (unit, tenths, whole) = (larger, whole % 1024 * 10 / 1024, whole / 1024);
    }
    if unit == "bytes" { format!("{whole} {unit}") } else { format!("{whole}.{tenths} {unit}") }
}

/// A text of somebody else's for a message: one line, not too long, nothing that a terminal obeys.
pub(crate) fn quoted(text: &[u8]) -> String {
    const CHARACTERS_MAX: usize = 200;
    let escaped = String::from_utf8_lossy(&escape(text)).into_owned();
    match escaped.char_indices().nth(CHARACTERS_MAX) {
        Some((end, _)) => format!("{} ...", &escaped[..end]),
        None => escaped,
    }
}

/// The status of a job as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct JobReport {
    id: Option<String>,
    name: Option<String>,
    pid: Option<i32>,
    state: &'static str,
    /// As `Status::exit_code`: -1 where there is none.
    exit_code: i32,
    signal: Option<String>,
    core_dumped: bool,
    stop_reason: Option<&'static str>,
    failure: Option<FailureReport>,
    started: Option<String>,
    run_time: f64,
    cpu_user: Option<f64>,
    cpu_system: Option<f64>,
    max_rss_bytes: Option<u64>,
    stdout_bytes: u64,
    stderr_bytes: u64,
    lines: u64,
    dropped_bytes: u64,
    cut_off: bool,
    log: Option<String>,
    cgroup: Option<String>,
    cgroup_left: bool,
    rung: Option<&'static str>,
    /// Why on this rung.
    rung_reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct FailureReport {
    step: Option<&'static str>,
    path: Option<String>,
    errno: Option<i32>,
    message: String,
}

/// The status of one job of a batch as JSON.
#[derive(Debug, Serialize)]
pub(crate) struct LineReport<'a> {
    pub(crate) line: u64,
    pub(crate) command: &'a str,
    #[serde(flatten)]
    pub(crate) job: JobReport,
}

impl JobReport {
    /// A job that has finished. `log` is where its log is now, if it still is.
    pub(crate) fn finished(status: &Status, log: Option<&Path>) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            id: Some(status.id.to_string()),
            name: Some(status.name.clone()),
            pid: Some(status.pid),
            state: status.state.as_str(),
            exit_code: status.exit_code,
            signal: status.signal().map(|signal| signal.to_string()),
            core_dumped: matches!(status.exit, Some(Exit::Signal { core_dumped: true, .. })),
            stop_reason: status.stop_reason.map(StopReason::as_str),
            failure: status.failure.as_ref().map(FailureReport::of_failure),
            started: Some(humantime::format_rfc3339_millis(status.started).to_string()),
            run_time: status.run_time.as_secs_f64(),
            cpu_user: status.usage.map(|usage| usage.user.as_secs_f64()),
            cpu_system: status.usage.map(|usage| usage.system.as_secs_f64()),
            max_rss_bytes: status.usage.map(|usage| usage.max_rss_bytes),
            stdout_bytes: status.output.stdout_bytes,
            stderr_bytes: status.output.stderr_bytes,
            lines: status.output.lines,
            dropped_bytes: status.output.dropped_bytes,
            cut_off: status.output.cut_off,
            log: log.map(text),
            cgroup: status.cgroup.as_deref().map(text),
            cgroup_left: status.cgroup_left,
            rung: Some(status.rung.as_str()),
            rung_reason: Some(status.rung_reason.as_str()),
        }
    }

    /// A job of which nothing ever existed.
    pub(crate) fn refused(message: String, failure: Option<&StartFailure>) -> Self {
        let failure = match failure {
            Some(failure) => FailureReport::of_failure(failure),
            None => FailureReport { step: None, path: None, errno: None, message },
        };
        Self {
            id: None,
            name: None,
            pid: None,
            state: "failed",
            exit_code: -1,
            signal: None,
            core_dumped: false,
            stop_reason: None,
            failure: Some(failure),
            started: None,
            run_time: 0.0,
            cpu_user: None,
            cpu_system: None,
            max_rss_bytes: None,
            stdout_bytes: 0,
            stderr_bytes: 0,
            lines: 0,
            dropped_bytes: 0,
            cut_off: false,
            log: None,
            cgroup: None,
            cgroup_left: false,
            rung: None,
            rung_reason: None,
        }
    }

    /// As [`refused`](Self::refused), for an error of `start`.
    pub(crate) fn not_started(error: &StartError) -> Self {
        Self::refused(with_causes(error), error.failure())
    }
}

impl FailureReport {
    fn of_failure(failure: &StartFailure) -> Self {
        Self {
            step: Some(failure.step().as_str()),
            path: failure.path().map(|path| path.to_string_lossy().into_owned()),
            errno: Some(failure.errno()).filter(|errno| *errno != 0),
            message: failure.to_string(),
        }
    }
}

/// A value as one line of JSON, line feed included.
pub(crate) fn json_line(value: &impl Serialize) -> Result<Vec<u8>, Fault> {
    let mut line = serde_json::to_vec(value).map_err(|error| Fault::caused("writing JSON failed", &error))?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        for (count, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3_670_016, "3.5 MiB"), (u64::MAX, "16777215.9 TiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_quoted_text_is_short_and_harmless() {
        assert_eq!(quoted(b"echo \x1b[2J"), "echo \\x1b[2J");
        assert!(quoted(&b"x".repeat(100_000)).len() < 300);
    }
}
