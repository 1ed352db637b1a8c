//! Flags computed again instead of saved.
//!
//! A check before an access destroys the host's flags. If the instruction that computed them can do so again, because what
//! it worked on is still in registers, nothing need be saved: who needs the flags after all, a later instruction or an exit,
//! has them computed once more. Compiled code mostly compares, jumps, and goes on to code that computes flags of its
//! own, so that in most places nobody does.
//!
//! | instruction | again |
//! |---|---|
//! | `cmp a, b`, `test a, b` | itself |
//! | `and`, `or`, `xor a, b` | `test a, a`: the carry and overflow flags are clear either way |
//! | `sub a, b` | `cmp a + b, b` |
//! | `add a, b` | `a - b`, and `b` added |
//!
//! The operands have to be registers that are at home in registers of the host's, or immediates.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::asm::Op;
use crate::emit::Emitter;
use crate::host::Gpr;

/// How the flags are computed again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Again {
    how: How,
    /// The guest registers that have to be what they are: a bit each.
    pub(crate) reads: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// By an instruction, its operands the host's, that changes nothing else.
    Execute(Instruction),
    /// By undoing a subtraction from `from`, 64-bit or 32-bit, and comparing.
    Compare { wide: bool, from: Gpr, by: By },
    /// By undoing an addition, and adding.
    Add { wide: bool, to: Gpr, by: By },
}

/// What was subtracted or added, in registers of the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Register(Gpr),
    Immediate(i32),
}

impl Again {
    /// What computes the flags of `guest` again, which was executed as `host`; all its register operands are at home.
    pub(crate) fn of(guest: &Instruction, host: &Instruction) -> Option<Self> {
        use Mnemonic as M;
        let reads = registers(guest)?;
        let how = match host.mnemonic() {
            M::Cmp | M::Test if only_registers(host) => How::Execute(*host),
            M::And | M::Or | M::Xor if host.op0_kind() == OpKind::Register => How::Execute(test(host)?),
            M::Sub if only_registers(host) => {
                let (wide, from, by) = change(host)?;
                How::Compare { wide, from, by }
            }
            M::Add if only_registers(host) => {
                let (wide, to, by) = change(host)?;
                How::Add { wide, to, by }
            }
            _ => return None,
        };
        Some(Self { how, reads })
    }
}

/// The guest's registers among the operands; `None` if one is not at home in the host's, or is the high byte of one.
fn registers(guest: &Instruction) -> Option<u16> {
    let mut found = 0;
    for operand in (0..guest.op_count()).filter(|&i| guest.op_kind(i) == OpKind::Register) {
        let register = guest.op_register(operand);
        let home = Gpr::of(register)?.home()?;
        if crate::host::is_high_byte(register) || home == Gpr::RAX || home == Gpr::RCX {
            return None;
        }
        found |= 1 << Gpr::of(register)?.number();
    }
    Some(found)
}

fn only_registers(insn: &Instruction) -> bool {
    (0..insn.op_count()).all(|i| insn.op_kind(i) != OpKind::Memory)
}

/// TEST of a logical instruction's result.
fn test(host: &Instruction) -> Option<Instruction> {
    let register = host.op0_register();
    let code = match register.size() {
        1 => Code::Test_rm8_r8,
        2 => Code::Test_rm16_r16,
        4 => Code::Test_rm32_r32,
        8 => Code::Test_rm64_r64,
        _ => return None,
    };
    Instruction::with2(code, register, register).ok()
}

/// The register that changed, and by what.
fn change(host: &Instruction) -> Option<(bool, Gpr, By)> {
    let (wide, changed) = destination(host)?;
    let by = match host.op1_kind() {
        OpKind::Register => By::Register(Gpr::of(host.op1_register()).filter(|&by| by != changed)?),
        _ => By::Immediate(immediate(host)),
    };
    Some((wide, changed, by))
}

fn destination(host: &Instruction) -> Option<(bool, Gpr)> {
    let register = host.op0_register();
    match register.size() {
        8 => Some((true, Gpr::of(register)?)),
        4 => Some((false, Gpr::of(register)?)),
        _ => None,
    }
}

/// The immediate: of 64-bit and 32-bit operations these are 32 bits, sign-extended.
#[allow(clippy::cast_possible_truncation)]
fn immediate(host: &Instruction) -> i32 {
    host.immediate(1) as i32
}

impl Emitter<'_> {
    /// The host's flags are what `again` says. RAX is lost, unless it is to be kept.
    pub(crate) fn compute_again(&mut self, again: &Again, keep_rax: bool) {
        if let How::Execute(insn) = &again.how {
            // It has been encoded before.
            let _ = self.encode(insn);
            return;
        }
        if keep_rax {
            self.asm.push(Gpr::RAX);
        }
        match again.how {
            How::Execute(_) => {}
            How::Compare { wide, from, by } => {
                match by {
                    By::Register(by) => self.asm.lea_indexed(wide, Gpr::RAX, Some(from), by, 0, 0),
                    By::Immediate(by) => self.asm.lea_based(wide, Gpr::RAX, from, by),
                }
                self.by(Op::Cmp, wide, by);
            }
            How::Add { wide, to, by } => {
                self.asm.mov(Gpr::RAX, to);
                self.by(Op::Sub, wide, by);
                self.by(Op::Add, wide, by);
            }
        }
        if keep_rax {
            self.asm.pop(Gpr::RAX);
        }
    }

    /// RAX op= `by`.
    fn by(&mut self, op: Op, wide: bool, by: By) {
        match (by, wide) {
            (By::Register(by), true) => self.asm.op(op, Gpr::RAX, by),
            (By::Register(by), false) => self.asm.op32(op, Gpr::RAX, by),
            (By::Immediate(by), true) => self.asm.op_imm(op, Gpr::RAX, by),
            (By::Immediate(by), false) => self.asm.op32_imm(op, Gpr::RAX, by),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Mode;
    use crate::listing::text;

    /// How often the translation saves flags, and how often it has a line.
    fn counts(bytes: &[u8], line: &str) -> (usize, usize) {
        let text = text(Mode::USER, bytes);
        let count = |wanted: &str| text.iter().filter(|line| *line == wanted).count();
        (count("lahf"), count(line))
    }

    #[test]
    fn a_comparison_is_made_again_where_its_flags_are_asked_for() {
        // cmp rbx, rdx; setz dl
        let (saves, once) = counts(&[0x48, 0x39, 0xd3, 0x0f, 0x94, 0xc2], "cmp rbx,rdx");
        assert_eq!(once, 1);
        // cmp rbx, rdx; mov rsi, [rdi]; setz dl: at the exit, and for SETZ
        let read = counts(&[0x48, 0x39, 0xd3, 0x48, 0x8b, 0x37, 0x0f, 0x94, 0xc2], "cmp rbx,rdx");
        assert_eq!(read, (saves, 3));
    }

    #[test]
    fn it_is_made_before_an_operand_changes() {
        // cmp rbx, rdx; mov rbx, [rbx]: in the cold path, and before the load
        let listing = text(Mode::USER, &[0x48, 0x39, 0xd3, 0x48, 0x8b, 0x1b]);
        let load = listing.iter().position(|line| line == "mov rbx,[rbx+rcx]");
        let again = listing.iter().rposition(|line| line == "cmp rbx,rdx");
        assert!(load.is_some_and(|load| listing[load - 1] == "cmp rbx,rdx"), "{listing:#?}");
        assert!(again > load, "{listing:#?}");
    }

    #[test]
    fn what_cannot_be_undone_is_saved() {
        // shl rbx, 4; mov rsi, [rdi]
        let shift = counts(&[0x48, 0xc1, 0xe3, 4, 0x48, 0x8b, 0x37], "shl rbx,4");
        // add rbx, 4; mov rsi, [rdi]
        let sum = counts(&[0x48, 0x83, 0xc3, 4, 0x48, 0x8b, 0x37], "sub rax,4");
        assert_eq!(shift.1, 1);
        assert!(sum.1 >= 1 && sum.0 <= shift.0, "{sum:?} {shift:?}");
    }
}
