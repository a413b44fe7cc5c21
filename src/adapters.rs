//! Floor 6: the worker and its logs in the terms of other loops; each behind a feature of its own name.

#[cfg(feature = "calloop")]
pub mod calloop;
#[cfg(feature = "futures-io")]
mod futures_io;
#[cfg(feature = "tokio")]
pub mod tokio;
