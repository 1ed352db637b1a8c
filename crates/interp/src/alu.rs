//! Integer arithmetic and the flags it sets, as pure functions.
//!
//! Values travel zero-extended in `u64`; `W` gives the operand width as a constant, so that each instance compiles to
//! a handful of instructions. Results come with exactly the status flags that SDM vol. 1, appendix A defines; where
//! the manual leaves a flag undefined the value is the one current processors give, if that has a simple form.

use x86::rflags::{AF, CF, OF, PF, SF, ZF};

use crate::width::Width;

/// A result with its status flags.
pub(crate) type Flagged = (u64, u64);

/// PF, ZF and SF of a result.
#[inline(always)]
pub(crate) fn szp<W: Width>(result: u64) -> u64 {
    let low = result & 0xff;
    // A 16-bit table of the parities of all nibbles.
    let parity = 0x9669 >> ((low ^ low >> 4) & 0xf) & 1;
    let zero = u64::from(result == 0);
    let sign = result >> (W::BITS - 1) & 1;
    parity << 2 | zero << 6 | sign << 7
}

#[inline(always)]
fn top<W: Width>(bits: u64) -> u64 {
    bits >> (W::BITS - 1) & 1
}

/// `a + b + carry`.
#[inline(always)]
pub(crate) fn add<W: Width>(a: u64, b: u64, carry: u64) -> Flagged {
    let r = a.wrapping_add(b).wrapping_add(carry) & W::MASK;
    let carries = a & b | (a | b) & !r;
    let overflow = (a ^ r) & (b ^ r);
    (r, szp::<W>(r) | top::<W>(carries) | (carries >> 3 & 1) << 4 | top::<W>(overflow) << 11)
}

/// `a - b - borrow`.
#[inline(always)]
pub(crate) fn sub<W: Width>(a: u64, b: u64, borrow: u64) -> Flagged {
    let r = a.wrapping_sub(b).wrapping_sub(borrow) & W::MASK;
    let borrows = !a & b | (!a | b) & r;
    let overflow = (a ^ b) & (a ^ r);
    (r, szp::<W>(r) | top::<W>(borrows) | (borrows >> 3 & 1) << 4 | top::<W>(overflow) << 11)
}

/// The flags of AND, OR, XOR and TEST: CF and OF clear, AF undefined (clear).
#[inline(always)]
pub(crate) fn logic<W: Width>(r: u64) -> Flagged {
    (r, szp::<W>(r))
}

/// Flags that a shift or rotate writes, and their values. A count of zero writes none.
pub(crate) struct Shifted {
    pub(crate) result: u64,
    pub(crate) written: u64,
    pub(crate) flags: u64,
}

impl Shifted {
    fn unchanged(a: u64) -> Self {
        Self { result: a, written: 0, flags: 0 }
    }
}

const SHIFT_FLAGS: u64 = CF | PF | AF | ZF | SF | OF;

/// SHL. `count` is already masked to 5 or 6 bits.
pub(crate) fn shl<W: Width>(a: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let wide = u128::from(a) << count;
    let result = x86::bits::low64(wide) & W::MASK;
    let carry = x86::bits::low64(wide >> W::BITS) & 1;
    let overflow = top::<W>(result) ^ carry;
    Shifted { result, written: SHIFT_FLAGS, flags: szp::<W>(result) | carry | overflow << 11 }
}

/// SHR.
pub(crate) fn shr<W: Width>(a: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let carry = if count <= W::BITS { a >> (count - 1) & 1 } else { 0 };
    let result = if count >= W::BITS { 0 } else { a >> count };
    // OF is defined for a count of one only: the operand's sign.
    let overflow = if count == 1 { top::<W>(a) } else { 0 };
    Shifted { result, written: SHIFT_FLAGS, flags: szp::<W>(result) | carry | overflow << 11 }
}

/// SAR.
pub(crate) fn sar<W: Width>(a: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let wide = x86::bits::sign_extend(a, W::BITS).cast_signed();
    let carry = (wide >> (count - 1).min(63)).cast_unsigned() & 1;
    let result = (wide >> count.min(63)).cast_unsigned() & W::MASK;
    Shifted { result, written: SHIFT_FLAGS, flags: szp::<W>(result) | carry }
}

/// ROL. Writes CF and OF only.
pub(crate) fn rol<W: Width>(a: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let n = count % W::BITS;
    let result = if n == 0 { a } else { (a << n | a >> (W::BITS - n)) & W::MASK };
    let carry = result & 1;
    Shifted { result, written: CF | OF, flags: carry | (top::<W>(result) ^ carry) << 11 }
}

/// ROR. Writes CF and OF only.
pub(crate) fn ror<W: Width>(a: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let n = count % W::BITS;
    let result = if n == 0 { a } else { (a >> n | a << (W::BITS - n)) & W::MASK };
    let carry = top::<W>(result);
    let overflow = carry ^ result >> (W::BITS - 2) & 1;
    Shifted { result, written: CF | OF, flags: carry | overflow << 11 }
}

/// RCL through `carry`. Writes CF and OF only.
pub(crate) fn rcl<W: Width>(a: u64, count: u32, carry: u64) -> Shifted {
    let n = count % (W::BITS + 1);
    if n == 0 {
        // A full turn of a narrow operand: nothing moves, though OF is undefined.
        return Shifted::unchanged(a);
    }
    let ring = u128::from(carry) << W::BITS | u128::from(a);
    let turned = ring << n | ring >> (W::BITS + 1 - n);
    let result = x86::bits::low64(turned) & W::MASK;
    let carry = x86::bits::low64(turned >> W::BITS) & 1;
    Shifted { result, written: CF | OF, flags: carry | (top::<W>(result) ^ carry) << 11 }
}

/// RCR through `carry`. Writes CF and OF only.
pub(crate) fn rcr<W: Width>(a: u64, count: u32, carry: u64) -> Shifted {
    let n = count % (W::BITS + 1);
    if n == 0 {
        return Shifted::unchanged(a);
    }
    let ring = u128::from(carry) << W::BITS | u128::from(a);
    let turned = ring >> n | ring << (W::BITS + 1 - n);
    let result = x86::bits::low64(turned) & W::MASK;
    let carry = x86::bits::low64(turned >> W::BITS) & 1;
    let overflow = top::<W>(result) ^ result >> (W::BITS - 2) & 1;
    Shifted { result, written: CF | OF, flags: carry | overflow << 11 }
}

/// SHLD: shifts `a` up and fills from the top of `fill`. Counts above the width (16-bit operands only) are undefined
/// by the manual; processors then go on with the pattern `fill:a:fill`.
pub(crate) fn shld<W: Width>(a: u64, fill: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let b = W::BITS;
    let (result, carry) = if count <= b {
        let wide = u128::from(a) << b | u128::from(fill);
        let wide = wide << count;
        (x86::bits::low64(wide >> b) & W::MASK, carry_out(u128::from(a) << count, b))
    } else {
        let wide = (u128::from(fill) << b | u128::from(a)) << (count - b);
        (x86::bits::low64(wide >> b) & W::MASK, carry_out(u128::from(fill) << (count - b), b))
    };
    let overflow = top::<W>(a ^ result);
    Shifted { result, written: SHIFT_FLAGS, flags: szp::<W>(result) | carry | overflow << 11 }
}

/// SHRD: shifts `a` down and fills from the bottom of `fill`.
pub(crate) fn shrd<W: Width>(a: u64, fill: u64, count: u32) -> Shifted {
    if count == 0 {
        return Shifted::unchanged(a);
    }
    let b = W::BITS;
    let (low, high, n) = if count <= b { (a, fill, count) } else { (fill, a, count - b) };
    let wide = u128::from(high) << b | u128::from(low);
    let result = x86::bits::low64(wide >> n) & W::MASK;
    let carry = x86::bits::low64(wide >> (n - 1)) & 1;
    let overflow = top::<W>(a ^ result);
    Shifted { result, written: SHIFT_FLAGS, flags: szp::<W>(result) | carry | overflow << 11 }
}

fn carry_out(wide: u128, bits: u32) -> u64 {
    x86::bits::low64(wide >> bits) & 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addition_carries_and_overflows() {
        assert_eq!(add::<u8>(0xff, 1, 0), (0, CF | PF | AF | ZF));
        assert_eq!(add::<u8>(0x7f, 1, 0), (0x80, AF | SF | OF));
        assert_eq!(add::<u64>(u64::MAX, 0, 1), (0, CF | PF | AF | ZF));
    }

    #[test]
    fn subtraction_borrows() {
        assert_eq!(sub::<u32>(0, 1, 0), (0xffff_ffff, CF | PF | AF | SF));
        assert_eq!(sub::<u16>(0x8000, 1, 0), (0x7fff, PF | AF | OF));
        assert_eq!(sub::<u8>(5, 5, 0), (0, PF | ZF));
    }

    #[test]
    fn shifts_at_the_edges() {
        assert_eq!(shl::<u32>(0x8000_0000, 1).flags & (CF | OF), CF | OF);
        assert_eq!(shr::<u8>(0x80, 8).flags & CF, CF);
        assert_eq!(sar::<u8>(0x80, 31).result, 0xff);
        assert_eq!(shl::<u8>(1, 0).written, 0);
        assert_eq!(rcl::<u8>(0x80, 1, 1).result, 1);
        assert_eq!(shld::<u32>(0x1, 0x8000_0000, 1).result, 3);
        assert_eq!(shrd::<u64>(0, 1, 1).result, 1 << 63);
    }
}
