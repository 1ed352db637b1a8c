//! A sequence as a program: steps with names, and its way to bytes.
//!
//! A *step* is what is generated, dropped and jumped to as a whole: one interesting instruction, mostly, with the moves
//! that it needs before it. Steps refer to each other by name, so that dropping one moves the others without breaking
//! them; bytes exist only after [`Program::encode`]. Nothing jumps into the middle of a step.

use iced_x86::{Decoder, DecoderOptions, Encoder, Instruction, OpKind};

use super::super::case::{Input, Registers};

/// The name of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Label(pub(super) usize);

/// An address within the program.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// The beginning of the step that this entry of [`Step::leads`] names.
    Lead(usize),
    /// So many bytes into the code of that step.
    Within(Label, u64),
}

/// What an instruction learns when addresses are known.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fix {
    /// Nothing.
    None,
    /// Its branch target.
    Branch(Place),
    /// Its immediate.
    Immediate(Place),
    /// Its displacement.
    Displacement(Place),
}

/// An instruction of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Op {
    pub(super) instruction: Instruction,
    pub(super) fix: Fix,
}

impl From<Instruction> for Op {
    fn from(instruction: Instruction) -> Self {
        Self { instruction, fix: Fix::None }
    }
}

/// What a step consists of.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// Instructions.
    Ops(Vec<Op>),
    /// Code that other steps exchange while it runs: as it begins, and as it may become. Both have the same length.
    Slot(Vec<u8>, Vec<u8>),
}

/// The steps that are dropped together. Zero is never dropped.
pub(super) type Group = u32;

/// See the head of the file.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) label: Label,
    pub(super) body: Body,
    /// Where it may jump to.
    pub(super) leads: Vec<Label>,
    /// Whether the next step may be executed after it.
    pub(super) falls: bool,
    pub(super) group: Group,
    pub(super) dropped: bool,
    /// The inner loop that it belongs to; zero is none.
    pub(super) region: u32,
    /// General-purpose registers that nothing here may write, since a loop counts in them.
    pub(super) reserved: u32,
    /// Whether a comparison comes first, that defines all flags.
    pub(super) washed: bool,
    /// Whether it calls, and whether it returns.
    pub(super) calls: bool,
    pub(super) returns: bool,
    /// Pointers in memory: where, and to which lead.
    pub(super) pointers: Vec<(u64, usize)>,
}

impl Step {
    pub(super) fn new(label: Label, body: Body) -> Self {
        Self {
            label,
            body,
            leads: Vec::new(),
            falls: true,
            group: 0,
            dropped: false,
            region: 0,
            reserved: 0,
            washed: false,
            calls: false,
            returns: false,
            pointers: Vec::new(),
        }
    }

    /// The instructions that may be executed, one list for each form that the code may have.
    pub(super) fn variants(&self, bits: u32) -> Vec<Vec<Instruction>> {
        match &self.body {
            Body::Ops(ops) => vec![ops.iter().map(|op| op.instruction).collect()],
            Body::Slot(before, after) => [before, after]
                .map(|bytes| Decoder::new(bits, bytes, DecoderOptions::NONE).into_iter().collect())
                .into(),
        }
    }
}

/// A sequence.
#[derive(Clone, Debug)]
pub(super) struct Program {
    /// 64 or 32.
    pub(super) bits: u32,
    /// Where the code begins.
    pub(super) start: u64,
    pub(super) registers: Registers,
    pub(super) steps: Vec<Step>,
    /// Memory at the beginning.
    pub(super) memory: Vec<(u64, Vec<u8>)>,
    /// How often everything is executed, and where that is counted.
    pub(super) turns: u32,
    pub(super) counter: Counter,
    /// How many faults it goes on after, with the next turn.
    pub(super) resumes: u32,
    /// The step that begins the next turn.
    pub(super) tail: Label,
}

/// Where turns are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counter {
    /// In a register that nothing else writes.
    Register(usize),
    /// In memory, at this address.
    Memory(u64),
}

/// A program in bytes.
#[derive(Clone, Debug)]
pub(super) struct Encoded {
    pub(super) input: Input,
    /// The address of every instruction, by step and number within it, in order. A step's wash is not among them.
    pub(super) addresses: Vec<(u64, usize, usize)>,
}

/// Where the steps are.
struct Layout {
    /// Of each step: where it begins, and where its own code does, after the wash.
    starts: Vec<(u64, u64)>,
}

impl Layout {
    fn of_lead(&self, program: &Program, step: &Step, lead: usize) -> Option<u64> {
        let label = step.leads.get(lead)?;
        let index = program.steps.iter().position(|step| step.label == *label)?;
        Some(self.starts[index].0)
    }

    fn address(&self, program: &Program, step: &Step, place: Place) -> Option<u64> {
        match place {
            Place::Lead(lead) => self.of_lead(program, step, lead),
            Place::Within(label, offset) => {
                let index = program.steps.iter().position(|step| step.label == label)?;
                Some(self.starts[index].1 + offset)
            }
        }
    }
}

impl Program {
    /// Everything in bytes, or nothing if something does not fit: a short branch, or all of it.
    pub(super) fn encode(&self) -> Option<Encoded> {
        let layout = self.lay_out()?;
        let mut code = Vec::new();
        let mut addresses = Vec::new();
        for (number, step) in self.steps.iter().enumerate().filter(|(_, step)| !step.dropped) {
            if step.washed {
                code.extend(bytes_of(self.bits, &self.wash(), self.start + code.len() as u64)?);
            }
            match &step.body {
                Body::Slot(before, _) => {
                    addresses.push((self.start + code.len() as u64, number, 0));
                    code.extend(before);
                }
                Body::Ops(ops) => {
                    for (index, op) in ops.iter().enumerate() {
                        let address = self.start + code.len() as u64;
                        addresses.push((address, number, index));
                        let instruction = fixed(op, |place| layout.address(self, step, place))?;
                        code.extend(bytes_of(self.bits, &instruction, address)?);
                    }
                }
            }
        }
        let mut input = self.input(&layout)?;
        input.set_code(&code).then_some(Encoded { input, addresses })
    }

    fn input(&self, layout: &Layout) -> Option<Input> {
        let mut input = Input::EMPTY;
        input.bits = self.bits;
        input.registers = self.registers;
        input.registers.rip = self.start;
        let pointer = self.bits as usize / 8;
        match self.counter {
            Counter::Register(n) => input.registers.gpr[n] = self.turns.into(),
            Counter::Memory(address) => input.set_memory(address, &self.turns.to_le_bytes()),
        }
        for step in self.steps.iter().filter(|step| !step.dropped) {
            for &(address, lead) in &step.pointers {
                let target = layout.of_lead(self, step, lead)?;
                input.set_memory(address, &target.to_le_bytes()[..pointer]);
            }
        }
        for (address, bytes) in &self.memory {
            input.set_memory(*address, bytes);
        }
        let tail = self.steps.iter().position(|step| step.label == self.tail)?;
        input.resume_at = layout.starts[tail].0;
        input.resumes = self.resumes;
        Some(input)
    }

    /// An instruction that defines every flag and changes nothing else.
    pub(super) fn wash(&self) -> Instruction {
        let (code, register) = if self.bits == 64 {
            (iced_x86::Code::Cmp_rm64_imm8, iced_x86::Register::RDX)
        } else {
            (iced_x86::Code::Cmp_rm32_imm8, iced_x86::Register::EDX)
        };
        // The form exists.
        Instruction::with2(code, register, 1).unwrap_or_default()
    }

    /// Lengths do not depend on addresses: every branch has its size, every fixed-up field four or eight bytes.
    fn lay_out(&self) -> Option<Layout> {
        let mut at = self.start;
        let mut starts = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let begin = at;
            if step.washed && !step.dropped {
                at += bytes_of(self.bits, &self.wash(), at)?.len() as u64;
            }
            starts.push((begin, at));
            if step.dropped {
                continue;
            }
            match &step.body {
                Body::Slot(before, _) => at += before.len() as u64,
                Body::Ops(ops) => {
                    for op in ops {
                        let instruction = fixed(op, |_| Some(at))?;
                        at += bytes_of(self.bits, &instruction, at)?.len() as u64;
                    }
                }
            }
        }
        Some(Layout { starts })
    }
}

fn fixed(op: &Op, address: impl Fn(Place) -> Option<u64>) -> Option<Instruction> {
    let mut instruction = op.instruction;
    match op.fix {
        Fix::None => {}
        Fix::Branch(place) => {
            let target = address(place)?;
            if instruction.op0_kind() == OpKind::NearBranch64 {
                instruction.set_near_branch64(target);
            } else {
                instruction.set_near_branch32(target as u32);
            }
        }
        Fix::Immediate(place) => {
            let last = instruction.op_count() - 1;
            instruction.set_immediate_u64(last, address(place)?);
        }
        Fix::Displacement(place) => instruction.set_memory_displacement64(address(place)?),
    }
    Some(instruction)
}

/// An instruction in bytes.
pub(super) fn bytes_of(bits: u32, instruction: &Instruction, address: u64) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(bits);
    encoder.encode(instruction, address).ok()?;
    Some(encoder.take_buffer())
}
