//! What the controller remembers of its work: the error log and the health log (NVM Express 1.4, 5.14.1).

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::identify::{ERROR_LOG_LIMIT, FIRMWARE_REVISION};
use crate::page::Page;

// Log page identifiers.
const ERRORS: u8 = 1;
const HEALTH: u8 = 2;
const FIRMWARE: u8 = 3;

/// The bytes of pages that are not the error log, and of its entries.
const PAGE_BYTES: usize = 512;
const ERROR_BYTES: usize = 64;
const MOST_ERRORS: usize = ERROR_LOG_LIMIT as usize + 1;

/// The temperature of what has none: 27 °C, in kelvins.
const KELVINS: u16 = 300;
/// Sectors of a unit of data, as the health log counts.
const UNIT_SECTORS: u64 = 1000;

/// A command that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Failed {
    pub(crate) queue: u16,
    pub(crate) command: u16,
    /// The status field, without the phase tag.
    pub(crate) status: u16,
    pub(crate) sector: u64,
    pub(crate) namespace: u32,
}

/// What a command moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Moved {
    pub(crate) read_sectors: u64,
    pub(crate) written_sectors: u64,
}

/// All that is logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Logs {
    /// How many errors there have ever been.
    error_count: u64,
    /// The last of them, the youngest first.
    errors: VecDeque<Failed>,
    read_sectors: u64,
    written_sectors: u64,
    read_commands: u64,
    write_commands: u64,
}

impl Logs {
    /// Whether it holds no more than it would have kept.
    pub(crate) fn is_possible(&self) -> bool {
        self.errors.len() <= MOST_ERRORS && self.errors.len() as u64 <= self.error_count
    }

    /// Counts what a command has moved.
    pub(crate) fn count(&mut self, moved: Moved) {
        self.read_sectors = self.read_sectors.saturating_add(moved.read_sectors);
        self.written_sectors = self.written_sectors.saturating_add(moved.written_sectors);
        self.read_commands = self.read_commands.saturating_add(u64::from(moved.read_sectors != 0));
        self.write_commands = self.write_commands.saturating_add(u64::from(moved.written_sectors != 0));
    }

    /// Remembers an error.
    pub(crate) fn fail(&mut self, failed: Failed) {
        self.error_count = self.error_count.saturating_add(1);
        self.errors.truncate(MOST_ERRORS - 1);
        self.errors.push_front(failed);
    }

    /// A log page; none if there is none of that number.
    pub(crate) fn page(&self, number: u8) -> Option<Vec<u8>> {
        match number {
            ERRORS => Some(self.error_page()),
            HEALTH => Some(self.health_page()),
            FIRMWARE => {
                let mut page = Page::new(PAGE_BYTES);
                // Slot 1 is active.
                page.put(0, &[1]).text(8, 8, FIRMWARE_REVISION);
                Some(page.finish())
            }
            _ => None,
        }
    }

    /// Whether reading a page acknowledges the events that errors are.
    pub(crate) fn tells_of_errors(number: u8) -> bool {
        number == ERRORS
    }

    fn error_page(&self) -> Vec<u8> {
        let mut page = Page::new(MOST_ERRORS * ERROR_BYTES);
        let numbers = (0..=self.error_count).rev();
        for ((failed, number), at) in self.errors.iter().zip(numbers).zip((0..).step_by(ERROR_BYTES)) {
            page.put(at, &number.to_le_bytes())
                .put(at + 8, &failed.queue.to_le_bytes())
                .put(at + 10, &failed.command.to_le_bytes())
                .put(at + 12, &(failed.status << 1).to_le_bytes())
                // Where in the command the fault is, is not said.
                .put(at + 14, &0xffffu16.to_le_bytes())
                .put(at + 16, &failed.sector.to_le_bytes())
                .put(at + 24, &failed.namespace.to_le_bytes());
        }
        page.finish()
    }

    fn health_page(&self) -> Vec<u8> {
        let mut page = Page::new(PAGE_BYTES);
        // All spare, and when there would be too little.
        page.put(1, &KELVINS.to_le_bytes()).put(3, &[100, 10]);
        let counts = [
            (32, self.read_sectors.div_ceil(UNIT_SECTORS)),
            (48, self.written_sectors.div_ceil(UNIT_SECTORS)),
            (64, self.read_commands),
            (80, self.write_commands),
            (176, self.error_count),
        ];
        for (at, count) in counts {
            page.put(at, &count.to_le_bytes());
        }
        page.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_youngest_errors_are_kept() {
        let mut logs = Logs::default();
        for command in 0..20 {
            logs.fail(Failed { queue: 2, command, status: 0x4081, sector: 5, namespace: 1 });
        }
        let page = logs.page(ERRORS).unwrap();
        assert_eq!((page.len(), &page[..4], page[10]), (1024, &[20, 0, 0, 0][..], 19));
        assert_eq!((page[15 * 64], page[15 * 64 + 10], &page[12..14]), (5, 4, &[0x02, 0x81][..]));
        assert!(logs.is_possible());
    }

    #[test]
    fn health_is_counted_in_thousands_of_sectors() {
        let mut logs = Logs::default();
        logs.count(Moved { read_sectors: 2001, written_sectors: 0 });
        logs.count(Moved { read_sectors: 0, written_sectors: 1 });
        logs.count(Moved::default());
        let page = logs.page(HEALTH).unwrap();
        assert_eq!([32, 48, 64, 80].map(|at| page[at]), [3, 1, 1, 1]);
        assert_eq!(logs.page(9), None);
    }
}
