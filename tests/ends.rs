//! Promise: jobs end in stages and each is decided: exit, end of output, empty cgroup, in whatever order, with whatever is left of the tree.

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::{Census, Host, finish, isolated, isolated_ignoring_sigchld, output_of, turn_until};
use iron_exec::{CgroupBase, Command, Event, Exit, JobError, JobId, JobState, ProcessRunner, Rung, Signal, StopReason, TreePolicy, Worker};

/// A worker for every rung, with cgroups and without.
fn every_worker(host: &Host) -> Vec<(String, Worker)> {
    let mut workers = Vec::new();
    for rung in Rung::ALL {
        let patient = || host.builder().rung(rung).confirm_timeout(common::DEADLINE);
        let tight = || patient().drain_idle_max(Duration::from_millis(300)).drain_total_max(Duration::from_secs(2));
        workers.push((format!("{rung} without cgroups"), tight().cgroup_base(CgroupBase::Off).build().unwrap()));
        if host.base.is_some() {
            workers.push((format!("{rung} with cgroups"), tight().build().unwrap()));
        }
    }
    workers
}

fn run(worker: &mut Worker, command: Command) -> iron_exec::Status {
    let job = worker.start(command).unwrap();
    finish(worker, job)
}

/// The number that a job printed on a line of its own after `label`.
fn printed(status: &iron_exec::Status, label: &str) -> i32 {
    let output = String::from_utf8(output_of(status)).unwrap();
    let line = output.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_else(|| panic!("no {label} in {output:?}"));
    line.trim().parse().unwrap()
}

#[test]
fn every_exit_code_and_signal_is_right() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        for code in [0, 1, 2, 126, 127, 128, 255] {
            let status = run(&mut worker, Command::shell(format!("exit {code}")));
            assert_eq!((status.state, status.exit_code, status.exit), (JobState::Finished, code, Some(Exit::Code(code))), "{what}");
            assert_eq!(status.success(), code == 0);
            assert!(status.usage.is_some() && status.finished.is_some() && status.stop_reason.is_none());
        }
        for signal in [Signal::TERM, Signal::KILL, Signal::new(40).unwrap()] {
            let status = run(&mut worker, Command::shell(format!("kill -{} $$", signal.number())));
            assert_eq!((status.exit_code, status.signal()), (-1, Some(signal)), "{what}");
        }
        assert_eq!(worker.unfinished_jobs(), 0);
    }
}

#[test]
fn usage_and_times_are_those_of_the_job() {
    let host = Host::new();
    let mut worker = host.worker();
    let status = run(&mut worker, Command::shell("i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"));
    let usage = status.usage.unwrap();
    assert!(usage.user + usage.system > Duration::from_millis(20), "{usage:?}");
    assert!(usage.max_rss_bytes > 100_000, "{usage:?}");
    assert!(status.run_time >= usage.user && status.run_time < Duration::from_secs(20), "{status:?}");
    let by_wall_clock = status.finished.unwrap().duration_since(status.started).unwrap();
    assert!(by_wall_clock + Duration::from_millis(50) >= status.run_time);
}

#[test]
fn a_daemon_that_keeps_the_pipes_open_is_killed_with_its_tree_and_its_output_kept() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    for rung in Rung::ALL {
        for talk in ["", "while :; do echo chatter; done;"] {
            let mut worker = host.builder().rung(rung).build().unwrap();
            // Twice forked, in a session of its own: nothing but the cgroup holds it.
            let script = format!("echo first; (setsid sh -c 'echo daemon $$; {talk} sleep 1000' &) ; read line; exit 5");
            let job = worker.start(Command::shell(script).stdin_piped()).unwrap();
            turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines >= 2);
            let daemon = {
                let log = worker.query(job).unwrap().log.unwrap();
                let text = String::from_utf8_lossy(&common::read_log(&log)).into_owned();
                text.lines().find_map(|line| line.strip_prefix("daemon ")).unwrap().parse::<i32>().unwrap()
            };
            assert!(common::process_exists(daemon));
            drop(worker.take_stdin(job).unwrap());
            let status = finish(&mut worker, job);
            assert_eq!((status.state, status.exit_code), (JobState::Finished, 5));
            assert!(!status.output.cut_off && !status.cgroup_left, "{status:?}");
            assert!(output_of(&status).starts_with(b"first\ndaemon "));
            common::wait_until("the daemon is gone", || !common::process_runs(daemon));
            assert_eq!(host.cgroups(), [""; 0]);
        }
    }
}

#[test]
fn without_cgroups_an_escaped_daemon_holds_the_job_no_longer_than_the_drain_allows() {
    isolated("without_cgroups_an_escaped_daemon_holds_the_job_no_longer_than_the_drain_allows", || {
        let host = Host::new();
        // One that talks all the time may still be let talk late, on a busy machine.
        let (idle, busy, total) = (Duration::from_millis(200), Duration::from_millis(900), Duration::from_secs(1));
        for (talk, idle_max, limit) in [("", idle, idle), ("while :; do echo chatter; done;", busy, busy)] {
            for rung in Rung::ALL {
                let builder = host.builder().cgroup_base(CgroupBase::Off).rung(rung);
                let mut worker = builder.drain_idle_max(idle_max).drain_total_max(total).build().unwrap();
                let began = Instant::now();
                let status = run(
                    &mut worker,
                    Command::shell(format!("(setsid sh -c 'echo daemon $$; {talk} exec sleep 1000' &); sleep 0.1; exit 4")),
                );
                let took = began.elapsed();
                assert_eq!((status.exit_code, status.output.cut_off), (4, true), "{status:?}");
                assert!(took >= limit && took < limit + Duration::from_secs(5), "{took:?}");
                let daemon = printed(&status, "daemon ");
                // It is ours only by ancestry: the test ends what the job left.
                let pid = rustix::process::Pid::from_raw(daemon).unwrap();
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    });
}

#[test]
fn children_in_the_group_are_killed_when_the_main_process_exits_also_without_cgroups() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let status = run(&mut worker, Command::shell("sleep 1000 & echo child $!; exit 6"));
        assert_eq!((status.exit_code, status.output.cut_off), (6, false), "{what}");
        let child = printed(&status, "child ");
        common::wait_until("the child is gone", || !common::process_runs(child));
    }
}

#[test]
fn a_job_that_waits_for_its_tree_ends_with_the_last_of_it() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let command = Command::shell("(sleep 0.3; echo late) & echo early; exit 7").tree(TreePolicy::Wait);
        let job = worker.start(command).unwrap();
        let events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
        let status = worker.query(job).unwrap();
        assert_eq!((status.exit_code, output_of(&status)), (7, b"early\nlate\n".to_vec()), "{what}");
        assert!(events.contains(&Event::Exited { job, exit: Exit::Code(7) }), "{what}: {events:?}");
        let in_all = status.finished.unwrap().duration_since(status.started).unwrap();
        assert!(status.run_time + Duration::from_millis(100) < in_all, "the run time is the main process's: {:?}", status.run_time);
    }
}

#[test]
fn a_stop_ends_a_wait_for_the_tree() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let job = worker.start(Command::shell("sleep 1000 & echo child $!; exit 0").tree(TreePolicy::Wait)).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().state == JobState::Draining);
        worker.stop(job).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, status.stop_reason), (0, Some(StopReason::Requested)), "{what}");
        let child = printed(&status, "child ");
        common::wait_until("the child is gone", || !common::process_runs(child));
    }
}

#[test]
fn stop_kills_the_whole_tree_at_once() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let job = worker.start(Command::shell("trap '' TERM INT HUP; sleep 1000 & echo child $!; sleep 1000")).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
        worker.stop(job).unwrap();
        assert_eq!(worker.query(job).unwrap().state, JobState::Stopping, "{what}");
        let status = finish(&mut worker, job);
        assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Requested)), "{what}");
        let child = printed(&status, "child ");
        common::wait_until("the child is gone", || !common::process_runs(child));
        // Again, on a job that is over: nothing, and no error.
        worker.stop(job).unwrap();
    }
}

#[test]
fn a_fork_bomb_is_cleared_by_one_stop() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    // A bomb of bounded size: a thousand processes, each in a session of its own, forking on as long as they live.
    let bomb =
        "i=0; while [ $i -lt 200 ]; do setsid sh -c 'while :; do sleep 1000 & sleep 1000; done' & i=$((i+1)); done; echo armed; wait";
    let job = worker.start(Command::shell(bomb)).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
    worker.stop(job).unwrap();
    let status = finish(&mut worker, job);
    assert!(!status.cgroup_left, "{status:?}");
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn a_gentle_stop_gives_the_program_its_chance_and_then_none() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let polite = "exec 2>/dev/null; trap 'echo bye; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
        let job = worker.start(Command::shell(polite)).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
        worker.stop_with(job, Signal::TERM, Duration::from_secs(20)).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, output_of(&status)), (9, b"ready\nbye\n".to_vec()), "{what}");

        let job = worker.start(Command::shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
        let began = Instant::now();
        worker.stop_with(job, Signal::TERM, Duration::from_millis(100)).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(status.signal(), Some(Signal::KILL), "{what}");
        assert!(began.elapsed() >= Duration::from_millis(100), "{what}: the grace time was given");
    }
}

#[test]
fn a_signal_reaches_the_main_process_only_while_there_is_one() {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let job = worker.start(Command::shell("trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.01; done")).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
        worker.signal(job, Signal::USR1).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, status.stop_reason), (3, None), "{what}");
        assert!(matches!(worker.signal(job, Signal::USR1), Err(JobError::Ended { .. })), "{what}");
    }
}

#[test]
fn a_job_that_makes_cgroups_of_its_own_is_cleaned_up_from_the_bottom() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let base = host.base.clone().unwrap();
    let script = format!(
        "own={}/$(basename $(sed -n s/^0:://p /proc/self/cgroup)); mkdir -p $own/a/b $own/c; sleep 1000 & echo $! > $own/a/b/cgroup.procs; exit 0",
        base.display()
    );
    let status = run(&mut worker, Command::shell(script));
    assert_eq!((status.exit_code, status.cgroup_left), (0, false), "{status:?}");
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn watches_go_with_their_cgroups() {
    isolated("watches_go_with_their_cgroups", || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        let mut worker = host.worker();
        let mut watches = Vec::new();
        for _ in 0..20 {
            let job = worker.start(Command::shell("setsid sleep 0.05 & exit 0").tree(TreePolicy::Wait)).unwrap();
            turn_until(&mut worker, |worker, _| {
                watches.push(common::inotify_watches());
                worker.query(job).unwrap().is_finished()
            });
        }
        assert_eq!(watches.iter().max(), Some(&1), "a tree that is waited for is watched");
        assert_eq!(common::inotify_watches(), 0);
        assert_eq!(host.cgroups(), [""; 0]);
    });
}

#[test]
fn a_cgroup_that_somebody_else_removed_first_is_no_matter() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::shell("read line; exit 2").stdin_piped()).unwrap();
    let cgroup = worker.query(job).unwrap().cgroup.unwrap();
    // The job is moved out of its cgroup, and that is removed.
    let pid = worker.query(job).unwrap().pid;
    std::fs::write(host.base.clone().unwrap().parent().unwrap().join("cgroup.procs"), pid.to_string()).unwrap();
    std::fs::remove_dir(cgroup).unwrap();
    let mut stdin = worker.take_stdin(job).unwrap().unwrap();
    stdin.write_all(b"go\n").unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.exit_code, status.cgroup_left), (2, false));
}

#[test]
fn a_frozen_job_is_stopped_all_the_same() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
    let cgroup = worker.query(job).unwrap().cgroup.unwrap();
    std::fs::write(cgroup.join("cgroup.freeze"), "1").unwrap();
    common::wait_until("the cgroup is frozen", || std::fs::read_to_string(cgroup.join("cgroup.events")).unwrap().contains("frozen 1"));
    worker.stop(job).unwrap();
    assert_eq!(finish(&mut worker, job).signal(), Some(Signal::KILL));
}

#[test]
fn a_host_that_ignores_sigchld_still_gets_the_right_code() {
    isolated_ignoring_sigchld("a_host_that_ignores_sigchld_still_gets_the_right_code", || {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim().to_owned();
        assert_ne!(u64::from_str_radix(&ignored, 16).unwrap() & (1 << 16), 0, "SIGCHLD is ignored here");
        a_stolen_status_is_right_or_unknown(|| {});
    });
}

#[test]
fn a_host_that_reaps_everything_still_gets_the_right_code() {
    isolated("a_host_that_reaps_everything_still_gets_the_right_code", || {
        a_stolen_status_is_right_or_unknown(|| {
            use rustix::process::{WaitOptions, wait};
            while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        });
    });
}

/// Runs jobs in a host where `steal` takes exit statuses away; what comes out must be true.
fn a_stolen_status_is_right_or_unknown(steal: impl Fn()) {
    let host = Host::new();
    for (what, mut worker) in every_worker(&host) {
        let kernel_tells = worker.capabilities().exit_info;
        for code in [0, 3, 200] {
            let job = worker.start(Command::shell(format!("read line; exit {code}")).stdin_piped()).unwrap();
            let pid = worker.query(job).unwrap().pid;
            drop(worker.take_stdin(job).unwrap());
            common::wait_until("the job has ended", || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                stat.is_empty() || stat.contains(") Z ")
            });
            steal();
            let status = finish(&mut worker, job);
            if kernel_tells {
                assert_eq!((status.state, status.exit_code), (JobState::Finished, code), "{what}");
            } else {
                assert_eq!((status.state, status.exit_code), (JobState::Unknown, -1), "{what}");
            }
        }
        // A failed start is told all the same.
        let error = worker.start(Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.failure().unwrap().errno(), 2, "{what}");
    }
}

#[test]
fn events_come_once_and_in_order() {
    let host = Host::new();
    let mut worker = host.builder().confirm(false).build().unwrap();
    let job = worker.start(Command::shell("echo x; exit 1")).unwrap();
    let events = turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::Finished { .. })));
    let exit = Exit::Code(1);
    assert_eq!(events, [Event::Started { job }, Event::Exited { job, exit }, Event::Finished { job, exit }]);
}

#[test]
fn waiting_for_one_job_keeps_the_events_of_the_others() {
    let host = Host::new();
    let mut worker = host.worker();
    let first = worker.start(Command::shell("exit 1")).unwrap();
    let second = worker.start(Command::shell("sleep 0.2; exit 2")).unwrap();
    assert_eq!(worker.wait(second).unwrap().exit_code, 2);
    let events = turn_until(&mut worker, |_, seen| seen.len() >= 2);
    assert!(events.iter().all(|event| event.job() == first), "{events:?}");
    assert_eq!(worker.run_job(Command::shell("exit 4")).unwrap().exit_code, 4);
}

#[test]
fn finished_jobs_stay_until_there_are_too_many_and_never_before_their_end_was_told() {
    let host = Host::new();
    let mut worker = host.builder().finished_jobs_max(3).build().unwrap();
    let jobs: Vec<JobId> = (0..10).map(|code| worker.start(Command::shell(format!("exit {code}"))).unwrap()).collect();
    // Nobody takes an event: nothing may go.
    for job in &jobs {
        turn_without_events(&mut worker, *job);
    }
    assert_eq!(worker.jobs(), jobs);
    turn_until(&mut worker, |_, seen| seen.iter().filter(|event| matches!(event, Event::Finished { .. })).count() == 10);
    assert_eq!(worker.jobs().len(), 3);
    let gone = jobs.iter().filter(|job| matches!(worker.query(**job), Err(JobError::NotFound { .. }))).count();
    assert_eq!(gone, 7);
    let kept = worker.jobs();
    worker.forget(kept[0]).unwrap();
    assert!(matches!(worker.forget(kept[0]), Err(JobError::NotFound { .. })));
    let running = worker.start(Command::new("sleep").arg("1000")).unwrap();
    assert!(matches!(worker.forget(running), Err(JobError::NotFinished { .. })));
}

/// Turns the loop until the job has finished, taking no event: `follow` reads to the end of the log.
fn turn_without_events(worker: &mut Worker, job: JobId) {
    std::io::copy(&mut worker.follow(job).unwrap(), &mut std::io::sink()).unwrap();
    assert!(worker.query(job).unwrap().is_finished());
}

#[test]
fn jobs_of_another_owner_do_not_exist() {
    let host = Host::new();
    let mut worker = host.worker();
    let [ann, bob] = [1_u128, 2].map(|number| iron_exec::OwnerId::from(uuid::Uuid::from_u128(number)));
    // The view stamps its own owner, whatever the command says.
    let job = worker.owned_by(ann).start(Command::shell("echo secret; sleep 1000").owner(bob)).unwrap();
    assert_eq!(worker.query(job).unwrap().owner, ann);
    let unknown = JobId::from(uuid::Uuid::from_u128(77));
    let mut view = worker.owned_by(bob);
    for asked in [job, unknown] {
        let not_found = format!("there is no job {asked}");
        assert_eq!(view.query(asked).unwrap_err().to_string(), not_found);
        assert_eq!(view.stop(asked).unwrap_err().to_string(), not_found);
        assert_eq!(view.stop_with(asked, Signal::TERM, Duration::ZERO).unwrap_err().to_string(), not_found);
        assert_eq!(view.signal(asked, Signal::TERM).unwrap_err().to_string(), not_found);
        assert_eq!(view.stream(asked).unwrap_err().to_string(), not_found);
        assert_eq!(view.wait(asked).unwrap_err().to_string(), not_found);
        assert_eq!(view.forget(asked).unwrap_err().to_string(), not_found);
    }
    assert_eq!(view.jobs(), []);
    let mut view = worker.owned_by(ann);
    assert_eq!(view.jobs(), [job]);
    assert_eq!(view.query(job).unwrap().state, JobState::Running);
    view.stop(job).unwrap();
    assert_eq!(view.wait(job).unwrap().signal(), Some(Signal::KILL));
    assert!(view.stream(job).is_ok());
    view.forget(job).unwrap();
}

#[test]
fn a_dropped_worker_leaves_nothing() {
    isolated("a_dropped_worker_leaves_nothing", || {
        let host = Host::new();
        for rung in Rung::ALL {
            for base in [true, false] {
                let before = Census::take(&host);
                let mut builder = host.builder().rung(rung).confirm(false);
                if !base {
                    builder = builder.cgroup_base(CgroupBase::Off);
                }
                let mut worker = builder.build().unwrap();
                let mut pids = Vec::new();
                for script in ["sleep 1000", "sleep 1000 & sleep 1000", "trap '' TERM; echo x; sleep 1000", "exit 0", "cat /dev/zero"] {
                    let job = worker.start(Command::shell(script)).unwrap();
                    pids.push(worker.query(job).unwrap().pid);
                }
                worker.start(Command::new("/nonexistent")).unwrap();
                let running = worker.start(Command::shell("echo up; sleep 1000")).unwrap();
                turn_until(&mut worker, |worker, _| worker.query(running).unwrap().output.lines > 0);
                drop(worker);
                for pid in pids {
                    assert!(!common::process_exists(pid), "process {pid} is left");
                }
                let after = Census::take(&host);
                assert_eq!((&after.fds, &after.children, after.watches), (&before.fds, &before.children, before.watches));
                assert_eq!(after.cgroups, [""; 0]);
                for log in host.logs() {
                    let path = host.log_dir.path().join(&log);
                    assert!(std::fs::metadata(&path).unwrap().permissions().readonly(), "{log} is sealed");
                    std::fs::remove_file(path).unwrap();
                }
                let left: Vec<_> = std::fs::read_dir(host.log_dir.path()).unwrap().collect();
                assert!(left.is_empty(), "the worker's lock is gone too: {left:?}");
            }
        }
    });
}

#[test]
fn a_panic_in_the_host_unwinds_through_the_worker_and_leaves_nothing() {
    let host = Host::new();
    let pid = std::cell::Cell::new(0);
    let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let mut worker = host.worker();
        let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
        pid.set(worker.query(job).unwrap().pid);
        panic!("the host's own trouble");
    }));
    assert!(unwound.is_err());
    assert!(!common::process_exists(pid.get()));
    assert_eq!(host.cgroups(), [""; 0]);
}

#[test]
fn jobs_max_bounds_the_unfinished_jobs() {
    let host = Host::new();
    let mut worker = host.builder().jobs_max(2).build().unwrap();
    let first = worker.start(Command::new("sleep").arg("1000")).unwrap();
    worker.start(Command::new("sleep").arg("1000")).unwrap();
    let error = worker.start(Command::new("sleep").arg("1000")).unwrap_err();
    assert!(matches!(error, iron_exec::StartError::TooManyJobs { jobs_max: 2 }), "{error}");
    worker.stop(first).unwrap();
    finish(&mut worker, first);
    worker.start(Command::shell("exit 0")).unwrap();
}

#[test]
fn two_workers_of_one_process_do_not_get_into_each_others_way() {
    let host = Host::new();
    let (mut left, mut right) = (host.worker(), host.worker());
    let job = left.start(Command::shell("sleep 0.1; exit 1")).unwrap();
    assert_eq!(right.run_job(Command::shell("exit 2")).unwrap().exit_code, 2);
    assert!(matches!(right.query(job), Err(JobError::NotFound { .. })));
    drop(right);
    assert_eq!(finish(&mut left, job).exit_code, 1);
    assert_eq!(left.run_job(Command::shell("exit 3")).unwrap().exit_code, 3);
}
