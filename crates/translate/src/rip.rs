//! Operands relative to RIP.
//!
//! Compiled code names its constants, its variables and the addresses of what it imports by their distance from itself. The
//! offset in their page is known when the code is translated, so of the address only the page has to be compared, and a
//! page's accesses share an anchor wherever in the code they are: by where it is when the block is made. Where
//! the code is mapped elsewhere too (a library in another process), that is still an anchor of its own for each page.

use iced_x86::{Instruction, Register};

use crate::asm::{Asm, Condition, Op, Place};
use crate::block::Exit;
use crate::context::{ANCHORS, PLACE_ANCHORS, at};
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// An operand relative to RIP that lies in one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Literal {
    /// How many pages behind that of the code.
    pub(crate) page: i32,
    /// Where in its page it begins.
    pub(crate) offset: i32,
    /// How long it is.
    bytes: i32,
}

/// What becomes of one whose page is not the anchor's; RAX is the linear address of its page, and one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Strayed {
    literal: Literal,
    pub(crate) anchor: i32,
}

impl Literal {
    /// The memory operand of an instruction, if it is one.
    pub(crate) fn of(insn: &Instruction) -> Option<Self> {
        if insn.memory_base() != Register::RIP || insn.has_segment_prefix() {
            return None;
        }
        let bytes = i32::try_from(insn.memory_size().size()).ok().filter(|&bytes| bytes > 0)?;
        Self::at(crate::catalogue::displacement(insn)?, bytes)
    }

    /// So many bytes at a displacement from the page of the code, if they lie in one page.
    pub(crate) fn at(displacement: i32, bytes: i32) -> Option<Self> {
        let (page, offset) = (displacement >> 12, displacement & 0xfff);
        (bytes <= 4096 - offset).then_some(Self { page, offset, bytes })
    }

    /// The first byte of a page.
    pub(crate) const fn of_page(page: i32) -> Self {
        Self { page, offset: 0, bytes: 1 }
    }
}

impl Strayed {
    /// RAX = the operand's linear address less the anchor's page.
    pub(crate) fn find(&self, asm: &mut Asm) {
        asm.lea(Gpr::RAX, Gpr::RAX, self.literal.offset - 1);
        asm.gs_op(Op::Sub, Gpr::RAX, self.anchor + at::ANCHOR_PAGE);
    }

    /// How far into its page it might begin.
    pub(crate) const fn room(&self) -> i32 {
        4096 - self.literal.bytes
    }
}

impl Emitter<'_> {
    /// `to` = the host address of an operand's page, or the code leaves. The flags are in memory; RAX is lost.
    pub(crate) fn reach_page(&mut self, to: Gpr, literal: Literal, write: bool, exit: Exit) {
        let anchor = self.page_anchor(literal.page, write);
        self.asm.gs_load(Gpr::RAX, at::PAGE);
        self.asm.lea(Gpr::RAX, Gpr::RAX, (literal.page << 12) + 1);
        self.asm.gs_op(Op::Cmp, Gpr::RAX, anchor + at::ANCHOR_TAG);
        let other = self.asm.jcc(Condition::NOT_EQUAL);
        self.stray_from(other, Strayed { literal, anchor }, write, exit);
        self.asm.gs_load(to, anchor + at::ANCHOR_BASE);
    }

    /// The same, where the code comes back when its TLB has been filled.
    pub(crate) fn reach_literal(&mut self, to: Gpr, literal: Literal, write: bool) {
        let resume = self.asm.here();
        self.reach_page(to, literal, write, Exit::Miss { write, resume });
    }

    /// RAX and the result make the host address of the instruction's memory operand, which is read, or the code leaves. The
    /// flags are in memory; RCX is lost.
    pub(crate) fn reach_operand(&mut self, insn: &Instruction) -> Result<i32> {
        if let Some(literal) = Literal::of(insn) {
            self.reach_literal(Gpr::RAX, literal, false);
            return Ok(literal.offset);
        }
        self.linear_address(insn)?;
        self.check(insn.memory_size().size(), false)?;
        Ok(0)
    }

    /// RAX = the instruction's memory operand, which is a word, or the code leaves. The flags are in memory; RCX is lost.
    pub(crate) fn load_operand(&mut self, insn: &Instruction) -> Result {
        if insn.memory_size().size() != self.mode.word() {
            return Err(Unsupported);
        }
        let disp = self.reach_operand(insn)?;
        self.load_word(Gpr::RAX, Place { disp, ..Place::at(Gpr::RAX) });
        Ok(())
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
