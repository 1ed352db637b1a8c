//! The interpreter against the processor, in small; and the oracle's own parts.

use iced_x86::{Code, Instruction, Register};
use instruction::status_flags;
use interp::Interp;

use super::case::Registers;
use super::*;

#[test]
fn the_interpreter_agrees_with_the_processor() {
    let options = Options { seed: 1, first: 0, cases: 200_000, only: None };
    let report = run(&Interp, &options).unwrap();
    assert_eq!(report.mismatch_count(), 0, "{report}");
    assert_eq!(report.untried, []);
}

/// The decoder's table has its own opinion of what is undefined; ours must agree where no count is involved.
#[test]
fn undefined_flags_are_those_that_the_decoder_knows() {
    let cpuid = host_model().unwrap();
    for Form { code, .. } in forms::table(&cpuid) {
        let mut instruction = Instruction::new();
        instruction.set_code(code);
        if instruction.op_count() > 0 {
            instruction.set_op0_register(Register::RBX);
        }
        let known = status_flags(instruction.rflags_undefined());
        let ours = undefined::flags(&instruction, &Registers::ZERO);
        // With a count of zero nothing is undefined for us.
        assert_eq!(ours & !known, 0, "{code:?}");
    }
    assert_ne!(Code::Bsf_r64_rm64.op_code().op_count(), 0);
}

#[test]
fn a_case_is_made_from_its_number_alone() {
    let cpuid = host_model().unwrap();
    let forms = forms::table(&cpuid);
    let world = World { fs_base: 0x5000, gs_base: child::GS_BASE, host: Host::of(&cpuid) };
    let make = |number| {
        let mut random = Random::new(7, number);
        (0..64).find_map(|_| {
            let form = random.pick(&forms);
            build::build(&mut random, form, &world)
        })
    };
    for number in 0..500 {
        let (a, b) = (make(number).unwrap(), make(number).unwrap());
        assert_eq!((a.registers, a.code, a.patch), (b.registers, b.code, b.patch));
    }
}
