//! What it saves to let the output of a job that writes in small pieces gather in its pipe for a moment
//! ([`Builder::coalesce_time`](iron_exec::Builder::coalesce_time)), and what it costs one that does not.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench coalesce             # about a minute
//! cargo bench -p iron-exec-benches --bench coalesce -- --quick  # a tenth of it
//! ```
//!
//! Each job is one way to write; 0 (nothing gathers) and 1 ms (the default) take turns, several rounds, and every figure is a median of the rounds.
//! The CPU time is that of the host's thread. It is the ratios that count; absolute figures move from machine to machine.
//!
//! The logs are kept in memory, where there is room for them: what a disk costs is the same either way.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use iron_exec::{CgroupBase, Command, Worker};
use iron_exec_benches::{Pace, Result, Results, Table, disk, turns};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

/// The times that are compared, by the names of their rows.
const COALESCE_TIMES: [(&str, Duration); 2] =
    [("iron-exec, gathering for 0", Duration::ZERO), ("iron-exec, gathering for 1 ms", Duration::from_millis(1))];

const LINE_BYTES: usize = 80;

/// A way to write.
struct Way {
    name: &'static str,
    /// Bytes of one write.
    bytes: usize,
    writes: u64,
    /// From one write to the next, in microseconds.
    gap: u64,
}

const WAYS: [Way; 5] = [
    Way { name: "1 byte a write", bytes: 1, writes: 300_000, gap: 0 },
    Way { name: "80 bytes a write, a line", bytes: LINE_BYTES, writes: 300_000, gap: 0 },
    Way { name: "4096 bytes a write", bytes: 4096, writes: 100_000, gap: 0 },
    Way { name: "65,536 bytes a write", bytes: 65_536, writes: 10_000, gap: 0 },
    Way { name: "a line every 20 µs", bytes: LINE_BYTES, writes: 30_000, gap: 20 },
];

impl Way {
    /// How often it is done if only a part of it is.
    fn writes(&self, part: u64) -> u64 {
        (self.writes / part).max(1)
    }

    fn output_bytes(&self, part: u64) -> u64 {
        self.bytes as u64 * self.writes(part)
    }
}

/// What one job took.
#[derive(Clone, Copy)]
struct Cost {
    cpu: Duration,
    wall: Duration,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["write", bytes, writes, gap] => write(bytes, writes, gap),
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

fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let mut results = Results::begin("coalesce", pace)?;
    // The part of the writes that is made.
    let (rounds, part) = pace.of((1, 1000), (3, 6), (5, 1));
    let largest = WAYS.iter().map(|way| way.output_bytes(part)).max().unwrap_or_default();
    // A record is less than twice as long as its line.
    let (directory, file_system) = disk::memory(2 * largest)?;
    results.note(format!("The logs are on {file_system}."));
    let columns = WAYS.each_ref().map(|way| way.name);
    let table = |id, what| Table::new(id, format!("{what} of a job that writes so, ms"), &columns).reference(COALESCE_TIMES[0].0);
    let mut cpu = table("coalesce-cpu", "CPU time of the host");
    let mut wall = table("coalesce-wall", "Time from start to end");
    for round in 0..rounds {
        for way in &WAYS {
            for turn in turns(COALESCE_TIMES.len(), round) {
                let (row, time) = COALESCE_TIMES[turn];
                match run(way, part, time, directory.path()) {
                    Ok(cost) => {
                        cpu.add(row, way.name, millis(cost.cpu));
                        wall.add(row, way.name, millis(cost.wall));
                    }
                    Err(error) => results.fail(format!("{row}, {}: {error}", way.name)),
                }
            }
        }
    }
    results.tables.extend([cpu, wall]);
    results.end()
}

/// Runs one job that writes this way, with a worker of its own.
fn run(way: &Way, part: u64, coalesce_time: Duration, log_dir: &Path) -> Result<Cost> {
    let mut worker = Worker::builder().log_dir(log_dir).cgroup_base(CgroupBase::Off).coalesce_time(coalesce_time).build()?;
    let command = Command::new(std::env::current_exe()?).arg("write");
    let command = command.args([way.bytes.to_string(), way.writes(part).to_string(), way.gap.to_string()]);
    let (began, worked) = (Instant::now(), cpu_time()?);
    let job = worker.start(command)?;
    let status = worker.wait(job)?;
    let cost = Cost { cpu: cpu_time()?.saturating_sub(worked), wall: began.elapsed() };
    worker.delete_log(job)?;
    let output = &status.output;
    if !status.success() || output.stdout_bytes != way.output_bytes(part) || output.discarded_bytes > 0 {
        return Err(format!("not all of the output is in the log: {status:?}").into());
    }
    Ok(cost)
}

/// The job: so many bytes a write, so many writes, so many microseconds from one to the next.
fn write(bytes: &str, writes: &str, gap: &str) -> Result<()> {
    let (bytes, writes, gap) = (bytes.parse::<usize>()?, writes.parse::<u64>()?, Duration::from_micros(gap.parse()?));
    let mut block: Vec<u8> = (1..=bytes).map(|at| if at.is_multiple_of(LINE_BYTES) || at == bytes { b'\n' } else { b'x' }).collect();
    if bytes == 1 {
        block[0] = b'x';
    }
    // Each write is one write(2).
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    for _ in 0..writes {
        let began = Instant::now();
        stdout.write_all(&block)?;
        while began.elapsed() < gap {
            std::hint::spin_loop();
        }
    }
    Ok(())
}

/// How long this thread has worked.
fn cpu_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = |time: TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs());
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
