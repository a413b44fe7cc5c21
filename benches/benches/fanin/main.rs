//! How fast the lines of many jobs get into their logs when they all write at once: iron-exec beside a bare epoll and tokio.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench fanin             # about two minutes
//! cargo bench -p iron-exec-benches --bench fanin -- --quick  # some twenty seconds
//! ```
//!
//! Each contender is a host of its own, and reads from as many pipes as there are jobs. This process writes into every one of them, a line of 80 bytes or ten of them, and
//! only then tells the host, whose clock runs until the last line is in its log: so it is the host that is measured, not who writes. Between two times each pipe is silent for
//! two milliseconds at least: iron-exec lets what comes faster gather for up to one ([`Builder::coalesce_time`](iron_exec::Builder::coalesce_time)), and a line after
//! a moment's silence is read at once.
//!
//! The jobs of iron-exec are processes that wait, and their pipes those that it has given them. The others have pipes without jobs. All have one log for a pipe, on the disk,
//! and write the same records with the same code for their text; that each log holds all of its lines, and nothing else, is checked every time, outside of the clock.
//!
//! iron-exec keeps 512 logs open by default, and opens the others for each write. The row `iron-exec` keeps all of them open, as the other rows do; `iron-exec, 512 open logs` is
//! the default.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use iron_exec_benches::host::{Ours, again};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, disk};
use rustix::fs::OFlags;

use contender::CONTENDERS;

mod contender;
mod epoll;
mod ours;
mod tokio;

/// Bytes of a line, with its line feed.
const LINE_BYTES: usize = 80;
/// How long each pipe is silent before it is written to.
const SILENCE: Duration = Duration::from_millis(2);

/// What is written into each pipe at a time.
struct Kind {
    table: &'static str,
    text: &'static str,
    lines: usize,
}

const KINDS: [Kind; 2] = [
    Kind { table: "fanin-lines", text: "a line of each job at a time", lines: 1 },
    Kind { table: "fanin-bursts", text: "ten lines of each job at a time", lines: 10 },
];

/// A column.
struct Size {
    name: &'static str,
    jobs: usize,
    /// How often all pipes are filled in a round.
    fills: usize,
}

const SMOKE: [Size; 2] = [Size { name: "1 job", jobs: 1, fills: 3 }, Size { name: "40 jobs", jobs: 40, fills: 3 }];
const QUICK: [Size; 3] = [
    Size { name: "1 job", jobs: 1, fills: 100 },
    Size { name: "1,000 jobs", jobs: 1000, fills: 10 },
    Size { name: "6,000 jobs", jobs: 6000, fills: 3 },
];
const FULL: [Size; 3] = [
    Size { name: "1 job", jobs: 1, fills: 300 },
    Size { name: "1,000 jobs", jobs: 1000, fills: 20 },
    Size { name: "6,000 jobs", jobs: 6000, fills: 6 },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["host", contender, jobs, directory] => contender::play(contender, jobs, directory.as_ref()),
        _ => bench(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let sizes: &[Size] = pace.of(&SMOKE, &QUICK, &FULL);
    let mut results = Results::begin("fanin", pace)?;
    let (directory, file_system) = disk::directory(env!("CARGO_TARGET_TMPDIR"))?;
    let columns: Vec<&str> = sizes.iter().map(|size| size.name).collect();
    for kind in &KINDS {
        let title = format!("Lines into the logs of many jobs, {}, million lines/s", kind.text);
        let mut table = Table::new(kind.table, title, &columns).reference("floor");
        for contender in &CONTENDERS {
            table.row(contender.name);
        }
        results.tables.push(table);
    }
    for size in sizes {
        compare(size, pace.of(1, 3, 7), directory.path(), &mut results)?;
    }
    results.notes.push(format!("The logs are on {file_system}."));
    let largest = columns.last().copied().unwrap_or_default();
    for (kind, tokio_bound) in KINDS.iter().zip([1.7, 3.5]) {
        for (other, whose, bound) in [("floor", "the floor's", 0.9), ("tokio", "tokio's", tokio_bound)] {
            let found = results.ratio(kind.table, ("iron-exec", largest), (other, largest));
            results.goal(format!("fan-in, {largest}, {}: speed, times {whose}", kind.text), Relation::AtLeast, bound, found);
        }
    }
    results.end()
}

/// Fills a column: the contenders take turns, round after round.
fn compare(size: &Size, rounds: usize, directory: &Path, results: &mut Results) -> Result<()> {
    let own = tempfile::tempdir_in(directory)?;
    let mut hosts = Vec::new();
    for contender in &CONTENDERS {
        match Host::start(contender.name, size.jobs, own.path()) {
            Ok(host) => hosts.push(host),
            Err(error) => results.notes.push(format!("{}, {}, is not measured: {error}", contender.name, size.name)),
        }
    }
    for round in 0..rounds {
        // Nobody always comes after the same one.
        if !hosts.is_empty() {
            let hosts_count = hosts.len();
            hosts.rotate_left((round % 2 + 1) % hosts_count);
        }
        let mut failed = Vec::new();
        for host in &mut hosts {
            for (kind, table) in KINDS.iter().zip(&mut results.tables) {
                match host.lines_per_micro(kind.lines, size.fills) {
                    Ok(figure) => table.add(host.name, size.name, figure),
                    Err(error) => {
                        results.notes.push(format!("{}, {}, has failed: {error}", host.name, size.name));
                        failed.push(host.name);
                        break;
                    }
                }
            }
        }
        hosts.retain(|host| !failed.contains(&host.name));
    }
    hosts.into_iter().try_for_each(Host::end)?;
    Ok(own.close()?)
}

/// A contender, and the pipes that it reads from.
struct Host {
    name: &'static str,
    process: Ours,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
    /// As paths to be opened: so many descriptors of several hosts would be too many for one process.
    pipes: Vec<String>,
}

impl Host {
    fn start(name: &'static str, jobs: usize, directory: &Path) -> Result<Self> {
        let mut command = again()?;
        command.args(["host", name, &jobs.to_string()]).arg(directory).stdin(Stdio::piped());
        let mut process = Ours(command.spawn()?);
        let (asks, says) = process.0.stdin.take().zip(process.0.stdout.take()).ok_or("the host has no pipes")?;
        let mut host = Self { name, process, asks, says: BufReader::new(says), pipes: Vec::new() };
        for _ in 0..jobs {
            let pipe = host.answer()?;
            host.pipes.push(pipe);
        }
        // What happens only once is not measured.
        for kind in &KINDS {
            host.lines_per_micro(kind.lines, 1)?;
        }
        Ok(host)
    }

    /// Fills all pipes so often. Returns how many lines the host has written to the logs in a microsecond: millions in a second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn lines_per_micro(&mut self, lines: usize, fills: usize) -> Result<f64> {
        let bytes = line().repeat(lines);
        let mut time = Duration::ZERO;
        for _ in 0..fills {
            std::thread::sleep(SILENCE);
            for pipe in &self.pipes {
                let mut pipe = OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(pipe)?;
                pipe.write_all(&bytes)?;
            }
            writeln!(self.asks, "{lines}")?;
            time += Duration::from_nanos(self.answer()?.parse()?);
        }
        Ok((lines * fills * self.pipes.len()) as f64 / (time.as_secs_f64() * 1e6))
    }

    fn answer(&mut self) -> Result<String> {
        let mut line = String::new();
        self.says.read_line(&mut line)?;
        match line.strip_suffix('\n').map(|line| line.split_once(' ')) {
            Some(Some(("ok", answer))) => Ok(answer.to_owned()),
            Some(_) => Err(line.trim().into()),
            None => Err(format!("the host has ended: {}", self.process.0.wait()?).into()),
        }
    }

    /// Has it end by itself, with all of its jobs.
    fn end(self) -> Result<()> {
        let Self { name, mut process, asks, .. } = self;
        drop(asks);
        let status = process.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the host {name} ended: {status}").into()) }
    }
}

fn line() -> Vec<u8> {
    (1..=LINE_BYTES).map(|at| if at == LINE_BYTES { b'\n' } else { b'a' + (at % 26) as u8 }).collect()
}
