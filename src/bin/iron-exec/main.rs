//! The command-line tool: runs one job, or many, prints logs, deletes old ones, and says what this machine can do.
//!
//! It uses the public interface of the library only, and is itself an example of a host: one thread, one poll(2) over the worker's descriptor, the
//! signals and its own outputs.

#![forbid(unsafe_code)]

#[cfg(feature = "s3")]
mod archive;
mod args;
mod batch;
mod gc;
mod info;
mod leftovers;
mod limits;
mod lines;
mod logs;
mod outlet;
mod progress;
mod report;
mod run;
mod signals;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Tool};
use crate::report::exit;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // Where not even that can be printed, the exit code says it.
            let _ = message.print();
            return ExitCode::from(if message.use_stderr() { exit::OWN_FAILURE } else { exit::SUCCESS });
        }
    };
    let code = match &cli.tool {
        Tool::Run(args) => run::run(args),
        Tool::Batch(args) => batch::run(args),
        Tool::Logs(args) => logs::run(args),
        Tool::Gc(args) => gc::run(args),
        Tool::Info(args) => info::run(args),
        #[cfg(feature = "s3")]
        Tool::Archive(args) => archive::run(args),
        #[cfg(not(feature = "s3"))]
        Tool::Archive(_) => Err(report::Fault::new(
            "this iron-exec was built without the feature `s3`, so it cannot archive: build it with `cargo build --release --features s3`",
        )),
    };
    ExitCode::from(code.unwrap_or_else(|fault| {
        report::complain(&fault.to_string());
        exit::OWN_FAILURE
    }))
}
