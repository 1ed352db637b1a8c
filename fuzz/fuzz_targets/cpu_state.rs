//! libFuzzer's way to the target `cpu_state`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("cpu_state", data));
