//! Promise: the worker's descriptor becomes readable whenever a turn has something to do, so any loop that can wait for a descriptor can drive it.
//! The loops here know nothing else.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, isolated, threads};
use iron_exec::{Builder, Command, Event, Events, JobId, LogStream, Rung, Signal, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::retry_on_intr;

/// Something that waits until a descriptor is readable; `false` if it was not by the deadline.
trait Outer {
    fn wait(&mut self, worker: &Worker, timeout: Duration) -> bool;
}

/// poll(2): level-triggered.
struct PollLoop;

impl Outer for PollLoop {
    fn wait(&mut self, worker: &Worker, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        retry_on_intr(|| poll(&mut [PollFd::new(worker, PollFlags::IN)], Some(&timeout))).unwrap() > 0
    }
}

/// Another epoll instance, edge-triggered: it hears of each change once.
struct EdgeLoop {
    epoll: OwnedFd,
}

impl EdgeLoop {
    fn new(worker: &Worker) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, worker.as_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN | epoll::EventFlags::ET).unwrap();
        Self { epoll }
    }
}

impl Outer for EdgeLoop {
    fn wait(&mut self, _: &Worker, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        retry_on_intr(|| epoll::wait(&self.epoll, &mut events[..], Some(&timeout))).unwrap() > 0
    }
}

/// Drives the worker by its descriptor alone until `done`: one turn that does not wait for each time that the descriptor speaks up.
fn drive(
    worker: &mut Worker,
    outer: &mut dyn Outer,
    events: &mut Events,
    mut done: impl FnMut(&mut Worker, &[Event]) -> bool,
) -> Vec<Event> {
    let deadline = Instant::now() + DEADLINE;
    let mut seen = Vec::new();
    while !done(worker, &seen) {
        assert!(outer.wait(worker, deadline.saturating_duration_since(Instant::now())), "the descriptor stayed silent; seen: {seen:#?}");
        worker.turn(events, Some(Duration::ZERO)).unwrap();
        seen.extend(events.drain());
    }
    seen
}

fn count(seen: &[Event], wanted: impl Fn(&Event) -> bool) -> usize {
    seen.iter().filter(|event| wanted(event)).count()
}

fn finished(seen: &[Event]) -> usize {
    count(seen, |event| matches!(event, Event::Finished { .. }))
}

/// Everything that the promise names, seen through one kind of outer loop: exits, timeouts, logs, left-over work.
fn everything_is_seen(builder: Builder, events: &mut Events, outer: impl FnOnce(&Worker) -> Box<dyn Outer>) {
    let mut worker = builder.confirm(false).read_budget_bytes(4096).build().unwrap();
    let outer = &mut *outer(&worker);
    // Exits, many at a time.
    let jobs: Vec<JobId> = (0..20).map(|code| worker.start(Command::shell(format!("exit {code}"))).unwrap()).collect();
    let failing = worker.start(Command::new("/nonexistent/program")).unwrap();
    let seen = drive(&mut worker, outer, events, |_, seen| {
        finished(seen) == 20 && count(seen, |event| matches!(event, Event::StartFailed { .. })) == 1
    });
    for (code, job) in (0..).zip(&jobs) {
        assert_eq!(worker.query(*job).unwrap().exit_code, code);
        let of_job: Vec<_> = seen.iter().filter(|event| event.job() == *job).collect();
        assert!(matches!(of_job[..], [Event::Started { .. }, Event::Exited { .. }, Event::Finished { .. }]), "{of_job:?}");
    }
    assert!(worker.query(failing).unwrap().failure.is_some());

    // A timeout, and the end of a grace time: nothing happens but the clock.
    let slow = worker.start(Command::new("sleep").arg("1000").timeout(Duration::from_millis(30))).unwrap();
    drive(&mut worker, outer, events, |_, seen| finished(seen) == 1);
    let stubborn = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 1000; done")).unwrap();
    drive(&mut worker, outer, events, |worker, _| worker.query(stubborn).unwrap().output.lines > 0);
    worker.stop_with(stubborn, Signal::TERM, Duration::from_millis(30)).unwrap();
    drive(&mut worker, outer, events, |_, seen| finished(seen) == 1);
    assert_eq!(worker.query(slow).unwrap().signal(), Some(Signal::KILL));
    assert_eq!(worker.query(stubborn).unwrap().signal(), Some(Signal::KILL));

    // A prompt without a line feed, a log that grows, output far beyond the budget of a turn.
    let talker = Command::shell("printf prompt; read answer; i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done").stdin_piped();
    let talker = worker.start(talker).unwrap();
    let mut stream = worker.stream(talker).unwrap();
    let mut bytes = Vec::new();
    drive(&mut worker, outer, events, |_, _| {
        read_now(&mut stream, &mut bytes);
        bytes == b"prompt"
    });
    drop(worker.take_stdin(talker).unwrap());
    let mut ended = false;
    drive(&mut worker, outer, events, |_, seen| {
        ended = ended || read_now(&mut stream, &mut bytes);
        ended && finished(seen) == 1
    });
    let mut expected = b"prompt".to_vec();
    (0..20000).for_each(|number| expected.extend_from_slice(format!("line {number}\n").as_bytes()));
    assert!(bytes == expected, "{} bytes instead of {}", bytes.len(), expected.len());
}

/// Reads what a stream has now; whether that was its end.
fn read_now(stream: &mut LogStream, bytes: &mut Vec<u8>) -> bool {
    loop {
        let std::task::Poll::Ready(read) = stream.try_fill_buf() else { return false };
        let length = read.unwrap().len();
        if length == 0 {
            return true;
        }
        if let std::task::Poll::Ready(Ok(shown)) = stream.try_fill_buf() {
            bytes.extend_from_slice(shown);
        }
        stream.consume(length);
    }
}

#[test]
fn a_level_triggered_outer_loop_sees_everything() {
    for rung in Rung::ALL {
        everything_is_seen(Host::new().builder().rung(rung), &mut Events::new(), |_| Box::new(PollLoop));
    }
}

#[test]
fn an_edge_triggered_outer_loop_sees_everything() {
    for rung in Rung::ALL {
        everything_is_seen(Host::new().builder().rung(rung), &mut Events::new(), |worker| Box::new(EdgeLoop::new(worker)));
    }
}

#[test]
fn with_room_for_one_event_at_a_time_nothing_is_lost_whatever_the_outer_loop() {
    let host = Host::new();
    let tight = || host.builder().poll_events_max(1);
    everything_is_seen(tight(), &mut Events::with_capacity(1), |_| Box::new(PollLoop));
    everything_is_seen(tight(), &mut Events::with_capacity(1), |worker| Box::new(EdgeLoop::new(worker)));
}

#[test]
fn a_stop_in_the_middle_of_an_outer_wait_is_seen() {
    let host = Host::new();
    let mut worker = host.worker();
    let mut outer = EdgeLoop::new(&worker);
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let mut events = Events::new();
    // Whatever the start left to hear of is heard.
    while outer.wait(&worker, Duration::ZERO) {
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    }
    worker.stop(job).unwrap();
    drive(&mut worker, &mut outer, &mut events, |_, seen| finished(seen) == 1);
}

#[test]
fn the_descriptor_is_quiet_while_a_thousand_jobs_are_idle() {
    isolated("the_descriptor_is_quiet_while_a_thousand_jobs_are_idle", || {
        let host = Host::new();
        let mut worker = host.builder().confirm(false).build().unwrap();
        for _ in 0..1000 {
            worker.start(Command::new("sleep").arg("1000").name("idle")).unwrap();
        }
        let threads_before = threads();
        let mut events = Events::new();
        let mut started = 0;
        drive(&mut worker, &mut PollLoop, &mut events, |_, seen| {
            started = seen.len();
            started == 1000
        });
        assert!(!PollLoop.wait(&worker, Duration::from_millis(300)), "nothing happens, so nothing is to be said");
        assert_eq!(threads(), threads_before, "no thread was made");
    });
}

#[test]
fn no_thread_is_ever_made_and_sigchld_is_left_alone() {
    isolated("no_thread_is_ever_made_and_sigchld_is_left_alone", || {
        let signals = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            status
                .lines()
                .filter(|line| ["SigBlk", "SigIgn", "SigCgt"].iter().any(|name| line.starts_with(name)))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let before = (threads(), signals());
        let now = || (threads(), signals());
        let host = Host::new();
        let mut worker = host.worker();
        for _ in 0..10 {
            let job = worker.start(Command::shell("echo a; echo b >&2")).unwrap();
            assert_eq!(now(), before);
            common::finish(&mut worker, job);
            assert_eq!(now(), before);
        }
        drop(worker);
        assert_eq!(now(), before);
    });
}

#[test]
fn jobs_share_a_turn_fairly() {
    let host = Host::new();
    let mut worker = host.builder().read_budget_bytes(64 << 10).build().unwrap();
    let loud = worker.start(Command::shell("exec cat /dev/zero").name("loud")).unwrap();
    let quiet = worker.start(Command::shell("read go; echo done").stdin_piped()).unwrap();
    common::turn_until(&mut worker, |worker, _| worker.query(loud).unwrap().output.stdout_bytes > 1 << 20);
    drop(worker.take_stdin(quiet).unwrap());
    let status = common::finish(&mut worker, quiet);
    assert_eq!(common::output_of(&status), b"done\n");
    let mut events = Events::new();
    let before = worker.query(loud).unwrap().output.stdout_bytes;
    worker.turn(&mut events, None).unwrap();
    let in_one_turn = worker.query(loud).unwrap().output.stdout_bytes - before;
    assert!(in_one_turn <= 128 << 10, "one job read {in_one_turn} bytes in one turn");
    worker.stop(loud).unwrap();
    common::finish(&mut worker, loud);
}
