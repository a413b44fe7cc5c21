//! Resources that a process can be limited in.

/// A resource whose use setrlimit(2) bounds. The unit is the kernel's: bytes, seconds or a count, as getrlimit(2) says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resource {
    /// RLIMIT_CPU: CPU time, in seconds.
    Cpu,
    /// RLIMIT_FSIZE: size of a file written, in bytes.
    Fsize,
    /// RLIMIT_DATA: data segment, in bytes.
    Data,
    /// RLIMIT_STACK: main stack, in bytes.
    Stack,
    /// RLIMIT_CORE: core file, in bytes.
    Core,
    /// RLIMIT_RSS: without effect since Linux 2.4.30.
    Rss,
    /// RLIMIT_NPROC: processes of the user, a count.
    Nproc,
    /// RLIMIT_NOFILE: one more than the highest file descriptor number.
    Nofile,
    /// RLIMIT_MEMLOCK: locked memory, in bytes.
    Memlock,
    /// RLIMIT_AS: address space, in bytes.
    As,
    /// RLIMIT_LOCKS: without effect since Linux 2.4.25.
    Locks,
    /// RLIMIT_SIGPENDING: queued signals, a count.
    Sigpending,
    /// RLIMIT_MSGQUEUE: POSIX message queues, in bytes.
    Msgqueue,
    /// RLIMIT_NICE: ceiling of the nice value, as 20 - nice.
    Nice,
    /// RLIMIT_RTPRIO: ceiling of the real-time priority.
    Rtprio,
    /// RLIMIT_RTTIME: CPU time of a real-time task without a blocking call, in microseconds.
    Rttime,
}

impl Resource {
    /// The kernel's value for "no limit".
    pub const UNLIMITED: u64 = u64::MAX;
}
