//! libFuzzer's way to the target `specs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("specs", data));
