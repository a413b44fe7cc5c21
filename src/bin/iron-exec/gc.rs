//! `iron-exec gc`: one pass of retention over a log directory, or what it would do.

use std::fmt::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use iron_exec::{
    Archive, CgroupBase, Events, OutputStream, PlannedLog, Retention, RetentionFailure, RetentionPlan, RetentionStats, Worker,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::Serialize;

use crate::args::GcArgs;
use crate::outlet::{Outlet, write_failure};
use crate::report::{self, Fault, bytes, exit, in_options, quoted, quoted_path};
use crate::signals::StopRequests;

/// Failures that are named; of more it is said how many there were.
const FAILURES_NAMED_MAX: u64 = 10;

/// One pass, or more than one if somebody else has the directory change: the next one that begins by itself comes too late to matter.
const NEVER: Duration = Duration::from_hours(24);

/// A log that would be deleted, as JSON.
#[derive(Debug, Serialize)]
struct LogLine {
    log: String,
    job: String,
    state: &'static str,
    files: u64,
    bytes: u64,
    age_seconds: u64,
    reason: &'static str,
}

/// What would be done, as JSON.
#[derive(Debug, Serialize)]
struct PlanReport {
    dry_run: bool,
    logs: u64,
    bytes: u64,
    delete: Vec<LogLine>,
    leftovers: Vec<String>,
    failures: Vec<FailureLine>,
}

/// What was done, as JSON.
#[derive(Debug, Serialize)]
struct DoneReport {
    dry_run: bool,
    complete: bool,
    logs: u64,
    bytes: u64,
    logs_deleted: u64,
    files_deleted: u64,
    bytes_deleted: u64,
    files_archived: u64,
    bytes_archived: u64,
    leftovers_sealed: u64,
    failures: u64,
    last_failure: Option<FailureLine>,
}

#[derive(Debug, Serialize)]
struct FailureLine {
    operation: String,
    path: Option<String>,
    errno: i32,
    message: String,
}

impl From<&RetentionFailure> for FailureLine {
    fn from(failure: &RetentionFailure) -> Self {
        Self {
            operation: failure.operation().to_owned(),
            path: failure.path().map(lossy),
            errno: failure.errno(),
            message: in_options(&failure.to_string()),
        }
    }
}

/// Cleans up, or says what that would do; returns the exit code.
pub(crate) fn run(args: &GcArgs) -> Result<u8, Fault> {
    let retention = retention(args)?;
    let mut outlet = Outlet::new();
    let code = if args.dry_run { plan(args, &retention, &mut outlet)? } else { collect(args, retention, &mut outlet)? };
    match outlet.write_all() {
        Ok(()) => Ok(code),
        Err((_, Errno::PIPE)) => Ok(exit::READER_GONE),
        Err((stream, errno)) => Err(Fault::new(write_failure(stream, errno))),
    }
}

fn retention(args: &GcArgs) -> Result<Retention, Fault> {
    let mut retention = Retention::new().every(NEVER);
    if let Some(age) = args.max_age {
        retention = retention.age_max(age);
    }
    if let Some(bytes) = args.max_bytes {
        retention = retention.bytes_max(bytes);
    }
    if let Some(logs) = args.max_logs {
        retention = retention.logs_max(logs);
    }
    if let Some(url) = &args.archive_to {
        let program = match &args.archive_program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(|error| Fault::caused("finding our own program failed", &error))?,
        };
        let mut archive = Archive::new(url).program(program).compress(args.archive_compress);
        if let Some(timeout) = args.archive_timeout {
            archive = archive.timeout(timeout);
        }
        retention = retention.archive(archive);
    }
    Ok(retention)
}

/// Says what a pass would do.
fn plan(args: &GcArgs, retention: &Retention, outlet: &mut Outlet) -> Result<u8, Fault> {
    let plan = retention.plan(&args.log_dir).map_err(|failure| Fault::new(message(&failure)))?;
    let now = SystemTime::now();
    if args.json {
        let report = PlanReport {
            dry_run: true,
            logs: plan.logs,
            bytes: plan.bytes,
            delete: plan.deleted.iter().map(|log| log_line(log, now)).collect(),
            leftovers: plan.leftovers.iter().map(lossy).collect(),
            failures: plan.failures.iter().map(FailureLine::from).collect(),
        };
        outlet.push(OutputStream::Stdout, &report::json_line(&report)?);
    } else {
        outlet.push(OutputStream::Stdout, plan_text(&plan, now).as_bytes());
    }
    for failure in plan.failures.iter().take(FAILURES_NAMED_MAX as usize) {
        outlet.push_message(&message(failure));
    }
    Ok(if plan.failures.is_empty() { exit::SUCCESS } else { exit::NOT_ALL_WELL })
}

/// Runs a pass to its end.
fn collect(args: &GcArgs, retention: Retention, outlet: &mut Outlet) -> Result<u8, Fault> {
    let failed = |error: &dyn std::error::Error| Fault::caused("cleaning up failed", error);
    let requests = StopRequests::listen().map_err(|error| failed(&error))?;
    let builder = Worker::builder().log_dir(&args.log_dir).cgroup_base(CgroupBase::Off).retention(retention);
    let mut worker = builder.build().map_err(|error| failed(&error))?;
    let mut events = Events::new();
    let (mut failures, mut is_complete) = (0, true);
    while worker.retention_stats().passes == 0 {
        wait(&worker, &requests)?;
        if requests.take() > 0 {
            is_complete = false;
            break;
        }
        worker.turn(&mut events, Some(Duration::ZERO)).map_err(|error| failed(&error))?;
        let stats = worker.retention_stats();
        if let Some(failure) = stats.last_failure.filter(|_| stats.failures > failures && failures < FAILURES_NAMED_MAX) {
            outlet.push_message(&message(&failure));
        }
        failures = stats.failures;
    }
    let stats = worker.retention_stats();
    // The command that archives is stopped with it.
    drop(worker);
    if !is_complete {
        outlet.push_message("stopped before everything was cleaned up");
    }
    if args.json {
        outlet.push(OutputStream::Stdout, &report::json_line(&done_report(&stats, is_complete))?);
    } else {
        outlet.push(OutputStream::Stdout, done_text(&stats).as_bytes());
    }
    Ok(if is_complete && stats.failures == 0 { exit::SUCCESS } else { exit::NOT_ALL_WELL })
}

fn wait(worker: &Worker, requests: &StopRequests) -> Result<(), Fault> {
    let mut waited = [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(requests.as_fd(), PollFlags::IN)];
    match poll(&mut waited, None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(Fault::caused("waiting failed", &std::io::Error::from(errno))),
    }
}

fn done_report(stats: &RetentionStats, complete: bool) -> DoneReport {
    DoneReport {
        dry_run: false,
        complete,
        logs: stats.logs,
        bytes: stats.bytes,
        logs_deleted: stats.logs_deleted,
        files_deleted: stats.files_deleted,
        bytes_deleted: stats.bytes_deleted,
        files_archived: stats.files_archived,
        bytes_archived: stats.bytes_archived,
        leftovers_sealed: stats.leftovers_sealed,
        failures: stats.failures,
        last_failure: stats.last_failure.as_ref().map(FailureLine::from),
    }
}

fn done_text(stats: &RetentionStats) -> String {
    let mut text =
        format!("deleted {} ({} in {})", count(stats.logs_deleted, "log"), bytes(stats.bytes_deleted), count(stats.files_deleted, "file"));
    if stats.files_archived > 0 {
        let _ = write!(text, ", archived {}", count(stats.files_archived, "file"));
    }
    if stats.leftovers_sealed > 0 {
        let _ = write!(text, ", sealed {} of dead workers", count(stats.leftovers_sealed, "file"));
    }
    if stats.failures > 0 {
        let _ = write!(text, ", {}", count(stats.failures, "failure"));
    }
    let _ = writeln!(text, "; {} left ({})", count(stats.logs, "log"), bytes(stats.bytes));
    text
}

/// The plan as a table.
fn plan_text(plan: &RetentionPlan, now: SystemTime) -> String {
    let head = ["STATE", "SIZE", "AGE", "WHY", "LOG"].map(str::to_owned);
    let rows = plan.deleted.iter().map(|log| {
        let name = log.path.file_name().map(Path::new).map(quoted_path).unwrap_or_default();
        [log.state.as_str().to_owned(), bytes(log.bytes), age(log, now), log.reason.as_str().to_owned(), name]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
    let [state, size, old, why] = [0, 1, 2, 3].map(width);
    let mut text = String::new();
    if !plan.deleted.is_empty() {
        for [state_cell, size_cell, old_cell, why_cell, log] in &rows {
            let _ = writeln!(text, "{state_cell:state$}  {size_cell:>size$}  {old_cell:>old$}  {why_cell:why$}  {log}");
        }
    }
    let gone: u64 = plan.deleted.iter().map(|log| log.bytes).sum();
    let _ = write!(text, "would delete {} of {} ({} of {})", plan.deleted.len(), count(plan.logs, "log"), bytes(gone), bytes(plan.bytes));
    if !plan.leftovers.is_empty() {
        let _ = write!(text, ", and first seal {} of dead workers", count(plan.leftovers.len() as u64, "file"));
    }
    text.push('\n');
    text
}

fn log_line(log: &PlannedLog, now: SystemTime) -> LogLine {
    LogLine {
        log: lossy(&log.path),
        job: log.job.to_string(),
        state: log.state.as_str(),
        files: log.files,
        bytes: log.bytes,
        age_seconds: now.duration_since(log.finished).unwrap_or_default().as_secs(),
        reason: log.reason.as_str(),
    }
}

/// How long ago a log was finished, in its two largest units.
fn age(log: &PlannedLog, now: SystemTime) -> String {
    let seconds = now.duration_since(log.finished).unwrap_or_default().as_secs();
    let text = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A failure in one line, with our options in it.
fn message(failure: &RetentionFailure) -> String {
    quoted(in_options(&failure.to_string()).as_bytes())
}

fn count(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

fn lossy(path: impl AsRef<Path>) -> String {
    path.as_ref().to_string_lossy().into_owned()
}
