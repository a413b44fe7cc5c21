//! Codes, and the object that holds the text of an error.

use std::error::Error as StdError;
use std::ffi::{CString, c_char};
use std::io;

use iron_exec::{BuildError, CommandError, JobError, StartError, StreamError, TurnError};

use crate::border;

/// What a call came to. Below 0 it has failed: nothing was done, unless the function says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ResultCode {
    /// Done.
    Ok = 0,
    /// A stream has nothing to read yet: an event, IRON_EXEC_EVENT_KIND_LOG_READY, tells when to ask again.
    Again = 1,
    /// A stream has come to its end.
    End = 2,
    /// A stream has a gap here, of which the error object tells; reading goes on behind it.
    Gap = 3,
    /// An argument cannot be what it is: NULL, an unknown number, a string that is not UTF-8, a value out of its range. Also a command or a configuration of
    /// which a setter has said so before.
    InvalidArgument = -1,
    /// There is no such job: never started by this worker, forgotten, or gone because there were too many finished ones.
    NotFound = -2,
    /// The job is not in the state for it: it has not finished, has no process yet, or has ended; or what was asked for was taken already. Or the worker is not: it
    /// is shut down, and starts nothing more.
    WrongState = -3,
    /// A buffer is too small; the length that was written tells how long the text is.
    BufferTooSmall = -4,
    /// The worker has as many unfinished jobs as it may have.
    TooManyJobs = -5,
    /// The output of the job cannot be read in this way: it is not logged, or not told apart by stream.
    NotLogged = -6,
    /// The job was not started: a step of it failed. The error object names the step and the path, and has the error number, or 0 where it was
    /// not the kernel that refused.
    StartFailed = -7,
    /// The system has refused something, or is not as something needs it. The error object has the error number, or 0 where it was not the kernel that refused:
    /// of a cgroup base that is not on a cgroup2 mount, for instance.
    System = -8,
    /// A bug in the library. A worker that it happened in can only be freed.
    Bug = -9,
}

/// Holds the text of what went wrong. Made once, and handed to call after call: each says there what went wrong in it, or that nothing did. Where the code is
/// enough, NULL takes its place.
///
/// One thread at a time: each thread has its own.
#[derive(Debug, Default)]
pub struct Error {
    text: CString,
    errno: i32,
}

/// Makes an error object. NULL comes back through a bug in the library alone.
#[unsafe(no_mangle)]
pub extern "C" fn iron_exec_error_new() -> *mut Error {
    border::make(Error::default)
}

/// Frees an error object, and sets the pointer to NULL. Of a NULL it does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_error_free(error: *mut *mut Error) {
    // SAFETY: the caller's promise, and error objects come from `iron_exec_error_new` alone.
    unsafe { border::free(error) }
}

/// What went wrong in the last call that `error` was handed to: what was done, to which path, and all the causes, in UTF-8 on one line: control characters, of a
/// path for instance, stand there as "\n" or "\u{1b}". Empty if nothing went wrong, or for NULL. It belongs to the error object, and is there until the next call
/// that this is handed to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_error_text(error: *const Error) -> *const c_char {
    // SAFETY: the caller's promise: NULL, or a live handle that nobody else uses.
    unsafe { error.as_ref() }.map_or(c"".as_ptr(), |error| error.text.as_ptr())
}

/// The system's error number (errno(3)) of what went wrong; 0 if nothing did, if it was not the kernel that refused, or for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_error_errno(error: *const Error) -> i32 {
    // SAFETY: the caller's promise: NULL, or a live handle that nobody else uses.
    unsafe { error.as_ref() }.map_or(0, |error| error.errno)
}

impl Error {
    pub(crate) fn set(&mut self, fault: Option<Fault>) {
        *self = fault.map_or_else(Self::default, |fault| Self {
            // There is no NUL byte in it any more, at which it would end.
            text: CString::new(one_line(&fault.text)).unwrap_or_default(),
            errno: fault.errno,
        });
    }
}

/// A text as it is handed out: control characters (a program may have any in its name) and the two other ends of a line that Unicode has are escaped.
pub(crate) fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// What went wrong in a call.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) code: ResultCode,
    pub(crate) errno: i32,
    pub(crate) text: String,
}

impl Fault {
    pub(crate) fn new(code: ResultCode, errno: i32, text: impl Into<String>) -> Self {
        Self { code, errno, text: text.into() }
    }

    /// A value that cannot be.
    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(ResultCode::InvalidArgument, 0, text)
    }

    /// A pointer that must not be NULL.
    pub(crate) fn null(what: &'static str) -> Self {
        Self::invalid(format!("{what} is NULL"))
    }

    /// A number that stands for nothing.
    pub(crate) fn unknown(what: &'static str, number: i32) -> Self {
        Self::invalid(format!("{what} is {number}: there is no such one"))
    }

    pub(crate) fn panicked(text: &str) -> Self {
        Self::new(ResultCode::Bug, 0, format!("a bug in iron-exec: {text}"))
    }

    /// An error of the library, with all its causes.
    fn of(code: ResultCode, error: &(dyn StdError + 'static)) -> Self {
        let mut fault = Self::new(code, 0, error.to_string());
        let mut next = Some(error);
        while let Some(error) = next {
            let text = error.to_string();
            // Some errors say themselves what caused them.
            if !fault.text.ends_with(&text) {
                fault.text.push_str(": ");
                fault.text.push_str(&text);
            }
            let errno = error.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
            fault.errno = errno.unwrap_or(fault.errno);
            next = error.source();
        }
        fault
    }
}

impl From<BuildError> for Fault {
    fn from(error: BuildError) -> Self {
        let code = match error {
            BuildError::LogPolicy { .. } | BuildError::Retention { .. } => ResultCode::InvalidArgument,
            _ => ResultCode::System,
        };
        Self::of(code, &error)
    }
}

impl From<CommandError> for Fault {
    fn from(error: CommandError) -> Self {
        Self::of(ResultCode::InvalidArgument, &error)
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Self {
        let code = match error {
            StartError::Command(_) => ResultCode::InvalidArgument,
            StartError::TooManyJobs { .. } => ResultCode::TooManyJobs,
            StartError::ShuttingDown => ResultCode::WrongState,
            _ => ResultCode::StartFailed,
        };
        let errno = error.failure().map_or(0, iron_exec::StartFailure::errno);
        Self { errno, ..Self::of(code, &error) }
    }
}

impl From<JobError> for Fault {
    fn from(error: JobError) -> Self {
        let code = match error {
            JobError::NotFound { .. } => ResultCode::NotFound,
            JobError::NotFinished { .. } | JobError::NotStarted { .. } | JobError::Starting { .. } | JobError::Ended { .. } => {
                ResultCode::WrongState
            }
            JobError::InvalidLimits { .. } | JobError::InvalidPressure { .. } => ResultCode::InvalidArgument,
            _ => ResultCode::System,
        };
        Self::of(code, &error)
    }
}

impl From<TurnError> for Fault {
    fn from(error: TurnError) -> Self {
        Self::of(ResultCode::System, &error)
    }
}

impl From<StreamError> for Fault {
    fn from(error: StreamError) -> Self {
        let code = match error {
            _ if error.is_passable() => ResultCode::Gap,
            StreamError::NotFound { .. } => ResultCode::NotFound,
            StreamError::NotLogged { .. } | StreamError::NotSeparable { .. } | StreamError::NoTimes { .. } => ResultCode::NotLogged,
            _ => ResultCode::System,
        };
        Self::of(code, &error)
    }
}
