//! Choices by name.

/// Declares a choice among things that have names: what they are, all of them, the name of each, and which one a name is.
macro_rules! choice {
    (
        $(#[$about:meta])*
        pub enum $choice:ident { $($(#[$about_one:meta])* $one:ident = $name:literal,)+ }
    ) => {
        $(#[$about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $choice { $($(#[$about_one])* $one,)+ }

        impl $choice {
            /// Every choice, for help and completions.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$one),+];

            /// The name on the command line.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$one => $name,)+ }
            }

            /// The one of this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.into_iter().find(|choice| choice.name() == name)
            }
        }
    };
}

/// Parses and prints a choice by its names; others are refused as `SpecError::$unknown`.
macro_rules! by_name {
    ($choice:ident, $unknown:ident) => {
        impl std::str::FromStr for $choice {
            type Err = $crate::SpecError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::named(text).ok_or_else(|| Self::Err::$unknown { text: text.to_owned() })
            }
        }

        impl std::fmt::Display for $choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use {by_name, choice};
