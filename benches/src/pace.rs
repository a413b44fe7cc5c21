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

/// The order of a round: it begins with another contender each time, and goes back and forth, so that nobody always comes after the same one.
pub fn turns(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |turn| (round + if round.is_multiple_of(2) { turn } else { count - 1 - turn }) % count)
}

#[cfg(test)]
mod tests {
    use super::turns;

    #[test]
    fn everybody_has_a_turn_in_each_round_and_not_always_after_the_same_one() {
        for count in 1..13 {
            for round in 0..6 {
                let mut order: Vec<usize> = turns(count, round).collect();
                order.sort_unstable();
                assert!(order.into_iter().eq(0..count));
            }
        }
        let after = |round| turns(5, round).skip_while(|turn| *turn != 2).nth(1);
        assert_ne!(after(0), after(1));
    }
}
