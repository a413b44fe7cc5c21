//! The command-line tool as a whole program: thousands of shell commands that do nothing, run by `iron-exec batch`, beside `xargs -P` and GNU parallel.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench batch             # two to three minutes
//! cargo bench -p iron-exec-benches --bench batch -- --quick  # a fraction of it
//! ```
//!
//! Each reads the same file, a line `true` for each command, and runs each in a shell (`sh -c true`), so many at a time: two for each CPU, or 64. All take turns, several rounds.
//! The CPU time is that of the tool and of all that it has started.
//!
//! They do not do the same, and that is what is to be seen: `iron-exec` keeps apart what the commands write, in a log for each (which it deletes when the command was successful),
//! and gives each a cgroup; GNU parallel keeps their output apart, too; xargs does none of it. `iron-exec, no logs` (`--capture discard`) is what comes next to xargs. `xargs, no shell` starts
//! /bin/true itself, which is another program than a shell, and a slower one to start than some.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use iron_exec_benches::{Pace, Result, Results, Table, tool};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

const AT_A_TIME: usize = 64;
const AT_A_TIME_PER_CPU: usize = 2;

/// Of those that show what something costs.
const SOME: usize = 5;
/// Of one that takes several times as long.
const FEW: usize = 10;

/// One that runs commands.
struct Contender {
    name: &'static str,
    program: PathBuf,
    /// `{}` stands for how many at a time.
    args: &'static [&'static str],
    /// Which part of the commands it is given: one divided by this.
    part: usize,
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let pace = Pace::from_args();
    let mut results = Results::begin("batch", pace)?;
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let (rounds, commands) = pace.of((1, 50), (3, 1000), (5, 10_000));
    let mut contenders = contenders(&mut results)?;
    let columns = ["wall, 2 a CPU", "CPU, 2 a CPU", "wall, 64", "CPU, 64"];
    let mut table = Table::new("batch", "A shell command that does nothing, ms a command", &columns).reference("xargs");
    for contender in &contenders {
        table.row(contender.name);
    }
    let few_at_a_time = AT_A_TIME_PER_CPU * std::thread::available_parallelism()?.get();
    // With few at a time it takes longer: then there are fewer of them.
    let widths = [(few_at_a_time, commands / SOME, [columns[0], columns[1]]), (AT_A_TIME, commands, [columns[2], columns[3]])];
    for _ in 0..rounds {
        // Nobody is always the first, or always comes after the same one.
        contenders.rotate_left(1);
        contenders.reverse();
        for (at_a_time, commands_max, [wall, cpu]) in widths {
            for contender in &contenders {
                let commands = (commands / contender.part).min(commands_max).max(1);
                let cost = contender.run(at_a_time, commands, directory.path()).map_err(|error| format!("{}: {error}", contender.name))?;
                table.add(contender.name, wall, cost.wall.as_secs_f64() * 1e3 / float(commands));
                table.add(contender.name, cpu, cost.cpu.as_secs_f64() * 1e3 / float(commands));
            }
        }
    }
    results.tables.push(table);
    let (some, few) = (commands / SOME, commands / FEW);
    results
        .notes
        .push(format!("batch: {commands} commands a round, {some} with 2 a CPU, without logs or without a shell, {few} of parallel"));
    results.end()
}

fn contenders(results: &mut Results) -> Result<Vec<Contender>> {
    let iron_exec = tool::build()?;
    let peer = |name, program: &str, args, part| Contender { name, program: program.into(), args, part };
    let mut contenders = vec![
        Contender { name: "iron-exec", program: iron_exec.clone(), args: &["batch", "--jobs", "{}", "--log-dir", "."], part: 1 },
        Contender {
            name: "iron-exec, no logs",
            program: iron_exec,
            args: &["batch", "--jobs", "{}", "--log-dir", ".", "--capture", "discard"],
            part: SOME,
        },
    ];
    let peers = [
        // Each line takes the place of the `%`.
        (peer("xargs", "xargs", &["-P", "{}", "-I", "%", "sh", "-c", "%"], 1), "xargs (GNU findutils)"),
        (peer("xargs, no shell", "xargs", &["-P", "{}", "-n", "1", "true"], SOME), "xargs (GNU findutils)"),
        (peer("parallel", "parallel", &["--will-cite", "--jobs", "{}"], FEW), "GNU parallel"),
    ];
    for (peer, version) in peers {
        match Command::new(&peer.program).arg("--version").stdin(Stdio::null()).output() {
            Ok(said) if said.stdout.starts_with(version.as_bytes()) => contenders.push(peer),
            Ok(_) => results.notes.push(format!("{}: what is installed is not {version}", peer.name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => results.notes.push(format!("{}: not installed", peer.name)),
            Err(error) => return Err(format!("{}: {error}", peer.name).into()),
        }
    }
    Ok(contenders)
}

/// What so many commands took.
struct Cost {
    wall: Duration,
    cpu: Duration,
}

impl Contender {
    /// Runs so many commands. That ends by itself: they are in a file, and do nothing.
    fn run(&self, at_a_time: usize, commands: usize, directory: &Path) -> Result<Cost> {
        let input = directory.join("commands");
        fs::write(&input, "true\n".repeat(commands))?;
        let at_a_time = at_a_time.to_string();
        let mut command = Command::new(&self.program);
        command.args(self.args.iter().map(|arg| if *arg == "{}" { at_a_time.as_str() } else { arg }));
        // A small environment that is the same everywhere; parallel takes its shell from there.
        command.env_clear().env("PATH", "/bin:/usr/bin").env("SHELL", "/bin/sh").env("HOME", directory);
        command.current_dir(directory).stdin(File::open(&input)?).stdout(Stdio::null()).stderr(Stdio::null());
        let (began, used) = (Instant::now(), cpu_time_of_children()?);
        let status = command.status()?;
        let cost = Cost { wall: began.elapsed(), cpu: cpu_time_of_children()?.saturating_sub(used) };
        if status.success() { Ok(cost) } else { Err(format!("not every command was successful: {status}").into()) }
    }
}

/// How long all have worked that this process has waited for, and all that they have waited for.
fn cpu_time_of_children() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let micros = |time: TimeVal| Duration::from_micros((time.tv_sec() * 1_000_000 + time.tv_usec()).unsigned_abs());
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}

/// A count that is to be divided by.
#[expect(clippy::cast_precision_loss, reason = "all counts are far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}
