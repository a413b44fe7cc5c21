//! Promise: the machine that `.ci/machine` boots is the proving ground that other tests take it for: an older kernel, cgroup2 with every controller,
//! whose limits act, and disks to limit. No other test would notice if a limit was not there: it would pass for the wrong reason, or fail for one.

mod common;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{self, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::{Host, finish, output_of};
use iron_exec::{Command, JobState};

const MOUNT: &str = "/sys/fs/cgroup";

/// A cgroup of a test's own, below the mount.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Self {
        let path = Path::new(MOUNT).join(format!("iron-exec-test-{name}"));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.0.join(file), text).unwrap_or_else(|error| panic!("{file}, {text}: {error}"));
    }

    /// The number that stands behind `key`.
    fn number(&self, file: &str, key: &str) -> u64 {
        let text = fs::read_to_string(self.0.join(file)).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {key} in {file}: {text}")).parse().unwrap()
    }

    /// Runs a script in it. The shell goes there by itself: nothing of the library takes part.
    fn run(&self, script: &str) -> ExitStatus {
        let mut shell = process::Command::new("/bin/sh");
        shell.args(["-c", &format!("echo $$ > \"$0\"/cgroup.procs || exit 99; {script}")]).arg(&self.0);
        shell.stdin(Stdio::null()).stderr(Stdio::null()).status().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let deadline = Instant::now() + common::DEADLINE;
        while fs::remove_dir(&self.0).is_err_and(|error| error.kind() == std::io::ErrorKind::ResourceBusy) && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn the_kernel_is_older_than_the_calls_that_the_library_can_do_without() {
    let release = rustix::system::uname().release().to_str().unwrap().to_owned();
    let mut numbers = release.split(['.', '-']).map(|number| number.parse::<u32>().unwrap());
    let version = (numbers.next().unwrap(), numbers.next().unwrap());
    // PIDFD_GET_INFO tells the exit code from 6.15 on.
    assert!(((5, 14)..(6, 15)).contains(&version), "{release}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn every_controller_is_there_and_handed_down() {
    for file in ["cgroup.controllers", "cgroup.subtree_control"] {
        let text = fs::read_to_string(Path::new(MOUNT).join(file)).unwrap();
        for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
            assert!(text.split_whitespace().any(|word| word == controller), "{controller} is not in {file}: {text}");
        }
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn memory_max_kills_who_takes_more_and_nobody_else() {
    let cgroup = Cgroup::new("memory");
    cgroup.write("memory.max", "20M");
    assert!(cgroup.run("exec dd if=/dev/zero of=/dev/null bs=1M count=1").success());
    assert_eq!(cgroup.number("memory.events", "oom_kill"), 0);
    assert_eq!(cgroup.run("exec dd if=/dev/zero of=/dev/null bs=60M count=1").signal(), Some(9));
    assert_eq!(cgroup.number("memory.events", "oom_kill"), 1);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn pids_max_refuses_one_process_more() {
    let cgroup = Cgroup::new("pids");
    cgroup.write("pids.max", "2");
    assert!(cgroup.run("sleep 0; exit 0").success());
    assert!(!cgroup.run("sleep 1 & sleep 1; wait; exit 0").success());
    assert!(cgroup.number("pids.events", "max") >= 1);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn cpu_max_takes_the_cpu_away() {
    let cgroup = Cgroup::new("cpu");
    cgroup.write("cpu.max", "10000 100000");
    let began = Instant::now();
    cgroup.run("timeout -s KILL 2 sh -c 'while :; do :; done'");
    // A tenth of a CPU, and what one period may have too much.
    let allowed = began.elapsed() / 10 + Duration::from_millis(100);
    let used = Duration::from_micros(cgroup.number("cpu.stat", "usage_usec"));
    assert!(used <= allowed && cgroup.number("cpu.stat", "nr_throttled") > 0, "{used:?} of {allowed:?}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn cpuset_cpus_binds_to_a_cpu() {
    let cgroup = Cgroup::new("cpuset");
    cgroup.write("cpuset.cpus", "1");
    assert!(cgroup.run("grep -q '^Cpus_allowed_list:.1$' /proc/self/status").success());
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn io_max_slows_a_disk_down() {
    let disk = fs::metadata("/dev/nullb0").unwrap();
    assert!(disk.file_type().is_block_device() && Path::new("/dev/loop0").exists());
    let cgroup = Cgroup::new("io");
    let number = format!("{}:{}", rustix::fs::major(disk.rdev()), rustix::fs::minor(disk.rdev()));
    let write = "exec dd if=/dev/zero of=/dev/nullb0 oflag=direct bs=64k count=32";
    cgroup.write("io.max", &format!("{number} wbps=1048576"));
    let began = Instant::now();
    assert!(cgroup.run(write).success());
    // 2 MiB at 1 MiB a second; the kernel lets the first piece through at once.
    assert!(began.elapsed() >= Duration::from_millis(1500), "{:?}", began.elapsed());
    cgroup.write("io.max", &format!("{number} wbps=max"));
    let began = Instant::now();
    assert!(cgroup.run(write).success());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_worker_runs_jobs_in_cgroups_of_their_own() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("cat /proc/self/cgroup; exit 3")).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!((status.state, status.exit_code, status.cgroup_left), (JobState::Finished, 3, false));
    let output = String::from_utf8(output_of(&status)).unwrap();
    let base = host.base.as_ref().unwrap().strip_prefix(MOUNT).unwrap();
    assert!(output.starts_with(&format!("0::/{}/sh_", base.display())), "{output}");
    assert_eq!(host.cgroups(), Vec::<String>::new());
}
