//! Instructions for a line, by callgrind.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use iron_exec::framing::LineSplitter;
use iron_exec::framing::cri::{self, Stamp};
use iron_exec::{CgroupBase, EnvBase, OutputStream, Rung, Timestamp, Worker};
use iron_exec_benches::{Result, Table};

use crate::bounds::{INSTRUCTIONS, INSTRUCTIONS_SLACK};
use crate::load::wait_for_end;
use crate::{Report, float};

/// With the line feed.
const LINE_BYTES: usize = 80;
const LINE_BYTES_MAX: usize = 16 * 1024;
/// What is read from a pipe at once: what it holds.
const CHUNK_BYTES: usize = 64 * 1024;
/// 2026-11-23 03:26:58 UTC.
const NOW_NANOS: u64 = 1_795_404_418_000_000_000;
/// The first valgrind that has pidfd_open(2), without which a worker cannot be.
const LOOP_VERSION: (u32, u32) = (3, 24);

/// The file that the jobs of the loop write; it is not for their host to make it.
const INPUT: &str = "input";

/// Jobs of the loop, each with as many lines as its pipe holds: so it has ended before it is read.
const LOOP_JOBS: usize = 8;
/// Lines of each, at least; and then twice as many.
const LOOP_LINES: usize = CHUNK_BYTES / LINE_BYTES / 2 - 1;
const FRAME_LINES: usize = 20_000;

pub(crate) fn count(directory: &Path, report: &mut Report) -> Result<()> {
    let valgrind = Valgrind::find();
    let version = valgrind.command().arg("--version").output();
    let version =
        version.ok().filter(|output| output.status.success()).map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let Some(version) = version else {
        report.miss("valgrind", &format!("instructions: there is no {}", valgrind.program.display()));
        return Ok(());
    };
    let build = if cfg!(debug_assertions) { "not optimized" } else { "optimized" };
    let mut table =
        Table::new("instructions", format!("Instructions for a line of {LINE_BYTES} bytes ({version}, {build})"), &["found", "bound"]);
    for bounds in &INSTRUCTIONS {
        table.why(bounds.name, bounds.why);
        let (mode, lines) = if bounds.is_loop { ("loop", LOOP_LINES) } else { ("frame", FRAME_LINES) };
        if bounds.is_loop && number(&version).is_none_or(|number| number < LOOP_VERSION) {
            report.miss("loop", &format!("instructions of {}: {version} does not know pidfd_open; 3.24 does", bounds.name));
            continue;
        }
        let run = |lines: usize| {
            fs::write(directory.join(INPUT), text(lines))?;
            collected(&valgrind, mode, lines, directory)
        };
        let jobs = if bounds.is_loop { LOOP_JOBS } else { 1 };
        let figure = (run(2 * lines)? - run(lines)?) / float(lines * jobs);
        let bound = if cfg!(debug_assertions) { bounds.not_optimized } else { bounds.optimized };
        table.add(bounds.name, "found", figure);
        table.add(bounds.name, "bound", bound);
        if !cfg!(target_arch = "x86_64") {
            report.miss("valgrind", &format!("instructions of {}: the bounds are those of x86_64", bounds.name));
        } else if (figure - bound).abs() > INSTRUCTIONS_SLACK * bound {
            let percent = 100.0 * INSTRUCTIONS_SLACK;
            report.fail(&format!("instructions for {}: {figure:.1} for a line, not within {percent} % of {bound}", bounds.name));
        }
    }
    report.results.tables.push(table);
    Ok(())
}

struct Valgrind {
    program: PathBuf,
    /// Where its own files are, if it was not installed.
    files: Option<PathBuf>,
}

impl Valgrind {
    /// The one that is named, or the one that `.ci/capi` has unpacked because that of the machine is too old, or that of the machine.
    fn find() -> Self {
        let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/capi/valgrind/usr");
        let program = unpacked.join("bin/valgrind");
        match std::env::var_os("IRON_EXEC_VALGRIND") {
            Some(program) => Self { program: program.into(), files: None },
            None if program.exists() => Self { program, files: Some(unpacked.join("libexec/valgrind")) },
            None => Self { program: "valgrind".into(), files: None },
        }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        if let Some(files) = &self.files {
            command.env("VALGRIND_LIB", files);
        }
        command
    }
}

/// Of `valgrind-3.24.0`.
fn number(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.strip_prefix("valgrind-")?.split('.').map(str::parse);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

/// The instructions of this program in a mode of its own.
fn collected(valgrind: &Valgrind, mode: &str, lines: usize, directory: &Path) -> Result<f64> {
    let mut command = valgrind.command();
    // The children of the loop's host, up to their exec, would say what they have collected, too.
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--child-silent-after-fork=yes"]);
    command.arg(std::env::current_exe()?).args([mode, &lines.to_string()]).arg(directory);
    let output = command.output()?;
    let says = String::from_utf8_lossy(&output.stderr);
    // "==pid== Collected : 123".
    let collected = says.lines().filter_map(|line| line.split_once("Collected : ")).find_map(|(_, number)| number.trim().parse().ok());
    match collected {
        Some(collected) if output.status.success() => Ok(collected),
        _ => Err(format!("callgrind, {mode}: {}\n{says}", output.status).into()),
    }
}

/// The framing alone: lines out of chunks, and records of them.
pub(crate) fn frame(lines: &str) -> Result<()> {
    let chunk = text(CHUNK_BYTES / LINE_BYTES + 1);
    let chunk = &chunk[..CHUNK_BYTES];
    let (mut splitter, mut stamp, mut out, mut nanos) = (LineSplitter::new(LINE_BYTES_MAX), Stamp::new(), Vec::new(), NOW_NANOS);
    for _ in 0..lines.parse::<usize>()? * LINE_BYTES / CHUNK_BYTES {
        nanos += 20_000;
        let stamp = stamp.at(Timestamp::from_unix_nanos(nanos));
        out.clear();
        splitter.push(chunk, |piece| cri::encode(&mut out, stamp, OutputStream::Stdout, piece));
        black_box(&mut out);
    }
    Ok(())
}

/// The whole loop, from the pipe to the log. On the rung fork: valgrind has no clone3.
pub(crate) fn run_loop(lines: &str, directory: &Path) -> Result<()> {
    let lines: u64 = lines.parse()?;
    let input = directory.join(INPUT);
    let builder = Worker::builder().log_dir(directory).cgroup_base(CgroupBase::Off).env_base(EnvBase::Clear).rung(Rung::Fork);
    // Nothing is to depend on how long valgrind takes.
    let mut worker = builder.coalesce_time(Duration::ZERO).confirm_timeout(Duration::from_mins(1)).build()?;
    for _ in 0..LOOP_JOBS {
        let job = worker.start(iron_exec::Command::new("/bin/cat").arg(&input))?;
        wait_for_end(worker.query(job)?.pid)?;
        let status = worker.wait(job)?;
        if status.output.lines != lines {
            return Err(format!("lines are missing: {status:?}").into());
        }
        worker.delete_log(job)?;
    }
    Ok(())
}

fn text(lines: usize) -> Vec<u8> {
    (1..=lines * LINE_BYTES).map(|at| if at % LINE_BYTES == 0 { b'\n' } else { b'a' + (at % 26) as u8 }).collect()
}
