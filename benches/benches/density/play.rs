//! The hosts that are played.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use iron_exec_benches::results::median;
use iron_exec_benches::stage::Says;
use iron_exec_benches::{Pace, Result, host};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::{ClockId, clock_gettime};

use crate::iron::IronExec;
use crate::peer::Tokio;
use crate::{END, FULL, IDLE, IDLE_COLUMNS, LOGGED, MEMORY, NOFILE, PEER_LOGGED, PEER_SILENT, SILENT, START, TURN};

/// How many jobs have a line at a time.
pub(crate) const READY: [usize; 2] = [1, 32];
/// Started before anything is measured, so that what is there once for all jobs is there. If there are to be more, they stay and are of them.
pub(crate) const FIRST_JOBS: usize = 100;
/// After this nothing is left to do of what was started.
const SETTLE_TIME: Duration = Duration::from_millis(100);
/// For jobs that were told to talk to have done so, and for their pipes to count as silent before.
const TALK_TIME: Duration = Duration::from_millis(4);

/// Where a contender works.
pub(crate) struct Place {
    pub(crate) program: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) cgroup: PathBuf,
}

/// One way to have idle jobs.
pub(crate) trait Contender {
    /// Starts so many, and comes back when all are executed.
    fn start(&mut self, jobs: usize) -> Result<()>;
    /// Lets its loop wait for so long. Nothing happens.
    fn idle(&mut self, time: Duration) -> Result<()>;
    /// Kills all, and comes back when they are reaped and nothing is left of them.
    fn end(&mut self) -> Result<()>;
    /// Lets so many jobs of another kind write a line each, and then takes the time until it is in their logs; `None` if there are none of that kind.
    fn talk(&mut self, jobs: usize, talk_time: Duration) -> Result<Option<Duration>>;
}

/// The row for so many.
pub(crate) fn turn_row(ready: usize) -> String {
    format!("{ready} ready")
}

/// Plays a host: one contender, and so many jobs.
pub(crate) fn play(row: &str, column: &str, jobs: &str, program: &Path, logs: &Path, cgroup: &str) -> Result<()> {
    host::end_with_parent()?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(NOFILE), hard)?;
    let jobs: usize = jobs.parse()?;
    let logs = tempfile::tempdir_in(logs)?;
    if let Err(error) = build(row, program, logs.path(), cgroup).and_then(|mut contender| measure(contender.as_mut(), row, column, jobs)) {
        Says::wrong(matches!(row, PEER_LOGGED | PEER_SILENT), format!("{row}, {column}: {error}")).say()?;
    }
    Ok(logs.close()?)
}

fn build(row: &str, program: &Path, logs: &Path, cgroup: &str) -> Result<Box<dyn Contender>> {
    let place = Place { program: program.to_owned(), logs: logs.to_owned(), cgroup: cgroup.into() };
    Ok(match row {
        FULL | LOGGED | SILENT => Box::new(IronExec::new(&place, row == FULL, row != SILENT)?),
        PEER_LOGGED | PEER_SILENT => Box::new(Tokio::new(place, row == PEER_LOGGED)?),
        _ => return Err("no such row".into()),
    })
}

fn measure(contender: &mut dyn Contender, row: &str, column: &str, jobs: usize) -> Result<()> {
    let pace = Pace::from_args();
    contender.start(FIRST_JOBS)?;
    let first = if jobs > FIRST_JOBS { FIRST_JOBS } else { 0 };
    if first == 0 {
        contender.end()?;
    }
    let before = own_memory()?;
    let began = Instant::now();
    contender.start(jobs - first)?;
    let time = began.elapsed();
    let after = own_memory()?;
    if jobs > 0 {
        Says::figure(START, row, column, micros(time) / float(jobs - first)).say()?;
    }
    // Jobs that have ended have left memory, which others would take: it is measured only where none have.
    if first > 0 {
        Says::figure(MEMORY, row, column, (after - before) / float(jobs - first)).say()?;
    }
    if IDLE_COLUMNS.contains(&column) {
        // The longer, the less counts how it begins and ends.
        let idle_time = Duration::from_millis(pace.of(20, 500, 1000));
        // What is left to do of the starts is done.
        contender.idle(SETTLE_TIME)?;
        let before = cpu_time()?;
        contender.idle(idle_time)?;
        let used = cpu_time()?.saturating_sub(before);
        Says::figure(IDLE, row, column, micros(used) / idle_time.as_secs_f64()).say()?;
    }
    if row == LOGGED {
        turns(contender, column, pace.of(3, 15, 40))?;
    }
    if jobs > 0 {
        let began = Instant::now();
        contender.end()?;
        Says::figure(END, row, column, micros(began.elapsed()) / float(jobs)).say()?;
    }
    Ok(())
}

/// The median of so many turns.
fn turns(contender: &mut dyn Contender, column: &str, turns: usize) -> Result<()> {
    for ready in READY {
        let mut times = Vec::new();
        // What the first ones find cold is not counted.
        for index in 0..turns + turns / 5 {
            let Some(time) = contender.talk(ready, TALK_TIME)? else { return Ok(()) };
            if index >= turns / 5 {
                times.push(micros(time));
            }
        }
        if let Some(time) = median(&times) {
            Says::figure(TURN, &turn_row(ready), column, time).say()?;
        }
    }
    Ok(())
}

/// Bytes of memory that are this process's and no file's.
fn own_memory() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("the kernel does not tell RssAnon")?;
    let kibibytes: u32 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(f64::from(kibibytes) * 1024.0)
}

fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}
