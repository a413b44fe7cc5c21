//! Promise: through handles other threads do with a worker's jobs what its own thread could, none of them ever hangs, and nothing is lost or left over.

mod common;

use std::collections::HashSet;
use std::fs;
use std::future::Future;
use std::io::{BufRead, Read};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Census, DEADLINE, Host, isolated, output_of, refuse_timers, rounds, turn_until};
use iron_exec::{
    Answer, Capture, Command, Event, Events, Handle, HandleError, JobError, JobState, OwnerId, ProcessRunner, RunError, ShutdownMode,
    Signal, StartError, StopReason, StreamError, TurnError, Worker,
};
use uuid::Uuid;

/// A worker whose loop runs in a thread of its own.
struct Elsewhere {
    handle: Handle,
    thread: JoinHandle<Result<Worker, TurnError>>,
}

impl Elsewhere {
    fn new(mut worker: Worker) -> Self {
        let handle = worker.handle();
        let thread = thread::spawn(move || worker.run().map(|()| worker));
        Self { handle, thread }
    }

    /// Ends the loop; the worker comes back.
    fn end(self) -> Worker {
        assert_eq!(soon(self.handle.shutdown(ShutdownMode::Kill)).unwrap(), 0);
        self.thread.join().unwrap().unwrap()
    }
}

/// The answer, which must come by the deadline.
fn soon<T, E: From<HandleError>>(mut answer: Answer<T, E>) -> Result<T, E> {
    answer.wait_timeout(DEADLINE).expect("an answer by the deadline")
}

/// Does something in another thread, which must end by the deadline.
fn in_thread<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> impl FnOnce() -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(body()));
    move || receiver.recv_timeout(DEADLINE).expect("the thread ends by the deadline")
}

/// Turns, with whatever there is to do.
fn turn_once(worker: &mut Worker) {
    worker.turn(&mut Events::new(), Some(Duration::ZERO)).unwrap();
}

/// Turns until other threads have seen to something, of which this one hears nothing.
fn turn_for(worker: &mut Worker, mut done: impl FnMut(&mut Worker) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done(worker) {
        assert!(Instant::now() < deadline, "the deadline has passed");
        worker.turn(&mut Events::new(), Some(Duration::from_millis(10))).unwrap();
    }
}

#[test]
fn another_thread_starts_queries_signals_stops_and_forgets_jobs() {
    let host = Host::new();
    let elsewhere = Elsewhere::new(host.worker());
    let handle = &elsewhere.handle;
    let status = soon(handle.run_job(Command::shell("echo hello; exit 3"))).unwrap();
    assert_eq!((status.exit_code, output_of(&status)), (3, b"hello\n".to_vec()));

    let job = soon(handle.start(Command::new("sleep").arg("1000"))).unwrap();
    assert_eq!(soon(handle.query(job)).unwrap().state, JobState::Running);
    assert_eq!(soon(handle.jobs()).unwrap(), [status.id, job]);
    assert!(matches!(soon(handle.forget(job)), Err(JobError::NotFinished { .. })));
    let waiting = handle.wait(job);
    soon(handle.signal(job, Signal::TERM)).unwrap();
    assert_eq!(soon(waiting).unwrap().signal(), Some(Signal::TERM));

    let job = soon(handle.start(Command::new("sleep").arg("1000"))).unwrap();
    soon(handle.stop(job)).unwrap();
    assert_eq!(soon(handle.wait(job)).unwrap().stop_reason, Some(StopReason::Requested));
    // Of one that has finished as well.
    assert_eq!(soon(handle.wait(job)).unwrap().signal(), Some(Signal::KILL));
    soon(handle.delete_log(job)).unwrap();
    soon(handle.forget(job)).unwrap();
    assert!(matches!(soon(handle.query(job)), Err(JobError::NotFound { .. })));
    assert!(matches!(soon(handle.wait(job)), Err(JobError::NotFound { .. })));

    let stubborn = soon(handle.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done"))).unwrap();
    let mut line = String::new();
    soon(handle.follow(stubborn)).unwrap().read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    soon(handle.stop_with(stubborn, Signal::TERM, Duration::from_millis(20))).unwrap();
    assert_eq!(soon(handle.wait(stubborn)).unwrap().signal(), Some(Signal::KILL));
    elsewhere.end();
}

#[test]
fn a_start_that_fails_is_an_error_and_leaves_nothing_not_even_an_event() {
    isolated("a_start_that_fails_is_an_error_and_leaves_nothing_not_even_an_event", || {
        let host = Host::new();
        let mut worker = host.worker();
        let handle = worker.handle();
        let before = Census::take(&host);
        let failed = in_thread(move || {
            let error = soon(handle.start(Command::new("/nonexistent/program"))).unwrap_err();
            assert!(error.failure().is_some_and(|failure| failure.errno() == 2), "{error}");
            assert!(matches!(soon(handle.run_job(Command::new("/nonexistent/program"))), Err(RunError::Start(StartError::Failed(_)))));
            assert!(matches!(soon(handle.start(Command::new(""))), Err(StartError::Command(_))));
        });
        let mut events = Vec::new();
        worker.run_with(|_, event| events.push(event)).unwrap();
        failed();
        assert_eq!((events, worker.jobs()), (Vec::new(), Vec::new()));
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_start_that_hangs_does_not_hold_up_the_loop_and_is_answered_in_time() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let frozen = Host::new();
    let worker = frozen.builder().confirm_timeout(Duration::from_millis(300)).build().unwrap();
    let freeze = |frozen_: &str| fs::write(frozen.base.as_ref().unwrap().join("cgroup.freeze"), frozen_).unwrap();
    let elsewhere = Elsewhere::new(worker);
    freeze("1");
    let mut starts: Vec<_> = (0..4).map(|_| elsewhere.handle.start(Command::new("true"))).collect();
    let began = Instant::now();
    // Each of them would hold up a loop that waits for its confirmation.
    assert_eq!(soon(elsewhere.handle.call(|worker| worker.unfinished_jobs())).unwrap(), 4);
    let took = began.elapsed();
    assert!(took < Duration::from_millis(300), "the loop was held up for {took:?}");
    assert!(starts.iter_mut().all(|start| start.wait_timeout(Duration::ZERO).is_none()));
    let jobs: Vec<_> = starts.into_iter().map(|start| soon(start).unwrap()).collect();
    assert!(began.elapsed() >= Duration::from_millis(250), "not before the time of a confirmation");
    assert_eq!(soon(elsewhere.handle.query(jobs[0])).unwrap().state, JobState::Starting);
    freeze("0");
    for job in jobs {
        assert!(soon(elsewhere.handle.wait(job)).unwrap().success());
    }
    elsewhere.end();
}

#[test]
fn many_threads_at_once_get_each_their_own_answers_and_nothing_is_left() {
    isolated("many_threads_at_once_get_each_their_own_answers_and_nothing_is_left", || {
        let host = Host::new();
        let before = Census::take(&host);
        let elsewhere = Elsewhere::new(host.worker());
        let (threads, each) = (16, rounds(40));
        let hands: Vec<_> = (0..threads)
            .map(|number| {
                let handle = elsewhere.handle.clone();
                in_thread(move || {
                    for round in 0..each {
                        let code = (number * 7 + round) % 200;
                        let command = Command::shell(format!("echo {number} {round}; exit {code}"));
                        let status = match round % 4 {
                            0 => soon(handle.run_job(command)).unwrap(),
                            1 => futures_lite::future::block_on(handle.run_job(command)).unwrap(),
                            2 => {
                                let job = soon(handle.start(command)).unwrap();
                                let mut output = String::new();
                                soon(handle.follow(job)).unwrap().read_to_string(&mut output).unwrap();
                                assert_eq!(output, format!("{number} {round}\n"));
                                soon(handle.wait(job)).unwrap()
                            }
                            _ => {
                                // Somebody who loses patience, again and again.
                                drop(handle.start(Command::new("sleep").arg("1000")));
                                drop(handle.run_job(Command::new("sleep").arg("1000")));
                                let job = soon(handle.start(command.confirm(false))).unwrap();
                                drop(handle.wait(job));
                                soon(handle.wait(job)).unwrap()
                            }
                        };
                        assert_eq!(status.exit_code, i32::try_from(code).unwrap());
                        assert_eq!(output_of(&status), format!("{number} {round}\n").into_bytes());
                        soon(handle.delete_log(status.id)).unwrap();
                        soon(handle.forget(status.id)).unwrap();
                    }
                })
            })
            .collect();
        for hand in hands {
            hand();
        }
        let worker = elsewhere.end();
        assert_eq!(worker.jobs(), []);
        drop(worker);
        host.logs().iter().for_each(|log| fs::remove_file(host.log_dir.path().join(log)).unwrap());
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_dropped_worker_answers_everybody_who_waits() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let job = worker.start(Command::shell("echo one; exec sleep 1000")).unwrap();
    let waits: Vec<_> = (0..4)
        .map(|_| {
            let handle = handle.clone();
            in_thread(move || handle.wait(job).wait())
        })
        .collect();
    let reader = {
        let handle = handle.clone();
        in_thread(move || {
            let mut output = String::new();
            handle.follow(job).wait().unwrap().read_to_string(&mut output).unwrap();
            output
        })
    };
    // Until all of them wait.
    let seen = Arc::new(AtomicUsize::new(0));
    for _ in 0..4 {
        let (handle, seen) = (handle.clone(), Arc::clone(&seen));
        thread::spawn(move || handle.query(job).wait().map(|_| seen.fetch_add(1, Ordering::SeqCst)));
    }
    turn_for(&mut worker, |worker| seen.load(Ordering::SeqCst) == 4 && worker.query(job).unwrap().output.lines == 1);
    let (never_taken_up, started, ran) = (handle.query(job), handle.start(Command::new("true")), handle.run_job(Command::new("true")));
    drop(worker);
    for wait in waits {
        match wait() {
            Ok(status) => assert_eq!(status.stop_reason, Some(StopReason::WorkerDropped)),
            Err(error) => assert!(matches!(error, JobError::Handle(HandleError::Gone)), "{error}"),
        }
    }
    match reader() {
        output if output.is_empty() || output == "one\n" => {}
        output => panic!("{output}"),
    }
    assert!(matches!(soon(never_taken_up), Err(JobError::Handle(HandleError::Gone))));
    assert!(matches!(soon(started), Err(StartError::Handle(HandleError::Gone))));
    assert!(matches!(soon(ran), Err(RunError::Handle(HandleError::Gone) | RunError::Start(StartError::Handle(HandleError::Gone)))));
    assert!(matches!(soon(handle.jobs()), Err(HandleError::Gone)));
    assert!(matches!(soon(handle.shutdown(ShutdownMode::Kill)), Err(HandleError::Gone)));
    assert!(matches!(soon(handle.stream(job)), Err(StreamError::Handle(HandleError::Gone))));
}

#[test]
fn a_wait_on_the_loops_own_thread_is_an_error_at_once() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let job = worker.start(Command::shell("echo hello; exec sleep 1000")).unwrap();
    let own = handle.clone();
    let asked = handle.call(move |_| (own.query(job).wait(), own.start(Command::new("true")).wait()));
    let (mut runner, mut tried) = (handle.clone(), 0);
    let watcher = in_thread(move || {
        let (query, start) = soon(asked).unwrap();
        assert!(matches!(query, Err(JobError::Handle(HandleError::OwnThread))), "{query:?}");
        assert!(matches!(start, Err(StartError::Handle(HandleError::OwnThread))), "{start:?}");
        soon(handle.stop(job)).unwrap();
        drop(handle);
    });
    worker
        .run_with(|worker, event| {
            let Event::Finished { job, .. } = event else { return };
            let began = Instant::now();
            assert!(matches!(runner.query(job).wait(), Err(JobError::Handle(HandleError::OwnThread))));
            assert!(matches!(ProcessRunner::stop(&mut runner, job), Err(JobError::Handle(HandleError::OwnThread))));
            let error = worker.stream(job).map(|_| runner.follow(job).wait()).unwrap().unwrap_err();
            assert!(matches!(error, StreamError::Handle(HandleError::OwnThread)), "{error}");
            assert!(began.elapsed() < Duration::from_secs(2), "at once");
            tried += 1;
            // With the last handle the loop ends.
            let mut other = worker.handle();
            std::mem::swap(&mut runner, &mut other);
            drop(other);
            let _ = worker.run_job(Command::new("true"));
            worker.begin_shutdown(ShutdownMode::Kill);
        })
        .unwrap();
    watcher();
    assert_eq!(tried, 1);
}

#[test]
fn a_wait_of_the_thread_that_has_the_worker_ends_in_an_error_and_of_one_that_gave_it_away_in_an_answer() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    worker.run_job(Command::new("true")).unwrap();
    let began = Instant::now();
    // Nobody turns.
    let error = handle.start(Command::new("true")).wait().unwrap_err();
    assert!(matches!(error, StartError::Handle(HandleError::OwnThread)), "{error}");
    assert!(began.elapsed() < DEADLINE);
    // What was not answered was taken back.
    turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
    assert_eq!(worker.jobs().len(), 1);
    let (go, gone) = mpsc::channel::<()>();
    let thread = thread::spawn(move || {
        // It takes its time.
        let _ = gone.recv_timeout(Duration::from_millis(200));
        worker.run().map(|()| worker)
    });
    assert!(handle.run_job(Command::new("true")).wait().unwrap().success());
    drop((handle, go));
    thread.join().unwrap().unwrap();
}

#[test]
fn a_start_whose_answer_nobody_wants_is_taken_back_at_every_stage() {
    isolated("a_start_whose_answer_nobody_wants_is_taken_back_at_every_stage", || {
        let host = Host::new();
        let mut worker = host.worker();
        let handle = worker.handle();
        let before = Census::take(&host);
        let sleep = || Command::new("sleep").arg("1000");
        let turn = |worker: &mut Worker| worker.turn(&mut Events::new(), Some(Duration::from_millis(20))).unwrap();
        // Before the loop has looked.
        drop((handle.start(sleep()), handle.run_job(sleep())));
        turn(&mut worker);
        assert_eq!((worker.unfinished_jobs(), worker.jobs().len()), (0, 0));
        for turns in [0, 1, 4] {
            for confirm in [true, false] {
                let (start, run) = (handle.start(sleep().confirm(confirm)), handle.run_job(sleep().confirm(confirm)));
                turn_for(&mut worker, |worker| worker.unfinished_jobs() == 2);
                (0..turns).for_each(|_| turn(&mut worker));
                drop((start, run));
                turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
                turn_until(&mut worker, |worker, _| worker.jobs().is_empty());
            }
        }
        // Of one that has its job, nothing is taken back.
        let mut start = handle.start(sleep());
        let mut job = None;
        turn_until(&mut worker, |_, _| {
            let polled = Pin::new(&mut start).poll(&mut Context::from_waker(Waker::noop()));
            job = if let Poll::Ready(answer) = polled { Some(answer.unwrap()) } else { None };
            job.is_some()
        });
        drop(start);
        turn(&mut worker);
        assert_eq!(worker.query(job.unwrap()).unwrap().state, JobState::Running);
        worker.stop(job.unwrap()).unwrap();
        common::finish(&mut worker, job.unwrap());
        worker.forget(job.unwrap()).unwrap();
        host.logs().iter().for_each(|log| fs::remove_file(host.log_dir.path().join(log)).unwrap());
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn what_else_is_asked_for_is_done_although_nobody_waits_for_the_answer_and_in_its_order() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let (sender, receiver) = mpsc::channel();
    for number in 0..1000 {
        let sender = sender.clone();
        drop(handle.call(move |_| sender.send(number)));
    }
    drop(handle.stop(job));
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
    assert_eq!(receiver.try_iter().collect::<Vec<_>>(), (0..1000).collect::<Vec<_>>());
}

#[test]
fn a_panic_in_a_call_is_told_to_who_asked_and_one_in_a_waker_to_nobody_and_the_loop_goes_on() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let asked = handle.call(|_| panic!("a call that panics"));
    let mut queried = handle.query(worker.start(Command::new("true")).unwrap());
    assert!(Pin::new(&mut queried).poll(&mut Context::from_waker(&bomb())).is_pending());
    let talker = worker.start(Command::shell("read go; echo hello").stdin_piped()).unwrap();
    let mut stream = worker.stream(talker).unwrap();
    assert!(stream.poll_fill_buf(&mut Context::from_waker(&bomb())).is_pending());
    drop(worker.take_stdin(talker).unwrap());
    let after = handle.call(|_| 7);
    let told = thread::spawn(|| (soon(asked), soon(queried), soon(after)));
    turn_for(&mut worker, |worker| told.is_finished() && worker.unfinished_jobs() == 0);
    let (asked, queried, after) = told.join().unwrap();
    assert!(matches!(asked, Err(HandleError::Panicked)));
    assert!(queried.is_ok());
    assert_eq!(after.unwrap(), 7);
}

#[test]
fn a_panic_in_the_drop_of_an_answer_that_nobody_wants_is_nobodys_and_the_loop_goes_on() {
    struct Fuse;
    impl Drop for Fuse {
        fn drop(&mut self) {
            panic!("nobody has got it");
        }
    }
    let host = Host::new();
    let elsewhere = Elsewhere::new(host.worker());
    let (asked, is_asked) = mpsc::channel();
    let call = elsewhere.handle.call(move |_| {
        // Not before the answer was dropped.
        is_asked.recv().unwrap();
        Fuse
    });
    drop(call);
    asked.send(()).unwrap();
    assert!(soon(elsewhere.handle.jobs()).unwrap().is_empty());
    elsewhere.end();
}

/// A waker that panics.
fn bomb() -> Waker {
    struct Bomb;
    impl Wake for Bomb {
        fn wake(self: Arc<Self>) {
            panic!("a waker that panics");
        }
    }
    Waker::from(Arc::new(Bomb))
}

#[test]
fn wakers_that_panic_while_the_worker_is_dropped_leave_nothing_either() {
    isolated("wakers_that_panic_while_the_worker_is_dropped_leave_nothing_either", || {
        let host = Host::new();
        let before = Census::take(&host);
        let mut worker = host.worker();
        let handle = worker.handle();
        let job = worker.start(Command::shell("sleep 1000 & sleep 1000").capture(Capture::Discard)).unwrap();
        let mut waiting = handle.wait(job);
        assert!(Pin::new(&mut waiting).poll(&mut Context::from_waker(&bomb())).is_pending());
        turn_once(&mut worker);
        // One that waits for the end, one that waits for a shutdown, and one that was not looked at.
        let mut queried = handle.query(job);
        assert!(Pin::new(&mut queried).poll(&mut Context::from_waker(&bomb())).is_pending());
        drop(worker);
        assert_eq!(soon(waiting).unwrap().stop_reason, Some(StopReason::WorkerDropped));
        assert!(matches!(soon(queried), Err(JobError::Handle(HandleError::Gone))));
        drop(handle);
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_worker_that_is_taken_away_in_a_call_goes_on_serving_where_it_is() {
    let host = Host::new();
    let (mut worker, other) = (host.worker(), host.worker());
    let handle = worker.handle();
    let taking = handle.call(move |worker| std::mem::replace(worker, other));
    let asked = thread::spawn(move || soon(taking).unwrap());
    turn_for(&mut worker, |_| asked.is_finished());
    let mut taken = asked.join().unwrap();
    assert_eq!(soon_turned(&mut taken, handle.call(|_| 7)), 7);
}

#[test]
fn a_start_that_hangs_is_taken_back_at_once_where_nobody_waits_any_more() {
    let frozen = Host::new();
    if frozen.has_no_cgroups() {
        return;
    }
    let mut worker = frozen.builder().confirm_timeout(DEADLINE * 10).build().unwrap();
    let handle = worker.handle();
    fs::write(frozen.base.as_ref().unwrap().join("cgroup.freeze"), "1").unwrap();
    let (start, run, kept) = (handle.start(Command::new("true")), handle.run_job(Command::new("true")), handle.start(Command::new("true")));
    turn_for(&mut worker, |worker| worker.unfinished_jobs() == 3);
    drop((start, run));
    turn_for(&mut worker, |worker| worker.jobs().len() == 1);
    fs::write(frozen.base.as_ref().unwrap().join("cgroup.freeze"), "0").unwrap();
    let job = soon_turned(&mut worker, kept);
    assert_eq!(worker.jobs(), [job]);
    turn_for(&mut worker, |worker| worker.unfinished_jobs() == 0);
}

#[test]
fn of_a_confirmed_start_the_answer_tells_and_no_event() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let others = in_thread(move || {
        let confirmed = soon(handle.start(Command::new("true"))).unwrap();
        (confirmed, soon(handle.start(Command::new("true").confirm(false))).unwrap())
    });
    let mut seen = Vec::new();
    worker.run_with(|_, event| seen.push(event)).unwrap();
    let (confirmed, unconfirmed) = others();
    let is_told = |job| seen.contains(&Event::Started { job });
    assert!(!is_told(confirmed) && is_told(unconfirmed), "{seen:?}");
}

#[test]
fn who_hears_of_an_end_has_time_to_ask_however_long_ago_the_start_was() {
    let host = Host::new();
    let mut worker = host.builder().finished_jobs_max(2).build().unwrap();
    let long = worker.start(Command::new("sleep").arg("1000").capture(Capture::Discard)).unwrap();
    let short: Vec<_> = (0..5).map(|_| worker.start(Command::new("true").capture(Capture::Discard)).unwrap()).collect();
    turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 1);
    turn_for(&mut worker, |worker| worker.jobs().len() == 3);
    worker.stop(long).unwrap();
    turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::Finished { job, .. } if *job == long)));
    assert_eq!(worker.query(long).unwrap().signal(), Some(Signal::KILL));
    assert_eq!(worker.jobs().len(), 2);
    // Those that are forgotten by hand make room, too.
    worker.forget(long).unwrap();
    assert!(short.iter().any(|job| worker.query(*job).is_ok()));
}

#[test]
fn an_owners_handle_sees_no_other_jobs() {
    let host = Host::new();
    let elsewhere = Elsewhere::new(host.worker());
    let (our_id, their_id) = (OwnerId::from(Uuid::from_u128(1)), OwnerId::from(Uuid::from_u128(2)));
    let (ours, theirs) = (elsewhere.handle.owned_by(our_id), elsewhere.handle.owned_by(their_id));
    let job = soon(ours.start(Command::shell("echo ours; exec sleep 1000").owner(their_id))).unwrap();
    assert_eq!(soon(ours.query(job)).unwrap().owner, our_id);
    assert_eq!((soon(ours.jobs()).unwrap(), soon(theirs.jobs()).unwrap()), (vec![job], vec![]));
    let not_found = |result: Result<(), JobError>| assert!(matches!(result, Err(JobError::NotFound { .. })), "{result:?}");
    not_found(soon(theirs.query(job)).map(drop));
    not_found(soon(theirs.wait(job)).map(drop));
    not_found(soon(theirs.stop(job)));
    not_found(soon(theirs.stop_with(job, Signal::TERM, Duration::ZERO)));
    not_found(soon(theirs.signal(job, Signal::TERM)));
    not_found(soon(theirs.set_limits(job, iron_exec::Limits::new())));
    not_found(soon(theirs.usage(job)).map(drop));
    not_found(soon(theirs.freeze(job)));
    not_found(soon(theirs.thaw(job)));
    not_found(soon(theirs.forget(job)));
    not_found(soon(theirs.delete_log(job)));
    assert!(matches!(soon(theirs.stream(job)), Err(StreamError::NotFound { .. })));
    assert!(matches!(soon(theirs.follow(job)), Err(StreamError::NotFound { .. })));
    let mut line = String::new();
    soon(ours.follow(job)).unwrap().read_line(&mut line).unwrap();
    assert_eq!(line, "ours\n");
    soon(ours.stop(job)).unwrap();
    assert_eq!(soon(ours.wait(job)).unwrap().signal(), Some(Signal::KILL));
    soon(ours.forget(job)).unwrap();
    assert_eq!(soon(theirs.run_job(Command::shell("exit 4"))).unwrap().owner, their_id);
    elsewhere.end();
}

#[test]
fn run_ends_when_the_last_handle_is_gone_and_the_last_job_has_finished() {
    let host = Host::new();
    let mut worker = host.worker();
    worker.run().unwrap();
    let handle = worker.handle();
    let clone = handle.clone();
    let others = in_thread(move || {
        let job = soon(clone.start(Command::shell("sleep 0.1; exit 5"))).unwrap();
        drop((clone, handle));
        job
    });
    let mut seen = Vec::new();
    worker.run_with(|_, event| seen.push(event)).unwrap();
    let job = others();
    assert_eq!(worker.query(job).unwrap().exit_code, 5);
    assert!(matches!(seen.last(), Some(Event::Finished { .. })), "every event was told: {seen:?}");
}

#[test]
fn what_the_last_handle_has_asked_for_is_done_before_run_ends() {
    let host = Host::new();
    let mut worker = host.worker();
    let calls = Arc::new(AtomicUsize::new(0));
    for round in 1..=rounds(10000) {
        let (handle, counted) = (worker.handle(), Arc::clone(&calls));
        let running = thread::spawn(move || worker.run().map(|()| worker));
        // It wakes the loop: the next one is to come when that has just looked.
        drop(handle.call(|_| ()));
        (0..round % 997 * 5).for_each(|_| std::hint::spin_loop());
        drop(handle.call(move |_| counted.fetch_add(1, Ordering::SeqCst)));
        drop(handle);
        worker = running.join().unwrap().unwrap();
        assert_eq!(calls.load(Ordering::SeqCst), round);
    }
}

#[test]
fn a_turn_that_fails_tells_its_events_and_ends_run() {
    isolated("a_turn_that_fails_tells_its_events_and_ends_run", || {
        let host = Host::new();
        let mut worker = host.worker();
        let job = worker.start(Command::new("true")).unwrap();
        while !worker.query(job).unwrap().is_finished() {
            worker.run_job(Command::new("true")).unwrap();
        }
        refuse_timers();
        let _sleeping = worker.start(Command::new("sleep").arg("1000").timeout(Duration::from_secs(1000))).unwrap();
        let mut told = Vec::new();
        assert!(worker.run_with(|_, event| told.push(event)).is_err());
        assert!(told.iter().any(|event| matches!(event, Event::Finished { job: finished, .. } if *finished == job)), "{told:?}");
    });
}

#[test]
fn whatever_turns_the_loop_serves_its_handles() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    let job = worker.start(Command::shell("read go; echo $go").stdin_piped()).unwrap();
    let stdin = worker.take_stdin(job).unwrap().unwrap();
    let hand = |stdin: std::io::PipeWriter, handle: Handle| {
        in_thread(move || {
            assert!(soon(handle.run_job(Command::new("true"))).unwrap().success());
            drop(stdin);
        })
    };
    // While it waits for a job, and while it follows one.
    let served = hand(stdin, handle.clone());
    assert_eq!(worker.wait(job).unwrap().exit_code, 0);
    served();
    let job = worker.start(Command::shell("read go; echo gone").stdin_piped()).unwrap();
    let served = hand(worker.take_stdin(job).unwrap().unwrap(), handle);
    let mut output = String::new();
    worker.follow(job).unwrap().read_to_string(&mut output).unwrap();
    served();
    assert_eq!(output, "gone\n");
}

#[test]
fn what_is_asked_while_a_call_turns_the_loop_is_done_after_it_and_what_comes_then_is_heard() {
    let host = Host::new();
    let elsewhere = Elsewhere::new(host.worker());
    let handle = &elsewhere.handle;
    let job = soon(handle.start(Command::shell("read line").stdin_piped())).unwrap();
    let (began, begins) = mpsc::channel();
    let call = handle.call(move |worker| {
        let stdin = worker.take_stdin(job).unwrap();
        began.send(stdin).unwrap();
        worker.wait(job).unwrap()
    });
    let stdin = begins.recv_timeout(DEADLINE).unwrap();
    let meanwhile = handle.jobs();
    drop(stdin);
    assert!(soon(call).unwrap().is_finished());
    assert_eq!(soon(meanwhile).unwrap(), [job]);
    for _ in 0..1000 {
        soon(handle.jobs()).unwrap();
    }
    elsewhere.end();
}

#[test]
fn who_waits_for_a_job_that_is_forgotten_hears_of_it_and_who_waits_with_a_limit_can_wait_again() {
    let host = Host::new();
    let mut worker = host.builder().finished_jobs_max(0).build().unwrap();
    let handle = worker.handle();
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let mut waiting = handle.wait(job);
    let has_waited = Arc::new(AtomicUsize::new(0));
    let waiter = {
        let has_waited = Arc::clone(&has_waited);
        in_thread(move || {
            assert!(waiting.wait_timeout(Duration::from_millis(10)).is_none());
            assert!(waiting.wait_timeout(Duration::ZERO).is_none());
            has_waited.store(1, Ordering::SeqCst);
            soon(waiting)
        })
    };
    turn_for(&mut worker, |_| has_waited.load(Ordering::SeqCst) == 1);
    worker.stop(job).unwrap();
    turn_for(&mut worker, |worker| worker.query(job).is_err());
    // It had finished before it was forgotten.
    assert_eq!(waiter().unwrap().signal(), Some(Signal::KILL));

    // One that was over, and is forgotten before the loop has come to say so.
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let waiting = handle.wait(job);
    turn_once(&mut worker);
    let forgetting = handle.call(move |worker| {
        worker.stop(job).unwrap();
        worker.wait(job).unwrap();
        worker.forget(job)
    });
    let waiter = in_thread(move || (soon(waiting), soon(forgetting)));
    turn_for(&mut worker, |worker| worker.query(job).is_err());
    let (waited, _) = waiter();
    assert!(waited.as_ref().map_or_else(|error| matches!(error, JobError::NotFound { .. }), |status| status.id == job), "{waited:?}");
    let many: HashSet<_> = (0..20).map(|_| soon_turned(&mut worker, handle.run_job(Command::new("true"))).id).collect();
    assert_eq!(many.len(), 20, "each run has its status, however few jobs are kept");
}

#[test]
fn a_worker_with_handles_is_quiet_while_nothing_is_asked() {
    let host = Host::new();
    let mut worker = host.worker();
    let handle = worker.handle();
    soon_turned(&mut worker, handle.call(|_| ()));
    let mut quiet = 0;
    // Left-over wakes are few.
    for _ in 0..10 {
        let began = Instant::now();
        worker.turn(&mut Events::new(), Some(Duration::from_millis(20))).unwrap();
        quiet += usize::from(began.elapsed() >= Duration::from_millis(20));
    }
    assert!(quiet >= 8, "only {quiet} of 10 turns waited");
}

/// The answer, with the loop turned in this thread.
fn soon_turned<T, E>(worker: &mut Worker, answer: Answer<T, E>) -> T
where
    T: Send + 'static,
    E: From<HandleError> + std::fmt::Debug + Send + 'static,
{
    let thread = thread::spawn(move || soon(answer).unwrap());
    turn_for(worker, |_| thread.is_finished());
    thread.join().unwrap()
}
