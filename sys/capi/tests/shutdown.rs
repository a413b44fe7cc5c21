//! A shutdown ends every job as it was asked to, waiting or not, and nothing is started after it.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the handles are live, the places are the test's own")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "lists of calls")]

mod host;

use std::time::Instant;

use host::{DEADLINE, Host, shell};
use iron_exec_capi::*;

const SIGTERM: i32 = 15;

#[test]
fn a_gentle_shutdown_gives_the_jobs_their_grace_time() {
    let host = Host::new();
    let job = host.shell(c"trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done");
    while host.query(job).lines == 0 {
        host.turn();
    }
    let mut left = 7;
    let mode = ShutdownMode::Stop as i32;
    let code = unsafe { iron_exec_shutdown(host.worker, mode, SIGTERM, 10_000, &raw mut left, host.error) };
    assert_eq!((code, left), (ResultCode::Ok, 0), "{}", host.text());
    let status = host.query(job);
    assert_eq!((status.exit_code, status.stop_reason, status.finished), (5, StopReason::Shutdown as i32, true));
    assert_eq!(host.start(shell(c"exit 0")).unwrap_err().0, ResultCode::WrongState);
    // Its end is still told.
    host.finish(job);
}

#[test]
fn a_shutdown_that_was_begun_goes_on_by_turns() {
    let host = Host::new();
    let jobs = [host.shell(c"sleep 1000"), host.shell(c"sleep 1000")];
    let mut is_shut_down = true;
    assert_eq!(unsafe { iron_exec_is_shut_down(host.worker, &raw mut is_shut_down, host.error) }, ResultCode::Ok);
    assert!(!is_shut_down);
    assert_eq!(unsafe { iron_exec_begin_shutdown(host.worker, ShutdownMode::Kill as i32, 0, 0, host.error) }, ResultCode::Ok);
    let deadline = Instant::now() + DEADLINE;
    while !is_shut_down {
        assert!(Instant::now() < deadline);
        host.turn();
        assert_eq!(unsafe { iron_exec_is_shut_down(host.worker, &raw mut is_shut_down, host.error) }, ResultCode::Ok);
    }
    for job in jobs {
        assert_eq!((host.query(job).signal, host.query(job).stop_reason), (9, StopReason::Shutdown as i32));
    }
}

#[test]
fn a_job_that_is_left_runs_on() {
    let host = Host::new();
    let command = shell(c"exec sleep 1000");
    assert_eq!(unsafe { iron_exec_command_capture(command, Capture::Discard as i32) }, ResultCode::Ok);
    let job = host.start(command).unwrap();
    let pid = host.query(job).pid;
    let mut left = 7;
    let code = unsafe { iron_exec_shutdown(host.worker, ShutdownMode::Leave as i32, 0, 0, &raw mut left, host.error) };
    assert_eq!((code, left, host.query(job).state), (ResultCode::Ok, 0, State::Left as i32));
    assert!(host.turn().iter().any(|event| event.job == job && event.kind == EventKind::Left as i32));
    drop(host);
    // It is a child of this process, and nobody else's to end: its id cannot have been reused.
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    let (_, status) = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
    assert_eq!(status.terminating_signal(), Some(9));
}
