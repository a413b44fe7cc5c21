//! Promise: a worker is an event source of calloop like any other: driven by its loop alone it misses nothing, starves nobody, and is gone when it is removed.

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use calloop::timer::{TimeoutAction, Timer};
use calloop::{Dispatcher, EventLoop, LoopHandle, RegistrationToken};
use common::{Census, DEADLINE, Host, children, isolated, open_fds, output_of, refuse_timers};
use iron_exec::calloop::WorkerSource;
use iron_exec::{Builder, Capture, Command, Event, Events, JobId, TurnError, Worker};

/// What the callbacks of a test see and share.
#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    /// Rounds of other sources.
    ticks: usize,
}

impl Seen {
    fn finished(&self) -> usize {
        self.events.iter().filter(|event| matches!(event, Event::Finished { .. })).count()
    }

    fn of(&self, job: JobId) -> Vec<&Event> {
        self.events.iter().filter(|event| event.job() == job).collect()
    }
}

fn source(builder: Builder) -> WorkerSource {
    // Unconfirmed: then each start has an event of its own.
    WorkerSource::new(builder.confirm(false).build().unwrap()).unwrap()
}

fn note(event: Event, _: &mut Worker, seen: &mut Seen) {
    seen.events.push(event);
}

/// Starts jobs that are over, and whose events, three each, are all told of in one turn, after which the worker has nothing more to say.
fn start_all_to_be_told_at_once(source: &mut WorkerSource, count: usize) {
    let worker = source.worker_mut();
    let jobs: Vec<JobId> = (0..count).map(|_| worker.start(Command::new("true").capture(Capture::Discard)).unwrap()).collect();
    let deadline = Instant::now() + DEADLINE;
    while !jobs.iter().all(|job| worker.query(*job).unwrap().is_finished()) {
        assert!(Instant::now() < deadline, "the jobs do not end");
        // Its own events go with it.
        worker.run_job(Command::new("true").capture(Capture::Discard)).unwrap();
    }
}

/// Runs the loop, which waits for its sources alone, until `done`.
fn run(event_loop: &mut EventLoop<'_, Seen>, seen: &mut Seen, mut done: impl FnMut(&Seen) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done(seen) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the loop stayed silent; seen: {:#?}", seen.events);
        event_loop.dispatch(left, seen).unwrap();
    }
}

/// A dispatcher that notes every event, in the loop.
fn insert<'l>(handle: &LoopHandle<'l, Seen>, source: WorkerSource) -> (Dispatcher<'l, WorkerSource, Seen>, RegistrationToken) {
    let dispatcher = Dispatcher::new(source, note);
    let token = handle.register_dispatcher(dispatcher.clone()).unwrap();
    (dispatcher, token)
}

#[test]
fn jobs_are_started_before_from_the_callback_and_from_another_source() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let handle = event_loop.handle();
    let mut source = source(host.builder());
    let first = source.worker_mut().start(Command::shell("echo first; exit 1")).unwrap();
    let second = Rc::new(RefCell::new(None));
    let from_callback = Rc::clone(&second);
    let dispatcher = Dispatcher::new(source, move |event, worker: &mut Worker, seen: &mut Seen| {
        if matches!(event, Event::Finished { job, .. } if job == first) {
            *from_callback.borrow_mut() = Some(worker.start(Command::shell("echo second; exit 2")).unwrap());
        }
        seen.events.push(event);
    });
    handle.register_dispatcher(dispatcher.clone()).unwrap();
    run(&mut event_loop, &mut Seen::default(), |seen| seen.finished() == 2);
    let second = second.take().unwrap();

    // Nothing else is going on: the loop has to hear of it from the worker.
    let third = Rc::new(RefCell::new(None));
    let (from_timer, at_timer) = (Rc::clone(&third), dispatcher.clone());
    handle
        .insert_source(Timer::immediate(), move |_, (), seen: &mut Seen| {
            seen.ticks += 1;
            *from_timer.borrow_mut() = Some(at_timer.as_source_mut().worker_mut().start(Command::shell("echo third; exit 3")).unwrap());
            TimeoutAction::Drop
        })
        .unwrap();
    let mut seen = Seen::default();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);
    let third = third.take().unwrap();
    assert_eq!(seen.ticks, 1);
    assert!(matches!(seen.of(third)[..], [Event::Started { .. }, Event::Exited { .. }, Event::Finished { .. }]), "{:?}", seen.events);

    let source = dispatcher.as_source_ref();
    for (job, code, output) in [(first, 1, "first\n"), (second, 2, "second\n"), (third, 3, "third\n")] {
        let status = source.worker().query(job).unwrap();
        assert_eq!(status.exit_code, code);
        assert_eq!(output_of(&status), output.as_bytes());
    }
}

#[test]
fn what_is_done_to_a_worker_outside_of_its_callback_is_heard_of() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let (dispatcher, _) = insert(&event_loop.handle(), source(host.builder()));
    let mut seen = Seen::default();
    let job = dispatcher.as_source_mut().worker_mut().start(Command::new("sleep").arg("1000")).unwrap();
    run(&mut event_loop, &mut seen, |seen| !seen.events.is_empty());
    dispatcher.as_source_mut().worker_mut().stop(job).unwrap();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);

    // Events that the wait for another job has left.
    start_all_to_be_told_at_once(&mut dispatcher.as_source_mut(), 3);
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 4);
}

#[test]
fn a_log_is_read_by_the_callback_as_it_grows() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Vec<u8>> = EventLoop::try_new().unwrap();
    let mut source = source(host.builder().read_budget_bytes(4096));
    let job = source.worker_mut().start(Command::shell("i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done")).unwrap();
    let mut stream = source.worker().stream(job).unwrap();
    let mut read = move |bytes: &mut Vec<u8>| {
        while let Poll::Ready(shown) = stream.try_fill_buf() {
            let shown = shown.unwrap();
            if shown.is_empty() {
                return true;
            }
            bytes.extend_from_slice(shown);
            let amount = shown.len();
            stream.consume(amount);
        }
        false
    };
    let mut bytes = Vec::new();
    assert!(!read(&mut bytes), "it has not ended yet");
    let has_ended = Rc::new(Cell::new(false));
    let ended = Rc::clone(&has_ended);
    let callback = move |event: Event, _: &mut Worker, bytes: &mut Vec<u8>| {
        if matches!(event, Event::LogReady { .. }) {
            ended.set(read(bytes));
        }
    };
    event_loop.handle().insert_source(source, callback).unwrap();
    let deadline = Instant::now() + DEADLINE;
    while !has_ended.get() {
        assert!(Instant::now() < deadline, "{} bytes came", bytes.len());
        event_loop.dispatch(deadline.saturating_duration_since(Instant::now()), &mut bytes).unwrap();
    }
    let mut expected = Vec::new();
    (0..20000).for_each(|number| expected.extend_from_slice(format!("line {number}\n").as_bytes()));
    assert!(bytes == expected, "{} bytes instead of {}", bytes.len(), expected.len());
}

#[test]
fn a_timeout_passes_in_time() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let (dispatcher, _) = insert(&event_loop.handle(), source(host.builder()));
    let mut seen = Seen::default();
    let command = Command::new("sleep").arg("1000").timeout(Duration::from_millis(30));
    dispatcher.as_source_mut().worker_mut().start(command).unwrap();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);
}

#[test]
fn a_source_that_is_removed_and_dropped_leaves_no_descriptor_and_no_process() {
    isolated("a_source_that_is_removed_and_dropped_leaves_no_descriptor_and_no_process", || {
        let host = Host::new();
        let before = Census::take(&host);
        {
            let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
            let handle = event_loop.handle();
            let with_loop = open_fds();
            for _ in 0..3 {
                let mut source = source(host.builder());
                for _ in 0..5 {
                    source.worker_mut().start(Command::new("sleep").arg("1000").capture(Capture::Discard)).unwrap();
                }
                let token = handle.insert_source(source, note).unwrap();
                let mut seen = Seen::default();
                run(&mut event_loop, &mut seen, |seen| seen.events.len() == 5);
                assert_eq!(children().len(), 5);
                handle.remove(token);
                assert_eq!(open_fds(), with_loop);
                assert_eq!(children(), before.children);
                event_loop.dispatch(Duration::ZERO, &mut seen).unwrap();
            }
        }
        assert_eq!(Census::take(&host), before);
    });
}

#[test]
fn a_callback_may_remove_its_own_source() {
    isolated("a_callback_may_remove_its_own_source", || {
        let host = Host::new();
        let before = Census::take(&host);
        let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
        let handle = event_loop.handle();
        let with_loop = open_fds();
        let own: Rc<RefCell<Option<RegistrationToken>>> = Rc::default();
        let (mut source, token, remover) = (source(host.builder()), Rc::clone(&own), handle.clone());
        start_all_to_be_told_at_once(&mut source, 3);
        let running = source.worker_mut().start(Command::new("sleep").arg("1000").capture(Capture::Discard).confirm(true)).unwrap();
        assert!(source.worker().query(running).unwrap().pid > 0);
        let inserted = handle.insert_source(source, move |event, _, seen: &mut Seen| {
            seen.events.push(event);
            if let Some(token) = token.take() {
                remover.remove(token);
            }
        });
        *own.borrow_mut() = Some(inserted.unwrap());
        let mut seen = Seen::default();
        run(&mut event_loop, &mut seen, |seen| !seen.events.is_empty());
        // The turn that had begun is told of to its end.
        assert_eq!(seen.finished(), 3);
        assert_eq!(open_fds(), with_loop);
        assert_eq!(children(), before.children);
        event_loop.dispatch(Duration::ZERO, &mut seen).unwrap();
    });
}

#[test]
fn a_worker_taken_out_of_its_loop_goes_on_and_may_come_back() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let handle = event_loop.handle();
    let (dispatcher, token) = insert(&handle, source(host.builder()));
    let job = dispatcher.as_source_mut().worker_mut().start(Command::shell("read go; exit 7").stdin_piped()).unwrap();
    let mut seen = Seen::default();
    run(&mut event_loop, &mut seen, |seen| !seen.events.is_empty());
    handle.remove(token);
    let mut worker = dispatcher.into_source_inner().into_worker();
    drop(worker.take_stdin(job).unwrap().unwrap());
    assert_eq!(common::finish(&mut worker, job).exit_code, 7);
    let (dispatcher, _) = insert(&handle, WorkerSource::new(worker).unwrap());
    dispatcher.as_source_mut().worker_mut().start(Command::new("true")).unwrap();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);
}

#[test]
fn disabled_it_is_silent_and_enabled_again_it_has_lost_nothing() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let handle = event_loop.handle();
    let (dispatcher, token) = insert(&handle, source(host.builder()));
    let mut seen = Seen::default();
    for round in 0..3 {
        handle.disable(&token).unwrap();
        let script = format!("i=0; while [ $i -lt 5000 ]; do echo line $i; i=$((i+1)); done; exit {round}");
        let job = dispatcher.as_source_mut().worker_mut().start(Command::shell(script)).unwrap();
        seen.events.clear();
        event_loop.dispatch(Duration::from_millis(50), &mut seen).unwrap();
        assert_eq!(seen.events, []);
        handle.enable(&token).unwrap();
        handle.update(&token).unwrap();
        run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);
        assert!(matches!(seen.of(job)[..], [Event::Started { .. }, Event::Exited { .. }, Event::Finished { .. }]), "{:?}", seen.events);
        let status = dispatcher.as_source_ref().worker().query(job).unwrap();
        assert_eq!((status.exit_code, status.output.lines), (round, 5000));
    }
}

#[test]
fn two_workers_share_a_loop_with_room_for_one_event_a_round() {
    let hosts = [Host::new(), Host::new()];
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let handle = event_loop.handle();
    let dispatchers = hosts.each_ref().map(|host| {
        let worker = host.builder().confirm(false).build().unwrap();
        insert(&handle, WorkerSource::with_events(worker, Events::with_capacity(1)).unwrap()).0
    });
    let mut jobs = Vec::new();
    for number in 0..40 {
        let worker = &mut dispatchers[number % 2].as_source_mut();
        jobs.push((number, worker.worker_mut().start(Command::shell(format!("echo {number}; exit {number}"))).unwrap()));
    }
    let mut seen = Seen::default();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 40);
    for (number, job) in jobs {
        assert!(matches!(seen.of(job)[..], [Event::Started { .. }, Event::Exited { .. }, Event::Finished { .. }]), "{:?}", seen.events);
        let status = dispatchers[number % 2].as_source_ref().worker().query(job).unwrap();
        assert_eq!((status.exit_code, output_of(&status)), (i32::try_from(number).unwrap(), format!("{number}\n").into_bytes()));
    }
}

#[test]
fn a_loud_job_starves_no_other_source() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let handle = event_loop.handle();
    let (dispatcher, _) = insert(&handle, source(host.builder().read_budget_bytes(64 << 10)));
    let loud = dispatcher.as_source_mut().worker_mut().start(Command::shell("exec cat /dev/zero")).unwrap();
    let (ping, pinged) = calloop::ping::make_ping().unwrap();
    let again = ping.clone();
    let tick = move |(), (): &mut (), seen: &mut Seen| {
        seen.ticks += 1;
        again.ping();
    };
    handle.insert_source(pinged, tick).unwrap();
    ping.ping();
    let bytes = || dispatcher.as_source_ref().worker().query(loud).unwrap().output.stdout_bytes;
    let mut seen = Seen::default();
    run(&mut event_loop, &mut seen, |_| bytes() > 4 << 20);
    // One turn a round, which reads a budget.
    assert!(seen.ticks >= 32, "{} rounds for {} bytes", seen.ticks, bytes());
    dispatcher.as_source_mut().worker_mut().stop(loud).unwrap();
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 1);
}

#[test]
fn a_loop_with_nothing_to_do_sleeps() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let (dispatcher, _) = insert(&event_loop.handle(), source(host.builder()));
    let mut seen = Seen::default();
    for _ in 0..20 {
        dispatcher.as_source_mut().worker_mut().start(Command::shell("echo busy")).unwrap();
    }
    run(&mut event_loop, &mut seen, |seen| seen.finished() == 20);
    let mut rounds = 0;
    loop {
        let began = Instant::now();
        event_loop.dispatch(Duration::from_millis(200), &mut seen).unwrap();
        if began.elapsed() >= Duration::from_millis(200) {
            break;
        }
        rounds += 1;
        assert!(rounds < 10, "the loop does not come to rest");
    }
    assert_eq!(seen.events.len(), 60);
}

#[test]
fn after_a_panic_of_the_callback_the_other_events_of_its_turn_come_all_the_same() {
    let host = Host::new();
    let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
    let panics = Rc::new(RefCell::new(0));
    let (mut source, counted) = (source(host.builder()), Rc::clone(&panics));
    start_all_to_be_told_at_once(&mut source, 10);
    let callback = move |event: Event, _: &mut Worker, seen: &mut Seen| {
        let is_third = seen.events.len() % 3 == 2;
        seen.events.push(event);
        if is_third {
            *counted.borrow_mut() += 1;
            // As `panic!`, without the hook's words on stderr.
            std::panic::resume_unwind(Box::new("a bug of the host's"));
        }
    };
    event_loop.handle().insert_source(source, callback).unwrap();
    let (mut seen, mut caught) = (Seen::default(), 0);
    let deadline = Instant::now() + DEADLINE;
    while seen.finished() < 10 {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "events are lost; seen: {:#?}", seen.events);
        let dispatched = catch_unwind(AssertUnwindSafe(|| event_loop.dispatch(left, &mut seen)));
        caught += u32::from(dispatched.is_err());
    }
    assert_eq!(seen.events.len(), 30);
    assert_eq!((caught, *panics.borrow()), (10, 10));
    let jobs: std::collections::BTreeSet<JobId> = seen.events.iter().map(Event::job).collect();
    for job in jobs {
        assert!(matches!(seen.of(job)[..], [Event::Started { .. }, Event::Exited { .. }, Event::Finished { .. }]), "{:?}", seen.of(job));
    }
}

#[test]
fn a_turn_that_fails_tells_its_events_and_fails_the_dispatch() {
    isolated("a_turn_that_fails_tells_its_events_and_fails_the_dispatch", || {
        let host = Host::new();
        let mut source = source(host.builder());
        start_all_to_be_told_at_once(&mut source, 1);
        refuse_timers();
        let command = Command::new("sleep").arg("1000").timeout(Duration::from_secs(1000)).capture(Capture::Discard);
        source.worker_mut().start(command).unwrap();

        let mut event_loop: EventLoop<'_, Seen> = EventLoop::try_new().unwrap();
        event_loop.handle().insert_source(source, note).unwrap();
        let mut seen = Seen::default();
        let error = event_loop.dispatch(DEADLINE, &mut seen).unwrap_err();
        let calloop::Error::OtherError(cause) = error else { panic!("{error:?}") };
        assert!(cause.downcast_ref::<TurnError>().unwrap().to_string().contains("timerfd"), "{cause:?}");
        assert_eq!(seen.finished(), 1);
    });
}
