//! Logs: how output gets into them, how they are bounded, read, and cleared away.
//!
//! ```text
//!   job                      loop (one turn)                                log directory
//!  ┌────────┐ pipe   ┌─────────────────────────────────┐        ┌──────────────────────────────────────────┐
//!  │ stdout ├───────►│ read  ─► split into lines ─► CRI ├──┐     │ make_0190….log.000001   full, 0400       │
//!  │ stderr ├───────►│ (a budget of bytes a turn)       │  ├────►│ make_0190….log.000002   full, 0400       │
//!  └────────┘ pipe   └──────────┬──────────────────────┘  │ one │ make_0190….log          written, 0600    │
//!      ▲                        │ rate, cap, fault:       │ write└───────┬──────────────────────────────────┘
//!      └── waits, if it is to ──┘ pause · drop · kill     │              │ pread, each at its own pace
//!                                                         │              ├─► LogStream   in this process, told by the loop
//!                     wakers, Event::LogReady ◄───────────┘              ├─► LogReader   in any other, told by inotify
//!                                                                        │   iron-exec logs -f
//!                        retention: age, bytes, count ──────────────────►└─► deleted, or stored in S3 and deleted
//! ```
//!
//! The file is what everybody reads from: a reader that is slow, or hangs, slows down neither the job nor the loop, and one that comes late, or after the host has
//! died, reads the same bytes.
//!
//! # What a log is
//!
//! `{log_dir}/{name}_{job id}.log`, made exclusively (never through a link), mode 0600; when the job is over it is *sealed*: mode 0400, the sign for everybody that
//! nothing more will come. An extended attribute (`user.iron-exec`; a table beside the worker's lock, on file systems that have none) names the worker that writes
//! it. As long as that lives it holds a lock in `.iron-exec-{uid}`; so a log that is not sealed, and whose worker's lock is free, was left by a crash.
//!
//! In the [CRI format](crate::framing::cri), the default, each line is a record with its time and stream, which every collector of Kubernetes logs reads:
//!
//! ```text
//! 2026-11-23T03:26:58.123456789Z stdout F a whole line
//! 2026-11-23T03:26:58.123499801Z stderr P the start of a line longer than line_bytes_max, or one that is not finished yet
//! 2026-11-23T03:26:59.001200300+00:00 stdout F [iron-exec: 1234 bytes of output are missing here: no space left on device]
//! ```
//!
//! The last of these is not the job's. What tells it apart is `+00:00` in place of `Z`: the same time to every reader of RFC 3339, and nothing that a job can have
//! an influence on. A raw log ([`LogFormat::Raw`](crate::LogFormat::Raw)) is the job's bytes and nothing else; there only the counters in
//! [`OutputCount`](crate::OutputCount) and the events tell of missing output.
//!
//! Times are when the loop read the bytes, and never run backwards in a log. Lines of one stream are in order. Between the two streams the order is that of arrival
//! at the loop; [`Capture::Merged`](crate::Capture::Merged), one pipe for both, keeps exactly the order in which the job wrote.
//!
//! # Ways into it
//!
//! | [`Capture`](crate::Capture) | descriptors that the host holds | |
//! |---|---|---|
//! | `Split` | 3, and one while it is written | lines keep their stream |
//! | `Merged` | 2, and one while it is written | exact order, one stream |
//! | `Direct` | 1 | the job writes the file itself: no cost, no bounds, raw |
//! | `Inherit`, `Piped`, `Discard` | 1 (`Piped`: 3) | no log |
//!
//! A program that writes every line by itself makes the loop wake for each of them. So a pipe that is written to again and again in small pieces is left alone for
//! [`Builder::coalesce_time`](crate::Builder::coalesce_time), a millisecond at most by default, and not so long that it could fill. A line after a moment's silence
//! is read at once.
//!
//! # Bounds
//!
//! A [`LogPolicy`](crate::LogPolicy), of the worker or of one command, says what happens when a log is full, comes too fast, or cannot be written:
//!
//! ```
//! use iron_exec::{LogPolicy, OnLogFault, OverRate};
//!
//! let policy = LogPolicy::new()
//!     .bytes_max(16 << 20) // one file
//!     .files_max(4)
//!     .rate_max(4 << 20, OverRate::Pause)
//!     .on_fault(OnLogFault::Pause);
//! # assert!(policy.check().is_ok());
//! ```
//!
//! | | what is lost | counted in | told by |
//! |---|---|---|---|
//! | full, `Rotate` | the oldest files | `deleted_bytes` | a reader that has not come so far: [`StreamError::Gap`](crate::StreamError::Gap) |
//! | full, `DropMiddle` | what is neither in the first file nor in the last ones | `discarded_bytes` | a file of one record in its place |
//! | full, `DropTail` | the end | `discarded_bytes` | the last record, [`Event::LogFull`](crate::Event::LogFull) |
//! | too fast, `Pause` | nothing: the job waits | | |
//! | too fast, `Drop` | whole records | `discarded_bytes` | a record where they are missing |
//! | cannot be written, `Drop` | what could not be written | `dropped_bytes` | a record where it is missing, [`Event::LogFault`](crate::Event::LogFault), [`Event::LogResumed`](crate::Event::LogResumed) |
//! | cannot be written, `Pause` | nothing, unless the job ends meanwhile and `drain_total_max` passes | `dropped_bytes` | the same events |
//! | cannot be written, `Kill` | as with `Drop`, and the job | `dropped_bytes` | the same, [`StopReason::LogFault`](crate::StopReason::LogFault) |
//!
//! A rotation is one rename: the full file and the next one exchange their names, so that the log's name stands for the newest file at every moment. Numbers are
//! never used again and files never shifted: what a collector has seen as `….log.000017` stays that.
//!
//! `Pause` is back-pressure. The job is not stopped: it waits in write(2) once its pipes are full, as for any slow reader. A job that must not be held up wants
//! `Drop`; one whose output must not be lost, `Pause`; one whose output is its only purpose, `Kill`.
//!
//! # Reading
//!
//! [`Worker::stream`](crate::Worker::stream) in the process, [`LogReader`](crate::LogReader) anywhere: both yield the job's exact bytes, or
//! [records](crate::Record) with time and stream; from the start, the end, a place in the log, the last lines, or a time
//! ([`LogPosition`](crate::LogPosition)); of one stream or both; through rotations, without losing or repeating a byte.
//! What cannot be had is an error in its place ([`StreamError`](crate::StreamError)), behind which reading goes on: bytes that were deleted before they were read,
//! or never written; a file that somebody has cut; a line that is no record.
//!
//! # Clearing away
//!
//! A [`Retention`](crate::Retention) bounds the log directory by age, by bytes and by number. Only logs go that are complete, or were left by a crash (those are
//! mended first: a record that the crash has torn is cut off, and the log sealed). It works in slices, a little in each turn: a directory of a hundred thousand logs holds up no
//! job. `iron-exec gc` does the same by hand.
//!
//! With an [`Archive`](crate::Archive) a log is stored in S3-compatible storage before it is deleted, and nothing is deleted that was not stored. That is done by
//! another process, `iron-exec archive`, which the loop runs as a job: the host has neither a thread nor an HTTP client for it, and the credentials are in that
//! command's environment only.
//!
//! # In a directory that others can write
//!
//! Everything there is opened below a descriptor of the directory, without following links and without waiting (a FIFO in place of a log holds nobody up), and is
//! believed only if it is a regular file, our user's, with one name and our mark. Before a file is deleted it is looked at again: it must still be the one that was
//! meant. Names are no secret, though: in `/tmp` somebody can take the name that a log would be rotated to. That is a fault like a full disk, and cleared away as easily;
//! a host that does not trust the users of its machine has a log directory of its own.
