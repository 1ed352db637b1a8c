//! libFuzzer's way to the target `page_tables`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("page_tables", data));
