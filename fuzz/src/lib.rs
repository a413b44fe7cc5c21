//! What the fuzz targets do with their input. A body panics when a promise of the library is broken.
//!
//! The bodies stand here, apart from libFuzzer, so that the same ones run in three ways:
//!
//! - `cargo +nightly fuzz run line_splitter`: with libFuzzer, for as long as one likes;
//! - `cargo run --release --manifest-path fuzz/Cargo.toml --no-default-features --bin smoke -- SECONDS`: on stable, with pseudo-random
//!   inputs and the corpus;
//! - `cargo test --manifest-path fuzz/Cargo.toml --no-default-features`: the corpus alone.

use std::path::{Path, PathBuf};
use std::{fs, io, mem};

use arbitrary::{Result, Unstructured};
use iron_exec::framing::cri::{self, Decoded, Decoder, HEADER_BYTES, RECORD_OVERHEAD_BYTES, Stamp};
use iron_exec::framing::{Ending, LineSplitter, Piece};
use iron_exec::{OutputStream, Timestamp};

mod kernel_files;
mod log_sequences;
mod retention;

pub use kernel_files::kernel_files;
pub use log_sequences::log_sequences;
pub use retention::{archive_report, retention};

/// A fuzz target's name and body.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 6] = [
    ("line_splitter", line_splitter),
    ("cri_codec", cri_codec),
    ("kernel_files", kernel_files),
    ("log_sequences", log_sequences),
    ("retention", retention),
    ("archive_report", archive_report),
];

/// The inputs that are kept for a target, with their paths, in no particular order.
///
/// # Errors
///
/// When the corpus cannot be read.
pub fn corpus(target: &str) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::read_dir(dir)?
        .map(|entry| {
            let path = entry?.path();
            let data = fs::read(&path)?;
            Ok((path, data))
        })
        .collect()
}

/// Any sequence of operations on a [`LineSplitter`], beside a model that works one byte at a time.
///
/// # Panics
///
/// When the two differ, or when bytes are lost, changed or held without need.
pub fn line_splitter(data: &[u8]) {
    // That the input ended in the middle of an operation is no failure.
    let _ = split_and_compare(&mut Unstructured::new(data));
}

/// Records: those of any output written at any time, cut anywhere on their way back; and lines that were never records.
///
/// # Panics
///
/// When a record does not come back as it was written, or when the decoder loses its place or contradicts itself.
pub fn cri_codec(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let _ = match input.arbitrary() {
        Ok(true) => write_and_read_back(&mut input),
        Ok(false) => {
            read_and_rewrite(input.take_rest());
            Ok(())
        }
        Err(_) => Ok(()),
    };
}

/// What [`LineSplitter`] promises.
struct Model {
    line_bytes_max: usize,
    held: Vec<u8>,
}

impl Model {
    fn push(&mut self, chunk: &[u8]) -> Vec<(Vec<u8>, Ending)> {
        let mut pieces = Vec::new();
        for &byte in chunk {
            if byte == b'\n' {
                pieces.push((mem::take(&mut self.held), Ending::Newline));
            } else {
                if self.held.len() == self.line_bytes_max {
                    pieces.push((mem::take(&mut self.held), Ending::Partial));
                }
                self.held.push(byte);
            }
        }
        pieces
    }

    fn push_bulk(&mut self, chunk: &[u8]) -> Vec<u8> {
        self.held.extend_from_slice(chunk);
        let lines = self.held.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        let kept = if self.held.len() - lines > self.line_bytes_max { Vec::new() } else { self.held.split_off(lines) };
        mem::replace(&mut self.held, kept)
    }
}

fn split_and_compare(input: &mut Unstructured<'_>) -> Result<()> {
    let line_bytes_max = if input.arbitrary()? { input.int_in_range(0..=16)? } else { input.int_in_range(0..=20_000)? };
    let mut splitter = LineSplitter::new(line_bytes_max);
    let mut model = Model { line_bytes_max: line_bytes_max.max(1), held: Vec::new() };
    let (mut bytes_in, mut bytes_out) = (Vec::new(), Vec::new());
    while !input.is_empty() {
        let operation = input.arbitrary::<u8>()? % 5;
        // Lines far longer than the input, but not a great many pieces.
        let times = if operation % 2 == 0 || line_bytes_max < 256 { 1 } else { 64 };
        match operation {
            0 | 1 => {
                let chunk = chunk(input)?.repeat(times);
                let mut pieces = Vec::new();
                splitter.push(&chunk, |piece| {
                    append(&mut bytes_out, piece);
                    pieces.push((piece.bytes.to_vec(), piece.ending));
                });
                assert_eq!(pieces, model.push(&chunk));
                bytes_in.extend(chunk);
            }
            2 | 3 => {
                let chunk = chunk(input)?.repeat(times);
                let mut slices = Vec::new();
                splitter.push_bulk(&chunk, |bytes| slices.push(bytes.to_vec()));
                assert!(slices.len() <= 2 && slices.iter().all(|slice| !slice.is_empty()));
                assert_eq!(slices.concat(), model.push_bulk(&chunk));
                bytes_out.extend(slices.concat());
                bytes_in.extend(chunk);
            }
            _ => {
                let held = mem::take(&mut model.held);
                let mut flushed = Vec::new();
                splitter.flush(|piece| {
                    assert_eq!(piece.ending, Ending::Partial);
                    assert!(flushed.is_empty() && !piece.bytes.is_empty());
                    append(&mut flushed, piece);
                });
                assert_eq!(flushed, held);
                bytes_out.extend(flushed);
            }
        }
        assert_eq!(splitter.held(), model.held.len());
        assert!(splitter.held() <= model.line_bytes_max);
        assert_eq!(bytes_in.len(), bytes_out.len() + model.held.len());
    }
    assert_eq!(bytes_in, [bytes_out, model.held].concat());
    Ok(())
}

/// Up to 255 bytes, their number before them.
fn chunk<'a>(input: &mut Unstructured<'a>) -> Result<&'a [u8]> {
    let len = usize::from(input.arbitrary::<u8>()?);
    input.bytes(len.min(input.len()))
}

/// The bytes that a piece stands for.
fn append(bytes: &mut Vec<u8>, piece: Piece<'_>) {
    bytes.extend_from_slice(piece.bytes);
    if piece.ending == Ending::Newline {
        bytes.push(b'\n');
    }
}

#[derive(Debug, PartialEq)]
struct OwnedRecord {
    time: Timestamp,
    stream: OutputStream,
    partial: bool,
    content: Vec<u8>,
}

fn write_and_read_back(input: &mut Unstructured<'_>) -> Result<()> {
    let line_bytes_max = input.int_in_range(1..=100)?;
    let steps = chunk(input)?;
    let mut splitters = [LineSplitter::new(line_bytes_max), LineSplitter::new(line_bytes_max)];
    let mut written = [Vec::new(), Vec::new()];
    let (mut stamp, mut log, mut records) = (Stamp::new(), Vec::new(), Vec::new());
    while !input.is_empty() {
        let (flags, nanos) = (input.arbitrary::<u8>()?, input.arbitrary()?);
        let (is_stderr, is_flushed) = (flags & 1 != 0, flags & 2 != 0);
        let time = Timestamp::from_unix_nanos(nanos);
        let stream = if is_stderr { OutputStream::Stderr } else { OutputStream::Stdout };
        let text = stamp.at(time);
        let mut write = |piece: Piece<'_>| {
            let before = log.len();
            cri::encode(&mut log, text, stream, piece);
            assert_eq!(log.len() - before, piece.bytes.len() + RECORD_OVERHEAD_BYTES);
            append(&mut written[usize::from(is_stderr)], piece);
            records.push(OwnedRecord { time, stream, partial: piece.ending == Ending::Partial, content: piece.bytes.to_vec() });
        };
        let splitter = &mut splitters[usize::from(is_stderr)];
        splitter.push(chunk(input)?, &mut write);
        if is_flushed {
            splitter.flush(&mut write);
        }
    }

    let mut decoder = Decoder::new();
    let (mut start, mut end, mut decoded) = (0, 0, Vec::new());
    let mut streams = [Vec::new(), Vec::new()];
    let mut step_lens = steps.iter().cycle();
    while end < log.len() {
        end = log.len().min(end + 1 + step_lens.next().copied().map_or(0, usize::from));
        while let Some(len) = decode_next(&mut decoder, &log[start..end], &mut decoded) {
            let record = decoded.last().expect("all lines are records");
            let ending = if record.partial { Ending::Partial } else { Ending::Newline };
            append(&mut streams[usize::from(record.stream == OutputStream::Stderr)], Piece { bytes: &record.content, ending });
            start += len;
        }
    }
    assert_eq!(start, log.len());
    assert_eq!(decoded, records);
    assert_eq!(streams, written);
    Ok(())
}

/// Decodes what stands at the start of `input` and says how long it is; `None` if it is incomplete.
fn decode_next(decoder: &mut Decoder, input: &[u8], records: &mut Vec<OwnedRecord>) -> Option<usize> {
    match decoder.decode(input) {
        Decoded::Record { time, stream, partial, content, len } => {
            records.push(OwnedRecord { time, stream, partial, content: content.to_vec() });
            Some(len)
        }
        Decoded::Malformed { len } | Decoded::Dropped { len, .. } => Some(len),
        Decoded::Incomplete => None,
    }
}

fn read_and_rewrite(mut log: &[u8]) {
    let (mut decoder, mut stamp) = (Decoder::new(), Stamp::new());
    loop {
        let decoded = decoder.decode(log);
        assert_eq!(decoded, Decoder::new().decode(log), "what a decoder has seen must not matter");
        let line_feed = log.iter().position(|&byte| byte == b'\n');
        let line_len = line_feed.map_or(0, |end| end + 1);
        let len = match decoded {
            Decoded::Incomplete => {
                assert_eq!(line_feed, None);
                break;
            }
            Decoded::Malformed { len } => len,
            Decoded::Dropped { time, bytes, len } => {
                let mut again = Vec::new();
                cri::encode_dropped(&mut again, stamp.at(time), bytes, "a reason");
                assert_eq!(decoder.decode(&again), Decoded::Dropped { time, bytes, len: again.len() });
                len
            }
            Decoded::Record { time, stream, partial, content, len } => {
                assert!(log[..line_len - 1].ends_with(content));
                let ending = if partial { Ending::Partial } else { Ending::Newline };
                let mut again = Vec::new();
                cri::encode(&mut again, stamp.at(time), stream, Piece { bytes: content, ending });
                let len_again = HEADER_BYTES + content.len() + 1;
                assert_eq!(decoder.decode(&again), Decoded::Record { time, stream, partial, content, len: len_again });
                len
            }
        };
        assert_eq!(len, line_len);
        assert_eq!(decoder.decode(&log[..len]), decoded, "what follows a line must not matter");
        assert_eq!(decoder.decode(&log[..len - 1]), Decoded::Incomplete);
        log = &log[len..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_finds_no_fault() {
        for (name, body) in TARGETS {
            let corpus = corpus(name).unwrap();
            assert!(!corpus.is_empty(), "{name}");
            for (path, data) in corpus {
                println!("{}", path.display());
                body(&data);
            }
        }
    }
}
