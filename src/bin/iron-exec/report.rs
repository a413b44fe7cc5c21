//! What is said at the end: exit codes, messages, one line for people, one line of JSON.

use std::error::Error;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use iron_exec::{CgroupUsage, CpuUsage, Exit, IoUsage, MemoryUsage, OutputStream, StartError, StartFailure, Status, Step, StopReason};
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

/// A text of the library's, whose advice names methods, with the options in their place.
pub(crate) fn in_options(text: &str) -> String {
    const OPTIONS: [(&str, &str); 4] = [
        ("Builder::take_over_cgroup", "--take-over-cgroup"),
        ("Builder::enable_controllers", "--enable-controllers"),
        ("Archive::program", "--archive-program"),
        ("Archive::timeout", "--archive-timeout"),
    ];
    OPTIONS.into_iter().fold(text.to_owned(), |text, (method, option)| text.replace(method, option))
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

/// How a job, with this `memory.max` of its own, ended, in a few words.
pub(crate) fn ending(status: &Status, memory_max: Option<u64>) -> String {
    if let Some(failure) = &status.failure {
        return format!("not started: {}", in_options(&failure.to_string()));
    }
    let shortage = out_of_memory(status, memory_max);
    let mut end = match status.exit {
        Some(Exit::Code(code)) => format!("exit code {code}"),
        Some(Exit::Signal { signal, core_dumped: true }) => format!("killed by {signal} (core dumped)"),
        Some(Exit::Signal { signal, core_dumped: false }) => format!("killed by {signal}"),
        Some(Exit::Unknown) | None => "ended in an unknown way: its exit status was taken by somebody else".to_owned(),
    };
    match shortage {
        // It was a SIGKILL, and this says whose.
        Some(shortage) if status.oom_killed => end = shortage,
        Some(shortage) => end = format!("{end}, {shortage}"),
        None => {}
    }
    match status.stop_reason {
        Some(StopReason::Timeout) => format!("timeout, {end}"),
        Some(StopReason::Requested) => format!("stopped, {end}"),
        Some(StopReason::LogFault) => format!("its log could not be written, {end}"),
        Some(_) | None => end,
    }
}

/// What the out-of-memory killer did to a job with this `memory.max` of its own; `None` if it did nothing.
pub(crate) fn out_of_memory(status: &Status, memory_max: Option<u64>) -> Option<String> {
    let memory = status.cgroup_usage.as_ref().and_then(|usage| usage.memory);
    let events = memory.map(|memory| memory.events).unwrap_or_default();
    let victims = match (status.oom_killed, events.oom_kill) {
        (true, _) => "killed".to_owned(),
        (false, 0) => return None,
        // Of those that are killed together the kernel counts the first one twice.
        (false, _) if events.oom_group_kill > 0 => "its processes killed".to_owned(),
        (false, 1) => "one of its processes killed".to_owned(),
        (false, killed) => format!("{killed} of its processes killed"),
    };
    // Out of memory at another's limit, it has not come up against its own.
    let is_own = memory.is_none_or(|memory| memory.events.oom > 0);
    let place = match memory_max.filter(|_| is_own) {
        Some(max) => format!("at {}", limit(max)),
        None => "at the limit of a cgroup above, or of the machine".to_owned(),
    };
    let peak = memory.and_then(|memory| memory.peak_bytes).map(|peak| format!(", peak {}", bytes(peak)));
    Some(format!("{victims}: out of memory {place}{}", peak.unwrap_or_default()))
}

/// What of a job's output is lost; `None` if nothing is.
pub(crate) fn lost_output(status: &Status) -> Option<String> {
    let log = status.log.as_deref().map(|path| path.display().to_string()).unwrap_or_default();
    match (status.output.dropped_bytes, status.output.cut_off) {
        (0, false) if status.output.discarded_bytes > 0 => {
            let bytes = status.output.discarded_bytes;
            Some(format!("{bytes} bytes of output were dropped, as the log was full or they came too fast: see the log options"))
        }
        (0, false) => None,
        (0, true) => Some("a process that escaped the job still held its output, which was cut off there".to_owned()),
        (bytes, _) => {
            Some(format!("{bytes} bytes of output are lost, because the log {log} could not be written: is its file system full?"))
        }
    }
}

/// The summary of a job for people, in one line.
pub(crate) fn summary(status: &Status, memory_max: Option<u64>) -> String {
    let mut text = format!("{} after {}", ending(status, memory_max), seconds(status.run_time));
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

/// What a job's whole tree used, and what its limits did to it, for people, in one line. What is not known is left out.
pub(crate) fn usage_summary(usage: &CgroupUsage) -> String {
    let CpuUsage { user, system, throttled, .. } = usage.cpu;
    let mut text = format!("whole tree: cpu {} user {} system", seconds(user), seconds(system));
    if let Some(throttled) = throttled.filter(|throttled| throttled.throttled_periods > 0) {
        let percent = throttled.throttled_periods.saturating_mul(100) / throttled.periods.max(1);
        let _ = write!(text, ", throttled by cpu.max for {} in {percent}% of its periods", seconds(throttled.time));
    }
    if let Some(memory) = usage.memory {
        append_memory(&mut text, &memory);
    }
    if let Some(pids) = usage.pids {
        if let Some(peak) = pids.peak {
            let _ = write!(text, ", processes peak {peak}");
        }
        if pids.max_events > 0 {
            let _ = write!(text, ", {} refused by pids.max", times(pids.max_events));
        }
    }
    for io in usage.io.iter().flatten() {
        let (read, written) = (bytes(io.read_bytes), bytes(io.write_bytes));
        let _ = write!(text, ", disk {}:{} read {read} in {}", io.major, io.minor, io.reads);
        let _ = write!(text, ", written {written} in {}", io.writes);
    }
    text
}

fn append_memory(text: &mut String, memory: &MemoryUsage) {
    if let Some(peak) = memory.peak_bytes {
        let _ = write!(text, ", memory peak {}", bytes(peak));
    }
    for (count, what) in [(memory.events.high, "held back by memory.high"), (memory.events.max, "at memory.max")] {
        if count > 0 {
            let _ = write!(text, ", {} {what}", times(count));
        }
    }
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// `1.234s`.
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.3}s", time.as_secs_f64())
}

pub(crate) fn bytes(count: u64) -> String {
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

/// As [`bytes`], without the point where nothing is behind it.
fn limit(count: u64) -> String {
    bytes(count).replace(".0 ", " ")
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

/// As [`quoted`], for a path.
pub(crate) fn quoted_path(path: &Path) -> String {
    quoted(path.as_os_str().as_bytes())
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
    oom_killed: bool,
    stop_reason: Option<&'static str>,
    failure: Option<FailureReport>,
    started: Option<String>,
    run_time: f64,
    cpu_user: Option<f64>,
    cpu_system: Option<f64>,
    max_rss_bytes: Option<u64>,
    cgroup_usage: Option<UsageReport>,
    stdout_bytes: u64,
    stderr_bytes: u64,
    lines: u64,
    dropped_bytes: u64,
    discarded_bytes: u64,
    deleted_bytes: u64,
    rotations: u64,
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

/// What a job's whole tree used, as JSON; null is what is not known.
#[derive(Debug, Serialize)]
struct UsageReport {
    cpu_total_seconds: f64,
    cpu_user_seconds: f64,
    cpu_system_seconds: f64,
    cpu_throttled_seconds: Option<f64>,
    cpu_periods: Option<u64>,
    cpu_throttled_periods: Option<u64>,
    memory_peak_bytes: Option<u64>,
    /// How often it was held back for being above `memory.high`.
    memory_high_events: Option<u64>,
    /// How often it was about to go above `memory.max`.
    memory_max_events: Option<u64>,
    /// How often it was out of memory.
    memory_oom_events: Option<u64>,
    /// Processes that the out-of-memory killer has killed; of those that it killed together the kernel counts the first one twice.
    memory_oom_kills: Option<u64>,
    /// How often it has killed all of them together.
    memory_oom_group_kills: Option<u64>,
    pids_peak: Option<u64>,
    /// How often `pids.max` has refused one more.
    pids_max_events: Option<u64>,
    io: Option<Vec<IoReport>>,
}

#[derive(Debug, Serialize)]
struct IoReport {
    /// `MAJ:MIN`.
    device: String,
    read_bytes: u64,
    write_bytes: u64,
    discard_bytes: u64,
    read_operations: u64,
    write_operations: u64,
    discard_operations: u64,
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
            oom_killed: status.oom_killed,
            stop_reason: status.stop_reason.map(StopReason::as_str),
            failure: status.failure.as_ref().map(FailureReport::of_failure),
            started: Some(humantime::format_rfc3339_millis(status.started).to_string()),
            run_time: status.run_time.as_secs_f64(),
            cpu_user: status.usage.map(|usage| usage.user.as_secs_f64()),
            cpu_system: status.usage.map(|usage| usage.system.as_secs_f64()),
            max_rss_bytes: status.usage.map(|usage| usage.max_rss_bytes),
            cgroup_usage: status.cgroup_usage.as_ref().map(UsageReport::new),
            stdout_bytes: status.output.stdout_bytes,
            stderr_bytes: status.output.stderr_bytes,
            lines: status.output.lines,
            dropped_bytes: status.output.dropped_bytes,
            discarded_bytes: status.output.discarded_bytes,
            deleted_bytes: status.output.deleted_bytes,
            rotations: status.output.rotations,
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
            oom_killed: false,
            stop_reason: None,
            failure: Some(failure),
            started: None,
            run_time: 0.0,
            cpu_user: None,
            cpu_system: None,
            max_rss_bytes: None,
            cgroup_usage: None,
            stdout_bytes: 0,
            stderr_bytes: 0,
            lines: 0,
            dropped_bytes: 0,
            discarded_bytes: 0,
            deleted_bytes: 0,
            rotations: 0,
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
        Self::refused(in_options(&error.to_string()), error.failure())
    }
}

impl UsageReport {
    fn new(usage: &CgroupUsage) -> Self {
        let (cpu, memory, pids) = (usage.cpu, usage.memory, usage.pids);
        Self {
            cpu_total_seconds: cpu.total.as_secs_f64(),
            cpu_user_seconds: cpu.user.as_secs_f64(),
            cpu_system_seconds: cpu.system.as_secs_f64(),
            cpu_throttled_seconds: cpu.throttled.map(|throttled| throttled.time.as_secs_f64()),
            cpu_periods: cpu.throttled.map(|throttled| throttled.periods),
            cpu_throttled_periods: cpu.throttled.map(|throttled| throttled.throttled_periods),
            memory_peak_bytes: memory.and_then(|memory| memory.peak_bytes),
            memory_high_events: memory.map(|memory| memory.events.high),
            memory_max_events: memory.map(|memory| memory.events.max),
            memory_oom_events: memory.map(|memory| memory.events.oom),
            memory_oom_kills: memory.map(|memory| memory.events.oom_kill),
            memory_oom_group_kills: memory.map(|memory| memory.events.oom_group_kill),
            pids_peak: pids.and_then(|pids| pids.peak),
            pids_max_events: pids.map(|pids| pids.max_events),
            io: usage.io.as_ref().map(|devices| devices.iter().map(IoReport::new).collect()),
        }
    }
}

impl IoReport {
    fn new(usage: &IoUsage) -> Self {
        Self {
            device: format!("{}:{}", usage.major, usage.minor),
            read_bytes: usage.read_bytes,
            write_bytes: usage.write_bytes,
            discard_bytes: usage.discard_bytes,
            read_operations: usage.reads,
            write_operations: usage.writes,
            discard_operations: usage.discards,
        }
    }
}

impl FailureReport {
    fn of_failure(failure: &StartFailure) -> Self {
        Self {
            step: Some(failure.step().as_str()),
            path: failure.path().map(|path| path.to_string_lossy().into_owned()),
            errno: Some(failure.errno()).filter(|errno| *errno != 0),
            message: in_options(&failure.to_string()),
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
    use iron_exec::{PidsUsage, Throttled};

    #[test]
    fn sizes_are_readable() {
        for (count, text) in [(0, "0 bytes"), (1023, "1023 bytes"), (1024, "1.0 KiB"), (3_670_016, "3.5 MiB"), (u64::MAX, "16777215.9 TiB")]
        {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn a_limit_of_a_whole_number_of_units_is_told_without_a_point() {
        for (count, text) in [(20 << 20, "20 MiB"), (3 << 19, "1.5 MiB"), (0, "0 bytes"), (10 << 30, "10 GiB")] {
            assert_eq!(limit(count), text);
        }
    }

    #[test]
    fn the_usage_of_a_tree_is_one_line_without_what_is_not_known() {
        // The library's values cannot be made here otherwise.
        let mut usage = CgroupUsage::default();
        usage.cpu.user = Duration::from_millis(1500);
        assert_eq!(usage_summary(&usage), "whole tree: cpu 1.500s user 0.000s system");
        let mut throttled = Throttled::default();
        (throttled.time, throttled.periods, throttled.throttled_periods) = (Duration::from_secs(3), 40, 30);
        usage.cpu.throttled = Some(throttled);
        let mut memory = MemoryUsage::default();
        (memory.peak_bytes, memory.events.max, memory.events.oom_kill) = (Some(64 << 20), 12, 1);
        usage.memory = Some(memory);
        let mut pids = PidsUsage::default();
        (pids.peak, pids.max_events) = (Some(4), 1);
        usage.pids = Some(pids);
        let mut disk = IoUsage::default();
        (disk.major, disk.read_bytes, disk.reads, disk.writes) = (8, 1 << 20, 5, 0);
        usage.io = Some(vec![disk]);
        let text = "whole tree: cpu 1.500s user 0.000s system, throttled by cpu.max for 3.000s in 75% of its periods, memory peak 64.0 MiB, 12 \
                    times at memory.max, processes peak 4, once refused by pids.max, disk 8:0 read 1.0 MiB in 5, \
                    written 0 bytes in 0";
        assert_eq!(usage_summary(&usage), text);
        let json = serde_json::to_value(UsageReport::new(&usage)).unwrap();
        assert_eq!((&json["cpu_throttled_seconds"], &json["io"][0]["device"]), (&3.0.into(), &"8:0".into()));
        assert!(serde_json::to_value(UsageReport::new(&CgroupUsage::default())).unwrap()["memory_peak_bytes"].is_null());
    }

    #[test]
    fn advice_names_options_not_methods() {
        assert_eq!(in_options("(Builder::enable_controllers does it)"), "(--enable-controllers does it)");
    }

    #[test]
    fn a_quoted_text_is_short_and_harmless() {
        assert_eq!(quoted(b"echo \x1b[2J"), "echo \\x1b[2J");
        assert!(quoted(&b"x".repeat(100_000)).len() < 300);
    }
}
