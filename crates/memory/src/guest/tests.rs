//! Guest memory as a whole.
