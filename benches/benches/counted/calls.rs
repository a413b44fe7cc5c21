//! System calls of the host for a job.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use iron_exec::Rung;
use iron_exec_benches::{Relation, Result, Table};
use nix::libc::{F_GETFD, P_PID};
use nix::sys::ptrace;
use nix::sys::signal::{SigSet, Signal, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use syscalls::Sysno;

use crate::bounds::{CALLS, CALLS_SLACK, Calls, READS_ABOVE_CONTROLLED};
use crate::load::{self, SCENARIOS, Scenario};
use crate::{Amounts, Report, float};

/// Calls by name.
type Counts = BTreeMap<&'static str, usize>;

/// What a host says with its exit code if it cannot be counted, and why.
const REFUSED: [(i32, &str, &str); 3] = [
    (71, "calls", "ptrace is refused"),
    (72, "cgroup", "no cgroup2 that this user can write"),
    (73, "calls", "the rung detached cannot be had"),
];

pub(crate) fn count(amounts: Amounts, directory: &Path, report: &mut Report) -> Result<()> {
    let has_controllers =
        load::worker(directory, true)?.capabilities().cgroup.as_ref().is_some_and(|cgroup| !cgroup.controllers.is_empty());
    let mut columns = Vec::new();
    for scenario in &SCENARIOS {
        columns.push(count_in(scenario, amounts.jobs, directory, report)?);
    }
    let table = table(&columns);
    let no_reason = table.rows.iter().filter(|row| row.why == NO_REASON).count();
    report.results.tables.push(table);
    let found = columns.iter().any(Option::is_some).then(|| float(no_reason));
    report.results.goal("system calls for a job that have no reason", Relation::AtMost, 0.0, found);
    check(&columns, has_controllers, report);
    Ok(())
}

/// Calls for a job, by name.
type Column = BTreeMap<&'static str, f64>;

/// Of what is not in the bounds.
const NO_REASON: &str = "NOT IN THE BOUNDS";

fn table(columns: &[Option<Column>]) -> Table {
    let title = "System calls of the host for a job without output (plain), with a log (logged), and with a cgroup, too (full)";
    let mut table = Table::new("calls", title, &SCENARIOS.map(|scenario| scenario.name));
    let named = |name: &str| CALLS.iter().any(|calls| calls.name == name);
    let unknown = columns.iter().flatten().flatten().filter(|(name, count)| **count > CALLS_SLACK && !named(name));
    let unknown: BTreeSet<&str> = unknown.map(|(name, _)| *name).collect();
    let measured = || SCENARIOS.iter().zip(columns).filter_map(|(scenario, column)| Some((scenario.name, column.as_ref()?)));
    for (name, why) in CALLS.iter().map(|calls| (calls.name, calls.why)).chain(unknown.iter().map(|name| (*name, NO_REASON))) {
        table.why(name, if why.is_empty() { NO_REASON } else { why });
        for (scenario, column) in measured() {
            table.add(name, scenario, column.get(name).copied().unwrap_or_default());
        }
    }
    for (scenario, column) in measured() {
        table.add("all", scenario, column.values().sum());
    }
    table
}

fn check(columns: &[Option<Column>], has_controllers: bool, report: &mut Report) {
    for calls in CALLS.iter().filter(|calls| calls.why.is_empty()) {
        report.fail(&format!("system calls: {}: the bounds have no reason for it", calls.name));
    }
    for (index, (scenario, column)) in SCENARIOS.iter().zip(columns).enumerate() {
        for (name, count) in column.iter().flatten() {
            let bound = CALLS.iter().find(|calls: &&Calls| calls.name == *name).map_or(0.0, |calls| calls.at_most[index]);
            let bound = if *name == "pread64" && has_controllers { bound * READS_ABOVE_CONTROLLED } else { bound };
            if *count > bound + CALLS_SLACK {
                report.fail(&format!("system calls, {}: {name}: {count:.2} for a job, at most {bound} are allowed", scenario.name));
            }
        }
    }
}

/// Calls for a job: between N and 2 N jobs. `None` if they cannot be counted.
fn count_in(scenario: &Scenario, jobs: usize, directory: &Path, report: &mut Report) -> Result<Option<Column>> {
    let host = Command::new(std::env::current_exe()?)
        .args(["traced", scenario.name, &jobs.to_string()])
        .arg(directory)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .spawn()?;
    let (windows, code) = trace(Pid::from_raw(host.id().cast_signed()))?;
    if let Some((_, what, why)) = REFUSED.iter().find(|refused| refused.0 == code) {
        report.miss(what, &format!("system calls, {}: {why}", scenario.name));
        return Ok(None);
    }
    let (0, [once, twice]) = (code, &windows[..]) else {
        return Err(format!("{}: the traced host failed: exit code {code}", scenario.name).into());
    };
    let names: BTreeSet<&'static str> = once.keys().chain(twice.keys()).copied().collect();
    let of = |counts: &Counts, name| float(counts.get(name).copied().unwrap_or(0));
    let difference = names.into_iter().map(|name| (name, (of(twice, name) - of(once, name)) / float(jobs)));
    Ok(Some(difference.filter(|(_, count)| count.abs() > 0.001).collect()))
}

/// Counts the calls of a child that has asked to be traced: those from each SIGSTOP that it raises to the next, and its exit code.
///
/// Its own children are not traced: that takes an option that is not set here, and the kernel clears what makes a thread stop at its calls in every new one.
fn trace(host: Pid) -> Result<(Vec<Counts>, i32)> {
    let (mut windows, mut counts, mut is_entry) = (Vec::new(), None::<Counts>, true);
    loop {
        match waitpid(host, Some(WaitPidFlag::__WALL))? {
            WaitStatus::Stopped(_, Signal::SIGSTOP) => {
                match counts.replace(Counts::new()) {
                    Some(ended) => windows.push(ended),
                    None => ptrace::setoptions(host, ptrace::Options::PTRACE_O_TRACESYSGOOD | ptrace::Options::PTRACE_O_EXITKILL)?,
                }
                is_entry = true;
                ptrace::syscall(host, None)?;
            }
            WaitStatus::PtraceSyscall(_) => {
                // Each call stops at its entry and at its exit.
                if std::mem::replace(&mut is_entry, false) {
                    if let (Some(counts), Some(name)) = (&mut counts, call(host)?) {
                        *counts.entry(name).or_default() += 1;
                    }
                } else {
                    is_entry = true;
                }
                ptrace::syscall(host, None)?;
            }
            WaitStatus::Stopped(_, signal) => ptrace::syscall(host, signal)?,
            WaitStatus::Exited(_, code) => return Ok((windows, code)),
            WaitStatus::Signaled(_, signal, _) => return Err(format!("the traced host was killed by {signal}").into()),
            other => return Err(format!("the traced host: {other:?}").into()),
        }
    }
}

/// The call that a thread is about to make, but for what is not the library's.
fn call(thread: Pid) -> Result<Option<&'static str>> {
    let registers = ptrace::getregset::<ptrace::regset::NT_PRSTATUS>(thread)?;
    #[cfg(target_arch = "x86_64")]
    let (number, arguments) = (registers.orig_rax, [registers.rdi, registers.rsi]);
    #[cfg(target_arch = "aarch64")]
    let (number, arguments) = (registers.regs[8], [registers.regs[0], registers.regs[1]]);
    let name = usize::try_from(number).ok().and_then(Sysno::new).map_or("unknown", |call| call.name());
    let is_ours = match name {
        // The library waits for a pidfd, the bench for a pid.
        "waitid" => arguments[0] != u64::from(P_PID),
        // Without optimization std makes sure that what it closes is open.
        "fcntl" => !cfg!(debug_assertions) || arguments[1] != F_GETFD as u64,
        _ => true,
    };
    Ok(is_ours.then_some(name))
}

/// The host that is traced: N jobs between the first two stops, 2 N between the next.
pub(crate) fn traced(scenario: &str, jobs: &str, log_dir: &Path) -> Result<()> {
    let scenario = SCENARIOS.iter().find(|known| known.name == scenario).ok_or("no such scenario")?;
    let jobs: usize = jobs.parse()?;
    let refuse = |code: i32| -> Result<()> { std::process::exit(code) };
    // A job's end is not to interrupt a call, which would be made again.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.thread_block()?;
    let mut worker = load::worker(log_dir, scenario.has_cgroup)?;
    if scenario.has_cgroup && worker.capabilities().cgroup.is_none() {
        return refuse(72);
    }
    if worker.capabilities().rung != Rung::Detached {
        return refuse(73);
    }
    let mut run = |jobs| scenario.run(&mut worker, jobs, |worker, events| Ok(worker.turn(events, None)?));
    // What grows once has grown.
    run(2 * jobs)?;
    if ptrace::traceme().is_err() {
        return refuse(71);
    }
    raise(Signal::SIGSTOP)?;
    run(jobs)?;
    raise(Signal::SIGSTOP)?;
    run(2 * jobs)?;
    raise(Signal::SIGSTOP)?;
    Ok(())
}
