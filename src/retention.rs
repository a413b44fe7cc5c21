//! Floor 4: retention put together: passes over the log directory, in steps short enough for a turn of the loop.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{MemfdFlags, SealFlags};

use crate::kernel::log_dir::LogDir;
use crate::kernel::log_dir::scan::{Deletion, Found, LogScan};
use crate::lent::unix_nanos;
use crate::logic::archive::{self, Outcome};
use crate::logic::retention::{Bounds, Doomed, FileSeen, Planner};
use crate::model::command::Command;
use crate::model::id::JobId;
use crate::model::output::Capture;
use crate::model::retention::{Archive, PlannedLog, Retention, RetentionFailure, RetentionPlan, RetentionStats};
use crate::model::settings::EnvBase;
use crate::model::status::{Exit, Status, StopReason};

/// The time between two steps of a pass: the loop is the jobs' first of all.
const STEP_PAUSE: Duration = Duration::from_millis(1);

/// Files deleted in one step: an unlink may cost 400 us.
const UNLINKS_PER_STEP: usize = 16;

/// Bytes of deleted files after which a step ends: to free the blocks of a file takes time with its size.
const UNLINKED_BYTES_PER_STEP: u64 = 64 << 20;

/// Files that one call of the archive's command gets.
const ARCHIVE_FILES_MAX: usize = 64;

/// Bytes that these have together, unless one alone has more: a call has to be through within its timeout.
const ARCHIVE_BYTES_MAX: u64 = 1 << 30;

/// Calls in a row that store nothing after which a pass tries no more. The next one begins behind their files.
const FRUITLESS_CALLS_MAX: usize = 4;

/// Bytes of its report.
const REPORT_BYTES_MAX: u64 = 1 << 20;

/// The descriptor on which the command reports.
const REPORT_FD: i32 = 3;

/// How long, at most, nothing is archived after it has failed.
const ARCHIVE_WAIT_MAX: Duration = Duration::from_hours(1);

/// Files that could not be deleted after which a pass is given up: where the directory cannot be written, none can.
const FAILURES_PER_PASS_MAX: usize = 16;

/// Logs that a step forgets at the end of a pass.
const FORGOTTEN_PER_STEP: usize = 4096;

/// What a step of a pass leaves for the worker to do.
#[derive(Debug, Default)]
pub(crate) struct Step {
    /// Jobs whose logs were deleted.
    pub(crate) deleted: Vec<JobId>,
    /// A command to be run; [`Collector::archive_ended`] is to be told of its end.
    pub(crate) archive: Option<Box<Command>>,
    /// Jobs that finished before this time may be forgotten.
    pub(crate) forget_before: Option<SystemTime>,
    /// Files that were looked at.
    pub(crate) looked_at: usize,
    /// Files that were to be deleted.
    pub(crate) unlinked: usize,
    /// Their bytes.
    pub(crate) unlinked_bytes: u64,
}

/// How a call of the archive's command ended.
#[derive(Debug)]
pub(crate) enum ArchiveEnd {
    /// With this exit code.
    Code(i32),
    /// It was killed, or has ended in an unknown way.
    Killed {
        /// What happened.
        detail: String,
    },
    /// It was not started.
    Failed {
        /// The error number; 0 for none.
        errno: i32,
        /// What happened.
        detail: String,
    },
}

impl ArchiveEnd {
    pub(crate) fn of(status: &Status) -> Self {
        if let Some(failure) = &status.failure {
            let advice = "is its program there, and to be found in the PATH that it gets? Archive::program names another";
            return Self::Failed { errno: failure.errno(), detail: format!("the command was not started: {failure} ({advice})") };
        }
        let detail = match (status.stop_reason, status.exit) {
            (Some(StopReason::Timeout), _) => "the command took longer than Archive::timeout".to_owned(),
            (_, Some(Exit::Code(code))) => return Self::Code(code),
            (_, Some(Exit::Signal { signal, .. })) => format!("the command was killed by {signal}"),
            _ => "the command ended in an unknown way".to_owned(),
        };
        Self::Killed { detail }
    }
}

/// Deletes what is to go, a step at a time.
#[derive(Debug)]
pub(crate) struct Collector {
    retention: Retention,
    env_base: EnvBase,
    log_dir: PathBuf,
    pass: Option<Box<Pass>>,
    /// When the next step is due; `None` while the archive's command runs.
    due: Option<Instant>,
    /// Whether another pass is to follow at once.
    is_asked_again: bool,
    /// Until when nothing is archived, and how long that wait was.
    archive_wait: Option<(Instant, Duration)>,
    /// How many of the oldest logs the next pass leaves out: with these the last one did not get anywhere.
    archive_skip: usize,
    stats: RetentionStats,
}

/// One pass over the directory.
#[derive(Debug)]
struct Pass {
    scan: LogScan,
    planner: Planner,
    stage: Stage,
    /// Files that are to go, in order.
    doomed: VecDeque<Victim>,
    /// Logs of which something could not be deleted: the rest of them stays, too.
    spoiled: HashSet<JobId>,
    /// How many files could not be deleted.
    failures: usize,
    /// The last calls of the archive's command, as far as they stored nothing.
    fruitless_calls: usize,
    has_stored: bool,
    has_seen_all: bool,
    /// Whether what it has found was taken note of.
    is_counted: bool,
}

#[derive(Debug)]
enum Stage {
    Scanning,
    ClearingLocks,
    /// What the planner says is deleted.
    Deleting,
    /// The command runs.
    Archiving(Batch),
    /// What it has stored is deleted.
    DeletingStored(VecDeque<Victim>),
    /// The jobs that are to be forgotten are named, and the pass lets go of what it knows.
    Forgetting,
}

/// A file that is to go.
#[derive(Clone, Debug)]
struct Victim {
    job: JobId,
    name: String,
    file: FileSeen,
    /// Whether its log is gone with it.
    is_last: bool,
}

/// The files of one call of the archive's command.
#[derive(Debug)]
struct Batch {
    victims: Vec<Victim>,
    report: OwnedFd,
}

impl Collector {
    pub(crate) fn new(retention: Retention, env_base: EnvBase, log_dir: &LogDir, now: Instant) -> Self {
        Self {
            retention,
            env_base,
            log_dir: log_dir.path().to_owned(),
            pass: None,
            due: Some(now),
            is_asked_again: false,
            archive_wait: None,
            archive_skip: 0,
            stats: RetentionStats::default(),
        }
    }

    /// When the next step is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(crate) fn stats(&self) -> RetentionStats {
        RetentionStats { running: self.pass.is_some(), ..self.stats.clone() }
    }

    /// A pass is to begin now, or to follow the one that goes on.
    pub(crate) fn ask(&mut self, now: Instant) {
        self.archive_wait = None;
        if self.pass.is_some() {
            self.is_asked_again = true;
        } else {
            self.due = Some(now);
        }
    }

    /// Does the step that is due. `wall_now` is in nanoseconds since 1970.
    pub(crate) fn step(&mut self, now: Instant, wall_now: u64, log_dir: &LogDir) -> Step {
        let mut step = Step::default();
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => match log_dir.scan() {
                Ok(scan) => Box::new(Pass::new(scan, &self.retention)),
                Err(failure) => {
                    self.fail(failure);
                    self.end_pass(now);
                    return step;
                }
            },
        };
        let is_over = self.go_on(&mut pass, now, wall_now, &mut step);
        if is_over {
            self.end_pass(now);
            return step;
        }
        self.due = if matches!(pass.stage, Stage::Archiving(_)) { None } else { now.checked_add(STEP_PAUSE) };
        self.pass = Some(pass);
        step
    }

    /// The archive's command has ended.
    pub(crate) fn archive_ended(&mut self, end: &ArchiveEnd, now: Instant) {
        self.due = Some(now);
        let Some(mut pass) = self.pass.take() else { return };
        if let Stage::Archiving(batch) = std::mem::replace(&mut pass.stage, Stage::Forgetting) {
            let stored = self.judge(&batch, end, &mut pass);
            // Whether it may have been for these files that nothing was stored: then those behind them have their turn.
            let may_be_files = matches!(end, ArchiveEnd::Code(0 | 1) | ArchiveEnd::Killed { .. });
            if !stored.is_empty() {
                self.archive_wait = None;
                (pass.fruitless_calls, pass.has_stored) = (0, true);
                pass.stage = Stage::DeletingStored(stored);
            } else if !may_be_files {
                self.leave_archive_alone(now);
            } else {
                pass.fruitless_calls += 1;
                if pass.fruitless_calls < FRUITLESS_CALLS_MAX {
                    pass.stage = Stage::Deleting;
                } else {
                    self.archive_skip = pass.spoiled.len();
                    self.end_archiving(&mut pass, now);
                }
            }
        }
        self.pass = Some(pass);
    }

    /// A pass archives nothing more.
    fn end_archiving(&mut self, pass: &mut Pass, now: Instant) {
        if pass.fruitless_calls > 0 && !pass.has_stored {
            self.leave_archive_alone(now);
        }
        pass.stage = Stage::Forgetting;
    }

    /// Nothing is archived for a while, and for longer from time to time.
    fn leave_archive_alone(&mut self, now: Instant) {
        let wait = self.archive_wait.map_or(self.retention.every, |(_, wait)| wait.saturating_mul(2)).min(ARCHIVE_WAIT_MAX);
        self.archive_wait = now.checked_add(wait).map(|until| (until, wait));
    }

    /// One step of a pass; whether that is over.
    fn go_on(&mut self, pass: &mut Pass, now: Instant, wall_now: u64, step: &mut Step) -> bool {
        match &mut pass.stage {
            Stage::Scanning => self.scan(pass, wall_now, step),
            Stage::ClearingLocks => {
                if !pass.scan.clear_locks() {
                    let may_delete = self.archive_wait.is_none_or(|(until, _)| until <= now);
                    pass.stage = if may_delete { Stage::Deleting } else { Stage::Forgetting };
                }
            }
            Stage::Deleting => match self.retention.archive.clone() {
                Some(archive) => self.archive(&archive, pass, (now, wall_now), step),
                None => self.delete(pass, wall_now, step),
            },
            Stage::DeletingStored(stored) => {
                let mut stored = std::mem::take(stored);
                for _ in 0..UNLINKS_PER_STEP {
                    let Some(victim) = stored.pop_front() else { break };
                    if !self.delete_one(pass, &victim, step) {
                        // What comes after it of its log stays, too.
                        let (rest, others) = stored.into_iter().partition(|other| other.job == victim.job);
                        stored = others;
                        pass.put_back(rest);
                    }
                    if step.unlinked_bytes >= UNLINKED_BYTES_PER_STEP {
                        break;
                    }
                }
                pass.stage = match (stored.is_empty(), pass.is_given_up()) {
                    (_, true) => {
                        pass.put_back(stored);
                        Stage::Forgetting
                    }
                    (true, false) => Stage::Deleting,
                    (false, false) => Stage::DeletingStored(stored),
                };
            }
            Stage::Forgetting => {
                if !std::mem::replace(&mut pass.is_counted, true) {
                    let doomed = std::mem::take(&mut pass.doomed);
                    pass.put_back(doomed);
                    if pass.has_seen_all {
                        (self.stats.logs, self.stats.bytes) = (pass.planner.logs(), pass.planner.bytes());
                    }
                    step.forget_before = self.retention.age_max.and_then(|age| wall_time(wall_now).checked_sub(age));
                }
                return !pass.scan.forget(FORGOTTEN_PER_STEP) && !pass.planner.forget(FORGOTTEN_PER_STEP);
            }
            Stage::Archiving(_) => {}
        }
        false
    }

    fn scan(&mut self, pass: &mut Pass, wall_now: u64, step: &mut Step) {
        let Pass { scan, planner, .. } = pass;
        let stats = &mut self.stats;
        let more = scan.step(wall_now, |found| match found {
            Found::Log(name, seen) => {
                step.looked_at += 1;
                planner.add(&name, seen);
            }
            Found::Leftover(_) => stats.leftovers_sealed += 1,
            Found::Failure(failure) => note(stats, failure),
        });
        pass.stage = match more {
            Ok(true) => return,
            Ok(false) => {
                pass.has_seen_all = true;
                Stage::ClearingLocks
            }
            Err(failure) => {
                self.fail(failure);
                Stage::Forgetting
            }
        };
    }

    /// Deletes what is next, without an archive.
    fn delete(&mut self, pass: &mut Pass, wall_now: u64, step: &mut Step) {
        for _ in 0..UNLINKS_PER_STEP {
            let Some(victim) = pass.next_victim(wall_now) else {
                pass.stage = Stage::Forgetting;
                return;
            };
            if !pass.is_spoiled(&victim) {
                self.delete_one(pass, &victim, step);
            }
            if step.unlinked_bytes >= UNLINKED_BYTES_PER_STEP {
                break;
            }
        }
        if pass.is_given_up() {
            pass.stage = Stage::Forgetting;
        }
    }

    /// Deletes a file; `false` if it is still there.
    fn delete_one(&mut self, pass: &mut Pass, victim: &Victim, step: &mut Step) -> bool {
        step.unlinked += 1;
        step.unlinked_bytes = step.unlinked_bytes.saturating_add(victim.file.bytes);
        match pass.scan.delete(&victim.name, victim.file) {
            Ok(Deletion::Deleted) => {
                self.stats.files_deleted += 1;
                self.stats.bytes_deleted += victim.file.bytes;
                self.stats.logs_deleted += u64::from(victim.is_last);
            }
            // Somebody else keeps the directory in order, too.
            Ok(Deletion::Absent) => {}
            Ok(Deletion::Changed) => {
                pass.spoil(victim);
                return false;
            }
            Err(error) => {
                pass.failures += 1;
                pass.spoil(victim);
                self.fail(RetentionFailure::at("deleting", pass.scan.path_of(&victim.name), &error));
                return false;
            }
        }
        if victim.is_last {
            step.deleted.push(victim.job);
        }
        true
    }

    /// Has the next files archived, if there are any.
    fn archive(&mut self, archive: &Archive, pass: &mut Pass, (now, wall_now): (Instant, u64), step: &mut Step) {
        for _ in 0..ARCHIVE_FILES_MAX {
            if pass.spoiled.len() >= self.archive_skip {
                break;
            }
            match pass.next_victim(wall_now) {
                Some(victim) if pass.is_spoiled(&victim) => {}
                Some(victim) => pass.spoil(&victim),
                None => self.archive_skip = 0,
            }
        }
        if pass.spoiled.len() < self.archive_skip {
            return;
        }
        let (mut victims, mut bytes) = (Vec::new(), 0_u64);
        while victims.len() < ARCHIVE_FILES_MAX
            && let Some(victim) = pass.next_victim(wall_now)
        {
            if pass.is_spoiled(&victim) {
                continue;
            }
            bytes = bytes.saturating_add(victim.file.bytes);
            if bytes > ARCHIVE_BYTES_MAX && !victims.is_empty() {
                pass.doomed.push_front(victim);
                break;
            }
            victims.push(victim);
        }
        if victims.is_empty() {
            // Everything had its turn: the next pass begins with the oldest.
            self.archive_skip = 0;
            self.end_archiving(pass, now);
            return;
        }
        let names = archive::names_list(victims.iter().map(|victim| victim.name.as_str()));
        match make_report().and_then(|report| Ok((report.try_clone()?, report))) {
            Ok((for_child, report)) => {
                step.archive = Some(Box::new(self.command(archive, names, for_child)));
                pass.stage = Stage::Archiving(Batch { victims, report });
            }
            Err(error) => {
                self.fail(RetentionFailure::at("making the report of the archive's command", PathBuf::new(), &error));
                pass.put_back(victims);
                pass.stage = Stage::Forgetting;
            }
        }
    }

    fn command(&self, archive: &Archive, names: Vec<u8>, report: OwnedFd) -> Command {
        let mut command = Command::new(&archive.program)
            .args(["archive", "--to", &archive.url, "--directory"])
            .arg(&self.log_dir)
            .args(["--compress", if archive.compress { "zstd" } else { "none" }])
            .args(["--report-fd", &REPORT_FD.to_string(), "--files0-from", "-"])
            .stdin_bytes(names)
            .fd(REPORT_FD, report)
            .capture(Capture::Discard)
            .name("iron-exec-archive")
            .timeout(archive.timeout)
            .confirm(false);
        if self.env_base == EnvBase::Clear
            && let Some(path) = std::env::var_os("PATH")
        {
            command = command.env("PATH", path);
        }
        archive.env.iter().fold(command, |command, (key, value): &(OsString, OsString)| command.env(key, value))
    }

    /// What of a batch was stored beyond doubt and may go; the rest counts as still there.
    fn judge(&mut self, batch: &Batch, end: &ArchiveEnd, pass: &mut Pass) -> VecDeque<Victim> {
        let names: Vec<&str> = batch.victims.iter().map(|victim| victim.name.as_str()).collect();
        let has_ended_well = matches!(end, ArchiveEnd::Code(0 | 1));
        let report = match end {
            // A line is written only when it is certain: it counts however the command was killed after that.
            ArchiveEnd::Code(0 | 1) | ArchiveEnd::Killed { .. } => {
                read_report(&batch.report).map(|report| archive::parse_report(&report, &names))
            }
            ArchiveEnd::Code(code) => Err(RetentionFailure::archive(None, 0, format!("the command ended with exit code {code}"))),
            ArchiveEnd::Failed { errno, detail } => Err(RetentionFailure::archive(None, *errno, detail.clone())),
        };
        let outcomes = match report {
            Ok(report) => {
                // Only a command that was killed leaves a line unfinished.
                let strange_lines = report.strange_lines + usize::from(report.is_torn && has_ended_well);
                if strange_lines > 0 {
                    let detail = format!("the command reported {strange_lines} lines that no file was asked for");
                    self.fail(RetentionFailure::archive(None, 0, detail));
                }
                // What speaks nonsense and does not come to an end of its own is not believed anything.
                if has_ended_well || strange_lines == 0 { report.outcomes } else { vec![Outcome::Unsaid; names.len()] }
            }
            Err(failure) => {
                self.fail(failure);
                vec![Outcome::Unsaid; names.len()]
            }
        };
        if let ArchiveEnd::Killed { detail } = end {
            self.fail(RetentionFailure::archive(None, 0, detail.clone()));
        }
        let is_compressed = self.retention.archive.as_ref().is_some_and(|archive| archive.compress);
        let mut stored = VecDeque::new();
        for (victim, outcome) in batch.victims.iter().zip(outcomes) {
            let reason = match outcome {
                Outcome::Stored { object_bytes } if is_compressed || object_bytes == victim.file.bytes => {
                    self.stats.files_archived += 1;
                    self.stats.bytes_archived += victim.file.bytes;
                    // A log loses its oldest files first: one behind a file that is not stored stays with it.
                    if !pass.is_spoiled(victim) {
                        stored.push_back(victim.clone());
                    }
                    continue;
                }
                Outcome::Stored { object_bytes } => {
                    format!("it was reported as stored with {object_bytes} bytes, and has {}", victim.file.bytes)
                }
                Outcome::Failed { reason } => reason,
                Outcome::Unsaid => "the command said nothing of it".to_owned(),
            };
            pass.spoil(victim);
            // Why nothing at all was stored is told already.
            if has_ended_well {
                self.fail(RetentionFailure::archive(Some(pass.scan.path_of(&victim.name)), 0, reason));
            }
        }
        stored
    }

    fn fail(&mut self, failure: RetentionFailure) {
        note(&mut self.stats, failure);
    }

    fn end_pass(&mut self, now: Instant) {
        self.stats.passes += 1;
        let wait = if std::mem::take(&mut self.is_asked_again) { Duration::ZERO } else { self.retention.every };
        self.due = now.checked_add(wait);
    }
}

impl Pass {
    fn new(scan: LogScan, retention: &Retention) -> Self {
        Self {
            scan,
            planner: Planner::new(Bounds::from(retention)),
            stage: Stage::Scanning,
            doomed: VecDeque::new(),
            spoiled: HashSet::new(),
            failures: 0,
            fruitless_calls: 0,
            has_stored: false,
            has_seen_all: false,
            is_counted: false,
        }
    }

    /// The next file that is to go.
    fn next_victim(&mut self, wall_now: u64) -> Option<Victim> {
        while self.doomed.is_empty() {
            let Doomed { job, log, files, has_newest, bytes, .. } = self.planner.next(wall_now)?;
            // Rotated files whose log is there, after all, are a part of that.
            if !has_newest && self.scan.exists(&log) {
                self.planner.put_back(bytes, true);
                continue;
            }
            let last = files.len().saturating_sub(1);
            let victims = files.into_iter().enumerate();
            self.doomed.extend(victims.map(|(index, (name, file))| Victim { job, name, file, is_last: index == last }));
        }
        self.doomed.pop_front()
    }

    /// A file could not be deleted: it stays, and what comes after it of its log.
    fn spoil(&mut self, victim: &Victim) {
        self.planner.put_back(victim.file.bytes, self.spoiled.insert(victim.job));
    }

    /// Whether a file stays because one before it does.
    fn is_spoiled(&mut self, victim: &Victim) -> bool {
        let is_spoiled = self.spoiled.contains(&victim.job);
        if is_spoiled {
            self.planner.put_back(victim.file.bytes, false);
        }
        is_spoiled
    }

    /// What was to go and has not had its turn stays for now.
    fn put_back(&mut self, victims: impl IntoIterator<Item = Victim>) {
        victims.into_iter().for_each(|victim| self.spoil(&victim));
    }

    fn is_given_up(&self) -> bool {
        self.failures >= FAILURES_PER_PASS_MAX
    }
}

impl Retention {
    /// What a pass over a log directory would do now, as the user that we are. It changes nothing, and needs no worker; it blocks.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn plan(&self, log_dir: impl AsRef<Path>) -> Result<RetentionPlan, RetentionFailure> {
        let mut scan = LogScan::open(log_dir.as_ref())?;
        let mut planner = Planner::new(Bounds::from(self));
        let mut plan = RetentionPlan::default();
        let now = unix_nanos();
        let mut leftovers = Vec::new();
        while scan.step(now, |found| match found {
            Found::Log(name, seen) => planner.add(&name, seen),
            Found::Leftover(name) => leftovers.push(name.to_owned()),
            Found::Failure(failure) => plan.failures.push(failure),
        })? {}
        plan.leftovers = leftovers.iter().map(|name| scan.path_of(name)).collect();
        plan.leftovers.sort();
        (plan.logs, plan.bytes) = (planner.logs(), planner.bytes());
        while let Some(doomed) = planner.next(now) {
            if !doomed.has_newest && scan.exists(&doomed.log) {
                continue;
            }
            plan.deleted.push(PlannedLog {
                path: scan.path_of(&doomed.log),
                job: doomed.job,
                state: doomed.state,
                files: doomed.files.len() as u64,
                bytes: doomed.bytes,
                finished: wall_time(doomed.changed),
                reason: doomed.reason,
            });
        }
        Ok(plan)
    }
}

/// A time in nanoseconds since 1970 as the clock says it.
fn wall_time(nanos: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn note(stats: &mut RetentionStats, failure: RetentionFailure) {
    stats.failures += 1;
    stats.last_failure = Some(failure);
}

/// The file that the command writes its report to: in memory, and of one size for good, so that nobody can fill our memory with it.
fn make_report() -> io::Result<OwnedFd> {
    let report = rustix::fs::memfd_create("iron-exec-report", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&report, REPORT_BYTES_MAX)?;
    rustix::fs::fcntl_add_seals(&report, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(report)
}

fn read_report(report: &OwnedFd) -> Result<Vec<u8>, RetentionFailure> {
    let mut bytes = vec![0; REPORT_BYTES_MAX as usize];
    let read = report.try_clone().and_then(|report| File::from(report).read_exact_at(&mut bytes, 0));
    read.map_err(|error| RetentionFailure::archive(None, error.raw_os_error().unwrap_or(0), "reading the report".to_owned()))?;
    bytes.truncate(memchr::memchr(0, &bytes).unwrap_or(bytes.len()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use rustix::fs::XattrFlags;
    use uuid::Uuid;

    use super::*;
    use crate::kernel::log_dir::MARK_XATTR;
    use crate::logic::names::{entry_name, log_name};

    /// More entries than fit into one slice of a scan, which are 4 KiB: the smallest has 24 bytes.
    const ENTRIES_PER_STEP_MAX: usize = 200;

    /// A sealed log of a worker that is gone.
    fn plant(directory: &Path, number: u128) -> PathBuf {
        let path = directory.join(log_name(&entry_name("make", JobId::from(Uuid::from_u128(number)))));
        let file = File::create_new(&path).unwrap();
        let mark = format!("{} cri", Uuid::from_u128(7));
        rustix::fs::fsetxattr(&file, MARK_XATTR, mark.as_bytes(), XattrFlags::empty()).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o400)).unwrap();
        path
    }

    /// In memory where that can be had: a hundred thousand files on a disk take their time.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
    }

    fn log_dir(directory: &Path) -> LogDir {
        LogDir::open(directory, Uuid::from_u128(8)).unwrap()
    }

    fn collector(retention: Retention, log_dir: &LogDir) -> Collector {
        Collector::new(retention, EnvBase::Clear, log_dir, Instant::now())
    }

    /// One whole pass.
    fn pass(collector: &mut Collector, log_dir: &LogDir, mut on_step: impl FnMut(Step)) {
        let passes = collector.stats().passes;
        while collector.stats().passes == passes {
            on_step(collector.step(Instant::now(), unix_nanos(), log_dir));
        }
    }

    #[test]
    fn no_step_of_a_pass_over_a_hundred_thousand_logs_does_more_than_a_little() {
        const LOGS: u64 = 100_000;
        let directory = directory();
        for number in 1..=LOGS {
            plant(directory.path(), u128::from(number));
        }
        let log_dir = log_dir(directory.path());
        let mut collector = collector(Retention::new().logs_max(LOGS / 2), &log_dir);
        let (mut looked_at, mut unlinked, mut steps, mut longest) = (0, 0, 0, Duration::ZERO);
        let began = Instant::now();
        let mut step_began = Instant::now();
        pass(&mut collector, &log_dir, |step| {
            longest = longest.max(step_began.elapsed());
            assert!(step.looked_at <= ENTRIES_PER_STEP_MAX, "{} entries in one step", step.looked_at);
            assert!(step.unlinked <= UNLINKS_PER_STEP, "{} unlinks in one step", step.unlinked);
            assert!(step.looked_at == 0 || step.unlinked == 0);
            looked_at += step.looked_at as u64;
            unlinked += step.unlinked as u64;
            steps += 1;
            step_began = Instant::now();
        });
        println!("{LOGS} logs: {steps} steps in {:?} without the pauses, the longest {longest:?}", began.elapsed());
        assert_eq!((looked_at, unlinked), (LOGS, LOGS / 2));
        let stats = collector.stats();
        assert_eq!((stats.logs, stats.logs_deleted, stats.failures), (LOGS / 2, LOGS / 2, 0));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count() as u64, LOGS / 2 + 1);
    }

    /// Seals logs with holes in them for so many bytes.
    fn plant_big(directory: &Path, count: u128, bytes: u64) {
        for number in 0..count {
            let path = plant(directory, number);
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        }
    }

    #[test]
    fn a_step_deletes_no_more_than_so_many_bytes() {
        const BYTES: u64 = UNLINKED_BYTES_PER_STEP / 2;
        let directory = directory();
        let log_dir = log_dir(directory.path());
        plant_big(directory.path(), 10, BYTES);
        let mut collector = collector(Retention::new().age_max(Duration::ZERO), &log_dir);
        let mut unlinked = Vec::new();
        pass(&mut collector, &log_dir, |step| unlinked.extend((step.unlinked > 0).then_some((step.unlinked, step.unlinked_bytes))));
        assert_eq!(unlinked, [(2, 2 * BYTES); 5]);
    }

    #[test]
    fn a_file_that_has_changed_since_it_was_seen_is_not_deleted() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        let unlock = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        let changes: [fn(&Path); 5] = [
            |path| fs::write(path, "more").unwrap(),
            |path| {
                fs::remove_file(path).unwrap();
                fs::write(path, "").unwrap();
            },
            |path| {
                fs::remove_file(path).unwrap();
                std::os::unix::fs::symlink("/etc/passwd", path).unwrap();
            },
            |path| fs::hard_link(path, path.with_extension("link")).unwrap(),
            |path| fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let path = plant(directory.path(), number as u128);
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let mut scan = log_dir.scan().unwrap();
            let mut seen = None;
            while scan
                .step(0, |found| match found {
                    Found::Log(log, file) if log.log == name => seen = Some(file.file),
                    _ => {}
                })
                .unwrap()
            {}
            // A clock tick later.
            std::thread::sleep(Duration::from_millis(20));
            unlock(&path);
            change(&path);
            assert_eq!(scan.delete(&name, seen.unwrap()).unwrap(), Deletion::Changed, "change {number}");
            assert!(fs::symlink_metadata(&path).is_ok());
            fs::remove_file(&path).unwrap();
            assert_eq!(scan.delete(&name, seen.unwrap()).unwrap(), Deletion::Absent);
        }
    }

    #[test]
    fn a_pass_that_meets_a_file_put_in_place_of_a_log_leaves_it_alone() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        let paths: Vec<PathBuf> = (0..3).map(|number| plant(directory.path(), number)).collect();
        let mut collector = collector(Retention::new().age_max(Duration::ZERO), &log_dir);
        let mut has_replaced = false;
        pass(&mut collector, &log_dir, |step| {
            if step.looked_at > 0 && !std::mem::replace(&mut has_replaced, true) {
                fs::remove_file(&paths[1]).unwrap();
                fs::write(&paths[1], "somebody else's").unwrap();
            }
        });
        assert_eq!(fs::read_to_string(&paths[1]).unwrap(), "somebody else's");
        assert!(!paths[0].exists() && !paths[2].exists());
        assert_eq!((collector.stats().logs_deleted, collector.stats().logs), (2, 1));
    }

    #[test]
    fn a_pass_asked_for_during_another_follows_it_at_once() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        let mut collector = collector(Retention::new(), &log_dir);
        let now = Instant::now();
        collector.step(now, 0, &log_dir);
        assert!(collector.stats().running);
        collector.ask(now);
        pass(&mut collector, &log_dir, drop);
        assert!(collector.due().unwrap() <= Instant::now());
        pass(&mut collector, &log_dir, drop);
        assert!(collector.due().unwrap() > Instant::now() + Duration::from_secs(50));
    }

    #[test]
    fn an_archive_that_fails_is_left_alone_for_longer_and_longer() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        plant(directory.path(), 1);
        let archive = Archive::new("s3://bucket");
        let retention = Retention::new().age_max(Duration::ZERO).every(Duration::from_mins(10)).archive(archive);
        let mut collector = collector(retention, &log_dir);
        let mut now = Instant::now();
        let mut calls = Vec::new();
        for minute in (0..300).step_by(10) {
            let passes = collector.stats().passes;
            while collector.stats().passes == passes {
                if collector.step(now, unix_nanos(), &log_dir).archive.is_some() {
                    calls.push(minute);
                    collector.archive_ended(&ArchiveEnd::Failed { errno: 2, detail: "no such program".to_owned() }, now);
                }
            }
            now += Duration::from_mins(10);
        }
        assert_eq!(calls, [0, 10, 30, 70, 130, 190, 250]);
        let stats = collector.stats();
        assert_eq!((stats.failures, stats.files_deleted, stats.logs), (7, 0, 1));
        assert_eq!(stats.last_failure.unwrap().errno(), 2);
        collector.ask(now);
        let mut called = false;
        while !called {
            called = collector.step(now, unix_nanos(), &log_dir).archive.is_some();
        }
    }

    /// What a call gets, by name.
    fn batch(collector: &Collector) -> Vec<String> {
        match &collector.pass.as_ref().unwrap().stage {
            Stage::Archiving(batch) => batch.victims.iter().map(|victim| victim.name.clone()).collect(),
            stage => panic!("{stage:?}"),
        }
    }

    /// Writes the report of a call, from its beginning on: the files of these names are stored.
    fn report(collector: &Collector, mut is_stored: impl FnMut(&str) -> bool) {
        let Stage::Archiving(batch) = &collector.pass.as_ref().unwrap().stage else { panic!("nothing is archived") };
        let stored = batch.victims.iter().filter(|victim| is_stored(&victim.name));
        let text = stored.map(|victim| format!("stored\t{}\t{:064}\t{}\n", victim.file.bytes, 0, victim.name)).collect::<Vec<_>>().concat();
        File::from(batch.report.try_clone().unwrap()).write_all_at(text.as_bytes(), 0).unwrap();
    }

    fn archiving(directory: &LogDir) -> Collector {
        collector(Retention::new().age_max(Duration::ZERO).archive(Archive::new("s3://bucket")), directory)
    }

    /// One whole pass whose calls are answered by `answer`; how many there were.
    fn archiving_pass(
        collector: &mut Collector,
        log_dir: &LogDir,
        now: Instant,
        mut answer: impl FnMut(&Collector) -> ArchiveEnd,
    ) -> usize {
        let (passes, mut calls) = (collector.stats().passes, 0);
        while collector.stats().passes == passes {
            if collector.step(now, unix_nanos(), log_dir).archive.is_some() {
                calls += 1;
                let end = answer(collector);
                collector.archive_ended(&end, now);
            }
        }
        calls
    }

    fn killed() -> ArchiveEnd {
        ArchiveEnd::Killed { detail: "the command was killed by SIGKILL".to_owned() }
    }

    #[test]
    fn a_call_gets_no_more_than_so_many_bytes_unless_one_file_has_more() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        plant_big(directory.path(), 5, ARCHIVE_BYTES_MAX / 5 * 2);
        let mut collector = archiving(&log_dir);
        let mut batches = Vec::new();
        archiving_pass(&mut collector, &log_dir, Instant::now(), |collector| {
            batches.push(batch(collector).len());
            report(collector, |_| true);
            ArchiveEnd::Code(0)
        });
        assert_eq!(batches, [2, 2, 1]);
        plant_big(directory.path(), 2, 3 * ARCHIVE_BYTES_MAX);
        batches.clear();
        archiving_pass(&mut collector, &log_dir, Instant::now(), |collector| {
            batches.push(batch(collector).len());
            report(collector, |_| true);
            ArchiveEnd::Code(0)
        });
        assert_eq!((batches, collector.stats().logs_deleted), (vec![1, 1], 7));
    }

    #[test]
    fn what_was_stored_before_the_command_was_killed_goes() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        let paths: Vec<PathBuf> = (0..3).map(|number| plant(directory.path(), number)).collect();
        let mut collector = archiving(&log_dir);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        archiving_pass(&mut collector, &log_dir, Instant::now(), |collector| {
            report(collector, |stored| stored == name(&paths[1]));
            killed()
        });
        assert_eq!(paths.iter().map(|path| path.exists()).collect::<Vec<_>>(), [true, false, true]);
        let stats = collector.stats();
        assert_eq!((stats.files_archived, stats.logs_deleted, stats.logs, stats.failures), (1, 1, 2, 1));
        assert!(stats.last_failure.unwrap().to_string().contains("SIGKILL"));
    }

    #[test]
    fn of_a_log_that_was_stored_in_part_the_oldest_files_go() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        let newest = plant(directory.path(), 1);
        let rotated = |number: u64| newest.with_extension(format!("log.{number:06}"));
        for number in 1..=4 {
            fs::rename(plant(directory.path(), 2), rotated(number)).unwrap();
        }
        let files = [rotated(1), rotated(2), rotated(3), rotated(4), newest.clone()];
        let left = || files.each_ref().map(|path| path.exists());
        let mut collector = archiving(&log_dir);
        // The third was not.
        archiving_pass(&mut collector, &log_dir, Instant::now(), |collector| {
            report(collector, |stored| !stored.ends_with(".000003"));
            killed()
        });
        assert_eq!(left(), [false, false, true, true, true]);
        assert_eq!((collector.stats().logs, collector.stats().logs_deleted, collector.stats().files_archived), (1, 0, 4));
        archiving_pass(&mut collector, &log_dir, Instant::now(), |collector| {
            report(collector, |_| true);
            ArchiveEnd::Code(0)
        });
        assert_eq!(left(), [false; 5]);
    }

    #[test]
    fn files_that_cannot_be_stored_do_not_keep_those_behind_them_for_ever() {
        const BAD: usize = FRUITLESS_CALLS_MAX * ARCHIVE_FILES_MAX;
        let ends: [fn() -> ArchiveEnd; 2] = [|| ArchiveEnd::Code(1), killed];
        for end in ends {
            let directory = directory();
            let log_dir = log_dir(directory.path());
            for number in 0..BAD as u128 + 10 {
                plant(directory.path(), number);
            }
            let mut collector = archiving(&log_dir);
            let mut now = Instant::now();
            let mut bad = HashSet::new();
            let calls = archiving_pass(&mut collector, &log_dir, now, |collector| {
                bad.extend(batch(collector));
                end()
            });
            assert_eq!((calls, bad.len()), (FRUITLESS_CALLS_MAX, BAD));
            assert_eq!(collector.stats().logs, BAD as u64 + 10);
            now += Duration::from_mins(1);
            let calls = archiving_pass(&mut collector, &log_dir, now, |collector| {
                report(collector, |name| !bad.contains(name));
                end()
            });
            assert_eq!((calls, collector.stats().logs_deleted, collector.stats().logs), (1, 10, BAD as u64));
            // The first have their turn again.
            now += Duration::from_mins(1);
            archiving_pass(&mut collector, &log_dir, now, |collector| {
                report(collector, |_| true);
                end()
            });
            assert_eq!(collector.stats().logs, 0);
        }
    }

    #[test]
    fn a_command_that_does_not_work_at_all_is_called_once_in_a_pass() {
        let directory = directory();
        let log_dir = log_dir(directory.path());
        for number in 0..200 {
            plant(directory.path(), number);
        }
        let mut collector = archiving(&log_dir);
        let calls = archiving_pass(&mut collector, &log_dir, Instant::now(), |_| ArchiveEnd::Code(2));
        assert_eq!((calls, collector.stats().logs, collector.stats().failures), (1, 200, 1));
    }

    #[test]
    fn a_report_has_room_for_so_much_and_no_more() {
        let report = make_report().unwrap();
        let file = File::from(report.try_clone().unwrap());
        file.write_all_at(b"stored", 0).unwrap();
        assert!(file.write_at(b"x", REPORT_BYTES_MAX).is_err());
        assert!(file.set_len(REPORT_BYTES_MAX + 1).is_err() && file.set_len(0).is_err());
        assert_eq!(read_report(&report).unwrap(), b"stored");
    }
}
