//! Promise: what happens in a job's cgroup is told: that its processes stand still or go on, are slowed down, refused, killed for want of memory,
//! wait for a resource, or are gone; and nothing of it is lost where the kernel cannot keep up, or gives no notice at all.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Census, Host, finish, inotify_watches, isolated, open_fds, output_of, turn_until, wait_until};
use iron_exec::{
    Command, Event, Events, Exit, JobError, JobId, JobState, Limits, Pressure, PressureResource, Signal, Status, StopReason, TreePolicy,
    Worker,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// Waits until it is told that a job is frozen, or goes on; returns what was told of that on the way.
fn told_frozen(worker: &mut Worker, job: JobId, wanted: bool) -> Vec<bool> {
    let frozen = |event: &Event| match event {
        Event::Frozen { job: of, frozen } if *of == job => Some(*frozen),
        _ => None,
    };
    let seen = turn_until(worker, |_, seen| seen.iter().filter_map(frozen).next_back() == Some(wanted));
    assert_eq!(worker.query(job).unwrap().frozen, wanted);
    seen.iter().filter_map(frozen).collect()
}

fn cgroup_of(worker: &Worker, job: JobId) -> PathBuf {
    worker.query(job).unwrap().cgroup.expect("the job has a cgroup")
}

/// Whether the kernel says that all of a cgroup stands still.
fn is_frozen(cgroup: &Path) -> bool {
    fs::read_to_string(cgroup.join("cgroup.events")).unwrap().lines().any(|line| line == "frozen 1")
}

/// What happens within `time`; the loop is turned all the while.
fn turn_for(worker: &mut Worker, time: Duration) -> Vec<Event> {
    let deadline = Instant::now() + time;
    let mut events = Events::new();
    let mut seen = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        worker.turn(&mut events, Some(left)).unwrap();
        seen.extend(events.drain());
        if left.is_zero() {
            return seen;
        }
    }
}

/// The times at which an event was told, the first `count` of them.
fn times_of(worker: &mut Worker, count: usize, is_it: impl Fn(&Event) -> bool) -> Vec<Instant> {
    let mut times = Vec::new();
    let mut looked_at = 0;
    turn_until(worker, |_, seen| {
        times.extend(seen[looked_at..].iter().filter(|event| is_it(event)).map(|_| Instant::now()));
        looked_at = seen.len();
        times.len() >= count
    });
    times
}

/// The times between one and the next, less what a busy machine may be late with the first of two.
fn assert_apart(times: &[Instant], least: Duration) {
    let in_all = *times.last().unwrap() - times[0];
    let slack = Duration::from_millis(300);
    assert!(in_all + slack >= least * u32::try_from(times.len() - 1).unwrap(), "{in_all:?} for {} times", times.len());
}

fn place_of(events: &[Event], wanted: &Event) -> usize {
    events.iter().position(|event| event == wanted).unwrap_or_else(|| panic!("no {wanted:?} in {events:?}"))
}

#[test]
fn a_job_that_is_frozen_and_goes_on_tells_both_in_order_and_ends_as_it_would_have() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::shell("cat; exit 3").stdin_piped()).unwrap();
    let mut stdin = worker.take_stdin(job).unwrap().unwrap();
    let cgroup = cgroup_of(&worker, job);
    assert!(!worker.query(job).unwrap().frozen);
    for round in 1..=5 {
        worker.freeze(job).unwrap();
        // It is so already: nothing more is told.
        worker.freeze(job).unwrap();
        assert_eq!(told_frozen(&mut worker, job, true), [true]);
        assert!(is_frozen(&cgroup));
        stdin.write_all(b"line\n").unwrap();
        assert_eq!(turn_for(&mut worker, Duration::from_millis(20)), []);
        assert_eq!(worker.query(job).unwrap().output.lines, round - 1, "it stands still");
        worker.thaw(job).unwrap();
        worker.thaw(job).unwrap();
        assert_eq!(told_frozen(&mut worker, job, false), [false]);
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == round);
    }
    worker.freeze(job).unwrap();
    told_frozen(&mut worker, job, true);
    drop(stdin);
    assert_eq!(turn_for(&mut worker, Duration::from_millis(20)), []);
    assert_eq!(worker.query(job).unwrap().state, JobState::Running);
    worker.thaw(job).unwrap();
    let events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
    assert!(events.contains(&Event::Exited { job, exit: Exit::Code(3) }), "{events:?}");
    let status = worker.query(job).unwrap();
    assert!(!status.frozen && !status.cgroup_left && status.exit_code == 3, "{status:?}");
    assert_eq!(output_of(&status), b"line\n".repeat(5));
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn a_job_that_forks_all_the_time_is_frozen_and_thawed_and_killed_whole() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let storm = "storm() { while :; do (:); done; }; storm & storm & storm & storm & echo ready; wait";
    let job = worker.start(Command::shell(storm)).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    let cgroup = cgroup_of(&worker, job);
    for _ in 0..5 {
        worker.freeze(job).unwrap();
        assert_eq!(told_frozen(&mut worker, job, true), [true]);
        let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap();
        assert!(processes.lines().count() >= 4, "{processes}");
        assert_eq!(turn_for(&mut worker, Duration::from_millis(20)), []);
        assert_eq!(fs::read_to_string(cgroup.join("cgroup.procs")).unwrap(), processes, "none came, none went");
        worker.thaw(job).unwrap();
        assert_eq!(told_frozen(&mut worker, job, false), [false]);
    }
    worker.freeze(job).unwrap();
    told_frozen(&mut worker, job, true);
    worker.stop(job).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.signal(), status.cgroup_left, status.frozen), (Some(Signal::KILL), false, false));
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn a_stop_kills_a_frozen_job_and_so_does_its_timeout() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let script = "trap '' TERM; sleep 1000 & setsid sleep 1000 & wait";
    let stopped = worker.start(Command::shell(script)).unwrap();
    worker.freeze(stopped).unwrap();
    told_frozen(&mut worker, stopped, true);
    worker.stop(stopped).unwrap();
    let status = finish(&mut worker, stopped);
    assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Requested)));
    assert!(!status.frozen && !status.cgroup_left, "{status:?}");

    let timed = worker.start(Command::shell(script).timeout(Duration::from_millis(500))).unwrap();
    worker.freeze(timed).unwrap();
    let status = finish(&mut worker, timed);
    assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Timeout)));
    assert!(!status.frozen && !status.cgroup_left, "{status:?}");
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn a_gentle_stop_of_a_frozen_job_that_would_answer_it_kills_after_the_grace() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let grace = Duration::from_millis(300);
    let mut worker = host.worker();
    // The shell would say that its sleep was ended, or not.
    let script = "exec 2>/dev/null; trap 'echo heard; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    for is_thawed in [false, true] {
        let job = worker.start(Command::shell(script)).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
        worker.freeze(job).unwrap();
        told_frozen(&mut worker, job, true);
        let began = Instant::now();
        worker.stop_with(job, Signal::TERM, if is_thawed { common::DEADLINE } else { grace }).unwrap();
        if is_thawed {
            worker.thaw(job).unwrap();
        }
        let status = finish(&mut worker, job);
        if is_thawed {
            assert_eq!((status.exit_code, output_of(&status)), (9, b"ready\nheard\n".to_vec()), "{status:?}");
        } else {
            assert!(began.elapsed() >= grace && status.signal() == Some(Signal::KILL), "{status:?}");
            assert_eq!(output_of(&status), b"ready\n");
        }
        assert_eq!(status.stop_reason, Some(StopReason::Requested));
    }
}

#[test]
fn a_gentle_stop_of_a_frozen_job_that_has_no_answer_ends_it_within_the_grace_or_after_it() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::new("sleep").args(["1000"])).unwrap();
    worker.freeze(job).unwrap();
    told_frozen(&mut worker, job, true);
    worker.stop_with(job, Signal::TERM, Duration::from_millis(300)).unwrap();
    let status = finish(&mut worker, job);
    // The kernel lets a frozen process die of a signal that it does not handle.
    assert!([Some(Signal::TERM), Some(Signal::KILL)].contains(&status.signal()), "{status:?}");
    println!("ended by {:?} after {:?}", status.signal(), status.run_time);
    assert!(!status.frozen && !status.cgroup_left, "{status:?}");
}

#[test]
fn what_has_outlived_the_main_process_is_frozen_and_thawed_too() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::shell("exec 3<&0; cat <&3 & exit 4").stdin_piped().tree(TreePolicy::Wait)).unwrap();
    let stdin = worker.take_stdin(job).unwrap();
    turn_until(&mut worker, |_, seen| seen.contains(&Event::Exited { job, exit: Exit::Code(4) }));
    worker.freeze(job).unwrap();
    assert_eq!(told_frozen(&mut worker, job, true), [true]);
    drop(stdin);
    assert_eq!(turn_for(&mut worker, Duration::from_millis(50)), []);
    assert_eq!(worker.query(job).unwrap().state, JobState::Draining);
    worker.thaw(job).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.exit_code, status.cgroup_left, status.frozen), (4, false, false));
}

#[test]
fn a_job_that_is_over_cannot_be_frozen_nor_one_without_a_cgroup() {
    let host = Host::new();
    let pressure = Pressure::some(Duration::from_millis(100), Duration::from_secs(1));
    let mut bare = host.builder().cgroup_base(iron_exec::CgroupBase::Off).build().unwrap();
    let job = bare.start(Command::new("cat").stdin_piped()).unwrap();
    for over in [false, true] {
        assert!(matches!(bare.freeze(job), Err(JobError::NoCgroup { job: of, .. }) if of == job));
        assert!(matches!(bare.thaw(job), Err(JobError::NoCgroup { .. })));
        assert!(matches!(bare.watch_pressure(job, PressureResource::Cpu, &pressure), Err(JobError::NoCgroup { .. })));
        assert!(matches!(bare.unwatch_pressure(job, PressureResource::Cpu), Err(JobError::NoCgroup { .. })));
        if !over {
            drop(bare.take_stdin(job).unwrap());
            assert!(finish(&mut bare, job).success());
        }
    }
    drop(bare);

    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::new("true")).unwrap();
    finish(&mut worker, job);
    assert!(matches!(worker.freeze(job), Err(JobError::Ended { job: of }) if of == job));
    assert!(matches!(worker.thaw(job), Err(JobError::Ended { .. })));
    assert!(matches!(worker.watch_pressure(job, PressureResource::Io, &pressure), Err(JobError::Ended { .. })));
    assert!(matches!(worker.unwatch_pressure(job, PressureResource::Io), Err(JobError::Ended { .. })));
    assert!(!worker.query(job).unwrap().frozen);
    worker.forget(job).unwrap();
    assert!(matches!(worker.freeze(job), Err(JobError::NotFound { .. })));
    assert!(matches!(worker.watch_pressure(job, PressureResource::Io, &pressure), Err(JobError::NotFound { .. })));
}

#[test]
fn an_empty_tree_is_told_of_jobs_whose_descendants_outlive_them_and_of_no_others() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let plain = ["exit 5", "(:); (sleep 0.02) & wait; exit 5", "sleep 0.01; exit 5"];
    for round in 0..common::rounds(60) {
        let policy = if round % 2 == 0 { TreePolicy::Wait } else { TreePolicy::Kill };
        let job = worker.start(Command::shell(plain[round % plain.len()]).tree(policy)).unwrap();
        let over = Event::Finished { job, exit: Exit::Code(5) };
        let events = turn_until(&mut worker, |_, seen| seen.contains(&over));
        assert!(!events.contains(&Event::TreeEmpty { job }), "{round}: {events:?}");
        // Its descendants hold no pipe, or this one.
        for output in ["</dev/null >/dev/null 2>&1", ""] {
            let job = worker.start(Command::shell(format!("(sleep 0.05) {output} & exit 6")).tree(TreePolicy::Wait)).unwrap();
            let over = Event::Finished { job, exit: Exit::Code(6) };
            let events = turn_until(&mut worker, |_, seen| seen.contains(&over));
            let exited = place_of(&events, &Event::Exited { job, exit: Exit::Code(6) });
            let empty = place_of(&events, &Event::TreeEmpty { job });
            assert!(exited < empty && empty < place_of(&events, &over), "{events:?}");
            assert_eq!(events.iter().filter(|event| **event == Event::TreeEmpty { job }).count(), 1);
        }
    }
    assert_eq!(host.cgroups(), [""; 0]);
}

/// The shortest window that every kernel takes from a host without CAP_SYS_RESOURCE.
const WINDOW: Duration = Duration::from_secs(2);

/// Twice as many loops as there are CPUs: each of them waits half of the time.
fn start_busy_loops(worker: &mut Worker) -> JobId {
    let loops = 2 * std::thread::available_parallelism().unwrap().get();
    let script = format!("i=0; while [ $i -lt {loops} ]; do (while :; do :; done) & i=$((i+1)); done; wait");
    worker.start(Command::shell(script)).unwrap()
}

/// Whether the kernel does not measure pressure: the test is skipped then.
fn has_no_pressure(host: &Host) -> bool {
    if host.has_no_cgroups() {
        return true;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::new("sleep").args(["1000"])).unwrap();
    let watched = worker.watch_pressure(job, PressureResource::Cpu, &Pressure::some(Duration::from_millis(100), WINDOW));
    worker.stop(job).unwrap();
    finish(&mut worker, job);
    let absent = [Errno::NOENT, Errno::OPNOTSUPP].map(|errno| Some(errno.raw_os_error()));
    match watched {
        Ok(()) => false,
        Err(JobError::Io { source, .. }) if absent.contains(&source.raw_os_error()) => {
            common::cannot_run("the kernel does not measure pressure")
        }
        Err(error) => panic!("{error:?}"),
    }
}

/// What of this process a trigger could leave behind.
fn held(host: &Host) -> (BTreeMap<i32, String>, Vec<String>, usize, Vec<String>) {
    let Census { fds, children, watches, cgroups, .. } = Census::take(host);
    (fds, children, watches, cgroups)
}

fn pressure_is_told_while_it_is_asked_about() {
    let host = Host::new();
    if has_no_pressure(&host) {
        return;
    }
    let (cpu, window) = (PressureResource::Cpu, WINDOW);
    let often = Pressure::some(Duration::from_millis(100), window);
    // All of its processes, all of the time: that never is, for loops.
    let never = Pressure::full(Duration::from_secs(10), Duration::from_secs(10));
    let mut worker = host.worker();
    let first = worker.start(Command::new("true")).unwrap();
    finish(&mut worker, first);
    let before = held(&host);

    let job = start_busy_loops(&mut worker);
    let told = Event::Pressure { job, resource: cpu };
    turn_for(&mut worker, Duration::ZERO);
    let running = open_fds();
    worker.watch_pressure(job, cpu, &often).unwrap();
    assert_eq!(open_fds().len(), running.len() + 1, "a trigger is a descriptor");
    assert_apart(&times_of(&mut worker, 2, |event| *event == told), window);

    worker.watch_pressure(job, cpu, &never).unwrap();
    assert_eq!(open_fds().len(), running.len() + 1, "it has taken the place of the other");
    turn_for(&mut worker, Duration::ZERO);
    assert!(!turn_for(&mut worker, window + window / 4).contains(&told), "the first one is forgotten");

    worker.watch_pressure(job, cpu, &often).unwrap();
    turn_until(&mut worker, |_, seen| seen.contains(&told));
    // One that is refused changes nothing.
    let millis = Duration::from_millis;
    for (threshold, window) in [(100, 499), (100, 10_001), (0, 1000), (2000, 1999)] {
        for pressure in [Pressure::some(millis(threshold), millis(window)), Pressure::full(millis(threshold), millis(window))] {
            assert!(matches!(worker.watch_pressure(job, cpu, &pressure), Err(JobError::InvalidPressure { job: of }) if of == job));
        }
    }
    turn_until(&mut worker, |_, seen| seen.contains(&told));

    worker.unwatch_pressure(job, cpu).unwrap();
    worker.unwatch_pressure(job, cpu).unwrap();
    assert_eq!(open_fds(), running, "the descriptor was given back");
    turn_for(&mut worker, Duration::ZERO);
    assert!(!turn_for(&mut worker, window + window / 4).contains(&told), "nobody asks any more");

    for resource in PressureResource::ALL {
        worker.watch_pressure(job, resource, &often).unwrap();
    }
    assert_eq!(open_fds().len(), running.len() + 3);
    worker.stop(job).unwrap();
    finish(&mut worker, job);
    turn_for(&mut worker, Duration::ZERO);
    assert_eq!(held(&host), before);
}

#[test]
fn pressure_is_told_while_it_is_asked_about_and_its_descriptors_are_given_back() {
    isolated("pressure_is_told_while_it_is_asked_about_and_its_descriptors_are_given_back", pressure_is_told_while_it_is_asked_about);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn pressure_is_told_by_an_older_kernel_too() {
    isolated("pressure_is_told_by_an_older_kernel_too", pressure_is_told_while_it_is_asked_about);
}

#[test]
fn a_trigger_that_is_armed_does_not_wake_an_idle_worker() {
    let host = Host::new();
    if has_no_pressure(&host) {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::new("sleep").args(["1000"])).unwrap();
    for resource in PressureResource::ALL {
        worker.watch_pressure(job, resource, &Pressure::some(WINDOW / 2, WINDOW)).unwrap();
    }
    // What the start had to tell.
    turn_for(&mut worker, Duration::from_millis(100));
    let wait = Timespec { tv_sec: 0, tv_nsec: 800_000_000 };
    let ready = rustix::event::poll(&mut [PollFd::new(&worker, PollFlags::IN)], Some(&wait)).unwrap();
    assert_eq!(ready, 0);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_above_memory_high_is_told_at_most_once_a_second() {
    let host = Host::new();
    let mut worker = host.worker();
    let greedy = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
    let job = worker.start(greedy.limits(Limits::new().memory_high(10 << 20))).unwrap();
    let times = times_of(&mut worker, 3, |event| *event == Event::MemoryHigh { job });
    assert_apart(&times, Duration::from_secs(1));
    assert!(!worker.query(job).unwrap().is_finished(), "it is slowed down, not killed");
    worker.stop(job).unwrap();
    let status = finish(&mut worker, job);
    assert!(!status.oom_killed && status.cgroup_usage.unwrap().memory.unwrap().events.high >= 3);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_at_its_pids_max_is_told_at_most_once_a_second() {
    let host = Host::new();
    let mut worker = host.worker();
    // The inner shell is the second process; it is refused a third one, and ends.
    let script = "while :; do sh -c '(:); :' 2>/dev/null; done";
    let job = worker.start(Command::shell(script).limits(Limits::new().pids_max(2))).unwrap();
    let times = times_of(&mut worker, 3, |event| *event == Event::PidsMax { job });
    assert_apart(&times, Duration::from_secs(1));
    worker.stop(job).unwrap();
    let status = finish(&mut worker, job);
    assert!(status.cgroup_usage.unwrap().pids.unwrap().max_events >= 3);
}

/// A setting of the kernel's, changed until this goes.
struct Sysctl {
    path: &'static str,
    before: String,
}

impl Sysctl {
    fn set(path: &'static str, value: &str) -> Self {
        let before = fs::read_to_string(path).unwrap();
        fs::write(path, value).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap().trim(), value);
        Self { path, before }
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        fs::write(self.path, &self.before).unwrap();
    }
}

/// A worker whose inotify instance has room for two notices.
fn worker_without_room_for_notices(host: &Host) -> Worker {
    // An instance keeps what held when it was made.
    let _few = Sysctl::set("/proc/sys/fs/inotify/max_queued_events", "2");
    host.worker()
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn when_notices_overflow_every_tree_that_has_ended_is_seen_all_the_same() {
    const JOBS: usize = 50;
    let host = Host::new();
    let mut worker = worker_without_room_for_notices(&host);
    let script = "sleep 1000 </dev/null >/dev/null 2>&1 & exit 7";
    let jobs: Vec<JobId> = (0..JOBS).map(|_| worker.start(Command::shell(script).tree(TreePolicy::Wait)).unwrap()).collect();
    turn_until(&mut worker, |worker, _| jobs.iter().all(|job| worker.query(*job).unwrap().state == JobState::Draining));
    // By now the loop has looked for itself as often as it does.
    turn_for(&mut worker, Duration::from_millis(200));
    assert_eq!(worker.unfinished_jobs(), JOBS);
    let cgroups: Vec<PathBuf> = jobs.iter().map(|job| cgroup_of(&worker, *job)).collect();
    for cgroup in &cgroups {
        fs::write(cgroup.join("cgroup.kill"), "1").unwrap();
    }
    let is_empty = |cgroup: &PathBuf| fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("populated 0");
    wait_until("all of them are empty", || cgroups.iter().all(is_empty));
    let events = turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
    for job in jobs {
        place_of(&events, &Event::TreeEmpty { job });
        assert_eq!(worker.query(job).unwrap().exit_code, 7);
    }
    assert_eq!((host.cgroups(), inotify_watches()), (Vec::new(), 0));
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn when_notices_overflow_every_job_that_ran_out_of_memory_is_told() {
    const JOBS: usize = 8;
    let host = Host::new();
    let mut worker = worker_without_room_for_notices(&host);
    let script = "read go; dd if=/dev/zero of=/dev/null bs=60M count=1 2>/dev/null; sleep 1000";
    let limits = Limits::new().memory_max(20 << 20).memory_oom_group(false);
    let start = |worker: &mut Worker| worker.start(Command::shell(script).limits(limits.clone()).stdin_piped()).unwrap();
    let jobs: Vec<JobId> = (0..JOBS).map(|_| start(&mut worker)).collect();
    turn_for(&mut worker, Duration::from_millis(100));
    for job in &jobs {
        worker.take_stdin(*job).unwrap().unwrap().write_all(b"go\n").unwrap();
    }
    let cgroups: Vec<PathBuf> = jobs.iter().map(|job| cgroup_of(&worker, *job)).collect();
    let is_killed = |cgroup: &PathBuf| fs::read_to_string(cgroup.join("memory.events")).unwrap().lines().any(|line| line == "oom_kill 1");
    wait_until("a process of each was killed", || cgroups.iter().all(is_killed));
    let events = turn_until(&mut worker, |_, seen| jobs.iter().all(|job| seen.contains(&Event::OutOfMemory { job: *job })));
    for job in jobs {
        assert_eq!(events.iter().filter(|event| **event == Event::OutOfMemory { job }).count(), 1);
        worker.stop(job).unwrap();
        assert!(!finish(&mut worker, job).oom_killed, "the main process was not killed for it");
    }
    assert_eq!(inotify_watches(), 0);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn without_a_single_watch_jobs_end_and_are_judged_all_the_same() {
    isolated("without_a_single_watch_jobs_end_and_are_judged_all_the_same", || {
        let host = Host::new();
        let _none = Sysctl::set("/proc/sys/fs/inotify/max_user_watches", "0");
        let mut worker = host.builder().drain_idle_max(Duration::from_millis(50)).build().unwrap();
        let run = |worker: &mut Worker, command: Command| -> (Status, Vec<Event>) {
            let job = worker.start(command).unwrap();
            let events =
                turn_until(worker, |_, seen| seen.iter().any(|event| matches!(event, Event::Finished { job: of, .. } if *of == job)));
            let status = worker.query(job).unwrap();
            assert!(!status.cgroup_left && inotify_watches() == 0, "{status:?}");
            (status, events)
        };
        for (script, policy) in [("setsid sleep 1000 & exit 5", TreePolicy::Kill), ("sleep 0.3 & exit 5", TreePolicy::Wait)] {
            assert_eq!(run(&mut worker, Command::shell(script).tree(policy)).0.exit_code, 5);
        }
        let greedy = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"]);
        let (status, events) = run(&mut worker, greedy.limits(Limits::new().memory_max(20 << 20)));
        assert!(status.oom_killed && status.signal() == Some(Signal::KILL), "{status:?}");
        let exit = status.exit.unwrap();
        assert!(place_of(&events, &Event::OutOfMemory { job: status.id }) < place_of(&events, &Event::Exited { job: status.id, exit }));
        let refused = Command::shell("(:) 2>/dev/null; exit 0").limits(Limits::new().pids_max(1));
        let (status, events) = run(&mut worker, refused);
        assert_ne!(status.exit_code, 0);
        place_of(&events, &Event::PidsMax { job: status.id });

        let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
        let refused = worker.freeze(job);
        assert!(
            matches!(&refused, Err(JobError::Io { source, .. }) if source.raw_os_error() == Some(Errno::NOSPC.raw_os_error())),
            "{refused:?}"
        );
        // It was not frozen without anybody to tell of it.
        drop(worker.take_stdin(job).unwrap());
        assert!(finish(&mut worker, job).success());
        assert_eq!(host.cgroups(), [""; 0]);
    });
}
