#!/usr/bin/env python3
"""A hundred jobs in an asyncio loop, at most ten at a time, through the C interface and nothing but ctypes.

    asyncio_jobs.py LIBRARY

LIBRARY is the shared library, for instance target/release/libiron_exec_capi.so. Exits 0 if every exit code and every byte of output was as it must
be.
"""

import asyncio
import ctypes
import sys
import tempfile
from ctypes import POINTER, byref, c_bool, c_char_p, c_int32, c_size_t, c_uint8, c_uint64, c_void_p

VERSION = "0.1.0"  # IRON_EXEC_VERSION of the header that all of this was taken from
OK, RESULT_START_FAILED = 0, -7
EVENT_START_FAILED, EVENT_FINISHED, EVENT_LEFT = 2, 15, 16
CGROUP_BASE_OFF = 1
STREAM_BOTH, STREAM_START = 0, 0


class JobId(ctypes.Structure):
    _fields_ = [("bytes", c_uint8 * 16)]


class Event(ctypes.Structure):
    _fields_ = [
        ("job", JobId),
        ("kind", c_int32),
        ("exit_code", c_int32),
        ("signal", c_int32),
        ("error_number", c_int32),
        ("dropped_bytes", c_uint64),
    ]


class Status(ctypes.Structure):
    _fields_ = [
        *[("job", JobId), ("owner", JobId)],
        *[(name, c_int32) for name in ("state", "pid", "exit_code", "signal", "stop_reason", "error_number", "rung")],
        *[(name, c_bool) for name in ("finished", "core_dumped", "oom_killed", "cut_off")],
        *[(name, c_uint64) for name in ("stdout_bytes", "stderr_bytes", "lines", "dropped_bytes", "discarded_bytes")],
        *[(name, c_uint64) for name in ("started_ns", "finished_ns", "run_time_ns", "user_time_ns", "system_time_ns", "max_rss_bytes")],
    ]


# What each function takes: a handle is a c_void_p, and so is the error object, which comes last.
FUNCTIONS = {
    "config_log_dir": [c_void_p, c_char_p],
    "config_cgroup_base": [c_void_p, c_int32, c_char_p],
    "config_confirm": [c_void_p, c_int32],
    "command_arg": [c_void_p, c_char_p],
    "command_timeout": [c_void_p, c_uint64],
    "worker_new": [c_void_p, POINTER(c_void_p), c_void_p],
    "turn": [c_void_p, c_int32, POINTER(Event), c_size_t, POINTER(c_size_t), c_void_p],
    "start": [c_void_p, c_void_p, POINTER(JobId), c_void_p],
    "query": [c_void_p, JobId, POINTER(Status), c_void_p],
    "failure_text": [c_void_p, JobId, c_void_p, c_size_t, POINTER(c_size_t), c_void_p],
    "forget": [c_void_p, JobId, c_void_p],
    "stream_open": [c_void_p, JobId, c_int32, c_int32, c_uint64, POINTER(c_void_p), c_void_p],
    "stream_read": [c_void_p, c_void_p, c_size_t, POINTER(c_size_t), c_void_p],
}


class IronExecError(Exception):
    """A call that has failed: its code, the system's error number (0 without one), and the text."""

    def __init__(self, code, errno, text):
        super().__init__(text)
        self.code, self.errno = code, errno


class Library:
    """The functions of the shared library, which must be the one that they are declared for here; one that fails raises an IronExecError."""

    def __init__(self, path):
        self._dll = ctypes.CDLL(path)
        for name, arguments in FUNCTIONS.items():
            function = getattr(self._dll, f"iron_exec_{name}")
            function.argtypes, function.restype = arguments, c_int32
        for name, arguments, result in [
            ("version", [], c_char_p),
            ("event_size", [], c_size_t),
            ("status_size", [], c_size_t),
            ("error_new", [], c_void_p),
            ("error_text", [c_void_p], c_char_p),
            ("error_errno", [c_void_p], c_int32),
            ("config_new", [], c_void_p),
            ("command_new", [c_char_p], c_void_p),
            ("worker_fd", [c_void_p], c_int32),
            *[(f"{handle}_free", [POINTER(c_void_p)], None) for handle in ("error", "config", "command", "worker", "stream")],
        ]:
            function = getattr(self._dll, f"iron_exec_{name}")
            function.argtypes, function.restype = arguments, result
        found = self.plain("version").decode(), self.plain("event_size"), self.plain("status_size")
        expected = VERSION, ctypes.sizeof(Event), ctypes.sizeof(Status)
        if found != expected:
            raise ImportError(f"{path} is of another version: it has {found}, not {expected}")
        self._error = c_void_p(self.plain("error_new"))

    def plain(self, name, *arguments):
        """A function that takes no error object."""
        return getattr(self._dll, f"iron_exec_{name}")(*arguments)

    def call(self, name, *arguments):
        """A function that takes one."""
        code = self.plain(name, *arguments, self._error)
        if code < 0:
            text = self.plain("error_text", self._error).decode(errors="replace")
            raise IronExecError(code, self.plain("error_errno", self._error), text)
        return code


class Worker:
    """Runs jobs in the running asyncio loop. As a context manager it is closed at the end, whatever happens: no job is orphaned."""

    def __init__(self, library, log_dir):
        self._library, self._loop = library, asyncio.get_running_loop()
        self._handle, self._unfinished = c_void_p(), {}
        self._events, self._count = (Event * 64)(), c_size_t()
        config = c_void_p(library.plain("config_new"))
        library.plain("config_log_dir", config, log_dir.encode())
        library.plain("config_cgroup_base", config, CGROUP_BASE_OFF, None)
        library.plain("config_confirm", config, 0)  # a start that waits would hold up the loop
        try:
            library.call("worker_new", config, byref(self._handle))
        finally:
            library.plain("config_free", byref(config))
        self._fd = library.plain("worker_fd", self._handle)
        self._loop.add_reader(self._fd, self._turn)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def start(self, program, *arguments, timeout_ms=30_000):
        """Starts a job. Returns its id, and a future of its final status; if its program cannot be executed, of an IronExecError."""
        command = c_void_p(self._library.plain("command_new", program.encode()))
        for argument in arguments:
            self._library.plain("command_arg", command, argument.encode())
        self._library.plain("command_timeout", command, timeout_ms)
        job = JobId()
        try:
            self._library.call("start", self._handle, command, byref(job))
        finally:
            self._library.plain("command_free", byref(command))
        future = self._unfinished[bytes(job.bytes)] = self._loop.create_future()
        return job, future

    def output(self, job):
        """All that a finished job has written."""
        stream, buffer, length, output = c_void_p(), ctypes.create_string_buffer(4096), c_size_t(), b""
        self._library.call("stream_open", self._handle, job, STREAM_BOTH, STREAM_START, 0, byref(stream))
        try:
            while self._library.call("stream_read", stream, buffer, len(buffer), byref(length)) == OK:
                output += buffer.raw[: length.value]
        finally:
            self._library.plain("stream_free", byref(stream))
        return output

    def forget(self, job):
        self._library.call("forget", self._handle, job)

    def close(self):
        """Kills what still runs; who waits for it is cancelled. A second time does nothing."""
        if not self._handle:
            return
        self._loop.remove_reader(self._fd)
        self._library.plain("worker_free", byref(self._handle))
        for future in self._unfinished.values():
            future.cancel()
        self._unfinished.clear()

    def _turn(self):
        # What does not fit comes with the next turn: the descriptor stays readable.
        self._library.call("turn", self._handle, 0, self._events, len(self._events), byref(self._count))
        for event in self._events[: self._count.value]:
            if event.kind not in (EVENT_FINISHED, EVENT_START_FAILED, EVENT_LEFT):
                continue
            future = self._unfinished.pop(bytes(event.job.bytes), None)
            if future is None or future.done():  # nobody's, or cancelled
                continue
            if event.kind != EVENT_START_FAILED:
                status = Status()
                self._library.call("query", self._handle, event.job, byref(status))
                future.set_result(status)
            else:
                text, length = ctypes.create_string_buffer(8192), c_size_t()
                self._library.call("failure_text", self._handle, event.job, text, len(text), byref(length))
                future.set_exception(IronExecError(RESULT_START_FAILED, event.error_number, text.value.decode(errors="replace")))


async def main(path):
    with tempfile.TemporaryDirectory() as log_dir:
        slots, running, running_max = asyncio.Semaphore(10), 0, 0

        async def run(worker, number):
            nonlocal running, running_max
            async with slots:
                running += 1
                running_max = max(running_max, running)
                job, finished = worker.start("sh", "-c", f"echo job {number}; sleep 0.02; echo done >&2; exit {number % 7}")
                status = await finished
                running -= 1
            output = worker.output(job)
            worker.forget(job)
            return status, output

        with Worker(Library(path), log_dir) as worker:
            results = await asyncio.gather(*(run(worker, number) for number in range(100)))
            try:
                await worker.start("/nonexistent/program")[1]
                sys.exit("a program that does not exist was started")
            except IronExecError as error:
                assert error.errno == 2 and "/nonexistent/program" in str(error), error

    for number, (status, output) in enumerate(results):
        assert status.finished and status.exit_code == number % 7, (number, status.exit_code)
        assert status.stdout_bytes + status.stderr_bytes == len(output) and status.lines == 2
        assert output == f"job {number}\ndone\n".encode(), (number, output)
    assert running_max == 10, running_max
    print(f"{len(results)} jobs, {running_max} at a time: exit codes and output as they must be")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1]))
