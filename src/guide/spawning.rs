//! How a job is started, and why a sceptical engineer may believe that it is safe.
//!
//! A host of thousands of jobs starts programs all day, from the thread that also reads every pipe. So a start must cost little, whatever the size of
//! the host; it must not wait for the child, whatever happens to that on its way; and a mistake must not be possible in which the host pays with its
//! memory, its secrets or its life. The first two ask for a child that stands in the host's memory and is not waited for. This page is about the
//! third.
//!
//! # The ladder
//!
//! There are four ways to make a process, the *rungs* ([`Rung`](crate::Rung)):
//!
//! | rung | clone3(2) flags, beside PIDFD, INTO_CGROUP, CLEAR_SIGHAND | the host's memory | the host waits |
//! |---|---|---|---|
//! | `detached` | VM, FILES, CHILD_CLEARTID | shared until the exec | no |
//! | `vfork` | VM, FILES, CHILD_CLEARTID, VFORK | shared until the exec | until the exec |
//! | `fork-like` | none | its page tables are copied | while they are copied |
//! | `fork` | (fork(2): no clone3 here) | its page tables are copied | while they are copied |
//!
//! On all of them the child half is the same code: raw system calls, no allocation, no lock, no C library, no panic. All but `fork` are *born in* their
//! cgroup: no instruction of the job runs outside of its limits. (A forked child writes itself into `cgroup.procs` as its first act.)
//!
//! Each start takes the best rung that is safe for it, and [`Status::rung`](crate::Status::rung) and
//! [`rung_reason`](crate::Status::rung_reason) tell which, and why:
//!
//! ```
//! use iron_exec::{Command, Rung, RungReason, Worker};
//!
//! let mut worker = Worker::new()?;
//! let plain = worker.run_job(Command::new("true"))?;
//! assert_eq!((plain.rung, plain.rung_reason), (worker.capabilities().rung, RungReason::Best));
//!
//! // This one writes its oom_score_adj, which on `detached` would be the host's, too.
//! let scored = worker.run_job(Command::new("true").oom_score_adj(500))?;
//! if worker.capabilities().rung == Rung::Detached {
//!     assert_eq!((scored.rung, scored.rung_reason), (Rung::Vfork, RungReason::OomScoreAdj));
//! }
//! # for status in [plain, scored] { std::fs::remove_file(status.log.unwrap())?; }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # A child on a slot
//!
//! A worker is built with *spawn slots* ([`Builder::spawn_slots_max`](crate::Builder::spawn_slots_max)). A slot is a stack of 32 KiB with a guard page
//! below it, a page of words that host and child share, and a pair of sockets. For a start on `detached` or `vfork`
//!
//! 1. the host lays out everything that the child will need (arguments, environment, every candidate of PATH) and gives it away: from here on it is
//!    the child's, until step 5;
//! 2. it sends the child's descriptors through the slot's socket (SCM_RIGHTS) and closes its own copies; but not /dev/null, which every slot holds open, and
//!    the child has by its number: nothing is sent if there is nothing else;
//! 3. it blocks every signal, calls clone3, and unblocks them: on `detached` that is all there is for it to do;
//! 4. the child leaves the shared table of descriptors for a copy that ends at the slot's socket, or at /dev/null if nothing was sent (`close_range` with CLOSE_RANGE_UNSHARE), takes its
//!    own descriptors from there, closes all others, begins a session, takes its limits and ids, resets its signals, and tries to execute the
//!    candidates. If a step fails it writes step and error into the shared page and ends;
//! 5. at the exec, or at its end, the kernel writes 0 into the last of those words (CLONE_CHILD_CLEARTID). The child has no way back to its stack
//!    after that: slot and plan are the host's again.
//!
//! No descriptor tells the host of an exec; the loop looks at the words of the slots in flight, one load each, whenever it turns anyway, and by its
//! timer 250 µs after a start, then less and less often. A confirming start sleeps on the word itself (futex(2)).
//!
//! # The dangers, and what removes each
//!
//! **The child overwrites memory of the host.** It writes to its own stack, to the plan that was given to it, and to the shared words. The stack has a
//! guard page, and is ten times as large as what was seen in use. A slot whose word is not 0 is never reused and never unmapped, whatever becomes of job
//! and worker; one that cannot be freed in time stays mapped for good, and is counted ([`leaked_spawn_slots`](crate::leaked_spawn_slots)).
//!
//! **The child and a thread of the host meet in the C library.** They share the thread pointer, and so `errno`, the allocator's caches and the stack
//! protector's canary. The child calls nothing of it: its system calls are inline assembly, its code has no formatting, no indexing that could panic, no
//! arithmetic that could overflow. A handler of the host cannot run in it either: signals are blocked from before the clone, and every disposition is
//! the default one (CLONE_CLEAR_SIGHAND) before they are unblocked.
//!
//! **The child holds descriptors of others.** A copy of the host's table would keep the pipes of other jobs open as long as the child lives. The copy
//! that it takes ends at its slot's socket (or before), among the lowest numbers that the host had when the worker was built; ends of jobs' pipes are kept above
//! that; and it closes the rest before it does anything that could hold it up. The host's own copy of a job's descriptors is closed before the child
//! runs, so none can be forgotten there. If the child dies before it takes its message, the host does. What the child has by its number, /dev/null, the slot
//! holds open until the child is off, or for good: nobody else's file can stand there.
//!
//! **The child never comes.** It is born into a frozen cgroup; its user stops it; its program lies on a file system whose server hangs. The host does not
//! wait for it, on `detached`: other jobs go on, and a stop ends it (SIGKILL reaches even a frozen process). When every slot is held like this, further
//! starts wait 100 ms and then take `fork-like`.
//!
//! **An out-of-memory kill takes the host.** The child stands in the job's memory cgroup and in the host's memory map. A kill in that cgroup picks it by
//! the size of the *host*, and then kills every process that shares the map. (Seen: a host of 200 MiB died of a cgroup at its limit.) The kernel passes
//! over VFORK children, but not where `memory.oom.group` kills all. So `detached` is taken only where the job's own cgroup has no `memory.max` or one of
//! at least 2 MiB (512 pages, where those are large) and twice the arguments (such a cgroup, which nobody else is in, cannot run out before the exec), and no
//! cgroup above it, as long as the host is not in that one, too, has `memory.max` or `memory.oom.group`. With a limit above, `vfork`; with a group kill
//! above or a tiny limit, `fork-like`, whose memory is its own. Where the cgroups above cannot be seen (the base is behind a mount of a part of the
//! hierarchy, and the host is not in it), they count as limited.
//!
//! **A child that is not let run holds a lock of the host's memory.** A page fault, and the exec itself, take the lock of the memory map for a moment. A
//! child whose CPU time is used up in that moment keeps it, and the host's next mmap(2) waits. (Seen on Linux 6.1, with 2 % of a CPU above and a busy loop
//! in it: 40 s.) So with a `cpu.max` above, `fork-like`; and a job that makes itself nicer does so last of all. Sheer load can still stretch such a
//! moment to that of a time slice.
//!
//! **The job's user reads the host's memory.** Between setresuid(2) and the exec the child belongs to the job's user, who may trace processes of its own.
//! Two locks, each of which would do: memory in which ids change becomes non-dumpable, and the child makes sure of it; and CAP_SETUID stays in its
//! permitted set until the exec, so that only a tracer who has that, too, gets in (ptrace(2), "access mode checking"). Where the kernel is told to keep
//! such memory dumpable (`fs.suid_dumpable` = 1) or the host asks for that ([`Builder::keep_dumpable`](crate::Builder::keep_dumpable)), the first lock is
//! missing; where the capability cannot be kept (SECBIT_KEEP_CAPS_LOCKED), the second: then a child with other ids takes `fork-like`, and where both are
//! missing it is not started at all. The host never becomes dumpable again by our doing: a second worker of the process may have a child on its way. Nor
//! should it make itself dumpable while one is: its memory stays closed, but that user could then write the child's, that is the host's,
//! `oom_score_adj` and `coredump_filter`. A host that is not root (it has CAP_SETUID, say) always keeps its `/proc/self`: it counts as one that asked to
//! stay dumpable.
//!
//! **The job's user has the host's memory dumped.** A signal that dumps core, sent to the child on its way, would dump the memory it stands in. Until the
//! exec those signals have a handler, which kills without a core; the exec takes it away.
//!
//! **The job's user stalls the host.** It may stop its own child on its way. On `vfork` the host would wait for that, so jobs of other users never take it.
//! What is left there are jobs of the host's own user; one whose program lies on a hung file system does stall the host. That takes a `memory.max` above
//! (put the limit on the jobs instead, or the host below it) or an `oom_score_adj`; [`Builder::rung`](crate::Builder::rung) with
//! [`Rung::ForkLike`](crate::Rung::ForkLike) rules it out for good.
//!
//! **A setting of the job becomes the host's.** umask and working directory are the child's own (no CLONE_FS), and so are its limits, nice value, ids,
//! session and signal mask. `oom_score_adj` is not: the kernel keeps it the same for all that share memory, but for VFORK children. Hence that rule.
//!
//! **A core dump takes the host along.** Before Linux 5.16 a process that dumps core killed all that share its memory: the slot rungs are not taken there.
//!
//! **The host dies, panics or is dropped with children on their way.** Its memory lives as long as somebody is in it: the child goes on. A worker that is
//! dropped kills its jobs, and waits for them for a bounded time. A host that is killed while a child of it is held before its first instruction (born into
//! a frozen cgroup) leaves its memory and its open files, listening sockets too, in the hands of that child until somebody thaws or kills it.
//!
//! # What it costs
//!
//! A start on `detached` does not grow with the host's memory, with the files that it opened after the worker was built, or with the load: nothing is
//! copied, nobody is waited for. Files that were open *before* lie below the slots' sockets, and each child copies the table up to there (some 100 µs for a
//! thousand): its own time, not the host's, but time. Build the worker early.
//!
//! A start that is *confirmed*, as it is by default, waits until the program is executed, and so for the child's turn on a CPU, as posix_spawn(3) does. On a
//! busy host that is milliseconds: the child begins a session, and where the kernel shares its CPUs out by sessions (`kernel.sched_autogroup_enabled`, see
//! sched(7); jobs in a cgroup with the `cpu` controller are no part of that) a new one has to wait behind all that want the CPU. Who must not be held up says
//! [`confirm(false)`](crate::Builder::confirm), waits no longer than a short [`confirm_timeout`](crate::Builder::confirm_timeout), or starts by a
//! [`Handle`](crate::Handle), whose starts are confirmed without holding up the loop.
//!
//! `cargo bench -p iron-exec-benches --bench spawn` shows all of this, beside posix_spawn(3), `std` and tokio.
//!
//! # What it cannot do
//!
//! - A start that nobody confirms is told ([`Event::Started`](crate::Event::Started)) when the child is off its slot, or has let go of its link. If it was
//!   killed just then, [`Event::StartFailed`](crate::Event::StartFailed) follows. One that is confirmed looks twice.
//! - A child on `fork-like` or `fork` begins with copies of all that the host has open. One that is frozen at birth holds them: the standard input of other
//!   jobs, say, which does not end for them until then. (Starts that wait for a slot hold nothing in that way: their descriptors are parked in a socket.)
//! - An exec that fails *past the point of no return* (the old memory is gone, the new program cannot be set up) ends in a SIGSEGV of the kernel's, and
//!   cannot be told from a program that crashes at its first instruction. A child that is killed *before* that point can: its start has failed
//!   ([`Step::Killed`](crate::Step::Killed)), the job has not run.
//! - The rules look at `memory.max`, `memory.high`, `memory.oom.group` and `cpu.max` above when the job is started. Whoever sets one, in the moment between the clone and the exec, on a
//!   cgroup that is at its limit, is not protected from what that does. Nor does it look at `cpuset.mems` above, which on a machine of many memory nodes
//!   can run out of them.
//! - Where the host's cgroup is, is looked at when the worker is built: move the host first, then build.
//! - A host that is built with AddressSanitizer needs `--cfg iron_exec_asan` beside `-Zsanitizer=address`, and `detect_stack_use_after_return=0` among its
//!   `ASAN_OPTIONS`: the sanitizer keeps notes of the frames on every stack, and a child leaves those on its slot without a return. (`.ci/asan` runs the storm of starts so.)
