//! The network with smoltcp as its guest: another's TCP judges ours.

#![allow(clippy::cast_possible_truncation)]

mod flows;
mod guest;
pub(super) mod trouble;
