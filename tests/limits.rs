//! Promise: what a job may use is what it can use. Each limit is shown by its effect, on a kernel whose cgroup2 has every controller: `.ci/machine`.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Census, Host, finish, isolated, output_of, turn_until, wait_until};
use iron_exec::{
    Capture, CgroupBase, CgroupUsage, Command, Event, Events, IoDevice, IoMax, IoUsage, JobError, JobId, Limits, Rung, RungReason, Signal,
    Status, Step, Worker,
};

const DISK: &str = "/dev/nullb0";
const BUSY: &str = "while :; do :; done";

/// How long a start may take on an emulated machine: the limits of a job can be changed once its program runs.
const CONFIRM: Duration = Duration::from_secs(10);

fn worker_of(host: &Host) -> Worker {
    host.builder().confirm_timeout(CONFIRM).build().expect("a worker")
}

/// The disk's numbers.
fn disk() -> (u32, u32) {
    let number = fs::metadata(DISK).expect("the machine's disk").rdev();
    (rustix::fs::major(number), rustix::fs::minor(number))
}

/// Allocates, and touches, so many MiB.
fn greedy(mib: u32) -> Command {
    Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "count=1"]).arg(format!("bs={mib}M")).capture(Capture::Discard)
}

/// Holds so many MiB until it is stopped.
fn holder(mib: u32) -> Command {
    Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "count=1000000"]).arg(format!("bs={mib}M")).capture(Capture::Discard)
}

/// Writes 64 KiB so often to a device, past its cache.
fn write_directly(device: &str, count: u32) -> Command {
    let dd = Command::new("dd").args(["if=/dev/zero", "oflag=direct", "bs=64k"]);
    dd.arg(format!("of={device}")).arg(format!("count={count}")).capture(Capture::Discard)
}

/// Stays until it is stopped.
fn idle() -> Command {
    Command::new("sleep").arg("1000")
}

/// Runs a job to its end.
fn run(worker: &mut Worker, command: Command) -> (Status, Vec<Event>) {
    let job = worker.start(command).expect("it starts");
    let events = turn_until(worker, |worker, _| worker.query(job).unwrap().is_finished());
    (worker.query(job).unwrap(), events)
}

fn stop(worker: &mut Worker, job: JobId) -> Status {
    worker.stop(job).unwrap();
    finish(worker, job)
}

/// Turns the loop until `done` says so of things that send no event.
fn turn_while_waiting(worker: &mut Worker, what: &str, mut done: impl FnMut(&Worker) -> bool) {
    let mut events = Events::new();
    wait_until(what, || {
        worker.turn(&mut events, Some(Duration::from_millis(5))).expect("a turn");
        events.drain().for_each(drop);
        done(worker)
    });
}

/// The cores that a job uses while the loop turns for so long.
fn cores_used(worker: &mut Worker, job: JobId, window: Duration) -> f64 {
    let (began, before) = (Instant::now(), worker.usage(job).unwrap().cpu.total);
    turn_while_waiting(worker, "the time of the measurement", |_| began.elapsed() >= window);
    let used = worker.usage(job).unwrap().cpu.total.saturating_sub(before);
    used.as_secs_f64() / began.elapsed().as_secs_f64()
}

/// What a file of a running job's cgroup says.
fn file_of(worker: &Worker, job: JobId, file: &str) -> String {
    let path = worker.query(job).unwrap().cgroup.expect("it has a cgroup").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).trim_end().to_owned()
}

fn io_of(usage: &CgroupUsage) -> IoUsage {
    let (major, minor) = disk();
    let devices = usage.io.as_deref().unwrap_or_default();
    devices.iter().copied().find(|device| (device.major, device.minor) == (major, minor)).unwrap_or_default()
}

fn told(events: &[Event], wanted: fn(&Event) -> bool) -> usize {
    events.iter().position(wanted).unwrap_or_else(|| panic!("not among {events:?}"))
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_quarter_of_a_cpu_is_a_quarter_and_the_throttling_is_told() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let job = worker.start(Command::shell(BUSY).limits(Limits::new().cpu_max(0.25))).unwrap();
    let cores = cores_used(&mut worker, job, Duration::from_secs(2));
    let throttled = stop(&mut worker, job).cgroup_usage.unwrap().cpu.throttled.unwrap();
    println!("cpu_max(0.25): {cores:.3} cores, {throttled:?}");
    assert!((0.20..=0.30).contains(&cores), "{cores}");
    assert!(throttled.throttled_periods >= 10 && throttled.periods >= throttled.throttled_periods, "{throttled:?}");
    assert!(throttled.time >= Duration::from_millis(500), "{throttled:?}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_cpu_is_shared_by_weight() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let limits = |weight| Limits::new().cpu_weight(weight).cpuset_cpus("0");
    let jobs = [100, 300].map(|weight| worker.start(Command::shell(BUSY).limits(limits(weight))).unwrap());
    let before = jobs.map(|job| worker.usage(job).unwrap().cpu.total);
    let cores = cores_used(&mut worker, jobs[0], Duration::from_secs(3));
    let used = [0, 1].map(|index| worker.usage(jobs[index]).unwrap().cpu.total.saturating_sub(before[index]).as_secs_f64());
    let share = used[1] / used[0];
    println!("cpu_weight 100:300 on CPU 0: {used:.2?} s, 1:{share:.2}, the first {cores:.2} cores");
    for job in jobs {
        stop(&mut worker, job);
    }
    assert!((2.0..=4.5).contains(&share), "{share}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn an_allocation_past_memory_max_is_killed_and_the_status_says_so() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let (status, events) = run(&mut worker, greedy(60).limits(Limits::new().memory_max(20 << 20)));
    let memory = status.cgroup_usage.as_ref().unwrap().memory.unwrap();
    println!("memory_max(20 MiB): {memory:?}");
    assert!(status.oom_killed && status.signal() == Some(Signal::KILL), "{status:?}, {events:?}");
    assert!(memory.events.oom_kill >= 1 && memory.peak_bytes.is_some_and(|peak| peak <= 20 << 20), "{memory:?}");
    let out_of_memory = told(&events, |event| matches!(event, Event::OutOfMemory { .. }));
    assert!(out_of_memory < told(&events, |event| matches!(event, Event::Exited { .. })));
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn out_of_memory_takes_the_whole_job_unless_only_the_largest_is_to_go() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let script = "sleep 1000 & a=$!; sleep 1000 & b=$!; dd if=/dev/zero of=/dev/null bs=60M count=1 2>/dev/null; echo $?
        kill -0 $a && kill -0 $b && echo both; kill $a $b";
    let job = |limits: Limits| Command::shell(script).limits(limits.memory_max(20 << 20));

    let (status, _) = run(&mut worker, job(Limits::new()));
    let events = status.cgroup_usage.as_ref().unwrap().memory.unwrap().events;
    println!("the whole job: {events:?}");
    assert_eq!((status.signal(), status.oom_killed, output_of(&status)), (Some(Signal::KILL), true, Vec::new()));
    // The shell, two sleeps and dd, which the kernel may count twice: as the victim, and as one of the group.
    assert!((4..=5).contains(&events.oom_kill) && events.oom_group_kill == 1, "{events:?}");

    let (status, told_events) = run(&mut worker, job(Limits::new().memory_oom_group(false)));
    let events = status.cgroup_usage.as_ref().unwrap().memory.unwrap().events;
    println!("only the largest: {events:?}");
    assert_eq!(String::from_utf8(output_of(&status)).unwrap(), "137\nboth\n");
    assert_eq!((status.oom_killed, events.oom_kill, events.oom_group_kill), (false, 1, 0));
    told(&told_events, |event| matches!(event, Event::OutOfMemory { .. }));
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn memory_high_slows_a_job_down_and_does_not_kill_it() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let (free, _) = run(&mut worker, greedy(20));
    let (status, events) = run(&mut worker, greedy(20).limits(Limits::new().memory_high(10 << 20)));
    let memory = status.cgroup_usage.as_ref().unwrap().memory.unwrap();
    println!("memory_high(10 MiB) of 20 MiB: {:.2?} instead of {:.2?}, {memory:?}", status.run_time, free.run_time);
    assert!(free.success() && status.success() && !status.oom_killed, "{status:?}");
    assert!(memory.events.high >= 1 && memory.events.oom_kill == 0, "{memory:?}");
    assert!(status.run_time >= free.run_time + Duration::from_millis(500), "{:?}, {:?}", status.run_time, free.run_time);
    let high = told(&events, |event| matches!(event, Event::MemoryHigh { .. }));
    assert!(high < told(&events, |event| matches!(event, Event::Exited { .. })));
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_fork_bomb_stops_at_pids_max_and_is_cleared_in_one_go() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let script = "bomb() { while :; do bomb & done; }; bomb & exec sleep 1000";
    let job = worker.start(Command::shell(script).capture(Capture::Discard).limits(Limits::new().pids_max(50))).unwrap();
    turn_until(&mut worker, |_, seen| seen.iter().any(|event| matches!(event, Event::PidsMax { .. })));
    let mut most = 0;
    turn_while_waiting(&mut worker, "the bomb fills what it may have", |worker| {
        most = most.max(worker.usage(job).unwrap().pids.unwrap().current);
        most >= 50
    });
    let (began, cgroup) = (Instant::now(), worker.query(job).unwrap().cgroup.unwrap());
    let status = stop(&mut worker, job);
    let pids = status.cgroup_usage.unwrap().pids.unwrap();
    println!("pids_max(50): at most {most}, {pids:?}, cleared in {:.1?}", began.elapsed());
    assert!(most == 50 && pids.max_events >= 1, "{most}, {pids:?}");
    assert!(!status.cgroup_left && !cgroup.exists() && host.cgroups().is_empty());
    assert_eq!(common::children(), Vec::<String>::new());
}

/// A partition on the machine's disk, for as long as this lives.
struct Partition;

impl Partition {
    fn new() -> Self {
        let mut table = [0; 512];
        // One entry: Linux, from sector 2048 on, 65536 sectors.
        table[450] = 0x83;
        table[454..458].copy_from_slice(&2048_u32.to_le_bytes());
        table[458..462].copy_from_slice(&65536_u32.to_le_bytes());
        table[510..].copy_from_slice(&[0x55, 0xaa]);
        assert!(Self::write(&table));
        Self
    }

    /// Writes a partition table, and has the kernel read it; whether it has.
    fn write(table: &[u8]) -> bool {
        let mut file = fs::OpenOptions::new().write(true).open(DISK).unwrap();
        std::io::Write::write_all(&mut file, table).unwrap();
        file.sync_all().unwrap();
        drop(file);
        std::process::Command::new("blockdev").args(["--rereadpt", DISK]).status().unwrap().success()
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        Self::write(&[0; 512]);
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn io_max_slows_a_disk_down_however_it_is_named() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let (major, minor) = disk();
    let partition = Partition::new();
    let part = format!("{DISK}p1");
    wait_until("the partition is there", || Path::new(&part).exists());
    let bytes = IoMax::new().write_bytes(2 << 20);
    // 2 MiB.
    let cases = [
        ("no limit", DISK, None),
        ("by path", DISK, Some((IoDevice::Path(DISK.into()), bytes))),
        ("by number", DISK, Some((IoDevice::Number { major, minor }, bytes))),
        ("all of them", DISK, Some((IoDevice::All, bytes))),
        ("by its partition", &part, Some((IoDevice::Path(part.clone().into()), bytes))),
        ("operations", DISK, Some((IoDevice::Path(DISK.into()), IoMax::new().write_ops(32)))),
    ];
    for (what, device, limit) in cases {
        let is_limited = limit.is_some();
        let limits = limit.into_iter().fold(Limits::new(), |limits, (device, max)| limits.io_max(device, max));
        let job = worker.start(write_directly(device, 32).limits(limits)).unwrap();
        let written = (is_limited && what != "all of them").then(|| file_of(&worker, job, "io.max"));
        let status = finish(&mut worker, job);
        println!("io_max {what}: 2 MiB in {:.2?}, {written:?}", status.run_time);
        assert!(status.success(), "{what}: {status:?}");
        // The kernel lets the first piece through at once.
        assert_eq!(status.run_time >= Duration::from_millis(800), is_limited, "{what}: {:?}", status.run_time);
        assert!(written.is_none_or(|written| written.starts_with(&format!("{major}:{minor} "))), "{what}");
    }
    drop(partition);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn an_io_weight_is_written_or_it_is_said_what_it_needs() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let weighted = || idle().limits(Limits::new().io_weight(200));
    let job = match worker.start(weighted()) {
        Ok(job) => job,
        Err(error) => {
            println!("without BFQ: {error}");
            let failure = error.failure().unwrap();
            assert_eq!((failure.step(), failure.errno()), (Step::Limit, 2));
            assert!(failure.path().unwrap().ends_with("io.weight") && failure.advice().unwrap().contains("BFQ"), "{failure}");
            assert!(std::process::Command::new("modprobe").arg("bfq").status().unwrap().success());
            worker.start(weighted()).unwrap()
        }
    };
    let cgroup = worker.query(job).unwrap().cgroup.unwrap();
    let read = |file: &str| fs::read_to_string(cgroup.join(file)).ok().map(|text| text.trim().to_owned());
    let weights = (read("io.weight"), read("io.bfq.weight"));
    println!("io_weight(200): {weights:?}");
    // BFQ's range is another.
    assert!(weights.0.as_deref() == Some("default 200") || weights.1.as_deref() == Some("default 109"), "{weights:?}");
    stop(&mut worker, job);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn every_limit_stands_in_the_cgroups_files_while_the_job_runs_until_it_is_lifted() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let device = IoDevice::All;
    let limits = Limits::new()
        .cpu_quota(Duration::from_millis(30), Duration::from_millis(50))
        .cpu_weight(50)
        .cpuset_cpus("0-1")
        .cpuset_mems("0")
        .memory_max(64 << 20)
        .memory_high(48 << 20)
        .memory_swap_max(1 << 20)
        .pids_max(20)
        .io_max(device.clone(), IoMax::new().read_bytes(1 << 30).write_bytes(1 << 20).read_ops(7).write_ops(100));
    let job = worker.start(idle().limits(limits)).unwrap();
    turn_while_waiting(&mut worker, "memory.oom.group is set", |worker| file_of(worker, job, "memory.oom.group") == "1");
    let expect = |worker: &Worker, files: &[(&str, &str)]| {
        for (file, value) in files {
            assert_eq!(file_of(worker, job, file), *value, "{file}");
        }
    };
    expect(
        &worker,
        &[
            ("cpu.max", "30000 50000"),
            ("cpu.weight", "50"),
            ("cpuset.cpus", "0-1"),
            ("cpuset.mems", "0"),
            ("memory.max", "67108864"),
            ("memory.high", "50331648"),
            ("memory.swap.max", "1048576"),
            ("pids.max", "20"),
        ],
    );
    let io = file_of(&worker, job, "io.max");
    println!("io.max of all disks: {io:?}");
    assert!(io.lines().all(|line| line.ends_with(" rbps=1073741824 wbps=1048576 riops=7 wiops=100")), "{io}");
    assert_eq!(io.lines().count(), fs::read_dir("/sys/block").unwrap().count());

    let none = Limits::UNLIMITED;
    let lifted = Limits::new().cpu_max(f64::INFINITY);
    let lifted = lifted.memory_max(none).memory_high(none).memory_swap_max(none).memory_oom_group(false).pids_max(none);
    let no_io = IoMax::new().read_bytes(none).write_bytes(none).read_ops(none).write_ops(none);
    worker.set_limits(job, &lifted.io_max(device, no_io)).unwrap();
    expect(
        &worker,
        &[
            ("cpu.max", "max 100000"),
            ("cpu.weight", "50"),
            ("memory.max", "max"),
            ("memory.high", "max"),
            ("memory.swap.max", "max"),
            ("memory.oom.group", "0"),
            ("pids.max", "max"),
            ("io.max", ""),
        ],
    );
    for (file, list) in [("cpuset.cpus", Limits::new().cpuset_cpus("")), ("cpuset.mems", Limits::new().cpuset_mems(""))] {
        match worker.set_limits(job, &list) {
            Ok(()) => assert_eq!(file_of(&worker, job, file), ""),
            // Kernels such as 6.1 let no cgroup that holds processes have an empty list once it had one; that is told.
            Err(error) => {
                println!("{error}");
                let JobError::Limit { path, advice: Some(advice), .. } = &error else { panic!("{error:?}") };
                assert!(path.ends_with(file) && advice.contains("empty list"), "{error:?}");
            }
        }
    }
    stop(&mut worker, job);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_limit_that_the_kernel_refuses_fails_the_start_and_leaves_nothing() {
    isolated("a_limit_that_the_kernel_refuses_fails_the_start_and_leaves_nothing", || {
        let host = Host::new();
        let mut worker = worker_of(&host);
        // What a worker makes at its first start, it keeps.
        let (status, _) = run(&mut worker, Command::new("/bin/true").limits(Limits::new().pids_max(5).memory_max(32 << 20)));
        assert!(status.success(), "{status:?}");
        let before = Census::take(&host);
        let device = |path: &str| Limits::new().io_max(IoDevice::Path(path.into()), IoMax::new().read_bytes(2));
        let cases: [(Limits, &str, &[i32]); 6] = [
            (Limits::new().cpuset_cpus("999"), "cpuset.cpus", &[22, 34]),
            (Limits::new().cpuset_mems("63"), "cpuset.mems", &[22, 34]),
            (device("/dev/null"), "/dev/null", &[19]),
            (device("/no/such/device"), "/no/such/device", &[2]),
            (device("/proc/self"), "/proc/self", &[19]),
            (
                Limits::new().pids_max(5).io_max(IoDevice::Number { major: 4095, minor: 1 }, IoMax::new().read_bytes(2)),
                "/sys/dev/block/4095:1",
                &[19],
            ),
        ];
        for (limits, path, errnos) in cases {
            let error = worker.start(Command::new("/bin/true").limits(limits)).unwrap_err();
            println!("{error}");
            let failure = error.failure().unwrap();
            assert_eq!(failure.step(), Step::Limit, "{failure}");
            assert!(failure.path().unwrap().ends_with(path), "{failure}");
            assert!(errnos.contains(&failure.errno()) && failure.advice().is_some(), "{failure:?}");
            assert_eq!(Census::take(&host), before);
        }
        assert_eq!(worker.unfinished_jobs(), 0);
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_program_sees_its_limits_in_its_first_act_on_every_rung() {
    let host = Host::new();
    // Nothing but what the shell itself does.
    let script = "read -r own </proc/self/cgroup; own=/sys/fs/cgroup${own#0::}
        for file in cpu.max memory.max pids.max cpuset.cpus; do read -r value <\"$own/$file\"; echo \"$value\"; done
        while read -r key value; do [ \"$key\" != Cpus_allowed_list: ] || echo \"allowed $value\"; done </proc/self/status; echo \"$own\"";
    for rung in Rung::ALL {
        let mut worker = host.builder().rung(rung).confirm_timeout(CONFIRM).build().unwrap();
        let limits = Limits::new().cpu_max(0.5).memory_max(64 << 20).pids_max(9).cpuset_cpus("1");
        let job = worker.start(Command::shell(script).limits(limits)).unwrap();
        let cgroup = worker.query(job).unwrap().cgroup.unwrap();
        let status = finish(&mut worker, job);
        let expected = format!("50000 100000\n67108864\n9\n1\nallowed 1\n{}\n", cgroup.display());
        assert_eq!(String::from_utf8(output_of(&status)).unwrap(), expected, "{rung}");
        println!("born inside on {} ({})", status.rung, status.rung_reason);
        assert_eq!((status.rung, status.rung_reason), (rung, RungReason::Best));
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn one_page_of_memory_cannot_be_outrun_on_any_rung_and_the_host_lives() {
    isolated("one_page_of_memory_cannot_be_outrun_on_any_rung_and_the_host_lives", || {
        let host = Host::new();
        let memory = vec![1_u8; 200 << 20];
        for rung in Rung::ALL {
            let mut worker = host.builder().rung(rung).confirm_timeout(CONFIRM).build().unwrap();
            let mut seen = Vec::new();
            for confirms in [true, false, true, false] {
                let command = greedy(10).confirm(confirms).limits(Limits::new().memory_max(4096));
                seen.push(match worker.start(command) {
                    Ok(job) => {
                        let status = finish(&mut worker, job);
                        assert!(!status.success(), "{rung}: {status:?}");
                        assert!(!status.rung.to_string().is_empty() && status.rung != Rung::Detached && status.rung != Rung::Vfork);
                        status.failure.as_ref().map_or_else(|| format!("{:?}", status.exit), ToString::to_string)
                    }
                    Err(error) => error.to_string(),
                });
            }
            println!("memory_max(4096), at most {rung}: {seen:?}");
            assert_eq!(host.cgroups(), Vec::<String>::new());
        }
        assert!(memory.iter().all(|byte| *byte == 1));
    });
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn the_cpu_time_of_a_running_job_is_lowered_and_lifted() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let job = worker.start(Command::shell(BUSY)).unwrap();
    let window = Duration::from_millis(1200);
    let free = cores_used(&mut worker, job, window);
    worker.set_limits(job, &Limits::new().cpu_max(0.2)).unwrap();
    let lowered = cores_used(&mut worker, job, window);
    worker.set_limits(job, &Limits::new().cpu_max(f64::INFINITY)).unwrap();
    let lifted = cores_used(&mut worker, job, window);
    println!("cpu_max none, 0.2, none: {free:.2}, {lowered:.2}, {lifted:.2} cores");
    assert!((0.1..=0.3).contains(&lowered) && free > 0.6 && lifted > 0.6);
    worker.set_limits(job, &Limits::new().pids_max(3)).unwrap();
    assert_eq!((file_of(&worker, job, "pids.max"), file_of(&worker, job, "cpu.max")), ("3".to_owned(), "max 100000".to_owned()));
    stop(&mut worker, job);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_memory_max_below_what_a_running_job_uses_kills_it() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    for limits in [Limits::new(), Limits::new().memory_max(200 << 20)] {
        let job = worker.start(holder(40).limits(limits.clone())).unwrap();
        // Without a limit nothing is known of its memory yet.
        worker.set_limits(job, &Limits::new().memory_max(100 << 20)).unwrap();
        turn_while_waiting(&mut worker, "it has a lot", |worker| {
            // What was charged before the controller was enabled is not counted.
            worker.usage(job).unwrap().memory.unwrap().current_bytes > 30 << 20
        });
        assert!(!worker.query(job).unwrap().is_finished());
        worker.set_limits(job, &Limits::new().memory_max(10 << 20)).unwrap();
        let events = turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
        let status = worker.query(job).unwrap();
        println!("memory_max 10 MiB while it runs: {:?}, {:?}", status.exit, status.cgroup_usage.as_ref().unwrap().memory);
        assert!(status.oom_killed && status.signal() == Some(Signal::KILL), "{status:?}");
        told(&events, |event| matches!(event, Event::OutOfMemory { .. }));
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn limits_of_a_job_that_is_over_or_that_make_no_sense_are_refused() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let job = worker.start(idle().limits(Limits::new().pids_max(7))).unwrap();
    for nonsense in [Limits::new().cpu_max(0.0), Limits::new().pids_max(0), Limits::new().cpuset_cpus("x"), Limits::new().io_weight(0)] {
        let error = worker.set_limits(job, &nonsense).unwrap_err();
        assert!(matches!(error, JobError::InvalidLimits { .. }), "{error}");
    }
    let error = worker.set_limits(job, &Limits::new().pids_max(9).cpuset_cpus("999")).unwrap_err();
    println!("{error}");
    assert!(matches!(&error, JobError::Limit { path, .. } if path.ends_with("cpuset.cpus")), "{error}");
    // What comes before it in the kernel's list holds.
    assert_eq!(file_of(&worker, job, "pids.max"), "9");
    assert!(!stop(&mut worker, job).oom_killed);
    let error = worker.set_limits(job, &Limits::new().pids_max(5)).unwrap_err();
    assert!(matches!(error, JobError::Ended { .. }), "{error}");
    worker.forget(job).unwrap();
    let error = worker.set_limits(job, &Limits::new().pids_max(5)).unwrap_err();
    assert!(matches!(error, JobError::NotFound { .. }), "{error}");
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn usage_grows_while_a_job_runs_and_agrees_with_what_its_status_says_in_the_end() {
    let host = Host::new();
    let mut worker = host.builder().accounting(true).build().unwrap();
    // 1 MiB, in sixteen pieces.
    let script = format!("dd if=/dev/zero of={DISK} oflag=direct bs=64k count=16 2>/dev/null; {BUSY}");
    let job = worker.start(Command::shell(script)).unwrap();
    turn_while_waiting(&mut worker, "it has written", |worker| io_of(&worker.usage(job).unwrap()).writes >= 16);
    let first = worker.usage(job).unwrap();
    turn_while_waiting(&mut worker, "it uses CPU time", |worker| {
        worker.usage(job).unwrap().cpu.total >= first.cpu.total + Duration::from_millis(200)
    });
    let second = worker.usage(job).unwrap();
    let last = stop(&mut worker, job).cgroup_usage.unwrap();
    println!("{first:?}\n{second:?}\n{last:?}");
    for usage in [&first, &second, &last] {
        let io = io_of(usage);
        assert_eq!((io.write_bytes, io.writes, io.read_bytes, io.reads), (1 << 20, 16, 0, 0));
    }
    assert!(first.cpu.total < second.cpu.total && second.cpu.total <= last.cpu.total && last.cpu.throttled.is_some());
    assert!(last.cpu.total < second.cpu.total + Duration::from_secs(2));
    let memory = [&first, &second, &last].map(|usage| usage.memory.unwrap());
    assert!(memory[1].current_bytes > 0 && memory[0].peak_bytes <= memory[1].peak_bytes && memory[1].peak_bytes <= memory[2].peak_bytes);
    assert!(memory.iter().all(|memory| memory.peak_bytes.is_some_and(|peak| peak > 0)));
    let pids = [&second, &last].map(|usage| usage.pids.unwrap());
    assert_eq!(pids.map(|pids| (pids.current, pids.max_events)), [(1, 0), (0, 0)]);
    // The shell and dd, where the kernel tells.
    assert!(pids.iter().all(|pids| pids.peak.is_none_or(|peak| peak == 2)), "{pids:?}");
    assert_eq!(worker.usage(job).unwrap(), last);
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_job_without_limits_is_accounted_for_only_where_that_is_asked_for() {
    for accounting in [false, true] {
        let host = Host::new();
        let mut worker = host.builder().accounting(accounting).build().unwrap();
        let (status, _) = run(&mut worker, Command::new("/bin/true"));
        println!("accounting({accounting}): {:?}", status.cgroup_usage);
        assert_eq!(status.cgroup_usage.is_some(), accounting);
        let is_whole = |usage: CgroupUsage| usage.memory.is_some() && usage.io.is_some() && usage.pids.is_some();
        assert!(status.cgroup_usage.is_none_or(is_whole));
    }
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn a_detached_job_is_a_group_to_the_oom_killer_and_one_with_little_cpu_time_stays_off_the_hosts_memory() {
    let host = Host::new();
    let mut worker = worker_of(&host);
    let (job, began) = (worker.start(idle().limits(Limits::new().memory_max(64 << 20))).unwrap(), Instant::now());
    turn_while_waiting(&mut worker, "memory.oom.group is set", |worker| file_of(worker, job, "memory.oom.group") == "1");
    let status = worker.query(job).unwrap();
    println!("memory.oom.group is 1 after {:.1?}, {} ({})", began.elapsed(), status.rung, status.rung_reason);
    assert_eq!((status.rung, status.rung_reason), (Rung::Detached, RungReason::Best));
    stop(&mut worker, job);
    for (cores, expected) in [(0.05, (Rung::ForkLike, RungReason::SmallCpuMax)), (0.1, (Rung::Detached, RungReason::Best))] {
        let (status, _) = run(&mut worker, Command::new("/bin/true").limits(Limits::new().cpu_max(cores)));
        assert_eq!((status.success(), (status.rung, status.rung_reason)), (true, expected), "{cores}");
    }
}

#[test]
fn a_job_without_a_cgroup_has_no_limits_and_no_usage() {
    let host = Host::new();
    let mut worker = host.builder().cgroup_base(CgroupBase::Off).build().unwrap();
    let job = worker.start(idle()).unwrap();
    let error = worker.set_limits(job, &Limits::new().pids_max(5)).unwrap_err();
    assert!(matches!(error, JobError::NoCgroup { .. }), "{error}");
    let error = worker.set_limits(job, &Limits::new().pids_max(0)).unwrap_err();
    assert!(matches!(error, JobError::InvalidLimits { .. }), "{error}");
    let error = worker.usage(job).unwrap_err();
    assert!(matches!(error, JobError::NoCgroup { .. }), "{error}");
    assert_eq!(stop(&mut worker, job).cgroup_usage, None);
    let error = worker.start(idle().limits(Limits::new().pids_max(5))).unwrap_err();
    let failure = error.failure().unwrap();
    println!("{error}");
    assert!(failure.step() == Step::Limit && failure.advice().is_some(), "{failure:?}");
}

#[test]
fn a_limit_whose_controller_is_not_there_is_refused_with_its_file_its_controller_and_advice() {
    let host = Host::new();
    if host.has_no_cgroups() {
        return;
    }
    let mount = common::cgroup2_mount().unwrap();
    let controllers = fs::read_to_string(mount.join("cgroup.controllers")).unwrap();
    let mut worker = worker_of(&host);
    let cases: [(&str, Limits); 9] = [
        ("cpu.max", Limits::new().cpu_max(1.0)),
        ("cpu.weight", Limits::new().cpu_weight(10)),
        ("cpuset.cpus", Limits::new().cpuset_cpus("0")),
        ("cpuset.mems", Limits::new().cpuset_mems("0")),
        ("memory.max", Limits::new().memory_max(1 << 30)),
        ("memory.high", Limits::new().memory_high(1 << 30)),
        ("memory.swap.max", Limits::new().memory_swap_max(1 << 30)),
        ("memory.oom.group", Limits::new().memory_oom_group(true)),
        ("pids.max", Limits::new().pids_max(100)),
    ];
    for (file, limits) in cases {
        let controller = file.split('.').next().unwrap();
        if controllers.split_whitespace().any(|has| has == controller) {
            println!("{file} can be had here");
            continue;
        }
        let error = worker.start(Command::new("/bin/true").limits(limits)).unwrap_err();
        println!("{error}");
        let failure = error.failure().unwrap();
        assert_eq!(failure.step(), Step::Limit, "{failure}");
        assert!(failure.path().map(Path::to_owned).unwrap_or_default().ends_with(PathBuf::from(file)), "{failure}");
        assert!(failure.advice().is_some_and(|advice| advice.contains(&format!("controller {controller}"))), "{failure}");
        assert_eq!((host.cgroups(), host.logs()), (Vec::<String>::new(), Vec::<String>::new()), "{file}");
    }
}
