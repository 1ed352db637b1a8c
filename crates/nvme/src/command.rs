//! A command, as a submission queue holds it (NVM Express 1.4, 4.2).

use x86::bits::{high32, high64, low8, low16, low32, low64};

/// The bytes of a command.
pub(crate) const COMMAND_BYTES: usize = 64;

/// The namespace identifier that means all of them.
pub(crate) const ALL_NAMESPACES: u32 = u32::MAX;
/// The one namespace.
pub(crate) const NAMESPACE: u32 = 1;

/// A command, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    /// Fused operation in bits 1:0, how data is described in bits 7:6.
    flags: u8,
    /// The driver's name for it.
    pub(crate) id: u16,
    pub(crate) namespace: u32,
    /// The two PRP entries.
    pub(crate) prp: [u64; 2],
    /// Dwords 10 to 15.
    words: [u32; 6],
}

impl Command {
    /// Takes a command apart.
    pub(crate) fn parse(bytes: &[u8; COMMAND_BYTES]) -> Self {
        let (parts, _) = bytes.as_chunks::<16>();
        let part = |at: usize| parts.get(at).map_or(0, |part| u128::from_le_bytes(*part));
        let head = low64(part(0));
        let (tenth, fourteenth) = (part(2), part(3));
        let prp = [high64(part(1)), low64(tenth)];
        let pairs = [high64(tenth), low64(fourteenth), high64(fourteenth)];
        let [a, b, c] = pairs.map(|pair| [low32(pair), high32(pair)]);
        Self {
            opcode: low8(head),
            flags: low8(head >> 8),
            id: low16(head >> 16),
            namespace: high32(head),
            prp,
            words: [a[0], a[1], b[0], b[1], c[0], c[1]],
        }
    }

    /// Dword `number`, 10 to 15.
    pub(crate) fn word(&self, number: usize) -> u32 {
        number.checked_sub(10).and_then(|at| self.words.get(at)).copied().unwrap_or(0)
    }

    /// Dwords `number` and the one after it.
    pub(crate) fn long(&self, number: usize) -> u64 {
        u64::from(self.word(number + 1)) << 32 | u64::from(self.word(number))
    }

    /// Whether it is one command, whose data is described by PRPs: nothing else is offered.
    pub(crate) fn is_plain(&self) -> bool {
        self.flags & 0b1100_0011 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut bytes = [0; COMMAND_BYTES];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::try_from(at).unwrap();
        }
        let command = Command::parse(&bytes);
        assert_eq!((command.opcode, command.id, command.namespace), (0, 0x0302, 0x0706_0504));
        assert_eq!(command.prp, [0x1f1e_1d1c_1b1a_1918, 0x2726_2524_2322_2120]);
        assert_eq!((command.word(10), command.word(15)), (0x2b2a_2928, 0x3f3e_3d3c));
        assert_eq!(command.long(12), 0x3736_3534_3332_3130);
        assert!(!command.is_plain(), "fused");
    }
}
