//! Floor 3: one kernel object per file.

pub(crate) mod cgroup;
pub(crate) mod disk;
pub(crate) mod log_dir;
pub(crate) mod log_file;
pub(crate) mod process;
pub(crate) mod spawner;
pub(crate) mod stdio;
pub(crate) mod stream;
pub(crate) mod watcher;
