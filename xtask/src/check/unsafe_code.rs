//! Unsafe code stands only in the crates that `docs/LAYERS.md` marks, and each place says why it is right.
//!
//! The compiler denies `unsafe` in the other crates unless somebody allows it there, and clippy wants a SAFETY comment
//! on blocks; this check holds where an attribute has switched those off.

use std::path::Path;

use anyhow::Result;

use super::layers::{self, Law};
use super::source::{self, Source};

/// How many lines above the word the reason may begin.
const REASON_WITHIN: usize = 10;

pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let law = layers::law(root)?;
    Ok(source::all(root)?.iter().flat_map(|source| complaints(&law, source)).collect())
}

fn complaints(law: &Law, source: &Source) -> Vec<String> {
    let code = source::code_only(&source.text);
    let lines: Vec<&str> = source.text.lines().collect();
    let allowed = crate_of(&source.path).and_then(|name| law.get(name)).is_some_and(|row| row.may_be_unsafe);
    let mut complaints = Vec::new();
    for (index, line) in code.lines().enumerate() {
        for what in unsafe_uses(line, code.lines().nth(index + 1).unwrap_or_default()) {
            let place = format!("{}:{}", source.path, index + 1);
            if !allowed {
                complaints.push(format!("{place}: unsafe code in a crate that is not marked for it"));
            } else if what == Use::Claim && !has_reason(&lines, index) {
                complaints.push(format!("{place}: unsafe without a SAFETY reason"));
            }
        }
    }
    complaints
}

/// What the word introduces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A block or an implementation: somebody claims that it is right.
    Claim,
    /// A function or trait: somebody asks for a promise, in its documentation.
    Demand,
}

/// The uses of the word in a line of code; `next` is the line below.
fn unsafe_uses(line: &str, next: &str) -> Vec<Use> {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices("unsafe")
        .filter(|(at, word)| {
            let before = line[..*at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            !before.is_some_and(part_of_name) && !after.is_some_and(part_of_name)
        })
        .map(|(at, word)| {
            let after = line[at + word.len()..].trim_start();
            let after = if after.is_empty() { next.trim_start() } else { after };
            if after.starts_with('{') || after.starts_with("impl") { Use::Claim } else { Use::Demand }
        })
        .collect()
}

fn has_reason(lines: &[&str], index: usize) -> bool {
    lines.iter().take(index + 1).rev().take(REASON_WITHIN + 1).any(|line| line.contains("SAFETY"))
}

/// The crate that a path lies in.
fn crate_of(path: &str) -> Option<&str> {
    let mut parts = path.split('/');
    match parts.next()? {
        "crates" => parts.next(),
        other => Some(other),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn judge(path: &str, text: &str) -> usize {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("docs")).unwrap();
        let law = "| crate | may use | unsafe |\n|---|---|---|\n| host | – | yes |\n| x86 | – | no |\n";
        std::fs::write(dir.path().join("docs/LAYERS.md"), law).unwrap();
        let law: BTreeMap<_, _> = layers::law(dir.path()).unwrap();
        complaints(&law, &Source { path: path.into(), text: text.into() }).len()
    }

    #[test]
    fn a_reason_is_wanted_where_it_is_allowed() {
        let host = "crates/host/src/lib.rs";
        assert_eq!(judge(host, "// SAFETY: because.\nunsafe { f() }"), 0);
        assert_eq!(judge(host, "unsafe { f() }"), 1);
        assert_eq!(judge(host, "unsafe impl Send for X {}"), 1);
        assert_eq!(judge(host, "let a =\n    unsafe\n    { f() };"), 1);
        assert_eq!(judge(host, "unsafe fn f() {}\n#![allow(unsafe_code)] // unsafe\n"), 0);
    }

    #[test]
    fn nothing_is_allowed_elsewhere() {
        assert_eq!(judge("crates/x86/src/lib.rs", "// SAFETY: because.\nunsafe { f() }"), 1);
        assert_eq!(judge("crates/x86/src/lib.rs", "unsafe fn f() {}"), 1);
        assert_eq!(judge("xtask/src/main.rs", "fn f() { let s = \"unsafe {\"; }"), 0);
    }
}
