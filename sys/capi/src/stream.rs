//! A job's output while it runs, and after.

use std::ffi::c_void;
use std::task::Poll;

use iron_exec::{LogEnd, LogPosition, LogStream, OutputStream, ReadOptions, StreamSelect};

use crate::border;
use crate::error::{Error, Fault, ResultCode};
use crate::id::JobId;
use crate::worker::Worker;

/// A reader of a job's log: the exact bytes that the job wrote, as they come. It can never slow a job down. Any number a job.
///
/// One thread at a time, which need not be the worker's; it may outlive the worker.
#[derive(Debug)]
pub struct Stream {
    stream: LogStream,
    /// A panic came out of it: only to be freed any more.
    is_broken: bool,
}

/// Which output of a job is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum StreamSource {
    /// Both streams, in the order of the log.
    Both = 0,
    /// Stdout only. Needs the CRI format, or a single pipe.
    Stdout = 1,
    /// Stderr only. Needs the CRI format.
    Stderr = 2,
}

/// Where in a log reading begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum StreamPosition {
    /// At the beginning.
    Start = 0,
    /// At the end: only what comes from now on.
    End = 1,
    /// So many bytes of the log behind its beginning: what iron_exec_stream_offset has said.
    Offset = 2,
    /// So many lines before the end.
    LastLines = 3,
}

/// How the reading of a log has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum StreamEnd {
    /// Not yet, as far as was read.
    None = 0,
    /// The job is over, and this was all of its log.
    Complete = 1,
    /// The log was deleted.
    Deleted = 2,
    /// Its worker is gone: nobody will write the rest.
    WriterGone = 3,
    /// In a way that this header does not know.
    Other = 4,
}

/// Opens a reader of a job's log, and writes it to `stream`. `source` is an iron_exec_stream_source; `position` an iron_exec_stream_position, of which `value` is
/// the offset, or the number of lines (0 with the others). It blocks while that place is looked up in the files.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, NOT_LOGGED, SYSTEM if the log file is gone.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stream_open(
    worker: *mut Worker,
    job: JobId,
    source: i32,
    position: i32,
    value: u64,
    stream: *mut *mut Stream,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let place = unsafe { border::place_with(stream, std::ptr::null_mut(), "the place for the stream") };
    let body = |worker: &mut iron_exec::Worker| {
        let place = place?;
        let options = options(source, position, value)?;
        let stream = worker.stream_with(job.into(), &options)?;
        *place = Box::into_raw(Box::new(Stream { stream, is_broken: false }));
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Reads up to `size` bytes into `buffer`, without waiting, and writes to `length` how many it were. It answers
/// - OK: there are such bytes, at least one;
/// - AGAIN: there is nothing yet; the job's next LOG_READY tells when to ask again;
/// - END: there will be nothing more;
/// - GAP: something is missing here, `length` bytes of it (0 if that is not to be known), or the log was tampered with; the error object says what. Reading goes
///   on behind it.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, or `size` is 0; SYSTEM if the log cannot be read.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stream_read(
    stream: *mut Stream,
    buffer: *mut c_void,
    size: usize,
    length: *mut usize,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let stream = unsafe { border::exclusive(stream, "the stream") };
    // SAFETY: the caller's promise.
    let buffer = unsafe { border::places(buffer.cast::<u8>(), size, "the buffer") };
    // SAFETY: the caller's promise.
    let length = unsafe { border::place_with(length, 0, "the place for the length") };
    let body = || {
        let (stream, buffer, length) = (stream?, buffer?, length?);
        if buffer.is_empty() {
            return Err(Fault::invalid("the buffer has no room"));
        }
        stream.with(|stream| {
            let shown = match stream.try_fill_buf() {
                Poll::Pending => return Ok(ResultCode::Again),
                Poll::Ready(Ok([])) => return Ok(ResultCode::End),
                Poll::Ready(Ok(shown)) => shown,
                Poll::Ready(Err(error)) => {
                    if let iron_exec::StreamError::Gap { bytes, .. } = error {
                        *length = usize::try_from(bytes).unwrap_or(usize::MAX);
                    }
                    return Err(error.into());
                }
            };
            let count = shown.len().min(buffer.len());
            for (place, byte) in buffer.iter_mut().zip(shown) {
                place.write(*byte);
            }
            stream.consume(count);
            *length = count;
            Ok(ResultCode::Ok)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

/// Writes to `offset` where in the log stands what comes next, in bytes from its beginning, all its files counted: IRON_EXEC_STREAM_POSITION_OFFSET goes on from
/// here another time. In the CRI format that is where a record begins; one that was not read whole comes again.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stream_offset(stream: *mut Stream, offset: *mut u64, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let stream = unsafe { border::exclusive(stream, "the stream") };
    // SAFETY: the caller's promise.
    let offset = unsafe { border::place_with(offset, 0, "the place for the offset") };
    let body = || {
        let offset = offset?;
        stream?.with(|stream| {
            *offset = stream.offset();
            Ok(ResultCode::Ok)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

/// Writes to `end` how the log has ended: an iron_exec_stream_end. To be asked once iron_exec_stream_read has answered END.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stream_ended(stream: *mut Stream, end: *mut i32, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let stream = unsafe { border::exclusive(stream, "the stream") };
    // SAFETY: the caller's promise.
    let end = unsafe { border::place_with(end, StreamEnd::None as i32, "the place for the end") };
    let body = || {
        let end = end?;
        stream?.with(|stream| {
            *end = match stream.end() {
                None => StreamEnd::None as i32,
                Some(LogEnd::Complete) => StreamEnd::Complete as i32,
                Some(LogEnd::Deleted) => StreamEnd::Deleted as i32,
                Some(LogEnd::WriterGone) => StreamEnd::WriterGone as i32,
                Some(_) => StreamEnd::Other as i32,
            };
            Ok(ResultCode::Ok)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

/// Frees a stream, and sets the pointer to NULL. Of a NULL it does nothing. The job is not concerned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stream_free(stream: *mut *mut Stream) {
    // SAFETY: the caller's promise, and streams come from `iron_exec_stream_open` alone, out of a box.
    unsafe { border::free(stream) }
}

impl Stream {
    /// Lends the stream, unless a panic has come out of it before.
    fn with<T>(&mut self, body: impl FnOnce(&mut LogStream) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.is_broken {
            return Err(Fault::panicked("this stream is not to be used any more"));
        }
        self.is_broken = true;
        let answer = body(&mut self.stream);
        self.is_broken = false;
        answer
    }
}

fn options(source: i32, position: i32, value: u64) -> Result<ReadOptions, Fault> {
    let select = match source {
        _ if source == StreamSource::Both as i32 => StreamSelect::Both,
        _ if source == StreamSource::Stdout as i32 => StreamSelect::Only(OutputStream::Stdout),
        _ if source == StreamSource::Stderr as i32 => StreamSelect::Only(OutputStream::Stderr),
        _ => return Err(Fault::unknown("the source of the stream", source)),
    };
    let position = match position {
        _ if position == StreamPosition::Start as i32 => LogPosition::Start,
        _ if position == StreamPosition::End as i32 => LogPosition::End,
        _ if position == StreamPosition::Offset as i32 => LogPosition::Offset(value),
        _ if position == StreamPosition::LastLines as i32 => LogPosition::LastLines(value),
        _ => return Err(Fault::unknown("the position in the log", position)),
    };
    Ok(ReadOptions::new().select(select).position(position))
}
