//! Benchmarks of iron-exec, and what they share.
//!
//! - `batch`: the command-line tool as a whole program: ten thousand commands, beside xargs and GNU parallel.
//! - `coalesce`: what it saves to let the output of a job that writes in small pieces gather in its pipe for a moment.
//! - `counted`: what does not depend on the machine, checked against bounds: system calls and allocations of the host for a job, a line and a turn of
//!   nothing, and instructions for a line.
//! - `density`: what thousands of idle jobs cost: their start, memory, an idle loop's CPU time, a turn in which few of them are ready, and their end.
//! - `fanin`: how fast the lines of thousands of jobs get into their logs when they all write at once.
//! - `framing`: how fast output is cut into lines, and records are written and read.
//! - `job`: what a whole job costs, with a cgroup, a log, two pipes and a status, beside the floor and what can be made of tokio.
//! - `latency`: how long it takes until somebody knows: of a process's end, in every way that a worker can be embedded; of a line in a log; of a stopped job's tree
//!   being gone.
//! - `logs`: how fast the output of one job gets into its log, and at what cost, beside read and write, `cat`, tokio and conmon.
//! - `spawn`: what it costs to start a tiny program and to reap it, and how long the caller is held up meanwhile, beside the floor, posix_spawn, std,
//!   tokio and async-process, under conditions that hosts live in: many descriptors, much memory, busy CPUs.
//!
//! The binary `suite` runs all of them, and writes what they found into `RESULTS.md` and `plots`.

pub mod disk;
pub mod floor;
pub mod host;
mod pace;
pub mod program;
pub mod results;
pub mod stage;
pub mod tool;

pub use pace::{Pace, turns};
pub use results::{Goal, Relation, Results, Table};

/// Whatever goes wrong is said, and ends the benchmark.
pub type Error = Box<dyn std::error::Error + Send + Sync>;
/// What a benchmark's functions come back with.
pub type Result<T> = std::result::Result<T, Error>;
