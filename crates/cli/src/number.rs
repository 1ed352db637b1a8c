//! Numbers as programmers type them.

/// A decimal number, or a hexadecimal one after `0x`.
///
/// # Errors
/// If it is neither, in a sentence.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("'{text}' is not a number: write digits, or 0x and hexadecimal digits"))
}

/// Bytes as pairs of hexadecimal digits; spaces do not matter.
///
/// # Errors
/// If there is anything else, in a sentence.
pub(crate) fn bytes(words: &[String]) -> Result<Vec<u8>, String> {
    let digits: Vec<char> =
        words.iter().flat_map(|word| word.chars()).filter(|c| !c.is_whitespace()).collect();
    let byte = |pair: &[char]| match pair {
        [high, low] => u8::try_from(high.to_digit(16)? << 4 | low.to_digit(16)?).ok(),
        _ => None,
    };
    let bytes = digits.chunks(2).map(byte).collect::<Option<Vec<u8>>>();
    bytes
        .ok_or_else(|| "the code is not pairs of hexadecimal digits: write, for example, 48 8b 07".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bases() {
        assert_eq!(parse("0xffffffff81000000"), Ok(0xffff_ffff_8100_0000));
        assert_eq!(parse("4096"), Ok(4096));
        assert!(
            ["", "0x", "x", "-1", "0x1_0", "0x10000000000000000"].iter().all(|text| parse(text).is_err())
        );
    }

    #[test]
    fn pairs_of_digits() {
        let words = |words: &[&str]| -> Vec<String> { words.iter().map(|&word| word.to_owned()).collect() };
        assert_eq!(bytes(&words(&["48 8B", "07c3"])), Ok(vec![0x48, 0x8b, 0x07, 0xc3]));
        assert_eq!(bytes(&words(&["4", "8"])), Ok(vec![0x48]));
        assert!(bytes(&words(&["488"])).is_err() && bytes(&words(&["0x48"])).is_err());
    }
}
