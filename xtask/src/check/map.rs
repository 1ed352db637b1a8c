//! `docs/MAP.md` says where each concept lives: every path in it leads somewhere, and every crate is in it.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The map.
const MAP: &str = "docs/MAP.md";

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root.join(MAP)).with_context(|| format!("cannot read {MAP}"))?;
    let crates: Vec<String> = fs::read_dir(root.join("crates"))
        .context("cannot read crates")?
        .flatten()
        .map(|item| format!("crates/{}", item.file_name().to_string_lossy()))
        .collect();
    Ok(complaints(&text, &crates, &|path| root.join(path).exists()))
}

fn complaints(text: &str, crates: &[String], exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let paths: Vec<&str> = text.split('`').skip(1).step_by(2).filter(|span| is_path(span)).collect();
    let dead = paths.iter().filter(|path| !exists(path)).map(|path| format!("{path} does not exist"));
    let unmapped = crates
        .iter()
        .filter(|name| !paths.iter().any(|path| Path::new(path).starts_with(name)))
        .map(|name| format!("{name} is not on the map"));
    dead.chain(unmapped).collect()
}

/// Whether a code span is a path: it has a slash, and nothing that a path here never has.
fn is_path(span: &str) -> bool {
    span.contains('/')
        && !span.starts_with('/')
        && span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_paths_and_forgotten_crates_are_seen() {
        let text =
            "`crates/a/src/lib.rs` and `crates/b/src` but `a::b`, `/dev/kvm`, `x / y` and `docs/none.md`";
        let crates = ["crates/a".to_owned(), "crates/b".to_owned(), "crates/c".to_owned()];
        let complaints = complaints(text, &crates, &|path| path.starts_with("crates/"));
        assert_eq!(complaints, ["docs/none.md does not exist", "crates/c is not on the map"]);
    }
}
