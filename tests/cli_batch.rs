//! Promise: `iron-exec batch` runs every line once, so many at a time, from one thread; it says truly how each ended and leaves nothing behind.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cli_tool::{Ran, Running, assert_nothing_left, bare_tool, run, run_with_input, tool};
use common::{Host, children, isolated, process_exists, read_log, wait_until};
use rustix::process::Signal;

/// Runs `lines` as a batch with these options.
fn batch(host: &Host, options: &[&str], lines: &str) -> Ran {
    run_with_input(tool(host, "batch").args(options), lines.as_bytes())
}

/// Starts a batch whose lines come through a pipe.
fn start_batch(host: &Host, options: &[&str]) -> Running {
    Running::start(tool(host, "batch").args(options).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// `N ok, N failed, N not started` of the summary.
fn summary(ran: &Ran) -> (u64, u64, u64) {
    let pattern = regex::Regex::new(r"(?m)^iron-exec: (\d+) ok, (\d+) failed, (\d+) not started in \d+\.\d{3}s$").unwrap();
    let text = ran.err();
    let found = pattern.captures(&text).unwrap_or_else(|| panic!("no summary in {text}"));
    let number = |index: usize| found[index].parse().unwrap();
    (number(1), number(2), number(3))
}

/// The exit code (-1 for none) by line number.
fn exit_codes(ran: &Ran) -> BTreeMap<u64, i64> {
    let lines = ran.json_lines();
    let codes: BTreeMap<u64, i64> =
        lines.iter().map(|line| (line["line"].as_u64().unwrap(), line["exit_code"].as_i64().unwrap())).collect();
    assert_eq!(codes.len(), lines.len(), "no line was reported twice");
    codes
}

#[test]
fn two_thousand_lines_get_every_exit_code_and_every_byte_right() {
    let host = Host::new();
    let (mut lines, mut codes, mut outputs) = (String::new(), BTreeMap::new(), BTreeMap::new());
    for number in 1..=2000_u64 {
        let (line, code) = match number % 4 {
            0 => ("true".to_owned(), 0),
            1 => ("false".to_owned(), 1),
            2 => (format!("echo line {number} and more"), 0),
            _ => (format!("exit {}", number % 256), number as i64 % 256),
        };
        writeln!(lines, "{line}").unwrap();
        codes.insert(number, code);
        outputs.insert(number, line.strip_prefix("echo ").map(|text| format!("{text}\n")).unwrap_or_default());
    }
    let ok = codes.values().filter(|code| **code == 0).count() as u64;

    let ran = batch(&host, &["--jobs", "100", "--keep-going", "--json", "--log-keep", "all"], &lines);
    assert_eq!(ran.code, 1);
    assert_eq!(exit_codes(&ran), codes);
    assert_eq!(summary(&ran), (ok, 2000 - ok, 0));
    for report in ran.json_lines() {
        let output = &outputs[&report["line"].as_u64().unwrap()];
        assert_eq!(report["stdout_bytes"].as_u64(), Some(output.len() as u64));
        assert_eq!(read_log(report["log"].as_str().unwrap().as_ref()), output.as_bytes());
    }
    assert_nothing_left(&host);
}

#[test]
fn every_output_is_printed_once_and_the_logs_go() {
    let host = Host::new();
    let lines = (0..300).map(|number| format!("echo {number}; echo {number} >&2\n")).collect::<Vec<_>>().concat();
    let ran = batch(&host, &["-j", "50", "--log-keep", "none"], &lines);
    assert_eq!((ran.code, summary(&ran)), (0, (300, 0, 0)));
    for text in [ran.out(), ran.err()] {
        let mut numbers: Vec<u32> = text.lines().filter_map(|line| line.parse().ok()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    }
    assert_eq!(host.logs(), Vec::<String>::new());
    assert_nothing_left(&host);
}

#[test]
fn each_output_is_printed_whole_on_its_stream() {
    let host = Host::new();
    // Each job writes in small pieces, so that all of them are at it at the same time.
    let line = |name: char| format!("for i in 1 2 3 4 5 6 7 8 9; do echo {name} $i; echo {name} $i >&2; sleep 0.01; done\n");
    let lines: String = ('a'..='h').map(line).collect();
    let ran = batch(&host, &["-j", "8"], &lines);
    assert_eq!(ran.code, 0, "{}", ran.err());
    for text in [ran.out(), ran.err()] {
        let names: Vec<char> =
            text.lines().filter(|line| !line.starts_with("iron-exec")).map(|line| line.chars().next().unwrap()).collect();
        assert_eq!(names.len(), 72);
        assert!(names.chunks(9).all(|chunk| chunk.iter().all(|name| *name == chunk[0])), "torn: {text}");
    }
}

#[test]
fn large_outputs_are_printed_byte_for_byte() {
    let host = Host::new();
    let lines = "head -c 3000000 /dev/zero | tr '\\0' x\nhead -c 3000000 /dev/zero\n";
    let ran = batch(&host, &["-j", "1"], lines);
    assert_eq!(ran.code, 0, "{}", ran.err());
    assert!(ran.stdout.len() == 6_000_000, "{}", ran.stdout.len());
    assert!(ran.stdout[..3_000_000].iter().all(|byte| *byte == b'x') && ran.stdout[3_000_000..].iter().all(|byte| *byte == 0));
}

#[test]
fn blank_lines_and_comments_are_skipped_and_the_last_line_needs_no_end() {
    let host = Host::new();
    let ran = batch(&host, &["--json"], "\n# no\n  # no\ntrue # yes\n \t \necho \\#\nexit 0");
    let numbers: Vec<u64> = exit_codes(&ran).into_keys().collect();
    assert_eq!((ran.code, numbers), (0, vec![4, 6, 7]));
    assert_eq!(summary(&ran), (3, 0, 0));
    let ran = batch(&host, &[], "");
    assert_eq!((ran.code, ran.out().as_str()), (0, ""));
    assert_eq!(summary(&ran), (0, 0, 0));
}

#[test]
fn commands_come_from_a_file_too_and_may_be_any_bytes() {
    let host = Host::new();
    let file = host.log_dir.path().join("commands.log");
    fs::write(&file, b"printf '\xff\xfe'\nnul\0byte\n").unwrap();
    let ran = run(tool(&host, "batch").arg("--keep-going").arg("-j1").arg(&file));
    assert_eq!((ran.code, ran.stdout.as_slice()), (1, &b"\xff\xfe"[..]));
    assert!(ran.err().contains("line 2: an argument has a NUL byte in it"), "{}", ran.err());
    assert_eq!(summary(&ran), (1, 1, 0));
    fs::remove_file(file).unwrap();
}

#[test]
fn lines_are_started_as_they_come_in() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "2"]);
    running.write(b"echo first\n");
    running.read_until("first\n");
    running.write(b"echo sec");
    running.write(b"ond\necho third\n");
    running.read_until("second\n");
    running.read_until("third\n");
    drop(running.child.stdin.take());
    let ran = running.finish();
    assert_eq!((ran.code, summary(&ran)), (0, (3, 0, 0)));
    assert_nothing_left(&host);
}

#[test]
fn no_more_jobs_run_at_a_time_than_were_allowed() {
    let host = Host::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let line = |number: u32| format!("touch {path}/{number}; ls {path} | wc -l; sleep 0.02; rm {path}/{number}\n");
    let lines: String = (0..30).map(line).collect();
    let ran = batch(&host, &["-j", "3"], &lines);
    assert_eq!(ran.code, 0, "{}", ran.err());
    let counts: Vec<u32> = ran.out().lines().map(|line| line.trim().parse().unwrap()).collect();
    assert_eq!(counts.len(), 30);
    assert_eq!(counts.iter().max(), Some(&3), "three, and no more: {counts:?}");
}

#[test]
fn after_a_failure_nothing_new_is_started_unless_asked_to_go_on() {
    let host = Host::new();
    let lines = "echo one\nexit 3\necho three\n# comment\necho four\n";
    let ran = batch(&host, &["-j1"], lines);
    assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (1, "one\n", (1, 1, 2)));
    assert!(ran.err().contains("line 2: exit code 3: exit 3; log: "), "{}", ran.err());
    let ran = batch(&host, &["-j1", "--keep-going"], lines);
    assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (1, "one\nthree\nfour\n", (3, 1, 0)));
    // Those that run are waited for.
    let ran = batch(&host, &["-j2"], "sleep 0.3; echo late\nfalse\necho never\n");
    assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (1, "late\n", (1, 1, 1)));
}

#[test]
fn an_input_without_end_is_left_where_it_is_when_a_job_has_failed() {
    let host = Host::new();
    let mut endless = Command::new("yes").arg("false").stdout(Stdio::piped()).spawn().unwrap();
    let lines = endless.stdout.take().unwrap();
    let ran = run(tool(&host, "batch").stdin(lines));
    assert_eq!(ran.code, 1);
    assert!(ran.err().contains("or more not started"), "{}", ran.err());
    endless.wait().unwrap();
}

#[test]
fn logs_are_kept_as_asked() {
    let host = Host::new();
    for (keep, expected) in [("all", 3), ("failed", 2), ("none", 0)] {
        let ran = batch(&host, &["-j1", "--keep-going", "--json", "--log-keep", keep], "echo ok\necho bad; false\nkill -9 $$\n");
        let logs: Vec<_> = ran.json_lines().iter().filter_map(|line| line["log"].as_str().map(str::to_owned)).collect();
        assert_eq!((logs.len(), host.logs().len()), (expected, expected), "{keep}");
        for log in logs {
            fs::remove_file(log).unwrap();
        }
    }
    let ran = batch(&host, &["--quiet", "--log-keep", "all"], "echo ok");
    assert_eq!(ran.out(), "");
    assert_eq!(read_log(&cli_tool::only_log(&host)), b"ok\n");
    assert_nothing_left(&host);
}

#[test]
fn json_tells_how_each_job_ended() {
    let host = Host::new();
    let lines = "echo hello\nkill -TERM $$\nsleep 1000\n";
    let ran = batch(&host, &["-j1", "--keep-going", "--json", "--timeout", "200ms"], lines);
    let reports = ran.json_lines();
    assert_eq!(ran.code, 1);
    let of = |index: usize, name: &str| reports[index][name].clone();
    assert_eq!((of(0, "command"), of(0, "exit_code"), of(0, "log")), ("echo hello".into(), 0.into(), serde_json::Value::Null));
    assert_eq!((of(1, "exit_code"), of(1, "signal"), of(1, "stop_reason")), ((-1).into(), "SIGTERM".into(), serde_json::Value::Null));
    assert_eq!((of(2, "state"), of(2, "signal"), of(2, "stop_reason")), ("finished".into(), "SIGTERM".into(), "timeout".into()));
    assert!(of(2, "run_time").as_f64().unwrap() >= 0.2);
}

#[test]
fn json_tells_what_the_tree_of_each_job_used_when_accounting_is_asked_for() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    for (options, is_told) in [(&["--json", "--accounting"][..], true), (&["--json"], false)] {
        let ran = batch(&host, options, "true\ntrue\n");
        let reports = ran.json_lines();
        assert_eq!((ran.code, reports.len()), (0, 2), "{}", ran.err());
        for report in reports {
            let usage = &report["cgroup_usage"];
            assert_eq!(
                (usage["cpu_total_seconds"].is_f64(), usage.is_null(), &report["oom_killed"]),
                (is_told, !is_told, &false.into()),
                "{report}"
            );
        }
    }
}

#[test]
fn a_limit_that_cannot_be_had_fails_each_line_that_would_have_run_without_it() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let info: serde_json::Value = serde_json::from_slice(&run(tool(&host, "info").arg("--json")).stdout).unwrap();
    let is_available = info["limits"].as_array().unwrap().iter().any(|limit| limit["file"] == "memory.max" && limit["available"] == true);
    let ran = batch(&host, &["-j1", "--keep-going", "--memory-max", "1G"], "echo one\necho two\n");
    if is_available {
        assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (0, "one\ntwo\n", (2, 0, 0)));
    } else {
        assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (1, "", (0, 2, 0)));
        let message = ran.err().lines().next().unwrap().to_owned();
        assert!(message.starts_with("iron-exec: line 1: ") && message.contains("controller memory"), "{message}");
        assert_eq!(message.matches("/memory.max").count(), 1, "it is said once: {message}");
    }
    assert_nothing_left(&host);
}

#[test]
fn the_options_of_a_job_hold_for_every_job() {
    let host = Host::new();
    let lines = "echo $A $PWD\necho $A $PWD\n";
    let ran = batch(&host, &["-j1", "-e", "A=x", "-C", "/usr"], lines);
    assert_eq!(ran.out(), "x /usr\nx /usr\n");
    // Jobs do not eat the commands.
    assert_eq!(batch(&host, &["-j1"], "cat\necho on\n").out(), "on\n");
    let ran = batch(&host, &["-j1", "--capture", "inherit"], "echo out; echo err >&2\n");
    assert_eq!((ran.code, ran.out().as_str()), (0, "out\n"));
    assert!(ran.err().starts_with("err\n"), "{}", ran.err());
    assert_eq!(host.logs(), Vec::<String>::new());
    let ran = batch(&host, &["-C", "/no/such/directory"], "true\n");
    assert!(ran.err().contains("not started: chdir failed on /no/such/directory"), "{}", ran.err());
    assert_eq!((ran.code, summary(&ran)), (1, (0, 1, 0)));
}

#[test]
fn our_own_failures_are_125() {
    let host = Host::new();
    for options in
        [&["--jobs", "0"][..], &["--log-keep", "some"], &["/no/such/file"], &["--json", "--capture", "inherit"], &["--stdin", "inherit"]]
    {
        let ran = run(tool(&host, "batch").args(options));
        assert_eq!(ran.code, 125, "{options:?}");
        assert_ne!(ran.err(), "", "{options:?} is explained");
    }
    let ran = run(tool(&host, "batch").arg("/"));
    assert_eq!(ran.code, 125);
    assert!(ran.err().contains("reading commands from /"), "{}", ran.err());
    assert_eq!(run(bare_tool("batch").args(["--log-dir", "/no/such/directory"])).code, 125);
    assert_nothing_left(&host);
}

#[test]
fn a_line_longer_than_any_command_fails_alone() {
    let host = Host::new();
    let lines = format!("echo one\necho {}\necho three\n", "x".repeat(200_000));
    let ran = batch(&host, &["-j1", "--keep-going"], &lines);
    assert_eq!((ran.code, ran.out().as_str(), summary(&ran)), (1, "one\nthree\n", (2, 1, 0)));
    assert!(ran.err().contains("line 2: the line is longer") && ran.err().len() < 1000, "{}", ran.err());
}

#[test]
fn the_first_signal_starts_no_more_and_stops_gently() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "4", "--json", "-s", "INT"]);
    let line = |number: u32| {
        format!(
            "trap 'exit {}' INT; touch {}/{number}.ready.log; while :; do sleep 0.01; done\n",
            10 + number,
            host.log_dir.path().display()
        )
    };
    running.write((0..4).map(line).collect::<String>().as_bytes());
    running.write(b"touch never\ntouch never\n");
    wait_until("all are ready", || host.logs().iter().filter(|name| name.ends_with("ready.log")).count() == 4);
    // Closed first: the summary says "or more" while more lines could come.
    drop(running.child.stdin.take());
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!((ran.code, summary(&ran)), (1, (0, 4, 2)), "{}", ran.err());
    assert_eq!(exit_codes(&ran), (0..4).map(|number| (number + 1, 10 + number as i64)).collect());
    assert!(ran.json_lines().iter().all(|line| line["stop_reason"] == "requested"));
    assert_nothing_left(&host);
}

#[test]
fn the_second_signal_kills_everything() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "2", "--json", "--kill-after", "1h"]);
    let line = |number: u32| {
        format!(
            "trap 'touch {}/{number}.told.log' TERM; touch {0}/{number}.ready.log; while :; do sleep 0.01; done\n",
            host.log_dir.path().display()
        )
    };
    running.write((0..2).map(line).collect::<String>().as_bytes());
    let count = |end: &str| host.logs().iter().filter(|name| name.ends_with(end)).count();
    wait_until("both are ready", || count("ready.log") == 2);
    running.signal(Signal::TERM);
    wait_until("both were told", || count("told.log") == 2);
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!(ran.code, 1);
    let signals: Vec<_> = ran.json_lines().iter().map(|line| line["signal"].clone()).collect();
    assert_eq!(signals, ["SIGKILL", "SIGKILL"], "{}", ran.err());
    assert_nothing_left(&host);
}

#[test]
fn when_the_reader_of_our_stdout_goes_everything_is_stopped() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "2"]);
    running.write(b"echo first\n");
    running.read_until("first\n");
    running.close_stdout();
    let path = host.log_dir.path().join("pid.log");
    running.write(format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000\n", path.display()).as_bytes());
    wait_until("the second job runs", || path.exists());
    running.write(b"echo third\n");
    assert_eq!(running.wait(), 141);
    let job: i32 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
    assert!(!process_exists(job));
    assert_nothing_left(&host);
}

#[test]
fn a_reader_who_does_not_read_stops_neither_the_timeouts_nor_a_signal() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "2", "--keep-going", "--timeout", "500ms", "--log-keep", "all"]);
    running.write(b"head -c 1000000 /dev/zero\nsleep 1000\n");
    let sealed = || {
        let is_sealed = |name: &String| fs::metadata(host.log_dir.path().join(name)).unwrap().permissions().mode() & 0o222 == 0;
        host.logs().iter().filter(|name| is_sealed(name)).count()
    };
    wait_until("both have ended although nobody reads", || sealed() == 2);
    running.signal(Signal::TERM);
    running.signal(Signal::INT);
    assert_eq!(running.wait(), 1, "the second signal waits for no reader");
    assert_nothing_left(&host);
}

#[test]
fn there_is_one_thread_however_many_jobs() {
    let host = Host::new();
    let mut running = start_batch(&host, &["-j", "50", "--progress"]);
    running.write("echo started; sleep 1000\n".repeat(50).as_bytes());
    wait_until("all of them run", || {
        assert_eq!(running.threads(), 1);
        host.logs().iter().filter(|name| fs::metadata(host.log_dir.path().join(name)).is_ok_and(|log| log.len() > 0)).count() == 50
    });
    assert_eq!(running.threads(), 1);
    // Closed first: the summary says "or more" while more lines could come.
    drop(running.child.stdin.take());
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!(summary(&ran), (0, 50, 0));
    assert_nothing_left(&host);
}

#[test]
fn too_few_open_files_make_lines_wait_not_fail() {
    let host = Host::new();
    let lines = (0..80).map(|number| format!("sleep 0.0{}; echo {number}; exit {}\n", number % 5, number % 7)).collect::<Vec<_>>().concat();
    let few_files = |options: &[&str]| {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "ulimit -n 40; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_iron-exec"), "batch", "--log-dir"])
            .arg(host.log_dir.path());
        match &host.base {
            Some(base) => shell.arg("--cgroup-base").arg(base),
            None => shell.arg("--no-cgroup"),
        };
        run_with_input(shell.args(["-j", "80", "--keep-going", "--log-keep", "none"]).args(options), lines.as_bytes())
    };
    let ran = few_files(&["--json"]);
    let expected: BTreeMap<u64, i64> = (0..80).map(|number| (number as u64 + 1, number % 7)).collect();
    assert_eq!(exit_codes(&ran), expected, "{}", ran.err());
    assert!(ran.json_lines().iter().all(|line| line["state"] == "finished"));

    let ran = few_files(&[]);
    let mut printed: Vec<u32> = ran.out().lines().map(|line| line.parse().unwrap()).collect();
    printed.sort_unstable();
    assert_eq!(printed, (0..80).collect::<Vec<_>>(), "{}", ran.err());
    assert_nothing_left(&host);
}

#[test]
fn too_few_processes_make_lines_wait_not_fail() {
    if common::not_root() {
        return;
    }
    let host = Host::new();
    let mut shell = Command::new("bash");
    // The limit is looked at for the user that jobs become; nobody else runs as that one.
    shell.args(["-c", "ulimit -u 3; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_iron-exec"), "batch", "--log-dir"]).arg(host.log_dir.path());
    match &host.base {
        Some(base) => shell.arg("--cgroup-base").arg(base),
        None => shell.arg("--no-cgroup"),
    };
    let ran = run_with_input(shell.args(["-j", "12", "--json", "-u", "54321"]), "exec sleep 0.05\n".repeat(24).as_bytes());
    assert_eq!((ran.code, summary(&ran)), (0, (24, 0, 0)), "{}{}", ran.out(), ran.err());
    assert_nothing_left(&host);
}

#[test]
fn the_limit_of_open_files_is_raised_for_us_and_not_for_the_jobs() {
    let host = Host::new();
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -S -n 64; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_iron-exec"), "batch", "--no-cgroup", "--log-dir"]);
    let ran = run_with_input(shell.arg(host.log_dir.path()).args(["-j", "100"]), "ulimit -n; sleep 0.1\n".repeat(100).as_bytes());
    assert_eq!((ran.code, ran.out()), (0, "64\n".repeat(100)), "{}", ran.err());
}

#[test]
fn without_a_terminal_progress_is_text_and_only_when_asked_for() {
    let host = Host::new();
    let ran = batch(&host, &["-j1"], "true\nsleep 1.1\ntrue\n");
    assert_eq!(ran.err().lines().count(), 1, "the summary only: {}", ran.err());
    let ran = batch(&host, &["-j1", "--progress"], "true\nsleep 1.1\ntrue\n");
    let pattern = regex::Regex::new(r"^iron-exec: \d of 3 done, \d running, 0 failed\n").unwrap();
    assert!(pattern.is_match(&ran.err()) && !ran.err().contains('\x1b'), "{}", ran.err());
}

#[test]
fn on_a_terminal_there_is_a_bar_unless_it_is_unwanted() {
    if Command::new("script").arg("--version").output().is_err() && common::cannot_run("script(1) is not installed") {
        return;
    }
    let host = Host::new();
    let file = host.log_dir.path().join("commands.log");
    fs::write(&file, "sleep 0.2\nprintf unfinished\n").unwrap();
    let on_terminal = |option: &str| {
        let (tool, directory) = (env!("CARGO_BIN_EXE_iron-exec"), host.log_dir.path().display());
        let command = format!("{tool} batch -j1 --no-cgroup --log-dir {directory} {option} {}", file.display());
        let ran = run(Command::new("script").args(["-qec", &command, "/dev/null"]).env("TERM", "xterm").stdin(Stdio::null()));
        assert_eq!(ran.code, 0, "{}", ran.out());
        ran.out()
    };
    let with_bar = on_terminal("--progress");
    assert!(with_bar.contains("/2, 1 running, 0 failed") && with_bar.contains("\x1b[2K"), "{with_bar:?}");
    assert!(with_bar.contains("unfinished\r\n"), "the bar takes a line of its own: {with_bar:?}");
    let without = on_terminal("--no-progress");
    assert!(!without.contains('\x1b') && without.starts_with("unfinishediron-exec: 2 ok"), "{without:?}");
}

#[test]
fn no_process_is_left_of_a_batch_also_when_its_jobs_leave_some() {
    isolated("no_process_is_left_of_a_batch_also_when_its_jobs_leave_some", || {
        let host = Host::new();
        let begun = Instant::now();
        let ran = batch(&host, &["-j", "10", "--log-keep", "none"], &"sleep 1000 & echo $!\n".repeat(20));
        assert_eq!(ran.code, 0, "{}", ran.err());
        for pid in ran.out().lines() {
            let pid = pid.parse().unwrap();
            wait_until("what a job left is gone", || !process_exists(pid));
        }
        assert!(begun.elapsed() < Duration::from_secs(100));
        assert_eq!(children(), Vec::<String>::new());
        assert_eq!(host.logs(), Vec::<String>::new());
        assert_nothing_left(&host);
    });
}
