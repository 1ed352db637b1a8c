//! libFuzzer's way to the target `user_net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("user_net", data));
