//! `cargo +nightly fuzz run archive_report`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::archive_report(data));
