//! What the loop tells those who read a log while it writes it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;

use crate::logic::mark::Place;

/// What the loop tells the streams of one log. Written by the loop's thread, read by any.
#[derive(Debug, Default)]
pub(crate) struct LogProgress {
    /// Bytes of whole records in all files of the log, also in those that are gone.
    pub(crate) length: AtomicU64,
    pub(crate) ended: AtomicBool,
    /// Whether a stream has come to the end and wants to hear of more.
    pub(crate) awaited: AtomicBool,
    waiting: Mutex<Vec<(u64, Waker)>>,
    pub(crate) next_id: AtomicU64,
    /// The files that are kept, oldest first; the last one is being written, under the log's own name.
    places: Mutex<Vec<Place>>,
}

impl LogProgress {
    /// The files of the log have changed. To be told before anything that is in the newest.
    pub(crate) fn set_places(&self, places: impl Iterator<Item = Place>) {
        let mut kept = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        kept.clear();
        kept.extend(places);
    }

    /// The files that are kept, oldest first; the last one has the log's own name.
    pub(crate) fn places(&self) -> Vec<Place> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The log has grown, or ended. `true` if a stream waits for that: its wakers are put into `wakers`, to be woken once dispatch is over.
    pub(crate) fn publish(&self, length: u64, ended: bool, wakers: &mut Vec<Waker>) -> bool {
        let has_grown = self.length.swap(length, Ordering::SeqCst) != length;
        if ended {
            self.ended.store(true, Ordering::SeqCst);
        }
        // A write that failed is no news.
        if !(has_grown || ended) || !self.awaited.swap(false, Ordering::SeqCst) {
            return false;
        }
        wakers.extend(self.waiting().drain(..).map(|(_, waker)| waker));
        true
    }

    /// Notes that stream `id` waits. A waker's clone and drop are user code, which may come back here: neither happens under the lock.
    pub(crate) fn enlist(&self, id: u64, waker: &Waker) {
        let former = self.strike_off(id);
        let waker = former.filter(|former| former.will_wake(waker)).unwrap_or_else(|| waker.clone());
        self.waiting().push((id, waker));
    }

    /// Takes stream `id` off the list; its waker is the caller's to drop.
    pub(crate) fn strike_off(&self, id: u64) -> Option<Waker> {
        let mut waiting = self.waiting();
        let place = waiting.iter().position(|(waiter, _)| *waiter == id)?;
        Some(waiting.swap_remove(place).1)
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Vec<(u64, Waker)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
