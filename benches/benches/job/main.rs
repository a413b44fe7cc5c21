//! What a whole job costs: a cgroup that is made, that the process is born in, and that is removed; two pipes, a line through one of them into a log of its own, in CRI
//! format; and its status.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench job             # a minute or two
//! cargo bench -p iron-exec-benches --bench job -- --quick  # a fifth of it
//! cargo bench -p iron-exec-benches --bench job -- floor unconfirmed  # only the rows with one of these words in their name
//! ```
//!
//! - `floor`: bare system calls, for this one purpose: no table of jobs, no deadlines, no errors that are handled. Its processes begin a session each, as jobs do.
//! - `iron-exec`: a worker as it is by default: `start` comes back when the program was executed. `iron-exec, unconfirmed` is not held up by that, like the floor.
//! - `tokio + cgroup.procs`: what can be made of tokio on one thread: the parent moves the process, which runs already (and may have ended), into its cgroup. Its lines are
//!   copied by `lines()` into a `BufWriter`. `tokio, no cgroup` is the same without cgroups.
//! - `tokio + pre_exec`: the process moves itself, by a hook between fork and exec: it runs nowhere else, but has to be forked. It takes
//!   so long that `5k fds later` goes without it.
//!
//! All contenders write the same records, by the same encoder. Each column is a host, a fresh process: `5k fds later` and `15k fds later` have that many descriptors
//! open, opened after the contenders were built. In it all take turns, round after round. Logs are on a file system in memory where there is one, and are deleted between the turns;
//! there the bench sees that every job has its line.

use std::process::{Command, ExitCode};

use iron_exec_benches::stage::{Cgroup, Stage};
use iron_exec_benches::{Pace, Relation, Result, Results, Table, host, program};
use nix::sys::resource::{Resource, getrlimit};

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
const CONDITIONS: [(&str, usize); 3] = [("plain", 0), (SOME_FDS, 5_000), (MANY_FDS, 15_000)];
const SOME_FDS: &str = "5k fds later";
const MANY_FDS: &str = "15k fds later";
/// Descriptors of the contenders beside those of their jobs, and the most that a job has.
const FDS_SPARE: usize = 500;
const FDS_PER_JOB: usize = 6;

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

/// The descriptors of a host that has so many open, and so many jobs in flight.
fn fds_needed(fds: usize, in_flight: usize) -> usize {
    fds + FDS_SPARE + FDS_PER_JOB * in_flight
}

/// For how many in flight the limit of descriptors is enough.
fn in_flight_possible(fds: usize) -> Result<Vec<usize>> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(IN_FLIGHT.into_iter().filter(|in_flight| fds_needed(fds, *in_flight) as u64 <= hard).collect())
}

/// Plays every host in turn.
fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let mut results = Results::begin("job", pace)?;
    let stage = Stage::new()?;
    let program = program::write_line(stage.directory.path())?;
    let checked = Command::new(&program).output().map_err(|error| format!("{}: {error}; is TMPDIR mounted noexec?", program.display()))?;
    if checked.stdout != program::LINE {
        return Err(format!("the program that is to be started does not work: {checked:?}").into());
    }
    let cgroup = Cgroup::new();
    results.tables = tables(cgroup.is_ok());
    if let Err(error) = &cgroup {
        use contender::{FLOOR, HOOKED, OURS, PEER, UNCONFIRMED};
        results.note(format!(
            "no cgroups, so that the jobs of \"{FLOOR}\", \"{OURS}\" and \"{UNCONFIRMED}\" go without, there is no \"{PEER}\" and no \"{HOOKED}\", and nothing to hold \
             the goals against: {error}"
        ));
    }
    for (name, fds) in CONDITIONS {
        let possible = in_flight_possible(fds)?;
        for in_flight in IN_FLIGHT.into_iter().filter(|in_flight| !possible.contains(in_flight)) {
            let needed = fds_needed(fds, in_flight);
            results.note(format!("{name}, {in_flight} in flight: the hard limit of open files is below the {needed} that are needed"));
        }
        if possible.is_empty() {
            continue;
        }
        let mut host = host::again()?;
        host.args(["host", name]).arg(&program).arg(stage.logs.path());
        host.arg(cgroup.as_ref().map_or("".as_ref(), |cgroup| cgroup.path().as_os_str()));
        host.args(std::env::args().skip(1));
        stage.play(name, &mut host, &mut results)?;
    }
    goals(&mut results, cgroup.is_ok());
    results.end()
}

/// All of them, still empty.
fn tables(has_cgroups: bool) -> Vec<Table> {
    let columns = CONDITIONS.map(|(name, _)| name);
    let job = if has_cgroups { "A whole job (cgroup, log, two pipes, status)" } else { "A job without a cgroup (log, two pipes, status)" };
    let times = IN_FLIGHT.map(|in_flight| (table_id(in_flight), format!("{job}, {in_flight} in flight, µs a job")));
    let cpu = (CPU.to_owned(), format!("{job}, {CPU_IN_FLIGHT} in flight, µs of the host's CPU time a job"));
    let table = |(id, title): (String, String)| {
        let mut table = Table::new(&id, title, &columns).reference(contender::FLOOR);
        for row in contender::ROWS {
            table.row(row);
        }
        table
    };
    times.into_iter().chain([cpu]).map(table).collect()
}

/// They are about whole jobs: without cgroups nothing is found.
fn goals(results: &mut Results, has_cgroups: bool) {
    use contender::{FLOOR, OURS, PEER, UNCONFIRMED};
    let ratio = |results: &Results, of, to| results.ratio("job-64", of, to).filter(|_| has_cgroups);
    let floor = ratio(results, (UNCONFIRMED, "plain"), (FLOOR, "plain"));
    results.goal(format!("whole job, 64 in flight: time of {UNCONFIRMED}, times the floor's"), Relation::AtMost, 1.25, floor);
    for (column, bound) in [("plain", 1.5), (MANY_FDS, 6.0)] {
        for row in [UNCONFIRMED, OURS] {
            let peer = ratio(results, (PEER, column), (row, column));
            results.goal(format!("whole job, 64 in flight, {column}: time of {PEER}, times that of {row}"), Relation::AtLeast, bound, peer);
        }
    }
}
