//! What becomes of logs that nobody needs any more.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::model::error::BuildError;
use crate::model::id::JobId;

/// The shortest time between two passes.
const EVERY_MIN: Duration = Duration::from_millis(10);

/// The longest time that a setting takes, as everywhere in a worker.
const TIME_MAX: Duration = Duration::from_hours(10 * 365 * 24);

/// The shortest time that an archiving command is given: less could never be enough.
const ARCHIVE_TIMEOUT_MIN: Duration = Duration::from_millis(100);

/// What an archive's address begins with.
const URL_START: &str = "s3://";

/// Which logs of a log directory are kept: by age, by their bytes in all, by their number.
///
/// The worker goes over the directory again and again, a few files in each turn of its loop, and deletes the oldest logs until the rest is within
/// bounds. A log is one unit: its newest file and those that were rotated out of it. Only finished (sealed) logs are deleted, of this and of any
/// other worker of the same user, and never one that is written by a worker that lives. What a dead worker has left unfinished is first repaired (a torn
/// last record is cut off) and sealed, and ages from then on. Files without the mark of a worker are somebody else's, and are not touched.
///
/// A file is deleted in one go, however big it is, and a huge one (many gigabytes) may hold a turn up for a moment:
/// [`LogPolicy::bytes_max`](crate::LogPolicy::bytes_max) keeps the files of logs small.
///
/// Jobs are forgotten with their logs: one that has finished, its end told, is no longer known once its log was deleted here, or once it
/// finished longer than [`age_max`](Self::age_max) ago.
///
/// Without a bound nothing is deleted; what dead workers have left is repaired all the same.
///
/// ```
/// use std::time::Duration;
/// use iron_exec::{Retention, Worker};
///
/// # let directory = tempfile::tempdir()?;
/// let week = Duration::from_hours(7 * 24);
/// let mut worker = Worker::builder()
///     .log_dir(directory.path())
///     .retention(Retention::new().age_max(week).bytes_max(10 << 30))
///     .build()?;
/// worker.collect_logs();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    pub(crate) age_max: Option<Duration>,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) logs_max: Option<u64>,
    pub(crate) every: Duration,
    pub(crate) archive: Option<Archive>,
}

impl Default for Retention {
    fn default() -> Self {
        Self { age_max: None, bytes_max: None, logs_max: None, every: Duration::from_mins(1), archive: None }
    }
}

impl Retention {
    /// No bounds yet; a pass every minute.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes logs that were finished longer ago than this. A log's age is the time since its newest file was last changed in any way (its ctime): since it
    /// was sealed.
    pub fn age_max(mut self, age: Duration) -> Self {
        self.age_max = Some(age);
        self
    }

    /// The bytes that all logs together may have; above, the oldest finished ones go. Logs that are still written count, too, but do not go: they alone may
    /// have more.
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// The number of logs to keep; above, the oldest finished ones go. Logs that are still written count, too, but do not go.
    pub fn logs_max(mut self, logs: u64) -> Self {
        self.logs_max = Some(logs);
        self
    }

    /// The time from the end of one pass to the beginning of the next, at least 10 ms. Default: a minute. The first pass begins with the worker.
    pub fn every(mut self, time: Duration) -> Self {
        self.every = time;
        self
    }

    /// Stores each log elsewhere before it is deleted. Then nothing is deleted that was not stored, neither for its age nor because there is too much: while
    /// the archive cannot be reached, the directory grows beyond its bounds.
    pub fn archive(mut self, archive: Archive) -> Self {
        self.archive = Some(archive);
        self
    }

    /// Checks everything that can be checked before anything exists.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let wrong = |reason: String| Err(BuildError::Retention { reason });
        if !(EVERY_MIN..=TIME_MAX).contains(&self.every) {
            return wrong(format!("every is {:?}, outside {EVERY_MIN:?} to ten years", self.every));
        }
        let Some(archive) = &self.archive else { return Ok(()) };
        let bucket = archive.url.strip_prefix(URL_START).and_then(|rest| rest.split('/').next());
        if bucket.is_none_or(str::is_empty) || archive.url.contains(|character: char| character.is_control()) {
            return wrong(format!("the archive is {:?}, not s3://BUCKET or s3://BUCKET/PREFIX", archive.url));
        }
        if !(ARCHIVE_TIMEOUT_MIN..=TIME_MAX).contains(&archive.timeout) {
            return wrong(format!("the timeout of the archive is {:?}, outside {ARCHIVE_TIMEOUT_MIN:?} to ten years", archive.timeout));
        }
        if archive.program.is_empty() || archive.program.as_encoded_bytes().contains(&0) {
            return wrong(format!("the program of the archive cannot be {}", archive.program.display()));
        }
        for (key, value) in &archive.env {
            let is_key = !key.is_empty() && !key.as_encoded_bytes().contains(&b'=') && !key.as_encoded_bytes().contains(&0);
            // The value may be a secret: it is not told.
            if !is_key || value.as_encoded_bytes().contains(&0) {
                return wrong(format!(
                    "{} cannot be an environment variable of the archive, or its value has a NUL byte in it",
                    key.display()
                ));
            }
        }
        Ok(())
    }
}

/// Where logs are stored before they are deleted: a bucket of S3-compatible storage, by way of a command.
///
/// The command runs as a child of this process, from the same loop, one at a time, without showing up among the worker's jobs, and is killed with the
/// worker. It is called as
///
/// ```text
/// PROGRAM archive --to URL --directory LOG_DIR --compress zstd|none --report-fd 3 --files0-from -
/// ```
///
/// and gets the names of up to 64 files, of 1 GiB in all unless one alone has more, on its stdin, each with a NUL byte behind it. To descriptor 3 it writes one line for each file that it has
/// dealt with: `stored`, the bytes of the object, its SHA-256 in hexadecimal, and the name; or `failed`, a reason, and the name; with tabs in between.
/// It exits with 0 (all are stored) or 1 (some are not). A file is deleted if it was reported as stored and has not changed since the command began. What
/// was reported also counts if the command is killed after that, by the [`timeout`](Self::timeout) or anybody else, so each line is to be written only once
/// it is certain, with one write; but not if there are lines in the report that make no sense, and not with any other exit code.
///
/// Everything else stays, and is tried again later, less and less often (up to once an hour) while nothing can be stored. Where a call stores
/// nothing, the files behind its own have their turn, in this pass or, after four such calls in a row, in the next one; a command that cannot be
/// started, or ends with another exit code, ends the pass.
///
/// Its environment is the one that jobs start from ([`EnvBase`](crate::EnvBase)), with what [`env`](Self::env) says set in it; with
/// [`EnvBase::Clear`](crate::EnvBase::Clear) it has these and the host's `PATH`, and nothing else. No job sees what is set here.
#[derive(Clone, PartialEq, Eq)]
pub struct Archive {
    pub(crate) url: String,
    pub(crate) program: OsString,
    pub(crate) compress: bool,
    pub(crate) env: Vec<(OsString, OsString)>,
    pub(crate) timeout: Duration,
}

impl Archive {
    /// An archive at `s3://BUCKET` or `s3://BUCKET/PREFIX`, filled by the command-line tool `iron-exec`, which is looked up in `PATH`.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), program: "iron-exec".into(), compress: false, env: Vec::new(), timeout: Duration::from_mins(15) }
    }

    /// The program to call instead of `iron-exec`.
    pub fn program(mut self, program: impl AsRef<OsStr>) -> Self {
        program.as_ref().clone_into(&mut self.program);
        self
    }

    /// Whether files are compressed (zstd) on their way. Default: no. Without it the size that is reported for an object has to be that of its file.
    pub fn compress(mut self, compress: bool) -> Self {
        self.compress = compress;
        self
    }

    /// Sets an environment variable of the command: credentials, an endpoint. It goes to nobody else.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// How long one call may take before it is killed, at least 100 ms. Default: 15 minutes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Credentials do not belong into anybody's messages.
        let names: Vec<&OsString> = self.env.iter().map(|(key, _)| key).collect();
        let Self { url, program, compress, timeout, .. } = self;
        f.debug_struct("Archive")
            .field("url", url)
            .field("program", program)
            .field("compress", compress)
            .field("env", &names)
            .field("timeout", timeout)
            .finish()
    }
}

/// What retention has done since the worker was built: see [`Worker::retention_stats`](crate::Worker::retention_stats).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionStats {
    /// Passes over the directory that have come to their end, be it an early one because of failures.
    pub passes: u64,
    /// Whether a pass is going on.
    pub running: bool,
    /// Logs in the directory, those still written included, after the last pass.
    pub logs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Logs deleted.
    pub logs_deleted: u64,
    /// Files deleted: a log that was rotated has more than one.
    pub files_deleted: u64,
    /// The bytes that they had.
    pub bytes_deleted: u64,
    /// Files stored in the archive.
    pub files_archived: u64,
    /// The bytes that these had on disk.
    pub bytes_archived: u64,
    /// Files of dead workers that were repaired and sealed.
    pub leftovers_sealed: u64,
    /// Things that could not be done. Most are tried again in the next pass, and count again.
    pub failures: u64,
    /// The last of them.
    pub last_failure: Option<RetentionFailure>,
}

/// Something that retention could not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{operation}{}{}", at_path(self.path.as_deref()), because(self.errno, &self.detail))]
pub struct RetentionFailure {
    pub(crate) operation: &'static str,
    pub(crate) path: Option<PathBuf>,
    pub(crate) errno: i32,
    pub(crate) detail: String,
}

fn at_path(path: Option<&Path>) -> String {
    path.map(|path| format!(" {}", path.display())).unwrap_or_default()
}

fn because(errno: i32, detail: &str) -> String {
    match (errno, detail) {
        (0, detail) => format!(" failed: {detail}"),
        (errno, "") => format!(" failed: {}", std::io::Error::from_raw_os_error(errno)),
        (errno, detail) => format!(" failed: {}: {detail}", std::io::Error::from_raw_os_error(errno)),
    }
}

impl RetentionFailure {
    /// A failure of the kernel's at a path.
    pub(crate) fn at(operation: &'static str, path: PathBuf, error: &std::io::Error) -> Self {
        let errno = error.raw_os_error().unwrap_or(0);
        let detail = if errno == 0 { error.to_string() } else { String::new() };
        Self { operation, path: Some(path), errno, detail }
    }

    /// A failure of the archive's.
    pub(crate) fn archive(path: Option<PathBuf>, errno: i32, detail: String) -> Self {
        Self { operation: "archiving", path, errno, detail }
    }

    /// What was being done.
    pub fn operation(&self) -> &str {
        self.operation
    }

    /// With which file or directory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The error number; 0 if it was not the kernel that refused.
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

/// The state of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LogState {
    /// It is finished.
    Sealed,
    /// Its worker died before it was finished.
    Leftover,
    /// A worker that lives writes it.
    Live,
}

impl LogState {
    /// The state's name.
    pub fn as_str(self) -> &'static str {
        match self {
            LogState::Sealed => "sealed",
            LogState::Leftover => "left-over",
            LogState::Live => "live",
        }
    }
}

/// Why a log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeleteReason {
    /// It is older than [`Retention::age_max`].
    Age,
    /// All together have more than [`Retention::bytes_max`].
    Bytes,
    /// There are more than [`Retention::logs_max`].
    Logs,
}

impl DeleteReason {
    /// The reason's name.
    pub fn as_str(self) -> &'static str {
        match self {
            DeleteReason::Age => "age",
            DeleteReason::Bytes => "bytes",
            DeleteReason::Logs => "logs",
        }
    }
}

/// What a pass over a directory would do: see [`Retention::plan`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RetentionPlan {
    /// The logs that it would delete, in this order.
    pub deleted: Vec<PlannedLog>,
    /// Files of dead workers that it would repair and seal.
    pub leftovers: Vec<PathBuf>,
    /// All logs that it has found, those that go included.
    pub logs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What could not be looked at.
    pub failures: Vec<RetentionFailure>,
}

/// A log that would be deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PlannedLog {
    /// The path of its newest file.
    pub path: PathBuf,
    /// The job whose log it is.
    pub job: JobId,
    /// Its state.
    pub state: LogState,
    /// How many files it has.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When it was finished.
    pub finished: SystemTime,
    /// Why it goes.
    pub reason: DeleteReason,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(url: &str) -> Retention {
        Retention::new().archive(Archive::new(url))
    }

    #[test]
    fn what_cannot_be_kept_to_is_refused_with_a_reason() {
        let timed = |timeout| Retention::new().archive(Archive::new("s3://bucket").timeout(timeout));
        let with_env = |key: &str, value: &str| Retention::new().archive(Archive::new("s3://bucket").env(key, value));
        for wrong in [
            Retention::new().every(Duration::ZERO),
            Retention::new().every(Duration::MAX),
            archive(""),
            archive("bucket"),
            archive("s3://"),
            archive("s3:///prefix"),
            archive("https://bucket"),
            archive("s3://bucket/\n"),
            timed(Duration::ZERO),
            timed(Duration::MAX),
            Retention::new().archive(Archive::new("s3://bucket").program("")),
            with_env("", "x"),
            with_env("A=B", "x"),
            with_env("A", "x\0"),
        ] {
            let error = wrong.check().unwrap_err();
            assert!(error.to_string().starts_with("retention cannot be had: "), "{error}");
        }
        let fine = archive("s3://bucket/a/prefix").age_max(Duration::ZERO).bytes_max(0).logs_max(0).every(Duration::from_millis(10));
        fine.check().unwrap();
    }

    #[test]
    fn credentials_are_not_shown() {
        let retention = Retention::new().archive(Archive::new("s3://bucket").env("AWS_SECRET_ACCESS_KEY", "hunter2"));
        let shown = format!("{retention:?}");
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("hunter2"), "{shown}");
        let wrong = Retention::new().archive(Archive::new("s3://bucket").env("A", "hunter2\0"));
        assert!(!wrong.check().unwrap_err().to_string().contains("hunter2"));
    }

    #[test]
    fn a_failure_says_what_where_and_why() {
        let failure = RetentionFailure::at("deleting", "/x/y.log".into(), &std::io::Error::from_raw_os_error(30));
        assert_eq!(failure.to_string(), "deleting /x/y.log failed: Read-only file system (os error 30)");
        assert_eq!(RetentionFailure::archive(None, 0, "it lied".into()).to_string(), "archiving failed: it lied");
    }
}
