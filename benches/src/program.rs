//! The programs that are started: the smallest there are, so that all that is measured is how they are started, and what it costs to have them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// What the program of [`write_line`] writes to stdout.
pub const LINE: &[u8] = b"a line of output of a job that has one\n";

/// The ELF number of the machine.
#[cfg(target_arch = "x86_64")]
const MACHINE: u64 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u64 = 183;

/// exit(0)
#[cfg(target_arch = "x86_64")]
const EXIT: &[u8] = &[
    0x31, 0xff, // xor edi, edi
    0xb8, 60, 0, 0, 0, // mov eax, 60
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "aarch64")]
const EXIT: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0xa8, 0x0b, 0x80, 0xd2, // mov x8, 93
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// write(1, text, bytes), where the text stands behind [`EXIT`].
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const WRITE: &[u8] = &[
    0xbf, 1, 0, 0, 0, // mov edi, 1
    0xb8, 1, 0, 0, 0, // mov eax, 1
    0x48, 0x8d, 0x35, 16, 0, 0, 0, // lea rsi, [rip + 16]
    0xba, LINE.len() as u8, 0, 0, 0, // mov edx, bytes
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "aarch64")]
#[rustfmt::skip]
const WRITE: &[u8] = &[
    0x20, 0x00, 0x80, 0xd2, // mov x0, 1
    0xe1, 0x00, 0x00, 0x10, // adr x1, 28
    ((LINE.len() << 5) | 2) as u8, (LINE.len() >> 3) as u8, 0x80, 0xd2, // mov x2, bytes
    0x08, 0x08, 0x80, 0xd2, // mov x8, 64
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// prctl(PR_SET_PDEATHSIG, SIGKILL); ppoll(NULL, 0, {600 s}, NULL): it ends with the thread that started it, and after ten minutes in any case.
#[cfg(target_arch = "x86_64")]
const IDLE: &[u8] = &[
    0xbf, 1, 0, 0, 0, // mov edi, 1
    0xbe, 9, 0, 0, 0, // mov esi, 9
    0xb8, 157, 0, 0, 0, // mov eax, 157
    0x0f, 0x05, // syscall
    0x6a, 0, // push 0
    0x68, 0x58, 0x02, 0, 0, // push 600
    0x31, 0xff, // xor edi, edi
    0x31, 0xf6, // xor esi, esi
    0x48, 0x89, 0xe2, // mov rdx, rsp
    0x45, 0x31, 0xd2, // xor r10d, r10d
    0xb8, 0x0f, 0x01, 0, 0, // mov eax, 271
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "aarch64")]
const IDLE: &[u8] = &[
    0x20, 0x00, 0x80, 0xd2, // mov x0, 1
    0x21, 0x01, 0x80, 0xd2, // mov x1, 9
    0xe8, 0x14, 0x80, 0xd2, // mov x8, 167
    0x01, 0x00, 0x00, 0xd4, // svc 0
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0x01, 0x00, 0x80, 0xd2, // mov x1, 0
    0x02, 0x4b, 0x80, 0xd2, // mov x2, 600
    0xe2, 0x03, 0xbf, 0xa9, // stp x2, x0, [sp, -16]!
    0xe2, 0x03, 0x00, 0x91, // mov x2, sp
    0x03, 0x00, 0x80, 0xd2, // mov x3, 0
    0x28, 0x09, 0x80, 0xd2, // mov x8, 73
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// read(0, stack, 1)
#[cfg(target_arch = "x86_64")]
const WAIT: &[u8] = &[
    0x31, 0xff, // xor edi, edi
    0x48, 0x89, 0xe6, // mov rsi, rsp
    0xba, 1, 0, 0, 0, // mov edx, 1
    0x31, 0xc0, // xor eax, eax
    0x0f, 0x05, // syscall
];
#[cfg(target_arch = "aarch64")]
const WAIT: &[u8] = &[
    0x00, 0x00, 0x80, 0xd2, // mov x0, 0
    0xe1, 0x03, 0x00, 0x91, // mov x1, sp
    0x22, 0x00, 0x80, 0xd2, // mov x2, 1
    0xe8, 0x07, 0x80, 0xd2, // mov x8, 63
    0x01, 0x00, 0x00, 0xd4, // svc 0
];

/// Where it is mapped.
const BASE: u64 = 0x40_0000;
const FILE_HEADER_BYTES: u64 = 64;
const SEGMENT_HEADER_BYTES: u64 = 56;

/// Writes the program that does nothing, a static executable, into `directory`.
///
/// # Errors
/// Those of open(2) and write(2).
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    write_code(directory, "exit", EXIT)
}

/// Writes the program that writes [`LINE`] and ends.
///
/// # Errors
/// As [`write()`].
pub fn write_line(directory: &Path) -> io::Result<PathBuf> {
    write_code(directory, "line", &[WRITE, EXIT, LINE].concat())
}

/// Writes the program that sleeps until it is killed. The kernel kills it when the thread that has started it ends, whatever becomes of the rest.
///
/// # Errors
/// As [`write()`].
pub fn write_idle(directory: &Path) -> io::Result<PathBuf> {
    write_code(directory, "idle", &[IDLE, EXIT].concat())
}

/// Writes the program that waits until its stdin is at its end, or something comes from there.
///
/// # Errors
/// As [`write()`].
pub fn write_wait(directory: &Path) -> io::Result<PathBuf> {
    write_code(directory, "wait", &[WAIT, EXIT].concat())
}

fn write_code(directory: &Path, name: &str, code: &[u8]) -> io::Result<PathBuf> {
    let path = directory.join(name);
    OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?.write_all(&executable(code))?;
    Ok(path)
}

/// An ELF file of one segment: the headers and the code; see elf(5).
fn executable(code: &[u8]) -> Vec<u8> {
    let code_at = FILE_HEADER_BYTES + SEGMENT_HEADER_BYTES;
    let bytes = code_at + code.len() as u64;
    // Each a value and its width in bytes.
    let headers = [
        (2, 2), // ET_EXEC
        (MACHINE, 2),
        (1, 4),
        (BASE + code_at, 8),       // e_entry
        (FILE_HEADER_BYTES, 8),    // e_phoff
        (0, 8),                    // e_shoff
        (0, 4),                    // e_flags
        (FILE_HEADER_BYTES, 2),    // e_ehsize
        (SEGMENT_HEADER_BYTES, 2), // e_phentsize
        (1, 2),                    // e_phnum
        (0, 6),                    // no sections
        (1, 4),                    // PT_LOAD
        (5, 4),                    // PF_R | PF_X
        (0, 8),                    // p_offset
        (BASE, 8),
        (BASE, 8),
        (bytes, 8),    // p_filesz
        (bytes, 8),    // p_memsz
        (0x1_0000, 8), // p_align: the largest page of both machines
    ];
    // e_ident: 64 bits, little endian, version 1.
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    for (value, width) in headers {
        file.extend_from_slice(&value.to_le_bytes()[..width]);
    }
    file.extend_from_slice(code);
    file
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::{LINE, write, write_idle, write_line, write_wait};
    use crate::Result;

    #[test]
    fn the_programs_do_what_they_say() -> Result<()> {
        let directory = tempfile::tempdir()?;
        let exit = Command::new(write(directory.path())?).output()?;
        assert!(exit.status.success() && exit.stdout.is_empty());
        let line = Command::new(write_line(directory.path())?).output()?;
        assert!(line.status.success());
        assert_eq!(line.stdout, LINE);
        let mut idle = Command::new(write_idle(directory.path())?).stdin(Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        let ended = idle.try_wait()?;
        idle.kill()?;
        idle.wait()?;
        assert_eq!(ended, None);
        let mut wait = Command::new(write_wait(directory.path())?).stdin(Stdio::piped()).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(50));
        let ended = wait.try_wait()?;
        // That closes its stdin.
        let status = wait.wait()?;
        assert!(ended.is_none() && status.success(), "{ended:?}, {status}");
        Ok(())
    }
}
