//! Steps that go elsewhere: branches, inner loops, calls, returns, jumps through registers and memory.
//!
//! Targets ahead are not known when a branch is made. It asks for them with empty [`Step::leads`], and [`Maker::aim`]
//! fills them in when all steps are there.

use iced_x86::{Code, Instruction, MemoryOperand, Register};

use super::super::build::{RCX, RSP};
use super::super::case::{DATA, STACK};
use super::generate::Maker;
use super::ledger::{load, writes};
use super::program::{Body, Fix, Label, Op, Place, Step};

/// A target that is not known yet.
const AHEAD: Label = Label(0);
/// The end of the room for pointers.
const POINTERS_END: u64 = STACK + 0x200;

impl Maker<'_> {
    fn by_bits<T>(&self, long: T, short: T) -> T {
        if self.ledger.bits == 64 { long } else { short }
    }

    /// Which of the general-purpose registers has that number, as wide as an address.
    fn register(&self, n: usize) -> Register {
        self.by_bits(Register::RAX, Register::EAX) + n as u32
    }

    /// A register that a step may write.
    fn scratch(&mut self, reserved: u32) -> Option<usize> {
        let refused = reserved | 1 << RSP;
        let names = self.ledger.names() as u64;
        let n = (0..8)
            .map(|_| self.random.below(names) as usize)
            .find(|&n| self.ledger.allows(1 << n, refused))?;
        self.ledger.write(1 << n);
        Some(n)
    }

    fn branch_op(&self, code: Code, to: Place) -> Option<Op> {
        let instruction = Instruction::with_branch(code, self.start).ok()?;
        Some(Op { instruction, fix: Fix::Branch(to) })
    }

    /// A conditional or, rarely, an unconditional direct branch ahead.
    pub(super) fn branch(&mut self, reserved: u32) -> Option<Step> {
        let plain = self.random.one_in(6);
        let jumps =
            self.by_bits([Code::Jmp_rel8_64, Code::Jmp_rel32_64], [Code::Jmp_rel8_32, Code::Jmp_rel32_32]);
        let (op, written) = (0..8).find_map(|_| {
            let code = if plain {
                self.random.pick(&jumps)
            } else {
                self.forms.branch(self.ledger.bits, &mut self.random)
            };
            let op = self.branch_op(code, Place::Lead(0))?;
            // LOOP counts.
            let [written, _] = writes(&op.instruction);
            self.ledger.allows(written, reserved).then_some((op, written))
        })?;
        self.ledger.write(written);
        let mut step = Step::new(self.label(), Body::Ops(vec![op]));
        step.leads = vec![AHEAD];
        step.falls = !plain;
        Some(step)
    }

    /// A few steps that are executed a few times.
    pub(super) fn inner_loop(&mut self, reserved: u32) -> Option<Vec<Step>> {
        let short = self.by_bits(
            [Code::Loop_rel8_64_RCX, Code::Loope_rel8_64_RCX, Code::Loopne_rel8_64_RCX],
            [Code::Loop_rel8_32_ECX, Code::Loope_rel8_32_ECX, Code::Loopne_rel8_32_ECX],
        );
        let by_loop = self.random.one_in(2);
        let n = if by_loop { RCX } else { self.scratch(reserved)? };
        if !self.ledger.allows(1 << n, reserved) {
            return None;
        }
        self.ledger.write(1 << n);
        let count = 1 + self.random.below(5);
        let (group, region) = (self.group(), self.region());
        let mut init = Step::new(self.label(), Body::Ops(vec![load(self.ledger.bits, n, count).into()]));
        init.group = group;
        let mut steps = vec![init];
        for _ in 0..=self.random.below(3) {
            let inside = reserved | 1 << n;
            let step = if self.random.one_in(5) { self.branch(inside)? } else { self.plain(inside)? };
            steps.extend(self.grouped(vec![step]));
        }
        let ops = if by_loop {
            let code = self.random.pick(&short);
            vec![self.branch_op(code, Place::Lead(0))?]
        } else {
            let dec = self.by_bits(Code::Dec_rm64, Code::Dec_rm32);
            let back = self.by_bits(Code::Jne_rel32_64, Code::Jne_rel32_32);
            vec![
                Instruction::with1(dec, self.register(n)).ok()?.into(),
                self.branch_op(back, Place::Lead(0))?,
            ]
        };
        let mut back = Step::new(self.label(), Body::Ops(ops));
        back.leads = vec![steps[1].label];
        back.group = group;
        steps.push(back);
        for step in &mut steps[1..] {
            step.region = region;
            step.reserved |= 1 << n;
        }
        Some(steps)
    }

    /// A jump ahead to an address in a register, in memory, or on the stack.
    pub(super) fn indirect_jump(&mut self, reserved: u32) -> Option<Step> {
        let (ops, leads, pointers) = match self.random.below(4) {
            0 => {
                let (push, ret) =
                    self.by_bits((Code::Pushq_imm32, Code::Retnq), (Code::Pushd_imm32, Code::Retnd));
                if reserved >> RSP & 1 != 0 {
                    return None;
                }
                let push = Instruction::with1(push, 0).ok()?;
                let push = Op { instruction: push, fix: Fix::Immediate(Place::Lead(0)) };
                (vec![push, Instruction::with(ret).into()], 1, Vec::new())
            }
            1 => self.through_table(reserved)?,
            _ => {
                let code = self.by_bits(Code::Jmp_rm64, Code::Jmp_rm32);
                self.through_register_or_memory(code, reserved)?
            }
        };
        let mut step = Step::new(self.label(), Body::Ops(ops));
        step.leads = vec![AHEAD; leads];
        step.pointers = pointers;
        step.falls = false;
        Some(step)
    }

    /// An indirect jump or call with one target.
    fn through_register_or_memory(&mut self, code: Code, reserved: u32) -> Option<Way> {
        if self.random.one_in(2) {
            let pointer = self.pointers(1)?;
            let through =
                Instruction::with1(code, MemoryOperand::with_displ(pointer, self.displacement())).ok()?;
            return Some((vec![through.into()], 1, vec![(pointer, 0)]));
        }
        let n = self.scratch(reserved)?;
        let load = self.by_bits(Code::Mov_r64_imm64, Code::Mov_r32_imm32);
        let load = match self.ledger.bits {
            64 => Instruction::with2(load, self.register(n), 0u64),
            _ => Instruction::with2(load, self.register(n), 0u32),
        };
        let load = Op { instruction: load.ok()?, fix: Fix::Immediate(Place::Lead(0)) };
        let through = Instruction::with1(code, self.register(n)).ok()?;
        Some((vec![load, through.into()], 1, Vec::new()))
    }

    /// A jump through a table, with an index that changes from turn to turn.
    fn through_table(&mut self, reserved: u32) -> Option<Way> {
        let n = self.scratch(reserved)?;
        let entries = self.random.pick(&[2u32, 4]);
        let table = self.pointers(entries.into())?;
        let narrow = Register::EAX + n as u32;
        let index = self.pointers(1)?;
        let index = MemoryOperand::with_displ(index, self.displacement());
        let ops = vec![
            Instruction::with1(Code::Inc_rm32, index).ok()?.into(),
            Instruction::with2(Code::Mov_r32_rm32, narrow, index).ok()?.into(),
            Instruction::with2(Code::And_rm32_imm8, narrow, entries.cast_signed() - 1).ok()?.into(),
            Instruction::with1(
                self.by_bits(Code::Jmp_rm64, Code::Jmp_rm32),
                MemoryOperand::new(
                    Register::None,
                    self.register(n),
                    self.by_bits(8, 4),
                    table.cast_signed(),
                    self.displacement(),
                    false,
                    Register::None,
                ),
            )
            .ok()?
            .into(),
        ];
        let size = self.by_bits(8, 4);
        let pointers = (0..entries as usize).map(|entry| (table + size * entry as u64, entry)).collect();
        Some((ops, entries as usize, pointers))
    }

    /// Bytes of an address, as the decoder's table wants to know them.
    fn displacement(&self) -> u32 {
        self.ledger.bits / 8
    }

    /// Room for pointers in memory.
    fn pointers(&mut self, count: u64) -> Option<u64> {
        let at = self.next_pointer;
        self.next_pointer += 8 * count;
        (self.next_pointer <= POINTERS_END).then_some(at)
    }

    /// A call of a subroutine, or of what comes next.
    pub(super) fn call(&mut self, reserved: u32) -> Option<Step> {
        let routine = self.random.pick(&self.routines);
        let still = reserved >> RSP & 1 != 0;
        if !still && self.random.one_in(6) {
            return self.call_and_pop(reserved);
        }
        let direct = self.by_bits(Code::Call_rel32_64, Code::Call_rel32_32);
        let through = self.by_bits(Code::Call_rm64, Code::Call_rm32);
        let (mut ops, _, pointers) = if self.random.one_in(3) {
            self.through_register_or_memory(through, reserved)?
        } else {
            (vec![self.branch_op(direct, Place::Lead(0))?], 1, Vec::new())
        };
        if !still && self.random.one_in(20) {
            // No stack to push to.
            let nowhere = DATA + self.random.below(8);
            ops.insert(0, load(self.ledger.bits, RSP, nowhere).into());
        }
        let mut step = Step::new(self.label(), Body::Ops(ops));
        (step.leads, step.pointers) = (vec![routine], pointers);
        (step.falls, step.calls) = (false, true);
        Some(step)
    }

    /// A call of the next instruction, which takes its own address off the stack.
    fn call_and_pop(&mut self, reserved: u32) -> Option<Step> {
        let n = self.scratch(reserved)?;
        let label = self.label();
        // The call has five bytes.
        let next = Place::Within(label, 5);
        let call = self.branch_op(self.by_bits(Code::Call_rel32_64, Code::Call_rel32_32), next)?;
        let pop = Instruction::with1(self.by_bits(Code::Pop_r64, Code::Pop_r32), self.register(n)).ok()?;
        Some(Step::new(label, Body::Ops(vec![call, pop.into()])))
    }

    /// Subroutines: each may call those before it.
    pub(super) fn routines(&mut self, reserved: u32) -> Option<Vec<Step>> {
        let mut steps = Vec::new();
        let still = reserved | 1 << RSP;
        for _ in 0..self.random.below(3) {
            let mut body = Vec::new();
            for _ in 0..=self.random.below(3) {
                let made = match self.random.below(8) {
                    0 => self.branch(still)?,
                    1 if !self.routines.is_empty() => self.call(still)?,
                    _ => self.plain(still)?,
                };
                body.extend(self.grouped(vec![made]));
            }
            let entry = Step::new(self.label(), Body::Ops(Vec::new()));
            let ret = self.by_bits(Code::Retnq, Code::Retnd);
            let mut ret = Step::new(self.label(), Body::Ops(vec![Instruction::with(ret).into()]));
            (ret.falls, ret.returns) = (false, true);
            let region = self.region();
            self.routines.push(entry.label);
            let whole = std::iter::once(entry).chain(body).chain([ret]);
            steps.extend(whole.map(|step| Step { region, reserved: 1 << RSP, ..step }));
        }
        Some(steps)
    }

    /// Gives every branch ahead its targets: a step further on, of the same loop or of none, or a loop's beginning.
    pub(super) fn aim(&mut self, steps: &mut [Step]) {
        for index in 0..steps.len() {
            let region = steps[index].region;
            let last_of_main = steps.iter().position(|step| !step.falls && step.group == 0).unwrap_or(0);
            // The main part ends before its breakpoint, a subroutine with its return.
            let end = if index < last_of_main { last_of_main } else { steps.len() };
            let ahead: Vec<Label> = steps[index + 1..end]
                .iter()
                .take_while(|step| index < last_of_main || step.region == region)
                .filter(|step| step.region == 0 || step.region == region)
                .map(|step| step.label)
                .collect();
            for lead in &mut steps[index].leads {
                if *lead == AHEAD {
                    let near = ahead.len().min(5) as u64;
                    *lead = ahead.get(self.random.below(near) as usize).copied().unwrap_or(AHEAD);
                }
            }
        }
    }
}

/// Operations, how many targets they need, and pointers to these.
type Way = (Vec<Op>, usize, Vec<(u64, usize)>);
