//! Floor 1: plain values. What is asked, what is answered, what went wrong.

pub(crate) mod capabilities;
pub(crate) mod command;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod id;
pub(crate) mod leftover;
pub(crate) mod limits;
pub(crate) mod log_policy;
pub(crate) mod output;
pub(crate) mod pressure;
pub(crate) mod reading;
pub(crate) mod resource;
pub(crate) mod retention;
pub(crate) mod settings;
pub(crate) mod shutdown;
pub(crate) mod signal;
pub(crate) mod status;
pub(crate) mod usage;
