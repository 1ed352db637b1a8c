//! Tests of the memory model as text: what each processor does, and what the literature says of it.
//!
//! ```text
//! == SB
//! cite       SDM 10.2.3.4
//! P0         x = 1; r0 = y
//! P1         y = 1; r0 = x
//! allowed    0:r0=0 1:r0=0
//! ```
//!
//! - Steps: `x = 1` stores, `r0 = x` loads, `r0 = xchg x 1`, `r0 = xadd x 1`, `r0 = cmpxchg x EXPECTED NEW` (locked, and `r0`
//!   is what was found), `lock add x 1`, `mfence`, `cpuid`. All of 32 bits.
//! - `u` to `z` are places in memory, each in a cache line of its own and 0 at first; `r0` to `r3` are registers.
//! - `allowed` and `forbidden` name an outcome, wholly or in part: `0:r1=2` is register 1 of P0, `x=1` a final value.
//!   They are what the cited text says. What a run is held to is the *whole* set of outcomes, which [`super::model`]
//!   derives and which must agree with them.

use std::fmt;

/// A place in memory, by its index; [`VARIABLES`] are their names.
pub(super) type Variable = usize;
/// A register that is part of the outcome.
pub(super) type Register = usize;

/// The names of the places.
pub(super) const VARIABLES: [&str; 6] = ["u", "v", "w", "x", "y", "z"];
/// Registers of each processor that can be part of an outcome.
pub(super) const REGISTERS: usize = 4;

/// One instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Store(Variable, u32),
    Load(Register, Variable),
    Locked(Option<Register>, Variable, Update),
    Mfence,
    Cpuid,
}

/// What a locked instruction makes of the value it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Update {
    Exchange(u32),
    Add(u32),
    Compare { expected: u32, new: u32 },
}

impl Update {
    pub(super) fn apply(self, found: u32) -> u32 {
        match self {
            Self::Exchange(value) => value,
            Self::Add(value) => found.wrapping_add(value),
            Self::Compare { expected, new } => {
                if found == expected {
                    new
                } else {
                    found
                }
            }
        }
    }
}

/// Something that an outcome consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Observed {
    /// A register of a processor, at the end.
    Register(usize, Register),
    /// A place, when all is done.
    Final(Variable),
}

impl fmt::Display for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Register(processor, register) => write!(f, "{processor}:r{register}"),
            Self::Final(variable) => f.write_str(VARIABLES[*variable]),
        }
    }
}

/// What the cited text says about an outcome.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    pub(super) allowed: bool,
    pub(super) outcome: Vec<(Observed, u32)>,
}

/// One test.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) name: String,
    pub(super) cite: String,
    pub(super) processors: Vec<Vec<Step>>,
    pub(super) claims: Vec<Claim>,
}

impl Shape {
    /// What is recorded of each round: all registers that are written, and the final values that claims name.
    pub(super) fn observed(&self) -> Vec<Observed> {
        let registers = self.processors.iter().enumerate().flat_map(|(processor, steps)| {
            steps.iter().filter_map(move |step| match step {
                Step::Load(register, _) | Step::Locked(Some(register), ..) => {
                    Some(Observed::Register(processor, *register))
                }
                _ => None,
            })
        });
        let finals = self.claims.iter().flat_map(|claim| &claim.outcome).map(|(observed, _)| *observed);
        let finals = finals.filter(|observed| matches!(observed, Observed::Final(_)));
        let mut all: Vec<_> = registers.chain(finals).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Reads a file of tests.
///
/// # Errors
/// A line that cannot be read, with its number.
pub(super) fn parse(text: &str) -> Result<Vec<Shape>, String> {
    let mut shapes: Vec<Shape> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let done = if word == "==" {
            let (name, cite) = (rest.trim().to_owned(), String::new());
            shapes.push(Shape { name, cite, processors: Vec::new(), claims: Vec::new() });
            Some(())
        } else {
            shapes.last_mut().and_then(|shape| property(shape, word, rest.trim()))
        };
        done.ok_or_else(|| format!("line {}: '{line}' cannot be read", number + 1))?;
    }
    Ok(shapes)
}

fn property(shape: &mut Shape, word: &str, rest: &str) -> Option<()> {
    match word {
        "cite" => rest.clone_into(&mut shape.cite),
        "allowed" | "forbidden" => {
            let outcome = rest.split_whitespace().map(part).collect::<Option<_>>()?;
            shape.claims.push(Claim { allowed: word == "allowed", outcome });
        }
        _ => {
            let number: usize = word.strip_prefix('P')?.parse().ok()?;
            if number != shape.processors.len() {
                return None;
            }
            shape.processors.push(rest.split(';').map(step).collect::<Option<_>>()?);
        }
    }
    Some(())
}

fn part(text: &str) -> Option<(Observed, u32)> {
    let (target, value) = text.split_once('=')?;
    let observed = match target.split_once(':') {
        Some((processor, name)) => Observed::Register(processor.parse().ok()?, register(name)?),
        None => Observed::Final(variable(target)?),
    };
    Some((observed, value.parse().ok()?))
}

fn step(text: &str) -> Option<Step> {
    let number = |text: &str| text.parse::<u32>().ok();
    let words: Vec<&str> = text.split_whitespace().collect();
    Some(match words.as_slice() {
        ["mfence"] => Step::Mfence,
        ["cpuid"] => Step::Cpuid,
        ["lock", "add", at, value] => Step::Locked(None, variable(at)?, Update::Add(number(value)?)),
        [to, "=", "xchg", at, value] => {
            Step::Locked(Some(register(to)?), variable(at)?, Update::Exchange(number(value)?))
        }
        [to, "=", "xadd", at, value] => {
            Step::Locked(Some(register(to)?), variable(at)?, Update::Add(number(value)?))
        }
        [to, "=", "cmpxchg", at, expected, new] => {
            let update = Update::Compare { expected: number(expected)?, new: number(new)? };
            Step::Locked(Some(register(to)?), variable(at)?, update)
        }
        [to, "=", from] => match variable(to) {
            Some(at) => Step::Store(at, number(from)?),
            None => Step::Load(register(to)?, variable(from)?),
        },
        _ => return None,
    })
}

fn variable(name: &str) -> Option<Variable> {
    VARIABLES.iter().position(|known| *known == name)
}

fn register(name: &str) -> Option<Register> {
    name.strip_prefix('r')?.parse().ok().filter(|&register| register < REGISTERS)
}
