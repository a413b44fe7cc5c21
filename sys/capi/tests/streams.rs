//! A stream yields the job's exact bytes, from where and of what it was asked for, in any thread; and pipes are handed over.
#![allow(clippy::undocumented_unsafe_blocks, reason = "the handles are live, the places are the test's own")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "lists of calls")]

mod host;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::FromRawFd;
use std::time::{Duration, Instant};

use host::{DEADLINE, Host, read, read_all, shell};
use iron_exec_capi::*;

/// A stream on its way to another thread.
struct Moved(*mut Stream);

// SAFETY: the header says that a stream may be handed to another thread.
unsafe impl Send for Moved {}

#[test]
fn a_stream_is_read_in_another_thread_while_the_worker_is_turned() {
    let host = Host::new();
    let job = host.shell(c"i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done");
    let stream = Moved(host.open(job, StreamSource::Both, StreamPosition::Start, 0));
    let reader = std::thread::spawn(move || {
        let Moved(mut stream) = { stream };
        let (mut bytes, deadline) = (Vec::new(), Instant::now() + DEADLINE);
        loop {
            match read(stream, 100) {
                (ResultCode::Ok, read) => bytes.extend(read),
                (ResultCode::Again, _) => std::thread::sleep(Duration::from_millis(1)),
                (code, _) => break assert_eq!(code, ResultCode::End),
            }
            assert!(Instant::now() < deadline, "the stream did not end");
        }
        let mut end = -1;
        assert_eq!(unsafe { iron_exec_stream_ended(stream, &raw mut end, std::ptr::null_mut()) }, ResultCode::Ok);
        assert_eq!(end, StreamEnd::Complete as i32);
        unsafe { iron_exec_stream_free(&raw mut stream) };
        bytes
    });
    assert_eq!(host.finish(job).exit_code, 0);
    let expected: Vec<u8> = (0..2000).flat_map(|number| format!("line {number}\n").into_bytes()).collect();
    assert!(reader.join().unwrap() == expected);
}

#[test]
fn a_stream_outlives_its_worker() {
    let host = Host::new();
    let job = host.shell(c"echo before; sleep 1000");
    let mut stream = host.open(job, StreamSource::Both, StreamPosition::Start, 0);
    while host.query(job).lines == 0 {
        host.turn();
    }
    // The worker, and nothing else.
    let mut host = host;
    unsafe { iron_exec_worker_free(&raw mut host.worker) };
    assert!(host.worker.is_null());
    assert_eq!(read(stream, 64), (ResultCode::Ok, b"before\n".to_vec()));
    assert_eq!(read(stream, 64).0, ResultCode::End);
    unsafe { iron_exec_stream_free(&raw mut stream) };
}

#[test]
fn a_stream_begins_where_it_was_asked_to() {
    let host = Host::new();
    let job = host.shell(c"echo one; echo two; echo three; sleep 0.05; echo four >&2");
    host.finish(job);
    let read_from = |source, position, value| read_all(host.open(job, source, position, value));
    assert_eq!(read_from(StreamSource::Both, StreamPosition::Start, 0), b"one\ntwo\nthree\nfour\n");
    assert_eq!(read_from(StreamSource::Stdout, StreamPosition::LastLines, 2), b"two\nthree\n");
    assert_eq!(read_from(StreamSource::Stderr, StreamPosition::Start, 0), b"four\n");
    assert_eq!(read_from(StreamSource::Both, StreamPosition::End, 0), b"");
    assert_eq!(read_from(StreamSource::Both, StreamPosition::Offset, u64::MAX), b"");
    // What a stream says of its place another one goes on from.
    let mut stream = host.open(job, StreamSource::Stdout, StreamPosition::Start, 0);
    assert_eq!(read(stream, 4).1, b"one\n");
    let mut offset = 0;
    assert_eq!(unsafe { iron_exec_stream_offset(stream, &raw mut offset, host.error) }, ResultCode::Ok);
    unsafe { iron_exec_stream_free(&raw mut stream) };
    assert!(offset > 0);
    assert_eq!(read_from(StreamSource::Stdout, StreamPosition::Offset, offset), b"two\nthree\n");
}

#[test]
fn what_rotation_has_deleted_is_a_gap_of_known_size() {
    let host = Host::new();
    let command = shell(c"i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done");
    unsafe {
        assert_eq!(iron_exec_command_log_bytes_max(command, 4096), ResultCode::Ok);
        assert_eq!(iron_exec_command_log_files_max(command, 2), ResultCode::Ok);
    }
    let job = host.start(command).unwrap();
    assert!(host.finish(job).discarded_bytes > 0);
    let (mut stream, mut buffer, mut missing) = (host.open(job, StreamSource::Both, StreamPosition::Start, 0), [0_u8; 64], 0);
    let code = unsafe { iron_exec_stream_read(stream, buffer.as_mut_ptr().cast(), 64, &raw mut missing, host.error) };
    assert!(code == ResultCode::Gap && missing > 0, "{code:?}");
    assert!(host.text().contains(&format!("{missing} bytes")), "{}", host.text());
    let mut bytes = Vec::new();
    while let (ResultCode::Ok, read) = read(stream, 64) {
        bytes.extend(read);
    }
    assert!(bytes.ends_with(b"line 1999\n"));
    unsafe { iron_exec_stream_free(&raw mut stream) };
}

#[test]
fn pipes_are_handed_over_once() {
    let host = Host::new();
    let command = shell(c"cat; echo done >&2");
    unsafe {
        assert_eq!(iron_exec_command_stdin(command, Stdin::Piped as i32), ResultCode::Ok);
        assert_eq!(iron_exec_command_capture(command, Capture::Piped as i32), ResultCode::Ok);
    }
    let job = host.start(command).unwrap();
    let take = |number| {
        let mut fd = -1;
        let code = unsafe { iron_exec_take_pipe(host.worker, job, number, &raw mut fd, host.error) };
        assert_eq!(code, ResultCode::Ok, "{}", host.text());
        // SAFETY: it was just handed over to us.
        unsafe { File::from_raw_fd(fd) }
    };
    let (mut stdin, mut stdout, mut stderr) = (take(0), take(1), take(2));
    let mut fd = 0;
    assert_eq!(unsafe { iron_exec_take_pipe(host.worker, job, 0, &raw mut fd, host.error) }, ResultCode::WrongState);
    stdin.write_all(b"through and through").unwrap();
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    stderr.read_to_string(&mut text).unwrap();
    assert_eq!(text, "through and throughdone\n");
    assert_eq!(host.finish(job).exit_code, 0);
}

#[test]
fn a_command_is_a_template_and_its_owner_is_told() {
    let host = Host::new();
    let mut command = shell(c"exit 4");
    assert_eq!(unsafe { iron_exec_command_owner(command, OwnerId { bytes: [9; 16] }) }, ResultCode::Ok);
    let mut jobs = [JobId::default(); 3];
    for job in &mut jobs {
        assert_eq!(unsafe { iron_exec_start(host.worker, command, &raw mut *job, host.error) }, ResultCode::Ok);
    }
    unsafe { iron_exec_command_free(&raw mut command) };
    let mut left = jobs.to_vec();
    let deadline = Instant::now() + DEADLINE;
    while !left.is_empty() {
        assert!(Instant::now() < deadline);
        for event in host.turn().iter().filter(|event| event.kind == EventKind::Finished as i32) {
            left.retain(|job| *job != event.job);
            assert_eq!((event.exit_code, host.query(event.job).owner.bytes), (4, [9; 16]));
        }
    }
    assert!(jobs[0].bytes < jobs[1].bytes && jobs[1].bytes < jobs[2].bytes, "ids sort by the time of their start");
}
