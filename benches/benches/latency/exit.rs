//! How long it takes from the end of a process until the code that waits for it knows: in every way that a worker can be embedded, beside a bare pidfd in epoll, and
//! beside the processes of tokio and async-process.
//!
//! A process that sleeps is killed, and the clock runs from right before the kill(2) until the waiting code has the end in its hands.
//!
//! Jobs have no output and no cgroup here: what is measured is the way from the kernel to the code. A handle waits for the job's being over, the others for its exit; both come
//! with one turn. The process of the floor begins a session of its own, as every job does; that of the second line, as those of the peers, does not. All of them end with the thread
//! that has started them, whatever becomes of the rest.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iron_exec::calloop::WorkerSource;
use iron_exec::tokio::AsyncWorker;
use iron_exec::{Capture, CgroupBase, Command, Event, Events, Handle, JobId, ShutdownMode, Status, Worker};
use iron_exec_benches::floor::Floor;
use iron_exec_benches::{Result, Results, program};
use mio::unix::SourceFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::{TIME_MAX, Way};

/// Fills the table `latency-exit`.
pub(crate) fn measure(results: &mut Results) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("iron-exec-bench-").tempdir()?;
    let idle = program::write_idle(directory.path())?;
    let way = |name, take: fn(&Path, usize) -> Result<Vec<Duration>>| {
        let idle = idle.clone();
        Way::new(name, move |samples| take(&idle, samples))
    };
    let ways = vec![
        way("floor", bare_session),
        way("floor, no session of its own", bare),
        way("iron-exec", turn),
        way("iron-exec in an epoll", own_epoll),
        way("iron-exec in a mio", own_mio),
        way("iron-exec in calloop", in_calloop),
        way("iron-exec in tokio, one thread", in_tokio),
        way("iron-exec in tokio, threads: Handle", in_tokio_threads),
        way("iron-exec in a thread: Handle", in_threads),
        way("tokio, one thread", tokio_process),
        way("tokio, threads", tokio_process_threads),
        way("async-process", async_process),
    ];
    let pace = results.pace.of((1, 3), (5, 40), (27, 100));
    crate::take_turns(results, "latency-exit", "From the kill of a process to the word of its end; floor: a pidfd in epoll", ways, pace)?;
    crate::goal(results, "exit to event: p50, times the floor's", 1.15, ("latency-exit", "iron-exec"));
    Ok(())
}

/// Ends a process, once it sleeps; the time at which that began.
fn end(pid: i32) -> Result<Instant> {
    let (stat, began) = (format!("/proc/{pid}/stat"), Instant::now());
    while !fs::read_to_string(&stat)?.contains("(idle) S") {
        if began.elapsed() > TIME_MAX {
            return Err(format!("process {pid} does not come to sleep in {TIME_MAX:?}").into());
        }
        std::thread::yield_now();
    }
    let began = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(began)
}

fn sleeper(idle: &Path) -> Command {
    Command::new(idle).capture(Capture::Discard)
}

fn new_worker() -> Result<Worker> {
    Ok(Worker::builder().log_dir(std::env::temp_dir()).cgroup_base(CgroupBase::Off).build()?)
}

/// Starts a job and ends it; `wait` comes back when it knows. Events of the start are not to be counted.
fn sample(idle: &Path, worker: &mut Worker, wait: impl FnOnce(&mut Worker, JobId) -> Result<()>) -> Result<Duration> {
    let job = worker.start(sleeper(idle))?;
    let began = end(worker.query(job)?.pid)?;
    wait(worker, job)?;
    let took = began.elapsed();
    worker.wait(job)?;
    worker.forget(job)?;
    Ok(took)
}

fn has_ended(events: &Events, job: JobId) -> bool {
    events.iter().any(|event| matches!(event, Event::Exited { job: exited, .. } if *exited == job))
}

fn bare(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    bare_pidfd(Floor::on_null(idle, &[], 1)?, samples)
}

fn bare_session(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    bare_pidfd(Floor::on_null(idle, &[], 1)?.beginning_session(), samples)
}

fn bare_pidfd(mut floor: Floor, samples: usize) -> Result<Vec<Duration>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
    let one = |_| {
        let child = floor.spawn([None; 3], None)?;
        epoll::add(&epoll, &child.pidfd, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        let began = end(child.pid)?;
        epoll::wait(&epoll, &mut events[..], None)?;
        waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let took = began.elapsed();
        epoll::delete(&epoll, &child.pidfd)?;
        Ok(took)
    };
    (0..samples).map(one).collect()
}

fn turn(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let (mut worker, mut events) = (new_worker()?, Events::new());
    let wait = |worker: &mut Worker, job, events: &mut Events| {
        while !has_ended(events, job) {
            worker.turn(events, None)?;
        }
        Ok(())
    };
    (0..samples).map(|_| sample(idle, &mut worker, |worker, job| wait(worker, job, &mut events))).collect()
}

fn own_epoll(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let (mut worker, mut events) = (new_worker()?, Events::new());
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, worker.as_fd(), epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
    let mut ready = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
    let mut wait = |worker: &mut Worker, job| {
        while !has_ended(&events, job) {
            epoll::wait(&epoll, &mut ready[..], None)?;
            worker.turn(&mut events, Some(Duration::ZERO))?;
        }
        Ok(())
    };
    (0..samples).map(|_| sample(idle, &mut worker, &mut wait)).collect()
}

fn own_mio(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let (mut worker, mut events) = (new_worker()?, Events::new());
    let mut poll = mio::Poll::new()?;
    let mut ready = mio::Events::with_capacity(16);
    poll.registry().register(&mut SourceFd(&worker.as_fd().as_raw_fd()), mio::Token(1), mio::Interest::READABLE)?;
    let mut wait = |worker: &mut Worker, job| {
        while !has_ended(&events, job) {
            poll.poll(&mut ready, None)?;
            worker.turn(&mut events, Some(Duration::ZERO))?;
        }
        Ok(())
    };
    (0..samples).map(|_| sample(idle, &mut worker, &mut wait)).collect()
}

fn in_calloop(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let mut event_loop = calloop::EventLoop::<Option<JobId>>::try_new()?;
    let source = calloop::Dispatcher::new(WorkerSource::new(new_worker()?)?, |event: Event, _: &mut Worker, ended: &mut Option<JobId>| {
        if let Event::Exited { job, .. } = event {
            *ended = Some(job);
        }
    });
    event_loop.handle().register_dispatcher(source.clone())?;
    let mut one = || {
        let mut ended = None;
        let job = source.as_source_mut().worker_mut().start(sleeper(idle))?;
        let pid = source.as_source_ref().worker().query(job)?.pid;
        let began = end(pid)?;
        while ended != Some(job) {
            event_loop.dispatch(None, &mut ended)?;
        }
        let took = began.elapsed();
        source.as_source_mut().worker_mut().wait(job)?;
        source.as_source_mut().worker_mut().forget(job)?;
        Ok(took)
    };
    (0..samples).map(|_| one()).collect()
}

fn in_tokio(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut worker = AsyncWorker::new(new_worker()?)?;
        let mut times = Vec::new();
        for _ in 0..samples {
            let job = worker.start(sleeper(idle)).await?;
            let began = end(worker.query(job)?.pid)?;
            while !matches!(worker.next_event().await?, Event::Exited { job: exited, .. } if exited == job) {}
            times.push(began.elapsed());
            worker.wait(job).await?;
            worker.worker_mut().forget(job)?;
        }
        Ok(times)
    })
}

fn in_tokio_threads(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let idle = idle.to_owned();
    runtime.block_on(async {
        let mut worker = AsyncWorker::new(new_worker()?)?;
        let handle = worker.handle();
        let running = tokio::spawn(async move { worker.run().await });
        let times = tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..samples {
                let job = handle.start(sleeper(&idle)).await?;
                let (pid, waiting) = (handle.query(job).await?.pid, handle.wait(job));
                let began = end(pid)?;
                waiting.await?;
                times.push(began.elapsed());
                handle.forget(job).await?;
            }
            Result::Ok(times)
        });
        // With an error the worker may have a job still, and would go on.
        let times = times.await??;
        running.await??;
        Ok(times)
    })
}

fn in_threads(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let mut worker = new_worker()?;
    let handle = worker.handle();
    let (ended, has_ended) = mpsc::channel();
    let thread = std::thread::spawn(move || ended.send(worker.run()));
    let one = |handle: &Handle| -> Result<Duration> {
        let job = handle.start(sleeper(idle)).wait()?;
        let (status, waiting): (Status, _) = (handle.query(job).wait()?, handle.wait(job));
        let began = end(status.pid)?;
        waiting.wait()?;
        let took = began.elapsed();
        handle.forget(job).wait()?;
        Ok(took)
    };
    let times = (0..samples).map(|_| one(&handle)).collect();
    handle.shutdown(ShutdownMode::Kill).wait()?;
    has_ended.recv()??;
    let _ = thread.join();
    times
}

async fn children(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..samples {
        let mut child = tokio::process::Command::new(idle).stdin(Stdio::null()).spawn()?;
        let began = end(i32::try_from(child.id().unwrap_or_default())?)?;
        child.wait().await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

fn tokio_process(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(children(idle, samples))
}

fn tokio_process_threads(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let idle = idle.to_owned();
    runtime.block_on(async { tokio::spawn(async move { children(&idle, samples).await }).await? })
}

/// As its users do: in the loop that comes with it, on this thread.
fn async_process(idle: &Path, samples: usize) -> Result<Vec<Duration>> {
    async_io::block_on(async {
        let mut times = Vec::new();
        for _ in 0..samples {
            let mut child = async_process::Command::new(idle).stdin(Stdio::null()).spawn()?;
            let began = end(i32::try_from(child.id())?)?;
            child.status().await?;
            times.push(began.elapsed());
        }
        Ok(times)
    })
}
