//! Machine frames. (being written)

/// The only road to guest bytes.
pub struct GuestMemory {}
