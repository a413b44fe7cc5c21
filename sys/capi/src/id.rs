//! The ids of jobs and owners.

use std::ffi::c_char;

use uuid::Uuid;

use crate::border;
use crate::error::{Error, ResultCode};

/// The number of bytes of an id as text, its NUL byte included.
pub const IRON_EXEC_ID_TEXT_SIZE: usize = 37;

/// Identifies one job, for ever: a version 7 UUID (RFC 9562), so that memcmp(3) sorts jobs by the time of their start. Passed by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct JobId {
    /// The UUID, its first byte first.
    pub bytes: [u8; 16],
}

/// Identifies the client that owns a job: any UUID; all zeros is "nobody in particular". Passed by value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OwnerId {
    /// The UUID, its first byte first.
    pub bytes: [u8; 16],
}

/// Writes an id as text, for instance "019a2b8e-6b0c-7f3a-9d2e-0c4a7e5b1f23", with a NUL byte at its end, into `buffer` of `size` bytes:
/// IRON_EXEC_ID_TEXT_SIZE is enough. It stands in the name of the job's log, and in every error that is about the job.
///
/// Errors: INVALID_ARGUMENT if `buffer` is NULL, BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_job_id_text(job: JobId, buffer: *mut c_char, size: usize, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let buffer = unsafe { border::places(buffer.cast::<u8>(), size, "the buffer") };
    let body = || {
        let mut text = Uuid::encode_buffer();
        let text = Uuid::from_bytes(job.bytes).hyphenated().encode_lower(&mut text);
        border::copy_text(text.as_bytes(), buffer?, &mut 0)
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

impl From<JobId> for iron_exec::JobId {
    fn from(id: JobId) -> Self {
        Uuid::from_bytes(id.bytes).into()
    }
}

impl From<iron_exec::JobId> for JobId {
    fn from(id: iron_exec::JobId) -> Self {
        Self { bytes: id.as_uuid().into_bytes() }
    }
}

impl From<OwnerId> for iron_exec::OwnerId {
    fn from(id: OwnerId) -> Self {
        Uuid::from_bytes(id.bytes).into()
    }
}

impl From<iron_exec::OwnerId> for OwnerId {
    fn from(id: iron_exec::OwnerId) -> Self {
        Self { bytes: id.as_uuid().into_bytes() }
    }
}
