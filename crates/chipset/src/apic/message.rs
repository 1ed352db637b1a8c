//! What travels on the interrupt bus: messages from the IOAPIC, MSIs and IPIs, and who they are meant for
//! (SDM vol. 3, 11.6 and 11.11).
//!
//! Every sender's wording (ICR in two forms, redirection entry, MSI address and data) is turned into one
//! [`Message`] at the edge, so that matching and acceptance exist once.

use x86::bits::{high32, low8, low32};

/// How a message is to be taken (SDM vol. 3, 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, on every processor addressed.
    Fixed,
    /// The vector, on the addressed processor that runs at the lowest priority.
    LowestPriority,
    /// A non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up, with a page number as vector.
    Startup,
}

impl DeliveryMode {
    /// From the three-bit field that ICR, redirection entries and MSI data share. SMI and ExtINT messages have no
    /// meaning in this machine and are `None`, as is the reserved encoding.
    pub const fn from_field(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }
}

/// Edge or level: whether the end of the interrupt is announced to the IOAPIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// Each edge is one interrupt.
    Edge,
    /// The interrupt persists while the line is high.
    Level,
}

/// Whom a message addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Every local APIC.
    Broadcast,
    /// The one with this APIC ID.
    Physical(u32),
    /// Those whose logical ID matches this set (SDM vol. 3, 11.6.2.2 and 11.12.10.2).
    Logical(u32),
}

impl Destination {
    /// From the 8-bit field of an xAPIC, an IOAPIC or an MSI, where all ones are everybody.
    pub const fn narrow(id: u8, logical: bool) -> Self {
        match id {
            0xff => Self::Broadcast,
            _ if logical => Self::Logical(id as u32),
            _ => Self::Physical(id as u32),
        }
    }

    /// From the 32-bit field of an x2APIC.
    pub const fn wide(id: u32, logical: bool) -> Self {
        match id {
            u32::MAX => Self::Broadcast,
            _ if logical => Self::Logical(id),
            _ => Self::Physical(id),
        }
    }
}

/// An interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whom it addresses.
    pub destination: Destination,
    /// How it is to be taken.
    pub mode: DeliveryMode,
    /// The vector; for start-up the page number; otherwise meaningless.
    pub vector: u8,
    /// Edge or level.
    pub trigger: Trigger,
}

impl Message {
    /// The message that a write of `data` to `address` stands for; `None` if the write is not an MSI, asks for a
    /// level to be de-asserted, or for a mode that this machine has no use for (SDM vol. 3, 11.11).
    pub fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let (redirectable, logical) = (address & 8 != 0, address & 4 != 0);
        let mode = match DeliveryMode::from_field(data >> 8)? {
            // The redirection hint asks for the lowest priority among those addressed.
            DeliveryMode::Fixed if redirectable => DeliveryMode::LowestPriority,
            mode => mode,
        };
        let (level, assert) = (data & 1 << 15 != 0, data & 1 << 14 != 0);
        if level && !assert {
            return None;
        }
        Some(Self {
            destination: Destination::narrow(low8(address >> 12), logical),
            mode,
            vector: low8(u64::from(data)),
            trigger: if level { Trigger::Level } else { Trigger::Edge },
        })
    }
}

/// Anything that carries messages to local APICs.
pub trait MessageBus: Send + Sync {
    /// Delivers; false if no local APIC took the message.
    fn deliver(&self, message: &Message) -> bool;
}

/// The targets of an inter-processor interrupt (SDM vol. 3, 11.6.1, destination shorthand).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Targets {
    /// Those that the message's destination addresses.
    Addressed,
    /// The sender.
    Itself,
    /// Everybody.
    Everybody,
    /// Everybody but the sender.
    Others,
}

/// An inter-processor interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ipi {
    pub(super) targets: Targets,
    pub(super) message: Message,
}

impl Ipi {
    /// What a write of the interrupt command register sends; `None` if it sends nothing: modes of no use here, the
    /// INIT de-assert of old processors, and combinations that SDM table 11-4 calls invalid. NMI to oneself is let
    /// through by any shorthand, as processors do.
    pub(super) fn from_icr(icr: u64, x2apic: bool) -> Option<Self> {
        let low = low32(icr);
        let mode = DeliveryMode::from_field(low >> 8)?;
        let (assert, level) = (low & 1 << 14 != 0, low & 1 << 15 != 0);
        if mode == DeliveryMode::Init && level && !assert {
            return None;
        }
        let targets = match low >> 18 & 3 {
            0 => Targets::Addressed,
            1 => Targets::Itself,
            2 => Targets::Everybody,
            _ => Targets::Others,
        };
        let includes_self = matches!(targets, Targets::Itself | Targets::Everybody);
        if includes_self && !matches!(mode, DeliveryMode::Fixed | DeliveryMode::Nmi) {
            return None;
        }
        let logical = low & 1 << 11 != 0;
        let destination = if x2apic {
            Destination::wide(high32(icr), logical)
        } else {
            Destination::narrow(low8(icr >> 56), logical)
        };
        // The trigger mode of an IPI is ignored but for the INIT de-assert.
        let message = Message { destination, mode, vector: low8(icr), trigger: Trigger::Edge };
        Some(Self { targets, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xfee0_3000, 0x4041).unwrap();
        assert_eq!(message.destination, Destination::Physical(3));
        assert_eq!((message.mode, message.vector), (DeliveryMode::Fixed, 0x41));
        assert_eq!(message.trigger, Trigger::Edge);
        let hinted = Message::from_msi(0xfee0_300c, 0xc041).unwrap();
        assert_eq!(hinted.destination, Destination::Logical(3));
        assert_eq!((hinted.mode, hinted.trigger), (DeliveryMode::LowestPriority, Trigger::Level));
        assert_eq!(Message::from_msi(0xfee0_3000, 0x8041), None, "a level is de-asserted");
        assert_eq!(Message::from_msi(0xfed0_3000, 0x41), None, "not the MSI window");
        assert_eq!(Message::from_msi(0xfee0_3000, 0x241), None, "SMI");
    }

    #[test]
    fn icr_forms() {
        let narrow = Ipi::from_icr(0x0500_0000_0000_0040, false).unwrap();
        assert_eq!(narrow.message.destination, Destination::Physical(5));
        let wide = Ipi::from_icr(0x0001_0002_0000_0840, true).unwrap();
        assert_eq!(wide.message.destination, Destination::Logical(0x1_0002));
        let all = Ipi::from_icr(0xff00_0000_0000_0040, false).unwrap();
        assert_eq!(all.message.destination, Destination::Broadcast);
        assert_eq!(Ipi::from_icr(0x8500, false), None, "INIT de-assert");
        assert_eq!(Ipi::from_icr(0x4_4500, false), None, "INIT to itself");
        assert_eq!(Ipi::from_icr(0xc_4500, false).unwrap().targets, Targets::Others);
    }
}
