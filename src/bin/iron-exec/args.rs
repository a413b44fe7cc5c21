//! What can be asked on the command line.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use iron_exec::{
    Builder, Capture, CgroupBase, Command, IoDevice, IoMax, Limits, LogFormat, LogPolicy, OnLogFault, OutputStream, OverRate, Rung, Signal,
    WhenFull, Worker,
};

#[cfg(feature = "s3")]
use crate::archive::Target;
use crate::limits::{self, CpuMax};

const RUN_EXIT_CODES: &str = "\
Exit codes:
  0-123    the job's own exit code (higher ones are passed on as well)
  124      the job ran into its --timeout
  125      iron-exec itself failed: bad options, no log directory, output that is lost, a limit
           that cannot be had, ...
  126      the program was found but cannot be executed
  127      the program was not found
  128+N    the job was killed by signal N (137: SIGKILL, 143: SIGTERM);
           137 too for a job that was out of memory: then stderr says so
  141      whoever read our output has gone; the job was stopped";

const RUN_LONG: &str = "\
Run one job in the foreground.

The job's stdout appears on stdout and its stderr on stderr, live and byte for byte, and all of it is kept in a log file (see --log-dir). The job \
runs in a session of its own, without a controlling terminal, and, where there are cgroups, in a cgroup of its own.

SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGQUIT stop the job: the first one gently, with --signal and, after --kill-after, SIGKILL to the whole process \
tree; the second one with SIGKILL at once and without waiting for output that is not printed yet. When the job ends, what it left running is killed.

A limit holds for the job's whole process tree, and nothing is started without one that was asked for. `iron-exec info` says which can be had here, \
and what to do about the others. A job that is killed because it is out of memory is named on stderr; --stats says what every limit did.

The output is printed from the log, so a slow reader never slows the job down; the log may run far ahead of what was printed.

Examples:
  iron-exec run make -j4
  iron-exec run --timeout 10m -k 30s --stats -- ./integration-test --all
  iron-exec run --memory-max 2G --cpu-max 150% --pids-max 200 --io-max wbps=20M --stats -- make -j4
  iron-exec run -q --log-dir /var/log/jobs --log-format raw -- ./nightly.sh
  iron-exec run -i -e LANG=C -u 1000:1000 -C /srv/app -- ./server";

const BATCH_LONG: &str = "\
Run many shell commands, at most N at a time.

Each line of FILE (or of stdin) is a command for `/bin/sh -c`; blank lines and lines that begin with `#` are skipped. Lines are started in their \
order, as they come in. The output of each job is printed whole when the job ends: its stdout on stdout, its stderr on stderr. A failed job is named \
on stderr, with its log.

Without --keep-going no new job is started after one has failed; those that run are waited for. SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGQUIT stop \
everything: the first one gently (--signal, then SIGKILL after --kill-after), the second one with SIGKILL at once.

Limits hold for each job by itself.

When a job cannot be started for want of open files or processes while others run, it waits for one of them to end. The limit of open files is \
raised as far as the hard limit lets us; the jobs keep the limit that was.

Examples:
  iron-exec batch -j 8 commands.txt
  seq 100 | sed 's/^/.\\/render --frame /' | iron-exec batch --keep-going --timeout 5m
  iron-exec batch -j 8 --memory-max 512M --cpu-max 1 commands.txt
  iron-exec batch --json --quiet --log-keep all --log-dir /var/log/jobs commands.txt > status.jsonl";

const BATCH_EXIT_CODES: &str = "\
Exit codes:
  0        every line was run and succeeded
  1        a job failed or was stopped, or lines were not started
  125      iron-exec itself failed: bad options, an unreadable FILE, no log directory, ...
  141      whoever read our output has gone; the jobs were stopped

With --json, each job gives one line on stdout, in the order in which they end:
  line, command        the number of the line in FILE, and the line
  state                \"finished\"; \"failed\": not started, see failure; \"unknown\": somebody else has reaped it
  exit_code, signal    how it ended; the other one, or both, are null
  stop_reason          \"timeout\", \"requested\" or null
  oom_killed           whether it was killed because it was out of memory
  run_time             seconds
  cgroup_usage         what its whole tree used; null without cgroups, or without limits and --accounting; null in it is what is not known
  log                  the log file; null if it was deleted or there is none
  failure              why it was not started: step, path, errno, message; or null
and more about what it used and wrote.";

const LOGS_LONG: &str = "\
Print the log of a job.

What the job wrote to stdout appears on stdout, what it wrote to stderr on stderr, byte for byte. Logs of both formats are read, also of jobs that \
still run and of jobs whose worker is long gone. A log that was rotated is read through all its files; given the name of one of the earlier ones, that one \
only. What is missing in a log is said on stderr.

A job can write to a terminal whatever it likes: where our output is one, control characters are made visible.

Examples:
  iron-exec logs /tmp/make_0190d3b1-7c8a-7def-8123-456789abcdef.log
  iron-exec logs -f --tail 20 --log-dir /var/log/jobs 0190d3b1-7c8a-7def-8123-456789abcdef
  iron-exec logs --since 10m --timestamps --stream stderr job.log";

const LOGS_EXIT_CODES: &str = "\
Exit codes:
  0        the log was printed, from the oldest file that is left of it
  1        the log was printed, but for what is missing, malformed or truncated, or it was deleted meanwhile (all of which is reported on stderr)
  125      the log cannot be read, or was asked for what it does not hold
  141      whoever read our output has gone";

const GC_LONG: &str = "\
Delete old logs.

Of all logs in the directory the oldest are deleted, first those that are older than --max-age, then as many as are above --max-bytes and --max-logs. \
Only finished logs of our own user go, with the files that were rotated out of them, whichever worker has written them; never one that is still \
written, and no file that is not a log. What a dead worker has left unfinished is repaired and sealed first, and ages from then on. Without a bound \
that is all that is done.

With --archive-to, logs are stored there before they go, and nothing goes that was not stored. Credentials are taken from the environment.

Examples:
  iron-exec gc --max-age 7d --dry-run
  iron-exec gc --log-dir /var/log/jobs --max-age 30d --max-bytes 10G
  iron-exec gc --log-dir /var/log/jobs --max-logs 1000 --archive-to s3://bucket/logs --archive-compress";

const GC_EXIT_CODES: &str = "\
Exit codes:
  0        everything was done, or with --dry-run everything could be looked at
  1        something was not: a file could not be deleted or archived, say, or we were told to stop
  125      iron-exec itself failed: bad options, no log directory, ...
  141      whoever read our output has gone";

#[cfg(feature = "s3")]
const ARCHIVE_LONG: &str = "\
Store sealed logs in S3-compatible storage. Nothing is deleted here.

Each FILE becomes the object PREFIX/FILE, or PREFIX/FILE.zst if it is compressed. It must be a regular file of ours with one name that nobody can \
write (mode 0400, as logs are when their job has ended). It is reported as stored only when the object was seen to hold its bytes: the server checks \
the SHA-256 of what it is sent, the object's size is asked for, and the object is read back, or, above --read-back-max, the SHA-256 that the server \
itself has of it is compared; a server that has none is read back all the same. At the end the file must be the one that it was at the start.

An object that is there already with the same bytes counts as stored, and is not sent again. One with other bytes is never replaced: the file gets \
the key PREFIX/FILE.HHHHHHHHHHHHHHHH[.zst], with the first digits of the object's SHA-256. In keys, `%`, control characters and what is no UTF-8 appear \
as %XX. Objects have the metadata sha256 (of the object), original-size and original-sha256 (of the file).

The report has one line for each file, with tabs between its fields:
  stored  BYTES  SHA256  FILE      the object's size and SHA-256
  failed  REASON  FILE

The environment says where the storage is, and who we are: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL, \
AWS_ALLOW_HTTP=true (for an http:// endpoint), SSL_CERT_FILE, HTTPS_PROXY, AWS_VIRTUAL_HOSTED_STYLE_REQUEST, AWS_CONDITIONAL_PUT=disabled (for a server that knows no \
If-None-Match), AWS_TIMEOUT (of one request), AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN and so on; profiles in ~/.aws are not read. The credentials must allow s3:PutObject, \
s3:GetObject, s3:ListBucket and s3:AbortMultipartUpload.

SIGINT (Ctrl-C), SIGTERM, SIGHUP and SIGQUIT end it: what is not stored yet is reported as failed, and unfinished uploads are removed; the second one \
ends it at once. Who is killed cannot clean up: let a lifecycle rule of the bucket remove unfinished uploads.

Examples:
  iron-exec archive --to s3://logs/host-7 --directory /var/log/jobs make_0190d3b1-7c8a-7def-8123-456789abcdef.log
  iron-exec archive --to s3://logs/host-7 --compress none /var/log/jobs/*.log
  find . -name '*.log' -perm 0400 -printf '%f\\0' | iron-exec archive --to s3://logs --files0-from - --report-fd 3 3>report";

#[cfg(feature = "s3")]
const ARCHIVE_EXIT_CODES: &str = "\
Exit codes:
  0        every file is stored
  1        some are not; the report and stderr say why
  125      nothing could be done: bad options, no credentials, no directory, no report, ...
  141      whoever read the report has gone";

/// Runs Linux processes from one thread: started into cgroups, watched by pidfd, logged line by line.
#[derive(Debug, Parser)]
#[command(
    name = "iron-exec",
    bin_name = "iron-exec",
    version,
    about = "Run, log, watch and stop Linux processes",
    long_about = "Run, log, watch and stop Linux processes, from one thread, whether one or ten thousand.\n\nEvery job gets a log file of its \
                  own and, where the machine has them, a cgroup of its own, so that nothing of it is left when it was stopped.",
    after_help = "`iron-exec help COMMAND` says everything about a command. `iron-exec info` says what this machine can do."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) tool: Tool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tool {
    /// Run one job in the foreground
    #[command(long_about = RUN_LONG, after_help = RUN_EXIT_CODES, override_usage = "iron-exec run [OPTIONS] [--] PROGRAM [ARGS]...")]
    Run(RunArgs),
    /// Run many shell commands, at most N at a time
    #[command(long_about = BATCH_LONG, after_long_help = BATCH_EXIT_CODES)]
    Batch(BatchArgs),
    /// Print the log of a job
    #[command(long_about = LOGS_LONG, after_help = LOGS_EXIT_CODES)]
    Logs(LogsArgs),
    /// Delete old logs
    #[command(long_about = GC_LONG, after_help = GC_EXIT_CODES)]
    Gc(GcArgs),
    /// Say what this machine can do, what is missing, and how to get it
    Info(InfoArgs),
    /// Store sealed logs in S3-compatible storage
    #[cfg(feature = "s3")]
    #[command(long_about = ARCHIVE_LONG, after_help = ARCHIVE_EXIT_CODES)]
    Archive(ArchiveArgs),
    /// Not in this build: it takes what it would take otherwise, and says so
    #[cfg(not(feature = "s3"))]
    #[command(hide = true, disable_help_flag = true)]
    Archive(AbsentArgs),
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) job: JobArgs,

    #[command(flatten)]
    pub(crate) worker: WorkerArgs,

    /// When the job has ended, print a summary on stderr: how it ended, and what it and its whole process tree used
    #[arg(long)]
    pub(crate) stats: bool,

    /// When the job has ended, print its final status on stderr, as one line of JSON; with --stats, or a limit, also what its process tree used
    #[arg(long)]
    pub(crate) json: bool,

    /// The program and its arguments; everything after PROGRAM is the program's
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM [ARGS]...")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct BatchArgs {
    /// Run at most N jobs at a time [default: the number of CPUs]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub(crate) jobs: Option<u32>,

    /// Go on starting jobs after one has failed
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Show the progress; without a terminal on stderr as a line of text every second [default: on a terminal]
    #[arg(long, overrides_with = "no_progress")]
    pub(crate) progress: bool,

    /// Show no progress
    #[arg(long)]
    pub(crate) no_progress: bool,

    /// Print one line of JSON for each job on stdout, instead of its output
    #[arg(long)]
    pub(crate) json: bool,

    /// Which log files to keep; the others are deleted once they are printed
    #[arg(long, value_enum, value_name = "WHICH", default_value_t = LogKeep::Failed)]
    pub(crate) log_keep: LogKeep,

    /// Account for the CPU time, memory, I/O and processes of every job, for --json, also of those without limits
    #[arg(long, conflicts_with = "no_cgroup")]
    pub(crate) accounting: bool,

    #[command(flatten)]
    pub(crate) job: JobArgs,

    #[command(flatten)]
    pub(crate) worker: WorkerArgs,

    /// The file of commands; `-` is stdin
    #[arg(default_value = "-")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on printing as the log grows, until the job has ended or its worker is dead
    #[arg(short, long)]
    pub(crate) follow: bool,

    /// Begin each record with its time (RFC 3339) and its stream, one record a line
    #[arg(long)]
    pub(crate) timestamps: bool,

    /// Print one of the two streams only
    #[arg(long, value_enum)]
    pub(crate) stream: Option<StreamName>,

    /// Begin with what is not older than TIME: so long ago (`10m`, `1h 30m`, a number of seconds), or a time in UTC (`2026-11-23T03:26:58Z`,
    /// `2026-11-23 03:26:58`). Needs a log in the cri format
    #[arg(long, value_name = "TIME", value_parser = point_in_time, conflicts_with = "tail")]
    pub(crate) since: Option<SystemTime>,

    /// Begin with the last N lines (of the stream that is printed)
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u64>,

    /// Make control characters visible (as \x1b), all but tabs and line feeds, wherever the output goes [default: on a terminal]
    #[arg(long, conflicts_with = "raw_control")]
    pub(crate) escape: bool,

    /// Print control characters as they are, also on a terminal: what a job wrote may then do to it what it likes
    #[arg(long)]
    pub(crate) raw_control: bool,

    /// Where the log of a job is looked for that is named by its id
    #[arg(long, value_name = "DIRECTORY", default_value = "/tmp")]
    pub(crate) log_dir: PathBuf,

    /// The log file, or the id of the job
    #[arg(value_name = "FILE|JOB_ID")]
    pub(crate) file: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// The directory of the log files
    #[arg(long, value_name = "DIRECTORY", default_value = "/tmp")]
    pub(crate) log_dir: PathBuf,

    /// Delete logs that were finished longer ago than this, such as `7d`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) max_age: Option<Duration>,

    /// Delete the oldest logs while all together have more bytes than this, such as `10G`
    #[arg(long, value_name = "BYTES", value_parser = limits::byte_count)]
    pub(crate) max_bytes: Option<u64>,

    /// Delete the oldest logs while there are more than N
    #[arg(long, value_name = "N")]
    pub(crate) max_logs: Option<u64>,

    /// Say what would be done, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Say it as one line of JSON
    #[arg(long)]
    pub(crate) json: bool,

    /// Store logs in this bucket, `s3://BUCKET` or `s3://BUCKET/PREFIX`, before they are deleted
    #[arg(long, value_name = "URL")]
    pub(crate) archive_to: Option<String>,

    /// The program that stores them; see the library's `Archive` for how it is called [default: iron-exec itself]
    #[arg(long, value_name = "PROGRAM", requires = "archive_to")]
    pub(crate) archive_program: Option<PathBuf>,

    /// Compress logs (zstd) in the archive
    #[arg(long, requires = "archive_to")]
    pub(crate) archive_compress: bool,

    /// How long storing up to 64 files may take [default: 15m]
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "archive_to")]
    pub(crate) archive_timeout: Option<Duration>,
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// Print it as JSON
    #[arg(long)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) worker: WorkerArgs,
}

#[cfg(feature = "s3")]
#[derive(Debug, Args)]
pub(crate) struct ArchiveArgs {
    /// The bucket, and what the keys in it begin with
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    pub(crate) to: Target,

    /// The directory of the files
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    pub(crate) directory: PathBuf,

    /// How to compress what is stored
    #[arg(long, value_enum, value_name = "HOW", default_value_t = CompressName::Zstd)]
    pub(crate) compress: CompressName,

    /// Write the report to this descriptor instead of stdout
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub(crate) report_fd: Option<i32>,

    /// Try a request up to N times again when the server fails or cannot be reached, with growing pauses
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) retries: u32,

    /// Give a file up after this time in all, for instance `90s` or `2h`
    #[arg(long, value_name = "TIME", value_parser = positive_duration, default_value = "1h")]
    pub(crate) timeout: Duration,

    /// Read objects up to this size back after sending them: bytes, with K, M, G or T for powers of 1024
    #[arg(long, value_name = "SIZE", value_parser = limits::bytes_or_max, default_value = "64M")]
    pub(crate) read_back_max: u64,

    /// Read names of more files from stdin (`-`), each with a NUL after it
    #[arg(long, value_name = "-", value_parser = ["-"], allow_hyphen_values = true)]
    pub(crate) files0_from: Option<String>,

    /// The files: names in --directory, or paths from there
    #[arg(value_name = "FILE", required_unless_present = "files0_from")]
    pub(crate) files: Vec<OsString>,
}

/// How objects are compressed.
#[cfg(feature = "s3")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CompressName {
    /// With zstd; keys end with `.zst`
    Zstd,
    /// Not at all
    None,
}

/// Whatever is given to a command that this build does not have.
#[cfg(not(feature = "s3"))]
#[derive(Debug, Args)]
pub(crate) struct AbsentArgs {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    pub(crate) rest: Vec<OsString>,
}

/// What every job of a worker has in common.
#[derive(Debug, Args)]
#[command(next_help_heading = "Host options")]
pub(crate) struct WorkerArgs {
    /// The directory of the log files
    #[arg(long, value_name = "DIRECTORY", default_value = "/tmp")]
    pub(crate) log_dir: PathBuf,

    /// The format of the logs: `cri` (Kubernetes: time and stream of each line) or `raw` (the job's bytes and nothing else)
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = FormatName::Cri)]
    pub(crate) log_format: FormatName,

    /// The way in which processes are made [default: the best that works]
    #[arg(long, value_parser = PossibleValuesParser::new(Rung::ALL.map(Rung::as_str)).map(|name| rung_named(&name)))]
    pub(crate) rung: Option<Rung>,

    /// Run jobs without cgroups: descendants that begin a session of their own escape a stop
    #[arg(long, conflicts_with = "cgroup_base")]
    pub(crate) no_cgroup: bool,

    /// The cgroup2 directory in which each job gets its cgroup; made if it is not there [default: our own cgroup if it is delegated to us, else
    /// `iron-exec` at the root of the hierarchy if we are root, else none]
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) cgroup_base: Option<PathBuf>,

    /// Move ourselves to a leaf, `supervisor`, of the cgroup that we are in, so that it can hand controllers down to jobs; without --cgroup-base
    /// that cgroup becomes the base
    #[arg(long, conflicts_with = "no_cgroup")]
    pub(crate) take_over_cgroup: bool,

    /// Enable the controllers that limits need in the cgroups above the base, too
    #[arg(long, conflicts_with = "no_cgroup")]
    pub(crate) enable_controllers: bool,

    /// First kill the jobs in the base whose worker is dead (it crashed, say), and remove their cgroups; that takes 5 s at most
    #[arg(long, conflicts_with = "no_cgroup")]
    pub(crate) kill_leftovers: bool,
}

/// What is said about a job, or about every one of a batch.
#[derive(Debug, Args)]
#[command(next_help_heading = "Job options")]
pub(crate) struct JobArgs {
    /// Set an environment variable (repeatable)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = OsStringParser(variable))]
    pub(crate) env: Vec<(OsString, OsString)>,

    /// Start from an empty environment instead of ours
    #[arg(short = 'i', long)]
    pub(crate) clear_env: bool,

    /// The working directory
    #[arg(short = 'C', long, value_name = "DIRECTORY")]
    pub(crate) cwd: Option<PathBuf>,

    /// The numeric user, and group, to run as; without a GID the group has the user's number. Supplementary groups are dropped
    #[arg(short, long, value_name = "UID[:GID]", value_parser = user)]
    pub(crate) user: Option<(u32, u32)>,

    /// Stop the job after this time, for instance `10s`, `1h 30m` or `0.5` (seconds): --signal first, SIGKILL after --kill-after. 0: never
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) timeout: Option<Duration>,

    /// How long a job that is being stopped gets before SIGKILL; 0 is at once
    #[arg(short, long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    pub(crate) kill_after: Duration,

    /// The signal with which a job is stopped, by name or number
    #[arg(short, long, default_value = "TERM")]
    pub(crate) signal: Signal,

    /// What the job reads [default: inherit for run, null for batch]
    #[arg(long, value_enum, value_name = "WHAT")]
    pub(crate) stdin: Option<StdinName>,

    /// What becomes of the job's output [default: split for cri logs, merged for raw ones]
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) capture: Option<CaptureName>,

    /// The most bytes of one log file (`64K`, `10M`): a full one is renamed to LOG.000001 and so on, and the next begun
    #[arg(long, value_name = "SIZE", value_parser = limits::bytes, help_heading = "Log options")]
    pub(crate) log_max_bytes: Option<u64>,

    /// The most files of a log that are kept, the one being written included [default: 5]
    #[arg(long, value_name = "N", requires = "log_max_bytes", help_heading = "Log options")]
    pub(crate) log_files: Option<u64>,

    /// What to do when a log file is full
    #[arg(long, value_enum, value_name = "WHAT", requires = "log_max_bytes", default_value_t = FullName::Rotate, help_heading = "Log options")]
    pub(crate) log_when_full: FullName,

    /// The most bytes a second of the job's output that are logged; what comes faster waits, and so does the job (see --log-rate-drop)
    #[arg(long, value_name = "SIZE", value_parser = limits::bytes, help_heading = "Log options")]
    pub(crate) log_rate: Option<u64>,

    /// What comes faster than --log-rate is dropped and counted, instead of waiting
    #[arg(long, requires = "log_rate", help_heading = "Log options")]
    pub(crate) log_rate_drop: bool,

    /// What to do when the log cannot be written (a full disk, say)
    #[arg(long, value_enum, value_name = "WHAT", default_value_t = FaultName::Drop, help_heading = "Log options")]
    pub(crate) on_log_fault: FaultName,

    /// The job's name in the names of its log and cgroup [default: the program's]
    #[arg(long)]
    pub(crate) name: Option<String>,

    /// Print none of the jobs' output: it goes to the log only
    #[arg(short, long, action = ArgAction::SetTrue)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What a job's whole process tree may use.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
#[group(conflicts_with = "no_cgroup")]
pub(crate) struct LimitArgs {
    /// The most CPU time: CPUs (`1.5`), a share of one (`50%`), QUOTA/PERIOD in microseconds (`50000/100000`) or `max`
    #[arg(long, value_name = "CPUS", value_parser = limits::cpu_max, allow_hyphen_values = true)]
    pub(crate) cpu_max: Option<CpuMax>,

    /// The share of CPU time where there is not enough for all, 1 to 10000; others have 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), allow_hyphen_values = true)]
    pub(crate) cpu_weight: Option<u32>,

    /// The CPUs to run on, for instance `0-3,7`
    #[arg(long, value_name = "LIST", value_parser = limits::number_list)]
    pub(crate) cpuset_cpus: Option<String>,

    /// The memory nodes to use, for instance `0,2`
    #[arg(long, value_name = "LIST", value_parser = limits::number_list)]
    pub(crate) cpuset_mems: Option<String>,

    /// The most memory, beyond which the job is killed: bytes, with K, M, G or T for powers of 1024 (`64M`), a share of the machine's (`10%`) or
    /// `max`
    #[arg(long, value_name = "SIZE", value_parser = limits::memory, allow_hyphen_values = true)]
    pub(crate) memory_max: Option<u64>,

    /// The memory above which the job is slowed down and its memory taken back, but not killed
    #[arg(long, value_name = "SIZE", value_parser = limits::memory, allow_hyphen_values = true)]
    pub(crate) memory_high: Option<u64>,

    /// The most swap; 0 is none
    #[arg(long, value_name = "SIZE", value_parser = limits::memory, allow_hyphen_values = true)]
    pub(crate) memory_swap_max: Option<u64>,

    /// When the job is out of memory, kill only the largest of its processes, not all of them
    #[arg(long)]
    pub(crate) no_oom_group: bool,

    /// The most processes and threads at a time, or `max`
    #[arg(long, value_name = "N", value_parser = limits::pids_max, allow_hyphen_values = true)]
    pub(crate) pids_max: Option<u64>,

    /// The share of the disks' time where there is not enough for all, 1 to 10000; others have 100
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000), allow_hyphen_values = true)]
    pub(crate) io_weight: Option<u32>,

    /// The most I/O a second (repeatable): KEYS are `rbps=`, `wbps=` (bytes, as `10M`), `riops=`, `wiops=` (operations), with commas between them;
    /// DEVICE is the path of a disk, of a file on it, or its MAJ:MIN [default: all disks]
    #[arg(long, value_name = "[DEVICE:]KEYS", value_parser = OsStringParser(limits::io_max))]
    pub(crate) io_max: Vec<(IoDevice, IoMax)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StdinName {
    /// Our own stdin
    Inherit,
    /// Nothing
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CaptureName {
    /// Two pipes: stdout and stderr are told apart. A raw log does not say which is which: all of it is printed on stdout
    Split,
    /// One pipe: exactly the order in which the job wrote, all of it on stdout
    Merged,
    /// The job writes its log itself, with nothing of ours in between. All of it is printed on stdout; the log is raw and has no bounds
    Direct,
    /// No log: the job has our own stdout and stderr
    Inherit,
    /// No log, no output
    Discard,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FullName {
    /// Begin the next one; above --log-files the oldest is deleted
    Rotate,
    /// As rotate, but keep the first: the middle of the log is deleted. CRI logs only
    DropMiddle,
    /// Write no more: the end of the log is dropped
    DropTail,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FaultName {
    /// Drop what cannot be written, count it, and say so in the log once it can be written again
    Drop,
    /// Read no more of the job's output until the log can be written again: the job waits
    Pause,
    /// Kill the job
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatName {
    /// Time and stream of each line
    Cri,
    /// The job's bytes and nothing else
    Raw,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogKeep {
    /// All of them
    All,
    /// Those of jobs that did not succeed
    Failed,
    /// None
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum StreamName {
    /// What the job wrote to stdout
    Stdout,
    /// What the job wrote to stderr
    Stderr,
}

impl StreamName {
    pub(crate) fn stream(self) -> OutputStream {
        match self {
            StreamName::Stdout => OutputStream::Stdout,
            StreamName::Stderr => OutputStream::Stderr,
        }
    }
}

impl WorkerArgs {
    /// A builder with these settings.
    pub(crate) fn builder(&self) -> Builder {
        let format = match self.log_format {
            FormatName::Cri => LogFormat::Cri,
            FormatName::Raw => LogFormat::Raw,
        };
        let base = match &self.cgroup_base {
            _ if self.no_cgroup => CgroupBase::Off,
            Some(path) => CgroupBase::Path(path.clone()),
            None => CgroupBase::Auto,
        };
        let builder = Worker::builder().log_dir(&self.log_dir).log_format(format).cgroup_base(base);
        let builder = builder.take_over_cgroup(self.take_over_cgroup).enable_controllers(self.enable_controllers);
        match self.rung {
            Some(rung) => builder.rung(rung),
            None => builder,
        }
    }
}

impl JobArgs {
    /// How output is captured with logs of this format.
    pub(crate) fn capture(&self, format: FormatName) -> Capture {
        match (self.capture, format) {
            (Some(CaptureName::Split), _) | (None, FormatName::Cri) => Capture::Split,
            (Some(CaptureName::Merged), _) | (None, FormatName::Raw) => Capture::Merged,
            (Some(CaptureName::Direct), _) => Capture::Direct,
            (Some(CaptureName::Inherit), _) => Capture::Inherit,
            (Some(CaptureName::Discard), _) => Capture::Discard,
        }
    }

    /// `command` with everything that was said about it.
    pub(crate) fn apply(&self, mut command: Command, capture: Capture, stdin: StdinName) -> Command {
        command = command.capture(capture).limits(self.limits.limits());
        if let Some(policy) = self.log_policy() {
            command = command.log_policy(policy);
        }
        if self.clear_env {
            command = command.env_clear();
        }
        for (name, value) in &self.env {
            command = command.env(name, value);
        }
        if let Some(cwd) = &self.cwd {
            command = command.cwd(cwd);
        }
        if let Some((uid, gid)) = self.user {
            command = command.uid(uid).gid(gid);
        }
        if let Some(timeout) = self.timeout.filter(|timeout| !timeout.is_zero()) {
            command = command.timeout(timeout).timeout_signal(self.signal, self.kill_after);
        }
        if let Some(name) = &self.name {
            command = command.name(name);
        }
        match self.stdin.unwrap_or(stdin) {
            StdinName::Inherit => command.stdin_inherit(),
            StdinName::Null => command.stdin_null(),
        }
    }

    /// The policy of the job's log; `None` where nothing was said.
    fn log_policy(&self) -> Option<LogPolicy> {
        let mut policy = LogPolicy::new();
        if let Some(bytes) = self.log_max_bytes {
            policy = policy.bytes_max(bytes);
        }
        if let Some(files) = self.log_files {
            policy = policy.files_max(files);
        }
        if let Some(rate) = self.log_rate {
            policy = policy.rate_max(rate, if self.log_rate_drop { OverRate::Drop } else { OverRate::Pause });
        }
        policy = policy.when_full(match self.log_when_full {
            FullName::Rotate => WhenFull::Rotate,
            FullName::DropMiddle => WhenFull::DropMiddle,
            FullName::DropTail => WhenFull::DropTail,
        });
        policy = policy.on_fault(match self.on_log_fault {
            FaultName::Drop => OnLogFault::Drop,
            FaultName::Pause => OnLogFault::Pause,
            FaultName::Kill => OnLogFault::Kill,
        });
        Some(policy).filter(|policy| *policy != LogPolicy::new())
    }

    /// What is wrong with the options as a whole.
    pub(crate) fn contradiction(&self) -> Option<&'static str> {
        (self.quiet && self.capture == Some(CaptureName::Inherit))
            .then_some("--quiet cannot silence a job that has our own stdout: use --capture discard instead of inherit")
    }
}

impl LimitArgs {
    /// The limits that were asked for.
    pub(crate) fn limits(&self) -> Limits {
        let mut limits = Limits::new();
        if let Some(max) = self.cpu_max {
            limits = max.set(limits);
        }
        if let Some(weight) = self.cpu_weight {
            limits = limits.cpu_weight(weight);
        }
        if let Some(list) = &self.cpuset_cpus {
            limits = limits.cpuset_cpus(list);
        }
        if let Some(list) = &self.cpuset_mems {
            limits = limits.cpuset_mems(list);
        }
        if let Some(bytes) = self.memory_max {
            limits = limits.memory_max(bytes);
        }
        if let Some(bytes) = self.memory_high {
            limits = limits.memory_high(bytes);
        }
        if let Some(bytes) = self.memory_swap_max {
            limits = limits.memory_swap_max(bytes);
        }
        if self.no_oom_group {
            limits = limits.memory_oom_group(false);
        }
        if let Some(pids) = self.pids_max {
            limits = limits.pids_max(pids);
        }
        if let Some(weight) = self.io_weight {
            limits = limits.io_weight(weight);
        }
        for (device, max) in &self.io_max {
            limits = limits.io_max(device.clone(), *max);
        }
        limits
    }

    /// The job's own `memory.max`, in bytes; `None` if it has none.
    pub(crate) fn memory_max(&self) -> Option<u64> {
        self.memory_max.filter(|bytes| *bytes != Limits::UNLIMITED)
    }
}

/// A parser of arguments that need not be UTF-8.
#[derive(Clone)]
struct OsStringParser<T>(fn(&OsStr) -> Result<T, String>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for OsStringParser<T> {
    type Value = T;

    fn parse_ref(&self, command: &clap::Command, arg: Option<&clap::Arg>, value: &OsStr) -> Result<T, clap::Error> {
        (self.0)(value).map_err(|message| {
            let arg = arg.map(|arg| format!(" for '{arg}'")).unwrap_or_default();
            let message = format!("invalid value '{}'{arg}: {message}\n", value.to_string_lossy());
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message).with_cmd(command)
        })
    }
}

fn variable(text: &OsStr) -> Result<(OsString, OsString), String> {
    let bytes = text.as_bytes();
    match bytes.iter().position(|byte| *byte == b'=') {
        Some(0) => Err("the name is empty: give NAME=VALUE".to_owned()),
        Some(at) => Ok((OsStr::from_bytes(&bytes[..at]).to_owned(), OsStr::from_bytes(&bytes[at + 1..]).to_owned())),
        None => Err("there is no `=` in it: give NAME=VALUE".to_owned()),
    }
}

/// `UID` or `UID:GID`.
fn user(text: &str) -> Result<(u32, u32), String> {
    let number =
        |text: &str| text.parse::<u32>().map_err(|_| format!("{text:?} is no number: give UID or UID:GID, both numeric (see id(1))"));
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, number(gid)?)),
        None => number(text).map(|uid| (uid, uid)),
    }
}

/// A number of seconds, or what humantime takes: `1h 30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let advice = "give a number of seconds, or units as in `1m 30s` or `500ms`";
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| format!("{error}: {advice}")),
        Err(_) => humantime::parse_duration(text).map_err(|error| format!("{error}: {advice}")),
    }
}

/// A time that long ago, or an RFC 3339 time.
fn point_in_time(text: &str) -> Result<SystemTime, String> {
    let advice = "give how long ago (`10m`), or a time in UTC (`2026-11-23T03:26:58Z`)";
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    let ago = duration(text).map_err(|_| format!("{text:?} is no time: {advice}"))?;
    // Before 1970 there are no logs.
    Ok(SystemTime::now().checked_sub(ago).unwrap_or(SystemTime::UNIX_EPOCH))
}

/// As [`duration`], but more than nothing.
#[cfg(feature = "s3")]
fn positive_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|time| if time.is_zero() { Err("it is no time at all: give more".to_owned()) } else { Ok(time) })
}

fn rung_named(name: &str) -> Rung {
    Rung::ALL.into_iter().find(|rung| rung.as_str() == name).unwrap_or(Rung::Fork)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_options_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn times_are_seconds_or_have_units() {
        for (text, millis) in [("10", 10_000), ("0.5", 500), ("500ms", 500), ("1m 30s", 90_000), ("0", 0)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text:?}");
        }
        for text in ["", "-1", "inf", "nan", "5 parsecs", "1e300"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_user_is_one_number_or_two() {
        assert_eq!(user("1000").unwrap(), (1000, 1000));
        assert_eq!(user("1000:5").unwrap(), (1000, 5));
        for text in ["", "root", "1:", ":1", "1:2:3", "-1"] {
            assert!(user(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_variable_has_a_name_and_may_have_any_value() {
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        assert_eq!(variable(OsStr::new("A=b=c")).unwrap(), pair("A", "b=c"));
        assert_eq!(variable(OsStr::new("A=")).unwrap(), pair("A", ""));
        assert!(variable(OsStr::from_bytes(b"A=\xff")).is_ok());
        for text in ["", "A", "=b"] {
            assert!(variable(OsStr::new(text)).is_err(), "{text:?}");
        }
    }

    #[test]
    fn every_limit_reaches_the_job() {
        let options = "--cpu-max 50% --cpu-weight 5 --cpuset-cpus 0-1 --cpuset-mems 0 --memory-max 64M --memory-high 32M --memory-swap-max 0 \
                       --no-oom-group --pids-max 7 --io-weight 9 --io-max rbps=1K --io-max 8:0:wiops=max";
        let expected = Limits::new()
            .cpu_max(0.5)
            .cpu_weight(5)
            .cpuset_cpus("0-1")
            .cpuset_mems("0")
            .memory_max(64 << 20)
            .memory_high(32 << 20)
            .memory_swap_max(0)
            .memory_oom_group(false)
            .pids_max(7)
            .io_weight(9)
            .io_max(IoDevice::All, IoMax::new().read_bytes(1024))
            .io_max(IoDevice::Number { major: 8, minor: 0 }, IoMax::new().write_ops(Limits::UNLIMITED));
        for (subcommand, rest) in [("run", "true"), ("batch", "file")] {
            let words = ["iron-exec", subcommand].into_iter().chain(options.split_whitespace()).chain([rest]);
            let job = match Cli::try_parse_from(words).unwrap().tool {
                Tool::Run(args) => args.job,
                Tool::Batch(args) => args.job,
                _ => panic!("it is one of the two"),
            };
            assert_eq!(job.limits.limits(), expected);
            assert_eq!(job.limits.memory_max(), Some(64 << 20));
        }
        let Tool::Run(args) = Cli::try_parse_from(["iron-exec", "run", "true"]).unwrap().tool else { panic!("it is a run") };
        assert!(args.job.limits.limits().is_empty());
    }

    #[cfg(not(feature = "s3"))]
    #[test]
    fn a_command_that_is_not_in_this_build_takes_whatever_it_is_given() {
        let cli = Cli::try_parse_from(["iron-exec", "archive", "--to", "s3://logs", "--help", "a", "--", "b"]).unwrap();
        assert!(matches!(cli.tool, Tool::Archive(_)), "main says what is to be done");
    }

    #[test]
    fn what_follows_the_program_is_the_programs() {
        let cli = Cli::try_parse_from(["iron-exec", "run", "-q", "ls", "--timeout", "-q"]).unwrap();
        let Tool::Run(args) = cli.tool else { panic!("it is a run") };
        assert_eq!(args.command, ["ls", "--timeout", "-q"]);
        assert!(Cli::try_parse_from(["iron-exec", "run", "--no-such-option", "ls"]).is_err());
    }
}
