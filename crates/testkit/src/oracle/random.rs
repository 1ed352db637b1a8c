//! Random numbers and operands worth trying.
//!
//! Every case has a generator of its own, seeded from the run's seed and the case's index, so that any case can be made again alone.

/// xoshiro256** by Blackman and Vigna, seeded by SplitMix64.
#[derive(Clone, Debug)]
pub struct Random([u64; 4]);

impl Random {
    /// The generator of case `index` of a run.
    pub fn new(seed: u64, index: u64) -> Self {
        let mut state = seed ^ index.wrapping_mul(0xd134_2543_de82_ef95);
        Self([(); 4].map(|()| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let z = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ z >> 31
        }))
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        let s = &mut self.0;
        let result = s[1].wrapping_mul(5).rotate_left(7).wrapping_mul(9);
        let t = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= t;
        s[3] = s[3].rotate_left(45);
        result
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// An integer that is often near a corner.
    pub fn integer(&mut self) -> u64 {
        let width = self.pick(&[8, 16, 32, 64]);
        let corner = match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << (width - 1),
            3 => (1 << (width - 1)) - 1,
            4 => 1 << self.below(64),
            5 => self.below(256),
            _ => return self.bits(),
        };
        corner.wrapping_add(self.below(5)).wrapping_sub(2)
    }

    /// The bits of a floating-point number of `exponent` and `fraction` bits, often near a corner.
    fn float(&mut self, exponent: u32, fraction: u32) -> u64 {
        let sign = self.below(2) << (exponent + fraction);
        let top = (1 << exponent) - 1;
        let random_fraction = self.bits() & ((1 << fraction) - 1);
        let (e, f) = match self.below(12) {
            0 => (0, 0),
            1 => (top, 0),
            2 => (top, random_fraction | 1),
            3 => (top, random_fraction | 1 << (fraction - 1)),
            4 => (0, random_fraction),
            5 => (0, 1),
            6 => (top - 1, (1 << fraction) - 1),
            7 => (1, 0),
            8 => (top / 2, 0),
            9 | 10 => {
                (top / 2 - 4 + self.below(70), random_fraction & self.pick(&[u64::MAX, !0xff, !0 << 12]))
            }
            _ => (self.below(top), random_fraction),
        };
        sign | (e & top) << fraction | f & ((1 << fraction) - 1)
    }

    /// Eight bytes of some kind: integers, or one double, two singles, four halves.
    pub fn lane(&mut self) -> u64 {
        match self.below(5) {
            0 => self.bits(),
            1 => self.integer(),
            2 => self.float(8, 23) | self.float(8, 23) << 32,
            3 => self.float(11, 52),
            _ => (0..4).fold(0, |lanes, _| lanes << 16 | self.float(5, 10)),
        }
    }

    /// The contents of a YMM register, of one kind throughout or mixed.
    pub fn vector(&mut self) -> [u128; 2] {
        let mut lanes = [0; 4];
        let kind = self.below(4);
        for lane in &mut lanes {
            *lane = match kind {
                0 => self.float(8, 23) | self.float(8, 23) << 32,
                1 => self.float(11, 52),
                2 => self.integer(),
                _ => self.lane(),
            };
        }
        [0, 2].map(|i: usize| u128::from(lanes[i]) | u128::from(lanes[i + 1]) << 64)
    }

    /// An 80-bit floating-point number, unsupported encodings included.
    pub fn extended(&mut self) -> u128 {
        let sign = self.below(2) << 15;
        let (exponent, mantissa) = match self.below(14) {
            0 => (0, 0),
            1 => (0x7fff, 1 << 63),
            2 => (0x7fff, 3 << 62 | self.bits() >> 2),
            3 => (0x7fff, 1 << 63 | self.bits() >> 2 | 1),
            4 => (0, self.bits() >> 1),
            5 => (0, self.bits() | 1 << 63),
            6 => (self.below(0x8000), self.bits() >> 1),
            7 => (0x3fff, 1 << 63),
            8 => (0x3fff + self.below(70), self.bits() | 1 << 63),
            9 => (0x3fff - self.below(70), self.bits() | 1 << 63),
            10 => (0x3fff + self.below(64), (self.below(1 << 20) | 1 << 20) << 43),
            11 => (
                self.pick(&[0x3fff - 1023, 0x3fff - 127, 0x3fff + 127, 0x3fff + 1023, 1, 0x7ffe]),
                self.bits() | 1 << 63,
            ),
            12 => (0xffff, self.bits()),
            _ => (self.below(0x7fff), self.bits() | 1 << 63),
        };
        u128::from(sign | exponent & 0x7fff) << 64 | u128::from(mantissa)
    }

    /// RFLAGS as user code may have them.
    pub fn flags(&mut self) -> u64 {
        use x86::rflags::{AC, DF, FIXED, IF, STATUS};
        let down = if self.one_in(4) { DF } else { 0 };
        let checked = if self.one_in(16) { AC } else { 0 };
        self.bits() & STATUS | down | checked | IF | FIXED
    }

    /// MXCSR: mostly everything masked.
    pub fn mxcsr(&mut self) -> u32 {
        let mode = (self.bits() as u32) & 0xe07f;
        let mode = if self.one_in(2) { mode & 0x6000 } else { mode };
        let masks = if self.one_in(10) { (self.bits() as u32) & 0x1f80 } else { 0x1f80 };
        mode | masks
    }
}
