//! The hosts that are played, each by a process of its own, so that the memory and the descriptors of one do not burden another.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use iron_exec_benches::{Error, Pace, Result, host, results};
use serde::{Deserialize, Serialize};

use crate::contender::{self, Heat, Setting};

/// How many programs run at a time.
pub(crate) const IN_FLIGHT: [usize; 2] = [64, 1];
/// Where stalls are measured, the host sleeps for so long before each start. One that never sleeps has used up its share of a busy CPU, and would be
/// held up by the scheduler wherever it is.
const STALL_PAUSE: Duration = Duration::from_micros(200);

/// What a small host has.
const MEMORY_BYTES: usize = 8 << 20;
/// What the machine has to have beside the memory of a large host.
const MEMORY_SPARE_BYTES: u64 = 2 << 30;
/// Descriptors beside those of the condition: of the programs in flight, and of a contender.
const FDS_SPARE: usize = 1000;

/// What is special about a host.
pub(crate) struct Condition {
    /// What the column is called.
    pub(crate) name: &'static str,
    pub(crate) memory_bytes: usize,
    /// Descriptors that are opened before a contender is built, and after.
    fds: (usize, usize),
    /// Whether others use all CPUs meanwhile.
    pub(crate) is_busy: bool,
    /// Whether it is told how long starts take.
    pub(crate) has_stalls: bool,
    /// What is started instead of the tiny program.
    pub(crate) program: Option<&'static str>,
}

const PLAIN: Condition =
    Condition { name: "plain", memory_bytes: MEMORY_BYTES, fds: (0, 0), is_busy: false, has_stalls: false, program: None };

/// The columns.
pub(crate) const CONDITIONS: [Condition; 9] = [
    Condition { has_stalls: true, ..PLAIN },
    Condition { name: "busy", is_busy: true, has_stalls: true, ..PLAIN },
    Condition { name: "1 GiB", memory_bytes: 1 << 30, ..PLAIN },
    Condition { name: "4 GiB", memory_bytes: 4 << 30, ..PLAIN },
    Condition { name: "5k fds", fds: (5_000, 0), ..PLAIN },
    Condition { name: "5k fds later", fds: (0, 5_000), ..PLAIN },
    Condition { name: "15k fds", fds: (15_000, 0), ..PLAIN },
    Condition { name: "15k fds later", fds: (0, 15_000), ..PLAIN },
    Condition { name: "true", program: Some("/bin/true"), ..PLAIN },
];

impl Condition {
    /// Why there is no such host here and at this pace, if so.
    pub(crate) fn missing(&self, pace: Pace) -> Result<Option<String>> {
        if self.memory_bytes <= 1 << 30 {
            return Ok(None);
        }
        if pace != Pace::Full {
            return Ok(Some("only in the whole benchmark".to_owned()));
        }
        let available = available_bytes()?;
        let is_enough = available >= self.memory_bytes as u64 + MEMORY_SPARE_BYTES;
        Ok((!is_enough).then(|| format!("{} MiB of memory are available, that is too little", available >> 20)))
    }
}

fn available_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).ok_or("/proc/meminfo does not say what is available")?;
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes << 10)
}

/// One line of what a host tells.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) enum Record {
    /// µs for one program, in one heat.
    Spawn { row: String, in_flight: usize, time: f64 },
    /// µs inside a start, in one heat: the median, the 99th percentile and the maximum.
    Stall { row: String, ranks: [f64; 3] },
    /// A contender, or all of them, cannot be had.
    Missing { row: String, reason: String },
}

/// How long everything takes.
struct Heats {
    rounds: usize,
    /// Of one contender in one cell and round.
    time: Duration,
    spawns_min: u32,
    /// Of one whose stalls are measured.
    stall_time: Duration,
}

impl Heats {
    fn of(pace: Pace) -> Self {
        let (rounds, millis, stall_millis, spawns_min) = pace.of((1, 2, 2, 1), (3, 50, 200, 4), (5, 100, 400, 4));
        let [time, stall_time] = [millis, stall_millis].map(Duration::from_millis);
        Self { rounds, time, spawns_min, stall_time }
    }
}

/// Plays the host, and writes what it finds, or why there is nothing to be found, to stdout.
pub(crate) fn play(condition: &Condition, pace: Pace, program: &Path, log_dir: &Path) -> Result<()> {
    let program = condition.program.map_or(program.to_owned(), PathBuf::from);
    let setting = Setting { program, log_dir: log_dir.to_owned(), in_flight: 0 };
    match compare(condition, &Heats::of(pace), &setting) {
        Ok(()) => Ok(()),
        Err(error) => Ok(print(&Record::Missing { row: "all".to_owned(), reason: error.to_string() })?),
    }
}

/// The contenders run in turn, round after round.
fn compare(condition: &Condition, heats: &Heats, setting: &Setting) -> Result<()> {
    host::raise_nofile(condition.fds.0 + condition.fds.1 + FDS_SPARE)?;
    let _memory = host::touched(condition.memory_bytes)?;
    // One more, in the place of the file that the others were copied from: no low number is left for whoever comes after.
    let _fds = (host::open(condition.fds.0)?, File::open("/dev/null")?);
    let mut rows = contender::ROWS.to_vec();
    for round in 0..heats.rounds {
        // Nobody always comes after the same one.
        let first = round % rows.len().max(1);
        rows.rotate_left(first);
        let mut missing = Vec::new();
        for &(row, build) in &rows {
            if let Err(error) = turn(condition, heats, setting, row, build) {
                missing.push(row);
                print(&Record::Missing { row: row.to_owned(), reason: error.to_string() })?;
            }
        }
        rows.retain(|(row, _)| !missing.contains(row));
    }
    Ok(())
}

/// One contender's turn in one round. It is built for each heat and is gone afterwards: what it keeps open is in nobody else's way.
fn turn(condition: &Condition, heats: &Heats, setting: &Setting, row: &str, build: contender::Build) -> Result<()> {
    let run = |mut heat: Heat| {
        let mut contender = build(&Setting { in_flight: heat.in_flight(), ..setting.clone() })?;
        let _fds = host::open(condition.fds.1)?;
        contender.run(&mut Heat::new(heat.in_flight(), 1, heats.time / 10))?;
        heat.begin();
        contender.run(&mut heat)?;
        Ok::<_, Error>(heat)
    };
    for in_flight in IN_FLIGHT {
        let heat = run(Heat::new(in_flight, heats.spawns_min, heats.time))?;
        print(&Record::Spawn { row: row.to_owned(), in_flight, time: micros(heat.time_per_spawn()) })?;
    }
    if condition.has_stalls {
        let heat = run(Heat::new(IN_FLIGHT[0], heats.spawns_min, heats.stall_time).pausing(STALL_PAUSE))?;
        let stalls: Vec<f64> = heat.stalls().iter().map(|stall| micros(*stall)).collect();
        let ranks = [50, 99, 100].map(|percent| results::percentile(&stalls, percent).unwrap_or_default());
        print(&Record::Stall { row: row.to_owned(), ranks })?;
    }
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn print(record: &Record) -> io::Result<()> {
    writeln!(io::stdout(), "{}", serde_json::to_string(record)?)
}
