//! A worker: made, turned, asked, freed.

use std::ffi::c_char;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use iron_exec::Events;

use crate::border;
use crate::command::Command;
use crate::config::Config;
use crate::error::{Error, Fault, ResultCode, one_line};
use crate::event::Event;
use crate::id::JobId;
use crate::status::Status;

/// Starts, watches, logs and stops processes, from the thread that turns it: an event loop behind one file descriptor, which fits into any other. There are no
/// threads, no signal handler and nothing global behind it.
///
/// One thread at a time; it may be handed from one to another.
#[derive(Debug)]
pub struct Worker {
    inner: iron_exec::Worker,
    events: Events,
    events_max: usize,
    /// A panic came out of it: only to be freed any more.
    is_broken: bool,
}

/// What becomes of the jobs when a worker is shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum ShutdownMode {
    /// Every job's whole tree is killed at once, with SIGKILL.
    Kill = 0,
    /// Every job's process group gets a signal, and what is left of its tree after the grace time SIGKILL.
    Stop = 1,
    /// The jobs run on, and nobody watches them any more. Their pipes are closed: a job that is to outlive its host writes into its log itself, or nowhere
    /// (IRON_EXEC_CAPTURE_DIRECT, DISCARD, INHERIT). Its log is not sealed, its cgroup stays. The processes stay children of this one.
    Leave = 2,
}

/// The version of the library, for instance "0.1.0". A constant. Not that of this header, IRON_EXEC_VERSION, if another library was loaded.
#[unsafe(no_mangle)]
pub extern "C" fn iron_exec_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Makes a worker, with this configuration (NULL: the defaults), and writes it to `worker`. The configuration stays the caller's, and may be used again.
///
/// Errors: INVALID_ARGUMENT if `worker` is NULL, or a setting was wrong; SYSTEM if the log directory, the cgroup base or the rung cannot be had, or the kernel
/// refuses what a loop needs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_worker_new(config: *const Config, worker: *mut *mut Worker, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise: NULL, or a live handle.
    let config = unsafe { config.as_ref() };
    // SAFETY: the caller's promise.
    let place = unsafe { border::place_with(worker, std::ptr::null_mut(), "the place for the worker") };
    let body = || {
        let place = place?;
        let worker = config.map_or_else(|| Ok(iron_exec::Worker::builder()), Config::to_builder)?.build()?;
        *place = Box::into_raw(Box::new(Worker::new(worker)));
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

/// Kills the jobs of a worker, waits, for a bounded time, until nothing of them is left, frees it, and sets the pointer to NULL. Of a NULL it does nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_worker_free(worker: *mut *mut Worker) {
    // SAFETY: the caller's promise, and workers come from `iron_exec_worker_new` alone, out of a box.
    unsafe { border::free(worker) }
}

/// The worker's file descriptor, an epoll instance: it becomes readable whenever iron_exec_turn has something to do, deadlines included, for level- and
/// edge-triggered loops alike. Only to be waited for, never to be read, changed or closed; it goes with the worker. -1 for NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_worker_fd(worker: *const Worker) -> i32 {
    // SAFETY: the caller's promise: NULL, or a live handle.
    unsafe { worker.as_ref() }.map_or(-1, |worker| worker.inner.as_fd().as_raw_fd())
}

/// One turn of the loop: waits until there is something to do, up to `timeout_ms` milliseconds (0: not at all; below 0: for ever), does it, writes to `events`
/// what there is to tell, up to `capacity` of it, and to `count` how many it were. What does not fit comes with the next turn; the descriptor stays readable.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, or `capacity` is 0; SYSTEM if the loop's own descriptors fail, of which no job is affected: the events that
/// were written hold all the same.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_turn(
    worker: *mut Worker,
    timeout_ms: i32,
    events: *mut Event,
    capacity: usize,
    count: *mut usize,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let worker = unsafe { border::exclusive(worker, "the worker") };
    // SAFETY: the caller's promise.
    let places = unsafe { border::places(events, capacity, "the array of events") };
    // SAFETY: the caller's promise.
    let count = unsafe { border::place_with(count, 0, "the place for the number of events") };
    let body = || {
        let (worker, places, count) = (worker?, places?, count?);
        if places.is_empty() {
            return Err(Fault::invalid("there is no room for an event"));
        }
        if worker.events_max != places.len() {
            worker.events = Events::with_capacity(places.len());
            worker.events_max = places.len();
        }
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        worker.with(|worker, events| {
            let turned = worker.turn(events, timeout);
            for (place, event) in places.iter_mut().zip(&*events) {
                place.write(event.into());
            }
            *count = events.len();
            turned?;
            Ok(ResultCode::Ok)
        })
    };
    // SAFETY: the caller's promise.
    unsafe { border::call(error, body) }
}

/// Starts a job, and writes its id to `job`. The command stays the caller's, and may be started again.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, or the command is wrong; START_FAILED; TOO_MANY_JOBS; WRONG_STATE if the worker is shut down. Nothing is left
/// of a job that was not started.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_start(worker: *mut Worker, command: *const Command, job: *mut JobId, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let command = unsafe { border::shared(command, "the command") };
    // SAFETY: the caller's promise.
    let place = unsafe { border::place(job, "the place for the job's id") };
    let body = |worker: &mut iron_exec::Worker| {
        let (command, place) = (command?, place?);
        place.write(worker.start(command.to_command()?)?.into());
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Kills a job's whole process tree with SIGKILL. Does nothing to one that has finished.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, SYSTEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stop(worker: *mut Worker, job: JobId, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, |worker| done(worker.stop(job.into()))) }
}

/// Sends `signal` (1 to 64) to a job's process group, and SIGKILL to its whole tree `grace_ms` milliseconds later, if the job has not finished by then.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, SYSTEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_stop_with(worker: *mut Worker, job: JobId, signal: i32, grace_ms: u64, error: *mut Error) -> ResultCode {
    let body =
        |worker: &mut iron_exec::Worker| done(worker.stop_with(job.into(), border::signal(signal)?, Duration::from_millis(grace_ms)));
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Sends a signal (1 to 64) to a job's main process; it can never hit another process.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if there is no process yet, or it has ended; SYSTEM.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_signal(worker: *mut Worker, job: JobId, signal: i32, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, |worker| done(worker.signal(job.into(), border::signal(signal)?))) }
}

/// Writes everything known about a job to `status`.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_query(worker: *mut Worker, job: JobId, status: *mut Status, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let place = unsafe { border::place(status, "the place for the status") };
    let body = |worker: &mut iron_exec::Worker| {
        place?.write((&worker.query(job.into())?).into());
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Copies the path of a job's log, with a NUL byte at its end, into `buffer` of `size` bytes, and writes its length without that byte to `length`, also where
/// it does not fit. To ask for the length alone, `buffer` may be NULL and `size` 0.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND, NOT_LOGGED, BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_log_path(
    worker: *mut Worker,
    job: JobId,
    buffer: *mut c_char,
    size: usize,
    length: *mut usize,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let buffer = unsafe { border::places(buffer.cast::<u8>(), size, "the buffer") };
    // SAFETY: the caller's promise.
    let length = unsafe { border::place_with(length, 0, "the place for the length") };
    let body = |worker: &mut iron_exec::Worker| {
        let (buffer, length) = (buffer?, length?);
        let log = worker.query(job.into())?.log.ok_or(iron_exec::StreamError::NotLogged { job: job.into() })?;
        border::copy_text(log.as_os_str().as_encoded_bytes(), buffer, length)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Copies why a job's start failed (the step, the path, the cause, and what to do about it where that is known), as iron_exec_log_path does, on one line as
/// iron_exec_error_text. Of a start that has not failed it is "". For a start that iron_exec_start did not confirm: of the others it says so itself.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND, BUFFER_TOO_SMALL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_failure_text(
    worker: *mut Worker,
    job: JobId,
    buffer: *mut c_char,
    size: usize,
    length: *mut usize,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let buffer = unsafe { border::places(buffer.cast::<u8>(), size, "the buffer") };
    // SAFETY: the caller's promise.
    let length = unsafe { border::place_with(length, 0, "the place for the length") };
    let body = |worker: &mut iron_exec::Worker| {
        let (buffer, length) = (buffer?, length?);
        let text = worker.query(job.into())?.failure.map(|failure| one_line(&failure.to_string())).unwrap_or_default();
        border::copy_text(text.as_bytes(), buffer, length)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Forgets a finished job: its status goes, its log stays.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if it has not finished.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_forget(worker: *mut Worker, job: JobId, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, |worker| done(worker.forget(job.into()))) }
}

/// Writes to `count` the number of jobs that have not finished.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_unfinished_jobs(worker: *mut Worker, count: *mut usize, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let place = unsafe { border::place_with(count, 0, "the place for the number of jobs") };
    let body = |worker: &mut iron_exec::Worker| {
        *place? = worker.unfinished_jobs();
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Takes the host's end of one of a job's pipes, and writes its descriptor to `fd`: 0 is its stdin (IRON_EXEC_STDIN_PIPED), 1 its stdout, 2 its stderr
/// (IRON_EXEC_CAPTURE_PIPED). It is the caller's to close from then on, blocks, and is not passed on to programs (O_CLOEXEC). Closing stdin is the end of the
/// job's input; writing to it after the job has ended raises SIGPIPE unless the host ignores that.
///
/// Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if that is no pipe, or was taken before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_take_pipe(worker: *mut Worker, job: JobId, number: i32, fd: *mut i32, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let place = unsafe { border::place_with(fd, -1, "the place for the descriptor") };
    let body = |worker: &mut iron_exec::Worker| {
        let place = place?;
        let pipe: Option<OwnedFd> = match number {
            0 => worker.take_stdin(job.into())?.map(Into::into),
            1 => worker.take_stdout(job.into())?.map(Into::into),
            2 => worker.take_stderr(job.into())?.map(Into::into),
            _ => return Err(Fault::invalid(format!("the number of the pipe is {number}, outside 0 to 2"))),
        };
        let gone = || Fault::new(ResultCode::WrongState, 0, format!("descriptor {number} of the job is no pipe, or it was taken before"));
        *place = pipe.ok_or_else(gone)?.into_raw_fd();
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Ends all jobs as `mode` says (an iron_exec_shutdown_mode; `signal`, 1 to 64, and `grace_ms`, in milliseconds, are for STOP alone), and turns the loop until
/// every one of them is over, to the last byte of its output. Nothing can be started any more; events come with the next turns, statuses and logs can still be
/// read, and the worker is still to be freed. It blocks for as long as the jobs take, the grace time and a few seconds at most, and writes to `left` the number
/// of jobs that were not over by then (processes that the kernel cannot end). A second shutdown with another mode is one with that mode.
///
/// Errors: INVALID_ARGUMENT; SYSTEM if the loop's own descriptors fail: then it can be called again.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_shutdown(
    worker: *mut Worker,
    mode: i32,
    signal: i32,
    grace_ms: u64,
    left: *mut usize,
    error: *mut Error,
) -> ResultCode {
    // SAFETY: the caller's promise.
    let left = unsafe { border::place_with(left, 0, "the place for the number of jobs that are left") };
    let body = |worker: &mut iron_exec::Worker| {
        let (left, mode) = (left?, shutdown_mode(mode, signal, grace_ms)?);
        *left = worker.shutdown(mode)?;
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// As iron_exec_shutdown, without waiting: turn the loop until iron_exec_is_shut_down.
///
/// Errors: INVALID_ARGUMENT.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_begin_shutdown(
    worker: *mut Worker,
    mode: i32,
    signal: i32,
    grace_ms: u64,
    error: *mut Error,
) -> ResultCode {
    let body = |worker: &mut iron_exec::Worker| {
        worker.begin_shutdown(shutdown_mode(mode, signal, grace_ms)?);
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

/// Writes to `is_shut_down` whether a shutdown was begun, and everything is over, or was waited for long enough.
///
/// Errors: INVALID_ARGUMENT if a pointer is NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn iron_exec_is_shut_down(worker: *mut Worker, is_shut_down: *mut bool, error: *mut Error) -> ResultCode {
    // SAFETY: the caller's promise.
    let place = unsafe { border::place_with(is_shut_down, false, "the place for the answer") };
    let body = |worker: &mut iron_exec::Worker| {
        *place? = worker.is_shut_down();
        Ok(ResultCode::Ok)
    };
    // SAFETY: the caller's promise.
    unsafe { Worker::call(worker, error, body) }
}

impl Worker {
    pub(crate) fn new(worker: iron_exec::Worker) -> Self {
        Self { inner: worker, events: Events::with_capacity(1), events_max: 1, is_broken: false }
    }

    /// Runs the body of a function on a worker.
    ///
    /// # Safety
    /// The caller's promise for both pointers.
    pub(crate) unsafe fn call(
        worker: *mut Self,
        error: *mut Error,
        body: impl FnOnce(&mut iron_exec::Worker) -> Result<ResultCode, Fault>,
    ) -> ResultCode {
        // SAFETY: the caller's promise.
        let worker = unsafe { border::exclusive(worker, "the worker") };
        // SAFETY: the caller's promise.
        unsafe { border::call(error, || worker?.with(|worker, _| body(worker))) }
    }

    /// Lends the worker, unless a panic has come out of it before.
    fn with<T>(&mut self, body: impl FnOnce(&mut iron_exec::Worker, &mut Events) -> Result<T, Fault>) -> Result<T, Fault> {
        if self.is_broken {
            return Err(Fault::panicked("this worker is not to be used any more"));
        }
        self.is_broken = true;
        let answer = body(&mut self.inner, &mut self.events);
        self.is_broken = false;
        answer
    }
}

fn shutdown_mode(mode: i32, signal: i32, grace_ms: u64) -> Result<iron_exec::ShutdownMode, Fault> {
    match mode {
        _ if mode == ShutdownMode::Kill as i32 => Ok(iron_exec::ShutdownMode::Kill),
        _ if mode == ShutdownMode::Stop as i32 => {
            Ok(iron_exec::ShutdownMode::Stop { signal: border::signal(signal)?, grace: Duration::from_millis(grace_ms) })
        }
        _ if mode == ShutdownMode::Leave as i32 => Ok(iron_exec::ShutdownMode::Leave),
        _ => Err(Fault::unknown("the mode of the shutdown", mode)),
    }
}

fn done(answer: Result<(), iron_exec::JobError>) -> Result<ResultCode, Fault> {
    answer?;
    Ok(ResultCode::Ok)
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::ptr::null_mut;

    use super::*;

    #[test]
    fn a_panic_becomes_a_code_and_what_it_came_out_of_can_only_be_freed() {
        let directory = tempfile::tempdir().unwrap();
        let builder = iron_exec::Worker::builder().log_dir(directory.path()).cgroup_base(iron_exec::CgroupBase::Off);
        let mut worker = Box::into_raw(Box::new(Worker::new(builder.build().unwrap())));
        let mut error = crate::iron_exec_error_new();
        let panics = |_: &mut iron_exec::Worker| panic!("on purpose, {}", 7);
        // SAFETY: both handles are live.
        let code = unsafe { Worker::call(worker, error, panics) };
        assert_eq!(code, ResultCode::Bug);
        // SAFETY: the handle is live.
        let text = unsafe { crate::iron_exec_error_text(error) };
        // SAFETY: the text belongs to the error object, which is not used in the meantime.
        let text = unsafe { CStr::from_ptr(text) };
        assert_eq!(text, c"a bug in iron-exec: on purpose, 7");
        let mut jobs = 0;
        // SAFETY: both handles are live.
        let code = unsafe { iron_exec_unfinished_jobs(worker, &raw mut jobs, null_mut()) };
        assert_eq!(code, ResultCode::Bug);
        let (mut event, mut count) = (Event::default(), 0);
        // SAFETY: the handle is live.
        let code = unsafe { iron_exec_turn(worker, 0, &raw mut event, 1, &raw mut count, error) };
        assert_eq!(code, ResultCode::Bug);
        // SAFETY: the handle is live.
        unsafe { iron_exec_worker_free(&raw mut worker) };
        // SAFETY: the handle is live.
        unsafe { crate::iron_exec_error_free(&raw mut error) };
        assert!(worker.is_null() && error.is_null());
    }
}
