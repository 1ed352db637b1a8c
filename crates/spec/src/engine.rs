//! Which engine executes a VM's instructions.

use crate::choice::by_name;

/// An engine by name. Which one runs is data: nothing else in the description depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// The fastest that works on this host.
    #[default]
    Auto,
    /// Binary translation.
    Bt,
    /// The interpreter.
    Interp,
    /// Binary translation beside the interpreter, compared after every block: for those who debug the translator.
    Lockstep,
}

impl EngineChoice {
    /// Every choice, for help and completions.
    pub const ALL: [Self; 4] = [Self::Auto, Self::Bt, Self::Interp, Self::Lockstep];

    /// The name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Bt => "bt",
            Self::Interp => "interp",
            Self::Lockstep => "lockstep",
        }
    }
}

by_name!(EngineChoice, UnknownEngine);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpecError;

    #[test]
    fn names_parse_back() {
        for choice in EngineChoice::ALL {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        assert!(matches!("kqemu".parse::<EngineChoice>(), Err(SpecError::UnknownEngine { .. })));
    }
}
