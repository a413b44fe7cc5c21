//! Promise: what a worker leaves behind when its host dies is found by the next one on the same base, killed and removed; what belongs to the living, or to
//! nobody, is left alone.

mod common;

use std::env;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command as Process, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Host, directories, finish, isolated, process_runs, rounds, wait_until};
use iron_exec::{Builder, Capture, CgroupBase, Command, JobId, Leftover, Worker};
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// How long what is left over may take to die.
const KILL_TIME_MAX: Duration = Duration::from_secs(5);

/// Deeper than the library follows the cgroups that a job has made.
const TOO_DEEP: usize = 70;

// A host in another process.

/// The environment variables that make the test `another_process_is_a_host_when_it_is_told_to_be` one.
const ROLE: &str = "IRON_EXEC_TEST_ROLE";
const BASE: &str = "IRON_EXEC_TEST_BASE";
const LOG_DIR: &str = "IRON_EXEC_TEST_LOG_DIR";

/// What its lines begin with.
const MARK: &str = "@other ";

/// A job of another host.
#[derive(Clone, Debug)]
struct OtherJob {
    id: JobId,
    name: String,
    cgroup: PathBuf,
    pids: Vec<i32>,
}

/// A host in another process, with jobs that run.
struct Other {
    process: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    jobs: Vec<OtherJob>,
}

impl Other {
    /// Starts it, and waits until its jobs are as they are to be.
    fn start(host: &Host, role: &str) -> Self {
        let mut process = Process::new(env::current_exe().unwrap())
            .args(["--exact", "another_process_is_a_host_when_it_is_told_to_be", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(BASE, host.base.as_ref().unwrap())
            .env(LOG_DIR, host.log_dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, stdout) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        let mut other = Self { process, stdin, stdout, jobs: Vec::new() };
        loop {
            let line = other.line().expect("the other host says when it is ready");
            let words: Vec<&str> = line.split(' ').collect();
            let &[name, id, processes] = words.as_slice() else { break };
            let cgroup = host.base.clone().unwrap().join(format!("{name}_{id}"));
            let processes: usize = processes.parse().unwrap();
            wait_until("the job's processes are there", || processes_below(&cgroup).len() == processes);
            other.jobs.push(OtherJob { id: id.parse().unwrap(), name: name.to_owned(), pids: processes_below(&cgroup), cgroup });
        }
        other.jobs.sort_by_key(|job| job.id);
        other
    }

    /// The next thing that it says.
    fn line(&mut self) -> Option<String> {
        for line in self.stdout.by_ref().lines() {
            if let Some(said) = line.unwrap().strip_prefix(MARK) {
                return Some(said.to_owned());
            }
        }
        None
    }

    /// It dies as a host dies that crashes.
    fn crash(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// It ends its worker, and itself.
    fn end(mut self) {
        drop(self.stdin.take());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Not a promise, but the other process of those below.
#[test]
fn another_process_is_a_host_when_it_is_told_to_be() {
    let Ok(role) = env::var(ROLE) else { return };
    let builder = Worker::builder().log_dir(env::var(LOG_DIR).unwrap()).cgroup_base(CgroupBase::Path(env::var(BASE).unwrap().into()));
    let say = |text: &str| println!("\n{MARK}{text}");
    let mut input = std::io::stdin().lines();
    if role == "killer" {
        let mut worker = builder.build().unwrap();
        say("ready");
        input.next();
        worker.kill_leftovers(KILL_TIME_MAX).unwrap();
        say("killed");
        input.next();
        return;
    }
    if role == "racer" {
        say("ready");
        race(&builder);
        return;
    }
    let mut worker = builder.drain_total_max(Duration::from_millis(50)).build().unwrap();
    let mut start = |name: &str, script: &str, processes: usize| {
        let job = worker.start(Command::shell(script).name(name).capture(Capture::Discard).confirm(true)).unwrap();
        if let Some((_, nested)) = script.split_once("mkdir -p ") {
            let nested = nested.split(' ').next().unwrap();
            let nested = worker.query(job).unwrap().cgroup.unwrap().join(nested);
            wait_until("the job is in the cgroup that it makes", || !processes_below(&nested).is_empty());
        }
        say(&format!("{name} {job} {processes}"));
    };
    match role.as_str() {
        "mixed" => {
            start("stubborn", "trap '' TERM; sleep 1000 & setsid sleep 1000 & wait", 3);
            start("nesting", &nesting("nesting", "inner/most"), 1);
            start("under_score", "exec sleep 1000", 1);
            start("over", "exec true", 0);
        }
        "simple" => start("simple", "sleep 1000 & wait", 2),
        "deep" => start("deep", &nesting("deep", &"n/".repeat(TOO_DEEP)), 1),
        role => panic!("no such role: {role}"),
    }
    say("ready");
    // Until the end of the test, or of the other process, whichever is first.
    input.next();
}

/// A script that makes a cgroup in its own and goes there.
fn nesting(name: &str, nested: &str) -> String {
    let base = env::var(BASE).unwrap();
    format!("cd {base}/{name}_* && mkdir -p {nested} && echo $$ > {nested}/cgroup.procs && exec sleep 1000")
}

/// Builds, uses and drops workers on a base that is another's, too.
fn race(builder: &Builder) {
    let on_a_thread = |thread: usize| {
        for round in 0..rounds(200) {
            let mut worker =
                builder.clone().build().unwrap_or_else(|error| panic!("round {round}: {error}: {:?}", std::error::Error::source(&error)));
            if (round + thread).is_multiple_of(4) {
                let job = worker.start(Command::new("true").capture(Capture::Discard)).unwrap();
                assert!(finish(&mut worker, job).success());
            }
            if (round + thread).is_multiple_of(2) {
                worker.kill_leftovers(Duration::ZERO).unwrap_or_else(|error| panic!("round {round}: {error}"));
            }
            assert_eq!(worker.leftovers().unwrap(), [], "nobody has died");
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || on_a_thread(thread));
        }
    });
}

// What the tests look at.

/// The processes in a cgroup and in those below.
fn processes_below(cgroup: &Path) -> Vec<i32> {
    let procs = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let own = procs.lines().map(|pid| pid.parse().unwrap());
    own.chain(directories(cgroup).iter().flat_map(|nested| processes_below(&cgroup.join(nested)))).collect()
}

/// The locks of workers, dead and alive.
fn locks(host: &Host) -> Vec<String> {
    let mut locks = directories(host.base.as_ref().unwrap());
    locks.retain(|name| name.starts_with(".worker_"));
    locks
}

fn sorted(mut leftovers: Vec<Leftover>) -> Vec<Leftover> {
    leftovers.sort_by_key(|leftover| leftover.job);
    leftovers
}

/// That exactly the jobs of `dead` are left over, as they were.
fn assert_left(leftovers: Vec<Leftover>, dead: &[&Other]) {
    let mut jobs: Vec<&OtherJob> = dead.iter().flat_map(|other| &other.jobs).collect();
    jobs.sort_by_key(|job| job.id);
    let leftovers = sorted(leftovers);
    let seen: Vec<_> = leftovers.iter().map(|left| (left.job, left.name.as_str(), left.path.as_path(), left.populated)).collect();
    let expected: Vec<_> = jobs.iter().map(|job| (job.id, job.name.as_str(), job.cgroup.as_path(), !job.pids.is_empty())).collect();
    assert_eq!(seen, expected);
}

fn assert_gone(other: &Other) {
    for job in &other.jobs {
        assert!(!job.cgroup.exists(), "{job:?}");
        // Whether it is reaped is up to init.
        assert!(!job.pids.iter().any(|pid| process_runs(*pid)), "{job:?}");
    }
}

fn assert_runs_on(other: &Other) {
    for job in &other.jobs {
        assert_eq!(processes_below(&job.cgroup), job.pids);
        assert!(job.pids.iter().all(|pid| process_runs(*pid)), "{job:?}");
    }
}

// The promises.

#[test]
fn what_a_dead_host_left_is_listed_and_killed_and_what_is_of_the_living_is_not() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut dead = Other::start(&host, "mixed");
    let live = Other::start(&host, "simple");
    let mut worker = host.worker();
    let own = worker.start(Command::new("sleep").arg("1000").name("own").capture(Capture::Discard)).unwrap();
    assert_eq!(worker.leftovers().unwrap(), [], "all live");
    assert_eq!(locks(&host).len(), 3);

    dead.crash();
    assert_left(worker.leftovers().unwrap(), &[&dead]);
    // A worker that comes after the death sees the same.
    assert_left(host.worker().leftovers().unwrap(), &[&dead]);

    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
    assert_gone(&dead);
    assert_eq!(worker.leftovers().unwrap(), []);
    assert_eq!(locks(&host).len(), 2, "the dead worker's lock is gone");
    assert_runs_on(&live);
    assert!(!worker.query(own).unwrap().is_finished());
    assert_eq!(host.cgroups().len(), 2);

    live.end();
    drop(worker);
    assert!(!host.base.as_ref().unwrap().exists(), "the last worker has removed the base");
}

#[test]
fn what_several_dead_hosts_left_is_killed_in_one_go() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut dead = [Other::start(&host, "simple"), Other::start(&host, "mixed"), Other::start(&host, "simple")];
    dead.iter_mut().for_each(Other::crash);
    let mut worker = host.worker();
    assert_left(worker.leftovers().unwrap(), &dead.each_ref());
    // However long it may take.
    worker.kill_leftovers(Duration::MAX).unwrap();
    dead.iter().for_each(assert_gone);
    assert_eq!((worker.leftovers().unwrap(), locks(&host).len(), host.cgroups()), (Vec::new(), 1, Vec::new()));
}

#[test]
fn directories_that_merely_look_like_left_overs_are_not_touched() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut dead = Other::start(&host, "simple");
    let live = Other::start(&host, "simple");
    let base = host.base.clone().unwrap();
    // The bits that tell the worker are those of the live one.
    let of_the_live = live.jobs[0].id.to_string().replace(&live.jobs[0].id.to_string()[..8], "00000000");
    let lookalikes = [
        format!("nobodys_{}", "01890a5d-ac96-774b-bcce-b302099a8057"),
        format!("of-the-live_{of_the_live}"),
        format!("{}", dead.jobs[0].id),
        ".worker_garbage".to_owned(),
        ".worker_".to_owned(),
        "name_garbage".to_owned(),
        "supervisor".to_owned(),
    ];
    for name in &lookalikes {
        fs::create_dir(base.join(name)).unwrap();
    }
    dead.crash();
    let mut worker = host.worker();
    assert_left(worker.leftovers().unwrap(), &[&dead]);
    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
    assert_gone(&dead);
    assert_runs_on(&live);
    assert!(lookalikes.iter().all(|name| base.join(name).exists()), "{:?}", directories(&base));
    live.end();
    drop(worker);
    assert!(base.exists(), "what is somebody else's keeps the base");
    for name in &lookalikes {
        fs::remove_dir(base.join(name)).unwrap();
    }
}

#[test]
fn two_hosts_that_kill_left_overs_at_the_same_time_both_succeed() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    for _ in 0..rounds(5) {
        let mut dead = [Other::start(&host, "mixed"), Other::start(&host, "simple")];
        dead.iter_mut().for_each(Other::crash);
        let mut worker = host.worker();
        let mut killer = Other::start(&host, "killer");
        killer.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        worker.kill_leftovers(KILL_TIME_MAX).unwrap();
        assert_eq!(killer.line().as_deref(), Some("killed"));
        dead.iter().for_each(assert_gone);
        assert_eq!((worker.leftovers().unwrap(), host.cgroups()), (Vec::new(), Vec::new()));
        assert_eq!(locks(&host).len(), 2, "the locks of the dead are gone");
        killer.end();
    }
}

#[test]
fn a_worker_that_ends_leaves_no_lock_and_no_base() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut worker = host.worker();
    assert_eq!(locks(&host).len(), 1);
    worker.start(Command::shell("sleep 1000 & sleep 1000")).unwrap();
    let over = worker.start(Command::new("true")).unwrap();
    finish(&mut worker, over);
    drop(worker);
    assert!(!host.base.as_ref().unwrap().exists());
    // A base that somebody else has made stays, empty.
    fs::create_dir(host.base.as_ref().unwrap()).unwrap();
    drop(host.worker());
    assert_eq!(directories(host.base.as_ref().unwrap()), Vec::<String>::new());
}

#[test]
fn a_worker_without_a_free_descriptor_leaves_no_lock_and_no_base() {
    isolated("a_worker_without_a_free_descriptor_leaves_no_lock_and_no_base", || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        for has_a_job in [false, true] {
            let other = host.worker();
            let mut worker = host.worker();
            if has_a_job {
                worker.start(Command::shell("sleep 1000 & sleep 1000").capture(Capture::Discard)).unwrap();
            }
            let was = getrlimit(rustix::process::Resource::Nofile);
            setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(1024), ..was }).unwrap();
            let fill = || {
                let mut files = Vec::new();
                while let Ok(file) = File::open("/dev/null") {
                    files.push(file);
                }
                files
            };
            let files = fill();
            drop(worker);
            // What that has given back is taken again.
            let more = fill();
            drop(other);
            drop((files, more));
            setrlimit(rustix::process::Resource::Nofile, was).unwrap();
            assert_eq!(directories(host.base.as_ref().unwrap()), Vec::<String>::new());
            assert!(!host.base.as_ref().unwrap().exists());
        }
    });
}

/// Removes what a job called "deep" has nested in its cgroup.
fn remove_nested(cgroup: &Path) {
    let mut nested = cgroup.join("n/".repeat(TOO_DEEP));
    while nested != cgroup {
        fs::remove_dir(&nested).unwrap();
        nested.pop();
    }
}

#[test]
fn a_job_that_cannot_be_removed_keeps_its_workers_lock_until_it_can() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    // Its worker ends in good order, but the job's cgroup has more in it than the library follows.
    let deep = Other::start(&host, "deep");
    let job = deep.jobs[0].clone();
    deep.end();
    assert!(!job.pids.iter().any(|pid| process_runs(*pid)));
    let left = |worker: &Worker| {
        let leftovers = worker.leftovers().unwrap();
        let [left] = leftovers.as_slice() else { panic!("{leftovers:?} of {:?}", directories(host.base.as_ref().unwrap())) };
        assert_eq!((left.job, left.name.as_str(), left.path.as_path(), left.populated), (job.id, "deep", job.cgroup.as_path(), false));
    };
    let mut worker = host.worker();
    left(&worker);
    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
    left(&worker);
    assert_eq!(locks(&host).len(), 2);
    // Somebody puts it right.
    remove_nested(&job.cgroup);
    left(&worker);
    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
    assert_eq!((worker.leftovers().unwrap(), locks(&host).len(), host.cgroups()), (Vec::new(), 1, Vec::new()));
    drop(worker);
    assert!(!host.base.as_ref().unwrap().exists());
}

#[test]
fn a_look_at_the_locks_leaves_none_behind_in_children_that_other_threads_make() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let deep = Other::start(&host, "deep");
    let job = deep.jobs[0].clone();
    deep.end();
    let mut worker = host.worker();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Between fork and exec each of them has a copy of every descriptor.
            while !is_over.load(Ordering::Relaxed) {
                Process::new("true").status().unwrap();
            }
        });
        let looked = panic::catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..500 {
                worker.kill_leftovers(KILL_TIME_MAX).unwrap();
                assert_eq!(worker.leftovers().unwrap().len(), 1);
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        looked.unwrap();
    });
    remove_nested(&job.cgroup);
    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
}

#[test]
fn workers_that_come_and_go_and_kill_left_overs_on_one_base_do_not_disturb_each_other() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut other = Other::start(&host, "racer");
    race(&host.builder());
    while other.line().is_some() {}
    other.end();
    assert!(!host.base.as_ref().unwrap().exists(), "{:?}", directories(host.base.as_ref().unwrap()));
}

#[test]
fn without_cgroups_nothing_is_left_over() {
    let mut worker = Host::new().builder().cgroup_base(CgroupBase::Off).build().unwrap();
    worker.kill_leftovers(KILL_TIME_MAX).unwrap();
    assert_eq!(worker.leftovers().unwrap(), []);
}
