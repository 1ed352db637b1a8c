//! What an image says of itself.

use std::fmt::Write;

use anyhow::Result;
use backend::qcow2::Backing;
use spec::ByteSize;

use super::args::InfoArgs;
use super::image;
use crate::documents::print;
use crate::status::Status;

/// `umbra disk info`.
pub(super) fn info(args: &InfoArgs) -> Result<Status> {
    let image = image(&args.image)?;
    let facts = backend::facts(&image.file, image.format)?;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Text takes everything.
        let _ = writeln!(text, "{name:<10}{}", value.escape_debug());
    };
    let size = |bytes: u64| format!("{} ({bytes} bytes)", ByteSize::from_bytes(bytes));
    line("image", &image.file.display().to_string());
    match &facts.qcow2 {
        None => line("format", "raw"),
        Some(qcow2) => {
            let clusters = ByteSize::from_bytes(qcow2.cluster_bytes);
            line("format", &format!("qcow2, version {}, clusters of {clusters}", qcow2.version));
        }
    }
    line("disk", &size(facts.bytes));
    line("on host", &size(facts.host_bytes));
    if let Some(qcow2) = &facts.qcow2 {
        if let Some(Backing { name, format }) = &qcow2.backing {
            let format = format.as_deref().unwrap_or("its name says the format");
            line("upon", &format!("{} ({format})", name.to_string_lossy()));
        }
        if qcow2.snapshots != 0 {
            line("snapshots", &format!("{} inside, so that it can only be read", qcow2.snapshots));
        }
        if !qcow2.is_closed {
            line("state", "in use, or not closed: 'umbra disk check --repair' puts it in order");
        }
    }
    print(&text)
}
