//! What it costs to start a tiny program and to reap it, and how long the caller is held up meanwhile: iron-exec on each of its rungs, beside
//! posix_spawn, std and tokio.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench spawn                # about three minutes
//! cargo bench -p iron-exec-benches --bench spawn -- --quick     # about 20 seconds
//! cargo bench -p iron-exec-benches --bench spawn -- busy fds    # only the columns with one of these words in their name
//! ```
//!
//! `--raw` prints what the tables are made of, too, a line each.
//!
//! Each column is a host, played by a fresh process: `plain` has about 10 MB and few descriptors; `busy` is plain while two hogs for each CPU want it;
//! `1 GiB` has that much touched memory; `fds` has that many descriptors open, from before the worker was built, or (`later`) opened after.
//! In each column the contenders take turns, several rounds, and every figure is a median of the rounds: noise of the machine hits all alike.
//! It is the ratios that count; absolute figures move from machine to machine.
//!
//! The jobs are made as cheap as they can be: no cgroup, no log, no confirmation, stdin, stdout and stderr on /dev/null. A loop of iron-exec or tokio
//! reaps in the order of the ends; the others wait for the oldest, and so need no loop at all.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::{prctl, signal::Signal};
use nix::unistd::getppid;

use condition::{CONDITIONS, Condition, Pace};
use contender::Result;
use iron_exec_benches::program;
use report::{Record, Report};

mod condition;
mod contender;
mod report;

/// A host that tells nothing for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_mins(1);
/// A hog ends after this even if nobody ends it.
const HOG_TIME_MAX: Duration = Duration::from_mins(10);
const HOGS_PER_CPU: usize = 2;

const FULL: Pace = Pace { rounds: 5, heat: Duration::from_millis(300), spawns_min: 16 };
const QUICK: Pace = Pace { rounds: 3, heat: Duration::from_millis(50), spawns_min: 4 };
/// To see that it works: what `cargo test` asks of a benchmark.
const SMOKE: Pace = Pace { rounds: 1, heat: Duration::from_millis(2), spawns_min: 1 };

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hog", parent] => hog(parent),
        ["host", parent, condition, pace, program, log_dir] => host(parent, condition, pace, Path::new(program), Path::new(log_dir)),
        _ => bench(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Plays every host in turn, and prints the tables.
fn bench(args: &[&str]) -> Result<()> {
    let has = |flag| args.contains(&flag);
    let pace = match () {
        () if has("--quick") => "quick",
        () if has("--bench") => "full",
        () => "smoke",
    };
    let words: Vec<&str> = args.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
    // What is left behind is taken away also when somebody interrupts.
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::flag::register(signal as i32, Arc::clone(&interrupted))?;
    }
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let program = program::write(directory.path())?;
    let checked = Command::new(&program).status().map_err(|error| format!("{}: {error}; is TMPDIR mounted noexec?", program.display()))?;
    if !checked.success() {
        return Err(format!("the program that is to be started does not work: {checked}").into());
    }
    // Who else runs here is most of the noise: the load is that of before.
    let machine = machine()?;
    let mut report = Report::default();
    for condition in CONDITIONS.iter().filter(|condition| words.is_empty() || words.iter().any(|word| condition.name.contains(word))) {
        report.begin(condition.name);
        let hogs = if condition.is_busy { hogs()? } else { Vec::new() };
        let mut host = Command::new(std::env::current_exe()?);
        host.arg("host").arg(std::process::id().to_string()).args([condition.name, pace]).args([&program, directory.path()]);
        // A small environment that is the same everywhere.
        host.env_clear().env("PATH", "/bin:/usr/bin").stdin(Stdio::null()).stdout(Stdio::piped());
        let mut host = Ours(host.spawn()?);
        let told = listen(&mut host, &interrupted, |record| {
            if has("--raw") && !matches!(record, Record::Alive) {
                println!("{}\t{record}", condition.name);
            }
            report.add(record);
        });
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if let Err(error) = told {
            report.note("all", &error.to_string());
        }
        drop(hogs);
    }
    println!("{machine}\n");
    print!("{}", report.tables(pace_of(pace).rounds));
    Ok(())
}

/// What the figures depend on.
fn machine() -> Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let load = load.split(' ').next().unwrap_or_default();
    Ok(format!("Linux {}, {} CPUs, load average before the first round {load}", kernel.trim(), std::thread::available_parallelism()?))
}

fn pace_of(name: &str) -> Pace {
    match name {
        "full" => FULL,
        "quick" => QUICK,
        _ => SMOKE,
    }
}

/// Hands on what a host tells, until it has ended.
fn listen(host: &mut Ours, interrupted: &AtomicBool, mut hear: impl FnMut(Record)) -> Result<()> {
    let stdout = host.0.stdout.take().ok_or("the host has no stdout")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || BufReader::new(stdout).lines().map_while(std::result::Result::ok).try_for_each(|line| sender.send(line)));
    let mut heard = Instant::now();
    loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                heard = Instant::now();
                hear(Record::parse(&line).ok_or_else(|| format!("the host says {line:?}"))?);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if interrupted.load(Ordering::Relaxed) => return Err("interrupted".into()),
            Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENCE_MAX => return Err("the host is stuck".into()),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
    let status = host.0.wait()?;
    if status.success() { Ok(()) } else { Err(format!("the host ended: {status}").into()) }
}

/// The host's half of [`listen`].
fn host(parent: &str, condition: &str, pace: &str, program: &Path, log_dir: &Path) -> Result<()> {
    end_with(parent)?;
    let condition: &Condition = CONDITIONS.iter().find(|known| known.name == condition).ok_or("no such condition")?;
    Ok(condition::play(condition, pace_of(pace), program, log_dir)?)
}

/// Uses a CPU.
fn hog(parent: &str) -> Result<()> {
    end_with(parent)?;
    let began = Instant::now();
    while began.elapsed() < HOG_TIME_MAX {
        std::hint::spin_loop();
    }
    Ok(())
}

fn hogs() -> Result<Vec<Ours>> {
    let cpus = std::thread::available_parallelism()?.get();
    let parent = std::process::id().to_string();
    let program = std::env::current_exe()?;
    let start = |_| Ok(Ours(Command::new(&program).args(["hog", &parent]).stdin(Stdio::null()).spawn()?));
    (0..HOGS_PER_CPU * cpus).map(start).collect()
}

/// Has the kernel end this process when its parent is gone.
fn end_with(parent: &str) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid().to_string() == parent { Ok(()) } else { Err("the parent is gone".into()) }
}

/// A process of ours that does not outlive its time.
struct Ours(Child);

impl Drop for Ours {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
