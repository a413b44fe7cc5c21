/*
 * Two jobs in a host's own epoll loop: one that logs a line on each stream and exits 3, and one that is stopped once it has printed a line, which is read
 * while it runs.
 *
 *     two_jobs DIRECTORY [RUNG [CGROUP]]
 *
 * The logs go to DIRECTORY, which must exist. RUNG is the number of an iron_exec_rung: 3 (fork) for tools such as valgrind. The jobs get cgroups of their own
 * below CGROUP, a directory of a cgroup2 mount, or none without it. With cgroups the second job is killed with all that it may have started, without it is asked
 * to end. Exits 0 if everything was as it must be.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "iron_exec.h"

/* One object takes the text of every error. */
static iron_exec_error *error;

#define FAIL(...) (fprintf(stderr, "%s:%d: ", __FILE__, __LINE__), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define EXPECT(condition) ((condition) ? (void)0 : (void)FAIL("not so: %s", #condition))
#define DONE(call) ((call) == IRON_EXEC_RESULT_OK ? (void)0 : (void)FAIL("%s: %s", #call, iron_exec_error_text(error)))

static int same(iron_exec_job_id a, iron_exec_job_id b)
{
    return memcmp(a.bytes, b.bytes, sizeof a.bytes) == 0;
}

static iron_exec_job_id start(iron_exec_worker *worker, const char *script, const char *name)
{
    /* The setters need not be asked: iron_exec_start says what was wrong. */
    iron_exec_command *command = iron_exec_command_new("sh");
    iron_exec_job_id job;
    iron_exec_command_arg(command, "-c");
    iron_exec_command_arg(command, script);
    iron_exec_command_name(command, name);
    iron_exec_command_timeout(command, 30000);
    DONE(iron_exec_start(worker, command, &job, error));
    iron_exec_command_free(&command);
    return job;
}

/* Everything that one stream of a finished job has written must be `expected`. */
static void expect_output(iron_exec_worker *worker, iron_exec_job_id job, int32_t source, const char *expected)
{
    iron_exec_stream *stream;
    char text[256];
    size_t used = 0, length;
    iron_exec_result result;
    DONE(iron_exec_stream_open(worker, job, source, IRON_EXEC_STREAM_POSITION_START, 0, &stream, error));
    while ((result = iron_exec_stream_read(stream, text + used, sizeof text - used, &length, error)) == IRON_EXEC_RESULT_OK)
        used += length;
    if (result != IRON_EXEC_RESULT_END)
        FAIL("reading: %d %s", (int)result, iron_exec_error_text(error));
    EXPECT(used == strlen(expected) && memcmp(text, expected, used) == 0);
    iron_exec_stream_free(&stream);
    EXPECT(stream == NULL);
}

static char *log_path(iron_exec_worker *worker, iron_exec_job_id job)
{
    size_t length;
    char *path;
    EXPECT(iron_exec_log_path(worker, job, NULL, 0, &length, error) == IRON_EXEC_RESULT_BUFFER_TOO_SMALL);
    path = malloc(length + 1);
    EXPECT(path != NULL);
    DONE(iron_exec_log_path(worker, job, path, length + 1, &length, error));
    EXPECT(strlen(path) == length);
    return path;
}

int main(int argc, char **argv)
{
    iron_exec_config *config;
    iron_exec_worker *worker;
    iron_exec_stream *stream;
    iron_exec_job_id failing, stopped;
    iron_exec_status status;
    char line[64], *path;
    size_t used = 0, unfinished;
    const char *cgroup = argc > 3 ? argv[3] : NULL;
    const int end_signal = cgroup != NULL ? SIGKILL : SIGTERM;
    int outer, awaited, is_stopping = 0, finished = 0;
    struct epoll_event ready = {.events = EPOLLIN};

    if (argc < 2 || argc > 4)
        FAIL("usage: two_jobs DIRECTORY [RUNG [CGROUP]]");
    /* Whether the library that was found is the one of the header. */
    EXPECT(strcmp(iron_exec_version(), IRON_EXEC_VERSION) == 0);
    EXPECT(iron_exec_event_size() == sizeof(iron_exec_event) && iron_exec_status_size() == sizeof(iron_exec_status));
    error = iron_exec_error_new();
    config = iron_exec_config_new();
    iron_exec_config_log_dir(config, argv[1]);
    if (cgroup != NULL)
        iron_exec_config_cgroup_base(config, IRON_EXEC_CGROUP_BASE_PATH, cgroup);
    else
        iron_exec_config_cgroup_base(config, IRON_EXEC_CGROUP_BASE_OFF, NULL);
    if (argc > 2)
        iron_exec_config_rung(config, atoi(argv[2]));
    DONE(iron_exec_worker_new(config, &worker, error));
    iron_exec_config_free(&config);

    /* The loop of the host: the worker is one descriptor among others. */
    outer = epoll_create1(EPOLL_CLOEXEC);
    EXPECT(outer >= 0);
    EXPECT(epoll_ctl(outer, EPOLL_CTL_ADD, iron_exec_worker_fd(worker), &ready) == 0);

    failing = start(worker, "echo out; echo err >&2; exit 3", "failing");
    stopped = start(worker, "echo ready; exec sleep 1000", "stopped");
    DONE(iron_exec_stream_open(worker, stopped, IRON_EXEC_STREAM_SOURCE_BOTH, IRON_EXEC_STREAM_POSITION_START, 0, &stream, error));

    for (;;) {
        iron_exec_event events[16];
        size_t count, index;
        iron_exec_result result = IRON_EXEC_RESULT_OK;

        DONE(iron_exec_turn(worker, 0, events, 16, &count, error));
        for (index = 0; index < count; index++) {
            const iron_exec_event *event = &events[index];
            /* A job that got an id ends with exactly one of three events. */
            if (event->kind == IRON_EXEC_EVENT_KIND_START_FAILED) {
                /* A start that took longer than iron_exec_start waits (iron_exec_config_confirm_timeout) says so only here. */
                char text[1024];
                size_t length;
                DONE(iron_exec_failure_text(worker, event->job, text, sizeof text, &length, error));
                FAIL("a start has failed: %s", text);
            }
            if (event->kind == IRON_EXEC_EVENT_KIND_LEFT)
                FAIL("a job was let go of, without a shutdown");
            if (event->kind != IRON_EXEC_EVENT_KIND_FINISHED)
                continue;
            finished++;
            if (same(event->job, failing))
                EXPECT(event->exit_code == 3 && event->signal == 0);
            else
                EXPECT(same(event->job, stopped) && event->exit_code == -1 && event->signal == end_signal);
        }

        /* The stream is read until it has nothing more; an event, LOG_READY, brings us back here. */
        while (!is_stopping && result == IRON_EXEC_RESULT_OK) {
            size_t length;
            result = iron_exec_stream_read(stream, line + used, sizeof line - used, &length, error);
            used += length;
            if (result == IRON_EXEC_RESULT_OK && memchr(line, '\n', used) != NULL) {
                if (cgroup != NULL)
                    DONE(iron_exec_stop(worker, stopped, error));
                else
                    DONE(iron_exec_stop_with(worker, stopped, SIGTERM, 5000, error));
                is_stopping = 1;
            } else if (result != IRON_EXEC_RESULT_OK && result != IRON_EXEC_RESULT_AGAIN) {
                FAIL("the line did not come: %d %s", (int)result, iron_exec_error_text(error));
            }
        }
        if (finished == 2)
            break;
        /* After a signal a turn does no harm. */
        awaited = epoll_wait(outer, &ready, 1, 60000);
        EXPECT(awaited == 1 || (awaited < 0 && errno == EINTR));
    }

    EXPECT(used == 6 && memcmp(line, "ready\n", 6) == 0);
    iron_exec_stream_free(&stream);

    DONE(iron_exec_unfinished_jobs(worker, &unfinished, error));
    EXPECT(unfinished == 0);
    DONE(iron_exec_query(worker, failing, &status, error));
    EXPECT(status.finished && status.state == IRON_EXEC_STATE_FINISHED && status.exit_code == 3);
    EXPECT(status.stop_reason == IRON_EXEC_STOP_REASON_NONE && !status.oom_killed && !status.cut_off);
    EXPECT(status.stdout_bytes == 4 && status.stderr_bytes == 4 && status.lines == 2 && status.dropped_bytes == 0);
    EXPECT(status.finished_ns >= status.started_ns && status.started_ns > 0 && status.run_time_ns > 0);
    EXPECT(argc < 3 || status.rung == atoi(argv[2]));
    expect_output(worker, failing, IRON_EXEC_STREAM_SOURCE_STDOUT, "out\n");
    expect_output(worker, failing, IRON_EXEC_STREAM_SOURCE_STDERR, "err\n");
    path = log_path(worker, failing);
    EXPECT(strstr(path, "/failing_") != NULL && access(path, R_OK) == 0);
    free(path);

    DONE(iron_exec_query(worker, stopped, &status, error));
    EXPECT(status.finished && status.exit_code == -1 && status.signal == end_signal);
    EXPECT(status.stop_reason == IRON_EXEC_STOP_REASON_REQUESTED);
    DONE(iron_exec_forget(worker, stopped, error));
    EXPECT(iron_exec_query(worker, stopped, &status, error) == IRON_EXEC_RESULT_NOT_FOUND);
    EXPECT(strstr(iron_exec_error_text(error), "there is no job") != NULL);

    close(outer);
    iron_exec_worker_free(&worker);
    iron_exec_worker_free(&worker); /* NULL by now: does nothing */
    iron_exec_error_free(&error);
    printf("iron-exec %s: two jobs, as they must be\n", iron_exec_version());
    return 0;
}
