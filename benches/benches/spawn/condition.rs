//! The hosts that are played, each by a process of its own, so that the memory and the descriptors of one do not burden another.

use std::fs::File;
use std::hint::black_box;
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::contender::{self, Contender, Heat, Result};
use crate::report::Record;

/// How many programs run at a time.
pub(crate) const IN_FLIGHT: [usize; 2] = [64, 1];

/// What a small host has.
const MEMORY_BYTES: usize = 8 << 20;
/// The smallest page of both machines.
const PAGE_BYTES: usize = 4096;
/// Descriptors beside those of the condition: of the programs in flight, and of the contenders.
const FDS_SPARE: usize = 1000;

/// What is special about a host.
pub(crate) struct Condition {
    /// What the column is called.
    pub(crate) name: &'static str,
    pub(crate) memory_bytes: usize,
    /// Descriptors that are opened before the contenders are built, and after.
    pub(crate) fds: (usize, usize),
    /// Whether others use all CPUs meanwhile.
    pub(crate) is_busy: bool,
}

/// The columns.
pub(crate) const CONDITIONS: [Condition; 7] = {
    const PLAIN: Condition = Condition { name: "plain", memory_bytes: MEMORY_BYTES, fds: (0, 0), is_busy: false };
    [
        PLAIN,
        Condition { name: "busy", is_busy: true, ..PLAIN },
        Condition { name: "1 GiB", memory_bytes: 1 << 30, ..PLAIN },
        Condition { name: "5k fds", fds: (5_000, 0), ..PLAIN },
        Condition { name: "5k fds later", fds: (0, 5_000), ..PLAIN },
        Condition { name: "15k fds", fds: (15_000, 0), ..PLAIN },
        Condition { name: "15k fds later", fds: (0, 15_000), ..PLAIN },
    ]
};

/// How long everything takes.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    pub(crate) rounds: usize,
    /// Of one contender in one cell and round.
    pub(crate) heat: Duration,
    pub(crate) spawns_min: u32,
}

/// Plays the host, and writes what it finds, or why there is nothing to be found, to stdout.
pub(crate) fn play(condition: &Condition, pace: Pace, program: &Path, log_dir: &Path) -> io::Result<()> {
    match compare(condition, pace, program, log_dir) {
        Ok(()) => Ok(()),
        Err(error) => print(&Record::Missing { who: "all".to_owned(), reason: error.to_string() }),
    }
}

/// The contenders run in turn, round after round.
fn compare(condition: &Condition, pace: Pace, program: &Path, log_dir: &Path) -> Result<()> {
    raise_nofile(condition)?;
    // Page tables are what a fork copies: huge pages would hide it.
    prctl::set_thp_disable(true)?;
    let memory = touched(condition.memory_bytes);
    let fds_before = open(condition.fds.0)?;
    let mut rows = Vec::new();
    for (name, contender) in contender::all(program, log_dir) {
        print(&Record::Row { contender: name.clone() })?;
        match contender {
            Ok(contender) => rows.push(Row::new(name, contender)),
            Err(error) => print(&Record::Missing { who: name, reason: error.to_string() })?,
        }
    }
    let fds_after = open(condition.fds.1)?;
    let warm_up = Pace { rounds: 1, heat: pace.heat / 20, spawns_min: 1 };
    run(&mut rows, warm_up)?;
    for row in &mut rows {
        row.cells = Default::default();
    }
    run(&mut rows, pace)?;
    for row in rows {
        row.tell()?;
    }
    drop((black_box(memory), fds_before, fds_after));
    Ok(())
}

fn run(rows: &mut [Row], pace: Pace) -> Result<()> {
    for round in 0..pace.rounds {
        // Nobody always comes after the same one.
        let middle = round % rows.len().max(1);
        let (last, first) = rows.split_at_mut(middle);
        for row in first.iter_mut().chain(last) {
            row.run(pace)?;
        }
    }
    Ok(())
}

/// A contender, and what was measured.
struct Row {
    name: String,
    /// `None` once it has failed.
    contender: Option<Box<dyn Contender>>,
    cells: [Cell; IN_FLIGHT.len()],
}

#[derive(Default)]
struct Cell {
    /// The time for one program, of each round.
    times: Vec<Duration>,
    /// Every start's, of all rounds.
    stalls: Vec<Duration>,
}

impl Row {
    fn new(name: String, contender: Box<dyn Contender>) -> Self {
        Self { name, contender: Some(contender), cells: Default::default() }
    }

    /// One round.
    fn run(&mut self, pace: Pace) -> Result<()> {
        for (cell, in_flight) in self.cells.iter_mut().zip(IN_FLIGHT) {
            let Some(contender) = &mut self.contender else { return Ok(()) };
            let mut heat = Heat::new(in_flight, pace.spawns_min, pace.heat, &mut cell.stalls);
            match contender.run(&mut heat) {
                Ok(()) => cell.times.push(heat.time_per_spawn()),
                Err(error) => {
                    self.contender = None;
                    print(&Record::Missing { who: self.name.clone(), reason: error.to_string() })?;
                }
            }
            print(&Record::Alive)?;
        }
        Ok(())
    }

    fn tell(mut self) -> Result<()> {
        if self.contender.is_none() {
            return Ok(());
        }
        for (cell, in_flight) in self.cells.iter_mut().zip(IN_FLIGHT) {
            for time in &cell.times {
                print(&Record::Time { contender: self.name.clone(), in_flight, time: *time })?;
            }
            cell.stalls.sort_unstable();
            if let Some(max) = cell.stalls.last().copied() {
                let rank = |percent| cell.stalls[cell.stalls.len() * percent / 100];
                let ranks = [rank(50), rank(99), max];
                print(&Record::Stall { contender: self.name.clone(), in_flight, ranks })?;
            }
        }
        Ok(())
    }
}

fn print(record: &Record) -> io::Result<()> {
    writeln!(io::stdout(), "{record}")
}

fn raise_nofile(condition: &Condition) -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let needed = (condition.fds.0 + condition.fds.1 + FDS_SPARE) as u64;
    if hard < needed {
        return Err(format!("the hard limit of open files is {hard}, {needed} are needed").into());
    }
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// Memory of which every page is there.
fn touched(bytes: usize) -> Vec<u8> {
    let mut memory = vec![0; bytes];
    for at in (0..bytes).step_by(PAGE_BYTES) {
        memory[at] = 1;
    }
    black_box(memory)
}

fn open(fds: usize) -> io::Result<Vec<File>> {
    if fds == 0 {
        return Ok(Vec::new());
    }
    let null = File::open("/dev/null")?;
    (0..fds).map(|_| null.try_clone()).collect()
}
