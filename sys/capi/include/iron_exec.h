/*
 * iron-exec: runs other programs, on Linux, from one thread.
 *
 * Made by cbindgen from the sources in sys/capi/src; changed there, not here.
 *
 * Handles. iron_exec_error, iron_exec_config, iron_exec_command, iron_exec_worker and iron_exec_stream are made by the library and freed by the function of
 * their name that ends in _free: it takes the address of the pointer and sets that to NULL, so that freeing twice through one pointer does nothing. All else
 * (arrays, buffers, strings, structures) is the caller's, and no call keeps a pointer to it.
 *
 * Pointers. Each may be NULL: where that makes no sense the call says so (INVALID_ARGUMENT). What is not NULL must be a handle that was not freed, a string
 * with a NUL byte at its end, or a place for what the function writes; the places of one call do not overlap. Strings are bytes as the system takes them, UTF-8
 * only where that is said. Every other argument may have any value: what cannot be is refused. In the text of this header, codes are without their
 * IRON_EXEC_RESULT_.
 *
 * Threads. A handle is used by one thread at a time, and may be handed from one to another. Different handles can be used at the same time, also a worker and the
 * streams of its jobs. After fork(2) only the parent uses a worker.
 *
 * Errors. A call that can fail returns an iron_exec_result, below 0 if it has failed. The text of what went wrong, and the system's error number, go to an
 * iron_exec_error, if one was handed in. Where a handle, a descriptor or a number was to be written, NULL, -1 or 0 stands then; structures and buffers are left
 * as they were.
 *
 * Memory. Where there is none left the process is aborted: the functions ending in _new never return NULL for that, only through a bug in the library.
 *
 * Structures grow with the version: compile against the header of the library that is linked. Whoever loads the library dynamically (dlopen(3), ctypes, and the
 * like) compares, before anything else: iron_exec_version() with IRON_EXEC_VERSION, and iron_exec_event_size() and iron_exec_status_size() with the sizes of
 * the structures as they were compiled.
 */


#ifndef IRON_EXEC_H
#define IRON_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/**
 * The version that this header belongs to: what iron_exec_version() of its library says.
 */
#define IRON_EXEC_VERSION "0.1.0"


/**
 * The number of bytes of an id as text, its NUL byte included.
 */
#define IRON_EXEC_ID_TEXT_SIZE 37

/**
 * What a call came to. Below 0 it has failed: nothing was done, unless the function says otherwise.
 */
enum iron_exec_result
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Done.
   */
  IRON_EXEC_RESULT_OK = 0,
  /**
   * A stream has nothing to read yet: an event, IRON_EXEC_EVENT_KIND_LOG_READY, tells when to ask again.
   */
  IRON_EXEC_RESULT_AGAIN = 1,
  /**
   * A stream has come to its end.
   */
  IRON_EXEC_RESULT_END = 2,
  /**
   * A stream has a gap here, of which the error object tells; reading goes on behind it.
   */
  IRON_EXEC_RESULT_GAP = 3,
  /**
   * An argument cannot be what it is: NULL, an unknown number, a string that is not UTF-8, a value out of its range. Also a command or a configuration of
   * which a setter has said so before.
   */
  IRON_EXEC_RESULT_INVALID_ARGUMENT = -1,
  /**
   * There is no such job: never started by this worker, forgotten, or gone because there were too many finished ones.
   */
  IRON_EXEC_RESULT_NOT_FOUND = -2,
  /**
   * The job is not in the state for it: it has not finished, has no process yet, or has ended; or what was asked for was taken already. Or the worker is not: it
   * is shut down, and starts nothing more.
   */
  IRON_EXEC_RESULT_WRONG_STATE = -3,
  /**
   * A buffer is too small; the length that was written tells how long the text is.
   */
  IRON_EXEC_RESULT_BUFFER_TOO_SMALL = -4,
  /**
   * The worker has as many unfinished jobs as it may have.
   */
  IRON_EXEC_RESULT_TOO_MANY_JOBS = -5,
  /**
   * The output of the job cannot be read in this way: it is not logged, or not told apart by stream.
   */
  IRON_EXEC_RESULT_NOT_LOGGED = -6,
  /**
   * The job was not started: a step of it failed. The error object names the step and the path, and has the error number, or 0 where it was
   * not the kernel that refused.
   */
  IRON_EXEC_RESULT_START_FAILED = -7,
  /**
   * The system has refused something, or is not as something needs it. The error object has the error number, or 0 where it was not the kernel that refused:
   * of a cgroup base that is not on a cgroup2 mount, for instance.
   */
  IRON_EXEC_RESULT_SYSTEM = -8,
  /**
   * A bug in the library. A worker that it happened in can only be freed.
   */
  IRON_EXEC_RESULT_BUG = -9,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_result iron_exec_result;
#else
typedef int32_t iron_exec_result;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where jobs get their cgroups.
 */
enum iron_exec_cgroup_base
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The host's own cgroup if that is delegated to it, else one below the root of the hierarchy if the host is root, else none.
   */
  IRON_EXEC_CGROUP_BASE_AUTO = 0,
  /**
   * None: jobs run without cgroups, and limits cannot be had.
   */
  IRON_EXEC_CGROUP_BASE_OFF = 1,
  /**
   * A directory of a cgroup2 mount; made if it is not there.
   */
  IRON_EXEC_CGROUP_BASE_PATH = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_cgroup_base iron_exec_cgroup_base;
#else
typedef int32_t iron_exec_cgroup_base;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How output stands in a log.
 */
enum iron_exec_log_format
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * The Kubernetes CRI text format: one record a line, with its time and stream.
   */
  IRON_EXEC_LOG_FORMAT_CRI = 0,
  /**
   * The job's bytes and nothing else.
   */
  IRON_EXEC_LOG_FORMAT_RAW = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_log_format iron_exec_log_format;
#else
typedef int32_t iron_exec_log_format;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A way to make a process, from the best to the one that always works.
 */
enum iron_exec_rung
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * clone3(2); until its exec the child stands in the host's memory, and the host does not wait for it (Linux 5.16).
   */
  IRON_EXEC_RUNG_DETACHED = 0,
  /**
   * The same, but the host waits until the child has executed its program (Linux 5.16).
   */
  IRON_EXEC_RUNG_VFORK = 1,
  /**
   * clone3(2), with a copy of the host's page tables and descriptors (Linux 5.7).
   */
  IRON_EXEC_RUNG_FORK_LIKE = 2,
  /**
   * fork(2). For where clone3 is refused, and for tools that do not know it, such as valgrind.
   */
  IRON_EXEC_RUNG_FORK = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_rung iron_exec_rung;
#else
typedef int32_t iron_exec_rung;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What a job reads on its stdin.
 */
enum iron_exec_stdin
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Nothing: /dev/null.
   */
  IRON_EXEC_STDIN_NULL = 0,
  /**
   * A pipe, whose other end iron_exec_take_pipe gives to the caller.
   */
  IRON_EXEC_STDIN_PIPED = 1,
  /**
   * The host's own stdin.
   */
  IRON_EXEC_STDIN_INHERIT = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_stdin iron_exec_stdin;
#else
typedef int32_t iron_exec_stdin;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where the two output streams of a job go.
 */
enum iron_exec_capture
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Two pipes into the log: each line keeps its stream.
   */
  IRON_EXEC_CAPTURE_SPLIT = 0,
  /**
   * One pipe into the log: exactly the order in which the job wrote, everything counts as stdout.
   */
  IRON_EXEC_CAPTURE_MERGED = 1,
  /**
   * The log file itself is the job's stdout and stderr. The log is raw, and has no bounds.
   */
  IRON_EXEC_CAPTURE_DIRECT = 2,
  /**
   * No log: the host's own stdout and stderr.
   */
  IRON_EXEC_CAPTURE_INHERIT = 3,
  /**
   * No log: two pipes, whose other ends iron_exec_take_pipe gives to the caller.
   */
  IRON_EXEC_CAPTURE_PIPED = 4,
  /**
   * No log: /dev/null.
   */
  IRON_EXEC_CAPTURE_DISCARD = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_capture iron_exec_capture;
#else
typedef int32_t iron_exec_capture;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What an event is about. What one turn tells of a job comes in the order of this list. Every job that iron_exec_start gave an id ends with exactly one
 * START_FAILED, FINISHED or LEFT.
 */
enum iron_exec_event_kind
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Something that this header does not know.
   */
  IRON_EXEC_EVENT_KIND_OTHER = 0,
  /**
   * The program was executed.
   */
  IRON_EXEC_EVENT_KIND_STARTED = 1,
  /**
   * The program was not executed; the job has failed. iron_exec_failure_text tells more.
   */
  IRON_EXEC_EVENT_KIND_START_FAILED = 2,
  /**
   * A stream of the job that had answered AGAIN has more to read, or has ended.
   */
  IRON_EXEC_EVENT_KIND_LOG_READY = 3,
  /**
   * The job's log could not be written.
   */
  IRON_EXEC_EVENT_KIND_LOG_FAULT = 4,
  /**
   * The job's log can be written again.
   */
  IRON_EXEC_EVENT_KIND_LOG_RESUMED = 5,
  /**
   * The job's log is full, and from here on its end is dropped.
   */
  IRON_EXEC_EVENT_KIND_LOG_FULL = 6,
  /**
   * The out-of-memory killer has killed a process of the job, or all of them.
   */
  IRON_EXEC_EVENT_KIND_OUT_OF_MEMORY = 7,
  /**
   * The job is above its memory.high.
   */
  IRON_EXEC_EVENT_KIND_MEMORY_HIGH = 8,
  /**
   * The job was refused a process or a thread by its pids.max.
   */
  IRON_EXEC_EVENT_KIND_PIDS_MAX = 9,
  /**
   * The job's processes are frozen now.
   */
  IRON_EXEC_EVENT_KIND_FROZEN = 10,
  /**
   * The job's processes go on again.
   */
  IRON_EXEC_EVENT_KIND_THAWED = 11,
  /**
   * The job's processes wait for a resource as much as was asked about.
   */
  IRON_EXEC_EVENT_KIND_PRESSURE = 12,
  /**
   * The main process has ended. The last of its output may still be on its way into the log.
   */
  IRON_EXEC_EVENT_KIND_EXITED = 13,
  /**
   * Processes of the job had outlived its main process; now the last of them is gone.
   */
  IRON_EXEC_EVENT_KIND_TREE_EMPTY = 14,
  /**
   * All over: every byte is in the log, the process tree is gone, the cgroup is removed.
   */
  IRON_EXEC_EVENT_KIND_FINISHED = 15,
  /**
   * The worker was shut down, and the job let go of: it runs on, and nothing more will be heard of it (IRON_EXEC_SHUTDOWN_MODE_LEAVE).
   */
  IRON_EXEC_EVENT_KIND_LEFT = 16,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_event_kind iron_exec_event_kind;
#else
typedef int32_t iron_exec_event_kind;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where a job stands. It only moves downwards in this list, and ends in one of the last four. (-1 of a status is a state that this header does not know.)
 */
enum iron_exec_state
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Its program was not executed yet, as far as is known.
   */
  IRON_EXEC_STATE_STARTING = 0,
  /**
   * The program runs.
   */
  IRON_EXEC_STATE_RUNNING = 1,
  /**
   * It was told to stop.
   */
  IRON_EXEC_STATE_STOPPING = 2,
  /**
   * The main process has ended; the rest of its tree is ending, its last output is being read.
   */
  IRON_EXEC_STATE_DRAINING = 3,
  /**
   * All over: the exit status is final, every byte is in the log.
   */
  IRON_EXEC_STATE_FINISHED = 4,
  /**
   * The start failed: iron_exec_failure_text tells why.
   */
  IRON_EXEC_STATE_FAILED = 5,
  /**
   * All over, but how the main process ended is not to be known: somebody else reaped it, and the kernel is too old to tell.
   */
  IRON_EXEC_STATE_UNKNOWN = 6,
  /**
   * It was let go of, and runs on without anybody watching it: IRON_EXEC_SHUTDOWN_MODE_LEAVE.
   */
  IRON_EXEC_STATE_LEFT = 7,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_state iron_exec_state;
#else
typedef int32_t iron_exec_state;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Why a job was stopped. (-1 of a status is a reason that this header does not know.)
 */
enum iron_exec_stop_reason
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * It was not.
   */
  IRON_EXEC_STOP_REASON_NONE = 0,
  /**
   * The caller asked for it.
   */
  IRON_EXEC_STOP_REASON_REQUESTED = 1,
  /**
   * Its timeout passed.
   */
  IRON_EXEC_STOP_REASON_TIMEOUT = 2,
  /**
   * The worker was freed.
   */
  IRON_EXEC_STOP_REASON_WORKER_DROPPED = 3,
  /**
   * Its log could not be written.
   */
  IRON_EXEC_STOP_REASON_LOG_FAULT = 4,
  /**
   * The worker was shut down.
   */
  IRON_EXEC_STOP_REASON_SHUTDOWN = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_stop_reason iron_exec_stop_reason;
#else
typedef int32_t iron_exec_stop_reason;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Which output of a job is read.
 */
enum iron_exec_stream_source
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Both streams, in the order of the log.
   */
  IRON_EXEC_STREAM_SOURCE_BOTH = 0,
  /**
   * Stdout only. Needs the CRI format, or a single pipe.
   */
  IRON_EXEC_STREAM_SOURCE_STDOUT = 1,
  /**
   * Stderr only. Needs the CRI format.
   */
  IRON_EXEC_STREAM_SOURCE_STDERR = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_stream_source iron_exec_stream_source;
#else
typedef int32_t iron_exec_stream_source;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * Where in a log reading begins.
 */
enum iron_exec_stream_position
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * At the beginning.
   */
  IRON_EXEC_STREAM_POSITION_START = 0,
  /**
   * At the end: only what comes from now on.
   */
  IRON_EXEC_STREAM_POSITION_END = 1,
  /**
   * So many bytes of the log behind its beginning: what iron_exec_stream_offset has said.
   */
  IRON_EXEC_STREAM_POSITION_OFFSET = 2,
  /**
   * So many lines before the end.
   */
  IRON_EXEC_STREAM_POSITION_LAST_LINES = 3,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_stream_position iron_exec_stream_position;
#else
typedef int32_t iron_exec_stream_position;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * How the reading of a log has ended.
 */
enum iron_exec_stream_end
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Not yet, as far as was read.
   */
  IRON_EXEC_STREAM_END_NONE = 0,
  /**
   * The job is over, and this was all of its log.
   */
  IRON_EXEC_STREAM_END_COMPLETE = 1,
  /**
   * The log was deleted.
   */
  IRON_EXEC_STREAM_END_DELETED = 2,
  /**
   * Its worker is gone: nobody will write the rest.
   */
  IRON_EXEC_STREAM_END_WRITER_GONE = 3,
  /**
   * In a way that this header does not know.
   */
  IRON_EXEC_STREAM_END_OTHER = 4,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_stream_end iron_exec_stream_end;
#else
typedef int32_t iron_exec_stream_end;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * What becomes of the jobs when a worker is shut down.
 */
enum iron_exec_shutdown_mode
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  /**
   * Every job's whole tree is killed at once, with SIGKILL.
   */
  IRON_EXEC_SHUTDOWN_MODE_KILL = 0,
  /**
   * Every job's process group gets a signal, and what is left of its tree after the grace time SIGKILL.
   */
  IRON_EXEC_SHUTDOWN_MODE_STOP = 1,
  /**
   * The jobs run on, and nobody watches them any more. Their pipes are closed: a job that is to outlive its host writes into its log itself, or nowhere
   * (IRON_EXEC_CAPTURE_DIRECT, DISCARD, INHERIT). Its log is not sealed, its cgroup stays. The processes stay children of this one.
   */
  IRON_EXEC_SHUTDOWN_MODE_LEAVE = 2,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum iron_exec_shutdown_mode iron_exec_shutdown_mode;
#else
typedef int32_t iron_exec_shutdown_mode;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

/**
 * A program to run, and everything about the process that it becomes: a template, which iron_exec_start only reads. Setters that are given something that
 * cannot be answer INVALID_ARGUMENT, and iron_exec_start says again what it was, so that only that needs to be asked.
 *
 * One thread at a time.
 */
typedef struct iron_exec_command iron_exec_command;

/**
 * What a worker is built with: every setting has a default. Settings are made by functions; one that is given something that cannot be answers
 * INVALID_ARGUMENT, and iron_exec_worker_new says again what it was, so that only that needs to be asked.
 *
 * One thread at a time.
 */
typedef struct iron_exec_config iron_exec_config;

/**
 * Holds the text of what went wrong. Made once, and handed to call after call: each says there what went wrong in it, or that nothing did. Where the code is
 * enough, NULL takes its place.
 *
 * One thread at a time: each thread has its own.
 */
typedef struct iron_exec_error iron_exec_error;

/**
 * A reader of a job's log: the exact bytes that the job wrote, as they come. It can never slow a job down. Any number a job.
 *
 * One thread at a time, which need not be the worker's; it may outlive the worker.
 */
typedef struct iron_exec_stream iron_exec_stream;

/**
 * Starts, watches, logs and stops processes, from the thread that turns it: an event loop behind one file descriptor, which fits into any other. There are no
 * threads, no signal handler and nothing global behind it.
 *
 * One thread at a time; it may be handed from one to another.
 */
typedef struct iron_exec_worker iron_exec_worker;

/**
 * Identifies one job, for ever: a version 7 UUID (RFC 9562), so that memcmp(3) sorts jobs by the time of their start. Passed by value.
 */
typedef struct iron_exec_job_id {
  /**
   * The UUID, its first byte first.
   */
  uint8_t bytes[16];
} iron_exec_job_id;

/**
 * Identifies the client that owns a job: any UUID; all zeros is "nobody in particular". Passed by value.
 */
typedef struct iron_exec_owner_id {
  /**
   * The UUID, its first byte first.
   */
  uint8_t bytes[16];
} iron_exec_owner_id;

/**
 * Something that happened to a job.
 */
typedef struct iron_exec_event {
  /**
   * The job.
   */
  struct iron_exec_job_id job;
  /**
   * What happened: an iron_exec_event_kind.
   */
  int32_t kind;
  /**
   * EXITED, FINISHED: the exit code, 0 to 255; -1 after a signal, or if it is not to be known. Else 0.
   */
  int32_t exit_code;
  /**
   * EXITED, FINISHED, START_FAILED: the signal that killed the main process, or the child before its program was executed. Else, or if none did, 0.
   */
  int32_t signal;
  /**
   * START_FAILED, LOG_FAULT: the error number. Else, or if the failure was not the kernel's, 0.
   */
  int32_t error_number;
  /**
   * LOG_RESUMED: bytes of the output that are missing in the log by now, in all. Else 0.
   */
  uint64_t dropped_bytes;
} iron_exec_event;

/**
 * Everything known about a job, but for its texts (iron_exec_log_path, iron_exec_failure_text). It does not change when the job goes on. Times by the wall
 * clock are nanoseconds since 1970-01-01 00:00:00 UTC.
 */
typedef struct iron_exec_status {
  /**
   * The job.
   */
  struct iron_exec_job_id job;
  /**
   * Who owns it.
   */
  struct iron_exec_owner_id owner;
  /**
   * Where it stands: an iron_exec_state.
   */
  int32_t state;
  /**
   * The main process's id; 0 while there is none yet. Signals go by iron_exec_signal: kill(2) could hit another process.
   */
  int32_t pid;
  /**
   * The exit code, 0 to 255; -1 while there is none, and after a signal.
   */
  int32_t exit_code;
  /**
   * The signal that killed the main process; 0 if none did.
   */
  int32_t signal;
  /**
   * Why it was stopped: an iron_exec_stop_reason.
   */
  int32_t stop_reason;
  /**
   * The error number of a start that failed; 0 if it did not, or if the failure was not the kernel's.
   */
  int32_t error_number;
  /**
   * How it was started, or is to be: an iron_exec_rung.
   */
  int32_t rung;
  /**
   * Whether nothing more will happen to it.
   */
  bool finished;
  /**
   * Whether the main process dumped core.
   */
  bool core_dumped;
  /**
   * Whether the main process was killed because there was no memory for it.
   */
  bool oom_killed;
  /**
   * Whether its outputs were closed before their end: a process that escaped the job's tree still held them.
   */
  bool cut_off;
  /**
   * Bytes read from stdout (from both, where they share one pipe).
   */
  uint64_t stdout_bytes;
  /**
   * Bytes read from stderr.
   */
  uint64_t stderr_bytes;
  /**
   * Line feeds among them.
   */
  uint64_t lines;
  /**
   * Bytes that are not in the log because it could not be written.
   */
  uint64_t dropped_bytes;
  /**
   * Bytes that are not in the log because it was full, or has files of it deleted since.
   */
  uint64_t discarded_bytes;
  /**
   * When it was started, by the wall clock, in nanoseconds.
   */
  uint64_t started_ns;
  /**
   * When it finished, by the wall clock, in nanoseconds; 0 if it has not.
   */
  uint64_t finished_ns;
  /**
   * How long the main process ran, or has run so far, in nanoseconds.
   */
  uint64_t run_time_ns;
  /**
   * The CPU time in user mode, in nanoseconds, of the main process and the children it waited for; 0 while it runs.
   */
  uint64_t user_time_ns;
  /**
   * Their CPU time in the kernel, in nanoseconds; 0 while it runs.
   */
  uint64_t system_time_ns;
  /**
   * The largest resident set of one of them, in bytes; 0 while it runs.
   */
  uint64_t max_rss_bytes;
} iron_exec_status;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Makes an error object. NULL comes back through a bug in the library alone.
 */
struct iron_exec_error *iron_exec_error_new(void);

/**
 * Frees an error object, and sets the pointer to NULL. Of a NULL it does nothing.
 */
void iron_exec_error_free(struct iron_exec_error **error);

/**
 * What went wrong in the last call that `error` was handed to: what was done, to which path, and all the causes, in UTF-8 on one line: control characters, of a
 * path for instance, stand there as "\n" or "\u{1b}". Empty if nothing went wrong, or for NULL. It belongs to the error object, and is there until the next call
 * that this is handed to.
 */
const char *iron_exec_error_text(const struct iron_exec_error *error);

/**
 * The system's error number (errno(3)) of what went wrong; 0 if nothing did, if it was not the kernel that refused, or for NULL.
 */
int32_t iron_exec_error_errno(const struct iron_exec_error *error);

/**
 * Writes an id as text, for instance "019a2b8e-6b0c-7f3a-9d2e-0c4a7e5b1f23", with a NUL byte at its end, into `buffer` of `size` bytes:
 * IRON_EXEC_ID_TEXT_SIZE is enough. It stands in the name of the job's log, and in every error that is about the job.
 *
 * Errors: INVALID_ARGUMENT if `buffer` is NULL, BUFFER_TOO_SMALL.
 */
iron_exec_result iron_exec_job_id_text(struct iron_exec_job_id job, char *buffer, size_t size, struct iron_exec_error *error);

/**
 * Makes a configuration in which everything is at its default. NULL comes back through a bug in the library alone.
 */
struct iron_exec_config *iron_exec_config_new(void);

/**
 * Frees a configuration, and sets the pointer to NULL. Of a NULL it does nothing.
 */
void iron_exec_config_free(struct iron_exec_config **config);

/**
 * The directory of the log files, which must exist. Default: "/tmp".
 */
iron_exec_result iron_exec_config_log_dir(struct iron_exec_config *config, const char *directory);

/**
 * The format of the logs of commands that do not say: an iron_exec_log_format. Default: CRI.
 */
iron_exec_result iron_exec_config_log_format(struct iron_exec_config *config, int32_t format);

/**
 * The most bytes of one log file, from 4096: then it is renamed to "{log}.000001" (the next to "{log}.000002", and so on), and a new one begun. Default: no
 * bound. For commands that say nothing of log files.
 */
iron_exec_result iron_exec_config_log_bytes_max(struct iron_exec_config *config,
                                                uint64_t bytes);

/**
 * The most files of one log, the one being written included, from 2 to 10,000; the oldest goes first. Needs iron_exec_config_log_bytes_max. Default: 5.
 */
iron_exec_result iron_exec_config_log_files_max(struct iron_exec_config *config,
                                                uint64_t files);

/**
 * Where jobs get their cgroups: an iron_exec_cgroup_base. `path` is looked at for IRON_EXEC_CGROUP_BASE_PATH only. Default: AUTO.
 */
iron_exec_result iron_exec_config_cgroup_base(struct iron_exec_config *config, int32_t base, const char *path);

/**
 * Whether (1, or 0) this process moves to a leaf of its cgroup, "supervisor", so that jobs can have theirs beside it, with limits: for a service or a
 * container that has a cgroup to itself. Default: 0.
 */
iron_exec_result iron_exec_config_take_over_cgroup(struct iron_exec_config *config,
                                                   int32_t take_over);

/**
 * Whether (1, or 0) a controller that a limit needs is enabled also in the cgroups above the base. Default: 0.
 */
iron_exec_result iron_exec_config_enable_controllers(struct iron_exec_config *config, int32_t enable);

/**
 * The best way to make a process that starts may take: an iron_exec_rung. Default: the best that the machine has.
 */
iron_exec_result iron_exec_config_rung(struct iron_exec_config *config, int32_t rung);

/**
 * Whether (1, or 0) iron_exec_start waits until the program was executed, and so says "no such program" itself. With 0 nothing waits, and that comes as
 * an event, IRON_EXEC_EVENT_KIND_START_FAILED. Default: 1.
 */
iron_exec_result iron_exec_config_confirm(struct iron_exec_config *config,
                                          int32_t confirm);

/**
 * How many milliseconds iron_exec_start waits for that at most; after them the job is STARTING. Default: 100.
 */
iron_exec_result iron_exec_config_confirm_timeout(struct iron_exec_config *config, uint64_t timeout_ms);

/**
 * Whether (1, or 0) jobs start from an empty environment instead of the host's: for hosts whose environment holds secrets. Default: 0.
 */
iron_exec_result iron_exec_config_env_clear(struct iron_exec_config *config, int32_t clear);

/**
 * Whether (1, or 0) this process's soft limit of open files is raised to its hard limit (RLIMIT_NOFILE). Jobs keep what was. Default: 0.
 */
iron_exec_result iron_exec_config_raise_nofile(struct iron_exec_config *config, int32_t raise);

/**
 * The number of unfinished jobs above which iron_exec_start answers TOO_MANY_JOBS. Default: 100,000.
 */
iron_exec_result iron_exec_config_jobs_max(struct iron_exec_config *config, size_t jobs);

/**
 * The number of finished jobs, their end told, that can still be asked about; the oldest are forgotten first. Default: 10,000.
 */
iron_exec_result iron_exec_config_finished_jobs_max(struct iron_exec_config *config, size_t jobs);

/**
 * Makes a command that runs `program`; a name without a slash is looked up in the PATH that the job will have. A `program` that is NULL is told of by
 * iron_exec_start: NULL comes back through a bug in the library alone.
 */
struct iron_exec_command *iron_exec_command_new(const char *program);

/**
 * Frees a command, and sets the pointer to NULL. Of a NULL it does nothing. Jobs that were started with it are not concerned.
 */
void iron_exec_command_free(struct iron_exec_command **command);

/**
 * Adds one argument.
 */
iron_exec_result iron_exec_command_arg(struct iron_exec_command *command, const char *arg);

/**
 * Sets an environment variable.
 */
iron_exec_result iron_exec_command_env(struct iron_exec_command *command, const char *name, const char *value);

/**
 * Removes an environment variable.
 */
iron_exec_result iron_exec_command_env_remove(struct iron_exec_command *command, const char *name);

/**
 * Starts from an empty environment: drops the host's and what was set so far.
 */
iron_exec_result iron_exec_command_env_clear(struct iron_exec_command *command);

/**
 * The working directory, entered with the job's credentials. Default: the host's.
 */
iron_exec_result iron_exec_command_cwd(struct iron_exec_command *command, const char *directory);

/**
 * The job's name in the names of its log and cgroup, made safe for a file name. It must be UTF-8. Default: the program's base name.
 */
iron_exec_result iron_exec_command_name(struct iron_exec_command *command, const char *name);

/**
 * What the job reads: an iron_exec_stdin. Default: NULL, nothing.
 */
iron_exec_result iron_exec_command_stdin(struct iron_exec_command *command, int32_t input);

/**
 * Where the output goes: an iron_exec_capture. Default: SPLIT.
 */
iron_exec_result iron_exec_command_capture(struct iron_exec_command *command, int32_t capture);

/**
 * The format of the log: an iron_exec_log_format. Default: the worker's.
 */
iron_exec_result iron_exec_command_log_format(struct iron_exec_command *command, int32_t format);

/**
 * The most bytes of one file of the log, as iron_exec_config_log_bytes_max. A command that says this, or how many files, has none of the worker's bounds.
 */
iron_exec_result iron_exec_command_log_bytes_max(struct iron_exec_command *command,
                                                 uint64_t bytes);

/**
 * The most files of the log, as iron_exec_config_log_files_max. Needs iron_exec_command_log_bytes_max.
 */
iron_exec_result iron_exec_command_log_files_max(struct iron_exec_command *command, uint64_t files);

/**
 * Stops the job so many milliseconds after its start: its whole tree, with SIGKILL unless iron_exec_command_timeout_signal says more. Default: never.
 */
iron_exec_result iron_exec_command_timeout(struct iron_exec_command *command,
                                           uint64_t timeout_ms);

/**
 * At the timeout sends `signal` (1 to 64) to the job's process group first, and SIGKILL to its whole tree `grace_ms` milliseconds later.
 */
iron_exec_result iron_exec_command_timeout_signal(struct iron_exec_command *command, int32_t signal, uint64_t grace_ms);

/**
 * The most memory of the job's whole tree, in bytes (memory.max): beyond it the kernel reclaims, then kills. UINT64_MAX is no limit. Needs a cgroup.
 */
iron_exec_result iron_exec_command_memory_max(struct iron_exec_command *command,
                                              uint64_t bytes);

/**
 * The most CPU time of the job's whole tree, in CPUs, from 0.01 (cpu.max): 1.5 is one and a half. Infinity is no limit. Needs a cgroup.
 */
iron_exec_result iron_exec_command_cpu_max(struct iron_exec_command *command, double cores);

/**
 * The most processes and threads of the job, 1 to 4,194,304 (pids.max). UINT64_MAX is no limit. Needs a cgroup.
 */
iron_exec_result iron_exec_command_pids_max(struct iron_exec_command *command, uint64_t pids);

/**
 * The client that owns the job: iron_exec_query tells it. Default: nobody.
 */
iron_exec_result iron_exec_command_owner(struct iron_exec_command *command, struct iron_exec_owner_id owner);

/**
 * The user id to run as; the group id stays the host's unless iron_exec_command_gid says otherwise. Needs CAP_SETUID and CAP_SETGID.
 */
iron_exec_result iron_exec_command_uid(struct iron_exec_command *command, uint32_t uid);

/**
 * The group id to run as. Needs CAP_SETGID.
 */
iron_exec_result iron_exec_command_gid(struct iron_exec_command *command, uint32_t gid);

/**
 * Whether (1, or 0) iron_exec_start waits for the program to be executed. Default: what the worker's configuration says.
 */
iron_exec_result iron_exec_command_confirm(struct iron_exec_command *command, int32_t confirm);

/**
 * The bytes of an iron_exec_status in the library: to be compared with sizeof(iron_exec_status) where the library is loaded dynamically.
 */
size_t iron_exec_status_size(void);

/**
 * The bytes of an iron_exec_event in the library: to be compared with sizeof(iron_exec_event) where the library is loaded dynamically.
 */
size_t iron_exec_event_size(void);

/**
 * The version of the library, for instance "0.1.0". A constant. Not that of this header, IRON_EXEC_VERSION, if another library was loaded.
 */
const char *iron_exec_version(void);

/**
 * Makes a worker, with this configuration (NULL: the defaults), and writes it to `worker`. The configuration stays the caller's, and may be used again.
 *
 * Errors: INVALID_ARGUMENT if `worker` is NULL, or a setting was wrong; SYSTEM if the log directory, the cgroup base or the rung cannot be had, or the kernel
 * refuses what a loop needs.
 */
iron_exec_result iron_exec_worker_new(const struct iron_exec_config *config,
                                      struct iron_exec_worker **worker,
                                      struct iron_exec_error *error);

/**
 * Kills the jobs of a worker, waits, for a bounded time, until nothing of them is left, frees it, and sets the pointer to NULL. Of a NULL it does nothing.
 */
void iron_exec_worker_free(struct iron_exec_worker **worker);

/**
 * The worker's file descriptor, an epoll instance: it becomes readable whenever iron_exec_turn has something to do, deadlines included, for level- and
 * edge-triggered loops alike. Only to be waited for, never to be read, changed or closed; it goes with the worker. -1 for NULL.
 */
int32_t iron_exec_worker_fd(const struct iron_exec_worker *worker);

/**
 * One turn of the loop: waits until there is something to do, up to `timeout_ms` milliseconds (0: not at all; below 0: for ever), does it, writes to `events`
 * what there is to tell, up to `capacity` of it, and to `count` how many it were. What does not fit comes with the next turn; the descriptor stays readable.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, or `capacity` is 0; SYSTEM if the loop's own descriptors fail, of which no job is affected: the events that
 * were written hold all the same.
 */
iron_exec_result iron_exec_turn(struct iron_exec_worker *worker,
                                int32_t timeout_ms,
                                struct iron_exec_event *events,
                                size_t capacity,
                                size_t *count,
                                struct iron_exec_error *error);

/**
 * Starts a job, and writes its id to `job`. The command stays the caller's, and may be started again.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, or the command is wrong; START_FAILED; TOO_MANY_JOBS; WRONG_STATE if the worker is shut down. Nothing is left
 * of a job that was not started.
 */
iron_exec_result iron_exec_start(struct iron_exec_worker *worker,
                                 const struct iron_exec_command *command,
                                 struct iron_exec_job_id *job,
                                 struct iron_exec_error *error);

/**
 * Kills a job's whole process tree with SIGKILL. Does nothing to one that has finished.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, SYSTEM.
 */
iron_exec_result iron_exec_stop(struct iron_exec_worker *worker, struct iron_exec_job_id job, struct iron_exec_error *error);

/**
 * Sends `signal` (1 to 64) to a job's process group, and SIGKILL to its whole tree `grace_ms` milliseconds later, if the job has not finished by then.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, SYSTEM.
 */
iron_exec_result iron_exec_stop_with(struct iron_exec_worker *worker,
                                     struct iron_exec_job_id job,
                                     int32_t signal,
                                     uint64_t grace_ms,
                                     struct iron_exec_error *error);

/**
 * Sends a signal (1 to 64) to a job's main process; it can never hit another process.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if there is no process yet, or it has ended; SYSTEM.
 */
iron_exec_result iron_exec_signal(struct iron_exec_worker *worker,
                                  struct iron_exec_job_id job,
                                  int32_t signal,
                                  struct iron_exec_error *error);

/**
 * Writes everything known about a job to `status`.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND.
 */
iron_exec_result iron_exec_query(struct iron_exec_worker *worker,
                                 struct iron_exec_job_id job,
                                 struct iron_exec_status *status,
                                 struct iron_exec_error *error);

/**
 * Copies the path of a job's log, with a NUL byte at its end, into `buffer` of `size` bytes, and writes its length without that byte to `length`, also where
 * it does not fit. To ask for the length alone, `buffer` may be NULL and `size` 0.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND, NOT_LOGGED, BUFFER_TOO_SMALL.
 */
iron_exec_result iron_exec_log_path(struct iron_exec_worker *worker,
                                    struct iron_exec_job_id job,
                                    char *buffer,
                                    size_t size,
                                    size_t *length,
                                    struct iron_exec_error *error);

/**
 * Copies why a job's start failed (the step, the path, the cause, and what to do about it where that is known), as iron_exec_log_path does, on one line as
 * iron_exec_error_text. Of a start that has not failed it is "". For a start that iron_exec_start did not confirm: of the others it says so itself.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, NOT_FOUND, BUFFER_TOO_SMALL.
 */
iron_exec_result iron_exec_failure_text(struct iron_exec_worker *worker,
                                        struct iron_exec_job_id job,
                                        char *buffer,
                                        size_t size,
                                        size_t *length,
                                        struct iron_exec_error *error);

/**
 * Forgets a finished job: its status goes, its log stays.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if it has not finished.
 */
iron_exec_result iron_exec_forget(struct iron_exec_worker *worker, struct iron_exec_job_id job, struct iron_exec_error *error);

/**
 * Writes to `count` the number of jobs that have not finished.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL.
 */
iron_exec_result iron_exec_unfinished_jobs(struct iron_exec_worker *worker, size_t *count, struct iron_exec_error *error);

/**
 * Takes the host's end of one of a job's pipes, and writes its descriptor to `fd`: 0 is its stdin (IRON_EXEC_STDIN_PIPED), 1 its stdout, 2 its stderr
 * (IRON_EXEC_CAPTURE_PIPED). It is the caller's to close from then on, blocks, and is not passed on to programs (O_CLOEXEC). Closing stdin is the end of the
 * job's input; writing to it after the job has ended raises SIGPIPE unless the host ignores that.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, WRONG_STATE if that is no pipe, or was taken before.
 */
iron_exec_result iron_exec_take_pipe(struct iron_exec_worker *worker,
                                     struct iron_exec_job_id job,
                                     int32_t number,
                                     int32_t *fd,
                                     struct iron_exec_error *error);

/**
 * Ends all jobs as `mode` says (an iron_exec_shutdown_mode; `signal`, 1 to 64, and `grace_ms`, in milliseconds, are for STOP alone), and turns the loop until
 * every one of them is over, to the last byte of its output. Nothing can be started any more; events come with the next turns, statuses and logs can still be
 * read, and the worker is still to be freed. It blocks for as long as the jobs take, the grace time and a few seconds at most, and writes to `left` the number
 * of jobs that were not over by then (processes that the kernel cannot end). A second shutdown with another mode is one with that mode.
 *
 * Errors: INVALID_ARGUMENT; SYSTEM if the loop's own descriptors fail: then it can be called again.
 */
iron_exec_result iron_exec_shutdown(struct iron_exec_worker *worker,
                                    int32_t mode,
                                    int32_t signal,
                                    uint64_t grace_ms,
                                    size_t *left,
                                    struct iron_exec_error *error);

/**
 * As iron_exec_shutdown, without waiting: turn the loop until iron_exec_is_shut_down.
 *
 * Errors: INVALID_ARGUMENT.
 */
iron_exec_result iron_exec_begin_shutdown(struct iron_exec_worker *worker,
                                          int32_t mode,
                                          int32_t signal,
                                          uint64_t grace_ms,
                                          struct iron_exec_error *error);

/**
 * Writes to `is_shut_down` whether a shutdown was begun, and everything is over, or was waited for long enough.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL.
 */
iron_exec_result iron_exec_is_shut_down(struct iron_exec_worker *worker, bool *is_shut_down, struct iron_exec_error *error);

/**
 * Opens a reader of a job's log, and writes it to `stream`. `source` is an iron_exec_stream_source; `position` an iron_exec_stream_position, of which `value` is
 * the offset, or the number of lines (0 with the others). It blocks while that place is looked up in the files.
 *
 * Errors: INVALID_ARGUMENT, NOT_FOUND, NOT_LOGGED, SYSTEM if the log file is gone.
 */
iron_exec_result iron_exec_stream_open(struct iron_exec_worker *worker,
                                       struct iron_exec_job_id job,
                                       int32_t source,
                                       int32_t position,
                                       uint64_t value,
                                       struct iron_exec_stream **stream,
                                       struct iron_exec_error *error);

/**
 * Reads up to `size` bytes into `buffer`, without waiting, and writes to `length` how many it were. It answers
 * - OK: there are such bytes, at least one;
 * - AGAIN: there is nothing yet; the job's next LOG_READY tells when to ask again;
 * - END: there will be nothing more;
 * - GAP: something is missing here, `length` bytes of it (0 if that is not to be known), or the log was tampered with; the error object says what. Reading goes
 *   on behind it.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL, or `size` is 0; SYSTEM if the log cannot be read.
 */
iron_exec_result iron_exec_stream_read(struct iron_exec_stream *stream,
                                       void *buffer,
                                       size_t size,
                                       size_t *length,
                                       struct iron_exec_error *error);

/**
 * Writes to `offset` where in the log stands what comes next, in bytes from its beginning, all its files counted: IRON_EXEC_STREAM_POSITION_OFFSET goes on from
 * here another time. In the CRI format that is where a record begins; one that was not read whole comes again.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL.
 */
iron_exec_result iron_exec_stream_offset(struct iron_exec_stream *stream,
                                         uint64_t *offset,
                                         struct iron_exec_error *error);

/**
 * Writes to `end` how the log has ended: an iron_exec_stream_end. To be asked once iron_exec_stream_read has answered END.
 *
 * Errors: INVALID_ARGUMENT if a pointer is NULL.
 */
iron_exec_result iron_exec_stream_ended(struct iron_exec_stream *stream, int32_t *end, struct iron_exec_error *error);

/**
 * Frees a stream, and sets the pointer to NULL. Of a NULL it does nothing. The job is not concerned.
 */
void iron_exec_stream_free(struct iron_exec_stream **stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* IRON_EXEC_H */
