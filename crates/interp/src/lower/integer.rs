//! Handlers of the unprivileged integer instructions.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic, OpKind};
use x86::cpuid::{Feature, FeatureSet};
use x86::rflags::{CF, DF};

use crate::exec::arith::{self, Adc, Add, And, Dec, Inc, Neg, Not, Or, Sbb, Sub, Xor};
use crate::exec::{bits, branch, data, decimal, flags, interlocked, muldiv, shift, stack, string};
use crate::lower::is_string;
use crate::op::{Handler, IMMEDIATE, MEMORY, Op};
use crate::width::by_width;

/// Instances of a handler that takes a condition code.
macro_rules! by_condition {
    ($code:expr, $($handler:ident)::+) => { by_condition!($code, $($handler)::+,) };
    ($code:expr, $($handler:ident)::+, $($width:ty)?) => {
        match $code {
            0 => $($handler)::+::<$($width,)? 0>,
            1 => $($handler)::+::<$($width,)? 1>,
            2 => $($handler)::+::<$($width,)? 2>,
            3 => $($handler)::+::<$($width,)? 3>,
            4 => $($handler)::+::<$($width,)? 4>,
            5 => $($handler)::+::<$($width,)? 5>,
            6 => $($handler)::+::<$($width,)? 6>,
            7 => $($handler)::+::<$($width,)? 7>,
            8 => $($handler)::+::<$($width,)? 8>,
            9 => $($handler)::+::<$($width,)? 9>,
            10 => $($handler)::+::<$($width,)? 10>,
            11 => $($handler)::+::<$($width,)? 11>,
            12 => $($handler)::+::<$($width,)? 12>,
            13 => $($handler)::+::<$($width,)? 13>,
            14 => $($handler)::+::<$($width,)? 14>,
            _ => $($handler)::+::<$($width,)? 15>,
        }
    };
}

/// The handler, and whether it ends the block; `None` if the mnemonic is not of this table. May complete operands
/// that the mnemonic implies.
pub(super) fn select(insn: &Instruction, op: &mut Op, features: &FeatureSet) -> Option<(Handler, bool)> {
    if let Some(handler) = arithmetic(insn, op).or_else(|| bit_field(insn, op, features)) {
        return Some((handler, false));
    }
    if let Some(handler) = movement(insn, op).or_else(|| strings(insn, op)) {
        return Some((handler, false));
    }
    control(insn, op).map(|handler| (handler, true))
}

fn arithmetic(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = op.size;
    Some(match insn.mnemonic() {
        Mnemonic::Add => arith::select::<Add>(op),
        Mnemonic::Adc => arith::select::<Adc>(op),
        Mnemonic::Sub => arith::select::<Sub>(op),
        Mnemonic::Sbb => arith::select::<Sbb>(op),
        Mnemonic::And => arith::select::<And>(op),
        Mnemonic::Or => arith::select::<Or>(op),
        Mnemonic::Xor => arith::select::<Xor>(op),
        Mnemonic::Cmp => arith::select_compare::<Sub>(op),
        Mnemonic::Test => arith::select_compare::<And>(op),
        Mnemonic::Inc => arith::select_unary::<Inc>(op),
        Mnemonic::Dec => arith::select_unary::<Dec>(op),
        Mnemonic::Neg => arith::select_unary::<Neg>(op),
        Mnemonic::Not => arith::select_unary::<Not>(op),
        Mnemonic::Adcx => by_width!(size, arith::adcx),
        Mnemonic::Adox => by_width!(size, arith::adox),
        Mnemonic::Mul => one_source(op, by_width!(size, muldiv::mul)),
        Mnemonic::Div => one_source(op, by_width!(size, muldiv::div)),
        Mnemonic::Idiv => one_source(op, by_width!(size, muldiv::idiv)),
        Mnemonic::Imul => match insn.op_count() {
            1 => one_source(op, by_width!(size, muldiv::imul)),
            2 => by_width!(size, muldiv::imul2),
            _ => by_width!(size, muldiv::imul3),
        },
        Mnemonic::Mulx => {
            // Operands in order: high half, low half, factor.
            (op.src, op.src2) = (op.src2, op.src);
            by_width!(size, muldiv::mulx)
        }
        Mnemonic::Crc32 => by_width!(source_size(insn, 1), muldiv::crc32),
        Mnemonic::Shl | Mnemonic::Sal => by_width!(size, shift::shl),
        Mnemonic::Shr => by_width!(size, shift::shr),
        Mnemonic::Sar => by_width!(size, shift::sar),
        Mnemonic::Rol => by_width!(size, shift::rol),
        Mnemonic::Ror => by_width!(size, shift::ror),
        Mnemonic::Rcl => by_width!(size, shift::rcl),
        Mnemonic::Rcr => by_width!(size, shift::rcr),
        Mnemonic::Shld => by_width!(size, shift::shld),
        Mnemonic::Shrd => by_width!(size, shift::shrd),
        Mnemonic::Shlx => by_width!(size, shift::shlx),
        Mnemonic::Shrx => by_width!(size, shift::shrx),
        Mnemonic::Sarx => by_width!(size, shift::sarx),
        Mnemonic::Rorx => by_width!(size, shift::rorx),
        Mnemonic::Aaa => decimal::ascii_adjust::<true>,
        Mnemonic::Aas => decimal::ascii_adjust::<false>,
        Mnemonic::Aam => decimal::aam,
        Mnemonic::Aad => decimal::aad,
        Mnemonic::Daa => decimal::decimal_adjust::<true>,
        Mnemonic::Das => decimal::decimal_adjust::<false>,
        _ => return None,
    })
}

/// A single operand that is only read counts as the source.
fn one_source(op: &mut Op, handler: Handler) -> Handler {
    op.src = op.dst;
    handler
}

/// The width in bytes of operand `i`.
fn source_size(insn: &Instruction, i: u32) -> u8 {
    let size = match insn.op_kind(i) {
        OpKind::Register => insn.op_register(i).size(),
        _ => insn.memory_size().size(),
    };
    u8::try_from(size).unwrap_or(0)
}

fn bit_field(insn: &Instruction, op: &mut Op, features: &FeatureSet) -> Option<Handler> {
    let size = op.size;
    Some(match insn.mnemonic() {
        Mnemonic::Bt => bit_test::<0>(op),
        Mnemonic::Bts => bit_test::<1>(op),
        Mnemonic::Btr => bit_test::<2>(op),
        Mnemonic::Btc => bit_test::<3>(op),
        Mnemonic::Tzcnt if features.has(Feature::Bmi1) => by_width!(size, bits::tzcnt),
        Mnemonic::Lzcnt if features.has(Feature::Lzcnt) => by_width!(size, bits::lzcnt),
        Mnemonic::Bsf | Mnemonic::Tzcnt => by_width!(size, bits::bsf),
        Mnemonic::Bsr | Mnemonic::Lzcnt => by_width!(size, bits::bsr),
        Mnemonic::Popcnt => by_width!(size, bits::popcnt),
        // VEX forms with two sources: the table wants the r/m operand in `src`, the other one in `src2`.
        Mnemonic::Andn => swapped(op, by_width!(size, bits::andn)),
        Mnemonic::Pdep => swapped(op, by_width!(size, bits::pdep)),
        Mnemonic::Pext => swapped(op, by_width!(size, bits::pext)),
        Mnemonic::Bextr => by_width!(size, bits::bextr),
        Mnemonic::Bzhi => by_width!(size, bits::bzhi),
        Mnemonic::Blsi => by_width!(size, bits::blsi),
        Mnemonic::Blsr => by_width!(size, bits::blsr),
        Mnemonic::Blsmsk => by_width!(size, bits::blsmsk),
        _ => return None,
    })
}

fn swapped(op: &mut Op, handler: Handler) -> Handler {
    (op.src, op.src2) = (op.src2, op.src);
    handler
}

fn bit_test<const KIND: u8>(op: &Op) -> Handler {
    match op.size {
        2 => bits::bit_test::<u16, KIND>,
        4 => bits::bit_test::<u32, KIND>,
        _ => bits::bit_test::<u64, KIND>,
    }
}

fn movement(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = op.size;
    Some(match insn.mnemonic() {
        Mnemonic::Mov => return plain_mov(insn, op),
        Mnemonic::Movnti | Mnemonic::Movdiri => data::select_mov(op),
        Mnemonic::Movzx => data::select_movzx(source_size(insn, 1)),
        Mnemonic::Movsx | Mnemonic::Movsxd => data::select_movsx(source_size(insn, 1)),
        Mnemonic::Movbe => by_width!(size, data::movbe),
        Mnemonic::Bswap => by_width!(size, data::bswap),
        Mnemonic::Lea => by_width!(size, data::lea),
        Mnemonic::Xchg => by_width!(size, data::xchg),
        Mnemonic::Xadd => by_width!(size, data::xadd),
        Mnemonic::Cmpxchg => by_width!(size, interlocked::cmpxchg),
        Mnemonic::Cmpxchg8b => interlocked::cmpxchg8b,
        Mnemonic::Cmpxchg16b => interlocked::cmpxchg16b,
        Mnemonic::Xlatb => data::xlat,
        Mnemonic::Cbw => data::extend_accumulator::<u16>,
        Mnemonic::Cwde => data::extend_accumulator::<u32>,
        Mnemonic::Cdqe => data::extend_accumulator::<u64>,
        Mnemonic::Cwd => data::extend_to_data::<u16>,
        Mnemonic::Cdq => data::extend_to_data::<u32>,
        Mnemonic::Cqo => data::extend_to_data::<u64>,
        Mnemonic::Push => return push(insn, op),
        Mnemonic::Pop if !segment_operand(insn) => pop(insn, op),
        Mnemonic::Pusha => stack::push_all::<u16>,
        Mnemonic::Pushad => stack::push_all::<u32>,
        Mnemonic::Popa => stack::pop_all::<u16>,
        Mnemonic::Popad => stack::pop_all::<u32>,
        Mnemonic::Enter => by_width!(stack_size(insn), stack::enter),
        Mnemonic::Leave => by_width!(stack_size(insn), stack::leave),
        Mnemonic::Pushf => flags::pushf::<u16>,
        Mnemonic::Pushfd => flags::pushf::<u32>,
        Mnemonic::Pushfq => flags::pushf::<u64>,
        Mnemonic::Clc => assign(op, CF, false),
        Mnemonic::Stc => assign(op, CF, true),
        Mnemonic::Cld => assign(op, DF, false),
        Mnemonic::Std => assign(op, DF, true),
        Mnemonic::Cmc => flags::cmc,
        Mnemonic::Lahf => flags::lahf,
        Mnemonic::Sahf => flags::sahf,
        Mnemonic::Salc => flags::salc,
        _ => return conditional(insn, op),
    })
}

fn assign(op: &mut Op, flag: u64, on: bool) -> Handler {
    op.imm = flag;
    op.src = u8::from(on);
    flags::assign
}

/// CMOVcc and SETcc.
fn conditional(insn: &Instruction, op: &Op) -> Option<Handler> {
    if insn.flow_control() != FlowControl::Next {
        return None;
    }
    let condition = condition_code(insn)?;
    if op.size == 1 {
        return Some(by_condition!(condition, data::setcc));
    }
    Some(match op.size {
        2 => by_condition!(condition, data::cmov, u16),
        4 => by_condition!(condition, data::cmov, u32),
        _ => by_condition!(condition, data::cmov, u64),
    })
}

/// The four condition bits of the opcode.
fn condition_code(insn: &Instruction) -> Option<u8> {
    match insn.condition_code() {
        iced_x86::ConditionCode::None => None,
        // iced numbers from one, in opcode order.
        condition => u8::try_from(condition as u32 - 1).ok(),
    }
}

fn segment_operand(insn: &Instruction) -> bool {
    (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_segment_register())
}

/// MOV, unless it touches control or debug registers or loads a segment register.
fn plain_mov(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let registers = [insn.op0_register(), insn.op1_register()];
    if registers.iter().any(|r| r.is_cr() || r.is_dr() || r.is_tr()) || registers[0].is_segment_register() {
        return None;
    }
    if registers[1].is_segment_register() {
        return Some(data::mov_from_segment);
    }
    // An absolute-address form may say its size in the other operand only.
    if op.dst == MEMORY && op.src != IMMEDIATE {
        op.size = source_size(insn, 1);
    }
    Some(data::select_mov(op))
}

/// Bytes that a push or pop moves: the change of the stack pointer.
fn stack_size(insn: &Instruction) -> u8 {
    match insn.code() {
        Code::Enterw_imm16_imm8 | Code::Leavew => 2,
        Code::Enterd_imm16_imm8 | Code::Leaved => 4,
        Code::Enterq_imm16_imm8 | Code::Leaveq => 8,
        _ => u8::try_from(insn.stack_pointer_increment().unsigned_abs()).unwrap_or(8),
    }
}

fn push(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    op.size = stack_size(insn);
    op.src = op.dst;
    Some(if segment_operand(insn) {
        by_width!(op.size, stack::push_segment)
    } else {
        by_width!(op.size, stack::push)
    })
}

fn pop(insn: &Instruction, op: &mut Op) -> Handler {
    op.size = stack_size(insn);
    by_width!(op.size, stack::pop)
}

fn strings(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let m = |mnemonic| is_string(insn, mnemonic);
    macro_rules! widths {
        ($b:ident, $w:ident, $d:ident, $q:ident, $handler:ident) => {
            if m(Mnemonic::$b) {
                return Some(string::$handler::<u8>);
            } else if m(Mnemonic::$w) {
                return Some(string::$handler::<u16>);
            } else if m(Mnemonic::$d) {
                return Some(string::$handler::<u32>);
            } else if m(Mnemonic::$q) {
                return Some(string::$handler::<u64>);
            }
        };
    }
    if !insn.is_string_instruction() {
        return None;
    }
    op.mem.cut = string_address_cut(insn);
    widths!(Movsb, Movsw, Movsd, Movsq, movs);
    widths!(Stosb, Stosw, Stosd, Stosq, stos);
    widths!(Lodsb, Lodsw, Lodsd, Lodsq, lods);
    widths!(Scasb, Scasw, Scasd, Scasq, scas);
    widths!(Cmpsb, Cmpsw, Cmpsd, Cmpsq, cmps);
    None
}

/// How many bits the address size cuts off RSI, RDI and RCX.
pub(super) fn string_address_cut(insn: &Instruction) -> u8 {
    let cut = |i| match insn.op_kind(i) {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(48),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(32),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(0),
        _ => None,
    };
    (0..insn.op_count()).find_map(cut).unwrap_or(0)
}

fn control(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let code = insn.code();
    if code.is_jcc_short_or_near() {
        op.size = branch_size(insn);
        return condition_code(insn).map(|c| -> Handler { by_condition!(c, branch::jcc) });
    }
    if code.is_jcx_short() {
        op.size = branch_size(insn);
        op.mem.cut = count_cut(code);
        return Some(branch::jcxz);
    }
    Some(match insn.mnemonic() {
        Mnemonic::Jmp if code.is_jmp_short_or_near() => {
            op.size = branch_size(insn);
            branch::jmp
        }
        Mnemonic::Jmp if code.is_jmp_near_indirect() => {
            op.src = op.dst;
            by_width!(op.size, branch::jmp_indirect)
        }
        Mnemonic::Call if code.is_call_near() => {
            op.size = branch_size(insn);
            by_width!(op.size, branch::call)
        }
        Mnemonic::Call if code.is_call_near_indirect() => {
            op.src = op.dst;
            by_width!(op.size, branch::call_indirect)
        }
        Mnemonic::Ret => {
            op.size = match code {
                Code::Retnw | Code::Retnw_imm16 => 2,
                Code::Retnd | Code::Retnd_imm16 => 4,
                _ => 8,
            };
            by_width!(op.size, branch::ret)
        }
        Mnemonic::Loop | Mnemonic::Loope | Mnemonic::Loopne => {
            op.size = branch_size(insn);
            op.mem.cut = count_cut(code);
            match insn.mnemonic() {
                Mnemonic::Loopne => branch::loop_while::<0>,
                Mnemonic::Loope => branch::loop_while::<1>,
                _ => branch::loop_while::<2>,
            }
        }
        _ => return None,
    })
}

fn branch_size(insn: &Instruction) -> u8 {
    match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        _ => 8,
    }
}

/// Which count register JCXZ and LOOP use: CX, ECX or RCX, by address size.
fn count_cut(code: Code) -> u8 {
    match code {
        Code::Jcxz_rel8_16
        | Code::Jcxz_rel8_32
        | Code::Loop_rel8_16_CX
        | Code::Loop_rel8_32_CX
        | Code::Loope_rel8_16_CX
        | Code::Loope_rel8_32_CX
        | Code::Loopne_rel8_16_CX
        | Code::Loopne_rel8_32_CX => 48,
        Code::Jrcxz_rel8_16
        | Code::Jrcxz_rel8_64
        | Code::Loop_rel8_16_RCX
        | Code::Loop_rel8_64_RCX
        | Code::Loope_rel8_16_RCX
        | Code::Loope_rel8_64_RCX
        | Code::Loopne_rel8_16_RCX
        | Code::Loopne_rel8_64_RCX => 0,
        _ => 32,
    }
}
