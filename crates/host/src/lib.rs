//! The only crate that talks to Linux: memfd, mappings, signals, clocks, code memory
