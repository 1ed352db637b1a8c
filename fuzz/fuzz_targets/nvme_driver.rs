//! libFuzzer's way to the target `nvme_driver`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("nvme_driver", data));
