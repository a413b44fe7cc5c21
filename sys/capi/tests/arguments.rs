//! Whatever is handed in, it is refused or done: nothing crashes, nothing is written where it must not be.
#![allow(clippy::undocumented_unsafe_blocks, reason = "handing in what is wrong is what these tests are about")]
#![allow(clippy::multiple_unsafe_ops_per_block, reason = "lists of calls")]

mod host;

use std::ffi::c_char;
use std::ptr::{null, null_mut};

use host::{Host, read_all, shell, text};
use iron_exec_capi::*;

const NUMBERS: [i32; 6] = [-1, 65, 99, 256, i32::MIN, i32::MAX];
const JOB: JobId = JobId { bytes: [7; 16] };

#[test]
fn a_null_is_refused_by_every_function() {
    let (no_worker, no_command, no_config, no_stream): (*mut Worker, *mut Command, *mut Config, *mut Stream) =
        (null_mut(), null_mut(), null_mut(), null_mut());
    let host = Host::new();
    let (worker, error) = (host.worker, host.error);
    let job = host.shell(c"exit 0");
    host.finish(job);
    let stream = host.open(job, StreamSource::Both, StreamPosition::Start, 0);
    let mut command = shell(c"exit 0");
    let mut config = iron_exec_config_new();
    let (mut number, mut size, mut event, mut byte) = (0_i32, 0_usize, Event::default(), 0_u8);
    let mut is_shut_down = false;
    let (mut id, mut status, mut place) = (JobId::default(), Status::default(), null_mut());
    let text_place = (&raw mut byte).cast::<c_char>();
    let answers = unsafe {
        [
            iron_exec_job_id_text(JOB, null_mut(), 37, error),
            iron_exec_config_log_dir(no_config, c"/tmp".as_ptr()),
            iron_exec_config_log_dir(config, null()),
            iron_exec_config_log_format(no_config, 0),
            iron_exec_config_log_bytes_max(no_config, 4096),
            iron_exec_config_log_files_max(no_config, 2),
            iron_exec_config_cgroup_base(no_config, 0, null()),
            iron_exec_config_cgroup_base(config, CgroupBase::Path as i32, null()),
            iron_exec_config_take_over_cgroup(no_config, 0),
            iron_exec_config_enable_controllers(no_config, 0),
            iron_exec_config_rung(no_config, 0),
            iron_exec_config_confirm(no_config, 0),
            iron_exec_config_confirm_timeout(no_config, 0),
            iron_exec_config_env_clear(no_config, 0),
            iron_exec_config_raise_nofile(no_config, 0),
            iron_exec_config_jobs_max(no_config, 0),
            iron_exec_config_finished_jobs_max(no_config, 0),
            iron_exec_command_arg(no_command, c"a".as_ptr()),
            iron_exec_command_arg(command, null()),
            iron_exec_command_env(no_command, c"A".as_ptr(), c"b".as_ptr()),
            iron_exec_command_env(command, null(), c"b".as_ptr()),
            iron_exec_command_env(command, c"A".as_ptr(), null()),
            iron_exec_command_env_remove(no_command, c"A".as_ptr()),
            iron_exec_command_env_remove(command, null()),
            iron_exec_command_env_clear(no_command),
            iron_exec_command_cwd(no_command, c"/".as_ptr()),
            iron_exec_command_cwd(command, null()),
            iron_exec_command_name(no_command, c"a".as_ptr()),
            iron_exec_command_name(command, null()),
            iron_exec_command_stdin(no_command, 0),
            iron_exec_command_capture(no_command, 0),
            iron_exec_command_log_format(no_command, 0),
            iron_exec_command_log_bytes_max(no_command, 4096),
            iron_exec_command_log_files_max(no_command, 2),
            iron_exec_command_timeout(no_command, 1),
            iron_exec_command_timeout_signal(no_command, 15, 1),
            iron_exec_command_memory_max(no_command, 1),
            iron_exec_command_cpu_max(no_command, 1.0),
            iron_exec_command_pids_max(no_command, 1),
            iron_exec_command_owner(no_command, OwnerId::default()),
            iron_exec_command_uid(no_command, 1),
            iron_exec_command_gid(no_command, 1),
            iron_exec_command_confirm(no_command, 1),
            iron_exec_worker_new(null(), null_mut(), error),
            iron_exec_turn(no_worker, 0, &raw mut event, 1, &raw mut size, error),
            iron_exec_turn(worker, 0, null_mut(), 1, &raw mut size, error),
            iron_exec_turn(worker, 0, &raw mut event, 1, null_mut(), error),
            iron_exec_start(no_worker, command, &raw mut id, error),
            iron_exec_start(worker, no_command, &raw mut id, error),
            iron_exec_start(worker, command, null_mut(), error),
            iron_exec_stop(no_worker, job, error),
            iron_exec_stop_with(no_worker, job, 15, 1, error),
            iron_exec_signal(no_worker, job, 15, error),
            iron_exec_query(no_worker, job, &raw mut status, error),
            iron_exec_query(worker, job, null_mut(), error),
            iron_exec_log_path(no_worker, job, text_place, 1, &raw mut size, error),
            iron_exec_log_path(worker, job, null_mut(), 1, &raw mut size, error),
            iron_exec_log_path(worker, job, text_place, 1, null_mut(), error),
            iron_exec_failure_text(no_worker, job, text_place, 1, &raw mut size, error),
            iron_exec_failure_text(worker, job, null_mut(), 1, &raw mut size, error),
            iron_exec_failure_text(worker, job, text_place, 1, null_mut(), error),
            iron_exec_forget(no_worker, job, error),
            iron_exec_unfinished_jobs(no_worker, &raw mut size, error),
            iron_exec_unfinished_jobs(worker, null_mut(), error),
            iron_exec_take_pipe(no_worker, job, 0, &raw mut number, error),
            iron_exec_shutdown(no_worker, 0, 0, 0, &raw mut size, error),
            iron_exec_shutdown(worker, 0, 0, 0, null_mut(), error),
            iron_exec_begin_shutdown(no_worker, 0, 0, 0, error),
            iron_exec_is_shut_down(no_worker, &raw mut is_shut_down, error),
            iron_exec_is_shut_down(worker, null_mut(), error),
            iron_exec_take_pipe(worker, job, 0, null_mut(), error),
            iron_exec_stream_open(no_worker, job, 0, 0, 0, &raw mut place, error),
            iron_exec_stream_open(worker, job, 0, 0, 0, null_mut(), error),
            iron_exec_stream_read(no_stream, text_place.cast(), 1, &raw mut size, error),
            iron_exec_stream_read(stream, null_mut(), 1, &raw mut size, error),
            iron_exec_stream_read(stream, text_place.cast(), 1, null_mut(), error),
            iron_exec_stream_offset(no_stream, null_mut(), error),
            iron_exec_stream_offset(stream, null_mut(), error),
            iron_exec_stream_ended(no_stream, &raw mut number, error),
            iron_exec_stream_ended(stream, null_mut(), error),
        ]
    };
    for (index, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer, ResultCode::InvalidArgument, "call {index}");
    }
    assert!(host.text().ends_with("is NULL"), "{}", host.text());
    assert_eq!(unsafe { iron_exec_worker_fd(null()) }, -1);
    assert_eq!(text(null()), "");
    assert_eq!(unsafe { iron_exec_error_errno(null()) }, 0);
    // What stands where an answer was to be says that there is none.
    let (mut stream_place, mut fd, mut length) = (std::ptr::dangling_mut(), 7, 7);
    unsafe {
        iron_exec_stream_open(null_mut(), JOB, 0, 0, 0, &raw mut stream_place, null_mut());
        iron_exec_take_pipe(null_mut(), JOB, 0, &raw mut fd, null_mut());
        iron_exec_log_path(null_mut(), JOB, null_mut(), 0, &raw mut length, null_mut());
    }
    assert!(stream_place.is_null() && fd == -1 && length == 0);
    // An error object is never needed.
    assert_eq!(unsafe { iron_exec_forget(null_mut(), JOB, null_mut()) }, ResultCode::InvalidArgument);
    let mut stream = stream;
    unsafe {
        iron_exec_stream_free(&raw mut stream);
        iron_exec_command_free(&raw mut command);
        iron_exec_config_free(&raw mut config);
    }
}

#[test]
fn freeing_null_and_freeing_twice_does_nothing() {
    unsafe {
        iron_exec_worker_free(null_mut());
        iron_exec_stream_free(null_mut());
        iron_exec_command_free(null_mut());
        iron_exec_config_free(null_mut());
        iron_exec_error_free(null_mut());
        let mut command = iron_exec_command_new(c"true".as_ptr());
        iron_exec_command_free(&raw mut command);
        assert!(command.is_null());
        iron_exec_command_free(&raw mut command);
        let mut error = iron_exec_error_new();
        iron_exec_error_free(&raw mut error);
        iron_exec_error_free(&raw mut error);
        assert!(error.is_null());
    }
}

#[test]
fn a_command_without_a_program_says_so_when_it_is_started() {
    let host = Host::new();
    let command = unsafe { iron_exec_command_new(null()) };
    assert!(!command.is_null());
    assert_eq!(host.start(command), Err((ResultCode::InvalidArgument, "the program is NULL".to_owned())));
    let command = unsafe { iron_exec_command_new(c"".as_ptr()) };
    assert_eq!(host.start(command).unwrap_err().0, ResultCode::InvalidArgument);
}

#[test]
fn numbers_that_stand_for_nothing_are_refused_and_remembered() {
    let host = Host::new();
    for number in NUMBERS {
        let setters: [fn(*mut Command, i32) -> ResultCode; 5] = [
            |command, number| unsafe { iron_exec_command_stdin(command, number) },
            |command, number| unsafe { iron_exec_command_capture(command, number) },
            |command, number| unsafe { iron_exec_command_log_format(command, number) },
            |command, number| unsafe { iron_exec_command_confirm(command, number) },
            |command, number| unsafe { iron_exec_command_timeout_signal(command, number, 0) },
        ];
        for set in setters {
            let command = shell(c"exit 0");
            assert_eq!(set(command, number), ResultCode::InvalidArgument, "{number}");
            // What is set right after that does not hide it, nor does a second fault.
            assert_eq!(unsafe { iron_exec_command_stdin(command, 0) }, ResultCode::Ok);
            assert_eq!(unsafe { iron_exec_command_name(command, null()) }, ResultCode::InvalidArgument);
            let (code, text) = host.start(command).unwrap_err();
            assert!(code == ResultCode::InvalidArgument && text.contains(&format!(" is {number}")), "{text}");
        }
        let setters: [fn(*mut Config, i32) -> ResultCode; 8] = [
            |config, number| unsafe { iron_exec_config_log_format(config, number) },
            |config, number| unsafe { iron_exec_config_cgroup_base(config, number, c"/".as_ptr()) },
            |config, number| unsafe { iron_exec_config_rung(config, number) },
            |config, number| unsafe { iron_exec_config_take_over_cgroup(config, number) },
            |config, number| unsafe { iron_exec_config_enable_controllers(config, number) },
            |config, number| unsafe { iron_exec_config_confirm(config, number) },
            |config, number| unsafe { iron_exec_config_env_clear(config, number) },
            |config, number| unsafe { iron_exec_config_raise_nofile(config, number) },
        ];
        for set in setters {
            let (mut config, mut worker) = (iron_exec_config_new(), std::ptr::dangling_mut());
            assert_eq!(set(config, number), ResultCode::InvalidArgument, "{number}");
            let code = unsafe { iron_exec_worker_new(config, &raw mut worker, host.error) };
            assert!(
                code == ResultCode::InvalidArgument && worker.is_null() && host.text().contains(&format!(" is {number}")),
                "{}",
                host.text()
            );
            unsafe { iron_exec_config_free(&raw mut config) };
        }
        let job = host.shell(c"exit 0");
        host.finish(job);
        let (mut stream, mut fd) = (std::ptr::dangling_mut(), 0);
        let answers = unsafe {
            [
                iron_exec_stream_open(host.worker, job, number, 0, 0, &raw mut stream, host.error),
                iron_exec_stream_open(host.worker, job, 0, number, 0, &raw mut stream, host.error),
                iron_exec_take_pipe(host.worker, job, number, &raw mut fd, host.error),
                iron_exec_signal(host.worker, job, number, host.error),
                iron_exec_stop_with(host.worker, job, number, 0, host.error),
                iron_exec_begin_shutdown(host.worker, number, 15, 0, host.error),
                iron_exec_begin_shutdown(host.worker, ShutdownMode::Stop as i32, number, 0, host.error),
            ]
        };
        assert_eq!(answers, [ResultCode::InvalidArgument; 7], "{number}");
        assert!(stream.is_null() && fd == -1);
    }
}

#[test]
fn strings_are_bytes_but_a_name_is_utf8() {
    let host = Host::new();
    let command = shell(c"printf %s \"$1$V\"");
    unsafe {
        assert_eq!(iron_exec_command_arg(command, c"sh".as_ptr()), ResultCode::Ok);
        assert_eq!(iron_exec_command_arg(command, c"\xff\xfe".as_ptr()), ResultCode::Ok);
        assert_eq!(iron_exec_command_env(command, c"V".as_ptr(), c"\x80".as_ptr()), ResultCode::Ok);
    }
    let job = host.start(command).unwrap();
    assert_eq!(host.finish(job).exit_code, 0);
    assert_eq!(read_all(host.open(job, StreamSource::Both, StreamPosition::Start, 0)), b"\xff\xfe\x80");

    let command = shell(c"exit 0");
    assert_eq!(unsafe { iron_exec_command_name(command, c"\xff".as_ptr()) }, ResultCode::InvalidArgument);
    let (_, text) = host.start(command).unwrap_err();
    assert!(text.contains("the name is not UTF-8"), "{text}");
    // The name of a variable can be wrong in other ways.
    for name in [c"", c"A=B"] {
        let command = shell(c"exit 0");
        assert_eq!(unsafe { iron_exec_command_env(command, name.as_ptr(), c"".as_ptr()) }, ResultCode::Ok);
        assert_eq!(host.start(command).unwrap_err().0, ResultCode::InvalidArgument);
    }
}

#[test]
fn small_buffers_are_not_overrun_and_the_length_is_told() {
    let host = Host::new();
    let job = host.shell(c"exit 0");
    host.finish(job);
    let mut length = 0;
    let ask = |buffer: &mut [u8], size, length: &mut usize| unsafe {
        iron_exec_log_path(host.worker, job, buffer.as_mut_ptr().cast(), size, length, host.error)
    };
    let code = unsafe { iron_exec_log_path(host.worker, job, null_mut(), 0, &raw mut length, host.error) };
    assert_eq!(code, ResultCode::BufferTooSmall);
    let path_length = length;
    for size in [1, path_length - 1, path_length] {
        let mut buffer = [0xAA; 4096];
        assert_eq!(ask(&mut buffer, size, &mut length), ResultCode::BufferTooSmall);
        assert!(length == path_length && buffer == [0xAA; 4096], "a part of a text is no text");
    }
    let mut buffer = [0xAA; 4096];
    assert_eq!(ask(&mut buffer, path_length + 1, &mut length), ResultCode::Ok);
    let path = std::str::from_utf8(&buffer[..path_length]).unwrap();
    assert!(std::path::Path::new(path).starts_with(host.logs.path()) && std::fs::exists(path).unwrap());
    assert!(buffer[path_length] == 0 && buffer[path_length + 1] == 0xAA);

    let mut id = [0xAA_u8; IRON_EXEC_ID_TEXT_SIZE + 1];
    let to_text = |id: &mut [u8], size| unsafe { iron_exec_job_id_text(job, id.as_mut_ptr().cast(), size, host.error) };
    for size in [0, 1, IRON_EXEC_ID_TEXT_SIZE - 1] {
        assert_eq!(to_text(&mut id, size), ResultCode::BufferTooSmall);
        assert_eq!(id, [0xAA; IRON_EXEC_ID_TEXT_SIZE + 1]);
    }
    assert_eq!(to_text(&mut id, IRON_EXEC_ID_TEXT_SIZE), ResultCode::Ok);
    assert!(path.contains(std::str::from_utf8(&id[..36]).unwrap()) && id[36..] == [0, 0xAA]);
}

#[test]
fn sizes_that_nothing_has_are_refused() {
    let host = Host::new();
    let job = host.shell(c"echo a");
    host.finish(job);
    let mut stream = host.open(job, StreamSource::Both, StreamPosition::Start, 0);
    let (mut event, mut byte, mut size) = (Event::default(), 0_u8, 7_usize);
    let answers = unsafe {
        [
            iron_exec_turn(host.worker, 0, &raw mut event, 0, &raw mut size, host.error),
            iron_exec_turn(host.worker, 0, &raw mut event, usize::MAX, &raw mut size, host.error),
            iron_exec_turn(host.worker, 0, &raw mut event, usize::MAX / size_of::<Event>(), &raw mut size, host.error),
            iron_exec_stream_read(stream, (&raw mut byte).cast(), 0, &raw mut size, host.error),
            iron_exec_stream_read(stream, (&raw mut byte).cast(), usize::MAX, &raw mut size, host.error),
            iron_exec_log_path(host.worker, job, (&raw mut byte).cast(), usize::MAX, &raw mut size, host.error),
        ]
    };
    assert_eq!(answers, [ResultCode::InvalidArgument; 6]);
    // None of it was lost.
    assert_eq!(host::read(stream, 64), (ResultCode::Ok, b"a\n".to_vec()));
    unsafe { iron_exec_stream_free(&raw mut stream) };
}

#[test]
fn an_unknown_job_is_not_found() {
    let host = Host::new();
    let (mut status, mut size, mut fd, mut stream) = (Status::default(), 0, 0, null_mut());
    let answers = unsafe {
        [
            iron_exec_stop(host.worker, JOB, host.error),
            iron_exec_stop_with(host.worker, JOB, 15, 0, host.error),
            iron_exec_signal(host.worker, JOB, 15, host.error),
            iron_exec_query(host.worker, JOB, &raw mut status, host.error),
            iron_exec_log_path(host.worker, JOB, null_mut(), 0, &raw mut size, host.error),
            iron_exec_failure_text(host.worker, JOB, null_mut(), 0, &raw mut size, host.error),
            iron_exec_forget(host.worker, JOB, host.error),
            iron_exec_take_pipe(host.worker, JOB, 0, &raw mut fd, host.error),
            iron_exec_stream_open(host.worker, JOB, 0, 0, 0, &raw mut stream, host.error),
        ]
    };
    assert_eq!(answers, [ResultCode::NotFound; 9]);
    assert!(host.text().contains("07070707-0707-0707-0707-070707070707"), "{}", host.text());
}

#[test]
fn extreme_numbers_are_refused_or_taken_for_what_they_say() {
    let host = Host::with(|config| unsafe {
        assert_eq!(iron_exec_config_confirm_timeout(config, u64::MAX), ResultCode::Ok);
        assert_eq!(iron_exec_config_finished_jobs_max(config, usize::MAX), ResultCode::Ok);
        assert_eq!(iron_exec_config_jobs_max(config, usize::MAX), ResultCode::Ok);
    });
    let command = shell(c"exit 0");
    unsafe {
        iron_exec_command_timeout(command, u64::MAX);
        iron_exec_command_timeout_signal(command, 64, u64::MAX);
    }
    let job = host.start(command).unwrap();
    assert_eq!(host.finish(job).exit_code, 0);
    let job = host.shell(c"trap 'exit 5' TERM; echo ready; while :; do sleep 0.01; done");
    while host.query(job).lines == 0 {
        host.turn();
    }
    assert_eq!(unsafe { iron_exec_stop_with(host.worker, job, 15, u64::MAX, host.error) }, ResultCode::Ok, "{}", host.text());
    assert_eq!(host.finish(job).exit_code, 5);

    let setters: [fn(*mut Command) -> ResultCode; 5] = [
        |command| unsafe { iron_exec_command_cpu_max(command, f64::NAN) },
        |command| unsafe { iron_exec_command_cpu_max(command, -1.0) },
        |command| unsafe { iron_exec_command_cpu_max(command, 1e300) },
        |command| unsafe { iron_exec_command_pids_max(command, 0) },
        |command| unsafe { iron_exec_command_pids_max(command, u64::MAX - 1) },
    ];
    for set in setters {
        let command = shell(c"exit 0");
        assert_eq!(set(command), ResultCode::InvalidArgument);
        assert_eq!(host.start(command).unwrap_err().0, ResultCode::InvalidArgument);
    }
    let setters: [fn(*mut Command) -> ResultCode; 5] = [
        |command| unsafe { iron_exec_command_uid(command, u32::MAX) },
        |command| unsafe { iron_exec_command_gid(command, u32::MAX) },
        |command| unsafe { iron_exec_command_log_bytes_max(command, 1) },
        |command| unsafe { iron_exec_command_log_files_max(command, 3) },
        |command| unsafe { iron_exec_command_cwd(command, c"".as_ptr()) },
    ];
    for set in setters {
        // Whether these can be is known when everything is said.
        let command = shell(c"exit 0");
        assert_eq!(set(command), ResultCode::Ok);
        assert_eq!(host.start(command).unwrap_err().0, ResultCode::InvalidArgument);
    }
}
