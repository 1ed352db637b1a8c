//! The device's own saved form, beside the transport's.

use backend::share::SavedShare;
use serde::{Deserialize, Serialize};
use state::{Record, Saved, StateError};

use super::Fs;
use super::session::Session;

#[derive(Serialize, Deserialize)]
struct FsState {
    session: Session,
    share: SavedShare,
}

impl Saved for FsState {
    const NAME: &'static str = "virtio-fs";
    const VERSION: u16 = 2;
}

pub(super) fn save(fs: &Fs) -> Record {
    Record::encode(&FsState { session: *fs.session(), share: fs.share.save() })
}

pub(super) fn restore(fs: &Fs, record: Option<&Record>) -> Result<(), StateError> {
    let damaged = |reason: &str| StateError::Damaged { name: FsState::NAME, reason: reason.to_owned() };
    let saved: FsState = record.ok_or_else(|| damaged("it is missing"))?.decode()?;
    fs.share.restore(&saved.share).map_err(damaged)?;
    *fs.session() = saved.session;
    Ok(())
}
