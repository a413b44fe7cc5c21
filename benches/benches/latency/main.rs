//! How long it takes until somebody knows: that a process has ended, that a job has written a line, that a stopped job's whole tree is gone.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench latency             # two to three minutes
//! cargo bench -p iron-exec-benches --bench latency -- --quick  # a fraction of it
//! cargo bench -p iron-exec-benches --bench latency -- line     # only one of: exit, line, stop
//! ```
//!
//! All ways take turns, round after round, and nobody always comes after the same one. A figure is the median over the rounds of that percentile within a round.
//! What is measured, and from when to when: `exit.rs`, `line.rs`, `tree.rs`.

use std::process::ExitCode;
use std::time::Duration;

use iron_exec_benches::results::percentile;
use iron_exec_benches::{Pace, Relation, Result, Results, Table};

mod exit;
mod line;
mod tree;

/// Somebody who is never told is stuck: the benchmark ends then, and with it all that it has started.
const TIME_MAX: Duration = Duration::from_mins(10);

/// One way to wait.
struct Way {
    name: &'static str,
    /// Takes so many samples.
    take: Box<dyn Fn(usize) -> Result<Vec<Duration>>>,
}

impl Way {
    fn new(name: &'static str, take: impl Fn(usize) -> Result<Vec<Duration>> + 'static) -> Self {
        Self { name, take: Box::new(take) }
    }

    /// Whether it is one without which the benchmark says nothing.
    fn is_ours(&self) -> bool {
        self.name.starts_with("iron-exec") || self.name == "floor"
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["write"] => line::write(),
        ["host", log_dir] => line::host(log_dir.as_ref()),
        ["become", program, ref args @ ..] => line::turn_into(program, args),
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
    std::thread::spawn(|| {
        std::thread::sleep(TIME_MAX);
        eprintln!("it takes longer than {TIME_MAX:?}: somebody is stuck");
        std::process::exit(1);
    });
    let pace = Pace::from_args();
    let parts: Vec<&str> = args.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
    let asked = |part| parts.is_empty() || parts.contains(&part);
    let mut results = Results::begin("latency", pace)?;
    if asked("exit") {
        exit::measure(&mut results)?;
    }
    if asked("line") {
        line::measure(&mut results)?;
    }
    if asked("stop") {
        tree::measure(&mut results)?;
    }
    results.end()
}

/// Fills a table: so many rounds of so many samples of each way.
fn take_turns(results: &mut Results, id: &str, title: &str, ways: Vec<Way>, (rounds, samples): (usize, usize)) -> Result<()> {
    let mut table = Table::new(id, format!("{title}, µs; {samples} samples a round"), &["p50", "p99"]).reference("floor");
    let mut ways: Vec<Option<Way>> = ways.into_iter().map(Some).collect();
    for way in ways.iter().flatten() {
        table.row(way.name);
    }
    let count = ways.len();
    for round in 0..rounds {
        for turn in 0..count {
            // Back and forth, from another one each time.
            let turn = if round % 2 == 0 { turn } else { count - 1 - turn };
            let place = &mut ways[(round + turn) % count];
            let Some(way) = place else { continue };
            match (way.take)(samples) {
                Ok(times) => {
                    let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
                    for (column, percent) in [("p50", 50), ("p99", 99)] {
                        table.add(way.name, column, percentile(&times, percent).ok_or("nothing was sampled")?);
                    }
                }
                Err(error) if way.is_ours() => return Err(format!("{id}, {}: {error}", way.name).into()),
                Err(error) => {
                    results.notes.push(format!("{id}, {}: {error}", way.name));
                    *place = None;
                }
            }
        }
    }
    results.tables.push(table);
    Ok(())
}

/// A goal for the medians of two rows.
fn goal(results: &mut Results, what: &str, bound: f64, (table, row): (&str, &str)) {
    let found = results.ratio(table, (row, "p50"), ("floor", "p50"));
    results.goal(what, Relation::AtMost, bound, found);
}
