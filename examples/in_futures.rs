//! Logs as asynchronous lines, without a runtime: tasks read what jobs write, and the loop that runs the jobs wakes them.

use std::error::Error;
use std::io;

use futures_lite::{AsyncBufReadExt, StreamExt, future};
use iron_exec::{Command, Events, LogStream, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::builder().log_dir(logs.path()).build()?;
    let count = |to: u32| Command::shell(format!("for i in $(seq {to}); do echo $i; sleep 0.02; done"));
    let (short, long) = (worker.start(count(5))?, worker.start(count(10))?);

    let readers = future::try_zip(sum("short", worker.stream(short)?), sum("long", worker.stream(long)?));
    let mut readers = std::pin::pin!(readers);
    let mut events = Events::new();
    let sums = loop {
        // Any executor does. This one polls its only task after each turn.
        match future::block_on(future::poll_once(&mut readers)) {
            Some(sums) => break sums?,
            None => worker.turn(&mut events, None)?,
        }
    };
    println!("the sums are {sums:?}");
    assert_eq!(sums, (15, 55));
    Ok(())
}

/// Adds up the numbers that a job writes, one a line, as they come.
async fn sum(name: &str, log: LogStream) -> io::Result<u32> {
    let mut lines = log.lines();
    let mut sum = 0;
    while let Some(line) = lines.next().await {
        let number: u32 = line?.parse().map_err(io::Error::other)?;
        println!("{name}: {number}");
        sum += number;
    }
    Ok(sum)
}
