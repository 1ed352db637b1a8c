//! Cases, and how they are read from text. [`super`] describes the format.

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter, OpKind};
use iced_x86::{SymbolResolver, SymbolResult};
use x86::exception::vector;

use super::expr::{Labels, evaluate};
use super::layout::Preset;

/// One case.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) name: String,
    /// The line of its name.
    pub(super) line: usize,
    pub(super) preset: Preset,
    /// Which processor of the machine it is.
    pub(super) vcpu: u32,
    /// What is asked of the CPU model, as after `--cpu`.
    pub(super) cpu: Vec<String>,
    pub(super) assignments: Vec<Statement>,
    pub(super) sections: Vec<Section>,
    pub(super) labels: Labels,
    /// Pending from the start.
    pub(super) events: Vec<Arrival>,
    /// Arriving once the vCPU has halted.
    pub(super) later: Vec<Arrival>,
    pub(super) outcome: Outcome,
    pub(super) checks: Vec<Statement>,
}

/// `target operator value`, to be done or to be checked.
#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: usize,
    pub(super) target: String,
    pub(super) operator: String,
    pub(super) value: String,
}

/// Code at an address.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) line: usize,
    /// The linear address; the first section's is where execution begins.
    pub(super) at: u64,
    /// 16, 32 or 64; by the starting state if not given.
    pub(super) bits: Option<u32>,
    pub(super) lines: Vec<CodeLine>,
}

/// One instruction, or some data between them.
#[derive(Debug)]
pub(super) struct CodeLine {
    pub(super) line: usize,
    pub(super) bytes: Vec<u8>,
    /// The assembly; `data` or `data: remark` if the bytes are not to be looked at.
    pub(super) text: String,
}

/// What arrives from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Init,
    /// A start-up IPI with its page.
    Startup(u8),
    Nmi,
    Interrupt(u8),
}

/// How a case comes to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It reaches the HLT behind its code (in ring 3: the #GP(0) that HLT is there).
    Ends { at: u64 },
    /// An exception, whose frame says `at`.
    Raises { vector: u8, error: Option<u32>, cr2: Option<u64>, at: u64 },
    /// A trap or interrupt without an error code, likewise.
    Takes { vector: u8, at: u64 },
    /// It halts at an address of its own.
    Halts { at: u64 },
    /// A triple fault.
    ShutsDown,
    /// It waits for a start-up IPI.
    Waits,
}

/// Why a file of cases cannot be read.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) line: usize,
    pub(super) message: String,
}

impl Mistake {
    pub(super) fn new(line: usize, message: impl Into<String>) -> Self {
        Self { line, message: message.into() }
    }
}

/// The mnemonics of exceptions.
const EXCEPTIONS: &[(&str, u8)] = &[
    ("#DE", vector::DE),
    ("#DB", vector::DB),
    ("#BP", vector::BP),
    ("#OF", vector::OF),
    ("#BR", vector::BR),
    ("#UD", vector::UD),
    ("#NM", vector::NM),
    ("#DF", vector::DF),
    ("#TS", vector::TS),
    ("#NP", vector::NP),
    ("#SS", vector::SS),
    ("#GP", vector::GP),
    ("#PF", vector::PF),
    ("#MF", vector::MF),
    ("#AC", vector::AC),
    ("#XM", vector::XM),
];

/// The mnemonic of a vector, or its number.
pub(super) fn vector_name(vector: u8) -> String {
    match EXCEPTIONS.iter().find(|(_, v)| *v == vector) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("vector {vector:#x}"),
    }
}

/// Reads a file of cases.
pub(super) fn parse(text: &str) -> Result<Vec<Case>, Mistake> {
    let mut cases = Vec::new();
    let mut block: Option<Block<'_>> = None;
    for (number, raw) in (1..).zip(text.lines()) {
        let line = raw.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(name) = line.strip_prefix("== ") {
            cases.extend(block.take().map(Block::finish).transpose()?);
            block = Some(Block::new(name, number));
        } else {
            block
                .as_mut()
                .ok_or_else(|| Mistake::new(number, "a case begins with '== name'"))?
                .line(number, line)?;
        }
    }
    cases.extend(block.map(Block::finish).transpose()?);
    Ok(cases)
}

/// A case being read.
struct Block<'a> {
    name: &'a str,
    line: usize,
    cited: bool,
    preset: Option<Preset>,
    vcpu: u32,
    cpu: Vec<String>,
    assignments: Vec<Statement>,
    sections: Vec<Section>,
    labels: Labels,
    events: Vec<Arrival>,
    later: Vec<Arrival>,
    outcome: Option<(usize, &'a str)>,
    checks: Vec<Statement>,
}

impl<'a> Block<'a> {
    fn new(name: &'a str, line: usize) -> Self {
        Self {
            name,
            line,
            cited: false,
            preset: None,
            vcpu: 0,
            cpu: Vec::new(),
            assignments: Vec::new(),
            sections: Vec::new(),
            labels: Labels::new(),
            events: Vec::new(),
            later: Vec::new(),
            outcome: None,
            checks: Vec::new(),
        }
    }

    fn line(&mut self, number: usize, line: &'a str) -> Result<(), Mistake> {
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let mistake = |message: String| Mistake::new(number, message);
        match word {
            "cite" => self.cited = !rest.is_empty(),
            "start" => {
                let preset = Preset::by_name(rest);
                self.preset = Some(preset.ok_or_else(|| mistake(format!("'{rest}' is no preset")))?);
            }
            "cpu" => self.cpu.push(rest.to_owned()),
            "vcpu" => self.vcpu = rest.parse().map_err(|_| mistake(format!("'{rest}' is no number")))?,
            "set" => self.assignments.extend(statements(number, rest, &["|=", "&=", "^=", "="])?),
            "check" => self.checks.extend(statements(number, rest, &[" has ", " lacks ", "!=", "="])?),
            "event" => self.events.push(arrival(rest, &self.labels).map_err(mistake)?),
            "later" => self.later.push(arrival(rest, &self.labels).map_err(mistake)?),
            "code" => self.section(number, rest)?,
            "ends" | "raises" | "takes" | "halts" | "shuts" | "waits" => self.outcome = Some((number, line)),
            _ => self.code(number, line)?,
        }
        Ok(())
    }

    /// `code`, `code at X`, `code 32 at X`.
    fn section(&mut self, number: usize, rest: &str) -> Result<(), Mistake> {
        let (bits, at) = match rest.split_once("at ") {
            Some((bits, at)) => (bits.trim(), at),
            None => (rest, "CODE"),
        };
        let at = evaluate(at, &self.labels).map_err(|message| Mistake::new(number, message))?;
        let bits = match bits {
            "" => None,
            "16" => Some(16),
            "32" => Some(32),
            "64" => Some(64),
            _ => return Err(Mistake::new(number, format!("'{bits}' is not 16, 32 or 64"))),
        };
        self.sections.push(Section { line: number, at, bits, lines: Vec::new() });
        Ok(())
    }

    /// An instruction, or a label before it.
    fn code(&mut self, number: usize, line: &str) -> Result<(), Mistake> {
        let unknown = || Mistake::new(number, format!("'{line}' is not understood"));
        let section = self.sections.last_mut().ok_or_else(unknown)?;
        if let Some(label) = line.strip_suffix(':') {
            self.labels.insert(label.to_owned(), section.end());
            return Ok(());
        }
        let (hex, text) = line.split_once("  ").ok_or_else(unknown)?;
        let bytes: Result<Vec<u8>, _> =
            hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16)).collect();
        let bytes = bytes.map_err(|_| unknown())?;
        section.lines.push(CodeLine { line: number, bytes, text: text.trim().to_owned() });
        Ok(())
    }

    fn finish(self) -> Result<Case, Mistake> {
        let missing = |what: &str| Mistake::new(self.line, format!("'{}' has no {what}", self.name));
        if !self.cited {
            return Err(missing("citation"));
        }
        let preset = self.preset.ok_or_else(|| missing("starting state"))?;
        let first = self.sections.first().ok_or_else(|| missing("code"))?;
        let last = first.lines.last().ok_or_else(|| missing("code"))?;
        let mut labels = self.labels;
        let end = first.end();
        labels.insert("start".into(), first.at);
        labels.insert("last".into(), end - last.bytes.len() as u64);
        labels.insert("end".into(), end);
        let (number, text) =
            self.outcome.ok_or_else(|| Mistake::new(self.line, format!("'{}' has no outcome", self.name)))?;
        let outcome = outcome(text, &labels).map_err(|message| Mistake::new(number, message))?;
        Ok(Case {
            name: self.name.to_owned(),
            line: self.line,
            preset,
            vcpu: self.vcpu,
            cpu: self.cpu,
            assignments: self.assignments,
            sections: self.sections,
            labels,
            events: self.events,
            later: self.later,
            outcome,
            checks: self.checks,
        })
    }
}

/// Splits `a = 1, b |= 2`.
fn statements(line: usize, text: &str, operators: &[&str]) -> Result<Vec<Statement>, Mistake> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    let statement = |part: &str| {
        let found =
            operators.iter().find_map(|o| part.split_once(o).map(|(target, value)| (target, o, value)));
        let (target, operator, value) =
            found.ok_or_else(|| Mistake::new(line, format!("'{part}' has no operator")))?;
        Ok(Statement {
            line,
            target: target.trim().to_owned(),
            operator: operator.trim().to_owned(),
            value: value.trim().to_owned(),
        })
    };
    parts.map(statement).collect()
}

fn arrival(text: &str, labels: &Labels) -> Result<Arrival, String> {
    let (kind, number) = text.split_once(' ').unwrap_or((text, "0"));
    let number = u8::try_from(evaluate(number, labels)?).map_err(|e| e.to_string())?;
    Ok(match kind {
        "init" => Arrival::Init,
        "startup" => Arrival::Startup(number),
        "nmi" => Arrival::Nmi,
        "interrupt" => Arrival::Interrupt(number),
        _ => return Err(format!("'{text}' is no event")),
    })
}

/// Parses the line that says how a case ends.
fn outcome(text: &str, labels: &Labels) -> Result<Outcome, String> {
    let value = |text: &str| evaluate(text, labels);
    let (what, place) = match text.split_once(" at ") {
        Some((what, place)) => (what.trim(), Some(value(place)?)),
        None => (text, None),
    };
    let (verb, rest) = what.split_once(' ').unwrap_or((what, ""));
    match verb {
        "ends" => Ok(Outcome::Ends { at: place.unwrap_or(labels["end"]) }),
        "halts" => Ok(Outcome::Halts { at: place.ok_or("halts where?")? }),
        "shuts" => Ok(Outcome::ShutsDown),
        "waits" => Ok(Outcome::Waits),
        "takes" => {
            let vector = u8::try_from(value(rest)?).map_err(|e| e.to_string())?;
            Ok(Outcome::Takes { vector, at: place.ok_or("takes it where?")? })
        }
        _ => raises(rest, place.unwrap_or(labels["last"]), labels),
    }
}

/// `#UD`, `#GP(0)`, `#PF(P | W) cr2 DATA`.
fn raises(text: &str, at: u64, labels: &Labels) -> Result<Outcome, String> {
    let (exception, cr2) = match text.split_once(" cr2 ") {
        Some((exception, cr2)) => (exception.trim(), Some(evaluate(cr2, labels)?)),
        None => (text, None),
    };
    let (name, error) = match exception.split_once('(') {
        Some((name, code)) => {
            let code = code.strip_suffix(')').ok_or("the error code's parenthesis is not closed")?;
            (name, Some(u32::try_from(evaluate(code, labels)?).map_err(|e| e.to_string())?))
        }
        None => (exception, None),
    };
    let found = EXCEPTIONS.iter().find(|(known, _)| *known == name);
    let &(_, vector) = found.ok_or_else(|| format!("'{name}' is no exception"))?;
    if has_error_code(vector) != error.is_some() {
        return Err(format!("{name} {} an error code", if error.is_some() { "has not" } else { "has" }));
    }
    if (vector == vector::PF) != cr2.is_some() {
        return Err("#PF, and nothing else, says what CR2 is".into());
    }
    Ok(Outcome::Raises { vector, error, cr2, at })
}

/// Whether an exception pushes an error code (SDM vol. 3, table 6-1).
pub(super) fn has_error_code(vector: u8) -> bool {
    matches!(vector, vector::DF | vector::TS..=vector::PF | vector::AC)
}

impl Section {
    /// The address behind it.
    pub(super) fn end(&self) -> u64 {
        self.at + self.bytes().len() as u64
    }

    /// All of its bytes.
    pub(super) fn bytes(&self) -> Vec<u8> {
        self.lines.iter().flat_map(|line| line.bytes.iter().copied()).collect()
    }

    /// Checks that the bytes are what the text beside them says. `base` is the code segment's.
    pub(super) fn verify(&self, bits: u32, base: u64, labels: &Labels) -> Result<(), Mistake> {
        let names = Names { labels: labels.clone(), base };
        let mut formatter = NasmFormatter::with_options(Some(Box::new(names)), None);
        let options = formatter.options_mut();
        options.set_space_after_operand_separator(true);
        options.set_hex_prefix("0x");
        options.set_hex_suffix("");
        options.set_uppercase_hex(false);
        options.set_show_branch_size(false);
        let mut at = self.at - base;
        for line in &self.lines {
            if !line.text.starts_with("data") {
                let mut decoder = Decoder::with_ip(bits, &line.bytes, at, DecoderOptions::NO_WBNOINVD);
                let instruction = decoder.decode();
                let mut text = String::new();
                formatter.format(&instruction, &mut text);
                if text != line.text || instruction.len() != line.bytes.len() {
                    let message = format!("{:02x?} is '{text}', not '{}'", line.bytes, line.text);
                    return Err(Mistake::new(line.line, message));
                }
            }
            at += line.bytes.len() as u64;
        }
        Ok(())
    }
}

/// Names the targets of near branches.
struct Names {
    labels: Labels,
    base: u64,
}

impl SymbolResolver for Names {
    fn symbol(
        &mut self,
        instruction: &Instruction,
        _: u32,
        operand: Option<u32>,
        address: u64,
        _: u32,
    ) -> Option<SymbolResult<'_>> {
        let kind = instruction.op_kind(operand?);
        if !matches!(kind, OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64) {
            return None;
        }
        let linear = address.wrapping_add(self.base);
        // Of several labels the first by name, so that the text is always the same.
        let (name, _) = self.labels.iter().filter(|(_, at)| **at == linear).min()?;
        Some(SymbolResult::with_str(address, name))
    }
}
