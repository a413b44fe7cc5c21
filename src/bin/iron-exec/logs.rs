//! `iron-exec logs`: a log on our own stdout and stderr.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use iron_exec::{
    GapKind, JobId, LogEnd, LogFormat, LogPosition, LogReader, OutputStream, ReadOptions, Record, StreamError, StreamSelect, Timestamp,
};
use rustix::io::Errno;

use crate::args::LogsArgs;
use crate::outlet::{Outlet, escape, write_failure};
use crate::report::{self, Fault, exit};

/// Prints the log; returns the exit code.
pub(crate) fn run(args: &LogsArgs) -> Result<u8, Fault> {
    let path = find(args)?;
    let options = ReadOptions::new().select(args.stream.map_or(StreamSelect::Both, |stream| StreamSelect::Only(stream.stream()))).position(
        match (args.since, args.tail) {
            (Some(time), _) => LogPosition::Since(timestamp(time)),
            (None, Some(lines)) => LogPosition::LastLines(lines),
            (None, None) => LogPosition::Start,
        },
    );
    let opened = if args.follow { LogReader::follow_with(&path, &options) } else { LogReader::open_with(&path, &options) };
    let raw =
        |option: &str| Fault::new(format!("the log {} is raw: it holds neither times nor streams; leave out {option}", path.display()));
    let mut log = opened.map_err(|error| match error {
        StreamError::NotSeparable { .. } => raw("--stream"),
        StreamError::NoTimes { .. } => raw("--since"),
        error => Fault::new(report::with_causes(&error)),
    })?;
    if log.format() == LogFormat::Raw && args.timestamps {
        return Err(raw("--timestamps"));
    }
    let mut printer = Printer { timestamps: args.timestamps, escapes: escapes(args), outlet: Outlet::new() };
    let mut code = exit::SUCCESS;
    let mut has_begun = false;
    loop {
        match log.next_record() {
            Ok(Some(record)) => {
                has_begun = true;
                printer.print(&record);
            }
            Ok(None) => break,
            Err(error) if error.is_passable() => {
                printer.outlet.push_message(&error.to_string());
                // That a rotated log does not reach back to its beginning is as it was asked for.
                if has_begun || !matches!(error, StreamError::Gap { kind: GapKind::Files | GapKind::UncountedFiles, .. }) {
                    code = exit::NOT_ALL_WELL;
                }
            }
            Err(error) => {
                if let Err((stream, errno)) = printer.outlet.write_all() {
                    return on_write_failure(stream, errno);
                }
                return Err(Fault::new(report::with_causes(&error)));
            }
        }
        // A follower cannot tell whether the next record is there already or comes tomorrow.
        if (args.follow || printer.outlet.is_full())
            && let Err((stream, errno)) = printer.outlet.write_all()
        {
            return on_write_failure(stream, errno);
        }
    }
    if log.end() == Some(LogEnd::Deleted) {
        printer.outlet.push_message(&format!("the log {} was deleted while it was read", path.display()));
        code = exit::NOT_ALL_WELL;
    }
    match printer.outlet.write_all() {
        Ok(()) => Ok(code),
        Err((stream, errno)) => on_write_failure(stream, errno),
    }
}

/// Puts records on our stdout and stderr.
struct Printer {
    timestamps: bool,
    /// Whether control characters are made visible: on stdout, on stderr.
    escapes: [bool; 2],
    outlet: Outlet,
}

impl Printer {
    fn print(&mut self, record: &Record<'_>) {
        let stream = record.stream.unwrap_or(OutputStream::Stdout);
        if self.timestamps
            && let Some(time) = record.time
        {
            self.outlet.push(stream, format!("{} {stream} ", humantime::format_rfc3339_nanos(SystemTime::from(time))).as_bytes());
        }
        if self.escapes[stream as usize] {
            self.outlet.push(stream, &escape(record.bytes));
        } else {
            self.outlet.push(stream, record.bytes);
        }
        if self.timestamps && !record.bytes.ends_with(b"\n") {
            // A piece of a line: the next record begins a line of its own.
            self.outlet.push(stream, b"\n");
        }
    }
}

fn escapes(args: &LogsArgs) -> [bool; 2] {
    [std::io::stdout().is_terminal(), std::io::stderr().is_terminal()].map(|is_terminal| args.escape || (is_terminal && !args.raw_control))
}

/// The log that is meant: a file, or else that of the job of this id.
fn find(args: &LogsArgs) -> Result<PathBuf, Fault> {
    let job = args.file.to_str().and_then(|text| text.parse::<JobId>().ok()).filter(|_| !args.file.exists());
    let Some(job) = job else { return Ok(args.file.clone()) };
    let failed = |error: std::io::Error| Fault::new(format!("looking for the log in {}: {error}", args.log_dir.display()));
    let end = format!("_{job}.log");
    let us = rustix::process::geteuid();
    let (mut others, mut is_ambiguous): (Option<(PathBuf, u32)>, bool) = (None, false);
    for entry in std::fs::read_dir(&args.log_dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        // An earlier file will do: the newest may be missing for a moment.
        let Some((program, _)) = name.to_str().and_then(|name| name.split_once(&end)) else { continue };
        // Of the entry itself, not of what a link points at. One that is gone meanwhile was an earlier file.
        let Some(file) = entry.metadata().ok().filter(std::fs::Metadata::is_file) else { continue };
        let path = args.log_dir.join(format!("{program}{end}"));
        if file.uid() == us.as_raw() {
            return Ok(path);
        }
        if let Some((other, uid)) = &others
            && (*other != path || *uid != file.uid())
        {
            is_ambiguous = true;
        }
        others.get_or_insert((path, file.uid()));
    }
    // In a directory like /tmp anybody can call a file so. Root reads the logs of others, too, if it is plain which one is meant.
    match others.filter(|_| us.is_root()) {
        Some(_) if is_ambiguous => {
            Err(Fault::new(format!("several users have a log of job {job} in {}: give the file itself", args.log_dir.display())))
        }
        Some((path, _)) => Ok(path),
        None => Err(no_log(job, &args.log_dir)),
    }
}

fn no_log(job: JobId, directory: &Path) -> Fault {
    Fault::new(format!("there is no log of job {job} in {}: give its directory with --log-dir, or the file itself", directory.display()))
}

fn timestamp(time: SystemTime) -> Timestamp {
    let nanos = time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    Timestamp::from_unix_nanos(nanos)
}

fn on_write_failure(stream: OutputStream, errno: Errno) -> Result<u8, Fault> {
    if errno == Errno::PIPE { Ok(exit::READER_GONE) } else { Err(Fault::new(write_failure(stream, errno))) }
}
