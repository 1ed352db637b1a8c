//! What a guest or a file can reach, under arbitrary input.
//!
//! Each target is a function from bytes to nothing: it decodes the bytes into something structured (a processor's state
//! and some code, page tables, a kernel file, accesses to devices), does it, and panics if a promise is broken. Most promises
//! are implied: no panic, no overflow, no access outside our memory, an end within a bounded number of steps. Where there is
//! more to hold (what was saved is what is restored, a TLB says what the walk says), the target checks it.
//!
//! The same functions run in two ways. `cargo xtask fuzz` lets libFuzzer search, instrumented and under
//! AddressSanitizer (`fuzz/`). The tests here run them on the inputs under
//! `fuzz/seeds` and on a few hundred random ones, so that no input that once failed fails again unnoticed.
//!
//! Nothing here depends on time, on addresses of the host or on an earlier input, so an input that fails fails again.

mod board;
mod control_socket;
mod cpu_state;
mod device_ops;
mod devices;
mod disk_image;
mod file_sharing;
mod guest;
mod interp_code;
mod kernels;
mod loaders;
mod native_unit;
mod nvme_driver;
mod page_tables;
mod plugged;
mod records;
mod specs;
mod tweak;
mod user_net;
mod virtio_driver;

#[cfg(test)]
mod tests;

/// Something to feed bytes to.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, also of the libFuzzer binary.
    pub name: &'static str,
    /// The longest input that makes sense, in bytes.
    pub max_len: usize,
    /// Does whatever the bytes say; panics on a finding.
    pub body: fn(&[u8]),
}

/// All targets.
pub const TARGETS: [Target; 15] = [
    Target { name: "interp_code", max_len: 1024, body: interp_code::run },
    Target { name: "lockstep_code", max_len: 1024, body: interp_code::run_in_lockstep },
    Target { name: "page_tables", max_len: 1024, body: page_tables::run },
    Target { name: "cpu_state", max_len: 4096, body: cpu_state::run },
    Target { name: "records", max_len: 2048, body: records::run },
    Target { name: "loaders", max_len: 2048, body: loaders::run },
    Target { name: "devices", max_len: 2048, body: devices::run },
    Target { name: "disk_image", max_len: 2048, body: disk_image::run },
    Target { name: "file_sharing", max_len: 2048, body: file_sharing::run },
    Target { name: "virtio_driver", max_len: 4096, body: virtio_driver::run },
    Target { name: "nvme_driver", max_len: 4096, body: nvme_driver::run },
    Target { name: "native_unit", max_len: 512, body: native_unit::run },
    Target { name: "control_socket", max_len: 4096, body: control_socket::run },
    Target { name: "specs", max_len: 512, body: specs::run },
    Target { name: "user_net", max_len: 4096, body: user_net::run },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
