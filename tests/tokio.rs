//! Promise: a worker in a tokio runtime, of one thread or of many, does what it does elsewhere, starves nobody, and loses nothing wherever a future is dropped.

mod common;

use std::fs;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use common::{Census, DEADLINE, Host, isolated, output_of, refuse_timers};
use iron_exec::tokio::AsyncWorker;
use iron_exec::{
    Builder, Capture, Command, Event, Events, Handle, HandleError, JobError, JobId, JobState, RunError, ShutdownMode, Signal, StartError,
    Status, StopReason, StreamError, TurnError,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncBufReadExt, AsyncReadExt};
use tokio::runtime::Runtime;
use tokio::sync::{Barrier, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{interval, timeout};

fn one_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn many_threads() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_all().build().unwrap()
}

/// Runs a test in a runtime of each kind: in a task, so that it may move between threads.
fn in_each_runtime<F: Future<Output = ()> + Send + 'static>(test: impl Fn() -> F) {
    for runtime in [one_thread(), many_threads()] {
        runtime.block_on(async { within(tokio::spawn(test())).await.unwrap() });
    }
}

/// As [`in_each_runtime`], in a process of its own, where nothing may be left behind by the test.
fn leaving_nothing<F: Future<Output = ()> + Send + 'static>(name: &str, test: impl Fn(Arc<Host>) -> F) {
    isolated(name, || {
        let host = Arc::new(Host::new());
        // What tokio makes once for the whole process.
        drop(one_thread());
        let before = Census::take(&host);
        in_each_runtime(|| test(Arc::clone(&host)));
        assert_eq!(Census::take(&host), before);
    });
}

/// Whatever is awaited in a test comes by the deadline.
async fn within<F: Future>(future: F) -> F::Output {
    timeout(DEADLINE, future).await.expect("the deadline has passed")
}

fn new(builder: Builder) -> AsyncWorker {
    AsyncWorker::new(builder.build().unwrap()).unwrap()
}

/// Runs a worker in a task.
fn spawn(builder: Builder) -> (Handle, JoinHandle<Result<(), TurnError>>) {
    let mut worker = new(builder);
    (worker.handle(), tokio::spawn(async move { worker.run().await }))
}

async fn end(handle: Handle, running: JoinHandle<Result<(), TurnError>>) {
    assert_eq!(handle.shutdown(ShutdownMode::Kill).await.unwrap(), 0);
    running.await.unwrap().unwrap();
}

fn sleeper() -> Command {
    Command::new("sleep").arg("1000").capture(Capture::Discard)
}

/// Polls a future once, and drops it if it is not ready.
async fn once<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Polls a future as often as `polls`, with others in between, and drops it if it is not ready by then.
async fn some_polls<F: Future>(future: F, polls: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        tokio::task::yield_now().await;
    }
    None
}

/// Awaits events until there are none of any unfinished job.
async fn all_events(worker: &mut AsyncWorker) -> Vec<Event> {
    let mut seen = Vec::new();
    while let Some(event) = next_unless_over(worker).await {
        seen.push(event);
    }
    seen
}

async fn next_unless_over(worker: &mut AsyncWorker) -> Option<Event> {
    if worker.worker().unfinished_jobs() > 0 {
        return Some(within(worker.next_event()).await.unwrap());
    }
    once(worker.next_event()).await.map(Result::unwrap)
}

fn finished(events: &[Event]) -> usize {
    events.iter().filter(|event| matches!(event, Event::Finished { .. })).count()
}

/// Turns the worker until it has no job.
async fn until_no_job(worker: &mut AsyncWorker) {
    while !worker.worker().jobs().is_empty() || worker.worker().unfinished_jobs() > 0 {
        let _ = timeout(Duration::from_millis(1), worker.next_event()).await;
    }
}

fn freeze(host: &Host, frozen: bool) {
    fs::write(host.base.as_ref().unwrap().join("cgroup.freeze"), if frozen { "1" } else { "0" }).unwrap();
}

#[test]
fn a_hundred_jobs_at_most_ten_at_a_time_and_nothing_is_left() {
    leaving_nothing("a_hundred_jobs_at_most_ten_at_a_time_and_nothing_is_left", |host| async move {
        let (handle, running) = spawn(host.builder());
        let (free, at_once) = (Arc::new(Semaphore::new(10)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = JoinSet::new();
        for number in 0..100 {
            let (handle, free, at_once) = (handle.clone(), Arc::clone(&free), Arc::clone(&at_once));
            tasks.spawn(async move {
                let _place = free.acquire().await.unwrap();
                assert!(at_once.fetch_add(1, Ordering::SeqCst) < 10);
                let status = handle.run_job(Command::shell(format!("echo job {number}; exit {}", number % 7))).await.unwrap();
                at_once.fetch_sub(1, Ordering::SeqCst);
                assert_eq!((status.exit_code, output_of(&status)), (number % 7, format!("job {number}\n").into_bytes()));
                handle.delete_log(status.id).await.unwrap();
                handle.forget(status.id).await.unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        assert!(handle.jobs().await.unwrap().is_empty());
        end(handle, running).await;
    });
}

#[test]
fn a_task_of_its_own_awaits_the_worker_itself() {
    leaving_nothing("a_task_of_its_own_awaits_the_worker_itself", |host| async move {
        let mut worker = new(host.builder());
        let job = worker.start(Command::shell("echo hello; read line; exit 4").stdin_piped()).await.unwrap();
        assert_eq!(worker.query(job).unwrap().state, JobState::Running);
        let status = worker.wait(job).await.unwrap();
        assert_eq!((status.exit_code, output_of(&status)), (4, b"hello\n".to_vec()));
        worker.worker_mut().delete_log(job).unwrap();

        let stubborn = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done")).await.unwrap();
        let mut lines = worker.stream(stubborn).unwrap().lines();
        tokio::select! {
            line = lines.next_line() => assert_eq!(line.unwrap().unwrap(), "ready"),
            status = worker.wait(stubborn) => panic!("{status:?}"),
        }
        worker.stop_with(stubborn, Signal::TERM, Duration::from_millis(10)).await.unwrap();
        assert_eq!(worker.wait(stubborn).await.unwrap().signal(), Some(Signal::KILL));
        worker.worker_mut().delete_log(stubborn).unwrap();
        let sleeping = worker.start(sleeper()).await.unwrap();
        worker.stop(sleeping).await.unwrap();
        assert_eq!(worker.wait(sleeping).await.unwrap().stop_reason, Some(StopReason::Requested));
        assert_eq!(worker.run_job(Command::shell("exit 5").capture(Capture::Discard)).await.unwrap().exit_code, 5);
        assert_eq!(all_events(&mut worker).await, [], "what was waited for is not told again");

        let failing = worker.start(Command::new("/nonexistent/program")).await.unwrap_err();
        assert_eq!(failing.failure().map(iron_exec::StartFailure::errno), Some(2), "{failing}");
        assert!(matches!(worker.run_job(Command::new("/nonexistent/program")).await, Err(RunError::Start(StartError::Failed(_)))));
        worker.worker_mut().forget(job).unwrap();
        assert!(matches!(worker.wait(job).await, Err(JobError::NotFound { .. })));
        assert!(matches!(worker.stop(job).await, Err(JobError::NotFound { .. })));
        assert_eq!(worker.worker().unfinished_jobs(), 0);
    });
}

#[test]
fn a_start_that_is_held_up_holds_up_nobody() {
    if Host::new().has_no_cgroups() {
        return;
    }
    leaving_nothing("a_start_that_is_held_up_holds_up_nobody", |host| async move {
        let mut worker = new(host.builder().confirm_timeout(DEADLINE));
        freeze(&host, true);
        let mut start = Box::pin(worker.start(sleeper()));
        let mut ticks = interval(Duration::from_millis(1));
        for _ in 0..50 {
            tokio::select! {
                biased;
                _ = &mut start => panic!("a frozen child has executed its program"),
                _ = ticks.tick() => {}
            }
        }
        freeze(&host, false);
        let job = within(start).await.unwrap();
        assert_eq!(worker.query(job).unwrap().state, JobState::Running);
        worker.shutdown(ShutdownMode::Kill).await.unwrap();
    });
}

#[test]
fn lines_come_while_the_job_runs_to_each_of_several_readers() {
    leaving_nothing("lines_come_while_the_job_runs_to_each_of_several_readers", |host| async move {
        const READERS: usize = 4;
        let (handle, running) = spawn(host.builder());
        let job = handle.start(Command::shell("while read number; do echo line $number; done").stdin_piped()).await.unwrap();
        let mut stdin = handle.call(move |worker| worker.take_stdin(job)).await.unwrap().unwrap().unwrap();
        // The next line is asked for once all have read this one.
        let all_have_read = Arc::new(Barrier::new(READERS + 1));
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let (stream, all_have_read) = (handle.stream(job).await.unwrap(), Arc::clone(&all_have_read));
            readers.spawn(async move {
                let mut lines = stream.lines();
                let mut number = 0;
                while let Some(line) = lines.next_line().await.unwrap() {
                    assert_eq!(line, format!("line {number}"));
                    number += 1;
                    all_have_read.wait().await;
                }
                number
            });
        }
        for number in 0..20 {
            io::Write::write_all(&mut stdin, format!("{number}\n").as_bytes()).unwrap();
            all_have_read.wait().await;
        }
        drop(stdin);
        while let Some(lines) = readers.join_next().await {
            assert_eq!(lines.unwrap(), 20);
        }
        // Long after, and as bytes.
        let mut bytes = Vec::new();
        handle.stream(job).await.unwrap().read_to_end(&mut bytes).await.unwrap();
        assert_eq!(bytes, (0..20).flat_map(|number| format!("line {number}\n").into_bytes()).collect::<Vec<_>>());
        handle.wait(job).await.unwrap();
        handle.delete_log(job).await.unwrap();
        end(handle, running).await;
    });
}

#[test]
fn what_is_wrong_with_a_log_is_told_once_and_reading_goes_on_behind_it() {
    in_each_runtime(|| async {
        let host = Host::new();
        let mut worker = new(host.builder());
        let status = worker.run_job(Command::shell("echo one; echo two; echo three")).await.unwrap();
        let path = status.log.unwrap();
        let text = fs::read_to_string(&path).unwrap();
        let mut records: Vec<&str> = text.lines().collect();
        assert_eq!(records.len(), 3);
        records[1] = "no record";
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, records.join("\n") + "\n").unwrap();
        let mut stream = worker.stream(status.id).unwrap();
        let (mut text, mut errors) = (String::new(), Vec::new());
        loop {
            match stream.read_line(&mut text).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => errors.push(error),
            }
        }
        assert_eq!(text, "one\nthree\n");
        let causes: Vec<_> = errors.iter().map(|error| error.get_ref().unwrap().downcast_ref::<StreamError>().unwrap()).collect();
        assert!(matches!(causes[..], [StreamError::Malformed { .. }]) && causes[0].is_passable(), "{causes:?}");
    });
}

#[test]
fn a_dropped_next_event_loses_no_event_of_two_hundred_jobs() {
    leaving_nothing("a_dropped_next_event_loses_no_event_of_two_hundred_jobs", |host| async move {
        let mut worker = new(host.builder().finished_jobs_max(1));
        let handle = worker.handle();
        let starting = tokio::spawn(async move {
            for code in 0..200 {
                let command = Command::shell(format!("exit {}", code % 100)).capture(Capture::Discard);
                handle.start(command).await.unwrap();
            }
        });
        let mut ticks = interval(Duration::from_millis(1));
        let (mut ends, mut dropped) = (std::collections::BTreeSet::new(), 0);
        while ends.len() < 200 {
            tokio::select! {
                event = worker.next_event() => if let Event::Finished { job, .. } = event.unwrap() {
                    assert!(ends.insert(job), "told twice");
                },
                _ = ticks.tick() => dropped += 1,
            }
            // And by being dropped at once, whatever it was about to do.
            if let Some(Event::Finished { job, .. }) = once(worker.next_event()).await.map(Result::unwrap) {
                assert!(ends.insert(job), "told twice");
            }
        }
        assert!(dropped > 0);
        starting.await.unwrap();
    });
}

#[test]
fn whatever_else_is_awaited_keeps_the_events_of_other_jobs() {
    in_each_runtime(|| async {
        let host = Host::new();
        let mut worker = new(host.builder());
        let mut others = Vec::new();
        for _ in 0..10 {
            others.push(worker.start(Command::new("true").capture(Capture::Discard)).await.unwrap());
        }
        worker.run_job(Command::shell("sleep 0.05").capture(Capture::Discard)).await.unwrap();
        for job in &others[1..] {
            once(worker.wait(*job)).await;
        }
        worker.shutdown(ShutdownMode::Kill).await.unwrap();
        let events = all_events(&mut worker).await;
        // Each was waited for, or is told of.
        for job in &others {
            let is_told = events.iter().any(|event| matches!(event, Event::Finished { job: told, .. } if told == job));
            assert!(is_told || *job != others[0], "{events:?}");
            assert!(worker.query(*job).unwrap().is_finished());
        }
    });
}

#[test]
fn events_that_were_kept_are_told_by_the_descriptor_to_the_loop_that_comes_after() {
    in_each_runtime(|| async {
        let host = Host::new();
        let mut worker = new(host.builder());
        let job = worker.start(Command::new("true").capture(Capture::Discard)).await.unwrap();
        worker.shutdown(ShutdownMode::Leave).await.unwrap();
        while !worker.query(job).unwrap().is_finished() {
            once(worker.wait(job)).await;
        }
        let mut worker = worker.into_worker();
        let deadline = Timespec::try_from(DEADLINE).unwrap();
        let mut events = Events::new();
        let mut seen = Vec::new();
        while seen.is_empty() {
            assert_eq!(poll(&mut [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN)], Some(&deadline)).unwrap(), 1);
            worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
            seen.extend(events.drain());
        }
        assert!(seen.iter().all(|event| event.job() == job), "{seen:?}");
    });
}

#[test]
fn a_dropped_start_leaves_no_job_wherever_it_was() {
    leaving_nothing("a_dropped_start_leaves_no_job_wherever_it_was", |host| async move {
        let mut worker = new(host.builder());
        for polls in 0..30 {
            if let Some(started) = some_polls(worker.start(sleeper()), polls / 2).await {
                let job = started.unwrap();
                worker.stop(job).await.unwrap();
                worker.wait(job).await.unwrap();
                worker.worker_mut().forget(job).unwrap();
            }
            if let Some(ended) = some_polls(worker.run_job(sleeper()), polls).await {
                panic!("a job that sleeps has ended: {ended:?}");
            }
        }
        within(until_no_job(&mut worker)).await;
        assert_eq!(all_events(&mut worker).await, []);
        // Never polled: nothing was asked for.
        drop(worker.start(sleeper()));
        assert!(worker.worker().jobs().is_empty());
    });
}

#[test]
fn a_dropped_start_of_a_child_that_is_held_up_is_taken_back() {
    if Host::new().has_no_cgroups() {
        return;
    }
    leaving_nothing("a_dropped_start_of_a_child_that_is_held_up_is_taken_back", |host| async move {
        let mut worker = new(host.builder().confirm_timeout(DEADLINE));
        freeze(&host, true);
        assert!(timeout(Duration::from_millis(20), worker.start(sleeper())).await.is_err());
        assert_eq!(worker.worker().jobs().len(), 1, "it is on its way");
        freeze(&host, false);
        within(until_no_job(&mut worker)).await;
        assert_eq!(finished(&all_events(&mut worker).await), 0);
    });
}

#[test]
fn a_dropped_wait_stop_or_shutdown_does_what_it_says() {
    leaving_nothing("a_dropped_wait_stop_or_shutdown_does_what_it_says", |host| async move {
        let mut worker = new(host.builder());
        let job = worker.start(sleeper()).await.unwrap();
        for _ in 0..10 {
            assert!(timeout(Duration::from_millis(1), worker.wait(job)).await.is_err());
        }
        assert_eq!(worker.query(job).unwrap().state, JobState::Running, "a wait that is dropped does nothing to the job");
        // A stop that is dropped is done with the next turn.
        once(worker.stop(job)).await;
        assert_eq!(worker.wait(job).await.unwrap().signal(), Some(Signal::KILL));

        let jobs: Vec<JobId> = vec![worker.start(sleeper()).await.unwrap(), worker.start(sleeper()).await.unwrap()];
        once(worker.stop_with(jobs[0], Signal::INT, DEADLINE)).await;
        assert_eq!(worker.wait(jobs[0]).await.unwrap().signal(), Some(Signal::INT));
        // A shutdown goes on, whatever is awaited.
        once(worker.shutdown(ShutdownMode::Kill)).await;
        assert_eq!(worker.wait(jobs[1]).await.unwrap().stop_reason, Some(StopReason::Shutdown));
        assert_eq!(worker.shutdown(ShutdownMode::Kill).await.unwrap(), 0);
        assert!(matches!(worker.start(sleeper()).await, Err(StartError::ShuttingDown)));
    });
}

#[test]
fn a_dropped_run_can_be_called_again_and_loses_no_event() {
    leaving_nothing("a_dropped_run_can_be_called_again_and_loses_no_event", |host| async move {
        let mut worker = new(host.builder());
        let handle = worker.handle();
        let starting = tokio::spawn(async move {
            for _ in 0..50 {
                handle.start(Command::new("true").capture(Capture::Discard)).await.unwrap();
            }
        });
        let (mut events, mut dropped) = (Vec::new(), 0);
        // It ends by itself: the handle goes, and the jobs have finished.
        while once(worker.run_with(|_, event| events.push(event))).await.is_none() {
            dropped += 1;
            tokio::task::yield_now().await;
        }
        starting.await.unwrap();
        assert!(dropped > 0);
        assert_eq!(finished(&events), 50);
    });
}

#[test]
fn a_turn_that_fails_loses_no_event_and_ends_what_is_awaited() {
    isolated("a_turn_that_fails_loses_no_event_and_ends_what_is_awaited", || {
        let host = Host::new();
        one_thread().block_on(async {
            let (mut first, mut second) = (new(host.builder()), new(host.builder()));
            let mut ended = Vec::new();
            for worker in [&mut first, &mut second] {
                let job = within(worker.start(Command::new("true"))).await.unwrap();
                while !worker.query(job).unwrap().is_finished() {
                    within(worker.run_job(Command::new("true"))).await.unwrap();
                }
                ended.push(job);
            }
            refuse_timers();
            for worker in [&mut first, &mut second] {
                worker.worker_mut().start(Command::new("sleep").arg("1000").timeout(Duration::from_secs(1000))).unwrap();
            }
            let mut told = Vec::new();
            assert!(within(first.run_with(|_, event| told.push(event))).await.is_err());
            assert!(told.iter().any(|event| matches!(event, Event::Finished { job, .. } if *job == ended[0])), "{told:?}");
            // The events come first, and then the error.
            let mut told = Vec::new();
            while let Ok(event) = within(second.next_event()).await {
                told.push(event);
            }
            assert!(told.iter().any(|event| matches!(event, Event::Finished { job, .. } if *job == ended[1])), "{told:?}");
        });
    });
}

#[test]
fn a_panic_at_an_event_loses_no_other_whoever_asks_next() {
    for asks in ["run_with", "next_event", "descriptor"] {
        let host = Host::new();
        let runtime = one_thread();
        runtime.block_on(async {
            let mut worker = new(host.builder());
            let jobs: Vec<_> = {
                let mut jobs = Vec::new();
                for _ in 0..5 {
                    jobs.push(worker.start(Command::new("true").capture(Capture::Discard)).await.unwrap());
                }
                jobs
            };
            let pids: Vec<_> = jobs.iter().map(|job| worker.query(*job).unwrap().pid).collect();
            common::wait_until("their end", || pids.iter().all(|pid| !common::process_runs(*pid)));
            let mut seen = Vec::new();
            {
                let mut running = pin!(worker.run_with(|_, event| {
                    seen.push(event);
                    assert!(seen.len() < 3, "the host's own");
                }));
                let polled = poll_fn(|cx| Poll::Ready(catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx)))));
                assert!(within(polled).await.is_err());
            }
            match asks {
                "run_with" => within(worker.run_with(|_, event| seen.push(event))).await.unwrap(),
                "next_event" => {
                    while seen.len() < 10 {
                        seen.push(within(worker.next_event()).await.unwrap());
                    }
                }
                _ => {
                    let (mut worker, mut events) = (worker.into_worker(), Events::with_capacity(2));
                    while seen.len() < 10 {
                        let timeout = Timespec::try_from(DEADLINE).unwrap();
                        assert_eq!(poll(&mut [PollFd::from_borrowed_fd(worker.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap(), 1);
                        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
                        seen.extend(events.drain());
                    }
                }
            }
            assert_eq!(finished(&seen), 5, "{asks}: {seen:?}");
            assert_eq!(seen.len(), 10, "{asks}: {seen:?}");
        });
    }
}

#[test]
fn who_waits_for_a_job_hears_that_it_was_left_although_no_turn_was_needed_for_that() {
    one_thread().block_on(async {
        let host = Host::new();
        let mut worker = new(host.builder());
        let handle = worker.handle();
        let job = worker.start(sleeper()).await.unwrap();
        let waiting = tokio::spawn(handle.wait(job));
        // The task has asked, and the loop has heard of it.
        assert!(timeout(Duration::from_millis(50), worker.next_event()).await.is_err());
        assert_eq!(within(worker.shutdown(ShutdownMode::Leave)).await.unwrap(), 0);
        let status = within(waiting).await.unwrap().unwrap();
        assert_eq!(status.state, JobState::Left);
        let pid = rustix::process::Pid::from_raw(status.pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        common::wait_until("its end", || rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG).unwrap().is_some());
    });
}

#[test]
fn run_ends_with_the_last_handle_and_the_last_job() {
    leaving_nothing("run_ends_with_the_last_handle_and_the_last_job", |host| async move {
        let mut worker = new(host.builder());
        worker.run().await.unwrap();
        let handle = worker.handle();
        let mut run = Box::pin(worker.run());
        assert!(some_polls(&mut run, 20).await.is_none(), "somebody may still ask for something");
        drop(handle);
        within(&mut run).await.unwrap();
        drop(run);
        let job = worker.start(Command::shell("sleep 0.05; exit 3").capture(Capture::Discard)).await.unwrap();
        let mut told = Vec::new();
        worker.run_with(|worker, event| told.push((worker.query(event.job()).unwrap().exit_code, event))).await.unwrap();
        assert_eq!(told.last().unwrap(), &(3, Event::Finished { job, exit: iron_exec::Exit::Code(3) }));
    });
}

/// The end of a job whose worker was dropped: that it was killed by that, or that nobody knows.
fn check_gone(ended: Result<Status, RunError>) {
    match ended {
        Ok(status) => assert_eq!(status.stop_reason, Some(StopReason::WorkerDropped)),
        Err(error) => assert!(error.to_string().contains(&HandleError::Gone.to_string()), "{error}"),
    }
}

#[test]
fn a_worker_that_is_dropped_answers_everybody_who_waits() {
    leaving_nothing("a_worker_that_is_dropped_answers_everybody_who_waits", |host| async move {
        let (handle, running) = spawn(host.builder());
        let job = handle.start(Command::shell("echo ready; exec sleep 1000")).await.unwrap();
        let mut waits = JoinSet::new();
        for _ in 0..20 {
            let (wait, run) = (handle.wait(job), handle.run_job(sleeper()));
            waits.spawn(async move { check_gone(wait.await.map_err(RunError::from)) });
            waits.spawn(async move { check_gone(run.await) });
        }
        let mut lines = handle.stream(job).await.unwrap().lines();
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "ready");
        let reader = tokio::spawn(async move { lines.next_line().await.unwrap() });
        tokio::task::yield_now().await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        while let Some(done) = waits.join_next().await {
            done.unwrap();
        }
        assert_eq!(reader.await.unwrap(), None, "the log has ended");
        assert!(matches!(handle.start(sleeper()).await, Err(StartError::Handle(HandleError::Gone))));
        for log in host.logs() {
            fs::remove_file(host.log_dir.path().join(log)).unwrap();
        }
    });
}

#[test]
fn each_shutdown_ends_the_jobs_as_it_says_and_the_run() {
    leaving_nothing("each_shutdown_ends_the_jobs_as_it_says_and_the_run", |host| async move {
        let stop = |grace| ShutdownMode::Stop { signal: Signal::TERM, grace };
        for (mode, signal) in [(ShutdownMode::Kill, Signal::KILL), (stop(DEADLINE), Signal::TERM)] {
            let mut worker = new(host.builder());
            let handle = worker.handle();
            let running = tokio::spawn(async move {
                worker.run().await.unwrap();
                worker
            });
            let job = handle.start(sleeper()).await.unwrap();
            assert_eq!(handle.shutdown(mode).await.unwrap(), 0);
            let worker = running.await.unwrap();
            assert_eq!(worker.query(job).unwrap().signal(), Some(signal));
        }
        // One that is left runs on.
        let mut worker = new(host.builder());
        let job = worker.start(Command::shell("read line").stdin_piped().capture(Capture::Discard)).await.unwrap();
        let stdin = worker.worker_mut().take_stdin(job).unwrap().unwrap();
        let status = worker.query(job).unwrap();
        assert_eq!(worker.shutdown(ShutdownMode::Leave).await.unwrap(), 0);
        assert!(common::process_runs(status.pid));
        drop(stdin);
        let pid = rustix::process::Pid::from_raw(status.pid).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap();
        drop(worker);
        if let Some(cgroup) = status.cgroup {
            fs::remove_dir(cgroup).unwrap();
        }
    });
}

#[test]
fn a_runtime_that_ends_takes_its_worker_and_all_of_its_jobs_along() {
    isolated("a_runtime_that_ends_takes_its_worker_and_all_of_its_jobs_along", || {
        let host = Host::new();
        drop(one_thread());
        let before = Census::take(&host);
        for new_runtime in [one_thread, many_threads] {
            let runtime = new_runtime();
            let handle = runtime.block_on(async {
                let (handle, _running) = spawn(host.builder());
                for _ in 0..10 {
                    within(handle.start(sleeper())).await.unwrap();
                }
                handle
            });
            let wait = handle.jobs();
            drop(runtime);
            assert!(wait.wait().map_or_else(|error| error == HandleError::Gone, |jobs| jobs.len() == 10));
            assert_eq!(handle.jobs().wait(), Err(HandleError::Gone));
            drop(handle);
            assert_eq!(Census::take(&host), before);
        }
    });
}

#[test]
fn a_worker_outlives_its_runtime_and_is_put_into_another() {
    let host = Host::new();
    let first = one_thread();
    let (mut worker, job) = first.block_on(async {
        let mut worker = new(host.builder());
        let job = worker.start(sleeper()).await.unwrap();
        (worker, job)
    });
    drop(first);
    let second = many_threads();
    second.block_on(async {
        assert!(within(worker.run()).await.is_err());
        assert!(within(worker.next_event()).await.is_err());
        assert!(matches!(within(worker.wait(job)).await, Err(JobError::Turn { .. })));
        let started = within(worker.start(sleeper())).await;
        assert!(matches!(started, Err(StartError::Handle(HandleError::LoopFailed))), "{started:?}");
        let mut worker = AsyncWorker::new(worker.into_worker()).unwrap();
        worker.stop(job).await.unwrap();
        assert_eq!(within(worker.wait(job)).await.unwrap().signal(), Some(Signal::KILL));
        assert_eq!(worker.worker().unfinished_jobs(), 0, "what could not be answered is not started");
    });
}

#[test]
fn outside_of_a_runtime_that_is_an_error() {
    let host = Host::new();
    assert!(AsyncWorker::new(host.worker()).is_err());
}

#[test]
fn tasks_of_another_runtime_are_served_and_woken() {
    let host = Host::new();
    let (here, there) = (one_thread(), many_threads());
    let (mut worker, handle) = here.block_on(async {
        let mut worker = new(host.builder());
        let handle = worker.handle();
        (worker, handle)
    });
    let tasks = there.spawn(async move {
        let mut tasks = JoinSet::new();
        for number in 0..20 {
            let handle = handle.clone();
            tasks.spawn(async move {
                let job = handle.start(Command::shell(format!("echo {number}; sleep 0.01; echo {number}"))).await.unwrap();
                let mut text = String::new();
                handle.stream(job).await.unwrap().read_to_string(&mut text).await.unwrap();
                assert_eq!(text, format!("{number}\n{number}\n"));
                handle.wait(job).await.unwrap();
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    });
    // It ends when the last handle is gone.
    here.block_on(within(worker.run())).unwrap();
    there.block_on(within(tasks)).unwrap();
    assert_eq!(worker.worker().jobs().len(), 20);
}

/// How often this thread has waited.
fn waits() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
    line.trim().parse().unwrap()
}

#[test]
fn a_worker_whose_jobs_are_idle_is_not_turned() {
    isolated("a_worker_whose_jobs_are_idle_is_not_turned", || {
        one_thread().block_on(async {
            let host = Host::new();
            let mut worker = new(host.builder());
            let handle = worker.handle();
            for _ in 0..100 {
                within(worker.start(sleeper())).await.unwrap();
            }
            // What the starts have left to do is done.
            while timeout(Duration::from_millis(100), worker.next_event()).await.is_ok() {}
            let mut polls = 0;
            let mut run = pin!(worker.run());
            let mut quiet = pin!(tokio::time::sleep(Duration::from_millis(300)));
            let before = waits();
            let idle = poll_fn(|cx| {
                polls += 1;
                let ran = run.as_mut().poll(cx).is_ready();
                if ran { Poll::Ready(false) } else { quiet.as_mut().poll(cx).map(|()| true) }
            });
            assert!(idle.await);
            let waited = waits() - before;
            assert!(polls < 10 && waited < 20, "{polls} polls, {waited} waits");
            drop(handle);
        });
    });
}

/// Counts how often another task of this thread runs, as long as it lives.
fn count_others(count: &Arc<AtomicUsize>) -> JoinHandle<()> {
    let count = Arc::clone(count);
    tokio::spawn(async move {
        loop {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
        }
    })
}

#[test]
fn neither_a_loud_job_nor_a_long_log_starves_other_tasks() {
    const MEGABYTES: u64 = 8;
    one_thread().block_on(async {
        let host = Host::new();
        let mut worker = new(host.builder().read_budget_bytes(16 << 10));
        let job = worker.start(Command::new("head").args(["-c", "8M", "/dev/zero"])).await.unwrap();
        let others = Arc::new(AtomicUsize::new(0));
        let other = count_others(&others);
        let status = within(worker.wait(job)).await.unwrap();
        assert_eq!(status.output.stdout_bytes, MEGABYTES << 20);
        let turns = others.swap(0, Ordering::SeqCst);
        assert!(turns >= 200, "other tasks have run {turns} times in 500 turns");

        let mut stream = worker.stream(job).unwrap();
        others.store(0, Ordering::SeqCst);
        let (mut length, mut buffer) = (0, vec![0; 4096]);
        loop {
            let count = within(stream.read(&mut buffer)).await.unwrap();
            length += count as u64;
            if count == 0 {
                break;
            }
        }
        assert_eq!(length, MEGABYTES << 20);
        let turns = others.load(Ordering::SeqCst);
        assert!(turns >= 10, "other tasks have run {turns} times in 2000 reads");
        other.abort();
    });
}

#[test]
fn every_future_can_be_a_task() {
    fn is_task<T: Send>(_: T) {}
    fn check(worker: &mut AsyncWorker, job: JobId) {
        is_task(worker.run());
        is_task(worker.run_with(|_, _| {}));
        is_task(worker.next_event());
        is_task(worker.start(sleeper()));
        is_task(worker.run_job(sleeper()));
        is_task(worker.wait(job));
        is_task(worker.stop(job));
        is_task(worker.stop_with(job, Signal::TERM, DEADLINE));
        is_task(worker.shutdown(ShutdownMode::Kill));
    }
    let _: fn(&mut AsyncWorker, JobId) = check;
}
