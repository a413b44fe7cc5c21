//! A worker in a calloop: jobs started by a timer, the next ones by the callback that hears of their end.

use std::error::Error;
use std::time::Duration;

use calloop::timer::{TimeoutAction, Timer};
use calloop::{Dispatcher, EventLoop, LoopSignal};
use iron_exec::calloop::WorkerSource;
use iron_exec::{Command, Event, JobId, Worker};

/// What all callbacks of the loop share.
struct Host {
    ended: Vec<(JobId, i32)>,
    signal: LoopSignal,
}

fn main() -> Result<(), Box<dyn Error>> {
    let logs = tempfile::tempdir()?;
    let worker = Worker::builder().log_dir(logs.path()).build()?;
    let mut event_loop: EventLoop<Host> = EventLoop::try_new()?;
    let mut host = Host { ended: Vec::new(), signal: event_loop.get_signal() };

    // The callback gets each event, and the worker, to answer it with.
    let dispatcher = Dispatcher::new(WorkerSource::new(worker)?, |event, worker: &mut Worker, host: &mut Host| {
        let Event::Finished { job, .. } = event else { return };
        let code = worker.query(job).expect("a job that was just told of").exit_code;
        println!("{job} ended with {code}");
        host.ended.push((job, code));
        if code == 3 {
            host.signal.stop();
        } else {
            worker.start(Command::shell(format!("exit {}", code + 1))).expect("a shell");
        }
    });
    event_loop.handle().register_dispatcher(dispatcher.clone())?;

    // Everybody else gets at the worker through the dispatcher.
    let starter = dispatcher.clone();
    let timer = Timer::from_duration(Duration::from_millis(50));
    event_loop.handle().insert_source(timer, move |_, (), _| {
        starter.as_source_mut().worker_mut().start(Command::shell("exit 1")).expect("a shell");
        TimeoutAction::Drop
    })?;

    event_loop.run(None, &mut host, |_| {})?;
    let codes: Vec<i32> = host.ended.iter().map(|(_, code)| *code).collect();
    assert_eq!(codes, [1, 2, 3]);
    Ok(())
}
