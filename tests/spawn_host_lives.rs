//! Promise: a job that runs out of memory takes itself, never the host, although its child stands in the host's memory on its way.
//!
//! These need a kernel whose cgroup2 has the controller "memory": `.ci/machine` boots one. Each test is a host process of its own, so that a host
//! that is killed is a red test.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Host, finish, isolated, turn_until};
use iron_exec::{Builder, Capture, CgroupBase, Command, JobState, Limits, Rung, RungReason, Status, Worker};

/// What a host of many jobs may well have; an out-of-memory killer that looks for the largest finds it.
const HOST_BYTES: usize = 200 << 20;

/// Memory that was written to.
fn touched(bytes: usize) -> Vec<u8> {
    vec![1; bytes]
}

/// Hands the controller "memory" down from `directory`.
fn enable_memory(directory: &Path) {
    let file = directory.join("cgroup.subtree_control");
    fs::write(&file, "+memory").unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}

/// A base for jobs, some cgroups deep below one of the test's own, each with the controller "memory".
fn nested_base(host: &Host, depth: usize) -> (PathBuf, PathBuf) {
    let top = host.base.clone().expect("the machine has cgroups");
    enable_memory(top.parent().unwrap());
    fs::create_dir(&top).unwrap();
    let mut base = top.clone();
    for _ in 0..depth {
        enable_memory(&base);
        base.push("iron-exec-test-below");
        fs::create_dir(&base).unwrap();
    }
    enable_memory(&base);
    (top, base)
}

fn builder(host: &Host, base: &Path) -> Builder {
    host.builder().cgroup_base(CgroupBase::Path(base.to_owned())).confirm_timeout(Duration::from_secs(10))
}

/// Runs a command to its end, whatever that is: it runs, fails, is not started or is killed.
fn outcome(worker: &mut Worker, command: Command) -> (Option<Status>, String) {
    // Not confirmed: then there is a status, with the rung in it, of one that failed, too.
    match worker.start(command.confirm(false).capture(Capture::Discard)) {
        Ok(job) => {
            let status = finish(worker, job);
            worker.forget(job).unwrap();
            let text = match (&status.failure, status.signal()) {
                (Some(failure), _) => format!("not started ({})", failure.step()),
                (None, Some(signal)) => signal.to_string(),
                (None, None) => format!("exit code {}", status.exit_code),
            };
            (Some(status), text)
        }
        Err(error) => (None, format!("not started ({})", error.failure().expect("a step failed").step())),
    }
}

/// Arguments of some 1.5 MiB: close to the most that a stack of 8 MiB lets them be.
fn many_arguments(command: Command) -> Command {
    command.args((0..12).map(|_| "x".repeat(127 << 10)))
}

/// Takes all memory that `base` may have, and keeps it: files of a tmpfs count for who wrote them, and cannot be reclaimed without swap.
fn fill(worker: &mut Worker, file: &Path) {
    let fill = Command::new("dd").args(["if=/dev/zero", "bs=64k", "count=100000"]).arg(format!("of={}", file.display()));
    let job = worker.start(fill.capture(Capture::Discard)).unwrap();
    let status = finish(worker, job);
    assert!(!status.success(), "it should have run out of memory: {status:?}");
}

/// Ends what `nested_base` made.
fn remove(base: &Path, top: &Path) {
    for directory in base.ancestors().take_while(|directory| directory.starts_with(top)) {
        let _ = fs::remove_dir(directory);
    }
    assert!(!top.exists(), "{} is left", top.display());
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_under_a_tiny_limit_fails_or_runs_and_the_host_lives() {
    isolated("a_job_under_a_tiny_limit_fails_or_runs_and_the_host_lives", || {
        let host = Host::new();
        let (top, base) = nested_base(&host, 0);
        let memory = touched(HOST_BYTES);
        for ceiling in [Rung::Detached, Rung::Vfork] {
            let mut worker = builder(&host, &base).rung(ceiling).build().unwrap();
            for memory_max in [4 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20, 2 << 20, 8 << 20] {
                for is_large in [false, true] {
                    let mut seen = BTreeMap::<String, usize>::new();
                    let runs = 4;
                    for _ in 0..runs {
                        let command = Command::new("/bin/true").env_clear().limits(Limits::new().memory_max(memory_max));
                        let command = if is_large { many_arguments(command) } else { command };
                        let (status, text) = outcome(&mut worker, command);
                        let rung = status.map_or("?".to_owned(), |status| format!("{} ({})", status.rung, status.rung_reason));
                        *seen.entry(format!("{rung}: {text}")).or_default() += 1;
                        assert!(ceiling != Rung::Detached || !rung.starts_with("vfork"), "{rung}");
                    }
                    let is_safe = memory_max >= (2 << 20) + if is_large { 2 * (12 * (127 << 10)) } else { 0 };
                    if !is_safe {
                        assert!(seen.keys().all(|key| key.starts_with("fork-like (small memory.max)") || key.starts_with('?')), "{seen:?}");
                    } else if memory_max >= 8 << 20 {
                        assert_eq!(seen.keys().map(String::as_str).collect::<Vec<_>>(), [format!("{ceiling} (best): exit code 0")]);
                    }
                    println!(
                        "at most {ceiling:<9} memory.max {memory_max:>8}, arguments {}: {seen:?}",
                        if is_large { "1.5 MiB" } else { "none   " }
                    );
                }
            }
            drop(worker);
        }
        assert!(memory.iter().all(|byte| *byte == 1));
        remove(&base, &top);
    });
}

/// Fills a limited cgroup `depth` levels above the base's own jobs, starts jobs in it, and says which rung they took.
fn rungs_in_a_full_cgroup(depth: usize, oom_group: bool) -> BTreeMap<String, usize> {
    let host = Host::new();
    let (top, base) = nested_base(&host, depth);
    let memory = touched(HOST_BYTES);
    let mut seen = BTreeMap::new();
    for ceiling in [Rung::Detached, Rung::ForkLike] {
        let mut worker = builder(&host, &base).rung(ceiling).build().unwrap();
        fs::write(top.join("memory.max"), (24 << 20).to_string()).unwrap();
        fs::write(top.join("memory.oom.group"), if oom_group { "1" } else { "0" }).unwrap();
        let filler = host.log_dir.path().join("filler");
        fill(&mut worker, &filler);
        for _ in 0..15 {
            let (status, text) = outcome(&mut worker, many_arguments(Command::new("/bin/true")));
            let rung = status.map_or("?".to_owned(), |status| format!("{} ({})", status.rung, status.rung_reason));
            *seen.entry(format!("{rung}: {text}")).or_default() += 1;
        }
        // Many at a time, which kill each other.
        let jobs: Vec<_> = (0..10)
            .filter_map(|_| worker.start(many_arguments(Command::new("/bin/true")).confirm(false).capture(Capture::Discard)).ok())
            .collect();
        turn_until(&mut worker, |worker, _| worker.unfinished_jobs() == 0);
        for job in jobs {
            assert!(matches!(worker.query(job).unwrap().state, JobState::Finished | JobState::Failed));
        }
        fs::write(top.join("memory.max"), "max").unwrap();
        fs::write(top.join("memory.oom.group"), "0").unwrap();
        fs::remove_file(&filler).unwrap();
        let (status, text) = outcome(&mut worker, Command::new("/bin/true"));
        assert_eq!((status.unwrap().rung, text.as_str()), (ceiling, "exit code 0"), "with room again");
        drop(worker);
    }
    assert!(memory.iter().all(|byte| *byte == 1));
    remove(&base, &top);
    println!("full {depth} above the base, memory.oom.group {}: {seen:?}", u8::from(oom_group));
    seen
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_full_cgroup_above_kills_jobs_and_not_the_host() {
    isolated("a_full_cgroup_above_kills_jobs_and_not_the_host", || {
        for depth in [0, 1] {
            let seen = rungs_in_a_full_cgroup(depth, false);
            assert!(seen.keys().all(|key| !key.starts_with("detached")), "{seen:?}");
            assert!(seen.keys().any(|key| key.starts_with("vfork (memory.max above)")), "{seen:?}");
        }
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_full_cgroup_above_that_kills_its_whole_group_does_not_kill_the_host() {
    isolated("a_full_cgroup_above_that_kills_its_whole_group_does_not_kill_the_host", || {
        for depth in [0, 1] {
            let seen = rungs_in_a_full_cgroup(depth, true);
            assert!(seen.keys().all(|key| !key.starts_with("detached") && !key.starts_with("vfork")), "{seen:?}");
            assert!(seen.keys().any(|key| key.starts_with("fork-like (memory.oom.group above)")), "{seen:?}");
        }
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_limit_that_holds_the_host_too_changes_nothing() {
    isolated("a_limit_that_holds_the_host_too_changes_nothing", || {
        let host = Host::new();
        let top = host.base.clone().unwrap();
        enable_memory(top.parent().unwrap());
        fs::create_dir(&top).unwrap();
        fs::write(top.join("memory.max"), (1_u64 << 30).to_string()).unwrap();
        enable_memory(&top);
        let (own, base) = (top.join("host"), top.join("jobs"));
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.procs"), std::process::id().to_string()).unwrap();
        let mut worker = builder(&host, &base).build().unwrap();
        let status = worker.run_job(Command::new("/bin/true")).unwrap();
        assert_eq!((status.success(), status.rung, status.rung_reason), (true, Rung::Detached, RungReason::Best));
        // One that holds the jobs only counts, also when it comes later.
        fs::write(base.join("memory.max"), (512_u64 << 20).to_string()).unwrap();
        let status = worker.run_job(Command::new("/bin/true")).unwrap();
        assert_eq!((status.success(), status.rung, status.rung_reason), (true, Rung::Vfork, RungReason::MemoryMaxAbove));
        let status = worker.run_job(Command::new("/bin/true").uid(65534).gid(65534)).unwrap();
        assert_eq!((status.success(), status.rung, status.rung_reason), (true, Rung::ForkLike, RungReason::OtherUser));
        fs::write(base.join("memory.max"), "max").unwrap();
        drop(worker);
        fs::write(top.parent().unwrap().join("cgroup.procs"), std::process::id().to_string()).unwrap();
        fs::remove_dir(&own).unwrap();
        fs::remove_dir(&top).unwrap();
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_memory_limit_is_the_jobs_from_its_first_instruction() {
    isolated("a_memory_limit_is_the_jobs_from_its_first_instruction", || {
        let host = Host::new();
        let (top, base) = nested_base(&host, 0);
        let mut worker = builder(&host, &base).build().unwrap();
        let read = format!("cat {}$(sed -n 's/^0:://p' /proc/self/cgroup)/memory.max", top.parent().unwrap().display());
        let job = worker.start(Command::shell(read).limits(Limits::new().memory_max(64 << 20))).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!((status.exit_code, common::output_of(&status)), (0, b"67108864\n".to_vec()));
        let greedy = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=200M", "count=1"]);
        let job = worker.start(greedy.limits(Limits::new().memory_max(64 << 20))).unwrap();
        let status = finish(&mut worker, job);
        assert_eq!(status.signal().map(|signal| signal.to_string()).as_deref(), Some("SIGKILL"), "{status:?}");
        drop(worker);
        remove(&base, &top);
    });
}

/// A bind mount, for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(source: &Path, target: &Path) -> Self {
        fs::create_dir(target).unwrap();
        let mount = std::process::Command::new("mount").args(["-o", "bind"]).args([source, target]).status().unwrap();
        assert!(mount.success());
        Self(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_limit_above_is_seen_through_links_and_feared_behind_mounts() {
    isolated("a_limit_above_is_seen_through_links_and_feared_behind_mounts", || {
        let host = Host::new();
        let (top, below) = nested_base(&host, 1);
        fs::write(top.join("memory.max"), (512_u64 << 20).to_string()).unwrap();
        let rung_below = |base: &Path| {
            let mut worker = builder(&host, &base.join("jobs")).build().unwrap();
            let status = worker.run_job(Command::new("/bin/true").capture(Capture::Discard)).unwrap();
            assert!(status.success(), "{status:?}");
            (status.rung, status.rung_reason)
        };
        assert_eq!(rung_below(&below), (Rung::Vfork, RungReason::MemoryMaxAbove));
        let link = host.log_dir.path().join("link");
        std::os::unix::fs::symlink(&below, &link).unwrap();
        assert_eq!(rung_below(&link), (Rung::Vfork, RungReason::MemoryMaxAbove));
        // What stands above the root of this mount is out of sight.
        let mounted = Mounted::new(&below, &host.log_dir.path().join("mount"));
        assert_eq!(rung_below(&mounted.0), (Rung::ForkLike, RungReason::OomGroupAbove));
        drop(mounted);
        fs::write(top.join("memory.max"), "max").unwrap();
        assert_eq!(rung_below(&below), (Rung::Detached, RungReason::Best));
        remove(&below, &top);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_cpu_limit_above_keeps_children_off_the_hosts_memory() {
    isolated("a_cpu_limit_above_keeps_children_off_the_hosts_memory", || {
        let host = Host::new();
        let top = host.base.clone().unwrap();
        fs::create_dir(&top).unwrap();
        let mut worker = builder(&host, &top).build().unwrap();
        for (limit, expected) in [
            ("max", (Rung::Detached, RungReason::Best)),
            ("50000 100000", (Rung::ForkLike, RungReason::CpuMaxAbove)),
            ("max", (Rung::Detached, RungReason::Best)),
        ] {
            fs::write(top.join("cpu.max"), limit).unwrap();
            let status = worker.run_job(Command::new("/bin/true").capture(Capture::Discard)).unwrap();
            assert_eq!((status.success(), status.rung, status.rung_reason), (true, expected.0, expected.1), "cpu.max {limit}");
        }
        drop(worker);
        remove(&top, &top);
    });
}
