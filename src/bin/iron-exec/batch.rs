//! `iron-exec batch`: many shell commands, so many at a time.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::thread;
use std::time::{Duration, Instant};

use iron_exec::{Capture, Command, Event, Events, Exit, JobId, LogStream, OutputStream, StartError, StartFailure, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::args::{BatchArgs, CaptureName, LogKeep, StdinName};
use crate::leftovers;
use crate::lines::{CommandLines, LINE_BYTES_MAX, Line};
use crate::outlet::{Failing, Fetched, Outlet, write_failure};
use crate::progress::{Progress, Standing};
use crate::report::{self, Fault, JobReport, LineReport, exit};
use crate::signals::StopRequests;

/// Jobs started before the loop is turned again.
const STARTS_PER_TURN: usize = 64;

/// Jobs reported, or pieces of their output printed, before the loop is turned again.
const REPORTS_PER_TURN: usize = 64;

/// Runs the commands; returns the exit code.
pub(crate) fn run(args: &BatchArgs) -> Result<u8, Fault> {
    let begun = Instant::now();
    if let Some(contradiction) = args.job.contradiction() {
        return Err(Fault::new(contradiction));
    }
    if args.json && args.job.capture == Some(CaptureName::Inherit) {
        return Err(Fault::new("--json and --capture inherit would mix on stdout: use another --capture"));
    }
    if args.file.as_os_str() == "-" && args.job.stdin == Some(StdinName::Inherit) {
        return Err(Fault::new("stdin holds the commands, so that jobs cannot inherit it: give the commands in a FILE"));
    }
    let input = CommandLines::open(&args.file)?;
    // Before there are jobs: from here on no signal ends us and leaves them behind.
    let requests = StopRequests::listen().map_err(|error| Fault::caused("listening for signals failed", &error))?;
    let jobs_max = match args.jobs {
        Some(jobs) => jobs as usize,
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    // Jobs are forgotten one by one, each when it was printed; none may be evicted before.
    let builder = args.worker.builder().confirm(false).raise_nofile(true).jobs_max(jobs_max).finished_jobs_max(usize::MAX);
    let builder = builder.accounting(args.accounting);
    let mut worker = builder.build().map_err(|error| Fault::caused("preparing to run jobs failed", &error))?;
    leftovers::kill_if_asked(&args.worker, &mut worker);
    let mut batch = Batch {
        args,
        jobs_max,
        capture: args.job.capture(args.worker.log_format),
        worker,
        input,
        held_back: VecDeque::new(),
        is_short: false,
        probe: None,
        running: HashMap::new(),
        ended: VecDeque::new(),
        printing: None,
        outlet: Outlet::new(),
        progress: Progress::new(io::stderr().is_terminal(), args.progress, args.no_progress),
        ok: 0,
        failed: 0,
        is_stopping: false,
        requests: 0,
        failing: None,
        fault: None,
    };
    batch.see_through(&requests)?;
    batch.conclude(begun)
}

/// A job whose output is being printed.
#[derive(Debug)]
struct Printing {
    job: JobId,
    line: Line,
    /// What is left of it; `None` when all was fetched.
    stream: Option<LogStream>,
    is_complete: bool,
}

/// The commands and what has become of them.
struct Batch<'a> {
    args: &'a BatchArgs,
    jobs_max: usize,
    capture: Capture,
    worker: Worker,
    input: CommandLines,
    /// Lines that could not be started for want of something that the running jobs have.
    held_back: VecDeque<Line>,
    /// Whether that want goes on: until a job has ended, or one that was started alone runs.
    is_short: bool,
    /// The job that was started alone to see whether the want goes on. If even that one cannot be had, it has failed.
    probe: Option<JobId>,
    running: HashMap<JobId, Line>,
    /// Jobs that have ended and are not reported yet, in the order of their end.
    ended: VecDeque<(JobId, Line)>,
    printing: Option<Printing>,
    outlet: Outlet,
    progress: Progress,
    ok: u64,
    failed: u64,
    /// Whether no more jobs are to be started.
    is_stopping: bool,
    /// How often we were told to stop.
    requests: usize,
    failing: Option<Failing>,
    /// What went wrong with the input.
    fault: Option<Fault>,
}

impl Batch<'_> {
    /// Turns the loop until every job is started, finished and reported, or as many as are to be.
    fn see_through(&mut self, requests: &StopRequests) -> Result<(), Fault> {
        let mut events = Events::new();
        loop {
            // Printing comes first: it frees what the next start may need.
            let mut has_more = self.report_ended()?;
            has_more |= self.start_some()?;
            self.show_progress();
            if self.is_over() {
                return Ok(());
            }
            self.wait(requests, has_more)?;
            self.write_ready();
            for _ in 0..requests.take() {
                self.on_request();
            }
            if !self.is_stopping
                && let Err(fault) = self.input.read_ready()
            {
                self.fault = Some(fault);
                self.is_stopping = true;
            }
            self.worker.turn(&mut events, Some(Duration::ZERO)).map_err(|error| Fault::caused("turning the loop failed", &error))?;
            for event in events.drain() {
                self.on_event(event);
            }
        }
    }

    fn is_over(&self) -> bool {
        let has_lines = !self.is_stopping && (!self.input.has_ended() || self.input.ahead() > 0 || !self.held_back.is_empty());
        let has_jobs = !self.running.is_empty() || !self.ended.is_empty() || self.printing.is_some();
        let is_written = self.outlet.is_empty() || self.failing == Some(Failing::Abandoned);
        !has_lines && !has_jobs && is_written
    }

    /// Waits until there is something to do.
    fn wait(&self, requests: &StopRequests, has_more: bool) -> Result<(), Fault> {
        let mut waited =
            vec![PollFd::from_borrowed_fd(self.worker.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(requests.as_fd(), PollFlags::IN)];
        waited.extend(self.outlet.awaited().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
        if !self.is_stopping {
            waited.extend(self.input.awaited().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut waited, has_more.then_some(&now)) {
            // A signal: its byte is there.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Fault::caused("waiting for the jobs failed", &io::Error::from(errno))),
        }
    }

    /// Starts what may be started, up to a budget; whether more may be started at once.
    fn start_some(&mut self) -> Result<bool, Fault> {
        if self.is_short && self.running.is_empty() && !self.is_stopping {
            // Nobody is left to wait for: one line is tried alone.
            if let Some(line) = self.held_back.pop_front() {
                self.start(line)?;
            }
            self.probe = self.running.keys().next().copied();
            self.is_short = self.probe.is_some();
        }
        for _ in 0..STARTS_PER_TURN {
            if !self.may_start() {
                return Ok(false);
            }
            let Some(line) = self.held_back.pop_front().or_else(|| self.input.next()) else { return Ok(false) };
            self.start(line)?;
        }
        Ok(self.may_start() && (self.input.ahead() > 0 || !self.held_back.is_empty()))
    }

    /// Whether one more job may be started. A reader who does not keep up holds up the starts, not the jobs.
    fn may_start(&self) -> bool {
        !self.is_stopping
            && !self.is_short
            && self.running.len() < self.jobs_max
            && self.ended.len() < self.jobs_max
            && !self.outlet.is_full()
    }

    fn start(&mut self, line: Line) -> Result<(), Fault> {
        if line.is_too_long {
            let message = format!("the line is longer than the {LINE_BYTES_MAX} bytes that a command can have: put it into a script");
            return self.refuse(&line, JobReport::refused(message.clone(), None), &message);
        }
        let command = self.args.job.apply(Command::shell(OsStr::from_bytes(&line.text)), self.capture, StdinName::Null);
        match self.worker.start(command) {
            Ok(job) => {
                self.running.insert(job, line);
                Ok(())
            }
            Err(error) if !self.running.is_empty() && is_shortage(&error) => {
                self.held_back.push_front(line);
                self.is_short = true;
                Ok(())
            }
            Err(error) => self.refuse(&line, JobReport::not_started(&error), &report::in_options(&error.to_string())),
        }
    }

    /// A line that never became a job.
    fn refuse(&mut self, line: &Line, job: JobReport, message: &str) -> Result<(), Fault> {
        self.on_failure();
        self.failed += 1;
        if self.args.json {
            self.push_json(line, job)
        } else {
            self.outlet.push_message(&format!("line {}: {message}: {}", line.number, report::quoted(&line.text)));
            Ok(())
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Started { job } => self.is_short &= self.probe != Some(job),
            Event::Finished { job, exit } => {
                let Some(line) = self.running.remove(&job) else { return };
                self.is_short = false;
                if exit != Exit::Code(0) {
                    self.on_failure();
                }
                self.ended.push_back((job, line));
            }
            Event::StartFailed { job, failure } => {
                let Some(line) = self.running.remove(&job) else { return };
                // Others may have failed with it, so that one that was not alone says nothing about itself.
                if self.probe != Some(job) && is_shortage_of(&failure) {
                    let _ = self.worker.forget(job);
                    self.held_back.push_back(line);
                    self.is_short = true;
                    return;
                }
                self.is_short &= self.probe != Some(job);
                self.on_failure();
                self.ended.push_back((job, line));
            }
            _ => {}
        }
    }

    fn on_failure(&mut self) {
        self.is_stopping |= !self.args.keep_going;
    }

    /// We were told to stop: gently the first time, at once the second.
    fn on_request(&mut self) {
        self.requests += 1;
        self.is_stopping = true;
        if self.requests == 1 {
            self.outlet.push_message(&format!("stopping {} jobs; the next signal kills them", self.running.len()));
            self.stop_gently();
            return;
        }
        for job in self.running.keys() {
            if let Err(error) = self.worker.stop(*job) {
                self.outlet.push_message(&report::with_causes(&error));
            }
        }
        self.failing.get_or_insert(Failing::Abandoned);
    }

    fn stop_gently(&mut self) {
        self.is_stopping = true;
        for job in self.running.keys() {
            if let Err(error) = self.worker.stop_with(*job, self.args.job.signal, self.args.job.kill_after) {
                self.outlet.push_message(&report::with_causes(&error));
            }
        }
    }

    /// Writes what is taken without waiting.
    fn write_ready(&mut self) {
        if self.outlet.is_empty() {
            return;
        }
        let has_bar = self.progress.is_bar();
        let outlet = &mut self.outlet;
        let written = self.progress.step_aside(|| {
            outlet.write_ready()?;
            if has_bar && outlet.is_empty() && outlet.is_in_line() && io::stdout().is_terminal() {
                // The bar takes a line of its own.
                outlet.push(OutputStream::Stderr, b"\n");
                outlet.write_ready()?;
            }
            Ok(())
        });
        if let Err((stream, errno)) = written {
            self.on_write_failure(stream, errno);
        }
    }

    fn on_write_failure(&mut self, stream: OutputStream, errno: Errno) {
        self.outlet.clear();
        if self.failing.is_none() {
            self.failing = Some(if errno == Errno::PIPE { Failing::ReaderGone } else { Failing::Broken });
            if errno != Errno::PIPE && stream == OutputStream::Stdout {
                self.outlet.push_message(&write_failure(stream, errno));
            }
            self.stop_gently();
        }
    }

    /// Prints and reports jobs that have ended, one after the other, as far as that goes without waiting, up to a budget; whether more could be
    /// done at once.
    fn report_ended(&mut self) -> Result<bool, Fault> {
        for _ in 0..REPORTS_PER_TURN {
            if let Some(printing) = self.printing.take() {
                let (printing, is_over) = self.print(printing);
                if is_over {
                    self.report(printing.job, &printing.line, printing.is_complete)?;
                    continue;
                }
                self.printing = Some(printing);
                if !self.outlet.is_empty() {
                    return Ok(false);
                }
                continue;
            }
            if self.outlet.is_full() && self.failing.is_none() {
                return Ok(false);
            }
            let Some((job, line)) = self.ended.pop_front() else { return Ok(false) };
            let is_printed = self.capture.is_logged() && !self.args.job.quiet && !self.args.json;
            if !is_printed || self.failing.is_some() {
                self.report(job, &line, !is_printed)?;
                continue;
            }
            match self.worker.stream(job) {
                Ok(stream) => self.printing = Some(Printing { job, line, stream: Some(stream), is_complete: true }),
                // A failed start has no log.
                Err(iron_exec::StreamError::NotLogged { .. }) => self.report(job, &line, true)?,
                Err(error) => {
                    self.outlet.push_message(&format!("line {}: its output is not printed: {}", line.number, report::with_causes(&error)));
                    self.report(job, &line, false)?;
                }
            }
        }
        Ok(true)
    }

    /// Prints one more piece of a job's output; `true` when all of it is written, or will not be.
    fn print(&mut self, mut printing: Printing) -> (Printing, bool) {
        if self.failing.is_none()
            && let Some(stream) = &mut printing.stream
        {
            match self.outlet.fetch(stream) {
                Fetched::Enough => {}
                Fetched::All | Fetched::NotYet => printing.stream = None,
                Fetched::Failed(error) => {
                    let (number, cause) = (printing.line.number, report::with_causes(&error));
                    self.outlet.push_message(&format!("line {number}: the rest of its output is not printed: {cause}"));
                    printing.stream = None;
                    printing.is_complete = false;
                }
            }
        }
        printing.is_complete &= !self.outlet.take_incomplete();
        self.write_ready();
        let is_failing = self.failing.is_some();
        printing.is_complete &= !is_failing;
        let is_over = is_failing || (printing.stream.is_none() && self.outlet.is_empty());
        (printing, is_over)
    }

    /// Says how a job ended, deletes its log if it is not to be kept, and forgets it.
    fn report(&mut self, job: JobId, line: &Line, is_complete: bool) -> Result<(), Fault> {
        let status = self.worker.query(job).map_err(|error| Fault::caused("asking for a job's status failed", &error))?;
        // A job whose output is lost has not done what was asked of it.
        let is_success = status.success() && status.output.dropped_bytes == 0;
        if is_success {
            self.ok += 1;
        } else {
            self.failed += 1;
            self.on_failure();
        }
        let is_wanted = match self.args.log_keep {
            LogKeep::All => true,
            LogKeep::Failed => !is_success,
            LogKeep::None => false,
        };
        let mut log = status.log.as_deref();
        if !is_wanted
            && is_complete
            && let Some(path) = log.take()
            && let Err(error) = self.worker.delete_log(status.id)
        {
            self.outlet.push_message(&format!("the log {} is left: {}", path.display(), report::with_causes(&error)));
        }
        if let Some(lost) = report::lost_output(&status) {
            self.outlet.push_message(&format!("line {}: {lost}", line.number));
        }
        if self.args.json {
            self.push_json(line, JobReport::finished(&status, log))?;
        } else if !is_success {
            let log = log.map(|log| format!("; log: {}", log.display())).unwrap_or_default();
            let ending = report::ending(&status, self.args.job.limits.memory_max());
            self.outlet.push_message(&format!("line {}: {ending}: {}{log}", line.number, report::quoted(&line.text)));
        }
        self.worker.forget(job).map_err(|error| Fault::caused("forgetting a finished job failed", &error))
    }

    fn push_json(&mut self, line: &Line, job: JobReport) -> Result<(), Fault> {
        let command = String::from_utf8_lossy(&line.text);
        let text = report::json_line(&LineReport { line: line.number, command: &command, job })?;
        if !matches!(self.failing, Some(Failing::ReaderGone | Failing::Broken)) {
            self.outlet.push(OutputStream::Stdout, &text);
        }
        Ok(())
    }

    fn show_progress(&mut self) {
        let ended = self.ok + self.failed;
        let running = self.running.len() + self.ended.len() + usize::from(self.printing.is_some());
        let known = ended + (running + self.held_back.len() + self.input.ahead()) as u64;
        let standing = Standing { ended, failed: self.failed, running: self.running.len(), known, is_all: self.input.has_ended() };
        if let Some(text) = self.progress.update(&standing) {
            self.outlet.push_message(&text);
        }
    }

    /// Everything is over: the summary; returns the exit code.
    fn conclude(mut self, begun: Instant) -> Result<u8, Fault> {
        // After a second request nobody waits for this; what is taken at once is written all the same.
        self.write_ready();
        self.progress.end();
        let (rest, is_all) = if self.fault.is_none() { self.input.count_rest()? } else { (0, false) };
        let not_started = rest + self.held_back.len() as u64;
        let or_more = if is_all { "" } else { " or more" };
        drop(self.worker);
        let (ok, failed, time) = (self.ok, self.failed, report::seconds(begun.elapsed()));
        report::complain(&format!("{ok} ok, {failed} failed, {not_started}{or_more} not started in {time}"));
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        Ok(match self.failing {
            Some(Failing::ReaderGone) => exit::READER_GONE,
            Some(Failing::Broken) => exit::OWN_FAILURE,
            Some(Failing::Abandoned) | None if failed > 0 || not_started > 0 || !is_all => exit::NOT_ALL_WELL,
            Some(Failing::Abandoned) | None => exit::SUCCESS,
        })
    }
}

/// Whether a start failed for want of something that running jobs give back when they end.
fn is_shortage(error: &StartError) -> bool {
    match error {
        StartError::TooManyJobs { .. } => true,
        StartError::Failed(failure) => is_shortage_of(failure),
        _ => false,
    }
}

fn is_shortage_of(failure: &StartFailure) -> bool {
    // Open files of the process and of the machine, processes, memory.
    [Errno::MFILE, Errno::NFILE, Errno::AGAIN, Errno::NOMEM].iter().any(|errno| errno.raw_os_error() == failure.errno())
}
