//! What differs from one architecture to the next: how a system call is made, and how a child begins on a stack of its own.

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "x86_64")]
mod x86_64;

#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::{clone3_on_stack, syscall6};
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{clone3_on_stack, syscall6};

#[cfg(not(any(target_arch = "aarch64", target_arch = "x86_64")))]
compile_error!("iron-exec-sys knows the system call convention of x86-64 and AArch64 only");
