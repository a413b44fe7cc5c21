//! A host: a worker with a directory of its own for its logs, driven through the C functions.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the handles are live, the places are the host's own")]

use std::ffi::{CStr, CString};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use iron_exec_capi::*;

/// How long anything may take before a test gives it up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct Host {
    pub(crate) worker: *mut Worker,
    pub(crate) error: *mut Error,
    pub(crate) logs: tempfile::TempDir,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// A host whose worker is configured further.
    pub(crate) fn with(configure: impl FnOnce(*mut Config)) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let (error, mut config, mut worker) = (iron_exec_error_new(), iron_exec_config_new(), null_mut());
        let path = CString::new(logs.path().to_str().unwrap()).unwrap();
        unsafe {
            assert_eq!(iron_exec_config_log_dir(config, path.as_ptr()), ResultCode::Ok);
            assert_eq!(iron_exec_config_cgroup_base(config, CgroupBase::Off as i32, null_mut()), ResultCode::Ok);
            configure(config);
            assert_eq!(iron_exec_worker_new(config, &raw mut worker, error), ResultCode::Ok, "{}", text(error));
            iron_exec_config_free(&raw mut config);
        }
        Self { worker, error, logs }
    }

    /// Starts a job; the command is freed.
    pub(crate) fn start(&self, command: *mut Command) -> Result<JobId, (ResultCode, String)> {
        let (mut command, mut job) = (command, JobId::default());
        let code = unsafe { iron_exec_start(self.worker, command, &raw mut job, self.error) };
        unsafe { iron_exec_command_free(&raw mut command) };
        if code == ResultCode::Ok { Ok(job) } else { Err((code, self.text())) }
    }

    pub(crate) fn shell(&self, script: &CStr) -> JobId {
        self.start(shell(script)).unwrap()
    }

    /// One turn that waits for a moment at most.
    pub(crate) fn turn(&self) -> Vec<Event> {
        let (mut events, mut count) = ([Event::default(); 8], 0);
        let code = unsafe { iron_exec_turn(self.worker, 100, events.as_mut_ptr(), events.len(), &raw mut count, self.error) };
        assert_eq!(code, ResultCode::Ok, "{}", self.text());
        events[..count].to_vec()
    }

    pub(crate) fn query(&self, job: JobId) -> Status {
        let mut status = Status::default();
        let code = unsafe { iron_exec_query(self.worker, job, &raw mut status, self.error) };
        assert_eq!(code, ResultCode::Ok, "{}", self.text());
        status
    }

    /// Turns until a job has finished, and has said so.
    pub(crate) fn finish(&self, job: JobId) -> Status {
        self.finish_with_events(job).0
    }

    /// As `finish`, with everything that was told of the job.
    pub(crate) fn finish_with_events(&self, job: JobId) -> (Status, Vec<Event>) {
        let deadline = Instant::now() + DEADLINE;
        let mut seen: Vec<Event> = Vec::new();
        let last = [EventKind::Finished as i32, EventKind::StartFailed as i32];
        while !seen.iter().any(|event| last.contains(&event.kind)) {
            assert!(Instant::now() < deadline, "the job did not finish: {seen:?}");
            seen.extend(self.turn().into_iter().filter(|event| event.job == job));
        }
        (self.query(job), seen)
    }

    /// Why the start of a job failed.
    pub(crate) fn failure_text(&self, job: JobId) -> String {
        let (mut buffer, mut length) = (vec![0_u8; 1024], 0);
        let place = buffer.as_mut_ptr().cast();
        let code = unsafe { iron_exec_failure_text(self.worker, job, place, buffer.len(), &raw mut length, self.error) };
        assert_eq!(code, ResultCode::Ok, "{}", self.text());
        buffer.truncate(length);
        String::from_utf8(buffer).unwrap()
    }

    pub(crate) fn open(&self, job: JobId, source: StreamSource, position: StreamPosition, value: u64) -> *mut Stream {
        let mut stream = null_mut();
        let code = unsafe { iron_exec_stream_open(self.worker, job, source as i32, position as i32, value, &raw mut stream, self.error) };
        assert_eq!(code, ResultCode::Ok, "{}", self.text());
        stream
    }

    pub(crate) fn text(&self) -> String {
        text(self.error)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        unsafe {
            iron_exec_worker_free(&raw mut self.worker);
            iron_exec_error_free(&raw mut self.error);
        }
    }
}

pub(crate) fn shell(script: &CStr) -> *mut Command {
    let command = unsafe { iron_exec_command_new(c"/bin/sh".as_ptr()) };
    for arg in [c"-c", script] {
        assert_eq!(unsafe { iron_exec_command_arg(command, arg.as_ptr()) }, ResultCode::Ok);
    }
    command
}

/// One read into a buffer of so many bytes. A gap's length comes as so many bytes of nothing.
pub(crate) fn read(stream: *mut Stream, size: usize) -> (ResultCode, Vec<u8>) {
    let (mut buffer, mut length) = (vec![0_u8; size], usize::MAX);
    let code = unsafe { iron_exec_stream_read(stream, buffer.as_mut_ptr().cast(), size, &raw mut length, null_mut()) };
    buffer.resize(length, 0);
    (code, buffer)
}

pub(crate) fn text(error: *const Error) -> String {
    unsafe { CStr::from_ptr(iron_exec_error_text(error)) }.to_str().unwrap().to_owned()
}

/// All that a stream of a finished job yields, gaps left out; it is freed.
pub(crate) fn read_all(stream: *mut Stream) -> Vec<u8> {
    let (mut stream, mut bytes) = (stream, Vec::new());
    loop {
        match read(stream, 7) {
            (ResultCode::Ok, read) => bytes.extend(read),
            (ResultCode::Gap, _) => {}
            (ResultCode::End, _) => break,
            (code, _) => panic!("{code:?}"),
        }
    }
    unsafe { iron_exec_stream_free(&raw mut stream) };
    assert!(stream.is_null());
    bytes
}
