//! Promise: logs are in the archive before they go: retention, in a host or by `iron-exec gc`, with the tool's own `archive`, and an S3 server that works, is down,
//! or refuses.
#![cfg(all(feature = "cli", feature = "s3"))]

mod cli_tool;
mod common;
mod s3;

use std::fs;
use std::time::Duration;

use cli_tool::{bare_tool, run};
use common::{Host, finish, turn_until};
use iron_exec::{Archive, Command, LogPolicy, Retention, RetentionStats, Worker};
use s3::Moto;

const SECRET: &str = "a-secret-that-nobody-sees";

/// An archive in a bucket of the server at `port`.
fn archive(port: u16, bucket: &str) -> Archive {
    Archive::new(format!("s3://{bucket}/host-7"))
        .program(env!("CARGO_BIN_EXE_iron-exec"))
        .env("AWS_ACCESS_KEY_ID", "someone")
        .env("AWS_SECRET_ACCESS_KEY", SECRET)
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_TIMEOUT", "2s")
        .env("AWS_CONNECT_TIMEOUT", "1s")
}

/// Runs a few jobs, one of which has a log of many files; the names and bytes of all their files.
fn write_logs(host: &Host) -> Vec<(String, Vec<u8>)> {
    let mut worker = host.worker();
    let policy = LogPolicy::new().bytes_max(4096).files_max(20);
    for script in ["echo one; exit 1", "i=0; while [ $i -lt 300 ]; do echo line $i; i=$((i+1)); done", "true"] {
        let job = worker.start(Command::shell(script).log_policy(policy)).unwrap();
        finish(&mut worker, job);
    }
    files_of(host)
}

fn files_of(host: &Host) -> Vec<(String, Vec<u8>)> {
    host.logs().into_iter().map(|name| (name.clone(), fs::read(host.log_dir.path().join(&name)).unwrap())).collect()
}

/// Runs one pass to its end.
fn pass(worker: &mut Worker) -> RetentionStats {
    worker.collect_logs();
    let before = worker.retention_stats().passes;
    turn_until(worker, |worker, _| {
        let stats = worker.retention_stats();
        stats.passes > before && !stats.running
    });
    worker.retention_stats()
}

fn retention(archive: Archive) -> Retention {
    Retention::new().logs_max(0).every(Duration::from_hours(1)).archive(archive)
}

#[test]
fn what_retention_deletes_is_in_the_archive_byte_for_byte() {
    let Some(moto) = Moto::get() else { return };
    let host = Host::new();
    let (bucket, files) = (moto.bucket(), write_logs(&host));
    assert!(files.len() > 5);
    let mut worker = host.builder().retention(retention(archive(moto.port, &bucket))).build().unwrap();
    let stats = pass(&mut worker);
    assert_eq!((stats.failures, stats.last_failure), (0, None));
    assert_eq!((stats.files_archived, stats.files_deleted, stats.logs_deleted), (files.len() as u64, files.len() as u64, 3));
    assert_eq!(host.logs(), Vec::<String>::new());
    for (name, bytes) in &files {
        assert!(moto.object(&bucket, &format!("host-7/{name}")).body == *bytes, "{name}");
    }
    assert_eq!(moto.keys(&bucket).len(), files.len());
    assert!(worker.jobs().is_empty(), "the command is no job of ours");
}

#[test]
fn compressed_logs_come_back_too() {
    let Some(moto) = Moto::get() else { return };
    let host = Host::new();
    let (bucket, files) = (moto.bucket(), write_logs(&host));
    let mut worker = host.builder().retention(retention(archive(moto.port, &bucket).compress(true))).build().unwrap();
    let stats = pass(&mut worker);
    assert_eq!((stats.failures, stats.files_deleted), (0, files.len() as u64), "{:?}", stats.last_failure);
    for (name, bytes) in &files {
        let object = moto.object(&bucket, &format!("host-7/{name}.zst"));
        assert!(zstd::decode_all(&*object.body).unwrap() == *bytes, "{name}");
    }
}

#[test]
fn nothing_is_deleted_that_was_not_stored_and_it_is_tried_again() {
    let Some(moto) = Moto::get() else { return };
    let host = Host::new();
    let (bucket, files) = (moto.bucket(), write_logs(&host));
    // Nobody listens there; and a bucket that does not exist.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for (archive, said) in [
        (archive(nobody, &bucket), ""),
        (archive(moto.port, "no-such-bucket"), "bucket"),
        (archive(moto.port, &bucket).program("/no/such/program"), "Archive::program"),
    ] {
        let mut worker = host.builder().retention(retention(archive).age_max(Duration::ZERO).bytes_max(0)).build().unwrap();
        let stats = pass(&mut worker);
        assert_eq!((stats.files_archived, stats.files_deleted), (0, 0), "{said}");
        let failure = stats.last_failure.expect("it is told").to_string();
        assert!(stats.failures > 0 && failure.contains(said) && !failure.contains(SECRET), "{failure}");
        assert_eq!(files_of(&host), files);
    }
    let mut worker = host.builder().retention(retention(archive(moto.port, &bucket))).build().unwrap();
    assert_eq!(pass(&mut worker).files_deleted, files.len() as u64);
    assert!(host.logs().is_empty());
}

#[test]
fn a_pass_by_hand_archives_with_the_tool_itself() {
    let Some(moto) = Moto::get() else { return };
    let host = Host::new();
    let (bucket, files) = (moto.bucket(), write_logs(&host));
    let gc = |bucket: &str| {
        let mut command = bare_tool("gc");
        command.env("AWS_ACCESS_KEY_ID", "someone").env("AWS_SECRET_ACCESS_KEY", SECRET).env("AWS_REGION", "us-east-1");
        command.env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", moto.port)).env("AWS_ALLOW_HTTP", "true");
        command.arg("--log-dir").arg(host.log_dir.path()).args(["--max-logs", "0", "--archive-to", &format!("s3://{bucket}")]);
        run(&mut command)
    };
    let ran = gc("no-such-bucket");
    assert_eq!(ran.code, 1, "{}{}", ran.out(), ran.err());
    assert_eq!(files_of(&host), files);
    let ran = gc(&bucket);
    assert_eq!(ran.code, 0, "{}{}", ran.out(), ran.err());
    assert!(host.logs().is_empty() && !ran.out().contains(SECRET) && !ran.err().contains(SECRET));
    assert_eq!(moto.keys(&bucket), files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>());
}

#[test]
fn a_host_that_goes_takes_the_command_with_it_and_leaves_every_log() {
    let Some(moto) = Moto::get() else { return };
    let host = Host::new();
    let (bucket, files) = (moto.bucket(), write_logs(&host));
    // A server that takes the connection and never answers.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut worker = host.builder().retention(retention(archive(port, &bucket).env("AWS_TIMEOUT", "100s"))).build().unwrap();
    worker.collect_logs();
    let accepted = std::thread::spawn(move || listener.accept().map(|(stream, _)| stream));
    turn_until(&mut worker, |worker, _| {
        let mut events = iron_exec::Events::new();
        worker.turn(&mut events, Some(Duration::from_millis(10))).unwrap();
        accepted.is_finished()
    });
    let _connection = accepted.join().unwrap().unwrap();
    drop(worker);
    // Other tests of this process have such a child, too: this one's has this directory in its command line.
    let directory = host.log_dir.path().to_str().unwrap();
    let has_directory = |child: &String| {
        let pid = child.split(' ').next().unwrap_or_default();
        fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.contains(directory))
    };
    assert_eq!(common::children().into_iter().filter(has_directory).collect::<Vec<_>>(), Vec::<String>::new());
    assert_eq!(files_of(&host), files);
}
