//! The balloon's own saved form, beside the transport's. Which frames are in it is the map's to remember; statistics are asked for
//! anew.

use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use super::Known;

#[derive(Serialize, Deserialize)]
struct BalloonState {
    target_pages: u32,
    told_pages: u32,
    actual_pages: u32,
    poison: u32,
    reported_bytes: u64,
}

impl Saved for BalloonState {
    const NAME: &'static str = "virtio-balloon";
    const VERSION: u16 = 1;
}

pub(super) fn save(known: &Known) -> Record {
    let &Known { target_pages, told_pages, actual_pages, poison, reported_bytes, .. } = known;
    Record::encode(&BalloonState { target_pages, told_pages, actual_pages, poison, reported_bytes })
}

pub(super) fn restore(known: &mut Known, record: Option<&Record>) -> Result<(), StateError> {
    let missing = || StateError::Damaged { name: BalloonState::NAME, reason: "it is missing".to_owned() };
    let saved: BalloonState = record.ok_or_else(missing)?.decode()?;
    let BalloonState { target_pages, told_pages, actual_pages, poison, reported_bytes } = saved;
    *known = Known { target_pages, told_pages, actual_pages, poison, reported_bytes, ..Known::default() };
    Ok(())
}
