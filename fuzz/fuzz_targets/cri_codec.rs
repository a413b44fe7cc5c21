//! `cargo +nightly fuzz run cri_codec`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::cri_codec(data));
