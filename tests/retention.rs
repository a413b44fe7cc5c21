//! Promise: a log directory is kept within bounds: finished logs go, oldest first, and nothing else does; what dead workers have left is repaired first;
//! with an archive nothing goes that was not stored; and the loop does it in passing.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use common::{Census, Host, finish, isolated, isolated_behind, not_root, turn_until, wait_until};
use iron_exec::{
    Archive, BuildError, CgroupBase, Command, DeleteReason, EnvBase, Event, JobError, JobId, LogFormat, LogPolicy, LogState, Retention,
    RetentionStats, Worker,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::XattrFlags;
use uuid::Uuid;

/// Some user who is not us.
const NOBODY: u32 = 65534;

/// The directory that a host process of a test is told to use.
const HOST_DIR: &str = "IRON_EXEC_TEST_HOST_DIR";

/// A worker that is dead: there is no lock of it.
const DEAD: u128 = 7;

/// No pass but those that are asked for, after the first one.
const NEVER: Duration = Duration::from_hours(1);

/// A record of a log.
const RECORD: &str = "2026-01-01T00:00:00.000000000Z stdout F hello\n";

fn retention() -> Retention {
    Retention::new().every(NEVER)
}

/// Everything that may go is to go.
fn everything() -> Retention {
    retention().age_max(Duration::ZERO)
}

fn worker_with(host: &Host, retention: Retention) -> Worker {
    host.builder().retention(retention).build().unwrap()
}

/// Asks for a pass and turns the loop until it is over.
fn pass(worker: &mut Worker) -> RetentionStats {
    let before = worker.retention_stats();
    worker.collect_logs();
    let wanted = before.passes + 1 + u64::from(before.running);
    turn_until(worker, |worker, _| worker.retention_stats().passes >= wanted);
    worker.retention_stats()
}

/// Turns the loop until a file is there, of which no event tells.
fn turn_until_seen(worker: &mut Worker, path: &Path) {
    let began = Instant::now();
    let mut events = iron_exec::Events::new();
    while !path.exists() {
        assert!(began.elapsed() < common::DEADLINE);
        worker.turn(&mut events, Some(Duration::from_millis(10))).unwrap();
    }
}

fn log_name(number: u128) -> String {
    format!("make_{}.log", Uuid::from_u128(number))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn set_mark(path: &Path, text: &str) {
    rustix::fs::setxattr(path, "user.iron-exec", text.as_bytes(), XattrFlags::empty()).unwrap();
}

/// A file of a log as a worker leaves it.
fn plant(directory: &Path, name: &str, content: impl AsRef<[u8]>, worker: u128, is_sealed: bool) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    set_mark(&path, &format!("{} cri", Uuid::from_u128(worker)));
    set_mode(&path, if is_sealed { 0o400 } else { 0o600 });
    path
}

fn names(directory: &Path) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn locks_of(log_dir: &Path) -> PathBuf {
    log_dir.join(format!(".iron-exec-{}", rustix::process::geteuid().as_raw()))
}

/// Runs a job to its end; what it writes takes `bytes` in a raw log. Jobs that follow each other are told apart by the clock of the file system.
fn run_raw(worker: &mut Worker, bytes: usize) -> (JobId, PathBuf) {
    let script = format!("head -c {bytes} /dev/zero");
    let job = worker.start(Command::shell(script).log_format(LogFormat::Raw)).unwrap();
    let log = finish(worker, job).log.unwrap();
    let sealed = fs::metadata(&log).unwrap();
    wait_until("the clock of the file system goes on", || {
        let probe = log.with_extension("probe");
        fs::write(&probe, "").unwrap();
        let now = fs::metadata(&probe).unwrap();
        fs::remove_file(&probe).unwrap();
        (now.ctime(), now.ctime_nsec()) > (sealed.ctime(), sealed.ctime_nsec())
    });
    (job, log)
}

fn start_cat(worker: &mut Worker) -> (JobId, std::io::PipeWriter) {
    let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
    (job, worker.take_stdin(job).unwrap().unwrap())
}

// What goes, and what stays.

#[test]
fn finished_logs_go_with_their_jobs_once_they_are_too_old() {
    let host = Host::new();
    let mut worker = worker_with(&host, Retention::new().age_max(Duration::from_millis(300)).every(Duration::from_millis(20)));
    let (live, stdin) = start_cat(&mut worker);
    let began = Instant::now();
    let job = worker.start(Command::shell("echo hello")).unwrap();
    let log = finish(&mut worker, job).log.unwrap();
    turn_until(&mut worker, |worker, _| worker.retention_stats().logs_deleted == 1);
    // The clock of the file system may be a tick late.
    assert!(began.elapsed() >= Duration::from_millis(250), "it was kept for a while");
    assert!(!log.exists());
    assert!(matches!(worker.query(job), Err(JobError::NotFound { .. })));
    assert_eq!(worker.jobs(), [live]);
    let stats = worker.retention_stats();
    assert_eq!((stats.files_deleted, stats.failures, stats.last_failure), (1, 0, None));
    assert!(stats.bytes_deleted > 5);
    drop(stdin);
    turn_until(&mut worker, |worker, _| worker.retention_stats().logs_deleted == 2);
    assert_eq!((host.logs(), worker.jobs()), (vec![], vec![]));
}

#[test]
fn a_job_without_a_log_is_forgotten_when_it_is_too_old_but_not_before_its_end_was_told() {
    let host = Host::new();
    let mut worker = worker_with(&host, retention().age_max(Duration::from_millis(1)));
    pass(&mut worker);
    let command = || Command::new("true").capture(iron_exec::Capture::Discard);
    let told: Vec<JobId> = (0..600).map(|_| worker.run_job(command()).unwrap().id).collect();
    assert_eq!(worker.jobs(), told);
    // Waiting for other jobs turns the loop, and leaves the events of this one untold.
    let untold = worker.start(command()).unwrap();
    let began = Instant::now();
    worker.collect_logs();
    while worker.jobs().iter().any(|job| told.contains(job)) {
        assert!(began.elapsed() < common::DEADLINE);
        worker.run_job(command()).unwrap();
    }
    assert!(worker.query(untold).unwrap().is_finished());
    let seen = turn_until(&mut worker, |_, seen| !seen.is_empty());
    assert!(matches!(seen.last(), Some(Event::Finished { job, .. }) if *job == untold), "{seen:?}");
    turn_until(&mut worker, |worker, _| {
        if !worker.retention_stats().running {
            worker.collect_logs();
        }
        worker.jobs().is_empty()
    });
}

#[test]
fn the_oldest_finished_logs_go_while_there_are_too_many_bytes() {
    let host = Host::new();
    let mut worker = worker_with(&host, retention().bytes_max(25_000));
    let logs: Vec<(JobId, PathBuf)> = (0..4).map(|_| run_raw(&mut worker, 10_000)).collect();
    let stats = pass(&mut worker);
    let left: Vec<bool> = logs.iter().map(|(_, log)| log.exists()).collect();
    assert_eq!(left, [false, false, true, true]);
    assert_eq!((stats.logs, stats.bytes, stats.logs_deleted, stats.bytes_deleted), (2, 20_000, 2, 20_000));
    assert_eq!(worker.jobs(), [logs[2].0, logs[3].0]);
}

#[test]
fn the_oldest_finished_logs_go_while_there_are_too_many() {
    let host = Host::new();
    let mut worker = worker_with(&host, retention().logs_max(2));
    let (_, stdin) = start_cat(&mut worker);
    let logs: Vec<(JobId, PathBuf)> = (0..3).map(|_| run_raw(&mut worker, 10)).collect();
    let stats = pass(&mut worker);
    // The live one counts.
    assert_eq!(logs.iter().map(|(_, log)| log.exists()).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!((stats.logs, stats.logs_deleted), (2, 2));
    drop(stdin);
}

#[test]
fn live_logs_of_any_worker_stay_whatever_the_bounds() {
    let host = Host::new();
    let mut other = host.worker();
    let (other_job, mut other_stdin) = start_cat(&mut other);
    let (other_done, _) = run_raw(&mut other, 10);
    let mut worker = worker_with(&host, everything().bytes_max(0).logs_max(0));
    let (job, mut stdin) = start_cat(&mut worker);
    let stats = pass(&mut worker);
    assert_eq!((stats.logs, stats.logs_deleted), (2, 1), "the other worker's finished log goes");
    assert!(other.query(other_done).is_ok(), "what the other worker knows is its own business");
    for (worker, job, stdin) in [(&mut worker, job, &mut stdin), (&mut other, other_job, &mut other_stdin)] {
        stdin.write_all(b"still there\n").unwrap();
        turn_until(worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
        assert_eq!(common::output_of(&worker.query(job).unwrap()), b"still there\n");
    }
}

#[test]
fn a_log_goes_with_all_that_was_rotated_and_rotated_files_alone_go_too() {
    let host = Host::new();
    let directory = host.log_dir.path();
    let rotated = |number: u128, rotated: u64| format!("{}.{rotated:06}", log_name(number));
    plant(directory, &log_name(1), RECORD, DEAD, true);
    plant(directory, &rotated(1, 1), RECORD, DEAD, true);
    plant(directory, &rotated(1, 12), RECORD, DEAD, true);
    plant(directory, &rotated(2, 3), RECORD, DEAD, true);
    let plan = everything().plan(directory).unwrap();
    let files: Vec<(PathBuf, u64)> = plan.deleted.iter().map(|log| (log.path.clone(), log.files)).collect();
    assert_eq!(files.len(), 2);
    assert!(files.contains(&(directory.join(log_name(1)), 3)) && files.contains(&(directory.join(log_name(2)), 1)));
    let stats = pass(&mut worker_with(&host, everything()));
    assert_eq!((stats.logs_deleted, stats.files_deleted, stats.logs), (2, 4, 0));
    assert_eq!(host.logs(), Vec::<String>::new());
}

#[test]
fn a_log_that_is_rotated_all_the_time_loses_nothing_to_passes_and_goes_whole_when_it_is_finished() {
    let host = Host::new();
    let mut worker = worker_with(&host, Retention::new().age_max(Duration::ZERO).bytes_max(0).every(Duration::from_millis(10)));
    let policy = LogPolicy::new().bytes_max(4096).files_max(10_000);
    let script = "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i + 1)); done; read end";
    let job = worker.start(Command::shell(script).log_policy(policy).stdin_piped()).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 3000);
    let passes = worker.retention_stats().passes;
    turn_until(&mut worker, |worker, _| worker.retention_stats().passes > passes + 1);
    assert!(host.logs().len() > 30, "{:?}", host.logs());
    assert_eq!(worker.retention_stats().files_deleted, 0);
    let (files, bytes) = (host.logs().len() as u64, worker.retention_stats().bytes);
    drop(worker.take_stdin(job).unwrap());
    turn_until(&mut worker, |worker, _| worker.retention_stats().logs_deleted == 1);
    let stats = worker.retention_stats();
    assert_eq!((stats.files_deleted, stats.bytes_deleted, stats.failures), (files, bytes, 0));
    assert_eq!(host.logs(), Vec::<String>::new());
}

#[test]
fn rotated_files_of_a_live_worker_stay_while_their_newest_is_not_there() {
    let host = Host::new();
    let mut worker = worker_with(&host, everything());
    let locks = names(&locks_of(host.log_dir.path()));
    let own: Uuid = locks.first().unwrap().strip_suffix(".lock").unwrap().parse().unwrap();
    plant(host.log_dir.path(), &format!("{}.000001", log_name(1)), RECORD, own.as_u128(), true);
    assert_eq!(pass(&mut worker).logs, 1);
}

#[test]
fn two_workers_may_keep_one_directory_in_order() {
    let host = Host::new();
    for number in 0..500 {
        plant(host.log_dir.path(), &log_name(number), RECORD, DEAD, number % 2 == 0);
    }
    let every = Retention::new().logs_max(10).every(Duration::from_millis(10));
    let mut workers = [worker_with(&host, every.clone()), worker_with(&host, every)];
    let jobs: Vec<_> = workers.iter_mut().map(start_cat).collect();
    let deadline = Instant::now() + common::DEADLINE;
    let mut events = iron_exec::Events::new();
    while host.logs().len() > 10 {
        assert!(Instant::now() < deadline);
        for worker in &mut workers {
            worker.turn(&mut events, Some(Duration::from_millis(2))).unwrap();
        }
    }
    for (worker, (job, stdin)) in workers.iter_mut().zip(jobs) {
        assert_eq!(worker.retention_stats().last_failure, None);
        drop(stdin);
        assert!(finish(worker, job).log.unwrap().exists());
    }
}

// Left-overs.

#[test]
fn what_a_dead_worker_left_is_repaired_and_sealed_and_ages_from_then_on() {
    let host = Host::new();
    let directory = host.log_dir.path();
    let long_line = format!("2026-01-01T00:00:00.000000000Z stdout F {}", "x".repeat(200_000));
    let torn = [
        ("whole", RECORD.to_owned(), RECORD.len()),
        ("torn", format!("{RECORD}2026-01-01T00:00:00.0000"), RECORD.len()),
        ("nul", format!("{RECORD}{RECORD}{}", "\0".repeat(100_000)), 2 * RECORD.len()),
        ("torn and nul", format!("{RECORD}2026-01\0\0\0"), RECORD.len()),
        ("long", format!("{RECORD}{long_line}"), RECORD.len()),
        ("nothing but torn", "2026-01-01T".to_owned(), 0),
        ("empty", String::new(), 0),
    ];
    let logs: Vec<PathBuf> = torn
        .iter()
        .enumerate()
        .map(|(number, (_, content, _))| plant(directory, &log_name(number as u128), content, DEAD, false))
        .collect();
    let raw = plant(directory, &log_name(100), "raw\0\0", DEAD, false);
    set_mark(&raw, &format!("{} raw", Uuid::from_u128(DEAD)));
    let foreign = plant(directory, &log_name(101), "torn", DEAD, false);
    rustix::fs::removexattr(&foreign, "user.iron-exec").unwrap();

    let plan = everything().plan(directory).unwrap();
    assert_eq!((plan.leftovers.len(), plan.deleted.len(), plan.logs), (8, 8, 8));
    assert!(plan.deleted.iter().all(|log| log.state == LogState::Leftover && log.reason == DeleteReason::Age));
    assert!(retention().age_max(NEVER).plan(directory).unwrap().deleted.is_empty());
    assert!(logs.iter().all(|log| fs::metadata(log).unwrap().mode() & 0o777 == 0o600), "a plan changes nothing");

    let mut worker = worker_with(&host, retention().age_max(NEVER));
    let stats = pass(&mut worker);
    assert_eq!((stats.leftovers_sealed, stats.logs_deleted, stats.logs, stats.failures), (8, 0, 8, 0));
    for ((what, content, whole), log) in torn.iter().zip(&logs) {
        assert_eq!(fs::read(log).unwrap(), &content.as_bytes()[..*whole], "{what}");
        assert_eq!(fs::metadata(log).unwrap().mode() & 0o777, 0o400, "{what}");
    }
    assert_eq!(fs::read(&raw).unwrap(), b"raw\0\0");
    assert_eq!((fs::read(&foreign).unwrap(), fs::metadata(&foreign).unwrap().mode() & 0o777), (b"torn".to_vec(), 0o600));
    assert_eq!(pass(&mut worker).leftovers_sealed, 8, "once is enough");
    drop(worker);
    assert_eq!(pass(&mut worker_with(&host, everything())).logs_deleted, 8);
    assert_eq!(host.logs(), [log_name(101)]);
}

#[test]
fn what_a_dead_worker_had_not_put_into_its_place_goes() {
    let host = Host::new();
    let directory = host.log_dir.path();
    let next = |number: u128| format!("{}.000001.next", log_name(number));
    let mut worker = worker_with(&host, retention());
    let own: Uuid = names(&locks_of(directory)).first().unwrap().strip_suffix(".lock").unwrap().parse().unwrap();
    plant(directory, &next(1), RECORD, DEAD, false);
    plant(directory, &next(2), RECORD, DEAD, true);
    plant(directory, &next(3), RECORD, own.as_u128(), false);
    fs::write(directory.join(next(4)), RECORD).unwrap();
    fs::write(directory.join(format!("{}.next", log_name(5))), RECORD).unwrap();
    retention().plan(directory).unwrap();
    assert_eq!(host.logs().len(), 5);
    pass(&mut worker);
    assert_eq!(host.logs(), [next(3), next(4), format!("{}.next", log_name(5))]);
}

#[test]
fn workers_come_and_go_while_others_clear_locks_away() {
    let host = Host::new();
    let every = Retention::new().every(Duration::from_millis(10));
    let deadline = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut keeper =
                    Worker::builder().log_dir(host.log_dir.path()).cgroup_base(CgroupBase::Off).retention(every.clone()).build();
                let mut events = iron_exec::Events::new();
                while Instant::now() < deadline {
                    let keeper = keeper.as_mut().unwrap();
                    keeper.collect_logs();
                    keeper.turn(&mut events, Some(Duration::from_millis(1))).unwrap();
                }
                assert_eq!(keeper.unwrap().retention_stats().last_failure, None);
            });
            scope.spawn(|| {
                while Instant::now() < deadline {
                    Worker::builder().log_dir(host.log_dir.path()).cgroup_base(CgroupBase::Off).build().unwrap();
                }
            });
        }
    });
    assert!(names(host.log_dir.path()).is_empty());
}

/// The body of a host process: a worker, and a job that has written a line.
fn be_host(log_dir: &Path) {
    let mut worker = Worker::builder().log_dir(log_dir).cgroup_base(CgroupBase::Off).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker);
    stdin.write_all(b"one\n").unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    println!("SAYS {}", worker.query(job).unwrap().log.unwrap().display());
    turn_until(&mut worker, |_, _| false);
}

/// A host process with a live log in `log_dir`; also returns that log.
fn start_host(name: &str, log_dir: &Path) -> (process::Child, PathBuf) {
    let mut command = process::Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(HOST_DIR, log_dir).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said = lines.find_map(|line| line.unwrap().split_once("SAYS ").map(|(_, said)| PathBuf::from(said)));
    (child, said.unwrap())
}

/// A host is killed while it writes a log: it is collected, and what it had in the directory of locks with it.
fn a_killed_host_is_collected(name: &str, log_dir: &Path) {
    let host = Host::new();
    let (mut child, log) = start_host(name, log_dir);
    let builder = || host.builder().log_dir(log_dir);
    let mut worker = builder().retention(everything()).build().unwrap();
    assert_eq!((pass(&mut worker).logs_deleted, log.exists()), (0, true), "it lives");
    assert_eq!(locks(log_dir, "lock"), 2);
    drop(worker);
    child.kill().unwrap();
    child.wait().unwrap();

    let mut worker = builder().retention(retention().age_max(NEVER)).build().unwrap();
    let stats = pass(&mut worker);
    assert_eq!((stats.leftovers_sealed, stats.logs, stats.failures), (1, 1, 0));
    assert_eq!(common::read_log(&log), b"one\n");
    assert_eq!(fs::metadata(&log).unwrap().mode() & 0o777, 0o400);
    assert_eq!(locks(log_dir, "lock"), 1 + tables(log_dir));
    drop(worker);
    let mut worker = builder().retention(everything()).build().unwrap();
    assert_eq!((pass(&mut worker).logs_deleted, log.exists()), (1, false));
    pass(&mut worker);
    assert_eq!(names(&locks_of(log_dir)).len(), 1, "our own lock, and nothing of the dead");
    drop(worker);
    assert!(names(log_dir).is_empty());
}

/// How many files of this kind there are in the directory of locks.
fn locks(log_dir: &Path, kind: &str) -> usize {
    names(&locks_of(log_dir)).iter().filter(|name| Path::new(name).extension() == Some(kind.as_ref())).count()
}

fn tables(log_dir: &Path) -> usize {
    locks(log_dir, "logs")
}

#[test]
fn the_log_of_a_host_that_was_killed_is_sealed_collected_and_its_lock_goes() {
    const NAME: &str = "the_log_of_a_host_that_was_killed_is_sealed_collected_and_its_lock_goes";
    match std::env::var_os(HOST_DIR) {
        Some(directory) => be_host(Path::new(&directory)),
        None => a_killed_host_is_collected(NAME, tempfile::tempdir().unwrap().path()),
    }
}

/// A file system that keeps no user attributes, for as long as it lives.
struct PlainDisk(tempfile::TempDir);

impl PlainDisk {
    /// `None` if the test is to be skipped.
    fn mount() -> Option<Self> {
        if not_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let mounted = process::Command::new("mount").args(["-t", "ramfs", "none"]).arg(directory.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            let _ = common::cannot_run("a ramfs cannot be mounted");
            return None;
        }
        Some(Self(directory))
    }
}

impl Drop for PlainDisk {
    fn drop(&mut self) {
        let _ = process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn without_attributes_a_killed_host_is_collected_by_its_table() {
    const NAME: &str = "without_attributes_a_killed_host_is_collected_by_its_table";
    if let Some(directory) = std::env::var_os(HOST_DIR) {
        return be_host(Path::new(&directory));
    }
    let Some(disk) = PlainDisk::mount() else { return };
    a_killed_host_is_collected(NAME, disk.0.path());
}

#[test]
fn without_attributes_logs_are_known_when_their_worker_has_ended_until_the_last_is_gone() {
    let Some(disk) = PlainDisk::mount() else { return };
    let (host, directory) = (Host::new(), disk.0.path());
    let mut first = host.builder().log_dir(directory).build().unwrap();
    let (_, log) = run_raw(&mut first, 10);
    fs::write(directory.join(log_name(1)), "somebody else's").unwrap();
    drop(first);
    assert_eq!(tables(directory), 1);
    let mut worker = host.builder().log_dir(directory).retention(everything()).build().unwrap();
    let stats = pass(&mut worker);
    assert_eq!((stats.logs_deleted, log.exists(), stats.failures), (1, false, 0));
    pass(&mut worker);
    assert_eq!(tables(directory), 0);
    drop(worker);
    assert_eq!(names(directory), BTreeSet::from([log_name(1)]));
}

#[test]
fn without_attributes_rotated_files_go_with_their_log() {
    let Some(disk) = PlainDisk::mount() else { return };
    let (host, directory) = (Host::new(), disk.0.path());
    let policy = LogPolicy::new().bytes_max(4096).files_max(100);
    let mut first = host.builder().log_dir(directory).log_policy(policy).build().unwrap();
    let status = first.run_job(Command::shell("i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i + 1)); done")).unwrap();
    assert!(status.success());
    drop(first);
    let files = names(directory).len() as u64 - 1;
    assert!(files > 5, "{files}");
    let mut worker = host.builder().log_dir(directory).retention(everything()).build().unwrap();
    let stats = pass(&mut worker);
    assert_eq!((stats.logs_deleted, stats.files_deleted, stats.logs, stats.failures), (1, files, 0, 0));
    pass(&mut worker);
    drop(worker);
    assert!(names(directory).is_empty());
}

// A directory that others can write.

#[test]
fn what_others_have_put_into_the_directory_is_not_touched() {
    let host = Host::new();
    let directory = host.log_dir.path();
    set_mode(directory, 0o1777);
    let outside = tempfile::tempdir().unwrap();
    let target = plant(outside.path(), &log_name(50), RECORD, DEAD, true);
    let mark = format!("{} cri", Uuid::from_u128(DEAD));
    // Each has the name of a log, and as much more of one as can be had.
    assert!(process::Command::new("mkfifo").arg(directory.join(log_name(1))).status().unwrap().success());
    std::os::unix::fs::symlink(&target, directory.join(log_name(2))).unwrap();
    fs::create_dir(directory.join(log_name(3))).unwrap();
    plant(directory, &log_name(4), RECORD, DEAD, true);
    fs::hard_link(directory.join(log_name(4)), directory.join(log_name(5))).unwrap();
    fs::write(directory.join(log_name(6)), RECORD).unwrap();
    set_mode(&directory.join(log_name(6)), 0o400);
    for (number, mark) in [(7, "nonsense"), (8, ""), (9, &*format!("{mark} 1")), (10, &*"x".repeat(1000))] {
        let path = directory.join(log_name(number));
        fs::write(&path, RECORD).unwrap();
        set_mark(&path, mark);
        set_mode(&path, 0o400);
    }
    // Names that only look like a log's, and one that would break a line.
    for name in ["make.log".to_owned(), format!("{}.1", log_name(11)), format!("a\nb_{}.log", Uuid::from_u128(12))] {
        plant(directory, &name, RECORD, DEAD, true);
    }
    let listening = std::os::unix::net::UnixListener::bind(directory.join(log_name(13))).unwrap();
    if rustix::process::geteuid().is_root() {
        let theirs = plant(directory, &log_name(14), RECORD, DEAD, true);
        std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
        // One that waits to be repaired, too.
        let theirs = plant(directory, &log_name(15), "torn", DEAD, false);
        std::os::unix::fs::chown(&theirs, Some(NOBODY), Some(NOBODY)).unwrap();
    } else {
        let _ = common::cannot_run("only root can give files away: that part is left out");
    }
    let looks = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.ino(), meta.mode(), meta.uid(), meta.len(), meta.ctime(), meta.ctime_nsec())
    };
    let before: Vec<_> = host.logs().iter().map(|name| (name.clone(), looks(&directory.join(name)))).collect();
    let ours = plant(directory, &log_name(99), RECORD, DEAD, true);

    let retention = everything().bytes_max(0).logs_max(0);
    let plan = retention.plan(directory).unwrap();
    assert_eq!(plan.deleted.iter().map(|log| &log.path).collect::<Vec<_>>(), [&ours]);
    let stats = pass(&mut worker_with(&host, retention));
    assert_eq!((stats.logs_deleted, stats.leftovers_sealed, stats.failures), (1, 0, 0), "{stats:?}");
    let after: Vec<_> = host.logs().iter().map(|name| (name.clone(), looks(&directory.join(name)))).collect();
    assert_eq!(before, after);
    assert_eq!(fs::read_to_string(target).unwrap(), RECORD);
    drop(listening);
}

#[test]
fn a_directory_that_cannot_be_written_is_told_of_and_not_tried_for_ever() {
    const NAME: &str = "a_directory_that_cannot_be_written_is_told_of_and_not_tried_for_ever";
    if !common::is_isolated() && not_root() {
        return;
    }
    let as_nobody = &mut process::Command::new(std::env::current_exe().unwrap());
    isolated_behind(as_nobody.uid(NOBODY).gid(NOBODY), NAME, || {
        let directory = tempfile::tempdir_in("/tmp").unwrap();
        for number in 0..100 {
            plant(directory.path(), &log_name(number), RECORD, DEAD, true);
        }
        let retention = everything().every(Duration::from_millis(100));
        let builder = Worker::builder().log_dir(directory.path()).cgroup_base(CgroupBase::Off);
        let mut worker = builder.retention(retention).build().unwrap();
        set_mode(directory.path(), 0o555);
        let began = Instant::now();
        turn_until(&mut worker, |worker, _| worker.retention_stats().passes == 3);
        assert!(began.elapsed() >= Duration::from_millis(200), "it waits in between");
        let stats = worker.retention_stats();
        assert_eq!((stats.logs_deleted, stats.logs, stats.bytes), (0, 100, 100 * RECORD.len() as u64));
        assert!((3 * 16..=3 * 32).contains(&stats.failures), "a few tell enough: {}", stats.failures);
        let failure = stats.last_failure.unwrap();
        assert_eq!((failure.operation(), failure.errno()), ("deleting", rustix::io::Errno::ACCESS.raw_os_error()));
        assert_eq!(failure.path().unwrap().parent(), Some(directory.path()));
        set_mode(directory.path(), 0o755);
        turn_until(&mut worker, |worker, _| worker.retention_stats().logs_deleted == 100);
    });
}

// The loop.

#[test]
fn a_descriptor_of_retention_is_open_only_during_a_pass_and_none_is_left() {
    isolated("a_descriptor_of_retention_is_open_only_during_a_pass_and_none_is_left", || {
        let host = Host::new();
        let mut worker = worker_with(&host, everything());
        pass(&mut worker);
        let before = Census::take(&host);
        for number in 0..300 {
            plant(host.log_dir.path(), &log_name(number), RECORD, DEAD, number % 2 == 0);
        }
        pass(&mut worker);
        let after = Census::take(&host);
        assert_eq!(before, after);
        assert_eq!(common::threads(), 2, "libtest's own, and this one");
    });
}

#[test]
fn the_descriptor_speaks_up_for_a_pass_and_is_quiet_in_between() {
    let host = Host::new();
    plant(host.log_dir.path(), &log_name(1), RECORD, DEAD, true);
    let mut worker = worker_with(&host, everything().every(Duration::from_secs(4)));
    let mut events = iron_exec::Events::new();
    let is_readable = |worker: &Worker, timeout: Duration| {
        let timeout = Timespec::try_from(timeout).unwrap();
        rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(worker, PollFlags::IN)], Some(&timeout))).unwrap() > 0
    };
    // Nothing but the descriptor drives it, from the beginning on.
    let mut turns = 0;
    while worker.retention_stats().passes == 0 {
        assert!(is_readable(&worker, common::DEADLINE), "the descriptor stays silent");
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
        turns += 1;
    }
    assert_eq!(worker.retention_stats().logs_deleted, 1);
    assert!(turns < 50, "{turns} turns for one log");
    // What is left of the pass is at most a word or two.
    let settled = Instant::now() + Duration::from_millis(500);
    while Instant::now() < settled && is_readable(&worker, Duration::from_millis(100)) {
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    }
    assert!(!is_readable(&worker, Duration::from_millis(500)), "it is quiet between two passes");
    while worker.retention_stats().passes == 1 {
        assert!(is_readable(&worker, common::DEADLINE), "the next pass is announced");
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
    }
    worker.collect_logs();
    assert!(is_readable(&worker, Duration::ZERO) || is_readable(&worker, Duration::from_millis(100)), "a pass that is asked for is, too");
}

#[test]
fn the_descriptor_is_readable_once_for_each_step_of_a_pass() {
    let host = Host::new();
    for number in 0..1600 {
        plant(host.log_dir.path(), &log_name(number), RECORD, DEAD, true);
    }
    let mut worker = worker_with(&host, everything());
    let mut events = iron_exec::Events::new();
    // While logs are deleted each step shows.
    let (mut turns, mut steps) = (0, 0);
    while worker.retention_stats().logs_deleted < 1600 {
        let before = worker.retention_stats().logs_deleted;
        let timeout = Timespec::try_from(common::DEADLINE).unwrap();
        let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&worker, PollFlags::IN)], Some(&timeout))).unwrap();
        assert!(ready > 0, "the descriptor stays silent");
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
        steps += i32::from(worker.retention_stats().logs_deleted > before);
        turns += i32::from(before > 0);
    }
    assert!(steps >= 100 && turns <= steps + steps / 4, "{turns} turns for {steps} steps");
}

#[test]
fn a_worker_without_retention_keeps_everything() {
    let host = Host::new();
    plant(host.log_dir.path(), &log_name(1), "torn", DEAD, false);
    let mut worker = host.worker();
    worker.collect_logs();
    let (job, _) = run_raw(&mut worker, 10);
    assert_eq!(worker.retention_stats(), RetentionStats::default());
    assert!(worker.query(job).is_ok());
    assert_eq!(host.logs().len(), 2);
}

#[test]
fn retention_out_of_range_is_refused_when_the_worker_is_built() {
    let host = Host::new();
    for wrong in [Retention::new().every(Duration::ZERO), Retention::new().archive(Archive::new("http://bucket"))] {
        let error = host.builder().retention(wrong).build().unwrap_err();
        assert!(matches!(error, BuildError::Retention { .. }), "{error}");
    }
    assert!(names(host.log_dir.path()).is_empty());
}

// The archive.

/// A program that speaks the archive's protocol, and does what the variable MODE says.
const ARCHIVER: &str = r#"#!/bin/sh
printf '%s\n' "$@" > "$STORE/.args"
env > "$STORE/.env"
echo "noise on stdout"; echo "noise on stderr" >&2
directory=$5
cat > "$STORE/.names"
count=0
case $MODE in
    later) if [ ! -e "$STORE/.called" ]; then MODE=none; fi; : > "$STORE/.called" ;;
    hang) sleep 1000 ;;
    huge) yes 'stored	1	nonsense	x' >&3 ; exit 0 ;;
    lie)
        printf 'stored\t3\t%064d\t%s\n' 0 ../outside.log "$VICTIM" /etc/passwd >&3
        exit 0 ;;
esac
tr '\0' '\n' < "$STORE/.names" | while read -r name; do
    count=$((count + 1))
    size=$(stat -c %s "$directory/$name")
    sha=$(sha256sum < "$directory/$name" | cut -d' ' -f1)
    case $MODE in
        partly) if [ $((count % 2)) = 0 ]; then printf 'failed\tno room\t%s\n' "$name" >&3; continue; fi ;;
        none) printf 'failed\tno room\t%s\n' "$name" >&3; continue ;;
        crash) if [ $count = 2 ]; then kill -9 $$; exit; fi ;;
        nonsense) if [ $count = 2 ]; then echo nonsense >&3; kill -9 $$; exit; fi ;;
        slow) if [ $count = 2 ]; then sleep 1000; fi ;;
        short) size=$((size - 1)) ;;
        change) echo more > "$directory/$name.new"; mv "$directory/$name.new" "$directory/$name" ;;
    esac
    cp "$directory/$name" "$STORE/$name"
    printf 'stored\t%s\t%s\t%s\n' "$size" "$sha" "$name" >&3
done
case $MODE in
    partly|none) exit 1 ;;
    seven) exit 7 ;;
esac
exit 0
"#;

/// A directory with three logs, and an archive.
struct Archived {
    host: Host,
    store: tempfile::TempDir,
    program: PathBuf,
}

impl Archived {
    fn new(logs: u128) -> Self {
        let (host, store) = (Host::new(), tempfile::tempdir().unwrap());
        for number in 0..logs {
            plant(host.log_dir.path(), &log_name(number), format!("{RECORD}{number}\n"), DEAD, true);
        }
        let program = store.path().join(".program");
        fs::write(&program, ARCHIVER).unwrap();
        set_mode(&program, 0o755);
        Self { host, store, program }
    }

    fn archive(&self, mode: &str) -> Archive {
        Archive::new("s3://bucket/prefix").program(&self.program).env("MODE", mode).env("STORE", self.store.path())
    }

    fn worker(&self, archive: Archive) -> Worker {
        worker_with(&self.host, everything().archive(archive))
    }

    fn stored(&self) -> Vec<String> {
        names(self.store.path()).into_iter().filter(|name| !name.starts_with('.')).collect()
    }

    fn calls_args(&self) -> Vec<String> {
        fs::read_to_string(self.store.path().join(".args")).unwrap().lines().map(str::to_owned).collect()
    }
}

#[test]
fn with_an_archive_a_log_is_stored_before_it_goes() {
    let archived = Archived::new(150);
    let mut worker = archived.worker(archived.archive("ok"));
    let mut events = Vec::new();
    events.extend(turn_until(&mut worker, |worker, _| worker.retention_stats().passes == 1));
    assert_eq!(events, [], "nobody hears of the command");
    assert_eq!((worker.jobs(), worker.unfinished_jobs()), (vec![], 0));
    let stats = worker.retention_stats();
    assert_eq!((stats.files_archived, stats.logs_deleted, stats.files_deleted, stats.logs), (150, 150, 150, 0), "{stats:?}");
    assert_eq!((stats.failures, stats.bytes_archived), (0, stats.bytes_deleted));
    assert_eq!(archived.host.logs(), Vec::<String>::new());
    assert_eq!(archived.stored().len(), 150);
    assert_eq!(fs::read_to_string(archived.store.path().join(log_name(3))).unwrap(), format!("{RECORD}3\n"));
    let directory = archived.host.log_dir.path().to_str().unwrap();
    let expected =
        ["archive", "--to", "s3://bucket/prefix", "--directory", directory, "--compress", "none", "--report-fd", "3", "--files0-from", "-"]
            .map(str::to_owned);
    assert_eq!(archived.calls_args(), expected);
    assert_eq!(archived.host.cgroups(), Vec::<String>::new());
}

#[test]
fn compression_is_asked_for_and_then_the_object_has_another_size() {
    let archived = Archived::new(1);
    let stats = pass(&mut archived.worker(archived.archive("short").compress(true)));
    assert_eq!((stats.logs_deleted, stats.failures), (1, 0));
    assert_eq!(archived.calls_args()[5..7], ["--compress", "zstd"]);
}

#[test]
fn what_was_not_stored_stays() {
    // The mode, what goes of three logs, and what is said.
    let cases: [(&str, u64, &str); 10] = [
        ("partly", 2, "no room"),
        ("none", 0, "no room"),
        ("crash", 1, "killed by SIGKILL"),
        ("nonsense", 0, "killed by SIGKILL"),
        ("slow", 1, "longer than Archive::timeout"),
        ("seven", 0, "exit code 7"),
        ("short", 0, "it was reported as stored with"),
        ("lie", 0, "the command said nothing of it"),
        ("huge", 0, "the command"),
        ("change", 0, ""),
    ];
    for (mode, gone, said) in cases {
        let archived = Archived::new(3);
        let outside = archived.host.log_dir.path().join("outside.log");
        fs::write(&outside, "hi\n").unwrap();
        let timeout = Duration::from_secs(if mode == "slow" { 3 } else { 600 });
        let mut worker = archived.worker(archived.archive(mode).env("VICTIM", "outside.log").timeout(timeout));
        let stats = pass(&mut worker);
        assert_eq!((stats.logs_deleted, stats.logs), (gone, 3 - gone), "{mode}: {stats:?}");
        let left = archived.host.logs().iter().filter(|name| name.starts_with("make_")).count() as u64;
        assert_eq!(left, 3 - gone, "{mode}");
        assert!(outside.exists());
        let message = stats.last_failure.map(|failure| failure.to_string()).unwrap_or_default();
        assert!(message.contains(said) && message.is_empty() == said.is_empty(), "{mode}: {message}");
        assert_eq!((worker.jobs(), worker.unfinished_jobs()), (vec![], 0), "{mode}");
    }
}

#[test]
fn files_behind_those_that_could_not_be_stored_have_their_turn_in_the_same_pass() {
    let archived = Archived::new(70);
    let stats = pass(&mut archived.worker(archived.archive("later")));
    assert_eq!((stats.logs_deleted, stats.logs, archived.stored().len()), (6, 64, 6), "{stats:?}");
}

#[test]
fn an_archive_that_works_again_is_used_again() {
    let archived = Archived::new(3);
    let switch = archived.store.path().join(".works");
    let script = format!("#!/bin/sh\n[ -e {} ] || exit 9\nexec {} \"$@\"\n", switch.display(), archived.program.display());
    let program = archived.store.path().join(".switched");
    fs::write(&program, script).unwrap();
    set_mode(&program, 0o755);
    let retention = everything().every(Duration::from_millis(20)).archive(archived.archive("ok").program(&program));
    let mut worker = worker_with(&archived.host, retention);
    turn_until(&mut worker, |worker, _| worker.retention_stats().passes >= 10);
    let failures = worker.retention_stats().failures;
    assert!((1..10).contains(&failures), "less often than every pass: {failures}");
    assert_eq!(worker.retention_stats().files_deleted, 0);
    fs::write(&switch, "").unwrap();
    turn_until(&mut worker, |worker, _| worker.retention_stats().logs_deleted == 3);
    assert_eq!(archived.stored().len(), 3);
}

#[test]
fn a_command_that_hangs_is_killed_and_one_that_is_not_there_is_told_of() {
    let archived = Archived::new(2);
    let began = Instant::now();
    let stats = pass(&mut archived.worker(archived.archive("hang").timeout(Duration::from_millis(300))));
    assert!(began.elapsed() < Duration::from_secs(20));
    assert_eq!((stats.logs_deleted, stats.logs), (0, 2));
    assert!(stats.last_failure.unwrap().to_string().contains("longer than Archive::timeout"));
    for env_base in [EnvBase::Inherit, EnvBase::Clear] {
        let archive = archived.archive("ok").program("iron-exec-is-not-there");
        let builder = archived.host.builder().env_base(env_base).retention(everything().archive(archive));
        let stats = pass(&mut builder.build().unwrap());
        assert_eq!((stats.logs_deleted, stats.logs), (0, 2));
        let failure = stats.last_failure.unwrap();
        assert_eq!(failure.errno(), rustix::io::Errno::NOENT.raw_os_error());
        assert!(failure.to_string().contains("Archive::program"), "{failure}");
    }
}

#[test]
fn however_the_command_ends_nothing_of_it_is_left() {
    isolated("however_the_command_ends_nothing_of_it_is_left", || {
        for mode in ["ok", "partly", "crash", "slow", "seven", "huge", "hang", "missing"] {
            let archived = Archived::new(3);
            let program = if mode == "missing" { Path::new("/nonexistent") } else { &archived.program };
            let archive = archived.archive(mode).program(program).timeout(Duration::from_millis(500));
            let mut worker = worker_with(&archived.host, retention().age_max(NEVER).logs_max(100).archive(archive));
            pass(&mut worker);
            let before = Census::take(&archived.host);
            for number in 100..200 {
                plant(archived.host.log_dir.path(), &log_name(number), RECORD, DEAD, true);
            }
            let calls = worker.retention_stats();
            pass(&mut worker);
            assert!(worker.retention_stats() != calls, "{mode}");
            let after = Census::take(&archived.host);
            assert_eq!(
                (before.fds, before.children, before.watches, before.cgroups),
                (after.fds, after.children, after.watches, after.cgroups),
                "{mode}"
            );
        }
    });
}

#[test]
fn the_command_is_killed_with_the_worker() {
    let archived = Archived::new(1);
    let mut worker = archived.worker(archived.archive("hang"));
    let names_file = archived.store.path().join(".names");
    turn_until_seen(&mut worker, &names_file);
    assert_eq!((worker.jobs(), worker.unfinished_jobs()), (vec![], 0));
    let began = Instant::now();
    drop(worker);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!((archived.host.logs().len(), archived.host.cgroups()), (1, vec![]));
    // The directory of locks has gone with the worker, so it waited for the end of the command.
    assert!(!locks_of(archived.host.log_dir.path()).exists());
}

#[test]
fn with_a_clear_environment_the_command_has_a_path_and_its_credentials_and_no_job_has_them() {
    let archived = Archived::new(1);
    let archive = archived.archive("ok").env("AWS_SECRET_ACCESS_KEY", "hunter2");
    let builder = archived.host.builder().env_base(EnvBase::Clear).retention(retention().logs_max(0).archive(archive));
    let mut worker = builder.build().unwrap();
    pass(&mut worker);
    let text = fs::read_to_string(archived.store.path().join(".env")).unwrap();
    let keys: BTreeSet<&str> = text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    // The last three are the shell's.
    let known = BTreeSet::from(["PATH", "MODE", "STORE", "AWS_SECRET_ACCESS_KEY", "PWD", "SHLVL", "_"]);
    assert!(keys.is_subset(&known) && keys.contains("PATH") && text.contains("AWS_SECRET_ACCESS_KEY=hunter2"), "{text}");
    let status = worker.run_job(Command::new("/usr/bin/env")).unwrap();
    let output = String::from_utf8(common::output_of(&status)).unwrap();
    assert!(!output.contains("AWS"), "{output}");
}

#[test]
fn jobs_go_on_while_logs_are_archived() {
    let archived = Archived::new(1);
    let mut worker = archived.worker(archived.archive("hang"));
    let names_file = archived.store.path().join(".names");
    turn_until_seen(&mut worker, &names_file);
    for _ in 0..5 {
        let job = worker.start(Command::shell("echo hello")).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(common::output_of(&status), b"hello\n");
    }
    assert_eq!(worker.jobs().len(), 5);
    assert!(worker.retention_stats().running);
}

// Many logs.

/// Logs of a directory that is full of them.
const LOGS: u64 = 10_000;

#[test]
fn a_job_answers_at_once_while_thousands_of_logs_are_collected() {
    let host = Host::new();
    for number in 0..LOGS {
        plant(host.log_dir.path(), &log_name(u128::from(number)), RECORD, DEAD, true);
    }
    let mut worker = worker_with(&host, everything());
    let (job, mut stdin) = start_cat(&mut worker);
    let mut events = iron_exec::Events::new();
    let (mut longest, mut turns, began) = (Duration::ZERO, 0, Instant::now());
    while worker.retention_stats().logs_deleted < LOGS {
        assert!(began.elapsed() < 4 * common::DEADLINE);
        let (mut left, before) = (worker.retention_stats(), Instant::now());
        worker.turn(&mut events, Some(Duration::ZERO)).unwrap();
        longest = longest.max(before.elapsed());
        let done = worker.retention_stats();
        left.files_deleted += 16;
        assert!(done.files_deleted <= left.files_deleted, "one turn deletes a few");
        turns += 1;
    }
    println!("{LOGS} logs on disk in {turns} turns and {:?}; the longest turn took {longest:?}", began.elapsed());
    stdin.write_all(b"hello\n").unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    assert_eq!(host.logs().len(), 1);
}
