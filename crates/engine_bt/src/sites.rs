//! Where placed code leaves, in eight bytes for each place: there are more of them than of anything else that the cache keeps
//! account of.

use translate::{Exit, Form, MOST_CODE, Mode, Site};

use x86::bits::low16;

use crate::cache::Placed;
use crate::places::Places;

/// An exit in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlacedSite {
    /// Where its code ends.
    pub(crate) behind: u32,
    /// Which block's.
    pub(crate) block: u32,
    /// Page offset of the guest instruction, or of the target.
    pub(crate) guest: u16,
    pub(crate) exit: Exit,
    /// The mode there, [`Mode::PLAIN`] left out; no mode at all for the exit that no block has.
    pub(crate) mode: Mode,
}

impl PlacedSite {
    /// The exit that no block has.
    pub(crate) const UNFORESEEN: Self =
        Self { behind: 0, block: u32::MAX, guest: 0, exit: Exit::Lookup, mode: Mode::PLAIN };

    /// What an entry of stale block `number` has become, `behind` which that is.
    pub(crate) const fn stale(behind: u32, number: u32, block: &Placed) -> Self {
        let (guest, mode) = (block.key.offset, block.key.mode.without(Mode::PLAIN));
        Self { behind, block: number, guest, exit: Exit::Stale, mode }
    }

    /// Where its code begins.
    pub(crate) const fn start(&self) -> u32 {
        self.behind - Site::BYTES
    }
}

/// An exit without what [`Packed::detail`] has.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
enum Kind {
    Read,
    Write,
    Lend,
    Interpret,
    LinkHost,
    LinkMemory,
    LinkBoth,
    LinkDead,
    Bridge,
    Lookup,
    Transfer,
    Attention,
    Plain,
    Changed,
    Onward,
}

/// An exit of a block, which says the rest.
#[derive(Clone, Copy, Debug)]
struct Packed {
    /// Where in the block its code begins.
    at: u16,
    guest: u16,
    /// Another place in the block, or a mode.
    detail: u16,
    kind: Kind,
    /// Of [`PlacedSite::mode`], what may not be the block's.
    ac: bool,
}

impl Packed {
    fn new(site: &Site) -> Self {
        let (kind, detail) = match site.exit {
            Exit::Miss { write: false, resume } => (Kind::Read, resume),
            Exit::Miss { write: true, resume } => (Kind::Write, resume),
            Exit::Lend { resume } => (Kind::Lend, resume),
            Exit::Interpret => (Kind::Interpret, 0),
            Exit::Link { jump, form: Form::Host } => (Kind::LinkHost, jump),
            Exit::Link { jump, form: Form::Memory | Form::Again } => (Kind::LinkMemory, jump),
            Exit::Link { jump, form: Form::Both } => (Kind::LinkBoth, jump),
            Exit::Link { jump, form: Form::Dead } => (Kind::LinkDead, jump),
            Exit::Bridge { jump } => (Kind::Bridge, jump),
            Exit::Lookup => (Kind::Lookup, 0),
            Exit::Transfer { mode } => (Kind::Transfer, mode.bits().into()),
            Exit::Attention => (Kind::Attention, 0),
            Exit::Plain => (Kind::Plain, 0),
            Exit::Changed => (Kind::Changed, 0),
            // No site is stale by itself.
            Exit::Onward | Exit::Stale => (Kind::Onward, 0),
        };
        let (at, detail) = (low16(site.at.into()), low16(detail.into()));
        Self { at, guest: site.guest, detail, kind, ac: site.mode.has(Mode::AC) }
    }

    fn exit(self) -> Exit {
        let detail = u32::from(self.detail);
        let link = |form| Exit::Link { jump: detail, form };
        match self.kind {
            Kind::Read => Exit::Miss { write: false, resume: detail },
            Kind::Write => Exit::Miss { write: true, resume: detail },
            Kind::Lend => Exit::Lend { resume: detail },
            Kind::Interpret => Exit::Interpret,
            Kind::LinkHost => link(Form::Host),
            Kind::LinkMemory => link(Form::Memory),
            Kind::LinkBoth => link(Form::Both),
            Kind::LinkDead => link(Form::Dead),
            Kind::Bridge => Exit::Bridge { jump: detail },
            Kind::Lookup => Exit::Lookup,
            Kind::Transfer => Exit::Transfer { mode: Mode::from_bits(self.detail) },
            Kind::Attention => Exit::Attention,
            Kind::Plain => Exit::Plain,
            Kind::Changed => Exit::Changed,
            Kind::Onward => Exit::Onward,
        }
    }

    /// In block `number`.
    fn placed(self, number: u32, block: &Placed) -> PlacedSite {
        PlacedSite {
            behind: self.behind(block),
            block: number,
            guest: self.guest,
            exit: self.exit(),
            mode: block.key.mode.without(Mode::PLAIN).without(Mode::AC).with(Mode::AC, self.ac),
        }
    }

    fn behind(self, block: &Placed) -> u32 {
        block.start + u32::from(self.at) + Site::BYTES
    }
}

/// Places in a block are told by 16 bits.
const _: () = assert!(MOST_CODE <= u16::MAX as usize);

/// A site that has left lately.
#[derive(Clone, Copy, Debug, Default)]
struct Lately {
    behind: u32,
    block: u32,
    number: u32,
}

/// Sites that are found at once.
const LATELY: usize = 1 << 12;

/// The exits of all blocks, block by block.
#[derive(Debug)]
pub(crate) struct Sites {
    all: Vec<Packed>,
    lately: Box<[Lately]>,
}

impl Sites {
    /// With room for so many; more make room.
    pub(crate) fn with_room(sites: usize) -> Self {
        Self { all: Vec::with_capacity(sites), lately: vec![Lately::default(); LATELY].into() }
    }

    /// Bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&*self.all) + size_of_val(&*self.lately)
    }

    pub(crate) fn clear(&mut self) {
        self.all.clear();
        self.lately.fill(Lately::default());
    }

    /// Adds those of a block, in the order of their code; the number of the first.
    pub(crate) fn add(&mut self, sites: &[Site]) -> u32 {
        let first = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.all.extend(sites.iter().map(Packed::new));
        first
    }

    /// The site of one of `blocks` behind whose code `behind` is.
    pub(crate) fn find(&mut self, blocks: &[Placed], places: &Places, behind: u32) -> Option<PlacedSite> {
        let lately = self.lately.get_mut(behind as usize % LATELY)?;
        if lately.behind != behind {
            let block = places.block_before(blocks, behind)?;
            let first = blocks.get(block)?.sites as usize;
            let end = blocks.get(block + 1).map_or(self.all.len(), |next| next.sites as usize);
            let own = self.all.get(first..end)?;
            let number = own.iter().position(|site| site.behind(&blocks[block]) == behind)?;
            let (block, number) = (u32::try_from(block).ok()?, u32::try_from(first + number).ok()?);
            *lately = Lately { behind, block, number };
        }
        let site = self.all.get(lately.number as usize)?;
        Some(site.placed(lately.block, blocks.get(lately.block as usize)?))
    }
}

#[cfg(test)]
mod tests {
    use translate::Way;

    use super::*;

    const EXITS: [Exit; 15] = [
        Exit::Miss { write: false, resume: 7 },
        Exit::Miss { write: true, resume: 65_535 },
        Exit::Lend { resume: 8 },
        Exit::Interpret,
        Exit::Link { jump: 9, form: Form::Host },
        Exit::Link { jump: 10, form: Form::Memory },
        Exit::Link { jump: 11, form: Form::Both },
        Exit::Link { jump: 12, form: Form::Dead },
        Exit::Bridge { jump: 13 },
        Exit::Lookup,
        Exit::Transfer { mode: Mode::GS },
        Exit::Attention,
        Exit::Plain,
        Exit::Changed,
        Exit::Onward,
    ];

    #[test]
    fn every_exit_is_found_as_it_was_added() {
        assert_eq!(size_of::<Packed>(), 8);
        let modes = [Mode::USER, Mode::SSE.with(Mode::AC, true).with(Mode::PLAIN, true)];
        let (mut sites, mut blocks) = (Sites::with_room(9), Vec::new());
        let (mut all, mut places) = (Vec::new(), Places::default());
        for (number, mode) in (0..).zip(modes) {
            let start = 100 + 1000 * number;
            let added: Vec<_> = (0..)
                .zip(EXITS)
                .map(|(i, exit)| Site { guest: 5 * i, exit, mode, at: 20 * u32::from(i), way: Way::BARE })
                .collect();
            places.add(start, number);
            blocks.push(Placed::empty(mode, start, sites.add(&added)));
            let placed = |site: &Site| PlacedSite {
                behind: start + site.at + Site::BYTES,
                block: number,
                guest: site.guest,
                exit: site.exit,
                mode: mode.without(Mode::PLAIN),
            };
            all.extend(added.iter().map(placed));
        }
        for _ in 0..2 {
            all.iter().for_each(|site| assert_eq!(sites.find(&blocks, &places, site.behind), Some(*site)));
            assert_eq!(sites.find(&blocks, &places, 99), None);
            assert_eq!(sites.find(&blocks, &places, 106), None);
        }
    }
}
