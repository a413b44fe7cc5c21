//! What can be made of tokio: a task for each job, on a runtime of one thread, which is this one.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;

use iron_exec::OutputStream;
use iron_exec_benches::Result;
use iron_exec_benches::floor::std_into_cgroup;
use nix::libc::ESRCH;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::runtime::{self, Runtime};
use tokio::task::{JoinSet, LocalSet};

use crate::contender::{Contender, Place, Records};
use crate::heat::Heat;

/// How a process gets into its cgroup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Entry {
    /// The parent moves it, once it runs.
    Moved,
    /// It moves itself, between fork and exec.
    Hook,
}

pub(crate) struct Tokio {
    program: PathBuf,
    logs: PathBuf,
    prefix: String,
    cgroup: Option<(PathBuf, Entry)>,
    runtime: Runtime,
    /// Jobs of all heats.
    jobs: usize,
}

impl Tokio {
    /// With cgroups if it is told how to enter them.
    pub(crate) fn new(place: &Place, entry: Option<Entry>) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let (program, logs, prefix) = (place.program.clone(), place.logs.path().to_owned(), place.prefix());
        Ok(Self { program, logs, prefix, cgroup: place.cgroup.clone().zip(entry), runtime, jobs: 0 })
    }
}

impl Contender for Tokio {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let Self { program, logs, prefix, cgroup, runtime, jobs } = self;
        LocalSet::new().block_on(runtime, async {
            let mut running = JoinSet::new();
            loop {
                while heat.starts_one(running.len()) {
                    *jobs += 1;
                    let name = format!("{prefix}_{jobs}");
                    let log = logs.join(format!("{name}.log"));
                    let cgroup = cgroup.as_ref().map(|(base, entry)| (base.join(&name), *entry));
                    running.spawn_local(run(program.clone(), log, cgroup));
                }
                match running.join_next().await {
                    Some(ended) => ended??,
                    None => return Ok(()),
                }
            }
        })
    }
}

/// One job, from the first to the last.
async fn run(program: PathBuf, log: PathBuf, cgroup: Option<(PathBuf, Entry)>) -> Result<()> {
    let log = OpenOptions::new().append(true).create_new(true).open(log)?;
    let log = Rc::new(RefCell::new(Log { file: BufWriter::new(log), records: Records::new(), record: Vec::new() }));
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Some((cgroup, entry)) = &cgroup {
        fs::create_dir(cgroup)?;
        if *entry == Entry::Hook {
            let procs = OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))?;
            std_into_cgroup(command.as_std_mut(), procs.into());
        }
    }
    let mut child = command.spawn()?;
    // The hook has a descriptor.
    drop(command);
    if let (Some((cgroup, Entry::Moved)), Some(pid)) = (&cgroup, child.id()) {
        enter(cgroup, pid)?;
    }
    let (stdout, stderr) = (child.stdout.take().ok_or("no stdout")?, child.stderr.take().ok_or("no stderr")?);
    tokio::try_join!(copy(stdout, OutputStream::Stdout, &log), copy(stderr, OutputStream::Stderr, &log))?;
    log.borrow_mut().file.flush()?;
    let status = child.wait().await?;
    if let Some((cgroup, _)) = &cgroup {
        while let Err(error) = fs::remove_dir(cgroup) {
            if error.kind() != io::ErrorKind::ResourceBusy {
                return Err(error.into());
            }
            tokio::task::yield_now().await;
        }
    }
    if status.success() { Ok(()) } else { Err(format!("a job ended: {status}").into()) }
}

/// Moves a process into a cgroup, if it still is one.
fn enter(cgroup: &Path, pid: u32) -> io::Result<()> {
    match fs::write(cgroup.join("cgroup.procs"), pid.to_string()) {
        Err(error) if error.raw_os_error() != Some(ESRCH) => Err(error),
        _ => Ok(()),
    }
}

struct Log {
    file: BufWriter<File>,
    records: Records,
    record: Vec<u8>,
}

async fn copy(output: impl AsyncRead + Unpin, stream: OutputStream, log: &RefCell<Log>) -> Result<()> {
    let mut lines = BufReader::new(output).lines();
    while let Some(line) = lines.next_line().await? {
        let Log { file, records, record } = &mut *log.borrow_mut();
        record.clear();
        records.encode(record, stream, line.as_bytes());
        file.write_all(record)?;
    }
    Ok(())
}
