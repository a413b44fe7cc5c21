//! How fast the output of one job gets into a file, and what that costs the one who writes it there: iron-exec with raw logs and with CRI records, beside a plain loop of
//! read and write, `cat`, tokio and conmon.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench logs             # about two minutes
//! cargo bench -p iron-exec-benches --bench logs -- --quick  # some ten seconds
//! ```
//!
//! The job is this program, and writes lines of 80 bytes: in blocks of 64 KiB (`chunks`), through a buffer of 4 KiB as the C library's stdio does it (`lines`), or each by
//! a write of its own (`unbuffered`). Each sink is a process of its own. Its clock runs from the start of the job until all is in the file and the job is reaped, and its
//! CPU time is that of the sink alone. Whether the file holds what the job has written is checked in every round, outside of that time; then it is deleted,
//! so that nobody pays for what another one has left in the page cache.
//!
//! All sinks are as their users get them: iron-exec with the settings that it has by default, but for the cgroup, of which nothing is to be left behind; tokio with the lines
//! of a piped child into a buffered file, on a runtime of one thread (with more it is slower): in the row `tokio` a file of std that the runtime's own thread writes, the faster
//! way that some take, and in `tokio, tokio::fs` tokio's own file, as its documentation shows; conmon without the fsync(2) at the end, which no other one makes.

use std::process::{ExitCode, Stdio};

use iron_exec_benches::host::{Ours, again, end_with_parent};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, disk, turns};

use sink::{SINKS, Sink};
use way::{WAYS, Way};

mod conmon;
mod sink;
mod way;

/// The columns.
const SPEED: &str = "GB/s";
const CPU: &str = "CPU s/GB";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["write", way, bytes] => way::write(way, bytes),
        ["sink", sink, way, bytes, directory] => sink::play(sink, way, bytes, directory.as_ref()),
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
    let mut results = Results::begin("logs", pace)?;
    let (directory, file_system) = disk::directory(env!("CARGO_TARGET_TMPDIR"))?;
    let mut sinks: Vec<&Sink> = Vec::new();
    for sink in &SINKS {
        match (sink.missing)() {
            Some(reason) => results.note(format!("{} is not measured: {reason}", sink.name)),
            None => sinks.push(sink),
        }
    }
    for way in &WAYS {
        let title = format!("Log of one job that writes {}: GB/s of its output, CPU s of the sink for a GB", way.text);
        let mut table = Table::new(way.table, title, &[SPEED, CPU]).reference("cat");
        for sink in &SINKS {
            table.row(sink.name);
        }
        results.tables.push(table);
    }
    for round in 0..pace.of(1, 3, 5) {
        for (at, way) in WAYS.iter().enumerate() {
            let mut failed = Vec::new();
            for turn in turns(sinks.len(), round) {
                let sink = sinks[turn];
                match run(sink, way, pace, directory.path()) {
                    Ok([speed, cpu]) => {
                        results.tables[at].add(sink.name, SPEED, speed);
                        results.tables[at].add(sink.name, CPU, cpu);
                    }
                    Err(error) => {
                        let what = format!("{} has failed, {}: {error}", sink.name, way.name);
                        if sink.is_peer {
                            results.note(what);
                        } else {
                            results.fail(what);
                        }
                        failed.push(sink.name);
                    }
                }
            }
            sinks.retain(|sink| !failed.contains(&sink.name));
        }
    }
    results.note(format!(
        "The logs are on {file_system}; what is written stays in the page cache, and is deleted before anything else is measured."
    ));
    goals(&mut results);
    results.end()
}

/// One sink's go, by a process of its own: GB/s and CPU s/GB.
fn run(sink: &Sink, way: &Way, pace: Pace, directory: &std::path::Path) -> Result<[f64; 2]> {
    let bytes = (way.bytes)(pace);
    let mut host = again()?;
    host.args(["sink", sink.name, way.name, &bytes.to_string()]).arg(directory).stderr(Stdio::piped());
    let mut host = Ours(host.spawn()?);
    let (stdout, stderr) = host.0.stdout.take().zip(host.0.stderr.take()).ok_or("the host has no outputs")?;
    // It says a line at its end, no more than a pipe holds.
    let says = std::io::read_to_string(stdout)?;
    let complains = std::io::read_to_string(stderr)?;
    let figures: Vec<f64> = says.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let status = host.0.wait()?;
    match figures[..] {
        [seconds, cpu] if status.success() => Ok([gigabytes(bytes) / seconds, cpu / gigabytes(bytes)]),
        _ => Err(format!("{status}: {}", complains.trim()).into()),
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn gigabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e9
}

fn goals(results: &mut Results) {
    let ratio = |table: &str, column: &str, of: &str, to: &str| results.ratio(table, (of, column), (to, column));
    let mut goals = Vec::new();
    for (name, table) in [("chunks", "logs-chunks"), ("lines", "logs-lines")] {
        // The better of the two is the one to which the ratio is worse.
        let better = ratio(table, SPEED, "iron-exec raw", "cat").zip(ratio(table, SPEED, "iron-exec raw", "read + write"));
        let found = better.map(|(cat, plain)| cat.min(plain));
        goals.push((
            format!("logs, {name}: speed of iron-exec raw, times the better of cat and read + write"),
            Relation::AtLeast,
            0.95,
            found,
        ));
        for (row, peer, bound) in [("tokio", "tokio", 3.0), ("tokio, tokio::fs", "tokio with tokio::fs", 3.0), ("conmon", "conmon", 4.0)] {
            let found = ratio(table, SPEED, "iron-exec CRI", row);
            goals.push((format!("logs, {name}: speed of iron-exec CRI, times that of {peer}"), Relation::AtLeast, bound, found));
        }
    }
    for row in ["iron-exec raw", "iron-exec CRI"] {
        let found = ratio("logs-unbuffered", SPEED, row, "cat");
        goals.push((format!("logs, unbuffered: speed of {row}, times cat's"), Relation::AtLeast, 0.95, found));
        let found = ratio("logs-unbuffered", CPU, row, "cat");
        goals.push((format!("logs, unbuffered: CPU time of {row}, times cat's"), Relation::AtMost, 0.5, found));
    }
    for (what, relation, bound, found) in goals {
        results.goal(what, relation, bound, found);
    }
}
