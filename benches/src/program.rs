//! The program that is started: the smallest there is, so that all that is measured is how it is started.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// exit(0), and the ELF number of the machine.
#[cfg(target_arch = "x86_64")]
const EXIT: (&[u8], u64) = (
    &[
        0x31, 0xff, // xor edi, edi
        0xb8, 60, 0, 0, 0, // mov eax, 60
        0x0f, 0x05, // syscall
    ],
    62,
);
#[cfg(target_arch = "aarch64")]
const EXIT: (&[u8], u64) = (
    &[
        0x00, 0x00, 0x80, 0xd2, // mov x0, 0
        0xa8, 0x0b, 0x80, 0xd2, // mov x8, 93
        0x01, 0x00, 0x00, 0xd4, // svc 0
    ],
    183,
);

/// Where it is mapped.
const BASE: u64 = 0x40_0000;
const FILE_HEADER_BYTES: u64 = 64;
const SEGMENT_HEADER_BYTES: u64 = 56;

/// Writes the program, a static executable, into `directory`.
///
/// # Errors
/// Those of open(2) and write(2).
pub fn write(directory: &Path) -> io::Result<PathBuf> {
    let path = directory.join("exit");
    OpenOptions::new().write(true).create_new(true).mode(0o755).open(&path)?.write_all(&executable())?;
    Ok(path)
}

/// An ELF file of one segment: the headers and the code; see elf(5).
fn executable() -> Vec<u8> {
    let (code, machine) = EXIT;
    let code_at = FILE_HEADER_BYTES + SEGMENT_HEADER_BYTES;
    let bytes = code_at + code.len() as u64;
    // Each a value and its width in bytes.
    let headers = [
        (2, 2), // ET_EXEC
        (machine, 2),
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
