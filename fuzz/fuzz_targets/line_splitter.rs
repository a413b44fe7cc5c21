//! `cargo +nightly fuzz run line_splitter`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::line_splitter(data));
