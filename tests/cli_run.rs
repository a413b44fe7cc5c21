//! Promise: `iron-exec run` is a transparent foreground job: its bytes, its exit code, its signals; and nothing is left of it. `info` tells the truth.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use cli_tool::{Ran, Running, assert_nothing_left, bare_tool, only_log, run, run_with_input, tool};
use common::{Host, process_exists, process_runs, read_log, wait_until};
use rustix::process::Signal;

/// Runs `script` in a shell under `run` with these options.
fn run_script(host: &Host, options: &[&str], script: &str) -> Ran {
    run(tool(host, "run").args(options).args(["--", "sh", "-c", script]))
}

/// Starts `script` in a shell under `run` with these options; everything is piped.
fn start_script(host: &Host, options: &[&str], script: &str) -> Running {
    let mut command = tool(host, "run");
    command.args(options).args(["--", "sh", "-c", script]);
    Running::start(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

/// The last line of stderr as JSON.
fn json_of(ran: &Ran) -> serde_json::Value {
    let text = ran.err();
    serde_json::from_str(text.lines().last().expect("a line")).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn both_streams_arrive_byte_for_byte() {
    let host = Host::new();
    let mut bytes: Vec<u8> = (0..200_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes.extend_from_slice(b"no line feed at the end");
    let input = host.log_dir.path().join("input.log");
    fs::write(&input, &bytes).unwrap();
    let script = format!("cat {0}; cat {0} >&2", input.display());
    let ran = run_script(&host, &[], &script);
    assert_eq!(ran.code, 0, "{}", ran.err());
    assert!(ran.stdout == bytes, "stdout differs");
    assert!(ran.stderr == bytes, "stderr differs");
    fs::remove_file(input).unwrap();
    let mut both = bytes.clone();
    both.extend_from_slice(&bytes);
    both.sort_unstable();
    let mut logged = read_log(&only_log(&host));
    logged.sort_unstable();
    assert!(logged == both, "the log holds all of it");
    assert_nothing_left(&host);
}

#[test]
fn merged_output_comes_in_exactly_the_order_in_which_it_was_written() {
    let host = Host::new();
    let script = "i=0; while [ $i -lt 300 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done";
    let expected = (0..300).map(|number| format!("out {number}\nerr {number}\n")).collect::<Vec<_>>().concat();
    for format in ["cri", "raw"] {
        let ran = run_script(&host, &["--capture", "merged", "--log-format", format], script);
        assert_eq!((ran.code, ran.out()), (0, expected.clone()));
        assert_eq!(ran.err(), "");
    }
}

#[test]
fn output_is_live_even_an_unfinished_line_and_stdin_is_ours() {
    let host = Host::new();
    let mut running = start_script(&host, &[], "printf 'name? '; read name; echo hello $name");
    running.read_until("name? ");
    assert_eq!(running.threads(), 1);
    running.write(b"world\n");
    let ran = running.finish();
    assert_eq!((ran.code, ran.out().as_str()), (0, "name? hello world\n"));
}

#[test]
fn stdin_null_is_an_empty_stdin() {
    let host = Host::new();
    let ran = run_with_input(tool(&host, "run").args(["--stdin", "null", "cat"]), b"not for you");
    assert_eq!((ran.code, ran.out().as_str()), (0, ""));
    let ran = run_with_input(tool(&host, "run").args(["cat"]), b"for you");
    assert_eq!((ran.code, ran.out().as_str()), (0, "for you"));
}

#[test]
fn the_exit_code_is_the_jobs() {
    let host = Host::new();
    for code in [0, 1, 42, 255] {
        assert_eq!(run_script(&host, &[], &format!("exit {code}")).code, code);
    }
    assert_eq!(run_script(&host, &[], "kill -9 $$").code, 137);
    assert_eq!(run_script(&host, &[], "kill -USR1 $$").code, 138);
    assert_nothing_left(&host);
}

#[test]
fn a_program_that_is_not_found_is_127_and_one_that_cannot_be_executed_126() {
    let host = Host::new();
    let ran = run(tool(&host, "run").arg("no-such-program-anywhere"));
    assert_eq!(ran.code, 127);
    assert!(ran.err().contains("no-such-program-anywhere") && ran.err().contains("check the name and PATH"), "{}", ran.err());
    assert_eq!(run(tool(&host, "run").arg("/no/such/directory/program")).code, 127);
    let script = host.log_dir.path().join("script.log");
    fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    assert_eq!(run(tool(&host, "run").arg(&script)).code, 126, "no execute permission");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(run(tool(&host, "run").arg(&script)).code, 126, "no interpreter");
    fs::write(&script, "neither a script nor a binary\n").unwrap();
    assert_eq!(run(tool(&host, "run").arg(&script)).code, 126, "no executable format");
    assert_eq!(run(tool(&host, "run").arg(host.log_dir.path())).code, 126, "a directory");
    fs::remove_file(script).unwrap();
    assert_eq!(host.logs(), Vec::<String>::new(), "no log of a job that never was");
    assert_nothing_left(&host);
}

#[test]
fn our_own_failures_are_125() {
    let host = Host::new();
    let wrong: [&[&str]; 12] = [
        &["--no-such-option", "true"],
        &[],
        &["--timeout", "soon", "true"],
        &["--signal", "NOPE", "true"],
        &["--env", "NAME", "true"],
        &["--user", "root", "true"],
        &["--capture", "maybe", "true"],
        &["--quiet", "--capture", "inherit", "true"],
        &["--no-cgroup", "--cgroup-base", "/x", "true"],
        &["--cwd", "/no/such/directory", "true"],
        &["--env", "A=b", ""],
        &["--rung", "ladder", "true"],
    ];
    for options in wrong {
        let ran = run(bare_tool("run").args(["--log-dir"]).arg(host.log_dir.path()).args(options));
        assert_eq!(ran.code, 125, "{options:?}");
        assert_ne!(ran.err(), "", "{options:?} is explained");
    }
    let ran = run(bare_tool("run").args(["--log-dir", "/no/such/directory", "true"]));
    assert_eq!(ran.code, 125);
    assert!(ran.err().contains("/no/such/directory"), "{}", ran.err());
    let ran = run(bare_tool("run").args(["--log-dir"]).arg(host.log_dir.path()).args(["--cgroup-base", "/proc/no-cgroup", "true"]));
    assert_eq!(ran.code, 125);
    assert!(ran.err().contains("/proc/no-cgroup"), "{}", ran.err());
    assert_eq!(run(&mut bare_tool("no-such-command")).code, 125);
    assert_nothing_left(&host);
}

#[test]
fn help_and_version_are_no_failures() {
    for arguments in
        [&["--help"][..], &["--version"], &["run", "--help"], &["batch", "--help"], &["logs", "--help"], &["info", "-h"], &["help", "run"]]
    {
        let ran = run(bare_tool(arguments[0]).args(&arguments[1..]));
        assert_eq!((ran.code, ran.err().as_str()), (0, ""), "{arguments:?}");
        assert_ne!(ran.out(), "", "{arguments:?}");
    }
    let help = run(bare_tool("run").arg("--help")).out();
    for part in [
        "Exit codes:",
        "124",
        "125",
        "126",
        "127",
        "128+N",
        "Examples:",
        "--kill-after",
        "--log-format",
        "out of memory",
        "Limits:",
        "--io-max",
    ] {
        assert!(help.contains(part), "{part} in {help}");
    }
}

#[test]
fn a_timeout_is_124_also_for_a_job_that_then_ends_well() {
    let host = Host::new();
    let ran = run_script(&host, &["--timeout", "200ms", "--json"], "sleep 1000");
    assert_eq!(ran.code, 124);
    let json = json_of(&ran);
    assert_eq!((json["stop_reason"].as_str(), json["signal"].as_str()), (Some("timeout"), Some("SIGTERM")));
    let ran = run_script(&host, &["--timeout", "0.2"], "trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done");
    assert_eq!((ran.code, ran.out().as_str()), (124, "bye\n"));
    assert_eq!(run_script(&host, &["--timeout", "0"], "exit 3").code, 3, "0 is never");
    assert_nothing_left(&host);
}

#[test]
fn a_job_that_ignores_the_timeout_is_killed_after_the_grace_time() {
    let host = Host::new();
    let begun = Instant::now();
    let script = "trap '' TERM INT; (trap '' TERM INT; while :; do sleep 0.01; done) & while :; do sleep 0.01; done";
    let ran = run_script(&host, &["--timeout", "200ms", "--kill-after", "100ms", "--json"], script);
    assert_eq!(ran.code, 124);
    assert_eq!(json_of(&ran)["signal"], "SIGKILL");
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_nothing_left(&host);
}

#[test]
fn the_first_signal_stops_gently_with_the_signal_asked_for() {
    let host = Host::new();
    let script = "trap 'echo term; exit 7' TERM; trap 'echo int; exit 8' INT; echo ready; while :; do sleep 0.01; done";
    for (signal, options, end, code) in [
        (Signal::TERM, &[][..], "term", 7),
        (Signal::INT, &[], "term", 7),
        (Signal::HUP, &[], "term", 7),
        (Signal::QUIT, &["--signal", "INT"], "int", 8),
        (Signal::TERM, &["-s", "2"], "int", 8),
    ] {
        let mut running = start_script(&host, options, script);
        running.read_until("ready\n");
        running.signal(signal);
        let ran = running.finish();
        assert_eq!((ran.code, ran.out()), (code, format!("ready\n{end}\n")));
    }
    assert_nothing_left(&host);
}

#[test]
fn the_second_signal_kills_the_whole_tree_at_once() {
    let host = Host::new();
    // Told by signal, the job says so and goes on.
    let script = "trap 'echo no' TERM; sleep 1000 & echo child $!; while :; do sleep 0.01; done";
    let mut running = start_script(&host, &["--kill-after", "1h"], script);
    running.read_until("\n");
    running.signal(Signal::TERM);
    running.read_until("no\n");
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!(ran.code, 137, "{}", ran.err());
    let child: i32 = ran.out().lines().next().unwrap().strip_prefix("child ").unwrap().parse().unwrap();
    wait_until("the job's child is gone", || !process_exists(child));
    assert_nothing_left(&host);
}

#[test]
fn a_signal_that_was_ignored_when_we_were_started_stays_ignored() {
    let host = Host::new();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_iron-exec"), "run", "--log-dir"]).arg(host.log_dir.path());
    shell.args(["--no-cgroup", "--", "sh", "-c", "echo ready; read line; echo got $line"]);
    let mut running = Running::start(shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()));
    running.read_until("ready\n");
    running.signal(Signal::HUP);
    running.write(b"it\n");
    let ran = running.finish();
    assert_eq!((ran.code, ran.out().as_str()), (0, "ready\ngot it\n"));
}

#[test]
fn when_the_reader_of_our_stdout_goes_the_job_is_stopped() {
    let host = Host::new();
    let mut running = start_script(&host, &[], "echo $$; while :; do echo y; done");
    running.read_until("y\n");
    let job: i32 = String::from_utf8_lossy(&running.seen).lines().next().unwrap().parse().unwrap();
    running.close_stdout();
    assert_eq!(running.wait(), 141);
    assert!(!process_exists(job));
    assert_nothing_left(&host);
}

#[test]
fn a_reader_who_does_not_read_stops_neither_the_timeout_nor_a_signal() {
    let host = Host::new();
    // More than a pipe holds, so that printing it cannot end.
    let script = "head -c 1000000 /dev/zero; sleep 1000";
    let sealed = || host.logs().iter().any(|name| fs::metadata(host.log_dir.path().join(name)).unwrap().permissions().readonly());
    let running = start_script(&host, &["--timeout", "300ms"], script);
    wait_until("the job has ended although nobody reads", sealed);
    let ran = running.finish();
    assert_eq!((ran.code, ran.stdout.len()), (124, 1_000_000), "and then everything is printed all the same");
    fs::remove_file(only_log(&host)).unwrap();

    let mut running = start_script(&host, &[], script);
    wait_until("the job has written", || !host.logs().is_empty() && read_log(&only_log(&host)).len() == 1_000_000);
    running.signal(Signal::TERM);
    wait_until("the job has ended", sealed);
    running.signal(Signal::TERM);
    assert_eq!(running.wait(), 143, "the second signal waits for no reader");
    let ran = running.finish();
    assert!(ran.err().contains(only_log(&host).to_str().unwrap()), "where the rest is: {}", ran.err());
    assert_nothing_left(&host);
}

#[test]
fn the_environment_is_ours_with_changes_or_only_what_was_said() {
    let host = Host::new();
    let script = "echo \"$OURS|$GIVEN|$EMPTY|$HOME\"";
    let command = |options: &[&str]| {
        let mut command = tool(&host, "run");
        command.env("OURS", "ours").env("HOME", "/home").args(options).args(["--", "/bin/sh", "-c", script]);
        run(&mut command).out()
    };
    assert_eq!(command(&["-e", "GIVEN=a=b", "--env", "EMPTY="]), "ours|a=b||/home\n");
    assert_eq!(command(&["-e", "OURS=changed"]), "changed|||/home\n");
    assert_eq!(command(&["--clear-env", "-e", "GIVEN=x"]), "|x||\n");
    assert_eq!(run(tool(&host, "run").args(["-i", "-e", "A=1", "/usr/bin/env"])).out(), "A=1\n");
}

#[test]
fn the_working_directory_and_the_user_are_the_ones_asked_for() {
    let host = Host::new();
    assert_eq!(run_script(&host, &["-C", "/usr"], "pwd").out(), "/usr\n");
    if common::not_root() {
        return;
    }
    assert_eq!(run_script(&host, &["-u", "4711:4712"], "id -u; id -g; id -G").out(), "4711\n4712\n4712\n");
    assert_eq!(run_script(&host, &["--user", "4711"], "id -u; id -g; id -G").out(), "4711\n4711\n4711\n");
}

#[test]
fn quiet_prints_nothing_and_logs_everything() {
    let host = Host::new();
    let ran = run_script(&host, &["--quiet"], "echo out; echo err >&2; exit 5");
    assert_eq!((ran.code, ran.out().as_str(), ran.err().as_str()), (5, "", ""));
    let logged = String::from_utf8(read_log(&only_log(&host))).unwrap();
    assert!(logged.contains("out\n") && logged.contains("err\n"), "{logged}");
}

#[test]
fn stats_are_one_line_for_people_and_one_about_the_whole_tree() {
    let host = Host::new();
    let ran = run_script(&host, &["--stats"], "echo one; echo two; exit 4");
    let text = ran.err();
    assert_eq!(text.lines().count(), 1 + usize::from(host.base.is_some()), "{text}");
    for part in ["exit code 4", "cpu ", "user", "system", "max rss", "8 bytes in 2 lines", only_log(&host).to_str().unwrap()] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(run_script(&host, &["--stats"], "kill -9 $$").err().contains("killed by SIGKILL"));
}

#[test]
fn the_stats_of_a_tree_count_also_those_that_nobody_waited_for() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    // The shell ends without a wait for its child, whose time is in no getrusage(2).
    let script = "sh -c 'i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo done' & read line < /dev/null; exit 0";
    let script = format!("mkfifo {0}/f.log; {{ {script}; }} > {0}/f.log & read line < {0}/f.log", host.log_dir.path().display());
    let ran = run_script(&host, &["--stats", "--json"], &script);
    assert_eq!(ran.code, 0, "{}", ran.err());
    let json = json_of(&ran);
    let number = |name: &str| json["cgroup_usage"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {json}"));
    assert!(number("cpu_total_seconds") > 0.01 && number("cpu_user_seconds") > 0.0 && number("cpu_system_seconds") >= 0.0, "{json}");
    assert!(number("cpu_total_seconds") > json["cpu_user"].as_f64().unwrap() + json["cpu_system"].as_f64().unwrap(), "{json}");
    assert_eq!(json["oom_killed"], false);
    assert!(json["cgroup_usage"].as_object().unwrap().contains_key("memory_peak_bytes"), "null where it is not known: {json}");
    let pattern = regex::Regex::new(r"(?m)^iron-exec: whole tree: cpu \d+\.\d{3}s user \d+\.\d{3}s system").unwrap();
    assert!(pattern.is_match(&ran.err()), "{}", ran.err());
    fs::remove_file(host.log_dir.path().join("f.log")).unwrap();
    assert_nothing_left(&host);
}

#[test]
fn a_limit_that_is_no_limit_is_refused_and_what_is_expected_told() {
    let host = Host::new();
    let wrong: [(&[&str], &str); 14] = [
        (&["--cpu-max", "0"], "QUOTA/PERIOD"),
        (&["--cpu-max", "-1"], "QUOTA/PERIOD"),
        (&["--cpu-max", "fast"], "QUOTA/PERIOD"),
        (&["--cpu-weight", "0"], "1..=10000"),
        (&["--cpuset-cpus", "all"], "0-3,7"),
        (&["--cpuset-mems="], "it is empty"),
        (&["--memory-max", "10X"], "64M"),
        (&["--memory-high", "-5M"], "64M"),
        (&["--memory-swap-max", "101%"], "100%"),
        (&["--pids-max", "0"], "a whole number or max"),
        (&["--io-weight", "10001"], "1..=10000"),
        (&["--io-max", "/dev/sda"], "rbps, wbps, riops and wiops"),
        (&["--io-max", "speed=1"], "rbps, wbps, riops and wiops"),
        (&["--memory-max", "1G", "--no-cgroup"], "--no-cgroup"),
    ];
    for (options, part) in wrong {
        for subcommand in ["run", "batch"] {
            let ran = run(bare_tool(subcommand).arg("--log-dir").arg(host.log_dir.path()).args(options).arg("true"));
            assert_eq!((ran.code, ran.out().as_str()), (125, ""), "{options:?}");
            assert!(ran.err().contains(part) && ran.err().ends_with('\n'), "{options:?}: {}", ran.err());
        }
    }
    assert_eq!(host.logs(), Vec::<String>::new());
}

#[test]
fn a_limit_that_cannot_be_had_starts_nothing_and_info_has_said_so() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let info: serde_json::Value = serde_json::from_slice(&run(tool(&host, "info").arg("--json")).stdout).unwrap();
    let is_available =
        |file: &str| info["limits"].as_array().unwrap().iter().any(|limit| limit["file"] == file && limit["available"] == true);
    for (file, option, value) in [
        ("cpu.max", "--cpu-max", "1"),
        ("cpu.weight", "--cpu-weight", "50"),
        ("cpuset.cpus", "--cpuset-cpus", "0"),
        ("cpuset.mems", "--cpuset-mems", "0"),
        ("memory.max", "--memory-max", "1G"),
        ("memory.high", "--memory-high", "1G"),
        ("memory.swap.max", "--memory-swap-max", "0"),
        ("pids.max", "--pids-max", "100"),
        ("io.weight", "--io-weight", "50"),
    ] {
        let ran = run_script(&host, &["--json", option, value], "echo started");
        if is_available(file) {
            assert_eq!((ran.code, ran.out().as_str()), (0, "started\n"), "{file}: {}", ran.err());
            continue;
        }
        assert_eq!((ran.code, ran.out().as_str()), (125, ""), "{file}");
        let controller = file.split('.').next().unwrap();
        let advice = info["missing"].as_array().unwrap().iter().find(|missing| missing["what"].as_str().unwrap().contains(file));
        let advice = advice.unwrap_or_else(|| panic!("no word of {file} in {info}"))["advice"].as_str().unwrap();
        assert!(advice.contains(controller) && !advice.contains("Builder::"), "{advice}");
        let message = ran.err().lines().next().unwrap().to_owned();
        for part in [file, controller, advice] {
            assert!(message.contains(part), "{part:?} in {message}");
        }
        assert_eq!(json_of(&ran)["failure"]["step"], "limit");
    }
    fs::read_dir(host.log_dir.path()).unwrap().flatten().for_each(|log| drop(fs::remove_file(log.path())));
    assert_nothing_left(&host);
}

#[test]
fn info_groups_the_limits_that_are_missing_for_one_reason() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut command = tool(&host, "info");
    let text = run(&mut command).out();
    let info: serde_json::Value = serde_json::from_slice(&run(command.arg("--json")).stdout).unwrap();
    let limits = info["limits"].as_array().unwrap();
    assert_eq!(limits.len(), 11, "{info}");
    for limit in limits {
        let file = limit["file"].as_str().unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(&format!(" {file}"))).collect();
        let is_usable = lines.iter().any(|line| line.starts_with("limits  "));
        assert_eq!((lines.len(), is_usable), (1, limit["available"] == true), "{file} in {text}");
    }
    let reasons: Vec<&str> =
        text.lines().filter(|line| line.starts_with("- limit")).filter_map(|line| line.split_once(": ")).map(|line| line.1).collect();
    let distinct: std::collections::BTreeSet<&str> = reasons.iter().copied().collect();
    assert_eq!(reasons.len(), distinct.len(), "{text}");
    assert_eq!(info["leftovers"].as_array().unwrap().len(), 0);
}

#[test]
fn leftovers_of_a_dead_worker_are_told_and_killed_when_that_is_asked_for() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mut running = start_script(&host, &[], "echo $$; exec sleep 1000");
    running.read_until("\n");
    let job: i32 = String::from_utf8_lossy(&running.seen).trim().parse().unwrap();
    let info = || run(&mut tool(&host, "info"));
    assert!(!info().out().contains("--kill-leftovers"), "the worker lives");
    running.signal(Signal::KILL);
    assert_eq!(running.wait(), 137);
    let (cgroup, text) = (host.cgroups().pop().unwrap(), info().out());
    assert!(process_runs(job) && text.contains("--kill-leftovers") && text.contains(&format!("{cgroup}: processes run in it")), "{text}");
    let json: serde_json::Value = serde_json::from_slice(&run(tool(&host, "info").arg("--json")).stdout).unwrap();
    assert_eq!((&json["leftovers"][0]["populated"], &json["leftovers"][0]["name"]), (&true.into(), &"sh".into()), "{json}");

    let ran = run_script(&host, &["--kill-leftovers"], "echo on");
    assert_eq!((ran.code, ran.out().as_str(), ran.err().as_str()), (0, "on\n", ""));
    wait_until("what was left is gone", || !process_runs(job));
    assert_eq!(host.cgroups(), Vec::<String>::new());
    assert!(!info().out().contains("--kill-leftovers"));
}

#[test]
fn nothing_left_over_is_nothing_to_kill() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let ran = run_script(&host, &["--kill-leftovers"], "exit 3");
    assert_eq!((ran.code, ran.err().as_str()), (3, ""));
    let ran = run_with_input(tool(&host, "batch").arg("--kill-leftovers"), b"true\n");
    assert!(ran.code == 0 && ran.err().starts_with("iron-exec: 1 ok"), "{}", ran.err());
    let ran = run(tool(&host, "info").arg("--kill-leftovers"));
    assert_eq!((ran.code, ran.err().as_str()), (0, ""));
    assert_nothing_left(&host);
}

#[test]
fn json_is_one_line_for_programs_also_when_the_start_fails() {
    let host = Host::new();
    let ran = run_script(&host, &["--json", "--name", "my job"], "echo one; echo two >&2; exit 4");
    let json = json_of(&ran);
    assert_eq!(ran.code, 4);
    assert_eq!((&json["state"], &json["exit_code"], &json["signal"]), (&"finished".into(), &4.into(), &serde_json::Value::Null));
    assert_eq!((&json["stdout_bytes"], &json["stderr_bytes"], &json["lines"]), (&4.into(), &4.into(), &2.into()));
    assert_eq!(json["log"], only_log(&host).to_str().unwrap());
    assert!(json["run_time"].as_f64().unwrap() > 0.0 && json["max_rss_bytes"].as_u64().unwrap() > 0);
    assert!(json["log"].as_str().unwrap().contains("/my"), "the name is in the log's name: {json}");

    let ran = run(tool(&host, "run").args(["--json", "/no/such/program"]));
    let json = json_of(&ran);
    assert_eq!(
        (ran.code, &json["state"], &json["failure"]["step"], &json["failure"]["errno"]),
        (127, &"failed".into(), &"exec".into(), &2.into())
    );
}

#[test]
fn a_raw_log_is_the_jobs_bytes_and_a_cri_log_has_times() {
    let host = Host::new();
    run_script(&host, &["--log-format", "raw"], "printf 'a\\nb'");
    assert_eq!(fs::read(only_log(&host)).unwrap(), b"a\nb");
    fs::remove_file(only_log(&host)).unwrap();
    run_script(&host, &["--log-format", "cri"], "echo a");
    let text = fs::read_to_string(only_log(&host)).unwrap();
    assert!(regex::Regex::new(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z stdout F a\n$").unwrap().is_match(&text), "{text}");
}

#[test]
fn a_raw_log_of_two_pipes_is_printed_on_stdout() {
    let host = Host::new();
    let ran = run_script(&host, &["--log-format", "raw", "--capture", "split"], "echo err >&2; echo out");
    let mut lines: Vec<_> = ran.out().lines().map(str::to_owned).collect();
    lines.sort();
    assert_eq!((lines, ran.err()), (vec!["err".to_owned(), "out".to_owned()], String::new()));
}

#[test]
fn an_inheriting_job_writes_itself_and_has_no_log() {
    let host = Host::new();
    let ran = run_script(&host, &["--capture", "inherit", "--stats"], "echo out; echo err >&2; exit 6");
    assert_eq!((ran.code, ran.out().as_str()), (6, "out\n"));
    assert!(ran.err().starts_with("err\niron-exec: exit code 6") && !ran.err().contains("log"), "{}", ran.err());
    let ran = run_script(&host, &["--capture", "discard"], "echo out; echo err >&2; exit 6");
    assert_eq!((ran.code, ran.out().as_str(), ran.err().as_str()), (6, "", ""));
    assert_eq!(host.logs(), Vec::<String>::new());
}

#[test]
fn every_rung_and_no_cgroup_work_the_same() {
    let host = Host::new();
    for options in [&["--rung", "fork-like"][..], &["--rung", "fork"]] {
        let ran = run_script(&host, options, "cat /proc/self/cgroup; exit 9");
        assert_eq!(ran.code, 9, "{}", ran.err());
        if let Some(base) = &host.base {
            let name = base.file_name().unwrap().to_str().unwrap();
            assert!(ran.out().contains(&format!("{name}/sh_")), "{}", ran.out());
        }
    }
    let ran = run(bare_tool("run").arg("--log-dir").arg(host.log_dir.path()).args(["--no-cgroup", "--json", "--", "sh", "-c", "exit 9"]));
    assert_eq!((ran.code, &json_of(&ran)["cgroup"]), (9, &serde_json::Value::Null));
    assert_nothing_left(&host);
}

#[test]
fn what_a_job_leaves_running_goes_with_it() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let begun = Instant::now();
    let ran = run_script(&host, &[], "setsid sleep 1000 & echo $!");
    assert_eq!(ran.code, 0, "{}", ran.err());
    // It is dead by now; init reaps it when it comes to it.
    wait_until("the process is gone", || !Path::new("/proc").join(ran.out().trim()).exists());
    assert!(begun.elapsed() < Duration::from_secs(100));
    assert_nothing_left(&host);
}

#[test]
fn output_that_cannot_be_written_is_a_failure_of_ours() {
    let host = Host::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = tool(&host, "run");
    command.args(["--", "sh", "-c", "echo something; sleep 1000"]).stdout(full).stderr(Stdio::piped());
    let ran = Running::start(&mut command).finish();
    assert_eq!(ran.code, 125);
    assert!(ran.err().contains("writing to stdout failed"), "{}", ran.err());
    assert_nothing_left(&host);
}

#[test]
fn output_that_cannot_be_logged_is_never_lost_in_silence() {
    let host = Host::new();
    for subcommand in ["run", "batch"] {
        let mut shell = std::process::Command::new("sh");
        // A limit on the size of files stands in for a full file system.
        shell.args([
            "-c",
            "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"",
            env!("CARGO_BIN_EXE_iron-exec"),
            subcommand,
            "--no-cgroup",
            "--log-dir",
        ]);
        shell.arg(host.log_dir.path());
        let ran = if subcommand == "run" {
            run(shell.args(["--", "head", "-c", "1000000", "/dev/zero"]))
        } else {
            run_with_input(&mut shell, b"head -c 1000000 /dev/zero")
        };
        assert!(ran.stdout.len() < 1_000_000 && ran.err().contains("bytes of output are lost"), "{}", ran.err());
        assert_eq!(ran.code, if subcommand == "run" { 125 } else { 1 }, "{}", ran.err());
        fs::remove_file(only_log(&host)).expect("the log of such a job is kept");
    }
}

#[test]
fn info_tells_what_there_is_in_words_and_as_json() {
    let host = Host::new();
    let mut command = tool(&host, "info");
    let text = run(&mut command).out();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    for part in [kernel.trim(), "detached", "vfork", "fork-like", "fork", "open files"] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    let ran = run(command.arg("--json"));
    assert_eq!(ran.code, 0);
    let json: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!(json["kernel"], kernel.trim());
    assert_eq!(json["rungs"].as_array().unwrap().len(), 4);
    match &host.base {
        Some(base) => assert_eq!(json["cgroup"]["base"], base.to_str().unwrap()),
        None => assert!(json["missing"].to_string().contains("cgroups")),
    }
    let ran = run(bare_tool("info").args(["--no-cgroup", "--json", "--log-dir"]).arg(host.log_dir.path()));
    let json: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert!(json["cgroup"].is_null() && json["missing"].to_string().contains("cgroups"), "{json}");
    assert_nothing_left(&host);
}
