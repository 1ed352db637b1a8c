//! The state of a translation, and the sequences that everything is made of.
//!
//! # Flags
//! The guest's status flags are in the host's flags ([`Form::Host`]) after an instruction that computes them, and must
//! be there for one that reads them. The check before a memory access destroys the host's flags, so before it they
//! are saved ([`Emitter::save_flags`], three instructions), or given up if they can be computed again ([`crate::again`]);
//! once they are, further checks cost nothing. An instruction that faults, and every exit, finds them in memory: what
//! the guest sees at a fault is exact, whether it would miss the flags or not.
//!
//! # Memory
//! [`Emitter::check`] turns the linear address in RAX into a host address or leaves. The tag of the address's TLB entry is
//! subtracted; what remains is the offset in the page if it is that page, and one unsigned comparison finds both another
//! page and an access that reaches into the next. Where the page is likely to be the one of the last time, in loops and
//! on the stack, an anchor ([`crate::context::Anchor`]) takes the place of the entry and nothing is computed to find it;
//! if it is another page after all, a cold path looks it up in the TLB, lets it be the anchor's, and comes back. Whatever
//! address a guest computes, what is accessed lies inside a page that the engine has put into the TLB. Neighbours share a
//! check: [`crate::groups`].
//!
//! # Commitment
//! An instruction changes guest registers and memory only after the last point at which it can leave. So at every exit
//! the state is that before the instruction.

use iced_x86::{Encoder, Instruction, Register};

use crate::again::Again;
use crate::asm::{Asm, Condition, Hole, Op, Place};
use crate::block::{Block, Exit, Form, Mode, Site, Source, Way};
use crate::bridge::{FarSide, far_side};
use crate::compat;
use crate::context::{ANCHOR_BYTES, BOUNCE, PLACE_ANCHORS, SPANS, at, gpr_at};
use crate::groups::{Group, Groups, Key, Member};
use crate::host::Gpr;
use crate::lodgers::Lodgers;
use crate::rip::{Literal, Strayed};
use crate::routines::{self, Across, look_up_operand};
use crate::survey::Head;
use crate::x87::X87;

/// The instruction is left to the interpreter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unsupported;

pub(crate) type Result<T = ()> = std::result::Result<T, Unsupported>;

/// A jump to code that is emitted behind the block.
struct Cold {
    from: Hole,
    site: Site,
    /// What computes the flags, if they are nowhere.
    again: Option<Again>,
    look_up: Option<LookUp>,
    /// What the look-up is to make of RAX before: it wants the linear address less the anchor's page.
    literal: Option<Strayed>,
    far: Option<FarSide>,
}

/// A look-up before a cold path leaves, which comes back if it finds something: see [`crate::routines`].
struct LookUp {
    /// What it is to know.
    operand: i32,
    /// The routine's displacement.
    routine: i32,
    back: u32,
}

/// What outlives a block: its memory is used again.
pub(crate) struct Tools {
    encoder: Encoder,
    cold: Vec<Cold>,
    /// The sites that are calls of finders.
    finders: Vec<Site>,
}

impl Default for Tools {
    fn default() -> Self {
        Self { encoder: Encoder::new(64), cold: Vec::new(), finders: Vec::new() }
    }
}

pub(crate) struct Emitter<'a> {
    pub(crate) tools: &'a mut Tools,
    pub(crate) asm: Asm,
    pub(crate) source: &'a Source<'a>,
    pub(crate) form: Form,
    /// What computes the flags again, if they are in the host's ([`Form::Host`]) or nowhere ([`Form::Again`]).
    again: Option<Again>,
    /// The registers, a bit each, that the copied instruction changes without computing the flags anew.
    pub(crate) changes: u16,
    /// The mode at this place: the block's, but for AC, which STAC and CLAC change.
    pub(crate) mode: Mode,
    /// The instruction before was STI: nobody may be let in before this one.
    pub(crate) shadow: bool,
    /// The block is a loop: its accesses go on in the page where they were.
    pub(crate) streaming: bool,
    /// Accesses have to lie in one page each, neighbours in the host's memory or not.
    pub(crate) one_page: bool,
    /// Accesses that share a check, and the bits of those that have been checked.
    pub(crate) groups: Groups,
    checked: u64,
    /// The group that the instruction's access belongs to.
    pub(crate) member: Option<Member>,
    /// Offsets from groups' origins where the addresses have been found to have these bits clear.
    aligned: Vec<(u8, i32, u8)>,
    /// Guest registers in other homes than their own.
    pub(crate) lodgers: Lodgers,
    /// Where a turn of a loop with lodgers begins.
    pub(crate) head: Option<Head>,
    /// The group whose displacement RCX holds, as the instruction before has left it.
    pub(crate) delta: Option<u8>,
    /// Anchors used.
    anchors: u32,
    /// Page offset of the instruction being translated, and of the next one.
    pub(crate) at: u16,
    pub(crate) next: u16,
    /// What the code so far has done for x87 instructions.
    pub(crate) x87: X87,
}

/// Where to go back to if an instruction turns out to be unsupported.
pub(crate) struct Mark {
    bytes: u32,
    cold: usize,
    finders: usize,
    form: Form,
    again: Option<Again>,
    mode: Mode,
    checked: u64,
    aligned: usize,
}

impl Mark {
    /// The form of the flags there.
    pub(crate) const fn form(&self) -> Form {
        self.form
    }
}

impl<'a> Emitter<'a> {
    pub(crate) fn new(source: &'a Source<'a>, tools: &'a mut Tools) -> Self {
        tools.cold.clear();
        tools.finders.clear();
        Self {
            tools,
            asm: Asm::default(),
            source,
            form: Form::Memory,
            again: None,
            changes: 0,
            mode: source.mode,
            shadow: false,
            streaming: false,
            one_page: false,
            groups: Groups::default(),
            checked: 0,
            member: None,
            aligned: Vec::new(),
            lodgers: Lodgers::default(),
            head: None,
            delta: None,
            anchors: 0,
            at: source.offset,
            next: source.offset,
            x87: X87::default(),
        }
    }

    pub(crate) fn mark(&self) -> Mark {
        let (bytes, cold, finders) = (self.asm.here(), self.tools.cold.len(), self.tools.finders.len());
        let Self { form, again, mode, checked, .. } = *self;
        Mark { bytes, cold, finders, form, again, mode, checked, aligned: self.aligned.len() }
    }

    pub(crate) fn roll_back(&mut self, mark: &Mark) {
        self.asm.truncate(mark.bytes);
        self.tools.cold.truncate(mark.cold);
        self.tools.finders.truncate(mark.finders);
        self.form = mark.form;
        self.again = mark.again;
        self.mode = mark.mode;
        self.checked = mark.checked;
        self.aligned.truncate(mark.aligned);
        self.delta = None;
    }

    // ---- flags ---------------------------------------------------------------------------------------------------

    /// Puts the flags into memory, if they are not there, and lets the host's be destroyed. RAX may be lost.
    pub(crate) fn free_flags(&mut self) {
        self.settle_flags();
        if self.form == Form::Host {
            self.save_flags();
        }
        if self.form == Form::Both {
            self.form = Form::Memory;
        }
    }

    /// Lets the host's flags be destroyed: they are in memory then, or can be computed again. RAX may be lost.
    pub(crate) fn spare_flags(&mut self) {
        match self.form {
            Form::Host if self.again.is_some() => self.form = Form::Again,
            Form::Again => {}
            _ => self.free_flags(),
        }
    }

    /// Has the flags in the host's or in memory. RAX may be lost.
    pub(crate) fn settle_flags(&mut self) {
        if self.form == Form::Again
            && let Some(again) = self.again
        {
            self.compute_again(&again, false);
            self.form = Form::Host;
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
        self.settle_flags();
    }

    /// An instruction of the guest's has left all flags in the host's; `again` computes them again.
    pub(crate) fn flags_computed(&mut self, again: Option<Again>) {
        self.form = Form::Host;
        self.again = again;
    }

    /// The flags, and what computes them, for a path that goes on here and one that does not.
    pub(crate) const fn flags(&self) -> (Form, Option<Again>) {
        (self.form, self.again)
    }

    /// The path goes on that had `flags`.
    pub(crate) const fn set_flags(&mut self, flags: (Form, Option<Again>)) {
        (self.form, self.again) = flags;
    }

    /// Right before a copied instruction, whose checks have been made: the flags that could not be computed again after
    /// it.
    pub(crate) fn before_copy(&mut self) {
        let Some(again) = self.again.filter(|again| again.reads & self.changes != 0) else { return };
        if self.form == Form::Again {
            self.compute_again(&again, true);
            self.form = Form::Host;
        }
        self.again = None;
    }

    /// Before an instruction that changes the guest's registers in `written`, a bit each, and makes `checks`: the flags that
    /// could not be computed again after it.
    pub(crate) fn before_change(&mut self, written: u16, checks: bool) {
        if self.again.is_none_or(|again| again.reads & written == 0) {
            return;
        }
        if self.form == Form::Again && checks {
            self.free_flags();
        }
        self.settle_flags();
        self.again = None;
    }

    // ---- exits ---------------------------------------------------------------------------------------------------

    fn leave_by(&mut self, from: Hole, guest: u16, exit: Exit, way: Way) {
        let site = Site { guest, exit, mode: self.mode, at: 0, way };
        let again = self.again.filter(|_| self.form == Form::Again);
        self.tools.cold.push(Cold { from, site, again, look_up: None, literal: None, far: None });
    }

    /// The jump leaves to have the current instruction interpreted. Flags are in memory.
    pub(crate) fn interpret_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.at, Exit::Interpret, Way::BARE);
    }

    /// The jump leaves to have the x87 state lent, and comes back to `resume`. Flags are in memory.
    pub(crate) fn lend_from(&mut self, hole: Hole, resume: u32) {
        self.leave_by(hole, self.at, Exit::Lend { resume }, Way::BARE);
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
        self.leave_by(hole, target, exit, self.way());
    }

    /// Finds the code of `mode` at the linear address in RAX: [`at::TEMP`] is its page, the word behind that the host
    /// address of the code. The instruction has not changed anything yet; it is interpreted if there is no code. RAX, RCX
    /// and flags are lost.
    pub(crate) fn find_or_interpret(&mut self, mode: Mode) {
        self.find(mode, Exit::Transfer { mode });
    }

    /// The same between instructions: the engine sees to it that there is code.
    pub(crate) fn find_in_any_case(&mut self) {
        self.find(self.mode, Exit::Lookup);
    }

    fn find(&mut self, mode: Mode, exit: Exit) {
        let (at, way) = (self.asm.here(), Way::Find(mode.table()));
        self.tools.finders.push(Site { guest: self.at, exit, mode: self.mode, at, way });
        let _completed_when_placed = self.asm.call();
    }

    /// The jump leaves because a bridge leads to another frame, and the bridge's far side is to be emitted. Flags are in memory.
    pub(crate) fn bridge_from(&mut self, hole: Hole, guest: u16, exit: Exit, far: FarSide) {
        self.leave_by(hole, guest, exit, Way::BARE);
        if let Some(cold) = self.tools.cold.last_mut() {
            cold.far = Some(far);
        }
    }

    /// The jump gives way to whoever wants attention, before the current instruction.
    pub(crate) fn attend_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.at, Exit::Attention, self.way());
    }

    /// The jump leaves because the code of the block has changed. Flags are in memory.
    pub(crate) fn changed_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.source.offset, Exit::Changed, Way::BARE);
    }

    /// The jump leaves behind the current instruction, because the code there or what it goes by has changed.
    pub(crate) fn onward_from(&mut self, hole: Hole) {
        self.leave_by(hole, self.next, Exit::Onward, self.way());
    }

    /// The way out that leaves the flags in memory.
    fn way(&self) -> Way {
        Way::Leave { tag: None, flags: self.form == Form::Host }
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

    // ---- words of the mode's width -------------------------------------------------------------------------------

    /// Whether the code is 32-bit code.
    pub(crate) const fn is_compat(&self) -> bool {
        self.mode.has(Mode::COMPAT)
    }

    /// The bytes of a stack word.
    pub(crate) const fn word(&self) -> i32 {
        if self.is_compat() { 4 } else { 8 }
    }

    /// LEA to, [base + disp], as addresses are computed.
    pub(crate) fn add(&mut self, to: Gpr, base: Gpr, disp: i32) {
        self.asm.lea_based(!self.is_compat(), to, base, disp);
    }

    /// Loads a word.
    pub(crate) fn load_word(&mut self, to: Gpr, place: Place) {
        self.asm.load_from(!self.is_compat(), to, place);
    }

    /// Stores a word.
    pub(crate) fn store_word(&mut self, place: Place, from: Gpr) {
        self.asm.store_to(!self.is_compat(), place, from);
    }

    /// Stores a word, sign-extended.
    pub(crate) fn store_word_imm(&mut self, place: Place, value: i32) {
        self.asm.store_imm_to(!self.is_compat(), place, value);
    }

    // ---- memory --------------------------------------------------------------------------------------------------

    /// RAX = the linear address of the instruction's memory operand. RCX may be lost; flags are free.
    pub(crate) fn linear_address(&mut self, insn: &Instruction) -> Result {
        if self.is_compat() {
            return compat::linear_address(self, insn);
        }
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
        self.effective_address_in(Gpr::RAX, 8, insn)
    }

    /// The same in another register, `bytes` bytes of it. RAX and RCX may be lost.
    pub(crate) fn effective_address_in(&mut self, to: Gpr, bytes: usize, insn: &Instruction) -> Result {
        if self.is_compat() {
            return compat::address(self, to, insn);
        }
        let (base, index) = (insn.memory_base(), insn.memory_index());
        let displacement = insn.memory_displacement64();
        // The decoder's displacements are sign-extended to 64 bits.
        let short = i32::try_from(displacement.cast_signed()).map_err(|_| Unsupported);
        if base == Register::RIP {
            let short = short?;
            self.asm.gs_load(Gpr::RAX, at::PAGE);
            self.asm.lea_based(bytes == 8, to, Gpr::RAX, short);
            return Ok(());
        }
        let wide = base.size() != 4 && index.size() != 4;
        let short = if wide { short? } else { x86::bits::low32(displacement).cast_signed() };
        let narrow = !wide || bytes < 8;
        match (Gpr::of(base), Gpr::of(index)) {
            (Some(base), None) => {
                let base = self.read(base, Gpr::RAX);
                self.asm.lea_based(!narrow, to, base, short);
            }
            (base, Some(index)) => {
                let index = self.read(index, Gpr::RCX);
                let base = base.map(|base| self.read(base, Gpr::RAX));
                let scale = insn.memory_index_scale().trailing_zeros();
                let scale = u8::try_from(scale).map_err(|_| Unsupported)?;
                self.asm.lea_indexed(!narrow, to, base, index, scale, short);
            }
            (None, None) if base == Register::None && index == Register::None => {
                if narrow || insn.memory_displ_size() == 4 {
                    return Err(Unsupported);
                }
                self.asm.mov_imm_sx(to, short);
            }
            _ => return Err(Unsupported),
        }
        Ok(())
    }

    /// RAX, a linear address, becomes the host address of `bytes` bytes, or the code leaves. The flags are in memory;
    /// RCX is lost.
    pub(crate) fn check(&mut self, bytes: usize, write: bool) -> Result {
        if self.streaming {
            return self.check_kept(bytes, write);
        }
        self.check_hashed(bytes, write)?;
        self.add_page();
        Ok(())
    }

    /// As [`Emitter::check`], but RCX = what to add to the linear address: where that is a register's value and a constant, the
    /// access need not wait for the sum.
    pub(crate) fn check_based(&mut self, bytes: usize, write: bool) -> Result {
        self.check_hashed(bytes, write)?;
        self.load_delta(Gpr::RCX);
        Ok(())
    }

    fn check_hashed(&mut self, bytes: usize, write: bool) -> Result {
        let room =
            4096usize.checked_sub(bytes).and_then(|room| i32::try_from(room).ok()).ok_or(Unsupported)?;
        let resume = self.asm.here();
        let miss = self.hashed(room, write);
        let way = Way::Leave { tag: Some((self.mode.table(), write)), flags: false };
        self.leave_by(miss, self.at, Exit::Miss { write, resume }, way);
        Ok(())
    }

    /// As [`Emitter::check`], where RCX has to stay as it is.
    pub(crate) fn check_kept(&mut self, bytes: usize, write: bool) -> Result {
        let anchor = self.new_anchor(write);
        self.check_at(anchor, bytes, write)
    }

    /// As [`Emitter::check`], for the guest's stack. RCX stays as it is.
    pub(crate) fn check_stack(&mut self, bytes: usize, write: bool) -> Result {
        let anchor = self.anchor(0, write);
        self.check_at(anchor, bytes, write)
    }

    /// RAX, a linear address, becomes its offset in the page of its TLB slot, RCX the slot's offset; the jump is taken if
    /// that is more than `room`.
    pub(crate) fn hashed(&mut self, room: i32, write: bool) -> Hole {
        let table = self.mode.table();
        routines::index(&mut self.asm, Gpr::RCX, Gpr::RAX, table, self.source.host.bmi2);
        let tag = at::tlb(table) + if write { at::WRITE } else { at::READ };
        self.asm.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RCX, tag);
        self.asm.op_imm(Op::Cmp, Gpr::RAX, room);
        self.asm.jcc(Condition::ABOVE)
    }

    /// Behind [`Emitter::hashed`]: `to` = what to add to a linear address of the page to get the host's.
    pub(crate) fn load_delta(&mut self, to: Gpr) {
        self.asm.gs_op_at(Op::Mov, to, Gpr::RCX, at::tlb(self.mode.table()) + at::DELTA);
    }

    /// A turn of a loop begins: of its groups those from number `checked` on have been checked.
    pub(crate) fn begin_turn(&mut self, checked: usize) {
        self.checked = u64::MAX.checked_shl(u32::try_from(checked).unwrap_or(64)).unwrap_or(0);
        self.aligned.clear();
        self.delta = None;
        self.changes = 0;
    }

    /// Whether the bits in `mask` of an address of a group are known to be clear, as they are if they were at another that
    /// differs by a multiple; from now on they are.
    pub(crate) fn is_aligned(&mut self, member: Member, displacement: i32, mask: u8) -> bool {
        let offset = displacement.wrapping_add(member.shift);
        let known = self.aligned.iter().any(|&(group, at, bits)| {
            group == member.group && bits >= mask && at.wrapping_sub(offset) & i32::from(mask) == 0
        });
        self.aligned.push((member.group, offset, mask));
        known
    }

    /// Behind [`Emitter::hashed`]: RAX becomes the host address.
    fn add_page(&mut self) {
        self.asm.gs_op_at(Op::Add, Gpr::RAX, Gpr::RCX, at::tlb(self.mode.table()) + at::BASE);
    }

    fn check_at(&mut self, anchor: i32, bytes: usize, write: bool) -> Result {
        let resume = self.asm.here();
        let copy = !write && bytes <= usize::from(BOUNCE);
        let across = if copy { Across::Copy } else { Across::Neighbours };
        self.anchored(anchor, bytes, write, Exit::Miss { write, resume }, across)?;
        self.asm.gs_op(Op::Add, Gpr::RAX, anchor + at::ANCHOR_BASE);
        self.come_back();
        Ok(())
    }

    /// RAX, a linear address, becomes its offset in the anchor's page if `bytes` bytes there lie in it. Else a cold path
    /// comes back to where [`Emitter::come_back`] is called next, RAX the host address, or leaves.
    fn anchored(&mut self, anchor: i32, bytes: usize, write: bool, exit: Exit, across: Across) -> Result {
        let bytes = u16::try_from(bytes).map_err(|_| Unsupported)?;
        let (_, limit) = SPANS
            .into_iter()
            .zip((anchor + at::ANCHOR_LIMIT..).step_by(8))
            .find(|&(span, _)| bytes <= span)
            .ok_or(Unsupported)?;
        self.asm.gs_op(Op::Sub, Gpr::RAX, anchor + at::ANCHOR_PAGE);
        self.asm.gs_op(Op::Cmp, Gpr::RAX, limit);
        let other = self.asm.jcc(Condition::ABOVE_EQUAL);
        let across = if self.one_page { Across::Nothing } else { across };
        self.look_up_from(other, anchor, 4096 - i32::from(bytes), write, exit, across);
        Ok(())
    }

    /// The jump goes to a look-up of RAX, a linear address less the anchor's page.
    fn look_up_from(&mut self, other: Hole, anchor: i32, room: i32, write: bool, exit: Exit, across: Across) {
        let table = self.mode.table();
        let routine = at::ROUTINES + 16 * table as i32 + if write { 8 } else { 0 };
        let operand = look_up_operand(table, anchor, room, across);
        self.leave_by(other, self.at, exit, Way::BARE);
        if let Some(cold) = self.tools.cold.last_mut() {
            cold.look_up = Some(LookUp { operand, routine, back: 0 });
        }
    }

    /// The jump goes to a look-up of an operand whose page is not the anchor's, and comes back to where that is loaded.
    pub(crate) fn stray_from(&mut self, other: Hole, strayed: Strayed, write: bool, exit: Exit) {
        self.look_up_from(other, strayed.anchor, strayed.room(), write, exit, Across::Nothing);
        self.come_back();
        if let Some(cold) = self.tools.cold.last_mut() {
            cold.literal = Some(strayed);
        }
    }

    fn come_back(&mut self) {
        let here = self.asm.here();
        if let Some(Cold { look_up: Some(look_up), .. }) = self.tools.cold.last_mut() {
            look_up.back = here;
        }
    }

    /// The displacement of an anchor that this block has not used, as far as there are enough: fewer of them would be
    /// slower, not wrong.
    fn new_anchor(&mut self, write: bool) -> i32 {
        self.anchors = self.anchors.wrapping_add(1);
        let number = self.source.seed.wrapping_mul(5).wrapping_add(self.anchors);
        let half = u32::try_from(PLACE_ANCHORS / 2).unwrap_or(1);
        // The first pair is the stack's.
        self.anchor(1 + number % (half - 1), write)
    }

    /// The displacement of an anchor of a pair, the one for reads or the one for writes.
    pub(crate) fn anchor(&self, pair: u32, write: bool) -> i32 {
        let number = pair.cast_signed() * 2 + i32::from(write);
        at::anchors(self.mode.table()) + number * i32::try_from(ANCHOR_BYTES).unwrap_or(0)
    }

    /// RCX = what to add to a linear address of the group's range to get the host's, or, for [`Key::Indexed`] and
    /// [`Key::Page`], the host address of its first byte. The first time the range is checked; flags are saved then, and RAX is
    /// lost.
    pub(crate) fn reach(&mut self, member: Member, carried: Option<u8>) -> Result {
        let group = self.groups.group_of(member).ok_or(Unsupported)?;
        let number = member.group & 63;
        let (bit, kept) = (1u64 << number, at::DELTAS + 8 * i32::from(number));
        if self.checked & bit == 0 {
            self.checked |= bit;
            let low = group.low.checked_sub(member.shift).ok_or(Unsupported)?;
            self.spare_flags();
            match group.key {
                Key::Register(base) => self.reach_by_register(&group, base, low)?,
                Key::Indexed { base, index, shift } => {
                    let index = self.read(index, Gpr::RCX);
                    let base = self.read(base, Gpr::RAX);
                    self.asm.lea_indexed(true, Gpr::RAX, Some(base), index, shift, low);
                    self.reach_pointer(group.high - group.low, group.write)?;
                }
                Key::Stream(_) => return Err(Unsupported),
                Key::Page(page) => {
                    self.reach_page(Gpr::RCX, Literal::of_page(page), group.write, Exit::Plain);
                }
            }
            self.asm.gs_store(kept, Gpr::RCX);
        } else if carried != Some(member.group) {
            self.asm.gs_load(Gpr::RCX, kept);
        }
        Ok(())
    }

    /// The check of a group relative to a register, whose range begins at `low` from it. RCX = the displacement.
    fn reach_by_register(&mut self, group: &Group, base: Gpr, low: i32) -> Result {
        let from = self.read(base, Gpr::RAX);
        self.add(Gpr::RAX, from, low);
        if base == Gpr::RSP || self.streaming {
            self.reach_anchored(group, base)
        } else {
            self.reach_hashed(group)
        }
    }

    /// The check of a group of another key, whose `span` bytes begin at RAX. RCX = their host address.
    fn reach_pointer(&mut self, span: i32, write: bool) -> Result {
        if self.streaming {
            let anchor = self.new_anchor(write);
            let bytes = usize::try_from(span).map_err(|_| Unsupported)?;
            self.anchored(anchor, bytes, write, Exit::Plain, Across::Neighbours)?;
            self.asm.gs_op(Op::Add, Gpr::RAX, anchor + at::ANCHOR_BASE);
            self.come_back();
        } else {
            let other = self.hashed(4096 - span, write);
            self.leave_by(other, self.at, Exit::Plain, Way::BARE);
            self.add_page();
        }
        self.asm.mov(Gpr::RCX, Gpr::RAX);
        Ok(())
    }

    /// The group's check by way of an anchor: RAX is the range's first address. RCX = the displacement.
    fn reach_anchored(&mut self, group: &Group, base: Gpr) -> Result {
        let anchor =
            if base == Gpr::RSP { self.anchor(0, group.write) } else { self.new_anchor(group.write) };
        let span = usize::try_from(group.high - group.low).map_err(|_| Unsupported)?;
        self.anchored(anchor, span, group.write, Exit::Plain, Across::Neighbours)?;
        self.come_back();
        // Now, not later: the next access through this anchor may give it another page.
        self.asm.gs_load(Gpr::RCX, anchor + at::ANCHOR_DELTA);
        Ok(())
    }

    /// The group's check by way of the TLB: RAX is the range's first address. RCX = the displacement.
    fn reach_hashed(&mut self, group: &Group) -> Result {
        let room = 4096i32.checked_sub(group.high - group.low).ok_or(Unsupported)?;
        let other = self.hashed(room, group.write);
        self.leave_by(other, self.at, Exit::Plain, Way::BARE);
        self.load_delta(Gpr::RCX);
        Ok(())
    }

    /// Appends the instruction at hand as it is.
    pub(crate) fn own_bytes(&mut self) {
        let [start, end] = [self.at, self.next].map(|at| usize::from(at.wrapping_sub(self.source.offset)));
        self.asm.raw(self.source.code.get(start..end).unwrap_or_default());
    }

    /// Appends an instruction of the guest's, its operands already the host's.
    pub(crate) fn encode(&mut self, insn: &Instruction) -> Result {
        let outcome = self.tools.encoder.encode(insn, 0);
        let mut bytes = self.tools.encoder.take_buffer();
        // A refused instruction may have left its first bytes.
        if outcome.is_ok() {
            self.asm.raw(&bytes);
        }
        bytes.clear();
        self.tools.encoder.set_buffer(bytes);
        outcome.map(|_| ()).map_err(|_| Unsupported)
    }

    fn look_up(&mut self, look_up: &LookUp) {
        self.asm.gs_call(look_up.routine);
        self.asm.test_eax(look_up.operand);
        let back = self.asm.jmp();
        self.asm.fill(back, look_up.back);
    }

    fn leave(&mut self, mut site: Site, block: &mut Block) {
        // What it may become a jump to wants the flags in memory.
        let diverted = matches!(site.exit, Exit::Plain | Exit::Changed);
        if diverted && std::mem::replace(&mut site.way, Way::BARE) == Way::BARE.with_flags() {
            self.save_flags();
        }
        site.at = self.asm.here();
        block.sites.push(site);
        let _completed_when_placed = self.asm.call();
    }

    // ---- the end -------------------------------------------------------------------------------------------------

    /// Appends the cold paths and makes the block of it all.
    pub(crate) fn finish(mut self, mut block: Block) -> Block {
        let colds = std::mem::take(&mut self.tools.cold);
        block.sites.reserve(colds.len() + self.tools.finders.len());
        block.sites.append(&mut self.tools.finders);
        for cold in &colds {
            let mut site = cold.site;
            self.resume_with_lodgers(&mut site.exit);
            self.asm.land(cold.from);
            if let Some(strayed) = &cold.literal {
                strayed.find(&mut self.asm);
            }
            if let Some(look_up) = &cold.look_up {
                self.look_up(look_up);
            }
            if let Some(again) = &cold.again {
                self.compute_again(again, true);
                site.way = site.way.with_flags();
            }
            self.put_back();
            self.link_without_lodgers(&mut site.exit);
            self.leave(site, &mut block);
            if let Some(far) = &cold.far {
                far_side(&mut self, far, &site, &mut block);
            }
        }
        self.tools.cold = colds;
        block.code = self.asm.finish();
        block
    }
}
