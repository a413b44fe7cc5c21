//! Longer texts: why things are as they are. Nothing to call.

pub mod embedding;
pub mod limits;
pub mod logs;
pub mod spawning;
