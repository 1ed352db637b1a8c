//! libFuzzer's way to the target `virtio_driver`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| umbra_fuzz::run("virtio_driver", data));
