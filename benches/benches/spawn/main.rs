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
//! The jobs are made as cheap as they can be: no cgroup, no log, stdin, stdout and stderr on /dev/null. The rows of iron-exec are unconfirmed
//! (`confirm(false)`): a start does not wait for its program to be executed. Only `iron-exec, confirmed` does, as a worker by default and as the peers
//! do; it is on the rung detached. A loop of iron-exec or tokio reaps in the order of the ends; the others wait for the oldest, and so need no loop at all.

use std::process::{Command, ExitCode};

use iron_exec_benches::stage::Stage;
use iron_exec_benches::{Pace, Relation, Result, Results, Table, host, program};

use condition::{CONDITIONS, IN_FLIGHT};
use contender::ROWS;

mod condition;
mod contender;

/// The rung that a worker chooses where it can.
const OURS: &str = "iron-exec detached";
const CONFIRMED: &str = "iron-exec, confirmed";
const FLOOR: &str = "floor";
const TOKIO: &str = "tokio::process";

const SPAWN: [&str; IN_FLIGHT.len()] = ["spawn-64", "spawn-1"];
const TRUE: &str = "spawn-true";
const STALL: &str = "stall";
/// What is told of the stalls of a round.
const STALL_RANKS: [(&str, usize); 3] = [("p50", 50), ("p99", 99), ("max", 100)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["hog"] => host::hog(),
        ["host", condition, program, log_dir, ..] => play(condition, program, log_dir),
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
    let stage = Stage::new()?;
    let program = program::write(stage.directory.path())?;
    let checked = Command::new(&program).status().map_err(|error| format!("{}: {error}; is TMPDIR mounted noexec?", program.display()))?;
    if !checked.success() {
        return Err(format!("the program that is to be started does not work: {checked}").into());
    }
    let mut results = Results::begin("spawn", pace)?;
    results.tables = tables();
    for condition in CONDITIONS.iter().filter(|condition| words.is_empty() || words.iter().any(|word| condition.name.contains(word))) {
        if let Some(reason) = condition.missing(pace) {
            results.note(format!("{}: {reason}", condition.name));
            continue;
        }
        let hogs = if condition.is_busy { host::hogs()? } else { Vec::new() };
        let mut host = host::again()?;
        host.args(["host", condition.name]).arg(&program).arg(stage.logs.path()).args(std::env::args().skip(1));
        stage.play(condition.name, &mut host, &mut results)?;
        drop(hogs);
    }
    goals(&mut results);
    results.end()
}

/// All of them, still empty; the rows are there whoever can be had.
fn tables() -> Vec<Table> {
    let hosts: Vec<&str> = CONDITIONS.iter().filter(|condition| condition.program.is_none()).map(|condition| condition.name).collect();
    let [many, one] = IN_FLIGHT.map(column);
    let title = |in_flight: usize| format!("From start to reaped, {in_flight} in flight, µs a program");
    let stall_title =
        "The time inside the starting call of a host that sleeps between its starts, µs (max: the median of the rounds' maxima)";
    let stall_hosts = CONDITIONS.iter().filter(|condition| condition.has_stalls);
    let stall_columns: Vec<String> = stall_hosts.flat_map(|host| STALL_RANKS.map(|(rank, _)| host.stall_column(rank))).collect();
    let stall_columns: Vec<&str> = stall_columns.iter().map(String::as_str).collect();
    let mut tables = vec![
        Table::new(SPAWN[0], title(IN_FLIGHT[0]), &hosts).reference(FLOOR),
        Table::new(SPAWN[1], title(IN_FLIGHT[1]), &hosts).reference(FLOOR),
        Table::new(TRUE, "/bin/true from start to reaped, µs a program", &[&many, &one]).reference(FLOOR),
        Table::new(STALL, stall_title, &stall_columns),
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

fn goals(results: &mut Results) {
    use Relation::{AtLeast, AtMost};

    let time = |row, to_row, host, to_host| results.ratio(SPAWN[0], (row, host), (to_row, to_host));
    let stall = |row| results.table(STALL)?.median(row, "busy p99");
    let flat = |host| time(OURS, OURS, host, "plain");
    let mut goals = vec![
        ("64 in flight, unconfirmed: time, times the floor's".to_owned(), AtMost, 1.25, time(OURS, FLOOR, "plain", "plain")),
        ("64 in flight, unconfirmed: tokio's time, times ours".to_owned(), AtLeast, 1.8, time(TOKIO, OURS, "plain", "plain")),
        ("64 in flight, confirmed: tokio's time, times ours".to_owned(), AtLeast, 1.8, time(TOKIO, CONFIRMED, "plain", "plain")),
    ];
    for (when, host) in [("later", "15k fds later"), ("before", "15k fds")] {
        let what = format!("64 in flight, unconfirmed, 15,000 descriptors opened {when}: tokio's time, times ours");
        goals.push((what, AtLeast, 12.0, time(TOKIO, OURS, host, host)));
    }
    for (what, host) in [
        ("1 GiB of memory: time, times that with 10 MB", "1 GiB"),
        ("4 GiB of memory: time, times that with 10 MB", "4 GiB"),
        ("5,000 descriptors opened later: time, times that with few", "5k fds later"),
        ("15,000 descriptors opened later: time, times that with few", "15k fds later"),
        ("15,000 descriptors opened before: time, times that with few", "15k fds"),
    ] {
        goals.push((format!("64 in flight, unconfirmed, {what}"), AtMost, 1.15, flat(host)));
    }
    let stalls = stall(OURS).zip(stall(TOKIO)).map(|(ours, tokio)| ours / tokio);
    goals.extend([
        ("busy CPUs, unconfirmed: µs inside the starting call, p99".to_owned(), AtMost, 100.0, stall(OURS)),
        ("busy CPUs, unconfirmed: time inside the starting call, p99, times tokio's".to_owned(), AtMost, 0.05, stalls),
    ]);
    for (what, relation, bound, found) in goals {
        results.goal(what, relation, bound, found);
    }
}

/// Plays one of the hosts.
fn play(condition: &str, program: &str, log_dir: &str) -> Result<()> {
    host::end_with_parent()?;
    let condition = CONDITIONS.iter().find(|known| known.name == condition).ok_or("no such condition")?;
    condition::play(condition, Pace::from_args(), program.as_ref(), log_dir.as_ref())
}
