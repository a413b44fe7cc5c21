//! Promise: what a tenant, or a careless host, does to a worker hurts nobody else, and nothing of a job is lost without a word.

mod common;

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process;
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use common::{Host, cannot_run, finish, isolated, isolated_ignoring_sigchld, not_root, output_of, turn_until};
use iron_exec::{Capture, CgroupBase, Command, Events, Exit, JobError, JobState, LogStream, Signal, StopReason, TreePolicy, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Turns the loop for a time, whatever happens.
fn turn_for(worker: &mut Worker, time: Duration) {
    let (mut events, end) = (Events::new(), Instant::now() + time);
    while Instant::now() < end {
        worker.turn(&mut events, Some(end.saturating_duration_since(Instant::now()))).unwrap();
    }
}

fn is_readable(worker: &Worker) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(worker, PollFlags::IN)], Some(&now))).unwrap() > 0
}

#[test]
fn a_job_of_another_user_has_neither_the_groups_nor_the_capabilities_of_a_host_that_is_not_root() {
    const NAME: &str = "a_job_of_another_user_has_neither_the_groups_nor_the_capabilities_of_a_host_that_is_not_root";
    if std::env::var_os("IRON_EXEC_TEST_CAPABLE").is_none() {
        if not_root() {
            return;
        }
        // Where every user may run it.
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("hostile");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let caps = "+setuid,+setgid";
        let identity = ["--reuid", "54320", "--regid", "54320", "--groups", "54320,6", "--inh-caps", caps, "--ambient-caps", caps];
        let mut command = process::Command::new("setpriv");
        command.args(identity).arg(program).args(["--exact", NAME, "--nocapture", "--test-threads=1"]);
        let output = command.env("IRON_EXEC_TEST_CAPABLE", "1").env_remove("CI").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("grep -E 'Groups|Cap(Inh|Prm|Eff|Amb)' /proc/self/status").uid(54321).gid(54321)).unwrap();
    let status = finish(&mut worker, job);
    let seen = String::from_utf8(output_of(&status)).unwrap();
    let none = "0000000000000000";
    assert_eq!(
        seen.split_whitespace().collect::<Vec<_>>(),
        ["Groups:", "CapInh:", none, "CapPrm:", none, "CapEff:", none, "CapAmb:", none]
    );
}

#[test]
fn a_job_of_another_user_can_open_its_own_outputs_by_name() {
    if not_root() {
        return;
    }
    let host = Host::new();
    let mut worker = host.worker();
    let script = "echo one > /dev/stdout; echo two > /dev/stderr; cat /dev/stdin";
    let job = worker.start(Command::shell(script).stdin_bytes(*b"three\n").uid(54321).gid(54321)).unwrap();
    let status = finish(&mut worker, job);
    let output = String::from_utf8(output_of(&status)).unwrap();
    // Which of two pipes is read first is not said.
    let lines: std::collections::BTreeSet<_> = output.lines().collect();
    assert_eq!((status.exit_code, lines), (0, ["one", "two", "three"].into()));
}

#[test]
fn output_that_waits_for_its_turn_at_the_end_of_a_job_is_not_lost() {
    let host = Host::new();
    let mut worker = host.worker();
    // In one write each: the first fills its pipe, which is enlarged then.
    let file = |name: &str, bytes: Vec<u8>| {
        let path = host.log_dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let (first, rest, errors) = (file("first", vec![b'x'; 65537]), file("rest", vec![b'y'; 262_144]), file("errors", vec![b'e'; 60_000]));
    // A prompt whose flush is disarmed again, then more than one turn's budget, and the end, all while the host is busy elsewhere.
    let script = format!("cat {first}; sleep 0.1; printf prompt; sleep 0.03; echo; read go; cat {rest}; cat {errors} >&2");
    for _ in 0..3 {
        let job = worker.start(Command::shell(&script).stdin_piped()).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == 65537 + 7);
        let pid = worker.query(job).unwrap().pid;
        drop(worker.take_stdin(job).unwrap());
        common::wait_until("the job has ended", || !common::process_runs(pid));
        let flush_is_due = Instant::now() + Duration::from_millis(150);
        common::wait_until("the flush is due", || Instant::now() > flush_is_due);
        let status = finish(&mut worker, job);
        let (stdout, stderr) = (status.output.stdout_bytes, status.output.stderr_bytes);
        assert_eq!((stdout, stderr, status.output.cut_off), (65537 + 7 + 262_144, 60_000, false));
    }
}

#[test]
fn a_traced_job_is_given_up_after_a_while_and_its_zombie_reaped_when_it_can_be() {
    if not_root() || (process::Command::new("python3").arg("-V").output().is_err() && cannot_run("it needs python3")) {
        return;
    }
    isolated("a_traced_job_is_given_up_after_a_while_and_its_zombie_reaped_when_it_can_be", || {
        let host = Host::new();
        let mut worker = host.builder().drain_total_max(Duration::from_millis(300)).build().unwrap();
        let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
        let pid = worker.query(job).unwrap().pid;
        // A tracer that does not look keeps the zombie to itself. PTRACE_SEIZE is 0x4206.
        let seize = format!("import ctypes, time; assert ctypes.CDLL(None).ptrace(0x4206, {pid}, None, None) == 0; time.sleep(1000)");
        let mut tracer = process::Command::new("python3").args(["-c", &seize]).stdout(process::Stdio::null()).spawn().unwrap();
        common::wait_until("the job is traced", || {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            status.lines().any(|line| line.starts_with("TracerPid:") && !line.ends_with("\t0"))
        });
        worker.stop(job).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.state, status.exit, status.exit_code), (JobState::Unknown, Some(Exit::Unknown), -1));
        assert_eq!(worker.unfinished_jobs(), 0);
        tracer.kill().unwrap();
        tracer.wait().unwrap();
        turn_until(&mut worker, |_, _| !common::process_exists(pid));
    });
}

#[test]
fn a_start_that_failed_cannot_be_held_by_a_tenant_who_stops_his_own() {
    if not_root() {
        return;
    }
    let host = Host::new();
    let mut worker = host.worker();
    // A user of this test's own: it stops whatever that user runs.
    let bully = worker.start(Command::shell("while :; do kill -STOP -1; done").uid(54322).gid(54322).capture(Capture::Discard)).unwrap();
    let mut held = Vec::new();
    for _ in 0..50 {
        held.extend(worker.start(Command::new("/nonexistent/program").uid(54322).gid(54322)).ok());
    }
    worker.stop(bully).unwrap();
    for job in held {
        worker.stop(job).unwrap();
    }
    turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn a_stop_never_hits_a_stranger_who_has_got_the_number_of_a_job_that_somebody_else_reaped() {
    const NAME: &str = "a_stop_never_hits_a_stranger_who_has_got_the_number_of_a_job_that_somebody_else_reaped";
    if not_root() {
        return;
    }
    isolated_ignoring_sigchld(NAME, || {
        let host = Host::new();
        let mut worker = host.builder().cgroup_base(CgroupBase::Off).build().unwrap();
        // Other tests make processes, too, one of them as many as it can.
        let deadline = Instant::now() + common::DEADLINE;
        while Instant::now() < deadline {
            let job = worker.start(Command::shell("read line").stdin_piped()).unwrap();
            let pid = worker.query(job).unwrap().pid;
            drop(worker.take_stdin(job).unwrap());
            common::wait_until("the job is reaped by the kernel", || !common::process_exists(pid));
            // The next process of the machine gets that number, unless another test is quicker.
            fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
            let mut stranger = process::Command::new("setsid").args(["sleep", "1000"]).spawn().unwrap();
            let has_number = stranger.id() as i32 == pid;
            if has_number {
                common::wait_until("the stranger leads a group", || {
                    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
                    stat.rsplit_once(") ").unwrap().1.split(' ').nth(2) == Some(&pid.to_string())
                });
            }
            worker.stop(job).unwrap();
            worker.stop_with(job, Signal::TERM, Duration::ZERO).unwrap();
            finish(&mut worker, job);
            let lives = common::process_runs(stranger.id() as i32);
            let _ = stranger.kill();
            let _ = stranger.wait();
            assert!(lives, "the stranger was killed");
            if has_number {
                return;
            }
        }
        panic!("no process got the number of one before it");
    });
}

#[test]
fn a_gentle_stop_reaches_what_is_left_of_the_group_when_the_main_process_is_gone() {
    let host = Host::new();
    for base in [host.base.clone().map_or(CgroupBase::Off, CgroupBase::Path), CgroupBase::Off] {
        let mut worker = host.builder().cgroup_base(base.clone()).build().unwrap();
        let script = "(exec 2>/dev/null; trap 'echo got term; exit' TERM; echo ready; while :; do sleep 0.02; done) & exit 0";
        let job = worker.start(Command::shell(script).tree(TreePolicy::Wait)).unwrap();
        turn_until(&mut worker, |worker, _| {
            let status = worker.query(job).unwrap();
            status.state == JobState::Draining && status.output.lines > 0
        });
        worker.stop_with(job, Signal::TERM, Duration::from_secs(20)).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(output_of(&status), b"ready\ngot term\n", "{base:?}");
    }
}

#[test]
fn a_later_gentle_stop_does_not_put_off_a_kill_that_is_decided() {
    let host = Host::new();
    let mut worker = host.worker();
    let stubborn = Command::shell("trap '' TERM CONT; echo ready; while :; do sleep 0.02; done");
    let job = worker.start(stubborn).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
    worker.stop_with(job, Signal::TERM, Duration::from_millis(200)).unwrap();
    worker.owned_by(iron_exec::OwnerId::default()).stop_with(job, Signal::CONT, Duration::from_hours(24)).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Requested)));
}

#[test]
fn times_beyond_the_clock_mean_never() {
    let host = Host::new();
    let builder = host.builder().confirm_timeout(Duration::MAX).line_flush_time(Duration::MAX);
    let mut worker = builder.drain_idle_max(Duration::MAX).drain_total_max(Duration::MAX).build().unwrap();
    let job =
        worker.start(Command::shell("trap '' TERM; echo ready; printf held; read line").stdin_piped().timeout(Duration::MAX)).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == 10);
    worker.stop_with(job, Signal::TERM, Duration::MAX).unwrap();
    turn_for(&mut worker, Duration::from_millis(100));
    assert_eq!(worker.query(job).unwrap().state, JobState::Stopping, "it was given all the time there is");
    drop(worker.take_stdin(job).unwrap());
    let status = finish(&mut worker, job);
    assert_eq!((status.signal(), output_of(&status)), (None, b"ready\nheld".to_vec()));
}

#[test]
fn only_finished_jobs_that_are_still_there_count_against_their_limit() {
    let host = Host::new();
    let mut worker = host.builder().finished_jobs_max(2).build().unwrap();
    let run = |worker: &mut Worker| worker.run_job(Command::new("true").capture(Capture::Discard)).unwrap().id;
    let kept = run(&mut worker);
    for _ in 0..5 {
        worker.wait(kept).unwrap();
        let other = run(&mut worker);
        worker.forget(other).unwrap();
        turn_for(&mut worker, Duration::ZERO);
    }
    let second = run(&mut worker);
    assert_eq!(worker.jobs(), [kept, second]);
    let third = run(&mut worker);
    assert_eq!(worker.jobs(), [second, third], "the oldest went");
    assert!(matches!(worker.query(kept), Err(JobError::NotFound { .. })));
}

#[test]
fn a_host_that_only_waits_for_jobs_leaves_nothing_to_be_told() {
    let host = Host::new();
    let mut worker = host.builder().finished_jobs_max(0).build().unwrap();
    for _ in 0..20 {
        worker.run_job(Command::new("true").capture(Capture::Discard)).unwrap();
    }
    turn_for(&mut worker, Duration::ZERO);
    assert!(!is_readable(&worker), "nothing is to be told");
    let text = format!("{worker:?}");
    assert!(text.contains("reports: []"), "no key of a job that is gone stays behind");
}

#[test]
fn without_a_descriptor_to_be_had_a_closed_log_is_written_and_sealed_all_the_same() {
    isolated("without_a_descriptor_to_be_had_a_closed_log_is_written_and_sealed_all_the_same", || {
        let host = Host::new();
        let mut worker = host.builder().open_logs_max(0).build().unwrap();
        let job = worker.start(Command::shell("read line; echo late; exit 3").stdin_piped()).unwrap();
        let mut stdin = worker.take_stdin(job).unwrap();
        rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: Some(200), maximum: Some(200) })
            .unwrap();
        let mut taken: Vec<OwnedFd> = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            taken.push(file.into());
        }
        let _ = rustix::io::write(stdin.as_ref().unwrap(), b"\n");
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
        drop((taken, stdin.take()));
        let status = worker.query(job).unwrap();
        let mode = fs::metadata(status.log.as_ref().unwrap()).unwrap().permissions().mode();
        assert_eq!((status.exit_code, status.output.dropped_bytes, mode & 0o777), (3, 0, 0o400));
        assert_eq!(output_of(&status), b"late\n");
    });
}

#[test]
fn a_log_that_another_user_has_put_in_the_place_of_ours_is_not_written() {
    if not_root() {
        return;
    }
    let host = Host::new();
    let mut worker = host.builder().open_logs_max(0).build().unwrap();
    let job = worker.start(Command::shell("read line; echo secret").stdin_piped()).unwrap();
    let log = worker.query(job).unwrap().log.unwrap();
    // The same inode, so that only its owner tells.
    std::os::unix::fs::chown(&log, Some(54321), Some(54321)).unwrap();
    drop(worker.take_stdin(job).unwrap());
    let status = finish(&mut worker, job);
    assert_eq!((status.output.dropped_bytes, fs::read(&log).unwrap()), (7, Vec::new()));
}

#[test]
fn consuming_more_than_was_shown_is_consuming_all() {
    let host = Host::new();
    let mut worker = host.worker();
    let status = worker.run_job(Command::shell("echo one; echo two")).unwrap();
    let mut stream = worker.stream(status.id).unwrap();
    for expected in [&b"one\n"[..], b"two\n", b""] {
        let std::task::Poll::Ready(shown) = stream.try_fill_buf() else { panic!("the log has ended") };
        assert_eq!(shown.unwrap(), expected);
        stream.consume(usize::MAX);
    }
}

#[test]
fn a_task_that_owns_a_stream_of_the_same_log_can_be_dropped_with_another() {
    struct Task(#[allow(dead_code, reason = "it is there to be dropped")] std::sync::Mutex<LogStream>);
    impl Wake for Task {
        fn wake(self: std::sync::Arc<Self>) {}
    }
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let (mut first, second) = (worker.stream(job).unwrap(), worker.stream(job).unwrap());
    let waker: Waker = std::sync::Arc::new(Task(std::sync::Mutex::new(second))).into();
    assert!(first.poll_fill_buf(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    let (done, is_done) = std::sync::mpsc::channel();
    let dropping = std::thread::spawn(move || {
        drop(first);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(common::DEADLINE).expect("the drop comes back");
    dropping.join().unwrap();
}

#[test]
fn a_base_that_workers_made_goes_with_the_last_of_them_and_one_that_was_there_stays() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let base = host.base.clone().unwrap();
    let (first, mut second) = (host.worker(), host.worker());
    drop(first);
    second.run_job(Command::new("true").capture(Capture::Discard)).unwrap();
    drop(second);
    assert!(!base.exists(), "the last worker took it away");
    fs::create_dir(&base).unwrap();
    let mut worker = host.worker();
    worker.run_job(Command::new("true").capture(Capture::Discard)).unwrap();
    drop(worker);
    assert!(base.exists(), "what somebody else has made is not ours to remove");
}
