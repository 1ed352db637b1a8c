//! Every processor feature that Umbra may offer, in one table.
//!
//! A line says: the variant; its name in Linux's `/proc/cpuinfo`, then other spellings in use (QEMU's, the manuals');
//! its place in CPUID; who executes it; which models have it; which features it cannot be without. The enum, the
//! lookups and the models all derive from the lines. A feature that is not here does not exist for a guest, and the
//! engines make its instructions fault.
//!
//! Places are from SDM vol. 2A, CPUID, and APM vol. 3, appendix E.

/// A CPUID output register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// Where CPUID reports a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX.
    pub subleaf: u32,
    /// The output register.
    pub register: Register,
    /// The bit in it.
    pub bit: u32,
}

/// Who carries a feature out, which decides whether the host bounds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// The engine, in software: can be offered on any host.
    Engine,
    /// The host's processor, on the guest's operands: offered only where the host has it.
    Host,
    /// Nobody: it states how the host's x87 unit behaves, is copied from the host, and cannot be asked for.
    Statement,
}

/// Which models have a feature unless told otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Models {
    /// x86-64 baseline and up (psABI, "micro-architecture levels").
    V1,
    /// x86-64-v2 and up.
    V2,
    /// x86-64-v3 and up.
    V3,
    /// Every model: not part of a level, but what a modern system wants and an engine does anywhere.
    Every,
    /// The models `max` and `host` only.
    Host,
    /// None: only when asked for.
    Asked,
}

struct Line {
    feature: Feature,
    name: &'static str,
    aliases: &'static [&'static str],
    position: Position,
    executor: Executor,
    models: Models,
    needs: &'static [Feature],
}

macro_rules! features {
    ($($variant:ident $name:literal $aliases:tt $leaf:literal : $sub:literal $register:ident $bit:literal
       $executor:ident $models:ident $needs:tt;)*) => {
        /// A processor feature, named in the documentation as Linux names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Feature {
            $(#[doc = concat!("`", $name, "`.")] $variant,)*
        }

        const TABLE: &[Line] = {
            use Feature::*;
            &[$(Line {
                feature: $variant,
                name: $name,
                aliases: &$aliases,
                position: Position { leaf: $leaf, subleaf: $sub, register: Register::$register, bit: $bit },
                executor: Executor::$executor,
                models: Models::$models,
                needs: &$needs,
            },)*]
        };
    };
}

features! {
    // variant   name, other spellings                          leaf:sub reg bit      executor  models  needs
    Fpu            "fpu"                []                      0x1:0 Edx 0           Host      V1      [];
    Vme            "vme"                []                      0x1:0 Edx 1           Engine    Every   [];
    De             "de"                 []                      0x1:0 Edx 2           Engine    Every   [];
    Pse            "pse"                []                      0x1:0 Edx 3           Engine    Every   [];
    Tsc            "tsc"                []                      0x1:0 Edx 4           Engine    Every   [];
    Msr            "msr"                []                      0x1:0 Edx 5           Engine    Every   [];
    Pae            "pae"                []                      0x1:0 Edx 6           Engine    Every   [];
    Mce            "mce"                []                      0x1:0 Edx 7           Engine    Every   [];
    Cx8            "cx8"                []                      0x1:0 Edx 8           Engine    V1      [];
    Apic           "apic"               []                      0x1:0 Edx 9           Engine    Every   [Msr];
    Sep            "sep"                []                      0x1:0 Edx 11          Engine    Every   [Msr];
    Mtrr           "mtrr"               []                      0x1:0 Edx 12          Engine    Every   [Msr];
    Pge            "pge"                []                      0x1:0 Edx 13          Engine    Every   [];
    Mca            "mca"                []                      0x1:0 Edx 14          Engine    Every   [Mce, Msr];
    Cmov           "cmov"               []                      0x1:0 Edx 15          Engine    V1      [];
    Pat            "pat"                []                      0x1:0 Edx 16          Engine    Every   [Msr];
    Pse36          "pse36"              []                      0x1:0 Edx 17          Engine    Every   [Pse];
    Clflush        "clflush"            ["clfsh"]               0x1:0 Edx 19          Engine    Every   [];
    Mmx            "mmx"                []                      0x1:0 Edx 23          Host      V1      [Fpu];
    Fxsr           "fxsr"               []                      0x1:0 Edx 24          Engine    V1      [Fpu];
    Sse            "sse"                []                      0x1:0 Edx 25          Host      V1      [Fxsr];
    Sse2           "sse2"               []                      0x1:0 Edx 26          Host      V1      [Sse];
    Sse3           "sse3"               ["pni"]                 0x1:0 Ecx 0           Host      V2      [Sse2];
    Pclmulqdq      "pclmulqdq"          ["pclmuldq"]            0x1:0 Ecx 1           Host      Host    [Sse2];
    Monitor        "monitor"            ["mwait"]               0x1:0 Ecx 3           Engine    Asked   [];
    Ssse3          "ssse3"              []                      0x1:0 Ecx 9           Host      V2      [Sse3];
    Fma            "fma"                []                      0x1:0 Ecx 12          Host      V3      [Avx];
    Cx16           "cx16"               ["cmpxchg16b"]          0x1:0 Ecx 13          Engine    V2      [Lm];
    Pcid           "pcid"               []                      0x1:0 Ecx 17          Engine    Every   [Lm];
    Sse41          "sse4_1"             []                      0x1:0 Ecx 19          Host      V2      [Ssse3];
    Sse42          "sse4_2"             []                      0x1:0 Ecx 20          Host      V2      [Sse41];
    X2apic         "x2apic"             []                      0x1:0 Ecx 21          Engine    Every   [Apic];
    Movbe          "movbe"              []                      0x1:0 Ecx 22          Engine    V3      [];
    Popcnt         "popcnt"             []                      0x1:0 Ecx 23          Engine    V2      [];
    TscDeadline    "tsc_deadline_timer" ["tsc_deadline"]        0x1:0 Ecx 24          Engine    Every   [Apic, Tsc];
    Aes            "aes"                ["aesni"]               0x1:0 Ecx 25          Host      Host    [Sse2];
    Xsave          "xsave"              []                      0x1:0 Ecx 26          Engine    Every   [Fxsr];
    Avx            "avx"                []                      0x1:0 Ecx 28          Host      V3      [Sse42, Xsave];
    F16c           "f16c"               []                      0x1:0 Ecx 29          Host      V3      [Avx];
    Rdrand         "rdrand"             []                      0x1:0 Ecx 30          Engine    Every   [];
    Hypervisor     "hypervisor"         []                      0x1:0 Ecx 31          Engine    Every   [];
    Arat           "arat"               []                      0x6:0 Eax 2           Engine    Every   [Apic];
    Fsgsbase       "fsgsbase"           []                      0x7:0 Ebx 0           Engine    Every   [Lm];
    TscAdjust      "tsc_adjust"         []                      0x7:0 Ebx 1           Engine    Every   [Tsc, Msr];
    Bmi1           "bmi1"               []                      0x7:0 Ebx 3           Engine    V3      [];
    Avx2           "avx2"               []                      0x7:0 Ebx 5           Host      V3      [Avx];
    FdpExcptnOnly  "fdp_excptn_only"    []                      0x7:0 Ebx 6           Statement Every   [];
    Smep           "smep"               []                      0x7:0 Ebx 7           Engine    Every   [];
    Bmi2           "bmi2"               []                      0x7:0 Ebx 8           Engine    V3      [];
    Erms           "erms"               []                      0x7:0 Ebx 9           Engine    Every   [];
    Invpcid        "invpcid"            []                      0x7:0 Ebx 10          Engine    Every   [];
    ZeroFcsFds     "zero_fcs_fds"       []                      0x7:0 Ebx 13          Statement Every   [];
    Rdseed         "rdseed"             []                      0x7:0 Ebx 18          Engine    Every   [];
    Adx            "adx"                []                      0x7:0 Ebx 19          Engine    Host    [];
    Smap           "smap"               []                      0x7:0 Ebx 20          Engine    Every   [];
    Clflushopt     "clflushopt"         []                      0x7:0 Ebx 23          Engine    Every   [Clflush];
    Clwb           "clwb"               []                      0x7:0 Ebx 24          Engine    Every   [Clflush];
    Sha            "sha_ni"             ["sha"]                 0x7:0 Ebx 29          Host      Host    [Ssse3];
    Umip           "umip"               []                      0x7:0 Ecx 2           Engine    Every   [];
    Rdpid          "rdpid"              []                      0x7:0 Ecx 22          Engine    Every   [];
    Fsrm           "fsrm"               []                      0x7:0 Edx 4           Engine    Every   [Erms];
    Xsaveopt       "xsaveopt"           []                      0xd:1 Eax 0           Engine    Every   [Xsave];
    Xsavec         "xsavec"             []                      0xd:1 Eax 1           Engine    Every   [Xsave];
    Xgetbv1        "xgetbv1"            []                      0xd:1 Eax 2           Engine    Every   [Xsave];
    LahfLm         "lahf_lm"            []                      0x8000_0001:0 Ecx 0   Engine    V2      [Lm];
    Lzcnt          "abm"                ["lzcnt"]               0x8000_0001:0 Ecx 5   Engine    V3      [];
    Prefetchw      "3dnowprefetch"      ["prefetchw"]           0x8000_0001:0 Ecx 8   Engine    Every   [];
    Syscall        "syscall"            []                      0x8000_0001:0 Edx 11  Engine    V1      [Msr];
    Nx             "nx"                 ["xd"]                  0x8000_0001:0 Edx 20  Engine    Every   [Pae, Msr];
    Pdpe1gb        "pdpe1gb"            []                      0x8000_0001:0 Edx 26  Engine    Every   [Lm];
    Rdtscp         "rdtscp"             []                      0x8000_0001:0 Edx 27  Engine    Every   [Tsc, Msr];
    Lm             "lm"                 []                      0x8000_0001:0 Edx 29  Engine    V1      [Pae, Msr];
    InvariantTsc   "nonstop_tsc"        ["invtsc"]              0x8000_0007:0 Edx 8   Host      Host    [Tsc];
    // What AMD's processors say about speculation (AMD 24594, 3.E; Linux, amd.c): a kernel need not work around it. Its
    // work-arounds, made of particular returns and jumps, would mean nothing once translated.
    AutoIbrs       "autoibrs"           []                      0x8000_0021:0 Eax 8   Engine    Every   [Msr];
    SrsoNo         "srso_no"            []                      0x8000_0021:0 Eax 29  Engine    Every   [];
    TsaSqNo        "tsa_sq_no"          []                      0x8000_0021:0 Ecx 1   Engine    Every   [];
    TsaL1No        "tsa_l1_no"          []                      0x8000_0021:0 Ecx 2   Engine    Every   [];
}

impl Feature {
    /// Every feature, in the table's order.
    pub fn all() -> impl Iterator<Item = Self> {
        TABLE.iter().map(|line| line.feature)
    }

    const fn line(self) -> &'static Line {
        &TABLE[self as usize]
    }

    /// The name that Linux gives it.
    pub const fn name(self) -> &'static str {
        self.line().name
    }

    /// Where CPUID reports it.
    pub const fn position(self) -> Position {
        self.line().position
    }

    /// Who carries it out.
    pub const fn executor(self) -> Executor {
        self.line().executor
    }

    pub(super) const fn models(self) -> Models {
        self.line().models
    }

    /// The features it cannot be without, one step.
    pub const fn needs(self) -> &'static [Self] {
        self.line().needs
    }

    /// The feature of that name, in any spelling the table knows; `-`, `.` and `_` are the same, as is case.
    pub fn by_name(name: &str) -> Option<Self> {
        let name = normalise(name);
        TABLE.iter().find(|l| l.name == name || l.aliases.contains(&name.as_str())).map(|l| l.feature)
    }

    /// The name nearest to a misspelt one, if any is near enough to be worth suggesting.
    pub(super) fn nearest_name(name: &str) -> Option<&'static str> {
        let name = normalise(name);
        TABLE
            .iter()
            .flat_map(|l| core::iter::once(l.name).chain(l.aliases.iter().copied()))
            .map(|candidate| (distance(&name, candidate), candidate))
            .filter(|&(d, candidate)| d <= 2 && d * 2 < candidate.len())
            .min_by_key(|&(d, _)| d)
            .map(|(_, candidate)| candidate)
    }
}

fn normalise(name: &str) -> String {
    name.trim().to_ascii_lowercase().replace(['-', '.'], "_")
}

/// The number of single-character edits between two words (Levenshtein), by one row of the usual table.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// A set of features.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FeatureSet(u128);

const _: () = assert!(TABLE.len() <= 128, "FeatureSet holds 128 features");

impl FeatureSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether the feature is in the set.
    #[inline(always)]
    pub const fn has(&self, feature: Feature) -> bool {
        self.0 >> feature as u8 & 1 != 0
    }

    /// Puts a feature in, alone.
    pub const fn insert(&mut self, feature: Feature) {
        self.0 |= 1 << feature as u8;
    }

    /// Takes a feature out, alone.
    pub const fn remove(&mut self, feature: Feature) {
        self.0 &= !(1 << feature as u8);
    }

    /// Puts a feature in, and everything it needs.
    pub fn insert_with_needs(&mut self, feature: Feature) {
        if !self.has(feature) {
            self.insert(feature);
            feature.needs().iter().for_each(|&need| self.insert_with_needs(need));
        }
    }

    /// Takes a feature out, and everything that needs it.
    pub fn remove_with_dependents(&mut self, feature: Feature) {
        self.remove(feature);
        for dependent in Feature::all() {
            if self.has(dependent) && dependent.needs().contains(&feature) {
                self.remove_with_dependents(dependent);
            }
        }
    }

    /// The features that are in `self` and not in `other`.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// The features, in the table's order.
    pub fn iter(&self) -> impl Iterator<Item = Feature> + use<> {
        let set = *self;
        Feature::all().filter(move |&f| set.has(f))
    }

    /// The bits that the set's features have in one CPUID register.
    pub fn word(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.iter()
            .map(Feature::position)
            .filter(|p| (p.leaf, p.subleaf, p.register) == (leaf, subleaf, register))
            .fold(0, |word, p| word | 1 << p.bit)
    }
}

impl FromIterator<Feature> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = Feature>>(features: I) -> Self {
        features.into_iter().fold(Self::EMPTY, |mut set, f| {
            set.insert(f);
            set
        })
    }
}

impl core::fmt::Display for FeatureSet {
    /// The names, separated by commas.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        for (i, feature) in self.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, feature.name())?;
        }
        Ok(())
    }
}

impl core::fmt::Debug for FeatureSet {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "FeatureSet({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_enum_s_order_and_without_duplicates() {
        let mut names = std::collections::HashSet::new();
        let mut positions = std::collections::HashSet::new();
        for (i, line) in TABLE.iter().enumerate() {
            assert_eq!(line.feature as usize, i);
            let p = line.position;
            assert!(positions.insert((p.leaf, p.subleaf, p.register, p.bit)), "{}", line.name);
            for name in core::iter::once(&line.name).chain(line.aliases) {
                assert!(names.insert(*name), "{name} twice");
                assert_eq!(Feature::by_name(name), Some(line.feature));
            }
        }
    }

    #[test]
    fn a_level_never_needs_a_feature_of_a_later_one() {
        let rank = |m: Models| match m {
            Models::Every | Models::V1 => 1,
            Models::V2 => 2,
            Models::V3 => 3,
            Models::Host => 4,
            Models::Asked => 5,
        };
        for f in Feature::all() {
            for need in f.needs() {
                assert!(rank(need.models()) <= rank(f.models()), "{} needs {}", f.name(), need.name());
            }
        }
    }

    #[test]
    fn spellings_and_suggestions() {
        assert_eq!(Feature::by_name("SSE4.2"), Some(Feature::Sse42));
        assert_eq!(Feature::by_name("tsc-deadline"), Some(Feature::TscDeadline));
        assert_eq!(Feature::nearest_name("avx3"), Some("avx"));
        assert_eq!(Feature::nearest_name("pclmulqd"), Some("pclmulqdq"));
        assert_eq!(Feature::nearest_name("quantum"), None);
    }

    #[test]
    fn removal_takes_dependents_and_insertion_brings_needs() {
        let mut set: FeatureSet = Feature::all().collect();
        set.remove_with_dependents(Feature::Sse3);
        for gone in [Feature::Ssse3, Feature::Sse42, Feature::Avx, Feature::Avx2, Feature::Fma, Feature::Sha]
        {
            assert!(!set.has(gone), "{}", gone.name());
        }
        assert!(set.has(Feature::Sse2) && set.has(Feature::Xsave) && set.has(Feature::Aes));

        let mut set = FeatureSet::EMPTY;
        set.insert_with_needs(Feature::Fma);
        for there in [Feature::Avx, Feature::Xsave, Feature::Fxsr, Feature::Sse2, Feature::Fpu] {
            assert!(set.has(there), "{}", there.name());
        }
    }
}
