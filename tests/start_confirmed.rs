//! Promise: a confirmed start returns after the exec; one that is not, or not in time, leaves the job `Starting` and tells the rest by event. Either
//! way a job tells its life once, in order, and can be stopped at any moment of it.

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Census, DEADLINE, Host, finish, isolated, output_of, turn_until, wait_until};
use iron_exec::{Builder, CgroupBase, Command, Event, Events, Exit, JobId, JobState, Rung, Signal, Step, StopReason, Worker};

/// Runs `test` with a worker of every kind: on each rung, with cgroups and without.
fn each_way(settings: impl Fn(Builder) -> Builder, mut test: impl FnMut(&Host, &mut Worker)) {
    let host = Host::new();
    let bases: Vec<CgroupBase> = host.base.clone().map(CgroupBase::Path).into_iter().chain([CgroupBase::Off]).collect();
    for rung in Rung::ALL {
        for base in &bases {
            println!("on rung {rung}, {base:?}");
            let mut worker = settings(host.builder()).rung(rung).cgroup_base(base.clone()).build().unwrap();
            test(&host, &mut worker);
        }
    }
}

/// Turns the loop until every event of a job has come.
fn events_of(worker: &mut Worker, job: JobId) -> Vec<Event> {
    let is_last = |event: &Event| matches!(event, Event::Finished { .. } | Event::StartFailed { .. }) && event.job() == job;
    let mut events = turn_until(worker, |_, events| events.iter().any(is_last));
    // Nothing comes after the last.
    let mut rest = Events::new();
    worker.turn(&mut rest, Some(Duration::ZERO)).unwrap();
    events.extend(rest.drain());
    events.retain(|event| event.job() == job);
    events
}

fn state(worker: &Worker, job: JobId) -> JobState {
    worker.query(job).unwrap().state
}

/// Waits until the process is that program: when the host hears of the exec, the kernel is still at work on it.
fn wait_until_exe_is(worker: &Worker, job: JobId, program: &Path) {
    let link = format!("/proc/{}/exe", worker.query(job).unwrap().pid);
    wait_until("the program is there", || fs::read_link(&link).unwrap() == program);
}

#[test]
fn a_confirmed_start_returns_when_the_program_is_executed() {
    let shell = fs::canonicalize("/bin/sh").unwrap();
    each_way(
        |builder| builder.confirm_timeout(DEADLINE),
        |_, worker| {
            for _ in 0..20 {
                let job = worker.start(Command::new("/bin/sh").args(["-c", "cat; :"]).stdin_piped()).unwrap();
                assert_eq!(state(worker, job), JobState::Running);
                wait_until_exe_is(worker, job, &shell);
                drop(worker.take_stdin(job).unwrap());
                // The caller knows that it was started: no event says so again.
                let exit = Exit::Code(0);
                assert_eq!(events_of(worker, job), [Event::Exited { job, exit }, Event::Finished { job, exit }]);
            }
        },
    );
}

#[test]
fn a_start_that_is_not_confirmed_returns_at_once_and_tells_by_event() {
    let shell = fs::canonicalize("/bin/sh").unwrap();
    each_way(
        |builder| builder.confirm(false),
        |_, worker| {
            for _ in 0..20 {
                let job = worker.start(Command::new("/bin/sh").args(["-c", "cat; exit 3"]).stdin_piped()).unwrap();
                assert_eq!(state(worker, job), JobState::Starting, "only a turn can tell more");
                let events = turn_until(worker, |_, events| !events.is_empty());
                assert_eq!(events, [Event::Started { job }]);
                assert_eq!(state(worker, job), JobState::Running);
                wait_until_exe_is(worker, job, &shell);
                drop(worker.take_stdin(job).unwrap());
                let exit = Exit::Code(3);
                assert_eq!(events_of(worker, job), [Event::Exited { job, exit }, Event::Finished { job, exit }]);
            }
        },
    );
}

#[test]
fn a_job_tells_its_life_in_order_however_short_it_is() {
    each_way(
        |builder| builder.confirm(false),
        |_, worker| {
            for round in 0..20 {
                let jobs: Vec<JobId> = (0..5).map(|_| worker.start(Command::new("true")).unwrap()).collect();
                if round % 2 == 0 {
                    // All of it is over before the first turn.
                    common::wait_until("the jobs end", || jobs.iter().all(|job| is_zombie(worker.query(*job).unwrap().pid)));
                }
                let mut all = turn_until(worker, |_, events| {
                    events.iter().filter(|event| matches!(event, Event::Finished { .. })).count() == jobs.len()
                });
                for job in jobs {
                    let exit = Exit::Code(0);
                    let expected = [Event::Started { job }, Event::Exited { job, exit }, Event::Finished { job, exit }];
                    let of_job: Vec<Event> = all.extract_if(.., |event| event.job() == job).collect();
                    assert_eq!(of_job, expected);
                }
                assert_eq!(all, []);
            }
        },
    );
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" Z"))
}

#[test]
fn the_one_and_last_event_of_a_failed_start_says_so() {
    each_way(
        |builder| builder.confirm(false),
        |_, worker| {
            for command in [Command::new("no-such-program"), Command::new("true").cwd("/nonexistent")] {
                let job = worker.start(command).unwrap();
                let events = events_of(worker, job);
                let failure = worker.query(job).unwrap().failure.unwrap();
                assert_eq!(events, [Event::StartFailed { job, failure }]);
                assert_eq!(state(worker, job), JobState::Failed);
            }
            // Who waits is told, too.
            let status = worker.run_job(Command::new("no-such-program")).unwrap();
            assert_eq!((status.state, status.failure.map(|failure| failure.step())), (JobState::Failed, Some(Step::Exec)));
        },
    );
}

#[test]
fn what_a_command_says_about_confirmation_counts_more_than_what_the_worker_does() {
    each_way(
        |builder| builder.confirm(false).confirm_timeout(DEADLINE),
        |_, worker| {
            assert!(worker.start(Command::new("no-such-program").confirm(true)).is_err());
            let job = worker.start(Command::new("true").confirm(true)).unwrap();
            assert_eq!(state(worker, job), JobState::Running);
            finish(worker, job);
        },
    );
    each_way(
        |builder| builder.confirm(true),
        |_, worker| {
            let job = worker.start(Command::new("no-such-program").confirm(false)).unwrap();
            assert_eq!(state(worker, job), JobState::Starting);
            finish(worker, job);
        },
    );
}

#[test]
fn without_time_to_confirm_in_the_end_is_told_all_the_same() {
    each_way(
        |builder| builder.confirm_timeout(Duration::ZERO),
        |_, worker| {
            let mut by_event = 0;
            for _ in 0..20 {
                let job = worker.start(Command::new("true")).unwrap();
                // On another CPU the child may have been as quick as that.
                let was_starting = state(worker, job) == JobState::Starting;
                by_event += usize::from(was_starting);
                let events = events_of(worker, job);
                assert_eq!(events.contains(&Event::Started { job }), was_starting, "the start is told once");
                assert_eq!(events.len(), 2 + usize::from(was_starting));
                match worker.start(Command::new("no-such-program")) {
                    Ok(job) => assert!(matches!(events_of(worker, job)[..], [Event::StartFailed { .. }])),
                    Err(error) => assert_eq!(error.failure().unwrap().step(), Step::Exec),
                }
            }
            println!("{by_event} of 20 were not confirmed");
        },
    );
}

#[test]
fn a_job_that_is_starting_can_be_stopped() {
    let deaf = Command::new("/bin/sh").args(["-c", "trap '' TERM; cat"]).stdin_piped().confirm(false);
    each_way(
        |builder| builder,
        |host, worker| {
            for _ in 0..20 {
                let job = worker.start(Command::new("sleep").arg("1000").confirm(false)).unwrap();
                assert_eq!(state(worker, job), JobState::Starting);
                worker.stop(job).unwrap();
                assert_eq!(state(worker, job), JobState::Stopping);
                let exit = Exit::Signal { signal: Signal::KILL, core_dumped: false };
                let events = events_of(worker, job);
                assert!(events.ends_with(&[Event::Exited { job, exit }, Event::Finished { job, exit }]), "{events:?}");
                let status = worker.query(job).unwrap();
                assert_eq!((status.state, status.stop_reason), (JobState::Finished, Some(StopReason::Requested)));

                let job = worker.start(deaf.clone()).unwrap();
                worker.stop_with(job, Signal::TERM, Duration::from_millis(10)).unwrap();
                let status = finish(worker, job);
                assert!(matches!(status.signal(), Some(Signal::TERM | Signal::KILL)), "{status:?}");
                assert_eq!(status.stop_reason, Some(StopReason::Requested));
            }
            assert!(host.cgroups().is_empty());
        },
    );
}

// A child that is held before its exec: it is born into a frozen cgroup.

/// Freezes the base as long as it lives.
struct Frozen<'a>(&'a Path);

impl<'a> Frozen<'a> {
    fn new(base: &'a Path) -> Self {
        fs::write(base.join("cgroup.freeze"), "1").unwrap();
        Self(base)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.freeze"), "0");
    }
}

/// Runs `test` on every rung with a base of cgroups that can be frozen.
fn each_rung_frozen(test: impl Fn(&Host, &Path, &mut Worker)) {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let base = host.base.clone().unwrap();
    for rung in Rung::ALL {
        println!("on rung {rung}");
        let mut worker = host.builder().rung(rung).confirm_timeout(Duration::from_millis(20)).build().unwrap();
        test(&host, &base, &mut worker);
    }
}

#[test]
fn a_start_that_cannot_be_confirmed_in_time_goes_on_by_itself() {
    each_rung_frozen(|_, base, worker| {
        let frozen = Frozen::new(base);
        let began = Instant::now();
        let job = worker.start(Command::shell("echo thawed; cat").stdin_piped()).unwrap();
        assert!(began.elapsed() >= Duration::from_millis(20), "the confirmation was waited for");
        assert_eq!(state(worker, job), JobState::Starting);
        let mut events = Events::new();
        worker.turn(&mut events, Some(Duration::from_millis(20))).unwrap();
        assert_eq!((events.len(), state(worker, job)), (0, JobState::Starting));

        // The others do not wait for it: neither those that fail before the child, nor the loop.
        assert!(worker.start(Command::new("nul\0byte")).is_err());
        drop(frozen);
        assert_eq!(turn_until(worker, |_, events| !events.is_empty()), [Event::Started { job }]);
        assert_eq!(state(worker, job), JobState::Running);
        drop(worker.take_stdin(job).unwrap());
        let status = finish(worker, job);
        assert!(status.success());
        assert_eq!(output_of(&status), b"thawed\n");
    });
}

#[test]
fn a_failure_that_comes_too_late_to_be_returned_is_told_by_event() {
    each_rung_frozen(|host, base, worker| {
        let frozen = Frozen::new(base);
        let job = worker.start(Command::new("no-such-program")).unwrap();
        assert_eq!(state(worker, job), JobState::Starting);
        drop(frozen);
        let events = events_of(worker, job);
        let failure = worker.query(job).unwrap().failure.unwrap();
        assert_eq!((failure.step(), failure.errno()), (Step::Exec, 2));
        assert_eq!(events, [Event::StartFailed { job, failure }]);
        assert!(host.cgroups().is_empty() && host.logs().is_empty());
    });
}

#[test]
fn a_job_that_is_held_before_its_program_can_be_stopped_times_out_and_dies_with_the_worker() {
    isolated("a_job_that_is_held_before_its_program_can_be_stopped_times_out_and_dies_with_the_worker", || {
        each_rung_frozen(|host, base, worker| {
            let before = Census::take(host);
            let frozen = Frozen::new(base);
            let held = |worker: &mut Worker, command: Command| {
                let job = worker.start(command.confirm(false)).unwrap();
                assert_eq!(state(worker, job), JobState::Starting);
                job
            };
            let killed = |worker: &mut Worker, job: JobId, reason: StopReason| {
                let status = finish(worker, job);
                assert_eq!((status.state, status.exit_code), (JobState::Finished, -1));
                assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(reason)));
                assert_eq!((output_of(&status), status.cgroup_left), (vec![], false));
                fs::remove_file(status.log.unwrap()).unwrap();
            };
            let job = held(worker, Command::shell("echo never"));
            worker.stop(job).unwrap();
            killed(worker, job, StopReason::Requested);
            let job = held(worker, Command::shell("echo never"));
            worker.stop_with(job, Signal::TERM, Duration::from_millis(10)).unwrap();
            killed(worker, job, StopReason::Requested);
            let job = held(worker, Command::shell("echo never").timeout(Duration::from_millis(10)));
            killed(worker, job, StopReason::Timeout);
            assert_eq!(Census::take(host), before);
            drop(frozen);
        });

        let host = Host::new();
        let Some(base) = host.base.clone() else { return };
        for rung in Rung::ALL {
            let before = Census::take(&host);
            let mut worker = host.builder().rung(rung).confirm(false).build().unwrap();
            let frozen = Frozen::new(&base);
            let jobs = [(); 3].map(|()| worker.start(Command::shell("echo never")).unwrap());
            let logs = jobs.map(|job| worker.query(job).unwrap().log.unwrap());
            drop(worker);
            assert!(logs.iter().all(|log| fs::read(log).unwrap().is_empty()));
            for log in logs {
                fs::remove_file(log).unwrap();
            }
            drop(frozen);
            assert_eq!(Census::take(&host), before);
        }
    });
}
