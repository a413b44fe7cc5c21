//! What thousands of idle jobs cost the host that has them.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench density             # three minutes
//! cargo bench -p iron-exec-benches --bench density -- --quick  # a quarter of it
//! ```
//!
//! Jobs that sleep are started, left alone, and killed:
//!
//! - *start*: from the first start until all programs are executed; where there are more than a hundred, of those after the first hundred. (A worker is not
//!   held up by that here: `confirm(false)`, as a dense host has it.)
//! - *memory*: how much the host's own (RssAnon) has grown from a hundred jobs to N, for each that was added: what is there once for all is no part of it.
//! - *idle*: the CPU time of the host while nothing happens, the begin and the end of its waiting included.
//! - *turn*: the time to read a line from some of the jobs and log it; the others sleep.
//! - *end*: from the first kill until all are reaped and what they had is gone.
//!
//! `logged` is with two pipes and a log, `full` with a cgroup, too, `no output` with neither. Tokio has a task for each job, on one thread, which copies its lines into a
//! `BufWriter`. Every cell and round is a process of its own; rounds are interleaved. All have a limit of 20,000 descriptors; the last column is as many as a worker can
//! have with logs then.

use std::process::ExitCode;

use iron_exec_benches::stage::{Cgroup, Stage};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, host, program, turns};
use nix::sys::resource::{Resource, getrlimit};

mod iron;
mod peer;
mod play;

/// So many idle jobs, as the column is called. The last is as many as there can be.
const COLUMNS: [&str; 5] = [NONE, FEW, SOME, MANY, MOST];
const NONE: &str = "0";
const FEW: &str = "100";
const SOME: &str = "1,000";
const MANY: &str = "4,900";
const MOST: &str = "most";
/// In which the idle loop is looked at.
const IDLE_COLUMNS: [&str; 3] = [NONE, MANY, MOST];
/// The most in the smoke test.
const SMOKE_JOBS: u64 = 150;
/// The limit of open files; less where the hard limit is.
const NOFILE: u64 = 20_000;
/// What an idle job with a log takes.
const FDS_PER_JOB: u64 = 3;
/// Descriptors that are no idle job's: open logs (512), spawn slots (128), jobs that talk, the loop's own.
const FDS_SPARE: u64 = 900;
/// Those of tokio: its jobs have a descriptor more, the log's.
const PEER_FDS_PER_JOB: u64 = FDS_PER_JOB + 1;
const PEER_FDS_SPARE: u64 = 200;
/// What is to be possible.
const JOBS_GOAL: f64 = 6_000.0;

const FULL: &str = "iron-exec, full";
const LOGGED: &str = "iron-exec, logged";
const SILENT: &str = "iron-exec, no output";
const PEER_LOGGED: &str = "tokio, logged";
const PEER_SILENT: &str = "tokio, no output";
const ROWS: [&str; 5] = [FULL, LOGGED, SILENT, PEER_LOGGED, PEER_SILENT];

const START: &str = "density-start";
const MEMORY: &str = "density-memory";
const IDLE: &str = "density-idle";
const TURN: &str = "density-turn";
const END: &str = "density-end";
const TABLES: [(&str, &str, &[&str]); 5] = [
    (START, "Start of N idle jobs, µs a job", &[FEW, SOME, MANY, MOST]),
    (MEMORY, "Own memory of a host with N idle jobs, bytes for each beyond the first 100", &[SOME, MANY, MOST]),
    (IDLE, "CPU time of a host with N idle jobs, µs a second", &IDLE_COLUMNS),
    (TURN, "A line of some jobs among N idle ones, from pipe to log, µs for all", &COLUMNS),
    (END, "End of N idle jobs, from kill to reaped, µs a job", &[FEW, SOME, MANY, MOST]),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["host", row, column, jobs, program, logs, cgroup, ..] => play::play(row, column, jobs, program.as_ref(), logs.as_ref(), cgroup),
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

/// Plays every host in turn.
fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let mut results = Results::begin("density", pace)?;
    for (id, title, columns) in TABLES {
        let mut table = Table::new(id, title, columns);
        if id != TURN {
            for row in ROWS {
                table.row(row);
            }
        }
        results.tables.push(table);
    }
    let stage = Stage::new()?;
    let program = program::write_idle(stage.directory.path())?;
    let cgroup = Cgroup::new();
    if let Err(error) = &cgroup {
        results.note(format!("no cgroups, so no {FULL}: {error}"));
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let limit = hard.min(NOFILE);
    let room = limit.saturating_sub(FDS_SPARE) / FDS_PER_JOB;
    let most = pace.of(room.min(SMOKE_JOBS), room, room);
    results.note(format!(
        "{MOST} is {most}: with {FDS_PER_JOB} descriptors each, and {FDS_SPARE} for the rest, {limit} are enough for {room}"
    ));
    let rounds = pace.of(1, 2, 5);
    for round in 0..rounds {
        for row in turns(ROWS.len(), round).map(|turn| ROWS[turn]) {
            if row == FULL && cgroup.is_err() {
                continue;
            }
            for column in COLUMNS {
                let jobs = if column == MOST { most } else { column.replace(',', "").parse()? };
                if let Some(reason) = missing(row, column, jobs, most, limit) {
                    results.note(reason);
                    continue;
                }
                let mut host = host::again()?;
                host.args(["host", row, column, &jobs.to_string()]).arg(&program).arg(stage.logs.path());
                host.arg(cgroup.as_ref().map_or("".as_ref(), |cgroup| cgroup.path().as_os_str()));
                host.args(std::env::args().skip(1));
                stage.play(&format!("{row}, {column}"), &mut host, &mut results)?;
            }
        }
    }
    // A host that ran all of them has ended them, too. That one fails is not the machine's limit: it has not reached the goal.
    let have_run = results.table(END).is_some_and(|table| table.rounds(LOGGED, MOST).len() == rounds);
    let can_be_had = pace != Pace::Smoke && limit == NOFILE;
    goals(&mut results, can_be_had.then_some(if have_run { f64::from(u32::try_from(most)?) } else { 0.0 }));
    results.end()
}

/// Why there is no such host here and at this pace, if so.
fn missing(row: &str, column: &str, jobs: u64, most: u64, limit: u64) -> Option<String> {
    let jobs_max = jobs.max(play::FIRST_JOBS as u64);
    if jobs_max > most {
        return Some(format!("{column}: {jobs_max} jobs at a time are more than {most}"));
    }
    let is_too_many = row == PEER_LOGGED && jobs * PEER_FDS_PER_JOB > limit.saturating_sub(PEER_FDS_SPARE);
    is_too_many.then(|| format!("{row}, {column}: {PEER_FDS_PER_JOB} descriptors a job are too many"))
}

fn goals(results: &mut Results, ran: Option<f64>) {
    let median = |table: &str, row: &str, column: &str| results.table(table)?.median(row, column);
    let memory = [FULL, LOGGED].map(|row| (row, median(MEMORY, row, MOST)));
    let idle = median(IDLE, LOGGED, MOST).zip(median(IDLE, LOGGED, NONE)).map(|(many, none)| many - none);
    let turns = play::READY.map(|ready| (ready, results.ratio(TURN, (&play::turn_row(ready), MOST), (&play::turn_row(ready), FEW))));
    let start = results.ratio(START, (PEER_LOGGED, MANY), (LOGGED, MANY));
    results.goal("jobs with two pipes and a log under a limit of 20,000 descriptors", Relation::AtLeast, JOBS_GOAL, ran);
    for (row, found) in memory {
        results.goal(format!("own memory of an idle job, {row}, the most there can be: bytes"), Relation::AtMost, 1024.0, found);
    }
    results.goal("CPU time of an idle loop with the most jobs there can be: µs a second more than with none", Relation::AtMost, 50.0, idle);
    for (ready, found) in turns {
        let what = format!("a turn with {ready} ready: time among the most there can be, times that among {FEW}");
        results.goal(what, Relation::AtMost, 1.15, found);
    }
    results.goal("start of 4,900 idle jobs with logs: tokio's time, times ours", Relation::AtLeast, 1.0, start);
}
