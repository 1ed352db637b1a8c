//! Rust source files as the checks see them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Where Rust source is.
const PLACES: [&str; 4] = ["crates", "xtask", "fuzz", "guests"];

/// A source file.
pub(super) struct Source {
    /// Its path from the top of the repository.
    pub(super) path: String,
    /// What is in it.
    pub(super) text: String,
}

/// Every Rust source file of the repository.
pub(super) fn all(root: &Path) -> Result<Vec<Source>> {
    let mut paths = Vec::new();
    for place in PLACES {
        collect(&root.join(place), &mut paths)?;
    }
    paths.sort();
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let path = path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned();
        Ok(Source { path, text })
    };
    paths.iter().map(read).collect()
}

fn collect(dir: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    if !dir.is_dir() || dir.ends_with("target") {
        return Ok(());
    }
    for item in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = item?.path();
        if path.is_dir() {
            collect(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
    Ok(())
}

/// The text with comments and the contents of literals replaced by spaces; lines stay where they are.
pub(super) fn code_only(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let blank = blank_len(rest);
        let (taken, after) = rest.split_at(if blank == 0 { first.len_utf8() } else { blank });
        if blank == 0 {
            code.push_str(taken);
        } else {
            code.extend(taken.chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
        }
        rest = after;
    }
    code
}

/// The length of the comment or literal that `rest` begins with, or 0.
fn blank_len(rest: &str) -> usize {
    if rest.starts_with("//") {
        rest.find('\n').unwrap_or(rest.len())
    } else if rest.starts_with("/*") {
        rest.find("*/").map_or(rest.len(), |end| end + 2)
    } else if rest.starts_with('"') {
        quoted_len(rest)
    } else if let Some(raw) = raw_string_len(rest) {
        raw
    } else if rest.starts_with("'\"'") || rest.starts_with("'\\'") {
        // The only character literals that could be taken for the start of a string or the end of one.
        rest.char_indices().skip(2).find(|(_, c)| *c == '\'').map_or(rest.len(), |(at, _)| at + 1)
    } else {
        0
    }
}

fn quoted_len(rest: &str) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw_string_len(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    let body = after.get(hashes..)?.strip_prefix('"')?;
    let end = format!("\"{}", "#".repeat(hashes));
    Some(body.find(&end).map_or(rest.len(), |at| rest.len() - body.len() + at + end.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_stays() {
        let text = "let a = \"unsafe \\\" {\"; // unsafe\n/* unsafe\n */ r#\"unsafe \" \"# '\"' 'x' b";
        let code = code_only(text);
        assert!(!code.contains("unsafe"));
        assert_eq!(code.lines().count(), text.lines().count());
        assert!(code.starts_with("let a = ") && code.ends_with(" 'x' b"));
    }
}
