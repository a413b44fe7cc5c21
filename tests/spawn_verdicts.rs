//! Promise: what is told of a start is true: a program that was never executed is never said to have run, whoever killed its child and when; and a
//! signal that the host handles, or a descriptor that cannot be sent, changes nothing.

mod common;

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::{Census, DEADLINE, Host, finish, isolated, not_root, rounds, turn_until, wait_until};
use iron_exec::{Capture, CgroupBase, Command, Event, Exit, JobState, Rung, RungReason, Signal, Step, StopReason};
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::process::{Pid, RawPid, kill_process};

/// The pid of a child of this process that is in a cgroup below `base`, once there is one.
fn child_in(base: &std::path::Path) -> Pid {
    let mut found = None;
    wait_until("a child is there", || {
        let cgroups = fs::read_dir(base).unwrap().flatten().filter(|entry| entry.path().is_dir());
        let mut pids = cgroups.filter_map(|entry| fs::read_to_string(entry.path().join("cgroup.procs")).ok());
        found = pids.find_map(|text| Pid::from_raw(text.trim().parse::<RawPid>().ok()?));
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_confirming_start_does_not_confirm_a_child_that_was_killed_on_its_way() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    isolated("a_confirming_start_does_not_confirm_a_child_that_was_killed_on_its_way", || {
        let host = Host::new();
        let base = host.base.clone().unwrap();
        for rung in [Rung::Detached, Rung::ForkLike] {
            let mut worker = host.builder().rung(rung).confirm_timeout(DEADLINE).build().unwrap();
            let before = Census::take(&host);
            for _ in 0..10 {
                fs::write(base.join("cgroup.freeze"), "1").unwrap();
                let killer = thread::spawn({
                    let base = base.clone();
                    move || kill_process(child_in(&base), rustix::process::Signal::KILL).unwrap()
                });
                let error = worker.start(Command::new("true")).unwrap_err();
                killer.join().unwrap();
                let failure = error.failure().unwrap();
                assert_eq!((failure.step(), failure.signal(), failure.errno()), (Step::Killed, Some(Signal::KILL), 0));
                assert!(failure.to_string().contains("SIGKILL killed the child before its program was executed"), "{failure}");
                fs::write(base.join("cgroup.freeze"), "0").unwrap();
            }
            assert_eq!(Census::take(&host), before);
        }
    });
}

#[test]
fn a_job_that_is_ended_on_its_way_is_not_said_to_have_started() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let base = host.base.clone().unwrap();
    for rung in [Rung::Detached, Rung::ForkLike] {
        let mut worker = host.builder().rung(rung).confirm(false).build().unwrap();
        fs::write(base.join("cgroup.freeze"), "1").unwrap();
        let command = || Command::new("no-such-program").capture(Capture::Discard);
        let stopped = worker.start(command()).unwrap();
        let late = worker.start(command().timeout(Duration::from_millis(1))).unwrap();
        let killed = worker.start(command()).unwrap();
        worker.stop(stopped).unwrap();
        worker.signal(killed, Signal::KILL).unwrap();
        let events = turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
        let of = |job| events.iter().filter(|event| event.job() == job).cloned().collect::<Vec<_>>();
        let exit = Exit::Signal { signal: Signal::KILL, core_dumped: false };
        for (job, reason) in [(stopped, StopReason::Requested), (late, StopReason::Timeout)] {
            assert_eq!(of(job), [Event::Exited { job, exit }, Event::Finished { job, exit }], "{rung}");
            let status = worker.query(job).unwrap();
            assert_eq!((status.state, status.stop_reason, status.exit_code), (JobState::Finished, Some(reason), -1));
        }
        let failure = worker.query(killed).unwrap().failure.unwrap();
        // Nobody said that this one would be: rarely it seems to have started before it is seen to be dead.
        let told = of(killed);
        let told = told.strip_prefix(&[Event::Started { job: killed }]).unwrap_or(&told);
        assert_eq!(told, [Event::StartFailed { job: killed, failure: failure.clone() }]);
        assert_eq!((failure.step(), failure.signal()), (Step::Killed, Some(Signal::KILL)));
        fs::write(base.join("cgroup.freeze"), "0").unwrap();
    }
}

#[test]
fn a_job_that_has_written_and_is_killed_is_said_to_have_run() {
    let host = Host::new();
    for rung in Rung::ALL {
        for base in host.base.clone().map(CgroupBase::Path).into_iter().chain([CgroupBase::Off]) {
            for confirm in [false, true] {
                let mut worker = host.builder().rung(rung).cgroup_base(base.clone()).confirm(confirm).build().unwrap();
                for _ in 0..5 {
                    // By itself, at once; and by somebody else, once its line is there.
                    for (script, kills) in [("echo line; kill -KILL $$", false), ("echo line; exec sleep 1000", true)] {
                        let job = worker.start(Command::shell(script)).unwrap();
                        let mut events = Vec::new();
                        if kills {
                            events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
                            let pid = Pid::from_raw(worker.query(job).unwrap().pid).unwrap();
                            kill_process(pid, rustix::process::Signal::KILL).unwrap();
                        }
                        events.extend(turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0));
                        let status = worker.query(job).unwrap();
                        let exit = Exit::Signal { signal: Signal::KILL, core_dumped: false };
                        assert_eq!((status.state, status.exit, &status.failure), (JobState::Finished, Some(exit), &None), "{rung}");
                        assert_eq!(status.output.lines, 1, "{rung}");
                        let started = events.iter().filter(|event| matches!(event, Event::Started { .. })).count();
                        assert_eq!(started, usize::from(!confirm), "{rung}: {events:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn signals_that_the_host_handles_do_not_shorten_a_confirmation() {
    isolated("signals_that_the_host_handles_do_not_shorten_a_confirmation", || {
        let host = Host::new();
        let caught = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&caught)).unwrap();
        // Of a process's threads the one whose number is given is taken.
        let own = rustix::thread::gettid();
        let script = format!("while kill -USR1 {own}; do :; done 2>/dev/null");
        let mut noise = process::Command::new("sh").args(["-c", &script]).spawn().unwrap();
        for rung in Rung::ALL {
            let mut worker = host.builder().rung(rung).confirm_timeout(DEADLINE).build().unwrap();
            for _ in 0..rounds(200) {
                let error = worker.start(Command::new("no-such-program").capture(Capture::Discard)).unwrap_err();
                assert_eq!(error.failure().unwrap().step(), Step::Exec);
            }
        }
        noise.kill().unwrap();
        noise.wait().unwrap();
        assert!(caught.load(Ordering::Relaxed));
    });
}

#[test]
fn descriptors_that_cannot_be_sent_are_passed_on_another_rung() {
    const NAME: &str = "descriptors_that_cannot_be_sent_are_passed_on_another_rung";
    if not_root() {
        return;
    }
    if std::env::var_os("IRON_EXEC_TEST_PLAIN_USER").is_none() {
        // A user without rights of its own, so that the limit on descriptors between processes holds; and a copy of the test that it can execute.
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let program = directory.path().join("test");
        fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut command = process::Command::new("setpriv");
        command.args(["--reuid", "54322", "--regid", "54322", "--clear-groups"]).arg(program);
        command.args(["--exact", NAME, "--nocapture", "--test-threads=1"]);
        let output = command.env("IRON_EXEC_TEST_PLAIN_USER", "1").env_remove("CI").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let host = Host::new();
    let mut worker = host.builder().cgroup_base(CgroupBase::Off).spawn_slots_max(1).build().unwrap();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, rustix::process::Rlimit { current: Some(64), ..limit }).unwrap();
    let (from, to) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let null = File::open("/dev/null").unwrap();
    let fds: [BorrowedFd<'_>; 100] = std::array::from_fn(|_| null.as_fd());
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    rustix::net::sendmsg(&from, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
    let before = Census::take(&host);
    let job = worker.start(Command::shell("cat; echo err >&2").stdin_bytes(*b"in\n")).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.success(), status.rung, status.rung_reason), (true, Rung::ForkLike, RungReason::NotSendable), "{status:?}");
    assert_eq!((status.output.stdout_bytes, status.output.stderr_bytes), (3, 4));
    fs::remove_file(status.log.unwrap()).unwrap();
    assert_eq!(Census::take(&host), before);
    // With room again the slot is as good as before.
    drop((from, to));
    let job = worker.start(Command::new("true").capture(Capture::Discard)).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.success(), status.rung_reason), (true, RungReason::Best));
}
