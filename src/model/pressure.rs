//! Pressure: how much of the time processes wait for a resource that there is not enough of.

use std::fmt;
use std::time::Duration;

/// A resource whose pressure the kernel measures (PSI, Linux 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PressureResource {
    /// CPU time: `cpu.pressure`.
    Cpu,
    /// Memory: `memory.pressure`.
    Memory,
    /// I/O: `io.pressure`.
    Io,
}

impl PressureResource {
    /// All of them.
    pub const ALL: [PressureResource; 3] = [PressureResource::Cpu, PressureResource::Memory, PressureResource::Io];

    /// The resource's name: "cpu", "memory" or "io".
    pub fn as_str(self) -> &'static str {
        match self {
            PressureResource::Cpu => "cpu",
            PressureResource::Memory => "memory",
            PressureResource::Io => "io",
        }
    }

    pub(crate) fn file(self) -> &'static str {
        match self {
            PressureResource::Cpu => "cpu.pressure",
            PressureResource::Memory => "memory.pressure",
            PressureResource::Io => "io.pressure",
        }
    }
}

impl fmt::Display for PressureResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// When a job's pressure is worth an event: its processes were waiting for `threshold` within a `window`. See
/// [`Worker::watch_pressure`](crate::Worker::watch_pressure).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    full: bool,
    threshold: Duration,
    window: Duration,
}

impl Pressure {
    /// At least one process waited, for `threshold` in all, within `window`. A window is from 500 ms to 10 s (for a host without CAP_SYS_RESOURCE a multiple of
    /// 2 s, Linux 6.5), a threshold not longer than the window; both in whole microseconds.
    pub fn some(threshold: Duration, window: Duration) -> Self {
        Self { full: false, threshold, window }
    }

    /// As [`some`](Self::some), but all processes that were not idle waited at the same time. (Of CPU time that is so only where `cpu.max` holds them back.)
    pub fn full(threshold: Duration, window: Duration) -> Self {
        Self { full: true, threshold, window }
    }

    /// Whether the kernel may take it.
    pub(crate) fn is_valid(&self) -> bool {
        (Duration::from_millis(500)..=Duration::from_secs(10)).contains(&self.window)
            && self.threshold >= Duration::from_micros(1)
            && self.threshold <= self.window
    }

    /// What is written to the file.
    pub(crate) fn trigger(&self) -> String {
        let kind = if self.full { "full" } else { "some" };
        format!("{kind} {} {}", self.threshold.as_micros(), self.window.as_micros())
    }
}
