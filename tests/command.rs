//! Promise: a `Command` does what it says, on every rung, with cgroups and without. The job itself is the witness: what it reads about itself in
//! `/proc`, and what it writes.

mod common;

use std::collections::BTreeSet;
use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, PipeReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{self, Stdio};
use std::time::{Duration, Instant};

use common::{DEADLINE, Host, cannot_run, finish, isolated, not_root, output_of, process_runs, turn_until};
use iron_exec::{Builder, Capture, CgroupBase, Command, EnvBase, Event, JobState, LogFormat, OutputStream, Resource};
use iron_exec::{Rung, Signal, StartFailure, Status, Step, StopReason, StreamError, Worker};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// Runs `test` with a worker of every kind: on each rung, with cgroups and without.
fn each_way(test: impl FnMut(&Host, &mut Worker)) {
    each_way_built(|builder| builder, test);
}

/// As [`each_way`], with workers of more settings.
fn each_way_built(settings: impl Fn(Builder) -> Builder, mut test: impl FnMut(&Host, &mut Worker)) {
    let host = Host::new();
    for (rung, base) in ways(&host) {
        println!("on rung {rung}, {base:?}");
        let mut worker = settings(host.builder()).confirm_timeout(DEADLINE).rung(rung).cgroup_base(base).build().unwrap();
        test(&host, &mut worker);
    }
}

fn ways(host: &Host) -> Vec<(Rung, CgroupBase)> {
    let bases: Vec<CgroupBase> = host.base.clone().map(CgroupBase::Path).into_iter().chain([CgroupBase::Off]).collect();
    Rung::ALL.into_iter().flat_map(|rung| bases.iter().map(move |base| (rung, base.clone()))).collect()
}

/// Runs a job to its end.
fn run(worker: &mut Worker, command: Command) -> Status {
    let job = worker.start(command).unwrap_or_else(|error| panic!("{error}"));
    finish(worker, job)
}

/// Runs a job that must succeed; returns what it wrote.
fn bytes(worker: &mut Worker, command: Command) -> Vec<u8> {
    let status = run(worker, command);
    let output = output_of(&status);
    assert!(status.success(), "{status:?} wrote {}", String::from_utf8_lossy(&output));
    output
}

fn text(worker: &mut Worker, command: Command) -> String {
    String::from_utf8(bytes(worker, command)).unwrap()
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

/// A field of `/proc/PID/status`.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{name} in {status}")).trim().to_owned()
}

fn own_status() -> String {
    fs::read_to_string("/proc/thread-self/status").unwrap()
}

/// Makes an executable script. Another process does it: this one, whose threads fork, must not have it open for writing (ETXTBSY).
fn make_script(path: &Path, script: &str) {
    let mut maker = process::Command::new("/bin/sh");
    maker.args([
        OsStr::new("-c"),
        OsStr::new("printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\""),
        path.as_os_str(),
        OsStr::new(script),
    ]);
    assert!(maker.status().unwrap().success());
}

fn file_with(directory: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.join(name);
    fs::write(&path, content).unwrap();
    path
}

/// Reads a pipe to its end, which must come in time.
fn read_all(mut pipe: PipeReader) -> Vec<u8> {
    let timeout = Timespec::try_from(DEADLINE).unwrap();
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let ready = rustix::io::retry_on_intr(|| poll(&mut [PollFd::new(&pipe, PollFlags::IN)], Some(&timeout))).unwrap();
        assert_eq!(ready, 1, "the pipe's end did not come in time");
        match pipe.read(&mut buffer).unwrap() {
            0 => return bytes,
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

const LAUNCHED: &str = "IRON_EXEC_TEST_LAUNCHED";

/// Runs `body` in a fresh process with one thread, begun through `launcher` (a program that executes the one it is given). Outside of it,
/// returns what that process wrote.
fn launched(launcher: &[&str], stdin: Stdio, name: &str, body: impl FnOnce()) -> Option<process::Output> {
    if env::var_os(LAUNCHED).is_some() {
        body();
        return None;
    }
    let mut command = process::Command::new(launcher[0]);
    command.args(&launcher[1..]).arg(env::current_exe().unwrap()).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(LAUNCHED, "1").stdin(stdin).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{stdout}{stderr}");
    assert!(output.status.success() && stdout.contains("1 passed"), "the process through {launcher:?} failed: {}", output.status);
    Some(output)
}

/// The file descriptors that a job has when it begins, seen by another process; on one line each, by number.
const LIST_FDS: &str = "ls /proc/$$/fd; :";

fn numbers(list: &str) -> BTreeSet<i32> {
    list.lines().map(|line| line.parse().unwrap()).collect()
}

// What is executed.

#[test]
fn arguments_reach_the_program_byte_for_byte() {
    let long = "x".repeat(100_000);
    let args = [
        b"".as_slice(),
        b"two words",
        b"\xff\xfe\x80",
        b"-n",
        b"line\nfeed",
        "naïve".as_bytes(),
        b"",
        long.as_bytes(),
        b"$HOME `id` *",
        b"",
    ];
    let script = OsStr::new("cat /proc/$$/cmdline; :");
    let mut expected = b"sh\0-c\0cat /proc/$$/cmdline; :\0".to_vec();
    for arg in args {
        expected.extend_from_slice(arg);
        expected.push(0);
    }
    each_way(|_, worker| {
        let command = Command::new("sh").arg("-c").arg(script).args(args.map(OsStr::from_bytes));
        assert_eq!(bytes(worker, command), expected);
    });
}

#[test]
fn a_name_is_looked_up_in_the_path_of_the_command_and_what_cannot_be_executed_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["plain", "directory", "right", "late"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    fs::set_permissions(file_with(&dir.path().join("plain"), "tool", "#!/bin/sh\necho plain\n"), fs::Permissions::from_mode(0o644))
        .unwrap();
    fs::create_dir(dir.path().join("directory/tool")).unwrap();
    file_with(dir.path(), "file", "not a directory");
    make_script(&dir.path().join("right/tool"), "echo right");
    make_script(&dir.path().join("late/tool"), "echo late");
    let path: Vec<String> =
        ["plain", "missing", "directory", "file", "right", "late"].iter().map(|name| dir.path().join(name).display().to_string()).collect();
    each_way(|_, worker| {
        assert_eq!(text(worker, Command::new("tool").env("PATH", path.join(":"))), "right\n");
        // The host's own PATH has no part in it.
        assert!(worker.start(Command::new("ls").env("PATH", &path[4])).is_err());
        assert_eq!(text(worker, Command::new("tool").env_clear().env("PATH", &path[5])), "late\n");
    });
}

#[test]
fn an_empty_or_relative_element_of_path_is_seen_from_the_working_directory_of_the_job() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    make_script(&dir.path().join("tool"), "echo here");
    make_script(&dir.path().join("sub/tool"), "echo below");
    each_way(|_, worker| {
        for (path, expected) in
            [("", "here"), (":/nowhere", "here"), ("/nowhere:", "here"), ("/nowhere::/x", "here"), ("sub:", "below"), (".", "here")]
        {
            let output = text(worker, Command::new("tool").env("PATH", path).cwd(dir.path()));
            assert_eq!(output, format!("{expected}\n"), "PATH={path:?}");
        }
        // A name with a slash is a path, whatever PATH says.
        assert_eq!(text(worker, Command::new("./tool").env("PATH", dir.path().join("sub")).cwd(dir.path())), "here\n");
        assert_eq!(text(worker, Command::new("sub/tool").env("PATH", "").cwd(dir.path())), "below\n");
    });
}

#[test]
fn without_a_path_a_program_is_looked_up_where_the_system_keeps_them() {
    each_way(|_, worker| {
        assert_eq!(text(worker, Command::new("echo").arg("found").env_clear()), "found\n");
        assert_eq!(text(worker, Command::new("echo").arg("found").env_remove("PATH")), "found\n");
    });
}

#[test]
fn a_symbolic_link_is_executed_under_its_own_name() {
    let dir = tempfile::tempdir().unwrap();
    symlink("/bin/sh", dir.path().join("link")).unwrap();
    each_way(|_, worker| {
        let command = Command::new(dir.path().join("link")).args(["-c", "echo $0"]);
        assert_eq!(text(worker, command), format!("{}/link\n", dir.path().display()));
    });
}

// Environment and working directory.

type Env = BTreeSet<(OsString, OsString)>;

/// The environment of `cat`, as it finds it.
fn env_seen(worker: &mut Worker, command: impl FnOnce(Command) -> Command) -> Env {
    let environ = bytes(worker, command(Command::new("cat").arg("/proc/self/environ")));
    let pairs = environ.split(|&byte| byte == 0).filter(|pair| !pair.is_empty());
    let pairs: Vec<_> = pairs.map(|pair| pair.split_at(pair.iter().position(|&byte| byte == b'=').unwrap())).collect();
    let os = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let env: Env = pairs.iter().map(|(key, value)| (os(key), os(&value[1..]))).collect();
    assert_eq!(env.len(), pairs.len(), "no variable comes twice");
    env
}

fn env_of<const N: usize>(pairs: [(&str, &[u8]); N]) -> Env {
    pairs.iter().map(|(key, value)| (OsString::from(key), OsString::from_vec(value.to_vec()))).collect()
}

#[test]
fn the_environment_is_inherited_set_removed_and_cleared_as_asked() {
    let own: Env = env::vars_os().collect();
    let weird = OsStr::from_bytes(b"a=b\n\xff");
    each_way(|_, worker| {
        assert_eq!(env_seen(worker, |command| command), own);
        let mut expected = own.clone();
        expected.retain(|(key, _)| key != "PATH" && key != "HOME");
        expected.extend(env_of([("HOME", b"/else"), ("WEIRD", b"a=b\n\xff"), ("EMPTY", b"")]));
        let changed = env_seen(worker, |command| {
            command.env("WEIRD", "1").env_remove("PATH").env("HOME", "/else").env("WEIRD", weird).env("EMPTY", "").env_remove("NOT_THERE")
        });
        assert_eq!(changed, expected);
        let cleared = env_seen(worker, |command| command.env("GONE", "1").env_clear().env("A", "1").env("B", "2").env_remove("A"));
        assert_eq!(cleared, env_of([("B", b"2")]));
        assert_eq!(env_seen(worker, Command::env_clear), Env::new());
    });
}

#[test]
fn a_worker_with_a_clear_environment_hands_nothing_of_its_own_down() {
    each_way_built(
        |builder| builder.env_base(EnvBase::Clear),
        |_, worker| {
            assert_eq!(env_seen(worker, |command| command), Env::new());
            assert_eq!(env_seen(worker, |command| command.env("A", "1").env_remove("PATH")), env_of([("A", b"1")]));
        },
    );
}

#[test]
fn the_working_directory_is_the_one_asked_for_or_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"odd \xff\n name"));
    fs::create_dir(&odd).unwrap();
    make_script(&odd.join("tool"), "printf %s \"$0 \"; exec readlink /proc/self/cwd");
    let own = env::current_dir().unwrap();
    let seen = |worker: &mut Worker, command: Command| OsString::from_vec(bytes(worker, command));
    let line = |path: &Path| OsString::from_vec([path.as_os_str().as_bytes(), b"\n"].concat());
    let readlink = || Command::new("readlink").arg("/proc/self/cwd");
    each_way(|_, worker| {
        assert_eq!(seen(worker, readlink()), line(&own));
        assert_eq!(seen(worker, readlink().cwd("/")), line(Path::new("/")));
        assert_eq!(seen(worker, readlink().cwd("src/model")), line(&own.join("src/model")));
        assert_eq!(seen(worker, readlink().cwd(&odd)), line(&odd));
        let relative = seen(worker, Command::new("./tool").cwd(&odd));
        assert_eq!(relative.as_bytes(), [b"./tool ", line(&odd).as_bytes()].concat());
    });
    assert_eq!(env::current_dir().unwrap(), own);
}

// Standard input.

#[test]
fn without_a_word_about_stdin_the_job_reads_nothing() {
    each_way(|_, worker| {
        let script = "cat; readlink /proc/self/fd/0";
        assert_eq!(text(worker, Command::shell(script)), "/dev/null\n");
        assert_eq!(text(worker, Command::shell(script).stdin_bytes(*b"x").stdin_null()), "/dev/null\n");
    });
}

#[test]
fn bytes_given_as_stdin_are_read_whole_and_then_end() {
    use sha2::Digest;
    let mut large = vec![0; (4 << 20) + 1];
    fastrand::Rng::with_seed(7).fill(&mut large);
    let sum = sha2::Sha256::digest(&large).iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().concat();
    each_way(|_, worker| {
        assert_eq!(words(&text(worker, Command::new("sha256sum").stdin_bytes(large.clone())))[0], sum);
        assert_eq!(words(&text(worker, Command::shell("wc -c").stdin_bytes(large.clone()))), [large.len().to_string()]);
        assert_eq!(words(&text(worker, Command::shell("wc -c").stdin_bytes(Vec::new()))), ["0"]);
        assert_eq!(bytes(worker, Command::new("cat").stdin_bytes(*b"no line feed \0\xff")), b"no line feed \0\xff");
    });
}

#[test]
fn a_file_given_as_stdin_is_read_from_where_it_stands() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_with(dir.path(), "input", "first\nsecond\n");
    each_way(|_, worker| {
        let mut file = File::open(&path).unwrap();
        file.seek(SeekFrom::Start(6)).unwrap();
        assert_eq!(text(worker, Command::new("cat").stdin_file(file)), "second\n");
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"through a pipe").unwrap();
        drop(writer);
        assert_eq!(text(worker, Command::new("cat").stdin_file(reader)), "through a pipe");
    });
}

#[test]
fn a_piped_stdin_is_written_by_the_caller_and_ends_when_that_lets_go() {
    each_way(|_, worker| {
        let job = worker.start(Command::new("cat").stdin_piped()).unwrap();
        let mut stdin = worker.take_stdin(job).unwrap().unwrap();
        assert!(worker.take_stdin(job).unwrap().is_none(), "it is given once");
        stdin.write_all(b"one\n").unwrap();
        turn_until(worker, |worker, _| worker.query(job).unwrap().output.stdout_bytes == 4);
        stdin.write_all(b"two\n").unwrap();
        drop(stdin);
        let status = finish(worker, job);
        assert!(status.success(), "{status:?}");
        assert_eq!(output_of(&status), b"one\ntwo\n");
        let other = worker.start(Command::new("true")).unwrap();
        assert!(worker.take_stdin(other).unwrap().is_none(), "it was not asked for");
        finish(worker, other);
    });
}

#[test]
fn an_inherited_stdin_is_the_hosts_own() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"of the host\n").unwrap();
    file.rewind().unwrap();
    launched(&["env"], file.into(), "an_inherited_stdin_is_the_hosts_own", || {
        each_way(|_, worker| {
            assert_eq!(text(worker, Command::new("cat").stdin_inherit()), "of the host\n");
            rustix::fs::seek(io::stdin(), rustix::fs::SeekFrom::Start(0)).unwrap();
        });
    });
}

// Credentials and limits.

#[test]
fn a_job_runs_with_the_ids_and_groups_asked_for_and_those_of_the_host_are_dropped() {
    if not_root() {
        return;
    }
    let name = "a_job_runs_with_the_ids_and_groups_asked_for_and_those_of_the_host_are_dropped";
    launched(&["setpriv", "--groups", "1,2,3"], Stdio::null(), name, || {
        assert_eq!(field(&own_status(), "Groups"), "1 2 3");
        each_way(|_, worker| {
            let mut ids = |change: fn(Command) -> Command| {
                let status = text(worker, change(Command::new("cat").arg("/proc/self/status")));
                let all = |name: &str| {
                    let four = field(&status, name);
                    let first = words(&four)[0].to_owned();
                    assert_eq!(words(&four), [first.as_str(); 4], "{name}: real, effective, saved and file system id");
                    first.parse::<u32>().unwrap()
                };
                (all("Uid"), all("Gid"), words(&field(&status, "Groups")).iter().map(|group| group.parse().unwrap()).collect::<Vec<u32>>())
            };
            assert_eq!(ids(|command| command), (0, 0, vec![1, 2, 3]));
            assert_eq!(ids(|command| command.uid(65534)), (65534, 0, vec![]));
            assert_eq!(ids(|command| command.uid(65534).gid(65533)), (65534, 65533, vec![]));
            assert_eq!(ids(|command| command.uid(65534).gid(65533).groups([7, 8])), (65534, 65533, vec![7, 8]));
            assert_eq!(ids(|command| command.gid(65533)), (0, 65533, vec![1, 2, 3]));
            assert_eq!(ids(|command| command.groups([9])), (0, 0, vec![9]));
            assert_eq!(ids(|command| command.groups([])), (0, 0, vec![]));
            let seen = text(worker, Command::shell("id -u; id -g; id -G").uid(65534).gid(65533).groups([7]));
            assert_eq!(words(&seen), ["65534", "65533", "65533", "7"]);
            let status = text(worker, Command::new("cat").arg("/proc/self/status").uid(65534));
            for set in ["CapPrm", "CapEff", "CapAmb"] {
                assert_eq!(field(&status, set).trim_start_matches('0'), "", "{set}");
            }
        });
        assert_eq!(field(&own_status(), "Groups"), "1 2 3");
    });
}

#[test]
fn the_umask_is_set_for_the_job_and_only_for_it() {
    let own = field(&own_status(), "Umask");
    each_way(|_, worker| {
        let mut seen = |command: Command| field(&text(worker, command.arg("/proc/self/status")), "Umask");
        assert_eq!(seen(Command::new("cat")), own);
        for mask in [0, 0o27, 0o777] {
            assert_eq!(seen(Command::new("cat").umask(mask)), format!("{mask:04o}"));
        }
    });
    assert_eq!(field(&own_status(), "Umask"), own);
}

/// Soft and hard limit as `/proc/PID/limits` has them.
fn limit(limits: &str, name: &str) -> (String, String) {
    let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name} in {limits}"));
    (words(line)[0].to_owned(), words(line)[1].to_owned())
}

#[test]
fn every_resource_limit_is_set_soft_and_hard() {
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let limits = [
        (Resource::Cpu, "Max cpu time", 1000, 2000),
        (Resource::Fsize, "Max file size", 1 << 30, 1 << 31),
        (Resource::Data, "Max data size", 1 << 33, 1 << 34),
        (Resource::Stack, "Max stack size", 4 << 20, 8 << 20),
        (Resource::Core, "Max core file size", 0, 0),
        (Resource::Rss, "Max resident set", 1 << 33, 1 << 34),
        (Resource::Nproc, "Max processes", 5000, 6000),
        (Resource::Nofile, "Max open files", 100, 200),
        (Resource::Memlock, "Max locked memory", 4096, 8192),
        (Resource::As, "Max address space", 1 << 40, 1 << 41),
        (Resource::Locks, "Max file locks", 10, 20),
        (Resource::Sigpending, "Max pending signals", 100, 200),
        (Resource::Msgqueue, "Max msgqueue size", 1000, 2000),
        (Resource::Nice, "Max nice priority", 0, 0),
        (Resource::Rtprio, "Max realtime priority", 0, 0),
        (Resource::Rttime, "Max realtime timeout", 100_000, 200_000),
    ];
    each_way(|_, worker| {
        let cat = || Command::new("cat").arg("/proc/self/limits");
        assert_eq!(text(worker, cat()), own);
        let all = limits.iter().fold(cat(), |command, (resource, _, soft, hard)| command.rlimit(*resource, *soft, *hard));
        let seen = text(worker, all);
        for (_, name, soft, hard) in limits {
            assert_eq!(limit(&seen, name), (soft.to_string(), hard.to_string()), "{name}");
        }
        // The last word about a resource wins.
        let twice = cat().rlimit(Resource::Nofile, 10, 300).rlimit(Resource::Nofile, 20, 200);
        assert_eq!(limit(&text(worker, twice), "Max open files"), ("20".to_owned(), "200".to_owned()));
    });
    assert_eq!(fs::read_to_string("/proc/self/limits").unwrap(), own);
}

#[test]
fn the_nice_value_is_set_for_the_job_and_only_for_it() {
    each_way(|_, worker| {
        let own = text(worker, Command::new("nice"));
        assert_eq!(text(worker, Command::new("nice").nice(7)), "7\n");
        assert_eq!(text(worker, Command::new("nice").nice(19)), "19\n");
        assert_eq!(text(worker, Command::new("nice")), own);
    });
}

#[test]
fn the_oom_score_is_set_for_the_job_and_only_for_it() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    each_way(|_, worker| {
        let cat = || Command::new("cat").arg("/proc/self/oom_score_adj");
        assert_eq!(text(worker, cat()), own);
        assert_eq!(text(worker, cat().oom_score_adj(1000)), "1000\n");
        // Whatever else is asked for: the limit of open files may be lower than the number that the file would get.
        assert_eq!(text(worker, cat().oom_score_adj(900).rlimit(Resource::Nofile, 4, 4)), "900\n");
        if rustix::process::geteuid().is_root() {
            assert_eq!(text(worker, cat().oom_score_adj(800).uid(65534).gid(65534)), "800\n");
        }
    });
    assert_eq!(fs::read_to_string("/proc/self/oom_score_adj").unwrap(), own);
}

#[test]
fn new_privileges_are_given_up_when_asked() {
    each_way(|_, worker| {
        let cat = || Command::new("cat").arg("/proc/self/status");
        assert_eq!(field(&text(worker, cat()), "NoNewPrivs"), field(&own_status(), "NoNewPrivs"));
        assert_eq!(field(&text(worker, cat().no_new_privs()), "NoNewPrivs"), "1");
    });
}

// File descriptors.

/// A job that says which files stand at `numbers`, a line each.
fn links(numbers: impl IntoIterator<Item = i32>) -> Command {
    let list: Vec<String> = numbers.into_iter().map(|number| number.to_string()).collect();
    Command::shell(format!("for n in {}; do readlink /proc/$$/fd/$n; done", list.join(" ")))
}

fn lines(paths: &[&Path]) -> String {
    paths.iter().map(|path| format!("{}\n", path.display())).collect::<Vec<_>>().concat()
}

#[test]
fn without_a_word_about_descriptors_a_job_has_three() {
    each_way(|_, worker| assert_eq!(numbers(&text(worker, Command::shell(LIST_FDS))), BTreeSet::from([0, 1, 2])));
}

#[test]
fn descriptors_stand_at_the_numbers_chosen_and_nowhere_else() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (file_with(dir.path(), "a", "A"), file_with(dir.path(), "b", "B"));
    let open = |path: &Path| File::open(path).unwrap();
    each_way(|_, worker| {
        let pass = |command: Command| command.fd(3, open(&a)).fd(17, open(&b)).fd(1000, open(&a));
        assert_eq!(text(worker, pass(links([3, 17, 1000]))), lines(&[&a, &b, &a]));
        assert_eq!(text(worker, pass(Command::shell("cat <&3; cat /dev/fd/17"))), "AB");
        assert_eq!(numbers(&text(worker, pass(Command::shell(LIST_FDS)))), BTreeSet::from([0, 1, 2, 3, 17, 1000]));
    });
}

#[test]
fn descriptors_can_swap_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, c) = (file_with(dir.path(), "a", "A"), file_with(dir.path(), "b", "B"), file_with(dir.path(), "c", "C"));
    let open = |path: &Path| File::open(path).unwrap();
    each_way(|_, worker| {
        let (file_a, file_b) = (open(&a), open(&b));
        let (at_a, at_b) = (file_a.as_raw_fd(), file_b.as_raw_fd());
        let command = links([at_a, at_b]).fd(at_b, file_a).fd(at_a, file_b);
        assert_eq!(text(worker, command), lines(&[&b, &a]));

        // Three in a circle.
        let files = [open(&a), open(&b), open(&c)];
        let [at_a, at_b, at_c] = files.each_ref().map(AsRawFd::as_raw_fd);
        let [file_a, file_b, file_c] = files;
        let circle = |command: Command| command.fd(at_b, file_a).fd(at_c, file_b).fd(at_a, file_c);
        let command = circle(links([at_a, at_b, at_c]));
        assert_eq!(text(worker, command.clone()), lines(&[&c, &a, &b]));
        // A template's descriptors are there again for the next job.
        assert_eq!(text(worker, command), lines(&[&c, &a, &b]));
    });
}

#[test]
fn a_descriptor_can_keep_its_number_and_be_passed_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (file_with(dir.path(), "a", "A"), file_with(dir.path(), "b", "B"));
    each_way(|_, worker| {
        let file = File::open(&a).unwrap();
        let at = file.as_raw_fd();
        let command = links([at]).fd(at, file);
        assert_eq!(text(worker, command), lines(&[&a]));

        // One file under three numbers, its own among them, while another comes from where one of them goes.
        let (file, other) = (File::open(&a).unwrap(), File::open(&b).unwrap());
        let (at, at_other) = (file.as_raw_fd(), other.as_raw_fd());
        let again = [file.try_clone().unwrap(), file.try_clone().unwrap()];
        let [first, second] = again;
        let command = links([at, at_other, 900, 901]).fd(at_other, first).fd(at, file).fd(900, second).fd(901, other);
        assert_eq!(text(worker, command), lines(&[&a, &a, &a, &b]));
    });
}

#[test]
fn numbers_that_the_library_uses_itself_are_as_good_as_any() {
    let dir = tempfile::tempdir().unwrap();
    let range = 3..=40;
    let paths: Vec<PathBuf> = range.clone().map(|number| file_with(dir.path(), &format!("file-{number}"), number.to_string())).collect();
    let expected = lines(&paths.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    each_way(|_, worker| {
        let pass = |command: Command| {
            range.clone().zip(&paths).fold(command, |command, (number, path)| command.fd(number, File::open(path).unwrap()))
        };
        for capture in [Capture::Split, Capture::Merged] {
            let command = links(range.clone()).stdin_bytes(*b"x").capture(capture);
            assert_eq!(text(worker, pass(command)), expected);
        }
        assert_eq!(numbers(&text(worker, pass(Command::shell(LIST_FDS)))), (0..=40).collect());
        // With every number taken the failure still finds its way.
        let error = worker.start(pass(Command::new("/nonexistent"))).unwrap_err();
        assert_eq!(error.failure().unwrap().step(), Step::Exec, "{error}");
    });
}

#[test]
fn a_number_counts_against_the_hosts_limit_of_open_files_not_the_jobs() {
    isolated("a_number_counts_against_the_hosts_limit_of_open_files_not_the_jobs", || {
        let dir = tempfile::tempdir().unwrap();
        let path = file_with(dir.path(), "a", "A");
        let was = getrlimit(rustix::process::Resource::Nofile);
        each_way(|_, worker| {
            let command = || Command::shell("cat /dev/fd/1000").fd(1000, File::open(&path).unwrap());
            assert_eq!(text(worker, command().rlimit(Resource::Nofile, 64, 64)), "A");
            setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(256), ..was }).unwrap();
            let refused = worker.start(command()).unwrap_err();
            setrlimit(rustix::process::Resource::Nofile, was).unwrap();
            assert_eq!(refused.failure().map(StartFailure::step), Some(Step::Dup), "{refused}");
            assert!(refused.to_string().contains("RLIMIT_NOFILE"), "{refused}");
            assert_eq!(text(worker, command()), "A");
        });
    });
}

#[test]
fn descriptors_of_the_host_are_closed_in_the_job_whether_or_not_they_are_marked() {
    isolated("descriptors_of_the_host_are_closed_in_the_job_whether_or_not_they_are_marked", || {
        let files: Vec<OwnedFd> = (0..20).map(|_| File::open("/dev/zero").unwrap().into()).collect();
        for fd in &files {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap();
        }
        let passed = files[7].as_raw_fd();
        each_way(|_, worker| {
            assert_eq!(numbers(&text(worker, Command::shell(LIST_FDS))), BTreeSet::from([0, 1, 2]));
            let command = Command::shell(LIST_FDS).fd(passed, File::open("/dev/null").unwrap()).fd(500, File::open("/dev/null").unwrap());
            assert_eq!(numbers(&text(worker, command)), BTreeSet::from([0, 1, 2, passed, 500]));
        });
    });
}

#[test]
fn a_raised_limit_of_open_files_is_the_hosts_alone() {
    isolated("a_raised_limit_of_open_files_is_the_hosts_alone", || {
        let was = getrlimit(rustix::process::Resource::Nofile);
        let hard = was.maximum.map_or("unlimited".to_owned(), |hard| hard.to_string());
        let host = Host::new();
        for (rung, base) in ways(&host) {
            setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(256), ..was }).unwrap();
            let mut worker = host.builder().rung(rung).cgroup_base(base).raise_nofile(true).build().unwrap();
            assert_eq!(getrlimit(rustix::process::Resource::Nofile), Rlimit { current: was.maximum, ..was });
            assert_eq!(worker.capabilities().nofile, was.maximum.unwrap_or(u64::MAX));
            let mut seen = |command: Command| limit(&text(&mut worker, command.arg("/proc/self/limits")), "Max open files");
            assert_eq!(seen(Command::new("cat")), ("256".to_owned(), hard.clone()));
            assert_eq!(seen(Command::new("cat").rlimit(Resource::Nofile, 512, 1024)), ("512".to_owned(), "1024".to_owned()));
            assert_eq!(seen(Command::new("cat").fd(1000, File::open("/dev/null").unwrap())), ("256".to_owned(), hard.clone()));
        }
        // Without being asked, the limit stays.
        setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(256), ..was }).unwrap();
        assert_eq!(host.worker().capabilities().nofile, 256);
        assert_eq!(getrlimit(rustix::process::Resource::Nofile).current, Some(256));
    });
}

// What every job gets.

#[test]
fn a_job_leads_a_session_and_a_process_group_of_its_own() {
    each_way(|_, worker| {
        let job = worker.start(Command::new("cat").arg("/proc/self/stat")).unwrap();
        let status = finish(worker, job);
        let stat = String::from_utf8(output_of(&status)).unwrap();
        let fields = words(stat.rsplit_once(')').unwrap().1);
        let (pid, own) = (status.pid.to_string(), process::id().to_string());
        // After the name: state, parent, process group, session, terminal.
        assert_eq!(fields[1..5], [own.as_str(), &pid, &pid, "0"]);
    });
}

#[test]
fn no_signal_is_blocked_or_ignored_in_a_job_whatever_the_host_does() {
    let launcher = ["env", "--block-signal=USR1,TERM,WINCH", "--ignore-signal=CHLD,HUP,USR2"];
    let is_outside = env::var_os(LAUNCHED).is_none();
    if is_outside && !process::Command::new("env").args(&launcher[1..]).arg("true").status().is_ok_and(|status| status.success()) {
        let _ = cannot_run("it needs env of GNU coreutils 8.31 or later");
        return;
    }
    launched(&launcher, Stdio::null(), "no_signal_is_blocked_or_ignored_in_a_job_whatever_the_host_does", || {
        let mask = |status: &str, name: &str| u64::from_str_radix(&field(status, name), 16).unwrap();
        let bit = |number: u32| 1_u64 << (number - 1);
        let (blocked, ignored) = (bit(10) | bit(15) | bit(28), bit(1) | bit(12) | bit(13) | bit(17));
        assert_eq!(mask(&own_status(), "SigBlk") & blocked, blocked);
        assert_eq!(mask(&own_status(), "SigIgn") & ignored, ignored, "SIGPIPE too: Rust's runtime does that");
        let before = own_status();
        each_way(|_, worker| {
            let job = worker.start(Command::new("cat").arg("/proc/self/status")).unwrap();
            // The host ignores SIGCHLD: how the job ended may not be known on older kernels.
            let seen = String::from_utf8(output_of(&finish(worker, job))).unwrap();
            for name in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
                assert_eq!(mask(&seen, name), 0, "{name}");
            }
        });
        for name in ["SigBlk", "SigIgn", "SigCgt"] {
            assert_eq!(mask(&own_status(), name), mask(&before, name), "the host's own {name}");
        }
    });
}

#[test]
fn a_job_is_born_in_the_cgroup_that_has_its_name() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let base = host.base.clone().unwrap();
    for rung in Rung::ALL {
        let mut worker = host.builder().rung(rung).build().unwrap();
        // The host does not wait for a child that another user could stop.
        let for_another = if rung == Rung::Vfork { Rung::ForkLike } else { rung };
        for (command, taken) in [(Command::new("cat"), rung), (Command::new("cat").uid(65534).gid(65534), for_another)] {
            let job = worker.start(command.arg("/proc/self/cgroup").name("born")).unwrap();
            let status = finish(&mut worker, job);
            assert_eq!((status.rung, status.name.as_str()), (taken, "born"));
            assert_eq!(status.cgroup, Some(base.join(format!("born_{job}"))));
            let seen = String::from_utf8(output_of(&status)).unwrap();
            let own = seen.lines().find_map(|line| line.strip_prefix("0::")).unwrap();
            let below_mount = format!("/{}/born_{job}", base.file_name().unwrap().to_str().unwrap());
            assert!(own.ends_with(&below_mount), "{own} is not {below_mount}");
        }
        assert_eq!(host.cgroups(), Vec::<String>::new());
    }
}

#[test]
fn whatever_a_job_is_called_its_log_and_cgroup_have_a_safe_name() {
    let long = "x".repeat(5000);
    let names = [
        ("make", "make"),
        ("../../etc/passwd", "passwd"),
        ("/", "job"),
        ("", "job"),
        ("..", "job"),
        ("a/b", "b"),
        ("new\nline", "new_line"),
        ("naïve", "na__ve"),
        ("\u{1b}[31mred", "__31mred"),
        (".hidden", "_hidden"),
        ("-rf", "_rf"),
        ("nul\0byte", "nul_byte"),
        ("日本", "______"),
        (&long, &long[..64]),
    ];
    each_way(|host, worker| {
        for (name, expected) in names {
            let job = worker.start(Command::new("true").name(name)).unwrap();
            let status = finish(worker, job);
            assert!(status.success(), "{status:?}");
            assert_eq!(status.name, expected, "{name:?}");
            assert_eq!(status.log, Some(host.log_dir.path().join(format!("{expected}_{job}.log"))));
            assert!(status.log.unwrap().is_file());
            if let Some(cgroup) = status.cgroup {
                assert_eq!(cgroup, host.base.clone().unwrap().join(format!("{expected}_{job}")));
            }
        }
        // Without a name of its own it is called like the program.
        for (program, expected) in [("/bin/../bin/true", "true"), ("true", "true")] {
            assert_eq!(run(worker, Command::new(program)).name, expected);
        }
    });
}

// Where output goes.

#[test]
fn split_output_is_logged_with_each_line_on_its_stream() {
    each_way(|_, worker| {
        let job = worker.start(Command::shell("echo out; echo err >&2; printf end").capture(Capture::Split)).unwrap();
        let status = finish(worker, job);
        assert_eq!((status.output.stdout_bytes, status.output.stderr_bytes, status.output.lines), (7, 4, 2));
        for (stream, expected) in [(OutputStream::Stdout, "out\nend"), (OutputStream::Stderr, "err\n")] {
            let mut reader = worker.stream_with(job, &iron_exec::ReadOptions::new().only(stream)).unwrap();
            let mut seen = Vec::new();
            while let std::task::Poll::Ready(piece) = reader.try_fill_buf() {
                let piece = piece.unwrap();
                if piece.is_empty() {
                    break;
                }
                seen.extend_from_slice(piece);
                let count = piece.len();
                reader.consume(count);
            }
            assert_eq!(String::from_utf8(seen).unwrap(), expected);
        }
    });
}

#[test]
fn merged_output_is_logged_in_the_order_in_which_it_was_written() {
    let script = "i=0; while [ $i -lt 100 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; readlink /proc/$$/fd/1 /proc/$$/fd/2";
    let expected = (0..100).map(|number| format!("out {number}\nerr {number}\n")).collect::<Vec<_>>().concat();
    each_way(|_, worker| {
        let output = text(worker, Command::shell(script).capture(Capture::Merged));
        let links = output.strip_prefix(&expected).unwrap();
        assert_eq!(words(links)[0], words(links)[1], "both are one pipe");
        let raw = text(worker, Command::shell(script).capture(Capture::Merged).log_format(LogFormat::Raw));
        assert!(raw.starts_with(&expected));
    });
}

#[test]
fn inherited_output_goes_where_the_hosts_goes() {
    let name = "inherited_output_goes_where_the_hosts_goes";
    let output = launched(&["env"], Stdio::null(), name, || {
        each_way(|host, worker| {
            let status = run(worker, Command::shell("echo to stdout; echo to stderr >&2").capture(Capture::Inherit));
            assert!(status.success());
            assert_eq!((status.log, host.logs()), (None, vec![]));
            assert!(matches!(worker.stream(status.id), Err(StreamError::NotLogged { .. })));
        });
    });
    let Some(output) = output else { return };
    let count = |bytes: &[u8], line: &str| String::from_utf8_lossy(bytes).lines().filter(|seen| *seen == line).count();
    let ways = ways(&Host::new()).len();
    assert_eq!((count(&output.stdout, "to stdout"), count(&output.stderr, "to stdout")), (ways, 0));
    assert_eq!((count(&output.stdout, "to stderr"), count(&output.stderr, "to stderr")), (0, ways));
}

#[test]
fn piped_output_is_read_by_the_caller_to_its_end() {
    each_way(|host, worker| {
        let script = "echo out; echo err >&2; head -c 300000 /dev/zero";
        let job = worker.start(Command::shell(script).capture(Capture::Piped)).unwrap();
        let stdout = worker.take_stdout(job).unwrap().unwrap();
        let stderr = worker.take_stderr(job).unwrap().unwrap();
        assert!(worker.take_stdout(job).unwrap().is_none() && worker.take_stderr(job).unwrap().is_none(), "they are given once");
        assert_eq!(read_all(stdout), [b"out\n".to_vec(), vec![0; 300_000]].concat());
        assert_eq!(read_all(stderr), b"err\n");
        let status = finish(worker, job);
        assert!(status.success());
        assert_eq!((status.log, host.logs()), (None, vec![]));
    });
}

#[test]
fn discarded_output_goes_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    each_way(|host, worker| {
        let path = dir.path().join("links");
        let script = "echo lost; echo lost >&2; l=$(readlink /proc/$$/fd/0 /proc/$$/fd/1 /proc/$$/fd/2); echo $l >&3";
        let status = run(worker, Command::shell(script).capture(Capture::Discard).fd(3, File::create(&path).unwrap()));
        assert!(status.success());
        assert_eq!(words(&fs::read_to_string(&path).unwrap()), ["/dev/null"; 3]);
        assert_eq!((status.log, host.logs(), status.output.stdout_bytes), (None, vec![], 0));
        assert!(worker.take_stdout(status.id).unwrap().is_none());
    });
}

// Time.

#[test]
fn a_timeout_kills_the_whole_tree() {
    each_way(|_, worker| {
        let command = Command::shell("sleep 1000 & echo $!; wait").timeout(Duration::from_millis(100));
        let began = Instant::now();
        let job = worker.start(command).unwrap();
        let mut grandchild = None;
        turn_until(worker, |worker, _| {
            let status = worker.query(job).unwrap();
            if status.output.lines == 1 && !status.is_finished() {
                grandchild = String::from_utf8(output_of(&status)).unwrap().trim().parse::<i32>().ok();
            }
            status.is_finished()
        });
        let status = worker.query(job).unwrap();
        assert_eq!((status.state, status.stop_reason), (JobState::Finished, Some(StopReason::Timeout)));
        assert_eq!((status.signal(), status.exit_code), (Some(Signal::KILL), -1));
        assert!(began.elapsed() >= Duration::from_millis(100));
        if let Some(grandchild) = grandchild {
            common::wait_until("the grandchild is gone", || !process_runs(grandchild));
        }
    });
}

#[test]
fn a_timeout_signal_gives_the_program_the_chance_to_end_by_itself() {
    let host = Host::new();
    // Long enough for a shell to begin on a busy machine. All at once: they wait for nothing but the clock.
    let timeout = Duration::from_millis(1500);
    let mut workers: Vec<Worker> =
        ways(&host).into_iter().map(|(rung, base)| host.builder().rung(rung).cgroup_base(base).build().unwrap()).collect();
    let scripts = ["trap 'echo bye; exit 7' TERM; sleep 1000 & wait", "trap '' TERM; echo deaf; sleep 1000"];
    let mut jobs = Vec::new();
    for worker in &mut workers {
        let start = |script| Command::shell(script).timeout(timeout).timeout_signal(Signal::TERM, Duration::from_millis(300));
        jobs.push(scripts.map(|script| worker.start(start(script)).unwrap()));
    }
    for (worker, [polite, deaf]) in workers.iter_mut().zip(jobs) {
        let status = finish(worker, polite);
        assert_eq!((status.state, status.exit_code, status.stop_reason), (JobState::Finished, 7, Some(StopReason::Timeout)));
        assert_eq!(output_of(&status), b"bye\n");
        let status = finish(worker, deaf);
        assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Timeout)));
        assert_eq!(output_of(&status), b"deaf\n");
        assert!(status.run_time >= timeout + Duration::from_millis(300));
    }
}

#[test]
fn a_timeout_that_does_not_come_changes_nothing() {
    each_way(|_, worker| {
        for timeout in [Duration::from_hours(1), Duration::MAX] {
            let command = Command::shell("echo done; exit 3").timeout(timeout).timeout_signal(Signal::TERM, Duration::MAX);
            let status = run(worker, command);
            assert_eq!((status.state, status.exit_code, status.stop_reason), (JobState::Finished, 3, None));
            assert_eq!(output_of(&status), b"done\n");
        }
    });
}

#[test]
fn a_timeout_of_nothing_ends_a_job_at_once() {
    each_way(|_, worker| {
        let status = run(worker, Command::new("sleep").arg("1000").timeout(Duration::ZERO));
        assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Timeout)));
    });
}

/// A lowered limit of open files, for as long as this lives.
struct FewFiles {
    was: Rlimit,
    _taken: Vec<File>,
}

impl FewFiles {
    fn new(most: u64) -> Self {
        let was = getrlimit(rustix::process::Resource::Nofile);
        setrlimit(rustix::process::Resource::Nofile, Rlimit { current: Some(most), ..was }).unwrap();
        Self { was, _taken: std::iter::from_fn(|| File::open("/dev/null").ok()).collect() }
    }
}

impl Drop for FewFiles {
    fn drop(&mut self) {
        setrlimit(rustix::process::Resource::Nofile, self.was).unwrap();
    }
}

#[test]
fn a_timeout_kills_also_when_the_host_can_open_no_more_files() {
    isolated("a_timeout_kills_also_when_the_host_can_open_no_more_files", || {
        each_way(|host, worker| {
            // With no number left at all, and with a limit below what is open; in a cgroup also a child that has left the process group dies.
            let has_cgroup = worker.capabilities().cgroup.is_some();
            let escaping = has_cgroup.then_some((64, "setsid sleep 1000 & wait"));
            for (most, script) in escaping.into_iter().chain([(64, "sleep 1000 & wait"), (0, "sleep 1000 & wait")]) {
                let job = worker.start(Command::shell(script).timeout(Duration::from_millis(50))).unwrap();
                let few = FewFiles::new(most);
                turn_until(worker, |worker, _| worker.query(job).unwrap().is_finished());
                drop(few);
                let status = worker.query(job).unwrap();
                assert_eq!((status.signal(), status.stop_reason), (Some(Signal::KILL), Some(StopReason::Timeout)));
                assert!(!status.cgroup_left, "{status:?}");
                assert_eq!(host.cgroups(), Vec::<String>::new());
            }
        });
    });
}

// Templates.

#[test]
fn a_command_can_be_cloned_and_used_for_several_jobs_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = file_with(dir.path(), "shared", "S");
    each_way(|_, worker| {
        let template = Command::shell("cat; cat /dev/fd/5; echo $A $B; sleep 0.01")
            .stdin_bytes(*b"input ")
            .fd(5, File::open(&path).unwrap())
            .env("A", "1")
            .name("template")
            .timeout(Duration::from_mins(1));
        let jobs: Vec<_> = (0..5).map(|number| worker.start(template.clone().env("B", number.to_string())).unwrap()).collect();
        drop(template);
        let mut ended = 0;
        turn_until(worker, |_, events| {
            ended = events.iter().filter(|event| matches!(event, Event::Finished { .. })).count();
            ended == jobs.len()
        });
        let logs: BTreeSet<PathBuf> = jobs.iter().filter_map(|job| worker.query(*job).unwrap().log).collect();
        assert_eq!((ended, logs.len()), (5, 5));
        for (number, job) in jobs.iter().enumerate() {
            let status = worker.query(*job).unwrap();
            assert!(status.success(), "{status:?}");
            assert_eq!(String::from_utf8(output_of(&status)).unwrap(), format!("input S1 {number}\n"));
        }
    });
}
