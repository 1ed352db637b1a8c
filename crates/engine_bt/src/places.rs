//! Which block a place in the code cache belongs to. Blocks lie one behind the other in the order of their numbers, so a list
//! of where each stretch of code begins among them leaves a step or two to take.

use crate::cache::Placed;

/// Bytes of a stretch.
const STRETCH: usize = 512;

/// The blocks by where they begin.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// By stretch: the first block that begins there or behind it, as far as there are blocks.
    first: Vec<u32>,
}

impl Places {
    pub(crate) fn clear(&mut self) {
        self.first.clear();
    }

    /// Block `number`, the last so far, begins at `start`.
    pub(crate) fn add(&mut self, start: u32, number: u32) {
        while self.first.len() * STRETCH <= start as usize {
            self.first.push(number);
        }
    }

    /// The last of all `blocks` that begins before `place`.
    pub(crate) fn block_before(&self, blocks: &[Placed], place: u32) -> Option<usize> {
        let stretch = self.first.get(place as usize / STRETCH);
        let from = stretch.map_or(blocks.len(), |&first| first as usize);
        let further = blocks.iter().skip(from).take_while(|block| block.start < place).count();
        (from + further).checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use translate::Mode;

    #[test]
    fn the_block_before_a_place_is_that_of_a_search() {
        let starts = [100u32, 116, 500, 511, 512, 513, 3000, 3008, 5120, 70_000];
        let (mut places, mut blocks) = (Places::default(), Vec::new());
        for _ in 0..2 {
            places.clear();
            blocks.clear();
            for (number, start) in (0..).zip(starts) {
                places.add(start, number);
                blocks.push(Placed::empty(Mode::new(), start, 0));
                for place in (0..start + 2000).step_by(3).chain(starts).chain([start + 1]) {
                    let searched = blocks.partition_point(|block| block.start < place).checked_sub(1);
                    assert_eq!(places.block_before(&blocks, place), searched, "{place} among {number}");
                }
            }
        }
    }
}
