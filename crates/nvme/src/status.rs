//! How a command ended (NVM Express 1.4, 4.6.1).

/// Status code type in bits 10:8, status code in bits 7:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(u16);

impl Status {
    // Generic.
    pub(crate) const SUCCESS: Self = Self(0x000);
    pub(crate) const INVALID_OPCODE: Self = Self(0x001);
    pub(crate) const INVALID_FIELD: Self = Self(0x002);
    pub(crate) const DATA_TRANSFER_ERROR: Self = Self(0x004);
    pub(crate) const INTERNAL_ERROR: Self = Self(0x006);
    pub(crate) const INVALID_NAMESPACE: Self = Self(0x00b);
    pub(crate) const SEQUENCE_ERROR: Self = Self(0x00c);
    pub(crate) const PRP_OFFSET_INVALID: Self = Self(0x013);
    pub(crate) const WRITE_PROTECTED: Self = Self(0x020);
    pub(crate) const LBA_OUT_OF_RANGE: Self = Self(0x080);
    // Of admin commands.
    pub(crate) const COMPLETION_QUEUE_INVALID: Self = Self(0x100);
    pub(crate) const QUEUE_IDENTIFIER_INVALID: Self = Self(0x101);
    pub(crate) const QUEUE_SIZE_INVALID: Self = Self(0x102);
    pub(crate) const TOO_MANY_EVENT_REQUESTS: Self = Self(0x105);
    pub(crate) const INTERRUPT_VECTOR_INVALID: Self = Self(0x108);
    pub(crate) const LOG_PAGE_INVALID: Self = Self(0x109);
    pub(crate) const QUEUE_DELETION_INVALID: Self = Self(0x10c);
    pub(crate) const FEATURE_NOT_SAVEABLE: Self = Self(0x10d);
    // Of media.
    pub(crate) const WRITE_FAULT: Self = Self(0x280);
    pub(crate) const READ_ERROR: Self = Self(0x281);

    /// The status field of a completion, without the phase tag. What failed is in the error log (bit 13) and fails again
    /// (bit 14).
    pub(crate) const fn field(self) -> u16 {
        if self.0 == 0 { 0 } else { self.0 | 1 << 13 | 1 << 14 }
    }
}

/// Data where there is no memory is a failed transfer.
impl From<memory::MemoryError> for Status {
    fn from(_: memory::MemoryError) -> Self {
        Self::DATA_TRANSFER_ERROR
    }
}
