//! Environment variables, as people name them: `NAME=VALUE`, or `NAME` for the value that it has here.

use std::ffi::OsString;

/// A variable and its value.
///
/// # Errors
/// A sentence, if there is no name or no value.
pub(crate) fn parse(text: &str) -> Result<(OsString, OsString), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.into())),
        None => (text, std::env::var_os(text)),
    };
    match value {
        Some(value) if !name.is_empty() => Ok((name.into(), value)),
        None if !name.is_empty() => Err(format!("'{name}' is not set here: write {name}=VALUE")),
        _ => Err(format!("'{text}' names no variable: write NAME or NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_given_or_inherited() {
        assert_eq!(parse("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(parse("A="), Ok(("A".into(), "".into())));
        let path = std::env::var_os("PATH").unwrap();
        assert_eq!(parse("PATH"), Ok(("PATH".into(), path)));
        assert!(parse("NO_SUCH_VARIABLE").unwrap_err().contains("not set"));
        assert!(parse("=x").is_err() && parse("").is_err());
    }
}
