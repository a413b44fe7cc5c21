//! The life of a job: the only writer of its state. Every input is decided in every stage; what is to be done comes back as actions.

use std::time::Duration;

use crate::model::command::TreePolicy;
use crate::model::signal::Signal;
use crate::model::status::{Exit, JobState, StopReason};

/// What can happen to a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// The program was executed (or the child was killed on its way: an exit follows).
    Executed,
    /// A step of the start failed; the child is ending.
    StartFailed,
    /// There is no process, and there will be none.
    NotSpawned,
    /// The main process has ended.
    Exited(Exit),
    /// Every output is at its end, or none is captured.
    OutputsClosed,
    /// Nothing more can be read now, and the tree is gone, so nothing more will come.
    OutputsQuiet,
    /// The cgroup is empty.
    TreeGone,
    /// The cgroup is not empty yet.
    TreeLeft,
    /// No process is left in the cgroup, but it cannot be removed: others are nested in it too deep.
    TreeStuck,
    /// There is no cgroup: nobody knows what is left of the tree.
    TreeUntracked,
    /// Kill the tree.
    Stop(StopReason),
    /// Signal the process group, kill the tree after the grace time.
    StopGently(StopReason, Signal, Duration),
    /// A deadline has passed.
    Deadline(Timer),
    /// The worker ends, and the job may run on without it.
    Leave,
}

/// The deadlines that the lifecycle itself asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The command's timeout.
    Timeout,
    /// The end of the grace time of a gentle stop.
    Grace,
    /// No output for so long after the end.
    DrainIdle,
    /// So long after the end in all.
    DrainTotal,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send this signal to the process group.
    SignalGroup(Signal),
    /// Kill every process of the tree.
    KillTree,
    /// The main process has ended: find out what is left of its tree (and kill that), answer with one of the `Tree` inputs.
    EndTree {
        /// Whether what is left is to be killed.
        kill: bool,
    },
    /// Arm the grace deadline.
    ArmGrace(Duration),
    /// Arm both deadlines of the drain.
    ArmDrain,
    /// Stop reading the outputs; what was not read is lost.
    CloseOutputs,
    /// Tell the caller that the program was executed.
    ReportStarted,
    /// Tell the caller that the main process has ended.
    ReportExited,
    /// The job is over: seal the log, let go of everything, tell the caller.
    Finish,
    /// The job runs on: read what it has written, let go of everything, tell the caller.
    LetGo,
}

/// At most this many actions follow from one input.
const ACTIONS_MAX: usize = 3;

/// The actions that follow from one input, in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Actions([Option<Action>; ACTIONS_MAX]);

impl Actions {
    fn of<const N: usize>(actions: [Action; N]) -> Self {
        const { assert!(N <= ACTIONS_MAX) };
        let mut list = Self::default();
        for (slot, action) in list.0.iter_mut().zip(actions) {
            *slot = Some(action);
        }
        list
    }
}

impl IntoIterator for Actions {
    type Item = Action;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<Action>, ACTIONS_MAX>>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter().flatten()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Starting,
    Running,
    /// The start failed, the child is not reaped yet.
    Failing,
    Draining,
    Finished,
    Failed,
    Left,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tree {
    Present,
    Gone,
    Untracked,
}

/// One job's life.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle {
    stage: Stage,
    tree: Tree,
    policy: TreePolicy,
    outputs_open: bool,
    killed: bool,
    draining_by_deadline: bool,
    stop_reason: Option<StopReason>,
    timeout_signal: Option<(Signal, Duration)>,
    exit: Option<Exit>,
}

impl Lifecycle {
    pub(crate) fn new(policy: TreePolicy, outputs_open: bool, timeout_signal: Option<(Signal, Duration)>) -> Self {
        Self {
            stage: Stage::Starting,
            tree: Tree::Present,
            policy,
            outputs_open,
            killed: false,
            draining_by_deadline: false,
            stop_reason: None,
            timeout_signal,
            exit: None,
        }
    }

    pub(crate) fn state(&self) -> JobState {
        match self.stage {
            Stage::Starting | Stage::Running if self.stop_reason.is_some() => JobState::Stopping,
            Stage::Starting | Stage::Failing => JobState::Starting,
            Stage::Running => JobState::Running,
            Stage::Draining => JobState::Draining,
            Stage::Finished if self.exit == Some(Exit::Unknown) => JobState::Unknown,
            Stage::Finished => JobState::Finished,
            Stage::Failed => JobState::Failed,
            Stage::Left => JobState::Left,
        }
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        self.exit
    }

    pub(crate) fn stop_reason(&self) -> Option<StopReason> {
        self.stop_reason
    }

    /// Whether the tree was killed, or is to be.
    pub(crate) fn is_killed(&self) -> bool {
        self.killed
    }

    /// Whether the program has not been executed yet, as far as we know.
    pub(crate) fn is_starting(&self) -> bool {
        self.stage == Stage::Starting
    }

    /// Whether the end of the job waits for its outputs, nobody being left to write them: a read that finds nothing is the end.
    pub(crate) fn ends_when_quiet(&self) -> bool {
        self.stage == Stage::Draining && self.tree == Tree::Gone && self.outputs_open
    }

    /// Whether nothing of the job's process tree is left.
    pub(crate) fn is_tree_gone(&self) -> bool {
        self.tree == Tree::Gone
    }

    /// Whether output moves the idle deadline of the drain.
    pub(crate) fn is_draining_by_deadline(&self) -> bool {
        self.stage == Stage::Draining && self.draining_by_deadline
    }

    /// Whether the job ended while its cgroup still held processes.
    pub(crate) fn tree_is_left(&self) -> bool {
        self.stage == Stage::Finished && self.tree == Tree::Present
    }

    /// Takes one input; what follows is to be done in order.
    pub(crate) fn handle(&mut self, input: Input) -> Actions {
        match self.stage {
            Stage::Starting => self.starting(input),
            Stage::Running => self.running(input),
            Stage::Failing => self.failing(input),
            Stage::Draining => self.draining(input),
            Stage::Finished | Stage::Failed | Stage::Left => Actions::default(),
        }
    }

    fn starting(&mut self, input: Input) -> Actions {
        match input {
            Input::Executed => {
                self.stage = Stage::Running;
                Actions::of([Action::ReportStarted])
            }
            Input::StartFailed => self.fail(),
            Input::NotSpawned => {
                self.stage = Stage::Failed;
                self.outputs_open = false;
                Actions::of([Action::CloseOutputs, Action::Finish])
            }
            // The child may still stand in the host's memory.
            Input::Leave => Actions::default(),
            // Killed before its exec, or its report was lost: the same from here on.
            Input::Exited(_)
            | Input::OutputsClosed
            | Input::OutputsQuiet
            | Input::TreeGone
            | Input::TreeLeft
            | Input::TreeStuck
            | Input::TreeUntracked
            | Input::Stop(_)
            | Input::StopGently(..)
            | Input::Deadline(_) => self.running(input),
        }
    }

    fn fail(&mut self) -> Actions {
        self.stage = Stage::Failing;
        self.outputs_open = false;
        Actions::of([Action::CloseOutputs])
    }

    fn running(&mut self, input: Input) -> Actions {
        match input {
            // It looked as if the program had been executed, but the child had died.
            Input::StartFailed => self.fail(),
            Input::Exited(exit) => {
                self.stage = Stage::Draining;
                self.exit = Some(exit);
                Actions::of([Action::ReportExited, Action::EndTree { kill: self.killed || self.policy == TreePolicy::Kill }])
            }
            Input::OutputsClosed => {
                self.outputs_open = false;
                Actions::default()
            }
            Input::Stop(reason) => self.kill(reason, Action::KillTree),
            Input::StopGently(reason, signal, grace) => self.stop_gently(reason, signal, grace),
            Input::Deadline(Timer::Timeout) => match self.timeout_signal {
                Some((signal, grace)) => self.stop_gently(StopReason::Timeout, signal, grace),
                None => self.kill(StopReason::Timeout, Action::KillTree),
            },
            Input::Deadline(Timer::Grace) => self.kill(StopReason::Requested, Action::KillTree),
            // A stop that was begun is seen through.
            Input::Leave if self.stop_reason.is_none() => self.leave(),
            // The main process stands in its cgroup, so that is not empty; a privileged job may have left it. Its exit decides.
            Input::TreeGone
            | Input::TreeLeft
            | Input::TreeStuck
            | Input::TreeUntracked
            | Input::Executed
            | Input::NotSpawned
            | Input::OutputsQuiet
            | Input::Leave
            | Input::Deadline(Timer::DrainIdle | Timer::DrainTotal) => Actions::default(),
        }
    }

    fn failing(&mut self, input: Input) -> Actions {
        match input {
            Input::Exited(_) => {
                self.stage = Stage::Failed;
                Actions::of([Action::Finish])
            }
            Input::Stop(_) | Input::StopGently(..) | Input::Deadline(Timer::Timeout | Timer::Grace) => Actions::of([Action::KillTree]),
            Input::Executed
            | Input::StartFailed
            | Input::NotSpawned
            | Input::OutputsClosed
            | Input::OutputsQuiet
            | Input::TreeGone
            | Input::TreeLeft
            | Input::TreeStuck
            | Input::TreeUntracked
            | Input::Leave
            | Input::Deadline(Timer::DrainIdle | Timer::DrainTotal) => Actions::default(),
        }
    }

    fn draining(&mut self, input: Input) -> Actions {
        match input {
            Input::OutputsClosed => {
                self.outputs_open = false;
                self.settle()
            }
            Input::OutputsQuiet if self.tree == Tree::Gone && self.outputs_open => {
                self.outputs_open = false;
                self.stage = Stage::Finished;
                Actions::of([Action::CloseOutputs, Action::Finish])
            }
            Input::TreeGone => {
                self.tree = Tree::Gone;
                self.settle()
            }
            Input::TreeUntracked => {
                self.tree = Tree::Untracked;
                self.settle()
            }
            Input::TreeLeft => self.limit_drain(),
            Input::TreeStuck => {
                // There is nobody to wait for, nor to kill.
                self.killed = true;
                self.limit_drain()
            }
            Input::Stop(reason) => self.kill(reason, Action::EndTree { kill: true }),
            Input::StopGently(reason, signal, grace) => self.stop_gently(reason, signal, grace),
            // Where the rest of the tree is waited for, it has to keep the time; elsewhere the main process has kept it.
            Input::Deadline(Timer::Timeout) if self.is_waiting_for_tree() => self.kill(StopReason::Timeout, Action::EndTree { kill: true }),
            Input::Deadline(Timer::Grace) => self.kill(StopReason::Requested, Action::EndTree { kill: true }),
            Input::Deadline(Timer::DrainIdle) => {
                if !self.outputs_open {
                    return Actions::default();
                }
                self.outputs_open = false;
                if self.tree == Tree::Present {
                    return Actions::of([Action::CloseOutputs]);
                }
                self.stage = Stage::Finished;
                Actions::of([Action::CloseOutputs, Action::Finish])
            }
            Input::Deadline(Timer::DrainTotal) => {
                self.stage = Stage::Finished;
                if !self.outputs_open {
                    return Actions::of([Action::Finish]);
                }
                self.outputs_open = false;
                Actions::of([Action::CloseOutputs, Action::Finish])
            }
            Input::Leave if self.is_waiting_for_tree() && self.stop_reason.is_none() => self.leave(),
            Input::OutputsQuiet
            | Input::Executed
            | Input::Leave
            | Input::StartFailed
            | Input::NotSpawned
            | Input::Exited(_)
            | Input::Deadline(Timer::Timeout) => Actions::default(),
        }
    }

    fn leave(&mut self) -> Actions {
        self.stage = Stage::Left;
        self.outputs_open = false;
        Actions::of([Action::LetGo])
    }

    fn kill(&mut self, reason: StopReason, how: Action) -> Actions {
        self.stop_reason.get_or_insert(reason);
        self.killed = true;
        Actions::of([how])
    }

    fn stop_gently(&mut self, reason: StopReason, signal: Signal, grace: Duration) -> Actions {
        self.stop_reason.get_or_insert(reason);
        Actions::of([Action::SignalGroup(signal), Action::ArmGrace(grace)])
    }

    /// Finishes the job if nothing is left to wait for, else sees that the wait is bounded.
    fn settle(&mut self) -> Actions {
        if self.tree == Tree::Present {
            return Actions::default();
        }
        if !self.outputs_open {
            self.stage = Stage::Finished;
            return Actions::of([Action::Finish]);
        }
        self.limit_drain()
    }

    fn is_waiting_for_tree(&self) -> bool {
        self.policy == TreePolicy::Wait && !self.killed && self.tree != Tree::Gone
    }

    /// Bounds the drain, unless the job was asked to wait for a tree that is still there (or that nobody can see).
    fn limit_drain(&mut self) -> Actions {
        if self.is_waiting_for_tree() || self.draining_by_deadline {
            return Actions::default();
        }
        self.draining_by_deadline = true;
        Actions::of([Action::ArmDrain])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OK: Input = Input::Exited(Exit::Code(0));
    const KILL: Action = Action::EndTree { kill: true };
    const WAIT: Action = Action::EndTree { kill: false };

    /// Feeds the inputs one after the other and returns what followed from the last.
    fn after(job: &mut Lifecycle, inputs: &[Input]) -> Vec<Action> {
        let mut last = Actions::default();
        for input in inputs {
            last = job.handle(*input);
        }
        last.into_iter().collect()
    }

    fn job(policy: TreePolicy) -> Lifecycle {
        Lifecycle::new(policy, true, None)
    }

    #[test]
    fn a_plain_job_runs_exits_and_finishes_when_its_outputs_end_and_its_tree_is_gone() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(job.state(), JobState::Starting);
        assert_eq!(after(&mut job, &[Input::Executed]), [Action::ReportStarted]);
        assert_eq!(job.state(), JobState::Running);
        assert_eq!(after(&mut job, &[Input::OutputsClosed]), []);
        assert_eq!(after(&mut job, &[OK]), [Action::ReportExited, KILL]);
        assert_eq!(job.state(), JobState::Draining);
        assert_eq!(after(&mut job, &[Input::TreeGone]), [Action::Finish]);
        assert_eq!(job.state(), JobState::Finished);
    }

    #[test]
    fn exit_end_of_output_and_empty_cgroup_may_come_in_any_order_after_the_exit() {
        for order in [[Input::OutputsClosed, Input::TreeGone], [Input::TreeGone, Input::OutputsClosed]] {
            let mut job = job(TreePolicy::Kill);
            after(&mut job, &[Input::Executed, OK]);
            after(&mut job, &order);
            assert_eq!(job.state(), JobState::Finished, "{order:?}");
        }
    }

    #[test]
    fn a_failed_start_ends_when_its_child_is_reaped() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::StartFailed]), [Action::CloseOutputs]);
        assert_eq!(job.state(), JobState::Starting);
        assert_eq!(after(&mut job, &[Input::Exited(Exit::Code(127))]), [Action::Finish]);
        assert_eq!((job.state(), job.exit()), (JobState::Failed, None));
    }

    #[test]
    fn outputs_that_stay_open_after_the_tree_is_gone_end_when_quiet() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::Executed, OK, Input::TreeGone]), [Action::ArmDrain]);
        assert!(job.ends_when_quiet());
        assert_eq!(after(&mut job, &[Input::OutputsQuiet]), [Action::CloseOutputs, Action::Finish]);
        assert_eq!(job.state(), JobState::Finished);
        assert!(!job.tree_is_left());
    }

    #[test]
    fn a_tree_that_cannot_be_seen_ends_by_deadline_however_quiet() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::Executed, OK, Input::TreeUntracked]), [Action::ArmDrain]);
        assert_eq!(after(&mut job, &[Input::OutputsQuiet]), []);
        assert_eq!(after(&mut job, &[Input::Deadline(Timer::DrainIdle)]), [Action::CloseOutputs, Action::Finish]);
    }

    #[test]
    fn a_tree_that_will_not_die_is_left_at_the_total_deadline() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::Executed, Input::OutputsClosed, OK, Input::TreeLeft]), [Action::ArmDrain]);
        assert_eq!(after(&mut job, &[Input::Deadline(Timer::DrainIdle)]), []);
        assert_eq!(after(&mut job, &[Input::Deadline(Timer::DrainTotal)]), [Action::Finish]);
        assert!(job.tree_is_left());
    }

    #[test]
    fn a_job_that_waits_for_its_tree_has_no_deadline_until_the_tree_is_gone() {
        let mut job = job(TreePolicy::Wait);
        assert_eq!(after(&mut job, &[Input::Executed, OK]), [Action::ReportExited, WAIT]);
        assert_eq!(after(&mut job, &[Input::TreeLeft]), []);
        assert!(!job.is_draining_by_deadline());
        assert_eq!(after(&mut job, &[Input::OutputsClosed]), []);
        assert_eq!(after(&mut job, &[Input::TreeGone]), [Action::Finish]);
    }

    #[test]
    fn a_cgroup_that_is_empty_but_cannot_go_is_not_waited_for_without_end() {
        let mut job = job(TreePolicy::Wait);
        after(&mut job, &[Input::Executed, Input::OutputsClosed, OK, Input::TreeLeft]);
        assert_eq!(after(&mut job, &[Input::TreeStuck]), [Action::ArmDrain]);
        assert_eq!(after(&mut job, &[Input::TreeStuck]), []);
        assert_eq!(after(&mut job, &[Input::Deadline(Timer::DrainTotal)]), [Action::Finish]);
        assert!(job.tree_is_left() && job.stop_reason().is_none());
    }

    #[test]
    fn a_stop_ends_the_wait_for_a_tree() {
        let mut job = job(TreePolicy::Wait);
        after(&mut job, &[Input::Executed, OK, Input::TreeLeft]);
        assert_eq!(after(&mut job, &[Input::Stop(StopReason::Requested)]), [KILL]);
        assert_eq!(after(&mut job, &[Input::TreeLeft]), [Action::ArmDrain]);
        assert_eq!(job.stop_reason(), Some(StopReason::Requested));
    }

    #[test]
    fn a_gentle_stop_signals_first_and_kills_after_its_grace() {
        let grace = Duration::from_secs(1);
        let mut job = job(TreePolicy::Kill);
        let gently = Input::StopGently(StopReason::Requested, Signal::TERM, grace);
        assert_eq!(after(&mut job, &[Input::Executed, gently]), [Action::SignalGroup(Signal::TERM), Action::ArmGrace(grace)]);
        assert_eq!(job.state(), JobState::Stopping);
        assert_eq!(after(&mut job, &[Input::Deadline(Timer::Grace)]), [Action::KillTree]);
    }

    #[test]
    fn the_timeout_stops_as_the_command_says_and_the_first_reason_stays() {
        let mut job = Lifecycle::new(TreePolicy::Kill, true, Some((Signal::TERM, Duration::ZERO)));
        let actions = after(&mut job, &[Input::Executed, Input::Deadline(Timer::Timeout)]);
        assert_eq!(actions, [Action::SignalGroup(Signal::TERM), Action::ArmGrace(Duration::ZERO)]);
        after(&mut job, &[Input::Stop(StopReason::Requested)]);
        assert_eq!(job.stop_reason(), Some(StopReason::Timeout));
        let mut job = Lifecycle::new(TreePolicy::Kill, true, None);
        assert_eq!(after(&mut job, &[Input::Executed, Input::Deadline(Timer::Timeout)]), [Action::KillTree]);
    }

    #[test]
    fn a_timeout_after_the_main_process_has_ended_is_no_stop_unless_the_tree_is_waited_for() {
        let timeout = Input::Deadline(Timer::Timeout);
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::Executed, OK, Input::TreeLeft, timeout]), []);
        assert_eq!(job.stop_reason(), None);
        let mut job = Lifecycle::new(TreePolicy::Wait, true, None);
        assert_eq!(after(&mut job, &[Input::Executed, OK, Input::TreeLeft, timeout]), [KILL]);
        assert_eq!(job.stop_reason(), Some(StopReason::Timeout));
    }

    #[test]
    fn a_job_is_left_once_its_program_runs_unless_it_is_ending() {
        let mut job = job(TreePolicy::Kill);
        assert_eq!(after(&mut job, &[Input::Leave]), []);
        assert_eq!(after(&mut job, &[Input::Executed, Input::Leave]), [Action::LetGo]);
        assert_eq!((job.state(), job.exit(), job.stop_reason()), (JobState::Left, None, None));
        assert_eq!(after(&mut job, &[OK]), []);
        for (policy, inputs, expected) in [
            (TreePolicy::Kill, [Input::Executed, Input::Stop(StopReason::Requested)], vec![]),
            (TreePolicy::Kill, [OK, Input::TreeLeft], vec![]),
            (TreePolicy::Wait, [OK, Input::TreeLeft], vec![Action::LetGo]),
        ] {
            let mut job = Lifecycle::new(policy, true, None);
            after(&mut job, &inputs);
            assert_eq!(after(&mut job, &[Input::Leave]), expected, "{policy:?} {inputs:?}");
        }
    }

    #[test]
    fn whatever_comes_after_the_end_changes_nothing() {
        let mut job = job(TreePolicy::Kill);
        after(&mut job, &[Input::Executed, Input::OutputsClosed, OK, Input::TreeGone]);
        let inputs = [
            Input::Executed,
            Input::StartFailed,
            Input::Exited(Exit::Unknown),
            Input::Stop(StopReason::Timeout),
            Input::Deadline(Timer::DrainTotal),
            Input::TreeLeft,
        ];
        assert_eq!(after(&mut job, &inputs), []);
        assert_eq!((job.state(), job.exit(), job.stop_reason()), (JobState::Finished, Some(Exit::Code(0)), None));
    }

    #[test]
    fn every_input_in_every_order_of_three_keeps_the_promises() {
        let grace = Duration::from_secs(1);
        let inputs = [
            Input::Executed,
            Input::Leave,
            Input::StartFailed,
            OK,
            Input::OutputsClosed,
            Input::OutputsQuiet,
            Input::TreeGone,
            Input::TreeLeft,
            Input::TreeUntracked,
            Input::Stop(StopReason::Requested),
            Input::StopGently(StopReason::Requested, Signal::TERM, grace),
            Input::Deadline(Timer::Timeout),
            Input::Deadline(Timer::Grace),
            Input::Deadline(Timer::DrainIdle),
            Input::Deadline(Timer::DrainTotal),
        ];
        for policy in [TreePolicy::Kill, TreePolicy::Wait] {
            for sequence in 0..inputs.len().pow(5) {
                let mut job = job(policy);
                let (mut finishes, mut exits, mut rest) = (0, 0, sequence);
                for _ in 0..5 {
                    for action in job.handle(inputs[rest % inputs.len()]) {
                        finishes += u32::from(matches!(action, Action::Finish | Action::LetGo));
                        exits += u32::from(action == Action::ReportExited);
                    }
                    rest /= inputs.len();
                    assert_eq!(job.state().is_finished(), finishes == 1, "finished exactly when Finish was asked for, once");
                    assert!(exits <= 1);
                    assert!(job.state() != JobState::Finished || job.exit().is_some(), "a finished job has an exit");
                }
            }
        }
    }
}
