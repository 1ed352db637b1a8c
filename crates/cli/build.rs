//! Builds the first process of guests, which the command carries with it: a program that needs no libraries.
//!
//! It is a package of this workspace, built by a cargo of its own, for it needs other options than everything else: linked
//! statically, small, and in a directory of its own, since cargo locks the one that it is using.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What it is built for: the guests' processor is the host's.
const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() -> ExitCode {
    for path in ["../init", "../copy", "../../Cargo.toml", "../../Cargo.lock"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    let directory = out.join("init");
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--offline", "--package", "init", "--bin", "umbra-init"])
        .args(["--profile", "guest", "--target", TARGET, "--target-dir"])
        .arg(&directory)
        // What was set for the program around it, or for lints.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status();
    match status {
        Ok(status) if status.success() => {
            let program = directory.join(TARGET).join("guest/umbra-init");
            println!("cargo:rustc-env=UMBRA_INIT={}", program.display());
            ExitCode::SUCCESS
        }
        _ => {
            println!(
                "cargo:warning=the first process of guests cannot be built: it needs libc.a (Debian: libc6-dev, Fedora: glibc-static)"
            );
            ExitCode::FAILURE
        }
    }
}
