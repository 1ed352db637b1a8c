//! The description of a VM: typed, validated, pure
