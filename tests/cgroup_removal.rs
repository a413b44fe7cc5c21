//! Promise: a job's cgroup goes with the job: also with others inside it, also when somebody else is faster; and one that cannot go holds up nobody.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::{self, TryRecvError};
use std::time::{Duration, Instant};

use common::{Census, Host, directories, finish, inotify_watches, isolated, output_of, turn_until, wait_until};
use iron_exec::{Command, Event, Exit, JobId, JobState, TreePolicy, Worker};

/// Starts a shell that knows its cgroup by the variable `$cgroup`.
fn start_in(worker: &mut Worker, script: &str, policy: TreePolicy) -> JobId {
    let job = worker.start(Command::shell(format!("read cgroup; {script}")).stdin_piped().tree(policy)).unwrap();
    let mut stdin = worker.take_stdin(job).unwrap().unwrap();
    writeln!(stdin, "{}", cgroup_of(worker, job).display()).unwrap();
    job
}

fn cgroup_of(worker: &Worker, job: JobId) -> PathBuf {
    worker.query(job).unwrap().cgroup.expect("the job has a cgroup")
}

/// Removes a cgroup and all in it, from the bottom up.
fn remove_all(cgroup: &Path) {
    for name in directories(cgroup) {
        remove_all(&cgroup.join(name));
    }
    fs::remove_dir(cgroup).unwrap();
}

/// Another job starts, logs and ends, in its time.
fn another_job_runs(worker: &mut Worker) {
    let began = Instant::now();
    let job = worker.start(Command::shell("echo one; sleep 0.01; echo two; exit 8")).unwrap();
    let over = Event::Finished { job, exit: Exit::Code(8) };
    let events = turn_until(worker, |_, seen| seen.contains(&over));
    assert!(events.contains(&Event::Exited { job, exit: Exit::Code(8) }), "{events:?}");
    assert_eq!(output_of(&worker.query(job).unwrap()), b"one\ntwo\n");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

/// What of this process, and of its cgroups, a removal could leave behind.
fn held(host: &Host) -> Census {
    Census { logs: Vec::new(), ..Census::take(host) }
}

#[test]
fn cgroups_that_a_job_made_inside_its_own_are_removed_from_the_bottom_up() {
    isolated("cgroups_that_a_job_made_inside_its_own_are_removed_from_the_bottom_up", || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        let make = "set -e; for path in a/b/c/d a/b/e a/f g h/i; do mkdir -p $cgroup/$path; done";
        let enter = |time: &str| {
            let into = |path: &str| format!("sh -c 'echo $$ > $0/{path}/cgroup.procs; exec sleep {time}' $cgroup & ");
            let is_in = |path: &str| format!("until grep -q . $cgroup/{path}/cgroup.procs; do :; done; ");
            ["a/b/c/d", "a/f", "g"].map(|path| into(path) + &is_in(path)).concat()
        };
        for accounting in [false, true] {
            // Where there are no controllers there is little to account for: it is asked all the same.
            let mut worker = host.builder().accounting(accounting).build().unwrap();
            let before = held(&host);
            for (tree, policy) in [
                (String::new(), TreePolicy::Kill),
                (enter("1000"), TreePolicy::Kill),
                (enter("0.5"), TreePolicy::Wait),
                // It has left its own cgroup for one inside.
                ("echo $$ > $cgroup/h/i/cgroup.procs".to_owned(), TreePolicy::Kill),
            ] {
                let job = start_in(&mut worker, &format!("{make}; {tree}\n exit 5"), policy);
                let status = finish(&mut worker, job);
                assert_eq!((status.exit_code, status.cgroup_left), (5, false), "{policy:?} {tree}: {status:?}");
                assert!(status.cgroup.is_some_and(|cgroup| !cgroup.exists()));
            }
            turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
            assert_eq!(held(&host), before);
        }
    });
}

#[test]
fn cgroups_nested_too_deep_are_left_and_told_and_hold_up_nobody() {
    isolated("cgroups_nested_too_deep_are_left_and_told_and_hold_up_nobody", || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        let mut worker = host.builder().drain_total_max(Duration::from_secs(1)).build().unwrap();
        let before = held(&host);
        let nested = |levels: usize| format!("mkdir -p $cgroup/{} || exit 1; exit 5", vec!["n"; levels].join("/"));
        // With the job's own there are 64.
        let job = start_in(&mut worker, &nested(63), TreePolicy::Kill);
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, status.cgroup_left), (5, false), "{status:?}");
        assert_eq!(host.cgroups(), [""; 0]);

        for policy in [TreePolicy::Kill, TreePolicy::Wait] {
            let deep = start_in(&mut worker, &nested(100), policy);
            turn_until(&mut worker, |_, seen| seen.contains(&Event::Exited { job: deep, exit: Exit::Code(5) }));
            another_job_runs(&mut worker);
            let status = finish(&mut worker, deep);
            assert_eq!((status.exit_code, status.cgroup_left), (5, true), "{policy:?}: {status:?}");
            another_job_runs(&mut worker);
            assert_eq!(host.cgroups().len(), 1);
            remove_all(&status.cgroup.unwrap());
            worker.forget(deep).unwrap();
        }
        drop(worker);
        assert_eq!((held(&host).cgroups, inotify_watches()), (before.cgroups, 0));
    });
}

#[test]
fn somebody_else_may_remove_a_jobs_cgroup_first() {
    const AT_A_TIME: usize = 8;
    isolated("somebody_else_may_remove_a_jobs_cgroup_first", || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        for accounting in [false, true] {
            let mut worker = host.builder().accounting(accounting).build().unwrap();
            let before = held(&host);
            let (sender, receiver) = mpsc::channel::<PathBuf>();
            std::thread::scope(|scope| {
                let other = scope.spawn(move || {
                    let (mut targets, mut hits, mut is_over) = (Vec::new(), 0, false);
                    while !is_over || !targets.is_empty() {
                        is_over = loop {
                            match receiver.try_recv() {
                                Ok(target) => targets.push(target),
                                Err(error) => break error == TryRecvError::Disconnected,
                            }
                        };
                        targets.retain(|target| {
                            for name in directories(target) {
                                let _ = fs::remove_dir(target.join(name));
                            }
                            let removed = fs::remove_dir(target).is_ok();
                            hits += usize::from(removed);
                            !removed && target.exists()
                        });
                        std::thread::yield_now();
                    }
                    hits
                });
                let scripts = ["", "setsid sleep 1000 </dev/null >/dev/null 2>&1 &", "sleep 1000 &", "mkdir $cgroup/inner || exit 99;"];
                for round in 0..common::rounds(200).div_ceil(AT_A_TIME) {
                    let mut jobs = Vec::new();
                    for index in 0..AT_A_TIME {
                        let code = i32::try_from((round * AT_A_TIME + index) % 90).unwrap();
                        let script = format!("{} exit {code}", scripts[index % scripts.len()]);
                        let job = worker.start(Command::shell(format!("read cgroup; {script}")).stdin_piped()).unwrap();
                        let cgroup = cgroup_of(&worker, job);
                        // There is a process in it: the other one cannot take it away before its time.
                        sender.send(cgroup.clone()).unwrap();
                        writeln!(worker.take_stdin(job).unwrap().unwrap(), "{}", cgroup.display()).unwrap();
                        jobs.push((job, code));
                    }
                    for (job, code) in jobs {
                        let status = finish(&mut worker, job);
                        assert_eq!((status.state, status.cgroup_left), (JobState::Finished, false), "{status:?}");
                        assert_eq!(status.exit_code, code, "{status:?}");
                    }
                }
                drop(sender);
                println!("somebody else was faster {} times", other.join().unwrap());
            });
            assert_eq!(held(&host), before);
        }
    });
}

#[test]
fn a_tree_that_does_not_end_holds_up_nobody() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    let job = worker.start(Command::shell("sleep 1000 </dev/null >/dev/null 2>&1 & exit 4").tree(TreePolicy::Wait)).unwrap();
    turn_until(&mut worker, |_, seen| seen.contains(&Event::Exited { job, exit: Exit::Code(4) }));
    worker.freeze(job).unwrap();
    turn_until(&mut worker, |_, seen| seen.contains(&Event::Frozen { job, frozen: true }));
    for _ in 0..3 {
        another_job_runs(&mut worker);
        assert_eq!(worker.query(job).unwrap().state, JobState::Draining);
    }
    worker.stop(job).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.exit_code, status.cgroup_left), (4, false), "{status:?}");
    assert_eq!(host.cgroups(), [""; 0]);
}

/// A cgroup of the old hierarchy whose processes stand still, and so do not even die.
struct Freezer(PathBuf);

impl Freezer {
    /// `None` if the test is to be skipped.
    fn new() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let is_freezer = |fields: &[&str]| fields[2] == "cgroup" && fields[3].split(',').any(|option| option == "freezer");
        let found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| is_freezer(fields));
        let Some(hierarchy) = found.map(|fields| PathBuf::from(fields[1])) else {
            let _ = common::cannot_run("it needs the freezer of cgroup v1");
            return None;
        };
        let path = hierarchy.join(format!("iron-exec-removal-{}", process::id()));
        fs::create_dir(&path).unwrap();
        Some(Self(path))
    }

    fn freeze(&self, pid: &str) {
        fs::write(self.0.join("cgroup.procs"), pid).unwrap();
        self.set("FROZEN");
    }

    fn set(&self, state: &str) {
        fs::write(self.0.join("freezer.state"), state).unwrap();
        wait_until(state, || fs::read_to_string(self.0.join("freezer.state")).unwrap().trim() == state);
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
        let deadline = Instant::now() + common::DEADLINE;
        while fs::remove_dir(&self.0).is_err() && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_cgroup_that_cannot_be_emptied_holds_up_nobody_and_goes_when_it_is_empty_after_all() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let Some(freezer) = Freezer::new() else { return };
    let mut worker = host.builder().drain_total_max(Duration::from_secs(2)).build().unwrap();
    let script = "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!; read go; exit 4";
    let job = worker.start(Command::shell(script).stdin_piped()).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    let sleeper = String::from_utf8(output_of(&worker.query(job).unwrap())).unwrap();
    freezer.freeze(sleeper.trim());
    drop(worker.take_stdin(job).unwrap());
    turn_until(&mut worker, |_, seen| seen.contains(&Event::Exited { job, exit: Exit::Code(4) }));
    another_job_runs(&mut worker);
    let status = finish(&mut worker, job);
    assert_eq!((status.exit_code, status.cgroup_left), (4, true), "{status:?}");
    another_job_runs(&mut worker);
    assert_eq!(host.cgroups().len(), 1);
    freezer.set("THAWED");
    turn_until(&mut worker, |worker, _| !worker.query(job).unwrap().cgroup_left);
    assert_eq!(host.cgroups(), [""; 0]);
}
