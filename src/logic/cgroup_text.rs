//! Reads the text of a cgroup's files (those of version 2). What is not understood is left out, never guessed.

use std::time::Duration;

use super::kernel_text::{decimal, device, lines, split_once};
use crate::model::usage::{CpuUsage, IoUsage, MemoryEvents, Throttled};

/// Whether a process lives in a cgroup or below it, from the text of its `cgroup.events`.
pub(crate) fn populated(cgroup_events: &[u8]) -> Option<bool> {
    match lines(cgroup_events).find_map(|line| line.strip_prefix(b"populated "))? {
        b"0" => Some(false),
        b"1" => Some(true),
        _ => None,
    }
}

/// Whether a cgroup and all below it is frozen, from the text of its `cgroup.events`.
pub(crate) fn frozen(cgroup_events: &[u8]) -> bool {
    lines(cgroup_events).any(|line| line == b"frozen 1")
}

/// The words of a file such as `cgroup.controllers`. Words that are not UTF-8 are left out.
pub(crate) fn words(content: &[u8]) -> Vec<String> {
    let words = content.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    words.filter_map(|word| str::from_utf8(word).ok()).map(str::to_owned).collect()
}

/// What a cgroup has used of the CPUs, from the text of its `cpu.stat`. Without the controller the lines on throttling are not there.
pub(crate) fn cpu_stat(cpu_stat: &[u8]) -> CpuUsage {
    let mut usage = CpuUsage::default();
    let mut throttled = Throttled::default();
    let mut has_periods = false;
    for (key, value) in numbers(cpu_stat) {
        match key {
            b"usage_usec" => usage.total = Duration::from_micros(value),
            b"user_usec" => usage.user = Duration::from_micros(value),
            b"system_usec" => usage.system = Duration::from_micros(value),
            b"nr_periods" => (throttled.periods, has_periods) = (value, true),
            b"nr_throttled" => throttled.throttled_periods = value,
            b"throttled_usec" => throttled.time = Duration::from_micros(value),
            _ => {}
        }
    }
    usage.throttled = has_periods.then_some(throttled);
    usage
}

/// What happened to a cgroup for want of memory, from the text of its `memory.events`.
pub(crate) fn memory_events(memory_events: &[u8]) -> MemoryEvents {
    let mut events = MemoryEvents::default();
    for (key, value) in numbers(memory_events) {
        match key {
            b"low" => events.low = value,
            b"high" => events.high = value,
            b"max" => events.max = value,
            b"oom" => events.oom = value,
            b"oom_kill" => events.oom_kill = value,
            b"oom_group_kill" => events.oom_group_kill = value,
            _ => {}
        }
    }
    events
}

/// How often a cgroup met its `pids.max`, from the text of its `pids.events`.
pub(crate) fn max_events(pids_events: &[u8]) -> u64 {
    numbers(pids_events).filter(|&(key, _)| key == b"max").last().map_or(0, |(_, value)| value)
}

/// What a cgroup has done on each device, from the text of its `io.stat`, in its order.
pub(crate) fn io_stat(io_stat: &[u8]) -> Vec<IoUsage> {
    lines(io_stat).filter_map(io_usage).collect()
}

/// `8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, and other keys of controllers that have some. A device without a number of ours is left
/// out. Linux 5.15, for one, writes no line feed behind such a device: of several names the keys belong to the last. A name may be `(unknown)`.
fn io_usage(line: &[u8]) -> Option<IoUsage> {
    let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty()).peekable();
    let mut name = None;
    while let Some(field) = fields.next_if(|field| !field.contains(&b'=')) {
        name = Some(field);
    }
    let (major, minor) = device(name?)?;
    let mut usage = IoUsage { major, minor, ..IoUsage::default() };
    let mut is_used = false;
    for (key, value) in fields.filter_map(|field| split_once(field, b'=')) {
        let number = match key {
            b"rbytes" => &mut usage.read_bytes,
            b"wbytes" => &mut usage.write_bytes,
            b"rios" => &mut usage.reads,
            b"wios" => &mut usage.writes,
            b"dbytes" => &mut usage.discard_bytes,
            b"dios" => &mut usage.discards,
            _ => continue,
        };
        if let Some(value) = decimal(value) {
            *number = value;
            is_used = true;
        }
    }
    is_used.then_some(usage)
}

/// The number in a file of one, such as `memory.current`; `max` is none.
pub(crate) fn number(content: &[u8]) -> Option<u64> {
    decimal(content.strip_suffix(b"\n")?)
}

/// The lines `key number` of a file.
fn numbers(content: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    lines(content).filter_map(|line| {
        let (key, value) = split_once(line, b' ')?;
        Some((key, decimal(value)?))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn io([major, minor]: [u32; 2], [read_bytes, write_bytes, reads, writes, discard_bytes, discards]: [u64; 6]) -> IoUsage {
        IoUsage { major, minor, read_bytes, write_bytes, reads, writes, discard_bytes, discards }
    }

    #[test]
    fn populated_is_read_wherever_its_line_stands() {
        assert_eq!(populated(b"populated 1\nfrozen 0\n"), Some(true));
        assert_eq!(populated(b"frozen 1\npopulated 0\n"), Some(false));
        assert_eq!(populated(b"frozen 1\n"), None);
        assert_eq!(populated(b"populated \n"), None);
        assert_eq!(populated(b"populated 10\n"), None);
        assert_eq!(populated(b""), None);
    }

    #[test]
    fn frozen_is_read_wherever_its_line_stands() {
        assert!(frozen(b"populated 1\nfrozen 1\n"));
        assert!(frozen(b"frozen 1\npopulated 1"));
        for text in ["", "populated 1\nfrozen 0\n", "populated 1\n", "frozen 10\n", "frozen \n", "unfrozen 1\n"] {
            assert!(!frozen(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn words_are_what_stands_between_white_space() {
        assert_eq!(words(b"cpuset cpu io memory pids\n"), ["cpuset", "cpu", "io", "memory", "pids"]);
        assert_eq!(words(b"  cpu\t io \n\n"), ["cpu", "io"]);
        assert_eq!(words(b"cpu \xff io"), ["cpu", "io"]);
        assert!(words(b"\n").is_empty());
        assert!(words(b"").is_empty());
    }

    #[test]
    fn cpu_time_is_read_without_the_controller() {
        let text = b"usage_usec 22712170449\nuser_usec 16729658968\nsystem_usec 5982511481\nnice_usec 4920945779\n\
            core_sched.force_idle_usec 0\n";
        let usage = cpu_stat(text);
        assert_eq!(usage.total, Duration::from_micros(22_712_170_449));
        assert_eq!(usage.user, Duration::from_micros(16_729_658_968));
        assert_eq!(usage.system, Duration::from_micros(5_982_511_481));
        assert_eq!(usage.throttled, None);
    }

    #[test]
    fn with_the_controller_the_file_tells_of_throttling() {
        let text = b"usage_usec 2005121\nuser_usec 1994117\nsystem_usec 11004\nnr_periods 41\nnr_throttled 40\nthrottled_usec 2001877\n\
            nr_bursts 0\nburst_usec 0\n";
        let throttled = Throttled { time: Duration::from_micros(2_001_877), periods: 41, throttled_periods: 40 };
        assert_eq!(cpu_stat(text).throttled, Some(throttled));
        assert_eq!(cpu_stat(b"nr_periods 0\n").throttled, Some(Throttled::default()));
        assert_eq!(cpu_stat(b"nr_throttled 40\nthrottled_usec 2001877\nnr_periods max\n").throttled, None);
    }

    #[test]
    fn a_number_that_is_not_understood_counts_as_absent() {
        let text =
            b"usage_usec 18446744073709551616\nuser_usec +1\nsystem_usec  1\nusage_usec\nuser_usec \nsystem_usec 1 \nsystem_usec\t1\n";
        assert_eq!(cpu_stat(text), CpuUsage::default());
        assert_eq!(cpu_stat(b""), CpuUsage::default());
        assert_eq!(cpu_stat(b"usage_usec 18446744073709551615\n").total, Duration::from_micros(u64::MAX));
    }

    #[test]
    fn memory_events_are_read_by_their_names() {
        let text = b"low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 6\nsock_throttled 7\n";
        assert_eq!(memory_events(text), MemoryEvents { low: 1, high: 2, max: 3, oom: 4, oom_kill: 5, oom_group_kill: 6 });
        let before_5_17 = b"low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n";
        assert_eq!(memory_events(before_5_17), MemoryEvents { max: 12, oom: 1, oom_kill: 1, ..MemoryEvents::default() });
        assert_eq!(memory_events(b"oom_killed 1\nx oom 1\n"), MemoryEvents::default());
    }

    #[test]
    fn the_refused_forks_are_the_number_behind_max() {
        assert_eq!(max_events(b"max 3\n"), 3);
        assert_eq!(max_events(b"forks 7\nmax 3\n"), 3);
        for text in ["", "max\n", "max max\n", "max -1\n", "max.imposed 3\n"] {
            assert_eq!(max_events(text.as_bytes()), 0, "{text:?}");
        }
    }

    #[test]
    fn io_is_told_by_device() {
        let text = b"8:16 rbytes=1459200 wbytes=314773504 rios=192 wios=353 dbytes=5 dios=6\n\
            8:0 rbytes=90430464 wbytes=299008000 rios=8950 wios=1252 dbytes=50331648 dios=3021 cost.vrate=100.00 cost.usage=7\n";
        let first = io([8, 16], [1_459_200, 314_773_504, 192, 353, 5, 6]);
        let second = io([8, 0], [90_430_464, 299_008_000, 8950, 1252, 50_331_648, 3021]);
        assert_eq!(io_stat(text), [first, second]);
    }

    #[test]
    fn a_device_that_was_not_used_is_left_out() {
        assert_eq!(io_stat(b"8:0 \n254:0\n7:0 cost.usage=3\n8:16 rios=1\n"), [io([8, 16], [0, 0, 1, 0, 0, 0])]);
        assert_eq!(io_stat(b"8:0 rbytes=18446744073709551616 wbytes=max\n"), []);
        assert_eq!(io_stat(b"8:0 rbytes=0\n"), [io([8, 0], [0; 6])]);
        assert_eq!(io_stat(b""), []);
    }

    #[test]
    fn a_device_may_have_two_lines() {
        let text = b"8:0 rbytes=1\n8:0 rbytes=2\n";
        assert_eq!(io_stat(text), [io([8, 0], [1, 0, 0, 0, 0, 0]), io([8, 0], [2, 0, 0, 0, 0, 0])]);
    }

    #[test]
    fn a_line_of_several_devices_is_about_the_last_one() {
        let of_linux_5_15 = b"254:1 (unknown) 7:0 8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0\n7:1 ";
        assert_eq!(io_stat(of_linux_5_15), [io([8, 0], [4096, 0, 1, 0, 0, 0])]);
    }

    #[test]
    fn a_line_of_a_broken_device_is_left_out() {
        for device in ["", "8", "8:", ":0", "8:0:0", "-8:0", "8:x", "4294967296:0", "(unknown)", "8:0 (unknown)", "\t8:0"] {
            let line = format!("{device} rbytes=1\n8:1 rbytes=1\n");
            assert_eq!(io_stat(line.as_bytes()), [io([8, 1], [1, 0, 0, 0, 0, 0])], "{line:?}");
        }
    }

    #[test]
    fn a_file_of_one_number_is_digits_and_a_line_feed() {
        assert_eq!(number(b"0\n"), Some(0));
        assert_eq!(number(b"18446744073709551615\n"), Some(u64::MAX));
        for text in ["", "\n", "max\n", "1", "1\n\n", "1 2\n", " 1\n", "+1\n", "-1\n", "1\0\n", "18446744073709551616\n"] {
            assert_eq!(number(text.as_bytes()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in prop::collection::vec(prop_oneof![3 => prop::sample::select(&b" \n0189:=x"[..]), 1 => any::<u8>()], 0..200)) {
            let with_keys = [b"max ", &text[..], b"\nnr_periods ", &text[..], b"\n8:0 rbytes=", &text[..]].concat();
            for text in [text, with_keys] {
                populated(&text);
                frozen(&text);
                words(&text);
                cpu_stat(&text);
                memory_events(&text);
                max_events(&text);
                io_stat(&text);
                number(&text);
            }
        }

        #[test]
        fn any_order_of_lines_tells_the_same(values in any::<[u64; 6]>(), order in Just([0, 1, 2, 3, 4, 5]).prop_shuffle()) {
            let line = |keys: [&str; 6], at: usize| format!("{} {}\n", keys[at], values[at]);
            let text = |keys: [&str; 6], order: [usize; 6]| order.map(|at| line(keys, at)).concat().into_bytes();
            let (cpu_keys, memory_keys) = (
                ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"],
                ["low", "high", "max", "oom", "oom_kill", "oom_group_kill"],
            );
            let in_order = [0, 1, 2, 3, 4, 5];
            prop_assert_eq!(cpu_stat(&text(cpu_keys, order)), cpu_stat(&text(cpu_keys, in_order)));
            prop_assert_eq!(memory_events(&text(memory_keys, order)), memory_events(&text(memory_keys, in_order)));
        }
    }
}
