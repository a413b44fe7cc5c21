//! `iron-exec info`: what this machine can do, what is missing, and how to get it.

use std::fmt::Write;
use std::path::Path;

use iron_exec::{Capabilities, Leftover, LimitReport, OutputStream};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::args::InfoArgs;
use crate::leftovers::{self, NAMED_MAX};
use crate::outlet::{Outlet, write_failure};
use crate::report::{self, Fault, exit};

/// Descriptors that one idle job costs.
const DESCRIPTORS_PER_JOB: u64 = 3;

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    rung: &'static str,
    rungs: Vec<RungLine>,
    cgroup: Option<CgroupLine>,
    limits: Vec<LimitLine>,
    /// `None`: they could not be looked for.
    leftovers: Option<Vec<LeftoverLine>>,
    exit_info: bool,
    open_files: OpenFiles,
    missing: Vec<Missing>,
}

#[derive(Debug, Serialize)]
struct RungLine {
    name: &'static str,
    available: bool,
}

#[derive(Debug, Serialize)]
struct CgroupLine {
    mount: String,
    base: String,
    controllers: Vec<String>,
}

#[derive(Debug, Serialize)]
struct LimitLine {
    file: &'static str,
    available: bool,
}

/// The cgroup of a job whose worker is dead.
#[derive(Debug, Serialize)]
struct LeftoverLine {
    job: String,
    name: String,
    path: String,
    /// Whether processes are left in it.
    populated: bool,
}

#[derive(Debug, Serialize)]
struct OpenFiles {
    /// `None`: unlimited.
    soft: Option<u64>,
    hard: Option<u64>,
}

/// Something that is not there.
#[derive(Debug, Serialize)]
struct Missing {
    what: String,
    advice: String,
}

/// Prints the report; returns the exit code.
pub(crate) fn run(args: &InfoArgs) -> Result<u8, Fault> {
    let mut worker = args.worker.builder().build().map_err(|error| Fault::caused("looking at this machine failed", &error))?;
    leftovers::kill_if_asked(&args.worker, &mut worker);
    let found = worker.leftovers();
    if let Err(error) = &found {
        report::complain(&format!("looking for what dead workers have left failed: {}", report::with_causes(error)));
    }
    let report = Report::new(worker.capabilities(), found.ok().as_deref());
    drop(worker);
    let mut outlet = Outlet::new();
    if args.json {
        outlet.push(OutputStream::Stdout, &report::json_line(&report)?);
    } else {
        outlet.push(OutputStream::Stdout, report.to_text().as_bytes());
    }
    match outlet.write_all() {
        Ok(()) => Ok(exit::SUCCESS),
        Err((_, Errno::PIPE)) => Ok(exit::READER_GONE),
        Err((stream, errno)) => Err(Fault::new(write_failure(stream, errno))),
    }
}

impl Report {
    fn new(capabilities: &Capabilities, leftovers: Option<&[Leftover]>) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let open_files = OpenFiles { soft: limit.current, hard: limit.maximum };
        let mut missing = Vec::new();
        for rung in &capabilities.rungs {
            missing.extend(rung.missing.map(|reason| Missing { what: format!("spawn rung {}", rung.rung), advice: reason.to_owned() }));
        }
        missing.extend(
            capabilities
                .cgroup_missing
                .as_ref()
                .map(|reason| Missing { what: "cgroups for jobs, and limits".to_owned(), advice: report::in_options(reason) }),
        );
        missing.extend(missing_limits(&capabilities.limits));
        if !capabilities.exit_info {
            missing.push(Missing {
                what: "exit status of a job that somebody else has reaped".to_owned(),
                advice: "Linux 6.15 is needed; until then let nobody else in the process wait for its children".to_owned(),
            });
        }
        if open_files.soft.is_some_and(|soft| open_files.hard.is_none_or(|hard| soft < hard)) {
            missing.push(Missing {
                what: "open files up to the hard limit".to_owned(),
                advice: "batch raises the limit by itself; elsewhere use `ulimit -n` or LimitNOFILE=".to_owned(),
            });
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Self {
            version: env!("CARGO_PKG_VERSION"),
            kernel: capabilities.kernel.clone(),
            rung: capabilities.rung.as_str(),
            rungs: capabilities.rungs.iter().map(|rung| RungLine { name: rung.rung.as_str(), available: rung.missing.is_none() }).collect(),
            cgroup: capabilities.cgroup.as_ref().map(|cgroup| CgroupLine {
                mount: text(&cgroup.mount),
                base: text(&cgroup.base),
                controllers: cgroup.controllers.clone(),
            }),
            limits: capabilities.limits.iter().map(|limit| LimitLine { file: limit.file, available: limit.missing.is_none() }).collect(),
            leftovers: leftovers.map(|leftovers| leftovers.iter().map(LeftoverLine::new).collect()),
            exit_info: capabilities.exit_info,
            open_files,
            missing,
        }
    }

    fn to_text(&self) -> String {
        let mut rows = vec![("version", self.version.to_owned()), ("kernel", self.kernel.clone())];
        let rungs: Vec<&str> = self.rungs.iter().filter(|rung| rung.available).map(|rung| rung.name).collect();
        rows.push(("spawn rung", format!("{} (available: {})", self.rung, rungs.join(", "))));
        match &self.cgroup {
            Some(cgroup) => {
                let controllers = if cgroup.controllers.is_empty() { "none".to_owned() } else { cgroup.controllers.join(", ") };
                rows.push(("cgroup mount", cgroup.mount.clone()));
                rows.push(("cgroup base", cgroup.base.clone()));
                rows.push(("controllers", controllers));
            }
            None => rows.push(("cgroups", "none".to_owned())),
        }
        let limits: Vec<&str> = self.limits.iter().filter(|limit| limit.available).map(|limit| limit.file).collect();
        rows.push(("limits", if limits.is_empty() { "none".to_owned() } else { limits.join(", ") }));
        rows.push(("exit info", if self.exit_info { "yes" } else { "no" }.to_owned()));
        let limit = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
        let jobs = self.open_files.hard.map(|hard| format!(", enough for about {} idle jobs", hard / DESCRIPTORS_PER_JOB));
        let (soft, hard) = (limit(self.open_files.soft), limit(self.open_files.hard));
        rows.push(("open files", format!("{soft} (hard limit {hard}{})", jobs.unwrap_or_default())));
        let mut text = String::new();
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<14}{value}");
        }
        if !self.missing.is_empty() {
            text.push_str("\nmissing:\n");
        }
        for missing in &self.missing {
            let _ = writeln!(text, "- {}: {}", missing.what, missing.advice);
        }
        append_leftovers(&mut text, self.leftovers.as_deref().unwrap_or_default());
        text
    }
}

impl LeftoverLine {
    fn new(leftover: &Leftover) -> Self {
        Self {
            job: leftover.job.to_string(),
            name: leftover.name.clone(),
            path: leftover.path.to_string_lossy().into_owned(),
            populated: leftover.populated,
        }
    }
}

fn append_leftovers(text: &mut String, leftovers: &[LeftoverLine]) {
    if leftovers.is_empty() {
        return;
    }
    text.push_str("\nleft by workers that are dead (--kill-leftovers of run, batch and info kills and removes it):\n");
    for leftover in leftovers.iter().take(NAMED_MAX) {
        let state = if leftover.populated { "processes run in it" } else { "empty" };
        let _ = writeln!(text, "- {}: {state}", report::quoted(leftover.path.as_bytes()));
    }
    if leftovers.len() > NAMED_MAX {
        let _ = writeln!(text, "- and {} more", leftovers.len() - NAMED_MAX);
    }
}

/// The limits that cannot be had; those that are missing for one reason together.
fn missing_limits(limits: &[LimitReport]) -> Vec<Missing> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for limit in limits {
        let Some(reason) = limit.missing.as_deref() else { continue };
        match groups.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, files)) => files.push(limit.file),
            None => groups.push((reason, vec![limit.file])),
        }
    }
    let missing = |(reason, files): (&str, Vec<&str>)| {
        let word = if files.len() == 1 { "limit" } else { "limits" };
        Missing { what: format!("{word} {}", files.join(", ")), advice: report::in_options(reason) }
    };
    groups.into_iter().map(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_everything_that_is_missing() {
        let report = Report {
            version: "1",
            kernel: "6.1".to_owned(),
            rung: "fork",
            rungs: vec![RungLine { name: "fork-like", available: false }, RungLine { name: "fork", available: true }],
            cgroup: None,
            limits: vec![LimitLine { file: "cpu.max", available: true }, LimitLine { file: "memory.max", available: false }],
            leftovers: Some((0..12).map(|number| leftover(number, number == 0)).collect()),
            exit_info: false,
            open_files: OpenFiles { soft: Some(1024), hard: None },
            missing: vec![Missing { what: "cgroups for jobs".to_owned(), advice: "mount one".to_owned() }],
        };
        let text = report.to_text();
        for part in
            ["6.1", "fork (available: fork)", "1024 (hard limit unlimited)", "- cgroups for jobs: mount one", "limits        cpu.max\n"]
        {
            assert!(text.contains(part), "{part:?} in {text}");
        }
        for part in ["--kill-leftovers", "- /base/0\\x1b: processes run in it\n", "- /base/1\\x1b: empty\n", "- and 2 more\n"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }

    fn leftover(number: u32, populated: bool) -> LeftoverLine {
        LeftoverLine { job: "id".to_owned(), name: "sh".to_owned(), path: format!("/base/{number}\x1b"), populated }
    }
}
