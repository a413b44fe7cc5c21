//! A worker in the host's own mio, beside a pipe that the host reads itself: the job's standard output.

use std::error::Error;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use iron_exec::{Capture, Command, Event, Events, Worker};
use mio::unix::{SourceFd, pipe};
use mio::{Interest, Poll, Token};

const WORKER: Token = Token(0);
const OUTPUT: Token = Token(1);

fn main() -> Result<(), Box<dyn Error>> {
    let logs = tempfile::tempdir()?;
    let mut worker = Worker::builder().log_dir(logs.path()).build()?;
    let job = worker.start(Command::shell("echo one; sleep 0.1; echo two; exit 3").capture(Capture::Piped))?;
    let mut output = pipe::Receiver::from(OwnedFd::from(worker.take_stdout(job)?.ok_or("it is piped")?));
    output.set_nonblocking(true)?;

    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&worker.as_fd().as_raw_fd()), WORKER, Interest::READABLE)?;
    poll.registry().register(&mut output, OUTPUT, Interest::READABLE)?;

    let (mut ready, mut events) = (mio::Events::with_capacity(16), Events::new());
    let (mut bytes, mut has_ended, mut is_finished) = (Vec::new(), false, false);
    while !(has_ended && is_finished) {
        match poll.poll(&mut ready, None) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            polled => polled?,
        }
        for event in &ready {
            if event.token() == OUTPUT {
                match output.read_to_end(&mut bytes) {
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    read => has_ended = read.map(|_| true)?,
                }
            } else {
                // mio is edge-triggered: one turn for each event is enough all the same.
                worker.turn(&mut events, Some(Duration::ZERO))?;
                is_finished |= events.drain().any(|event| matches!(event, Event::Finished { .. }));
            }
        }
    }
    print!("{}", String::from_utf8_lossy(&bytes));
    assert_eq!((worker.query(job)?.exit_code, &bytes[..]), (3, &b"one\ntwo\n"[..]));
    Ok(())
}
