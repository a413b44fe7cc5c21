//! The hosts that are played, in which the contenders run heats in turn.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iron_exec_benches::program::LINE;
use iron_exec_benches::stage::Says;
use iron_exec_benches::{Error, Pace, Result, host, turns};
use nix::time::{ClockId, clock_gettime};

use crate::contender::{self, Contender, Place};
use crate::{CONDITIONS, CPU, CPU_IN_FLIGHT, SOME_FDS, fds_needed, in_flight_possible, table_id};

/// One contender's go at one cell of the table.
#[derive(Debug)]
pub(crate) struct Heat {
    in_flight: usize,
    jobs_min: usize,
    time: Duration,
    began: Instant,
    jobs: usize,
}

impl Heat {
    /// Begins now: `in_flight` jobs at a time, for `time`, and longer if these were not `jobs_min`.
    fn new(in_flight: usize, jobs_min: usize, time: Duration) -> Self {
        Self { in_flight, jobs_min, time, began: Instant::now(), jobs: 0 }
    }

    /// Whether to start one more while `running` are: it counts as started.
    pub(crate) fn starts_one(&mut self, running: usize) -> bool {
        let starts = running < self.in_flight && (self.jobs < self.jobs_min || self.began.elapsed() < self.time);
        self.jobs += usize::from(starts);
        starts
    }

    /// Of all jobs, for one, in microseconds.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn per_job(&self, time: Duration) -> f64 {
        time.as_secs_f64() * 1e6 / self.jobs.max(1) as f64
    }
}

/// Plays a host.
pub(crate) fn play(condition: &str, program: &Path, logs: &Path, cgroup: &str, words: &[&str]) -> Result<()> {
    host::end_with_parent()?;
    let (column, fds) = *CONDITIONS.iter().find(|(name, _)| *name == condition).ok_or("no such condition")?;
    let in_flight_all = in_flight_possible(fds)?;
    let in_flight_max = *in_flight_all.last().ok_or("too few descriptors can be had")?;
    host::raise_nofile(fds_needed(fds, in_flight_max))?;
    let cgroup = Some(Path::new(cgroup)).filter(|path| !path.as_os_str().is_empty());
    let is_asked = |row: &&str| words.is_empty() || words.iter().any(|word| row.contains(word));
    let wrong = |row: &str, error: Error| Says::wrong(contender::is_peer(row), format!("{row}, {column}: {error}")).say();
    let mut contenders = Vec::new();
    for row in contender::ROWS.into_iter().filter(is_asked) {
        if row == contender::HOOKED && column == SOME_FDS {
            Says::Note(format!("{row}, {column}: left out, for it takes long")).say()?;
            continue;
        }
        let place = Place::new(program, logs, cgroup)?;
        match contender::of(row, &place, in_flight_max) {
            Ok(contender) => contenders.push((row, contender, place)),
            Err(error) => wrong(row, error)?,
        }
    }
    let _open = host::open(fds)?;
    let pace = Pace::from_args();
    let millis = pace.of(2, 60, 200);
    let rounds = pace.of(1, 3, 5);
    for round in 0..=rounds {
        // The first is for everybody to get warm.
        let time = Duration::from_millis(if round == 0 { millis / 10 } else { millis });
        for &in_flight in &in_flight_all {
            for at in turns(contenders.len(), round) {
                let (row, contender, place) = &mut contenders[at];
                let Some(running) = contender else { continue };
                let jobs_min = if round == 0 { 1 } else { pace.of(in_flight.min(16), in_flight, 2 * in_flight) };
                match run(running.as_mut(), Heat::new(in_flight, jobs_min, time), place) {
                    Ok(_) if round == 0 => Says::Alive.say()?,
                    Ok([took, used]) => {
                        Says::figure(&table_id(in_flight), row, column, took).say()?;
                        if in_flight == CPU_IN_FLIGHT {
                            Says::figure(CPU, row, column, used).say()?;
                        }
                    }
                    Err(error) => {
                        wrong(row, format!("{in_flight} in flight: {error}").into())?;
                        // The others go on.
                        *contender = None;
                    }
                }
            }
        }
    }
    Ok(())
}

/// The time for a job, and how much of it the host has used its CPU; in microseconds.
fn run(contender: &mut dyn Contender, mut heat: Heat, place: &Place) -> Result<[f64; 2]> {
    let before = cpu_time()?;
    heat.began = Instant::now();
    contender.run(&mut heat)?;
    let took = heat.began.elapsed();
    let used = cpu_time()?.saturating_sub(before);
    let logs = delete_logs(place.logs.path())?;
    let figures = [heat.per_job(took), heat.per_job(used)];
    if logs == heat.jobs { Ok(figures) } else { Err(format!("of {} jobs {logs} have their line in a log", heat.jobs).into()) }
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

/// Deletes the logs of jobs, and comes back with the number of those that have their line.
fn delete_logs(directory: &Path) -> Result<usize> {
    let mut logs = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            // Time, stream and tag stand before it.
            logs += usize::from(entry.metadata()?.len() > LINE.len() as u64);
            fs::remove_file(entry.path())?;
        }
    }
    Ok(logs)
}
