//! libFuzzer's way to the target `lockstep_code`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("lockstep_code", data));
