//! The hosts that are played, each by a process of its own, so that the memory and the descriptors of one do not burden another.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use iron_exec_benches::stage::Says;
use iron_exec_benches::{Pace, Result, host, results, turns};

use crate::contender::{self, Heat, Setting};
use crate::{SPAWN, STALL, STALL_RANKS, TRUE};

/// How many programs run at a time.
pub(crate) const IN_FLIGHT: [usize; 2] = [64, 1];
/// Where stalls are measured, the host sleeps for so long before each start. One that never sleeps has used up its share of a busy CPU, and would be
/// held up by the scheduler wherever it is.
const STALL_PAUSE: Duration = Duration::from_micros(200);

/// What a small host has.
const MEMORY_BYTES: usize = 8 << 20;
/// What the machine has to have beside the memory of a large host.
const MEMORY_SPARE_BYTES: usize = 1 << 30;
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
    pub(crate) fn missing(&self, pace: Pace) -> Option<String> {
        if self.memory_bytes > pace.of(MEMORY_BYTES, 1 << 30, usize::MAX) {
            return Some("not at this pace".to_owned());
        }
        let spare = if self.memory_bytes > MEMORY_BYTES { MEMORY_SPARE_BYTES } else { 0 };
        let can_be_had = host::nofile_max(self.fds_max()).and_then(|_| host::can_touch(self.memory_bytes + spare));
        can_be_had.err().map(|error| error.to_string())
    }

    fn fds_max(&self) -> usize {
        self.fds.0 + self.fds.1 + FDS_SPARE
    }

    /// The table and the column of the programs of this host, at `IN_FLIGHT[index]` in flight.
    fn cell(&self, index: usize) -> (&'static str, String) {
        match self.program {
            Some(_) => (TRUE, crate::column(IN_FLIGHT[index])),
            None => (SPAWN[index], self.name.to_owned()),
        }
    }

    /// The column of the stalls of that rank.
    pub(crate) fn stall_column(&self, rank: &str) -> String {
        format!("{} {rank}", self.name)
    }
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

/// Plays the host: the contenders run in turn, round after round, and it says what it finds. Who has failed once has no turn any more.
pub(crate) fn play(condition: &Condition, pace: Pace, program: &Path, log_dir: &Path) -> Result<()> {
    let program = condition.program.map_or(program.to_owned(), PathBuf::from);
    let setting = Setting { program, log_dir: log_dir.to_owned(), in_flight: 0 };
    let heats = Heats::of(pace);
    host::raise_nofile(condition.fds_max())?;
    let _memory = host::touched(condition.memory_bytes)?;
    // One more, in the place of the file that the others were copied from: no low number is left for whoever comes after.
    let _fds = (host::open(condition.fds.0)?, File::open("/dev/null")?);
    let mut rows = contender::ROWS.to_vec();
    for round in 0..heats.rounds {
        let mut failed = Vec::new();
        for index in turns(rows.len(), round) {
            let (row, build) = rows[index];
            if let Err(error) = turn(condition, &heats, &setting, row, build) {
                failed.push(row);
                let what = format!("{}, {row}: {error}", condition.name);
                if contender::is_peer(row) { Says::Note(what) } else { Says::Failure(what) }.say()?;
            }
        }
        rows.retain(|(row, _)| !failed.contains(row));
    }
    Ok(())
}

/// One contender's turn in one round. It is built for each heat and is gone afterwards: what it keeps open is in nobody else's way.
fn turn(condition: &Condition, heats: &Heats, setting: &Setting, row: &str, build: contender::Build) -> Result<()> {
    let run = |heat: Heat| {
        let mut contender = build(&Setting { in_flight: heat.in_flight(), ..setting.clone() })?;
        let _fds = host::open(condition.fds.1)?;
        Heat::new(heat.in_flight(), 1, heats.time / 10).run(contender.as_mut())?;
        heat.run(contender.as_mut())
    };
    for (index, in_flight) in IN_FLIGHT.into_iter().enumerate() {
        let heat = run(Heat::new(in_flight, heats.spawns_min, heats.time))?;
        let (table, column) = condition.cell(index);
        Says::figure(table, row, &column, micros(heat.time_per_spawn())).say()?;
    }
    if condition.has_stalls {
        let heat = run(Heat::new(IN_FLIGHT[0], heats.spawns_min, heats.stall_time).pausing(STALL_PAUSE))?;
        let stalls: Vec<f64> = heat.stalls().iter().map(|stall| micros(*stall)).collect();
        for (rank, percent) in STALL_RANKS {
            let stall = results::percentile(&stalls, percent).ok_or("nothing was started")?;
            Says::figure(STALL, row, &condition.stall_column(rank), stall).say()?;
        }
    }
    Ok(())
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
