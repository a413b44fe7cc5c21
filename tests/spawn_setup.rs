//! Promise: a job gets what was asked for and nothing else, on every rung of the ladder, and what it sets for itself is never the host's. The rung is
//! the one that is safe for it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process;

use common::{Census, DEADLINE, Host, cannot_run, finish, isolated, not_root, open_fds, output_of};
use fastrand::Rng;
use iron_exec::{Builder, Capture, CgroupBase, Command, Exit, Resource, Rung, RungReason, Signal, Status, Worker};
use rustix::process::{Rlimit, getrlimit, setrlimit};

/// Runs `test` with a worker of every kind: on each rung, with cgroups and without.
fn each_way(settings: impl Fn(Builder) -> Builder, mut test: impl FnMut(Rung, &mut Worker)) {
    let host = Host::new();
    let bases: Vec<CgroupBase> = host.base.clone().map(CgroupBase::Path).into_iter().chain([CgroupBase::Off]).collect();
    for rung in Rung::ALL {
        for base in &bases {
            println!("on rung {rung}, {base:?}");
            let builder = settings(host.builder()).confirm_timeout(DEADLINE);
            test(rung, &mut builder.rung(rung).cgroup_base(base.clone()).build().unwrap());
        }
    }
}

/// Runs a job to its end.
fn run(worker: &mut Worker, command: Command) -> Status {
    let job = worker.start(command).unwrap_or_else(|error| panic!("{error}"));
    finish(worker, job)
}

/// Runs a job that must succeed, on this rung for this reason; returns what it wrote.
fn text_on(worker: &mut Worker, rung: (Rung, RungReason), command: Command) -> String {
    // fs.suid_dumpable is the whole machine's: other tests set it for a moment.
    let mut tries = std::iter::repeat_n(command, 1000).map(|command| run(worker, command));
    let status = tries.find(|status| status.rung_reason != RungReason::SuidDumpable).expect("fs.suid_dumpable is 0 or 2");
    let text = String::from_utf8(output_of(&status)).unwrap();
    assert!(status.success(), "{status:?} wrote {text}");
    assert_eq!((status.rung, status.rung_reason), rung, "{status:?}");
    text
}

fn text(worker: &mut Worker, command: Command) -> String {
    let rung = worker.capabilities().rung;
    text_on(worker, (rung, RungReason::Best), command)
}

/// The rung that a start takes which cannot have a slot.
fn off_the_slots(rung: Rung, reason: RungReason) -> (Rung, RungReason) {
    if matches!(rung, Rung::Detached | Rung::Vfork) { (Rung::ForkLike, reason) } else { (rung, RungReason::Best) }
}

// Signals.

/// The environment variable that tells a test that it runs in the process that it wanted.
const LAUNCHED: &str = "IRON_EXEC_TEST_LAUNCHED";

/// Runs `body` in a fresh process that ignores and blocks signals.
fn deaf(name: &str, body: impl FnOnce()) {
    if env::var_os(LAUNCHED).is_some() {
        body();
        return;
    }
    let launcher = ["--ignore-signal=HUP,INT,QUIT,USR1,USR2,ALRM,TERM,TSTP,40,64", "--block-signal=USR1,WINCH,CHLD,50"];
    if !process::Command::new("env").args(launcher).arg("true").status().is_ok_and(|status| status.success()) {
        let _ = cannot_run("it needs env of GNU coreutils 8.31 or later");
        return;
    }
    let mut command = process::Command::new("env");
    command.args(launcher).arg(env::current_exe().unwrap()).args(["--exact", name, "--nocapture", "--test-threads=1"]);
    let output = command.env(LAUNCHED, "1").output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{text}");
    assert!(output.status.success() && text.contains("1 passed"), "the process that ignores signals failed with {}", output.status);
}

fn mask(status: &str, name: &str) -> u64 {
    u64::from_str_radix(&field(status, name), 16).unwrap()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
fn signals_that_the_host_ignores_or_blocks_act_on_a_job_as_on_any_process() {
    deaf("signals_that_the_host_ignores_or_blocks_act_on_a_job_as_on_any_process", || {
        let own = || fs::read_to_string("/proc/thread-self/status").unwrap();
        let bit = |number: u32| 1_u64 << (number - 1);
        // SIGPIPE is ignored by Rust's runtime.
        let ignored = [1, 2, 3, 10, 12, 13, 14, 15, 20, 40, 64].map(bit).into_iter().sum::<u64>();
        let blocked = [10, 28, 17, 50].map(bit).into_iter().sum::<u64>();
        assert_eq!((mask(&own(), "SigIgn") & ignored, mask(&own(), "SigBlk") & blocked), (ignored, blocked));
        let before = own();
        each_way(
            |builder| builder,
            |_, worker| {
                let seen = text(worker, Command::new("cat").arg("/proc/self/status"));
                for name in ["SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd"] {
                    assert_eq!(mask(&seen, name), 0, "{name}");
                }
                // A writer ends when nobody reads any more.
                let writer = Command::shell("yes | head -n 1; kill -PIPE $$").capture(Capture::Merged);
                assert_eq!(run(worker, writer).signal(), Signal::new(13));
                for number in [1, 10, 12, 15, 40, 50, 64] {
                    let status = run(worker, Command::shell(format!("kill -{number} $$")));
                    assert_eq!(status.signal(), Signal::new(number), "{status:?}");
                }
                let job = worker.start(Command::new("sleep").arg("1000")).unwrap();
                worker.signal(job, Signal::TERM).unwrap();
                assert_eq!(finish(worker, job).signal(), Some(Signal::TERM));
            },
        );
        for name in ["SigBlk", "SigIgn", "SigCgt"] {
            assert_eq!(mask(&own(), name), mask(&before, name), "the host's own {name}");
        }
    });
}

// Descriptors.

/// The descriptors that a job has, seen by another process; the numbers, a line each.
const LIST_FDS: &str = "ls /proc/$$/fd; :";

fn numbers(list: &str) -> BTreeSet<i32> {
    list.lines().map(|line| line.parse().unwrap()).collect()
}

/// Files that say which one they are.
struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    fn new(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        for number in 0..count {
            fs::write(directory.path().join(number.to_string()), number.to_string()).unwrap();
        }
        Self { directory }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.directory.path().join(number.to_string())
    }

    fn open(&self, number: usize) -> File {
        File::open(self.path(number)).unwrap()
    }
}

/// A job that says which files stand at `numbers`, all of them by one process.
fn links(numbers: &[i32]) -> Command {
    // What readlink opens itself, it opens above them.
    Command::new("readlink").args(numbers.iter().map(|number| format!("/proc/self/fd/{number}")))
}

fn lines(paths: impl IntoIterator<Item = PathBuf>) -> String {
    paths.into_iter().map(|path| format!("{}\n", path.display())).collect::<Vec<_>>().concat()
}

/// The most descriptors that one message carries to a child, less its stdin, stdout and stderr.
const MESSAGE_FDS: usize = 253 - 3;

#[test]
fn descriptors_come_by_the_hundred_each_at_its_number() {
    let files = Files::new(260);
    each_way(
        |builder| builder,
        |rung, worker| {
            for count in [1, 50, 200, MESSAGE_FDS, MESSAGE_FDS + 1, 260] {
                // In falling order from 400, so that few stand where they go.
                let numbers: Vec<i32> = (0..count as i32).map(|index| 400 - index).collect();
                let pass = |command: Command| (0..count).fold(command, |command, index| command.fd(numbers[index], files.open(index)));
                let rung = if count > MESSAGE_FDS { off_the_slots(rung, RungReason::ManyFds) } else { (rung, RungReason::Best) };
                let expected = lines((0..count).map(|index| files.path(index)));
                assert!(text_on(worker, rung, pass(links(&numbers))) == expected, "{count} descriptors");
                let seen = self::numbers(&text_on(worker, rung, pass(Command::shell(LIST_FDS))));
                assert_eq!(seen, (0..3).chain(numbers).collect());
            }
        },
    );
}

#[test]
fn wherever_descriptors_come_from_they_get_where_they_go() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = Rng::with_seed(seed);
    let files = Files::new(30);
    each_way(
        |builder| builder,
        |_, worker| {
            for round in 0..12 {
                // They go to numbers where others of them come from, or the slots' sockets are, or anything.
                let opened: Vec<File> = (0..30).map(|number| files.open(number)).collect();
                let mut from: Vec<(usize, File)> = opened.into_iter().enumerate().collect();
                let mut to: Vec<i32> = match round % 3 {
                    // Rings: each where the next one of its ring comes from, or where it is itself.
                    0 => from.iter().map(|(_, file)| file.as_raw_fd()).collect(),
                    // Partly.
                    1 => from.iter().step_by(2).map(|(_, file)| file.as_raw_fd()).chain(700..715).collect(),
                    _ => (3..600).collect(),
                };
                rng.shuffle(&mut to);
                rng.shuffle(&mut from);
                to.truncate(from.len());
                let paths: Vec<PathBuf> = from.iter().map(|(number, _)| files.path(*number)).collect();
                let command = from.into_iter().zip(&to).fold(links(&to), |command, ((_, file), number)| command.fd(*number, file));
                assert_eq!(text(worker, command.clone()), lines(paths), "round {round}: to {to:?}");
                // A ring once more, from the same template.
                assert!(run(worker, command).success());
            }
        },
    );
}

#[test]
fn the_numbers_of_the_slots_own_sockets_are_as_good_as_any() {
    isolated("the_numbers_of_the_slots_own_sockets_are_as_good_as_any", || {
        let files = Files::new(MESSAGE_FDS);
        each_way(
            |builder| builder,
            |_, worker| {
                let sockets: Vec<i32> =
                    open_fds().into_iter().filter(|(_, what)| what.contains("socket")).map(|(number, _)| number).chain([900]).collect();
                for _ in 0..3 {
                    let command =
                        sockets.iter().enumerate().fold(links(&sockets), |command, (index, number)| command.fd(*number, files.open(index)));
                    assert_eq!(text(worker, command), lines((0..sockets.len()).map(|index| files.path(index))));
                }
                // Every number that the host has, and every one below.
                let top = open_fds().into_keys().max().unwrap().clamp(3, MESSAGE_FDS as i32 + 2);
                let all: Vec<i32> = (3..=top).collect();
                let pass = |command: Command| {
                    all.iter().enumerate().fold(command, |command, (index, number)| command.fd(*number, files.open(index)))
                };
                assert_eq!(text(worker, pass(links(&all))), lines((0..all.len()).map(|index| files.path(index))));
                assert_eq!(numbers(&text(worker, pass(Command::shell(LIST_FDS)))), (0..=top).collect());
            },
        );
    });
}

#[test]
fn a_job_has_the_descriptors_that_were_asked_for_however_many_the_host_has_open() {
    isolated("a_job_has_the_descriptors_that_were_asked_for_however_many_the_host_has_open", || {
        let was = getrlimit(rustix::process::Resource::Nofile);
        if was.maximum.is_some_and(|most| most < 4096) {
            let _ = cannot_run("it needs 4096 open files");
            return;
        }
        setrlimit(
            rustix::process::Resource::Nofile,
            Rlimit { current: was.maximum.map_or(Some(4096), |most| Some(most.min(4096))), ..was },
        )
        .unwrap();
        let open = |count: usize| -> Vec<OwnedFd> {
            let files = (0..count).map(|_| OwnedFd::from(File::open("/dev/zero").unwrap()));
            files.inspect(|fd| rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).unwrap()).collect()
        };
        let early = open(500);
        each_way(
            |builder| builder,
            |_, worker| {
                let late = open(1000);
                assert_eq!(numbers(&text(worker, Command::shell(LIST_FDS))), BTreeSet::from([0, 1, 2]));
                let [low, high] = [early[100].as_raw_fd(), late[700].as_raw_fd()];
                let null = || File::open("/dev/null").unwrap();
                let pass = |command: Command| command.fd(3, null()).fd(low, null()).fd(high, null()).fd(2000, null());
                assert_eq!(numbers(&text(worker, pass(Command::shell(LIST_FDS)))), BTreeSet::from([0, 1, 2, 3, low, high, 2000]));
                assert_eq!(text(worker, pass(links(&[3, low, high, 2000]))), "/dev/null\n".repeat(4));
            },
        );
    });
}

#[test]
fn stdin_is_a_file_or_memory_whatever_else_there_is() {
    isolated("stdin_is_a_file_or_memory_whatever_else_there_is", || {
        let host = Host::new();
        let census = Census::take(&host);
        let files = Files::new(20);
        let long = (0..100_000).map(|number| number.to_string()).collect::<Vec<_>>().join("\n") + "\n";
        let with_fds = |command: Command| (0..20).fold(command, |command, index| command.fd(3 + index as i32, files.open(index)));
        each_way(
            |builder| builder,
            |_, worker| {
                for pass in
                    [|_: &dyn Fn(Command) -> Command, command| command, |with_fds: &dyn Fn(Command) -> Command, command| with_fds(command)]
                {
                    let mut run = |command: Command| text(worker, pass(&with_fds, command));
                    assert!(run(Command::new("cat").stdin_bytes(long.clone().into_bytes())) == long);
                    assert_eq!(run(Command::new("cat").stdin_bytes(Vec::new())), "");
                    // Read from where it stands, and the host sees how far.
                    let path = files.directory.path().join("long");
                    fs::write(&path, &long).unwrap();
                    let mut file = File::open(&path).unwrap();
                    file.seek(SeekFrom::Start(long.len() as u64 - 12)).unwrap();
                    assert_eq!(run(Command::shell("head -c 6").stdin_file(file.try_clone().unwrap())), "99998\n");
                    let mut rest = String::new();
                    file.read_to_string(&mut rest).unwrap();
                    assert_eq!(rest, "99999\n");
                    fs::remove_file(&path).unwrap();
                }
            },
        );
        drop(files);
        assert_eq!(Census { logs: Vec::new(), ..Census::take(&host) }, census);
    });
}

// What a job sets for itself.

/// What a process has that a job can set.
#[derive(Debug, PartialEq, Eq)]
struct Own {
    status: BTreeMap<String, String>,
    limits: String,
    oom_score_adj: String,
    cwd: PathBuf,
    /// Parent, process group, session, terminal, its group; nice value.
    stat: Vec<String>,
}

impl Own {
    /// Of the process or thread whose directory below `/proc` this is.
    fn of(directory: &str) -> Self {
        let read = |file: &str| fs::read_to_string(format!("{directory}/{file}")).unwrap();
        let names = ["Umask", "Uid", "Gid", "Groups", "SigBlk", "SigIgn", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        let names = names.into_iter().chain(["NoNewPrivs", "Seccomp"]);
        let stat = read("stat");
        let stat: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        Self {
            status: names.map(|name| (name.to_owned(), field(&read("status"), name))).collect(),
            limits: read("limits"),
            oom_score_adj: read("oom_score_adj"),
            cwd: fs::read_link(format!("{directory}/cwd")).unwrap(),
            stat: stat[1..6].iter().chain([&stat[16]]).map(|field| (*field).to_owned()).collect(),
        }
    }

    fn all() -> [Self; 2] {
        let [mut process, thread] = ["/proc/self", "/proc/thread-self"].map(Self::of);
        // The main thread's, which is libtest's: all of them at the moment in which it makes a thread.
        process.status.remove("SigBlk");
        [process, thread]
    }
}

#[test]
fn what_a_job_sets_for_itself_is_not_set_for_the_host() {
    isolated("what_a_job_sets_for_itself_is_not_set_for_the_host", || {
        let before = Own::all();
        let directory = tempfile::tempdir().unwrap();
        // Nothing that needs to be root but the score, which cannot go down again.
        let set = |command: Command| {
            let command = command.umask(0o027).cwd(directory.path()).nice(7).no_new_privs();
            let command = command.rlimit(Resource::Nofile, 64, 128).rlimit(Resource::Core, 0, 0).rlimit(Resource::Fsize, 1 << 20, 1 << 21);
            command.rlimit(Resource::Stack, 1 << 20, 1 << 22).stdin_bytes(*b"words")
        };
        each_way(
            |builder| builder.confirm(false),
            |rung, worker| {
                let status = text(worker, set(Command::new("cat").arg("/proc/self/status")));
                assert_eq!([field(&status, "Umask"), field(&status, "NoNewPrivs")], ["0027", "1"]);
                assert_eq!(Own::all(), before);
                let script = "ulimit -n; nice; pwd; cat /proc/$$/oom_score_adj; cat; exit 3";
                let seen = run(worker, set(Command::shell(script)));
                let expected = format!("64\n7\n{}\n{}words", directory.path().display(), before[0].oom_score_adj);
                assert_eq!((seen.exit_code, String::from_utf8(output_of(&seen)).unwrap()), (3, expected), "{seen:?}");
                assert_eq!(Own::all(), before);
                // A score of its own: the host's would be another, too, if it were shared.
                let vfork = matches!(rung, Rung::Detached | Rung::Vfork);
                let expected_rung = if vfork { (Rung::Vfork, RungReason::OomScoreAdj) } else { (rung, RungReason::Best) };
                let seen = text_on(worker, expected_rung, set(Command::shell("cat /proc/$$/oom_score_adj")).oom_score_adj(777));
                assert_eq!(seen, "777\n");
                assert_eq!(Own::all(), before);
                // While they run, and when they fail half-way.
                let jobs: Vec<_> = (0..8)
                    .map(|number| {
                        let command =
                            set(Command::new(if number % 2 == 0 { "cat" } else { "/nonexistent" })).oom_score_adj(500).stdin_piped();
                        worker.start(command).unwrap()
                    })
                    .collect();
                for job in jobs {
                    assert_eq!(Own::all(), before);
                    drop(worker.take_stdin(job).unwrap());
                    finish(worker, job);
                    assert_eq!(Own::all(), before);
                }
            },
        );
        assert_eq!(Own::all(), before);
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let new = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap());
        let umask = u32::from_str_radix(&before[0].status["Umask"], 8).unwrap();
        assert_eq!(new & 0o777, 0o666 & !umask, "the host's next file");
    });
}

/// The job's user.
const NOBODY: u32 = 65_534;

#[test]
fn a_job_of_another_user_never_holds_up_the_host_and_leaves_its_ids_alone() {
    isolated("a_job_of_another_user_never_holds_up_the_host_and_leaves_its_ids_alone", || {
        if not_root() {
            return;
        }
        let before = Own::all();
        let show = || Command::shell("id -u; id -g; id -G; umask; ulimit -n");
        let expected = format!("{NOBODY}\n{NOBODY}\n{NOBODY} 12345\n0077\n99\n");
        let as_nobody = |command: Command| {
            command.uid(NOBODY).gid(NOBODY).groups([NOBODY, 12_345]).umask(0o077).rlimit(Resource::Nofile, 99, 99).nice(3).cwd("/")
        };
        each_way(
            |builder| builder,
            |rung, worker| {
                let other_user = if rung == Rung::Vfork { (Rung::ForkLike, RungReason::OtherUser) } else { (rung, RungReason::Best) };
                assert_eq!(text_on(worker, other_user, as_nobody(show())), expected);
                assert_eq!(Own::all(), before);
                // With a score, too, which is for vfork: not for another user.
                let scored = off_the_slots(rung, RungReason::OtherUser);
                assert_eq!(text_on(worker, scored, as_nobody(show()).oom_score_adj(300)), expected);
                assert_eq!(Own::all(), before);
                // The host's own user may.
                assert_eq!(text(worker, Command::shell("id -u").uid(0).gid(0)), "0\n");
                // A group of its own makes nobody another user.
                assert_eq!(text(worker, Command::shell("id -u; id -g").gid(NOBODY)), format!("0\n{NOBODY}\n"));
                assert_eq!(Own::all(), before);
            },
        );
        // Who is to stay dumpable shares no memory with somebody else.
        each_way(
            |builder| builder.keep_dumpable(true),
            |rung, worker| {
                let off = off_the_slots(rung, RungReason::KeepDumpable);
                assert_eq!(text_on(worker, off, as_nobody(show())), expected);
                assert_eq!(text_on(worker, off, Command::shell("id -g").gid(NOBODY)), format!("{NOBODY}\n"));
                assert_eq!(text(worker, Command::shell("id -u").uid(0).gid(0)), "0\n");
            },
        );
        assert_eq!(Own::all(), before);
    });
}

#[test]
fn a_job_leads_a_session_of_its_own_and_the_host_stays_in_its_own() {
    isolated("a_job_leads_a_session_of_its_own_and_the_host_stays_in_its_own", || {
        let before = Own::all();
        each_way(
            |builder| builder,
            |_, worker| {
                let status = run(worker, Command::new("cat").arg("/proc/self/stat"));
                let stat = String::from_utf8(output_of(&status)).unwrap();
                let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
                let (pid, own) = (status.pid.to_string(), process::id().to_string());
                assert_eq!(fields[1..5], [own.as_str(), &pid, &pid, "0"]);
                assert_eq!(status.exit, Some(Exit::Code(0)));
                assert_eq!(Own::all(), before);
            },
        );
    });
}
