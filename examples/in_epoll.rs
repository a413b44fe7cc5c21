//! A worker in an epoll loop of one's own, beside a timer: no more is asked of a loop than to wait for a file descriptor.

use std::error::Error;
use std::os::fd::OwnedFd;
use std::time::Duration;

use iron_exec::{Command, Event, Events, Worker};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::retry_on_intr;
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

const WORKER: u64 = 0;
const TIMER: u64 = 1;

fn main() -> Result<(), Box<dyn Error>> {
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::builder().log_dir(logs.path()).build()?;
    let timer = every(Duration::from_millis(50))?;

    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    epoll::add(&epoll, &worker, EventData::new_u64(WORKER), EventFlags::IN)?;
    epoll::add(&epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN)?;

    // The timer starts three jobs, one at each tick.
    let (mut ready, mut events) = (Vec::with_capacity(16), Events::new());
    let (mut ticks, mut codes) = (0, Vec::new());
    while codes.len() < 3 {
        ready.clear();
        retry_on_intr(|| epoll::wait(&epoll, spare_capacity(&mut ready), None))?;
        for event in &ready {
            if event.data.u64() == TIMER {
                rustix::io::read(&timer, &mut [0; 8])?;
                ticks += 1;
                if ticks <= 3 {
                    worker.start(Command::shell(format!("sleep 0.1; exit {ticks}")))?;
                }
                continue;
            }
            // One turn, which does not wait. If there is more, the descriptor stays readable.
            worker.turn(&mut events, Some(Duration::ZERO))?;
            for event in events.drain() {
                if let Event::Finished { job, .. } = event {
                    codes.push(worker.query(job)?.exit_code);
                }
            }
        }
    }
    println!("{ticks} ticks; the jobs ended with {codes:?}");
    codes.sort_unstable();
    assert_eq!(codes, [1, 2, 3]);
    Ok(())
}

fn every(time: Duration) -> Result<OwnedFd, Box<dyn Error>> {
    let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?;
    let period = Timespec::try_from(time)?;
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::empty(), &Itimerspec { it_interval: period, it_value: period })?;
    Ok(timer)
}
