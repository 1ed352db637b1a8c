//! The tests on the interpreter; and that model, text and runner are right.

use engine::{Counter, EngineError, Exit, Kick, Vcpu, VcpuSetup, VcpuStats};
use engine_bt::Bt;
use interp::Interp;
use x86::CpuState;

use super::*;

fn assert_tso(engine: &dyn Engine, rounds: u64) {
    let report = run(engine, rounds).unwrap();
    let failed: Vec<_> =
        report.results.iter().filter(|result| result.is_failure()).map(ToString::to_string).collect();
    assert!(failed.is_empty(), "{}\n{report}", failed.join("\n"));
}

#[test]
fn the_interpreter_is_a_tso_machine() {
    assert_tso(&Interp, 512);
}

#[test]
fn translated_code_is_a_tso_machine() {
    // Else the host lacks what the engine needs.
    if Bt::check_host().is_ok() {
        assert_tso(&Bt::default(), 512);
        assert_tso(&Bt::default(), 128);
        assert_tso(&Bt::checking(), 128);
    }
}

fn shapes() -> Vec<Shape> {
    shape::parse(SHAPES).unwrap()
}

#[test]
fn the_model_agrees_with_what_is_cited() {
    for shape in shapes() {
        assert!(!shape.cite.is_empty() && !shape.claims.is_empty(), "{} says nothing", shape.name);
        let contradiction =
            |model| model::contradiction(&shape, &model::outcomes(&shape, model)).map(|claim| claim.allowed);
        assert_eq!(contradiction(Model::Tso), None, "{}", shape.name);
        // What is forbidden stays so if less is allowed.
        assert_ne!(contradiction(Model::Sc), Some(false), "{}", shape.name);
    }
}

#[test]
fn sequential_consistency_is_stronger() {
    let weak: Vec<_> = shapes()
        .iter()
        .filter(|shape| model::outcomes(shape, Model::Tso) != model::outcomes(shape, Model::Sc))
        .map(|shape| shape.name.clone())
        .collect();
    assert_eq!(weak, ["SB", "SB+mfence", "SB3", "R", "SB+forward", "n6"]);
    for shape in shapes() {
        let tso = model::outcomes(&shape, Model::Tso);
        assert!(model::outcomes(&shape, Model::Sc).is_subset(&tso), "{}", shape.name);
    }
}

#[test]
fn every_test_can_be_laid_out() {
    let tests = all().unwrap();
    let mut names: Vec<_> = tests.iter().map(Litmus::name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), tests.len(), "a name is given twice");
    for test in &tests {
        let plan = test.plan().unwrap();
        assert!(plan.programs.len() <= PROCESSORS && plan.finals.len() <= program::WORDS, "{}", test.name());
        assert!(plan.programs.iter().all(|program| program.len() <= 0x1000), "{}", test.name());
    }
}

#[test]
fn text_that_cannot_be_read_is_refused() {
    for line in ["P1 x = 1", "P0 q = 1", "P0 r4 = x", "P0 x", "allowed x", "about it"] {
        let said = shape::parse(&format!("== A\n{line}")).unwrap_err();
        assert!(said.starts_with("line 2: "), "{said}");
    }
}

fn test_of(text: &str) -> Litmus {
    Litmus { kind: Kind::Shape(shape::parse(text).unwrap().remove(0)) }
}

#[test]
fn outcomes_are_recorded_and_judged() {
    let test =
        test_of("== A\nP0 x = 3; r0 = x; r1 = xadd x 4; r2 = cmpxchg x 7 9; r3 = xchg y 5\nallowed x=9 y=5");
    let mut result = test.run(&Interp, 5).unwrap();
    assert_eq!(result.outcomes, BTreeMap::from([(vec![3, 3, 7, 0, 9, 5], 5)]));
    assert_eq!((result.verdict.clone(), result.weak), (Verdict::Ok, None));
    result.outcomes.insert(vec![3, 3, 7, 0, 9, 6], 1);
    test.plan().unwrap().judge(&crate::oracle::host_model().unwrap(), &mut result);
    assert!(result.is_failure());
    assert!(result.to_string().contains("1  0:r0=3 0:r1=3 0:r2=7 0:r3=0 x=9 y=6  <--"), "{result}");
}

/// vCPU 1 spins at its first instruction.
struct Lame;

struct LameVcpu(Box<dyn Vcpu>);

impl Engine for Lame {
    fn name(&self) -> &'static str {
        "lame"
    }
    fn create_vcpu(&self, setup: VcpuSetup) -> Result<Box<dyn Vcpu>, EngineError> {
        let lame = setup.id.0 == 1;
        let vcpu = Interp.create_vcpu(setup)?;
        Ok(if lame { Box::new(LameVcpu(vcpu)) } else { vcpu })
    }
}

impl Vcpu for LameVcpu {
    fn run(&mut self) -> Exit {
        let kick = self.kick_handle();
        while !kick.take() {
            std::thread::yield_now();
        }
        Exit::Kicked
    }
    fn kick_handle(&self) -> Kick {
        self.0.kick_handle()
    }
    fn state(&self) -> CpuState {
        self.0.state()
    }
    fn set_state(&mut self, state: &CpuState) {
        self.0.set_state(state);
    }
    fn flush_tlb(&mut self) {
        self.0.flush_tlb();
    }
    fn stats(&self) -> VcpuStats {
        self.0.stats()
    }

    fn counters(&self) -> Vec<Counter> {
        self.0.counters()
    }
}

#[test]
fn a_vcpu_that_hangs_is_named() {
    let result = test_of(SHAPES).run_patiently(&Lame, 8, Duration::from_millis(1)).unwrap();
    let Verdict::Failed(why) = &result.verdict else { panic!("{result}") };
    assert!(why.contains("vCPU 1: Kicked at 0x11000 with 9 rounds to go"), "{why}");
}
