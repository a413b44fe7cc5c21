//! How long it takes from the end of a process until the code that waits for it knows: in every way that a worker can be embedded, beside a bare pidfd in epoll, and
//! beside the processes of tokio and async-process.
//!
//! A process that sleeps is killed, and the clock runs from right before the kill(2) until the waiting code has the end in its hands.
//!
//! Jobs have no output and no cgroup here: what is measured is the way from the kernel to the code. A handle waits for the job's being over, the others for its exit; both come
//! with one turn. The process of the floor begins a session of its own, as every job does; that of the second line, as those of the peers, does not.

use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command as Process, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use iron_exec::calloop::WorkerSource;
use iron_exec::tokio::AsyncWorker;
use iron_exec::{Capture, CgroupBase, Command, Event, Events, Handle, JobId, ShutdownMode, Status, Worker};
use iron_exec_benches::{Result, Results};
use mio::unix::SourceFd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::event::epoll;
use rustix::process::{PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::Way;

/// Fills the table `latency-exit`.
pub(crate) fn measure(results: &mut Results) -> Result<()> {
    let ways = vec![
        Way::new("floor", bare_session),
        Way::new("floor, no session of its own", bare),
        Way::new("iron-exec", turn),
        Way::new("iron-exec in an epoll", own_epoll),
        Way::new("iron-exec in a mio", own_mio),
        Way::new("iron-exec in calloop", in_calloop),
        Way::new("iron-exec in tokio, one thread", in_tokio),
        Way::new("iron-exec in tokio, threads: Handle", in_tokio_threads),
        Way::new("iron-exec in a thread: Handle", in_threads),
        Way::new("tokio, one thread", tokio_process),
        Way::new("tokio, threads", tokio_process_threads),
        Way::new("async-process", async_process),
    ];
    let pace = results.pace.of((1, 3), (5, 40), (9, 200));
    crate::take_turns(results, "latency-exit", "From the kill of a process to the word of its end; floor: a pidfd in epoll", ways, pace)?;
    crate::goal(results, "exit to event: p50, times the floor's", 1.15, ("latency-exit", "iron-exec"));
    Ok(())
}

/// Ends a process, once it sleeps; the time at which that began.
fn end(pid: i32) -> Result<Instant> {
    while !std::fs::read_to_string(format!("/proc/{pid}/stat"))?.contains("(sleep) S") {
        std::thread::yield_now();
    }
    let began = Instant::now();
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    Ok(began)
}

fn sleeper() -> Command {
    Command::new("sleep").arg("1000").capture(Capture::Discard)
}

fn new_worker() -> Result<Worker> {
    Ok(Worker::builder().log_dir(std::env::temp_dir()).cgroup_base(CgroupBase::Off).build()?)
}

/// Starts a job and ends it; `wait` comes back when it knows. Events of the start are not to be counted.
fn sample(worker: &mut Worker, wait: impl FnOnce(&mut Worker, JobId) -> Result<()>) -> Result<Duration> {
    let job = worker.start(sleeper())?;
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

fn bare(samples: usize) -> Result<Vec<Duration>> {
    bare_pidfd(samples, || Process::new("sleep"))
}

fn bare_session(samples: usize) -> Result<Vec<Duration>> {
    let setsid = || {
        let mut setsid = Process::new("setsid");
        setsid.arg("sleep");
        setsid
    };
    bare_pidfd(samples, setsid)
}

fn bare_pidfd(samples: usize, sleep: impl Fn() -> Process) -> Result<Vec<Duration>> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut events = [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 4];
    let one = |_| {
        let mut child = sleep().arg("1000").stdin(Stdio::null()).spawn()?;
        let pid = rustix::process::Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &pidfd, epoll::EventData::new_u64(1), epoll::EventFlags::IN)?;
        let began = end(pid.as_raw_nonzero().get())?;
        epoll::wait(&epoll, &mut events[..], None)?;
        waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let took = began.elapsed();
        epoll::delete(&epoll, &pidfd)?;
        // It is reaped already: this only lets go of it.
        let _ = child.try_wait();
        Ok(took)
    };
    (0..samples).map(one).collect()
}

fn turn(samples: usize) -> Result<Vec<Duration>> {
    let (mut worker, mut events) = (new_worker()?, Events::new());
    let wait = |worker: &mut Worker, job, events: &mut Events| {
        while !has_ended(events, job) {
            worker.turn(events, None)?;
        }
        Ok(())
    };
    (0..samples).map(|_| sample(&mut worker, |worker, job| wait(worker, job, &mut events))).collect()
}

fn own_epoll(samples: usize) -> Result<Vec<Duration>> {
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
    (0..samples).map(|_| sample(&mut worker, &mut wait)).collect()
}

fn own_mio(samples: usize) -> Result<Vec<Duration>> {
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
    (0..samples).map(|_| sample(&mut worker, &mut wait)).collect()
}

fn in_calloop(samples: usize) -> Result<Vec<Duration>> {
    let mut event_loop = calloop::EventLoop::<Option<JobId>>::try_new()?;
    let source = calloop::Dispatcher::new(WorkerSource::new(new_worker()?)?, |event: Event, _: &mut Worker, ended: &mut Option<JobId>| {
        if let Event::Exited { job, .. } = event {
            *ended = Some(job);
        }
    });
    event_loop.handle().register_dispatcher(source.clone())?;
    let mut one = || {
        let mut ended = None;
        let job = source.as_source_mut().worker_mut().start(sleeper())?;
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

fn in_tokio(samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut worker = AsyncWorker::new(new_worker()?)?;
        let mut times = Vec::new();
        for _ in 0..samples {
            let job = worker.start(sleeper()).await?;
            let began = end(worker.query(job)?.pid)?;
            while !matches!(worker.next_event().await?, Event::Exited { job: exited, .. } if exited == job) {}
            times.push(began.elapsed());
            worker.wait(job).await?;
            worker.worker_mut().forget(job)?;
        }
        Ok(times)
    })
}

fn in_tokio_threads(samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut worker = AsyncWorker::new(new_worker()?)?;
        let handle = worker.handle();
        let running = tokio::spawn(async move { worker.run().await });
        let times = tokio::spawn(async move {
            let mut times = Vec::new();
            for _ in 0..samples {
                let job = handle.start(sleeper()).await?;
                let (pid, waiting) = (handle.query(job).await?.pid, handle.wait(job));
                let began = end(pid)?;
                waiting.await?;
                times.push(began.elapsed());
                handle.forget(job).await?;
            }
            Ok(times)
        });
        let times = times.await?;
        running.await??;
        times
    })
}

fn in_threads(samples: usize) -> Result<Vec<Duration>> {
    let mut worker = new_worker()?;
    let handle = worker.handle();
    let (ended, has_ended) = mpsc::channel();
    let thread = std::thread::spawn(move || ended.send(worker.run()));
    let one = |handle: &Handle| -> Result<Duration> {
        let job = handle.start(sleeper()).wait()?;
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

async fn children(samples: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..samples {
        let mut child = tokio::process::Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn()?;
        let began = end(i32::try_from(child.id().unwrap_or_default())?)?;
        child.wait().await?;
        times.push(began.elapsed());
    }
    Ok(times)
}

fn tokio_process(samples: usize) -> Result<Vec<Duration>> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(children(samples))
}

fn tokio_process_threads(samples: usize) -> Result<Vec<Duration>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async { tokio::spawn(children(samples)).await? })
}

/// As its users do: in the loop that comes with it, on this thread.
fn async_process(samples: usize) -> Result<Vec<Duration>> {
    async_io::block_on(async {
        let mut times = Vec::new();
        for _ in 0..samples {
            let mut child = async_process::Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn()?;
            let began = end(i32::try_from(child.id())?)?;
            child.status().await?;
            times.push(began.elapsed());
        }
        Ok(times)
    })
}
