//! `iron-exec logs`: a log on our own stdout and stderr.

use std::time::SystemTime;

use iron_exec::{LogFormat, LogReader, OutputStream, Record, StreamError};
use rustix::io::Errno;

use crate::args::LogsArgs;
use crate::outlet::{Outlet, escape, write_failure};
use crate::report::{self, Fault, exit};

/// Prints the log; returns the exit code.
pub(crate) fn run(args: &LogsArgs) -> Result<u8, Fault> {
    let opened = if args.follow { LogReader::follow(&args.file) } else { LogReader::open(&args.file) };
    let mut log = opened.map_err(|error| Fault::new(report::with_causes(&error)))?;
    let path = args.file.display();
    if log.format() == LogFormat::Raw && (args.timestamps || args.stream.is_some()) {
        return Err(Fault::new(format!("the log {path} is raw: it holds neither times nor streams; leave out --timestamps and --stream")));
    }
    let wanted = args.stream.map(super::args::StreamName::stream);
    let mut outlet = Outlet::new();
    let mut code = exit::SUCCESS;
    loop {
        match log.next_record() {
            Ok(Some(record)) => {
                if record.stream.is_none_or(|stream| wanted.is_none_or(|wanted| stream == wanted)) {
                    print(&record, args, &mut outlet);
                }
            }
            Ok(None) => break,
            Err(error @ StreamError::Malformed { .. }) => {
                outlet.push_message(&error.to_string());
                code = exit::NOT_ALL_WELL;
            }
            Err(error) => {
                if let Err((stream, errno)) = outlet.write_all() {
                    return on_write_failure(stream, errno);
                }
                return Err(Fault::new(report::with_causes(&error)));
            }
        }
        // A follower cannot tell whether the next record is there already or comes tomorrow.
        if (args.follow || outlet.is_full())
            && let Err((stream, errno)) = outlet.write_all()
        {
            return on_write_failure(stream, errno);
        }
    }
    match outlet.write_all() {
        Ok(()) => Ok(code),
        Err((stream, errno)) => on_write_failure(stream, errno),
    }
}

fn on_write_failure(stream: OutputStream, errno: Errno) -> Result<u8, Fault> {
    if errno == Errno::PIPE { Ok(exit::READER_GONE) } else { Err(Fault::new(write_failure(stream, errno))) }
}

fn print(record: &Record<'_>, args: &LogsArgs, outlet: &mut Outlet) {
    let stream = record.stream.unwrap_or(OutputStream::Stdout);
    if args.timestamps
        && let Some(time) = record.time
    {
        outlet.push(stream, format!("{} {stream} ", humantime::format_rfc3339_nanos(SystemTime::from(time))).as_bytes());
    }
    if args.escape {
        outlet.push(stream, &escape(record.bytes));
    } else {
        outlet.push(stream, record.bytes);
    }
    if args.timestamps && !record.bytes.ends_with(b"\n") {
        // A piece of a line: the next record begins a line of its own.
        outlet.push(stream, b"\n");
    }
}
