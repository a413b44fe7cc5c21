//! Promise: a start that fails says which step failed, on what and why, on every rung, confirmed or not, and leaves nothing behind: no process, no
//! descriptor, no cgroup, no watch, no log. Other jobs do not notice.

mod common;

use std::collections::BTreeSet;
use std::env;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};

use common::{Census, DEADLINE, Host, finish, isolated, not_root, output_of, turn_until};
use iron_exec::{Builder, Capture, CgroupBase, Command, Event, JobState, Resource, Rung, StartError, StartFailure, Step, Worker};
use rustix::io::Errno;
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// Runs `test` with a worker of every kind: on each rung, with cgroups and without.
fn each_way(mut test: impl FnMut(&Host, &mut Worker)) {
    let host = Host::new();
    for (rung, base) in ways(&host) {
        println!("on rung {rung}, {base:?}");
        let mut worker = builder(&host).rung(rung).cgroup_base(base).build().unwrap();
        test(&host, &mut worker);
    }
}

/// A builder of workers that wait for every confirmation, however busy the machine.
fn builder(host: &Host) -> Builder {
    host.builder().confirm_timeout(DEADLINE)
}

fn ways(host: &Host) -> Vec<(Rung, CgroupBase)> {
    let bases: Vec<CgroupBase> = host.base.clone().map(CgroupBase::Path).into_iter().chain([CgroupBase::Off]).collect();
    Rung::ALL.into_iter().flat_map(|rung| bases.iter().map(move |base| (rung, base.clone()))).collect()
}

/// What a start is expected to fail with.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Expected {
    step: Step,
    path: Option<PathBuf>,
    errno: i32,
}

fn expect(step: Step, path: impl Into<PathBuf>, errno: Errno) -> Expected {
    Expected { step, path: Some(path.into()), errno: errno.raw_os_error() }
}

fn without_path(step: Step, errno: Errno) -> Expected {
    Expected { step, path: None, errno: errno.raw_os_error() }
}

fn seen(failure: &StartFailure) -> Expected {
    Expected { step: failure.step(), path: failure.path().map(Path::to_owned), errno: failure.errno() }
}

/// The failure of a confirmed start, whose error must name everything.
fn confirmed(worker: &mut Worker, command: &Command) -> StartFailure {
    let jobs = worker.jobs();
    let error = worker.start(command.clone().confirm(true)).expect_err("the start fails");
    let StartError::Failed(failure) = &error else { panic!("{error}") };
    for message in [error.to_string(), failure.to_string()] {
        assert!(message.contains(failure.step().as_str()), "{message}");
        assert!(failure.path().is_none_or(|path| message.contains(&path.display().to_string())), "{message}");
        assert!(message.contains(&std::io::Error::from_raw_os_error(failure.errno()).to_string()), "{message}");
    }
    assert_eq!(worker.jobs(), jobs, "a job that was not started cannot be asked for");
    failure.clone()
}

/// The failure of a start that does not wait: by event if the process was made, else by error.
fn unconfirmed(worker: &mut Worker, command: &Command) -> StartFailure {
    let job = match worker.start(command.clone().confirm(false)) {
        Ok(job) => job,
        Err(error) => return error.failure().unwrap_or_else(|| panic!("{error}")).clone(),
    };
    let status = worker.query(job).unwrap();
    assert_eq!((status.state, status.failure), (JobState::Starting, None), "nothing is known before the first turn");
    let events = turn_until(worker, |worker, events| worker.query(job).unwrap().is_finished() && !events.is_empty());
    let status = worker.query(job).unwrap();
    assert_eq!((status.state, status.exit, status.exit_code, status.signal()), (JobState::Failed, None, -1, None));
    assert_eq!((status.log.is_none(), status.cgroup_left, status.success()), (true, false, false));
    let failure = status.failure.unwrap();
    assert_eq!(events, [Event::StartFailed { job, failure: failure.clone() }]);
    worker.forget(job).unwrap();
    failure
}

/// Makes an executable file. Another process does it: this one must not have it open for writing (ETXTBSY).
fn make_program(path: &Path, content: &str) -> PathBuf {
    let mut maker = process::Command::new("/bin/sh");
    maker.args([OsStr::new("-c"), OsStr::new("printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""), path.as_os_str(), OsStr::new(content)]);
    assert!(maker.status().unwrap().success());
    path.to_owned()
}

const LAUNCHED: &str = "IRON_EXEC_TEST_LAUNCHED";

/// The ids of nobody, whom every system has.
const NOBODY: u32 = 65534;

/// Runs `body` in a fresh process with one thread that has nobody's rights. Needs root.
fn as_nobody(name: &str, body: impl FnOnce()) {
    if env::var_os(LAUNCHED).is_some() {
        assert_eq!(rustix::process::geteuid().as_raw(), NOBODY);
        body();
        return;
    }
    if not_root() {
        return;
    }
    // The directories above the test's program may be closed to nobody: a copy is not.
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let program = dir.path().join("test");
    assert!(process::Command::new("cp").arg(env::current_exe().unwrap()).arg(&program).status().unwrap().success());
    let mut command = process::Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program);
    command.args(["--exact", name, "--nocapture", "--test-threads=1"]).current_dir("/").env(LAUNCHED, "1").stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "the process of nobody failed: {}", output.status);
}

/// Everything that can fail in the child without a special host, each with what it is expected to say.
fn cases(dir: &Path) -> Vec<(Command, Expected)> {
    let plain = dir.join("plain");
    fs::write(&plain, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o644)).unwrap();
    let script = make_program(&dir.join("script"), "#!/nonexistent/interpreter\n");
    let through_file = make_program(&dir.join("through-file"), "#!/etc/passwd/sh\n");
    let garbage = make_program(&dir.join("garbage"), "this is no program\n");
    let empty = make_program(&dir.join("empty"), "");
    let inside = plain.join("inside");
    let (loop_a, directory) = (dir.join("loop"), dir.join("directory"));
    symlink(&loop_a, &loop_a).unwrap();
    fs::create_dir(&directory).unwrap();
    let path = format!("/nonexistent:{}", dir.display());
    let tmp = |name: &str| Command::new(dir.join(name));
    let long = "n".repeat(300);
    vec![
        (Command::new("/nonexistent/program"), expect(Step::Exec, "/nonexistent/program", Errno::NOENT)),
        (Command::new("./no-such-program"), expect(Step::Exec, "./no-such-program", Errno::NOENT)),
        (Command::new("no-such-program").env("PATH", "/bin:/usr/bin"), expect(Step::Exec, "no-such-program", Errno::NOENT)),
        (Command::new("no-such-program").env("PATH", "/etc/passwd:/etc:").cwd(dir), expect(Step::Exec, "no-such-program", Errno::NOENT)),
        (Command::new(&inside), expect(Step::Exec, &inside, Errno::NOTDIR)),
        (tmp("plain"), expect(Step::Exec, &plain, Errno::ACCESS)),
        (Command::new("plain").env("PATH", format!("{path}:/nonexistent")), expect(Step::Exec, &plain, Errno::ACCESS)),
        (tmp("directory"), expect(Step::Exec, &directory, Errno::ACCESS)),
        (tmp("loop"), expect(Step::Exec, &loop_a, Errno::LOOP)),
        (Command::new(dir.join(&long)), expect(Step::Exec, dir.join(&long), Errno::NAMETOOLONG)),
        (tmp("script"), expect(Step::Interpreter, &script, Errno::NOENT)),
        (Command::new("script").env("PATH", &path), expect(Step::Interpreter, &script, Errno::NOENT)),
        (tmp("through-file"), expect(Step::Interpreter, &through_file, Errno::NOTDIR)),
        (tmp("garbage"), expect(Step::Exec, &garbage, Errno::NOEXEC)),
        (Command::new("garbage").env("PATH", &path), expect(Step::Exec, &garbage, Errno::NOEXEC)),
        (tmp("empty"), expect(Step::Exec, &empty, Errno::NOEXEC)),
        (Command::new("true").cwd("/nonexistent/dir"), expect(Step::Chdir, "/nonexistent/dir", Errno::NOENT)),
        (Command::new("true").cwd(&plain), expect(Step::Chdir, &plain, Errno::NOTDIR)),
        (Command::new("/bin/true").arg("x".repeat(256 << 10)), expect(Step::Exec, "/bin/true", Errno::TOOBIG)),
        (Command::new("/bin/true").args(vec!["x".repeat(100 << 10); 80]), expect(Step::Exec, "/bin/true", Errno::TOOBIG)),
        (Command::new("true").cwd(dir).uid(NOBODY), expect(Step::Chdir, dir, Errno::ACCESS)),
        (tmp("garbage").uid(NOBODY), expect(Step::Exec, &garbage, Errno::ACCESS)),
    ]
}

#[test]
fn every_failure_names_its_step_its_path_and_its_error_and_leaves_nothing() {
    isolated("every_failure_names_its_step_its_path_and_its_error_and_leaves_nothing", || {
        let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
        let mut cases = cases(dir.path());
        if not_root() {
            // Another user cannot be had.
            cases.truncate(cases.len() - 2);
        }
        each_way(|host, worker| {
            // The first start may make what the worker keeps.
            let first = worker.start(Command::new("true")).unwrap();
            finish(worker, first);
            let before = Census::take(host);
            for (command, expected) in &cases {
                println!("{expected:?}");
                assert_eq!(seen(&confirmed(worker, command)), *expected);
                assert_eq!(Census::take(host), before, "after a confirmed start");
                assert_eq!(seen(&unconfirmed(worker, command)), *expected);
                assert_eq!(Census::take(host), before, "after a start that was not confirmed");
            }
            assert_eq!((worker.jobs(), worker.unfinished_jobs()), (vec![first], 0));
        });
    });
}

#[test]
fn the_advice_of_an_error_fits_it() {
    let dir = tempfile::tempdir().unwrap();
    let garbage = make_program(&dir.path().join("garbage"), "this is no program\n");
    each_way(|_, worker| {
        for (command, part) in [
            (Command::new("no-such-program").env("PATH", "/bin:/usr/bin"), "PATH"),
            (Command::new(&garbage), "#! line"),
            (Command::new("/bin/true").arg("x".repeat(256 << 10)), "larger than the kernel takes"),
        ] {
            let failure = confirmed(worker, &command);
            assert!(failure.advice().is_some_and(|advice| advice.contains(part)) && failure.to_string().contains(part), "{failure}");
        }
    });
}

/// Another process that has a file open for writing until it is killed.
fn writer_of(path: &Path) -> process::Child {
    let mut writer = process::Command::new("/bin/sh");
    writer.args([OsStr::new("-c"), OsStr::new("exec 3>>\"$0\"; echo; exec sleep 1000"), path.as_os_str()]);
    let mut writer = writer.stdout(Stdio::piped()).spawn().unwrap();
    writer.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    writer
}

#[test]
fn a_program_that_somebody_writes_to_is_busy_but_one_let_go_of_in_a_moment_is_executed() {
    let dir = tempfile::tempdir().unwrap();
    let program = make_program(&dir.path().join("program"), "#!/bin/sh\n");
    each_way(|_, worker| {
        let mut writer = writer_of(&program);
        assert_eq!(seen(&unconfirmed(worker, &Command::new(&program))), expect(Step::Exec, &program, Errno::TXTBSY));
        // On vfork the host itself waits for the writer that it is to kill.
        if worker.capabilities().rung == Rung::Vfork {
            writer.kill().unwrap();
            writer.wait().unwrap();
            return;
        }
        // On a busy machine the moment may be too long now and then, but not every time.
        for tries_left in (0..20).rev() {
            let job = worker.start(Command::new(&program).confirm(false)).unwrap();
            writer.kill().unwrap();
            writer.wait().unwrap();
            let status = finish(worker, job);
            if status.success() {
                break;
            }
            assert_eq!(seen(&status.failure.unwrap()), expect(Step::Exec, &program, Errno::TXTBSY));
            assert!(tries_left > 0, "it was never waited for");
            writer = writer_of(&program);
        }
    });
}

#[test]
fn a_failed_start_does_not_disturb_the_jobs_that_run() {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap();
    let mut cases = cases(dir.path());
    if not_root() {
        cases.truncate(cases.len() - 2);
    }
    each_way(|host, worker| {
        let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
        let mut stdin = worker.take_stdin(job).unwrap().unwrap();
        let mut written = Vec::new();
        for (number, (command, _)) in cases.iter().enumerate() {
            let line = format!("line {number}\n");
            stdin.write_all(line.as_bytes()).unwrap();
            written.extend_from_slice(line.as_bytes());
            confirmed(worker, command);
            unconfirmed(worker, command);
            assert_eq!(worker.query(job).unwrap().state, JobState::Running);
        }
        assert_eq!((worker.jobs(), worker.unfinished_jobs(), host.logs().len()), (vec![job], 1, 1));
        drop(stdin);
        let status = finish(worker, job);
        assert!(status.success(), "{status:?}");
        assert_eq!(output_of(&status), written);
        fs::remove_file(status.log.unwrap()).unwrap();
    });
}

#[test]
fn a_command_that_cannot_be_run_is_refused_before_anything_exists() {
    isolated("a_command_that_cannot_be_run_is_refused_before_anything_exists", || {
        let null = || File::open("/dev/null").unwrap();
        let wrong: [fn(Command) -> Command; 9] = [
            |command| command.arg("nul\0byte"),
            |command| command.env("", "empty name"),
            |command| command.env("A=B", "odd name"),
            |command| command.cwd(""),
            |command| command.umask(0o1000),
            |command| command.nice(20),
            |command| command.oom_score_adj(-1001),
            |command| command.uid(u32::MAX),
            |command| command.rlimit(Resource::Core, 2, 1),
        ];
        each_way(|host, worker| {
            let before = Census::take(host);
            let mut commands: Vec<Command> = wrong.iter().map(|change| change(Command::new("true"))).collect();
            commands.extend([Command::new(""), Command::new("nul\0byte"), Command::new("true").fd(2, null())]);
            commands.push(Command::new("true").fd(9, null()).fd(9, null()));
            for command in commands {
                let error = worker.start(command.clone()).unwrap_err();
                assert!(matches!(error, StartError::Command(_)), "{error}");
                assert_eq!((Some(error), command.check().is_err()), (worker.start(command).err(), true));
                assert!(worker.jobs().is_empty());
            }
            assert_eq!(Census::take(host), before);
        });
    });
}

#[test]
fn more_jobs_than_the_worker_takes_are_refused_and_leave_nothing() {
    isolated("more_jobs_than_the_worker_takes_are_refused_and_leave_nothing", || {
        let host = Host::new();
        let mut closed = builder(&host).jobs_max(0).build().unwrap();
        let before = Census::take(&host);
        assert_eq!(closed.start(Command::new("true")), Err(StartError::TooManyJobs { jobs_max: 0 }));
        assert_eq!((Census::take(&host), closed.unfinished_jobs()), (before, 0));

        let mut worker = builder(&host).jobs_max(1).build().unwrap();
        let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
        assert_eq!(worker.start(Command::new("true")), Err(StartError::TooManyJobs { jobs_max: 1 }));
        drop(worker.take_stdin(job).unwrap());
        finish(&mut worker, job);
        let job = worker.start(Command::new("true")).unwrap();
        assert!(finish(&mut worker, job).success());
    });
}

// What only root may do.

#[test]
fn what_the_host_may_not_do_is_refused_by_name() {
    as_nobody("what_the_host_may_not_do_is_refused_by_name", || {
        let hard = getrlimit(rustix::process::Resource::Core).maximum;
        assert_eq!(hard, None, "there is something to lower");
        setrlimit(rustix::process::Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        let cases = [
            (Command::new("true").groups([1]), without_path(Step::Setgroups, Errno::PERM)),
            (Command::new("true").gid(0), without_path(Step::Setgid, Errno::PERM)),
            // Somebody else's job must not have our groups, and those cannot be dropped.
            (Command::new("true").uid(0), without_path(Step::Setgroups, Errno::PERM)),
            (Command::new("true").rlimit(Resource::Core, 0, 1), without_path(Step::Rlimit, Errno::PERM)),
            (Command::new("true").nice(-5), without_path(Step::Nice, Errno::ACCESS)),
            (Command::new("true").oom_score_adj(-1000), expect(Step::OomScoreAdj, "/proc/self/oom_score_adj", Errno::ACCESS)),
            (Command::new("true").cwd("/proc/1/cwd"), expect(Step::Chdir, "/proc/1/cwd", Errno::ACCESS)),
        ];
        each_way(|host, worker| {
            let before = Census::take(host);
            for (command, expected) in &cases {
                println!("{expected:?}");
                assert_eq!(seen(&confirmed(worker, command)), *expected);
                assert_eq!(seen(&unconfirmed(worker, command)), *expected);
                assert_eq!(Census::take(host), before);
            }
            // Asking for what one has is no privilege.
            let job = worker.start(Command::new("true").uid(NOBODY).gid(NOBODY).oom_score_adj(500).nice(10)).unwrap();
            assert!(finish(worker, job).success());
            fs::remove_file(worker.query(job).unwrap().log.unwrap()).unwrap();
        });
    });
}

#[test]
fn a_limit_on_the_processes_of_the_jobs_user_is_named_by_the_exec() {
    if not_root() {
        return;
    }
    each_way(|_, worker| {
        // The kernel counts those that were there before.
        let other = worker.start(Command::new("cat").stdin_piped().uid(NOBODY)).unwrap();
        let limited = Command::new("/bin/true").rlimit(Resource::Nproc, 0, 0).uid(NOBODY);
        for failure in [confirmed(worker, &limited), unconfirmed(worker, &limited)] {
            assert_eq!(seen(&failure), expect(Step::Exec, "/bin/true", Errno::AGAIN));
            assert!(failure.advice().unwrap().contains("RLIMIT_NPROC"));
        }
        drop(worker.take_stdin(other).unwrap());
        assert!(finish(worker, other).success());
    });
}

#[test]
fn a_limit_on_processes_is_named_by_the_clone() {
    as_nobody("a_limit_on_processes_is_named_by_the_clone", || {
        let was = getrlimit(rustix::process::Resource::Nproc);
        each_way(|host, worker| {
            let before = Census::take(host);
            setrlimit(rustix::process::Resource::Nproc, Rlimit { current: Some(1), ..was }).unwrap();
            let failure = confirmed(worker, &Command::new("true"));
            assert_eq!(seen(&failure), without_path(Step::Clone, Errno::AGAIN));
            assert!(failure.advice().unwrap().contains("RLIMIT_NPROC"));
            assert_eq!(seen(&unconfirmed(worker, &Command::new("true"))), without_path(Step::Clone, Errno::AGAIN));
            assert_eq!(Census::take(host), before);
            setrlimit(rustix::process::Resource::Nproc, was).unwrap();
            let job = worker.start(Command::new("true")).unwrap();
            assert!(finish(worker, job).success());
            fs::remove_file(worker.query(job).unwrap().log.unwrap()).unwrap();
        });
    });
}

// The log directory.

#[test]
fn a_log_directory_that_is_gone_is_named_and_jobs_without_a_log_still_start() {
    let host = Host::new();
    for (rung, base) in ways(&host) {
        let dir = tempfile::tempdir().unwrap();
        let mut worker = builder(&host).log_dir(dir.path()).rung(rung).cgroup_base(base).build().unwrap();
        fs::remove_dir_all(dir.path()).unwrap();
        for failure in [confirmed(&mut worker, &Command::new("true")), unconfirmed(&mut worker, &Command::new("true"))] {
            let path = failure.path().unwrap().to_owned();
            assert_eq!(seen(&failure), expect(Step::Log, &path, Errno::NOENT));
            assert!(path.parent() == Some(dir.path()) && path.extension() == Some(OsStr::new("log")), "{failure}");
        }
        assert!(host.cgroups().is_empty() && worker.jobs().is_empty());
        let job = worker.start(Command::new("true").capture(Capture::Discard)).unwrap();
        assert!(finish(&mut worker, job).success());
    }
}

#[test]
fn a_log_directory_that_cannot_be_written_is_named() {
    as_nobody("a_log_directory_that_cannot_be_written_is_named", || {
        each_way(|host, worker| {
            let before = Census::take(host);
            fs::set_permissions(host.log_dir.path(), fs::Permissions::from_mode(0o555)).unwrap();
            let failure = confirmed(worker, &Command::new("true"));
            assert_eq!((failure.step(), failure.errno()), (Step::Log, Errno::ACCESS.raw_os_error()));
            assert_eq!(failure.path().unwrap().parent(), Some(host.log_dir.path()));
            fs::set_permissions(host.log_dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
            assert_eq!(Census::take(host), before);
            let job = worker.start(Command::new("true")).unwrap();
            assert!(finish(worker, job).success());
            fs::remove_file(worker.query(job).unwrap().log.unwrap()).unwrap();
        });
    });
}

// The cgroup.

/// Runs `test` on every rung with a base two levels below the mount, which was there before the worker.
fn each_rung_with_a_base(test: impl Fn(&Host, &Path, &mut Worker)) {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let base = host.base.clone().unwrap().join("base");
    for rung in Rung::ALL {
        println!("on rung {rung}");
        fs::create_dir_all(&base).unwrap();
        let mut worker = builder(&host).rung(rung).cgroup_base(CgroupBase::Path(base.clone())).build().unwrap();
        test(&host, &base, &mut worker);
        drop(worker);
        let _ = fs::remove_dir(&base);
    }
}

/// Removes a base by hand, with the lock of the one worker in it; returns what that was called.
fn remove_base(base: &Path) -> String {
    let [lock] = <[String; 1]>::try_from(common::directories(base)).expect("one worker's lock");
    fs::remove_dir(base.join(&lock)).unwrap();
    fs::remove_dir(base).unwrap();
    lock
}

#[test]
fn a_cgroup_base_that_vanished_and_cannot_be_made_again_is_named() {
    isolated("a_cgroup_base_that_vanished_and_cannot_be_made_again_is_named", || {
        each_rung_with_a_base(|host, base, worker| {
            remove_base(base);
            fs::remove_dir(base.parent().unwrap()).unwrap();
            let before = Census::take(host);
            for failure in [confirmed(worker, &Command::new("true")), unconfirmed(worker, &Command::new("true"))] {
                assert_eq!((failure.step(), failure.errno()), (Step::Cgroup, Errno::NOENT.raw_os_error()));
                assert_eq!(failure.path().unwrap().parent(), Some(base));
            }
            assert_eq!(Census::take(host), before);
        });
    });
}

#[test]
fn a_cgroup_base_that_vanished_is_made_again() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    for rung in Rung::ALL {
        let mut worker = builder(&host).rung(rung).build().unwrap();
        // Once more, in case it is only the first base that is made again.
        for _ in 0..2 {
            let lock = remove_base(host.base.as_ref().unwrap());
            let job = worker.start(Command::shell("grep -o 'again_.*' /proc/self/cgroup").name("again")).unwrap();
            let status = finish(&mut worker, job);
            assert_eq!(String::from_utf8(output_of(&status)).unwrap(), format!("again_{job}\n"));
            assert_eq!(common::directories(host.base.as_ref().unwrap()), [lock], "the worker is to be seen alive again");
        }
        drop(worker);
        assert!(!host.base.as_ref().unwrap().exists());
    }
}

#[test]
fn a_cgroup_that_can_hold_no_job_is_named_and_removed() {
    isolated("a_cgroup_that_can_hold_no_job_is_named_and_removed", || {
        each_rung_with_a_base(|host, base, worker| {
            let before = Census::take(host);
            // The worker's lock.
            let there = common::directories(base);
            // No more cgroups below.
            fs::write(base.join("cgroup.max.descendants"), "0").unwrap();
            for failure in [confirmed(worker, &Command::new("true")), unconfirmed(worker, &Command::new("true"))] {
                assert_eq!((failure.step(), failure.errno()), (Step::Cgroup, Errno::AGAIN.raw_os_error()), "{failure}");
                assert_eq!(failure.path().unwrap().parent(), Some(base));
            }
            fs::write(base.join("cgroup.max.descendants"), "max").unwrap();
            // What is made below a threaded cgroup takes no process: the kernel says so only when one is to be put there.
            fs::write(base.join("cgroup.type"), "threaded").unwrap();
            for failure in [confirmed(worker, &Command::new("true")), unconfirmed(worker, &Command::new("true"))] {
                assert_eq!((failure.step(), failure.errno()), (Step::Cgroup, Errno::OPNOTSUPP.raw_os_error()), "{failure}");
                assert_eq!(failure.path().unwrap().parent(), Some(base));
                assert!(failure.advice().is_some());
            }
            assert_eq!((Census::take(host), common::directories(base)), (before, there));
        });
    });
}

// The limit of open files.

/// A soft limit of open files, for as long as this lives.
struct OpenFiles(Rlimit);

impl OpenFiles {
    fn limit(most: u64) -> Self {
        let was = getrlimit(rustix::process::Resource::Nofile);
        setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(most), ..was }).unwrap();
        Self(was)
    }
}

impl Drop for OpenFiles {
    fn drop(&mut self) {
        setrlimit(rustix::process::Resource::Nofile, self.0).unwrap();
    }
}

#[test]
fn whichever_descriptor_of_a_start_cannot_be_had_nothing_is_left_of_it() {
    isolated("whichever_descriptor_of_a_start_cannot_be_had_nothing_is_left_of_it", || {
        let host = Host::new();
        for (rung, base) in ways(&host) {
            let has_cgroup = base != CgroupBase::Off;
            let mut worker = builder(&host).rung(rung).cgroup_base(base).spawn_slots_max(2).build().unwrap();
            // The descriptors handed in go round in a circle, so that the child needs more of them than it was given.
            let fds = |command: Command| {
                let files = [(); 4].map(|()| File::open("/dev/null").unwrap());
                let numbers = files.each_ref().map(AsRawFd::as_raw_fd);
                files.into_iter().zip(numbers.into_iter().cycle().skip(1)).fold(command, |command, (file, number)| command.fd(number, file))
            };
            let commands = [
                fds(Command::shell("cat; echo err >&2")).stdin_bytes(*b"input\n"),
                fds(Command::shell("cat; echo err >&2")).stdin_piped().capture(Capture::Merged),
                fds(Command::shell("cat; echo err >&2")).stdin_piped().capture(Capture::Piped),
            ];
            for (kind, command) in commands.iter().enumerate() {
                // What confirmation changes is the same for all.
                let confirm: &[bool] = if kind == 0 { &[true, false] } else { &[true] };
                let steps = descend(&host, &mut worker, command, confirm);
                println!("rung {rung}, cgroups {has_cgroup}, command {kind}: {steps:?}");
                // The report of the child counts as a pipe, too; the fork rung opens its pidfd itself.
                let mut expected = BTreeSet::from(["pipe"]);
                // A child on a slot has a table of its own, in which there is room.
                expected.extend(matches!(rung, Rung::ForkLike | Rung::Fork).then_some("dup"));
                expected.insert(if rung == Rung::Fork { "watch" } else { "clone" });
                expected.extend((kind < 2).then_some("log"));
                expected.extend(has_cgroup.then_some("cgroup"));
                assert_eq!(steps, expected);
            }
        }
    });
}

/// Starts the command under ever lower limits of open files, down to 0. Returns the steps that failed.
fn descend(host: &Host, worker: &mut Worker, command: &Command, confirm: &[bool]) -> BTreeSet<&'static str> {
    let before = Census::take(host);
    let (comfortable, mut steps, mut started) = (64, BTreeSet::new(), 0);
    for most in (0..=comfortable).rev() {
        for is_confirmed in confirm {
            let limit = OpenFiles::limit(most);
            let result = worker.start(command.clone().confirm(*is_confirmed));
            let mut failed_later = None;
            if let Ok(job) = result {
                // As it would be without a helping hand: the limit holds to the end.
                drop(worker.take_stdin(job).unwrap());
                turn_until(worker, |worker, _| worker.query(job).unwrap().is_finished());
                let status = worker.query(job).unwrap();
                failed_later.clone_from(&status.failure);
                if let Some(log) = status.log.filter(|_| failed_later.is_none()) {
                    fs::remove_file(log).unwrap();
                }
                worker.forget(job).unwrap();
            }
            drop(limit);
            started += usize::from(result.is_ok() && failed_later.is_none());
            if let Some(failure) = result.err().and_then(|error| error.failure().cloned()).or(failed_later) {
                let full = [Errno::MFILE, Errno::INVAL, Errno::BADF].map(Errno::raw_os_error);
                assert!(full.contains(&failure.errno()), "{failure}");
                steps.insert(failure.step().as_str());
            }
            assert_eq!(Census::take(host), before, "under a limit of {most}, {steps:?}");
        }
    }
    assert!(started > 4, "the descent began in comfort: {started}");
    let job = worker.start(command.clone()).unwrap();
    drop(worker.take_stdin(job).unwrap());
    let status = finish(worker, job);
    assert!(status.success(), "{status:?}");
    if let Some(log) = status.log {
        fs::remove_file(log).unwrap();
    }
    worker.forget(job).unwrap();
    assert_eq!(Census::take(host), before);
    steps
}

#[test]
fn a_limit_that_cannot_be_had_refuses_the_start() {
    let host = Host::new();
    let limits = iron_exec::Limits::new().memory_max(1 << 30);
    let mut worker = builder(&host).cgroup_base(CgroupBase::Off).build().unwrap();
    let failure = confirmed(&mut worker, &Command::new("true").limits(limits.clone()));
    assert_eq!((failure.step(), failure.errno()), (Step::Limit, Errno::OPNOTSUPP.raw_os_error()));
    assert!(failure.to_string().contains("jobs have no cgroups here: cgroups are switched off"), "{failure}");
    // A hierarchy without the controller "memory", as where version 1 has it.
    let mut worker = builder(&host).build().unwrap();
    let Some(cgroup) = worker.capabilities().cgroup.clone() else { return };
    if !cgroup.controllers.iter().any(|name| name == "memory") {
        let failure = confirmed(&mut worker, &Command::new("true").limits(limits.clone()));
        assert_eq!((failure.step(), failure.path().unwrap().file_name().unwrap()), (Step::Limit, "memory.max".as_ref()));
        assert!(failure.advice().is_some(), "{failure}");
        assert_eq!((host.cgroups(), host.logs()), (Vec::new(), Vec::new()));
    }
}
