//! How far a batch is: a bar on a terminal, a line of text now and then elsewhere. No thread ticks: it moves when a job ends.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// The time between two lines of text.
const TEXT_EVERY: Duration = Duration::from_secs(1);

/// How a batch stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) running: usize,
    /// How many jobs there are, as far as the input was read.
    pub(crate) known: u64,
    /// Whether that is all of it.
    pub(crate) is_all: bool,
}

#[derive(Debug)]
pub(crate) enum Progress {
    /// On the terminal that stderr is.
    Bar { bar: ProgressBar, shown: Standing },
    /// A line now and then.
    Text { last: Instant },
    /// Nothing is said.
    None,
}

impl Progress {
    /// A bar if stderr is a terminal; else text, if it was asked for.
    pub(crate) fn new(is_terminal: bool, is_asked: bool, is_unwanted: bool) -> Self {
        if is_unwanted {
            Progress::None
        } else if is_terminal {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{bar:40} {msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
            bar.set_style(style);
            Progress::Bar { bar, shown: Standing::default() }
        } else if is_asked {
            Progress::Text { last: Instant::now() }
        } else {
            Progress::None
        }
    }

    /// Takes note of how the batch stands; returns the text that is to be said now.
    pub(crate) fn update(&mut self, standing: &Standing) -> Option<String> {
        let Standing { ended, failed, running, known, is_all } = *standing;
        let more = if is_all { "" } else { "+" };
        match self {
            Progress::Bar { bar, shown } => {
                if shown != standing {
                    *shown = *standing;
                    bar.set_length(known);
                    bar.set_message(format!("{ended}/{known}{more}, {running} running, {failed} failed"));
                    bar.set_position(ended);
                }
                None
            }
            Progress::Text { last } => {
                if last.elapsed() < TEXT_EVERY {
                    return None;
                }
                *last = Instant::now();
                Some(format!("{ended} of {known}{more} done, {running} running, {failed} failed"))
            }
            Progress::None => None,
        }
    }

    /// Whether there is a bar that what is written to the terminal would tear.
    pub(crate) fn is_bar(&self) -> bool {
        matches!(self, Progress::Bar { .. })
    }

    /// Writes with the bar out of the way.
    pub(crate) fn step_aside<R>(&self, write: impl FnOnce() -> R) -> R {
        match self {
            Progress::Bar { bar, .. } => bar.suspend(write),
            Progress::Text { .. } | Progress::None => write(),
        }
    }

    /// Takes the bar away.
    pub(crate) fn end(&self) {
        if let Progress::Bar { bar, .. } = self {
            bar.finish_and_clear();
        }
    }
}
