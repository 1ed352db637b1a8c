//! `umbra debug`: a look inside, without a VM.

use anyhow::{Context, Result, anyhow, ensure};
use translate::{HostFeatures, Mode, Source};

use crate::args::{BlockArgs, DebugWhat, Whose};
use crate::status::Status;
use crate::{documents, number};

/// Shows what was asked for.
///
/// # Errors
/// If it cannot be had.
pub(crate) fn run(what: &DebugWhat) -> Result<Status> {
    match what {
        DebugWhat::Block(args) => documents::print(&block(args)?),
    }
}

fn block(args: &BlockArgs) -> Result<String> {
    let code = code(args)?;
    let in_page = usize::try_from(args.at & x86::PAGE_MASK)?;
    let room = usize::try_from(x86::PAGE_SIZE)? - in_page;
    let source = Source {
        code: code.get(..room).unwrap_or(&code),
        offset: u16::try_from(in_page)?,
        mode: mode(args),
        // Of any CPU model: what the model lacks is left to the interpreter, which raises #UD.
        offered: &|_| true,
        host: HostFeatures { bmi2: host::cpu::has_bmi2() },
        linear: args.at,
        seed: 0,
        check: None,
        lodgers: true,
    };
    let listing = translate::side_by_side(&source);
    listing.context("the first instruction does not lie in its page as a whole: the interpreter executes it")
}

/// The bytes, from where the block begins.
fn code(args: &BlockArgs) -> Result<Vec<u8>> {
    let code = match &args.file {
        None => number::bytes(&args.code).map_err(|sentence| anyhow!(sentence))?,
        Some(path) => {
            let bytes = std::fs::read(path).with_context(|| format!("cannot read '{}'", path.display()))?;
            let rest = usize::try_from(args.offset).ok().and_then(|offset| bytes.get(offset..));
            rest.with_context(|| format!("'{}' is shorter than --offset", path.display()))?.to_vec()
        }
    };
    ensure!(!code.is_empty(), "there is no code to translate");
    Ok(code)
}

/// The mode in which a Linux guest runs such code.
fn mode(args: &BlockArgs) -> Mode {
    let user = match args.mode {
        Some(whose) => whose != Whose::Kernel,
        None => args.at >> 63 == 0,
    };
    let compat = args.mode == Some(Whose::User32);
    [Mode::SSE, Mode::AVX, Mode::TSC, Mode::FSGSBASE, Mode::SYSCALL]
        .into_iter()
        .fold(Mode::new().with(Mode::USER, user), |mode, bit| mode.with(bit, true))
        .with(Mode::COMPAT.with(Mode::GS, true), compat)
}
