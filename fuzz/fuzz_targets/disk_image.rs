//! libFuzzer's way to the target `disk_image`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("disk_image", data));
