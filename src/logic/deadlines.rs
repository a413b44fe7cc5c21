//! Deadlines in order. Most are armed and never come due, so arming again and cancelling leave the queue alone where they can.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// One deadline of somebody's; lives with its owner, who hands it to the queue. Small: a job has a dozen.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Deadline {
    /// When it is due; `None` if it is not armed.
    due: Option<Moment>,
    /// When the queue will look at it; not later than `due`.
    queued: Option<Moment>,
}

impl Deadline {
    /// Disarms it without touching the queue: when its turn comes there, nothing happens.
    pub(crate) fn disarm(&mut self) {
        self.due = None;
    }

    /// Whether it is to go off.
    pub(crate) fn is_armed(&self) -> bool {
        self.due.is_some()
    }
}

/// A time: nanoseconds after the queue's first, and one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Moment(NonZeroU64);

/// Every deadline of a worker, soonest first. `K` says whose it is.
#[derive(Debug)]
pub(crate) struct DeadlineQueue<K> {
    first: Instant,
    queue: BTreeSet<(Moment, K)>,
}

impl<K: Ord + Copy> DeadlineQueue<K> {
    /// A queue of deadlines after `first`; what is before that is due at once.
    pub(crate) fn new(first: Instant) -> Self {
        Self { first, queue: BTreeSet::new() }
    }

    /// Arms `deadline` for `due`. Moving it further away costs nothing now.
    pub(crate) fn arm(&mut self, deadline: &mut Deadline, due: Instant, key: K) {
        self.arm_for(deadline, self.moment(due), key);
    }

    /// As [`arm`](Self::arm), unless it is due sooner already.
    pub(crate) fn arm_sooner(&mut self, deadline: &mut Deadline, due: Instant, key: K) {
        let due = self.moment(due);
        if deadline.due.is_none_or(|decided| due < decided) {
            self.arm_for(deadline, due, key);
        }
    }

    /// When `deadline` is due; `None` if it is not armed.
    pub(crate) fn due(&self, deadline: &Deadline) -> Option<Instant> {
        deadline.due.map(|due| self.instant(due))
    }

    /// Takes `deadline` out for good; its owner is going away.
    pub(crate) fn remove(&mut self, deadline: &mut Deadline, key: K) {
        if let Some(queued) = deadline.queued.take() {
            self.queue.remove(&(queued, key));
        }
        deadline.due = None;
    }

    /// When to look again; `None` if there is nothing to wait for.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| self.instant(*at))
    }

    fn instant(&self, at: Moment) -> Instant {
        self.first + Duration::from_nanos(at.0.get() - 1)
    }

    /// Whose deadline is to be looked at now; the owner answers with [`settle`](Self::settle).
    pub(crate) fn pop(&mut self, now: Instant) -> Option<K> {
        let (at, key) = *self.queue.first()?;
        if at > self.moment(now) {
            return None;
        }
        self.queue.pop_first();
        Some(key)
    }

    /// Says whether a popped deadline is really due; one that was moved away is queued again.
    pub(crate) fn settle(&mut self, deadline: &mut Deadline, now: Instant, key: K) -> bool {
        deadline.queued = None;
        match deadline.due {
            Some(due) if due <= self.moment(now) => {
                deadline.due = None;
                true
            }
            Some(due) => {
                self.arm_for(deadline, due, key);
                false
            }
            None => false,
        }
    }

    fn arm_for(&mut self, deadline: &mut Deadline, due: Moment, key: K) {
        deadline.due = Some(due);
        match deadline.queued {
            Some(queued) if queued <= due => {}
            queued => {
                if let Some(queued) = queued {
                    self.queue.remove(&(queued, key));
                }
                self.queue.insert((due, key));
                deadline.queued = Some(due);
            }
        }
    }

    /// In 584 years the last one is reached.
    fn moment(&self, time: Instant) -> Moment {
        let nanos = time.saturating_duration_since(self.first).as_nanos();
        Moment(NonZeroU64::MIN.saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn deadlines_come_due_in_order() {
        let start = Instant::now();
        let (mut queue, mut a, mut b) = (DeadlineQueue::new(start), Deadline::default(), Deadline::default());
        queue.arm(&mut a, start + 2 * MS, 'a');
        queue.arm(&mut b, start + MS, 'b');
        assert_eq!(queue.next(), Some(start + MS));
        assert_eq!(queue.pop(start), None);
        let later = start + 3 * MS;
        assert_eq!(queue.pop(later), Some('b'));
        assert!(queue.settle(&mut b, later, 'b'));
        assert_eq!(queue.pop(later), Some('a'));
        assert!(queue.settle(&mut a, later, 'a'));
        assert_eq!((queue.pop(later), queue.next()), (None, None));
        assert!(a.due.is_none());
    }

    #[test]
    fn a_deadline_moved_away_is_looked_at_once_and_queued_again() {
        let start = Instant::now();
        let (mut queue, mut deadline) = (DeadlineQueue::new(start), Deadline::default());
        queue.arm(&mut deadline, start + MS, ());
        queue.arm(&mut deadline, start + 5 * MS, ());
        assert_eq!(queue.next(), Some(start + MS), "moving away leaves the queue alone");
        assert_eq!(queue.pop(start + MS), Some(()));
        assert!(!queue.settle(&mut deadline, start + MS, ()));
        assert_eq!(queue.next(), Some(start + 5 * MS));
    }

    #[test]
    fn a_deadline_moved_nearer_comes_at_the_new_time_only() {
        let start = Instant::now();
        let (mut queue, mut deadline) = (DeadlineQueue::new(start), Deadline::default());
        queue.arm(&mut deadline, start + 5 * MS, ());
        queue.arm(&mut deadline, start + MS, ());
        assert_eq!(queue.pop(start + MS), Some(()));
        assert!(queue.settle(&mut deadline, start + MS, ()));
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn a_disarmed_or_removed_deadline_never_comes_due() {
        let start = Instant::now();
        let (mut queue, mut a, mut b) = (DeadlineQueue::new(start), Deadline::default(), Deadline::default());
        queue.arm(&mut a, start, 'a');
        queue.arm(&mut b, start, 'b');
        a.disarm();
        queue.remove(&mut b, 'b');
        assert_eq!(queue.pop(start), Some('a'));
        assert!(!queue.settle(&mut a, start, 'a'));
        assert_eq!(queue.pop(start), None);
    }
}
