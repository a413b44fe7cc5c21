//! How fast a pipe is written to, and how long it is worth leaving its bytes to gather there.

use std::time::{Duration, Instant};

/// What is to have gathered in a pipe when it is read: half of what it holds, so that its writer never waits for us.
const GATHERED_BYTES: u64 = 32 << 10;

/// A wait that is shorter is not worth its system calls.
const GATHER_TIME_MIN: Duration = Duration::from_micros(100);

/// How many reads have to have followed one another closely.
const READS_MIN: u32 = 4;

/// The time that is looked back on, in units of the longest wait.
const LOOK_BACK: u32 = 16;

/// The reads of one pipe that followed one another closely.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pace {
    run: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    since: Instant,
    /// The time from there to the last read, in microseconds. (There are two of these in every job: they are small.)
    last_micros: u32,
    bytes: u32,
    reads: u32,
}

impl Pace {
    /// So many bytes were read.
    pub(crate) fn note_read(&mut self, bytes: usize, now: Instant) {
        let run = self.run.get_or_insert(Run { since: now, last_micros: 0, bytes: 0, reads: 0 });
        run.bytes = run.bytes.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        run.reads = run.reads.saturating_add(1);
        run.last_micros = micros(now.saturating_duration_since(run.since));
    }

    /// The pipe has something again. How long to leave it there, at most `gather_time`; `None`: read it now.
    pub(crate) fn wait(&mut self, now: Instant, gather_time: Duration) -> Option<Duration> {
        let run = self.run.as_mut()?;
        let elapsed = now.saturating_duration_since(run.since);
        if elapsed.saturating_sub(Duration::from_micros(run.last_micros.into())) >= gather_time {
            // It was silent for so long: whoever reads it waits for the next line.
            self.run = None;
            return None;
        }
        if run.reads < READS_MIN || elapsed < gather_time {
            return None;
        }
        let nanos = u128::from(GATHERED_BYTES) * elapsed.as_nanos() / u128::from(run.bytes.max(1));
        let wait = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(gather_time);
        if elapsed > gather_time * LOOK_BACK {
            // Half of it is forgotten.
            let half = elapsed / 2;
            (run.since, run.bytes) = (run.since + half, run.bytes / 2);
            run.last_micros = run.last_micros.saturating_sub(micros(half));
        }
        (wait >= GATHER_TIME_MIN).then_some(wait)
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Writes `bytes` every `every` for `time`, reads as the pace says; returns the longest that bytes were left lying, and the mean of a read once the pace is known.
    fn run(bytes: u64, every: Duration, time: Duration) -> (Duration, u64) {
        let start = Instant::now();
        let (mut pace, mut now, mut waiting, mut read_at) = (Pace::default(), start, 0, None);
        let (mut first, mut longest, mut reads, mut total) = (start, Duration::ZERO, 0, 0);
        while now < start + time {
            waiting += bytes;
            if waiting == bytes {
                first = now;
                read_at = Some(now + pace.wait(now, MS).unwrap_or_default());
            }
            if read_at.is_some_and(|at| at <= now) {
                longest = longest.max(now - first);
                pace.note_read(waiting as usize, now);
                if now > start + time / 10 {
                    (reads, total) = (reads + 1, total + waiting);
                }
                (waiting, read_at) = (0, None);
            }
            now += every;
        }
        (longest, total / reads)
    }

    #[test]
    fn bytes_that_come_one_by_one_are_read_by_the_millisecond() {
        let (longest, mean) = run(1, Duration::from_micros(1), Duration::from_millis(100));
        assert!(longest <= MS + Duration::from_micros(1), "{longest:?}");
        assert!(mean >= 500, "{mean}");
    }

    #[test]
    fn a_pipe_that_fills_fast_is_read_before_it_is_full() {
        let (longest, mean) = run(100, Duration::from_nanos(500), Duration::from_millis(100));
        assert!(longest < MS / 2 && (16_000..50_000).contains(&mean), "{longest:?}, {mean}");
    }

    #[test]
    fn blocks_that_come_at_full_speed_are_not_kept_waiting() {
        let (longest, mean) = run(4096, Duration::from_micros(4), Duration::from_millis(100));
        assert_eq!((longest, mean), (Duration::ZERO, 4096));
    }

    #[test]
    fn a_line_now_and_then_is_read_at_once() {
        let (longest, mean) = run(80, Duration::from_millis(2), Duration::from_millis(500));
        assert_eq!((longest, mean), (Duration::ZERO, 80));
    }
}
