//! What every test file shares: a host with directories of its own, a fresh process for tests that count or change what a process has, and waiting
//! with a deadline.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use iron_exec::{Builder, CgroupBase, Event, Events, JobId, Status, Worker};

/// How long a test waits for anything before it fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// The environment variable that tells a test that it runs in its own fresh process.
const ISOLATED: &str = "IRON_EXEC_TEST_ISOLATED";

/// Runs `body` in a fresh process of its own (libtest adds one thread to it): for tests that count or change what belongs to the whole process (descriptors, zombies, limits,
/// signal dispositions, seccomp). `name` is the test's own path, as libtest knows it.
pub fn isolated(name: &str, body: impl FnOnce()) {
    isolated_behind(&mut process::Command::new(std::env::current_exe().expect("the test binary's path")), name, body);
}

/// As [`isolated`], in a process that ignores SIGCHLD from its start.
pub fn isolated_ignoring_sigchld(name: &str, body: impl FnOnce()) {
    // An ignored signal stays ignored across an exec. (Not every shell can do this: dash keeps SIGCHLD to itself.)
    let mut launcher = process::Command::new("env");
    launcher.arg("--ignore-signal=CHLD").arg(std::env::current_exe().expect("the test binary's path"));
    isolated_behind(&mut launcher, name, body);
}

/// As [`isolated`], in a process that `launcher` makes: a command that runs this test binary, or a copy, with the arguments that are added to it.
pub fn isolated_behind(launcher: &mut process::Command, name: &str, body: impl FnOnce()) {
    if is_isolated() {
        body();
    } else {
        run_isolated(launcher.args(arguments(name)));
    }
}

/// Whether this is the fresh process of an isolated test.
pub fn is_isolated() -> bool {
    std::env::var_os(ISOLATED).is_some()
}

fn arguments(name: &str) -> [&str; 5] {
    ["--exact", name, "--nocapture", "--test-threads=1", "--include-ignored"]
}

fn run_isolated(command: &mut process::Command) {
    let output = command.env(ISOLATED, "1").output().expect("the test binary runs again");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    assert!(output.status.success(), "the isolated process failed with {}", output.status);
    assert!(text.contains("1 passed"), "the isolated process ran no test: is the name right?");
}

/// How often a test repeats what it does: `usual`, or less where IRON_EXEC_STORM says so, for an emulated machine.
pub fn rounds(usual: usize) -> usize {
    std::env::var("IRON_EXEC_STORM").map_or(usual, |most| usual.min(most.parse().expect("IRON_EXEC_STORM is a number")))
}

/// Says loudly that a test cannot run here. On CI that is a failure.
#[must_use]
pub fn cannot_run(reason: &str) -> bool {
    assert!(std::env::var_os("CI").is_none(), "this test must run on CI, but: {reason}");
    // Past libtest, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "SKIPPED, this test did not run: {reason}");
    true
}

/// Whether the test has to be skipped because we are not root.
#[must_use]
pub fn not_root() -> bool {
    !rustix::process::geteuid().is_root() && cannot_run("it needs root")
}

/// A log directory and a cgroup base of one test's own; both go with it.
pub struct Host {
    pub log_dir: tempfile::TempDir,
    pub base: Option<PathBuf>,
}

impl Host {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("iron-exec-test-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let base = cgroup2_mount().filter(|_| rustix::process::geteuid().is_root()).map(|mount| mount.join(name));
        Self { log_dir: tempfile::Builder::new().prefix("iron-exec-test-").tempdir().expect("a temporary directory"), base }
    }

    /// A builder with this host's directories; without cgroups where there are none.
    pub fn builder(&self) -> Builder {
        let base = self.base.clone().map_or(CgroupBase::Off, CgroupBase::Path);
        Worker::builder().log_dir(self.log_dir.path()).cgroup_base(base)
    }

    pub fn worker(&self) -> Worker {
        self.builder().build().expect("a worker")
    }

    /// Whether the test has to be skipped because jobs have no cgroups here.
    #[must_use]
    pub fn has_no_cgroups(&self) -> bool {
        self.base.is_none() && cannot_run("it needs root and a cgroup2 mount")
    }

    /// The names in the log directory, without the worker's own lock directory.
    pub fn logs(&self) -> Vec<String> {
        let entries = fs::read_dir(self.log_dir.path()).expect("the log directory");
        let mut names: Vec<String> = entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.retain(|name| !name.starts_with(".iron-exec"));
        names.sort();
        names
    }

    /// The names of the job cgroups below the base; the locks of workers begin with a dot.
    pub fn cgroups(&self) -> Vec<String> {
        let mut names = self.base.as_deref().map(directories).unwrap_or_default();
        names.retain(|name| !name.starts_with('.'));
        names
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(base) = &self.base {
            // A failing test may leave jobs behind: they go with it.
            let _ = fs::write(base.join("cgroup.kill"), "1");
            let deadline = Instant::now() + Duration::from_secs(5);
            while base.exists() && Instant::now() < deadline {
                for name in directories(base) {
                    let _ = fs::remove_dir(base.join(name));
                }
                let _ = fs::remove_dir(base);
            }
        }
    }
}

/// The names of the directories in a directory that may be gone.
pub fn directories(path: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let directories = entries.map(|entry| entry.expect("an entry")).filter(|entry| entry.path().is_dir());
    directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Where cgroup2 is mounted, if it is.
pub fn cgroup2_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    fields.find(|fields| fields.get(2) == Some(&"cgroup2")).map(|fields| PathBuf::from(fields[1]))
}

/// Everything of this process, and of a host's directories, that a failure could leave behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Census {
    pub fds: BTreeMap<i32, String>,
    pub children: Vec<String>,
    pub watches: usize,
    pub cgroups: Vec<String>,
    pub logs: Vec<String>,
}

impl Census {
    pub fn take(host: &Host) -> Self {
        let mut logs = host.logs();
        logs.sort();
        Self { fds: open_fds(), children: children(), watches: inotify_watches(), cgroups: host.cgroups(), logs }
    }
}

/// The open descriptors of this process and what they are. Numbers inside names (of pipes, of inodes) are left out: they differ from one life to the
/// next.
pub fn open_fds() -> BTreeMap<i32, String> {
    let directory = fs::File::open("/proc/self/fd").expect("/proc/self/fd");
    let own = directory.as_raw_fd();
    let entries = fs::read_dir("/proc/self/fd").expect("/proc/self/fd").collect::<Vec<_>>();
    let numbers = entries.iter().filter_map(|entry| entry.as_ref().ok()?.file_name().to_str()?.parse::<i32>().ok());
    let with_targets = numbers.filter_map(|number| Some((number, fs::read_link(format!("/proc/self/fd/{number}")).ok()?)));
    with_targets
        .filter(|(number, _)| *number != own)
        .map(|(number, target)| (number, target.to_string_lossy().chars().filter(|character| !character.is_ascii_digit()).collect()))
        .collect()
}

/// Every child of this process as `pid (name)`, with a `Z` behind it if it is a zombie. (Whether one runs or sleeps changes by the moment.)
pub fn children() -> Vec<String> {
    let own = process::id().to_string();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").expect("/proc").flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, tail)) = stat.rsplit_once(')') else { continue };
        let mut fields = tail.split_whitespace();
        let (state, parent) = (fields.next().unwrap_or(""), fields.next().unwrap_or(""));
        if parent == own {
            found.push(format!("{head}) {}", if state == "Z" { state } else { "" }));
        }
    }
    found.sort();
    found
}

/// The inotify watches of this process, over all its instances.
pub fn inotify_watches() -> usize {
    let mut watches = 0;
    for (number, target) in open_fds() {
        if target.contains("inotify") {
            let info = fs::read_to_string(format!("/proc/self/fdinfo/{number}")).unwrap_or_default();
            watches += info.lines().filter(|line| line.starts_with("inotify wd:")).count();
        }
    }
    watches
}

/// The number of threads of this process.
pub fn threads() -> usize {
    fs::read_dir("/proc/self/task").expect("/proc/self/task").count()
}

/// Turns the loop until `done` says so; returns every event on the way.
pub fn turn_until(worker: &mut Worker, mut done: impl FnMut(&mut Worker, &[Event]) -> bool) -> Vec<Event> {
    let deadline = Instant::now() + DEADLINE;
    let mut events = Events::new();
    let mut seen = Vec::new();
    while !done(worker, &seen) {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "the deadline has passed; events so far: {seen:#?}");
        worker.turn(&mut events, Some(left)).expect("a turn");
        seen.extend(events.drain());
    }
    seen
}

/// Turns the loop until a job has finished; returns its status. Unlike `Worker::wait` it cannot hang a test.
pub fn finish(worker: &mut Worker, job: JobId) -> Status {
    turn_until(worker, |worker, _| worker.query(job).expect("the job").is_finished());
    worker.query(job).expect("the job")
}

/// Waits until `done` says so, for things that send no event (a process of another process, say).
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "the deadline has passed: {what}");
        std::thread::yield_now();
    }
}

/// The job's bytes as its log gives them back.
pub fn output_of(status: &Status) -> Vec<u8> {
    read_log(status.log.as_ref().expect("the job has a log"))
}

/// The job's bytes as the log at `path` gives them back; what it says to be missing is passed over.
pub fn read_log(path: &Path) -> Vec<u8> {
    let (mut reader, mut bytes) = (iron_exec::LogReader::open(path).expect("the log"), Vec::new());
    while let Err(error) = std::io::Read::read_to_end(&mut reader, &mut bytes) {
        let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
        assert!(matches!(cause, Some(iron_exec::StreamError::Gap { .. })), "the log does not read: {error:?}");
    }
    bytes
}

/// Whether a process exists, be it as a zombie.
pub fn process_exists(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Whether a process runs. An orphan that has ended is a zombie until init, which may take its time, has reaped it.
pub fn process_runs(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// A file system of 64 KiB, for as long as it lives.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None` if the test is to be skipped.
    pub fn mount() -> Option<Self> {
        if not_root() {
            return None;
        }
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mounted = process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(directory.path()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(Self(directory));
        }
        let _ = cannot_run("a tmpfs cannot be mounted");
        None
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all its room, or gives it back.
    pub fn set_full(&self, is_full: bool) {
        const ENOSPC: i32 = 28;
        let filler = self.path().join("filler");
        if !is_full {
            let _ = fs::remove_file(filler);
        } else if !filler.exists() {
            let error = fs::write(filler, vec![0; 1 << 20]).expect_err("it is small");
            assert_eq!(error.raw_os_error(), Some(ENOSPC));
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// From now on renameat2(2) says EINVAL in this thread, as file systems do that cannot exchange names.
pub fn refuse_renameat2() {
    use seccompiler::{SeccompAction, SeccompFilter};
    const RENAMEAT2: i64 = if cfg!(target_arch = "x86_64") { 316 } else { 276 };
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let filter = SeccompFilter::new([(RENAMEAT2, vec![])].into(), SeccompAction::Allow, SeccompAction::Errno(22), arch).expect("a filter");
    let program: seccompiler::BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("the filter is taken");
}

/// From now on timerfd_settime(2) says EPERM in this thread, for the timers that are there.
pub fn refuse_timers() {
    use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule};
    const EPERM: u32 = 1;
    let timers = open_fds().into_iter().filter(|(_, what)| what.contains("timerfd"));
    let is_it =
        |fd: i32| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(fd.cast_unsigned())).expect("a condition");
    let rules = timers.map(|(fd, _)| SeccompRule::new(vec![is_it(fd)]).expect("a rule")).collect();
    let arch = std::env::consts::ARCH.try_into().expect("a known architecture");
    let rules = [(nix::libc::SYS_timerfd_settime, rules)].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(EPERM), arch).expect("a filter");
    let program: seccompiler::BpfProgram = filter.try_into().expect("a program");
    seccompiler::apply_filter(&program).expect("the filter is taken");
}
