//! The adapter's own saved form, beside the transport's: only where there are several pairs of queues is there anything to remember.
//! Which of them a flow is on is learnt anew.

use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use crate::service::restore_nothing;

#[derive(Serialize, Deserialize)]
struct NetState {
    /// How many pairs the driver uses.
    pairs: u16,
}

impl Saved for NetState {
    const NAME: &'static str = "virtio-net";
    const VERSION: u16 = 1;
}

/// What is to be remembered of an adapter with `most` pairs.
pub(super) fn save(most: u16, pairs: u16) -> Option<Record> {
    (most > 1).then(|| Record::encode(&NetState { pairs }))
}

/// How many pairs the driver of such an adapter uses.
pub(super) fn restore(most: u16, record: Option<&Record>) -> Result<u16, StateError> {
    if most == 1 {
        return restore_nothing(NetState::NAME, record).map(|()| 1);
    }
    let damaged = |reason: &str| StateError::Damaged { name: NetState::NAME, reason: reason.to_owned() };
    let NetState { pairs } = record.ok_or_else(|| damaged("it is missing"))?.decode()?;
    if (1..=most).contains(&pairs) { Ok(pairs) } else { Err(damaged("pairs of queues that there are not")) }
}
