//! Promise: a worker ends as it was told to, by a shutdown, by being dropped or by a panic that unwinds through it: to the last byte, and nothing of it is left that is
//! not meant to be.

mod common;

use std::fs;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use common::{Census, DEADLINE, Host, isolated, output_of, process_exists, process_runs, read_log, turn_until, wait_until};
use iron_exec::{
    Archive, Capture, Command, Event, Events, HandleError, JobError, JobId, JobState, LogFormat, Retention, ShutdownMode, Signal,
    StartError, Status, StopReason, TreePolicy, Worker,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, WaitOptions, waitpid};

const GENTLY: ShutdownMode = ShutdownMode::Stop { signal: Signal::TERM, grace: Duration::from_secs(20) };

/// Turns until the jobs have written a line each.
fn wait_for_lines(worker: &mut Worker, jobs: &[JobId]) {
    turn_until(worker, |worker, _| jobs.iter().all(|job| worker.query(*job).unwrap().output.lines > 0));
}

fn events_of(worker: &mut Worker) -> Vec<Event> {
    let mut events = Events::new();
    let mut seen = Vec::new();
    loop {
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
        if events.is_empty() {
            return seen;
        }
        seen.extend(events.drain());
    }
}

/// Waits for a child that the library has let go of.
fn reap(pid: i32) {
    wait_until("the child's end", || waitpid(Pid::from_raw(pid), WaitOptions::NOHANG).unwrap().is_some());
}

#[test]
fn a_shutdown_that_kills_ends_every_tree_and_keeps_every_byte() {
    isolated("a_shutdown_that_kills_ends_every_tree_and_keeps_every_byte", || {
        let host = Host::new();
        let before = Census::take(&host);
        let mut worker = host.worker();
        let jobs: Vec<_> = (0..20)
            .map(|number| {
                worker.start(Command::shell(format!("echo {number}; sleep 1000 & trap '' TERM; sleep 1000; sleep 1000"))).unwrap()
            })
            .collect();
        wait_for_lines(&mut worker, &jobs);
        assert!(!worker.is_shut_down());
        assert_eq!(worker.shutdown(ShutdownMode::Kill).unwrap(), 0);
        assert!(worker.is_shut_down());
        assert!(matches!(worker.start(Command::new("true")), Err(StartError::ShuttingDown)));
        let events = events_of(&mut worker);
        for (number, job) in jobs.iter().enumerate() {
            let status = worker.query(*job).unwrap();
            assert_eq!(
                (status.state, status.stop_reason, status.signal()),
                (JobState::Finished, Some(StopReason::Shutdown), Some(Signal::KILL))
            );
            assert_eq!(output_of(&status), format!("{number}\n").into_bytes());
            assert!(events.iter().any(|event| matches!(event, Event::Finished { job: finished, .. } if finished == job)));
            fs::remove_file(status.log.unwrap()).unwrap();
        }
        assert_eq!(host.cgroups(), Vec::<String>::new());
        assert_eq!(common::children(), Vec::<String>::new());
        drop(worker);
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_gentle_shutdown_lets_the_jobs_say_their_last_words_and_kills_those_that_will_not_go() {
    let host = Host::new();
    let mut worker = host.worker();
    let last_words = "i=0; while [ $i -lt 2000 ]; do echo word $i; i=$((i+1)); done; exit 9";
    // What the shell says of the sleep that is killed is not meant.
    let polite = format!("exec 2>/dev/null; trap '{last_words}' TERM; echo ready; while :; do sleep 0.01; done");
    let polite = worker.start(Command::shell(polite)).unwrap();
    let plain = worker.start(Command::shell("echo ready; exec sleep 1000")).unwrap();
    wait_for_lines(&mut worker, &[polite, plain]);
    assert_eq!(worker.shutdown(GENTLY).unwrap(), 0);
    let status = worker.query(polite).unwrap();
    assert_eq!((status.exit_code, status.stop_reason), (9, Some(StopReason::Shutdown)));
    let expected: Vec<String> = ["ready".to_owned()].into_iter().chain((0..2000).map(|number| format!("word {number}"))).collect();
    let output = String::from_utf8(output_of(&status)).unwrap();
    assert!(output.lines().eq(&expected), "{output}");
    assert_eq!(worker.query(plain).unwrap().signal(), Some(Signal::TERM));

    let mut worker = host.worker();
    let stubborn = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done")).unwrap();
    wait_for_lines(&mut worker, &[stubborn]);
    assert_eq!(worker.shutdown(ShutdownMode::Stop { signal: Signal::TERM, grace: Duration::from_millis(50) }).unwrap(), 0);
    assert_eq!(worker.query(stubborn).unwrap().signal(), Some(Signal::KILL));
}

#[test]
fn a_second_shutdown_can_hasten_the_first_and_one_of_nothing_is_over_at_once() {
    let host = Host::new();
    let mut worker = host.worker();
    assert_eq!(worker.shutdown(GENTLY).unwrap(), 0);

    let mut worker = host.worker();
    let stubborn = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done")).unwrap();
    wait_for_lines(&mut worker, &[stubborn]);
    worker.begin_shutdown(GENTLY);
    turn_until(&mut worker, |worker, _| worker.query(stubborn).unwrap().state == JobState::Stopping);
    assert!(!worker.is_shut_down());
    let began = Instant::now();
    assert_eq!(worker.shutdown(ShutdownMode::Kill).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(10), "the grace time was not waited for");
}

#[test]
fn a_shutdown_that_was_begun_ends_in_any_loop() {
    let host = Host::new();
    let mut worker = host.worker();
    let jobs: Vec<_> = (0..5).map(|_| worker.start(Command::shell("echo ready; exec sleep 1000")).unwrap()).collect();
    wait_for_lines(&mut worker, &jobs);
    events_of(&mut worker);
    worker.begin_shutdown(ShutdownMode::Stop { signal: Signal::TERM, grace: Duration::from_millis(50) });
    let (mut events, mut seen) = (Events::new(), 0);
    while !worker.is_shut_down() {
        let timeout = Timespec::try_from(DEADLINE).unwrap();
        let readable = poll(&mut [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
        assert_eq!(readable, 1, "the descriptor stayed silent");
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
        seen += events.drain().filter(|event| matches!(event, Event::Finished { .. })).count();
    }
    assert_eq!(seen, 5);
}

/// What the jobs that are left by `worker` do, and who has to end them.
fn leave(worker: &mut Worker, jobs: &[JobId]) -> Vec<Status> {
    let began = Instant::now();
    assert_eq!(worker.shutdown(ShutdownMode::Leave).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_secs(10));
    let events = events_of(worker);
    let statuses: Vec<_> = jobs.iter().map(|job| worker.query(*job).unwrap()).collect();
    for status in &statuses {
        assert_eq!((status.state, status.exit, status.stop_reason), (JobState::Left, None, None), "{status:?}");
        assert_eq!(events.iter().filter(|event| **event == Event::Left { job: status.id }).count(), 1);
        assert!(process_runs(status.pid));
    }
    statuses
}

#[test]
fn jobs_that_are_left_run_on_and_what_they_write_themselves_goes_on_into_their_logs() {
    isolated("jobs_that_are_left_run_on_and_what_they_write_themselves_goes_on_into_their_logs", || {
        let host = Host::new();
        let before = Census::take(&host);
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        let script = format!("echo before; while [ ! -e {} ]; do sleep 0.01; done; echo after; exec sleep 1000", go.display());
        let mut worker = host.builder().log_format(LogFormat::Raw).build().unwrap();
        let direct = worker.start(Command::shell(&script).capture(Capture::Direct)).unwrap();
        let silent = worker.start(Command::new("sleep").arg("1000").capture(Capture::Discard)).unwrap();
        let log = worker.query(direct).unwrap().log.unwrap();
        wait_until("the first words", || fs::read(&log).unwrap() == b"before\n");
        if host.base.is_some() {
            worker.freeze(silent).unwrap();
            turn_until(&mut worker, |worker, _| worker.query(silent).unwrap().frozen);
        }
        let statuses = leave(&mut worker, &[direct, silent]);
        assert_eq!((statuses[0].output.stdout_bytes, statuses[1].frozen), (7, host.base.is_some()));
        let kept = common::open_fds().into_values().filter(|target| target.contains(".log")).count();
        assert_eq!(kept, 0, "no log is open");
        // Neither the worker's end nor a later stop does anything to them.
        worker.stop(silent).unwrap();
        drop(worker);
        fs::write(&go, "").unwrap();
        wait_until("the last words", || fs::read(&log).unwrap() == b"before\nafter\n");
        assert!(statuses.iter().all(|status| process_runs(status.pid)));
        if !host.has_no_cgroups() {
            // The next worker finds them.
            let mut next = host.worker();
            let leftovers = next.leftovers().unwrap();
            assert_eq!(leftovers.len(), 2, "{leftovers:?}");
            assert!(leftovers.iter().all(|leftover| leftover.populated));
            thread::scope(|scope| {
                scope.spawn(|| statuses.iter().for_each(|status| reap(status.pid)));
                next.kill_leftovers(DEADLINE).unwrap();
            });
            assert_eq!(next.leftovers().unwrap(), Vec::new());
        }
        for status in &statuses {
            let _ = rustix::process::kill_process(Pid::from_raw(status.pid).unwrap(), rustix::process::Signal::KILL);
        }
        wait_until("their end", || statuses.iter().all(|status| !process_exists(status.pid)));
        fs::remove_file(&log).unwrap();
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn what_a_job_has_written_into_its_pipes_is_in_the_log_when_it_is_left_and_writing_on_ends_it() {
    isolated("what_a_job_has_written_into_its_pipes_is_in_the_log_when_it_is_left_and_writing_on_ends_it", || {
        let host = Host::new();
        let mut worker = host.worker();
        let dir = tempfile::tempdir().unwrap();
        let (written, go) = (dir.path().join("written"), dir.path().join("go"));
        let script = format!(
            "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; printf prompt; : > {}; while [ ! -e {} ]; do sleep 0.01; done; echo more; exec sleep 1000",
            written.display(),
            go.display()
        );
        let job = worker.start(Command::shell(script)).unwrap();
        // It has written, and nothing was read.
        wait_until("its output", || written.exists());
        let mut stream = worker.stream(job).unwrap();
        let status = leave(&mut worker, &[job]).remove(0);
        let expected: Vec<String> = (0..1000).map(|number| format!("line {number}")).chain(["prompt".to_owned()]).collect();
        let expected = expected.join("\n");
        assert!(output_of(&status) == expected.clone().into_bytes());
        assert!(status.output.cut_off);
        // Who reads it hears of its end.
        let mut read = Vec::new();
        loop {
            let std::task::Poll::Ready(shown) = stream.try_fill_buf() else { panic!("the stream has an end") };
            let shown = shown.unwrap();
            if shown.is_empty() {
                break;
            }
            read.extend_from_slice(shown);
            let length = shown.len();
            stream.consume(length);
        }
        assert!(read == expected.into_bytes());
        fs::write(&go, "").unwrap();
        // By SIGPIPE.
        reap(status.pid);
        drop(worker);
        assert!(read_log(status.log.as_deref().unwrap()).ends_with(b"prompt"));
    });
}

#[test]
fn of_jobs_that_cannot_be_left_yet_or_any_more_each_comes_to_its_end() {
    isolated("of_jobs_that_cannot_be_left_yet_or_any_more_each_comes_to_its_end", || {
        let host = Host::new();
        // One that is being stopped, one whose main process has ended while its tree is waited for, one whose output is still open, and one that is starting.
        let mut worker = host.builder().drain_total_max(Duration::from_millis(500)).confirm(false).spawn_slots_max(1).build().unwrap();
        let stopping = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done")).unwrap();
        let waits = worker.start(Command::shell("sleep 1000 & echo ready").tree(TreePolicy::Wait)).unwrap();
        wait_for_lines(&mut worker, &[stopping, waits]);
        turn_until(&mut worker, |worker, _| worker.query(waits).unwrap().exit.is_some());
        worker.stop_with(stopping, Signal::TERM, Duration::from_millis(50)).unwrap();
        let starting = worker.start(Command::shell("exec sleep 1000").capture(Capture::Discard)).unwrap();
        assert_eq!(worker.shutdown(ShutdownMode::Leave).unwrap(), 0);
        let states = [stopping, starting].map(|job| worker.query(job).unwrap());
        assert_eq!((states[0].state, states[0].signal()), (JobState::Finished, Some(Signal::KILL)));
        assert_eq!(states[1].state, JobState::Left);
        let waited = worker.query(waits).unwrap();
        if host.base.is_some() {
            assert_eq!((waited.state, waited.exit_code), (JobState::Left, 0));
        }
        rustix::process::kill_process(Pid::from_raw(states[1].pid).unwrap(), rustix::process::Signal::KILL).unwrap();
        reap(states[1].pid);
        drop(worker);
        if !host.has_no_cgroups() {
            let mut next = host.worker();
            next.kill_leftovers(DEADLINE).unwrap();
            assert_eq!(next.leftovers().unwrap(), Vec::new());
        }
    });
}

#[test]
fn a_job_that_has_ended_unheard_is_not_left_but_finished() {
    isolated("a_job_that_has_ended_unheard_is_not_left_but_finished", || {
        let host = Host::new();
        let before = Census::take(&host);
        let mut worker = host.worker();
        let job = worker.start(Command::shell("exit 3").capture(Capture::Discard)).unwrap();
        let pid = worker.query(job).unwrap().pid;
        wait_until("its end", || !process_runs(pid));
        assert_eq!(worker.shutdown(ShutdownMode::Leave).unwrap(), 0);
        assert_eq!((worker.query(job).unwrap().state, worker.query(job).unwrap().exit_code), (JobState::Finished, 3));
        drop(worker);
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_loop_that_comes_late_still_does_what_a_shutdown_has_promised() {
    let frozen = Host::new();
    if frozen.has_no_cgroups() {
        return;
    }
    // One that hangs on its way cannot be left, and is killed, in the end.
    let mut worker = frozen.builder().drain_total_max(Duration::from_millis(50)).build().unwrap();
    fs::write(frozen.base.as_ref().unwrap().join("cgroup.freeze"), "1").unwrap();
    let job = worker.start(Command::new("true").confirm(false).capture(Capture::Discard)).unwrap();
    worker.begin_shutdown(ShutdownMode::Leave);
    let late = Instant::now() + Duration::from_millis(100);
    wait_until("the loop is late", || Instant::now() >= late);
    assert!(!worker.is_shut_down());
    assert_eq!(worker.shutdown(ShutdownMode::Leave).unwrap(), 0);
    assert_eq!(worker.query(job).unwrap().stop_reason, Some(StopReason::Shutdown));
}

#[test]
fn a_gentle_stop_keeps_its_grace_time_when_the_others_are_left() {
    let host = Host::new();
    let mut worker = host.builder().drain_total_max(Duration::from_millis(50)).build().unwrap();
    let handle = worker.handle();
    let script = "exec 2>/dev/null; trap 'sleep 0.3; exit 6' TERM; echo ready; while :; do sleep 0.01; done";
    let stopping = worker.start(Command::shell(script)).unwrap();
    wait_for_lines(&mut worker, &[stopping]);
    worker.stop_with(stopping, Signal::TERM, DEADLINE).unwrap();
    let left = worker.start(Command::new("sleep").arg("1000").capture(Capture::Discard)).unwrap();
    let waiting = handle.wait(left);
    turn_until(&mut worker, |worker, _| worker.query(left).unwrap().state == JobState::Running);
    worker.turn(&mut Events::new(), Some(Duration::ZERO)).unwrap();
    assert_eq!(worker.shutdown(ShutdownMode::Leave).unwrap(), 0);
    assert_eq!(worker.query(stopping).unwrap().exit_code, 6);
    // Who waits for the other hears that it was left, without a turn.
    let status = waiting.wait().unwrap();
    assert_eq!(status.state, JobState::Left);
    rustix::process::kill_process(Pid::from_raw(status.pid).unwrap(), rustix::process::Signal::KILL).unwrap();
    reap(status.pid);
}

#[test]
fn a_panic_of_the_host_unwinds_through_the_worker_and_nothing_is_left() {
    isolated("a_panic_of_the_host_unwinds_through_the_worker_and_nothing_is_left", || {
        let host = Host::new();
        let before = Census::take(&host);
        let mut handle = None;
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut worker = host.worker();
            handle = Some(worker.handle());
            let jobs: Vec<_> = (0..5).map(|_| worker.start(Command::shell("echo ready; sleep 1000 & sleep 1000")).unwrap()).collect();
            wait_for_lines(&mut worker, &jobs);
            worker.stop(jobs[0]).unwrap();
            worker.run_with(|_, event| panic!("the host's own: {event:?}")).unwrap();
        }));
        assert!(panicked.is_err());
        let gone = handle.take().unwrap().jobs().wait();
        assert!(matches!(gone, Err(HandleError::Gone)));
        host.logs().iter().for_each(|log| fs::remove_file(host.log_dir.path().join(log)).unwrap());
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_worker_goes_on_after_a_panic_in_what_is_done_at_its_events() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let jobs = [1, 2].map(|code| worker.start(Command::shell(format!("exit {code}")).capture(Capture::Discard)).unwrap());
    let pids = jobs.map(|job| worker.query(job).unwrap().pid);
    wait_until("their end", || pids.iter().all(|pid| !process_runs(*pid)));
    assert!(catch_unwind(AssertUnwindSafe(|| worker.run_with(|_, event| panic!("the host's own: {event:?}")))).is_err());
    // Of what it was told when it panicked nothing is lost but the one, and the descriptor says so.
    let timeout = Timespec::try_from(DEADLINE).unwrap();
    assert_eq!(poll(&mut [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap(), 1);
    let mut seen = 1;
    turn_until(&mut worker, |worker, events| {
        seen = 1 + events.len();
        worker.unfinished_jobs() == 0 && seen == 4
    });
    assert_eq!(jobs.map(|job| worker.query(job).unwrap().exit_code), [1, 2]);
    let asked = thread::spawn(move || handle.run_job(Command::shell("exit 2")).wait().map(|status| status.exit_code));
    worker.run().unwrap();
    assert_eq!(asked.join().unwrap().unwrap(), 2);
}

#[test]
fn a_handle_shuts_the_loop_down_and_hears_when_it_is_over() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let loop_thread = thread::spawn(move || {
        worker.run().unwrap();
        worker
    });
    let job = handle
        .start(Command::shell("exec 2>/dev/null; trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.01; done"))
        .wait()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut handle.follow(job).wait().unwrap(), &mut line).unwrap();
    let (waiting, shutdown) = (handle.wait(job), handle.shutdown(GENTLY));
    assert!(matches!(handle.start(Command::new("true")).wait(), Err(StartError::ShuttingDown | StartError::Handle(HandleError::Gone))));
    assert_eq!(shutdown.wait().unwrap(), 0);
    assert_eq!(waiting.wait().unwrap().exit_code, 4);
    let worker = loop_thread.join().unwrap();
    assert_eq!(output_of(&worker.query(job).unwrap()), b"ready\nbye\n");
    drop(worker);
    assert!(matches!(handle.query(job).wait(), Err(JobError::Handle(HandleError::Gone))));
}

#[test]
fn the_command_that_archives_ends_with_the_worker() {
    let host = Host::new();
    let dir = tempfile::tempdir().unwrap();
    let (script, began) = (dir.path().join("archive"), dir.path().join("began"));
    fs::write(&script, format!("#!/bin/sh\n: > {}\nexec sleep 1000\n", began.display())).unwrap();
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let retention = Retention::new().logs_max(0).archive(Archive::new("s3://bucket/prefix").program(&script));
    for mode in [ShutdownMode::Kill, GENTLY, ShutdownMode::Leave] {
        let _ = fs::remove_file(&began);
        let mut worker = host.builder().retention(retention.clone()).build().unwrap();
        worker.run_job(Command::shell("echo hello")).unwrap();
        worker.collect_logs();
        let deadline = Instant::now() + DEADLINE;
        while !Path::new(&began).exists() {
            assert!(Instant::now() < deadline, "the archive's command runs");
            worker.turn(&mut Events::new(), Some(Duration::from_millis(10))).unwrap();
        }
        assert_eq!(worker.shutdown(mode).unwrap(), 0, "{mode:?}");
        assert_eq!(host.cgroups(), Vec::<String>::new(), "{mode:?}");
    }
}
