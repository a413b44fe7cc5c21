//! Hosts that are played: processes of their own, so that the memory and the descriptors of one do not burden another, and others that want the CPUs.

use std::fs::{self, File};
use std::hint::black_box;
use std::io;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use crate::Result;

/// The smallest page of both machines.
const PAGE_BYTES: usize = 4096;
/// A hog ends after this even if nobody ends it.
const HOG_TIME_MAX: Duration = Duration::from_mins(10);
const HOGS_PER_CPU: usize = 2;

/// A process of ours that does not outlive its time.
#[derive(Debug)]
pub struct Ours(pub Child);

impl Drop for Ours {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// This very program once more, with an environment that is small and the same everywhere, its stdout a pipe. Its first line of code is to be
/// [`end_with_parent`].
///
/// # Errors
/// If nobody knows where this program is.
pub fn again() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear().env("PATH", "/bin:/usr/bin").env("PARENT", std::process::id().to_string());
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    Ok(command)
}

/// Has the kernel end this process when its parent, who has started it by [`again`], is gone.
///
/// # Errors
/// If it is gone already.
pub fn end_with_parent() -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if std::env::var("PARENT").is_ok_and(|parent| parent == getppid().to_string()) { Ok(()) } else { Err("the parent is gone".into()) }
}

/// Processes that want every CPU, twice over, until they are dropped. The program has to call [`hog`] when its only argument is `hog`.
///
/// # Errors
/// If they cannot be started.
pub fn hogs() -> Result<Vec<Ours>> {
    let cpus = std::thread::available_parallelism()?.get();
    (0..HOGS_PER_CPU * cpus).map(|_| Ok(Ours(again()?.arg("hog").stdout(Stdio::null()).spawn()?))).collect()
}

/// Uses a CPU.
///
/// # Errors
/// If the parent is gone.
pub fn hog() -> Result<()> {
    end_with_parent()?;
    let began = Instant::now();
    while began.elapsed() < HOG_TIME_MAX {
        std::hint::spin_loop();
    }
    Ok(())
}

/// Memory of which every page is there. Huge pages are off from here on: page tables are what a fork copies, and they would hide it.
///
/// # Errors
/// If the kernel does not let huge pages be switched off.
pub fn touched(bytes: usize) -> Result<Vec<u8>> {
    prctl::set_thp_disable(true)?;
    let mut memory = vec![0; bytes];
    for at in (0..bytes).step_by(PAGE_BYTES) {
        memory[at] = 1;
    }
    Ok(black_box(memory))
}

/// So many open descriptors.
///
/// # Errors
/// Those of open(2) and dup(2).
pub fn open(fds: usize) -> io::Result<Vec<File>> {
    if fds == 0 {
        return Ok(Vec::new());
    }
    let null = File::open("/dev/null")?;
    (0..fds).map(|_| null.try_clone()).collect()
}

/// Raises the soft limit of open files to the hard one, which must be no less than `needed`.
///
/// # Errors
/// If it is less.
pub fn raise_nofile(needed: usize) -> Result<()> {
    let hard = nofile_max(needed)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// The hard limit of open files, which must be no less than `needed`.
///
/// # Errors
/// If it is less.
pub fn nofile_max(needed: usize) -> Result<u64> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if hard < needed as u64 { Err(format!("the hard limit of open files is {hard}, {needed} are needed").into()) } else { Ok(hard) }
}

/// Whether a host can have so much [`touched`] memory.
///
/// # Errors
/// If not: why.
pub fn can_touch(bytes: usize) -> Result<()> {
    prctl::get_thp_disable().map_err(|error| format!("huge pages cannot be switched off: {error}"))?;
    let text = fs::read_to_string("/proc/meminfo")?;
    let available =
        text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).ok_or("/proc/meminfo does not say what is available")?;
    let (available, needed) = (available.trim().trim_end_matches(" kB").parse::<usize>()? >> 10, bytes >> 20);
    if available < needed { Err(format!("{available} MiB of memory are available, {needed} are needed").into()) } else { Ok(()) }
}
