//! Promise: `iron-exec gc` deletes old logs and says so, says beforehand what it would delete, and its exit code tells whether all went well.
#![cfg(feature = "cli")]

mod cli_tool;
mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cli_tool::{Ran, Running, bare_tool, run};
use common::{Host, wait_until};
use rustix::fs::XattrFlags;
use uuid::Uuid;

/// A record of a log.
const RECORD: &str = "2026-01-01T00:00:00.000000000Z stdout F hello\n";

/// The tool on a directory.
fn gc(directory: &Path) -> Command {
    let mut command = bare_tool("gc");
    command.arg("--log-dir").arg(directory);
    command
}

fn log_name(number: u128) -> String {
    format!("make_{}.log", Uuid::from_u128(number))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A log of a worker that is dead. Each is younger than the one before.
fn plant(directory: &Path, number: u128, content: &str, is_sealed: bool) -> PathBuf {
    let path = directory.join(log_name(number));
    fs::write(&path, content).unwrap();
    let mark = format!("{} cri", Uuid::from_u128(7));
    rustix::fs::setxattr(&path, "user.iron-exec", mark.as_bytes(), XattrFlags::empty()).unwrap();
    set_mode(&path, if is_sealed { 0o400 } else { 0o600 });
    let changed = fs::metadata(&path).unwrap();
    wait_until("the clock of the file system goes on", || {
        let probe = directory.join("probe");
        fs::write(&probe, "").unwrap();
        let now = fs::metadata(&probe).unwrap();
        fs::remove_file(&probe).unwrap();
        (now.ctime(), now.ctime_nsec()) > (changed.ctime(), changed.ctime_nsec())
    });
    path
}

/// Everything in a directory: mode, length and time of the last change.
fn listing(directory: &Path) -> BTreeMap<String, (u32, u64, i64, i64)> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let look = |path: &Path| {
        let meta = fs::symlink_metadata(path).unwrap();
        (meta.mode(), meta.len(), meta.ctime(), meta.ctime_nsec())
    };
    entries.map(|entry| (entry.file_name().into_string().unwrap(), look(&entry.path()))).collect()
}

#[track_caller]
fn assert_ran(ran: &Ran, code: i32, out: &str, err: &str) {
    assert_eq!((ran.code, &*ran.out(), &*ran.err()), (code, out, err));
}

#[test]
fn a_dry_run_shows_the_plan_and_touches_nothing() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), 1, RECORD, true);
    plant(directory.path(), 2, &"x".repeat(3000), true);
    plant(directory.path(), 3, "torn", false);
    fs::write(directory.path().join("foreign.log"), "").unwrap();
    let before = listing(directory.path());
    let ran = run(gc(directory.path()).args(["--max-logs", "1", "--dry-run"]));
    let [one, two] = [1, 2].map(log_name);
    let lines: Vec<String> = ran.out().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(lines.len(), 4, "{ran:?}");
    assert_eq!(lines[0], "STATE SIZE AGE WHY LOG");
    assert!(lines[1].starts_with("sealed 46 bytes ") && lines[1].ends_with(&format!(" logs {one}")), "{ran:?}");
    assert!(lines[2].starts_with("sealed 2.9 KiB ") && lines[2].ends_with(&format!(" logs {two}")), "{ran:?}");
    assert_eq!(lines[3], "would delete 2 of 3 logs (2.9 KiB of 2.9 KiB), and first seal 1 file of dead workers");
    assert_eq!((ran.code, &*ran.err()), (0, ""));

    let json = run(gc(directory.path()).args(["--max-bytes", "3001", "--dry-run", "--json"])).json_lines().remove(0);
    assert_eq!((&json["dry_run"], &json["logs"], &json["bytes"]), (&true.into(), &3.into(), &3050.into()));
    let delete = json["delete"].as_array().unwrap();
    assert_eq!(delete.len(), 2);
    assert_eq!(delete[0]["log"], directory.path().join(&one).to_str().unwrap());
    assert_eq!((&delete[0]["state"], &delete[0]["reason"], &delete[0]["files"]), (&"sealed".into(), &"bytes".into(), &1.into()));
    assert_eq!(json["leftovers"][0], directory.path().join(log_name(3)).to_str().unwrap());
    assert_eq!(listing(directory.path()), before);
}

#[test]
fn a_pass_deletes_what_the_plan_has_shown() {
    let directory = tempfile::tempdir().unwrap();
    plant(directory.path(), 1, RECORD, true);
    plant(directory.path(), 2, RECORD, true);
    plant(directory.path(), 3, &format!("{RECORD}torn"), false);
    let ran = run(gc(directory.path()).args(["--max-logs", "1"]));
    assert_ran(&ran, 0, "deleted 2 logs (92 bytes in 2 files), sealed 1 file of dead workers; 1 log left (46 bytes)\n", "");
    assert_eq!(listing(directory.path()).into_keys().collect::<Vec<_>>(), [log_name(3)]);
    assert_eq!(fs::read_to_string(directory.path().join(log_name(3))).unwrap(), RECORD);
    let ran = run(gc(directory.path()).args(["--max-age", "7d"]));
    assert_ran(&ran, 0, "deleted 0 logs (0 bytes in 0 files); 1 log left (46 bytes)\n", "");
    let json = run(gc(directory.path()).args(["--max-age", "0", "--json"])).json_lines().remove(0);
    assert_eq!((&json["logs_deleted"], &json["bytes_deleted"], &json["logs"]), (&1.into(), &46.into(), &0.into()));
    assert_eq!((&json["complete"], &json["failures"], &json["last_failure"]), (&true.into(), &0.into(), &serde_json::Value::Null));
    assert!(listing(directory.path()).is_empty());
}

#[test]
fn the_log_of_a_job_that_runs_stays() {
    let host = Host::new();
    let mut command = cli_tool::tool(&host, "run");
    let mut running = Running::start(command.args(["--", "sh", "-c", "echo ready; sleep 1000"]).stdout(std::process::Stdio::piped()));
    running.read_until("ready");
    let ran = run(gc(host.log_dir.path()).args(["--max-age", "0", "--max-logs", "0", "--max-bytes", "0"]));
    assert!(ran.code == 0 && ran.out().starts_with("deleted 0 logs") && ran.out().contains("; 1 log left"), "{ran:?}");
    assert_eq!(host.logs().len(), 1);
    running.signal(rustix::process::Signal::TERM);
    running.wait();
    let ran = run(gc(host.log_dir.path()).args(["--max-age", "0"]));
    assert!(ran.out().starts_with("deleted 1 log ("), "{ran:?}");
    assert!(listing(host.log_dir.path()).is_empty());
}

#[test]
fn logs_are_archived_before_they_go_and_what_is_not_stored_stays() {
    let (directory, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for number in 0..3 {
        plant(directory.path(), number, RECORD, true);
    }
    let program = store.path().join("archiver");
    let script = r#"#!/bin/sh
        tr '\0' '\n' | while read -r name; do
            if [ "$name" = "$REFUSED" ]; then printf 'failed\tno room\t%s\n' "$name" >&3
            else cp "$5/$name" "$STORE" && printf 'stored\t%s\t%064d\t%s\n' "$(stat -c %s "$5/$name")" 0 "$name" >&3; fi
        done
        [ -z "$REFUSED" ]"#;
    fs::write(&program, script).unwrap();
    set_mode(&program, 0o755);
    let archiving = |refused: &str| {
        let mut command = gc(directory.path());
        command.args(["--max-age", "0", "--archive-to", "s3://bucket", "--archive-program"]).arg(&program);
        run(command.env("STORE", store.path()).env("REFUSED", refused))
    };
    let refused = log_name(1);
    let path = directory.path().join(&refused);
    let out = "deleted 2 logs (92 bytes in 2 files), archived 2 files, 1 failure; 1 log left (46 bytes)\n";
    assert_ran(&archiving(&refused), 1, out, &format!("iron-exec: archiving {} failed: no room\n", path.display()));
    assert!(path.exists() && !store.path().join(&refused).exists());
    assert_ran(&archiving(""), 0, "deleted 1 log (46 bytes in 1 file), archived 1 file; 0 logs left (0 bytes)\n", "");
    assert_eq!(fs::read_to_string(store.path().join(&refused)).unwrap(), RECORD);
}

#[test]
fn told_to_stop_it_stops_the_command_that_archives_too() {
    let (directory, store) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    plant(directory.path(), 1, RECORD, true);
    let program = store.path().join("archiver");
    fs::write(&program, "#!/bin/sh\necho $$ > \"$STORE/pid.new\"; mv \"$STORE/pid.new\" \"$STORE/pid\"; exec sleep 1000").unwrap();
    set_mode(&program, 0o755);
    let mut command = gc(directory.path());
    command.args(["--max-age", "0", "--archive-to", "s3://bucket", "--archive-program"]).arg(&program).env("STORE", store.path());
    let running = Running::start(command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()));
    let pid_file = store.path().join("pid");
    wait_until("the command runs", || pid_file.exists());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    running.signal(rustix::process::Signal::INT);
    let ran = running.finish();
    assert_eq!((ran.code, &*ran.err()), (1, "iron-exec: stopped before everything was cleaned up\n"));
    assert!(!common::process_runs(pid));
    assert_eq!(listing(directory.path()).into_keys().collect::<Vec<_>>(), [log_name(1)]);
}

#[test]
fn what_cannot_be_done_is_said_with_a_code_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    for (args, said) in [
        (vec!["--max-bytes", "max"], "give bytes"),
        (vec!["--max-age", "soon"], "give a number of seconds"),
        (vec!["--archive-program", "x"], "--archive-to"),
        (vec!["--archive-to", "http://x"], "s3://BUCKET"),
        (vec!["--log-dir", "/nonexistent"], "/nonexistent"),
        (vec!["--log-dir", "/nonexistent", "--dry-run"], "/nonexistent"),
    ] {
        let ran = if args.contains(&"--log-dir") { run(bare_tool("gc").args(&args)) } else { run(gc(directory.path()).args(&args)) };
        assert!(ran.code == 125 && ran.err().contains(said), "{args:?}: {ran:?}");
    }
    plant(directory.path(), 1, RECORD, true);
    let missing = run(gc(directory.path()).args(["--max-age", "0", "--archive-to", "s3://b", "--archive-program", "/nonexistent"]));
    assert!(missing.code == 1 && missing.err().contains("No such file"), "{missing:?}");
    let json = run(gc(directory.path()).args(["--max-age", "0", "--json", "--archive-to", "s3://b", "--archive-program", "/nonexistent"]));
    let failure = &json.json_lines()[0]["last_failure"];
    assert_eq!((&failure["operation"], &failure["errno"]), (&"archiving".into(), &2.into()));
    assert!(failure["message"].as_str().unwrap().contains("--archive-program names another"), "{failure}");
    assert_eq!(listing(directory.path()).len(), 1);
}
