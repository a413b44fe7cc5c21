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

pub(crate) const CALLS: [Calls; 20] = [
    Calls { name: "clone3", at_most: [1.0, 1.0, 1.0, 1.0], why: "makes the process: in its cgroup, with its pidfd" },
    Calls {
        name: "close",
        at_most: [1.0, 6.0, 7.0, 7.0],
        why: "its pidfd; of a log, the file and both ends of two pipes; of a cgroup, the directory for clone3",
    },
    Calls {
        name: "epoll_ctl",
        at_most: [2.0, 6.0, 6.0, 6.0],
        why: "adds and removes the pidfd and each pipe: removed before the close, as a child on its way may hold a copy",
    },
    Calls { name: "epoll_wait", at_most: [1.0, 1.0, 1.0, 0.06], why: "one turn; jobs that end together share it" },
    Calls { name: "fchmod", at_most: [0.0, 1.0, 1.0, 1.0], why: "seals the log" },
    Calls { name: "fsetxattr", at_most: [0.0, 1.0, 1.0, 1.0], why: "marks the log as this worker's" },
    Calls { name: "fstat", at_most: [0.0, 1.0, 1.0, 1.0], why: "the log's inode, for readers that come after the end" },
    Calls { name: "ioctl", at_most: [0.0, 2.0, 2.0, 2.0], why: "our end of each pipe does not block; pipe2 would do that to both ends" },
    Calls { name: "mkdirat", at_most: [0.0, 0.0, 1.0, 1.0], why: "the cgroup" },
    Calls { name: "openat", at_most: [0.0, 1.0, 2.0, 2.0], why: "the log; the cgroup's directory, for clone3" },
    Calls {
        name: "pidfd_send_signal",
        at_most: [1.0, 1.0, 0.0, 0.0],
        why: "without a cgroup, what is left of its group is killed while the zombie holds its id",
    },
    Calls { name: "pipe2", at_most: [0.0, 2.0, 2.0, 2.0], why: "stdout and stderr" },
    Calls {
        name: "pread64",
        at_most: [0.0, 0.0, 1.0, 1.0],
        why: "what limits the cgroup above, which may make a rung unsafe (with controllers, four files more)",
    },
    Calls { name: "read", at_most: [0.0, 3.0, 3.0, 3.0], why: "the line, and the end of each pipe" },
    Calls { name: "rt_sigprocmask", at_most: [2.0, 2.0, 2.0, 2.0], why: "no handler of the host's is to run in a child on its memory" },
    Calls { name: "sendmsg", at_most: [0.0, 1.0, 1.0, 1.0], why: "hands the child its descriptors, all but /dev/null" },
    Calls {
        name: "timerfd_settime",
        at_most: [2.0, 2.0, 2.0, 0.07],
        why: "when to look whether a child has left its slot: at the start if no timer is set, and after an early look",
    },
    Calls { name: "unlinkat", at_most: [0.0, 0.0, 1.0, 1.0], why: "removes the cgroup" },
    Calls {
        name: "waitid",
        at_most: [2.0, 2.0, 1.0, 1.0],
        why: "looks at the zombie, then reaps it: in between its group is killed; with a cgroup, and past all doubt, it is only reaped",
    },
    Calls { name: "write", at_most: [0.0, 1.0, 1.0, 1.0], why: "the record into the log" },
];

/// Reads of a cgroup above that has controllers are so many times as many: its limits, each a file.
pub(crate) const READS_ABOVE_CONTROLLED: f64 = 5.0;

/// Allocations, whatever their size; to make one larger counts as another.
#[derive(Debug)]
pub(crate) struct Allocations {
    pub(crate) name: &'static str,
    pub(crate) at_most: f64,
    pub(crate) why: &'static str,
}

/// What grows now and then, by doubling.
pub(crate) const ALLOCATIONS_SLACK: f64 = 0.05;

pub(crate) const ALLOCATIONS: [Allocations; 9] = [
    Allocations { name: "a job, plain", at_most: 14.0, why: "what is kept of it, and what its exec needs" },
    Allocations { name: "a job, logged", at_most: 22.0, why: "the same, and its pipes, its log's name and its line splitters" },
    Allocations { name: "a job, full", at_most: 23.0, why: "the same, and its cgroup's name" },
    Allocations { name: "an event, plain", at_most: 0.34, why: "the usage that the end of a job is told with: one for its three events" },
    Allocations { name: "an event, full", at_most: 0.34, why: "the usage that the end of a job is told with: one for its three events" },
    Allocations { name: "a status, logged", at_most: 4.0, why: "the strings in it: its name, and the path of its log" },
    Allocations { name: "100 lines of one job", at_most: 0.0, why: "lines go through the loop's own buffers" },
    Allocations { name: "an idle turn", at_most: 0.0, why: "with 100 idle jobs" },
    Allocations { name: "a turn, one job ready", at_most: 0.0, why: "with 100 idle jobs: a line from the pipe to the log" },
];

/// Instructions for a line of 80 bytes on x86_64, in each direction a part of [`INSTRUCTIONS_SLACK`].
#[derive(Debug)]
pub(crate) struct Instructions {
    pub(crate) name: &'static str,
    pub(crate) is_loop: bool,
    /// Under `cargo bench`.
    pub(crate) optimized: f64,
    /// Under `cargo test`.
    pub(crate) not_optimized: f64,
    pub(crate) why: &'static str,
}

/// Compilers differ. What comes down by more than that is to be written here, or it would not stay down.
pub(crate) const INSTRUCTIONS_SLACK: f64 = 0.1;

pub(crate) const INSTRUCTIONS: [Instructions; 2] = [
    Instructions {
        name: "a line, framing",
        is_loop: false,
        optimized: 199.0,
        not_optimized: 2681.0,
        why: "the line splitter and the record encoder",
    },
    Instructions {
        name: "a line, loop",
        is_loop: true,
        optimized: 238.0,
        not_optimized: 2899.0,
        why: "from the pipe to the log, without the kernel's",
    },
];
