//! What a driver can set (NVM Express 1.4, 5.21). None of it outlives a reset of the controller.

use serde::{Deserialize, Serialize};
use x86::bits::low16;

use crate::identify::WARNING_KELVINS;
use crate::status::Status;

/// How many power states there are.
pub(crate) const NUMBER_OF_POWER_STATES: u8 = 1;

// Identifiers.
const ARBITRATION: u8 = 0x01;
const POWER: u8 = 0x02;
const TEMPERATURE: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
const WRITE_CACHE: u8 = 0x06;
pub(crate) const QUEUES: u8 = 0x07;
const COALESCING: u8 = 0x08;
const VECTOR: u8 = 0x09;
const ATOMICITY: u8 = 0x0a;
const EVENTS: u8 = 0x0b;

/// Features that are a word which the driver sets and nothing else: identifier, which bits there are, at reset. There is one
/// power state, bursts and coalescing are hints, and no event but errors ever happens.
const WORDS: [(u8, u32, u32); 7] = [
    (ARBITRATION, 0xffff_ff07, 7),
    (POWER, 0, 0),
    (ERROR_RECOVERY, 0xffff, 0),
    (WRITE_CACHE, 1, 1),
    (COALESCING, 0xffff, 0),
    (ATOMICITY, 1, 0),
    (EVENTS, 0x7fff, 0),
];

/// The features.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Features {
    words: [u32; WORDS.len()],
    /// Temperatures above and below which a driver wants to hear of it.
    temperatures: [u16; 2],
    /// The vectors whose interrupts are not to be coalesced, a bit each.
    prompt: u64,
}

impl Features {
    /// At reset.
    pub(crate) fn new() -> Self {
        Self { words: WORDS.map(|(_, _, reset)| reset), temperatures: [WARNING_KELVINS, 0], prompt: 0 }
    }

    /// Whether it holds nothing that cannot be.
    pub(crate) fn is_possible(&self) -> bool {
        self.words.iter().zip(WORDS).all(|(word, (_, bits, _))| word & !bits == 0)
    }

    /// Whether writes may stay in the host's cache until they are flushed.
    pub(crate) fn has_write_cache(&self) -> bool {
        self.words.iter().zip(WORDS).any(|(word, (feature, ..))| feature == WRITE_CACHE && *word != 0)
    }

    /// A feature's value; `argument` chooses among those that have several.
    pub(crate) fn get(&self, feature: u8, argument: u32, vectors: u16) -> Result<u32, Status> {
        match feature {
            TEMPERATURE => Ok(self.temperatures.get(threshold(argument)?).copied().unwrap_or(0).into()),
            VECTOR => {
                let vector = vector(argument, vectors)?;
                Ok(u32::from(vector) | u32::from(self.prompt >> vector & 1 != 0) << 16)
            }
            _ => self.word(feature).map(|at| self.words.get(at).copied().unwrap_or(0)),
        }
    }

    /// Sets a feature.
    pub(crate) fn set(&mut self, feature: u8, value: u32, vectors: u16) -> Result<(), Status> {
        match feature {
            TEMPERATURE => {
                let which = threshold(value)?;
                if let Some(kelvins) = self.temperatures.get_mut(which) {
                    *kelvins = low16(value.into());
                }
            }
            VECTOR => {
                let vector = vector(value, vectors)?;
                let bit = 1 << vector;
                self.prompt = if value & 1 << 16 != 0 { self.prompt | bit } else { self.prompt & !bit };
            }
            _ => {
                let at = self.word(feature)?;
                let (_, bits, _) = WORDS.get(at).copied().unwrap_or_default();
                // Reserved bits are not looked at, but a power state has to exist.
                if feature == POWER && value & 0x1f >= NUMBER_OF_POWER_STATES.into() {
                    return Err(Status::INVALID_FIELD);
                }
                if let Some(word) = self.words.get_mut(at) {
                    *word = value & bits;
                }
            }
        }
        Ok(())
    }

    fn word(&self, feature: u8) -> Result<usize, Status> {
        WORDS.iter().position(|(known, ..)| *known == feature).ok_or(Status::INVALID_FIELD)
    }
}

/// Which threshold: of the composite temperature (or of all sensors, which are none), above or below.
fn threshold(argument: u32) -> Result<usize, Status> {
    match (argument >> 16 & 0xf, argument >> 20 & 3) {
        (0 | 0xf, 0) => Ok(0),
        (0 | 0xf, 1) => Ok(1),
        _ => Err(Status::INVALID_FIELD),
    }
}

fn vector(argument: u32, vectors: u16) -> Result<u16, Status> {
    let vector = low16(argument.into());
    if vector < vectors { Ok(vector) } else { Err(Status::INVALID_FIELD) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_is_read_and_nothing_else() {
        let mut features = Features::new();
        assert!(features.has_write_cache());
        features.set(WRITE_CACHE, 0xfffe, 3).unwrap();
        assert!(!features.has_write_cache());
        assert_eq!(features.get(WRITE_CACHE, 0, 3), Ok(0));
        features.set(TEMPERATURE, 1 << 20 | 250, 3).unwrap();
        assert_eq!(features.get(TEMPERATURE, 1 << 20, 3), Ok(250));
        assert_eq!(features.get(TEMPERATURE, 0, 3), Ok(343));
        features.set(VECTOR, 1 << 16 | 2, 3).unwrap();
        assert_eq!([1, 2].map(|vector| features.get(VECTOR, vector, 3)), [Ok(1), Ok(1 << 16 | 2)]);
        for (feature, value) in
            [(0, 0), (0x03, 0), (0x7f, 0), (POWER, 1), (VECTOR, 3), (TEMPERATURE, 1 << 16)]
        {
            assert_eq!(features.set(feature, value, 3), Err(Status::INVALID_FIELD), "{feature:x}");
        }
        assert!(features.is_possible() && features != Features::new());
    }
}
