//! The cases on every engine; and that the runner sees what is wrong with a case.

use engine_bt::{Bt, Closeness, Lockstep};
use interp::Interp;
use x86::CpuState;

use super::*;

#[test]
fn the_interpreter_does_what_the_manual_says() {
    under_every_technique(&Interp);
}

#[test]
fn the_translator_does_what_the_manual_says() {
    under_every_technique(&Bt::default());
}

#[test]
fn blocks_that_check_themselves_do_what_the_manual_says() {
    under_every_technique(&Bt::checking());
}

/// Cases about processors that programs of Linux never see: with interrupts disabled, or without state that Linux enables.
const NOT_OF_LINUX: [&str; 9] = [
    "XSETBV without CR4.OSXSAVE",
    "XGETBV without CR4.OSXSAVE",
    "POPF in ring 3 changes neither",
    "XSAVE without CR4.OSXSAVE",
    "AVX without CR4.OSXSAVE",
    "IRET in ring 3 leaves IOPL and IF",
    "IRET in ring 3 ignores VM, VIF and VIP",
    "REPNE SCASB finds it in the third page",
    "RDFSBASE without CR4.FSGSBASE",
];

/// User code as Linux runs it: else it is not executed directly.
fn like_linux(state: &mut CpuState) {
    if state.cpl() == 3 && state.rflags & x86::rflags::VM == 0 {
        state.rflags |= x86::rflags::IF;
    }
    state.cr4 |= x86::control::cr4::OSXSAVE | x86::control::cr4::FSGSBASE;
    state.xcr0 = 7;
}

#[test]
fn user_code_that_is_executed_directly_does_what_the_manual_says() {
    let report = run_from(&Bt::direct(), Technique::default(), like_linux, FILES).unwrap();
    let is_of_linux =
        |failure: &&String| !NOT_OF_LINUX.iter().any(|name| failure.contains(&format!(": {name}: ")));
    let failures: Vec<_> = report.failures.iter().filter(is_of_linux).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    let runs = report.counters["direct.runs"];
    println!("{report}; {runs} times in a process of its own");
    assert!(runs > 90 || !host::cpu::has_avx(), "{runs}");
}

fn under_every_technique(engine: &dyn Engine) {
    for technique in crate::techniques::ALL {
        let report = run(engine, technique, FILES).unwrap();
        assert!(report.failures.is_empty(), "{technique:?}\n{report}");
        println!("{technique:?}: {report}");
    }
}

#[test]
fn the_translator_does_what_the_interpreter_does() {
    for (chained, checking) in [(false, false), (true, false), (false, true), (true, true)] {
        let engine = Lockstep::new(Closeness { chained, every: 1, checking });
        let report = run(&engine, Technique::default(), FILES).unwrap();
        let differences = engine.ledger().differences();
        assert!(differences.is_empty(), "\n{}", differences.join("\n"));
        assert!(report.failures.is_empty(), "\n{report}");
        println!("{report}, {:?}", engine.ledger().counts());
    }
}

/// The only failure of a case whose lines are these, behind its name.
fn failure(lines: &str) -> String {
    let report = run(&Interp, Technique::default(), &[("here", &format!("== A case\n{lines}"))]).unwrap();
    assert_eq!(report.failures.len(), 1, "{report}");
    report.failures[0].clone()
}

const GOOD: &str = "cite SDM\nstart long3\nset rax = 1\ncode\n48 ff c0  inc rax\nends\ncheck rax = 2";

#[test]
fn a_good_case_passes() {
    let report = run(&Interp, Technique::default(), &[("here", &format!("== A case\n{GOOD}"))]).unwrap();
    assert_eq!((report.run, report.failures.len()), (1, 0), "{report}");
}

#[test]
fn assembly_must_be_what_the_bytes_say() {
    let said = failure(&GOOD.replace("inc rax", "dec rax"));
    assert_eq!(said, "here:6: A case: [48, ff, c0] is 'inc rax', not 'dec rax'");
}

#[test]
fn expectations_are_checked() {
    assert_eq!(failure(&GOOD.replace("rax = 2", "rax = 3")), "here:8: A case: rax is 0x2; wanted = 0x3");
    let said = failure(&GOOD.replace("ends", "raises #UD"));
    assert!(said.contains("#GP(0x0) at 0x33:0xc003"), "{said}");
}

#[test]
fn incomplete_cases_are_refused() {
    assert_eq!(failure(&GOOD.replace("cite SDM\n", "")), "here:1: 'A case' has no citation");
    assert_eq!(failure(&GOOD.replace("ends\n", "")), "here:1: 'A case' has no outcome");
    assert_eq!(failure(&GOOD.replace("start long3\n", "")), "here:1: 'A case' has no starting state");
    assert_eq!(
        failure(&GOOD.replace("rax = 1", "rox = 1")),
        "here:4: A case: 'rox' is neither register nor memory"
    );
}

#[test]
fn a_guest_that_does_not_stop_is_stopped() {
    let said = failure("cite SDM\nstart long0\ncode\neb fe  jmp last\nends");
    assert!(said.contains("hung"), "{said}");
}
