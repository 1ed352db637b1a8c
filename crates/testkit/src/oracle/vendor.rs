//! What a processor of another vendor than the engine's model answers differently, and so is not compared there.
//!
//! The engine does what Intel's processors do where the vendors differ. On a host of AMD's the oracle leaves those places
//! out; on one of Intel's nothing here applies. Found by running; AMD64 APM volumes 2, 3 and 5 tell some of it.

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::cpuid::{CpuidTable, Vendor};

use super::case::Registers;
use super::undefined;

/// The host's processor, as far as the oracle must know it.
#[derive(Clone, Copy, Debug)]
pub struct Host {
    amd: bool,
}

impl Host {
    /// The host whose own model `cpuid` is.
    pub fn of(cpuid: &CpuidTable) -> Self {
        Self { amd: cpuid.model().vendor() == Vendor::Amd }
    }

    /// Flags that no case may have set. AMD's processors check the alignment of vectors under AC, too.
    pub const fn refused_flags(self) -> u64 {
        if self.amd { x86::rflags::AC } else { 0 }
    }

    /// Whether the last x87 instruction's pointers and opcode are kept. AMD's processors keep them only while an
    /// unmasked exception waits (APM vol. 5, FXSAVE); what was there `alone` before an only instruction is still known.
    pub const fn keeps_pointers(self, after: &Registers, alone: bool) -> bool {
        const EXCEPTION: u16 = 0x80;
        !self.amd || alone && after.fsw & EXCEPTION != 0
    }

    /// Whether the processor got into a state that the engine's model refuses: with MXCSR.MM, which lets SSE operands be
    /// misaligned (APM vol. 1, 4.2.2), and which is reserved on Intel's.
    pub const fn is_beyond(self, after: &Registers) -> bool {
        const MISALIGNED: u32 = 1 << 17;
        self.amd && after.mxcsr & MISALIGNED != 0
    }

    /// Whether `instruction` does the same on every processor when it completes.
    pub fn agrees(self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        if !self.amd {
            return true;
        }
        match instruction.mnemonic() {
            // Pushes of a segment register write all 32 bits; Intel's processors write 16 (SDM vol. 2, PUSH).
            M::Push => !instruction.op0_register().is_segment_register(),
            // The pointers, and which bits of MXCSR there are.
            name if undefined::stores_state(name) => false,
            // No alignment needed.
            M::Sha1msg1
            | M::Sha1msg2
            | M::Sha1nexte
            | M::Sha1rnds4
            | M::Sha256msg1
            | M::Sha256msg2
            | M::Sha256rnds2 => !has_memory(instruction),
            // A source of 16 or of 32 bits.
            M::Movsxd => instruction.op0_register().size() != 2,
            // 0F 0D is the prefetch group, which has no register form; these two have no ModR/M byte.
            M::Reservednop => false,
            M::Ud0 | M::Ud1 => false,
            _ => true,
        }
    }

    /// Whether `instruction` leaves the same behind on every processor when it faults: which of several faults comes first,
    /// and what was done before.
    pub fn agrees_in_fault(self, instruction: &Instruction) -> bool {
        use Mnemonic as M;
        if !self.amd {
            return true;
        }
        let stores = instruction.op_count() > 0 && instruction.op0_kind() == OpKind::Memory;
        let name = instruction.mnemonic();
        match name {
            // The x87 top and tags of an MMX store; the exceptions of a conversion.
            M::Movq | M::Movd | M::Movntq => !(stores && instruction.op1_register().is_mm()),
            M::Vcvtps2ph => !stores,
            // An unmasked exception, or the store's fault.
            M::Fst | M::Fstp | M::Fist | M::Fistp | M::Fisttp | M::Fbstp => !stores,
            // Which elements are there already.
            _ if instruction.is_vsib() => false,
            // The flags, or the operand that is read first.
            _ if is_compare(name) => false,
            // Range, or the second bound's page.
            M::Bound => false,
            // Bad images; masked-out elements and bits beyond canonical addresses.
            M::Xrstor | M::Xrstor64 | M::Fxrstor | M::Fxrstor64 => false,
            M::Vmaskmovps | M::Vmaskmovpd | M::Vpmaskmovd | M::Vpmaskmovq => false,
            M::Bt | M::Bts | M::Btr | M::Btc => !stores,
            _ => true,
        }
    }
}

fn has_memory(instruction: &Instruction) -> bool {
    (0..instruction.op_count()).any(|index| instruction.op_kind(index) == OpKind::Memory)
}

/// CMPS and SCAS.
fn is_compare(name: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(name, M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq | M::Scasb | M::Scasw | M::Scasd | M::Scasq)
}
