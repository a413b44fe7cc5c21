//! Runs all benchmarks, one after the other, and writes what they found into `benches/RESULTS.md` and `benches/plots`.
//!
//! ```sh
//! cargo run --release -p iron-exec-benches --bin suite                   # everything
//! cargo run --release -p iron-exec-benches --bin suite -- spawn latency  # only these
//! cargo run --release -p iron-exec-benches --bin suite -- --quick        # a first impression, printed only
//! cargo run --release -p iron-exec-benches --bin suite -- --render       # only writes the report, of what was kept
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;
use clap::builder::PossibleValuesParser;
use iron_exec_benches::{Result, Results, results};

mod draw;
mod markdown;
mod plots;
mod report;

const PACKAGE: &str = "iron-exec-benches";

/// The benchmarks, in the order in which they run and are reported.
const BENCHES: [&str; 10] = ["spawn", "job", "logs", "fanin", "density", "latency", "framing", "counted", "coalesce", "batch"];

/// Runs the benchmarks of iron-exec, and writes what they found into benches/RESULTS.md and benches/plots.
#[derive(Debug, Parser)]
#[command(name = "suite")]
struct Args {
    /// The benchmarks to run; all by default.
    #[arg(value_name = "BENCH", value_parser = PossibleValuesParser::new(BENCHES))]
    benches: Vec<String>,
    /// A first impression: less of everything, printed only, and no report.
    #[arg(long)]
    quick: bool,
    /// Runs nothing, and writes the report of what the last runs have kept.
    #[arg(long, conflicts_with_all = ["benches", "quick"])]
    render: bool,
    /// Where RESULTS.md and plots/ are written.
    #[arg(long, value_name = "DIRECTORY", default_value = env!("CARGO_MANIFEST_DIR"), hide_default_value = true)]
    into: PathBuf,
}

fn main() -> ExitCode {
    match suite(&Args::parse()) {
        Ok(failed) if failed.is_empty() => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("suite: failed: {}", failed.join(", "));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("suite: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The benchmarks that have failed.
fn suite(args: &Args) -> Result<Vec<&str>> {
    let chosen: Vec<&str> =
        BENCHES.into_iter().filter(|bench| args.benches.is_empty() || args.benches.iter().any(|name| name == bench)).collect();
    // A quick run is not to replace what a full one has kept.
    let quick = tempfile::tempdir()?;
    let kept = if args.quick { quick.path().to_owned() } else { kept() };
    let failed = if args.render { Vec::new() } else { run(&chosen, args.quick, &kept)? };
    let found = load(&kept)?;
    if !args.quick {
        for warning in report::write(&args.into.join("RESULTS.md"), &found)?.iter().chain(&plots::write(&args.into.join("plots"), &found)?)
        {
            eprintln!("suite: {warning}");
        }
    }
    for results in found.iter().filter(|results| args.render || chosen.contains(&results.bench.as_str())) {
        for goal in &results.goals {
            println!("{}: {}", results.bench, goal.text());
        }
    }
    Ok(failed)
}

/// Where the benchmarks keep what they found.
fn kept() -> PathBuf {
    std::env::var_os("IRON_EXEC_BENCH_RESULTS").map_or_else(results::directory, PathBuf::from)
}

fn load(kept: &Path) -> Result<Vec<Results>> {
    BENCHES.iter().filter_map(|bench| Results::load(kept, bench).transpose()).collect()
}

/// Runs them one after the other; those that have failed. All are built before the first is run, so that no compiler runs beside it.
fn run<'a>(benches: &[&'a str], is_quick: bool, kept: &Path) -> Result<Vec<&'a str>> {
    let kept = std::path::absolute(kept)?;
    let cargo = |benches: &[&str], args: &[&str]| {
        let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command.args(["bench", "--package", PACKAGE, "--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")]);
        command.args(benches.iter().flat_map(|bench| ["--bench", bench])).args(args).env("IRON_EXEC_BENCH_RESULTS", &kept);
        command.status().map_err(|error| format!("cargo: {error}"))
    };
    // One that cannot be built fails again below, where it is told which.
    cargo(benches, &["--no-run"])?;
    let mut failed = Vec::new();
    for bench in benches {
        eprintln!("\nsuite: {bench}");
        // What an older run has found is not to stand for what this one does not find.
        let old = results::path(&kept, bench);
        match fs::remove_file(&old) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(format!("{}: {error}", old.display()).into()),
            _ => {}
        }
        let status = cargo(&[bench], if is_quick { &["--", "--quick"] } else { &[] })?;
        if !status.success() {
            eprintln!("suite: {bench} failed: {status}");
            failed.push(*bench);
        }
    }
    Ok(failed)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::{Args, BENCHES};

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_benchmark_is_run() {
        let manifest = include_str!("../../../Cargo.toml");
        let known: Vec<&str> = manifest.split("[[bench]]").skip(1).filter_map(|bench| bench.split('"').nth(1)).collect();
        for bench in known {
            assert!(BENCHES.contains(&bench), "{bench} is not");
        }
    }
}
