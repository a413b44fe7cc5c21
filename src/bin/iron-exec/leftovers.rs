//! What dead workers have left in the base: the processes of jobs whose host crashed.

use std::time::Duration;

use iron_exec::Worker;

use crate::args::WorkerArgs;
use crate::report::{complain, quoted_path, with_causes};

/// How long the killed are waited for, in all.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Left-overs that a message names; of more it says how many there are.
pub(crate) const NAMED_MAX: usize = 10;

/// Kills what is left of dead workers, if that was asked for. What cannot be killed is told, and hinders nothing.
pub(crate) fn kill_if_asked(args: &WorkerArgs, worker: &mut Worker) {
    if !args.kill_leftovers {
        return;
    }
    if let Err(error) = worker.kill_leftovers(KILL_TIMEOUT) {
        complain(&format!("killing what dead workers have left failed, going on: {}", with_causes(&error)));
    }
    let left = match worker.leftovers() {
        Ok(left) => left,
        Err(error) => {
            complain(&format!("looking for what dead workers have left failed, going on: {}", with_causes(&error)));
            return;
        }
    };
    for leftover in left.iter().take(NAMED_MAX) {
        complain(&format!("what a dead worker has left could not be removed, going on: {}", quoted_path(&leftover.path)));
    }
    if left.len() > NAMED_MAX {
        complain(&format!("and {} more that could not be removed", left.len() - NAMED_MAX));
    }
}
