//! Reference semantics of every instruction and mode
