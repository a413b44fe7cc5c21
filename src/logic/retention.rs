//! Which logs go: the oldest finished ones, until the rest is within bounds. It is fed the files of a directory one by one, in any order, and says one log at
//! a time what is to be deleted, so that neither needs more than a moment, however many there are.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use slab::Slab;

use crate::logic::names::{LogName, rotated_name};
use crate::model::id::JobId;
use crate::model::retention::{DeleteReason, LogState, Retention};

/// Logs that are kept in mind at a time. One takes some 300 bytes, so all together 60 MB. Of more logs than that the oldest are kept in mind, the others are only
/// counted: their turn comes in a later pass.
pub(crate) const LOGS_HELD_MAX: usize = 200_000;

/// The most that is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) age: Option<Duration>,
    pub(crate) bytes: Option<u64>,
    pub(crate) logs: Option<u64>,
}

impl From<&Retention> for Bounds {
    fn from(retention: &Retention) -> Self {
        Self { age: retention.age_max, bytes: retention.bytes_max, logs: retention.logs_max }
    }
}

/// A file as it was when it was looked at. One that is not the same later is not deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileSeen {
    /// Its inode number; all are on the device of their directory.
    pub(crate) inode: u64,
    pub(crate) bytes: u64,
    /// Its ctime, in nanoseconds since 1970: of a sealed file the time of the seal.
    pub(crate) changed: u64,
}

/// What is known of a log file beside its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LogFileSeen {
    pub(crate) file: FileSeen,
    pub(crate) state: LogState,
    /// Whether the worker that wrote it lives.
    pub(crate) worker_lives: bool,
}

/// One log: its newest file, and those that were rotated.
#[derive(Debug)]
struct Unit {
    log: Box<str>,
    newest: Option<FileSeen>,
    rotated: Vec<(u64, FileSeen)>,
    bytes: u64,
    /// The latest ctime of a rotated file.
    rotated_changed: u64,
    state: LogState,
    worker_lives: bool,
}

impl Unit {
    fn changed(&self) -> u64 {
        self.newest.map_or(self.rotated_changed, |newest| newest.changed)
    }

    /// Whether it may be deleted. Rotated files without a newest one may be those of a log that is being rotated just now, while their worker lives.
    fn may_go(&self) -> bool {
        self.state != LogState::Live && (self.newest.is_some() || !self.worker_lives)
    }
}

/// A log that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Doomed {
    pub(crate) job: JobId,
    pub(crate) log: Box<str>,
    pub(crate) state: LogState,
    pub(crate) reason: DeleteReason,
    pub(crate) changed: u64,
    pub(crate) bytes: u64,
    /// Its files by name, in the order in which they are to go: oldest first, so that what is left of a log is always its end.
    pub(crate) files: Vec<(String, FileSeen)>,
    /// Whether its newest file is among them. If not, it was gone.
    pub(crate) has_newest: bool,
}

/// Finds out what is to go.
#[derive(Debug)]
pub(crate) struct Planner {
    bounds: Bounds,
    held_max: usize,
    units: Slab<Unit>,
    /// What is left of them while they are forgotten.
    going: Option<slab::IntoIter<Unit>>,
    places: HashMap<JobId, usize>,
    /// The logs that may go, oldest first.
    by_age: BTreeSet<(u64, JobId)>,
    logs: u64,
    bytes: u64,
}

impl Planner {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self::holding(bounds, LOGS_HELD_MAX)
    }

    fn holding(bounds: Bounds, held_max: usize) -> Self {
        let (units, places, by_age) = (Slab::new(), HashMap::new(), BTreeSet::new());
        Self { bounds, held_max, units, going: None, places, by_age, logs: 0, bytes: 0 }
    }

    /// Logs that were found and have not gone.
    pub(crate) fn logs(&self) -> u64 {
        self.logs
    }

    /// Their bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes in a file.
    pub(crate) fn add(&mut self, name: &LogName<'_>, seen: LogFileSeen) {
        let job = name.job;
        let Some(place) = self.place_of(name) else { return };
        let Some(unit) = self.units.get_mut(place) else { return };
        if unit.may_go() {
            self.by_age.remove(&(unit.changed(), job));
        }
        let file = seen.file;
        if let Some(number) = name.number {
            unit.rotated.push((number, file));
            unit.rotated_changed = unit.rotated_changed.max(file.changed);
        } else {
            // A directory that changes may show a name twice.
            let before = unit.newest.replace(file).map_or(0, |before| before.bytes);
            unit.bytes = unit.bytes.saturating_sub(before);
            self.bytes = self.bytes.saturating_sub(before);
        }
        unit.bytes = unit.bytes.saturating_add(file.bytes);
        self.bytes = self.bytes.saturating_add(file.bytes);
        unit.worker_lives |= seen.worker_lives;
        unit.state = match (unit.state, seen.state) {
            (LogState::Live, _) | (_, LogState::Live) => LogState::Live,
            (LogState::Leftover, _) | (_, LogState::Leftover) => LogState::Leftover,
            (LogState::Sealed, LogState::Sealed) => LogState::Sealed,
        };
        if unit.may_go() {
            self.by_age.insert((unit.changed(), job));
        }
        if self.units.len() > self.held_max {
            self.let_newest_go();
        }
    }

    /// The next log that is to go at `now` (nanoseconds since 1970); `None` if the rest may stay. It counts as gone, unless it is put back.
    pub(crate) fn next(&mut self, now: u64) -> Option<Doomed> {
        let (changed, job) = *self.by_age.first()?;
        let age = Duration::from_nanos(now.saturating_sub(changed));
        let reason = if self.bounds.age.is_some_and(|max| age >= max) {
            DeleteReason::Age
        } else if self.bounds.bytes.is_some_and(|max| self.bytes > max) {
            DeleteReason::Bytes
        } else if self.bounds.logs.is_some_and(|max| self.logs > max) {
            DeleteReason::Logs
        } else {
            return None;
        };
        self.by_age.pop_first();
        let mut unit = self.units.try_remove(self.places.remove(&job)?)?;
        self.logs = self.logs.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(unit.bytes);
        unit.rotated.sort_unstable_by_key(|(number, _)| *number);
        unit.rotated.dedup_by_key(|(number, _)| *number);
        let rotated = unit.rotated.iter().map(|(number, file)| (rotated_name(&unit.log, *number), *file));
        let newest = unit.newest.map(|file| (unit.log.to_string(), file));
        let files = rotated.chain(newest).collect();
        let (bytes, has_newest) = (unit.bytes, unit.newest.is_some());
        Some(Doomed { job, log: unit.log, state: unit.state, reason, changed, bytes, files, has_newest })
    }

    /// A file of a log that was to go is still there, the first one to be put back or another. Its turn comes again in a later pass.
    pub(crate) fn put_back(&mut self, bytes: u64, is_first: bool) {
        self.logs = self.logs.saturating_add(u64::from(is_first));
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// Forgets up to `count` logs, so that letting go of all of them takes no long moment either; whether some are left.
    pub(crate) fn forget(&mut self, count: usize) -> bool {
        self.places = HashMap::new();
        for _ in 0..count {
            self.by_age.pop_first();
        }
        let going = self.going.get_or_insert_with(|| std::mem::take(&mut self.units).into_iter());
        going.by_ref().take(count).for_each(drop);
        going.len() > 0 || !self.by_age.is_empty()
    }

    /// Where a file's log is; `None` if another log of that job stands there: a file that somebody has copied.
    fn place_of(&mut self, name: &LogName<'_>) -> Option<usize> {
        if let Some(place) = self.places.get(&name.job) {
            return self.units.get(*place).filter(|unit| *unit.log == *name.log).map(|_| *place);
        }
        let place = self.units.insert(Unit {
            log: name.log.into(),
            newest: None,
            rotated: Vec::new(),
            bytes: 0,
            rotated_changed: 0,
            state: LogState::Sealed,
            worker_lives: false,
        });
        self.places.insert(name.job, place);
        self.logs += 1;
        Some(place)
    }

    /// Too many are held: the newest that may go is only counted from now on.
    fn let_newest_go(&mut self) {
        if let Some((_, job)) = self.by_age.pop_last()
            && let Some(place) = self.places.remove(&job)
        {
            self.units.try_remove(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::logic::names::{entry_name, log_name};

    const SECOND: u64 = 1_000_000_000;

    fn job(number: u128) -> JobId {
        JobId::from(Uuid::from_u128(number))
    }

    fn log_of(number: u128) -> String {
        log_name(&entry_name("make", job(number)))
    }

    fn sealed(bytes: u64, changed: u64) -> LogFileSeen {
        LogFileSeen { file: FileSeen { inode: 1, bytes, changed }, state: LogState::Sealed, worker_lives: false }
    }

    fn add(planner: &mut Planner, number: u128, rotated: Option<u64>, seen: LogFileSeen) {
        let log = log_of(number);
        planner.add(&LogName { log: &log, job: job(number), number: rotated }, seen);
    }

    fn all(planner: &mut Planner, now: u64) -> Vec<(JobId, DeleteReason)> {
        std::iter::from_fn(|| planner.next(now)).map(|doomed| (doomed.job, doomed.reason)).collect()
    }

    fn bounds(age_max: Option<u64>, bytes_max: Option<u64>, logs_max: Option<u64>) -> Bounds {
        Bounds { age: age_max.map(Duration::from_secs), bytes: bytes_max, logs: logs_max }
    }

    #[test]
    fn without_bounds_everything_stays() {
        let mut planner = Planner::new(Bounds::default());
        add(&mut planner, 1, None, sealed(u64::MAX, 0));
        add(&mut planner, 2, None, sealed(u64::MAX, 0));
        assert_eq!(all(&mut planner, u64::MAX), []);
        assert_eq!((planner.logs(), planner.bytes()), (2, u64::MAX));
    }

    #[test]
    fn what_is_too_old_goes_oldest_first_and_a_clock_that_went_back_does_no_harm() {
        let mut planner = Planner::new(bounds(Some(10), None, None));
        for (number, second) in [(1, 5), (2, 3), (3, 11), (4, 30)] {
            add(&mut planner, number, None, sealed(1, second * SECOND));
        }
        assert_eq!(all(&mut planner, 15 * SECOND), [(job(2), DeleteReason::Age), (job(1), DeleteReason::Age)]);
        assert_eq!((planner.logs(), planner.bytes()), (2, 2));
    }

    #[test]
    fn the_oldest_go_until_the_rest_has_few_enough_bytes_and_is_few_enough() {
        let mut planner = Planner::new(bounds(None, Some(25), Some(1)));
        for number in 1..=4 {
            add(&mut planner, number, None, sealed(10, number as u64));
        }
        let expected = [(job(1), DeleteReason::Bytes), (job(2), DeleteReason::Bytes), (job(3), DeleteReason::Logs)];
        assert_eq!(all(&mut planner, 100), expected);
    }

    #[test]
    fn live_logs_count_and_do_not_go() {
        let mut planner = Planner::new(bounds(Some(0), Some(5), Some(0)));
        let live = LogFileSeen { state: LogState::Live, worker_lives: true, ..sealed(100, 1) };
        add(&mut planner, 1, None, live);
        add(&mut planner, 1, Some(1), sealed(100, 0));
        add(&mut planner, 2, None, LogFileSeen { state: LogState::Leftover, ..sealed(1, 2) });
        assert_eq!(all(&mut planner, 100), [(job(2), DeleteReason::Age)]);
        assert_eq!((planner.logs(), planner.bytes()), (1, 200));
    }

    #[test]
    fn a_log_goes_as_one_its_newest_file_last() {
        let mut planner = Planner::new(bounds(Some(10), None, None));
        // Rotated long ago, but finished only now.
        add(&mut planner, 1, Some(2), sealed(2, 2 * SECOND));
        add(&mut planner, 1, None, sealed(4, 100 * SECOND));
        add(&mut planner, 1, Some(1), sealed(1, SECOND));
        assert_eq!(all(&mut planner, 101 * SECOND), []);
        let doomed = planner.next(111 * SECOND).unwrap();
        let names: Vec<&str> = doomed.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, [format!("{}.000001", log_of(1)), format!("{}.000002", log_of(1)), log_of(1)]);
        assert_eq!((doomed.bytes, doomed.changed, doomed.has_newest), (7, 100 * SECOND, true));
    }

    #[test]
    fn rotated_files_without_a_newest_one_go_once_their_worker_is_dead() {
        for lives in [true, false] {
            let mut planner = Planner::new(bounds(Some(0), None, None));
            add(&mut planner, 1, Some(3), LogFileSeen { worker_lives: lives, ..sealed(1, 1) });
            assert_eq!(planner.next(10).map(|doomed| doomed.has_newest), (!lives).then_some(false));
        }
    }

    #[test]
    fn a_file_that_carries_the_id_of_another_log_is_left_alone() {
        let mut planner = Planner::new(bounds(Some(0), None, None));
        add(&mut planner, 1, None, sealed(1, 1));
        let copy = log_name(&entry_name("copy", job(1)));
        planner.add(&LogName { log: &copy, job: job(1), number: None }, sealed(5, 0));
        let doomed = planner.next(10).unwrap();
        assert_eq!((&*doomed.log, doomed.bytes, planner.next(10)), (&*log_of(1), 1, None));
    }

    #[test]
    fn what_could_not_go_counts_again() {
        let mut planner = Planner::new(bounds(None, Some(15), None));
        for number in 1..=3 {
            add(&mut planner, number, None, sealed(10, number as u64));
        }
        assert_eq!(planner.next(9).unwrap().job, job(1));
        planner.put_back(10, true);
        assert_eq!(all(&mut planner, 9), [(job(2), DeleteReason::Bytes), (job(3), DeleteReason::Bytes)]);
        assert_eq!((planner.logs(), planner.bytes()), (1, 10));
    }

    #[test]
    fn of_too_many_logs_the_oldest_are_held_and_all_are_counted() {
        let mut planner = Planner::holding(bounds(None, None, Some(0)), 10);
        for number in (1..=100).rev() {
            add(&mut planner, number, None, sealed(1, number as u64));
        }
        assert_eq!((planner.logs(), planner.bytes()), (100, 100));
        let gone = all(&mut planner, 1000);
        assert_eq!(gone, (1..=10).map(|number| (job(number), DeleteReason::Logs)).collect::<Vec<_>>());
        assert_eq!(planner.logs(), 90);
    }

    #[test]
    fn forgetting_takes_many_short_moments() {
        let mut planner = Planner::new(Bounds::default());
        for number in 0..1000 {
            add(&mut planner, number, None, sealed(1, 1));
        }
        let mut moments = 1;
        while planner.forget(64) {
            moments += 1;
        }
        assert_eq!(moments, 16);
    }

    #[test]
    fn a_hundred_thousand_logs_take_tens_of_megabytes() {
        let name = log_of(0).len();
        // The slab, the name, the index with a third of it empty, the order, each with room to grow.
        let each = 2 * size_of::<Unit>() + name + 16 + 3 * (size_of::<(JobId, usize)>() + 1) + 2 * size_of::<(u64, JobId)>();
        assert!(each * 100_000 <= 48 << 20, "{each} bytes a log");
    }

    #[derive(Clone, Debug)]
    struct Thing {
        number: u128,
        rotated: Option<u64>,
        bytes: u64,
        changed: u64,
        state: LogState,
        lives: bool,
    }

    fn things() -> impl Strategy<Value = Vec<Thing>> {
        let state = prop_oneof![6 => Just(LogState::Sealed), 1 => Just(LogState::Leftover), 1 => Just(LogState::Live)];
        let rotated = prop_oneof![3 => Just(None), 2 => (1..5_u64).prop_map(Some)];
        let thing = (0..12_u128, rotated, 0..50_u64, 0..40_u64, state, any::<bool>());
        let thing = thing.prop_map(|(number, rotated, bytes, changed, state, lives)| Thing {
            number,
            rotated,
            bytes,
            changed: changed * SECOND,
            state,
            lives: lives || state == LogState::Live,
        });
        // A name stands in a directory once.
        prop::collection::vec(thing, 0..40).prop_map(|mut things| {
            let mut seen = std::collections::BTreeSet::new();
            things.retain(|thing| seen.insert((thing.number, thing.rotated)));
            things
        })
    }

    /// The same by the book: everything at once, and sorted.
    fn naive(things: &[Thing], bounds: Bounds, now: u64) -> Vec<(JobId, DeleteReason, u64)> {
        let mut logs: BTreeMap<u128, Vec<&Thing>> = BTreeMap::new();
        for thing in things {
            logs.entry(thing.number).or_default().push(thing);
        }
        let (mut bytes, mut count) = (things.iter().map(|thing| thing.bytes).sum::<u64>(), logs.len() as u64);
        let mut order = Vec::new();
        for (number, files) in &logs {
            let newest = files.iter().find(|file| file.rotated.is_none());
            let is_live = files.iter().any(|file| file.state == LogState::Live);
            let is_rotating = newest.is_none() && files.iter().any(|file| file.lives);
            if !is_live && !is_rotating {
                let changed = newest.map_or_else(|| files.iter().map(|file| file.changed).max().unwrap(), |newest| newest.changed);
                order.push((changed, *number, files.iter().map(|file| file.bytes).sum::<u64>()));
            }
        }
        order.sort_unstable();
        let mut gone = Vec::new();
        for (changed, number, its_bytes) in order {
            let age = Duration::from_nanos(now.saturating_sub(changed));
            let reason = match bounds {
                Bounds { age: Some(max), .. } if age >= max => DeleteReason::Age,
                Bounds { bytes: Some(max), .. } if bytes > max => DeleteReason::Bytes,
                Bounds { logs: Some(max), .. } if count > max => DeleteReason::Logs,
                _ => break,
            };
            bytes -= its_bytes;
            count -= 1;
            gone.push((job(number), reason, its_bytes));
        }
        gone
    }

    proptest! {
        #[test]
        fn what_goes_is_what_the_book_says(
            things in things(),
            order in any::<u64>(),
            age_max in prop::option::of(0..40_u64),
            bytes_max in prop::option::of(0..400_u64),
            logs_max in prop::option::of(0..12_u64),
        ) {
            let (bounds, now) = (bounds(age_max, bytes_max, logs_max), 40 * SECOND);
            let expected = naive(&things, bounds, now);
            // Any order of the directory gives the same.
            let mut shuffled = things.clone();
            fastrand::Rng::with_seed(order).shuffle(&mut shuffled);
            let mut planner = Planner::new(bounds);
            for thing in &shuffled {
                let seen = LogFileSeen { state: thing.state, worker_lives: thing.lives, ..sealed(thing.bytes, thing.changed) };
                add(&mut planner, thing.number, thing.rotated, seen);
            }
            let before = (planner.logs(), planner.bytes());
            let gone: Vec<Doomed> = std::iter::from_fn(|| planner.next(now)).collect();
            prop_assert_eq!(gone.iter().map(|doomed| (doomed.job, doomed.reason, doomed.bytes)).collect::<Vec<_>>(), expected);
            let gone_bytes = gone.iter().map(|doomed| doomed.bytes).sum::<u64>();
            prop_assert_eq!(before, (planner.logs() + gone.len() as u64, planner.bytes() + gone_bytes));
            for doomed in gone {
                prop_assert!(doomed.state != LogState::Live);
                prop_assert_eq!(doomed.files.iter().map(|(_, file)| file.bytes).sum::<u64>(), doomed.bytes);
            }
        }
    }
}
