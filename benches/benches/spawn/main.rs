//! What it costs to start a tiny program and to reap it, and how long the caller is held up meanwhile: iron-exec on each of its rungs, beside
//! posix_spawn, std, tokio and async-process, and beside the floor: bare system calls.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench spawn                # about four minutes
//! cargo bench -p iron-exec-benches --bench spawn -- --quick     # about 20 seconds
//! cargo bench -p iron-exec-benches --bench spawn -- busy fds    # only the columns with one of these words in their name
//! ```
//!
//! Each column is a host, played by a fresh process: `plain` has about 10 MB and few descriptors; `busy` is plain while two hogs for each CPU want it;
//! `1 GiB` and `4 GiB` have that much touched memory; `fds` has that many descriptors open, from before the worker was built, or (`later`) opened after.
//! In each column the contenders take turns, several rounds; each is built anew for its turn, and then warmed up. Every figure is a median of the
//! rounds: noise of the machine hits all alike. It is the ratios that count; absolute figures move from machine to machine.
//!
//! The floor is what the kernel does at its best, asked by bare system calls; its programs begin a session each, as jobs do, which a row without that is
//! beside. Stalls are those of a host that sleeps between its starts, as one does that waits for events.
//!
//! The jobs are made as cheap as they can be: no cgroup, no log, no confirmation, stdin, stdout and stderr on /dev/null. A loop of iron-exec or tokio
//! reaps in the order of the ends; the others wait for the oldest, and so need no loop at all.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use iron_exec_benches::host::{self, Ours};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, program};
use nix::sys::signal::Signal;

use condition::{CONDITIONS, Condition, IN_FLIGHT, Record};
use contender::ROWS;

mod condition;
mod contender;

/// A host that tells nothing for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_mins(1);

/// The rung that a worker chooses where it can.
const OURS: &str = "iron-exec detached";
const FLOOR: &str = "floor";
const TOKIO: &str = "tokio::process";

const SPAWN: [&str; IN_FLIGHT.len()] = ["spawn-64", "spawn-1"];
const TRUE: &str = "spawn-true";
const STALL: &str = "stall";
/// What is told of stalls.
const STALL_RANKS: [&str; 3] = ["p50", "p99", "max"];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hog"] => host::hog(),
        ["host", condition, program, log_dir, _pace] => play(condition, Path::new(program), Path::new(log_dir)),
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

/// Plays every host in turn.
fn bench(args: &[&str]) -> Result<()> {
    let pace = Pace::from_args();
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
    let mut results = Results::begin("spawn", pace)?;
    results.tables = tables();
    for condition in CONDITIONS.iter().filter(|condition| words.is_empty() || words.iter().any(|word| condition.name.contains(word))) {
        if let Some(reason) = condition.missing(pace)? {
            results.notes.push(format!("{}: {reason}", condition.name));
            continue;
        }
        let hogs = if condition.is_busy { host::hogs()? } else { Vec::new() };
        let mut host = host::again()?;
        host.args(["host", condition.name]).args([&program, directory.path()]).arg(pace.of("--smoke", "--quick", "--bench"));
        let told = listen(&mut Ours(host.spawn()?), &interrupted, |record| take(&mut results, condition, record));
        drop(hogs);
        if interrupted.load(Ordering::Relaxed) {
            return Err("interrupted".into());
        }
        if let Err(error) = told {
            results.notes.push(format!("{}: {error}", condition.name));
        }
    }
    goals(&mut results);
    results.end()
}

/// All of them, still empty; the rows are there whoever can be had.
fn tables() -> Vec<Table> {
    let hosts: Vec<&str> = CONDITIONS.iter().filter(|condition| condition.program.is_none()).map(|condition| condition.name).collect();
    let [many, one] = IN_FLIGHT.map(column);
    let title = |in_flight: usize| format!("From start to reaped, {in_flight} in flight, µs a program");
    let stall_hosts = CONDITIONS.iter().filter(|condition| condition.has_stalls);
    let stall_columns: Vec<String> = stall_hosts.flat_map(|host| STALL_RANKS.map(|rank| format!("{} {rank}", host.name))).collect();
    let stall_columns: Vec<&str> = stall_columns.iter().map(String::as_str).collect();
    let mut tables = vec![
        Table::new(SPAWN[0], title(IN_FLIGHT[0]), &hosts).reference(FLOOR),
        Table::new(SPAWN[1], title(IN_FLIGHT[1]), &hosts).reference(FLOOR),
        Table::new(TRUE, "/bin/true from start to reaped, µs a program", &[&many, &one]).reference(FLOOR),
        Table::new(STALL, "The time inside the starting call of a host that sleeps between its starts, µs", &stall_columns),
    ];
    for table in &mut tables {
        for (row, _) in ROWS {
            table.row(row);
        }
    }
    tables
}

/// The column of [`TRUE`].
fn column(in_flight: usize) -> String {
    format!("{in_flight} in flight")
}

/// Takes in what a host has told.
fn take(results: &mut Results, condition: &Condition, record: Record) {
    let [many, one, of_true, stalls] = &mut results.tables[..] else { return };
    match record {
        Record::Spawn { row, in_flight, time } => match condition.program {
            Some(_) => of_true.add(&row, &column(in_flight), time),
            None if in_flight == IN_FLIGHT[0] => many.add(&row, condition.name, time),
            None => one.add(&row, condition.name, time),
        },
        Record::Stall { row, ranks } => {
            for (rank, figure) in STALL_RANKS.iter().zip(ranks) {
                stalls.add(&row, &format!("{} {rank}", condition.name), figure);
            }
        }
        Record::Missing { row, reason } => results.notes.push(format!("{}, {row}: {reason}", condition.name)),
    }
}

fn goals(results: &mut Results) {
    use Relation::{AtLeast, AtMost};

    let time = |row, to_row, host, to_host| results.ratio(SPAWN[0], (row, host), (to_row, to_host));
    let stall = |row| results.table(STALL)?.median(row, "busy p99");
    let goals = [
        ("64 in flight: time, times the floor's", AtMost, 1.25, time(OURS, FLOOR, "plain", "plain")),
        ("64 in flight: tokio's time, times ours", AtLeast, 1.8, time(TOKIO, OURS, "plain", "plain")),
        ("64 in flight, 15,000 descriptors opened later: tokio's time, times ours", AtLeast, 12.0, {
            time(TOKIO, OURS, "15k fds later", "15k fds later")
        }),
        ("64 in flight, 4 GiB of memory: time, times that with 10 MB", AtMost, 1.15, time(OURS, OURS, "4 GiB", "plain")),
        ("64 in flight, 15,000 descriptors opened later: time, times that with few", AtMost, 1.15, {
            time(OURS, OURS, "15k fds later", "plain")
        }),
        ("busy CPUs: µs inside the starting call, p99", AtMost, 100.0, stall(OURS)),
        ("busy CPUs: time inside the starting call, p99, times tokio's", AtMost, 0.05, {
            stall(OURS).zip(stall(TOKIO)).map(|(ours, tokio)| ours / tokio)
        }),
    ];
    for (what, relation, bound, found) in goals {
        results.goal(what, relation, bound, found);
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
                hear(serde_json::from_str(&line).map_err(|error| format!("the host says {line:?}: {error}"))?);
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
fn play(condition: &str, program: &Path, log_dir: &Path) -> Result<()> {
    host::end_with_parent()?;
    let condition: &Condition = CONDITIONS.iter().find(|known| known.name == condition).ok_or("no such condition")?;
    condition::play(condition, Pace::from_args(), program, log_dir)
}
