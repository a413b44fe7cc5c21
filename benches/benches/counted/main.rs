//! What the library does for a job, counted instead of timed, and checked against bounds: the same on every machine, so that a change which costs more
//! fails wherever it is tried.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench counted           # some 20 seconds
//! cargo test -p iron-exec-benches --bench counted            # less of each, against the same bounds
//! cargo bench -p iron-exec-benches --bench counted -- calls  # only one of: calls, allocations, instructions (and nothing is kept for the report)
//! ```
//!
//! - **System calls of the host for a job**, by name: a host that is traced (ptrace) runs N jobs, and then twice as many; the difference is what jobs
//!   cost. Only the host's thread is traced: what a child does before its exec is not the host's time.
//! - **Allocations** for a job, an event, a line and a turn, by an allocator that counts.
//! - **Instructions for a line**, by callgrind: of the framing alone, and of the whole loop from the pipe to the log. The second needs valgrind 3.24
//!   (which knows `pidfd_open`), and is said to be missing with an older one.
//!
//! All that a job causes is made to be there before the loop looks (the bench waits until it is a zombie), so that the counts do not depend on who
//! is faster; but for the timer of the spawn slots, whose bound leaves room for that.
//!
//! The bounds, and how to change them: `bounds.rs`. What cannot be counted on a machine (no cgroups, ptrace refused, no valgrind) is said, and is a
//! failure where the environment has `CI`, unless `IRON_EXEC_MAY_MISS` names it: a list, with commas, of `calls`, `cgroup`, `valgrind` and `loop`.
//!
//! `IRON_EXEC_VALGRIND` is the valgrind to take; by default that which `.ci/capi` has unpacked, if it has, or that of the PATH.

use std::path::Path;
use std::process::ExitCode;

use iron_exec_benches::{Error, Pace, Result, Results};

mod allocations;
mod bounds;
mod calls;
mod instructions;
mod load;

/// How much is done.
#[derive(Clone, Copy, Debug)]
struct Amounts {
    /// Jobs whose system calls and allocations are counted; and then twice as many.
    jobs: usize,
    /// Lines of a job whose allocations are counted; and then twice as many.
    lines: usize,
    turns: usize,
}

const FULL: Amounts = Amounts { jobs: 320, lines: 50_000, turns: 10_000 };
const SMOKE: Amounts = Amounts { jobs: 64, lines: 10_000, turns: 1000 };

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["traced", scenario, jobs, log_dir] => calls::traced(scenario, jobs, Path::new(log_dir)).map(|()| true),
        ["frame", lines, _] => instructions::frame(lines).map(|()| true),
        ["loop", lines, log_dir] => instructions::run_loop(lines, Path::new(log_dir)).map(|()| true),
        _ => bench(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything is within its bounds.
fn bench(args: &[&str]) -> Result<bool> {
    let pace = Pace::from_args();
    // All of it takes no longer than others take for a first impression.
    let amounts = pace.of(SMOKE, FULL, FULL);
    let parts: Vec<&str> = args.iter().copied().filter(|arg| !arg.starts_with('-')).collect();
    let asked = |part| parts.is_empty() || parts.contains(&part);
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let mut report = Report { results: Results::begin("counted", pace)?, failures: 0 };
    if asked("calls") {
        calls::count(amounts, directory.path(), &mut report)?;
    }
    if asked("allocations") {
        allocations::count(amounts, directory.path(), &mut report)?;
    }
    if asked("instructions") {
        instructions::count(directory.path(), &mut report)?;
    }
    report.end()
}

/// A count that is to be divided.
#[expect(clippy::cast_precision_loss, reason = "all counts are far below 2^53")]
fn float(count: usize) -> f64 {
    count as f64
}

/// What was counted, and what does not hold.
#[derive(Debug)]
struct Report {
    results: Results,
    failures: usize,
}

impl Report {
    /// Something is not within its bounds.
    fn fail(&mut self, what: &str) {
        self.failures += 1;
        self.results.notes.push(format!("FAILED: {what}"));
    }

    /// Something cannot be counted here.
    fn miss(&mut self, what: &str, why: &str) {
        let allowed = std::env::var("IRON_EXEC_MAY_MISS").unwrap_or_default();
        let says = format!("NOT COUNTED: {what}: {why}");
        if std::env::var_os("CI").is_some() && !allowed.split(',').any(|allowed| allowed == what) {
            self.fail(&says);
        } else {
            self.results.notes.push(says);
        }
    }

    /// Whether everything is within its bounds.
    fn end(self) -> Result<bool> {
        self.results.end()?;
        match (self.failures, self.results.notes.len()) {
            (0, 0) => println!("everything is within its bounds"),
            (0, _) => println!("what was counted is within its bounds"),
            (failures, _) => println!("{failures} failures; the bounds, and how to change them: benches/benches/counted/bounds.rs"),
        }
        Ok(self.failures == 0)
    }
}
