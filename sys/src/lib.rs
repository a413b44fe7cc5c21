//! The kernel calls of iron-exec that nix and rustix do not give, and all of its unsafe code.
//!
//! - [`spawn`]: a process made by `clone3(2)` straight into its cgroup, on the host's own memory or a copy of it, or by `fork(2)` where clone3 is
//!   refused; its child half is raw system calls only.
//! - [`wait`]: `waitid(2)` on a pidfd, with the resource usage that only the raw call gives.
//! - [`pidfd`]: `PIDFD_GET_INFO`, which still knows the exit status when somebody else has reaped the process.
//! - [`message`]: descriptors sent from one process to another, or to itself.
//! - [`read`]: `read(2)` behind the end of a vector, with a bound (rustix has it without one).
//! - [`signal`]: any signal by number, real-time ones included.
//!
//! Linux only, x86-64 and AArch64. Every mirrored kernel structure has const assertions of its layout beside it.

#![cfg(target_os = "linux")]

mod arch;
mod child;
mod clone3;
mod image;
pub mod message;
pub mod pidfd;
mod raw;
pub mod read;
pub mod signal;
mod slot;
pub mod spawn;
pub mod wait;

pub use image::{ExecImage, NulByte};
