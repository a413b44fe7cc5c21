//! `cargo +nightly fuzz run retention`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::retention(data));
