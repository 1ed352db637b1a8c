//! Packets as bytes (VIRTIO 1.2, 5.10.6).

/// The length of a header.
pub(super) const HEADER: usize = 44;

/// A stream, the only kind of socket here.
pub(super) const STREAM: u16 = 1;

/// What a packet is for (5.10.6).
pub(super) mod operation {
    pub(in crate::vsock) const REQUEST: u16 = 1;
    pub(in crate::vsock) const RESPONSE: u16 = 2;
    pub(in crate::vsock) const RESET: u16 = 3;
    pub(in crate::vsock) const SHUTDOWN: u16 = 4;
    pub(in crate::vsock) const DATA: u16 = 5;
    pub(in crate::vsock) const CREDIT_UPDATE: u16 = 6;
    pub(in crate::vsock) const CREDIT_REQUEST: u16 = 7;
}

/// What the sender of a SHUTDOWN will not do any more (5.10.6.6).
pub(super) mod shutdown {
    pub(in crate::vsock) const RECEIVE: u32 = 1 << 0;
    pub(in crate::vsock) const SEND: u32 = 1 << 1;
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Address {
    /// Whose.
    pub(super) cid: u64,
    /// Which of theirs.
    pub(super) port: u32,
}

/// A packet's header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source: Address,
    pub(super) target: Address,
    /// How many bytes follow.
    pub(super) len: u32,
    /// The kind of socket.
    pub(super) kind: u16,
    /// What it is for.
    pub(super) operation: u16,
    /// For a SHUTDOWN.
    pub(super) flags: u32,
    /// How many bytes the sender's socket holds,
    pub(super) buffer: u32,
    /// and how many have left it, ever; modulo 2^32.
    pub(super) forwarded: u32,
}

impl Header {
    /// Reads it.
    pub(super) fn parse(bytes: &[u8; HEADER]) -> Self {
        let (words, _) = bytes.as_chunks::<4>();
        let word = |number: usize| words.get(number).map_or(0, |word| u32::from_le_bytes(*word));
        let long = |number: usize| u64::from(word(number)) | u64::from(word(number + 1)) << 32;
        let [kind0, kind1, operation0, operation1] = word(7).to_le_bytes();
        Self {
            source: Address { cid: long(0), port: word(4) },
            target: Address { cid: long(2), port: word(5) },
            len: word(6),
            kind: u16::from_le_bytes([kind0, kind1]),
            operation: u16::from_le_bytes([operation0, operation1]),
            flags: word(8),
            buffer: word(9),
            forwarded: word(10),
        }
    }

    /// Writes it.
    pub(super) fn bytes(&self) -> [u8; HEADER] {
        let halves = |long: u64| [x86::bits::low32(long), x86::bits::low32(long >> 32)];
        let [[source0, source1], [target0, target1]] = [halves(self.source.cid), halves(self.target.cid)];
        let kind = u32::from(self.kind) | u32::from(self.operation) << 16;
        let words = [
            source0,
            source1,
            target0,
            target1,
            self.source.port,
            self.target.port,
            self.len,
            kind,
            self.flags,
            self.buffer,
            self.forwarded,
        ];
        let mut bytes = [0; HEADER];
        for (place, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_le_bytes();
        }
        bytes
    }

    /// The answer that there is no such connection.
    pub(super) fn reset(&self) -> Self {
        Self {
            source: self.target,
            target: self.source,
            kind: self.kind,
            operation: operation::RESET,
            ..Self::default()
        }
    }
}
