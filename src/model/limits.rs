//! What a job may use, as its cgroup holds it to.

/// Limits of a job's whole process tree, written into its cgroup before the first process is in it. Nothing is started without a limit that was
/// asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub(crate) memory_max: Option<u64>,
}

impl Limits {
    /// No limits.
    pub fn new() -> Self {
        Self::default()
    }

    /// The most memory, in bytes, rounded down to whole pages: beyond it the kernel reclaims, then kills (`memory.max`; needs the controller
    /// "memory").
    pub fn memory_max(mut self, bytes: u64) -> Self {
        self.memory_max = Some(bytes);
        self
    }
}
