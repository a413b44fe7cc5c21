//! Promise: in a directory that others can write, logs are safe: no stranger's file is written, no link followed, no log read or removed by somebody
//! else, and what stands in the way is named and left alone.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{DEADLINE, Host, finish, isolated, not_root, output_of, turn_until, wait_until};
use iron_exec::{BuildError, CgroupBase, Command, JobId, LogReader, Worker};

/// Some user who is not us.
const NOBODY: u32 = 65534;

/// The directory that a host process of a test is told to use.
const HOST_DIR: &str = "IRON_EXEC_TEST_HOST_DIR";

/// The directory of locks of a user below a log directory.
fn locks_of(log_dir: &Path, uid: u32) -> PathBuf {
    log_dir.join(format!(".iron-exec-{uid}"))
}

fn own_locks(log_dir: &Path) -> PathBuf {
    locks_of(log_dir, rustix::process::geteuid().as_raw())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A host whose log directory is like `/tmp`.
fn public_host() -> Host {
    let host = Host::new();
    set_mode(host.log_dir.path(), 0o1777);
    host
}

/// Everything below a directory: type and mode, owner, length.
fn tree(directory: &Path) -> BTreeMap<PathBuf, (u32, u32, u64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.extend(tree(&path));
        }
        found.insert(path, (meta.mode(), meta.uid(), if meta.is_dir() { 0 } else { meta.len() }));
    }
    found
}

fn start_cat(worker: &mut Worker) -> (JobId, std::io::PipeWriter) {
    let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
    (job, worker.take_stdin(job).unwrap().unwrap())
}

/// Sends a line through the job and turns the loop until it is in the log.
fn echo(worker: &mut Worker, job: JobId, stdin: &mut impl Write, line: &str) {
    let lines = worker.query(job).unwrap().output.lines;
    stdin.write_all(line.as_bytes()).unwrap();
    turn_until(worker, |worker, _| worker.query(job).unwrap().output.lines > lines);
}

/// What `sh -c script` says as another user.
fn as_nobody(script: &str, directory: &Path) -> process::Output {
    process::Command::new("sh").args(["-c", script]).current_dir(directory).uid(NOBODY).gid(NOBODY).output().unwrap()
}

/// Runs `body` in a thread and fails if it takes too long.
fn within_deadline<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(body()));
    receiver.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{what} took too long"))
}

fn follow_to_the_end(path: &Path) -> Vec<u8> {
    let path = path.to_owned();
    within_deadline("following the log", move || {
        let mut bytes = Vec::new();
        LogReader::follow(path).unwrap().read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// A host process: this very test, run again with a directory.
struct HostProcess {
    child: process::Child,
    lines: std::io::Lines<BufReader<process::ChildStdout>>,
}

impl HostProcess {
    fn start(name: &str, log_dir: &Path, uid: Option<u32>) -> Self {
        let mut command = process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture", "--test-threads=1"]).env(HOST_DIR, log_dir).current_dir("/").stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says next.
    fn hear(&mut self) -> String {
        let line = self.lines.find_map(|line| line.unwrap().split_once("SAYS ").map(|(_, said)| said.to_owned()));
        line.expect("the host process says something")
    }

    /// SIGKILL.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// The body of a host process: a worker, and a job that has written two lines and a half and is followed by nothing.
fn be_host(log_dir: &Path) {
    let mut worker = Worker::builder().log_dir(log_dir).cgroup_base(CgroupBase::Off).line_flush_time(Duration::ZERO).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker);
    echo(&mut worker, job, &mut stdin, "one\n");
    echo(&mut worker, job, &mut stdin, "two\n");
    stdin.write_all(b"half").unwrap();
    let log = worker.query(job).unwrap().log.unwrap();
    turn_until(&mut worker, |_, _| fs::read(&log).unwrap().ends_with(b"half\n"));
    println!("SAYS {}", log.display());
    turn_until(&mut worker, |_, _| false);
}

// The directory of locks.

/// What a squatter puts where our directory of locks is to be.
#[derive(Clone, Copy, Debug)]
enum Squat {
    LinkToOurs,
    LinkToTheirs,
    DanglingLink,
    File,
    Fifo,
    Theirs,
    WritableByGroup,
    WritableByAll,
}

#[test]
fn what_stands_in_place_of_the_lock_directory_is_named_and_left_alone() {
    const NAME: &str = "what_stands_in_place_of_the_lock_directory_is_named_and_left_alone";
    isolated(NAME, || {
        let is_root = rustix::process::geteuid().is_root();
        let squats = [
            Squat::LinkToOurs,
            Squat::DanglingLink,
            Squat::File,
            Squat::Fifo,
            Squat::WritableByGroup,
            Squat::WritableByAll,
            Squat::LinkToTheirs,
            Squat::Theirs,
        ];
        for squat in squats {
            if matches!(squat, Squat::LinkToTheirs | Squat::Theirs) && !is_root {
                continue;
            }
            let host = public_host();
            let (locks, aside) = (own_locks(host.log_dir.path()), host.log_dir.path().join("aside"));
            let directory = |path: &Path, uid, mode| {
                fs::create_dir(path).unwrap();
                std::os::unix::fs::chown(path, uid, None).unwrap();
                set_mode(path, mode);
            };
            let link = || std::os::unix::fs::symlink(&aside, &locks).unwrap();
            match squat {
                Squat::LinkToOurs => {
                    directory(&aside, None, 0o700);
                    link();
                }
                Squat::LinkToTheirs => {
                    directory(&aside, Some(NOBODY), 0o777);
                    link();
                }
                Squat::DanglingLink => link(),
                Squat::File => fs::write(&locks, "x").unwrap(),
                Squat::Fifo => assert!(process::Command::new("mkfifo").arg(&locks).status().unwrap().success()),
                Squat::Theirs => directory(&locks, Some(NOBODY), 0o700),
                Squat::WritableByGroup => directory(&locks, None, 0o770),
                Squat::WritableByAll => directory(&locks, None, 0o1777),
            }
            let (before, fds) = (tree(host.log_dir.path()), common::open_fds());

            let error = host.builder().build().expect_err("the place is not ours");
            let is_directory = matches!(squat, Squat::Theirs | Squat::WritableByGroup | Squat::WritableByAll);
            let named = match &error {
                BuildError::Untrusted { path, uid } if is_directory => {
                    assert_eq!(*uid, rustix::process::geteuid().as_raw());
                    path
                }
                BuildError::LogDir { path, source } if !is_directory => {
                    assert!(source.raw_os_error().is_some(), "{squat:?}: {source}");
                    path
                }
                other => panic!("{squat:?}: {other:?}"),
            };
            assert_eq!(named, &locks, "{squat:?}");
            assert!(error.to_string().contains(locks.to_str().unwrap()), "{squat:?}: {error}");
            assert_eq!(tree(host.log_dir.path()), before, "{squat:?}: nothing was made, nothing was touched");
            assert_eq!(common::open_fds(), fds, "{squat:?}");
            assert!(host.base.as_ref().is_none_or(|base| !base.exists()), "{squat:?}: no cgroup is left");
        }
        if !is_root {
            let _ = common::cannot_run("directories of another user need root");
        }
    });
}

#[test]
fn a_log_directory_that_cannot_be_used_is_named() {
    let host = Host::new();
    let file = host.log_dir.path().join("file");
    fs::write(&file, "").unwrap();
    let missing = host.log_dir.path().join("missing");
    for (path, kind) in [(&missing, std::io::ErrorKind::NotFound), (&file, std::io::ErrorKind::NotADirectory)] {
        let error = host.builder().log_dir(path).build().unwrap_err();
        let BuildError::LogDir { path: named, source } = &error else { panic!("{error:?}") };
        assert_eq!((named, source.kind()), (path, kind));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(host.base.as_ref().is_none_or(|base| !base.exists()), "no cgroup is left");
    }
    assert!(!missing.exists());

    // Nobody, not even root, makes a directory there.
    let error = host.builder().log_dir("/proc/self/fdinfo").build().unwrap_err();
    let BuildError::LogDir { path: named, .. } = &error else { panic!("{error:?}") };
    assert_eq!(named, &own_locks(Path::new("/proc/self/fdinfo")));
    assert!(matches!(host.builder().log_dir("").build(), Err(BuildError::LogDir { .. })));
}

#[test]
fn a_relative_log_directory_stays_where_it_was() {
    isolated("a_relative_log_directory_stays_where_it_was", || {
        let host = Host::new();
        fs::create_dir(host.log_dir.path().join("logs")).unwrap();
        std::env::set_current_dir(host.log_dir.path()).unwrap();
        let mut worker = host.builder().log_dir("logs").open_logs_max(0).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker);
        std::env::set_current_dir("/").unwrap();
        echo(&mut worker, job, &mut stdin, "one\n");
        drop(stdin);
        let status = finish(&mut worker, job);
        assert_eq!(status.log.as_ref().unwrap().parent(), Some(&*host.log_dir.path().join("logs")));
        assert_eq!(output_of(&status), b"one\n");
        drop(worker);
        assert_eq!(names(&host.log_dir.path().join("logs")).len(), 1, "the lock went with the worker");
    });
}

#[test]
fn workers_share_a_log_directory_and_the_last_one_clears_it() {
    let host = public_host();
    let locks = own_locks(host.log_dir.path());
    let (mut one, mut other) = (host.worker(), host.worker());
    assert_eq!(mode(&locks), 0o700);
    assert_eq!(names(&locks).len(), 2, "each has its lock");
    assert!(names(&locks).iter().all(|name| name.contains(".lock") && mode(&locks.join(name)) == 0o600));
    for (worker, text) in [(&mut one, "one\n"), (&mut other, "other\n")] {
        let (job, mut stdin) = start_cat(worker);
        echo(worker, job, &mut stdin, text);
        drop(stdin);
        assert_eq!(output_of(&finish(worker, job)), text.as_bytes());
    }
    drop(one);
    assert_eq!(names(&locks).len(), 1);
    let (job, stdin) = start_cat(&mut other);
    drop(stdin);
    assert!(finish(&mut other, job).success());
    drop(other);
    assert!(!locks.exists());
    assert_eq!(host.logs().len(), 3, "logs stay");
}

#[test]
fn workers_that_come_and_go_in_one_directory_do_not_disturb_each_other() {
    let host = Host::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    drop(Worker::builder().log_dir(host.log_dir.path()).cgroup_base(CgroupBase::Off).build().expect("a worker"));
                }
            });
        }
    });
    assert!(names(host.log_dir.path()).is_empty());
}

#[test]
fn a_worker_that_is_killed_leaves_open_logs_and_a_free_lock() {
    if let Some(directory) = std::env::var_os(HOST_DIR) {
        return be_host(Path::new(&directory));
    }
    let host = public_host();
    let mut process = HostProcess::start("a_worker_that_is_killed_leaves_open_logs_and_a_free_lock", host.log_dir.path(), None);
    let log = PathBuf::from(process.hear());
    let locks = own_locks(host.log_dir.path());
    let lock = locks.join(&names(&locks)[0]);
    let is_free = || {
        let file = fs::File::open(&lock).unwrap();
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared).is_ok()
    };
    assert!(!is_free(), "it is held while the worker lives");
    process.kill();
    wait_until("the lock is free", is_free);
    assert_eq!(mode(&log), 0o600, "nobody has sealed the log");
    assert_eq!(follow_to_the_end(&log), b"one\ntwo\nhalf");

    // Its left-overs are in nobody's way.
    let mut worker = host.worker();
    let (job, stdin) = start_cat(&mut worker);
    drop(stdin);
    assert!(finish(&mut worker, job).success());
    drop(worker);
    assert_eq!(names(&locks), [lock.file_name().unwrap().to_str().unwrap()]);
}

// The logs.

#[test]
fn a_log_is_opened_to_append_to_without_following_links_and_for_this_process_only() {
    isolated("a_log_is_opened_to_append_to_without_following_links_and_for_this_process_only", || {
        const O_WRONLY: u32 = 0o1;
        const O_APPEND: u32 = 0o2000;
        const O_NOFOLLOW: u32 = 0o400_000;
        const O_CLOEXEC: u32 = 0o2_000_000;
        let host = public_host();
        for open_logs_max in [512, 1] {
            let mut worker = host.builder().open_logs_max(open_logs_max).build().unwrap();
            let mut jobs: Vec<_> = (0..2).map(|_| start_cat(&mut worker)).collect();
            for (job, stdin) in &mut jobs {
                for _ in 0..3 {
                    echo(&mut worker, *job, stdin, "line\n");
                }
            }
            let fds: Vec<i32> = common::open_fds().into_iter().filter(|(_, target)| target.contains(".log")).map(|(fd, _)| fd).collect();
            assert!((1..=open_logs_max).contains(&fds.len()));
            for fd in fds {
                let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
                let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
                let flags = u32::from_str_radix(flags, 8).unwrap();
                let wanted = O_WRONLY | O_APPEND | O_CLOEXEC | if cfg!(target_arch = "x86_64") { O_NOFOLLOW } else { 0 };
                assert_eq!(flags & (wanted | 0o3), wanted, "{flags:o}");
            }
        }
    });
}

#[test]
fn a_job_gets_neither_the_log_nor_the_lock() {
    let host = public_host();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("readlink /proc/self/fd/*; true")).unwrap();
    let output = String::from_utf8(output_of(&finish(&mut worker, job))).unwrap();
    assert!(output.contains("pipe:") && !output.contains(host.log_dir.path().to_str().unwrap()), "{output}");
}

#[test]
fn another_user_can_neither_read_nor_change_nor_remove_a_log() {
    if not_root() {
        return;
    }
    let host = public_host();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker);
    echo(&mut worker, job, &mut stdin, "secret\n");
    let log = worker.query(job).unwrap().log.unwrap();
    let attack = |what: &str| {
        let before = tree(host.log_dir.path());
        for script in [
            "cat *.log",
            "for log in *.log; do echo forged >> $log; done",
            "for log in *.log; do : > $log; done",
            "rm -f *.log",
            "mv *.log moved",
            "for log in *.log; do mv $log moved; done",
            "touch mine && mv -f mine *.log; rm -f mine; false",
            "chmod 666 *.log",
            "ls .iron-exec-0",
            "rm -rf .iron-exec-0",
            "mv .iron-exec-0 moved",
            "touch .iron-exec-0/x",
        ] {
            let output = as_nobody(script, host.log_dir.path());
            assert!(!output.status.success() && output.stdout.is_empty(), "{what}: {script}: {output:?}");
        }
        assert_eq!(tree(host.log_dir.path()), before, "{what}");
    };
    attack("while the job runs");
    echo(&mut worker, job, &mut stdin, "more\n");
    drop(stdin);
    let status = finish(&mut worker, job);
    assert_eq!(status.output.dropped_bytes, 0);
    attack("when it has finished");
    assert_eq!(common::read_log(&log), b"secret\nmore\n");

    // A job of theirs has no more rights to its own log.
    let script = "rm -f *.log; for log in *.log; do true > $log; cat $log; done; echo out";
    let job = worker.start(Command::shell(script).cwd(host.log_dir.path()).uid(NOBODY).gid(NOBODY).groups([])).unwrap();
    let status = finish(&mut worker, job);
    let reader = worker.stream_with(job, &iron_exec::ReadOptions::new().only(iron_exec::OutputStream::Stdout));
    let std::task::Poll::Ready(Ok(bytes)) = reader.unwrap().try_fill_buf().map(|read| read.map(<[u8]>::to_vec)) else {
        panic!("there are bytes")
    };
    assert_eq!(bytes, b"out\n");
    assert_eq!((fs::metadata(status.log.unwrap()).unwrap().uid(), host.logs().len()), (0, 2));
}

#[test]
fn users_share_a_log_directory_each_with_locks_of_its_own() {
    if let Some(directory) = std::env::var_os(HOST_DIR) {
        return be_host(Path::new(&directory));
    }
    if not_root() {
        return;
    }
    let host = public_host();
    let mut worker = host.worker();
    let name = "users_share_a_log_directory_each_with_locks_of_its_own";
    let mut process = HostProcess::start(name, host.log_dir.path(), Some(NOBODY));
    let log = PathBuf::from(process.hear());
    for uid in [0, NOBODY] {
        let locks = locks_of(host.log_dir.path(), uid);
        assert_eq!((fs::metadata(&locks).unwrap().uid(), mode(&locks), names(&locks).len()), (uid, 0o700, 1));
    }
    assert_eq!((fs::metadata(&log).unwrap().uid(), mode(&log)), (NOBODY, 0o600));
    let followed = thread::spawn({
        let log = log.clone();
        move || follow_to_the_end(&log)
    });
    let (job, mut stdin) = start_cat(&mut worker);
    echo(&mut worker, job, &mut stdin, "one\n");
    process.kill();
    assert_eq!(followed.join().unwrap(), b"one\ntwo\nhalf", "the end of their worker is seen by its lock");
    drop(stdin);
    assert_eq!(output_of(&finish(&mut worker, job)), b"one\n");
}

// Readers of what a stranger has made.

#[test]
fn a_reader_is_not_held_up_by_what_stands_in_place_of_a_lock() {
    let host = public_host();
    let log = host.log_dir.path().join("forged.log");
    fs::write(&log, "2026-11-23T03:26:58.123456789Z stdout F one\n").unwrap();
    let worker = "01a206ac-28d8-7000-9ce0-01320afe853a";
    if rustix::fs::setxattr(&log, "user.iron-exec", format!("{worker} cri").as_bytes(), rustix::fs::XattrFlags::empty()).is_err() {
        let _ = common::cannot_run("the temporary directory has no user xattrs");
        return;
    }
    let locks = own_locks(host.log_dir.path());
    fs::create_dir(&locks).unwrap();
    assert!(process::Command::new("mkfifo").arg(locks.join(format!("{worker}.lock"))).status().unwrap().success());
    assert_eq!(follow_to_the_end(&log), b"one\n");
}

#[test]
fn a_reader_is_not_held_up_by_what_stands_in_place_of_a_table() {
    let host = public_host();
    let log = host.log_dir.path().join("forged.log");
    fs::write(&log, "2026-11-23T03:26:58.123456789Z stdout F one\n").unwrap();
    let locks = own_locks(host.log_dir.path());
    // In place of the directory of locks.
    fs::write(&locks, "").unwrap();
    assert_eq!(follow_to_the_end(&log), b"one\n");
    fs::remove_file(&locks).unwrap();
    // In place of a table in it.
    fs::create_dir(&locks).unwrap();
    assert!(process::Command::new("mkfifo").arg(locks.join("a.logs")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", locks.join("b.logs")).unwrap();
    std::os::unix::fs::symlink("nowhere", locks.join("c.logs")).unwrap();
    fs::create_dir(locks.join("d.logs")).unwrap();
    fs::write(locks.join("e.logs"), b"\xff\xfe\nforged.log\nforged.log x\n").unwrap();
    assert_eq!(follow_to_the_end(&log), b"one\n");
}

/// A log of `NOBODY` in a directory like `/tmp`, and the earlier files of it that it may have.
fn log_of_nobody(host: &Host) -> PathBuf {
    let log = host.log_dir.path().join("sh_0190d3b1-7c8a-7def-8123-456789abcdef.log");
    fs::write(&log, "2026-11-23T03:26:58.123456789Z stdout F one\n").unwrap();
    std::os::unix::fs::chown(&log, Some(NOBODY), Some(NOBODY)).unwrap();
    set_mode(&log, 0o600);
    log
}

#[test]
fn a_file_that_a_stranger_puts_among_those_of_a_log_and_that_its_owner_cannot_open_is_not_in_the_way() {
    if std::env::var_os(HOST_DIR).is_some_and(|log| read_as_told(Path::new(&log))) || not_root() {
        return;
    }
    let host = public_host();
    let log = log_of_nobody(&host);
    // The first of them is looked for by every reader of a log without a mark, the others by one that goes through its files.
    for number in ["000001", "000002", "000007"] {
        let planted = host.log_dir.path().join(format!("{}.{number}", log.file_name().unwrap().to_str().unwrap()));
        fs::write(&planted, "forged\n").unwrap();
        set_mode(&planted, 0);
    }
    let name = "a_file_that_a_stranger_puts_among_those_of_a_log_and_that_its_owner_cannot_open_is_not_in_the_way";
    let mut reader = HostProcess::start(name, &log, Some(NOBODY));
    assert_eq!([reader.hear(), reader.hear()], ["one", "one"], "it is read, and followed");
    assert!(reader.child.wait().unwrap().success());
}

/// The body of a reading process: says what the log holds.
fn read_as_told(log: &Path) -> bool {
    assert!(!rustix::process::geteuid().is_root());
    let mut text = String::new();
    LogReader::open(log).unwrap().read_to_string(&mut text).unwrap();
    println!("SAYS {}", text.trim_end());
    println!("SAYS {}", String::from_utf8(follow_to_the_end(log)).unwrap().trim_end());
    true
}
