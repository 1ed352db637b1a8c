//! `cargo xtask check`: the rules that a machine can hold people to.
//!
//! Each check is a file: a function that looks at text and returns complaints, apart from the few lines that fetch the
//! text, so that a test can show that the check fails when it should.

mod heads;
mod layers;
mod length;
mod map;
mod source;
mod table;
mod tools;
mod unsafe_code;

use std::path::Path;

use anyhow::{Result, bail};

/// A check: what is wrong, a line each.
type Check = fn(&Path) -> Result<Vec<String>>;

/// Every check by name, the quick ones first.
const CHECKS: [(&str, Check); 7] = [
    ("layers", layers::check),
    ("unsafe", unsafe_code::check),
    ("map", map::check),
    ("length", length::check),
    ("heads", heads::check),
    ("fmt", tools::fmt),
    ("clippy", tools::clippy),
];

/// Runs the named checks, or all.
///
/// # Errors
/// If one of them has complaints or cannot be carried out.
pub(crate) fn run(root: &Path, names: &[String]) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| CHECKS.iter().all(|(known, _)| known != name)) {
        let known = CHECKS.map(|(name, _)| name).join(", ");
        bail!("there is no check '{unknown}': use {known}");
    }
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        let complaints = check(root)?;
        println!("{name:8} {}", if complaints.is_empty() { "ok" } else { "FAILED" });
        for complaint in &complaints {
            println!("    {complaint}");
        }
        if !complaints.is_empty() {
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
