//! A hundred commands in a tokio runtime, at most ten at a time: their exit codes, and their logs. `with_tokio_process` is the same without this library.

use std::error::Error;
use std::sync::Arc;

use iron_exec::tokio::AsyncWorker;
use iron_exec::{Command, Handle, ShutdownMode, Worker};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

type Failure = Box<dyn Error + Send + Sync>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let logs = tempfile::tempdir()?;
    let mut worker = AsyncWorker::new(Worker::builder().log_dir(logs.path()).build()?)?;
    let handle = worker.handle();
    let running = tokio::spawn(async move { worker.run().await });

    let free = Arc::new(Semaphore::new(10));
    let mut jobs = JoinSet::new();
    for number in 0..100 {
        let (handle, free) = (handle.clone(), Arc::clone(&free));
        jobs.spawn(async move {
            let _place = free.acquire().await?;
            let script = format!("echo out {number}; echo err {number} >&2; exit {}", number % 3);
            Ok::<_, Failure>((number, run(&handle, Command::shell(script)).await?))
        });
    }
    let mut count = 0;
    while let Some(done) = jobs.join_next().await {
        let (number, (code, output)) = done??;
        assert_eq!(code, number % 3);
        // Which of the two came first is as it came through two pipes.
        assert!(output.contains(&format!("out {number}\n")) && output.contains(&format!("err {number}\n")), "{output}");
        count += 1;
    }
    println!("{count} jobs, each with its exit code and its log");

    handle.shutdown(ShutdownMode::Kill).await?;
    running.await??;
    Ok(())
}

/// Runs a command; its exit code, and what is in its log. Where this is dropped the whole process tree is killed.
async fn run(handle: &Handle, command: Command) -> Result<(i32, String), Failure> {
    let status = handle.run_job(command).await?;
    let mut output = String::new();
    handle.stream(status.id).await?.read_to_string(&mut output).await?;
    Ok((status.exit_code, output))
}
