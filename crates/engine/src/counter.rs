//! What an engine counts in its own terms.

use std::borrow::Cow;

/// A figure under a name that its engine chose. Whoever prints it need not know the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Lower-case words; a dot ends what several have in common: `tlb.fills`.
    pub name: Cow<'static, str>,
    /// How many, since the vCPU was created.
    pub value: u64,
    /// What is counted, in a few words.
    pub help: &'static str,
}

impl Counter {
    /// A counter with a name that is known beforehand.
    pub const fn new(name: &'static str, value: u64, help: &'static str) -> Self {
        Self { name: Cow::Borrowed(name), value, help }
    }
}
