//! Runs the bodies of the fuzz targets without libFuzzer: on every file of the corpus, and then for a number of seconds on pseudo-random
//! inputs, the same in each run. Ends with a panic, and so with a code other than zero, when a body finds a fault.
//!
//! `cargo run --release --manifest-path fuzz/Cargo.toml --no-default-features --bin smoke -- SECONDS [TARGET]`

use std::error::Error;
use std::time::{Duration, Instant};
use std::{env, panic};

use iron_exec_fuzz::{TARGETS, Target, corpus};

const INPUT_BYTES_MAX: usize = 2048;

/// Bytes that mean something in lines, records and kernel files.
const WORDS: [&[u8]; 30] = [
    b"\n",
    b" ",
    b"2026-11-23T03:26:58.123456789Z stdout F ",
    b"2026-11-23T03:26:58.123456788Z stderr P ",
    b"1969-12-31T23:59:59.5-01:00 stdout F:x ",
    b"stdout",
    b"stderr",
    b" F ",
    b" P:",
    b"T23:59:59",
    b"+23:59",
    b".000000000",
    b"\0\0\0\0\0\0\0\0",
    b"\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\n1 2 0:3 / /a\\040b ro - cgroup2 none rw\n",
    b"\n0::/",
    b"\npopulated ",
    b"\nfrozen 1\n",
    b"\nusage_usec ",
    b"\nnr_periods ",
    b"\nmax ",
    b"\noom_kill ",
    b"\n8:16 ",
    b" rbytes=",
    b" dios=",
    b"\nmemory\t4\t9\t1\n",
    b"1 (a) Z 1 1 1 0 -1 68 ",
    b"18446744073709551615",
    b"4294967296",
    b"\\134",
];

fn main() -> Result<(), Box<dyn Error>> {
    let seconds = env::args().nth(1).ok_or("usage: smoke SECONDS [TARGET]")?.parse()?;
    let only = env::args().nth(2);
    let targets: Vec<Target> = TARGETS.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)).collect();
    let time_each = Duration::try_from_secs_f64(seconds)? / targets.len().max(1) as u32;
    for (name, body) in targets {
        let mut runs = 0_u64;
        let mut run = |data: &[u8]| {
            let outcome = panic::catch_unwind(|| body(data));
            if let Err(payload) = outcome {
                eprintln!("{name} found a fault with the input b\"{}\"", data.escape_ascii());
                panic::resume_unwind(payload);
            }
            runs += 1;
        };
        let mut seeds = Vec::new();
        for (_, data) in corpus(name)? {
            run(&data);
            seeds.push(data);
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let start = Instant::now();
        while start.elapsed() < time_each {
            run(&random.input(&seeds));
        }
        println!("{name}: {runs} runs");
    }
    Ok(())
}

/// Marsaglia's xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    /// 0 to `end` - 1.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// A file of the corpus, changed here and there, or something new.
    fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let pick = self.below(seeds.len() + 1);
        let mut data = seeds.get(pick).cloned().unwrap_or_else(|| {
            let len = self.below(INPUT_BYTES_MAX);
            (0..len).map(|_| self.byte()).collect()
        });
        for _ in 0..self.below(8) {
            let at = self.below(data.len() + 1);
            match self.below(4) {
                0 => data.truncate(at.max(1)),
                1 if at < data.len() => data[at] = self.byte(),
                2 if at < data.len() => data[at] ^= 1 << self.below(8),
                _ => {
                    let word = WORDS[self.below(WORDS.len())];
                    data.splice(at..at, word.iter().copied());
                }
            }
        }
        data
    }
}
