//! How fast output is cut into lines and how fast records are written and read, beside [`memchr`] alone: nothing that has to look for
//! line feeds can be faster.
//!
//! ```sh
//! cargo bench -p iron-exec-benches --bench framing             # about two minutes
//! cargo bench -p iron-exec-benches --bench framing -- --quick  # a fraction of it
//! cargo bench -p iron-exec-benches --bench framing -- encode   # what criterion takes: here only what has that in its name
//! ```
//!
//! All throughputs count input bytes: of `encode` those of the lines, of `decode` those of the records. Criterion measures, and prints; what it has written down goes into
//! the results, its samples as rounds.

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use iron_exec::framing::cri::{self, Decoded, Decoder, Stamp};
use iron_exec::framing::{Ending, LineSplitter, Piece};
use iron_exec::{OutputStream, Timestamp};
use iron_exec_benches::{Pace, Result, Results, Table, results};
use memchr::memchr_iter;

/// Bytes in a line, without the line feed.
const LINE_BYTES: [usize; 4] = [10, 80, 1000, 16_000];
/// How much is read from a pipe at once: its usual capacity.
const CHUNK_BYTES: usize = 64 * 1024;
const INPUT_BYTES: usize = 16 * CHUNK_BYTES;
const LINE_BYTES_MAX: usize = 16 * 1024;
/// 2026-11-23 03:26:58 UTC.
const NOW_NANOS: u64 = 1_795_404_418_000_000_000;

/// Of each benchmark; there are some thirty of them.
const WARM_UP_TIME: Duration = Duration::from_millis(500);
const MEASUREMENT_TIME: Duration = Duration::from_secs(2);
const SAMPLES: usize = 20;
const RESAMPLES: usize = 10_000;

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> Result<()> {
    let mut results = Results::begin("framing", Pace::from_args())?;
    let began = SystemTime::now();
    let written_to = results::directory().with_file_name("criterion");
    let criterion = Criterion::default()
        .output_directory(&written_to)
        .warm_up_time(WARM_UP_TIME)
        .measurement_time(MEASUREMENT_TIME)
        .sample_size(SAMPLES)
        .nresamples(RESAMPLES);
    let mut criterion = criterion.configure_from_args();
    split(&mut criterion);
    encode(&mut criterion);
    decode(&mut criterion);
    criterion.final_summary();
    for (group, title) in GROUPS {
        let columns = LINE_BYTES.map(|bytes| bytes.to_string());
        let mut table = Table::new(&format!("framing-{group}"), title, &columns.each_ref().map(String::as_str)).reference("memchr");
        for (name, row) in ROWS.iter().filter(|(in_group, ..)| *in_group == group).map(|(_, name, row)| (name, row)) {
            table.row(row);
            for column in &columns {
                for rate in rates(&written_to.join(group).join(name).join(column).join("new"), began)? {
                    table.add(row, column, rate);
                }
            }
        }
        results.tables.push(table);
    }
    if results.pace == Pace::Smoke {
        results.notes.push("framing: each was run once, and nothing measured".to_owned());
    }
    results.end()
}

/// A group's name, and what its throughput is.
const GROUPS: [(&str, &str); 3] = [
    ("split", "Cutting output into lines of so many bytes, GB/s of output"),
    ("encode", "Turning lines of so many bytes into records, GB/s of lines"),
    ("decode", "Reading records of lines of so many bytes, GB/s of records"),
];

/// What criterion knows as group and name, and what it is called in the tables.
const ROWS: [(&str, &str, &str); 9] = [
    ("split", "memchr", "memchr"),
    ("split", "push", "iron-exec, line by line"),
    ("split", "push_bulk", "iron-exec, all whole lines in one"),
    ("encode", "memchr", "memchr"),
    ("encode", "alone", "iron-exec, lines that are cut already"),
    ("encode", "after_push", "iron-exec, with the cutting"),
    ("decode", "memchr", "memchr"),
    ("decode", "same_time", "iron-exec, records of one time"),
    ("decode", "own_times", "iron-exec, each of its own time"),
];

/// The throughput of each sample that criterion has written into a directory, in GB/s; none, if it has not done so since.
fn rates(written_to: &Path, since: SystemTime) -> Result<Vec<f64>> {
    let read = |name| -> Result<serde_json::Value> { Ok(serde_json::from_slice(&fs::read(written_to.join(name))?)?) };
    let is_new = fs::metadata(written_to.join("sample.json")).and_then(|sample| sample.modified()).is_ok_and(|modified| modified >= since);
    if !is_new {
        return Ok(Vec::new());
    }
    let (sample, about) = (read("sample.json")?, read("benchmark.json")?);
    let numbers =
        |name: &str| sample[name].as_array().map(|numbers| numbers.iter().filter_map(serde_json::Value::as_f64)).into_iter().flatten();
    let bytes = about["throughput"]["Bytes"].as_f64().ok_or_else(|| format!("{}: no throughput", written_to.display()))?;
    Ok(numbers("iters").zip(numbers("times")).map(|(iterations, nanos)| bytes * iterations / nanos).collect())
}

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

fn memchr_alone(group: &mut BenchmarkGroup<'_, WallTime>, line_bytes: usize, input: &[u8]) {
    group.bench_function(BenchmarkId::new("memchr", line_bytes), |bencher| {
        bencher.iter(|| input.chunks(CHUNK_BYTES).flat_map(|chunk| memchr_iter(b'\n', chunk)).fold(0, usize::wrapping_add));
    });
}

fn split(criterion: &mut Criterion) {
    each_line_length(criterion, "split", |group, line_bytes| {
        let input = lines_of(line_bytes);
        group.throughput(Throughput::Bytes(input.len() as u64));
        memchr_alone(group, line_bytes, &input);
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
        memchr_alone(group, line_bytes, &input);
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
        memchr_alone(group, line_bytes, &log);
    });
}
