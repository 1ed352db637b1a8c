//! Versioned save and restore records.
//!
//! Every component has a *saved form*: a plain type of its own, apart from its runtime form, that implements
//! [`Saved`]. A record is the saved form behind a small header (name, version, length), so that a reader can tell
//! "not mine", "too new" and "damaged" apart before it looks at a single field. No I/O happens here.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The saved form of one component.
pub trait Saved: Serialize + DeserializeOwned {
    /// The component's name in the stream, stable for ever.
    const NAME: &'static str;
    /// Raised whenever the encoded form changes.
    const VERSION: u16;
}

/// A component's state as bytes, with its header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Record {
    name: String,
    version: u16,
    body: Vec<u8>,
}

/// Why a record could not be made or read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum StateError {
    /// The record belongs to another component.
    #[error("saved state is for '{found}', not for '{expected}'")]
    WrongComponent {
        /// The component asked for.
        expected: &'static str,
        /// The component named in the record.
        found: String,
    },
    /// The record was written by another version.
    #[error("saved state of '{name}' has version {found}, this build reads version {expected}")]
    WrongVersion {
        /// The component.
        name: &'static str,
        /// The version this build knows.
        expected: u16,
        /// The version in the record.
        found: u16,
    },
    /// The bytes do not decode, or decode to something that cannot be.
    #[error("saved state of '{name}' is damaged: {reason}")]
    Damaged {
        /// The component.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The record is of a machine with other parts.
    #[error("saved state of '{name}' does not fit this machine: {reason}")]
    Unfit {
        /// The component.
        name: &'static str,
        /// What differs.
        reason: String,
    },
}

impl Record {
    /// Encodes a saved form.
    pub fn encode<T: Saved>(saved: &T) -> Self {
        // A saved form is plain data, for which encoding into a growing vector cannot fail.
        let body = postcard::to_stdvec(saved).unwrap_or_default();
        Self { name: T::NAME.to_owned(), version: T::VERSION, body }
    }

    /// Decodes the saved form `T`.
    ///
    /// # Errors
    /// If the record is another component's, of another version, or damaged.
    pub fn decode<T: Saved>(&self) -> Result<T, StateError> {
        if self.name != T::NAME {
            return Err(StateError::WrongComponent { expected: T::NAME, found: self.name.clone() });
        }
        if self.version != T::VERSION {
            return Err(StateError::WrongVersion {
                name: T::NAME,
                expected: T::VERSION,
                found: self.version,
            });
        }
        let damaged = |reason: String| StateError::Damaged { name: T::NAME, reason };
        let (saved, rest) =
            postcard::take_from_bytes(&self.body).map_err(|error| damaged(error.to_string()))?;
        if rest.is_empty() { Ok(saved) } else { Err(damaged(format!("{} bytes too many", rest.len()))) }
    }

    /// The component's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Saved for x86::CpuState {
    const NAME: &'static str = "vcpu";
    const VERSION: u16 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vcpu_round_trips() {
        let mut cpu = x86::CpuState::reset();
        cpu.gpr[3] = 0x1234;
        cpu.vector.ymm[15][1] = u128::MAX;
        assert_eq!(Record::encode(&cpu).decode::<x86::CpuState>(), Ok(cpu));
    }

    #[test]
    fn damage_is_told_apart() {
        let good = Record::encode(&x86::CpuState::reset());
        let truncated = Record { body: good.body[..good.body.len() - 1].to_vec(), ..good.clone() };
        assert!(matches!(truncated.decode::<x86::CpuState>(), Err(StateError::Damaged { .. })));
        let newer = Record { version: 9, ..good.clone() };
        assert!(matches!(newer.decode::<x86::CpuState>(), Err(StateError::WrongVersion { found: 9, .. })));
        let other = Record { name: "pit".into(), ..good };
        assert!(matches!(other.decode::<x86::CpuState>(), Err(StateError::WrongComponent { .. })));
    }
}
