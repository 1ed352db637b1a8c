//! Every file begins by saying what it is about.

use std::path::Path;

use anyhow::Result;

use super::source::{self, Source};

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    Ok(complaints(&source::all(root)?))
}

fn complaints(sources: &[Source]) -> Vec<String> {
    // What a file of tests is about stands in its name, beside the file it tests.
    let is_tests = |path: &str| path.ends_with("/tests.rs") || path.contains("/tests/");
    sources
        .iter()
        .filter(|source| !source.text.starts_with("//! ") && !is_tests(&source.path))
        .map(|source| format!("{} does not begin with '//!'", source.path))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_head_is_seen() {
        let source = |path: &str, text: &str| Source { path: path.into(), text: text.into() };
        let sources =
            [source("a.rs", "//! A.\n"), source("b.rs", "use x;\n"), source("b/tests.rs", "use x;\n")];
        assert_eq!(complaints(&sources), ["b.rs does not begin with '//!'"]);
    }
}
