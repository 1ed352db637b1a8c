//! Which code tells host and guest apart.
//!
//! Most instructions that do are stopped by the processor: privileged ones, SYSCALL, RDTSC as the stub is set up. What is left is answered
//! by the host's processor, or its kernel, without asking anybody: CPUID, XGETBV, RDPID, those that read descriptors or tell where tables of them are, SYSENTER,
//! and those that know components of the state that the guest has not: XSAVE and XRSTOR in all forms, RDPKRU and WRPKRU. A page
//! that may contain one is not executed directly.
//!
//! All of them are two or three bytes from 0F on, and those bytes are found in displacements and constants, too: in every other page. So
//! where they are found the page is decoded, from each of sixteen places before it. Streams of instructions that begin anywhere soon fall into
//! step; the bytes count as an instruction if any of the streams arrives there. Code in which jumps lead into the middle of what is an
//! instruction otherwise could hide one; what it would learn is what the host's processor is.

use iced_x86::{Decoder, DecoderOptions, Instruction};
use x86::{Mfn, PAGE_SIZE};

use crate::cache::NumberMap;

/// How far before a place streams begin, and how many.
pub(crate) const AHEAD: usize = 256;
const STREAMS: usize = 16;
/// Frames that are remembered.
const FRAMES: usize = 1 << 16;
const PAGE: usize = PAGE_SIZE as usize;

/// A page of code, between what is before it and what is behind.
pub(crate) struct Code {
    bytes: [u8; AHEAD + PAGE + 2],
}

/// What has been found out about frames.
#[derive(Debug, Default)]
pub(crate) struct Verdicts(NumberMap<(u32, bool)>);

impl Verdicts {
    /// Whether the code of a frame was ordinary when it had this version.
    pub(crate) fn find(&self, mfn: Mfn, version: u32) -> Option<bool> {
        self.0.get(&mfn.0).filter(|(then, _)| *then == version).map(|(_, ordinary)| *ordinary)
    }

    /// Notes it.
    pub(crate) fn note(&mut self, mfn: Mfn, version: u32, ordinary: bool) {
        if self.0.len() >= FRAMES {
            self.0.clear();
        }
        self.0.insert(mfn.0, (version, ordinary));
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

    /// Whether nothing in the page tells host and guest apart.
    pub(crate) fn is_ordinary(&self) -> bool {
        // Of what begins at the end, what is behind it is not known: see `is_ordinary_seam`.
        let windows = self.bytes.windows(3).enumerate().skip(AHEAD);
        let mut suspects = windows
            .filter(|(_, window)| <&[u8; 3]>::try_from(*window).is_ok_and(tells_apart))
            .map(|(at, _)| at)
            .peekable();
        if suspects.peek().is_none() {
            return true;
        }
        let begins = self.beginnings();
        let mut reached = suspects.filter(|&at| self.is_reached(at, &begins));
        reached.next().is_none()
    }

    /// Where the instructions of all streams begin.
    fn beginnings(&self) -> [bool; AHEAD + PAGE + 2] {
        let mut begins = [false; AHEAD + PAGE + 2];
        for stream in 0..STREAMS {
            let code = self.bytes.get(stream..).unwrap_or_default();
            let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
            let mut insn = Instruction::default();
            // A stream that has fallen into step with another goes on as that does.
            while let Some(begin) = begins.get_mut(stream + decoder.position()).filter(|begin| !**begin) {
                *begin = true;
                decoder.decode_out(&mut insn);
                if !decoder.can_decode() {
                    break;
                }
            }
        }
        begins
    }

    /// Whether an instruction begins at the 0F at this place, or at prefixes of it.
    fn is_reached(&self, at: usize, begins: &[bool]) -> bool {
        let before = self.bytes.get(..at).unwrap_or_default();
        let prefixes = before.iter().rev().take_while(|byte| is_prefix(**byte)).count();
        begins.get(at - prefixes..=at).is_some_and(|begins| begins.contains(&true))
    }
}

/// Whether nothing that begins in the last two bytes of a page, and goes on in the first two of another, tells host and guest apart.
pub(crate) fn is_ordinary_seam(end: u16, beginning: u16) -> bool {
    let ([first, second], [third, fourth]) = (end.to_le_bytes(), beginning.to_le_bytes());
    !tells_apart(&[first, second, third]) && !tells_apart(&[second, third, fourth])
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
            assert!(!Code::new(None, &page(bytes)).is_ordinary(), "{bytes:02x?}");
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
            assert!(Code::new(None, &page(bytes)).is_ordinary(), "{bytes:02x?}");
        }
    }

    #[test]
    fn one_may_begin_at_the_end_of_a_page() {
        let mut page = [0x90; PAGE];
        page[PAGE - 2..].copy_from_slice(&[0x0f, 0x01]);
        assert!(Code::new(None, &page).is_ordinary());
        let seam = |end, beginning| is_ordinary_seam(u16::from_le_bytes(end), u16::from_le_bytes(beginning));
        assert!(!seam([0x0f, 0x01], [0xd0, 0x90]) && seam([0x0f, 0x01], [0x3f, 0x90]));
        assert!(!seam([0x90, 0x0f], [0xa2, 0x90]) && seam([0x90, 0x0f], [0x05, 0x90]));
    }

    #[test]
    fn what_is_before_the_page_says_what_its_first_bytes_are() {
        let mut page = [0x90; PAGE];
        page[..4].copy_from_slice(&[0x0f, 0xa2, 0x00, 0x00]);
        assert!(!Code::new(None, &page).is_ordinary());
        let mut before = [0x90; AHEAD];
        before[AHEAD - 1] = 0xb8; // mov eax, 0xa20f
        assert!(Code::new(Some(before), &page).is_ordinary());
    }
}
