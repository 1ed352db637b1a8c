//! What a vCPU counts.

use engine::Counter;

use crate::direct::Met;

/// What a vCPU counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BtStats {
    /// Times that translated code was entered.
    pub entries: u64,
    /// TLB misses.
    pub misses: u64,
    /// Accesses that a sample found in the TLB.
    pub sampled_hits: u64,
    /// Accesses that it did not.
    pub sampled_misses: u64,
    /// Misses whose access could not be cached: devices, code, operands across two pages.
    pub slow_accesses: u64,
    /// Instructions that translated code left to the interpreter.
    pub callouts: u64,
    /// Times that the x87 state was lent to the processor.
    pub loans: u64,
    /// Jumps met before they were linked.
    pub unlinked: u64,
    /// Jumps whose target was not in the jump cache.
    pub lookups: u64,
    /// Exits because somebody wanted attention.
    pub attentions: u64,
    /// Groups of accesses that were not all in one cached page.
    pub plain: u64,
    /// Entries of blocks whose code had been written.
    pub stale_entries: u64,
    /// Blocks that found that the guest's code had changed.
    pub changed: u64,
    /// Times that a frame was given up to be watched.
    pub fluid: u64,
    /// Times that user code was executed directly.
    pub direct_runs: u64,
    /// Why it stopped.
    pub direct: DirectStats,
    /// Blocks interpreted.
    pub interpreted: u64,
    /// The code cache.
    pub cache: CacheStats,
}

/// Why code that was executed directly stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectStats {
    /// Somebody wanted attention.
    pub calls: u64,
    /// A page of data was met, and mapped.
    pub data: u64,
    /// A page that was mapped was written, and mapped for that.
    pub writes: u64,
    /// A page of code was met, and mapped.
    pub code: u64,
    /// A page that the guest has to provide.
    pub faults: u64,
    /// A system call.
    pub system_calls: u64,
    /// Anything else: the instruction was interpreted.
    pub others: u64,
}

impl DirectStats {
    /// Those for a page that was met and mapped.
    pub(crate) const fn of(&mut self, met: Met) -> &mut u64 {
        match met {
            Met::Data => &mut self.data,
            Met::Write => &mut self.writes,
            Met::Code => &mut self.code,
        }
    }

    /// The stops since an earlier moment: those for pages, which have been met now, and all others.
    pub(crate) const fn since(&self, earlier: &Self) -> [u64; 2] {
        const fn sums(at: &DirectStats) -> [u64; 2] {
            [at.data + at.writes + at.code + at.faults, at.calls + at.system_calls + at.others]
        }
        let ([pages, others], [before, others_before]) = (sums(self), sums(earlier));
        [pages.wrapping_sub(before), others.wrapping_sub(others_before)]
    }
}

/// What was counted since the cache was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks translated.
    pub blocks: u64,
    /// Guest instructions in them.
    pub instructions: u64,
    /// Bytes of host code made.
    pub bytes: u64,
    /// Direct jumps linked.
    pub links: u64,
    /// Blocks dropped because their code was written.
    pub stale: u64,
    /// Times that everything was dropped for want of room.
    pub flushes: u64,
}

impl BtStats {
    /// The same in the engine contract's form.
    pub(crate) fn counters(&self) -> Vec<Counter> {
        let of = Counter::new;
        let (cache, direct) = (&self.cache, &self.direct);
        vec![
            of("cache.blocks", cache.blocks, "blocks translated"),
            of("cache.instructions", cache.instructions, "guest instructions in them"),
            of("cache.bytes", cache.bytes, "bytes of host code made of them"),
            of("cache.links", cache.links, "jumps made to lead from block to block"),
            of("cache.stale", cache.stale, "blocks dropped because their code was written"),
            of("cache.flushes", cache.flushes, "times that everything was dropped for want of room"),
            of("entries", self.entries, "times that translated code was entered"),
            of("exits.miss", self.misses, "exits for an address that was not in the TLB"),
            of("sample.hits", self.sampled_hits, "accesses of a sample of instructions, found in the TLB"),
            of("sample.misses", self.sampled_misses, "accesses of that sample, not found there"),
            of("exits.interpret", self.callouts, "exits for an instruction left to the interpreter"),
            of("exits.lend", self.loans, "exits for the x87 state, which was lent to the processor"),
            of("exits.link", self.unlinked, "exits at a jump that was not linked yet"),
            of("exits.lookup", self.lookups, "exits at a jump whose target was not in the jump cache"),
            of("exits.attention", self.attentions, "exits because somebody wanted attention"),
            of("exits.plain", self.plain, "exits at accesses together that were not in one page"),
            of("exits.stale", self.stale_entries, "exits from blocks that had been dropped"),
            of("exits.changed", self.changed, "exits from blocks that found their code changed"),
            of("fluid", self.fluid, "times that a page was written too often to be watched"),
            of(
                "direct.runs",
                self.direct_runs,
                "times that user code was executed as it is, in a process of its own",
            ),
            of("direct.calls", direct.calls, "times that it stopped because somebody wanted attention"),
            of("direct.data", direct.data, "for a page of data, which was mapped"),
            of("direct.writes", direct.writes, "for a page that was written, which was mapped"),
            of("direct.code", direct.code, "for a page of code, which was mapped"),
            of("direct.faults", direct.faults, "for a page that the guest has to provide"),
            of("direct.system_calls", direct.system_calls, "for a system call"),
            of("direct.others", direct.others, "for an instruction that was interpreted"),
            of(
                "slow_accesses",
                self.slow_accesses,
                "accesses that cannot be cached: devices, code, two pages",
            ),
            of(
                "cold_blocks",
                self.interpreted,
                "blocks interpreted, because they were not worth a translation",
            ),
        ]
    }
}
