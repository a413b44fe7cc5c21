//! Promise: the limits of `iron-exec run` and `iron-exec batch` act, and what they did is told, in words and as JSON. Shown on a kernel whose cgroup2 has every
//! controller: `.ci/machine`.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::fs;
use std::path::{Path, PathBuf};

use cli_tool::{Ran, assert_nothing_left, bare_tool, run, run_with_input, tool};
use common::Host;
use serde_json::Value;

const MOUNT: &str = "/sys/fs/cgroup";

/// Takes 60 MiB at once.
const GREEDY: &str = "dd if=/dev/zero of=/dev/null bs=60M count=1 2>/dev/null";

/// Runs `script` in a shell under `run` with these options.
fn run_script(host: &Host, options: &[&str], script: &str) -> Ran {
    run(tool(host, "run").args(options).args(["--", "sh", "-c", script]))
}

/// The last line of stderr as JSON.
fn json_of(ran: &Ran) -> Value {
    let text = ran.err();
    serde_json::from_str(text.lines().last().expect("a line")).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A number of the cgroup's usage.
fn used(json: &Value, name: &str) -> f64 {
    json["cgroup_usage"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {json}"))
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn info_lists_every_limit_as_usable() {
    let host = Host::new();
    let info: Value = serde_json::from_slice(&run(tool(&host, "info").arg("--json")).stdout).unwrap();
    for limit in info["limits"].as_array().unwrap() {
        // A kernel without I/O weights says so.
        let is_excused = limit["file"] == "io.weight" && info["missing"].to_string().contains("BLK_CGROUP_IOCOST");
        assert!(limit["available"] == true || is_excused, "{limit} in {info}");
    }
    let text = run(&mut tool(&host, "info")).out();
    let line = text.lines().find(|line| line.starts_with("limits ")).unwrap();
    for file in ["cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "io.max"] {
        assert!(line.contains(file), "{file} in {line}");
    }
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_that_is_out_of_memory_is_named_with_its_limit_and_its_peak() {
    let host = Host::new();
    let greedy = ["--", "dd", "if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"];
    let ran = run(tool(&host, "run").args(["--memory-max", "20M"]).args(greedy));
    assert_eq!(ran.code, 137, "{}", ran.err());
    let pattern = r"^iron-exec: killed: out of memory at 20 MiB, peak (20\.0|1\d\.\d) MiB\n$";
    assert!(regex::Regex::new(pattern).unwrap().is_match(&ran.err()), "{}", ran.err());

    let ran = run(tool(&host, "run").args(["--memory-max", "20M", "--stats", "--json"]).args(greedy));
    assert_eq!(ran.code, 137, "{}", ran.err());
    assert_eq!(ran.err().matches("out of memory at 20 MiB").count(), 1, "{}", ran.err());
    for part in ["MiB after ", "whole tree: cpu ", "memory peak ", "at memory.max"] {
        assert!(ran.err().contains(part), "{part:?} in {}", ran.err());
    }
    let json = json_of(&ran);
    assert_eq!((&json["oom_killed"], &json["signal"]), (&true.into(), &"SIGKILL".into()), "{json}");
    let peak = used(&json, "memory_peak_bytes");
    assert!(peak > 0.0 && peak <= f64::from(20 << 20), "{json}");
    assert!(
        used(&json, "memory_oom_kills") >= 1.0 && used(&json, "memory_oom_group_kills") >= 1.0 && used(&json, "memory_max_events") >= 1.0,
        "{json}"
    );
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_within_its_memory_is_left_alone() {
    let host = Host::new();
    let ran = run_script(&host, &["--memory-max", "200M", "--json"], GREEDY);
    assert_eq!(ran.code, 0, "{}", ran.err());
    let json = json_of(&ran);
    assert_eq!((&json["oom_killed"], used(&json, "memory_oom_kills")), (&false.into(), 0.0), "{json}");
    assert!(used(&json, "memory_peak_bytes") >= f64::from(60 << 20), "{json}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn the_whole_job_goes_unless_only_the_largest_is_to() {
    let host = Host::new();
    let script = format!("{GREEDY}; echo $?");
    let ran = run_script(&host, &["--memory-max", "20M"], &script);
    assert_eq!((ran.code, ran.out().as_str()), (137, ""), "{}", ran.err());
    assert!(ran.err().contains("iron-exec: killed: out of memory at 20 MiB"), "{}", ran.err());

    let ran = run_script(&host, &["--memory-max", "20M", "--no-oom-group"], &script);
    assert_eq!((ran.code, ran.out().as_str()), (0, "137\n"), "{}", ran.err());
    assert!(ran.err().contains("iron-exec: one of its processes killed: out of memory at 20 MiB"), "{}", ran.err());
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_batch_says_which_line_was_out_of_memory() {
    let host = Host::new();
    let lines = format!("{GREEDY}; true\necho small\n");
    let batch = |options: &[&str]| {
        run_with_input(tool(&host, "batch").args(["-j1", "--keep-going", "--memory-max", "20M"]).args(options), lines.as_bytes())
    };
    let ran = batch(&[]);
    assert_eq!((ran.code, ran.out().as_str()), (1, "small\n"), "{}", ran.err());
    assert!(ran.err().contains("iron-exec: line 1: killed: out of memory at 20 MiB, peak "), "{}", ran.err());
    let ran = batch(&["--json"]);
    let reports = ran.json_lines();
    assert_eq!((&reports[0]["oom_killed"], &reports[1]["oom_killed"]), (&true.into(), &false.into()), "{reports:?}");
    assert!(reports.iter().all(|report| used(report, "memory_peak_bytes") > 0.0), "{reports:?}");
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn one_process_too_many_is_refused_and_counted() {
    let host = Host::new();
    let ran = run_script(&host, &["--pids-max", "2", "--stats", "--json"], "sleep 1 & sleep 1; wait; exit 0");
    assert_ne!(ran.code, 0, "the shell cannot fork: {}", ran.err());
    assert!(ran.err().contains(" refused by pids.max"), "{}", ran.err());
    assert!(used(&json_of(&ran), "pids_max_events") >= 1.0, "{}", ran.err());
    let ran = run_script(&host, &["--pids-max", "2", "--stats"], "sleep 0; exit 0");
    assert!(ran.code == 0 && !ran.err().contains("pids.max"), "{}", ran.err());
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_quarter_of_a_cpu_is_no_more_than_that_and_the_throttling_is_told() {
    let host = Host::new();
    for limit in ["25%", "0.25", "25000/100000"] {
        let options = ["--cpu-max", limit, "--timeout", "2s", "--kill-after", "0", "--stats", "--json"];
        let ran = run_script(&host, &options, "while :; do :; done");
        assert_eq!(ran.code, 124, "{}", ran.err());
        let json = json_of(&ran);
        let (used_seconds, run_seconds) = (used(&json, "cpu_total_seconds"), json["run_time"].as_f64().unwrap());
        // And what two periods may have too much.
        assert!(used_seconds <= run_seconds / 4.0 + 0.2, "{json}");
        assert!(used(&json, "cpu_throttled_periods") >= 1.0 && used(&json, "cpu_throttled_seconds") > 0.0, "{json}");
        assert!(ran.err().contains("throttled by cpu.max for ") && ran.err().contains("% of its periods"), "{}", ran.err());
    }
    assert_nothing_left(&host);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_runs_on_the_cpus_that_it_was_given() {
    let host = Host::new();
    let ran = run_script(&host, &["--cpuset-cpus", "1", "--cpuset-mems", "0"], "grep Cpus_allowed_list /proc/self/status");
    assert_eq!((ran.code, ran.out().as_str()), (0, "Cpus_allowed_list:\t1\n"), "{}", ran.err());
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_disk_is_written_no_faster_than_allowed_and_what_was_written_is_told() {
    let host = Host::new();
    let number = fs::read_to_string("/sys/block/nullb0/dev").unwrap().trim().to_owned();
    // 2 MiB.
    let script = "exec dd if=/dev/zero of=/dev/nullb0 oflag=direct bs=64k count=32 2>/dev/null";
    for limit in ["/dev/nullb0:wbps=1M".to_owned(), format!("{number}:wbps=1M"), "wbps=1M".to_owned()] {
        let ran = run_script(&host, &["--io-max", &limit, "--stats", "--json"], script);
        assert_eq!(ran.code, 0, "{limit}: {}", ran.err());
        let json = json_of(&ran);
        // The kernel lets the first piece through at once.
        assert!(json["run_time"].as_f64().unwrap() >= 1.5, "{limit}: {json}");
        let devices = json["cgroup_usage"]["io"].as_array().unwrap();
        let disk = devices.iter().find(|device| device["device"] == number.as_str()).unwrap_or_else(|| panic!("no {number} in {json}"));
        assert_eq!(disk["write_bytes"], 2 << 20, "{json}");
        assert!(ran.err().contains(&format!("disk {number} read ")) && ran.err().contains("written 2.0 MiB in "), "{}", ran.err());
    }
    assert_nothing_left(&host);
}

/// A cgroup that hands nothing down.
struct Closed(PathBuf);

impl Drop for Closed {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("cgroup.kill"), "1");
        for name in ["base", "supervisor"] {
            let _ = fs::remove_dir(self.0.join(name));
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn who_is_out_of_memory_at_the_limit_of_a_cgroup_above_is_not_said_to_be_at_its_own() {
    let host = Host::new();
    let above = Closed(Path::new(MOUNT).join(format!("iron-exec-test-above-{}", std::process::id())));
    fs::create_dir(&above.0).unwrap();
    fs::write(above.0.join("memory.max"), "20M").unwrap();
    fs::write(above.0.join("cgroup.subtree_control"), "+memory").unwrap();
    let mut command = bare_tool("run");
    command.arg("--log-dir").arg(host.log_dir.path()).arg("--cgroup-base").arg(above.0.join("base"));
    let ran = run(command.args(["--memory-max", "1G", "--", "sh", "-c", GREEDY]));
    assert_eq!(ran.code, 137, "{}", ran.err());
    assert!(
        ran.err().contains("iron-exec: killed: out of memory at the limit of a cgroup above, or of the machine, peak "),
        "{}",
        ran.err()
    );
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn controllers_that_the_cgroups_above_keep_back_are_enabled_when_that_is_asked_for() {
    let host = Host::new();
    let closed = Closed(Path::new(MOUNT).join(format!("iron-exec-test-closed-{}", std::process::id())));
    fs::create_dir(&closed.0).unwrap();
    let attempt = |options: &[&str]| {
        let mut command = bare_tool("run");
        command.arg("--log-dir").arg(host.log_dir.path()).arg("--cgroup-base").arg(closed.0.join("base"));
        run(command.args(options).args(["--pids-max", "10", "--", "sh", "-c", "echo started"]))
    };
    let ran = attempt(&[]);
    assert_eq!((ran.code, ran.out().as_str()), (125, ""), "{}", ran.err());
    for part in ["pids.max", "controller pids", "cgroup.subtree_control", "--enable-controllers"] {
        assert!(ran.err().contains(part), "{part:?} in {}", ran.err());
    }
    let ran = attempt(&["--enable-controllers"]);
    assert_eq!((ran.code, ran.out().as_str()), (0, "started\n"), "{}", ran.err());
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_cgroup_that_holds_the_tool_itself_is_taken_over_when_that_is_asked_for() {
    let host = Host::new();
    let own = Closed(Path::new(MOUNT).join(format!("iron-exec-test-own-{}", std::process::id())));
    fs::create_dir(&own.0).unwrap();
    let attempt = |options: &[&str]| {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", "echo $$ > \"$0\"/cgroup.procs; exec \"$@\" --cgroup-base \"$0\" --memory-max 100M sh -c 'echo started'"])
            .arg(&own.0);
        run(shell.args([env!("CARGO_BIN_EXE_iron-exec"), "run", "--log-dir"]).arg(host.log_dir.path()).args(options))
    };
    let ran = attempt(&[]);
    assert_eq!((ran.code, ran.out().as_str()), (125, ""), "{}", ran.err());
    assert!(ran.err().contains("no internal processes") && ran.err().contains("--take-over-cgroup"), "{}", ran.err());
    let ran = attempt(&["--take-over-cgroup"]);
    assert_eq!((ran.code, ran.out().as_str()), (0, "started\n"), "{}", ran.err());
}
