//! `cargo +nightly fuzz run log_sequences`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::log_sequences(data));
