//! From guest code to host code, as pure functions: bytes and a mode go in, bytes, relocations and side tables come
//! out. Nothing here executes anything or knows where anything will lie.
//!
//! Where things are:
//!
//! - [`block`](Block): what goes in and what comes out; [`context`]: what the code finds at run time, behind GS;
//! - `host`: which host register holds which guest register;
//! - `emit`: flags, exits, and the check before every memory access;
//! - `bridge`: direct jumps to other pages;
//! - `copy` and `catalogue`: instructions that run as they are; `special`, `stack`, `strings`, `mxcsr`, `clock`, `branch`,
//!   `system`, `iret`: those that do not; `x87`: those whose registers are the x87 unit's, MMX included;
//! - `self_check`: blocks of pages whose code changes too often to be watched;
//! - `groups` and `steady`: accesses that share a check, in a block and over the turns of a loop;
//! - `compat`: what is different in compatibility mode;
//! - `asm`: the bytes of the translator's own sequences;
//! - `side_by_side`: a block for people to read.
//!
//! Translated code is a copy of the guest's with other register names wherever that is possible: decoded once, written
//! once, no intermediate form.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod again;
mod asm;
mod block;
mod branch;
mod bridge;
mod catalogue;
mod clock;
mod compat;
pub mod context;
mod copy;
mod emit;
mod facts;
mod flags;
mod groups;
pub mod host;
mod iret;
#[cfg(test)]
mod listing;
mod lodgers;
mod mxcsr;
mod pause;
mod rip;
pub mod routines;
mod self_check;
mod side_by_side;
mod special;
mod stack;
mod steady;
mod strings;
mod survey;
mod system;
mod translate;
mod x87;

pub use block::{Block, Exit, Form, HostFeatures, MOST_CODE, Mode, SelfCheck, Site, Source, UNFORESEEN, Way};
pub use context::Context;
pub use routines::{Routines, routines};
pub use side_by_side::side_by_side;
pub use translate::Translator;
