//! Tables in Markdown, so that a rule's data stands where people read it.

/// The cells of every body row of the first table whose heading starts with `first`.
pub(super) fn rows<'a>(text: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let cells = |line: &'a str| -> Option<Vec<&'a str>> {
        let inner = line.trim().strip_prefix('|')?.strip_suffix('|')?;
        Some(inner.split('|').map(str::trim).collect())
    };
    text.lines()
        .skip_while(|line| cells(line).is_none_or(|cells| cells.first() != Some(&first)))
        .skip(2)
        .map_while(cells)
        .collect()
}

/// The text of a cell without code marks.
pub(super) fn plain(cell: &str) -> &str {
    cell.trim_matches('`')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_right_table_is_read() {
        let text = "x\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| file | n |\n|---|---|\n| `f` | 3 |\n| g | 4 |\ntext\n| h | 5 |\n";
        assert_eq!(rows(text, "file"), [["`f`", "3"], ["g", "4"]]);
        assert_eq!(plain("`f`"), "f");
        assert!(rows(text, "none").is_empty());
    }
}
