//! What a whole job costs: a cgroup that is made, that the process is born in, and that is removed; two pipes, a line through one of them into a log of its own, in CRI
//! format; and its status.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench job             # a minute or two
//! cargo bench -p iron-exec-benches --bench job -- --quick  # a fifth of it
//! cargo bench -p iron-exec-benches --bench job -- floor unconfirmed  # only the rows with one of these words in their name
//! ```
//!
//! - `floor`: bare system calls, for this one purpose: no table of jobs, no deadlines, no errors that are handled, no session of its own for each job.
//! - `iron-exec`: a worker as it is by default: `start` comes back when the program was executed. `iron-exec, unconfirmed` is not held up by that, like the floor.
//! - `tokio + cgroup.procs`: what can be made of tokio on one thread: the parent moves the process, which runs already (and may have ended), into its cgroup. Its lines are
//!   copied by `lines()` into a `BufWriter`. `tokio, no cgroup` is the same without cgroups.
//!
//! All contenders write the same records, by the same encoder. Each column is a host, a fresh process: `5k fds` and `15k fds` have that many descriptors open, opened
//! after the contenders were built. In it all take turns, round after round. Logs are on a file system in memory where there is one, and are deleted between the turns;
//! there the bench sees that every job has its line.

use std::process::{Command, ExitCode};

use iron_exec_benches::stage::{Cgroup, Stage};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, host, program};

mod contender;
mod floor;
mod heat;
mod iron;
mod peer;

/// How many jobs run at a time; a table each.
const IN_FLIGHT: [usize; 3] = [1, 64, 512];
/// The table of the host's own CPU time, and how many run at a time there.
const CPU: &str = "job-cpu";
const CPU_IN_FLIGHT: usize = 64;
/// The columns: how many descriptors are open.
const CONDITIONS: [(&str, usize); 3] = [("plain", 0), ("5k fds", 5_000), ("15k fds", 15_000)];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["host", condition, program, logs, cgroup, ref rest @ ..] => {
            heat::play(condition, program.as_ref(), logs.as_ref(), cgroup, &words(rest))
        }
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

/// The arguments that are not flags.
fn words<'a>(args: &[&'a str]) -> Vec<&'a str> {
    args.iter().copied().filter(|arg| !arg.starts_with("--")).collect()
}

/// The table for so many in flight.
fn table_id(in_flight: usize) -> String {
    format!("job-{in_flight}")
}

/// Plays every host in turn.
fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let mut results = Results::begin("job", pace)?;
    let columns = CONDITIONS.map(|(name, _)| name);
    let whole = "A whole job (cgroup, log, two pipes, status)";
    let times = IN_FLIGHT.map(|in_flight| (table_id(in_flight), format!("{whole}, {in_flight} in flight, µs a job")));
    let cpu = (CPU.to_owned(), format!("CPU time of the host for a whole job, {CPU_IN_FLIGHT} in flight, µs a job"));
    for (id, title) in times.into_iter().chain([cpu]) {
        let mut table = Table::new(&id, title, &columns).reference(contender::FLOOR);
        for row in contender::ROWS {
            table.row(row);
        }
        results.tables.push(table);
    }
    let stage = Stage::new()?;
    let program = program::write_line(stage.directory.path())?;
    let checked = Command::new(&program).output().map_err(|error| format!("{}: {error}; is TMPDIR mounted noexec?", program.display()))?;
    if checked.stdout != program::LINE {
        return Err(format!("the program that is to be started does not work: {checked:?}").into());
    }
    let cgroup = Cgroup::new();
    if let Err(error) = &cgroup {
        results.notes.push(format!("no cgroups, so that {} runs without and {} not at all: {error}", contender::OURS, contender::PEER));
    }
    for (name, _) in CONDITIONS {
        let mut host = host::again()?;
        host.args(["host", name]).arg(&program).arg(stage.logs.path());
        host.arg(cgroup.as_ref().map_or("".as_ref(), |cgroup| cgroup.path().as_os_str()));
        host.args(std::env::args().skip(1));
        stage.play(name, &mut host, &mut results)?;
    }
    goals(&mut results);
    results.end()
}

fn goals(results: &mut Results) {
    use contender::{FLOOR, OURS, PEER, UNCONFIRMED};
    let floor = results.ratio("job-64", (UNCONFIRMED, "plain"), (FLOOR, "plain"));
    results.goal(format!("whole job, 64 in flight: time of {UNCONFIRMED}, times the floor's"), Relation::AtMost, 1.25, floor);
    for (column, bound) in [("plain", 1.5), ("15k fds", 6.0)] {
        for row in [UNCONFIRMED, OURS] {
            let peer = results.ratio("job-64", (PEER, column), (row, column));
            results.goal(format!("whole job, 64 in flight, {column}: time of {PEER}, times that of {row}"), Relation::AtLeast, bound, peer);
        }
    }
}
