//! libFuzzer's way to the target `control_socket`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("control_socket", data));
