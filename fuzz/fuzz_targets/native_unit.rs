//! libFuzzer's way to the target `native_unit`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("native_unit", data));
