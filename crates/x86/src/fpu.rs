//! x87 and vector register state (SDM vol. 1, chapters 8, 10, 13 and 14).

use serde::{Deserialize, Serialize};

/// The reset value of MXCSR.
pub const MXCSR_DEFAULT: u32 = 0x1f80;
/// The MXCSR bits that can be set (DAZ included).
pub const MXCSR_MASK: u32 = 0xffff;

/// Bits of the x87 status word.
pub mod fsw {
    /// The six exception flags.
    pub const EXCEPTIONS: u16 = 0x3f;
    /// Stack fault.
    pub const SF: u16 = 1 << 6;
    /// Error summary: an unmasked exception is pending.
    pub const ES: u16 = 1 << 7;
    /// Busy: mirrors ES.
    pub const B: u16 = 1 << 15;
    /// Bit position of TOP.
    pub const TOP_SHIFT: u32 = 11;
}

/// The x87 unit. `st` is in stack order, `st[0]` = ST(0), as FXSAVE stores it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FpuState {
    /// Control word.
    pub fcw: u16,
    /// Status word, TOP included.
    pub fsw: u16,
    /// Abridged tag word: bit n is set if *physical* register n is not empty.
    pub ftw: u8,
    /// Last opcode, 11 bits.
    pub fop: u16,
    /// Last instruction pointer.
    pub fip: u64,
    /// Last operand pointer.
    pub fdp: u64,
    /// Selector of `fip` (zero on processors that deprecate it).
    pub fcs: u16,
    /// Selector of `fdp`.
    pub fds: u16,
    /// The registers, 80 bits each in the low bytes, relative to TOP.
    pub st: [u128; 8],
}

impl FpuState {
    /// The index of the physical register that is ST(0).
    pub const fn top(&self) -> u8 {
        (self.fsw >> fsw::TOP_SHIFT & 7) as u8
    }
}

impl Default for FpuState {
    /// The state after FNINIT.
    fn default() -> Self {
        Self { fcw: 0x37f, fsw: 0, ftw: 0, fop: 0, fip: 0, fdp: 0, fcs: 0, fds: 0, st: [0; 8] }
    }
}

/// The YMM registers and MXCSR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VectorState {
    /// Bits 127:0 and 255:128 of each YMM register.
    pub ymm: [[u128; 2]; 16],
    /// Control and status.
    pub mxcsr: u32,
}

impl Default for VectorState {
    fn default() -> Self {
        Self { ymm: [[0; 2]; 16], mxcsr: MXCSR_DEFAULT }
    }
}
