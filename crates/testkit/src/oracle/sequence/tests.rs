//! Sequences on the interpreter in small, and what generating them must keep to.

use engine_bt::Bt;
use interp::Interp;

use super::super::case::address_of;
use super::program::Body;
use super::*;

fn world() -> (Forms, World) {
    let cpuid = host_model().unwrap();
    let host = vendor::Host::of(&cpuid);
    let world = World { fs_base: 0x5000, gs_base: child::GS_BASE, host };
    (Forms::new(&forms::table(&cpuid), None), world)
}

#[test]
fn the_interpreter_agrees_with_the_processor_over_sequences() {
    let options = Options { seed: 1, first: 0, cases: 20_000, only: None };
    let report = run(&Interp, &options).unwrap();
    assert_eq!(report.mismatch_count(), 0, "{report}");
    assert_eq!(report.cases, options.cases, "every number makes a sequence");
}

#[test]
fn the_translator_agrees_with_the_processor_over_sequences() {
    let options = Options { seed: 2, first: 0, cases: 20_000, only: None };
    let report = run(&Bt::default(), &options).unwrap();
    assert_eq!(report.mismatch_count(), 0, "{report}");
    // The supervisor's code is the same in every case, and gives but a few.
    assert!(report.counters["cache.blocks"] > options.cases, "{:?}", report.counters);
}

#[test]
fn code_that_is_executed_directly_agrees_with_the_processor_over_sequences() {
    let options = Options { seed: 3, first: 0, cases: 1500, only: None };
    let report = run(&Bt::direct(), &options).unwrap();
    assert_eq!(report.mismatch_count(), 0, "{report}");
    let runs = report.counters["direct.runs"];
    assert!(runs > options.cases || !host::cpu::has_avx(), "{runs}");
}

/// In this one a store has made a state image name AVX-512, which the host's system may have enabled.
#[test]
fn components_that_only_the_host_has_are_not_compared() {
    let options = Options { seed: 3, first: 164_004, cases: 1, only: None };
    let report = run(&Interp, &options).unwrap();
    assert_eq!(report.mismatch_count(), 0, "{report}");
}

#[test]
fn a_sequence_is_made_from_its_number_alone() {
    let (forms, world) = world();
    for number in 0..200 {
        let [a, b] = [(); 2].map(|()| generate::make(7, number, &forms, &world).unwrap().encoded.input);
        assert_eq!((a.registers, a.code, a.patch), (b.registers, b.code, b.patch));
    }
}

/// With every single item dropped, branches still lead to beginnings of steps, and everything still has an encoding.
#[test]
fn dropping_items_keeps_targets() {
    let (forms, world) = world();
    for number in 0..100 {
        let made = generate::make(3, number, &forms, &world).unwrap();
        let groups: BTreeSet<_> = made.program.steps.iter().map(|step| step.group).collect();
        for gone in groups.into_iter().filter(|group| *group != 0) {
            let mut program = made.program.clone();
            program.steps.iter_mut().filter(|step| step.group == gone).for_each(|step| step.dropped = true);
            program.wash_flags();
            let Some(encoded) = program.encode() else { continue };
            for &(address, _, _) in &encoded.addresses {
                let instruction = instruction_at(&encoded, &Output::EMPTY, address);
                let target = instruction.near_branch_target();
                let known = encoded.addresses.iter().any(|(address, ..)| *address == target);
                let washed = program.steps.iter().any(|step| step.washed);
                assert!(
                    target == 0 || known || washed || address >= address_of(0x2000 - 16),
                    "{instruction}"
                );
            }
        }
    }
}

#[test]
fn sequences_have_everything_in_them() {
    let (forms, world) = world();
    let made: Vec<Made> = (0..2000).filter_map(|number| generate::make(1, number, &forms, &world)).collect();
    assert_eq!(made.len(), 2000);
    let count = |has: &dyn Fn(&Program) -> bool| made.iter().filter(|made| has(&made.program)).count();
    let any = |program: &Program, has: &dyn Fn(&program::Step) -> bool| program.steps.iter().any(has);
    assert!(count(&|program| program.turns == 40) > 200);
    assert!(count(&|program| program.resumes > 0) > 500);
    assert!(count(&|program| program.bits == 32) > 300);
    assert!(count(&|program| any(program, &|step| step.washed)) > 50);
    assert!(count(&|program| any(program, &|step| step.calls)) > 200);
    assert!(count(&|program| any(program, &|step| step.region != 0)) > 500);
    assert!(count(&|program| any(program, &|step| matches!(step.body, Body::Slot(..)))) > 200);
    assert!(count(&|program| any(program, &|step| !step.pointers.is_empty())) > 100);
}

/// Most sequences execute all their turns, many after faults, many with code that is another at the end.
#[test]
fn sequences_reach_their_ends() {
    let (forms, world) = world();
    let mut child = Child::new().unwrap();
    let [mut ended, mut resumed, mut changed, mut faulted] = [0; 4];
    for first in (0..8).map(|batch| batch * BATCH as u64) {
        let numbers = first..first + BATCH as u64;
        let made: Vec<Made> =
            numbers.map(|number| generate::make(1, number, &forms, &world).unwrap()).collect();
        let batch = child.batch();
        batch.background = background(1, first);
        batch.count = made.len();
        for (input, made) in batch.inputs.iter_mut().zip(&made) {
            *input = made.encoded.input;
        }
        child.run().unwrap();
        for (made, output) in made.iter().zip(&child.batch().outputs) {
            let (at, code) = (made.encoded.input.code_at(), made.encoded.input.code());
            let differs = |(at, byte): (usize, &u8)| output.byte(at).is_some_and(|now| now != *byte);
            ended += u32::from(output.vector == u32::from(vector::BP));
            faulted += u32::from(output.vector != u32::from(vector::BP));
            resumed += u32::from(output.resumed > 0);
            changed += u32::from((at..super::super::case::CODE_BYTES).zip(code).any(differs));
        }
    }
    let counts = [ended, faulted, resumed, changed];
    assert!(ended > 1000 && faulted > 100 && resumed > 100 && changed > 300, "{counts:?}");
}
