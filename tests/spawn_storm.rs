//! Promise: whatever becomes of a start, its verdict is right and nothing is left; and a start that hangs holds up nobody but itself. IRON_EXEC_STORM is
//! the number of starts in the storms, all together; without it they are few.

mod common;

use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use common::{
    Census, DEADLINE, Host, cannot_run, children, finish, isolated, not_root, open_fds, output_of, process_exists, turn_until, wait_until,
};
use fastrand::Rng;
use iron_exec::{Builder, Capture, CgroupBase, Command, Event, Events, Exit, JobError, JobId, JobState, LogStream, Rung, RungReason};
use iron_exec::{Signal, StartFailure, Status, Step, StopReason, Worker};
use iron_exec_sys::spawn::leaked_slots;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Pid, kill_process};

// Storms.

/// How many starts the storms make without a word about it: a `cargo test` is to be over soon.
const STARTS: usize = 3000;

/// Jobs unfinished at a time.
const IN_FLIGHT: usize = 64;

/// Threads of the host that have nothing to do with its jobs.
const BYSTANDERS: usize = 2;

#[test]
fn starts_on_the_best_rung_end_right_and_leave_nothing() {
    isolated("starts_on_the_best_rung_end_right_and_leave_nothing", || storm(None, 80));
}

#[test]
fn starts_on_vfork_end_right_and_leave_nothing() {
    isolated("starts_on_vfork_end_right_and_leave_nothing", || storm(Some(Rung::Vfork), 12));
}

#[test]
fn starts_on_fork_like_end_right_and_leave_nothing() {
    isolated("starts_on_fork_like_end_right_and_leave_nothing", || storm(Some(Rung::ForkLike), 4));
}

#[test]
fn starts_on_fork_end_right_and_leave_nothing() {
    isolated("starts_on_fork_end_right_and_leave_nothing", || storm(Some(Rung::Fork), 4));
}

/// A storm of its share (in hundredths) of all starts: half of it with cgroups, half without and with few slots, so that starts have to wait for one.
fn storm(rung: Option<Rung>, share: usize) {
    let starts = std::env::var("IRON_EXEC_STORM").map_or(STARTS, |count| count.parse().expect("IRON_EXEC_STORM is a number"));
    let starts = (starts * share / 200).max(starts.min(100));
    let host = Host::new();
    let programs = Programs::new();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);

    let over = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let canary = Canary::new(400);
    thread::scope(|scope| {
        let _over = OnDrop(&over);
        for number in 0..BYSTANDERS {
            let (over, rounds) = (&over, &rounds);
            scope.spawn(move || stand_by(number as u64, over, rounds));
        }
        wait_until("the bystanders are at work", || rounds.load(Ordering::Relaxed) > 100);
        let builder = || rung.into_iter().fold(host.builder().confirm(false), Builder::rung);
        // A sanitizer's runtime has something to say in the first child that fails on the host's memory, with a lock held: none may be killed in that.
        builder().confirm_timeout(DEADLINE).build().unwrap().start(Command::new("/nonexistent").confirm(true)).unwrap_err();
        // What a first life leaves in the allocator and the like is not to count.
        run_storm(&mut builder().build().unwrap(), IN_FLIGHT, &programs, &mut rng, &mut || ());
        for (cgroups, slots) in [(true, IN_FLIGHT), (false, 12)] {
            if cgroups && host.base.is_none() {
                continue;
            }
            let (before, maps, leaked) = (census(&host), Maps::take(), leaked_slots());
            let (turns_before, began) = (rounds.load(Ordering::Relaxed), Instant::now());
            let builder = builder().spawn_slots_max(slots);
            let builder = if cgroups { builder } else { builder.cgroup_base(CgroupBase::Off) };
            let mut worker = builder.build().unwrap();
            let own_fds = open_fds().len() - before.fds.len();
            let mut look = || {
                canary.check();
                assert!(Maps::take().guards <= maps.guards + slots, "a mapping for each slot, and no more");
                assert!(children().len() <= IN_FLIGHT, "{:#?}", children());
                assert!(host.cgroups().len() <= IN_FLIGHT);
                // A job: pidfd, link, two pipes and an end that the caller has, a log.
                assert!(open_fds().len() <= before.fds.len() + own_fds + 6 * IN_FLIGHT, "{:#?}", open_fds());
            };
            let tally = run_storm(&mut worker, starts, &programs, &mut rng, &mut look);
            assert_eq!((worker.unfinished_jobs(), worker.jobs()), (0, Vec::new()));
            drop(worker);
            let took = began.elapsed();
            canary.check();
            assert_eq!(census(&host), before);
            assert_eq!(leaked_slots(), leaked);
            let left = Maps::take();
            assert_eq!(left.guards, maps.guards, "the mapping of a slot is left");
            // The allocator's own come and go; a sanitizer's has two more for each size of block that is new to it.
            assert!(left.all <= maps.all + 24, "{} mappings before, {} after", maps.all, left.all);
            assert!(rounds.load(Ordering::Relaxed) > turns_before, "the bystanders are at work");
            let name = rung.map_or("best rung".to_owned(), |rung| rung.to_string());
            let place = if cgroups { "with cgroups" } else { "without cgroups" };
            println!("{name} {place}: {starts} starts in {took:.1?}; {tally:?}");
        }
    });
    canary.check();
}

/// What became of the jobs of a storm.
#[derive(Debug, Default)]
struct Tally {
    exited: usize,
    failed: usize,
    killed: usize,
    killed_before_exec: usize,
    cancelled: usize,
    waited: usize,
    slots_busy: usize,
}

/// What a job does if nobody interferes.
#[derive(Clone, Debug)]
enum Nature {
    /// It writes this and exits with this code.
    Exits(Vec<u8>, i32),
    /// It runs until it is killed.
    Stays,
    /// It cannot be started.
    Fails(Step, PathBuf, Errno),
}

/// What is done to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    /// It is told to stop.
    Stop,
    /// SIGKILL from outside.
    Kill,
    /// SIGSTOP from outside, and later SIGCONT.
    Pause,
    /// The SIGCONT.
    Resume,
}

#[derive(Debug)]
struct Flight {
    nature: Nature,
    /// What is to be done to it, and before which turn.
    due: Option<(Deed, u64)>,
    stopped: bool,
    killed: bool,
    /// Its outputs, if the caller reads them.
    pipe: Option<PipeReader>,
    events: Vec<Event>,
}

/// Starts so many jobs, as many at a time as may be in flight, and sees each to its end.
fn run_storm(worker: &mut Worker, starts: usize, programs: &Programs, rng: &mut Rng, look: &mut dyn FnMut()) -> Tally {
    let mut flights: HashMap<JobId, Flight> = HashMap::new();
    let mut events = Events::new();
    let mut tally = Tally::default();
    let (mut started, mut turn, mut last_end) = (0, 0, Instant::now());
    while started < starts || !flights.is_empty() {
        while started < starts && flights.len() < IN_FLIGHT {
            started += 1;
            if started % (starts / 4).max(1) == 0 {
                look();
            }
            let (job, mut flight) = start(worker, programs, rng, turn);
            check_errno();
            tally.waited += usize::from(worker.query(job).unwrap().pid == 0);
            interfere(worker, job, &mut flight, turn, rng);
            flights.insert(job, flight);
        }
        turn += 1;
        for (job, flight) in &mut flights {
            interfere(worker, *job, flight, turn, rng);
        }
        worker.turn(&mut events, Some(Duration::from_millis(1))).unwrap();
        for event in events.drain() {
            let job = event.job();
            let flight = flights.get_mut(&job).unwrap_or_else(|| panic!("{event:?} of a job that is over"));
            let is_end = matches!(event, Event::StartFailed { .. } | Event::Finished { .. });
            flight.events.push(event);
            if is_end {
                let flight = flights.remove(&job).unwrap();
                check(&worker.query(job).unwrap(), flight, &mut tally);
                worker.forget(job).unwrap();
                last_end = Instant::now();
            }
        }
        assert!(last_end.elapsed() < DEADLINE, "nothing ends any more: {flights:#?}");
    }
    tally
}

fn start(worker: &mut Worker, programs: &Programs, rng: &mut Rng, turn: u64) -> (JobId, Flight) {
    let code = rng.i32(0..256);
    let (command, nature) = match rng.u32(0..100) {
        0..25 => (Command::shell(format!("exit {code}")), Nature::Exits(Vec::new(), code)),
        25..35 => (Command::new("true"), Nature::Exits(Vec::new(), 0)),
        35..45 => (Command::new("sleep").arg("1000"), Nature::Stays),
        45..53 => {
            let length = rng.usize(0..9000);
            let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(length).collect();
            (Command::new("cat").stdin_bytes(bytes.clone()), Nature::Exits(bytes, 0))
        }
        53..61 => with_descriptors(programs, rng, code),
        _ => programs.failing(rng),
    };
    let capture = match nature {
        Nature::Exits(ref bytes, _) if !bytes.is_empty() => *rng.choice(&[Capture::Split, Capture::Merged, Capture::Piped]).unwrap(),
        _ => *rng.choice(&[Capture::Split, Capture::Merged, Capture::Piped, Capture::Discard, Capture::Discard, Capture::Discard]).unwrap(),
    };
    let deed = match (&nature, rng.u32(0..20)) {
        (Nature::Stays, 0..10) | (_, 0) => Some(Deed::Stop),
        (Nature::Stays, _) | (_, 1) => Some(Deed::Kill),
        (_, 2) => Some(Deed::Pause),
        _ => None,
    };
    let job = worker.start(command.capture(capture)).unwrap();
    let status = worker.query(job).unwrap();
    assert!(!status.is_finished() && status.failure.is_none(), "nothing is decided yet: {status:?}");
    let pipe = worker.take_stdout(job).unwrap();
    drop(worker.take_stderr(job).unwrap());
    // Half of all deeds come at once.
    let due = deed.map(|deed| (deed, if rng.bool() { turn } else { turn + rng.u64(1..8) }));
    (job, Flight { nature, due, stopped: false, killed: false, pipe, events: Vec::new() })
}

/// A job that reads files which it gets at numbers that are anybody's.
fn with_descriptors(programs: &Programs, rng: &mut Rng, code: i32) -> (Command, Nature) {
    let (mut command, mut bytes) = (Command::new("sh"), Vec::new());
    let mut numbers: Vec<i32> = (3..160).collect();
    rng.shuffle(&mut numbers);
    numbers.truncate(rng.usize(1..12));
    for number in &numbers {
        let (path, content) = rng.choice(&programs.files).unwrap();
        command = command.fd(*number, File::open(path).unwrap());
        bytes.extend_from_slice(content.as_bytes());
    }
    let names: Vec<String> = numbers.iter().map(|number| format!("/dev/fd/{number}")).collect();
    let command = command.arg("-c").arg(format!("cat {}; exit {code}", names.join(" ")));
    (if rng.bool() { command.stdin_bytes(*b"nobody reads this") } else { command }, Nature::Exits(bytes, code))
}

/// Does to a job what is due.
fn interfere(worker: &mut Worker, job: JobId, flight: &mut Flight, turn: u64, rng: &mut Rng) {
    let Some((deed, _)) = flight.due.take_if(|(_, due)| *due <= turn) else { return };
    let status = worker.query(job).unwrap();
    if !matches!(status.state, JobState::Starting | JobState::Running) {
        return;
    }
    if rng.bool() {
        // A moment anywhere on the child's way to its program.
        let (began, pause) = (Instant::now(), Duration::from_micros(rng.u64(0..300)));
        while began.elapsed() < pause {}
    }
    if deed == Deed::Stop {
        flight.stopped = true;
        worker.stop(job).unwrap();
        return;
    }
    let Some(pid) = Pid::from_raw(status.pid) else {
        // It waits for a slot: there is nobody yet.
        assert_eq!(status.state, JobState::Starting);
        flight.due = Some((deed, turn + 1));
        return;
    };
    // Nobody has reaped it, or the worker would know how it ended: the number is its own.
    let send = |signal| kill_process(pid, signal).unwrap();
    match deed {
        Deed::Kill => {
            flight.killed = true;
            send(rustix::process::Signal::KILL);
        }
        Deed::Pause => {
            send(rustix::process::Signal::STOP);
            flight.due = Some((Deed::Resume, turn + rng.u64(1..5)));
        }
        Deed::Resume => send(rustix::process::Signal::CONT),
        Deed::Stop => unreachable!(),
    }
}

/// Checks the verdict on a job that has ended, and what was told of it on the way.
fn check(status: &Status, flight: Flight, tally: &mut Tally) {
    let what = || format!("{flight:?} ended as {status:?}");
    let started = flight.events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
    match (&status.failure, status.exit) {
        (None, Some(exit)) => {
            assert_eq!(status.state, JobState::Finished, "{}", what());
            // Of a job that was told to stop it is not said that it was started, if it was not.
            let events = flight.events.strip_prefix(&[Event::Started { job: status.id }]).unwrap_or(&flight.events);
            // What a shell has started may outlive it for a moment where both are killed.
            let (emptied, events): (Vec<_>, Vec<_>) = events.iter().partition(|event| matches!(event, Event::TreeEmpty { .. }));
            assert!(emptied.len() <= 1, "{}", what());
            assert!(matches!(events[..], [Event::Exited { .. }, Event::Finished { exit: told, .. }] if *told == exit), "{}", what());
            assert!(started == 1 || flight.stopped && matches!(exit, Exit::Signal { .. }), "{}", what());
            if let Exit::Code(code) = exit {
                tally.exited += 1;
                assert!(matches!(flight.nature, Nature::Exits(_, right) if right == code), "{}", what());
            } else {
                tally.killed += 1;
                assert_eq!(exit, Exit::Signal { signal: Signal::KILL, core_dumped: false }, "{}", what());
                // Of a job that was told to stop it is not asked whether it ever got to its program.
                let is_right = flight.stopped || flight.killed && !matches!(flight.nature, Nature::Fails(..));
                assert!(is_right, "{}", what());
            }
        }
        (Some(failure), None) => {
            assert_eq!((status.state, status.exit_code), (JobState::Failed, -1), "{}", what());
            assert!(matches!(flight.events.last(), Some(Event::StartFailed { failure: told, .. }) if told == failure), "{}", what());
            assert_eq!(flight.events.len(), started + 1, "{}", what());
            assert!(status.log.as_ref().is_none_or(|log| !log.exists()), "{}", what());
            match (failure.step(), &flight.nature) {
                (Step::Killed, _) => {
                    tally.killed_before_exec += 1;
                    assert!(flight.killed && failure.signal() == Some(Signal::KILL), "{}", what());
                }
                (Step::Slot, _) => {
                    tally.cancelled += 1;
                    assert!(flight.stopped && failure.errno() == Errno::CANCELED.raw_os_error(), "{}", what());
                }
                (step, Nature::Fails(right, path, errno)) => {
                    tally.failed += 1;
                    let is_right = step == *right && failure.path() == Some(path) && failure.errno() == errno.raw_os_error();
                    assert!(is_right && started == 0, "{}", what());
                }
                _ => panic!("{}", what()),
            }
        }
        _ => panic!("{}", what()),
    }
    assert!(started <= 1, "{}", what());
    // The stop of a job that had failed already, but whose child was not reaped yet, has stopped nothing.
    let came_too_late = status.stop_reason.is_none() && matches!(flight.nature, Nature::Fails(..)) && status.failure.is_some();
    assert!(status.stop_reason == flight.stopped.then_some(StopReason::Requested) || came_too_late, "{}", what());
    tally.slots_busy += usize::from(status.rung_reason == RungReason::SlotsBusy);
    assert!(matches!(status.rung_reason, RungReason::Best | RungReason::SlotsBusy), "{}", what());
    assert!(!status.output.cut_off && status.output.dropped_bytes == 0 && !status.cgroup_left, "{}", what());
    if let (Some(Exit::Code(_)), Nature::Exits(bytes, _)) = (status.exit, &flight.nature) {
        if let Some(log) = &status.log {
            assert!(output_of(status) == *bytes, "{}", what());
            fs::remove_file(log).unwrap();
        } else if let Some(pipe) = flight.pipe {
            assert!(read_all(pipe) == *bytes);
        }
    } else if let Some(log) = status.log.as_ref().filter(|log| log.exists()) {
        fs::remove_file(log).unwrap();
    }
}

/// Files that are no programs, and some to read.
struct Programs {
    directory: tempfile::TempDir,
    files: Vec<(PathBuf, String)>,
}

impl Programs {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for (name, content, mode) in [
            ("not-executable", "#!/bin/sh\n", 0o644),
            ("no-format", "neither binary nor script\n", 0o755),
            ("lost", "#!/no/such/shell\n", 0o755),
        ] {
            let path = directory.path().join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let file = |number: usize| (directory.path().join(format!("file-{number}")), format!("content {number}\n").repeat(number));
        let files: Vec<_> = (0..10).map(file).collect();
        for (path, content) in &files {
            fs::write(path, content).unwrap();
        }
        Self { directory, files }
    }

    fn failing(&self, rng: &mut Rng) -> (Command, Nature) {
        let path = |name: &str| self.directory.path().join(name);
        let (command, step, path, errno) = match rng.u32(0..6) {
            0 => (Command::new(path("nothing")), Step::Exec, path("nothing"), Errno::NOENT),
            1 => (Command::new("no-such-program-anywhere"), Step::Exec, "no-such-program-anywhere".into(), Errno::NOENT),
            2 => (Command::new(path("not-executable")), Step::Exec, path("not-executable"), Errno::ACCESS),
            3 => (Command::new(path("no-format")), Step::Exec, path("no-format"), Errno::NOEXEC),
            4 => (Command::new(path("lost")), Step::Interpreter, path("lost"), Errno::NOENT),
            _ => (Command::new("true").cwd(path("nowhere")), Step::Chdir, path("nowhere"), Errno::NOENT),
        };
        (command, Nature::Fails(step, path, errno))
    }
}

// Starts that hang.

/// A host whose cgroup base is there before its workers, so that it can be frozen.
fn host_on_ice() -> Option<(Host, PathBuf)> {
    let host = Host::new();
    if host.has_no_cgroups() {
        return None;
    }
    let base = host.base.clone().unwrap();
    fs::create_dir(&base).unwrap();
    Some((host, base))
}

fn freeze(cgroup: &Path, frozen: bool) {
    fs::write(cgroup.join("cgroup.freeze"), if frozen { "1" } else { "0" }).unwrap();
    let wanted = format!("frozen {}", i32::from(frozen));
    let is_done = || fs::read_to_string(cgroup.join("cgroup.events")).unwrap().lines().any(|line| line == wanted);
    wait_until(&format!("{wanted}: {}", cgroup.display()), is_done);
}

/// Starts a job whose child is born frozen; the other jobs of its worker are not.
fn start_frozen(worker: &mut Worker, base: &Path, command: Command) -> JobId {
    freeze(base, true);
    let job = worker.start(command.confirm(false)).unwrap();
    // What is frozen by itself stays so.
    fs::write(worker.query(job).unwrap().cgroup.unwrap().join("cgroup.freeze"), "1").unwrap();
    freeze(base, false);
    let status = worker.query(job).unwrap();
    assert!(status.state == JobState::Starting && status.pid != 0, "{status:?}");
    job
}

fn thaw(worker: &Worker, job: JobId) {
    freeze(&worker.query(job).unwrap().cgroup.unwrap(), false);
}

/// A job that writes what it reads, and ends when that does.
struct Cat {
    job: JobId,
    input: Input,
    pipe: Option<PipeReader>,
}

enum Input {
    Stdin(PipeWriter),
    Fifo(PathBuf),
}

impl Cat {
    /// One that reads its stdin, whose other end the host has from now on.
    fn at_stdin(worker: &mut Worker, capture: Capture) -> Self {
        let job = worker.start(Command::new("cat").stdin_piped().capture(capture)).unwrap();
        let stdin = worker.take_stdin(job).unwrap().unwrap();
        Self::new(worker, job, Input::Stdin(stdin))
    }

    /// One that reads a file that nobody has open yet.
    fn at_fifo(worker: &mut Worker, capture: Capture, directory: &Path) -> Self {
        let fifo = directory.join(format!("fifo-{}", fastrand::u64(..)));
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
        let job = worker.start(Command::new("cat").arg(&fifo).capture(capture)).unwrap();
        Self::new(worker, job, Input::Fifo(fifo))
    }

    fn new(worker: &mut Worker, job: JobId, input: Input) -> Self {
        drop(worker.take_stderr(job).unwrap());
        Self { job, input, pipe: worker.take_stdout(job).unwrap() }
    }

    /// Lets it write something and end: every byte of it, and the end itself, have to come.
    fn end(self, worker: &mut Worker) {
        let text = format!("what {} reads\n", self.job).repeat(100);
        match self.input {
            Input::Stdin(mut stdin) => stdin.write_all(text.as_bytes()).unwrap(),
            Input::Fifo(path) => fs::write(path, &text).unwrap(),
        }
        if let Some(pipe) = self.pipe {
            assert!(read_all(pipe) == text.as_bytes());
        }
        let status = finish(worker, self.job);
        assert!(status.success() && !status.output.cut_off, "{status:?}");
        if status.log.is_some() {
            assert!(output_of(&status) == text.as_bytes());
        }
        worker.forget(self.job).unwrap();
    }
}

const CAPTURES: [Capture; 3] = [Capture::Split, Capture::Merged, Capture::Piped];

/// The rung on which a child goes that is born frozen.
fn rung_of_frozen(rung: Rung) -> (Rung, RungReason) {
    // On vfork the host would be held with it.
    if rung == Rung::Vfork { (Rung::ForkLike, RungReason::Frozen) } else { (rung, RungReason::Best) }
}

#[test]
fn a_start_that_hangs_holds_up_nobody_elses_end() {
    isolated("a_start_that_hangs_holds_up_nobody_elses_end", || {
        let Some((host, base)) = host_on_ice() else { return };
        for rung in Rung::ALL {
            println!("on rung {rung}");
            let mut before = census(&host);
            let mut worker = host.builder().rung(rung).build().unwrap();
            let mut other = host.builder().rung(rung).cgroup_base(CgroupBase::Off).build().unwrap();
            let directory = tempfile::tempdir().unwrap();
            let start_cats = |worker: &mut Worker| {
                let mut cats: Vec<Cat> = CAPTURES.map(|capture| Cat::at_fifo(worker, capture, directory.path())).into();
                // A forked child that is born frozen holds a copy of all that the host has open, ends to write to among it.
                if rung == Rung::Detached {
                    cats.extend(CAPTURES.map(|capture| Cat::at_stdin(worker, capture)));
                }
                cats
            };
            // The pipes of the early ones are there when the children come to be that hang.
            let [early, early_of_other] = [&mut worker, &mut other].map(start_cats);
            let frozen: Vec<JobId> = CAPTURES
                .iter()
                .map(|capture| start_frozen(&mut worker, &base, Command::shell("echo thawed; exit 7").capture(*capture)))
                .collect();
            let [late, late_of_other] = [&mut worker, &mut other].map(start_cats);
            for cat in early.into_iter().chain(late) {
                cat.end(&mut worker);
            }
            for cat in early_of_other.into_iter().chain(late_of_other) {
                cat.end(&mut other);
            }
            for job in &frozen {
                let status = worker.query(*job).unwrap();
                assert_eq!(
                    (status.state, status.rung, status.rung_reason),
                    (JobState::Starting, rung_of_frozen(rung).0, rung_of_frozen(rung).1)
                );
                assert!(status.pid != 0 && process_exists(status.pid));
            }
            assert_eq!(worker.unfinished_jobs(), 3);

            // One goes on, one is stopped, one is killed by somebody else.
            let [thawed, stopped, killed] = frozen[..] else { panic!() };
            let pipe = worker.take_stdout(killed).unwrap().unwrap();
            drop(worker.take_stderr(killed).unwrap());
            thaw(&worker, thawed);
            let status = finish(&mut worker, thawed);
            assert_eq!((status.state, status.exit_code, output_of(&status)), (JobState::Finished, 7, b"thawed\n".to_vec()));
            worker.stop(stopped).unwrap();
            let status = finish(&mut worker, stopped);
            assert_eq!((status.stop_reason, status.signal()), (Some(StopReason::Requested), Some(Signal::KILL)), "{status:?}");
            kill_process(Pid::from_raw(worker.query(killed).unwrap().pid).unwrap(), rustix::process::Signal::KILL).unwrap();
            let status = finish(&mut worker, killed);
            let failure = status.failure.as_ref().unwrap();
            assert_eq!(
                (status.state, failure.step(), failure.signal()),
                (JobState::Failed, Step::Killed, Some(Signal::KILL)),
                "{status:?}"
            );
            assert_eq!(read_all(pipe), b"");
            drop((worker, other, directory));
            before.logs = host.logs();
            assert_eq!(census(&host), before);
        }
    });
}

#[test]
fn a_program_on_a_file_system_that_does_not_answer_holds_up_nobody_else() {
    isolated("a_program_on_a_file_system_that_does_not_answer_holds_up_nobody_else", || {
        if not_root() {
            return;
        }
        let host = Host::new();
        // On vfork the host would wait for it: that is what the rung is.
        for rung in [Rung::Detached, Rung::ForkLike, Rung::Fork] {
            println!("on rung {rung}");
            let mut before = census(&host);
            let Some(dead) = DeadFileSystem::mount() else { return };
            let mut worker = host.builder().rung(rung).build().unwrap();
            let mut cats: Vec<Cat> = CAPTURES.map(|capture| Cat::at_stdin(&mut worker, capture)).into();
            let began = Instant::now();
            let start = |worker: &mut Worker, command: Command| worker.start(command.confirm(false)).unwrap();
            let [first, program, place] = ["first", "program", "place"].map(|name| dead.directory.path().join(name));
            // It waits for the answer, and can be killed; the later ones wait for their turn to ask, and cannot.
            let stopped = start(&mut worker, Command::new(&first));
            let pid = worker.query(stopped).unwrap().pid;
            wait_until("the child is held", || is_held(pid));
            let execs = start(&mut worker, Command::new(&program));
            let enters = start(&mut worker, Command::new("true").cwd(&place).capture(Capture::Piped));
            let confirmed = worker.start(Command::new("true")).unwrap();
            assert!(began.elapsed() < Duration::from_secs(5));
            cats.extend(CAPTURES.map(|capture| Cat::at_stdin(&mut worker, capture)));
            assert!(finish(&mut worker, confirmed).success());
            for cat in cats {
                cat.end(&mut worker);
            }
            for job in [execs, enters, stopped] {
                assert_eq!(worker.query(job).unwrap().state, JobState::Starting);
            }
            worker.stop(stopped).unwrap();
            let status = finish(&mut worker, stopped);
            assert_eq!((status.stop_reason, status.signal()), (Some(StopReason::Requested), Some(Signal::KILL)), "{status:?}");
            // The end of the file system is the answer.
            dead.end();
            for (job, step, path) in [(execs, Step::Exec, program), (enters, Step::Chdir, place)] {
                let status = finish(&mut worker, job);
                let failure = status.failure.as_ref().unwrap_or_else(|| panic!("{status:?}"));
                assert_eq!((status.state, failure.step(), failure.path()), (JobState::Failed, step, Some(path.as_path())), "{status:?}");
                let errno = Errno::from_raw_os_error(failure.errno());
                assert!(matches!(errno, Errno::NOTCONN | Errno::CONNABORTED), "{status:?}");
            }
            drop(worker);
            before.logs = host.logs();
            assert_eq!(census(&host), before);
        }
    });
}

#[test]
fn a_child_that_nothing_can_end_keeps_its_slot_and_its_worker_goes_all_the_same() {
    isolated("a_child_that_nothing_can_end_keeps_its_slot_and_its_worker_goes_all_the_same", || {
        if not_root() {
            return;
        }
        let host = Host::new();
        let Some(dead) = DeadFileSystem::mount() else { return };
        let (maps, leaked) = (Maps::take(), leaked_slots());
        let [first, program] = ["first", "program"].map(|name| dead.directory.path().join(name));
        // The first one that asks can be killed; the next waits for its turn to ask, and cannot.
        let mut first = process::Command::new("stat").arg(&first).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        wait_until("the first is held", || is_held(first.id() as i32));
        let mut worker = host.builder().confirm(false).drain_total_max(Duration::from_millis(200)).build().unwrap();
        let job = worker.start(Command::new(&program)).unwrap();
        let pid = worker.query(job).unwrap().pid;
        wait_until("the child is held", || is_held(pid));
        let waiter = Cat::at_stdin(&mut worker, Capture::Split);
        worker.stop(job).unwrap();
        waiter.end(&mut worker);
        assert_eq!(worker.query(job).unwrap().state, JobState::Stopping);
        let began = Instant::now();
        drop(worker);
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert!(process_exists(pid));
        assert_eq!((Maps::take().guards, leaked_slots()), (maps.guards + 1, leaked + 1), "it stays on its slot");
        // Its slot stays where it is, so that it can end in peace.
        dead.end();
        let _ = first.wait().unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap().unwrap().1;
        assert_eq!(ended.terminating_signal(), Some(9), "{ended:?}");
        assert_eq!((Maps::take().guards, leaked_slots()), (maps.guards + 1, leaked + 1));
    });
}

/// Whether a task waits for a file system in user space, without a way to be interrupted (or only by its end). For its own pages it may wait like that, too.
fn is_held(pid: i32) -> bool {
    let [stat, stack] = ["stat", "stack"].map(|name| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap());
    stat.rsplit_once(") ").unwrap().1.starts_with('D') && stack.contains(" fuse_lookup")
}

/// A file system in user space whose server never says a word. A task that asks it for something waits until it is killed.
struct DeadFileSystem {
    directory: tempfile::TempDir,
    server: Option<OwnedFd>,
}

impl DeadFileSystem {
    fn mount() -> Option<Self> {
        let Ok(server) = File::options().read(true).write(true).open("/dev/fuse") else {
            let _ = cannot_run("it needs /dev/fuse");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        // mount(8) finds the descriptor at the number that it is told.
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", server.as_raw_fd());
        rustix::io::fcntl_setfd(&server, rustix::io::FdFlags::empty()).unwrap();
        let mut mount = process::Command::new("mount");
        let mounted = mount.args(["-i", "-t", "fuse", "-o", &options, "none"]).arg(directory.path()).status();
        rustix::io::fcntl_setfd(&server, rustix::io::FdFlags::CLOEXEC).unwrap();
        if !mounted.is_ok_and(|status| status.success()) {
            let _ = cannot_run("it needs to mount a file system of type fuse");
            return None;
        }
        Some(Self { directory, server: Some(server.into()) })
    }

    /// Every question is answered with an error from now on.
    fn end(mut self) {
        self.server = None;
    }
}

impl Drop for DeadFileSystem {
    fn drop(&mut self) {
        self.server = None;
        let _ = process::Command::new("umount").args(["-i", "-l"]).arg(self.directory.path()).status();
    }
}

// Starts that wait for a slot.

/// A worker with two slots, both held by children that do not come off.
fn held_worker(builder: Builder, base: &Path) -> (Worker, [JobId; 2]) {
    let mut worker = builder.spawn_slots_max(2).build().unwrap();
    let holders = [0, 1].map(|code| start_frozen(&mut worker, base, Command::shell(format!("exit {code}"))));
    for job in holders {
        assert_eq!(worker.query(job).unwrap().rung, Rung::Detached);
    }
    (worker, holders)
}

fn is_waiting(worker: &Worker, job: JobId) -> bool {
    let status = worker.query(job).unwrap();
    status.state == JobState::Starting && status.pid == 0 && status.exit.is_none() && status.failure.is_none()
}

/// The verdict on a job that was cancelled before there was a process.
fn check_cancelled(status: &Status, reason: StopReason) {
    let failure = status.failure.as_ref().unwrap_or_else(|| panic!("{status:?}"));
    assert_eq!((status.state, status.exit, status.exit_code, status.pid), (JobState::Failed, None, -1, 0), "{status:?}");
    assert_eq!((failure.step(), failure.path(), failure.errno()), (Step::Slot, None, Errno::CANCELED.raw_os_error()), "{status:?}");
    assert_eq!(status.stop_reason, Some(reason));
    assert!(failure.to_string().contains("slot"), "{failure}");
}

#[test]
fn a_start_that_waits_for_a_slot_says_so_and_can_be_cancelled() {
    isolated("a_start_that_waits_for_a_slot_says_so_and_can_be_cancelled", || {
        let Some((host, base)) = host_on_ice() else { return };
        let before = census(&host);
        let (mut worker, holders) = held_worker(host.builder().confirm(false), &base);
        let with_holders = census(&host);
        let cancel: [fn(&mut Worker, JobId); 2] = [
            |worker, job| worker.stop(job).unwrap(),
            |worker, job| worker.stop_with(job, Signal::TERM, Duration::from_secs(1000)).unwrap(),
        ];
        for cancel in cancel {
            let job = worker.start(Command::shell("exit 3").stdin_piped()).unwrap();
            let began = Instant::now();
            assert!(is_waiting(&worker, job));
            assert!(worker.jobs().contains(&job) && worker.unfinished_jobs() == 3);
            let status = worker.query(job).unwrap();
            let (log, cgroup) = (status.log.unwrap(), status.cgroup.unwrap());
            assert!(log.exists() && cgroup.exists());
            for signal in [Signal::TERM, Signal::KILL] {
                assert!(matches!(worker.signal(job, signal), Err(JobError::NotStarted { job: told }) if told == job));
            }
            assert!(matches!(worker.forget(job), Err(JobError::NotFinished { job: told }) if told == job));
            assert!(worker.take_stdin(job).unwrap().is_some());
            cancel(&mut worker, job);
            // Past the time that it would have waited for, nothing is cancelled.
            if began.elapsed() < Duration::from_millis(90) || worker.query(job).unwrap().pid == 0 {
                let status = worker.query(job).unwrap();
                check_cancelled(&status, StopReason::Requested);
                assert!(!log.exists() && !cgroup.exists() && status.log.is_none());
            }
            // A second time does nothing.
            cancel(&mut worker, job);
            let events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
            let events = if events.is_empty() { turn_now(&mut worker) } else { events };
            assert!(
                matches!(&events[..], [Event::StartFailed { job: told, failure }] if *told == job && failure.step() == Step::Slot),
                "{events:?}"
            );
            assert!(matches!(worker.signal(job, Signal::TERM), Err(JobError::Ended { .. })));
            worker.forget(job).unwrap();
            assert!(matches!(worker.query(job), Err(JobError::NotFound { .. })));
            assert_eq!(census(&host), with_holders);
        }

        // Time goes on while it waits.
        for gently in [false, true] {
            let command = Command::shell("exit 3").timeout(Duration::from_millis(20));
            let command = if gently { command.timeout_signal(Signal::TERM, Duration::from_secs(1000)) } else { command };
            let job = worker.start(command).unwrap();
            assert!(is_waiting(&worker, job));
            let status = finish(&mut worker, job);
            check_cancelled(&status, StopReason::Timeout);
            worker.forget(job).unwrap();
        }
        turn_now(&mut worker);
        assert_eq!(census(&host), with_holders);

        // Those who hold the slots have nothing to do with all that.
        for (code, job) in (0..).zip(holders) {
            assert_eq!(worker.query(job).unwrap().state, JobState::Starting);
            thaw(&worker, job);
            assert_eq!(finish(&mut worker, job).exit_code, code);
        }
        // And their slots are free again, also for one who comes after many that have given up.
        let job = worker.start(Command::shell("exit 4").confirm(true)).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, status.rung, status.rung_reason), (4, Rung::Detached, RungReason::Best));
        drop(worker);
        assert_eq!(Census { logs: Vec::new(), ..census(&host) }, before);
    });
}

fn turn_now(worker: &mut Worker) -> Vec<Event> {
    let mut events = Events::new();
    worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    events.drain().collect()
}

/// How long a start waits for a slot.
const SLOT_WAIT: Duration = Duration::from_millis(100);

#[test]
fn a_start_that_has_waited_for_long_takes_a_rung_that_needs_no_slot() {
    isolated("a_start_that_has_waited_for_long_takes_a_rung_that_needs_no_slot", || {
        let Some((host, base)) = host_on_ice() else { return };
        let (mut worker, holders) = held_worker(host.builder().confirm(false), &base);
        let start = |worker: &mut Worker| {
            let jobs = [Command::shell("echo here; exit 3"), Command::new("/nonexistent"), Command::new("true").cwd("/nonexistent")];
            jobs.map(|command| worker.start(command).unwrap())
        };
        let check_ends = |worker: &mut Worker, jobs: [JobId; 3]| {
            let [good, no_program, no_directory] = jobs.map(|job| finish(worker, job));
            assert_eq!((good.exit_code, output_of(&good)), (3, b"here\n".to_vec()));
            assert_eq!(no_program.failure.as_ref().map(StartFailure::step), Some(Step::Exec), "{no_program:?}");
            assert_eq!(no_directory.failure.as_ref().map(StartFailure::step), Some(Step::Chdir), "{no_directory:?}");
            for status in [good, no_program, no_directory] {
                assert_eq!((status.rung, status.rung_reason), (Rung::ForkLike, RungReason::SlotsBusy), "{status:?}");
            }
        };
        let began = Instant::now();
        let jobs = start(&mut worker);
        assert!(jobs.iter().all(|job| is_waiting(&worker, *job)));
        turn_until(&mut worker, |worker, _| jobs.iter().all(|job| worker.query(*job).unwrap().pid != 0));
        assert!(began.elapsed() >= SLOT_WAIT);
        check_ends(&mut worker, jobs);

        // Where everything is frozen, they are too.
        freeze(&base, true);
        let jobs = start(&mut worker);
        turn_until(&mut worker, |worker, _| jobs.iter().all(|job| worker.query(*job).unwrap().pid != 0));
        for job in jobs {
            assert_eq!(worker.query(job).unwrap().state, JobState::Starting);
        }
        freeze(&base, false);
        check_ends(&mut worker, jobs);

        for (code, job) in (0..).zip(holders) {
            thaw(&worker, job);
            assert_eq!(finish(&mut worker, job).exit_code, code);
        }
        let job = worker.start(Command::shell("exit 4")).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, status.rung, status.rung_reason), (4, Rung::Detached, RungReason::Best), "the slots are free again");
    });
}

#[test]
fn a_start_that_hangs_holds_no_end_of_one_that_waits() {
    let Some((host, base)) = host_on_ice() else { return };
    let (mut worker, _) = held_worker(host.builder().confirm(false), &base);
    let waiting: Vec<JobId> =
        CAPTURES.iter().map(|capture| worker.start(Command::shell("echo words").capture(*capture)).unwrap()).collect();
    assert!(waiting.iter().all(|job| is_waiting(&worker, *job)));
    // More descriptors than a child on a slot can be given: it needs none, has a copy of all that the host has open, and hangs with it.
    let null = || File::open("/dev/null").unwrap();
    let many = (3..300).fold(Command::new("true"), |command, number| command.fd(number, null()));
    let hung = start_frozen(&mut worker, &base, many);
    assert_eq!((worker.query(hung).unwrap().rung, worker.query(hung).unwrap().rung_reason), (Rung::ForkLike, RungReason::ManyFds));
    for job in waiting {
        let pipe = worker.take_stdout(job).unwrap();
        let status = finish(&mut worker, job);
        assert!(status.success() && !status.output.cut_off, "{status:?}");
        let output = pipe.map_or_else(|| output_of(&status), read_all);
        assert_eq!(output, b"words\n");
    }
    assert_eq!(worker.query(hung).unwrap().state, JobState::Starting);
}

#[test]
fn a_confirming_start_waits_no_longer_than_it_was_told_whatever_it_waits_for() {
    let Some((host, base)) = host_on_ice() else { return };
    let timeout = Duration::from_millis(50);
    let (mut worker, holders) = held_worker(host.builder().confirm_timeout(timeout), &base);
    freeze(&base, true);
    for _ in 0..3 {
        let began = Instant::now();
        let job = worker.start(Command::shell("exit 3")).unwrap();
        assert!(began.elapsed() >= timeout && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
        assert_eq!(worker.query(job).unwrap().state, JobState::Starting);
        assert_eq!(worker.unfinished_jobs(), 3);
        freeze(&base, false);
        assert_eq!(finish(&mut worker, job).exit_code, 3);
        freeze(&base, true);
    }
    freeze(&base, false);
    // A failure is told in one way or the other.
    match worker.start(Command::new("/nonexistent")) {
        Err(error) => assert_eq!(error.failure().map(StartFailure::step), Some(Step::Exec), "{error}"),
        Ok(job) => {
            let events = turn_until(&mut worker, |_, seen| seen.iter().any(|event| event.job() == job));
            assert!(matches!(events.last(), Some(Event::StartFailed { failure, .. }) if failure.step() == Step::Exec), "{events:?}");
        }
    }
    // A slot that comes free in time is taken.
    for (code, holder) in (0..).zip(holders) {
        thaw(&worker, holder);
        wait_until("the child is off", || has_executed(&worker, holder));
        let job = worker.start(Command::shell("exit 5")).unwrap();
        assert_eq!(worker.query(job).unwrap().rung, Rung::Detached);
        assert_eq!(finish(&mut worker, job).exit_code, 5);
        assert_eq!(finish(&mut worker, holder).exit_code, code);
    }
}

/// Whether a job's process has ended, or is another program than ours: what the kernel says, not the worker.
fn has_executed(worker: &Worker, job: JobId) -> bool {
    let path = format!("/proc/{}/exe", worker.query(job).unwrap().pid);
    fs::read_link(path).ok() != std::env::current_exe().ok()
}

#[test]
fn a_confirming_start_with_time_to_spare_does_not_wait_for_a_slot_that_does_not_come() {
    let Some((host, base)) = host_on_ice() else { return };
    let (mut worker, _) = held_worker(host.builder().confirm_timeout(DEADLINE), &base);
    let began = Instant::now();
    let job = worker.start(Command::shell("exit 3")).unwrap();
    assert!(began.elapsed() >= SLOT_WAIT && began.elapsed() < DEADLINE / 3, "{:?}", began.elapsed());
    let status = worker.query(job).unwrap();
    assert_eq!((status.rung, status.rung_reason), (Rung::ForkLike, RungReason::SlotsBusy), "{status:?}");
    assert_eq!(finish(&mut worker, job).exit_code, 3);
    let error = worker.start(Command::new("/nonexistent")).unwrap_err();
    assert_eq!(error.failure().map(StartFailure::step), Some(Step::Exec), "{error}");
}

#[test]
fn a_worker_that_goes_takes_children_that_hang_and_starts_that_wait_along() {
    isolated("a_worker_that_goes_takes_children_that_hang_and_starts_that_wait_along", || {
        let Some((host, base)) = host_on_ice() else { return };
        for rung in Rung::ALL {
            println!("on rung {rung}");
            let (before, maps, leaked) = (census(&host), Maps::take(), leaked_slots());
            let mut worker = host.builder().rung(rung).spawn_slots_max(2).confirm(false).build().unwrap();
            freeze(&base, true);
            let jobs: Vec<JobId> =
                (0..10).map(|number| worker.start(Command::new("true").capture(CAPTURES[number % 3])).unwrap()).collect();
            let waiting = jobs.iter().filter(|job| is_waiting(&worker, **job)).count();
            assert_eq!(waiting, if rung == Rung::Detached { 8 } else { 0 });
            let streams: Vec<LogStream> = jobs.iter().filter_map(|job| worker.stream(*job).ok()).collect();
            let began = Instant::now();
            drop(worker);
            assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
            for mut stream in streams {
                assert!(matches!(stream.try_fill_buf(), Poll::Ready(Ok([]))), "a reader waits for what will not come");
            }
            for name in host.logs() {
                fs::remove_file(host.log_dir.path().join(name)).unwrap();
            }
            assert_eq!(census(&host), before);
            assert_eq!((Maps::take().guards, leaked_slots()), (maps.guards, leaked));
            freeze(&base, false);
        }
    });
}

#[test]
fn the_workers_descriptor_tells_when_a_start_that_waits_can_go_on() {
    let Some((host, base)) = host_on_ice() else { return };
    let mut in_time = 0;
    for _ in 0..10 {
        let (mut worker, holders) = held_worker(host.builder().confirm(false), &base);
        turn_now(&mut worker);
        let job = worker.start(Command::shell("readlink /proc/self/fd/0; exit 3")).unwrap();
        assert!(is_waiting(&worker, job));
        for holder in holders {
            thaw(&worker, holder);
        }
        let mut seen = Vec::new();
        while !seen.iter().any(|event| matches!(event, Event::Finished { job: told, .. } if *told == job)) {
            assert!(is_readable(&worker, DEADLINE), "the descriptor stayed silent; seen: {seen:#?}");
            seen.extend(turn_now(&mut worker));
        }
        let status = worker.query(job).unwrap();
        // It has what it would have had at once.
        assert_eq!((status.exit_code, output_of(&status)), (3, b"/dev/null\n".to_vec()));
        in_time += u32::from(status.rung_reason == RungReason::Best);
    }
    assert!(in_time > 0, "no slot was ever given to a start that waited");
}

#[test]
fn the_workers_descriptor_is_quiet_while_children_hang() {
    let Some((host, base)) = host_on_ice() else { return };
    let (mut worker, _) = held_worker(host.builder().confirm(false), &base);
    let began = Instant::now();
    let mut turns = 0;
    while began.elapsed() < Duration::from_secs(1) {
        if is_readable(&worker, Duration::from_millis(10)) {
            turns += 1;
            assert!(turn_now(&mut worker).is_empty());
        }
    }
    // Ever more seldom, but for the first few every 64 ms.
    assert!(turns < 40, "{turns} turns for nothing");
}

// The host that has to live through it.

/// Memory of the host in many small blocks; a wild write would be seen.
struct Canary(Vec<Box<[u64]>>);

impl Canary {
    fn new(blocks: usize) -> Self {
        Self((0..blocks).map(|block| (0..=block % 97).map(|word| pattern(block, word)).collect()).collect())
    }

    fn check(&self) {
        for (block, words) in self.0.iter().enumerate() {
            assert!(words.iter().enumerate().all(|(index, word)| *word == pattern(block, index)), "block {block} was overwritten");
        }
    }
}

fn pattern(block: usize, word: usize) -> u64 {
    (block as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(word as u32 % 64) ^ word as u64
}

/// A thread of the host: takes and gives back memory that it finds as it left it, and makes system calls that fail as they must.
fn stand_by(number: u64, over: &AtomicBool, rounds: &AtomicU64) {
    let mut rng = Rng::with_seed(number);
    let mut blocks: VecDeque<Vec<u64>> = VecDeque::new();
    while !over.load(Ordering::Relaxed) {
        let (mark, words) = (rng.u64(..), rng.usize(1..2000));
        blocks.push_back((0..words as u64).map(|word| mark ^ word).collect());
        if blocks.len() > 100 {
            let block = blocks.pop_front().unwrap();
            assert!((0..).zip(&block).all(|(word, value): (u64, _)| block[0] ^ word == *value), "a block of a thread was overwritten");
        }
        check_errno();
        rounds.fetch_add(1, Ordering::Relaxed);
        if rng.u32(0..32) == 0 {
            // It is not the CPU that it is about.
            thread::sleep(Duration::from_micros(300));
        }
    }
}

/// Makes system calls that fail and looks whether the thread's errno tells of that one, at once and a moment later.
fn check_errno() {
    type Call = fn() -> io::Result<()>;
    let calls: [(Call, Errno); 4] = [
        (|| File::open("/nonexistent/file").map(drop), Errno::NOENT),
        (|| fs::create_dir("/"), Errno::EXIST),
        (|| fs::read_link("/").map(drop), Errno::INVAL),
        (|| fs::remove_file("/proc/self/stat/x"), Errno::NOTDIR),
    ];
    for (call, errno) in calls {
        assert_eq!(call().unwrap_err().raw_os_error(), Some(errno.raw_os_error()));
        std::hint::black_box((0..50).fold(0_u32, |sum, number| std::hint::black_box(sum ^ number)));
        assert_eq!(io::Error::last_os_error().raw_os_error(), Some(errno.raw_os_error()), "somebody has written this thread's errno");
    }
}

/// As [`Census::take`], but for the descriptors that it takes itself: their numbers are anybody's where other threads open files, too.
fn census(host: &Host) -> Census {
    let mut census = Census::take(host);
    census.fds.retain(|_, what| what != "/proc//fd");
    census
}

/// How many mappings this process has.
#[derive(Clone, Copy, Debug)]
struct Maps {
    all: usize,
    /// Small ones that nobody may touch: the guard pages of stacks, of slots among them.
    guards: usize,
}

impl Maps {
    fn take() -> Self {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let is_guard = |line: &&str| {
            let (range, rest) = line.split_once(' ').unwrap();
            let (first, end) = range.split_once('-').unwrap();
            let address = |text| u64::from_str_radix(text, 16).unwrap();
            rest.starts_with("---p") && address(end) - address(first) <= 64 << 10
        };
        Self { all: maps.lines().count(), guards: maps.lines().filter(is_guard).count() }
    }
}

struct OnDrop<'a>(&'a AtomicBool);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads a pipe to its end, which must come in time.
fn read_all(mut pipe: PipeReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        assert!(is_readable(&pipe, DEADLINE), "the pipe's end did not come in time");
        match pipe.read(&mut buffer).unwrap() {
            0 => return bytes,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

fn is_readable(fd: &impl AsFd, timeout: Duration) -> bool {
    let timeout = Timespec::try_from(timeout).unwrap();
    rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&timeout))).unwrap() > 0
}
