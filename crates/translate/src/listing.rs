//! For tests: what a single instruction is translated to.

use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};

use crate::{Block, Exit, HostFeatures, Mode, Source, Translator};

/// Where in its page the instruction is.
pub(crate) const AT: u16 = 0x123;

/// The translation of an instruction and a HLT.
pub(crate) fn block(mode: Mode, bytes: &[u8]) -> Block {
    let mut code = bytes.to_vec();
    code.push(0xf4);
    let host = HostFeatures { bmi2: true };
    let source = Source {
        code: &code,
        offset: AT,
        mode,
        offered: &|_| true,
        host,
        linear: 0,
        seed: 0,
        check: None,
        lodgers: true,
    };
    Translator::default().translate(&source).unwrap()
}

/// The host's instructions, as assembly.
pub(crate) fn text(mode: Mode, bytes: &[u8]) -> Vec<String> {
    let block = block(mode, bytes);
    let mut formatter = NasmFormatter::new();
    let decoder = Decoder::with_ip(64, &block.code, 0, DecoderOptions::NONE);
    let format = |insn| {
        let mut out = String::new();
        formatter.format(&insn, &mut out);
        out
    };
    decoder.into_iter().map(format).collect()
}

/// Where the instruction can leave.
pub(crate) fn exits(mode: Mode, bytes: &[u8]) -> Vec<Exit> {
    let block = block(mode, bytes);
    block.sites.iter().filter(|site| site.guest == AT).map(|site| site.exit).collect()
}
