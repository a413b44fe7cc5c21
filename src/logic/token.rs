//! What stands behind an epoll token: which job, which of its descriptors, and which life of its place in the table.

use crate::model::pressure::PressureResource;

/// A place in the job table and the life it was in: a later job at the same place has another generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Generations count modulo this: 2^28 starts at one place before a number comes again.
pub(crate) const GENERATIONS: u32 = 1 << 28;

/// Which of a job's descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The pipe of stdout, or of both outputs.
    Stdout,
    /// The pipe of stderr.
    Stderr,
    /// The pidfd of the main process.
    Pidfd,
    /// The link on which the child reports before its exec.
    Report,
    /// A trigger of pressure on this resource.
    Pressure(PressureResource),
}

/// What an epoll token stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A descriptor of a job.
    Job(Key, Source),
    /// The inotify descriptor.
    Inotify,
    /// The timerfd.
    Timer,
    /// The waker: left-over work.
    Waker,
}

impl Target {
    /// The token: index in bits 32-63, generation in 4-31, kind in 0-3.
    pub(crate) fn pack(self) -> usize {
        let (key, kind) = match self {
            Target::Job(key, Source::Stdout) => (key, 0),
            Target::Job(key, Source::Stderr) => (key, 1),
            Target::Job(key, Source::Pidfd) => (key, 2),
            Target::Job(key, Source::Report) => (key, 3),
            Target::Job(key, Source::Pressure(PressureResource::Cpu)) => (key, 4),
            Target::Job(key, Source::Pressure(PressureResource::Memory)) => (key, 5),
            Target::Job(key, Source::Pressure(PressureResource::Io)) => (key, 6),
            Target::Inotify => (Key { index: 0, generation: 0 }, 13),
            Target::Timer => (Key { index: 0, generation: 0 }, 14),
            Target::Waker => (Key { index: 0, generation: 0 }, 15),
        };
        ((u64::from(key.index) << 32) | (u64::from(key.generation % GENERATIONS) << 4) | kind) as usize
    }

    /// The opposite of [`pack`](Self::pack); `None` for a token that was never packed.
    pub(crate) fn unpack(token: usize) -> Option<Self> {
        let token = token as u64;
        let key = Key { index: (token >> 32) as u32, generation: ((token >> 4) as u32) % GENERATIONS };
        Some(match token & 15 {
            0 => Target::Job(key, Source::Stdout),
            1 => Target::Job(key, Source::Stderr),
            2 => Target::Job(key, Source::Pidfd),
            3 => Target::Job(key, Source::Report),
            4 => Target::Job(key, Source::Pressure(PressureResource::Cpu)),
            5 => Target::Job(key, Source::Pressure(PressureResource::Memory)),
            6 => Target::Job(key, Source::Pressure(PressureResource::Io)),
            13 => Target::Inotify,
            14 => Target::Timer,
            15 => Target::Waker,
            _ => return None,
        })
    }
}

const _: () = assert!(usize::BITS == 64, "a token needs 64 bits");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_out_again() {
        let keys = [(0, 0), (1, 1), (u32::MAX, GENERATIONS - 1), (7, 12345)];
        for (index, generation) in keys {
            let pressures = PressureResource::ALL.map(Source::Pressure);
            for source in [Source::Stdout, Source::Stderr, Source::Pidfd, Source::Report].into_iter().chain(pressures) {
                let target = Target::Job(Key { index, generation }, source);
                assert_eq!(Target::unpack(target.pack()), Some(target));
            }
        }
        for target in [Target::Inotify, Target::Timer, Target::Waker] {
            assert_eq!(Target::unpack(target.pack()), Some(target));
        }
    }
}
