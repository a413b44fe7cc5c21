//! What can be made of tokio: a task for each job, on a runtime of one thread, which is this one.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;

use iron_exec::OutputStream;
use iron_exec_benches::Result;
use nix::libc::ESRCH;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::runtime::{self, Runtime};
use tokio::task::{JoinSet, LocalSet};

use crate::contender::{Contender, Place, Records};
use crate::heat::Heat;

pub(crate) struct Tokio {
    program: PathBuf,
    logs: PathBuf,
    cgroup: Option<PathBuf>,
    runtime: Runtime,
    /// Jobs of all heats.
    jobs: usize,
}

impl Tokio {
    pub(crate) fn new(place: &Place, cgroup: Option<PathBuf>) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { program: place.program.clone(), logs: place.logs.clone(), cgroup, runtime, jobs: 0 })
    }
}

impl Contender for Tokio {
    fn run(&mut self, heat: &mut Heat) -> Result<()> {
        let Self { program, logs, cgroup, runtime, jobs } = self;
        LocalSet::new().block_on(runtime, async {
            let mut running = JoinSet::new();
            loop {
                while heat.starts_one(running.len()) {
                    *jobs += 1;
                    let name = format!("job_{jobs}");
                    let log = logs.join(format!("{name}.log"));
                    let cgroup = cgroup.as_ref().map(|cgroup| cgroup.join(&name));
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
async fn run(program: PathBuf, log: PathBuf, cgroup: Option<PathBuf>) -> Result<()> {
    let log = OpenOptions::new().append(true).create_new(true).open(log)?;
    let log = Rc::new(RefCell::new(Log { file: BufWriter::new(log), records: Records::new(), record: Vec::new() }));
    if let Some(cgroup) = &cgroup {
        fs::create_dir(cgroup)?;
    }
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn()?;
    if let Some((cgroup, pid)) = cgroup.as_ref().zip(child.id()) {
        enter(cgroup, pid)?;
    }
    let (stdout, stderr) = (child.stdout.take().ok_or("no stdout")?, child.stderr.take().ok_or("no stderr")?);
    tokio::try_join!(copy(stdout, OutputStream::Stdout, &log), copy(stderr, OutputStream::Stderr, &log))?;
    log.borrow_mut().file.flush()?;
    let status = child.wait().await?;
    if let Some(cgroup) = &cgroup {
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
