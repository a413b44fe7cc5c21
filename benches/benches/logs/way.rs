//! The job: this program, which writes lines.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;

use iron_exec_benches::{Pace, Result};

/// Bytes of a line, with its line feed.
pub(crate) const LINE_BYTES: usize = 80;
/// Of stdio's buffer for a pipe.
const BUFFER_BYTES: usize = 4096;
const CHUNK_BYTES: usize = 64 << 10;

/// A way to write.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) table: &'static str,
    /// For the table's title.
    pub(crate) text: &'static str,
    /// How much is written: a multiple of a line, and of a chunk.
    pub(crate) bytes: fn(Pace) -> u64,
}

pub(crate) const WAYS: [Way; 3] = [
    Way { name: "chunks", table: "logs-chunks", text: "64 KiB at a time", bytes: |pace| pace.of(5 << 20, 160 << 20, 640 << 20) },
    Way {
        name: "lines",
        table: "logs-lines",
        text: "lines through a buffer of 4 KiB",
        bytes: |pace| pace.of(5 << 20, 160 << 20, 640 << 20),
    },
    Way { name: "unbuffered", table: "logs-unbuffered", text: "every line by itself", bytes: |pace| pace.of(5 << 18, 40 << 20, 160 << 20) },
];

/// Writes so many bytes to stdout in that way.
pub(crate) fn write(way: &str, bytes: &str) -> Result<()> {
    let bytes: usize = bytes.parse()?;
    // Each write is one write(2).
    let mut stdout = File::from(io::stdout().as_fd().try_clone_to_owned()?);
    let line = line();
    match way {
        "chunks" => {
            // The least that is whole lines and whole chunks; the chunks cut the lines anywhere.
            let lines = line.repeat(CHUNK_BYTES / 16);
            for at in (0..bytes).step_by(CHUNK_BYTES) {
                stdout.write_all(&lines[at % lines.len()..][..CHUNK_BYTES])?;
            }
        }
        "lines" => {
            let mut buffer = Vec::with_capacity(BUFFER_BYTES);
            for _ in 0..bytes / LINE_BYTES {
                let mut rest = line.as_slice();
                while !rest.is_empty() {
                    let (fits, more) = rest.split_at(rest.len().min(BUFFER_BYTES - buffer.len()));
                    buffer.extend_from_slice(fits);
                    rest = more;
                    if buffer.len() == BUFFER_BYTES {
                        stdout.write_all(&buffer)?;
                        buffer.clear();
                    }
                }
            }
            stdout.write_all(&buffer)?;
        }
        "unbuffered" => {
            for _ in 0..bytes / LINE_BYTES {
                stdout.write_all(&line)?;
            }
        }
        _ => return Err(format!("there is no way {way:?} to write").into()),
    }
    Ok(())
}

pub(crate) fn line() -> Vec<u8> {
    (1..=LINE_BYTES).map(|at| if at == LINE_BYTES { b'\n' } else { b'a' + (at % 26) as u8 }).collect()
}
