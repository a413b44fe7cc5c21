//! How long it takes until somebody knows: that a process has ended, that a job has written a line, that a stopped job's whole tree is gone.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench latency             # two to three minutes
//! cargo bench -p iron-exec-benches --bench latency -- --quick  # a fraction of it
//! cargo bench -p iron-exec-benches --bench latency -- line     # only one of: exit, line, stop
//! ```
//!
//! All ways take turns, round after round, and nobody always comes after the same one. A figure is the median over the rounds of that percentile within a round.
//! Each turn is in a thread of its own, and has a deadline: whatever it waits for in vain, the benchmark goes on without that way, says so, and takes away what is left.
//! What is measured, and from when to when: `exit.rs`, `line.rs`, `tree.rs`.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use iron_exec_benches::results::percentile;
use iron_exec_benches::{Pace, Relation, Result, Results, Table, turns};
use nix::sys::signal::Signal;

mod exit;
mod line;
mod tree;

/// A way that has not taken its samples after this is stuck.
const TURN_TIME_MAX: Duration = Duration::from_mins(2);
/// What a moment is enough for, and has not happened after this, does not happen any more.
const TIME_MAX: Duration = Duration::from_secs(10);

/// What is left behind is taken away also when somebody interrupts.
static INTERRUPTED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Takes so many samples.
type Take = dyn Fn(usize) -> Result<Vec<Duration>> + Send + Sync;

/// One way to wait.
struct Way {
    name: &'static str,
    /// `None` if it cannot be had here, or has failed.
    take: Option<Arc<Take>>,
}

impl Way {
    fn new(name: &'static str, take: impl Fn(usize) -> Result<Vec<Duration>> + Send + Sync + 'static) -> Self {
        Self { name, take: Some(Arc::new(take)) }
    }

    /// One that cannot be had here.
    fn missing(name: &'static str) -> Self {
        Self { name, take: None }
    }

    /// Whether it is one that must not fail.
    fn is_ours(&self) -> bool {
        self.name.starts_with("iron-exec") || self.name.starts_with("floor")
    }

    /// Has its turn, in a thread of its own: the programs that it starts end with that.
    fn turn(&self, samples: usize) -> Option<Result<Vec<Duration>>> {
        let take = Arc::clone(self.take.as_ref()?);
        let (sender, taken) = mpsc::channel();
        let thread = std::thread::spawn(move || sender.send(take(samples)));
        let began = Instant::now();
        let taken = loop {
            match taken.recv_timeout(Duration::from_millis(100)) {
                Ok(taken) => break taken,
                Err(RecvTimeoutError::Disconnected) => break Err("it has panicked".into()),
                Err(RecvTimeoutError::Timeout) if INTERRUPTED.load(Ordering::Relaxed) => return Some(Err("interrupted".into())),
                Err(RecvTimeoutError::Timeout) if began.elapsed() > TURN_TIME_MAX => {
                    return Some(Err(format!("{samples} samples are not there after {TURN_TIME_MAX:?}").into()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        // It is at its end.
        let _ = thread.join();
        Some(taken)
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
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal_hook::flag::register(signal as i32, Arc::clone(&INTERRUPTED))?;
    }
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
fn take_turns(results: &mut Results, id: &str, title: &str, mut ways: Vec<Way>, (rounds, samples): (usize, usize)) -> Result<()> {
    let mut table = Table::new(id, format!("{title}, µs; {samples} samples a round"), &["p50", "p99"]).reference("floor");
    for way in &ways {
        table.row(way.name);
    }
    for round in 0..rounds {
        for turn in turns(ways.len(), round) {
            let way = &mut ways[turn];
            match way.turn(samples) {
                None => {}
                Some(Ok(times)) => {
                    let times: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
                    for (column, percent) in [("p50", 50), ("p99", 99)] {
                        table.add(way.name, column, percentile(&times, percent).ok_or("nothing was sampled")?);
                    }
                }
                Some(Err(error)) if INTERRUPTED.load(Ordering::Relaxed) => return Err(error),
                Some(Err(error)) => {
                    let what = format!("{id}, {}: {error}", way.name);
                    if way.is_ours() {
                        results.fail(what);
                    } else {
                        results.note(what);
                    }
                    way.take = None;
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
