//! Machine frames, the guest-to-machine map and the only road to guest bytes.
//!
//! | module | concept |
//! |---|---|
//! | [`frames`] | machine frames: where guest bytes live on the host |
//! | [`word`] | the words that processors and devices read and write there, and how without data races |
//! | [`layout`] | which guest frames have memory at all |
//! | [`p2m`] | what each guest frame is at the moment, and which machine frame stands behind it |
//! | `dirty` | which guest frames were written since one last asked |
//! | `code_watch` | which machine frames hold code that an engine has cached |
//! | `traces` | which machine frames are followed write by write, and what was written |
//! | [`shootdown`] | how translations are taken away from other vCPUs before code is cached |
//! | `bus_lock` | how all other vCPUs are made to stand still for one access |
//! | `changes` | what happened that caches must hear of |
//! | [`guest`] | [`GuestMemory`]: all of it together, and the *epoch* that keeps cached translations honest |
//! | `transfer` | ranges of it handed to system calls, without a copy |
//! | [`saved`] | the saved form of the map |

#![allow(unsafe_code)]
#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_possible_wrap)]

mod bus_lock;
mod changes;
mod code_watch;
mod dirty;
pub mod error;
pub mod frames;
pub mod guest;
pub mod layout;
pub mod p2m;
pub mod saved;
pub mod shootdown;
mod traces;
mod transfer;
pub mod word;
mod zeroed;

pub use changes::Change;
pub use error::MemoryError;
pub use frames::Frames;
pub use guest::{GuestMemory, Watch};
pub use layout::RamRange;
pub use p2m::{FrameKind, P2mEntry};
pub use saved::SavedP2m;
pub use shootdown::Seat;
pub use traces::TracedWrite;
pub use transfer::GuestRange;
pub use word::Word;
