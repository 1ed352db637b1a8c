//! What the processor reads from the current task-state segment (SDM vol. 3, 8.2 and 8.7).

use x86::descriptor::system;
use x86::{Exception, Gva, Selector};

use crate::cpu::Cpu;
use crate::op::Break;

/// A stack to switch to.
pub(crate) struct NewStack {
    pub(crate) selector: Selector,
    pub(crate) pointer: u64,
}

impl Cpu {
    fn tss_field<W: crate::width::Width>(&mut self, offset: u64) -> Result<u64, Break> {
        if offset + W::SIZE - 1 > u64::from(self.tr.limit) {
            return Err(self.raise(Exception::ts(self.tr.selector.error_code())));
        }
        self.load_system::<W>(self.tr.base.wrapping_add(offset))
    }

    /// RSP0 to RSP2, or with `ist` from 1 to 7 the interrupt stack, of a 64-bit TSS.
    pub(crate) fn tss_stack64(&mut self, cpl: u8, ist: u8) -> Result<u64, Break> {
        let offset = if ist == 0 { 4 + 8 * u64::from(cpl) } else { 0x1c + 8 * u64::from(ist) };
        let pointer = self.tss_field::<u64>(offset)?;
        if !Gva(pointer).is_canonical() {
            return Err(self.raise(Exception::ss(0)));
        }
        Ok(pointer)
    }

    /// The stack of an inner ring in a 16- or 32-bit TSS.
    pub(crate) fn tss_stack(&mut self, cpl: u8) -> Result<NewStack, Break> {
        let level = u64::from(cpl);
        let wide = self.tr.kind() & 8 != 0;
        let (pointer, selector) = if wide {
            let at = 4 + 8 * level;
            (self.tss_field::<u32>(at)?, self.tss_field::<u16>(at + 4)?)
        } else {
            let at = 2 + 4 * level;
            (self.tss_field::<u16>(at)?, self.tss_field::<u16>(at + 2)?)
        };
        Ok(NewStack { selector: Selector(x86::bits::low16(selector)), pointer })
    }

    /// Whether the I/O permission bitmap lets `size` ports from `port` on through (SDM vol. 1, 19.5.2).
    pub(crate) fn io_bitmap_allows(&mut self, port: u64, size: u64) -> Result<bool, Break> {
        if self.tr.kind() != system::TSS_BUSY || u64::from(self.tr.limit) < 0x67 {
            return Ok(false);
        }
        let base = self.load_system::<u16>(self.tr.base.wrapping_add(0x66))?;
        let at = base + port / 8;
        if at + 1 > u64::from(self.tr.limit) {
            return Ok(false);
        }
        // Two bytes are always read, since an access may straddle them.
        let bits = self.load_system::<u16>(self.tr.base.wrapping_add(at))?;
        Ok(bits >> (port % 8) & ((1 << size) - 1) == 0)
    }
}
