//! What is left of hosts that died.

use std::path::PathBuf;

use crate::model::id::JobId;

/// The cgroup of a job whose worker is dead: its host crashed, say. See [`Worker::leftovers`](crate::Worker::leftovers).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leftover {
    /// The job.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// Its cgroup.
    pub path: PathBuf,
    /// Whether processes are left in it.
    pub populated: bool,
}
