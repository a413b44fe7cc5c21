//! `cargo +nightly fuzz run kernel_files`

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| iron_exec_fuzz::kernel_files(data));
