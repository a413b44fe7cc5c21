//! How much may be written at what time: a bucket of bytes that fills by the second.

use std::time::{Duration, Instant};

/// The part of a second for which it has to have filled before somebody who waits goes on: not for every line.
const WAIT_PART: u64 = 10;

/// Holds as much as comes in a second; what is taken beyond that is owed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: u64,
    /// What it held at `at`; below 0: what is owed.
    level: i64,
    at: Instant,
}

impl Bucket {
    /// A full one.
    pub(crate) fn new(bytes_per_second: u64, now: Instant) -> Self {
        let rate = bytes_per_second.clamp(1, i64::MAX as u64);
        Self { rate, level: rate as i64, at: now }
    }

    /// Whether there is something in it.
    pub(crate) fn has_some(&mut self, now: Instant) -> bool {
        self.fill(now);
        self.level > 0
    }

    /// Takes `bytes` out. How long to wait before taking more; `None` if there is some left.
    pub(crate) fn take(&mut self, bytes: u64, now: Instant) -> Option<Duration> {
        self.fill(now);
        self.level = self.level.saturating_sub_unsigned(bytes);
        if self.level > 0 {
            return None;
        }
        let wanted = self.level.unsigned_abs().saturating_add(self.rate / WAIT_PART).max(1);
        let nanos = u128::from(wanted) * 1_000_000_000 / u128::from(self.rate);
        Some(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        let bytes = nanos.saturating_mul(u128::from(self.rate)) / 1_000_000_000;
        // Less than a byte's time is left to add up.
        if bytes > 0 {
            let level = i128::from(self.level).saturating_add(i128::try_from(bytes).unwrap_or(i128::MAX));
            self.level = i64::try_from(level).unwrap_or(i64::MAX).min(self.rate as i64);
            self.at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_of_silence_is_worth_a_second_of_output() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        assert_eq!(bucket.take(999, start), None);
        assert_eq!(bucket.take(1, start), Some(Duration::from_millis(100)));
        assert!(!bucket.has_some(start));
        assert!(bucket.has_some(start + Duration::from_millis(1)));
        assert!(bucket.has_some(start + Duration::from_hours(1)));
        assert_eq!(
            bucket.take(1000, start + Duration::from_hours(1)),
            Some(Duration::from_millis(100)),
            "no more than a second's worth is kept"
        );
    }

    #[test]
    fn what_was_taken_too_much_is_made_up_for() {
        let start = Instant::now();
        let mut bucket = Bucket::new(1000, start);
        let wait = bucket.take(3000, start).unwrap();
        assert_eq!(wait, Duration::from_millis(2100));
        assert!(!bucket.has_some(start + Duration::from_secs(2)));
        assert!(bucket.has_some(start + wait));
    }

    #[test]
    fn over_a_long_time_the_rate_is_kept_whatever_the_pieces() {
        for rate in [1024_u64, 1_000_003, 1 << 40] {
            let start = Instant::now();
            let (mut bucket, mut now, mut taken) = (Bucket::new(rate, start), start, 0_u64);
            let end = start + Duration::from_secs(20);
            while now < end {
                let piece = rate / 7 + 13;
                let wait = bucket.take(piece, now);
                taken += piece;
                now += wait.unwrap_or(Duration::from_micros(10));
            }
            let most = rate * 22;
            assert!(taken <= most && taken >= rate * 18, "{taken} bytes at {rate}");
        }
    }
}
