//! What bounds a job's log: its size, its speed, and what happens where it cannot be written.

use crate::model::error::CommandError;
use crate::model::output::{Capture, LogFormat};

/// The bounds of a job's log, and what happens at each of them.
///
/// ```
/// use iron_exec::{Command, LogPolicy, OnLogFault, OverRate, WhenFull};
///
/// let policy = LogPolicy::new()
///     .bytes_max(10 << 20) // bytes of one file: then the next is begun
///     .files_max(5) // so many are kept, the one being written included
///     .rate_max(1 << 20, OverRate::Pause) // bytes a second
///     .on_fault(OnLogFault::Pause);
/// assert!(Command::new("make").log_policy(policy).check().is_ok());
///
/// // Or one file, which ends where it is full:
/// let policy = LogPolicy::new().bytes_max(1 << 20).when_full(WhenFull::DropTail);
/// # assert!(policy.check().is_ok());
/// ```
///
/// Without further words a log has no bounds, and what cannot be written is dropped and counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogPolicy {
    pub(crate) bytes_max: Option<u64>,
    pub(crate) files_max: Option<u64>,
    pub(crate) when_full: WhenFull,
    pub(crate) rate: Option<(u64, OverRate)>,
    pub(crate) on_fault: OnLogFault,
}

/// What happens when a log file has grown to its [`LogPolicy::bytes_max`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum WhenFull {
    /// It is renamed to `{log}.000001` (the next to `{log}.000002`, and so on) and sealed, and a new one begun; above [`LogPolicy::files_max`] the oldest is
    /// deleted. A reader that has not come so far is told how much it has missed.
    #[default]
    Rotate,
    /// As with `Rotate`, but the first file is kept: what is deleted is the middle of the log. A file of one record in its place says how much that is. Needs the
    /// CRI format.
    DropMiddle,
    /// Nothing more is written: the end of the log is dropped, and counted in [`OutputCount::discarded_bytes`](crate::OutputCount::discarded_bytes). In the CRI format
    /// the last record says how much that is.
    DropTail,
}

/// What happens to output that comes faster than [`LogPolicy::rate_max`] allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum OverRate {
    /// It waits in the job's pipes, and so does the job once they are full. Nothing is lost.
    Pause,
    /// It is dropped, whole records at a time, and counted; in the CRI format a record says how much is missing.
    Drop,
}

/// What happens to a job whose log cannot be written (no space, a failing disk, a limit on file sizes). [`Event::LogFault`](crate::Event::LogFault) tells of it
/// in any case, and [`Event::LogResumed`](crate::Event::LogResumed) when it can be written again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnLogFault {
    /// The job goes on. What cannot be written is dropped and counted; when writing works again, a record (in the CRI format) says how much is missing.
    #[default]
    Drop,
    /// Its output is not read until it can be written again (that is tried at least once a second): once its pipes are full, the job waits. Nothing is lost, unless
    /// there is still no room when the job has ended, and [`Builder::drain_total_max`](crate::Builder::drain_total_max) is over. (A job without a cgroup whose whole
    /// tree is waited for, [`TreePolicy::Wait`](crate::TreePolicy::Wait), ends when its outputs do, and so not before there is room.)
    Pause,
    /// Its whole process tree is killed: [`StopReason::LogFault`](crate::StopReason::LogFault).
    Kill,
}

/// The fewest bytes that can be the most of a log file.
const FILE_BYTES_MIN: u64 = 4096;

/// The most files of one log that can be kept.
const FILES_LIMIT: u64 = 10_000;

/// The slowest rate that can be asked for, in bytes a second.
const RATE_MIN: u64 = 1024;

impl LogPolicy {
    /// A log without bounds.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most bytes of one log file, as they are on the disk, at least 4096. Records are never split between files (nor lines, in a raw log of lines that are not
    /// as long as a file): a file is a little shorter, and one of a single record that is longer than this is as long as that.
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = Some(bytes);
        self
    }

    /// The most files of a log that is rotated, the one being written included: 2 to 10,000. Default: 5.
    pub fn files_max(mut self, files: u64) -> Self {
        self.files_max = Some(files);
        self
    }

    /// What happens at [`bytes_max`](Self::bytes_max). Default: [`WhenFull::Rotate`].
    pub fn when_full(mut self, when_full: WhenFull) -> Self {
        self.when_full = when_full;
        self
    }

    /// The most bytes of the job's output that are logged in a second, at least 1024, on the average: after a second of silence so many may come at once. (One turn's
    /// reading, [`Builder::read_budget_bytes`](crate::Builder::read_budget_bytes), is never split: it may be exceeded by that, and is made up for.) What a job has
    /// left in its pipes when it has ended is logged at once.
    pub fn rate_max(mut self, bytes_per_second: u64, over: OverRate) -> Self {
        self.rate = Some((bytes_per_second, over));
        self
    }

    /// What happens when the log cannot be written. Default: [`OnLogFault::Drop`].
    pub fn on_fault(mut self, on_fault: OnLogFault) -> Self {
        self.on_fault = on_fault;
        self
    }

    /// Checks the ranges, and that what was said goes together; [`Command::check`](crate::Command::check) and [`Builder::build`](crate::Builder::build) call it.
    ///
    /// # Errors
    /// The first thing found wrong.
    pub fn check(&self) -> Result<(), CommandError> {
        let numbers = [
            ("the most bytes of a log file", self.bytes_max, FILE_BYTES_MIN, i64::MAX as u64),
            ("the most files of a log", self.files_max, 2, FILES_LIMIT),
            ("the most bytes a second of a log", self.rate.map(|(rate, _)| rate), RATE_MIN, i64::MAX as u64),
        ];
        for (what, number, min, max) in numbers {
            if let Some(number) = number.filter(|number| !(min..=max).contains(number)) {
                let value = i64::try_from(number).unwrap_or(i64::MAX);
                return Err(CommandError::OutOfRange { what, value, min: min as i64, max: max as i64 });
            }
        }
        let conflict = |what, reason| Err(CommandError::Conflict { what, reason });
        if self.bytes_max.is_none() && (self.files_max.is_some() || self.when_full != WhenFull::Rotate) {
            return conflict("a log without a most number of bytes", "it is never full: give bytes_max, too");
        }
        if self.files_max.is_some() && self.when_full == WhenFull::DropTail {
            return conflict("files_max for a log that drops its tail", "that has one file");
        }
        Ok(())
    }

    /// Whether it goes together with where the output goes, and in which format.
    pub(crate) fn check_for(&self, capture: Capture, format: LogFormat) -> Result<(), CommandError> {
        let is_default = *self == Self::default();
        let reason = match (capture, format) {
            (Capture::Direct, _) if !is_default => "the job itself writes the log: it can be neither bounded nor held back",
            (capture, _) if !capture.is_logged() && !is_default => "there is no log",
            (_, LogFormat::Raw) if self.when_full == WhenFull::DropMiddle => {
                "a raw log cannot say that something is missing: use the CRI format, or rotate"
            }
            _ => return Ok(()),
        };
        let what = match capture {
            Capture::Direct => "a log policy with direct capture",
            _ if capture.is_logged() => "a raw log that drops its middle",
            _ => "a log policy for output that is not logged",
        };
        Err(CommandError::Conflict { what, reason })
    }

    /// The number of files that are kept.
    pub(crate) fn files_kept(&self) -> u64 {
        self.files_max.unwrap_or(FILES_KEPT)
    }
}

/// The files of a rotated log that are kept where nothing else is said.
const FILES_KEPT: u64 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_refused_and_the_rest_taken() {
        let right = [
            LogPolicy::new(),
            LogPolicy::new().bytes_max(4096),
            LogPolicy::new().bytes_max(4096).files_max(2).when_full(WhenFull::DropMiddle),
            LogPolicy::new().bytes_max(4096).when_full(WhenFull::DropTail),
            LogPolicy::new().rate_max(1024, OverRate::Drop).on_fault(OnLogFault::Kill),
        ];
        for policy in right {
            assert_eq!(policy.check(), Ok(()), "{policy:?}");
        }
        let wrong = [
            LogPolicy::new().bytes_max(4095),
            LogPolicy::new().bytes_max(u64::MAX),
            LogPolicy::new().bytes_max(4096).files_max(1),
            LogPolicy::new().bytes_max(4096).files_max(10_001),
            LogPolicy::new().files_max(2),
            LogPolicy::new().when_full(WhenFull::DropTail),
            LogPolicy::new().bytes_max(4096).files_max(2).when_full(WhenFull::DropTail),
            LogPolicy::new().rate_max(1023, OverRate::Pause),
        ];
        for policy in wrong {
            assert!(policy.check().is_err(), "{policy:?}");
        }
    }

    #[test]
    fn a_policy_goes_with_some_captures_and_formats_only() {
        let bounded = LogPolicy::new().bytes_max(4096);
        let middle = bounded.when_full(WhenFull::DropMiddle);
        assert!(bounded.check_for(Capture::Split, LogFormat::Raw).is_ok());
        assert!(middle.check_for(Capture::Merged, LogFormat::Cri).is_ok());
        assert!(middle.check_for(Capture::Merged, LogFormat::Raw).is_err());
        assert!(bounded.check_for(Capture::Direct, LogFormat::Raw).is_err());
        assert!(LogPolicy::new().check_for(Capture::Direct, LogFormat::Raw).is_ok());
        for capture in [Capture::Inherit, Capture::Piped, Capture::Discard] {
            assert!(bounded.check_for(capture, LogFormat::Cri).is_err());
        }
    }
}
