//! The state of a translation, and the sequences that everything is made of.
//!
//! # Flags
//! The guest's status flags are in the host's flags ([`Form::Host`]) after an instruction that computes them, and must
//! be there for one that reads them. The check before a memory access destroys the host's flags, so before it they
//! are saved ([`Emitter::save_flags`], three instructions); once they are, further checks cost nothing. An instruction that
//! faults, and every exit, finds them in memory: what the guest sees at a fault is exact, whether it would miss the
//! flags or not.
//!
//! # Memory
//! [`Emitter::check`] turns the linear address in RAX into a host address or leaves. An entry's tag is subtracted from
//! the address; what remains is the offset in the page if the page matches, and one unsigned comparison finds both a
//! mismatch and an access that reaches into the next page. Whatever address a guest computes, what is accessed lies
//! inside a page that the engine has put into the TLB.
//!
//! # Commitment
//! An instruction changes guest registers and memory only after the last point at which it can leave. So at every exit
//! the state is that before the instruction.

use iced_x86::{Encoder, Instruction, InstructionInfoFactory, Register};

use crate::asm::{Asm, Condition, Hole, Op};
use crate::block::{Block, Exit, Form, Mode, Site, Source};
use crate::context::{at, gpr_at, tlb_index};
use crate::host::Gpr;

/// The instruction is left to the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

pub(crate) type Result<T = ()> = std::result::Result<T, Unsupported>;

/// A jump to code that is emitted behind the block.
struct Cold {
    from: Hole,
    site: Site,
    before: Before,
}

/// What a cold path does before it leaves.
enum Before {
    Nothing,
    /// RAX, less a tag, becomes the address again; the displacement of the tag, RCX the index.
    Address(i32),
    SaveFlags,
}

pub(crate) struct Emitter<'a> {
    pub(crate) asm: Asm,
    pub(crate) source: &'a Source<'a>,
    pub(crate) form: Form,
    /// The mode at this place: the block's, but for AC, which STAC and CLAC change.
    pub(crate) mode: Mode,
    /// The instruction before was STI: nobody may be let in before this one.
    pub(crate) shadow: bool,
    pub(crate) info: InstructionInfoFactory,
    encoder: Encoder,
    cold: Vec<Cold>,
    /// Page offset of the instruction being translated, and of the next one.
    pub(crate) at: u16,
    pub(crate) next: u16,
}

/// Where to go back to if an instruction turns out to be unsupported.
pub(crate) struct Mark {
    bytes: u32,
    cold: usize,
    form: Form,
    mode: Mode,
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(source: &'a Source<'a>) -> Self {
        Self {
            asm: Asm::default(),
            source,
            form: Form::Memory,
            mode: source.mode,
            shadow: false,
            info: InstructionInfoFactory::new(),
            encoder: Encoder::new(64),
            cold: Vec::new(),
            at: source.offset,
            next: source.offset,
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark { bytes: self.asm.here(), cold: self.cold.len(), form: self.form, mode: self.mode }
    }

    pub(crate) fn roll_back(&mut self, mark: &Mark) {
        self.asm.truncate(mark.bytes);
        self.cold.truncate(mark.cold);
        self.form = mark.form;
        self.mode = mark.mode;
    }

    // ---- flags ---------------------------------------------------------------------------------------------------

    /// Lets the host's flags be destroyed.
    pub(crate) fn free_flags(&mut self) {
        if self.form == Form::Host {
            self.save_flags();
        }
        if self.form == Form::Both {
            self.form = Form::Memory;
        }
    }

    /// Puts the flags into memory. RAX is lost.
    pub(crate) fn save_flags(&mut self) {
        self.asm.flags_to_ax();
        self.asm.gs_store16(at::STATUS, Gpr::RAX);
        self.form = Form::Both;
    }

    /// Puts the flags into the host's. RAX is lost if they are not there.
    pub(crate) fn load_flags(&mut self) {
        if self.form == Form::Memory {
            self.asm.gs_load16(Gpr::RAX, at::STATUS);
            self.asm.ax_to_flags();
            self.form = Form::Both;
        }
    }

    // ---- exits ---------------------------------------------------------------------------------------------------

    fn leave_by(&mut self, from: Hole, guest: u16, exit: Exit, before: Before) {
        self.cold.push(Cold { from, site: Site { guest, exit, number_at: 0 }, before });
    }

    /// The jump leaves to have the current instruction interpreted. Flags are in memory.
    pub(crate) fn interpret_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.at, Exit::Interpret, Before::Nothing);
    }

    /// The current instruction is interpreted.
    pub(crate) fn interpret(&mut self) {
        self.free_flags();
        let hole = self.asm.jmp();
        self.interpret_from(hole);
    }

    /// The jump goes to the page offset `target`, which lies in the page, in the current form.
    pub(crate) fn link(&mut self, hole: Hole, target: u16) {
        let exit = Exit::Link { jump: hole.position(), form: self.form };
        let before = if self.form == Form::Host { Before::SaveFlags } else { Before::Nothing };
        self.leave_by(hole, target, exit, before);
    }

    /// The jump goes to the linear address in RAX. Flags are in memory.
    pub(crate) fn look_up_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.at, Exit::Lookup, Before::Nothing);
    }

    /// The jump gives way to whoever wants attention, before the current instruction.
    pub(crate) fn attend_from(&mut self, hole: Hole) {
        let before = if self.form == Form::Host { Before::SaveFlags } else { Before::Nothing };
        self.leave_by(hole, self.at, Exit::Attention, before);
    }

    // ---- registers -----------------------------------------------------------------------------------------------

    /// The guest register's value in a host register: its home, or `scratch` after a load.
    pub(crate) fn read(&mut self, guest: Gpr, scratch: Gpr) -> Gpr {
        guest.home().unwrap_or_else(|| {
            self.asm.gs_load(scratch, gpr_at(guest));
            scratch
        })
    }

    /// Sets a guest register.
    pub(crate) fn write(&mut self, guest: Gpr, from: Gpr) {
        match guest.home() {
            Some(home) if home == from => {}
            Some(home) => self.asm.mov(home, from),
            None => self.asm.gs_store(gpr_at(guest), from),
        }
    }

    /// Loads a guest register into a given host register.
    pub(crate) fn read_into(&mut self, to: Gpr, guest: Gpr) {
        match guest.home() {
            Some(home) => self.asm.mov(to, home),
            None => self.asm.gs_load(to, gpr_at(guest)),
        }
    }

    // ---- memory --------------------------------------------------------------------------------------------------

    /// RAX = the linear address of the instruction's memory operand. RCX may be lost; flags are free.
    pub(crate) fn linear_address(&mut self, insn: &Instruction) -> Result {
        self.effective_address(insn)?;
        let slot = match insn.memory_segment() {
            Register::FS => 0,
            Register::GS => 1,
            _ => return Ok(()),
        };
        self.asm.gs_op(Op::Add, Gpr::RAX, at::SEGMENT_BASE + 8 * slot);
        Ok(())
    }

    /// RAX = the offset that the memory operand names. RCX may be lost, flags stay.
    pub(crate) fn effective_address(&mut self, insn: &Instruction) -> Result {
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64();
        // The decoder's displacements are sign-extended to 64 bits.
        let short = i32::try_from(displacement.cast_signed()).map_err(|_| Unsupported);
        if base == Register::RIP {
            let short = short?;
            self.asm.gs_load(Gpr::RAX, at::PAGE);
            self.asm.lea(Gpr::RAX, Gpr::RAX, short);
            return Ok(());
        }
        let wide = base.size() != 4 && index.size() != 4;
        let short = if wide { short? } else { x86::bits::low32(displacement).cast_signed() };
        match (Gpr::of(base), Gpr::of(index)) {
            (Some(base), None) => {
                let base = self.read(base, Gpr::RAX);
                if wide {
                    self.asm.lea(Gpr::RAX, base, short);
                } else {
                    self.asm.lea32(Gpr::RAX, base, short);
                }
            }
            (base, Some(index)) => {
                let index = self.read(index, Gpr::RCX);
                let base = base.map(|base| self.read(base, Gpr::RAX));
                let scale = insn.memory_index_scale().trailing_zeros();
                let scale = u8::try_from(scale).map_err(|_| Unsupported)?;
                self.asm.lea_indexed(wide, Gpr::RAX, base, index, scale, short);
            }
            (None, None) if base == Register::None && index == Register::None => {
                if !wide || insn.memory_displ_size() == 4 {
                    return Err(Unsupported);
                }
                self.asm.mov_imm_sx(Gpr::RAX, short);
            }
            _ => return Err(Unsupported),
        }
        Ok(())
    }

    /// RAX, a linear address, becomes the host address of `bytes` bytes, or the code leaves. RCX is lost; the
    /// flags are in memory.
    pub(crate) fn check(&mut self, bytes: usize, write: bool) -> Result {
        self.check_from(bytes, write, self.asm.here())
    }

    /// As [`Emitter::check`], but after a miss the code goes on at `resume`, RAX the linear address: an instruction with
    /// two operands in memory looks the first one up again, which the second's miss may have moved.
    pub(crate) fn check_from(&mut self, bytes: usize, write: bool, resume: u32) -> Result {
        let room =
            4096usize.checked_sub(bytes).and_then(|room| i32::try_from(room).ok()).ok_or(Unsupported)?;
        let table = self.mode.table();
        let (rotation, mask) = tlb_index(table);
        if self.source.host.bmi2 {
            self.asm.rorx(Gpr::RCX, Gpr::RAX, rotation);
        } else {
            self.asm.mov(Gpr::RCX, Gpr::RAX);
            self.asm.shr(Gpr::RCX, rotation);
        }
        self.asm.op32_imm(Op::And, Gpr::RCX, mask.cast_signed());
        let tag = at::tlb(table) + if write { at::WRITE } else { at::READ };
        self.asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RCX, tag);
        self.asm.op_imm(Op::Cmp, Gpr::RAX, room);
        let miss = self.asm.jcc(Condition::ABOVE);
        self.leave_by(miss, self.at, Exit::Miss { write, resume }, Before::Address(tag));
        self.asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, at::tlb(table) + at::BASE);
        Ok(())
    }

    /// Appends an instruction of the guest's, its operands already the host's.
    pub(crate) fn encode(&mut self, insn: &Instruction) -> Result {
        self.encoder.encode(insn, 0).map_err(|_| Unsupported)?;
        let bytes = self.encoder.take_buffer();
        self.asm.raw(&bytes);
        self.encoder.set_buffer({
            let mut bytes = bytes;
            bytes.clear();
            bytes
        });
        Ok(())
    }

    fn leave(&mut self, mut site: Site, block: &mut Block) {
        site.number_at = self.asm.gs_store_imm32(at::SITE, 0);
        self.asm.gs_jmp(at::EXIT);
        block.sites.push(site);
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Appends the cold paths and makes the block of it all.
    pub(crate) fn finish(mut self, mut block: Block) -> Block {
        for cold in std::mem::take(&mut self.cold) {
            let start = self.asm.here();
            self.asm.fill(cold.from, start);
            match cold.before {
                Before::Nothing => {}
                Before::Address(tag) => self.asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, tag),
                Before::SaveFlags => self.save_flags(),
            }
            self.leave(cold.site, &mut block);
        }
        block.stale_host = self.asm.here();
        self.save_flags();
        block.stale_memory = self.asm.here();
        self.leave(Site { guest: self.source.offset, exit: Exit::Stale, number_at: 0 }, &mut block);
        block.code = self.asm.finish();
        block
    }
}
