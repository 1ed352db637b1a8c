//! Data structures in the making: bytes at offsets, zeros elsewhere.

/// A structure.
pub(crate) struct Page(Vec<u8>);

impl Page {
    /// So many zeros.
    pub(crate) fn new(bytes: usize) -> Self {
        Self(vec![0; bytes])
    }

    /// Puts bytes at an offset, as far as there is room.
    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) -> &mut Self {
        for (place, byte) in self.0.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
        self
    }

    /// Puts text of a fixed length, with spaces behind it.
    pub(crate) fn text(&mut self, at: usize, len: usize, text: &str) -> &mut Self {
        self.put(at, format!("{text:len$.len$}").as_bytes())
    }

    /// The structure.
    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}
