//! The tools that come with the compiler.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

/// `cargo fmt --check`.
pub(super) fn fmt(root: &Path) -> Result<Vec<String>> {
    cargo(root, &["fmt", "--all", "--check"])
}

/// Clippy with warnings as errors.
pub(super) fn clippy(root: &Path) -> Result<Vec<String>> {
    cargo(root, &["clippy", "--quiet", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

/// Runs a tool, which prints its own complaints.
fn cargo(root: &Path, args: &[&str]) -> Result<Vec<String>> {
    let command = format!("cargo {}", args.join(" "));
    let status = Command::new(env!("CARGO"))
        .args(args)
        .current_dir(root)
        .status()
        .with_context(|| format!("cannot run {command}"))?;
    Ok(if status.success() { Vec::new() } else { vec![format!("'{command}' failed, see above")] })
}
