//! Promise: the tool's log options do what they say, and what they cost is said.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::fs;

use cli_tool::{Ran, bare_tool, run, tool};
use common::{Host, not_root};

/// Runs `script` in a shell under `run` with these options.
fn run_script(host: &Host, options: &[&str], script: &str) -> Ran {
    run(tool(host, "run").args(options).args(["--", "sh", "-c", script]))
}

fn json_of(ran: &Ran) -> serde_json::Value {
    let text = ran.err();
    serde_json::from_str(text.lines().last().expect("a line")).unwrap_or_else(|error| panic!("{error}: {text}"))
}

const LINES: &str = "i=0; while [ $i -lt 2000 ]; do echo line $i of some length; i=$((i+1)); done";

#[test]
fn a_log_is_rotated_within_its_bounds_and_all_output_printed() {
    let host = Host::new();
    let ran = run_script(&host, &["--log-max-bytes", "16K", "--log-files", "100", "--json"], LINES);
    assert_eq!((ran.code, ran.out().lines().count()), (0, 2000), "{}", ran.err());
    let json = json_of(&ran);
    let rotations = json["rotations"].as_u64().unwrap();
    assert!(rotations >= 5 && host.logs().len() as u64 == rotations + 1, "{json}");
    assert!(host.logs().iter().all(|name| fs::metadata(host.log_dir.path().join(name)).unwrap().len() <= 16 << 10));
}

#[test]
fn what_a_full_log_drops_is_said_and_is_not_the_jobs_fault() {
    let host = Host::new();
    let ran = run_script(&host, &["-q", "--log-max-bytes", "4096", "--log-when-full", "drop-tail", "--json"], LINES);
    let json = json_of(&ran);
    assert_eq!(ran.code, 0, "{}", ran.err());
    assert!(json["discarded_bytes"].as_u64().unwrap() > 20_000 && json["dropped_bytes"] == 0, "{json}");
    assert!(ran.err().contains("bytes of output were dropped, as the log was full"), "{}", ran.err());
    let log = fs::read_to_string(cli_tool::only_log(&host)).unwrap();
    assert!(log.lines().last().unwrap().contains("bytes of output are missing here: the log is full"), "{log}");
}

#[test]
fn a_job_that_writes_its_log_itself_is_printed_on_stdout() {
    let host = Host::new();
    let ran = run_script(&host, &["--capture", "direct"], "echo out; echo err >&2");
    assert_eq!((ran.code, ran.out(), ran.err()), (0, "out\nerr\n".to_owned(), String::new()));
    let ran = run_script(&host, &["--capture", "direct", "--log-max-bytes", "1M"], "true");
    assert_eq!(ran.code, 125);
    assert!(ran.err().contains("direct capture"), "{}", ran.err());
}

#[test]
fn a_batch_rotates_logs_and_deletes_them_whole() {
    let host = Host::new();
    let commands = format!("{LINES}\n{LINES}; exit 3\n");
    let mut batch = tool(&host, "batch");
    batch.args(["--log-max-bytes", "16K", "--log-files", "100", "--keep-going", "-q"]);
    let ran = cli_tool::run_with_input(&mut batch, commands.as_bytes());
    assert_eq!(ran.code, 1, "{}", ran.err());
    let logs = host.logs();
    let newest: Vec<_> = logs.iter().filter(|name| name.strip_suffix(".log").is_some()).collect();
    assert!(newest.len() == 1 && logs.len() > 5, "those of the job that failed are kept: {logs:?}");
    assert!(logs.iter().all(|name| name.starts_with(newest[0].as_str())), "{logs:?}");
}

#[test]
fn a_log_on_a_full_disk_costs_what_was_asked() {
    if not_root() {
        return;
    }
    for (policy, code, said) in [("drop", 125, "output is being lost"), ("kill", 137, "the job is killed")] {
        let host = Host::new();
        let disk = tempfile::tempdir().unwrap();
        let mounted = std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "none"]).arg(disk.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            let _ = common::cannot_run("a tmpfs cannot be mounted");
            return;
        }
        let mut command = bare_tool("run");
        match &host.base {
            Some(base) => command.arg("--cgroup-base").arg(base),
            None => command.arg("--no-cgroup"),
        };
        command.arg("--log-dir").arg(disk.path()).args(["-q", "--on-log-fault", policy, "--", "sh", "-c"]);
        let ran = run(command.arg(format!("{LINES}; {LINES}; sleep 0.3")));
        let _ = std::process::Command::new("umount").arg("-l").arg(disk.path()).status();
        assert_eq!(ran.code, code, "{policy}: {}", ran.err());
        assert!(ran.err().contains(said), "{policy}: {}", ran.err());
    }
}

#[test]
fn a_log_option_that_cannot_be_is_refused_with_the_reason() {
    let host = Host::new();
    for (options, said) in [
        (&["--log-files", "3"][..], "--log-max-bytes"),
        (&["--log-max-bytes", "100"], "4096"),
        (&["--log-max-bytes", "64K", "--log-files", "1"], "files"),
        (&["--log-format", "raw", "--log-max-bytes", "64K", "--log-when-full", "drop-middle"], "raw log"),
        (&["--log-rate-drop"], "--log-rate"),
        (&["--log-rate", "max"], "leave the option out"),
    ] {
        let ran = run_script(&host, options, "true");
        assert_eq!(ran.code, 125, "{options:?}: {}", ran.err());
        assert!(ran.err().contains(said), "{options:?}: {}", ran.err());
        assert!(host.logs().is_empty());
    }
}
