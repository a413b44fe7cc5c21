//! What is not ours may panic: a task's waker, what a handle was given to do, what is dropped with either.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Does something that is not ours; `None` if it has panicked, which is to stop neither the loop nor anybody who waits for it.
pub(crate) fn shielded<T>(body: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(value) => Some(value),
        Err(payload) => {
            // That is not ours either. One whose drop panics, and so on, is not dropped.
            if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
                std::mem::forget(payload);
            }
            None
        }
    }
}
