//! Floor 4: where jobs are kept: a slab whose places carry a generation, and the way from an id to a place.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Bound;

use slab::Slab;

use crate::job::Job;
use crate::logic::token::{GENERATIONS, Key};
use crate::model::id::JobId;

/// Jobs that are gone and still stand in the order of those that were told, above as many as are not, before it is cleared of them.
const TOLD_GONE_MAX: usize = 64;

#[derive(Debug)]
struct Entry {
    generation: u32,
    job: Job,
}

/// Every job of a worker.
#[derive(Debug, Default)]
pub(crate) struct Table {
    jobs: Slab<Entry>,
    keys: HashMap<JobId, Key>,
    /// Finished jobs whose end was told; ids sort by start.
    told: BTreeSet<JobId>,
    /// The same, longest told first; also such as are gone.
    told_order: VecDeque<JobId>,
    next_generation: u32,
}

impl Table {
    /// The key that the next job gets.
    pub(crate) fn next_key(&self) -> Key {
        Key { index: self.jobs.vacant_key() as u32, generation: self.next_generation }
    }

    /// Puts a job at the key that it was made for.
    pub(crate) fn insert(&mut self, key: Key, job: Job) {
        self.next_generation = (self.next_generation + 1) % GENERATIONS;
        self.keys.insert(job.id, key);
        let index = self.jobs.insert(Entry { generation: key.generation, job });
        debug_assert_eq!(index, key.index as usize);
    }

    pub(crate) fn key_of(&self, id: JobId) -> Option<Key> {
        self.keys.get(&id).copied()
    }

    pub(crate) fn get(&self, key: Key) -> Option<&Job> {
        self.jobs.get(key.index as usize).filter(|entry| entry.generation == key.generation).map(|entry| &entry.job)
    }

    /// The job at `key`; `None` if it is gone, also when another job has taken its place.
    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut Job> {
        self.jobs.get_mut(key.index as usize).filter(|entry| entry.generation == key.generation).map(|entry| &mut entry.job)
    }

    pub(crate) fn by_id(&self, id: JobId) -> Option<&Job> {
        self.get(self.key_of(id)?)
    }

    pub(crate) fn by_id_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.get_mut(self.key_of(id)?)
    }

    /// Takes a job's id away: nobody finds it any more.
    pub(crate) fn hide(&mut self, id: JobId) {
        self.keys.remove(&id);
        self.told.remove(&id);
    }

    pub(crate) fn remove(&mut self, key: Key) {
        if self.get(key).is_some() {
            let entry = self.jobs.remove(key.index as usize);
            // A hidden job's id is gone already.
            self.keys.remove(&entry.job.id);
        }
    }

    /// Every job that can be found, in no order.
    pub(crate) fn visible(&self) -> impl Iterator<Item = &Job> {
        self.jobs.iter().map(|(_, entry)| &entry.job).filter(|job| !job.is_hidden() && !job.is_internal())
    }

    /// Whether a finished job's end was told.
    pub(crate) fn is_told(&self, id: JobId) -> bool {
        self.told.contains(&id)
    }

    /// Up to `count` finished jobs whose end was told, in the order of their ids, after `last`.
    pub(crate) fn told_after(&self, last: Option<JobId>, count: usize) -> Vec<JobId> {
        let from = last.map_or(Bound::Unbounded, Bound::Excluded);
        self.told.range((from, Bound::Unbounded)).take(count).copied().collect()
    }

    /// The keys of all jobs that have not finished.
    pub(crate) fn unfinished(&self) -> Vec<Key> {
        self.keys_of(|job| !job.is_finished())
    }

    /// The keys of all jobs of which something is left in the system.
    pub(crate) fn not_gone(&self) -> Vec<Key> {
        self.keys_of(|job| !job.is_gone())
    }

    fn keys_of(&self, wanted: impl Fn(&Job) -> bool) -> Vec<Key> {
        let found = self.jobs.iter().filter(|(_, entry)| wanted(&entry.job));
        found.map(|(index, entry)| Key { index: index as u32, generation: entry.generation }).collect()
    }

    /// Notes that a job's end was told. If there are more than `told_max` such jobs, returns the one of which it was told first: whoever hears of an end has time to ask.
    pub(crate) fn note_told(&mut self, id: JobId, told_max: usize) -> Option<JobId> {
        if self.keys.contains_key(&id) && self.told.insert(id) {
            self.told_order.push_back(id);
        }
        if self.told_order.len() > 2 * self.told.len() + TOLD_GONE_MAX {
            self.told_order.retain(|id| self.told.contains(id));
        }
        while self.told.len() > told_max {
            let oldest = self.told_order.pop_front()?;
            if self.told.remove(&oldest) {
                return Some(oldest);
            }
        }
        None
    }
}
