//! Signals by number and name.

use std::fmt;
use std::str::FromStr;

/// A signal number, 1 to 64; see signal(7). The named constants hold on every architecture that the crate supports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

impl Signal {
    /// Hang-up, often "read your configuration again".
    pub const HUP: Self = Self(1);
    /// Interrupt from the keyboard.
    pub const INT: Self = Self(2);
    /// Quit from the keyboard, with a core dump.
    pub const QUIT: Self = Self(3);
    /// Kill; cannot be caught.
    pub const KILL: Self = Self(9);
    /// The first of two for the program's own use.
    pub const USR1: Self = Self(10);
    /// The second of two for the program's own use.
    pub const USR2: Self = Self(12);
    /// Wrote to a pipe that nobody reads.
    pub const PIPE: Self = Self(13);
    /// Please end.
    pub const TERM: Self = Self(15);
    /// Continue when stopped.
    pub const CONT: Self = Self(18);
    /// Stop; cannot be caught.
    pub const STOP: Self = Self(19);

    /// A signal by its number; `None` outside 1 to 64.
    pub const fn new(number: i32) -> Option<Self> {
        if number >= 1 && number <= 64 { Some(Self(number)) } else { None }
    }

    /// The signal's number.
    pub const fn number(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match usize::try_from(self.0 - 1).ok().and_then(|index| NAMES.get(index)) {
            Some(name) => f.write_str(name),
            None => write!(f, "signal {}", self.0),
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signal({self})")
    }
}

/// The text is neither a signal's name nor a number from 1 to 64.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}: give a name such as TERM or SIGINT, or a number from 1 to 64")]
pub struct UnknownSignal(String);

impl FromStr for Signal {
    type Err = UnknownSignal;

    /// Takes `TERM`, `SIGTERM`, in either case, or `15`.
    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        let unknown = || UnknownSignal(text.to_owned());
        if let Ok(number) = text.parse() {
            return Signal::new(number).ok_or_else(unknown);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        NAMES.iter().position(|known| known.strip_prefix("SIG") == Some(name)).map(|index| Signal(index as i32 + 1)).ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_agree() {
        for (text, number) in [("TERM", 15), ("SIGKILL", 9), ("sigusr1", 10), ("64", 64), ("1", 1)] {
            assert_eq!(text.parse::<Signal>().unwrap().number(), number);
        }
        assert_eq!(Signal::TERM.to_string(), "SIGTERM");
        assert_eq!(Signal::new(31).unwrap().to_string(), "SIGSYS");
        assert_eq!(Signal::new(40).unwrap().to_string(), "signal 40");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "0", "65", "-1", "TERMINATE", "SIG"] {
            assert!(text.parse::<Signal>().is_err(), "{text:?}");
        }
    }
}
