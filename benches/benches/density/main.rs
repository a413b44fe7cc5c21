//! What thousands of idle jobs cost the host that has them.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench density             # two minutes
//! cargo bench -p iron-exec-benches --bench density -- --quick  # a quarter of it
//! ```
//!
//! Jobs that sleep are started, left alone, and killed:
//!
//! - *start*: from the first start until all programs are executed. (A worker is not held up by that here: `confirm(false)`, as a dense host has it.)
//! - *memory*: how much the host's own has grown (RssAnon). What is there once for all jobs was touched by a first hundred, which are gone.
//! - *idle*: the CPU time of the host while nothing happens, the begin and the end of its waiting included.
//! - *turn*: the time to read a line from some of the jobs and log it; the others sleep.
//! - *end*: from the first kill until all are reaped and what they had is gone.
//!
//! `logged` is with two pipes and a log, `full` with a cgroup, too, `no output` with neither. Tokio has a task for each job, on one thread, which copies its lines into a
//! `BufWriter`. Every cell and round is a process of its own; rounds are interleaved. All have a limit of 20,000 descriptors; the last column is as many as a worker can
//! have with logs then.

use std::process::ExitCode;

use iron_exec_benches::stage::{Cgroup, Stage};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, host, program};
use nix::sys::resource::{Resource, getrlimit};

mod iron;
mod peer;
mod play;

/// So many idle jobs, as the column is called. The last is as many as there can be.
const COLUMNS: [&str; 5] = [NONE, FEW, "1,000", MANY, MOST];
const NONE: &str = "0";
const FEW: &str = "100";
const MANY: &str = "4,900";
const MOST: &str = "most";
/// In which the idle loop is looked at.
const IDLE_COLUMNS: [&str; 3] = [NONE, MANY, MOST];
/// The limit of open files; less where the hard limit is.
const NOFILE: u64 = 20_000;
/// What an idle job with a log takes.
const FDS_PER_JOB: u64 = 3;
/// Descriptors that are no idle job's: open logs (512), spawn slots (128), jobs that talk, the loop's own.
const FDS_SPARE: u64 = 900;
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
const TABLES: [(&str, &str); 5] = [
    (START, "Start of N idle jobs, µs a job"),
    (MEMORY, "Own memory of a host with N idle jobs, bytes a job"),
    (IDLE, "CPU time of a host with N idle jobs, µs a second"),
    (TURN, "A line of some jobs among N idle ones, from pipe to log, µs for all"),
    (END, "End of N idle jobs, from kill to reaped, µs a job"),
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
    for (id, title) in TABLES {
        let columns = if id == IDLE { &IDLE_COLUMNS[..] } else { &COLUMNS[..] };
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
        results.notes.push(format!("no cgroups, so no {FULL}: {error}"));
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let most = hard.min(NOFILE).saturating_sub(FDS_SPARE) / FDS_PER_JOB;
    if pace != Pace::Smoke {
        results
            .notes
            .push(format!("{MOST} is {most}: {FDS_PER_JOB} descriptors each, and {FDS_SPARE} for the rest, of {}", hard.min(NOFILE)));
    }
    for round in 0..pace.of(1, 2, 5) {
        for index in 0..ROWS.len() {
            // Nobody always comes after the same one.
            let row = ROWS[(index + round) % ROWS.len()];
            if row == FULL && cgroup.is_err() {
                continue;
            }
            for column in COLUMNS {
                let jobs = match column {
                    MOST if pace == Pace::Smoke => 150,
                    MOST => most,
                    column => column.replace(',', "").parse::<u64>()?,
                };
                if pace == Pace::Smoke && column != MOST && jobs > 100 {
                    continue;
                }
                if jobs > most {
                    results.notes.push(format!("{column} are more than the {hard} descriptors of this machine's limit are enough for"));
                    continue;
                }
                // Tokio's jobs have a descriptor more: the log's.
                if row == PEER_LOGGED && jobs * (FDS_PER_JOB + 1) > hard.min(NOFILE) - 200 {
                    note_once(&mut results, format!("{row}, {column}: {} descriptors a job are too many", FDS_PER_JOB + 1));
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
    // A host that ran all of them has ended them, too.
    let ran = results.table(END).and_then(|table| table.median(LOGGED, MOST)).map(|_| f64::from(u32::try_from(most).unwrap_or(u32::MAX)));
    let can_be_had = pace != Pace::Smoke && hard >= NOFILE;
    goals(&mut results, ran.filter(|_| can_be_had));
    results.end()
}

fn note_once(results: &mut Results, note: String) {
    if !results.notes.contains(&note) {
        results.notes.push(note);
    }
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
