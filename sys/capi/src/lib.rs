//! The C interface of iron-exec: the crate's own types behind opaque pointers, its errors as codes and texts.
//!
//! `include/iron_exec.h` is made from this crate by cbindgen (`tests/header.rs` sees to it that the two agree), so the documentation of the functions is
//! written for the reader of the header. What holds for all of them stands at the top of the header, which is [`cbindgen.toml`'s](../cbindgen.toml) part.
//!
//! # Map of the code
//!
//! | module | what lives there |
//! |---|---|
//! | `worker` | a worker: built, turned, asked, freed |
//! | `config` | what a worker is built with |
//! | `command` | what is to be run |
//! | `status` | what is answered about a job |
//! | `event` | what a turn tells |
//! | `stream` | a job's output while it runs |
//! | `id` | the ids of jobs and owners |
//! | `error` | codes, and the object that holds the text of an error |
//! | `border` | where pointers become references, and panics become codes |

#![allow(
    clippy::missing_safety_doc,
    reason = "what the caller promises of every pointer is said once, at the top of the header and of the module `border`"
)]

mod border;
mod command;
mod config;
mod error;
mod event;
mod id;
mod status;
mod stream;
mod worker;

pub use command::*;
pub use config::*;
pub use error::*;
pub use event::*;
pub use id::*;
pub use status::*;
pub use stream::*;
pub use worker::*;
