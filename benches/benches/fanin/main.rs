//! How fast the lines of many jobs get into their logs when they all write at once: iron-exec beside a bare epoll and tokio.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench fanin             # about three minutes
//! cargo bench -p iron-exec-benches --bench fanin -- --quick  # half a minute
//! cargo bench -p iron-exec-benches --bench fanin -- 6,000    # only the columns with one of these words in their name
//! ```
//!
//! Each contender is a host of its own, and reads from as many pipes as there are jobs. This process writes into them, one after the other and again and again, a line of 80 bytes
//! or ten of them at a time. The host's clock runs until the last line is in its log. There are two kinds of tables:
//!
//! - `fanin-lines`, `fanin-bursts`: the host reads while this process writes, as fast as it can; it waits where a pipe is full. Who is slower than that finds more in a pipe at
//!   a time. Nobody can be faster.
//! - `fanin-filled-lines`, `fanin-filled-bursts`: every pipe gets one write, and only then the host is told. So it is the host alone that is measured, by its CPU time, where there is
//!   the least to read at a time. Before that each pipe is silent for two milliseconds at least: iron-exec lets what comes faster gather for up to one
//!   ([`Builder::coalesce_time`](::iron_exec::Builder::coalesce_time)), and reads a line after a moment's silence at once.
//!
//! The jobs of iron-exec are processes that wait, and their pipes those that it has given them. The others have pipes without jobs. All have one log for a pipe, on the disk,
//! and write the same records with the same code for their text; that each log holds all of its lines, and nothing else, is checked every time, outside of the clock.
//!
//! The row `iron-exec` is a worker as it is by default: it keeps 512 logs open, and opens the others for each write. `iron-exec, all logs open` keeps all of them open, as the rows
//! of the others do. tokio has a task for each pipe on a runtime of one thread; its row has logs that the task itself writes, which is fast and not what tokio recommends, and `tokio, tokio::fs`
//! tokio's own files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, ExitCode, Stdio};
use std::time::Duration;

use iron_exec_benches::host::{Ours, again, raise_nofile};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, disk, turns};

use contender::{CONTENDERS, Contender};

mod contender;
mod epoll;
mod iron_exec;
mod tokio;

/// Bytes of a line, with its line feed.
const LINE_BYTES: usize = 80;
/// What the speed is to be, times the floor's.
const FLOOR_BOUND: f64 = 0.9;
/// How long each pipe is silent before it is written to.
const SILENCE: Duration = Duration::from_millis(2);

/// How the pipes are written to.
struct Kind {
    table: &'static str,
    text: &'static str,
    /// In one write.
    lines: usize,
    /// Whether all pipes are filled before the host reads.
    is_filled: bool,
    /// What the speed is to be, times tokio's, if it has goals.
    tokio_bound: Option<f64>,
}

const KINDS: [Kind; 4] = [
    Kind { table: "fanin-lines", text: "single lines", lines: 1, is_filled: false, tokio_bound: Some(1.7) },
    Kind { table: "fanin-bursts", text: "bursts of ten lines", lines: 10, is_filled: false, tokio_bound: Some(3.5) },
    Kind { table: "fanin-filled-lines", text: "one line waiting in each pipe", lines: 1, is_filled: true, tokio_bound: None },
    Kind { table: "fanin-filled-bursts", text: "ten lines waiting in each pipe", lines: 10, is_filled: true, tokio_bound: None },
];

/// A column.
struct Size {
    name: &'static str,
    jobs: usize,
    /// How often all pipes are written to in a round, a line at a time; with ten it is a fifth of that.
    writes: usize,
    /// How often all pipes are filled in a round.
    fills: usize,
}

const SMOKE: [Size; 2] =
    [Size { name: "1 job", jobs: 1, writes: 1000, fills: 3 }, Size { name: "40 jobs", jobs: 40, writes: 50, fills: 3 }];
const QUICK: [Size; 3] = [
    Size { name: "1 job", jobs: 1, writes: 50_000, fills: 50 },
    Size { name: "1,000 jobs", jobs: 1000, writes: 100, fills: 5 },
    Size { name: "6,000 jobs", jobs: 6000, writes: 50, fills: 2 },
];
const FULL: [Size; 3] = [
    Size { name: "1 job", jobs: 1, writes: 300_000, fills: 100 },
    Size { name: "1,000 jobs", jobs: 1000, writes: 500, fills: 20 },
    Size { name: "6,000 jobs", jobs: 6000, writes: 150, fills: 8 },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["host", contender, jobs, directory] => contender::play(contender, jobs, directory.as_ref()),
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

fn bench(args: &[&str]) -> Result<()> {
    let pace = Pace::from_args();
    let words: Vec<&str> = args.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
    let is_asked = |size: &&Size| words.is_empty() || words.iter().any(|word| size.name.contains(word));
    let all: &[Size] = pace.of(&SMOKE, &QUICK, &FULL);
    let sizes: Vec<&Size> = all.iter().filter(is_asked).collect();
    let mut results = Results::begin("fanin", pace)?;
    let (directory, file_system) = disk::directory(env!("CARGO_TARGET_TMPDIR"))?;
    let columns: Vec<&str> = sizes.iter().map(|size| size.name).collect();
    for kind in &KINDS {
        let unit = if kind.is_filled { "million lines per CPU second" } else { "million lines/s" };
        let title = format!("Lines into the logs of many jobs, {}, {unit}", kind.text);
        let mut table = Table::new(kind.table, title, &columns).reference("floor");
        for contender in &CONTENDERS {
            table.row(contender.name);
        }
        results.tables.push(table);
    }
    for size in sizes {
        compare(size, pace.of(1, 3, 5), directory.path(), &mut results)?;
    }
    results.note(format!("The logs are on {file_system}."));
    goals(all.last().map_or("", |size| size.name), &mut results);
    results.end()
}

fn goals(column: &str, results: &mut Results) {
    for kind in &KINDS {
        let Some(tokio_bound) = kind.tokio_bound else { continue };
        let bounds = [("floor", FLOOR_BOUND), ("tokio", tokio_bound), ("tokio, tokio::fs", tokio_bound)];
        for row in ["iron-exec", "iron-exec, all logs open"] {
            for (other, bound) in bounds {
                let found = results.ratio(kind.table, (row, column), (other, column));
                // Rows have commas in their names.
                let [ours, theirs] = [row, other].map(|name| name.replace(", ", " with "));
                let what = format!("fan-in, {column}, {}: speed of {ours}, times that of {theirs}", kind.text);
                results.goal(what, Relation::AtLeast, bound, found);
            }
        }
    }
}

/// Fills a column: the contenders take turns, round after round.
fn compare(size: &Size, rounds: usize, directory: &Path, results: &mut Results) -> Result<()> {
    if let Err(error) = raise_nofile(contender::fds(size.jobs)) {
        results.note(format!("{} are not measured: {error}", size.name));
        return Ok(());
    }
    let own = tempfile::tempdir_in(directory)?;
    let mut hosts = Vec::new();
    for contender in &CONTENDERS {
        match Host::start(contender, size, own.path()) {
            Ok(host) => hosts.push(host),
            Err(error) => contender.fault(&format!("{}, is not measured: {error}", size.name), results),
        }
    }
    for round in 0..rounds {
        let mut failed = Vec::new();
        for turn in turns(hosts.len(), round) {
            let host = &mut hosts[turn];
            if let Err(error) = host.round(size, &mut results.tables) {
                host.contender.fault(&format!("{}, has failed: {error}", size.name), results);
                failed.push(host.contender.name);
            }
        }
        hosts.retain(|host| !failed.contains(&host.contender.name));
    }
    for host in hosts {
        let contender = host.contender;
        if let Err(error) = host.end() {
            contender.fault(&format!("{}, has failed at its end: {error}", size.name), results);
        }
    }
    Ok(own.close()?)
}

/// A contender, and the pipes that it reads from.
struct Host {
    contender: &'static Contender,
    process: Ours,
    asks: ChildStdin,
    says: BufReader<ChildStdout>,
    /// As paths: as many open descriptors for every host would be too many for one process.
    pipes: Vec<String>,
}

impl Host {
    fn start(contender: &'static Contender, size: &Size, directory: &Path) -> Result<Self> {
        let mut command = again()?;
        command.args(["host", contender.name, &size.jobs.to_string()]).arg(directory).stdin(Stdio::piped());
        let mut process = Ours(command.spawn()?);
        let (asks, says) = process.0.stdin.take().zip(process.0.stdout.take()).ok_or("the host has no pipes")?;
        let mut host = Self { contender, process, asks, says: BufReader::new(says), pipes: Vec::new() };
        for _ in 0..size.jobs {
            let pipe = host.answer()?;
            host.pipes.push(pipe);
        }
        // What happens only once is not measured.
        for kind in &KINDS {
            host.lines_per_micro(kind, &Size { writes: 10, fills: 1, ..*size })?;
        }
        Ok(host)
    }

    /// A figure for each of the tables.
    fn round(&mut self, size: &Size, tables: &mut [Table]) -> Result<()> {
        for (kind, table) in KINDS.iter().zip(tables) {
            table.add(self.contender.name, size.name, self.lines_per_micro(kind, size)?);
        }
        Ok(())
    }

    /// Returns how many lines the host has written to the logs in a microsecond: millions in a second.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn lines_per_micro(&mut self, kind: &Kind, size: &Size) -> Result<f64> {
        let pipes: Vec<File> = self.pipes.iter().map(|pipe| File::options().write(true).open(pipe)).collect::<io::Result<_>>()?;
        let bytes = line().repeat(kind.lines);
        let write = |times| (0..times).try_for_each(|_| pipes.iter().try_for_each(|mut pipe| pipe.write_all(&bytes)));
        let (time, writes) = if kind.is_filled {
            let mut time = Duration::ZERO;
            for _ in 0..size.fills {
                std::thread::sleep(SILENCE);
                write(1)?;
                self.ask("filled", kind.lines)?;
                time += self.cost()?[1];
            }
            (time, size.fills)
        } else {
            let writes = if kind.lines == 1 { size.writes } else { size.writes / 5 };
            self.ask("fed", writes * kind.lines)?;
            write(writes)?;
            (self.cost()?[0], writes)
        };
        self.ask("empty", 0)?;
        self.answer()?;
        Ok((kind.lines * writes * pipes.len()) as f64 / (time.as_secs_f64() * 1e6))
    }

    /// So many lines of each pipe are to be brought into its log: they are there (`filled`), or come (`fed`). Or all logs are to be emptied (`empty`).
    fn ask(&mut self, how: &str, lines: usize) -> io::Result<()> {
        writeln!(self.asks, "{how} {lines}")
    }

    /// How long it took the host, and how long of a CPU.
    fn cost(&mut self) -> Result<[Duration; 2]> {
        let answer = self.answer()?;
        let (time, cpu_time) = answer.split_once(' ').ok_or("the host says one figure")?;
        Ok([Duration::from_nanos(time.parse()?), Duration::from_nanos(cpu_time.parse()?)])
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
        let Self { mut process, asks, .. } = self;
        drop(asks);
        let status = process.0.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the host ended: {status}").into()) }
    }
}

fn line() -> Vec<u8> {
    (1..=LINE_BYTES).map(|at| if at == LINE_BYTES { b'\n' } else { b'a' + (at % 26) as u8 }).collect()
}
