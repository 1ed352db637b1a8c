//! Compressed clusters: a raw deflate stream each (RFC 1951), which images are delivered in and which are never written.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::file::{Clusters, index};

/// The cluster that was decompressed last: requests are smaller than clusters, and mostly go on.
///
/// Nothing ever makes it stale, since compressed data is never written: a place that held some holds none any more once it
/// is used again, and entries do not lead there as to compressed data.
#[derive(Debug, Default)]
pub(super) struct Last(Mutex<Option<(u64, Arc<[u8]>)>>);

impl Last {
    /// The cluster whose compressed data is `len` bytes at `at`, or less.
    pub(super) fn cluster(&self, file: &Clusters, at: u64, len: u64) -> io::Result<Arc<[u8]>> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, cluster)) = last.as_ref().filter(|(place, _)| *place == at) {
            return Ok(cluster.clone());
        }
        let mut bytes = vec![0; index(len)];
        file.read(&mut bytes, at)?;
        let cluster: Arc<[u8]> = inflate(&bytes, index(file.bytes()))?.into();
        *last = Some((at, cluster.clone()));
        Ok(cluster)
    }
}

/// Exactly `bytes` bytes, out of a stream that may be followed by anything.
fn inflate(stream: &[u8], bytes: usize) -> io::Result<Vec<u8>> {
    let mut cluster = vec![0; bytes];
    let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
    let (status, _, written) = decompress(&mut DecompressorOxide::new(), stream, &mut cluster, 0, flags);
    match status {
        TINFLStatus::Done | TINFLStatus::HasMoreOutput if written == bytes => Ok(cluster),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "a compressed cluster is damaged")),
    }
}
