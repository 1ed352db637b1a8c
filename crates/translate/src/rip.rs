//! Operands relative to RIP.
//!
//! Compiled code names its constants, its variables and the addresses of what it imports by their distance from itself. The
//! offset in their page is known when the code is translated, so of the address only the page has to be compared, and a
//! page's accesses share an anchor wherever in the code they are: by where it is when the block is made. Where
//! the code is mapped elsewhere too (a library in another process), that is still an anchor of its own for each page.

use iced_x86::{Instruction, Register};

use crate::asm::{Asm, Condition, Op};
use crate::block::Exit;
use crate::context::{ANCHORS, PLACE_ANCHORS, at};
use crate::emit::{Emitter, Result};
use crate::host::Gpr;

/// An operand relative to RIP that lies in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Literal {
    /// How many pages behind that of the code.
    pub(crate) page: i32,
    /// Where in its page it begins.
    pub(crate) offset: i32,
}

/// What becomes of one whose page is not the anchor's; RAX is the linear address of its page, and one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strayed {
    offset: i32,
    pub(crate) anchor: i32,
}

impl Literal {
    /// The memory operand of an instruction of 64-bit code, if it is one.
    pub(crate) fn of(insn: &Instruction) -> Option<Self> {
        if insn.memory_base() != Register::RIP || insn.has_segment_prefix() {
            return None;
        }
        let bytes = i32::try_from(insn.memory_size().size()).ok().filter(|&bytes| bytes > 0)?;
        let displacement = crate::catalogue::displacement(insn)?;
        let (page, offset) = (displacement >> 12, displacement & 0xfff);
        (offset + bytes <= 4096).then_some(Self { page, offset })
    }
}

impl Strayed {
    /// RAX = the operand's linear address less the anchor's page.
    pub(crate) fn find(&self, asm: &mut Asm) {
        asm.lea(Gpr::RAX, Gpr::RAX, self.offset - 1);
        asm.gs_op(Op::Sub, Gpr::RAX, self.anchor + at::ANCHOR_PAGE);
    }
}

impl Emitter<'_> {
    /// `to` = the host address of the page of an operand of `bytes` bytes, or the code leaves. The flags are in memory; RAX is
    /// lost.
    pub(crate) fn reach_page(&mut self, to: Gpr, literal: Literal, bytes: i32, write: bool, exit: Exit) {
        let anchor = self.page_anchor(literal.page, write);
        self.asm.gs_load(Gpr::RAX, at::PAGE);
        self.asm.lea(Gpr::RAX, Gpr::RAX, (literal.page << 12) + 1);
        self.asm.gs_op(Op::Cmp, Gpr::RAX, anchor + at::ANCHOR_TAG);
        let other = self.asm.jcc(Condition::NOT_EQUAL);
        let strayed = Strayed { offset: literal.offset, anchor };
        self.stray_from(other, strayed, 4096 - bytes, write, exit);
        self.asm.gs_load(to, anchor + at::ANCHOR_BASE);
    }

    /// `to` and the result make the host address of an operand, or the code leaves. The flags are in memory; RAX is lost.
    pub(crate) fn reach_literal(&mut self, to: Gpr, literal: Literal, bytes: usize, write: bool) -> Result {
        let resume = self.asm.here();
        let bytes = i32::try_from(bytes).map_err(|_| crate::emit::Unsupported)?;
        self.reach_page(to, literal, bytes, write, Exit::Miss { write, resume });
        Ok(())
    }

    /// RAX and the result make the host address of the instruction's memory operand, or the code leaves. The flags are in
    /// memory; RCX is lost.
    pub(crate) fn reach_operand(&mut self, insn: &Instruction, bytes: usize, write: bool) -> Result<i32> {
        if let Some(literal) = Literal::of(insn).filter(|_| !self.is_compat()) {
            self.reach_literal(Gpr::RAX, literal, bytes, write)?;
            return Ok(literal.offset);
        }
        self.linear_address(insn)?;
        self.check(bytes, write)?;
        Ok(0)
    }

    /// The anchor of a page so many behind that of the code.
    fn page_anchor(&self, page: i32, write: bool) -> i32 {
        let linear = (self.source.linear >> 12).wrapping_add_signed(page.into());
        let [places, all] = [PLACE_ANCHORS / 2, ANCHORS / 2];
        let pair = places + x86::bits::index(linear) % (all - places);
        self.anchor(u32::try_from(pair).unwrap_or(0), write)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mode;
    use crate::listing::{exits, text};

    #[test]
    fn an_operand_relative_to_rip_has_its_page_compared() {
        // mov rax, [rip+0x2000]
        let bytes = [0x48, 0x8b, 0x05, 0, 0x20, 0, 0];
        let listing = text(Mode::USER, &bytes);
        assert!(listing.iter().all(|line| !line.starts_with("rorx")), "{listing:#?}");
        assert!(listing.iter().any(|line| line == "mov r10,[rax+12Ah]"), "{listing:#?}");
        assert!(matches!(exits(Mode::USER, &bytes)[..], [Exit::Miss { write: false, .. }]));
    }

    #[test]
    fn one_across_two_pages_is_like_any_other() {
        // mov rax, [rip+0xed2], at 0x123: eight bytes from 0xffc on
        let listing = text(Mode::USER, &[0x48, 0x8b, 0x05, 0xd2, 0x0e, 0, 0]);
        assert!(listing.iter().any(|line| line.starts_with("cmp rax,0FF8")), "{listing:#?}");
    }
}
