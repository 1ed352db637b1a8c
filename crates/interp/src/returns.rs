//! Returns that another engine may make by itself: those whose segments are what the fast system calls load.
//!
//! IRET reads descriptors, SYSCALL and SYSRET load the same values without looking (SDM vol. 2). Where the descriptor table
//! holds just these values, IRET comes to the same state. Which selectors they belong to, where their descriptors are, and
//! what these must be, is said here; what they are, only the reader of the moment can say.

use x86::descriptor::attr;
use x86::{PAGE_MASK, Segment, SegmentIndex, Selector};

use crate::system::segment::null_stack;
use crate::system::syscall::{syscall_code, syscall_stack, sysret_code, sysret_stack};
use crate::vcpu::InterpVcpu;

/// A segment that a return loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainSegment {
    /// Its selector.
    pub selector: u16,
    /// The linear address of its descriptor.
    pub address: u64,
    /// What the descriptor must be.
    pub descriptor: u64,
}

/// A return from CPL 0 by IRETQ. The two descriptors are neighbours in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlainReturn {
    /// CS.
    pub code: PlainSegment,
    /// SS.
    pub stack: PlainSegment,
}

/// The returns to where the fast system calls go, if they do nothing else than load CS, SS, RIP, RSP and RFLAGS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlainReturns {
    /// To the 64-bit code that SYSRET goes to.
    pub user: Option<PlainReturn>,
    /// To the code that SYSCALL goes to; with a null SS as well.
    pub supervisor: Option<PlainReturn>,
}

impl InterpVcpu {
    /// The returns that IRETQ makes as things are.
    pub fn plain_returns(&self) -> PlainReturns {
        // IRET would let them in again.
        if self.cpu.pending.nmi_blocked {
            return PlainReturns::default();
        }
        let star = self.cpu.msrs.star;
        let user = || self.plain_return(&sysret_code(star, true), &sysret_stack(star));
        PlainReturns {
            user: if self.keeps_data_segments() { user() } else { None },
            supervisor: self.plain_return(&syscall_code(star), &syscall_stack(star)),
        }
    }

    /// Whether DS, ES, FS and GS are none that user code may not have.
    fn keeps_data_segments(&self) -> bool {
        use SegmentIndex::{Ds, Es, Fs, Gs};
        [Ds, Es, Fs, Gs].into_iter().all(|index| {
            let segment = self.cpu.segment(index);
            !segment.usable() || segment.dpl() == 3
        })
    }

    fn plain_return(&self, code: &Segment, stack: &Segment) -> Option<PlainReturn> {
        let (code, stack) = (self.plain_segment(code)?, self.plain_segment(stack)?);
        let one_page = (code.address ^ stack.address) & !PAGE_MASK == 0;
        // A descriptor that lies in two pages has one of its neighbours beyond.
        let whole = code.address.max(stack.address) & PAGE_MASK <= PAGE_MASK - 7;
        (one_page && whole).then_some(PlainReturn { code, stack })
    }

    fn plain_segment(&self, segment: &Segment) -> Option<PlainSegment> {
        let (selector, gdtr) = (segment.selector, &self.cpu.gdtr);
        let there =
            !selector.is_null() && !selector.is_local() && selector.offset() + 7 <= u64::from(gdtr.limit);
        let address = gdtr.base.wrapping_add(selector.offset());
        there.then(|| PlainSegment { selector: selector.0, address, descriptor: flat_descriptor(segment) })
    }

    /// Loads CS as SYSCALL does and a null SS, as the handler of an interrupt from user code has them.
    pub fn load_nested_segments(&mut self) {
        let cpu = &mut self.cpu;
        cpu.seg[SegmentIndex::Cs as usize] = syscall_code(cpu.msrs.star);
        cpu.seg[SegmentIndex::Ss as usize] = null_stack(Selector(0), 0);
        cpu.refresh();
    }
}

/// The descriptor of a segment whose base is zero and whose limit is 4 GiB.
fn flat_descriptor(segment: &Segment) -> u64 {
    debug_assert!(segment.base == 0 && segment.limit == u32::MAX && segment.attr & attr::G != 0);
    u64::from(segment.attr) << 40 | 0xf_0000_0000_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptors_stand_for_what_the_fast_system_calls_load() {
        let star = 0x0023_0010 << 32;
        for segment in [syscall_code(star), syscall_stack(star), sysret_code(star, true), sysret_stack(star)]
        {
            assert_eq!(Segment::from_descriptor(segment.selector, flat_descriptor(&segment)), segment);
        }
        assert_eq!(flat_descriptor(&sysret_code(star, true)), 0x00af_fb00_0000_ffff);
        assert_eq!(flat_descriptor(&syscall_stack(star)), 0x00cf_9300_0000_ffff);
    }
}
