//! Any other runtime, or none: the worker's loop has a thread to itself, tasks await the answers of a handle, and read logs as asynchronous lines.

use std::error::Error;

use futures_lite::{AsyncBufReadExt, StreamExt, future};
use iron_exec::{Command, Handle, Worker};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::builder().log_dir(logs.path()).build()?;
    let handle = worker.handle();
    let loop_thread = std::thread::spawn(move || worker.run());

    // Any executor does; this is the smallest.
    let sums = future::block_on(future::try_zip(sum(&handle, 5), sum(&handle, 10)))?;
    println!("the sums are {sums:?}");
    assert_eq!(sums, (15, 55));

    // Without a handle and a job the loop ends.
    drop(handle);
    loop_thread.join().expect("no panic")?;
    Ok(())
}

/// Adds up the numbers that a job writes, one a line, as they come.
async fn sum(handle: &Handle, to: u32) -> Result<u32> {
    let job = handle.start(Command::shell(format!("for i in $(seq {to}); do echo $i; sleep 0.02; done"))).await?;
    let mut lines = handle.stream(job).await?.lines();
    let mut sum = 0;
    while let Some(line) = lines.next().await {
        let number: u32 = line?.parse()?;
        println!("{number} of {to}");
        sum += number;
    }
    assert!(handle.wait(job).await?.success());
    Ok(sum)
}
