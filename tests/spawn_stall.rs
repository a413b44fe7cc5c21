//! Promise: no child stalls the host. An unconfirmed start returns at once, and other jobs go on, whatever holds the child up on its way, however
//! busy the CPUs are, and however much memory and however many files the host has.

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process;
use std::time::{Duration, Instant};

use common::{Census, Host, cannot_run, finish, isolated, not_root, output_of, turn_until};
use iron_exec::{Capture, CgroupBase, Command, Event, JobId, JobState, Rung, Worker};

/// How long a start may take on a machine that does other things, too. A start that waits for its child would take for ever here.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A mounted file system whose server never answers.
struct HungMount {
    path: PathBuf,
    /// The connection to the kernel, on which its questions pile up.
    server: Option<File>,
    _dir: tempfile::TempDir,
}

impl HungMount {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hung");
        fs::create_dir(&path).unwrap();
        let server = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let mut worker = Worker::builder().cgroup_base(CgroupBase::Off).log_dir(dir.path()).build().unwrap();
        let options = "fd=3,rootmode=40000,user_id=0,group_id=0";
        let mount = Command::new("mount").args(["-i", "-t", "fuse", "-o", options, "hung"]).arg(&path);
        let status = worker.run_job(mount.fd(3, server.as_fd().try_clone_to_owned().unwrap())).unwrap();
        assert!(status.success(), "{status:?}: {}", String::from_utf8_lossy(&output_of(&status)));
        Self { path, server: Some(server), _dir: dir }
    }
}

impl Drop for HungMount {
    fn drop(&mut self) {
        // With its server gone the kernel answers every question with an error.
        self.server = None;
        let _ = process::Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

/// Starts without confirmation; the time it took.
fn start_at_once(worker: &mut Worker, command: Command) -> (JobId, Duration) {
    let began = Instant::now();
    let job = worker.start(command.confirm(false)).unwrap();
    let took = began.elapsed();
    assert!(took < AT_ONCE, "the start took {took:?}");
    (job, took)
}

/// Other jobs start, write, end and are told of.
fn others_go_on(worker: &mut Worker) {
    for round in 0..20 {
        let (job, _) = start_at_once(worker, Command::shell(format!("echo {round}")));
        let events = turn_until(worker, |_, seen| seen.contains(&Event::Finished { job, exit: iron_exec::Exit::Code(0) }));
        assert!(events.iter().any(|event| matches!(event, Event::Exited { job: exited, .. } if *exited == job)));
        let status = worker.query(job).unwrap();
        assert_eq!(output_of(&status), format!("{round}\n").into_bytes());
        fs::remove_file(status.log.unwrap()).unwrap();
        worker.forget(job).unwrap();
    }
}

#[test]
fn a_program_or_directory_on_a_hung_file_system_holds_up_its_own_job_only() {
    if not_root() {
        return;
    }
    isolated("a_program_or_directory_on_a_hung_file_system_holds_up_its_own_job_only", || {
        let hung = HungMount::new();
        let host = Host::new();
        for rung in [Rung::Detached, Rung::ForkLike, Rung::Fork] {
            let mut worker = host.builder().rung(rung).build().unwrap();
            let before = Census::take(&host);
            let commands = [Command::new(hung.path.join("program")), Command::new("true").cwd(hung.path.join("directory"))];
            let jobs = commands.map(|command| start_at_once(&mut worker, command).0);
            others_go_on(&mut worker);
            for job in jobs {
                let status = worker.query(job).unwrap();
                assert_eq!((status.state, status.rung), (JobState::Starting, rung));
                // Both before either is waited for: they may wait for one lock of the directory, and the one that waits second cannot be interrupted.
                worker.stop(job).unwrap();
            }
            for job in jobs {
                let status = finish(&mut worker, job);
                assert_eq!((status.state, status.exit_code), (JobState::Finished, -1));
                assert_eq!(status.signal().unwrap().to_string(), "SIGKILL");
                fs::remove_file(status.log.unwrap()).unwrap();
                worker.forget(job).unwrap();
            }
            assert_eq!(Census::take(&host), before);
        }
    });
}

#[test]
fn a_frozen_cgroup_holds_up_its_own_jobs_only() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    isolated("a_frozen_cgroup_holds_up_its_own_jobs_only", || {
        let frozen_host = Host::new();
        let base = frozen_host.base.clone().unwrap();
        // On vfork the host would wait: it is not taken there.
        for (rung, taken) in [(Rung::Detached, Rung::Detached), (Rung::Vfork, Rung::ForkLike), (Rung::ForkLike, Rung::ForkLike)] {
            let mut worker = host.builder().rung(rung).build().unwrap();
            let mut frozen = frozen_host.builder().rung(rung).build().unwrap();
            fs::write(base.join("cgroup.freeze"), "1").unwrap();
            let (job, _) = start_at_once(&mut frozen, Command::shell("echo thawed"));
            let (doomed, _) = start_at_once(&mut frozen, Command::new("true"));
            others_go_on(&mut worker);
            frozen.turn(&mut iron_exec::Events::new(), Some(Duration::ZERO)).unwrap();
            let status = frozen.query(job).unwrap();
            assert_eq!((status.state, status.rung), (JobState::Starting, taken));
            // A frozen tree is killed, too.
            frozen.stop(doomed).unwrap();
            assert_eq!(finish(&mut frozen, doomed).exit_code, -1);
            fs::write(base.join("cgroup.freeze"), "0").unwrap();
            let status = finish(&mut frozen, job);
            assert_eq!((status.exit_code, output_of(&status)), (0, b"thawed\n".to_vec()));
        }
    });
}

#[test]
fn a_worker_with_frozen_starts_goes_soon_and_leaves_nothing() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    isolated("a_worker_with_frozen_starts_goes_soon_and_leaves_nothing", || {
        let host = Host::new();
        let before = Census::take(&host);
        for slots in [1, 4, 64] {
            let mut worker = host.builder().spawn_slots_max(slots).build().unwrap();
            fs::write(host.base.as_ref().unwrap().join("cgroup.freeze"), "1").unwrap();
            for _ in 0..10 {
                start_at_once(&mut worker, Command::new("true").capture(Capture::Discard));
            }
            let began = Instant::now();
            drop(worker);
            assert!(began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
            assert_eq!(Census::take(&host), before, "with {slots} slots");
        }
        assert_eq!(iron_exec::leaked_spawn_slots(), 0);
    });
}

/// Programs that keep every CPU busy, until this is dropped.
struct Hogs(Vec<process::Child>);

impl Hogs {
    fn new() -> Self {
        let count = 2 * std::thread::available_parallelism().unwrap().get();
        Self((0..count).map(|_| process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap()).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}

/// What starts take in a host of some kind.
struct Cost {
    name: &'static str,
    p50: Duration,
    p99: Duration,
    max: Duration,
}

/// Starts `count` programs without confirmation, few at a time, and takes the time of each start.
fn cost(name: &'static str, worker: &mut Worker, count: usize) -> Cost {
    let mut took = Vec::with_capacity(count);
    for _ in 0..count {
        let (_, time) = start_at_once(worker, Command::new("/bin/true").capture(Capture::Discard));
        took.push(time);
        turn_until(worker, |worker, _| worker.unfinished_jobs() < 8);
    }
    turn_until(worker, |worker, _| worker.unfinished_jobs() == 0);
    took.sort_unstable();
    let cost = Cost { name, p50: took[count / 2], p99: took[count * 99 / 100], max: took[count - 1] };
    println!("{:<28} p50 {:>9.1?}  p99 {:>9.1?}  max {:>9.1?}", cost.name, cost.p50, cost.p99, cost.max);
    cost
}

/// As many open files as the limit allows, up to 15,000.
fn open_files() -> Vec<File> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit }).unwrap();
    let count = limit.maximum.map_or(15_000, |maximum| usize::try_from(maximum).unwrap().saturating_sub(1000).min(15_000));
    (0..count).map(|_| File::open("/dev/null").unwrap()).collect()
}

#[test]
fn what_a_start_costs_depends_neither_on_memory_nor_on_files_nor_on_the_load() {
    isolated("what_a_start_costs_depends_neither_on_memory_nor_on_files_nor_on_the_load", || {
        const COUNT: usize = 200;
        let dir = tempfile::tempdir().unwrap();
        let build = || Worker::builder().cgroup_base(CgroupBase::Off).log_dir(dir.path()).build().unwrap();
        let mut worker = build();
        if worker.capabilities().rung != Rung::Detached {
            assert!(cannot_run("it needs the rung detached: Linux 5.16"));
            return;
        }
        cost("warming up", &mut worker, COUNT / 4);
        let plain = cost("plain", &mut worker, COUNT);

        let files = open_files();
        let files_after = cost("many files, opened after", &mut worker, COUNT);
        // The slots of this one stand above all those files: each child copies the table up to there. The host does not wait for that.
        let mut late_worker = build();
        let files_before = cost("many files, opened before", &mut late_worker, COUNT);
        drop((late_worker, files));

        let memory = vec![1_u8; 1 << 30];
        let big = cost("1 GiB of touched memory", &mut worker, COUNT);
        assert_eq!(memory[memory.len() - 1], 1);
        drop(memory);

        let hogs = Hogs::new();
        let busy = cost("two busy loops per CPU", &mut worker, COUNT);
        drop(hogs);

        // A copy of 1 GiB of page tables, or a wait for a child behind a busy loop, is 50 times a plain start and more. The median, because what
        // else runs on the machine is nobody's promise.
        for cost in [files_after, files_before, big, busy] {
            let most = plain.p50 * 8 + Duration::from_micros(500);
            assert!(cost.p50 < most, "{}: {:?} against {:?}", cost.name, cost.p50, plain.p50);
        }
    });
}
