//! What went wrong is said: by a code, a text with all its causes, and the system's number.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the handles are live, the places are the test's own")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "lists of calls")]

mod host;

use std::ffi::CString;
use std::ptr::null_mut;

use host::{DEADLINE, Host, shell, text};
use iron_exec_capi::*;

const ENOENT: i32 = 2;

#[test]
fn a_start_that_failed_names_step_path_and_errno() {
    let host = patient_host();
    let command = unsafe { iron_exec_command_new(c"/nonexistent/program".as_ptr()) };
    let (code, text) = host.start(command).unwrap_err();
    assert_eq!(code, ResultCode::StartFailed);
    assert!(text.contains("exec failed on /nonexistent/program: No such file or directory"), "{text}");
    assert_eq!(text.matches("No such file").count(), 1, "each cause is told once: {text}");
    assert_eq!(unsafe { iron_exec_error_errno(host.error) }, ENOENT);
    // The next call that is done takes the error away.
    let mut jobs = 7;
    assert_eq!(unsafe { iron_exec_unfinished_jobs(host.worker, &raw mut jobs, host.error) }, ResultCode::Ok);
    assert_eq!((jobs, host.text(), unsafe { iron_exec_error_errno(host.error) }), (0, String::new(), 0));
}

#[test]
fn a_start_that_was_not_confirmed_fails_by_event_and_status() {
    let host = Host::with(|config| assert_eq!(unsafe { iron_exec_config_confirm(config, 0) }, ResultCode::Ok));
    let job = host.start(unsafe { iron_exec_command_new(c"/nonexistent/program".as_ptr()) }).unwrap();
    let (status, events) = host.finish_with_events(job);
    assert_eq!((status.state, status.error_number, status.finished), (State::Failed as i32, ENOENT, true));
    assert!(events.iter().any(|event| event.kind == EventKind::StartFailed as i32 && event.error_number == ENOENT), "{events:?}");
    let failure = host.failure_text(job);
    assert!(failure.contains("/nonexistent/program"), "{failure}");
}

#[test]
fn a_text_is_on_one_line_whatever_a_program_is_called() {
    let program = c"/no\nsuch\x1b[2K/\xc2\x85\xe2\x80\xa8/\xc3\xa9\\";
    let escaped = "/no\\nsuch\\u{1b}[2K/\\u{85}\\u{2028}/é\\";
    let host = patient_host();
    let (code, text) = host.start(unsafe { iron_exec_command_new(program.as_ptr()) }).unwrap_err();
    assert!(code == ResultCode::StartFailed && text.contains(escaped), "{text}");
    assert!(!text.contains(char::is_control), "{text}");

    let host = Host::with(|config| assert_eq!(unsafe { iron_exec_config_confirm(config, 0) }, ResultCode::Ok));
    let job = host.start(unsafe { iron_exec_command_new(program.as_ptr()) }).unwrap();
    host.finish(job);
    let failure = host.failure_text(job);
    assert!(failure.contains(escaped) && !failure.contains(char::is_control), "{failure}");
}

#[test]
fn a_worker_that_cannot_be_built_says_why() {
    let (mut config, mut error, mut worker) = (iron_exec_config_new(), iron_exec_error_new(), std::ptr::dangling_mut());
    unsafe { iron_exec_config_log_dir(config, c"/nonexistent/logs".as_ptr()) };
    let code = unsafe { iron_exec_worker_new(config, &raw mut worker, error) };
    assert_eq!((code, worker.is_null(), unsafe { iron_exec_error_errno(error) }), (ResultCode::System, true, ENOENT));
    let said = text(error);
    assert!(said.contains("the log directory /nonexistent/logs cannot be used: No such file"), "{said}");
    unsafe {
        iron_exec_config_free(&raw mut config);
        iron_exec_error_free(&raw mut error);
    }
}

#[test]
fn what_the_kernel_did_not_refuse_has_no_number() {
    let directory = tempfile::tempdir().unwrap();
    let path = CString::new(directory.path().to_str().unwrap()).unwrap();
    let (mut config, mut error, mut worker) = (iron_exec_config_new(), iron_exec_error_new(), std::ptr::dangling_mut());
    let code = unsafe { iron_exec_config_cgroup_base(config, CgroupBase::Path as i32, path.as_ptr()) };
    assert_eq!(code, ResultCode::Ok);
    let code = unsafe { iron_exec_worker_new(config, &raw mut worker, error) };
    assert_eq!((code, worker.is_null(), unsafe { iron_exec_error_errno(error) }), (ResultCode::System, true, 0));
    let said = text(error);
    assert!(said.contains("the cgroup base") && said.contains("cgroup2"), "{said}");
    unsafe {
        iron_exec_config_free(&raw mut config);
        iron_exec_error_free(&raw mut error);
    }
}

#[test]
fn a_job_in_the_wrong_state_is_told_from_one_that_is_not_there() {
    let host = Host::with(|config| assert_eq!(unsafe { iron_exec_config_jobs_max(config, 1) }, ResultCode::Ok));
    let job = host.shell(c"sleep 1000");
    assert_eq!(unsafe { iron_exec_forget(host.worker, job, host.error) }, ResultCode::WrongState);
    assert_eq!(host.start(shell(c"exit 0")).unwrap_err().0, ResultCode::TooManyJobs);
    let mut fd = 7;
    assert_eq!(unsafe { iron_exec_take_pipe(host.worker, job, 0, &raw mut fd, host.error) }, ResultCode::WrongState);
    assert_eq!(fd, -1);
    assert_eq!(unsafe { iron_exec_stop(host.worker, job, host.error) }, ResultCode::Ok);
    let status = host.finish(job);
    assert_eq!((status.signal, status.exit_code, status.stop_reason), (9, -1, StopReason::Requested as i32));
    assert_eq!(unsafe { iron_exec_signal(host.worker, job, 15, host.error) }, ResultCode::WrongState);
    assert_eq!(unsafe { iron_exec_stop(host.worker, job, host.error) }, ResultCode::Ok, "it has finished");
    assert_eq!(unsafe { iron_exec_forget(host.worker, job, host.error) }, ResultCode::Ok);
    assert_eq!(unsafe { iron_exec_forget(host.worker, job, host.error) }, ResultCode::NotFound);
}

#[test]
fn a_limit_that_cannot_be_had_refuses_the_start() {
    let host = Host::new();
    let command = shell(c"exit 0");
    assert_eq!(unsafe { iron_exec_command_memory_max(command, 64 << 20) }, ResultCode::Ok);
    let (code, text) = host.start(command).unwrap_err();
    assert!(code == ResultCode::StartFailed && text.contains("limit"), "{text}");
}

#[test]
fn output_that_is_not_logged_cannot_be_streamed() {
    let host = Host::new();
    let command = shell(c"echo a");
    assert_eq!(unsafe { iron_exec_command_capture(command, Capture::Discard as i32) }, ResultCode::Ok);
    let job = host.start(command).unwrap();
    let (mut stream, mut length) = (null_mut(), 0);
    let answers = unsafe {
        [
            iron_exec_stream_open(host.worker, job, 0, 0, 0, &raw mut stream, host.error),
            iron_exec_log_path(host.worker, job, null_mut(), 0, &raw mut length, host.error),
        ]
    };
    assert_eq!(answers, [ResultCode::NotLogged; 2]);
    host.finish(job);
}

/// A host that waits for the end of a start that fails, however slow the machine, or what the test runs under, may be.
fn patient_host() -> Host {
    let timeout_ms = u64::try_from(DEADLINE.as_millis()).unwrap();
    Host::with(|config| assert_eq!(unsafe { iron_exec_config_confirm_timeout(config, timeout_ms) }, ResultCode::Ok))
}
