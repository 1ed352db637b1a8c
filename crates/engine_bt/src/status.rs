//! Status flags as translated code keeps them in memory: AH as LAHF stores them, AL the overflow flag.

use x86::rflags::{OF, STATUS};

/// From RFLAGS.
pub(crate) const fn to_ax(rflags: u64) -> u64 {
    (rflags & STATUS & 0xff) << 8 | (rflags & OF != 0) as u64
}

/// To the status flags of RFLAGS.
pub(crate) const fn from_ax(ax: u64) -> u64 {
    ax >> 8 & STATUS & 0xff | if ax & 1 != 0 { OF } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for bits in 0..0x1000 {
            assert_eq!(from_ax(to_ax(bits)), bits & STATUS);
        }
    }
}
