//! `iron-exec run`: one job in the foreground.

use std::os::fd::AsFd;
use std::time::Duration;

use iron_exec::{Command, Event, Events, JobError, JobId, LogStream, OutputStream, Status, Worker};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::args::{FaultName, RunArgs, StdinName};
use crate::leftovers;
use crate::outlet::{Failing, Fetched, Outlet, write_failure};
use crate::report::{self, Fault, JobReport, exit};
use crate::signals::StopRequests;

/// Runs the job to its end; returns the exit code.
pub(crate) fn run(args: &RunArgs) -> Result<u8, Fault> {
    if let Some(contradiction) = args.job.contradiction() {
        return Err(Fault::new(contradiction));
    }
    let (program, arguments) = args.command.split_first().ok_or_else(|| Fault::new("there is no program to run"))?;
    // First of all: from here on no signal ends us and leaves the job behind.
    let requests = StopRequests::listen().map_err(|error| Fault::caused("listening for signals failed", &error))?;
    let builder = args.worker.builder().accounting(args.stats);
    let mut worker = builder.build().map_err(|error| Fault::caused("preparing to run jobs failed", &error))?;
    leftovers::kill_if_asked(&args.worker, &mut worker);
    let capture = args.job.capture(args.worker.log_format);
    let command = args.job.apply(Command::new(program).args(arguments), capture, StdinName::Inherit);
    let job = match worker.start(command) {
        Ok(job) => job,
        Err(error) => {
            report::complain(&format!("running {}: {}", program.display(), report::in_options(&error.to_string())));
            if args.json {
                report::say(&report::json_line(&JobReport::not_started(&error))?);
            }
            return Ok(error.failure().map_or(exit::OWN_FAILURE, report::exit_code_of_failure));
        }
    };
    let is_printed = capture.is_logged() && !args.job.quiet;
    let stream = if is_printed {
        let opened = worker.stream(job);
        Some(opened.map_err(|error| Fault::caused("reading the job's output failed", &error))?)
    } else {
        None
    };
    let mut foreground = Foreground { args, worker, job, stream, outlet: Outlet::new(), requests: 0, failing: None };
    foreground.see_through(&requests)?;
    foreground.conclude()
}

/// The job that runs.
struct Foreground<'a> {
    args: &'a RunArgs,
    worker: Worker,
    job: JobId,
    /// What of its log is not printed yet; `None` if nothing is to be printed, or all is.
    stream: Option<LogStream>,
    outlet: Outlet,
    /// How often we were told to stop.
    requests: usize,
    failing: Option<Failing>,
}

impl Foreground<'_> {
    /// Turns the loop until the job has finished and its output is printed.
    fn see_through(&mut self, requests: &StopRequests) -> Result<(), Fault> {
        let mut events = Events::new();
        let mut has_finished = false;
        let mut is_ready = true;
        loop {
            if is_ready {
                is_ready = self.fetch();
            }
            if has_finished && self.stream.is_none() && self.outlet.is_empty() {
                return Ok(());
            }
            self.wait(requests)?;
            if let Err((stream, errno)) = self.outlet.write_ready() {
                self.on_write_failure(stream, errno);
            }
            for _ in 0..requests.take() {
                self.on_request();
            }
            self.worker.turn(&mut events, Some(Duration::ZERO)).map_err(|error| Fault::caused("turning the loop failed", &error))?;
            for event in events.drain() {
                match event {
                    Event::LogReady { .. } => is_ready = true,
                    Event::LogFault { errno, .. } => {
                        let cause = std::io::Error::from_raw_os_error(errno);
                        let consequence = match self.args.job.on_log_fault {
                            FaultName::Drop => "its output is being lost",
                            FaultName::Pause => "the job waits",
                            FaultName::Kill => "the job is killed",
                        };
                        self.outlet.push_message(&format!("the job's log cannot be written, {consequence}: {cause}"));
                    }
                    Event::LogResumed { .. } => self.outlet.push_message("the job's log can be written again"),
                    Event::Finished { .. } | Event::StartFailed { .. } => (has_finished, is_ready) = (true, true),
                    _ => {}
                }
            }
        }
    }

    /// Fetches output; `false` if there is no more before the worker says so.
    fn fetch(&mut self) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        match self.outlet.fetch(stream) {
            Fetched::Enough => return true,
            Fetched::NotYet => {}
            Fetched::All => {
                self.stream = None;
                if self.outlet.take_incomplete() {
                    self.failing.get_or_insert(Failing::Broken);
                }
            }
            Fetched::Failed(error) => {
                let path = stream.path().display();
                self.outlet
                    .push_message(&format!("the rest of the output is not printed: reading {path}: {}", report::with_causes(&error)));
                self.stream = None;
                self.failing.get_or_insert(Failing::Broken);
            }
        }
        false
    }

    /// Waits until there is something to do.
    fn wait(&self, requests: &StopRequests) -> Result<(), Fault> {
        let mut waited =
            vec![PollFd::from_borrowed_fd(self.worker.as_fd(), PollFlags::IN), PollFd::from_borrowed_fd(requests.as_fd(), PollFlags::IN)];
        waited.extend(self.outlet.awaited().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::OUT)));
        match poll(&mut waited, None) {
            // A signal: its byte is there.
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(Fault::caused("waiting for the job failed", &std::io::Error::from(errno))),
        }
    }

    /// We were told to stop: gently the first time, at once the second.
    fn on_request(&mut self) {
        self.requests += 1;
        if self.requests == 1 {
            self.stop_gently();
            return;
        }
        let stopped = self.worker.stop(self.job);
        self.note_stop(stopped);
        if self.stream.take().is_some() || !self.outlet.is_empty() {
            self.outlet.clear();
            self.failing.get_or_insert(Failing::Abandoned);
        }
    }

    fn on_write_failure(&mut self, stream: OutputStream, errno: Errno) {
        self.stream = None;
        self.outlet.clear();
        if errno == Errno::PIPE {
            self.failing.get_or_insert(Failing::ReaderGone);
        } else {
            report::complain(&write_failure(stream, errno));
            self.failing.get_or_insert(Failing::Broken);
        }
        self.stop_gently();
    }

    fn stop_gently(&mut self) {
        let stopped = self.worker.stop_with(self.job, self.args.job.signal, self.args.job.kill_after);
        self.note_stop(stopped);
    }

    fn note_stop(&mut self, stopped: Result<(), JobError>) {
        if let Err(error) = stopped {
            self.outlet.push_message(&report::with_causes(&error));
        }
    }

    /// Everything is over: says what is to be said; returns the exit code.
    fn conclude(self) -> Result<u8, Fault> {
        let found = self.worker.query(self.job);
        let status: Status = found.map_err(|error| Fault::caused("asking for the job's status failed", &error))?;
        // Lets go of the directory of locks, too, before we say that all is over.
        drop(self.worker);
        if let Some(failure) = &status.failure {
            let failure = report::in_options(&failure.to_string());
            report::complain(&format!("running {}: the job was not started: {failure}", self.args.command[0].display()));
        }
        if let Some(lost) = report::lost_output(&status) {
            report::complain(&lost);
        }
        if status.cgroup_left
            && let Some(cgroup) = &status.cgroup
        {
            report::complain(&format!("the cgroup {} could not be emptied: a process in it cannot be killed yet", cgroup.display()));
        }
        let log = status.log.as_deref();
        if self.failing == Some(Failing::Abandoned) {
            let log = log.map(|log| format!(": all of it is in {}", log.display())).unwrap_or_default();
            report::complain(&format!("the rest of the output was not printed{log}"));
        }
        let memory_max = self.args.job.limits.memory_max();
        if self.args.stats {
            report::complain(&report::summary(&status, memory_max));
            if let Some(usage) = &status.cgroup_usage {
                report::complain(&report::usage_summary(usage));
            }
        } else if let Some(shortage) = report::out_of_memory(&status, memory_max) {
            report::complain(&shortage);
        }
        if self.args.json {
            report::say(&report::json_line(&JobReport::finished(&status, log))?);
        }
        let is_lost = status.output.dropped_bytes > 0;
        Ok(match (self.failing, report::exit_code(&status)) {
            (Some(Failing::ReaderGone), _) => exit::READER_GONE,
            (Some(Failing::Broken), _) | (Some(Failing::Abandoned), exit::SUCCESS) => exit::OWN_FAILURE,
            // Success is not to be reported where output is missing.
            (_, exit::SUCCESS) if is_lost => exit::OWN_FAILURE,
            (_, code) => code,
        })
    }
}
