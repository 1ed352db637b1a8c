//! Which engine executes a VM's instructions.

use crate::choice::{by_name, choice};

choice! {
    /// An engine by name. Which one runs is data: nothing else in the description depends on it.
    #[derive(Default)]
    pub enum EngineChoice {
        /// The fastest that works on this host.
        #[default]
        Auto = "auto",
        /// Binary translation.
        Bt = "bt",
        /// The interpreter.
        Interp = "interp",
        /// Binary translation beside the interpreter, compared after every block: for those who debug the translator.
        Lockstep = "lockstep",
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
