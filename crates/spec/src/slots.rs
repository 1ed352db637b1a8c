//! Slots for devices that are plugged in while the VM runs.

use std::fmt;
use std::str::FromStr;

use crate::SpecError;

/// A number of slots, from none to [`SlotCount::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCount(u8);

impl SlotCount {
    /// The most slots of a VM.
    pub const MAX: u8 = 16;

    /// Checks a number of slots.
    ///
    /// # Errors
    /// If there are too many.
    pub fn new(count: u8) -> Result<Self, SpecError> {
        if count <= Self::MAX { Ok(Self(count)) } else { Err(SpecError::Slots { text: count.to_string() }) }
    }

    /// The number.
    pub const fn get(self) -> u8 {
        self.0
    }
}

impl FromStr for SlotCount {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        text.parse()
            .ok()
            .and_then(|count| Self::new(count).ok())
            .ok_or(SpecError::Slots { text: text.to_owned() })
    }
}

impl fmt::Display for SlotCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A slot, as people name it: `slot1` and up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotName(u8);

impl SlotName {
    /// The slot of this index, from 0; none has one of [`SlotCount::MAX`] or above.
    pub fn of_index(index: usize) -> Option<Self> {
        let index = u8::try_from(index).ok().filter(|index| *index < SlotCount::MAX)?;
        Some(Self(index + 1))
    }

    /// Its index, from 0.
    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }

    /// Its number, from 1, which a guest finds as the slot's number, too.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl FromStr for SlotName {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let digits = text.strip_prefix("slot").filter(|digits| !digits.starts_with(['+', '0']));
        let number = digits.and_then(|digits| digits.parse::<u8>().ok());
        let possible = number.filter(|number| (1..=SlotCount::MAX).contains(number));
        possible.map(Self).ok_or_else(|| SpecError::SlotName { text: text.to_owned() })
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_up_to_sixteen() {
        for (text, count) in [("0", 0), ("4", 4), ("16", 16)] {
            assert_eq!(text.parse().map(SlotCount::get), Ok(count));
        }
        for text in ["17", "-1", "256", "x", ""] {
            assert!(text.parse::<SlotCount>().unwrap_err().to_string().contains("0 to 16"), "{text}");
        }
    }

    #[test]
    fn a_slot_is_named_by_its_number() {
        for index in 0..16 {
            let name = SlotName::of_index(index).unwrap();
            assert_eq!(name.to_string().parse(), Ok(name));
            assert_eq!((name.index(), usize::from(name.number())), (index, index + 1));
        }
        assert_eq!(SlotName::of_index(16), None);
        for text in ["slot0", "slot17", "slot", "slot01", "slot+1", "1", "disk1", "slot256"] {
            assert!(text.parse::<SlotName>().is_err(), "{text}");
        }
    }
}
