//! libFuzzer's way to the target `file_sharing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("file_sharing", data));
