//! MSI-X: interrupts as messages, a table of them in the function's own registers.
//!
//! A vector that is raised while it or the whole function is masked stays pending and is sent when the mask goes; raising
//! it again meanwhile adds nothing. Pending bits are the function's: a guest reads them and cannot set them.
//!
//! Reference: PCI Local Bus 3.0, 6.8.2.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use state::StateError;
use x86::bits::{high32, index, low32};

use super::ConfigSpace;
use crate::{MsiTarget, access};

/// The capability's identifier.
const CAPABILITY: u8 = 0x11;
/// Message control: enable and function mask, in the word's high half.
const ENABLE: u32 = 1 << 31;
const FUNCTION_MASK: u32 = 1 << 30;
/// Bytes of a table entry.
const ENTRY: u64 = 16;
/// An entry's mask bit.
const MASKED: u32 = 1;

/// A table entry: where to write what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    address: u64,
    data: u32,
    control: u32,
}

const RESET: Entry = Entry { address: 0, data: 0, control: MASKED };

/// The saved form of the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    entries: Vec<Entry>,
    pending: u64,
}

/// A function's MSI-X capability.
pub struct Msix {
    // Glue.
    target: Arc<dyn MsiTarget>,
    // Static.
    capability: u64,
    // Volatile.
    state: MsixState,
    /// What message control says.
    enabled: bool,
    masked: bool,
}

impl Msix {
    /// The most vectors of a function here; a device that wants more shares.
    pub const MAX_VECTORS: u16 = 64;

    /// Gives a function `vectors` vectors, at most [`Msix::MAX_VECTORS`], whose table and pending bits lie behind base
    /// address register `bar` at these offsets, multiples of 8. `None` if configuration space is full.
    pub fn new(
        target: Arc<dyn MsiTarget>,
        config: &mut ConfigSpace,
        vectors: u16,
        (bar, table, pending): (u8, u32, u32),
    ) -> Option<Self> {
        let vectors = vectors.clamp(1, Self::MAX_VECTORS);
        let mut body = (vectors - 1).to_le_bytes().to_vec();
        body.extend((table & !7 | u32::from(bar & 7)).to_le_bytes());
        body.extend((pending & !7 | u32::from(bar & 7)).to_le_bytes());
        let capability = u64::from(config.add_capability(CAPABILITY, &body, &[0, 0xc0])?);
        let state = MsixState { entries: vec![RESET; usize::from(vectors)], pending: 0 };
        Some(Self { target, capability, state, enabled: false, masked: false })
    }

    /// How many vectors there are.
    pub fn vectors(&self) -> u16 {
        u16::try_from(self.state.entries.len()).unwrap_or(0)
    }

    /// Whether interrupts are messages at the moment.
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Looks at message control after the guest may have written it.
    pub fn follow(&mut self, config: &ConfigSpace) {
        let control = config.word(self.capability);
        (self.enabled, self.masked) = (control & ENABLE != 0, control & FUNCTION_MASK != 0);
        self.send_pending();
    }

    /// Raises a vector; one that does not exist is nobody's.
    pub fn raise(&mut self, vector: u16) {
        if vector < self.vectors() {
            self.state.pending |= 1 << vector;
            self.send_pending();
        }
    }

    fn send_pending(&mut self) {
        if !self.enabled || self.masked {
            return;
        }
        for (vector, entry) in self.state.entries.iter().enumerate() {
            if self.state.pending >> vector & 1 != 0 && entry.control & MASKED == 0 {
                self.state.pending &= !(1 << vector);
                self.target.send(entry.address, entry.data);
            }
        }
    }

    /// A read of the table, at an offset into it.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        access::read(4, offset, data, |at| {
            let Some(entry) = self.state.entries.get(index(at / ENTRY)) else { return 0 };
            match at % ENTRY {
                0 => u64::from(low32(entry.address)),
                4 => u64::from(high32(entry.address)),
                8 => u64::from(entry.data),
                _ => u64::from(entry.control),
            }
        });
    }

    /// A write of the table, likewise.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        access::write(4, offset, data, |at, value, mask| {
            let Some(entry) = self.state.entries.get_mut(index(at / ENTRY)) else { return };
            let merge = |old: u32| low32(access::merge(u64::from(old), value, mask));
            match at % ENTRY {
                // The low two bits are always 0.
                0 => entry.address = access::merge(entry.address, value, mask & 0xffff_fffc),
                4 => entry.address = access::merge(entry.address, value << 32, mask << 32),
                8 => entry.data = merge(entry.data),
                _ => entry.control = merge(entry.control) & MASKED,
            }
        });
        self.send_pending();
    }

    /// A read of the pending bits, at an offset into them.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        access::read(8, offset, data, |at| if at == 0 { self.state.pending } else { 0 });
    }

    /// Back to the power-on state; message control is configuration space's.
    pub fn reset(&mut self) {
        self.state.entries.fill(RESET);
        self.state.pending = 0;
        (self.enabled, self.masked) = (false, false);
    }

    /// The saved form.
    pub fn save(&self) -> MsixState {
        self.state.clone()
    }

    /// Whether a saved form is of a table of this size and holds what can be.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self, name: &'static str, state: &MsixState) -> Result<(), StateError> {
        let vectors = self.state.entries.len();
        let possible = |entry: &Entry| entry.address & 3 == 0 && entry.control & !MASKED == 0;
        let all = vectors >= 64 || state.pending >> vectors == 0;
        if state.entries.len() == vectors && state.entries.iter().all(possible) && all {
            return Ok(());
        }
        Err(StateError::Damaged { name, reason: "an interrupt table that cannot be".into() })
    }

    /// Takes over a saved form that [`Msix::check`] found good. Sends nothing: [`Msix::follow`] comes after it.
    pub fn restore(&mut self, state: MsixState) {
        self.state = state;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::super::Identity;
    use super::*;

    #[derive(Default)]
    struct Sent(Mutex<Vec<(u64, u32)>>);

    impl MsiTarget for Sent {
        fn send(&self, address: u64, data: u32) {
            self.0.lock().unwrap().push((address, data));
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(u64, u32)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn rig() -> (Arc<Sent>, ConfigSpace, Msix) {
        let sent = Arc::new(Sent::default());
        let mut config = ConfigSpace::new(&Identity {
            vendor: 1,
            device: 2,
            revision: 0,
            class: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        });
        let msix = Msix::new(sent.clone(), &mut config, 3, (0, 0x4000, 0x5000)).unwrap();
        (sent, config, msix)
    }

    fn control(config: &mut ConfigSpace, msix: &mut Msix, high: u8) {
        config.write(0x43, &[high]);
        msix.follow(config);
    }

    #[test]
    fn a_masked_vector_waits_and_is_sent_once() {
        let (sent, mut config, mut msix) = rig();
        msix.write_table(16, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(24, &0x41_u64.to_le_bytes());
        msix.raise(1);
        assert!(sent.take().is_empty(), "not enabled");
        control(&mut config, &mut msix, 0xc0);
        assert!(sent.take().is_empty(), "the function is masked");
        control(&mut config, &mut msix, 0x80);
        assert_eq!(sent.take(), [(0xfee0_1000, 0x41)]);
        msix.write_table(28, &[1]);
        msix.raise(1);
        msix.raise(1);
        msix.raise(3);
        let mut pending = [0; 8];
        msix.read_pending(0, &mut pending);
        assert_eq!((sent.take(), pending[0]), (vec![], 2));
        msix.write_table(28, &[0]);
        assert_eq!(sent.take(), [(0xfee0_1000, 0x41)]);
    }

    #[test]
    fn the_capability_says_where_the_table_is() {
        let (_, config, _) = rig();
        assert_eq!((config.word(0x40), config.word(0x44), config.word(0x48)), (0x0002_0011, 0x4000, 0x5000));
    }

    #[test]
    fn a_saved_table_round_trips_and_a_damaged_one_is_refused() {
        let (_, _, mut msix) = rig();
        msix.write_table(0, &[0xff; 16]);
        msix.raise(0);
        let saved = msix.save();
        let (sent, _, mut other) = rig();
        other.check("x", &saved).unwrap();
        other.restore(saved.clone());
        assert_eq!((other.save(), sent.take()), (saved.clone(), vec![]));
        let mut table = [0; 16];
        other.read_table(0, &mut table);
        assert_eq!(u128::from_le_bytes(table), 0x0000_0001_ffff_ffff_ffff_ffff_ffff_fffc);
        let bad = MsixState { pending: 8, ..saved };
        assert!(other.check("x", &bad).is_err());
    }
}
