//! The code cache: where translations lie, and how they are found by what they are translations of.
//!
//! A block is known by machine frame, offset and mode, so a frame that is mapped many times is translated once, and a
//! change of mapping cannot run the wrong code. Code is laid down one block after the other; when there is no room
//! left, everything is dropped at once, which costs a moment of interpretation and no bookkeeping at all.
//!
//! When a frame's code has been written, its blocks are *stale*: they are no longer found, and their entries
//! become calls of an exit. Whoever had been linked to them leaves there; nothing need be unlinked.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use host::{CodeMemory, HostError};
use translate::context::Entrance;
use translate::{Block, Form, Mode, Routines, Site, UNFORESEEN, Way};
use x86::Mfn;

use crate::entrances::Entrances;
use crate::places::Places;
use crate::sites::{PlacedSite, Sites};
use crate::stats::CacheStats;
use crate::variants::Variants;

/// Mixes a number that is all the key there is.
#[derive(Default)]
pub(crate) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(byte.into());
        }
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// A map by numbers.
pub(crate) type NumberMap<V> = HashMap<u64, V, BuildHasherDefault<NumberHasher>>;

/// What a block is a translation of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) mfn: Mfn,
    pub(crate) offset: u16,
    pub(crate) mode: Mode,
}

impl Key {
    /// The same in the first place of its page.
    pub(crate) const fn page(self) -> Self {
        Self { offset: 0, ..self }
    }

    /// As one number, as [`translate::context::Entrance::key`] has it: frames have at most 36 bits.
    pub(crate) fn number(self) -> u64 {
        self.mfn.0 << 28 | u64::from(self.offset & 0xfff) << 16 | u64::from(self.mode.bits()) | IN_USE
    }
}

/// A bit that no mode has, so that no key is zero.
const IN_USE: u64 = 1 << 15;

/// A block in place. Places in it are told by 16 bits ([`translate::MOST_CODE`]).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed {
    pub(crate) key: Key,
    /// Where its code begins in the cache.
    pub(crate) start: u32,
    /// The number of its first site.
    pub(crate) sites: u32,
    bytes: u16,
    entry_host: u16,
    entry_memory: u16,
    entry_jump: u16,
    host_is_free: bool,
    host_leads_to_memory: bool,
    /// Its only instruction reaches into the frame that [`Cache::second`] says.
    pub(crate) is_across: bool,
    pub(crate) stale: bool,
}

impl Placed {
    /// The place of an offset in it.
    const fn at(&self, offset: u16) -> u32 {
        self.start + offset as u32
    }

    /// One of this mode with no code, whose sites begin with number `sites`.
    #[cfg(test)]
    pub(crate) const fn empty(mode: Mode, start: u32, sites: u32) -> Self {
        Self {
            key: Key { mfn: Mfn(0), offset: 0, mode },
            start,
            sites,
            bytes: 0,
            entry_host: 0,
            entry_memory: 0,
            entry_jump: 0,
            host_is_free: false,
            host_leads_to_memory: false,
            is_across: false,
            stale: false,
        }
    }
}

pub(crate) struct Cache {
    code: CodeMemory,
    used: usize,
    blocks: Vec<Placed>,
    sites: Sites,
    places: Places,
    /// By block: the frame that its only instruction reaches into.
    seconds: NumberMap<Mfn>,
    index: Entrances,
    frames: NumberMap<Vec<u32>>,
    /// The latest stale block of each key.
    replaceable: NumberMap<u32>,
    /// Blocks that check themselves.
    pub(crate) variants: Variants,
    routines: Routines,
    /// Whether translated code may find other code by the index.
    open: bool,
    pub(crate) stats: CacheStats,
}

/// Blocks begin at multiples of this.
const ALIGNMENT: usize = 4;
/// What a block takes at least, on average, with its records; the cache is emptied early if it turns out to be less.
const LEAST_OF_BLOCK: usize = 352;
/// How many sites a block has, on average and roughly.
const SITES_OF_BLOCK: usize = 6;
/// What a block takes of the lists of blocks by place and by frame.
const LISTED: usize = 8;
/// JMP rel32.
const JMP: u8 = 0xe9;
/// CALL rel32.
const CALL: u8 = 0xe8;
/// Bytes of either.
const DIVERSION: u32 = 5;

impl Cache {
    /// Of `bytes` bytes, records included; translated code finds other code by itself if it is `open`.
    pub(crate) fn new(bytes: u64, bmi2: bool, open: bool) -> Result<Self, HostError> {
        let code = CodeMemory::new(bytes.max(1 << 20))?;
        let places = code.len() / LEAST_OF_BLOCK;
        let mut cache = Self {
            code,
            used: 0,
            // Room that is not used costs nothing, and to make more of it later would leave holes.
            blocks: Vec::with_capacity(places),
            sites: Sites::with_room(places * SITES_OF_BLOCK),
            places: Places::default(),
            seconds: NumberMap::default(),
            index: Entrances::new(places),
            frames: NumberMap::default(),
            replaceable: NumberMap::default(),
            variants: Variants::default(),
            routines: translate::routines(bmi2),
            open,
            stats: CacheStats::default(),
        };
        cache.code.write(0, &cache.routines.code)?;
        cache.clear();
        cache.stats.flushes = 0;
        Ok(cache)
    }

    /// Where the exit is that the bottom of a shadow stack returns to.
    pub(crate) fn unforeseen(&self) -> u64 {
        self.code.exec_ptr(self.routines.unforeseen as usize) as u64
    }

    /// Where the look-ups are that translations call.
    pub(crate) fn look_ups(&self) -> [[u64; 2]; 3] {
        self.routines.look_ups.map(|pair| pair.map(|offset| self.code.exec_ptr(offset as usize) as u64))
    }

    /// Where the callers are.
    pub(crate) fn callers(&self) -> [u64; 3] {
        self.routines.callers.map(|offset| self.code.exec_ptr(offset as usize) as u64)
    }

    /// Where translations look code up.
    pub(crate) fn entrances(&self) -> [u64; 2] {
        self.index.address()
    }

    /// Where the code begins.
    pub(crate) fn base(&self) -> u64 {
        self.code.exec_ptr(0) as u64
    }

    /// Drops everything.
    pub(crate) fn clear(&mut self) {
        // What all blocks share stays.
        self.used = self.routines.code.len();
        self.blocks.clear();
        self.sites.clear();
        self.places.clear();
        self.seconds.clear();
        self.index.clear();
        self.frames.clear();
        self.replaceable.clear();
        self.variants.clear();
        self.stats.flushes += 1;
    }

    /// Whether a block of `bytes` bytes of code has room.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.used + bytes + ALIGNMENT + self.records() <= self.code.len() && self.index.has_room()
    }

    /// Bytes of what is known about every block; not what a frame or a block that checks itself has besides.
    fn records(&self) -> usize {
        self.blocks.len() * (size_of::<Placed>() + LISTED) + self.sites.bytes() + self.index.bytes()
    }

    pub(crate) fn find(&self, key: Key) -> Option<u32> {
        self.index.get(key.number())
    }

    pub(crate) fn block(&self, number: u32) -> Option<&Placed> {
        self.blocks.get(number as usize)
    }

    /// The site behind which `from` is, a host address as [`translate::Context::site`] has it.
    pub(crate) fn site(&mut self, from: u64) -> Option<PlacedSite> {
        if from == UNFORESEEN {
            return Some(PlacedSite::UNFORESEEN);
        }
        let behind = offset32(x86::bits::index(from.wrapping_sub(self.base())));
        self.sites.find(&self.blocks, &self.places, behind).or_else(|| self.stale_entry(behind))
    }

    /// What an entry of a stale block has become, `behind` which that is.
    fn stale_entry(&self, behind: u32) -> Option<PlacedSite> {
        let number = self.places.block_before(&self.blocks, behind)?;
        let block = self.blocks.get(number).filter(|block| block.stale)?;
        Some(PlacedSite::stale(behind, offset32(number), block))
    }

    /// Puts a translation in place; there is room.
    pub(crate) fn place(
        &mut self,
        key: Key,
        second: Option<Mfn>,
        mut block: Block,
    ) -> Result<u32, HostError> {
        let number = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
        let start = self.used.next_multiple_of(ALIGNMENT);
        for site in &block.sites {
            site.complete(&mut block.code, offset32(start), self.routines.exit(site.way));
        }
        self.code.write(start, &block.code)?;
        self.used = start + block.code.len();
        self.places.add(offset32(start), number);
        self.blocks.push(Placed {
            key,
            start: offset32(start),
            sites: self.sites.add(&block.sites),
            bytes: x86::bits::low16(block.code.len() as u64),
            entry_host: x86::bits::low16(block.entry_host.into()),
            entry_memory: x86::bits::low16(block.entry_memory.into()),
            entry_jump: x86::bits::low16(block.entry_jump.into()),
            host_is_free: block.host_is_free,
            host_leads_to_memory: block.host_leads_to_memory,
            is_across: second.is_some(),
            stale: false,
        });
        if let Some(second) = second {
            self.seconds.insert(number.into(), second);
        }
        // One across two pages is good only where the second follows the first.
        let found = self.open && second.is_none();
        let code = if found { offset32(start) + block.entry_jump } else { 0 };
        // Of several variants the first leads to the others.
        self.index.insert(Entrance { key: key.number(), block: number, code });
        for mfn in [Some(key.mfn), second].into_iter().flatten() {
            self.frames.entry(mfn.0).or_default().push(number);
        }
        self.stats.blocks += 1;
        self.stats.instructions += u64::from(block.instructions);
        self.stats.bytes += block.code.len() as u64;
        self.replace(key, number)?;
        Ok(number)
    }

    /// The frame that a block's only instruction reaches into, if it does.
    pub(crate) fn second(&self, number: u32) -> Option<Mfn> {
        self.seconds.get(&number.into()).copied()
    }

    /// The host address of an offset in a block.
    pub(crate) fn address(&self, block: &Placed, offset: u32) -> u64 {
        self.code.exec_ptr(block.start as usize + offset as usize) as u64
    }

    /// Where a block is entered with the flags in memory.
    pub(crate) fn entry(&self, block: &Placed) -> u64 {
        self.address(block, block.entry_memory.into())
    }

    /// The same for a block by its number, unless it is stale.
    pub(crate) fn entry_of(&self, number: u32) -> Option<u64> {
        self.block(number).filter(|block| !block.stale).map(|block| self.entry(block))
    }

    /// Where the code of a block goes on, by the block's number and an offset in it, unless it is stale.
    pub(crate) fn resumption(&self, number: u32, offset: u32) -> Option<u64> {
        self.block(number).filter(|block| !block.stale).map(|block| self.address(block, offset))
    }

    /// Where the code of a site is, unless its block is stale.
    pub(crate) fn again(&self, site: &PlacedSite) -> Option<u64> {
        let good = self.block(site.block).is_some_and(|block| !block.stale);
        good.then(|| self.base() + u64::from(site.start()))
    }

    /// Where the jump cache leads.
    pub(crate) fn jump_entry(&self, block: &Placed) -> u64 {
        self.address(block, block.entry_jump.into())
    }

    /// The block is not to be found any more: it reaches into a page that is another one now.
    pub(crate) fn forget(&mut self, number: u32) {
        if let Some(block) = self.block(number) {
            let key = block.key.number();
            self.index.remove(key);
        }
    }

    /// Lets the displacement at `jump` of block `from` lead to block `to`.
    pub(crate) fn link(&mut self, from: u32, jump: u32, form: Form, to: u32) -> Result<(), HostError> {
        let (Some(from), Some(to)) = (self.block(from).copied(), self.block(to).copied()) else {
            return Ok(());
        };
        let entry = match form {
            Form::Host => to.entry_host,
            Form::Both if to.host_is_free => to.entry_host,
            _ => to.entry_memory,
        };
        let (at, target) = (from.start + jump, to.at(entry));
        self.stats.links += 1;
        self.code.write(at as usize, &target.wrapping_sub(at + 4).to_le_bytes())
    }

    /// The page offset of the target of a bridge that has not been built yet, by its site.
    pub(crate) fn unbuilt(&self, site: &PlacedSite) -> Option<u16> {
        let mut word = [0; 8];
        word.copy_from_slice(self.bytes((site.behind + Site::KEY) as usize, 8));
        u16::try_from(u64::from_le_bytes(word)).ok().filter(|&word| word < IN_USE as u16)
    }

    /// Builds the bridge of a site, whose displacement is at `jump`, to block `to`; gives it up if the block's code depends on
    /// more than one page.
    pub(crate) fn build(&mut self, site: &PlacedSite, jump: u32, to: u32) -> Result<(), HostError> {
        let Some(target) = self.block(to).copied() else { return Ok(()) };
        if target.is_across {
            return self.give_up(site);
        }
        let key = target.key.page().number().to_le_bytes();
        self.code.write((site.behind + Site::KEY) as usize, &key)?;
        self.link(site.block, jump, Form::Memory, to)
    }

    /// The bridge of a site leads by the way round from now on.
    pub(crate) fn give_up(&mut self, site: &PlacedSite) -> Result<(), HostError> {
        self.divert(JMP, site.start(), site.behind + Site::ROUND)
    }

    /// The host address of the way round.
    pub(crate) fn way_round(&self, site: &PlacedSite) -> u64 {
        self.base() + u64::from(site.behind + Site::ROUND)
    }

    /// Lets a site, whose flags are in memory, lead to block `to`.
    pub(crate) fn lead(&mut self, site: &PlacedSite, to: u32) -> Result<(), HostError> {
        let Some(to) = self.block(to).copied() else { return Ok(()) };
        self.stats.links += 1;
        self.divert(JMP, site.start(), to.at(to.entry_memory))
    }

    /// The code of a frame has been written: its blocks are stale, and `tell` hears of each.
    pub(crate) fn make_stale(&mut self, mfn: Mfn, mut tell: impl FnMut(Key)) -> Result<(), HostError> {
        let Some(numbers) = self.frames.remove(&mfn.0) else { return Ok(()) };
        // Of variants, the first is the one that the others' places are known by: it comes last.
        for &number in numbers.iter().rev() {
            let Some(block) = self.block(number).filter(|block| !block.stale) else { continue };
            let key = block.key;
            tell(key);
            self.variants.remove(key);
            self.make_block_stale(number)?;
        }
        Ok(())
    }

    /// All variants of a place are stale.
    pub(crate) fn retire(&mut self, key: Key) -> Result<(), HostError> {
        for number in self.variants.remove(key) {
            self.make_block_stale(number)?;
        }
        Ok(())
    }

    fn make_block_stale(&mut self, number: u32) -> Result<(), HostError> {
        let Some(block) = self.blocks.get_mut(number as usize).filter(|block| !block.stale) else {
            return Ok(());
        };
        block.stale = true;
        let block = *block;
        self.index.remove(block.key.number());
        self.stats.stale += 1;
        self.replaceable.insert(block.key.number(), number);
        let [memory, host] = [Way::BARE, Way::BARE.with_flags()].map(|way| self.routines.exit(way));
        self.divert(CALL, block.at(block.entry_memory), memory)?;
        if !block.host_leads_to_memory {
            self.divert(CALL, block.at(block.entry_host), host)?;
        }
        if block.entry_jump != block.entry_memory {
            self.divert(CALL, block.at(block.entry_jump), memory)?;
        }
        Ok(())
    }

    /// What leads to the stale block of a key leads to its successor from now on. Not from a block in one page to one across
    /// two: that goes through the jump cache, which may still know the former, and would come back to itself for ever.
    fn replace(&mut self, key: Key, by: u32) -> Result<(), HostError> {
        let Some(old) = self.replaceable.remove(&key.number()) else { return Ok(()) };
        let (Some(old), Some(new)) = (self.block(old).copied(), self.block(by).copied()) else {
            return Ok(());
        };
        if !old.is_across && new.is_across {
            return Ok(());
        }
        self.divert(JMP, old.at(old.entry_memory), new.at(new.entry_memory))?;
        if !old.host_leads_to_memory {
            self.divert(JMP, old.at(old.entry_host), new.at(new.entry_host))?;
        }
        Ok(())
    }

    /// Code at `from` becomes a jump or call to `to`, offsets in the cache.
    fn divert(&mut self, by: u8, from: u32, to: u32) -> Result<(), HostError> {
        let distance = to.wrapping_sub(from + DIVERSION).to_le_bytes();
        self.code.write(from as usize, &[by, distance[0], distance[1], distance[2], distance[3]])
    }

    /// Where the code that all blocks share is executed.
    pub(crate) fn shared(&self) -> Range<u64> {
        let start = self.code.exec_ptr(0) as u64;
        start..start + self.routines.code.len() as u64
    }

    /// Where a block's code is executed.
    pub(crate) fn range(&self, block: &Placed) -> Range<u64> {
        self.address(block, 0)..self.address(block, block.bytes.into())
    }

    /// The code of a block, as it is now.
    pub(crate) fn code_of(&self, block: &Placed) -> Vec<u8> {
        self.bytes(block.start as usize, block.bytes.into()).to_vec()
    }

    /// Bytes of a block's code, as they are now.
    fn bytes(&self, start: usize, length: usize) -> &[u8] {
        // SAFETY: blocks lie inside the code memory, which is readable where it can be executed; only `write`, which
        // needs this cache exclusively, changes it.
        unsafe { std::slice::from_raw_parts(self.code.exec_ptr(start), length) }
    }
}

/// The cache is smaller than 4 GiB.
fn offset32(offset: usize) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_and_its_records_take_no_more_than_they_may() {
        const ROOM: usize = 1 << 20;
        let mut cache = Cache::new(ROOM as u64, true, true).unwrap();
        let site =
            Site { guest: 0, exit: translate::Exit::Interpret, mode: Mode::USER, at: 0, way: Way::BARE };
        for sites in [1, 40] {
            let block = Block { code: vec![0x90; 256], sites: vec![site; sites], ..Block::default() };
            while cache.has_room(block.code.len()) {
                let key = Key { mfn: Mfn(cache.blocks.len() as u64), offset: 0, mode: Mode::USER };
                cache.place(key, None, block.clone()).unwrap();
            }
            let blocks = cache.blocks.len();
            let each = 256 + size_of::<Placed>() + size_of::<Entrance>() + sites * 8;
            assert!(blocks > ROOM / 2 / each, "{blocks} blocks of {sites} sites");
            assert!(blocks * each < ROOM, "{blocks} blocks of {sites} sites");
            cache.clear();
        }
    }
}
