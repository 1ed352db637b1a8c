//! What was compared, and what differed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// What an engine's vCPUs counted together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Trials that executed something and agreed with the interpreter.
    pub blocks: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Instructions that translations left to the interpreter.
    pub left: u64,
    /// Trials made a second time, with the pages of the first open.
    pub repeated: u64,
    /// Trials that differed after reading flags that are undefined.
    pub unclear: u64,
}

/// The book of an engine's vCPUs.
#[derive(Debug, Default)]
pub struct Ledger {
    blocks: AtomicU64,
    instructions: AtomicU64,
    left: AtomicU64,
    repeated: AtomicU64,
    unclear: AtomicU64,
    differences: Mutex<Vec<String>>,
    announces: bool,
}

impl Ledger {
    /// One that prints differences when they are found, and its counts in the end.
    pub(super) fn announcing() -> Self {
        let mut ledger = Self::default();
        ledger.announces = true;
        ledger
    }

    /// What was counted until now.
    pub fn counts(&self) -> Counts {
        Counts {
            blocks: self.blocks.load(Ordering::Relaxed),
            instructions: self.instructions.load(Ordering::Relaxed),
            left: self.left.load(Ordering::Relaxed),
            repeated: self.repeated.load(Ordering::Relaxed),
            unclear: self.unclear.load(Ordering::Relaxed),
        }
    }

    /// What differed, as text; each ended its vCPU.
    pub fn differences(&self) -> Vec<String> {
        self.differences.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A trial of so many instructions agreed.
    pub(super) fn count(&self, instructions: usize) {
        if instructions != 0 {
            self.blocks.fetch_add(1, Ordering::Relaxed);
            self.instructions.fetch_add(instructions as u64, Ordering::Relaxed);
        }
    }

    pub(super) fn leave(&self) {
        self.left.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn repeat(&self) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn be_unclear(&self) {
        self.unclear.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn differ(&self, text: String) {
        if self.announces {
            eprintln!("{text}");
        }
        self.differences.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if self.announces {
            let Counts { blocks, instructions, left, repeated, unclear } = self.counts();
            let differences = self.differences().len();
            eprintln!(
                "lockstep: {blocks} blocks with {instructions} instructions compared, {repeated} twice, {differences} differences; \
                 {left} instructions left to the interpreter, {unclear} blocks unclear"
            );
        }
    }
}
