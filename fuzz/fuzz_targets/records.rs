//! libFuzzer's way to the target `records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("records", data));
