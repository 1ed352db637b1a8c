//! The cases on the interpreter; and the runner's own parts.

use interp::Interp;

use super::*;

#[test]
fn the_interpreter_does_what_the_manual_says() {
    let report = run(&Interp, FILES).unwrap();
    assert!(report.failures.is_empty(), "\n{report}");
    println!("{report}");
}
