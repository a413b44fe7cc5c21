//! Where hosts are played, and what they say is heard: a host takes the figures in a process of its own, and says them to the benchmark that has started it.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::host::Ours;
use crate::{Result, Results};

/// A host that says nothing for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_mins(2);
/// Processes that were killed are gone after this.
const GONE_MAX: Duration = Duration::from_secs(10);
/// Files in memory: a file system on a disk creates files many times slower once some ten thousand were deleted shortly before, and that would be all that is seen.
const MEMORY_FILES: &str = "/dev/shm";

/// What a host says; in a line of JSON each.
#[derive(Debug, Deserialize, Serialize)]
pub enum Says {
    /// It is still at it.
    Alive,
    /// A figure of one round.
    Figure {
        /// The table's id.
        table: String,
        /// The contender.
        row: String,
        /// The column.
        column: String,
        /// The figure itself.
        figure: f64,
    },
    /// What a reader has to know. The same is noted once only.
    Note(String),
    /// What went wrong that must not.
    Failure(String),
}

impl Says {
    /// A figure.
    pub fn figure(table: &str, row: &str, column: &str, figure: f64) -> Self {
        Self::Figure { table: table.to_owned(), row: row.to_owned(), column: column.to_owned(), figure }
    }

    /// What went wrong with a contender: with a peer it is a note, with anybody else a failure.
    pub fn wrong(is_peer: bool, what: String) -> Self {
        if is_peer { Self::Note(what) } else { Self::Failure(what) }
    }

    /// Says it to whoever plays this host.
    ///
    /// # Errors
    /// If nobody listens.
    pub fn say(&self) -> Result<()> {
        Ok(writeln!(io::stdout(), "{}", serde_json::to_string(self)?)?)
    }
}

/// Where hosts are played. What it has made goes with it, also when somebody interrupts.
#[derive(Debug)]
pub struct Stage {
    /// For programs.
    pub directory: TempDir,
    /// For logs: in memory where that can be had.
    pub logs: TempDir,
    interrupted: Arc<AtomicBool>,
}

impl Stage {
    /// With empty directories.
    ///
    /// # Errors
    /// If they cannot be made.
    pub fn new() -> Result<Self> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signal_hook::flag::register(signal as i32, Arc::clone(&interrupted))?;
        }
        let mut name = tempfile::Builder::new();
        let name = name.prefix("iron-exec-bench-");
        let logs = name.tempdir_in(MEMORY_FILES).or_else(|_| name.tempdir())?;
        Ok(Self { directory: name.tempdir()?, logs, interrupted })
    }

    /// Has a host (see [`host::again`](crate::host::again)) play, and takes in what it says. That it fails is a failure of the benchmark, once it has told its results.
    ///
    /// # Errors
    /// If somebody has interrupted.
    pub fn play(&self, name: &str, host: &mut Command, results: &mut Results) -> Result<()> {
        let heard = self.hear(host, results);
        if self.interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if let Err(error) = heard {
            results.fail(format!("{name}: {error}"));
        }
        Ok(())
    }

    fn hear(&self, host: &mut Command, results: &mut Results) -> Result<()> {
        let mut host = Ours(host.spawn()?);
        let stdout = host.0.stdout.take().ok_or("the host has no stdout")?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || BufReader::new(stdout).lines().map_while(io::Result::ok).try_for_each(|line| sender.send(line)));
        let mut heard = Instant::now();
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => {
                    heard = Instant::now();
                    take_in(serde_json::from_str(&line).map_err(|error| format!("the host says {line:?}: {error}"))?, results)?;
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) if self.interrupted.load(Ordering::Relaxed) => return Err("interrupted".into()),
                Err(RecvTimeoutError::Timeout) if heard.elapsed() > SILENCE_MAX => return Err("the host is stuck".into()),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let status = host.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the host ended: {status}").into()) }
    }
}

fn take_in(says: Says, results: &mut Results) -> Result<()> {
    match says {
        Says::Alive => {}
        Says::Figure { table, row, column, figure } => {
            let known = results.tables.iter_mut().find(|known| known.id == table);
            known.ok_or_else(|| format!("there is no table {table}"))?.add(&row, &column, figure);
        }
        Says::Note(note) => results.note(note),
        Says::Failure(failure) => results.fail(failure),
    }
    Ok(())
}

/// A cgroup of the benchmark's own, below the one that this process is in. It goes with this, and all processes in it.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes it.
    ///
    /// # Errors
    /// If there is no cgroup2 hierarchy, or nothing can be made in it.
    pub fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        // See proc_pid_mountinfo(5): the fields behind the dash are of another number than those before it.
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4));
        let mount = Path::new(mount.ok_or("there is no cgroup2 mount")?);
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).ok_or("this process is in no cgroup2")?;
        let path = mount.join(own).join(format!("iron-exec-bench-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // What is gone already is not missed.
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        let began = Instant::now();
        while remove(&self.0).is_err_and(|error| error.kind() != io::ErrorKind::NotFound) && began.elapsed() < GONE_MAX {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Removes a cgroup and those in it.
fn remove(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
