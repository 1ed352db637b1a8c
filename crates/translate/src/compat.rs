//! 32-bit code in compatibility mode: what is different there from 64-bit code.
//!
//! Only flat code is translated: CS, SS, DS and ES begin at 0 and end at 4 GiB, and the engine makes sure of that. FS and
//! GS may have a base ([`Mode::FS`](crate::Mode::FS), [`Mode::GS`](crate::Mode::GS)). So a linear address is an effective one, cut to 32
//! bits ([`address`]).
//!
//! # Upper halves
//! The upper halves of the eight registers are zero when translated code is entered (they are undefined, SDM vol. 1,
//! 3.4.1.1, so the engine may clear them), and stay so: a 32-bit result clears them, a narrower one leaves them.
//!
//! # No address wraps
//! An access that begins in the first or the last page below 4 GiB is never made through the TLB (the engine refuses them
//! to user code). So a string piece, and a base near an address that was checked, neither run past 4 GiB nor below 0: a
//! group of accesses may name its members by the base's 64 bits as long as they are near it ([`NEAR`]).
//!
//! # Encodings
//! What 64-bit mode encodes otherwise is changed ([`crate::catalogue::without_accumulator`]); what it does not know, such as
//! PUSHA, BOUND, far transfers and the decimal adjustments, is refused by the encoder or by name, and interpreted.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::asm::Op;
use crate::block::Mode;
use crate::context::at;
use crate::emit::{Emitter, Result, Unsupported};
use crate::host::Gpr;

/// The most that a group's access may be away from its base register, in bytes: less than a page.
pub(crate) const NEAR: i32 = 2048;

/// RAX = the linear address of a memory operand. RCX may be lost; flags are free.
pub(crate) fn linear_address(e: &mut Emitter<'_>, insn: &Instruction) -> Result {
    let slot = segment(e.mode, insn)?;
    address(e, Gpr::RAX, insn)?;
    if let Some(slot) = slot {
        e.asm.gs_op32(Op::Add, Gpr::RAX, at::SEGMENT_BASE + 8 * slot);
    }
    Ok(())
}

/// Which base is to be added, if any.
fn segment(mode: Mode, insn: &Instruction) -> Result<Option<i32>> {
    match insn.memory_segment() {
        Register::FS if mode.has(Mode::FS) => Ok(Some(0)),
        Register::GS if mode.has(Mode::GS) => Ok(Some(1)),
        Register::DS | Register::ES | Register::SS => Ok(None),
        // CS cannot be written through.
        _ => Err(Unsupported),
    }
}

/// `to` = the effective address, 32 bits of it. RAX and RCX may be lost, flags stay.
pub(crate) fn address(e: &mut Emitter<'_>, to: Gpr, insn: &Instruction) -> Result {
    let displacement = displacement(insn);
    let register = |name: Register| match name {
        Register::None => Ok(None),
        _ if name.size() == 4 => Gpr::of(name).map(Some).ok_or(Unsupported),
        _ => Err(Unsupported),
    };
    match (register(insn.memory_base())?, register(insn.memory_index())?) {
        (Some(base), None) => {
            let base = e.read(base, Gpr::RAX);
            e.asm.lea32(to, base, displacement);
        }
        (base, Some(index)) => {
            let index = e.read(index, Gpr::RCX);
            let base = base.map(|base| e.read(base, Gpr::RAX));
            let scale = u8::try_from(insn.memory_index_scale().trailing_zeros()).map_err(|_| Unsupported)?;
            e.asm.lea_indexed(false, to, base, index, scale, displacement);
        }
        // With 16-bit addresses, the displacement is cut.
        (None, None) if insn.memory_displ_size() == 4 => {
            e.asm.mov_imm32(to, displacement.cast_unsigned());
        }
        (None, None) => return Err(Unsupported),
    }
    Ok(())
}

/// A memory operand's displacement, with its sign.
pub(crate) fn displacement(insn: &Instruction) -> i32 {
    x86::bits::low32(insn.memory_displacement64()).cast_signed()
}

/// Whether an instruction that 64-bit mode knows does something else there.
pub(crate) fn is_different(insn: &Instruction) -> bool {
    // These are about all the vector registers that there are.
    matches!(insn.mnemonic(), Mnemonic::Vzeroall | Mnemonic::Vzeroupper)
}

/// The operand of a string instruction with 32-bit addresses.
pub(crate) const fn is_string_operand(kind: OpKind) -> bool {
    matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Exit;
    use crate::listing::{exits, text};

    const MODE: Mode = Mode::USER.with(Mode::COMPAT, true).with(Mode::GS, true).with(Mode::AVX, true);

    /// Whether the translation has these lines, one behind the other.
    fn has(bytes: &[u8], lines: &[&str]) -> bool {
        let text = text(MODE, bytes);
        text.windows(lines.len()).any(|window| window == lines)
    }

    #[test]
    fn addresses_are_cut() {
        assert!(has(&[0x8b, 0x43, 0xf8], &["lea eax,[rbx-8]"]), "mov eax, [ebx-8]");
        assert!(has(&[0x8b, 0x44, 0x91, 4], &["lea eax,[r11+rdx*4+4]"]), "mov eax, [ecx+edx*4+4]");
        assert!(has(&[0xa1, 0, 0, 0, 0xf0], &["mov eax,0F0000000h"]), "mov eax, [0xf0000000]");
        let base = format!("add eax,[gs:{:X}h]", at::SEGMENT_BASE + 8);
        assert!(has(&[0x65, 0x8b, 0x03], &["lea eax,[rbx]", &base]), "mov eax, [gs:ebx]");
    }

    #[test]
    fn stack_words_are_four_bytes() {
        assert!(has(&[0x50], &["mov [rax],r10d", "lea r15d,[r15-4]"]), "push eax");
        assert!(has(&[0x6a, 0xff], &["mov dword [rax],0FFFFFFFFh", "lea r15d,[r15-4]"]), "push -1");
        assert!(has(&[0x5b], &["mov ebx,[rax]", "lea r15d,[r15+4]"]), "pop ebx");
        assert!(has(&[0xc9], &["lea r15d,[rbp+4]", "mov ebp,[rax]"]), "leave");
    }

    #[test]
    fn short_forms_get_long() {
        assert!(has(&[0x40], &["inc r10d"]));
        assert!(has(&[0x66, 0x4f], &["dec di"]));
    }

    #[test]
    fn a_group_names_its_members_by_64_bits() {
        let two = [0x89, 0x45, 0xf8, 0x89, 0x45, 0xfc]; // mov [ebp-8], eax; mov [ebp-4], eax
        assert!(has(&two, &["mov [rbp+rcx-8],r10d", "mov [rbp+rcx-4],r10d"]), "{:?}", text(MODE, &two));
        let far = [0x89, 0x85, 0, 0, 0, 0xc0, 0x89, 0x85, 4, 0, 0, 0xc0]; // at ebp - 0x40000000
        assert!(text(MODE, &far).iter().all(|line| !line.contains("[rbp+rcx")));
    }

    #[test]
    fn what_is_left_to_the_interpreter() {
        let cases: &[(&str, &[u8])] = &[
            ("pusha", &[0x60]),
            ("aaa", &[0x37]),
            ("salc", &[0xd6]),
            ("into", &[0xce]),
            ("push es", &[0x06]),
            ("les ecx, [eax]", &[0xc4, 0x08]),
            ("bound ecx, [eax]", &[0x62, 0x08]),
            ("arpl ax, ax", &[0x63, 0xc0]),
            ("int 0x80", &[0xcd, 0x80]),
            ("sysenter", &[0x0f, 0x34]),
            ("syscall", &[0x0f, 0x05]),
            ("jmp far", &[0xea, 0, 0, 0, 0, 0x33, 0]),
            ("vzeroupper", &[0xc5, 0xf8, 0x77]),
            ("mov [cs:eax], ecx", &[0x2e, 0x89, 0x08]),
            ("mov ecx, [fs:eax]", &[0x64, 0x8b, 0x08]),
            ("mov eax, [bx]", &[0x67, 0x8b, 0x07]),
            ("push ax", &[0x66, 0x50]),
            ("rep movsb, 16-bit", &[0x67, 0xf3, 0xa4]),
        ];
        for (name, bytes) in cases {
            assert_eq!(exits(MODE.with(Mode::SYSCALL, true), bytes), [Exit::Interpret], "{name}");
        }
    }
}
