//! Promise: what a job may use is what it can use. Each limit is shown by its effect, on a kernel whose cgroup2 has every controller: `.ci/machine`.

mod common;

use common::Host;
use iron_exec::{Command, Event, Limits, Signal};

/// Hands every controller down to the host's base.
fn builder(host: &Host) -> iron_exec::Builder {
    host.builder()
}

#[test]
#[ignore = "needs the machine: .ci/machine"]
fn an_allocation_past_memory_max_is_killed_and_the_status_says_so() {
    let host = Host::new();
    let mut worker = builder(&host).build().unwrap();
    let greedy = Command::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=60M", "count=1"]);
    let job = worker.start(greedy.limits(Limits::new().memory_max(20 << 20))).unwrap();
    let mut events = Vec::new();
    let status = {
        let seen = common::turn_until(&mut worker, |worker, _| worker.query(job).unwrap().is_finished());
        events.extend(seen);
        worker.query(job).unwrap()
    };
    println!("{status:#?} {events:?}");
    assert!(status.oom_killed && status.signal() == Some(Signal::KILL));
    let memory = status.cgroup_usage.unwrap().memory.unwrap();
    assert!(memory.events.oom_kill >= 1);
    let told = |wanted: fn(&Event) -> bool| events.iter().position(wanted).unwrap();
    assert!(told(|event| matches!(event, Event::OutOfMemory { .. })) < told(|event| matches!(event, Event::Exited { .. })));
}
