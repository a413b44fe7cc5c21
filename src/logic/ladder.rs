//! The spawn ladder: which rung a start takes. The best that is safe, for the host first of all.
//!
//! A child on the rungs `detached` and `vfork` stands in the host's memory until its exec, and in the job's cgroup. What follows from that, and what
//! each rule below is for, is told in the guide, [`crate::guide::spawning`].

use crate::model::capabilities::{Rung, RungReason};

/// The smallest `memory.max` under which a child may stand in the host's memory, without its arguments, in bytes and in pages. Below an eighth of it the
/// kernel was seen to run out in the middle of an exec, and to kill whoever shares the memory: the host.
const MEMORY_MAX_MIN: u64 = 2 << 20;
const MEMORY_MAX_MIN_PAGES: u64 = 512;

/// The smallest quota of a `cpu.max` under which a child may stand in the host's memory: many times what it needs to come off, for the kernel may take the
/// CPU from one that has used up its quota while it holds a lock of that memory.
const CPU_QUOTA_MICROS_MIN: u64 = 10_000;

/// What a start asks for, as far as it bears upon the rung.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ask {
    /// Bytes of arguments and environment.
    pub(crate) stack_bytes: usize,
    /// Descriptors for the job.
    pub(crate) fds: usize,
    /// Whether the child takes another user or group id.
    pub(crate) changes_ids: bool,
    /// Whether it becomes a user who could stop it on its way.
    pub(crate) is_other_user: bool,
    /// Whether a capability is to keep that user out.
    pub(crate) keeps_capability: bool,
    pub(crate) sets_oom_score_adj: bool,
    /// The job's own `memory.max` or `memory.high`, whichever comes first.
    pub(crate) memory_max: Option<u64>,
    /// The quota of the job's own `cpu.max`, in microseconds.
    pub(crate) cpu_quota_micros: Option<u64>,
    /// Whether the job has an `io.max`.
    pub(crate) limits_io: bool,
}

/// What limits the cgroups above the job's own, as far as they do not hold the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitsAbove {
    pub(crate) memory_max: bool,
    pub(crate) memory_high: bool,
    pub(crate) oom_group: bool,
    pub(crate) cpu_max: bool,
}

impl LimitsAbove {
    /// What is to be assumed where nothing is known.
    pub(crate) const ALL: Self = Self { memory_max: true, memory_high: true, oom_group: true, cpu_max: true };

    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            memory_max: self.memory_max || other.memory_max,
            memory_high: self.memory_high || other.memory_high,
            oom_group: self.oom_group || other.oom_group,
            cpu_max: self.cpu_max || other.cpu_max,
        }
    }
}

/// What it would be started in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) above: LimitsAbove,
    /// The host is to stay dumpable.
    pub(crate) keep_dumpable: bool,
    /// `fs.suid_dumpable` is 1, or cannot be read.
    pub(crate) suid_dumpable: bool,
    /// A child cannot keep a capability when it becomes another user.
    pub(crate) keep_caps_locked: bool,
    /// The most descriptors that a child on a slot can be given.
    pub(crate) fds_max: usize,
    pub(crate) page_bytes: u64,
}

/// Chooses the rung, of those not better than `best`. `is_frozen` says whether the job's cgroup is; it is asked only where that matters.
pub(crate) fn choose(best: Rung, ask: &Ask, around: &Surroundings, is_frozen: impl FnOnce() -> bool) -> (Rung, RungReason) {
    if !best.shares_memory() {
        return (best, RungReason::Best);
    }
    let fork_like = |reason| (Rung::ForkLike, reason);
    if around.above.oom_group {
        return fork_like(RungReason::OomGroupAbove);
    }
    if around.above.cpu_max {
        return fork_like(RungReason::CpuMaxAbove);
    }
    let memory_max_min = MEMORY_MAX_MIN.max(MEMORY_MAX_MIN_PAGES.saturating_mul(around.page_bytes));
    let arguments = u64::try_from(ask.stack_bytes).unwrap_or(u64::MAX).saturating_mul(2);
    if ask.memory_max.is_some_and(|memory_max| memory_max < memory_max_min.saturating_add(arguments)) {
        return fork_like(RungReason::SmallMemoryMax);
    }
    if ask.cpu_quota_micros.is_some_and(|quota| quota < CPU_QUOTA_MICROS_MIN) {
        return fork_like(RungReason::SmallCpuMax);
    }
    if ask.changes_ids && around.keep_dumpable {
        return fork_like(RungReason::KeepDumpable);
    }
    if ask.changes_ids && around.suid_dumpable {
        return fork_like(RungReason::SuidDumpable);
    }
    if ask.keeps_capability && around.keep_caps_locked {
        return fork_like(RungReason::KeepCapsLocked);
    }
    if ask.fds > around.fds_max {
        return fork_like(RungReason::ManyFds);
    }
    let vfork = if around.above.memory_max {
        Some(RungReason::MemoryMaxAbove)
    } else if ask.sets_oom_score_adj {
        Some(RungReason::OomScoreAdj)
    } else {
        (best == Rung::Vfork).then_some(RungReason::Best)
    };
    match vfork {
        None => (Rung::Detached, RungReason::Best),
        // On vfork the host waits for the child: for one that its user may stop, or that is born frozen, maybe for ever.
        Some(_) if ask.is_other_user => fork_like(RungReason::OtherUser),
        // ... or for one that is made to wait.
        Some(_) if around.above.memory_high => fork_like(RungReason::MemoryHighAbove),
        Some(_) if ask.limits_io => fork_like(RungReason::IoMax),
        Some(_) if is_frozen() => fork_like(RungReason::Frozen),
        Some(reason) => (Rung::Vfork, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Surroundings = Surroundings {
        above: LimitsAbove { memory_max: false, memory_high: false, oom_group: false, cpu_max: false },
        keep_dumpable: false,
        suid_dumpable: false,
        keep_caps_locked: false,
        fds_max: 253,
        page_bytes: 4096,
    };
    const LIMIT: Surroundings = Surroundings { above: LimitsAbove { memory_max: true, ..PLAIN.above }, ..PLAIN };

    fn chosen(best: Rung, ask: Ask, around: Surroundings) -> (Rung, RungReason) {
        choose(best, &ask, &around, || false)
    }

    #[test]
    fn a_plain_start_takes_the_best_rung() {
        for best in Rung::ALL {
            assert_eq!(chosen(best, Ask::default(), PLAIN), (best, RungReason::Best));
        }
    }

    #[test]
    fn no_rule_leads_to_a_better_rung_than_was_asked_for() {
        let ask = Ask { sets_oom_score_adj: true, ..Ask::default() };
        for best in [Rung::ForkLike, Rung::Fork] {
            assert_eq!(chosen(best, ask, LIMIT).0, best);
        }
    }

    #[test]
    fn a_limit_above_takes_vfork_and_a_group_kill_above_fork_like() {
        let group = Surroundings { above: LimitsAbove { oom_group: true, ..LIMIT.above }, ..PLAIN };
        for best in [Rung::Detached, Rung::Vfork] {
            assert_eq!(chosen(best, Ask::default(), LIMIT), (Rung::Vfork, RungReason::MemoryMaxAbove));
            assert_eq!(chosen(best, Ask::default(), group), (Rung::ForkLike, RungReason::OomGroupAbove));
        }
    }

    #[test]
    fn a_small_limit_of_the_job_itself_takes_fork_like_and_arguments_count_twice() {
        let of =
            |memory_max, stack_bytes| chosen(Rung::Detached, Ask { memory_max: Some(memory_max), stack_bytes, ..Ask::default() }, PLAIN);
        assert_eq!(of(2 << 20, 0), (Rung::Detached, RungReason::Best));
        assert_eq!(of((2 << 20) - 1, 0), (Rung::ForkLike, RungReason::SmallMemoryMax));
        assert_eq!(of((2 << 20) + 2000, 1000), (Rung::Detached, RungReason::Best));
        assert_eq!(of((2 << 20) + 1999, 1000), (Rung::ForkLike, RungReason::SmallMemoryMax));
        assert_eq!(of(u64::MAX, usize::MAX), (Rung::Detached, RungReason::Best));
    }

    #[test]
    fn a_small_quota_takes_fork_like_for_its_child_may_lose_the_cpu_with_a_lock_in_its_hands() {
        let of = |quota| chosen(Rung::Detached, Ask { cpu_quota_micros: Some(quota), ..Ask::default() }, PLAIN);
        assert_eq!(of(10_000), (Rung::Detached, RungReason::Best));
        assert_eq!(of(9_999), (Rung::ForkLike, RungReason::SmallCpuMax));
    }

    #[test]
    fn a_child_that_is_made_to_wait_is_not_waited_for() {
        let io = Ask { limits_io: true, ..Ask::default() };
        let high = LimitsAbove { memory_high: true, ..PLAIN.above };
        assert_eq!(chosen(Rung::Detached, io, PLAIN), (Rung::Detached, RungReason::Best));
        assert_eq!(chosen(Rung::Detached, io, LIMIT), (Rung::ForkLike, RungReason::IoMax));
        assert_eq!(chosen(Rung::Detached, Ask::default(), Surroundings { above: high, ..PLAIN }), (Rung::Detached, RungReason::Best));
        let both = Surroundings { above: LimitsAbove { memory_max: true, ..high }, ..PLAIN };
        assert_eq!(chosen(Rung::Detached, Ask::default(), both), (Rung::ForkLike, RungReason::MemoryHighAbove));
    }

    #[test]
    fn another_user_never_holds_up_the_host() {
        let ask = Ask { changes_ids: true, is_other_user: true, ..Ask::default() };
        assert_eq!(chosen(Rung::Detached, ask, PLAIN), (Rung::Detached, RungReason::Best));
        assert_eq!(chosen(Rung::Vfork, ask, PLAIN), (Rung::ForkLike, RungReason::OtherUser));
        assert_eq!(chosen(Rung::Detached, ask, LIMIT), (Rung::ForkLike, RungReason::OtherUser));
        assert_eq!(chosen(Rung::Detached, Ask { sets_oom_score_adj: true, ..ask }, PLAIN).1, RungReason::OtherUser);
    }

    #[test]
    fn other_ids_stay_off_the_hosts_memory_where_that_would_be_dumpable() {
        let ask = Ask { changes_ids: true, ..Ask::default() };
        let keep = Surroundings { keep_dumpable: true, ..PLAIN };
        let sysctl = Surroundings { suid_dumpable: true, ..PLAIN };
        assert_eq!(chosen(Rung::Detached, ask, keep), (Rung::ForkLike, RungReason::KeepDumpable));
        assert_eq!(chosen(Rung::Detached, ask, sysctl), (Rung::ForkLike, RungReason::SuidDumpable));
        assert_eq!(chosen(Rung::Detached, Ask::default(), keep).0, Rung::Detached);
        assert_eq!(chosen(Rung::Detached, Ask::default(), sysctl).0, Rung::Detached);
    }

    #[test]
    fn a_frozen_cgroup_is_never_waited_for() {
        let ask = Ask { sets_oom_score_adj: true, ..Ask::default() };
        assert_eq!(choose(Rung::Detached, &ask, &PLAIN, || true), (Rung::ForkLike, RungReason::Frozen));
        assert_eq!(choose(Rung::Detached, &Ask::default(), &PLAIN, || true), (Rung::Detached, RungReason::Best));
    }

    #[test]
    fn more_descriptors_than_one_message_carries_take_fork_like() {
        assert_eq!(chosen(Rung::Detached, Ask { fds: 253, ..Ask::default() }, PLAIN).0, Rung::Detached);
        let many = chosen(Rung::Detached, Ask { fds: 254, ..Ask::default() }, PLAIN);
        assert_eq!(many, (Rung::ForkLike, RungReason::ManyFds));
    }

    #[test]
    fn a_child_that_may_not_be_let_run_holds_no_lock_of_the_hosts_memory() {
        let throttled = Surroundings { above: LimitsAbove { cpu_max: true, ..PLAIN.above }, ..PLAIN };
        assert_eq!(chosen(Rung::Detached, Ask::default(), throttled), (Rung::ForkLike, RungReason::CpuMaxAbove));
        assert_eq!(chosen(Rung::Vfork, Ask::default(), throttled), (Rung::ForkLike, RungReason::CpuMaxAbove));
    }

    #[test]
    fn large_pages_need_a_larger_limit() {
        let pages = Surroundings { page_bytes: 64 << 10, ..PLAIN };
        let of = |memory_max| chosen(Rung::Detached, Ask { memory_max: Some(memory_max), ..Ask::default() }, pages).0;
        assert_eq!((of(32 << 20), of((32 << 20) - 1)), (Rung::Detached, Rung::ForkLike));
    }

    #[test]
    fn without_the_capability_that_keeps_it_out_another_user_stays_off_the_hosts_memory() {
        let locked = Surroundings { keep_caps_locked: true, ..PLAIN };
        let ask = Ask { changes_ids: true, is_other_user: true, keeps_capability: true, ..Ask::default() };
        assert_eq!(chosen(Rung::Detached, ask, locked), (Rung::ForkLike, RungReason::KeepCapsLocked));
        assert_eq!(chosen(Rung::Detached, Ask { keeps_capability: false, ..ask }, locked).0, Rung::Detached);
    }
}
