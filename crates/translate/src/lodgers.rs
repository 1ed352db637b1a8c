//! Homes for the homeless while a loop runs.
//!
//! The guest's R10, R11 and R15 live in memory ([`crate::host`]). A loop that computes with one of them in every turn pays for that
//! each time, and where its sums go through it each waits for a store to arrive at a load. But a loop that is one block seldom
//! uses all the others. So one that it leaves alone moves out before the first turn, the homeless one lodges in its place, and
//! whoever leaves the loop puts both back first.
//!
//! The translation does not know: it is given the loop with the lodger under the landlord's name. What knows is what leads into the
//! loop and out of it. The block's beginning lets lodgers in; the jump back goes behind that. Every cold path puts them back before
//! its site, a link before the jump that is made to lead elsewhere; a miss comes back by way of letting them in
//! ([`Emitter::finish`]).

use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};

use crate::block::{Exit, Mode, Source};
use crate::branch::target_of;
use crate::catalogue;
use crate::context::gpr_at;
use crate::emit::Emitter;
use crate::host::Gpr;

/// Uses in a turn from which lodging is worth what it costs to move: the loop may be left after each turn.
const WORTH_IT: usize = 3;

/// Who may have to make room. The accumulator and the counter have special places in many instructions.
const LANDLORDS: [Gpr; 10] =
    [Gpr::RBX, Gpr::RBP, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R9, Gpr::R8, Gpr::RDI, Gpr::RSI, Gpr::RDX];

/// A homeless register and the one in whose home it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lodger {
    guest: Gpr,
    landlord: Gpr,
}

/// Those of a loop.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lodgers(Vec<Lodger>);

impl Lodgers {
    /// Those of a run of instructions; none unless it is a loop whose translation can be renamed.
    pub(crate) fn find(run: &[Instruction], source: &Source<'_>) -> Self {
        // After a turn of a plain translation the other one is to have another try.
        let odd = [Mode::COMPAT, Mode::PLAIN].into_iter().any(|bit| source.mode.has(bit));
        if !source.lodgers || source.check.is_some() || odd || !is_simple_loop(run) {
            return Self::default();
        }
        let uses = uses(run);
        let of = |register: &Gpr| uses[usize::from(register.number())];
        let mut homeless: Vec<_> =
            (0..16).map(Gpr::new).filter(|register| register.home().is_none()).collect();
        homeless.retain(|register| of(register) >= WORTH_IT);
        homeless.sort_by_key(|register| std::cmp::Reverse(of(register)));
        let free = LANDLORDS.into_iter().filter(|register| of(register) == 0);
        Self(homeless.into_iter().zip(free).map(|(guest, landlord)| Lodger { guest, landlord }).collect())
    }

    /// Whether there are none.
    pub(crate) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The run with each of them under its landlord's name.
    pub(crate) fn renamed(&self, run: &[Instruction]) -> Vec<Instruction> {
        run.iter().map(|insn| self.rename(*insn)).collect()
    }

    fn rename(&self, mut insn: Instruction) -> Instruction {
        for i in 0..insn.op_count() {
            if insn.op_kind(i) == OpKind::Register {
                insn.set_op_register(i, self.name(insn.op_register(i)));
            }
        }
        insn.set_memory_base(self.name(insn.memory_base()));
        insn.set_memory_index(self.name(insn.memory_index()));
        insn
    }

    fn name(&self, register: Register) -> Register {
        let lodger = self.0.iter().find(|lodger| Gpr::of(register) == Some(lodger.guest));
        lodger.map_or(register, |lodger| lodger.landlord.sized(register.size()))
    }
}

/// Whether a run is a loop to its own beginning of instructions that are copied or made of registers alone, left only by jumps
/// within the page.
fn is_simple_loop(run: &[Instruction]) -> bool {
    let Some(((last, body), first)) = run.split_last().zip(run.first()) else { return false };
    let offset = |insn: &Instruction| target_of(insn).ok();
    let inside = |insn: &Instruction| offset(insn).is_some_and(|to| (0..4096).contains(&to));
    let simple = |insn: &Instruction| match insn.flow_control() {
        FlowControl::Next => catalogue::implicit(insn).is_some() || insn.mnemonic() == Mnemonic::Lea,
        FlowControl::ConditionalBranch => insn.is_jcc_short_or_near() && inside(insn),
        _ => false,
    };
    last.is_jcc_short_or_near()
        && offset(last) == Some(first.ip().cast_signed())
        && last.next_ip() < 4096
        && body.iter().all(simple)
}

/// By register: how often it is read and how often written.
fn uses(run: &[Instruction]) -> [usize; 16] {
    let mut uses = [0; 16];
    let mut factory = InstructionInfoFactory::new();
    for used in run.iter().flat_map(|insn| factory.info(insn).used_registers().to_vec()) {
        if let Some(register) = Gpr::of(used.register()) {
            uses[usize::from(register.number())] += 1;
        }
    }
    uses
}

impl Emitter<'_> {
    /// Lodgers move in. Nothing else changes.
    pub(crate) fn let_in(&mut self) {
        for &Lodger { guest, landlord } in &self.lodgers.0 {
            if let Some(home) = landlord.home() {
                self.asm.gs_store(gpr_at(landlord), home);
                self.asm.gs_load(home, gpr_at(guest));
            }
        }
    }

    /// An exit that comes back does so by letting lodgers in.
    pub(crate) fn resume_with_lodgers(&mut self, exit: &mut Exit) {
        if let Exit::Miss { resume, .. } = exit
            && !self.lodgers.is_empty()
        {
            let stub = self.asm.here();
            self.let_in();
            let back = self.asm.jmp();
            self.asm.fill(back, *resume);
            *resume = stub;
        }
    }

    /// What is made to lead elsewhere is a jump here, where lodgers have been put back.
    pub(crate) fn link_without_lodgers(&mut self, exit: &mut Exit) {
        if let Exit::Link { jump, .. } = exit
            && !self.lodgers.is_empty()
        {
            let hole = self.asm.jmp();
            *jump = hole.position();
            self.asm.land(hole);
        }
    }

    /// Every register is where it belongs. Nothing else changes.
    pub(crate) fn put_back(&mut self) {
        for &Lodger { guest, landlord } in &self.lodgers.0 {
            if let Some(home) = landlord.home() {
                self.asm.gs_store(gpr_at(guest), home);
                self.asm.gs_load(home, gpr_at(landlord));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::{block, text};

    /// add r10, rax; xor r11, r10; add r11, rcx; sub r10, r11; inc rdx; jnz to the beginning
    const LOOP: [u8; 17] = [
        0x49, 0x01, 0xc2, 0x4d, 0x31, 0xd3, 0x49, 0x01, 0xcb, 0x4d, 0x29, 0xda, 0x48, 0xff, 0xc2, 0x75, 0xef,
    ];

    #[test]
    fn a_loop_computes_in_the_homes_of_those_it_leaves_alone() {
        let listing = text(Mode::USER, &LOOP);
        let has = |line: &str| listing.iter().any(|found| found == line);
        assert!(has("xor rbp,rbx") || has("xor rbx,rbp"), "{listing:#?}");
        // The next turn begins behind the moves.
        let back = listing.iter().filter(|line| line.starts_with("jne")).count();
        assert_eq!(back, 1, "{listing:#?}");
    }

    #[test]
    fn who_leaves_has_put_everybody_back() {
        let block = block(Mode::USER, &LOOP);
        assert!(block.sites.iter().any(|site| matches!(site.exit, Exit::Link { .. })));
        let listing = text(Mode::USER, &LOOP);
        let moves = |from: &str| listing.iter().filter(|line| line.starts_with(from)).count();
        // In once, out at the end and where somebody asks for attention.
        assert_eq!(moves("mov rbx,[gs:"), 3, "{listing:#?}");
    }

    #[test]
    fn loops_that_leave_nobody_alone_or_do_more_have_no_lodgers() {
        let of = |mode: Mode, lodgers: bool, bytes: &[u8]| {
            let offered = |_: &Instruction| true;
            let run: Vec<_> = mode.decoder(bytes, 0).iter().collect();
            let host = crate::HostFeatures { bmi2: true };
            let source = Source {
                code: bytes,
                offset: 0,
                mode,
                offered: &offered,
                host,
                linear: 0,
                seed: 0,
                check: None,
                lodgers,
            };
            Lodgers::find(&run, &source).0.len()
        };
        let lodgers = |bytes: &[u8]| of(Mode::USER, true, bytes);
        assert_eq!(lodgers(&LOOP), 2);
        assert_eq!(of(Mode::USER, false, &LOOP), 0);
        assert_eq!(of(Mode::USER.with(Mode::PLAIN, true), true, &LOOP), 0);
        // A call in it; a jump to elsewhere at its end; too few uses.
        assert_eq!(lodgers(&[&[0xe8, 0, 0, 0, 0], &LOOP[..16], &[0xea]].concat()), 0);
        assert_eq!(lodgers(&[&LOOP[..16], &[0xf2]].concat()), 0);
        assert_eq!(lodgers(&[0x49, 0x01, 0xc2, 0x75, 0xfb]), 0);
    }
}
