//! What umbra itself says, always on standard error.

use std::io::{IsTerminal, Write, stderr};

/// Something that went on and is good to know.
pub(crate) fn note(text: &str) {
    say("\x1b[1m", text);
}

/// Why umbra failed: one sentence on one line, whatever it was made of.
pub(crate) fn error(text: &str) {
    say("\x1b[1;31m", text);
}

/// Several lines that explain the message before.
pub(crate) fn block(text: &str) {
    let _ = writeln!(stderr(), "{}", text.trim_end());
}

fn say(colour: &str, text: &str) {
    let text = one_line(text);
    // Nowhere to complain if standard error is gone.
    let _ = if colours() {
        writeln!(stderr(), "{colour}umbra:\x1b[0m {text}")
    } else {
        writeln!(stderr(), "umbra: {text}")
    };
}

/// Whether standard error is a terminal whose owner does not mind colours (<https://no-color.org>).
fn colours() -> bool {
    stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// The text with line breaks and other control characters, which may come from a file name, made harmless.
fn one_line(text: &str) -> String {
    text.split(char::is_control).filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(one_line("a\nb\r\n\x1b[31mc"), "a b [31mc");
    }
}
