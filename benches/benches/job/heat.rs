//! The hosts that are played, in which the contenders run heats in turn.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use iron_exec_benches::program::LINE;
use iron_exec_benches::stage::Says;
use iron_exec_benches::{Pace, Result, host};
use nix::time::{ClockId, clock_gettime};

use crate::contender::{self, Contender, Place};
use crate::{CONDITIONS, CPU, CPU_IN_FLIGHT, IN_FLIGHT, table_id};

/// Descriptors beside those of the condition: up to five for a job, and those of the contenders.
const FDS_SPARE: usize = 3_500;

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
    host::raise_nofile(fds + FDS_SPARE)?;
    let cgroup = Some(Path::new(cgroup)).filter(|path| !path.as_os_str().is_empty());
    let mut contenders = Vec::new();
    let is_asked = |row: &&str| words.is_empty() || words.iter().any(|word| row.contains(word));
    for row in contender::ROWS.into_iter().filter(is_asked) {
        let place = Place::new(row, program, logs, cgroup)?;
        if let Some(contender) = contender::of(row, &place, IN_FLIGHT[IN_FLIGHT.len() - 1])? {
            contenders.push((row, place, contender));
        }
    }
    let open = host::open(fds)?;
    let pace = Pace::from_args();
    let millis = pace.of(2, 60, 200);
    let rounds = pace.of(1, 3, 5);
    for round in 0..=rounds {
        // The first is for everybody to get warm.
        let time = Duration::from_millis(if round == 0 { millis / 10 } else { millis });
        for in_flight in IN_FLIGHT {
            for index in 0..contenders.len() {
                // Nobody always comes after the same one.
                let at = (index + round) % contenders.len();
                let (row, place, contender) = &mut contenders[at];
                let jobs_min = if round == 0 { 1 } else { pace.of(in_flight.min(16), in_flight, 2 * in_flight) };
                let heat = Heat::new(in_flight, jobs_min, time);
                let [took, used] = run(contender.as_mut(), heat, place).map_err(|error| format!("{row}: {error}"))?;
                if round == 0 {
                    Says::Alive.say()?;
                    continue;
                }
                Says::figure(&table_id(in_flight), row, column, took).say()?;
                if in_flight == CPU_IN_FLIGHT {
                    Says::figure(CPU, row, column, used).say()?;
                }
            }
        }
    }
    drop(open);
    for (_, place, contender) in contenders {
        drop(contender);
        fs::remove_dir_all(&place.logs)?;
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
    let logs = delete_logs(&place.logs)?;
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
