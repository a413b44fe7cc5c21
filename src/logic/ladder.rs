//! The spawn ladder: which rung a start takes. The best that is safe, for the host first of all.
//!
//! A child on the rungs `detached` and `vfork` stands in the host's memory until its exec, and in the job's cgroup. What follows from that, and what
//! each rule below is for, is told in the guide, [`crate::guide::spawning`].

use crate::model::capabilities::{Rung, RungReason};

/// The smallest `memory.max` under which a child may stand in the host's memory, without its arguments. Below a quarter of it the kernel was seen to
/// run out in the middle of an exec, and to kill whoever shares the memory: the host.
const MEMORY_MAX_MIN: u64 = 2 << 20;

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
    pub(crate) sets_oom_score_adj: bool,
    /// The job's own `memory.max`.
    pub(crate) memory_max: Option<u64>,
}

/// What it would be started in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Surroundings {
    /// A cgroup above the job's, which does not hold the host, has a `memory.max`.
    pub(crate) memory_max_above: bool,
    /// A cgroup above the job's, which does not hold the host, has `memory.oom.group`.
    pub(crate) oom_group_above: bool,
    /// The host is to stay dumpable.
    pub(crate) keep_dumpable: bool,
    /// `fs.suid_dumpable` is 1, or cannot be read.
    pub(crate) suid_dumpable: bool,
}

/// Chooses the rung, of those not better than `best`. `is_frozen` says whether the job's cgroup is; it is asked only where that matters.
pub(crate) fn choose(best: Rung, ask: &Ask, around: Surroundings, fds_max: usize, is_frozen: impl FnOnce() -> bool) -> (Rung, RungReason) {
    if !best.shares_memory() {
        return (best, RungReason::Best);
    }
    let fork_like = |reason| (Rung::ForkLike, reason);
    if around.oom_group_above {
        return fork_like(RungReason::OomGroupAbove);
    }
    let arguments = u64::try_from(ask.stack_bytes).unwrap_or(u64::MAX).saturating_mul(2);
    if ask.memory_max.is_some_and(|memory_max| memory_max < MEMORY_MAX_MIN.saturating_add(arguments)) {
        return fork_like(RungReason::SmallMemoryMax);
    }
    if ask.changes_ids && around.keep_dumpable {
        return fork_like(RungReason::KeepDumpable);
    }
    if ask.changes_ids && around.suid_dumpable {
        return fork_like(RungReason::SuidDumpable);
    }
    if ask.fds > fds_max {
        return fork_like(RungReason::ManyFds);
    }
    let vfork = if around.memory_max_above {
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
        Some(_) if is_frozen() => fork_like(RungReason::Frozen),
        Some(reason) => (Rung::Vfork, reason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(best: Rung, ask: Ask, around: Surroundings) -> (Rung, RungReason) {
        choose(best, &ask, around, 253, || false)
    }

    #[test]
    fn a_plain_start_takes_the_best_rung() {
        for best in Rung::ALL {
            assert_eq!(chosen(best, Ask::default(), Surroundings::default()), (best, RungReason::Best));
        }
    }

    #[test]
    fn no_rule_leads_to_a_better_rung_than_was_asked_for() {
        let ask = Ask { sets_oom_score_adj: true, ..Ask::default() };
        for best in [Rung::ForkLike, Rung::Fork] {
            assert_eq!(chosen(best, ask, Surroundings { memory_max_above: true, ..Surroundings::default() }).0, best);
        }
    }

    #[test]
    fn a_limit_above_takes_vfork_and_a_group_kill_above_fork_like() {
        let limit = Surroundings { memory_max_above: true, ..Surroundings::default() };
        let group = Surroundings { oom_group_above: true, ..limit };
        for best in [Rung::Detached, Rung::Vfork] {
            assert_eq!(chosen(best, Ask::default(), limit), (Rung::Vfork, RungReason::MemoryMaxAbove));
            assert_eq!(chosen(best, Ask::default(), group), (Rung::ForkLike, RungReason::OomGroupAbove));
        }
    }

    #[test]
    fn a_small_limit_of_the_job_itself_takes_fork_like_and_arguments_count_twice() {
        let of = |memory_max, stack_bytes| {
            chosen(Rung::Detached, Ask { memory_max: Some(memory_max), stack_bytes, ..Ask::default() }, Surroundings::default())
        };
        assert_eq!(of(2 << 20, 0), (Rung::Detached, RungReason::Best));
        assert_eq!(of((2 << 20) - 1, 0), (Rung::ForkLike, RungReason::SmallMemoryMax));
        assert_eq!(of((2 << 20) + 2000, 1000), (Rung::Detached, RungReason::Best));
        assert_eq!(of((2 << 20) + 1999, 1000), (Rung::ForkLike, RungReason::SmallMemoryMax));
        assert_eq!(of(u64::MAX, usize::MAX), (Rung::Detached, RungReason::Best));
    }

    #[test]
    fn another_user_never_holds_up_the_host() {
        let ask = Ask { changes_ids: true, is_other_user: true, ..Ask::default() };
        let limit = Surroundings { memory_max_above: true, ..Surroundings::default() };
        assert_eq!(chosen(Rung::Detached, ask, Surroundings::default()), (Rung::Detached, RungReason::Best));
        assert_eq!(chosen(Rung::Vfork, ask, Surroundings::default()), (Rung::ForkLike, RungReason::OtherUser));
        assert_eq!(chosen(Rung::Detached, ask, limit), (Rung::ForkLike, RungReason::OtherUser));
        assert_eq!(chosen(Rung::Detached, Ask { sets_oom_score_adj: true, ..ask }, Surroundings::default()).1, RungReason::OtherUser);
    }

    #[test]
    fn other_ids_stay_off_the_hosts_memory_where_that_would_be_dumpable() {
        let ask = Ask { changes_ids: true, ..Ask::default() };
        let keep = Surroundings { keep_dumpable: true, ..Surroundings::default() };
        let sysctl = Surroundings { suid_dumpable: true, ..Surroundings::default() };
        assert_eq!(chosen(Rung::Detached, ask, keep), (Rung::ForkLike, RungReason::KeepDumpable));
        assert_eq!(chosen(Rung::Detached, ask, sysctl), (Rung::ForkLike, RungReason::SuidDumpable));
        assert_eq!(chosen(Rung::Detached, Ask::default(), keep).0, Rung::Detached);
        assert_eq!(chosen(Rung::Detached, Ask::default(), sysctl).0, Rung::Detached);
    }

    #[test]
    fn a_frozen_cgroup_is_never_waited_for() {
        let ask = Ask { sets_oom_score_adj: true, ..Ask::default() };
        assert_eq!(choose(Rung::Detached, &ask, Surroundings::default(), 253, || true), (Rung::ForkLike, RungReason::Frozen));
        assert_eq!(choose(Rung::Detached, &Ask::default(), Surroundings::default(), 253, || true), (Rung::Detached, RungReason::Best));
    }

    #[test]
    fn more_descriptors_than_one_message_carries_take_fork_like() {
        assert_eq!(chosen(Rung::Detached, Ask { fds: 253, ..Ask::default() }, Surroundings::default()).0, Rung::Detached);
        let many = chosen(Rung::Detached, Ask { fds: 254, ..Ask::default() }, Surroundings::default());
        assert_eq!(many, (Rung::ForkLike, RungReason::ManyFds));
    }
}
