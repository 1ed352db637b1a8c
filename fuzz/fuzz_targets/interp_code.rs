//! libFuzzer's way to the target `interp_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("interp_code", data));
