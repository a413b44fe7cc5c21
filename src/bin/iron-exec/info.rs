//! `iron-exec info`: what this machine can do, what is missing, and how to get it.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use iron_exec::{Capabilities, CgroupReport, OutputStream};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use serde::Serialize;

use crate::args::InfoArgs;
use crate::outlet::{Outlet, write_failure};
use crate::report::{self, Fault, exit};

/// The controllers by which a job's resources can be limited.
const CONTROLLERS: [&str; 5] = ["cpu", "io", "memory", "cpuset", "pids"];

/// Descriptors that one idle job costs.
const DESCRIPTORS_PER_JOB: u64 = 3;

#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    kernel: String,
    rung: &'static str,
    rungs: Vec<RungLine>,
    cgroup: Option<CgroupLine>,
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
    let worker = args.worker.builder().build().map_err(|error| Fault::caused("looking at this machine failed", &error))?;
    let report = Report::new(worker.capabilities());
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
    fn new(capabilities: &Capabilities) -> Self {
        let limit = getrlimit(Resource::Nofile);
        let open_files = OpenFiles { soft: limit.current, hard: limit.maximum };
        let mut missing = Vec::new();
        for rung in &capabilities.rungs {
            missing.extend(rung.missing.map(|reason| Missing { what: format!("spawn rung {}", rung.rung), advice: reason.to_owned() }));
        }
        missing.extend(
            capabilities.cgroup_missing.as_ref().map(|reason| Missing { what: "cgroups for jobs".to_owned(), advice: reason.clone() }),
        );
        if let Some(cgroup) = &capabilities.cgroup {
            missing.extend(missing_controllers(cgroup));
        }
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
        text
    }
}

/// The controllers that jobs cannot have, and why: they stop above the base, or the hierarchy does not have them at all.
fn missing_controllers(cgroup: &CgroupReport) -> Vec<Missing> {
    let at_root = fs::read_to_string(cgroup.mount.join("cgroup.controllers")).unwrap_or_default();
    let at_root: Vec<&str> = at_root.split_whitespace().collect();
    let missing = CONTROLLERS.into_iter().filter(|name| !cgroup.controllers.iter().any(|there| there == name));
    let (stopped, absent): (Vec<&str>, Vec<&str>) = missing.partition(|name| at_root.contains(name));
    let mut found = Vec::new();
    if !stopped.is_empty() {
        let words: Vec<String> = stopped.iter().map(|name| format!("+{name}")).collect();
        let advice = format!(
            "write \"{}\" to cgroup.subtree_control of each directory from {} down to the one above {}; in a systemd unit, use Delegate=yes",
            words.join(" "),
            cgroup.mount.display(),
            cgroup.base.display(),
        );
        found.push(Missing { what: format!("controllers {}", stopped.join(", ")), advice });
    }
    if !absent.is_empty() {
        let advice = format!(
            "the hierarchy at {} does not have them: they are held by cgroup v1 mounts (boot with cgroup_no_v1=all), kept back by the container \
             host, or not in this kernel",
            cgroup.mount.display(),
        );
        found.push(Missing { what: format!("controllers {}", absent.join(", ")), advice });
    }
    found
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
            exit_info: false,
            open_files: OpenFiles { soft: Some(1024), hard: None },
            missing: vec![Missing { what: "cgroups for jobs".to_owned(), advice: "mount one".to_owned() }],
        };
        let text = report.to_text();
        for part in ["6.1", "fork (available: fork)", "1024 (hard limit unlimited)", "- cgroups for jobs: mount one"] {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}
