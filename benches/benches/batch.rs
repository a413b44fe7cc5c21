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
//! and gives each a cgroup where there are any; GNU parallel keeps their output apart, too; xargs does none of it. `iron-exec, no logs` (`--capture discard`) is what comes next to xargs. `xargs, no shell` starts
//! /bin/true itself, which is another program than a shell, and a slower one to start than some.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use iron_exec::Worker;
use iron_exec_benches::{Pace, Result, Results, Table, tool, turns};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;

const AT_A_TIME: usize = 64;
const AT_A_TIME_PER_CPU: usize = 2;

/// Of those that show what something costs.
const SOME: usize = 5;
/// Of one that takes several times as long.
const FEW: usize = 10;

/// Lines of stderr that are shown of one that fails.
const COMPLAINTS_MAX: usize = 10;

/// One that runs commands.
struct Contender {
    name: &'static str,
    program: PathBuf,
    /// `{}` stands for how many at a time.
    args: &'static [&'static str],
    /// Which part of the commands it is given: one divided by this.
    part: usize,
    has_failed: bool,
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
    for round in 0..rounds {
        for (at_a_time, commands_max, [wall, cpu]) in widths {
            for turn in turns(contenders.len(), round) {
                let contender = &mut contenders[turn];
                if contender.has_failed {
                    continue;
                }
                let commands = (commands / contender.part).min(commands_max).max(1);
                match contender.run(at_a_time, commands, directory.path()) {
                    Ok(cost) => {
                        table.add(contender.name, wall, cost.wall.as_secs_f64() * 1e3 / float(commands));
                        table.add(contender.name, cpu, cost.cpu.as_secs_f64() * 1e3 / float(commands));
                    }
                    Err(error) => {
                        contender.has_failed = true;
                        let what = format!("{}, {at_a_time} at a time: {error}", contender.name);
                        if contender.is_ours() { results.fail(what) } else { results.note(what) }
                    }
                }
            }
        }
    }
    results.tables.push(table);
    let (some, few) = (commands / SOME, commands / FEW);
    results.note(format!("{commands} commands a round; {some} with 2 a CPU, without logs or without a shell"));
    results.note(format!(
        "parallel runs {few} commands, for it takes several times as long; its start-up is in its figures, shared by so few"
    ));
    if let Some(why) = &Worker::builder().log_dir(directory.path()).build()?.capabilities().cgroup_missing {
        results.note(format!("the commands of iron-exec had no cgroups: {why}"));
    }
    results.end()
}

fn contenders(results: &mut Results) -> Result<Vec<Contender>> {
    let iron_exec = tool::build()?;
    let contender = |name, program: &Path, args, part| Contender { name, program: program.to_owned(), args, part, has_failed: false };
    let mut contenders = vec![
        contender("iron-exec", &iron_exec, &["batch", "--jobs", "{}", "--log-dir", "."], 1),
        contender("iron-exec, no logs", &iron_exec, &["batch", "--jobs", "{}", "--log-dir", ".", "--capture", "discard"], SOME),
    ];
    let peer = |name, program: &str, args, part| contender(name, program.as_ref(), args, part);
    let peers = [
        // Each line takes the place of the `%`.
        (peer("xargs", "xargs", &["-P", "{}", "-I", "%", "sh", "-c", "%"], 1), "xargs (GNU findutils)"),
        (peer("xargs, no shell", "xargs", &["-P", "{}", "-n", "1", "true"], SOME), "xargs (GNU findutils)"),
        (peer("parallel", "parallel", &["--will-cite", "--jobs", "{}"], FEW), "GNU parallel"),
    ];
    for (peer, version) in peers {
        match Command::new(&peer.program).arg("--version").stdin(Stdio::null()).output() {
            Ok(said) if said.stdout.starts_with(version.as_bytes()) => {
                results.note(String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default());
                contenders.push(peer);
            }
            Ok(_) => results.note(format!("{}: what is installed is not {version}", peer.name)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => results.note(format!("{}: not installed", peer.name)),
            Err(error) => results.note(format!("{}: {error}", peer.name)),
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
    /// Whether it is one that must not fail.
    fn is_ours(&self) -> bool {
        self.name.starts_with("iron-exec")
    }

    /// Runs so many commands. That ends by itself: they are in a file, and do nothing.
    fn run(&self, at_a_time: usize, commands: usize, directory: &Path) -> Result<Cost> {
        let [input, complaints] = ["commands", "stderr"].map(|name| directory.join(name));
        fs::write(&input, "true\n".repeat(commands))?;
        let at_a_time = at_a_time.to_string();
        let mut command = Command::new(&self.program);
        command.args(self.args.iter().map(|arg| if *arg == "{}" { at_a_time.as_str() } else { arg }));
        // A small environment that is the same everywhere; parallel takes its shell from there.
        command.env_clear().env("PATH", "/bin:/usr/bin").env("SHELL", "/bin/sh").env("HOME", directory);
        command.current_dir(directory).stdin(File::open(&input)?).stdout(Stdio::null()).stderr(File::create(&complaints)?);
        let (began, used) = (Instant::now(), cpu_time_of_children()?);
        let status = command.status()?;
        let cost = Cost { wall: began.elapsed(), cpu: cpu_time_of_children()?.saturating_sub(used) };
        if status.success() {
            return Ok(cost);
        }
        let complaints = fs::read(&complaints)?;
        let complaints = String::from_utf8_lossy(&complaints);
        let complaints: Vec<&str> = complaints.lines().take(COMPLAINTS_MAX).collect();
        Err(format!("not every command was successful: {status}: {}", complaints.join("; ")).into())
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
