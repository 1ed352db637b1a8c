//! Choices by name.

/// Parses and prints a choice, which has `ALL` and `name`, by its names; others are refused as `SpecError::$unknown`.
macro_rules! by_name {
    ($choice:ident, $unknown:ident) => {
        impl std::str::FromStr for $choice {
            type Err = $crate::SpecError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let found = Self::ALL.into_iter().find(|choice| choice.name() == text);
                found.ok_or_else(|| Self::Err::$unknown { text: text.to_owned() })
            }
        }

        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use by_name;
