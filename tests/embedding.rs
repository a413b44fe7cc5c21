//! Promise: the worker's descriptor becomes readable whenever a turn has something to do, so any loop that can wait for a descriptor can drive it.
//! The loops here know nothing else.

mod common;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process;
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, isolated, threads};
use iron_exec::{Builder, Command, Event, Events, JobId, LogStream, Retention, Rung, Signal, Worker};
use mio::unix::SourceFd;
use nix::sys::ptrace;
use nix::sys::signal::{self, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::retry_on_intr;

/// The environment variable that tells a test that its parent counts its system calls.
const TRACED: &str = "IRON_EXEC_TEST_TRACED";

/// A descriptor that says nothing for so long is quiet.
const QUIET_TIME: Duration = Duration::from_millis(100);

/// Something that waits until a descriptor is readable; `false` if it was not by the deadline.
trait Outer {
    fn wait(&mut self, worker: &Worker, timeout: Duration) -> bool;
}

type MakeOuter = fn(&Worker) -> Box<dyn Outer>;

/// poll(2): level-triggered.
struct PollLoop;

impl Outer for PollLoop {
    fn wait(&mut self, worker: &Worker, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        retry_on_intr(|| poll(&mut [PollFd::new(worker, PollFlags::IN)], Some(&timeout))).unwrap() > 0
    }
}

/// Another epoll instance. Edge-triggered, it hears of each change once.
struct EpollLoop {
    epoll: OwnedFd,
}

impl EpollLoop {
    fn level(worker: &Worker) -> Self {
        Self::new(worker, epoll::EventFlags::IN)
    }

    fn edge(worker: &Worker) -> Self {
        Self::new(worker, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    fn new(worker: &Worker, flags: epoll::EventFlags) -> Self {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        epoll::add(&epoll, worker.as_fd(), epoll::EventData::new_u64(1), flags).unwrap();
        Self { epoll }
    }
}

impl Outer for EpollLoop {
    fn wait(&mut self, _: &Worker, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).unwrap();
        let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
        retry_on_intr(|| epoll::wait(&self.epoll, &mut events[..], Some(&timeout))).unwrap() > 0
    }
}

/// The host's own mio, edge-triggered as it always is.
struct MioLoop {
    poll: mio::Poll,
    ready: mio::Events,
}

impl MioLoop {
    fn new(worker: &Worker) -> Self {
        let poll = mio::Poll::new().unwrap();
        let fd = worker.as_fd().as_raw_fd();
        poll.registry().register(&mut SourceFd(&fd), mio::Token(1), mio::Interest::READABLE).unwrap();
        Self { poll, ready: mio::Events::with_capacity(4) }
    }
}

impl Outer for MioLoop {
    fn wait(&mut self, _: &Worker, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            // Without any handler, too: SIGCHLD comes to whatever thread does not block it, and starts in other threads do for a moment.
            let left = deadline.saturating_duration_since(Instant::now());
            match self.poll.poll(&mut self.ready, Some(left)) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                polled => {
                    polled.unwrap();
                    return !self.ready.is_empty();
                }
            }
        }
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
        everything_is_seen(Host::new().builder().rung(rung), &mut Events::new(), |worker| Box::new(EpollLoop::level(worker)));
    }
}

#[test]
fn an_edge_triggered_outer_loop_sees_everything() {
    for rung in Rung::ALL {
        everything_is_seen(Host::new().builder().rung(rung), &mut Events::new(), |worker| Box::new(EpollLoop::edge(worker)));
    }
}

#[test]
fn a_mio_of_the_hosts_own_sees_everything() {
    for rung in Rung::ALL {
        everything_is_seen(Host::new().builder().rung(rung), &mut Events::new(), |worker| Box::new(MioLoop::new(worker)));
    }
}

#[test]
fn with_room_for_one_event_at_a_time_nothing_is_lost_whatever_the_outer_loop() {
    let host = Host::new();
    let tight = || host.builder().poll_events_max(1);
    everything_is_seen(tight(), &mut Events::with_capacity(1), |_| Box::new(PollLoop));
    everything_is_seen(tight(), &mut Events::with_capacity(1), |worker| Box::new(EpollLoop::level(worker)));
    everything_is_seen(tight(), &mut Events::with_capacity(1), |worker| Box::new(EpollLoop::edge(worker)));
    everything_is_seen(tight(), &mut Events::with_capacity(1), |worker| Box::new(MioLoop::new(worker)));
}

#[test]
fn a_stop_in_the_middle_of_an_outer_wait_is_seen() {
    let host = Host::new();
    let mut worker = host.worker();
    let mut outer = EpollLoop::edge(&worker);
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let mut events = Events::new();
    // Whatever the start left to hear of is heard.
    while outer.wait(&worker, Duration::ZERO) {
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    }
    worker.stop(job).unwrap();
    drive(&mut worker, &mut outer, &mut events, |_, seen| finished(seen) == 1);
}

/// Starts idle jobs (with a log each, and a cgroup where there are any), and turns until the worker has nothing more to say.
fn start_idle(worker: &mut Worker, count: usize) -> Vec<JobId> {
    let jobs = (0..count).map(|_| worker.start(Command::new("sleep").arg("1000").name("idle")).unwrap()).collect();
    let mut events = Events::new();
    drive(worker, &mut PollLoop, &mut events, |_, seen| seen.len() == count);
    turns_until_quiet(worker, &mut PollLoop, &mut events, 20);
    jobs
}

/// How many turns it takes until the descriptor stays quiet.
fn turns_until_quiet(worker: &mut Worker, outer: &mut dyn Outer, events: &mut Events, turns_max: usize) -> usize {
    let mut turns = 0;
    while outer.wait(worker, QUIET_TIME) {
        assert!(turns < turns_max, "the descriptor speaks up again and again; events: {events:?}");
        turns += 1;
        worker.turn(events, Some(Duration::ZERO)).unwrap();
    }
    turns
}

#[test]
fn the_descriptor_is_quiet_while_a_thousand_jobs_are_idle() {
    isolated("the_descriptor_is_quiet_while_a_thousand_jobs_are_idle", || {
        let host = Host::new();
        let mut worker = host.builder().confirm(false).build().unwrap();
        let threads_before = threads();
        start_idle(&mut worker, 1000);
        assert!(!PollLoop.wait(&worker, Duration::from_millis(300)), "nothing happens, so nothing is to be said");
        assert_eq!(threads(), threads_before, "no thread was made");
    });
}

/// Turns of nothing whose system calls are counted.
const IDLE_TURNS: usize = 1000;

/// Has the parent, which traces this thread, count the system calls of `body`: from one stop to the next.
fn traced(body: impl FnOnce()) -> nix::Result<()> {
    ptrace::traceme()?;
    raise(signal::Signal::SIGSTOP)?;
    body();
    raise(signal::Signal::SIGSTOP)
}

/// Runs this test again in a child that asks to be traced; how many system calls it made each time.
fn count_system_calls(name: &str) -> Vec<usize> {
    let child = process::Command::new(std::env::current_exe().unwrap()).args(["--exact", name, "--nocapture"]).env(TRACED, "1").spawn();
    let child = Pid::from_raw(child.unwrap().id().cast_signed());
    let (mut counts, mut stops) = (Vec::new(), None);
    loop {
        // This process has no other child.
        match waitpid(None, Some(WaitPidFlag::__WALL)).unwrap() {
            WaitStatus::Stopped(thread, signal::Signal::SIGSTOP) => match stops.take() {
                None => {
                    stops = Some(0);
                    ptrace::setoptions(thread, ptrace::Options::PTRACE_O_TRACESYSGOOD).unwrap();
                    ptrace::syscall(thread, None).unwrap();
                }
                Some(stops) => {
                    // Each call stops twice, at its entry and at its exit.
                    counts.push(stops / 2);
                    ptrace::detach(thread, None).unwrap();
                }
            },
            WaitStatus::PtraceSyscall(thread) => {
                stops = stops.map(|stops| stops + 1);
                ptrace::syscall(thread, None).unwrap();
            }
            WaitStatus::Stopped(thread, other) => ptrace::syscall(thread, other).unwrap(),
            WaitStatus::Exited(pid, code) if pid == child => {
                assert_eq!(code, 0, "the traced process failed");
                return counts;
            }
            other => panic!("unexpected: {other:?}"),
        }
    }
}

#[test]
fn turns_of_nothing_cost_no_system_calls_for_any_job() {
    const NAME: &str = "turns_of_nothing_cost_no_system_calls_for_any_job";
    isolated(NAME, || {
        if std::env::var_os(TRACED).is_none() {
            let counts = count_system_calls(NAME);
            println!("system calls of {IDLE_TURNS} turns with 1 idle job, with 1,000, and with a reader of each: {counts:?}");
            if let [one, thousand, read] = counts[..] {
                assert!(thousand <= one + 5 && read <= one + 5, "{counts:?}");
                assert!(thousand <= 2 * IDLE_TURNS + 20, "{counts:?}");
            } else {
                assert!(counts.is_empty() && std::env::var_os("CI").is_none(), "{counts:?}");
            }
            return;
        }
        let host = Host::new();
        let mut worker = host.builder().confirm(false).build().unwrap();
        let mut events = Events::new();
        let mut idle = |worker: &mut Worker| {
            let turns = || (0..IDLE_TURNS).for_each(|_| worker.turn(&mut events, Some(Duration::ZERO)).unwrap());
            traced(turns).map_err(|error| common::cannot_run(&format!("tracing: {error}"))).is_ok()
        };
        let mut jobs = start_idle(&mut worker, 1);
        if !idle(&mut worker) {
            return;
        }
        jobs.extend(start_idle(&mut worker, 999));
        assert!(idle(&mut worker));
        let mut streams: Vec<LogStream> = jobs.iter().map(|job| worker.stream(*job).unwrap()).collect();
        for stream in &mut streams {
            assert!(stream.try_fill_buf().is_pending());
        }
        assert!(idle(&mut worker));
    });
}

#[test]
fn after_a_busy_time_the_descriptor_comes_to_rest() {
    let retention = || Retention::new().logs_max(5).age_max(Duration::from_hours(1));
    for (capacity, has_retention) in [(1024, false), (1, false), (1024, true), (1, true)] {
        let outers: [MakeOuter; 3] =
            [|_| Box::new(PollLoop), |worker| Box::new(EpollLoop::edge(worker)), |worker| Box::new(MioLoop::new(worker))];
        for outer in outers {
            let host = Host::new();
            let builder = host.builder().confirm(false).read_budget_bytes(4096);
            let builder = if has_retention { builder.retention(retention()) } else { builder };
            let mut worker = builder.build().unwrap();
            let (mut outer, mut events) = (outer(&worker), Events::with_capacity(capacity));
            let outer = &mut *outer;

            // One that lives on, with a reader that waits, and one that never reads.
            let echo = worker.start(Command::new("cat").stdin_piped()).unwrap();
            let mut stdin = worker.take_stdin(echo).unwrap().unwrap();
            let (mut reader, _idler) = (worker.stream(echo).unwrap(), worker.stream(echo).unwrap());
            assert!(reader.try_fill_buf().is_pending());
            let loud = "head -c 100000 /dev/zero | tr '\\0' x; echo; echo done >&2";
            for _ in 0..10 {
                worker.start(Command::shell(loud)).unwrap();
                worker.start(Command::new("/nonexistent/program")).unwrap();
            }
            drive(&mut worker, outer, &mut events, |_, seen| {
                finished(seen) == 10 && count(seen, |event| matches!(event, Event::StartFailed { .. })) == 10
            });
            // Without retention this does nothing.
            worker.collect_logs();
            let after_ends = turns_until_quiet(&mut worker, outer, &mut events, 30);

            let mut bytes = Vec::new();
            stdin.write_all(b"hello\n").unwrap();
            drive(&mut worker, outer, &mut events, |_, _| {
                read_now(&mut reader, &mut bytes);
                bytes == b"hello\n"
            });
            let after_output = turns_until_quiet(&mut worker, outer, &mut events, 10);
            println!("{capacity} events, retention {has_retention}: {after_ends} turns after the ends, {after_output} after output");
            assert_eq!(worker.retention_stats().logs_deleted > 0, has_retention);
            worker.stop(echo).unwrap();
            drive(&mut worker, outer, &mut events, |_, seen| finished(seen) == 1);
            turns_until_quiet(&mut worker, outer, &mut events, 10);
        }
    }
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
