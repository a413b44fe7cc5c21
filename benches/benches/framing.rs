//! How fast output is cut into lines and how fast records are written and read, beside [`memchr`] alone: nothing that has to look for
//! line feeds can be faster.
//!
//! Run with `cargo bench -p iron-exec-benches --bench framing`. All throughputs count input bytes: of `encode` those of the lines, of
//! `decode` those of the records.

use std::hint::black_box;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main, measurement::WallTime};
use iron_exec::framing::cri::{self, Decoded, Decoder, Stamp};
use iron_exec::framing::{Ending, LineSplitter, Piece};
use iron_exec::{OutputStream, Timestamp};
use memchr::memchr_iter;

/// Bytes in a line, without the line feed.
const LINE_BYTES: [usize; 4] = [10, 80, 1000, 16_000];
/// How much is read from a pipe at once: its usual capacity.
const CHUNK_BYTES: usize = 64 * 1024;
const INPUT_BYTES: usize = 16 * CHUNK_BYTES;
const LINE_BYTES_MAX: usize = 16 * 1024;
/// 2026-11-23 03:26:58 UTC.
const NOW_NANOS: u64 = 1_795_404_418_000_000_000;

/// `INPUT_BYTES` of equal lines; the chunks cut them anywhere.
fn lines_of(line_bytes: usize) -> Vec<u8> {
    (0..INPUT_BYTES).map(|at| if at % (line_bytes + 1) == line_bytes { b'\n' } else { b'a' + (at % 26) as u8 }).collect()
}

/// The same lines as records. `nanos_per_line` 0: read at once, so that all carry the same time.
fn records_of(line_bytes: usize, nanos_per_line: u64) -> Vec<u8> {
    let (mut stamp, mut log, mut nanos) = (Stamp::new(), Vec::new(), NOW_NANOS);
    LineSplitter::new(LINE_BYTES_MAX).push(&lines_of(line_bytes), |piece| {
        cri::encode(&mut log, stamp.at(Timestamp::from_unix_nanos(nanos)), OutputStream::Stdout, piece);
        nanos += nanos_per_line;
    });
    log
}

fn each_line_length(criterion: &mut Criterion, name: &str, mut bench: impl FnMut(&mut BenchmarkGroup<'_, WallTime>, usize)) {
    let mut group = criterion.benchmark_group(name);
    for line_bytes in LINE_BYTES {
        bench(&mut group, line_bytes);
    }
    group.finish();
}

fn split(criterion: &mut Criterion) {
    each_line_length(criterion, "split", |group, line_bytes| {
        let input = lines_of(line_bytes);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(BenchmarkId::new("memchr", line_bytes), |bencher| {
            bencher.iter(|| input.chunks(CHUNK_BYTES).flat_map(|chunk| memchr_iter(b'\n', chunk)).fold(0, usize::wrapping_add));
        });
        group.bench_function(BenchmarkId::new("push", line_bytes), |bencher| {
            let mut splitter = LineSplitter::new(LINE_BYTES_MAX);
            bencher.iter(|| {
                let mut lengths = 0;
                for chunk in input.chunks(CHUNK_BYTES) {
                    splitter.push(chunk, |piece| lengths += piece.bytes.len());
                }
                lengths
            });
        });
        group.bench_function(BenchmarkId::new("push_bulk", line_bytes), |bencher| {
            let mut splitter = LineSplitter::new(LINE_BYTES_MAX);
            bencher.iter(|| {
                let mut lengths = 0;
                for chunk in input.chunks(CHUNK_BYTES) {
                    splitter.push_bulk(chunk, |bytes| lengths += bytes.len());
                }
                lengths
            });
        });
    });
}

fn encode(criterion: &mut Criterion) {
    each_line_length(criterion, "encode", |group, line_bytes| {
        let input = lines_of(line_bytes);
        group.throughput(Throughput::Bytes(input.len() as u64));
        group.bench_function(BenchmarkId::new("alone", line_bytes), |bencher| {
            let (mut stamp, mut out) = (Stamp::new(), Vec::new());
            let stamp = stamp.at(Timestamp::from_unix_nanos(NOW_NANOS));
            bencher.iter(|| {
                for chunk in input.chunks(CHUNK_BYTES) {
                    out.clear();
                    for bytes in chunk.chunks(line_bytes + 1) {
                        let bytes = &bytes[..bytes.len() - 1];
                        cri::encode(&mut out, stamp, OutputStream::Stdout, Piece { bytes, ending: Ending::Newline });
                    }
                    black_box(&mut out);
                }
            });
        });
        group.bench_function(BenchmarkId::new("after_push", line_bytes), |bencher| {
            let (mut splitter, mut stamp, mut out, mut nanos) = (LineSplitter::new(LINE_BYTES_MAX), Stamp::new(), Vec::new(), NOW_NANOS);
            bencher.iter(|| {
                for chunk in input.chunks(CHUNK_BYTES) {
                    nanos += 20_000;
                    let stamp = stamp.at(Timestamp::from_unix_nanos(nanos));
                    out.clear();
                    splitter.push(chunk, |piece| cri::encode(&mut out, stamp, OutputStream::Stdout, piece));
                    black_box(&mut out);
                }
            });
        });
    });
}

fn decode(criterion: &mut Criterion) {
    each_line_length(criterion, "decode", |group, line_bytes| {
        for (name, nanos_per_line) in [("same_time", 0), ("own_times", 1_234_567)] {
            let log = records_of(line_bytes, nanos_per_line);
            group.throughput(Throughput::Bytes(log.len() as u64));
            group.bench_function(BenchmarkId::new(name, line_bytes), |bencher| {
                let mut decoder = Decoder::new();
                bencher.iter(|| {
                    let (mut input, mut lengths) = (log.as_slice(), 0);
                    loop {
                        match decoder.decode(input) {
                            Decoded::Record { time, content, len, .. } => {
                                black_box(time);
                                lengths += content.len();
                                input = &input[len..];
                            }
                            Decoded::Malformed { len } | Decoded::Dropped { len, .. } => input = &input[len..],
                            Decoded::Incomplete => break lengths,
                        }
                    }
                });
            });
        }
        let log = records_of(line_bytes, 0);
        group.throughput(Throughput::Bytes(log.len() as u64));
        group.bench_function(BenchmarkId::new("memchr", line_bytes), |bencher| {
            bencher.iter(|| memchr_iter(b'\n', &log).fold(0, usize::wrapping_add));
        });
    });
}

criterion_group!(benches, split, encode, decode);
criterion_main!(benches);
