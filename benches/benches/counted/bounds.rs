//! All bounds.
//!
//! A figure above its bound fails the bench, and so does a system call that is not in the table. To change a bound: run the bench, read in its output what
//! the figure is now, say in `why` (of a system call) and in the commit what the host gets for it, and write it here. A figure that has come down is to be
//! written here as well: nothing else keeps it there.

/// System calls that the host makes for a job, of one name.
#[derive(Debug)]
pub(crate) struct Calls {
    pub(crate) name: &'static str,
    /// In the order of [`SCENARIOS`](crate::load::SCENARIOS).
    pub(crate) at_most: [f64; 4],
    pub(crate) why: &'static str,
}

/// How much more there may be: the memory allocator asks for memory now and then, a notice comes late once in a while.
pub(crate) const CALLS_SLACK: f64 = 0.1;

pub(crate) const CALLS: [Calls; 0] = [];
