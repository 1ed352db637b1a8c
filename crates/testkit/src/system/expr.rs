//! Numbers as cases write them: `KDATA | 3`, `8 * 13 + IDT`, `~(1 << 51)`.
//!
//! Literals are decimal or `0x` hexadecimal and may hold `_`; names are the case's labels or constants of [`super::symbols`].
//! From weakest to strongest: `|`, `&`, `<<`, `+ -`, `*`, `~`. Arithmetic wraps at 64 bits.

use std::collections::HashMap;

use super::symbols;

/// The labels of a case's code, as linear addresses.
pub(super) type Labels = HashMap<String, u64>;

/// The value of an expression.
pub(super) fn evaluate(text: &str, labels: &Labels) -> Result<u64, String> {
    let mut reader = Reader { rest: text.trim(), labels };
    let value = reader.binary(0)?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("'{}' is left over in '{text}'", reader.rest))
    }
}

struct Reader<'a> {
    rest: &'a str,
    labels: &'a Labels,
}

/// The binary operators by strength.
const OPERATORS: [&[&str]; 5] = [&["|"], &["&"], &["<<"], &["+", "-"], &["*"]];

impl Reader<'_> {
    fn eat(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }

    fn binary(&mut self, strength: usize) -> Result<u64, String> {
        let Some(operators) = OPERATORS.get(strength) else { return self.unary() };
        let mut left = self.binary(strength + 1)?;
        while let Some(operator) = operators.iter().find(|o| self.eat(o)) {
            let right = self.binary(strength + 1)?;
            left = match *operator {
                "|" => left | right,
                "&" => left & right,
                "<<" => left.checked_shl(u32::try_from(right).unwrap_or(u32::MAX)).unwrap_or(0),
                "+" => left.wrapping_add(right),
                "-" => left.wrapping_sub(right),
                _ => left.wrapping_mul(right),
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<u64, String> {
        if self.eat("~") {
            return Ok(!self.unary()?);
        }
        if self.eat("-") {
            return Ok(self.unary()?.wrapping_neg());
        }
        if self.eat("(") {
            let value = self.binary(0)?;
            return if self.eat(")") { Ok(value) } else { Err("a parenthesis is not closed".into()) };
        }
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !word(c)).unwrap_or(self.rest.len());
        let (token, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        value_of(token, self.labels)
    }
}

fn value_of(token: &str, labels: &Labels) -> Result<u64, String> {
    if !token.starts_with(|c: char| c.is_ascii_digit()) {
        let named = labels.get(token).copied().or_else(|| symbols::constant(token));
        return named.ok_or_else(|| format!("'{token}' has no meaning"));
    }
    let digits = token.replace('_', "");
    let number = match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    };
    number.map_err(|_| format!("'{token}' is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_have_their_strengths() {
        let labels = Labels::from([("here".to_owned(), 0x40)]);
        let value = |text| evaluate(text, &labels).unwrap();
        assert_eq!(value("1 | 2 + 3 * 4"), 15);
        assert_eq!(value("~0 << 4 & 0xff"), 0xf0);
        assert_eq!(value("(here + 0x1_0) - 1"), 0x4f);
        assert_eq!(value("-1"), u64::MAX);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "1 +", "(1", "0xg", "nowhere", "1 2"] {
            assert!(evaluate(text, &Labels::new()).is_err(), "{text}");
        }
    }
}
