//! Floor 2: logic without I/O. No clock, no descriptor: time is an argument, bytes come in and go out.

pub(crate) mod archive;
pub(crate) mod bucket;
pub(crate) mod cgroup_text;
pub mod cri;
pub(crate) mod deadlines;
pub(crate) mod ids;
pub(crate) mod kernel_text;
pub(crate) mod ladder;
pub(crate) mod lifecycle;
pub(crate) mod lines;
pub(crate) mod mark;
pub(crate) mod names;
pub(crate) mod pace;
pub(crate) mod retention;
pub(crate) mod token;
