//! Promise: where a seccomp filter refuses the calls that the library likes best, it takes the next, says so, and jobs are the same. The filters are
//! real ones, each in a process of its own.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env::consts::ARCH;
use std::fs::File;
use std::os::fd::AsRawFd;

use common::{Census, DEADLINE, Host, finish, isolated, output_of, process_runs, turn_until, wait_until};
use iron_exec::{BuildError, Builder, CgroupBase, Command, Exit, JobState, Rung, StartError, Step, Worker};
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, waitpid};
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, apply_filter};

/// Numbers of system calls younger than 2020 are the same everywhere.
const CLONE3: i64 = 435;
const CLOSE_RANGE: i64 = 436;
const PIDFD_SEND_SIGNAL: i64 = 424;

/// Of linux/pidfd.h.
const PIDFD_GET_INFO: u64 = 0xC040_FF0B;
const PIDFD_SIGNAL_PROCESS_GROUP: u64 = 4;

/// Has the kernel answer `call` with `errno` from now on, in this thread and its children.
fn deny(call: i64, errno: Errno) {
    let refused = SeccompAction::Errno(errno.raw_os_error() as u32);
    let filter = SeccompFilter::new(BTreeMap::from([(call, vec![])]), SeccompAction::Allow, refused, ARCH.try_into().unwrap()).unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// Has the kernel answer as one before Linux 6.9 does: a pidfd tells no exit status, and knows no process groups.
fn be_old() {
    let refuse = |call: i64, argument: u8, value: u64, errno: Errno| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value).unwrap();
        let rules = BTreeMap::from([(call, vec![SeccompRule::new(vec![condition]).unwrap()])]);
        let refused = SeccompAction::Errno(errno.raw_os_error() as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, ARCH.try_into().unwrap()).unwrap();
        apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
    };
    let ioctl = if ARCH == "x86_64" { 16 } else { 29 };
    refuse(ioctl, 1, PIDFD_GET_INFO, Errno::NOTTY);
    refuse(PIDFD_SEND_SIGNAL, 3, PIDFD_SIGNAL_PROCESS_GROUP, Errno::INVAL);
}

/// A builder of workers that wait for every confirmation, however busy the machine.
fn builder(host: &Host) -> Builder {
    host.builder().confirm_timeout(DEADLINE)
}

/// Runs jobs that tell where they are and what they have; on `rung`, in the cgroup of their name.
fn jobs_are_the_same(host: &Host, worker: &mut Worker, rung: Rung) {
    let cgroups = host.cgroups();
    for confirm in [true, false] {
        let job = worker.start(Command::shell("cat /proc/self/cgroup; cat").stdin_bytes(*b"input\n").confirm(confirm)).unwrap();
        let status = finish(worker, job);
        assert!(status.success(), "{status:?}");
        assert_eq!(status.rung, rung);
        let output = String::from_utf8(output_of(&status)).unwrap();
        assert!(output.ends_with("input\n"), "{output}");
        assert_eq!(output.contains(&format!("/sh_{job}\n")), host.base.is_some(), "{output}");
        assert_eq!(status.cgroup.is_some(), host.base.is_some());
    }
    let error = worker.start(Command::new("no-such-program")).unwrap_err();
    assert_eq!(error.failure().unwrap().step(), Step::Exec);
    assert_eq!(host.cgroups(), cgroups);
}

/// What there is, but not what the children that run are doing at this moment.
fn census(host: &Host) -> Census {
    let mut census = Census::take(host);
    for child in &mut census.children {
        child.truncate(child.rfind(')').unwrap());
    }
    census
}

fn missing(worker: &Worker, rung: Rung) -> Option<&'static str> {
    worker.capabilities().rungs.iter().find(|report| report.rung == rung).unwrap().missing
}

/// What the two answers of filters are told apart by in the reason.
const REFUSALS: [(Errno, &str); 2] = [(Errno::NOSYS, "ENOSYS"), (Errno::PERM, "EPERM")];

fn a_worker_built_under_the_filter_starts_jobs_by_fork(errno: Errno, word: &str) {
    let host = Host::new();
    deny(CLONE3, errno);
    let mut worker = builder(&host).build().unwrap();
    assert_eq!(worker.capabilities().rung, Rung::Fork);
    let reason = missing(&worker, Rung::ForkLike).unwrap();
    assert!(reason.contains("clone3") && reason.contains("seccomp") && reason.contains(word), "{reason}");
    assert_eq!(missing(&worker, Rung::Fork), None);
    jobs_are_the_same(&host, &mut worker, Rung::Fork);
    // Asked for by name, it is what one gets.
    jobs_are_the_same(&host, &mut builder(&host).rung(Rung::Fork).build().unwrap(), Rung::Fork);
}

fn a_worker_built_before_the_filter_notices_at_the_next_start(errno: Errno, word: &str) {
    let host = Host::new();
    let mut worker = builder(&host).build().unwrap();
    assert_eq!(worker.capabilities().rung, Rung::Detached);
    jobs_are_the_same(&host, &mut worker, Rung::Detached);
    let running = worker.start(Command::new("cat").stdin_piped()).unwrap();
    deny(CLONE3, errno);
    jobs_are_the_same(&host, &mut builder(&host).build().unwrap(), Rung::Fork);

    let before = census(&host);
    let job = worker.start(Command::new("true")).unwrap();
    assert_eq!(worker.capabilities().rung, Rung::Fork);
    for rung in [Rung::Detached, Rung::Vfork, Rung::ForkLike] {
        assert!(missing(&worker, rung).unwrap().contains(word));
    }
    let status = finish(&mut worker, job);
    assert_eq!((status.success(), status.rung), (true, Rung::Fork));
    std::fs::remove_file(status.log.unwrap()).unwrap();
    assert_eq!(census(&host), before, "nothing is left of the attempt");

    assert_eq!(worker.query(running).unwrap().state, JobState::Running);
    drop(worker.take_stdin(running).unwrap());
    let status = finish(&mut worker, running);
    assert_eq!((status.success(), status.rung), (true, Rung::Detached));
}

fn a_rung_that_was_asked_for_is_not_replaced(errno: Errno, word: &str) {
    let host = Host::new();
    let mut forced = builder(&host).rung(Rung::ForkLike).build().unwrap();
    deny(CLONE3, errno);
    // At the build.
    let before = census(&host);
    let error = builder(&host).rung(Rung::ForkLike).build().unwrap_err();
    let BuildError::Rung { rung, reason } = &error else { panic!("{error}") };
    assert!(*rung == Rung::ForkLike && reason.contains(word), "{error}");
    assert_eq!(census(&host), before);
    // And later.
    let error = forced.start(Command::new("true")).unwrap_err();
    let StartError::Failed(failure) = &error else { panic!("{error}") };
    assert_eq!((failure.step(), failure.errno()), (Step::Clone, errno.raw_os_error()));
    assert_eq!(census(&host), before);
    assert_eq!(forced.capabilities().rung, Rung::ForkLike);
}

fn descriptors_are_closed_without_close_range(errno: Errno) {
    let host = Host::new();
    // More than one look at the directory of descriptors gives, none marked.
    let open = || File::open("/dev/zero").unwrap();
    let files: Vec<File> = (0..200).map(|_| open()).collect();
    for file in &files {
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::empty()).unwrap();
    }
    let mut workers = Rung::ALL.map(|rung| builder(&host).rung(rung).build().unwrap());
    deny(CLOSE_RANGE, errno);
    for worker in &mut workers {
        let mut open_in = |command: Command| {
            let job = worker.start(command).unwrap();
            let status = finish(worker, job);
            assert!(status.success(), "{status:?}");
            let list = String::from_utf8(output_of(&status)).unwrap();
            list.lines().map(|line| line.parse::<i32>().unwrap()).collect::<BTreeSet<i32>>()
        };
        let list = || Command::shell("ls /proc/$$/fd; :");
        assert_eq!(open_in(list()), BTreeSet::from([0, 1, 2]));
        let taken = files[100].as_raw_fd();
        assert_eq!(open_in(list().fd(5, open()).fd(taken, open()).fd(900, open())), BTreeSet::from([0, 1, 2, 5, taken, 900]));
        let error = worker.start(Command::new("no-such-program")).unwrap_err();
        assert_eq!(error.failure().unwrap().step(), Step::Exec);
    }
    for worker in &mut workers {
        assert_eq!(worker.unfinished_jobs(), 0);
    }
}

#[test]
fn a_worker_built_under_a_filter_that_says_enosys_starts_jobs_by_fork() {
    isolated("a_worker_built_under_a_filter_that_says_enosys_starts_jobs_by_fork", || {
        a_worker_built_under_the_filter_starts_jobs_by_fork(REFUSALS[0].0, REFUSALS[0].1);
    });
}

#[test]
fn a_worker_built_under_a_filter_that_says_eperm_starts_jobs_by_fork() {
    isolated("a_worker_built_under_a_filter_that_says_eperm_starts_jobs_by_fork", || {
        a_worker_built_under_the_filter_starts_jobs_by_fork(REFUSALS[1].0, REFUSALS[1].1);
    });
}

#[test]
fn a_worker_built_before_a_filter_that_says_enosys_notices_at_the_next_start() {
    isolated("a_worker_built_before_a_filter_that_says_enosys_notices_at_the_next_start", || {
        a_worker_built_before_the_filter_notices_at_the_next_start(REFUSALS[0].0, REFUSALS[0].1);
    });
}

#[test]
fn a_worker_built_before_a_filter_that_says_eperm_notices_at_the_next_start() {
    isolated("a_worker_built_before_a_filter_that_says_eperm_notices_at_the_next_start", || {
        a_worker_built_before_the_filter_notices_at_the_next_start(REFUSALS[1].0, REFUSALS[1].1);
    });
}

#[test]
fn a_rung_that_was_asked_for_is_not_replaced_under_enosys() {
    isolated("a_rung_that_was_asked_for_is_not_replaced_under_enosys", || {
        a_rung_that_was_asked_for_is_not_replaced(REFUSALS[0].0, REFUSALS[0].1);
    });
}

#[test]
fn a_rung_that_was_asked_for_is_not_replaced_under_eperm() {
    isolated("a_rung_that_was_asked_for_is_not_replaced_under_eperm", || {
        a_rung_that_was_asked_for_is_not_replaced(REFUSALS[1].0, REFUSALS[1].1);
    });
}

#[test]
fn descriptors_are_closed_in_jobs_also_where_close_range_is_missing() {
    isolated("descriptors_are_closed_in_jobs_also_where_close_range_is_missing", || {
        descriptors_are_closed_without_close_range(Errno::NOSYS);
    });
}

#[test]
fn descriptors_are_closed_in_jobs_also_where_close_range_is_forbidden() {
    isolated("descriptors_are_closed_in_jobs_also_where_close_range_is_forbidden", || {
        descriptors_are_closed_without_close_range(Errno::PERM);
    });
}

#[test]
fn an_exit_status_that_somebody_took_is_unknown_where_the_kernel_cannot_tell() {
    isolated("an_exit_status_that_somebody_took_is_unknown_where_the_kernel_cannot_tell", || {
        let host = Host::new();
        be_old();
        for rung in Rung::ALL {
            for base in [host.base.clone().map_or(CgroupBase::Off, CgroupBase::Path), CgroupBase::Off] {
                let mut worker = builder(&host).rung(rung).cgroup_base(base).build().unwrap();
                assert!(!worker.capabilities().exit_info);
                let job = worker.start(Command::shell("read line; exit 3").stdin_piped()).unwrap();
                let pid = Pid::from_raw(worker.query(job).unwrap().pid);
                drop(worker.take_stdin(job).unwrap());
                // Not the loop, but somebody else in this process.
                waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
                let status = finish(&mut worker, job);
                assert_eq!((status.state, status.exit, status.exit_code), (JobState::Unknown, Some(Exit::Unknown), -1));
                assert_eq!(status.usage, None);
                // One that nobody took is as right as ever.
                let job = worker.start(Command::shell("exit 4")).unwrap();
                assert_eq!(finish(&mut worker, job).exit_code, 4);
            }
        }
    });
}

#[test]
fn a_process_group_is_killed_also_where_a_pidfd_knows_none() {
    isolated("a_process_group_is_killed_also_where_a_pidfd_knows_none", || {
        let host = Host::new();
        be_old();
        let mut worker = builder(&host).cgroup_base(CgroupBase::Off).build().unwrap();
        let job = worker.start(Command::shell("sleep 1000 & echo $!; read line").stdin_piped()).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines > 0);
        drop(worker.take_stdin(job).unwrap());
        let status = finish(&mut worker, job);
        let child = String::from_utf8(output_of(&status)).unwrap().trim().parse().unwrap();
        wait_until("the child is gone", || !process_runs(child));
        assert!(status.usage.is_some() && !status.output.cut_off, "{status:?}");
    });
}
