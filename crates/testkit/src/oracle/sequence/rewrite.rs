//! Stores into the running code.
//!
//! A *target* is code that stays sensible whatever happens to it: an instruction whose immediate may be anything, a *slot* that
//! holds one of two encodings, or a conditional branch whose sense is a bit. *Writers* change it, before it runs or after it
//! has run in an earlier turn. The processor must see the new bytes at the very next instruction (SDM vol. 3, 11.6: the
//! same linear address is written and fetched, no serialisation is needed for it on the same processor).

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use super::super::build::RSP;
use super::generate::Maker;
use super::program::{Body, Fix, Group, Label, Op, Place, Step};

/// What a writer may do to a target.
#[derive(Clone, Debug)]
struct Target {
    label: Label,
    /// Where in it.
    offset: u64,
    sense: Sense,
}

#[derive(Clone, Debug)]
enum Sense {
    /// So many bytes that may become anything.
    Any(u64),
    /// Bytes that become these, exchanged by an exclusive or.
    Either(Vec<u8>, Vec<u8>),
}

impl Maker<'_> {
    /// Adds targets and writers to finished steps.
    pub(super) fn rewrites(&mut self, steps: &mut Vec<Step>, reserved: u32) -> Option<()> {
        if self.random.one_in(2) {
            return Some(());
        }
        for _ in 0..=self.random.below(3) {
            let group = self.group();
            let target = match self.random.below(4) {
                0 => match self.condition(steps) {
                    Some(target) => target,
                    None => continue,
                },
                1 => self.immediate(steps, group, reserved)?,
                2 => {
                    self.itself(steps, group)?;
                    continue;
                }
                _ => self.slot(steps, group, reserved)?,
            };
            for _ in 0..=self.random.below(2) {
                self.writer(steps, &target, group, reserved)?;
            }
        }
        Some(())
    }

    /// Puts a step somewhere, as a part of the loop or subroutine that is there.
    fn put(&mut self, steps: &mut Vec<Step>, at: usize, group: Group, mut step: Step) {
        step.region = steps[at].region;
        step.reserved = steps[at].reserved;
        step.group = group;
        steps.insert(at, step);
    }

    /// Before which step something may be put: one of the main part or of a subroutine, not a beginning.
    fn place(&mut self, steps: &[Step]) -> usize {
        let main = steps.iter().position(|step| !step.falls && step.group == 0).unwrap_or(1);
        let places: Vec<usize> = (1..steps.len())
            .filter(|&at| at < main || at > main && steps[at].region == steps[at - 1].region)
            .collect();
        self.random.pick(&places)
    }

    /// A conditional branch that is there.
    fn condition(&mut self, steps: &[Step]) -> Option<Target> {
        let found: Vec<(Label, bool)> = steps
            .iter()
            .filter_map(|step| match &step.body {
                Body::Ops(ops) if step.group != 0 && ops.len() == 1 => {
                    let code = ops[0].instruction.code();
                    let near = code.is_jcc_near();
                    (near || code.is_jcc_short()).then_some((step.label, near))
                }
                _ => None,
            })
            .collect();
        if found.is_empty() {
            return None;
        }
        let (label, near) = self.random.pick(&found);
        Some(Target { label, offset: near.into(), sense: Sense::Either(vec![0], vec![1]) })
    }

    /// A new instruction with an immediate.
    fn immediate(&mut self, steps: &mut Vec<Step>, group: Group, reserved: u32) -> Option<Target> {
        let at = self.place(steps);
        let n = self.low_register(steps[at].reserved | reserved)?;
        let value = self.random.bits();
        let wide = self.ledger.bits == 64 && self.random.one_in(3);
        let code = self.random.pick(&[Code::Mov_r32_imm32, Code::Add_rm32_imm32, Code::Xor_rm32_imm32]);
        let instruction = if wide {
            Instruction::with2(Code::Mov_r64_imm64, Register::RAX + n, value).ok()?
        } else {
            Instruction::with2(code, Register::EAX + n, value as u32).ok()?
        };
        let step = Step::new(self.label(), Body::Ops(vec![instruction.into()]));
        let label = step.label;
        let length = super::program::bytes_of(self.ledger.bits, &instruction, self.start)?.len() as u64;
        let size = if wide { 8 } else { 4 };
        self.put(steps, at, group, step);
        Some(Target { label, offset: length - size, sense: Sense::Any(size) })
    }

    /// A store over its own immediate.
    fn itself(&mut self, steps: &mut Vec<Step>, group: Group) -> Option<()> {
        let at = self.place(steps);
        let label = self.label();
        let code = self.random.pick(&[Code::Add_rm32_imm32, Code::Xor_rm32_imm32, Code::Sub_rm32_imm32]);
        let operand = MemoryOperand::with_displ(self.start, self.ledger.bits / 8);
        let instruction = Instruction::with2(code, operand, self.random.bits() as u32 | 0x0100_0000).ok()?;
        let length = super::program::bytes_of(self.ledger.bits, &instruction, self.start)?.len() as u64;
        let fix = Fix::Displacement(Place::Within(label, length - 4));
        let step = Step::new(label, Body::Ops(vec![Op { instruction, fix }]));
        self.put(steps, at, group, step);
        Some(())
    }

    /// A new slot.
    fn slot(&mut self, steps: &mut Vec<Step>, group: Group, reserved: u32) -> Option<Target> {
        let at = self.place(steps);
        let reserved = steps[at].reserved | reserved;
        let size = self.random.pick(&[1, 2, 4, 4, 8]);
        let before = self.filling(size, reserved)?;
        let after = self.filling(size, reserved)?;
        let step = Step::new(self.label(), Body::Slot(before.clone(), after.clone()));
        let label = step.label;
        self.put(steps, at, group, step);
        Some(Target { label, offset: 0, sense: Sense::Either(before, after) })
    }

    /// Short instructions that fill `size` bytes.
    fn filling(&mut self, size: usize, reserved: u32) -> Option<Vec<u8>> {
        const NOP: u8 = 0x90;
        let mut bytes = Vec::new();
        for _ in 0..4 {
            let instruction = self.short(reserved)?;
            let mut encoder = Encoder::new(self.ledger.bits);
            encoder.encode(&instruction, self.start).ok()?;
            let code = encoder.take_buffer();
            if bytes.len() + code.len() <= size {
                bytes.extend(code);
            }
        }
        bytes.resize(size, NOP);
        Some(bytes)
    }

    fn short(&mut self, reserved: u32) -> Option<Instruction> {
        let source = Register::EAX + self.random.below(8) as u32;
        let kind = self.random.below(8);
        if kind == 0 {
            let code = self.random.pick(&[Code::Stc, Code::Clc, Code::Cmc, Code::Cld, Code::Std]);
            return Some(Instruction::with(code));
        }
        let to = Register::EAX + self.low_register(reserved)?;
        let code = match kind {
            1 => return Instruction::with1(Code::Inc_rm32, to).ok(),
            2 => return Instruction::with1(Code::Neg_rm32, to).ok(),
            3 => return Instruction::with1(Code::Not_rm32, to).ok(),
            4 => self.random.pick(&[Code::Add_r32_rm32, Code::Adc_r32_rm32, Code::Xor_r32_rm32]),
            5 => Code::Mov_r32_rm32,
            6 => Code::Sub_r32_rm32,
            _ => self.random.pick(&[Code::Cmovb_r32_rm32, Code::Cmovle_r32_rm32, Code::Movzx_r32_rm16]),
        };
        let source =
            if code == Code::Movzx_r32_rm16 { Register::AX + source.number() as u32 } else { source };
        Instruction::with2(code, to, source).ok()
    }

    /// One of the first eight registers that may be written.
    fn low_register(&mut self, reserved: u32) -> Option<u32> {
        let n = (0..16)
            .map(|_| self.random.below(8) as u32)
            .find(|n| self.ledger.allows(1 << n, reserved | 1 << RSP))?;
        self.ledger.write(1 << n);
        Some(n)
    }

    /// A new step that changes the target.
    fn writer(&mut self, steps: &mut Vec<Step>, target: &Target, group: Group, reserved: u32) -> Option<()> {
        let found = steps.iter().position(|step| step.label == target.label)?;
        // Right before it, often.
        let at = if self.random.one_in(3) { found } else { self.place(steps) };
        let reserved = steps[at].reserved | reserved;
        let mut ops = match &target.sense {
            Sense::Any(size) => vec![(self.change(*size)?, 0)],
            Sense::Either(before, after) => self.exchange(before, after)?,
        };
        // Through a register, sometimes.
        let base = if self.random.one_in(3) { self.low_register(reserved) } else { None };
        let mut all = Vec::new();
        if let Some(n) = base {
            let code = if self.ledger.bits == 64 { Code::Mov_r64_imm64 } else { Code::Mov_r32_imm32 };
            let instruction = match self.ledger.bits {
                64 => Instruction::with2(code, Register::RAX + n, 0u64),
                _ => Instruction::with2(code, Register::EAX + n, 0u32),
            };
            let fix = Fix::Immediate(Place::Within(target.label, target.offset));
            all.push(Op { instruction: instruction.ok()?, fix });
        }
        for (instruction, offset) in &mut ops {
            let fix = if let Some(n) = base {
                let first = if self.ledger.bits == 64 { Register::RAX } else { Register::EAX };
                instruction.set_memory_base(first + n);
                instruction.set_memory_displacement64(*offset);
                instruction.set_memory_displ_size(1);
                Fix::None
            } else {
                Fix::Displacement(Place::Within(target.label, target.offset + *offset))
            };
            all.push(Op { instruction: *instruction, fix });
        }
        let step = Step::new(self.label(), Body::Ops(all));
        self.put(steps, at, group, step);
        Some(())
    }

    /// Instructions that make one of the other, and where in it.
    fn exchange(&mut self, before: &[u8], after: &[u8]) -> Option<Vec<(Instruction, u64)>> {
        let operand = self.somewhere();
        let set = self.random.one_in(3) && before.len() > 1;
        let parts = before.chunks(4).zip(after.chunks(4));
        (0u64..)
            .step_by(4)
            .zip(parts)
            .map(|(offset, (before, after))| {
                let word = |bytes: &[u8]| bytes.iter().rev().fold(0, |all, &byte| all << 8 | u32::from(byte));
                let value = if set { word(after) } else { word(before) ^ word(after) };
                let code = match (before.len(), set) {
                    (1, false) => Code::Xor_rm8_imm8,
                    (2, false) => Code::Xor_rm16_imm16,
                    (_, false) => Code::Xor_rm32_imm32,
                    (1, true) => Code::Mov_rm8_imm8,
                    (2, true) => Code::Mov_rm16_imm16,
                    (_, true) => Code::Mov_rm32_imm32,
                };
                Some((Instruction::with2(code, operand, value).ok()?, offset))
            })
            .collect()
    }

    /// An instruction that changes `size` bytes in some way.
    fn change(&mut self, size: u64) -> Option<Instruction> {
        let operand = self.somewhere();
        let source = Register::EAX + self.random.below(8) as u32;
        let vector = Register::XMM0 + self.random.below(8) as u32;
        let made = match self.random.below(10) {
            0 => Instruction::with2(Code::Mov_rm32_r32, operand, source),
            1 => Instruction::with2(Code::Add_rm32_r32, operand, source),
            2 => Instruction::with2(Code::Xor_rm32_imm32, operand, self.random.bits() as u32),
            3 => Instruction::with1(Code::Inc_rm32, operand),
            4 => Instruction::with1(Code::Not_rm32, operand),
            5 => Instruction::with2(Code::Rol_rm32_1, operand, 1),
            6 => Instruction::with1(Code::Setb_rm8, operand),
            7 => Instruction::with2(Code::Mov_rm16_imm16, operand, self.random.bits() as u32 & 0xffff),
            8 if size == 8 => Instruction::with2(Code::Movq_xmmm64_xmm, operand, vector),
            8 => Instruction::with2(Code::Movd_rm32_xmm, operand, vector),
            _ => Instruction::with2(Code::Mov_rm8_imm8, operand, self.random.bits() as u32 & 0xff),
        };
        made.ok()
    }

    /// An operand whose address comes later.
    fn somewhere(&self) -> MemoryOperand {
        MemoryOperand::with_displ(self.start, self.ledger.bits / 8)
    }
}
