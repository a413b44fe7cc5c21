//! Promise: while a child is on its way from the clone to its program, on the host's memory or on a copy of it, the user it has become cannot look
//! into it, and neither that user nor the job changes anything of the host.
//!
//! The user is played by another process, which is this test binary again: it knows the host's children as they appear, and where in memory the host
//! keeps a secret. It tries every way into another process that Linux has for one's own user, in a tight loop, and on children that it stops on
//! their way. That it stopped enough of them there is part of each test.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, cannot_run, isolated, not_root, output_of, wait_until};
use iron_exec::{Builder, Command, Events, Exit, Resource, Rung, RungReason, Signal, Status, Step, Worker};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal as NixSignal, kill};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::sys::{prctl, ptrace, wait};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid as RustixPid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// The user of the jobs, and of the attacker.
const TENANT: u32 = 54321;
/// The user of a host that is not root.
const CAPABLE: &str = "54320";

/// Set for the attacker: what it is to do.
const ATTACK: &str = "IRON_EXEC_TEST_ATTACK";
/// Set for a host that setpriv(1) has made something else of.
const IS_CHANGED: &str = "IRON_EXEC_TEST_CHANGED";
/// Set for a job that tells about itself.
const IS_JOB: &str = "IRON_EXEC_TEST_JOB";
/// Of the common helpers.
const ISOLATED: &str = "IRON_EXEC_TEST_ISOLATED";

/// The test that is the attacker, too.
const ATTACKER: &str = "the_same_user_gets_into_a_job_that_runs_its_program_in_every_way_that_is_tried";

/// How long a siege goes on: for this many starts at least, and until so many children were stopped on their way, and so many more watched there for a
/// whole round of attempts.
#[derive(Clone, Copy)]
struct Patience {
    starts: usize,
    hits: usize,
}

const LONG: Patience = Patience { starts: 60, hits: 12 };
const SHORT: Patience = Patience { starts: 24, hits: 5 };

/// What the host keeps to itself.
type Secret = [u8; 32];

// ---- The attacker ----

/// What the attacker does to a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// Tries everything as long as it is on its way.
    Race,
    /// The same, for a child that its host traces: tells of each round.
    Step,
    /// Stops it, tries everything, lets it go on.
    Stop,
    /// Stops it, and tries everything while it dies.
    Kill,
    /// Stops it, and sends a signal that dumps core.
    Core(NixSignal),
    /// Sends such a signal as soon as it is allowed to.
    Spray(NixSignal),
    /// Waits until it runs its program, and tries everything once.
    After,
}

impl Mode {
    const ALL: [(Mode, &str); 11] = [
        (Mode::Race, "race"),
        (Mode::Step, "step"),
        (Mode::Stop, "stop"),
        (Mode::Kill, "kill"),
        (Mode::Core(NixSignal::SIGQUIT), "core-quit"),
        (Mode::Core(NixSignal::SIGSEGV), "core-segv"),
        (Mode::Core(NixSignal::SIGABRT), "core-abrt"),
        (Mode::Spray(NixSignal::SIGQUIT), "spray-quit"),
        (Mode::Spray(NixSignal::SIGSEGV), "spray-segv"),
        (Mode::Spray(NixSignal::SIGABRT), "spray-abrt"),
        (Mode::After, "after"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(mode, _)| *mode == self).unwrap().1
    }

    fn named(name: &str) -> Self {
        Self::ALL.iter().find(|(_, other)| *other == name).unwrap().0
    }
}

/// A process that is attacked.
struct Prey {
    pid: i32,
    /// Where there is something to be read and written in it.
    address: usize,
    secret: Secret,
    /// What is written there.
    graffiti: [u8; 8],
}

impl Prey {
    fn pid(&self) -> Pid {
        Pid::from_raw(self.pid)
    }

    fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{name}", self.pid))
    }

    /// The state and whether it is on its way: no program has been executed since it was made. `None` if it is gone.
    fn stat(&self) -> Option<(u8, bool)> {
        const PF_FORKNOEXEC: u64 = 0x40;
        let stat = fs::read_to_string(self.file("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some((fields.first()?.as_bytes()[0], fields.get(6)?.parse::<u64>().ok()? & PF_FORKNOEXEC != 0))
    }

    /// Whether it is on its way and alive, and then whether it is our own already.
    fn window(&self) -> Option<bool> {
        let (state, is_on_its_way) = self.stat()?;
        // The directory itself belongs to whom the process is, dumpable or not.
        let is_ours = || fs::metadata(self.file("")).is_ok_and(|data| data.uid() == TENANT);
        (is_on_its_way && !matches!(state, b'Z' | b'X')).then(is_ours)
    }

    /// Its permitted capabilities, if all of its user ids are ours.
    fn capabilities(&self) -> Option<u64> {
        let status = fs::read_to_string(self.file("status")).ok()?;
        let line = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        let is_ours = line("Uid:")?.split_whitespace().all(|uid| uid == TENANT.to_string());
        is_ours.then_some(u64::from_str_radix(&line("CapPrm:")?, 16).ok()?)
    }

    /// What of a read came from the process.
    fn is_something(&self, read: &[u8]) -> bool {
        if read.windows(self.secret.len()).any(|bytes| bytes == self.secret) {
            tell(&format!("exposed {} secret", self.pid));
        }
        !read.is_empty()
    }

    /// Whether a file of `/proc/PID` has something to be read.
    fn has(&self, name: &str) -> bool {
        fs::read(self.file(name)).is_ok_and(|bytes| self.is_something(&bytes))
    }

    fn mem(&self, name: &str) -> bool {
        let mut bytes = [0; 32];
        let read = File::open(self.file(name)).and_then(|file| file.read_at(&mut bytes, self.address as u64));
        read.is_ok_and(|count| self.is_something(&bytes[..count]))
    }

    /// Lets go of a process that is traced, whatever it stopped for.
    fn release(&self) {
        let _ = wait::waitpid(self.pid(), Some(wait::WaitPidFlag::__WALL));
        let _ = ptrace::detach(self.pid(), None);
        let _ = kill(self.pid(), NixSignal::SIGCONT);
    }
}

/// A way into a process; it says whether it led anywhere.
type Way = fn(&Prey) -> bool;

/// Those that there are.
const WAYS: [(&str, Way); 17] = [
    ("PTRACE_SEIZE", |prey| {
        let is_in = ptrace::seize(prey.pid(), ptrace::Options::empty()).is_ok();
        if is_in {
            check(prey, "PTRACE_SEIZE");
            let _ = ptrace::interrupt(prey.pid());
            prey.release();
        }
        is_in
    }),
    ("PTRACE_ATTACH", |prey| {
        let is_in = ptrace::attach(prey.pid()).is_ok();
        if is_in {
            check(prey, "PTRACE_ATTACH");
            prey.release();
        }
        is_in
    }),
    ("process_vm_readv", |prey| {
        let mut bytes = [0; 32];
        let from = [RemoteIoVec { base: prey.address, len: bytes.len() }];
        let read = process_vm_readv(prey.pid(), &mut [IoSliceMut::new(&mut bytes)], &from);
        read.is_ok_and(|count| prey.is_something(&bytes[..count]))
    }),
    ("process_vm_writev", |prey| {
        let to = [RemoteIoVec { base: prey.address, len: prey.graffiti.len() }];
        process_vm_writev(prey.pid(), &[IoSlice::new(&prey.graffiti)], &to).is_ok_and(|count| count > 0)
    }),
    ("mem, read", |prey| prey.mem("mem")),
    ("mem of the thread, read", |prey| prey.mem(&format!("task/{}/mem", prey.pid))),
    ("mem, written", |prey| {
        let file = OpenOptions::new().write(true).open(prey.file("mem"));
        file.and_then(|file| file.write_at(&prey.graffiti, prey.address as u64)).is_ok_and(|count| count > 0)
    }),
    ("maps", |prey| prey.has("maps")),
    ("smaps_rollup", |prey| prey.has("smaps_rollup")),
    ("environ", |prey| prey.has("environ")),
    ("auxv", |prey| prey.has("auxv")),
    ("syscall", |prey| prey.has("syscall")),
    ("io", |prey| prey.has("io")),
    ("exe", |prey| fs::read_link(prey.file("exe")).is_ok()),
    ("map_files", |prey| fs::read_dir(prey.file("map_files")).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok()))),
    ("fd", |prey| {
        // Their numbers alone are no secret.
        let Ok(entries) = fs::read_dir(prey.file("fd")) else { return false };
        entries.flatten().any(|entry| fs::read_link(entry.path()).is_ok() || File::open(entry.path()).is_ok())
    }),
    ("pidfd_getfd", |prey| {
        let Ok(pidfd) = pidfd_open(RustixPid::from_raw(prey.pid).unwrap(), PidfdFlags::empty()) else { return false };
        (0..4).any(|number| pidfd_getfd(pidfd.as_fd(), number, PidfdGetfdFlags::empty()).is_ok())
    }),
];

/// Files of a process that its user may write, and that would change the host's own where memory is shared. The host looks.
const SETTINGS: [(&str, &str); 2] = [("oom_score_adj", "999"), ("coredump_filter", "0x7f")];

/// A way led into a process: if that is on its way still, it was so then.
fn check(prey: &Prey, way: &str) {
    if let Some((state, true)) = prey.stat() {
        tell(&format!("exposed {} {way} (in state {})", prey.pid, char::from(state)));
    }
}

/// Tries every way once, beginning with another one each time.
fn sweep(prey: &Prey, round: usize) {
    for index in 0..WAYS.len() {
        let (name, way) = WAYS[(round + index) % WAYS.len()];
        if way(prey) {
            check(prey, name);
        }
    }
    for (name, value) in SETTINGS {
        let file = OpenOptions::new().write(true).open(prey.file(name));
        let _ = file.and_then(|mut file| file.write_all(value.as_bytes()));
    }
}

/// Tells the host something.
fn tell(what: &str) {
    println!("@{what}");
}

/// The attacker's life.
fn attack(orders: &str) {
    let mut orders = orders.split(' ');
    let mut next = || orders.next().unwrap();
    let (host, thread, address) = (next(), next(), next().parse().unwrap());
    let secret: Vec<u8> = next().split(',').map(|byte| byte.parse().unwrap()).collect();
    let modes: Vec<Mode> = next().split(',').map(Mode::named).collect();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let powers = |name: &str| own.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    assert_eq!([powers("CapPrm:"), powers("CapEff:"), powers("CapAmb:")], ["0000000000000000"; 3], "the attacker is nobody special");

    let children = format!("/proc/{host}/task/{thread}/children");
    let mut known = BTreeSet::from([process::id() as i32]);
    let mut attacked = 0;
    // The word is preceded by libtest's.
    println!();
    tell("ready");
    let mut stdin = std::io::stdin();
    rustix::io::ioctl_fionbio(&stdin, true).unwrap();
    while let Ok(text) = fs::read_to_string(&children) {
        // The host keeps the other end, and may have no right to end us.
        if stdin.read(&mut [0]).is_ok() {
            return;
        }
        let present: BTreeSet<i32> = text.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        // Once each: the list can leave one out.
        for pid in present.difference(&known).copied().collect::<Vec<_>>() {
            known.insert(pid);
            let prey = Prey { pid, address, secret: secret.as_slice().try_into().unwrap(), graffiti: *b"graffiti" };
            assail(&prey, modes[attacked % modes.len()], attacked);
            attacked += 1;
            let host = Prey { pid: host.parse().unwrap(), ..prey };
            for (way, _) in WAYS.iter().filter(|(_, way)| way(&host)) {
                tell(&format!("exposed {} {way} of the host itself", host.pid));
            }
        }
    }
}

/// Attacks one child.
fn assail(prey: &Prey, mode: Mode, round: usize) {
    let done = |outcome: &str, sweeps: usize| tell(&format!("done {} {} {outcome} {sweeps}", prey.pid, mode.name()));
    match mode {
        Mode::Race => {
            let (mut sweeps, deadline) = (0, Instant::now() + DEADLINE);
            while let Some(was_ours) = prey.window().filter(|_| Instant::now() < deadline) {
                sweep(prey, round + sweeps);
                sweeps += usize::from(was_ours && prey.window().is_some());
            }
            done(if sweeps > 0 { "hit" } else { "missed" }, sweeps);
        }
        Mode::Step => {
            for sweeps in 1.. {
                if prey.window().is_none() {
                    break;
                }
                sweep(prey, round + sweeps);
                done("hit", 1);
            }
        }
        Mode::Stop | Mode::Kill | Mode::Core(_) => {
            if !send_when_allowed(prey, NixSignal::SIGSTOP) {
                return done("missed", 0);
            }
            let Some(capabilities) = held(prey) else {
                let _ = kill(prey.pid(), NixSignal::SIGCONT);
                return done("late", 0);
            };
            // CAP_SETUID alone is what the child keeps until its exec.
            let outcome = if capabilities == 1 << 7 { "hit" } else { "hit-early" };
            match mode {
                Mode::Kill => {
                    done(outcome, 1);
                    let _ = kill(prey.pid(), NixSignal::SIGKILL);
                    for again in 0.. {
                        sweep(prey, round + again);
                        if prey.stat().is_none_or(|(state, _)| matches!(state, b'Z' | b'X')) {
                            break;
                        }
                    }
                }
                Mode::Core(signal) => {
                    done(outcome, 0);
                    let _ = kill(prey.pid(), signal);
                    let _ = kill(prey.pid(), NixSignal::SIGCONT);
                }
                _ => {
                    for again in 0..3 {
                        sweep(prey, round + 5 * again);
                    }
                    assert!(prey.window().is_some(), "it was held all the time");
                    done(outcome, 3);
                    let _ = kill(prey.pid(), NixSignal::SIGCONT);
                }
            }
        }
        Mode::Spray(signal) => {
            let is_sent = send_when_allowed(prey, signal);
            done(if is_sent { "sent" } else { "missed" }, 0);
        }
        Mode::After => {
            let deadline = Instant::now() + DEADLINE;
            while Instant::now() < deadline && (prey.window().is_some() || prey.capabilities().is_none()) {}
            // Its stack is there to be written.
            let maps = fs::read_to_string(prey.file("maps")).unwrap_or_default();
            let stack = maps.lines().find(|line| line.ends_with("[stack]")).and_then(|line| line.split('-').next());
            let address = stack.and_then(|start| usize::from_str_radix(start, 16).ok()).unwrap_or(0);
            let prey = Prey { address, graffiti: [0; 8], ..*prey };
            for (name, way) in WAYS {
                tell(&format!("way {} {name}", if way(&prey) { "open" } else { "closed" }));
            }
            done("hit", 1);
        }
    }
}

/// Sends a signal as soon as that is permitted: to a child of ours. Whether it came to that before the child had executed its program.
fn send_when_allowed(prey: &Prey, signal: NixSignal) -> bool {
    for tries in 1..u64::MAX {
        match kill(prey.pid(), signal) {
            Ok(()) => return true,
            Err(Errno::EPERM) if tries.is_multiple_of(256) && prey.window().is_none() => return false,
            Err(Errno::EPERM) => {}
            Err(_) => return false,
        }
    }
    false
}

/// Waits until a child that was sent SIGSTOP has stopped; if that is on its way and as our user, its permitted capabilities.
fn held(prey: &Prey) -> Option<u64> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        match prey.stat()? {
            (b'T', true) => return prey.capabilities(),
            (b'T' | b'Z' | b'X', _) => return None,
            _ => {}
        }
    }
    None
}

// ---- The host ----

/// Kernel settings that have a value for a time. Nobody else who asks has any other meanwhile, in whatever process.
struct Sysctls {
    before: Vec<(PathBuf, String)>,
    _lock: File,
}

impl Sysctls {
    /// `None`, said loudly, where they cannot be had.
    fn hold(values: &[(&str, &str)]) -> Option<Self> {
        let lock = File::open("/proc/sys/fs/suid_dumpable").unwrap();
        rustix::io::retry_on_intr(|| flock(&lock, FlockOperation::LockExclusive)).unwrap();
        let mut held = Self { before: Vec::new(), _lock: lock };
        for (name, value) in values {
            let path = Path::new("/proc/sys").join(name);
            let before = match fs::read_to_string(&path) {
                Ok(before) => before.trim_end().to_owned(),
                // A security module that is not there permits everything.
                Err(error) if error.kind() == ErrorKind::NotFound && name.contains("yama") => continue,
                Err(error) => panic!("{}: {error}", path.display()),
            };
            if before != *value
                && let Err(error) = fs::write(&path, value)
            {
                let _ = cannot_run(&format!("it needs {name} to be {value}: {error}"));
                return None;
            }
            held.before.push((path, before));
        }
        Some(held)
    }
}

impl Drop for Sysctls {
    fn drop(&mut self) {
        for (path, value) in &self.before {
            if fs::read_to_string(path).unwrap().trim_end() != value {
                fs::write(path, value).unwrap();
            }
        }
    }
}

/// Runs `body` as the host, a fresh process, with `fs.suid_dumpable` as given.
fn besieged(name: &str, suid_dumpable: u32, others: &[(&str, &str)], body: impl FnOnce()) {
    if env::var_os(ISOLATED).is_some() {
        return isolated(name, body);
    }
    if not_root() {
        return;
    }
    let suid_dumpable = suid_dumpable.to_string();
    let mut values = vec![("fs/suid_dumpable", suid_dumpable.as_str()), ("kernel/yama/ptrace_scope", "0")];
    values.extend(others);
    let Some(_held) = Sysctls::hold(&values) else { return };
    isolated(name, body);
}

/// The same for a host that setpriv(1) has made something else of.
fn besieged_as(name: &str, suid_dumpable: u32, identity: &[&str], body: impl FnOnce()) {
    if env::var_os(IS_CHANGED).is_some() {
        return body();
    }
    if not_root() {
        return;
    }
    let suid_dumpable = suid_dumpable.to_string();
    let Some(_held) = Sysctls::hold(&[("fs/suid_dumpable", &suid_dumpable), ("kernel/yama/ptrace_scope", "0")]) else { return };
    let program = ProgramForAll::new();
    let mut command = process::Command::new("setpriv");
    command.args(identity).arg(&program.path).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(IS_CHANGED, "1").env(ISOLATED, "1").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    print!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "the host failed with {}", output.status);
}

/// The same for a host that is not root, and may change ids.
fn besieged_not_root(name: &str, body: impl FnOnce()) {
    const CAPS: &str = "+setuid,+setgid";
    besieged_as(name, 0, &["--reuid", CAPABLE, "--regid", CAPABLE, "--clear-groups", "--inh-caps", CAPS, "--ambient-caps", CAPS], body);
}

/// This test binary where every user may execute it.
struct ProgramForAll {
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl ProgramForAll {
    fn new() -> Self {
        let directory =
            tempfile::Builder::new().prefix("iron-exec-test-").permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
        let path = directory.path().join("exposure");
        fs::copy(env::current_exe().unwrap(), &path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path, _directory: directory }
    }
}

/// The attacker, as its host sees it.
struct Attacker {
    process: process::Child,
    text: Vec<u8>,
    outcomes: BTreeMap<i32, (Mode, String)>,
    ways: BTreeMap<String, bool>,
    hits: BTreeMap<(&'static str, String), usize>,
    sweeps: usize,
    _program: ProgramForAll,
}

impl Attacker {
    /// Starts it; it knows where the secret is.
    fn start(secret: &Secret, modes: &[Mode]) -> Self {
        let program = ProgramForAll::new();
        let modes: Vec<_> = modes.iter().map(|mode| mode.name()).collect();
        let address = std::ptr::from_ref(secret).addr();
        // It knows what it looks for, so that it knows when it has found it.
        let bytes: Vec<_> = secret.iter().map(u8::to_string).collect();
        let thread = fs::read_link("/proc/thread-self").unwrap();
        let thread = thread.file_name().unwrap().to_str().unwrap();
        let orders = format!("{} {thread} {address} {} {}", process::id(), bytes.join(","), modes.join(","));
        let mut command = if rustix::process::geteuid().is_root() {
            // The groups go with that.
            let mut command = process::Command::new(&program.path);
            command.uid(TENANT).gid(TENANT);
            command
        } else {
            let id = TENANT.to_string();
            let mut command = process::Command::new("setpriv");
            command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--ambient-caps=-all"]).arg(&program.path);
            command
        };
        command.args(["--exact", ATTACKER, "--nocapture", "--test-threads=1"]);
        let mut process = command.env(ATTACK, orders).stdin(process::Stdio::piped()).stdout(process::Stdio::piped()).spawn().unwrap();
        rustix::io::ioctl_fionbio(process.stdout.as_mut().unwrap(), true).unwrap();
        let (outcomes, ways, hits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let mut attacker = Self { process, text: Vec::new(), outcomes, ways, hits, sweeps: 0, _program: program };
        wait_until("the attacker is ready", || attacker.listen());
        attacker
    }

    /// Takes note of what it has told; whether there was something. Every line is there before what it tells of goes on.
    fn listen(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let stdout = self.process.stdout.as_mut().unwrap();
        loop {
            match stdout.read(&mut bytes) {
                Ok(0) => panic!("the attacker is gone: {:?}", self.process.wait()),
                Ok(count) => self.text.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("{error}"),
            }
        }
        let mut is_told = false;
        while let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.text.drain(..=end).collect();
            let line = String::from_utf8(line).unwrap();
            let Some(words) = line.trim_end().strip_prefix('@') else { continue };
            is_told = true;
            let (what, rest) = words.split_once(' ').unwrap_or((words, ""));
            match what {
                "ready" => {}
                "way" => {
                    let (state, name) = rest.split_once(' ').unwrap();
                    self.ways.insert(name.to_owned(), state == "open");
                }
                "done" => {
                    let [pid, mode, outcome, sweeps] = rest.split(' ').collect::<Vec<_>>().try_into().unwrap();
                    self.outcomes.insert(pid.parse().unwrap(), (Mode::named(mode), outcome.to_owned()));
                    *self.hits.entry((Mode::named(mode).name(), outcome.to_owned())).or_default() += 1;
                    self.sweeps += sweeps.parse::<usize>().unwrap();
                }
                _ => panic!("{words}: the attacker got into a process that was not its own yet"),
            }
        }
        is_told
    }

    /// How many children it caught on their way, by the way of `mode`.
    fn hits(&self, mode: Mode) -> usize {
        let of = |outcome: &str| self.hits.get(&(mode.name(), outcome.to_owned())).copied().unwrap_or(0);
        of("hit") + of("hit-early") + of("sent")
    }

    /// Has it leave.
    fn end(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        self.end();
    }
}

/// A secret that nobody can guess.
fn new_secret() -> Secret {
    let mut secret = [0; 32];
    File::open("/dev/urandom").unwrap().read_exact(&mut secret).unwrap();
    secret
}

/// A job of the tenant that says so; a slow one looks for its program in many places.
fn tenant(is_slow: bool) -> Command {
    let path = if is_slow { "/nowhere:".repeat(1500) + "/bin:/usr/bin" } else { "/bin:/usr/bin".to_owned() };
    Command::new("echo").arg("ran").env("PATH", path).uid(TENANT).gid(TENANT).confirm(false)
}

/// What the process has that a job could change.
fn own_settings() -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let names =
        ["Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    for (name, value) in status.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| names.contains(name)) {
        settings.insert(name.to_owned(), value.trim().to_owned());
    }
    assert_eq!(settings.len(), names.len());
    for file in ["limits", "oom_score_adj", "coredump_filter", "cgroup"] {
        settings.insert(file.to_owned(), fs::read_to_string(Path::new("/proc/self").join(file)).unwrap());
    }
    settings.insert("cwd".to_owned(), env::current_dir().unwrap().display().to_string());
    let stat = fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    for (name, index) in [("group", 2), ("session", 3), ("nice", 16)] {
        settings.insert(name.to_owned(), fields[index].to_owned());
    }
    settings.insert("keepcaps".to_owned(), prctl::get_keepcaps().unwrap().to_string());
    settings
}

/// A host with two workers, its secret, and the attacker.
struct Siege {
    secret: Box<Secret>,
    copy: Secret,
    before: BTreeMap<String, String>,
    workers: [Worker; 2],
    attacker: Attacker,
    starts: usize,
    began: Instant,
    /// Whether the host makes itself dumpable again, as it should not, while children are on their way.
    is_careless: bool,
}

impl Siege {
    fn begin(builders: [Builder; 2], modes: &[Mode]) -> Self {
        let secret = Box::new(new_secret());
        let workers = builders.map(|builder| builder.build().unwrap());
        let attacker = Attacker::start(&secret, modes);
        let (copy, before, began) = (*secret, own_settings(), Instant::now());
        Self { secret, copy, before, workers, attacker, starts: 0, began, is_careless: false }
    }

    /// Whether another round is needed: too few starts, or too few children that were caught on their way.
    fn goes_on(&self, Patience { starts, hits }: Patience, modes: &[Mode]) -> bool {
        let is_enough = self.starts >= starts && modes.iter().all(|mode| self.attacker.hits(*mode) >= hits);
        let hits = &self.attacker.hits;
        assert!(is_enough || self.began.elapsed() < DEADLINE, "the window was not hit often enough: {hits:?} of {}", self.starts);
        !is_enough
    }

    /// Starts a job on each worker, one whose way is long and one whose way is short, and waits for their end.
    fn round(&mut self, change: impl Fn(Command) -> Command) -> [Status; 2] {
        // Each time as if it were the first. No child is on its way.
        prctl::set_dumpable(true).unwrap();
        let mut order = [(0, self.starts % 8 < 4), (1, self.starts % 8 >= 4)];
        if self.starts % 4 < 2 {
            order.reverse();
        }
        let mut jobs = order.map(|(index, is_slow)| (index, self.workers[index].start(change(tenant(is_slow))).unwrap()));
        jobs.sort_unstable_by_key(|(index, _)| *index);
        self.starts += 2;
        let deadline = Instant::now() + DEADLINE;
        let mut events = Events::new();
        let statuses = loop {
            assert!(Instant::now() < deadline, "the deadline has passed: {:?}", self.attacker.outcomes);
            for worker in &mut self.workers {
                let time = if self.is_careless { Duration::ZERO } else { Duration::from_micros(500) };
                worker.turn(&mut events, Some(time)).unwrap();
                events.drain().for_each(drop);
            }
            if self.is_careless {
                prctl::set_dumpable(true).unwrap();
            }
            let statuses = jobs.map(|(index, job)| self.workers[index].query(job).unwrap());
            if statuses.iter().all(Status::is_finished) {
                break statuses;
            }
        };
        self.attacker.listen();
        statuses
    }

    /// Starts a job on the second worker and has it stop at each of its system calls, from the first to the exec. `setting` is called when its rung
    /// has been chosen.
    fn step_through(&mut self, host: &Host, setting: &dyn Fn(), mut at_stop: impl FnMut(&mut Self, &Prey)) -> Status {
        // So that it stands still from its birth on until it is traced.
        let freeze = host.base.as_ref().unwrap().join("cgroup.freeze");
        fs::write(&freeze, "1").unwrap();
        prctl::set_dumpable(true).unwrap();
        let job = self.workers[1].start(tenant(false)).unwrap();
        setting();
        self.starts += 1;
        let pid = self.workers[1].query(job).unwrap().pid;
        let prey = Prey { pid, address: 0, secret: self.copy, graffiti: [0; 8] };
        ptrace::seize(prey.pid(), ptrace::Options::empty()).unwrap();
        ptrace::interrupt(prey.pid()).unwrap();
        fs::write(&freeze, "0").unwrap();
        let stopped = wait::WaitPidFlag::WSTOPPED | wait::WaitPidFlag::__WALL;
        loop {
            // The end of one that fails is its worker's.
            let peek = stopped | wait::WaitPidFlag::WEXITED | wait::WaitPidFlag::WNOWAIT;
            if let wait::WaitStatus::Exited(..) = wait::waitid(wait::Id::Pid(prey.pid()), peek).unwrap() {
                break;
            }
            wait::waitid(wait::Id::Pid(prey.pid()), stopped).unwrap();
            if prey.window().is_none() {
                ptrace::detach(prey.pid(), None).unwrap();
                break;
            }
            at_stop(self, &prey);
            ptrace::syscall(prey.pid(), None).unwrap();
        }
        common::finish(&mut self.workers[1], job)
    }

    /// All that can be said when it is over.
    fn end(self, what: &str, is_ever_dumpable: bool) {
        let (time, attacker) = (self.began.elapsed(), &self.attacker);
        println!("{what}: {} starts, {:?}, {} rounds of attempts in the window, {time:.1?}", self.starts, attacker.hits, attacker.sweeps);
        drop(self.attacker);
        assert_eq!(std::hint::black_box(&*self.secret), &self.copy, "somebody wrote into the host");
        let mut after = own_settings();
        if is_ever_dumpable {
            // These are its user's to change, of a process that is dumpable; memory is not.
            for (name, _) in SETTINGS {
                after.insert(name.to_owned(), self.before[name].clone());
            }
        }
        assert_eq!(self.before, after);
    }
}

/// Both workers start jobs of the tenant until the attacker has caught enough of them on their way, in each way, and none was any the worse for it.
fn siege(builders: [Builder; 2], expected: [(Rung, RungReason); 2], patience: Patience) {
    let mut siege = Siege::begin(builders, &[Mode::Stop, Mode::Race, Mode::Race, Mode::Stop]);
    while siege.goes_on(patience, &[Mode::Stop, Mode::Race]) {
        for (status, (rung, reason)) in siege.round(|command| command).iter().zip(expected) {
            assert!(status.success(), "{status:?}");
            assert_eq!((output_of(status).as_slice(), status.rung, status.rung_reason), (&b"ran\n"[..], rung, reason));
        }
        let is_shared = expected.iter().any(|(rung, _)| *rung == Rung::Detached);
        assert_eq!(prctl::get_dumpable().unwrap(), !is_shared, "memory that a child of other ids stood in is not dumpable any more");
    }
    siege.end(&format!("{expected:?}"), false);
}

/// The sieges of every rung that can be asked for: what is asked for, and what it comes to.
fn sieges(rungs: &[(Option<Rung>, Rung, RungReason)], patience: Patience) {
    let host = Host::new();
    for (asked, rung, reason) in rungs {
        let builder = || asked.map_or_else(|| host.builder(), |rung| host.builder().rung(rung));
        siege([builder(), builder()], [(*rung, *reason); 2], patience);
    }
}

/// The rungs where memory that children of other users stand in can be kept from those.
const RUNGS: [(Option<Rung>, Rung, RungReason); 4] = [
    (None, Rung::Detached, RungReason::Best),
    (Some(Rung::Vfork), Rung::ForkLike, RungReason::OtherUser),
    (Some(Rung::ForkLike), Rung::ForkLike, RungReason::Best),
    (Some(Rung::Fork), Rung::Fork, RungReason::Best),
];

/// The same for a host that is not root, and stays dumpable so as to keep its own /proc/self.
const RUNGS_NOT_ROOT: [(Option<Rung>, Rung, RungReason); 4] =
    [(None, Rung::ForkLike, RungReason::KeepDumpable), (Some(Rung::Vfork), Rung::ForkLike, RungReason::KeepDumpable), RUNGS[2], RUNGS[3]];

// ---- The tests ----

#[test]
fn the_same_user_gets_into_a_job_that_runs_its_program_in_every_way_that_is_tried() {
    if let Ok(orders) = env::var(ATTACK) {
        return attack(&orders);
    }
    besieged(ATTACKER, 0, &[], || {
        let host = Host::new();
        let mut worker = host.worker();
        let mut attacker = Attacker::start(&new_secret(), &[Mode::After]);
        let job = worker.start(Command::new("sleep").arg("1000").uid(TENANT).gid(TENANT).confirm(false)).unwrap();
        let expected = WAYS.map(|(name, _)| (name.to_owned(), true));
        wait_until("the attacker has tried everything", || attacker.listen() && attacker.ways.len() == expected.len());
        assert_eq!(attacker.ways, BTreeMap::from(expected));
        worker.stop(job).unwrap();
        assert_eq!(common::finish(&mut worker, job).signal(), Some(Signal::KILL));
    });
}

#[test]
fn no_child_on_its_way_can_be_got_into() {
    besieged("no_child_on_its_way_can_be_got_into", 0, &[], || sieges(&RUNGS, LONG));
}

#[test]
fn no_child_on_its_way_can_be_got_into_where_changed_ids_leave_memory_dumpable() {
    besieged("no_child_on_its_way_can_be_got_into_where_changed_ids_leave_memory_dumpable", 1, &[], || {
        let mut rungs = RUNGS;
        (rungs[0].1, rungs[0].2, rungs[1].2) = (Rung::ForkLike, RungReason::SuidDumpable, RungReason::SuidDumpable);
        sieges(&rungs, SHORT);
    });
}

#[test]
fn no_child_on_its_way_can_be_got_into_where_changed_ids_leave_memory_dumpable_to_root() {
    besieged("no_child_on_its_way_can_be_got_into_where_changed_ids_leave_memory_dumpable_to_root", 2, &[], || sieges(&RUNGS, SHORT));
}

#[test]
fn no_child_can_be_got_into_at_any_system_call_on_its_way() {
    besieged("no_child_can_be_got_into_at_any_system_call_on_its_way", 0, &[], || {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        // The setting as the rung is chosen, and as the ids change.
        for (before, then) in [(0, 0), (1, 1), (2, 2), (0, 1)] {
            for (asked, rung, _) in RUNGS.into_iter().filter(|(asked, ..)| *asked != Some(Rung::Vfork)) {
                let (status, as_tenant) = step_through(&host, asked, before, then);
                let expected = if rung == Rung::Detached && before == 1 { Rung::ForkLike } else { rung };
                assert!(status.success() && status.rung == expected, "{status:?}");
                // Two for each signal alone.
                assert!(as_tenant > 120, "{as_tenant}");
            }
        }
    });
}

#[test]
fn a_host_that_cannot_leave_a_child_a_capability_is_not_got_into() {
    // One of the two things that protect a child is not to be had.
    besieged_as("a_host_that_cannot_leave_a_child_a_capability_is_not_got_into", 0, &["--securebits", "+keep_caps_locked"], || {
        assert!(prctl::set_keepcaps(true).is_err());
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        for setting in [0, 1, 2] {
            for (asked, ..) in RUNGS.into_iter().filter(|(asked, ..)| *asked != Some(Rung::Vfork)) {
                let (status, _) = step_through(&host, asked, setting, setting);
                // Where the other is not to be had, either, there is to be no start.
                let step = status.failure.as_ref().map(iron_exec::StartFailure::step);
                assert!(status.success() || step == Some(Step::Setuid), "{status:?}");
            }
        }
    });
}

/// Steps a child through its way, the attacker trying everything at each system call; `fs.suid_dumpable` is `before` as its rung is chosen and `then`
/// as its ids change. Its end, and at how many stops it was the tenant's.
fn step_through(host: &Host, asked: Option<Rung>, before: u32, then: u32) -> (Status, usize) {
    let set = |value: u32| fs::write("/proc/sys/fs/suid_dumpable", value.to_string()).unwrap();
    set(before);
    let builder = || asked.map_or_else(|| host.builder(), |rung| host.builder().rung(rung));
    let mut siege = Siege::begin([builder(), builder()], &[Mode::Step]);
    let (mut stops, mut as_tenant) = (0, 0);
    let at_stop = |siege: &mut Siege, prey: &Prey| {
        // The first of them may have begun before the stop.
        let enough = siege.attacker.sweeps + 2;
        wait_until("the attacker has tried everything", || {
            siege.attacker.listen();
            siege.attacker.sweeps >= enough
        });
        stops += 1;
        as_tenant += usize::from(prey.capabilities().is_some());
    };
    let status = siege.step_through(host, &|| set(then), at_stop);
    siege.end(&format!("{}, {before}, {then}: {stops} stops, {as_tenant} as the tenant", status.rung), before != then);
    (status, as_tenant)
}

#[test]
fn a_host_that_stays_dumpable_is_not_got_into() {
    besieged("a_host_that_stays_dumpable_is_not_got_into", 0, &[], || {
        let host = Host::new();
        let kept = (Rung::ForkLike, RungReason::KeepDumpable);
        siege([host.builder().keep_dumpable(true), host.builder().keep_dumpable(true)], [kept; 2], SHORT);
        // One worker of the process keeps it, the other does not.
        siege([host.builder().keep_dumpable(true), host.builder()], [kept, (Rung::Detached, RungReason::Best)], SHORT);
    });
}

#[test]
fn a_host_that_makes_itself_dumpable_at_the_wrong_time_is_not_got_into() {
    besieged("a_host_that_makes_itself_dumpable_at_the_wrong_time_is_not_got_into", 0, &[], || {
        let host = Host::new();
        let mut siege = Siege::begin([host.builder(), host.builder()], &[Mode::Stop, Mode::Race, Mode::Race, Mode::Stop]);
        siege.is_careless = true;
        while siege.goes_on(LONG, &[Mode::Stop, Mode::Race]) {
            for status in siege.round(|command| command) {
                assert!(status.success() && status.rung == Rung::Detached, "{status:?}");
            }
        }
        siege.end("a careless host", true);
    });
}

#[test]
fn a_host_is_not_got_into_when_the_kernels_setting_changes_between_choice_and_start() {
    besieged("a_host_is_not_got_into_when_the_kernels_setting_changes_between_choice_and_start", 0, &[], || {
        let host = Host::new();
        let mut siege = Siege::begin([host.builder(), host.builder()], &[Mode::Stop, Mode::Race, Mode::Race, Mode::Stop]);
        let (over, is_over) = std::sync::mpsc::channel::<()>();
        let administrator = thread::spawn(move || {
            for value in ["1", "0"].iter().cycle() {
                fs::write("/proc/sys/fs/suid_dumpable", value).unwrap();
                if is_over.recv_timeout(Duration::from_micros(50)) == Err(RecvTimeoutError::Disconnected) {
                    return;
                }
            }
        });
        let mut rungs = BTreeSet::new();
        while siege.goes_on(LONG, &[Mode::Stop, Mode::Race]) || rungs.len() < 2 {
            for status in siege.round(|command| command) {
                assert!(status.success(), "{status:?}");
                rungs.insert(status.rung);
            }
        }
        drop(over);
        administrator.join().unwrap();
        assert_eq!(rungs, BTreeSet::from([Rung::Detached, Rung::ForkLike]));
        siege.end("a changing setting", true);
    });
}

#[test]
fn a_host_that_is_not_root_is_not_got_into() {
    besieged_not_root("a_host_that_is_not_root_is_not_got_into", || sieges(&RUNGS_NOT_ROOT, SHORT));
}

#[test]
fn a_child_that_its_user_kills_on_its_way_cannot_be_got_into_while_it_dies() {
    besieged("a_child_that_its_user_kills_on_its_way_cannot_be_got_into_while_it_dies", 0, &[], || {
        let host = Host::new();
        for (asked, ..) in RUNGS {
            let builder = || asked.map_or_else(|| host.builder(), |rung| host.builder().rung(rung));
            let mut siege = Siege::begin([builder(), builder()], &[Mode::Kill]);
            while siege.goes_on(SHORT, &[Mode::Kill]) {
                for status in siege.round(|command| command) {
                    let is_held = siege.attacker.outcomes.get(&status.pid).is_some_and(|(_, outcome)| outcome.starts_with("hit"));
                    assert_eq!(killed_before_exec(&status), is_held.then_some(Signal::KILL), "{status:?}");
                    assert!(is_held || status.success(), "{status:?}");
                }
            }
            siege.end(&format!("killed, {asked:?}"), false);
        }
    });
}

/// The signal that killed the job's process before its program was executed.
fn killed_before_exec(status: &Status) -> Option<Signal> {
    let failure = status.failure.as_ref().filter(|failure| failure.step() == Step::Killed)?;
    failure.signal()
}

/// Runs `body` as the host, with cores put where every user may write.
fn besieged_with_cores(name: &str, suid_dumpable: u32, body: impl FnOnce(&Path)) {
    // That place is told to the host by the setting itself.
    let setting = "kernel/core_pattern";
    if env::var_os(ISOLATED).is_some() {
        return isolated(name, || {
            let pattern = fs::read_to_string(Path::new("/proc/sys").join(setting)).unwrap();
            body(Path::new(&pattern).parent().unwrap());
        });
    }
    let directory = tempfile::Builder::new().prefix("iron-exec-test-").tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let pattern = format!("{}/core.%p", directory.path().display());
    besieged(name, suid_dumpable, &[(setting, &pattern), ("kernel/core_uses_pid", "0")], || ());
}

/// Looks at every core that is there; how many there are.
fn no_core_has(secret: &Secret, directory: &Path) -> usize {
    let mut cores = 0;
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let data = fs::metadata(&path).unwrap();
        let is_the_hosts = memchr::memmem::find(&fs::read(&path).unwrap(), secret).is_some();
        let (size, uid, mode) = (data.len(), data.uid(), data.mode() & 0o777);
        assert!(!is_the_hosts, "{} is a core of the host: {size} bytes, of user {uid}, mode {mode:o}", path.display());
        cores += 1;
    }
    cores
}

/// A command whose process may dump a core of any size into a directory, where the setting is a name without one.
fn with_core(command: Command, directory: &Path) -> Command {
    command.cwd(directory).rlimit(Resource::Core, Resource::UNLIMITED, Resource::UNLIMITED)
}

/// The attacker sends signals that dump core to children on their way: no core of the host comes of it, nor harm to the host.
fn core_siege(name: &str, suid_dumpable: u32) {
    besieged_with_cores(name, suid_dumpable, |directory| {
        let signals = [NixSignal::SIGQUIT, NixSignal::SIGSEGV, NixSignal::SIGABRT];
        let cores = signals.map(Mode::Core);
        // An odd number, so that each comes to slow and to quick ones.
        let modes: Vec<Mode> =
            signals.into_iter().flat_map(|signal| [Mode::Core(signal), Mode::Spray(signal)]).chain([Mode::Race]).collect();
        let host = Host::new();
        let mut siege = Siege::begin([host.builder(), host.builder()], &modes);
        let mut before_exec = 0;
        while siege.goes_on(SHORT, &cores) {
            for status in siege.round(|command| with_core(command, directory)) {
                let Some((mode, outcome)) = siege.attacker.outcomes.remove(&status.pid) else { continue };
                let killed = killed_before_exec(&status);
                match mode {
                    Mode::Core(signal) if outcome.starts_with("hit") => {
                        assert!(killed.is_some_and(|by| [signal as i32, Signal::KILL.number()].contains(&by.number())), "{status:?}");
                    }
                    Mode::Spray(signal) if outcome == "sent" => {
                        let by = killed.or(status.signal()).map(Signal::number);
                        let is_by_it = by.is_none_or(|by| [signal as i32, Signal::KILL.number()].contains(&by));
                        assert!(is_by_it && (by.is_some() || status.success()), "{status:?}");
                    }
                    _ => assert!(status.success(), "{status:?}"),
                }
                before_exec += usize::from(killed.is_some());
            }
        }
        // A core of a program of its own is what that user may have.
        siege.attacker.end();
        let worker = &mut siege.workers[0];
        let job = worker.start(with_core(Command::new("sleep").arg("1000").uid(TENANT).gid(TENANT), directory)).unwrap();
        worker.signal(job, Signal::QUIT).unwrap();
        let status = common::finish(worker, job);
        assert_eq!(status.exit, Some(Exit::Signal { signal: Signal::QUIT, core_dumped: true }));
        let own = directory.join(format!("core.{}", status.pid));
        assert_eq!(fs::metadata(&own).unwrap().uid(), TENANT);
        let found = no_core_has(&siege.secret, directory);
        siege.end(&format!("{before_exec} killed before their programs, {found} cores of programs, none of the host"), false);
    });
}

#[test]
fn no_core_of_the_host_is_dumped() {
    core_siege("no_core_of_the_host_is_dumped", 0);
}

#[test]
fn no_core_of_the_host_is_dumped_where_changed_ids_leave_memory_dumpable() {
    core_siege("no_core_of_the_host_is_dumped_where_changed_ids_leave_memory_dumpable", 1);
}

#[test]
fn no_core_of_the_host_is_dumped_where_changed_ids_leave_memory_dumpable_to_root() {
    core_siege("no_core_of_the_host_is_dumped_where_changed_ids_leave_memory_dumpable_to_root", 2);
}

/// As a child takes other ids, the kernel makes the memory it stands on dumpable as the setting says, until the child undoes that: the memory of the
/// host's other children, too. Here one is held at that point by its tracer, as its user can do it with SIGSTOP and luck, while another dumps core.
fn core_of_another(name: &str, before: u32, then: u32) {
    besieged_with_cores(name, before, |directory| {
        let host = Host::new();
        if host.has_no_cgroups() {
            return;
        }
        let mut siege = Siege::begin([host.builder(), host.builder()], &[Mode::Step]);
        let nowhere = "/n:".repeat(40_000);
        let one = siege.workers[0].start(with_core(tenant(false).env("PATH", nowhere), directory)).unwrap();
        let one_pid = Pid::from_raw(siege.workers[0].query(one).unwrap().pid);
        wait_until("its signals are unblocked", || {
            let status = fs::read_to_string(format!("/proc/{one_pid}/status")).unwrap();
            [format!("Uid:\t{TENANT}"), "SigBlk:\t0000000000000000".to_owned()].iter().all(|line| status.contains(line))
        });
        kill(one_pid, NixSignal::SIGSTOP).unwrap();
        let setting = || fs::write("/proc/sys/fs/suid_dumpable", then.to_string()).unwrap();
        let mut is_over = false;
        let other = siege.step_through(&host, &setting, |siege, prey| {
            if prey.capabilities().is_none() || std::mem::replace(&mut is_over, true) {
                return;
            }
            assert!(prey.capabilities().is_some_and(|capabilities| capabilities != 1 << 7), "it has just taken its ids");
            kill(one_pid, NixSignal::SIGQUIT).unwrap();
            kill(one_pid, NixSignal::SIGCONT).unwrap();
            let status = common::finish(&mut siege.workers[0], one);
            assert!(killed_before_exec(&status).is_some() && status.rung == Rung::Detached, "{status:?}");
        });
        assert!(other.success() && other.rung == Rung::Detached && is_over, "{other:?}");
        no_core_has(&siege.secret, directory);
        siege.end("a core of another child", true);
    });
}

#[test]
fn no_core_of_the_host_is_dumped_while_another_child_takes_its_ids() {
    core_of_another("no_core_of_the_host_is_dumped_while_another_child_takes_its_ids", 2, 2);
}

#[test]
fn no_core_of_the_host_is_dumped_while_another_child_takes_its_ids_and_the_kernels_setting_changes() {
    core_of_another("no_core_of_the_host_is_dumped_while_another_child_takes_its_ids_and_the_kernels_setting_changes", 0, 1);
}

/// The job of the next two tests: it tells what it is.
fn tell_about_self() {
    println!();
    // Not of the main thread, which may be busy starting this one with its signals blocked.
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let names = ["Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapAmb", "NoNewPrivs", "SigIgn", "SigBlk"];
    for (name, value) in status.lines().filter_map(|line| line.split_once(':')).filter(|(name, _)| names.contains(name)) {
        tell(&format!("{name} {}", value.split_whitespace().collect::<Vec<_>>().join(" ")));
    }
    tell(&format!("keepcaps {}", prctl::get_keepcaps().unwrap()));
    tell(&format!("dumpable {}", prctl::get_dumpable().unwrap()));
}

/// A job of another user is nobody special once it runs its program.
fn nobody_special(name: &str, rungs: [(Option<Rung>, Rung, RungReason); 4]) {
    let (host, program) = (Host::new(), ProgramForAll::new());
    for (asked, rung, _) in rungs {
        let mut worker = asked.map_or_else(|| host.builder(), |rung| host.builder().rung(rung)).build().unwrap();
        let command = Command::new(&program.path).args(["--exact", name, "--nocapture", "--test-threads=1"]);
        let status = worker.run_job(command.env(IS_JOB, "1").uid(TENANT).gid(TENANT)).unwrap();
        assert!(status.success() && status.rung == rung, "{status:?}");
        let output = String::from_utf8(output_of(&status)).unwrap();
        let told: BTreeMap<&str, &str> = output.lines().filter_map(|line| line.strip_prefix('@')?.split_once(' ')).collect();
        let (id, none) = ("54321 54321 54321 54321", "0000000000000000");
        let mut expected = BTreeMap::from([("Uid", id), ("Gid", id), ("keepcaps", "false"), ("dumpable", "true"), ("NoNewPrivs", "0")]);
        expected.extend(["CapInh", "CapPrm", "CapEff", "CapAmb", "SigBlk"].map(|name| (name, none)));
        // The job is a Rust program, which ignores SIGPIPE by itself.
        expected.extend([("SigIgn", "0000000000001000")]);
        // It has no groups: nothing stands behind the name.
        let told: BTreeMap<_, _> = told.into_iter().filter(|(name, groups)| *name != "Groups" || !groups.is_empty()).collect();
        assert_eq!(told, expected, "{rung}");
    }
}

#[test]
fn a_job_of_another_user_has_no_capabilities_and_is_dumpable() {
    const NAME: &str = "a_job_of_another_user_has_no_capabilities_and_is_dumpable";
    if env::var_os(IS_JOB).is_some() {
        return tell_about_self();
    }
    besieged(NAME, 0, &[], || nobody_special(NAME, RUNGS));
}

#[test]
fn a_job_of_another_user_has_no_capabilities_of_a_host_that_is_not_root() {
    const NAME: &str = "a_job_of_another_user_has_no_capabilities_of_a_host_that_is_not_root";
    if env::var_os(IS_JOB).is_some() {
        return tell_about_self();
    }
    besieged_not_root(NAME, || nobody_special(NAME, RUNGS_NOT_ROOT));
}

#[test]
fn what_jobs_set_for_themselves_does_not_change_the_host() {
    besieged("what_jobs_set_for_themselves_does_not_change_the_host", 0, &[], || {
        let host = Host::new();
        // A host that is unlike others.
        env::set_current_dir(host.log_dir.path()).unwrap();
        fs::write("/proc/self/oom_score_adj", "100").unwrap();
        rustix::process::umask(0o027.into());
        let mut blocked = SigSet::empty();
        blocked.add(NixSignal::SIGUSR2);
        blocked.thread_block().unwrap();
        let before = own_settings();
        for (asked, ..) in RUNGS {
            let mut worker = asked.map_or_else(|| host.builder(), |rung| host.builder().rung(rung)).build().unwrap();
            for is_other_user in [false, true] {
                // Last the one that keeps a start off the rung detached.
                for has_score in [false, true] {
                    let script = "umask; pwd; ulimit -n; ulimit -c; nice; cat /proc/self/oom_score_adj; grep SigBlk /proc/self/status";
                    let mut command = Command::shell(script).umask(0o007).cwd("/").nice(7).no_new_privs();
                    command = command.rlimit(Resource::Nofile, 99, 100).rlimit(Resource::Core, 0, 0);
                    command = if has_score { command.oom_score_adj(500) } else { command };
                    command = if is_other_user { command.uid(TENANT).gid(TENANT).groups([TENANT]) } else { command };
                    let status = worker.run_job(command).unwrap();
                    let output = String::from_utf8(output_of(&status)).unwrap();
                    let score = if has_score { "500" } else { "100" };
                    let told: Vec<_> = output.split_whitespace().collect();
                    assert_eq!(told, ["0007", "/", "99", "0", "7", score, "SigBlk:", "0000000000000000"], "{status:?}");
                    assert_eq!(own_settings(), before, "{status:?}");
                }
            }
        }
    });
}
