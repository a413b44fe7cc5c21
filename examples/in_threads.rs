//! A worker whose loop has a thread to itself, and other threads that work with its jobs.

use std::error::Error;
use std::io::{BufRead, Read};
use std::thread;

use iron_exec::{Command, Handle, ShutdownMode, Signal, Worker};

fn main() -> Result<(), Box<dyn Error>> {
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::builder().log_dir(logs.path()).build()?;
    let handle = worker.handle();
    let loop_thread = thread::spawn(move || worker.run());

    // As many threads as you like, each with a clone of the handle.
    let threads: Vec<_> = (0..4)
        .map(|number| {
            let handle = handle.clone();
            thread::spawn(move || compile(&handle, number))
        })
        .collect();
    for (number, thread) in threads.into_iter().enumerate() {
        let code = thread.join().expect("no panic").map_err(|error| error.to_string())?;
        assert_eq!(code, i32::try_from(number)?);
    }

    // A job's output, live, as a blocking reader.
    let server = handle.start(Command::shell("echo listening; exec sleep 1000")).wait()?;
    let mut output = handle.follow(server).wait()?;
    let mut line = String::new();
    output.read_line(&mut line)?;
    assert_eq!(line, "listening\n");

    // Ends what still runs, and with it the loop.
    let left = handle.shutdown(ShutdownMode::Stop { signal: Signal::TERM, grace: std::time::Duration::from_secs(5) }).wait()?;
    assert_eq!(left, 0);
    loop_thread.join().expect("no panic")?;
    output.read_to_string(&mut line)?;
    println!("all jobs are over; the last one said {line:?}");
    Ok(())
}

/// Any number of threads may wait: it is the loop that watches.
fn compile(handle: &Handle, number: i32) -> Result<i32, Box<dyn Error + Send + Sync>> {
    let status = handle.run_job(Command::shell(format!("echo compiling {number}; exit {number}")).name("compile")).wait()?;
    let mut output = String::new();
    handle.follow(status.id).wait()?.read_to_string(&mut output)?;
    println!("{}: exit code {}, {output:?}", status.name, status.exit_code);
    Ok(status.exit_code)
}
