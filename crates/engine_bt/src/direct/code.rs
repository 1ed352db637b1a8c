//! Which code tells host and guest apart.
//!
//! Most instructions that do are stopped by the processor: privileged ones, SYSCALL, RDTSC as the stub is set up. What is left is answered
//! by the host's processor, or its kernel, without asking anybody: CPUID, XGETBV, RDPID, those that read descriptors or tell where tables of them are, SYSENTER,
//! and those that know components of the state that the guest has not: XSAVE and XRSTOR in all forms, RDPKRU and WRPKRU. A page
//! that may contain one is executed directly only with breakpoints before all of them, of which there are four.
//!
//! All of them are two or three bytes from 0F on, and those bytes are found in displacements and constants, too: in every other page. So
//! where they are found what is before them is decoded, from sixteen places in a row. No instruction is longer than that, so in one of them
//! begins one of those that lead there; and streams of instructions that begin anywhere soon fall into
//! step. The bytes count as an instruction if any of the streams arrives there. Code in which jumps lead into the middle of what is an
//! instruction otherwise could hide one, and a load of SS before one lets it pass a breakpoint; what is learnt by that is what the host's processor is.

use host::stub::BREAKPOINTS;
use iced_x86::{Decoder, DecoderOptions, Instruction};
use x86::{Mfn, PAGE_SIZE};

use crate::cache::NumberMap;

/// Bytes of the page before a page that are looked at.
pub(crate) const AHEAD: usize = 256;
/// How far before a place streams begin, and how many.
const LEAD: usize = 192;
const STREAMS: usize = 16;
/// Bytes of the page behind a page that are looked at: an instruction has no more.
pub(crate) const BEHIND: usize = 15;
/// Places in a page that are looked at; with more it is taken for data.
const SUSPECTS: usize = 64;
/// Frames that are remembered.
const FRAMES: usize = 1 << 16;
const PAGE: usize = PAGE_SIZE as usize;

/// A page of code, between what is before it and what is behind.
pub(crate) struct Code {
    bytes: [u8; AHEAD + PAGE + 2],
}

/// What has been found out about frames.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(NumberMap<(u32, Verdict)>);

/// What is known of a page: where the instructions are that tell host and guest apart, if there are not too many for breakpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    count: u8,
    at: [u16; BREAKPOINTS],
}

impl Verdict {
    /// No breakpoints help.
    pub(crate) const FOREIGN: Self = Self { count: u8::MAX, at: [0; BREAKPOINTS] };
    const ORDINARY: Self = Self { count: 0, at: [0; BREAKPOINTS] };

    fn add(&mut self, offset: u16) {
        match self.at.get_mut(usize::from(self.count)) {
            Some(place) => (*place, self.count) = (offset, self.count + 1),
            None => *self = Self::FOREIGN,
        }
    }

    /// Their offsets in the page; `None` if there are too many.
    pub(crate) fn offsets(&self) -> Option<&[u16]> {
        self.at.get(..usize::from(self.count))
    }
}

impl Verdicts {
    /// What the code of a frame was found to be when it had this version.
    pub(crate) fn find(&self, mfn: Mfn, version: u32) -> Option<Verdict> {
        self.0.get(&mfn.0).filter(|(then, _)| *then == version).map(|(_, verdict)| *verdict)
    }

    /// Notes it.
    pub(crate) fn note(&mut self, mfn: Mfn, version: u32, verdict: Verdict) {
        if self.0.len() >= FRAMES {
            self.0.clear();
        }
        self.0.insert(mfn.0, (version, verdict));
    }
}

impl Code {
    /// The page's bytes, with the last ones of the page before it, as far as they are known.
    pub(crate) fn new(before: Option<[u8; AHEAD]>, page: &[u8; PAGE]) -> Self {
        // NOPs lead on, whatever begins where.
        let mut bytes = [0x90; AHEAD + PAGE + 2];
        bytes[..AHEAD].copy_from_slice(&before.unwrap_or([0x90; AHEAD]));
        bytes[AHEAD..AHEAD + PAGE].copy_from_slice(page);
        Self { bytes }
    }

    /// What tells host and guest apart in the page.
    pub(crate) fn verdict(&self) -> Verdict {
        // Of what begins at the end, what is behind it is not known: see `is_ordinary_seam`.
        let mut verdict = Verdict::ORDINARY;
        for (number, at) in suspects(&self.bytes, AHEAD).enumerate() {
            for place in starts(&self.bytes, at) {
                match place.checked_sub(AHEAD) {
                    Some(offset) => verdict.add(x86::bits::low16(offset as u64)),
                    None => return Verdict::FOREIGN,
                }
            }
            if number >= SUSPECTS || verdict == Verdict::FOREIGN {
                return Verdict::FOREIGN;
            }
        }
        verdict
    }
}

/// The places from this one on where the bytes of such an instruction are.
fn suspects(bytes: &[u8], from: usize) -> impl Iterator<Item = usize> {
    let windows = bytes.windows(3).enumerate().skip(from);
    windows.filter(|(_, window)| <&[u8; 3]>::try_from(*window).is_ok_and(tells_apart)).map(|(at, _)| at)
}

/// Where an instruction begins at the 0F at this place, or at prefixes of it.
fn starts(bytes: &[u8], at: usize) -> Vec<usize> {
    let from = at.saturating_sub(LEAD);
    let bytes = bytes.get(from..).unwrap_or_default();
    let mut begins = [false; LEAD + 1];
    let begins = &mut begins[..=at - from];
    for stream in 0..STREAMS {
        follow(bytes, stream, begins);
    }
    let before = bytes.get(..at - from).unwrap_or_default();
    let prefixes = before.iter().rev().take_while(|byte| is_prefix(**byte)).count();
    (from..=at)
        .zip(begins)
        .filter(|(place, begins)| **begins && place + prefixes >= at)
        .map(|(place, _)| place)
        .collect()
}

/// Notes where instructions begin, from one on, as far as it is asked for.
fn follow(bytes: &[u8], start: usize, begins: &mut [bool]) {
    let mut decoder = Decoder::new(64, bytes.get(start..).unwrap_or_default(), DecoderOptions::NONE);
    let mut insn = Instruction::default();
    // A stream that has fallen into step with another goes on as that does.
    while let Some(begin) = begins.get_mut(start + decoder.position()).filter(|begin| !**begin) {
        *begin = true;
        decoder.decode_out(&mut insn);
        if !decoder.can_decode() {
            return;
        }
    }
}

/// Whether nothing that begins in a page, with these bytes at its end, and goes on in one that begins with those, tells host and guest
/// apart.
pub(crate) fn is_ordinary_seam(end: &[u8; AHEAD], beginning: &[u8; BEHIND]) -> bool {
    // What is behind begins with a NOP.
    let mut bytes = [0x90; AHEAD + BEHIND + 2];
    bytes[..AHEAD].copy_from_slice(end);
    bytes[AHEAD..AHEAD + BEHIND].copy_from_slice(beginning);
    suspects(&bytes, AHEAD - 2).all(|at| starts(&bytes, at).iter().all(|&start| start >= AHEAD))
}

/// Whether these bytes are, or begin, one of the instructions.
fn tells_apart(bytes: &[u8; 3]) -> bool {
    let [0x0f, opcode, modrm] = *bytes else { return false };
    let (register, memory) = (modrm >> 3 & 7, modrm < 0xc0);
    match opcode {
        // LAR, LSL, SYSENTER, CPUID.
        0x02 | 0x03 | 0x34 | 0xa2 => true,
        // SLDT, STR, VERR, VERW.
        0x00 => matches!(register, 0 | 1 | 4 | 5),
        // SGDT, SIDT; SMSW; XGETBV, RDPKRU, WRPKRU.
        0x01 => memory && register < 2 || register == 4 || matches!(modrm, 0xd0 | 0xee | 0xef),
        // XSAVE, XRSTOR, XSAVEOPT.
        0xae => memory && matches!(register, 4..=6),
        // RDPID and RDSEED; XSAVEC.
        0xc7 => register == 7 && !memory || memory && register == 4,
        _ => false,
    }
}

/// Legacy prefixes and REX.
const fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page of NOPs with these bytes in the middle.
    fn page(middle: &[u8]) -> [u8; PAGE] {
        let mut page = [0x90; PAGE];
        page[2000..2000 + middle.len()].copy_from_slice(middle);
        page
    }

    #[test]
    fn instructions_that_ask_what_processor_this_is_are_found() {
        let found: [&[u8]; 16] = [
            &[0x0f, 0x01, 0x07],
            &[0x0f, 0x01, 0xe0],
            &[0x0f, 0x00, 0xc0],
            &[0x0f, 0x00, 0x2f],
            &[0x0f, 0xa2],
            &[0x0f, 0x03, 0xc0],
            &[0x0f, 0x02, 0x07],
            &[0x0f, 0x34],
            &[0x0f, 0x01, 0xd0],
            &[0x0f, 0x01, 0xef],
            &[0xf3, 0x0f, 0xc7, 0xf8],
            &[0xf3, 0x48, 0x0f, 0xc7, 0xff],
            &[0x48, 0x0f, 0xc7, 0x64, 0x24, 0x40],
            &[0x0f, 0xae, 0x27],
            &[0x48, 0x0f, 0xae, 0x37],
            &[0x66, 0x67, 0x48, 0x0f, 0x03, 0x07],
        ];
        for bytes in found {
            assert_eq!(
                Code::new(None, &page(bytes)).verdict().offsets(),
                Some(&[2000_u16][..]),
                "{bytes:02x?}"
            );
        }
    }

    #[test]
    fn others_like_them_are_not() {
        let ordinary: [&[u8]; 8] = [
            &[0xb8, 0x0f, 0x00, 0x00, 0x00], // mov eax, 0xf
            &[0x0f, 0x05],
            &[0x0f, 0x31],
            &[0x0f, 0xae, 0xe8],             // lfence
            &[0x0f, 0xae, 0x1f],             // stmxcsr
            &[0xe8, 0x00, 0x0f, 0x03, 0x00], // call
            &[0xb8, 0x0f, 0xa2, 0x00, 0x00], // mov eax, 0xa20f
            &[0x48, 0x0f, 0xc7, 0x0f],       // cmpxchg16b
        ];
        for bytes in ordinary {
            assert_eq!(Code::new(None, &page(bytes)).verdict(), Verdict::ORDINARY, "{bytes:02x?}");
        }
    }

    #[test]
    fn one_may_begin_at_the_end_of_a_page() {
        let mut page = [0x90; PAGE];
        page[PAGE - 2..].copy_from_slice(&[0x0f, 0x01]);
        assert_eq!(Code::new(None, &page).verdict(), Verdict::ORDINARY);
        let seam = |end: &[u8], beginning: [u8; 2]| {
            let mut tail = [0x90; AHEAD];
            tail[AHEAD - end.len()..].copy_from_slice(end);
            let mut head = [0x90; BEHIND];
            head[..2].copy_from_slice(&beginning);
            is_ordinary_seam(&tail, &head)
        };
        assert!(!seam(&[0x0f, 0x01], [0xd0, 0x90]) && seam(&[0x0f, 0x01], [0x3f, 0x90]));
        assert!(!seam(&[0x90, 0x0f], [0xa2, 0x90]) && seam(&[0x90, 0x0f], [0x05, 0x90]));
        assert!(!seam(&[0xf3, 0x48, 0x0f], [0xc7, 0xf8]), "rdpid rax");
        assert!(seam(&[0xe8, 0x80, 0x00, 0x0f], [0x00, 0x00]), "call");
        assert!(!seam(&[0xf3, 0x2e], [0x0f, 0xa2]) && seam(&[0x90], [0x0f, 0xa2]), "prefixes");
    }

    #[test]
    fn what_is_before_the_page_says_what_its_first_bytes_are() {
        let mut page = [0x90; PAGE];
        page[..4].copy_from_slice(&[0x0f, 0xa2, 0x00, 0x00]);
        assert_eq!(Code::new(None, &page).verdict().offsets(), Some(&[0][..]));
        let mut before = [0x90; AHEAD];
        before[AHEAD - 1] = 0xb8; // mov eax, 0xa20f
        assert_eq!(Code::new(Some(before), &page).verdict(), Verdict::ORDINARY);
        before[AHEAD - 1] = 0x48;
        assert_eq!(
            Code::new(Some(before), &page).verdict(),
            Verdict::FOREIGN,
            "it begins in the page before"
        );
    }

    #[test]
    fn there_may_be_as_many_as_there_are_breakpoints() {
        let cpuid = [0x0f, 0xa2].repeat(5);
        let verdict = |count: usize| Code::new(None, &page(&cpuid[..2 * count])).verdict();
        assert_eq!(verdict(4).offsets(), Some(&[2000, 2002, 2004, 2006][..]));
        assert_eq!(verdict(5).offsets(), None);
    }
}
