use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

use super::*;

/// What the decoder makes of the bytes.
fn text(build: impl FnOnce(&mut Asm)) -> Vec<String> {
    let mut asm = Asm::default();
    build(&mut asm);
    let bytes = asm.finish();
    let mut formatter = NasmFormatter::new();
    Decoder::with_ip(64, &bytes, 0, DecoderOptions::NONE)
        .iter()
        .map(|insn| {
            let mut out = String::new();
            formatter.format(&insn, &mut out);
            out
        })
        .collect()
}

#[test]
fn register_forms() {
    let got = text(|a| {
        a.mov(Gpr::R10, Gpr::RAX);
        a.op32(Op::Cmp, Gpr::RCX, Gpr::R11);
        a.op_imm(Op::And, Gpr::RAX, -4096);
        a.op32_imm(Op::And, Gpr::RCX, 0xffe0);
        a.op_imm(Op::Cmp, Gpr::RAX, 8);
        a.rorx(Gpr::RCX, Gpr::RAX, 7);
        a.rorx(Gpr::R11, Gpr::R10, 63);
        a.sar(true, Gpr::RCX, 6);
        a.movsxd(Gpr::RCX, Gpr::R11);
        a.test_low_bits(Gpr::RAX, 15);
    });
    let want = [
        "mov r10,rax",
        "cmp ecx,r11d",
        "and rax,0FFFFFFFFFFFFF000h",
        "and ecx,0FFE0h",
        "cmp rax,8",
        "rorx rcx,rax,7",
        "rorx r11,r10,3Fh",
        "sar rcx,6",
        "movsxd rcx,r11d",
        "test al,0Fh",
    ];
    assert_eq!(got, want);
}

#[test]
fn addresses() {
    let got = text(|a| {
        a.lea(Gpr::RAX, Gpr::R15, -8);
        a.lea(Gpr::RAX, Gpr::R12, 0);
        a.lea(Gpr::RAX, Gpr::new(13), 0);
        a.lea(Gpr::RAX, Gpr::RBP, 0x1234);
        a.lea_indexed(true, Gpr::RAX, Some(Gpr::RDI), Gpr::R10, 3, 16);
        a.lea_indexed(false, Gpr::RAX, None, Gpr::RDX, 2, 16);
        a.store_to(true, Place::at(Gpr::RAX), Gpr::R12);
        a.store_imm_to(true, Place::at(Gpr::RAX), -1);
        a.load_from(true, Gpr::RBX, Place { base: Gpr::R15, index: Some(Gpr::RCX), disp: -8 });
        a.store_to(false, Place { base: Gpr::R12, index: Some(Gpr::RCX), disp: 0x200 }, Gpr::R10);
    });
    let want = [
        "lea rax,[r15-8]",
        "lea rax,[r12]",
        "lea rax,[r13]",
        "lea rax,[rbp+1234h]",
        "lea rax,[rdi+r10*8+10h]",
        "lea eax,[rdx*4+10h]",
        "mov [rax],r12",
        "mov qword [rax],0FFFFFFFFFFFFFFFFh",
        "mov rbx,[r15+rcx-8]",
        "mov [r12+rcx+200h],r10d",
    ];
    assert_eq!(got, want);
}

#[test]
fn gs_forms() {
    let got = text(|a| {
        a.gs_load(Gpr::R12, 0x1000);
        a.gs_load16(Gpr::RAX, 0x80);
        a.gs_op_at(Op::Sub, Gpr::RAX, Gpr::RCX, 0x1008);
        a.gs_store(0x10, Gpr::RAX);
        a.gs_store16(0x10, Gpr::RAX);
        a.gs_store_imm32(0x10, 7);
        a.gs_is_zero32(0x20);
        a.gs_op_imm(Op::Or, 0x28, 0x200);
        a.gs_jmp(0x30);
        a.gs_jmp_at(Gpr::RCX, 0x1008);
        a.gs_call(0x1008);
        a.gs_op32(Op::Add, Gpr::RAX, 0x40);
    });
    let want = [
        "mov r12,[gs:1000h]",
        "movzx eax,word [gs:80h]",
        "sub rax,[gs:rcx+1008h]",
        "mov [gs:10h],rax",
        "mov [gs:10h],ax",
        "mov dword [gs:10h],7",
        "cmp dword [gs:20h],0",
        "or qword [gs:28h],200h",
        "jmp qword [gs:30h]",
        "jmp qword [gs:rcx+1008h]",
        "call qword [gs:1008h]",
        "add eax,[gs:40h]",
    ];
    assert_eq!(got, want);
}

#[test]
fn holes_are_relative_to_their_end() {
    let got = text(|a| {
        let forward = a.jcc(Condition::ABOVE);
        let short = a.jrcxz();
        a.ret();
        assert!(a.fill_short(short));
        let here = a.here();
        a.fill(forward, here);
        a.push(Gpr::R10);
    });
    assert_eq!(got, ["ja near 9", "jrcxz 9", "ret", "push r10"]);
}

#[test]
fn control_registers_and_counters() {
    let got = text(|a| {
        a.rdtsc();
        a.lfence();
        a.shl(Gpr::RDX, 32);
        a.gs_ldmxcsr(0x100);
    });
    assert_eq!(got, ["rdtsc", "lfence", "shl rdx,20h", "ldmxcsr [gs:100h]"]);
}

#[test]
fn strings_and_what_counts_them() {
    let got = text(|a| {
        a.neg32(Gpr::RAX);
        a.xchg(Gpr::RAX, Gpr::RDI);
        a.cmov(Condition::ABOVE, Gpr::RAX, Gpr::R11);
        a.string(0xa5, 0, Repeat::WhileEqual);
        a.string(0xab, 1, Repeat::WhileEqual);
        a.string(0xaf, 2, Repeat::WhileUnequal);
        a.string(0xa7, 3, Repeat::WhileEqual);
    });
    let want =
        ["neg eax", "xchg rax,rdi", "cmova rax,r11", "rep movsb", "rep stosw", "repne scasd", "repe cmpsq"];
    assert_eq!(got, want);
}

#[test]
fn narrow_words_and_fences() {
    let got = text(|a| {
        a.load16(Gpr::RCX, Gpr::RAX, 32);
        a.store_to(false, Place::at(Gpr::RAX), Gpr::R12);
        a.store_imm_to(false, Place { base: Gpr::RAX, index: None, disp: 4 }, -1);
        a.mfence();
    });
    assert_eq!(got, ["movzx ecx,word [rax+20h]", "mov [rax],r12d", "mov dword [rax+4],0FFFFFFFFh", "mfence"]);
}
