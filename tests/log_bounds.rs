//! Promise: a log stays within its bounds. It is rotated without losing or repeating a byte, cut where its policy says so, held to a rate; a log that cannot be
//! written costs the job what its policy says and nothing else; and whatever is missing is counted, and said where it is missing.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Census, Host, finish, isolated, not_root, turn_until};
use iron_exec::framing::cri::{Decoded, Decoder};
use iron_exec::{
    BuildError, Capture, Command, CommandError, Event, JobId, LogFormat, LogPolicy, OnLogFault, OutputStream, OverRate, StartError, Status,
    StopReason, WhenFull, Worker,
};

const ENOSPC: i32 = 28;
const EEXIST: i32 = 17;

/// `n` numbered lines, all of one length.
fn lines(range: std::ops::Range<usize>) -> Vec<u8> {
    range.flat_map(|n| format!("line {n:06} of a job that writes much\n").into_bytes()).collect()
}

/// A job that writes these lines.
fn writer(range: std::ops::Range<usize>) -> Command {
    Command::new("cat").stdin_bytes(lines(range))
}

/// The files of a job's log, oldest first; the newest is the last.
fn files_of(status: &Status) -> Vec<PathBuf> {
    let newest = status.log.clone().expect("the job has a log");
    let name = newest.file_name().unwrap().to_str().unwrap().to_owned();
    let entries = fs::read_dir(newest.parent().unwrap()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let rotated: BTreeSet<String> = entries.filter(|entry| entry.starts_with(&format!("{name}."))).collect();
    rotated.into_iter().map(|entry| newest.with_file_name(entry)).chain([newest.clone()]).collect()
}

fn numbers_of(files: &[PathBuf]) -> Vec<String> {
    files.iter().map(|file| file.file_name().unwrap().to_str().unwrap().rsplit_once(".log").unwrap().1.to_owned()).collect()
}

/// The job's bytes in these files, and what they say of missing ones. No record is older than the one before it.
fn content_of(files: &[PathBuf], format: LogFormat) -> (Vec<u8>, Vec<u64>) {
    let (mut bytes, mut missing, mut last) = (Vec::new(), Vec::new(), None);
    for file in files {
        let text = fs::read(file).unwrap();
        if format == LogFormat::Raw {
            bytes.extend(text);
            continue;
        }
        let (mut decoder, mut rest) = (Decoder::new(), text.as_slice());
        while !rest.is_empty() {
            let (time, len) = match decoder.decode(rest) {
                Decoded::Record { time, partial, content, len, .. } => {
                    bytes.extend_from_slice(content);
                    bytes.extend_from_slice(if partial { b"" } else { b"\n" });
                    (time, len)
                }
                Decoded::Dropped { time, bytes, len } => {
                    missing.push(bytes);
                    (time, len)
                }
                other => panic!("{}: {other:?}", file.display()),
            };
            assert!(last <= Some(time), "{}: times run backwards at {:?}", file.display(), String::from_utf8_lossy(&rest[..len]));
            last = Some(time);
            rest = &rest[len..];
        }
    }
    (bytes, missing)
}

fn mode_of(file: &Path) -> u32 {
    fs::metadata(file).unwrap().permissions().mode() & 0o7777
}

fn echo(worker: &mut Worker, job: JobId, stdin: &mut impl Write, text: &[u8]) -> Vec<Event> {
    let read = worker.query(job).unwrap().output.stdout_bytes;
    stdin.write_all(text).unwrap();
    turn_until(worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == read + text.len() as u64)
}

fn start_cat(worker: &mut Worker, command: Command) -> (JobId, std::io::PipeWriter) {
    let job = worker.start(command.stdin_piped()).unwrap();
    let stdin = worker.take_stdin(job).unwrap().unwrap();
    (job, stdin)
}

// Rotation.

#[test]
fn a_full_log_is_renamed_once_and_the_next_begun_and_no_byte_is_lost_or_repeated() {
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(10_000).files_max(100);
        let mut worker = host.builder().log_format(format).log_policy(policy).build().unwrap();
        let job = worker.start(writer(0..2000)).unwrap();
        let status = finish(&mut worker, job);
        let files = files_of(&status);
        let rotations = status.output.rotations;
        assert!(rotations >= 7 && files.len() as u64 == rotations + 1, "{rotations} rotations, {files:?}");
        let expected: Vec<String> = (1..=rotations).map(|n| format!(".{n:06}")).chain([String::new()]).collect();
        assert_eq!(numbers_of(&files), expected);
        for file in &files {
            let meta = fs::metadata(file).unwrap();
            assert!(meta.len() <= 10_000 && mode_of(file) == 0o400 && meta.nlink() == 1, "{}: {} bytes", file.display(), meta.len());
            assert!(fs::read(file).unwrap().ends_with(b"\n"), "cut between records");
        }
        assert_eq!(content_of(&files, format), (lines(0..2000), vec![]));
        assert_eq!((status.output.dropped_bytes, status.output.discarded_bytes, status.output.deleted_bytes), (0, 0, 0));
    }
}

#[test]
fn of_a_rotated_log_the_newest_files_are_kept_and_what_was_deleted_is_counted() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(8192).files_max(3);
    let mut worker = host.worker();
    let job = worker.start(writer(0..5000).log_policy(policy)).unwrap();
    let status = finish(&mut worker, job);
    let files = files_of(&status);
    let last = status.output.rotations;
    assert_eq!(numbers_of(&files), [format!(".{:06}", last - 1), format!(".{last:06}"), String::new()]);
    let (kept, missing) = content_of(&files, LogFormat::Cri);
    let all = lines(0..5000);
    assert!(all.ends_with(&kept) && missing.is_empty());
    assert_eq!(status.output.deleted_bytes, (all.len() - kept.len()) as u64);
    assert_eq!(status.output.dropped_bytes, 0);
}

#[test]
fn a_record_longer_than_a_file_has_a_file_of_its_own_and_raw_bytes_without_lines_are_cut_anywhere() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).files_max(50);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let text = [&b"short\n"[..], &b"x".repeat(10_000), b"\nshort again\n"].concat();
    let job = worker.start(Command::new("cat").stdin_bytes(text.clone())).unwrap();
    let status = finish(&mut worker, job);
    let files = files_of(&status);
    assert_eq!(content_of(&files, LogFormat::Cri).0, text);
    let lengths: Vec<u64> = files.iter().map(|file| fs::metadata(file).unwrap().len()).collect();
    assert!(lengths.len() == 3 && lengths[1] > 10_000, "{lengths:?}");

    let text = b"y".repeat(50_000);
    let job = worker.start(Command::new("cat").stdin_bytes(text.clone()).log_format(LogFormat::Raw)).unwrap();
    let status = finish(&mut worker, job);
    let files = files_of(&status);
    assert!(files.iter().all(|file| fs::metadata(file).unwrap().len() <= 4096));
    assert_eq!(content_of(&files, LogFormat::Raw).0, text);
}

#[test]
fn the_logs_name_stands_for_the_newest_file_at_every_moment() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).files_max(4);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    let log = worker.query(job).unwrap().log.unwrap();
    let is_over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let looker = std::thread::spawn({
        let (log, is_over) = (log.clone(), Arc::clone(&is_over));
        move || {
            let mut looks = 0_u64;
            while !is_over.load(std::sync::atomic::Ordering::SeqCst) {
                let meta = fs::metadata(&log).expect("the log is there");
                assert_eq!(meta.permissions().mode() & 0o777, 0o600, "a file that is sealed is not the newest");
                looks += 1;
            }
            looks
        }
    });
    for round in 0..60 {
        echo(&mut worker, job, &mut stdin, &lines(round * 50..(round + 1) * 50));
    }
    is_over.store(true, std::sync::atomic::Ordering::SeqCst);
    let looks = looker.join().expect("it was there at every look");
    assert!(worker.query(job).unwrap().output.rotations > 20);
    println!("{looks} looks");
}

#[test]
fn a_log_that_is_closed_for_idleness_is_rotated_all_the_same() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).files_max(100);
    let mut worker = host.builder().open_logs_max(0).log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    for round in 0..30 {
        echo(&mut worker, job, &mut stdin, &lines(round * 20..(round + 1) * 20));
    }
    drop(stdin);
    let status = finish(&mut worker, job);
    assert!(status.output.rotations >= 5);
    assert_eq!(content_of(&files_of(&status), LogFormat::Cri), (lines(0..600), vec![]));
}

#[test]
fn without_the_exchange_of_names_a_log_is_rotated_in_steps() {
    isolated("without_the_exchange_of_names_a_log_is_rotated_in_steps", || {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(4096).files_max(100);
        let mut worker = host.builder().log_policy(policy).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
        common::refuse_renameat2();
        for round in 0..30 {
            echo(&mut worker, job, &mut stdin, &lines(round * 20..(round + 1) * 20));
        }
        drop(stdin);
        let status = finish(&mut worker, job);
        let files = files_of(&status);
        assert!(status.output.rotations >= 5 && files.len() as u64 == status.output.rotations + 1, "{files:?}");
        assert_eq!(content_of(&files, LogFormat::Cri), (lines(0..600), vec![]));
        assert!(files.iter().all(|file| fs::metadata(file).unwrap().nlink() == 1));
    });
}

#[test]
fn a_number_that_somebody_has_taken_is_a_fault_and_costs_no_byte_of_a_job_that_waits() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).on_fault(OnLogFault::Pause);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    let log = worker.query(job).unwrap().log.unwrap();
    let planted = PathBuf::from(format!("{}.000001", log.display()));
    std::os::unix::fs::symlink("/etc/passwd", &planted).unwrap();
    stdin.write_all(&lines(0..100)).unwrap();
    let seen = turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogFault { errno: EEXIST, .. })));
    assert!(!seen.iter().any(|event| matches!(event, Event::LogResumed { .. })));
    assert!(fs::symlink_metadata(&planted).unwrap().is_symlink(), "it is left alone");
    fs::remove_file(&planted).unwrap();
    turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogResumed { dropped_bytes: 0, .. })));
    drop(stdin);
    let status = finish(&mut worker, job);
    assert_eq!(content_of(&files_of(&status), LogFormat::Cri), (lines(0..100), vec![]));
}

#[test]
fn what_a_failed_start_leaves_of_a_log_is_nothing_and_rotation_leaves_no_descriptor() {
    isolated("what_a_failed_start_leaves_of_a_log_is_nothing_and_rotation_leaves_no_descriptor", || {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(4096).files_max(2).rate_max(1 << 30, OverRate::Drop);
        let mut worker = host.builder().log_policy(policy).build().unwrap();
        let job = worker.start(writer(0..10)).unwrap();
        finish(&mut worker, job);
        let before = Census::take(&host);
        assert!(worker.start(Command::new("/no/such/program")).is_err());
        assert_eq!(Census::take(&host), before);
        let job = worker.start(writer(0..20_000)).unwrap();
        let status = finish(&mut worker, job);
        assert!(status.output.rotations > 100);
        for file in files_of(&status) {
            fs::remove_file(file).unwrap();
        }
        assert_eq!(Census::take(&host), before);
    });
}

// Caps.

#[test]
fn a_log_that_drops_its_tail_ends_where_it_is_full_and_says_what_is_missing() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(8192).when_full(WhenFull::DropTail);
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat").log_policy(policy));
    let mut seen = Vec::new();
    for round in 0..20 {
        seen.extend(echo(&mut worker, job, &mut stdin, &lines(round * 20..(round + 1) * 20)));
    }
    let log = worker.query(job).unwrap().log.unwrap();
    let (_, missing) = content_of(std::slice::from_ref(&log), LogFormat::Cri);
    assert!(missing.len() == 1 && missing[0] > 0, "it is said at once that it is full: {missing:?}");
    drop(stdin);
    seen.extend(turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished()));
    assert_eq!(seen.iter().filter(|event| matches!(event, Event::LogFull { .. })).count(), 1);
    let status = worker.query(job).unwrap();
    let files = files_of(&status);
    assert_eq!(files.len(), 1);
    assert!(fs::metadata(&log).unwrap().len() <= 8192);
    let (kept, missing) = content_of(&files, LogFormat::Cri);
    let all = lines(0..400);
    assert!(all.starts_with(&kept) && kept.len() > 3000);
    let dropped = (all.len() - kept.len()) as u64;
    assert_eq!((status.output.discarded_bytes, missing), (dropped, vec![dropped]), "the last record has the final number");
    assert!(status.success());
}

#[test]
fn a_raw_log_that_drops_its_tail_is_the_beginning_of_the_output_and_nothing_else() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(8192).when_full(WhenFull::DropTail);
    let mut worker = host.builder().log_format(LogFormat::Raw).log_policy(policy).build().unwrap();
    let job = worker.start(writer(0..1000)).unwrap();
    let status = finish(&mut worker, job);
    let text = fs::read(status.log.unwrap()).unwrap();
    let all = lines(0..1000);
    assert!(text.len() <= 8192 && text.ends_with(b"\n") && all.starts_with(&text));
    assert_eq!(status.output.discarded_bytes, (all.len() - text.len()) as u64);
}

#[test]
fn a_log_that_drops_its_middle_keeps_its_beginning_and_its_end_and_says_what_is_missing_between() {
    for rounds in [5, 40] {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(8192).files_max(3).when_full(WhenFull::DropMiddle);
        let mut worker = host.builder().log_policy(policy).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
        for round in 0..rounds {
            echo(&mut worker, job, &mut stdin, &lines(round * 100..(round + 1) * 100));
        }
        drop(stdin);
        let status = finish(&mut worker, job);
        let files = files_of(&status);
        let last = status.output.rotations;
        let expected = [".000001".to_owned(), ".000002".to_owned(), format!(".{last:06}"), String::new()];
        assert_eq!(numbers_of(&files), expected, "the first, what stands for the middle, and the end");
        let (head, none) = content_of(&files[..1], LogFormat::Cri);
        let (nothing, missing) = content_of(&files[1..2], LogFormat::Cri);
        assert_eq!(content_of(&files, LogFormat::Cri).1, missing, "and no record is older than the one before it, in all of them");
        let (tail, none_either) = content_of(&files[2..], LogFormat::Cri);
        let all = lines(0..rounds * 100);
        assert!(all.starts_with(&head) && all.ends_with(&tail) && !head.is_empty() && !tail.is_empty());
        assert!(nothing.is_empty() && none.is_empty() && none_either.is_empty());
        let dropped = (all.len() - head.len() - tail.len()) as u64;
        assert_eq!((missing, status.output.discarded_bytes), (vec![dropped], dropped));
        assert!(files.iter().all(|file| mode_of(file) == 0o400));
    }
}

#[test]
fn a_raw_log_of_one_long_line_that_drops_its_tail_keeps_its_beginning() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).when_full(WhenFull::DropTail);
    let mut worker = host.builder().log_format(LogFormat::Raw).log_policy(policy).build().unwrap();
    let job = worker.start(Command::new("cat").stdin_bytes(b"x".repeat(50_000))).unwrap();
    let status = finish(&mut worker, job);
    assert_eq!(fs::read(status.log.unwrap()).unwrap(), b"x".repeat(4096));
    assert_eq!(status.output.discarded_bytes, 50_000 - 4096);
}

#[test]
fn the_last_word_of_a_full_log_stands_right_also_where_somebody_else_has_added_to_it() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(8192).when_full(WhenFull::DropTail);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    echo(&mut worker, job, &mut stdin, &lines(0..10));
    let log = worker.query(job).unwrap().log.unwrap();
    let added = "2026-11-23T03:26:58.000000000Z stdout F added by somebody\n";
    fs::OpenOptions::new().append(true).open(&log).unwrap().write_all(added.as_bytes()).unwrap();
    for round in 0..20 {
        echo(&mut worker, job, &mut stdin, &lines(10 + round * 20..30 + round * 20));
    }
    drop(stdin);
    let status = finish(&mut worker, job);
    let text = fs::read_to_string(&log).unwrap();
    let last = text.lines().last().unwrap();
    assert!(
        last.contains(&format!("[iron-exec: {} bytes of output are missing here: the log is full]", status.output.discarded_bytes)),
        "{last}"
    );
    assert!(
        text.lines().filter(|line| line.contains(" of a job that writes much")).all(|line| line.len() == 40 + 37),
        "no record was damaged"
    );
}

// Rates.

#[test]
fn the_end_of_a_job_lifts_its_rate_also_where_there_are_no_cgroups() {
    let host = Host::new();
    let policy = LogPolicy::new().rate_max(4096, OverRate::Pause);
    let mut worker = host.builder().cgroup_base(iron_exec::CgroupBase::Off).log_policy(policy).build().unwrap();
    let began = Instant::now();
    let bytes = lines(0..1000);
    let job = worker.start(Command::new("cat").stdin_bytes(bytes.clone())).unwrap();
    let status = finish(&mut worker, job);
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    assert_eq!(content_of(&files_of(&status), LogFormat::Cri), (bytes, vec![]));
    assert!(!status.output.cut_off && status.output.dropped_bytes == 0);
}

#[test]
fn the_loop_is_quiet_while_an_unfinished_line_waits_for_a_rate() {
    let host = Host::new();
    let policy = LogPolicy::new().rate_max(1024, OverRate::Pause);
    let mut worker = host.builder().line_flush_time(Duration::ZERO).log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    // Far more than a second's worth, and then a line without an end.
    echo(&mut worker, job, &mut stdin, &[lines(0..200), b"a prompt".to_vec()].concat());
    stdin.write_all(b"more").unwrap();
    let mut events = iron_exec::Events::new();
    let (began, mut turns) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_secs(1) {
        worker.turn(&mut events, Some(Duration::from_secs(1))).unwrap();
        turns += 1;
    }
    assert!(turns < 60, "{turns} turns");
}

#[test]
fn a_rate_that_pauses_slows_the_job_down_and_loses_nothing() {
    let host = Host::new();
    // Far more than a pipe holds, on top of the first second's worth.
    let bytes = lines(0..60_000);
    let rate = bytes.len() as u64 / 4;
    let mut worker = host.builder().log_policy(LogPolicy::new().rate_max(rate, OverRate::Pause)).build().unwrap();
    let began = Instant::now();
    let job = worker.start(Command::new("cat").stdin_bytes(bytes.clone())).unwrap();
    let status = finish(&mut worker, job);
    let took = began.elapsed();
    assert_eq!(content_of(&files_of(&status), LogFormat::Cri), (bytes, vec![]));
    assert_eq!((status.output.dropped_bytes, status.output.discarded_bytes), (0, 0));
    // What the pipe still held at the end was taken at once.
    assert!(took > Duration::from_secs(1), "{took:?} for four seconds' worth, of which the first comes at once, and the pipe's last, too");
}

#[test]
fn a_rate_that_drops_costs_counted_bytes_and_says_where_they_are_missing() {
    let host = Host::new();
    let policy = LogPolicy::new().rate_max(20_000, OverRate::Drop);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    let began = Instant::now();
    for round in 0..100 {
        echo(&mut worker, job, &mut stdin, &lines(round * 50..(round + 1) * 50));
    }
    let until = began + Duration::from_millis(1500);
    turn_until(&mut worker, |worker, _| {
        let mut events = iron_exec::Events::new();
        worker.turn(&mut events, Some(until.saturating_duration_since(Instant::now()))).unwrap();
        Instant::now() >= until
    });
    echo(&mut worker, job, &mut stdin, b"the last line\n");
    drop(stdin);
    let status = finish(&mut worker, job);
    let (kept, missing) = content_of(&files_of(&status), LogFormat::Cri);
    let all = [lines(0..5000), b"the last line\n".to_vec()].concat();
    assert!(kept.ends_with(b"the last line\n"));
    assert!(status.output.discarded_bytes > 0 && kept.len() < all.len());
    assert_eq!(kept.len() as u64 + status.output.discarded_bytes, all.len() as u64);
    assert_eq!(missing.iter().sum::<u64>(), status.output.discarded_bytes, "{missing:?}");
    assert!(
        kept.split(|byte| *byte == b'\n').all(|line| line.is_empty() || line.len() == 37 || line == b"the last line"),
        "whole lines only"
    );
}

/// Turns the loop until so much time has passed.
fn pass(worker: &mut Worker, time: Duration) {
    let (until, mut events) = (Instant::now() + time, iron_exec::Events::new());
    while let Some(left) = until.checked_duration_since(Instant::now()) {
        worker.turn(&mut events, Some(left)).unwrap();
    }
}

#[test]
fn what_a_log_says_last_has_its_place_within_the_bounds_too() {
    // Each begins with a line that leaves no room for a word in a rotated log, or fills one that drops its tail; what follows comes too fast.
    let line = |bytes| [&b"x".repeat(bytes)[..], b"\n"].concat();
    for (when_full, first) in [(WhenFull::Rotate, line(3990)), (WhenFull::DropTail, [line(3800), line(100)].concat())] {
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(4096).when_full(when_full).rate_max(1024, OverRate::Drop);
        let mut worker = host.builder().log_policy(policy).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
        echo(&mut worker, job, &mut stdin, &first);
        echo(&mut worker, job, &mut stdin, &lines(0..10));
        drop(stdin);
        let status = finish(&mut worker, job);
        let files = files_of(&status);
        let lengths: Vec<u64> = files.iter().map(|file| fs::metadata(file).unwrap().len()).collect();
        assert!(lengths.iter().all(|length| *length <= 4096), "{lengths:?}");
        let (_, missing) = content_of(&files, LogFormat::Cri);
        assert_eq!(missing, [status.output.discarded_bytes], "{when_full:?}");
    }
}

#[test]
fn what_was_missing_in_the_middle_is_still_said_when_that_is_dropped() {
    let host = Host::new();
    let policy = LogPolicy::new().bytes_max(4096).files_max(2).when_full(WhenFull::DropMiddle).rate_max(20_000, OverRate::Drop);
    let mut worker = host.builder().log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    echo(&mut worker, job, &mut stdin, &lines(0..600));
    // These come too fast.
    echo(&mut worker, job, &mut stdin, &lines(600..650));
    pass(&mut worker, Duration::from_millis(1500));
    // The word that those are missing stands before these, in a file that goes for the last of them.
    echo(&mut worker, job, &mut stdin, &lines(650..1200));
    drop(stdin);
    let status = finish(&mut worker, job);
    let (kept, missing) = content_of(&files_of(&status), LogFormat::Cri);
    let all = lines(0..1200).len() as u64;
    assert_eq!(kept.len() as u64 + status.output.discarded_bytes, all);
    assert_eq!(missing.iter().sum::<u64>(), status.output.discarded_bytes, "{missing:?}");
}

// Faults.

#[test]
fn a_log_that_cannot_say_at_once_that_it_is_full_says_so_later() {
    isolated("a_log_that_cannot_say_at_once_that_it_is_full_says_so_later", || {
        use nix::sys::signal::{SigSet, Signal};
        use rustix::process::{Resource, Rlimit, setrlimit};
        let limit = |bytes| setrlimit(Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
        SigSet::from_iter([Signal::SIGXFSZ]).thread_block().unwrap();
        let host = Host::new();
        let policy = LogPolicy::new().bytes_max(8192).when_full(WhenFull::DropTail);
        let mut worker = host.builder().log_policy(policy).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
        echo(&mut worker, job, &mut stdin, &lines(0..80));
        let log = worker.query(job).unwrap().log.unwrap();
        limit(Some(fs::metadata(&log).unwrap().len()));
        echo(&mut worker, job, &mut stdin, &[&b"x".repeat(3000)[..], b"\n"].concat());
        assert_eq!(content_of(std::slice::from_ref(&log), LogFormat::Cri), (lines(0..80), vec![]));
        limit(None);
        drop(stdin);
        let status = finish(&mut worker, job);
        assert_eq!(content_of(&[log], LogFormat::Cri), (lines(0..80), vec![3001]));
        assert_eq!(status.output.discarded_bytes, 3001);
    });
}

#[test]
fn a_job_that_is_paused_by_a_full_disk_goes_on_when_there_is_room_and_loses_nothing() {
    for format in [LogFormat::Cri, LogFormat::Raw] {
        let Some(disk) = common::SmallDisk::mount() else { return };
        let host = Host::new();
        let policy = LogPolicy::new().on_fault(OnLogFault::Pause);
        let builder = host.builder().log_dir(disk.path()).log_format(format).log_policy(policy);
        let mut worker = builder.build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
        echo(&mut worker, job, &mut stdin, &lines(0..100));
        disk.set_full(true);
        // Near a megabyte: more than the pipes hold. The writer waits as the job does.
        let feeder = std::thread::spawn(move || stdin.write_all(&lines(100..25_000)));
        let seen = turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogFault { errno: ENOSPC, .. })));
        assert!(seen.iter().all(|event| !matches!(event, Event::Exited { .. })));
        let held = worker.query(job).unwrap().output.stdout_bytes;
        let mut events = iron_exec::Events::new();
        let until = Instant::now() + Duration::from_millis(300);
        while Instant::now() < until {
            worker.turn(&mut events, Some(until.saturating_duration_since(Instant::now()))).unwrap();
        }
        let status = worker.query(job).unwrap();
        assert_eq!((status.output.stdout_bytes, status.output.dropped_bytes), (held, 0), "nothing is read while it waits");
        assert!(!feeder.is_finished(), "the job waits");
        // Room for a part of it, and then for all.
        disk.set_full(false);
        let grown = process::Command::new("mount").args(["-o", "remount,size=4m"]).arg(disk.path()).status().unwrap();
        assert!(grown.success());
        let seen = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
        assert!(seen.iter().any(|event| matches!(event, Event::LogResumed { dropped_bytes: 0, .. })), "{seen:?}");
        feeder.join().unwrap().unwrap();
        let status = worker.query(job).unwrap();
        assert_eq!(content_of(&files_of(&status), format), (lines(0..25_000), vec![]));
        assert!(status.success() && status.output.dropped_bytes == 0);
    }
}

#[test]
fn a_paused_job_that_has_ended_is_waited_for_and_then_every_byte_is_logged_or_counted() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let policy = LogPolicy::new().on_fault(OnLogFault::Pause);
    let drain = Duration::from_millis(700);
    let mut worker = host.builder().log_dir(disk.path()).log_policy(policy).drain_total_max(drain).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::shell("cat; exit 5"));
    echo(&mut worker, job, &mut stdin, &lines(0..100));
    disk.set_full(true);
    stdin.write_all(&lines(100..1500)).unwrap();
    drop(stdin);
    let began = Instant::now();
    let status = finish(&mut worker, job);
    assert!(began.elapsed() >= drain, "it was waited for: {:?}", began.elapsed());
    assert_eq!(status.exit_code, 5);
    let (kept, _) = content_of(&files_of(&status), LogFormat::Cri);
    let all = lines(0..1500);
    assert!(all.starts_with(&kept));
    assert_eq!(status.output.stdout_bytes, all.len() as u64, "all that it wrote was read");
    assert_eq!(kept.len() as u64 + status.output.dropped_bytes, all.len() as u64);
    assert!(!status.output.cut_off, "nothing was left unread");
}

#[test]
fn a_raw_log_that_ends_on_a_full_disk_is_not_said_to_work_again() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let mut worker = host.builder().log_dir(disk.path()).log_format(LogFormat::Raw).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    disk.set_full(true);
    let mut seen = echo(&mut worker, job, &mut stdin, &b"x".repeat(20_000));
    drop(stdin);
    seen.extend(turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished()));
    assert!(seen.iter().any(|event| matches!(event, Event::LogFault { .. })));
    assert!(!seen.iter().any(|event| matches!(event, Event::LogResumed { .. })), "{seen:?}");
}

#[test]
fn two_jobs_that_write_their_logs_themselves_do_not_hold_up_a_third() {
    let host = Host::new();
    let mut worker = host.worker();
    let noisy = || Command::new("python3").args(["-c", "import os\nwhile True: os.write(1, b'x')"]).capture(Capture::Direct);
    let jobs = [worker.start(noisy()).unwrap(), worker.start(noisy()).unwrap()];
    let streams: Vec<_> = jobs.iter().map(|job| worker.stream(*job).unwrap()).collect();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    for n in 0..20 {
        echo(&mut worker, job, &mut stdin, &lines(n..n + 1));
    }
    drop(streams);
    for job in jobs {
        worker.stop(job).unwrap();
        finish(&mut worker, job);
    }
}

#[test]
fn a_job_that_may_not_outlive_its_log_is_killed_and_the_status_says_why() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let mut worker = host.builder().log_dir(disk.path()).build().unwrap();
    let (job, mut stdin) =
        start_cat(&mut worker, Command::shell("sleep 1000 & cat; wait").log_policy(LogPolicy::new().on_fault(OnLogFault::Kill)));
    let other = worker.start(Command::new("cat").stdin_piped()).unwrap();
    echo(&mut worker, job, &mut stdin, b"one\n");
    disk.set_full(true);
    stdin.write_all(&b"x\n".repeat(10_000)).unwrap();
    let seen = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
    assert!(seen.iter().any(|event| matches!(event, Event::LogFault { errno: ENOSPC, .. })));
    let status = worker.query(job).unwrap();
    assert_eq!((status.stop_reason, status.exit_code), (Some(StopReason::LogFault), -1));
    assert_eq!(status.stop_reason.unwrap().as_str(), "log_fault");
    assert!(status.output.dropped_bytes > 0);
    assert!(!worker.query(other).unwrap().is_finished(), "it is this job's log only");
}

#[test]
fn the_loop_is_quiet_while_a_job_waits_for_its_log() {
    let Some(disk) = common::SmallDisk::mount() else { return };
    let host = Host::new();
    let policy = LogPolicy::new().on_fault(OnLogFault::Pause);
    let mut worker = host.builder().log_dir(disk.path()).log_policy(policy).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    disk.set_full(true);
    stdin.write_all(&b"x".repeat(60_000)).unwrap();
    turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogFault { .. })));
    let mut events = iron_exec::Events::new();
    let (began, mut turns) = (Instant::now(), 0);
    while began.elapsed() < Duration::from_millis(1500) {
        worker.turn(&mut events, Some(Duration::from_millis(1500))).unwrap();
        turns += 1;
    }
    // 20, 40, 80 … ms: each try is a turn, and the timer's word may be one more.
    assert!(turns < 40, "{turns} turns");
    assert!(!worker.query(job).unwrap().is_finished());
}

// Direct capture.

#[test]
fn a_job_with_direct_capture_writes_its_log_itself() {
    let host = Host::new();
    let mut worker = host.worker();
    let command = Command::shell("echo out; echo err >&2; exit 3").capture(Capture::Direct);
    let job = worker.start(command).unwrap();
    let status = finish(&mut worker, job);
    let log = status.log.clone().unwrap();
    assert_eq!(fs::read(&log).unwrap(), b"out\nerr\n");
    assert_eq!((mode_of(&log), status.exit_code, status.output.stdout_bytes), (0o400, 3, 8));
    assert_eq!(common::output_of(&status), b"out\nerr\n");
}

#[test]
fn a_job_with_direct_capture_has_the_file_to_append_to_and_costs_the_host_one_descriptor() {
    isolated("a_job_with_direct_capture_has_the_file_to_append_to_and_costs_the_host_one_descriptor", || {
        let host = Host::new();
        let mut worker = host.worker();
        let before = common::open_fds().len();
        let script = "for fd in 1 2; do grep flags /proc/self/fdinfo/$fd; done; readlink /proc/self/fd/1; read line";
        let (job, mut stdin) = start_cat(&mut worker, Command::shell(script).capture(Capture::Direct));
        let log = worker.query(job).unwrap().log.unwrap();
        common::wait_until("the job has written", || fs::read(&log).unwrap().split(|byte| *byte == b'\n').count() == 4);
        let text = fs::read_to_string(&log).unwrap();
        for flags in text.lines().take(2).map(|line| line.split_whitespace().nth(1).unwrap()) {
            let flags = u32::from_str_radix(flags, 8).unwrap();
            assert_eq!((flags & 0o2000, flags & 0o3), (0o2000, 1), "to append, not to read");
        }
        assert_eq!(text.lines().nth(2), log.to_str());
        // The pidfd and the pipe of its stdin, which we hold.
        assert_eq!(common::open_fds().len(), before + 2);
        stdin.write_all(b"go\n").unwrap();
        finish(&mut worker, job);
    });
}

#[test]
fn a_log_that_the_job_writes_itself_is_streamed_live() {
    let host = Host::new();
    let mut worker = host.worker();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat").capture(Capture::Direct));
    let mut stream = worker.stream(job).unwrap();
    for round in 0..50 {
        let text = lines(round..round + 1);
        assert!(stream.try_fill_buf().is_pending());
        stdin.write_all(&text).unwrap();
        turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogReady { .. })));
        let std::task::Poll::Ready(Ok(bytes)) = stream.try_fill_buf() else { panic!("it is there") };
        assert_eq!(bytes, text);
        stream.consume(text.len());
    }
    let watches = common::inotify_watches();
    assert!(watches > 0);
    drop(stream);
    stdin.write_all(b"nobody reads this\n").unwrap();
    drop(stdin);
    let status = finish(&mut worker, job);
    assert!(status.success() && common::inotify_watches() < watches, "a watch goes with its job");
    let mut late = worker.stream(job).unwrap();
    let std::task::Poll::Ready(Ok(bytes)) = late.try_fill_buf() else { panic!("it is there") };
    assert_eq!(bytes.len(), 50 * 38 + 18);
}

#[test]
fn a_job_of_another_user_writes_its_log_itself_but_does_not_own_it() {
    if not_root() {
        return;
    }
    let host = Host::new();
    let mut worker = host.worker();
    let command = Command::shell("id -u; cat /proc/self/fd/1").uid(65534).gid(65534).capture(Capture::Direct);
    let job = worker.start(command).unwrap();
    let status = finish(&mut worker, job);
    let meta = fs::metadata(status.log.as_ref().unwrap()).unwrap();
    assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, 0o400));
    let text = String::from_utf8(common::output_of(&status)).unwrap();
    assert!(text.starts_with("65534\n") && text.contains("ermission denied"), "{text}");
}

#[test]
fn what_direct_capture_excludes_is_an_error_of_the_command_and_a_workers_defaults_do_not_reach_it() {
    let direct = || Command::new("true").capture(Capture::Direct);
    let bounded = LogPolicy::new().bytes_max(1 << 20);
    for command in [
        direct().log_format(LogFormat::Cri),
        direct().log_policy(bounded),
        direct().log_policy(LogPolicy::new().on_fault(OnLogFault::Pause)),
        direct().log_policy(LogPolicy::new().rate_max(1 << 20, OverRate::Drop)),
    ] {
        let error = command.check().unwrap_err();
        assert!(matches!(error, CommandError::Conflict { .. }) && error.to_string().contains("direct capture"), "{error}");
    }
    let host = Host::new();
    let mut worker = host.builder().log_format(LogFormat::Cri).log_policy(bounded).build().unwrap();
    let job = worker.start(direct().log_format(LogFormat::Raw)).unwrap();
    assert!(finish(&mut worker, job).success());
    let job = worker.start(direct()).unwrap();
    assert!(finish(&mut worker, job).success());
    let job = worker.start(Command::new("true").capture(Capture::Discard)).unwrap();
    assert!(finish(&mut worker, job).success());
}

#[test]
fn a_policy_that_cannot_be_is_refused_before_anything_exists() {
    let host = Host::new();
    let middle = LogPolicy::new().bytes_max(1 << 20).when_full(WhenFull::DropMiddle);
    let built = host.builder().log_format(LogFormat::Raw).log_policy(middle).build();
    assert!(matches!(built, Err(BuildError::LogPolicy { .. })));
    assert!(matches!(host.builder().log_policy(LogPolicy::new().bytes_max(1)).build(), Err(BuildError::LogPolicy { .. })));
    let mut worker = host.builder().log_format(LogFormat::Raw).build().unwrap();
    let error = worker.start(Command::new("true").log_policy(middle)).unwrap_err();
    assert!(matches!(error, StartError::Command(_)), "{error}");
    assert!(host.logs().is_empty());
}

// Pieces that gather.

#[test]
fn small_writes_gather_in_the_pipe_and_every_byte_of_both_streams_comes_in_order() {
    let host = Host::new();
    let mut worker = host.worker();
    // Byte by byte, 40,000 system calls.
    let script = "import os\nfor i in range(20000):\n os.write(1, b'%d\\n' % (i % 10))\n os.write(2, b'e\\n')\n";
    let job = worker.start(Command::new("python3").args(["-c", script])).unwrap();
    let status = finish(&mut worker, job);
    let mut stream = worker.stream_with(job, &iron_exec::ReadOptions::new().only(OutputStream::Stdout)).unwrap();
    let mut bytes = Vec::new();
    while let std::task::Poll::Ready(Ok(Some(record))) = stream.try_next_record() {
        bytes.extend_from_slice(record.bytes);
    }
    let expected: Vec<u8> = (0..20_000).flat_map(|i| [b'0' + (i % 10) as u8, b'\n']).collect();
    assert!(bytes == expected && status.output.stderr_bytes == 40_000 && !status.output.cut_off);
}

#[test]
fn a_line_that_follows_a_burst_is_not_held_longer_than_asked() {
    let host = Host::new();
    let mut worker = host.builder().coalesce_time(Duration::from_millis(100)).build().unwrap();
    let (job, mut stdin) = start_cat(&mut worker, Command::new("cat"));
    for n in 0..200 {
        echo(&mut worker, job, &mut stdin, &lines(n..n + 1));
    }
    let began = Instant::now();
    echo(&mut worker, job, &mut stdin, b"an answer\n");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

// A failing disk.

/// An ext4 file system on a loop device, for as long as it lives.
struct Disk(tempfile::TempDir);

impl Disk {
    fn mount() -> Option<Self> {
        if not_root() {
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image");
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        fs::create_dir(directory.path().join("disk")).unwrap();
        let script = "mkfs.ext4 -q image && mount -o loop image disk";
        let made = process::Command::new("sh").args(["-c", script]).current_dir(directory.path()).output().unwrap();
        if made.status.success() {
            return Some(Self(directory));
        }
        let _ = common::cannot_run(&format!("ext4 on a loop device cannot be had: {}", String::from_utf8_lossy(&made.stderr)));
        None
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk")
    }

    /// As if the device had gone: ext4 answers EIO from now on (EXT4_IOC_SHUTDOWN).
    fn fail(&self) {
        let script = "import fcntl, os, struct, sys\nfcntl.ioctl(os.open(sys.argv[1], 0), 0x8004587D, struct.pack('I', 1))";
        let status = process::Command::new("python3").args(["-c", script]).arg(self.path()).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = process::Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

#[test]
fn a_disk_that_fails_costs_the_job_what_its_policy_says() {
    const EIO: i32 = 5;
    for on_fault in [OnLogFault::Drop, OnLogFault::Pause, OnLogFault::Kill] {
        let Some(disk) = Disk::mount() else { return };
        let host = Host::new();
        let builder = host.builder().log_dir(disk.path()).log_policy(LogPolicy::new().on_fault(on_fault).bytes_max(4096));
        let mut worker = builder.drain_total_max(Duration::from_millis(300)).build().unwrap();
        let (job, mut stdin) = start_cat(&mut worker, Command::shell("cat; exit 4"));
        let other = worker.start(Command::shell("sleep 0.2").capture(Capture::Discard)).unwrap();
        echo(&mut worker, job, &mut stdin, &lines(0..20));
        disk.fail();
        stdin.write_all(&lines(20..60)).unwrap();
        turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::LogFault { errno: EIO, .. })));
        drop(stdin);
        let status = finish(&mut worker, job);
        let bytes = lines(0..60).len() as u64;
        assert_eq!((status.output.stdout_bytes, status.output.dropped_bytes), (bytes, lines(20..60).len() as u64), "{on_fault:?}");
        if on_fault == OnLogFault::Kill {
            assert_eq!(status.stop_reason, Some(StopReason::LogFault));
        } else {
            assert_eq!(status.exit_code, 4, "{on_fault:?}");
        }
        assert!(finish(&mut worker, other).success());
    }
}

#[test]
fn a_log_is_deleted_with_all_its_files_once_its_job_is_over_and_nothing_else_is() {
    let host = Host::new();
    let mut worker = host.builder().log_policy(LogPolicy::new().bytes_max(4096).files_max(10)).build().unwrap();
    let job = worker.start(writer(0..1000)).unwrap();
    assert!(matches!(worker.delete_log(job), Err(iron_exec::JobError::NotFinished { .. })));
    let status = finish(&mut worker, job);
    let files = files_of(&status);
    assert!(files.len() > 3);
    // Somebody has put a file of his own in the place of one. (As long as that is open, its number is not given to another.)
    let _former = fs::File::open(&files[1]).unwrap();
    fs::remove_file(&files[1]).unwrap();
    fs::write(&files[1], "a stranger's").unwrap();
    assert!(matches!(worker.delete_log(job), Err(iron_exec::JobError::Io { .. })));
    assert_eq!(host.logs(), [files[1].file_name().unwrap().to_str().unwrap()]);
    assert_eq!(fs::read(&files[1]).unwrap(), b"a stranger's");
    assert!(worker.delete_log(job).is_ok(), "there is none any more");
    assert!(matches!(worker.stream(job), Err(iron_exec::StreamError::NotLogged { .. })));
    let job = worker.start(Command::new("true").capture(Capture::Discard)).unwrap();
    finish(&mut worker, job);
    assert!(worker.delete_log(job).is_ok());
}
