//! Allocations of the host.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use allocation_counter::measure;
use iron_exec::{Capture, Command, Event, Events, Worker};
use iron_exec_benches::{Relation, Result, Table};

use crate::bounds::{ALLOCATIONS, ALLOCATIONS_SLACK};
use crate::load::{self, SCENARIOS, Scenario, uncounted};
use crate::{Amounts, Report, float};

const IDLE_JOBS: usize = 100;
const LINE_BYTES: usize = 80;

pub(crate) fn count(amounts: Amounts, directory: &Path, report: &mut Report) -> Result<()> {
    let mut figures = Vec::new();
    for scenario in &SCENARIOS[..3] {
        if let Some((job, event)) = of_jobs(scenario, amounts.jobs, directory)? {
            figures.push((format!("a job, {}", scenario.name), job));
            figures.push((format!("an event, {}", scenario.name), event));
        } else {
            report.miss("cgroup", "allocations: no cgroup2 that this user can write");
        }
    }
    figures.push(("a status, logged".to_owned(), of_status(directory)?));
    figures.push(("100 lines of one job".to_owned(), 100.0 * of_lines(amounts.lines, directory)?));
    let (idle, ready) = of_turns(amounts.turns, directory)?;
    figures.push(("an idle turn".to_owned(), idle));
    figures.push(("a turn, one job ready".to_owned(), ready));

    let mut table = Table::new("allocations", "Allocations of the host", &["found", "at most"]);
    for bound in &ALLOCATIONS {
        table.why(bound.name, bound.why);
        let Some((_, figure)) = figures.iter().find(|(name, _)| name == bound.name) else { continue };
        table.add(bound.name, "found", *figure);
        table.add(bound.name, "at most", bound.at_most);
        if *figure > bound.at_most + ALLOCATIONS_SLACK {
            report.fail(&format!("allocations for {}: {figure:.2}, at most {} are allowed", bound.name, bound.at_most));
        }
    }
    for (name, bound) in [("100 lines of one job", 1.0), ("an idle turn", 0.0)] {
        report.results.goal(format!("allocations for {name}"), Relation::AtMost, bound, table.median(name, "found"));
    }
    report.results.tables.push(table);
    Ok(())
}

/// Allocations that `body` makes.
fn allocations(body: impl FnOnce() -> Result<()>) -> Result<usize> {
    let mut done = Ok(());
    let counted = measure(|| done = body());
    done?;
    Ok(usize::try_from(counted.count_total)?)
}

/// For a job, from its start until it is forgotten, and for each of its events in the turns that end it; `None` without cgroups if it needs one.
fn of_jobs(scenario: &Scenario, jobs: usize, log_dir: &Path) -> Result<Option<(f64, f64)>> {
    let mut worker = load::worker(log_dir, scenario.has_cgroup)?;
    if scenario.has_cgroup && worker.capabilities().cgroup.is_none() {
        return Ok(None);
    }
    // What grows once has grown.
    scenario.run(&mut worker, 2 * jobs, |worker, events| Ok(worker.turn(events, None)?))?;
    let (mut in_turns, mut events_told) = (0, 0);
    let mut run = |jobs| {
        let turn = |worker: &mut Worker, events: &mut Events| {
            in_turns += allocations(|| Ok(worker.turn(events, None)?))?;
            events_told += events.iter().count();
            Ok(())
        };
        allocations(|| scenario.run(&mut worker, jobs, turn))
    };
    let (once, twice) = (run(jobs)?, run(2 * jobs)?);
    Ok(Some(((float(twice) - float(once)) / float(jobs), float(in_turns) / float(events_told))))
}

/// For what is known of a job that is logged.
fn of_status(log_dir: &Path) -> Result<f64> {
    let mut worker = load::worker(log_dir, false)?;
    let job = worker.start(Command::new("/bin/true"))?;
    worker.wait(job)?;
    let counted = allocations(|| {
        worker.query(job)?;
        Ok(())
    })?;
    Ok(float(counted))
}

/// For a line of a job that writes many: the difference between so many and twice as many.
fn of_lines(lines: usize, directory: &Path) -> Result<f64> {
    let run = |lines: usize| {
        let input = directory.join(format!("{lines}.lines"));
        fs::write(&input, format!("{}\n", "x".repeat(LINE_BYTES)).repeat(lines))?;
        let mut worker = load::worker(directory, false)?;
        let mut events = Events::new();
        let mut done = false;
        let job = worker.start(Command::new("/bin/cat").arg(&input))?;
        let counted = allocations(|| {
            while !done {
                worker.turn(&mut events, None)?;
                done = events.iter().any(|event| matches!(event, Event::Finished { .. } | Event::StartFailed { .. }));
            }
            Ok(())
        })?;
        let status = worker.query(job)?;
        worker.delete_log(job)?;
        fs::remove_file(&input)?;
        if status.output.lines == lines as u64 { Ok(float(counted)) } else { Err(format!("lines are missing: {status:?}")) }
            .map_err(crate::Error::from)
    };
    Ok((run(2 * lines)? - run(lines)?) / float(lines))
}

/// For a turn of nothing, and for one with a line of one job, both with many idle jobs.
fn of_turns(turns: usize, log_dir: &Path) -> Result<(f64, f64)> {
    let mut worker = load::worker(log_dir, false)?;
    let mut events = Events::new();
    for _ in 0..IDLE_JOBS {
        worker.start(Command::new("/bin/sleep").arg("1000").capture(Capture::Split))?;
    }
    let talker = worker.start(Command::new("/bin/cat").stdin_piped())?;
    let mut stdin = worker.take_stdin(talker)?.ok_or("the job has no stdin")?;
    let mut line = |worker: &mut Worker, events: &mut Events| -> Result<usize> {
        let lines = uncounted(|| -> Result<u64> {
            stdin.write_all(&[b'x'; LINE_BYTES])?;
            stdin.write_all(b"\n")?;
            Ok(worker.query(talker)?.output.lines)
        })?;
        let mut turns = 0;
        while uncounted(|| worker.query(talker))?.output.lines == lines {
            worker.turn(events, Some(Duration::from_secs(10)))?;
            turns += 1;
        }
        Ok(turns)
    };
    for _ in 0..turns / 20 {
        line(&mut worker, &mut events)?;
    }
    let mut ready_turns = 0;
    let ready = allocations(|| {
        for _ in 0..turns / 10 {
            ready_turns += line(&mut worker, &mut events)?;
        }
        Ok(())
    })?;
    let idle = allocations(|| (0..turns).try_for_each(|_| Ok(worker.turn(&mut events, Some(Duration::ZERO))?)))?;
    Ok((float(idle) / float(turns), float(ready) / float(ready_turns)))
}
