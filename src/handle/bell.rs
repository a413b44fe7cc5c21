//! The word that there is something in a queue: said once, however much there is. `tests/handle_model.rs` goes through every order in which its steps can be taken.

use super::atomic::{AtomicBool, Ordering};

/// Rung by those who put something into a queue, heard by the one who takes it out.
#[derive(Debug)]
pub(crate) struct Bell {
    has_rung: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Self { has_rung: AtomicBool::new(false) }
    }

    /// To be called once something stands in the queue. Whether the other one has to be woken: not if it was, and has not heard it yet.
    pub(crate) fn ring(&self) -> bool {
        !self.has_rung.swap(true, Ordering::AcqRel)
    }

    /// Whether the queue is still to be looked into. For somebody who knows that nobody rings any more.
    pub(crate) fn has_rung(&self) -> bool {
        self.has_rung.load(Ordering::Acquire)
    }

    /// Whether the queue is to be looked into. What comes from now on is rung for again: so first this, then the look.
    pub(crate) fn hear(&self) -> bool {
        self.has_rung.load(Ordering::Relaxed) && self.has_rung.swap(false, Ordering::AcqRel)
    }
}
