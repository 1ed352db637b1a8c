//! Which instructions translated code leaves to the interpreter, and how often: where a translation would pay.

use engine::Counter;
use iced_x86::Mnemonic;
use translate::Mode;

/// How many instructions are named; the others are one sum.
const NAMED: usize = 24;

/// A count for each mnemonic.
pub(crate) struct Left(Box<[u64]>);

impl Left {
    pub(crate) fn new() -> Self {
        Self(vec![0; Mnemonic::values().len()].into())
    }

    /// One more of these.
    #[inline]
    pub(crate) fn count(&mut self, mnemonic: Mnemonic) {
        if let Some(count) = self.0.get_mut(mnemonic as usize) {
            *count += 1;
        }
    }

    /// The most frequent ones, and the rest.
    pub(crate) fn counters(&self) -> Vec<Counter> {
        let mut counts: Vec<(Mnemonic, u64)> =
            Mnemonic::values().zip(self.0.iter().copied()).filter(|&(_, count)| count != 0).collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let rest: u64 = counts.iter().skip(NAMED).map(|&(_, count)| count).sum();
        let name = |mnemonic: Mnemonic| format!("left.{mnemonic:?}").to_lowercase();
        let help = "of these left to the interpreter";
        let named = counts.into_iter().take(NAMED);
        let mut counters: Vec<Counter> =
            named.map(|(mnemonic, value)| Counter { name: name(mnemonic).into(), value, help }).collect();
        if rest != 0 {
            counters.push(Counter::new("left.others", rest, help));
        }
        counters
    }
}

/// The mnemonic of the instruction that `code` begins with.
pub(crate) fn mnemonic(mode: Mode, code: &[u8]) -> Mnemonic {
    mode.decoder(code, 0).decode().mnemonic()
}

/// Whether an instruction has another result each time, and so is left where two runs are to be the same.
pub(crate) fn varies(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Rdtsc | Mnemonic::Rdtscp | Mnemonic::Rdrand | Mnemonic::Rdseed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_come_first_and_nothing_is_lost() {
        let mut left = Left::new();
        assert!(left.counters().is_empty());
        let few = Mnemonic::values().skip(1000).take(NAMED + 10);
        few.for_each(|mnemonic| left.count(mnemonic));
        for _ in 0..5 {
            left.count(mnemonic(Mode::new(), &[0x0f, 0xa2]));
        }
        let counters = left.counters();
        assert_eq!((counters[0].name.as_ref(), counters[0].value), ("left.cpuid", 5));
        assert_eq!(counters.iter().map(|counter| counter.value).sum::<u64>(), NAMED as u64 + 15);
        assert_eq!((counters.len(), counters[NAMED].name.as_ref()), (NAMED + 1, "left.others"));
        assert_eq!(mnemonic(Mode::new(), &[]), Mnemonic::INVALID);
        assert_eq!(mnemonic(Mode::COMPAT, &[0x40]), Mnemonic::Inc);
    }
}
