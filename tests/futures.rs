//! Promise: a log stream is an `AsyncBufRead` of the futures crates that any executor can drive: the bytes are exact, a task that waits is woken when there is
//! more, and whatever ends (the job, the reader, the worker) ends it cleanly.

mod common;

use std::fs::OpenOptions;
use std::future::Future;
use std::io::{self, Write};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Instant;

use common::{Census, DEADLINE, Host, isolated, output_of, turn_until};
use futures_lite::{AsyncBufReadExt, AsyncReadExt, StreamExt};
use iron_exec::{Builder, Capture, Command, Events, LogFormat, StreamError, Worker};

/// How often a task was woken.
#[derive(Default)]
struct Wakes(AtomicUsize);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The smallest executor: polls a task when it was woken, and turns the loop that wakes it.
fn drive<T>(worker: &mut Worker, task: impl Future<Output = T>) -> T {
    let mut task = pin!(task);
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    let mut events = Events::new();
    let deadline = Instant::now() + DEADLINE;
    loop {
        wakes.0.store(0, Ordering::SeqCst);
        if let Poll::Ready(output) = task.as_mut().poll(&mut Context::from_waker(&waker)) {
            return output;
        }
        while wakes.0.load(Ordering::SeqCst) == 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the task was not woken");
            worker.turn(&mut events, Some(left)).unwrap();
        }
    }
}

/// Polls a task once, which goes on waiting.
fn poll_once<T: std::fmt::Debug>(task: Pin<&mut impl Future<Output = T>>) {
    let polled = task.poll(&mut Context::from_waker(Waker::noop()));
    assert!(polled.is_pending(), "{polled:?}");
}

fn is_send_and_unpin<T: Send + Unpin>(value: T) -> T {
    value
}

/// The numbers from 0 to 19999, a line each, with a pause in the middle that no buffer outlasts.
fn count_to_20000() -> (Command, Vec<u8>) {
    let script = "i=0; while [ $i -lt 10000 ]; do echo line $i; i=$((i+1)); done; read go; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let mut expected = Vec::new();
    (0..20000).for_each(|number| expected.extend_from_slice(format!("line {number}\n").as_bytes()));
    (Command::shell(script).stdin_piped(), expected)
}

fn builders(host: &Host) -> [Builder; 2] {
    [LogFormat::Cri, LogFormat::Raw].map(|format| host.builder().log_format(format).read_budget_bytes(4096))
}

#[test]
fn lines_come_as_they_are_written_and_end_with_the_job() {
    let host = Host::new();
    for builder in builders(&host) {
        let mut worker = builder.build().unwrap();
        let (command, expected) = count_to_20000();
        let job = worker.start(command.capture(Capture::Merged)).unwrap();
        let mut stdin = worker.take_stdin(job).unwrap();
        let mut lines = is_send_and_unpin(worker.stream(job).unwrap()).lines();
        let seen: Vec<String> = drive(&mut worker, async {
            let mut seen = Vec::new();
            while let Some(line) = lines.next().await {
                seen.push(line.unwrap());
                if seen.len() == 10000 {
                    // It waits for this: whoever waits with it is woken by what comes then.
                    stdin = None;
                }
            }
            seen
        });
        assert_eq!(seen.len(), 20000);
        assert!(seen.join("\n").as_bytes() == &expected[..expected.len() - 1]);
        worker.wait(job).unwrap();
    }
}

#[test]
fn read_to_end_gives_every_byte_whatever_the_size_of_a_read() {
    let host = Host::new();
    for builder in builders(&host) {
        let mut worker = builder.build().unwrap();
        let script = "head -c 300000 /dev/zero | tr '\\0' x; echo; printf 'no line feed'";
        let job = worker.start(Command::shell(script).capture(Capture::Merged)).unwrap();
        let (mut whole, mut pieces) = (worker.stream(job).unwrap(), worker.stream(job).unwrap());
        let read = drive(&mut worker, async {
            let (mut all, mut slowly, mut piece) = (Vec::new(), Vec::new(), [0; 7]);
            assert_eq!(pieces.read(&mut []).await.unwrap(), 0, "no room is no end");
            let both = futures_lite::future::try_zip(whole.read_to_end(&mut all), async {
                loop {
                    match pieces.read(&mut piece).await? {
                        0 => return Ok(()),
                        length => slowly.extend_from_slice(&piece[..length]),
                    }
                }
            });
            assert_eq!(both.await.unwrap().0, 300_013);
            assert_eq!(pieces.read(&mut piece).await.unwrap(), 0, "the end stays the end");
            assert!(all == slowly);
            all
        });
        let status = worker.wait(job).unwrap();
        assert_eq!(read.len(), 300_013);
        assert!(read == output_of(&status));
        assert!(read.ends_with(b"x\nno line feed"));
    }
}

#[test]
fn a_reader_that_is_dropped_half_way_takes_nothing_with_it() {
    isolated("a_reader_that_is_dropped_half_way_takes_nothing_with_it", || {
        let host = Host::new();
        let mut worker = host.worker();
        let (command, expected) = count_to_20000();
        let job = worker.start(command).unwrap();
        let stdin = worker.take_stdin(job).unwrap();
        turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 10000);
        let before = Census::take(&host);
        {
            let mut lines = worker.stream(job).unwrap().lines();
            drive(&mut worker, async {
                for number in 0..5000 {
                    assert_eq!(lines.next().await.unwrap().unwrap(), format!("line {number}"));
                }
            });
            // In the middle of a wait, too.
            let mut waiting = worker.stream(job).unwrap();
            let mut bytes = Vec::new();
            poll_once(pin!(waiting.read_to_end(&mut bytes)));
            assert!(bytes == expected[..bytes.len()]);
        }
        assert_eq!(Census::take(&host), before);
        let mut again = worker.stream(job).unwrap();
        drop(stdin);
        let mut bytes = Vec::new();
        drive(&mut worker, again.read_to_end(&mut bytes)).unwrap();
        assert!(bytes == expected);
        assert!(output_of(&worker.wait(job).unwrap()) == expected);
    });
}

#[test]
fn a_task_that_waits_while_the_worker_is_dropped_is_woken_and_reads_the_end() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("echo started; exec sleep 1000")).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    let mut stream = worker.stream(job).unwrap();
    let mut bytes = Vec::new();
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(Arc::clone(&wakes));
    {
        let mut reading = pin!(stream.read_to_end(&mut bytes));
        assert!(reading.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(wakes.0.load(Ordering::SeqCst), 0);
        drop(worker);
        assert!(wakes.0.load(Ordering::SeqCst) >= 1);
        let Poll::Ready(read) = reading.poll(&mut Context::from_waker(&waker)) else { panic!("it has not ended") };
        read.unwrap();
    }
    assert_eq!(bytes, b"started\n");
    assert!(stream.end().is_some());
}

/// What an error of reading has inside.
fn cause(error: &io::Error) -> &StreamError {
    error.get_ref().and_then(|cause| cause.downcast_ref()).expect("a StreamError")
}

#[test]
fn behind_an_error_that_is_passable_reading_goes_on() {
    let host = Host::new();
    let mut worker = host.worker();
    let job = worker.start(Command::shell("echo one; read go; echo two").stdin_piped()).unwrap();
    let stdin = worker.take_stdin(job).unwrap();
    turn_until(&mut worker, |worker, _| worker.query(job).unwrap().output.lines == 1);
    let log = worker.query(job).unwrap().log.unwrap();
    // Somebody else writes into it: the writer appends.
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"this is no record\n").unwrap();
    drop(stdin);
    common::finish(&mut worker, job);

    let mut stream = worker.stream(job).unwrap();
    let mut bytes = Vec::new();
    let error = drive(&mut worker, stream.read_to_end(&mut bytes)).unwrap_err();
    assert_eq!((error.kind(), &bytes[..]), (io::ErrorKind::Other, &b"one\n"[..]));
    let StreamError::Malformed { offset, .. } = cause(&error) else { panic!("{error:?}") };
    assert!(*offset > 0 && cause(&error).is_passable());
    drive(&mut worker, stream.read_to_end(&mut bytes)).unwrap();
    assert_eq!(bytes, b"one\ntwo\n");

    let mut lines = worker.stream(job).unwrap().lines();
    let seen = drive(&mut worker, async {
        let mut seen = Vec::new();
        while let Some(line) = lines.next().await {
            seen.push(line.map_err(|error| cause(&error).to_string()));
        }
        seen
    });
    assert!(matches!(&seen[..], [Ok(one), Err(error), Ok(two)] if one == "one" && error.contains("malformed") && two == "two"), "{seen:?}");
}
