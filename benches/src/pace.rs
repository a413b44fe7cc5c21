//! How much is measured.

use serde::{Deserialize, Serialize};

/// How much is measured. Each benchmark has its own figures for each.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Pace {
    /// To see that it works: what `cargo test` asks of a benchmark.
    Smoke,
    /// `cargo bench … -- --quick`: a first impression.
    Quick,
    /// `cargo bench`.
    Full,
}

impl Pace {
    /// What the arguments of this process ask for: cargo itself gives `--bench`, and `cargo test` does not.
    pub fn from_args() -> Self {
        let has = |flag: &str| std::env::args().any(|arg| arg == flag);
        match () {
            () if has("--quick") => Self::Quick,
            () if has("--bench") => Self::Full,
            () => Self::Smoke,
        }
    }

    /// The one of three that is meant.
    pub fn of<T>(self, smoke: T, quick: T, full: T) -> T {
        match self {
            Self::Smoke => smoke,
            Self::Quick => quick,
            Self::Full => full,
        }
    }
}
