//! libFuzzer's way to the target `devices`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("devices", data));
