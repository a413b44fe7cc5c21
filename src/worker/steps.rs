//! The parts of a turn, for those who wait for the descriptor themselves.

use std::time::Duration;

use super::Worker;
use crate::model::error::TurnError;
use crate::model::event::{Event, Events};

impl Worker {
    /// A turn that does not wait; the events are kept for the next [`turn`](Self::turn), which nobody is told of.
    pub(crate) fn turn_quietly(&mut self) -> Result<(), TurnError> {
        self.turn_reactor(Some(Duration::ZERO))
    }

    /// The next of the events that were kept. `events`: a buffer for one.
    pub(crate) fn take_event(&mut self, events: &mut Events) -> Option<Event> {
        if let Some(event) = self.untold.pop_front() {
            return Some(event);
        }
        self.collect(events);
        events.drain().next()
    }
}
