//! Virtio devices (VIRTIO 1.2), reached over PCI.
//!
//! | module | concept |
//! |---|---|
//! | [`queue`] | virtqueues, split and packed: chains of buffers in, chains out |
//! | [`service`] | what a device does, apart from how it is reached |
//! | [`transport`] | how it is reached: a PCI function with its registers, queues and interrupts |
//! | [`balloon`], [`blk`], [`console`], [`fs`], [`net`], [`rng`], [`vsock`] | the devices |

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

pub mod balloon;
pub mod blk;
pub mod console;
pub mod fs;
pub mod net;
pub mod queue;
pub mod rng;
pub mod service;
pub mod transport;
pub mod vsock;
