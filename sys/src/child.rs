//! The child half: from the clone to execve. Raw system calls only; it allocates nothing, takes no lock and cannot panic, because it runs on the
//! very memory, or a copy of it, of a host whose other threads stopped at any point, or go on.

use core::ffi::CStr;
use core::sync::atomic::{Ordering, fence};

use crate::image::ExecImage;
use crate::raw::{self, Errno};
use crate::slot::Control;
use crate::spawn::ChildSetup;

/// A step that the child takes.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildStep {
    /// Writing itself into `cgroup.procs` (fork rung).
    Cgroup = 1,
    /// Putting a descriptor at its number; the index is that number.
    Dup = 2,
    /// Closing every other descriptor, or leaving the host's table of them.
    CloseFds = 3,
    /// setsid(2).
    Setsid = 4,
    /// setrlimit(2); the index is the resource.
    Rlimit = 5,
    /// setpriority(2).
    Nice = 6,
    /// Writing `/proc/self/oom_score_adj`.
    OomScoreAdj = 7,
    /// setgroups(2).
    Setgroups = 8,
    /// setresgid(2).
    Setgid = 9,
    /// setresuid(2), and what keeps that user out of this process until the exec.
    Setuid = 10,
    /// chdir(2).
    Chdir = 11,
    /// prctl(PR_SET_NO_NEW_PRIVS).
    NoNewPrivs = 12,
    /// sigaction(2) and sigprocmask(2).
    Signals = 13,
    /// execve(2); the index is the candidate.
    Exec = 14,
    /// execve(2) found the program, but not the interpreter that it names; the index is the candidate.
    Interpreter = 15,
}

impl ChildStep {
    pub(crate) fn from_wire(number: u32) -> Option<Self> {
        [
            Self::Cgroup,
            Self::Dup,
            Self::CloseFds,
            Self::Setsid,
            Self::Rlimit,
            Self::Nice,
            Self::OomScoreAdj,
            Self::Setgroups,
            Self::Setgid,
            Self::Setuid,
            Self::Chdir,
            Self::NoNewPrivs,
            Self::Signals,
            Self::Exec,
            Self::Interpreter,
        ]
        .into_iter()
        .find(|step| *step as u32 == number)
    }
}

/// One descriptor on its way to its number in the child.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FdMove {
    pub(crate) from: i32,
    pub(crate) to: i32,
}

/// Where a descriptor comes from that is sent to the child: it has no number there as yet.
pub(crate) const SENT: i32 = -1;

/// What the child half does, prepared by the parent.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) image: ExecImage,
    pub(crate) setup: ChildSetup,
    /// The value of `oom_score_adj` as it is written.
    pub(crate) oom_score_adj: Option<String>,
    pub(crate) moves: Vec<FdMove>,
    /// The numbers of `moves`, ascending.
    pub(crate) numbers: Vec<i32>,
}

/// Where a failure is reported.
pub(crate) enum Link<'a> {
    /// A pipe or socket of the child's own.
    Descriptor(i32),
    /// The memory that it shares with the parent.
    Memory(&'a Control),
}

/// A failed step: which, the error, and which of several (a descriptor's number, a resource, a candidate).
type Failure = (ChildStep, Errno, u32);

/// The failure record on the wire: step, errno, index, little-endian words. Written in one piece (it is shorter than PIPE_BUF).
pub(crate) const RECORD_BYTES: usize = 12;

/// The whole of it on memory and descriptors of the child's own.
pub(crate) fn run(plan: &mut Plan, link: i32) -> ! {
    let mut link = Link::Descriptor(link);
    let failure = prepare_and_exec(plan, &mut link);
    report(&link, failure);
    raw::exit_group(127)
}

/// The whole of it on the parent's memory: the table of descriptors is the parent's too, until this has left it.
pub(crate) fn run_on_slot(plan: &mut Plan, control: &Control) -> ! {
    let failure = match leave_table(control.top()).and_then(|()| receive(plan, control)) {
        Ok(()) => prepare_and_exec(plan, &mut Link::Memory(control)),
        Err(failure) => failure,
    };
    report(&Link::Memory(control), failure);
    raw::exit_group(127)
}

/// Leaves the parent's table of descriptors for one of our own that ends below `top`, just above the slot's socket or /dev/null. From here on, and not before,
/// descriptors may be closed and made.
fn leave_table(top: u32) -> Result<(), Failure> {
    match raw::close_range_unshare(top) {
        // A filter refuses it: the dear way, with a copy of everything.
        Err(libc::ENOSYS | libc::EPERM) => raw::unshare_files(),
        left => left,
    }
    .map_err(|errno| (ChildStep::CloseFds, errno, 0))
}

/// Takes what was sent of the job's descriptors from the slot's socket.
fn receive(plan: &mut Plan, control: &Control) -> Result<(), Failure> {
    let wanted = plan.moves.iter().filter(|fd| fd.from == SENT).count();
    if wanted == 0 {
        return Ok(());
    }
    let came = raw::receive_fds(control.socket(), plan.moves.iter_mut().map(|fd| &mut fd.from).filter(|from| **from == SENT));
    control.note_received();
    match came {
        Ok(came) if came == wanted => Ok(()),
        // The kernel leaves out what the limit of open files does not allow.
        Ok(_) => Err((ChildStep::Dup, libc::EMFILE, 0)),
        Err(errno) => Err((ChildStep::Dup, errno, 0)),
    }
}

/// The fork rung's first act: stand in the cgroup, then wait until the parent holds our pidfd.
pub(crate) fn enter_cgroup_and_wait(procs: Option<i32>, link: i32) {
    let failed = procs.and_then(|procs| raw::write(procs, b"0").err());
    let mut go = [0_u8; 1];
    let told = loop {
        match raw::read(link, &mut go) {
            Err(libc::EINTR) => {}
            other => break other == Ok(1),
        }
    };
    if !told {
        raw::exit_group(127);
    }
    if let Some(errno) = failed {
        report(&Link::Descriptor(link), (ChildStep::Cgroup, errno, 0));
        raw::exit_group(127);
    }
}

fn report(link: &Link<'_>, (step, errno, index): Failure) {
    match link {
        Link::Descriptor(fd) => {
            let [s0, s1, s2, s3] = (step as u32).to_le_bytes();
            let [e0, e1, e2, e3] = errno.to_le_bytes();
            let [i0, i1, i2, i3] = index.to_le_bytes();
            let record: [u8; RECORD_BYTES] = [s0, s1, s2, s3, e0, e1, e2, e3, i0, i1, i2, i3];
            // There is nobody to tell if this fails; the parent sees end of file and an exit code of 127.
            let _ = raw::write(*fd, &record);
        }
        Link::Memory(control) => {
            control.note_failed(step as u32, errno, index);
            // The kernel's write of the slot's word, at our exit, must not overtake it.
            fence(Ordering::SeqCst);
        }
    }
}

fn prepare_and_exec(plan: &mut Plan, link: &mut Link<'_>) -> Failure {
    match prepare(plan, link) {
        Ok(()) => exec(&plan.image),
        Err(failure) => failure,
    }
}

fn prepare(plan: &mut Plan, link: &mut Link<'_>) -> Result<(), Failure> {
    move_fds(plan, link)?;
    let report = match link {
        Link::Descriptor(fd) => Some(*fd),
        Link::Memory(_) => None,
    };
    close_others(&plan.numbers, report).map_err(|errno| (ChildStep::CloseFds, errno, 0))?;
    let setup = &plan.setup;
    raw::setsid().map_err(|errno| (ChildStep::Setsid, errno, 0))?;
    if let Some(mask) = setup.umask {
        raw::umask(mask);
    }
    // Before the limits: under a low RLIMIT_NOFILE the file could not be opened.
    if let Some(score) = &plan.oom_score_adj {
        write_oom_score_adj(score.as_bytes()).map_err(|errno| (ChildStep::OomScoreAdj, errno, 0))?;
    }
    for &(resource, soft, hard) in &setup.rlimits {
        raw::setrlimit(resource, soft, hard).map_err(|errno| (ChildStep::Rlimit, errno, resource))?;
    }
    // Back first, forth last: taking precedence may need a right that the new user does not have, and who shares the host's memory may hold one of
    // its locks for a moment, so it does not become slow before it must.
    let is_slower = setup.nice.is_some_and(|nice| raw::nice() < nice);
    if !is_slower {
        be_nice(setup)?;
    }
    become_user(setup, matches!(link, Link::Memory(_)))?;
    if let Some(cwd) = plan.image.cwd() {
        raw::chdir(cwd).map_err(|errno| (ChildStep::Chdir, errno, 0))?;
    }
    if setup.no_new_privs {
        raw::set_no_new_privs().map_err(|errno| (ChildStep::NoNewPrivs, errno, 0))?;
    }
    reset_signals().map_err(|errno| (ChildStep::Signals, errno, 0))?;
    if is_slower {
        be_nice(setup)?;
    }
    Ok(())
}

fn be_nice(setup: &ChildSetup) -> Result<(), Failure> {
    match setup.nice {
        Some(nice) => raw::setpriority_self(nice).map_err(|errno| (ChildStep::Nice, errno, 0)),
        None => Ok(()),
    }
}

/// Changes groups and ids.
///
/// From here to the exec the job's user owns a process whose memory is the host's, or a copy of it. Two things keep that user out, each enough by
/// itself: the kernel makes memory non-dumpable as the ids change (unless `fs.suid_dumpable` is 1; we make sure of it), and a process may trace, or
/// read the memory of, only one whose permitted capabilities it has (ptrace(2)): CAP_SETUID stays permitted, and nothing effective, until the exec
/// takes it. Where the capability cannot be kept (SECBIT_KEEP_CAPS_LOCKED), a child whose memory is a copy goes on without, unless the other lock is
/// known to be open.
fn become_user(setup: &ChildSetup, shares_memory: bool) -> Result<(), Failure> {
    if let Some(groups) = &setup.groups {
        raw::setgroups(groups).map_err(|errno| (ChildStep::Setgroups, errno, 0))?;
    }
    if let Some(gid) = setup.gid {
        raw::setresgid(gid).map_err(|errno| (ChildStep::Setgid, errno, 0))?;
    }
    let Some(uid) = setup.uid else { return Ok(()) };
    let failed = |errno| (ChildStep::Setuid, errno, 0);
    let needs_capability = shares_memory || setup.needs_capability;
    if setup.drop_capabilities {
        let kept = raw::keep_capabilities();
        if needs_capability {
            kept.map_err(failed)?;
        }
    }
    raw::setresuid(uid).map_err(failed)?;
    if setup.drop_capabilities {
        // From one user to another, neither root, the kernel keeps all of them; ambient ones would even live through the exec.
        match raw::permit_capabilities(raw::CAP_SETUID) {
            Err(_) if !needs_capability => raw::permit_capabilities(0),
            permitted => permitted,
        }
        .map_err(failed)?;
        raw::set_not_dumpable().map_err(failed)?;
    }
    Ok(())
}

/// Puts every descriptor at its number, whatever the numbers they come from: those that stand where another is to go step aside first.
fn move_fds(plan: &mut Plan, link: &mut Link<'_>) -> Result<(), Failure> {
    let failed = |to: i32| move |errno: Errno| (ChildStep::Dup, errno, to as u32);
    let numbers = &plan.numbers;
    if let Link::Descriptor(fd) = link {
        *fd = step_aside(*fd, numbers).map_err(failed(*fd))?;
    }
    for fd in &mut plan.moves {
        if fd.from != fd.to {
            fd.from = step_aside(fd.from, numbers).map_err(failed(fd.to))?;
        }
    }
    for fd in &plan.moves {
        if fd.from == fd.to {
            raw::clear_cloexec(fd.to).map_err(failed(fd.to))?;
        } else {
            raw::dup3(fd.from, fd.to).map_err(failed(fd.to))?;
        }
    }
    Ok(())
}

/// A descriptor for the same file at a number that nobody is to get. The lowest such, so that a low RLIMIT_NOFILE does not matter.
fn step_aside(fd: i32, numbers: &[i32]) -> Result<i32, Errno> {
    let mut fd = fd;
    while numbers.contains(&fd) {
        // Duplicates that land on a wanted number are overwritten by what goes there, or closed by the exec.
        fd = raw::dup_from(fd, fd.wrapping_add(1))?;
    }
    Ok(fd)
}

/// Closes every descriptor but the wanted ones, whether or not the host remembered close-on-exec. At once, not at the exec: a child that is held
/// before that (its cgroup frozen, its program on a hung file system) must hold nothing of other jobs.
fn close_others(numbers: &[i32], report: Option<i32>) -> Result<(), Errno> {
    let mut first = 0_u32;
    loop {
        let kept = numbers.iter().copied().chain(report).map(|fd| fd as u32).filter(|fd| *fd >= first).min();
        let closed = match kept {
            Some(kept) if kept == first => Ok(()),
            Some(kept) => raw::close_range(first, kept.wrapping_sub(1)),
            None => raw::close_range(first, u32::MAX),
        };
        match (closed, kept) {
            // Before 5.9 it is not there; a filter may refuse it.
            (Err(libc::ENOSYS | libc::EPERM), _) => return close_others_one_by_one(numbers),
            (Err(errno), _) => return Err(errno),
            (Ok(()), Some(kept)) => first = kept.wrapping_add(1),
            (Ok(()), None) => return Ok(()),
        }
    }
}

/// The same by `/proc/self/fd`, at the exec.
fn close_others_one_by_one(numbers: &[i32]) -> Result<(), Errno> {
    let directory = raw::open(c"/proc/self/fd", libc::O_RDONLY | libc::O_DIRECTORY)?;
    let mut entries = [0_u8; 1024];
    loop {
        let filled = raw::getdents64(directory, &mut entries)?;
        if filled == 0 {
            return Ok(());
        }
        let mut rest = entries.get(..filled).unwrap_or_default();
        // struct linux_dirent64: ino 8, offset 8, record length 2, type 1, name.
        while let (Some(&low), Some(&high)) = (rest.get(16), rest.get(17)) {
            let length = usize::from(u16::from_ne_bytes([low, high])).max(19);
            if let Some(fd) = number(rest.get(19..).unwrap_or_default())
                && !numbers.contains(&fd)
            {
                raw::set_cloexec(fd)?;
            }
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// The decimal number that a NUL-terminated name is, if it is one.
fn number(name: &[u8]) -> Option<i32> {
    let mut value: Option<i32> = None;
    for &byte in name {
        match byte {
            b'0'..=b'9' => value = value.unwrap_or(0).checked_mul(10)?.checked_add(i32::from(byte.wrapping_sub(b'0'))),
            0 => break,
            _ => return None,
        }
        value?;
    }
    value
}

fn write_oom_score_adj(score: &[u8]) -> Result<(), Errno> {
    let file = raw::open(c"/proc/self/oom_score_adj", libc::O_WRONLY)?;
    let written = raw::write(file, score);
    raw::close(file);
    written.map(drop)
}

/// Signals that dump core (signal(7)).
const CORE_SIGNALS: [i32; 10] = [
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGSYS,
];

/// Every signal back to its default action, ignored ones too (CLONE_CLEAR_SIGHAND leaves them, and Rust hosts ignore SIGPIPE), none blocked. Those that
/// dump core get theirs by the exec, which takes a handler away: until then they kill without one, for it would be a core of the host's memory.
fn reset_signals() -> Result<(), Errno> {
    for number in 1..=64 {
        if number != libc::SIGKILL && number != libc::SIGSTOP {
            raw::set_action(number, CORE_SIGNALS.contains(&number).then_some(die_without_core as extern "C" fn(i32) -> !))?;
        }
    }
    raw::set_signal_mask(0).map(drop)
}

extern "C" fn die_without_core(_signal: i32) -> ! {
    raw::die()
}

/// Tries the candidates as execvp(3) does; returns what to report when none could be executed.
fn exec(image: &ExecImage) -> Failure {
    let mut best: Failure = (ChildStep::Exec, libc::ENOENT, 0);
    for (index, path) in (0_u32..).zip(image.candidates()) {
        let errno = try_candidate(image, path);
        match errno {
            libc::ENOENT | libc::ENOTDIR if interpreter_missing(path) => best = (ChildStep::Interpreter, errno, index),
            // A file among the directories of PATH is passed over; where there is one candidate, its error is the answer.
            libc::ENOTDIR if image.candidates().nth(1).is_none() => best = (ChildStep::Exec, errno, index),
            libc::ENOENT | libc::ENOTDIR => {}
            libc::EACCES => best = (ChildStep::Exec, errno, index),
            _ => return (ChildStep::Exec, errno, index),
        }
    }
    best
}

/// Executes one candidate. One that is open for writing (ETXTBSY) may be so only in the child of another thread, on its way to its own exec, for a
/// moment: it is tried again, for 31 ms in all.
fn try_candidate(image: &ExecImage, path: &CStr) -> Errno {
    for pause_ms in [1, 2, 4, 8, 16, 0] {
        // SAFETY: the image's argv and envp are arrays of pointers to its own NUL-terminated strings, each ended by a null pointer.
        let errno = unsafe { raw::execve(path, image.argv(), image.envp()) };
        if errno != libc::ETXTBSY || pause_ms == 0 {
            return errno;
        }
        raw::sleep_ms(pause_ms);
    }
    libc::ETXTBSY
}

/// Whether the file is there, so that ENOENT or ENOTDIR speaks of the interpreter it names.
fn interpreter_missing(path: &CStr) -> bool {
    raw::exists(path)
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn directory_entries_that_are_no_numbers_are_passed_over() {
        assert_eq!(number(b"17\0\0\0"), Some(17));
        assert_eq!(number(b"0\0"), Some(0));
        assert_eq!(number(b".\0"), None);
        assert_eq!(number(b"..\0"), None);
        assert_eq!(number(b"\0"), None);
        assert_eq!(number(b"99999999999\0"), None);
    }
}
