//! What came of litmus tests, and how it is printed.

use std::collections::BTreeMap;
use std::fmt;

/// What a run found.
#[derive(Clone, Debug)]
pub struct Report {
    /// One of each test.
    pub results: Vec<Result>,
}

/// What came of one test.
#[derive(Clone, Debug)]
pub struct Result {
    /// Its name.
    pub name: String,
    /// What an outcome consists of: `1:r0` is R8 of vCPU 1, `x` a final value.
    pub names: Vec<String>,
    /// How many vCPUs it takes.
    pub processors: usize,
    /// How often it was run.
    pub rounds: u64,
    /// How often each outcome was seen.
    pub outcomes: BTreeMap<Vec<u64>, u64>,
    /// Whether a weak outcome was seen, where there is one.
    pub weak: Option<bool>,
    /// What to think of it.
    pub verdict: Verdict,
}

/// What to think of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was seen that should not be.
    Ok,
    /// These outcomes are against the rules.
    Forbidden(Vec<Vec<u64>>),
    /// These outcomes are against rules that do not bind here.
    NotPromised(Vec<Vec<u64>>),
    /// The test did not end, for this reason.
    Failed(String),
}

impl Result {
    /// Whether it speaks against the engine.
    pub fn is_failure(&self) -> bool {
        matches!(self.verdict, Verdict::Forbidden(_) | Verdict::Failed(_))
    }

    fn is_bad(&self, outcome: &Vec<u64>) -> bool {
        match &self.verdict {
            Verdict::Forbidden(bad) | Verdict::NotPromised(bad) => bad.contains(outcome),
            Verdict::Ok | Verdict::Failed(_) => false,
        }
    }

    /// An outcome in words.
    fn describe(&self, outcome: &[u64]) -> String {
        let parts = self.names.iter().zip(outcome).map(|(name, value)| {
            // Two halves in one number read better in hexadecimal.
            if *value > u64::from(u32::MAX) {
                format!("{name}={value:#x}")
            } else {
                format!("{name}={value}")
            }
        });
        parts.collect::<Vec<_>>().join(" ")
    }
}

/// Outcomes that are printed of one test; the rest is only counted, unless it is bad.
const SHOWN: usize = 16;

impl fmt::Display for Result {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match (&self.verdict, self.weak) {
            (Verdict::Ok, None) => "ok".to_owned(),
            (Verdict::Ok, Some(true)) => "ok, weak outcome seen".to_owned(),
            (Verdict::Ok, Some(false)) => "ok, weak outcome not seen".to_owned(),
            (Verdict::Forbidden(_), _) => "FORBIDDEN SEEN".to_owned(),
            (Verdict::NotPromised(_), _) => "not promised, seen".to_owned(),
            (Verdict::Failed(why), _) => format!("FAILED: {why}"),
        };
        write!(f, "{:<20} {:>2} {:>9}  {verdict}", self.name, self.processors, self.rounds)?;
        let mut left = 0;
        for (shown, (outcome, count)) in self.outcomes.iter().enumerate() {
            let bad = self.is_bad(outcome);
            if shown >= SHOWN && !bad {
                left += count;
                continue;
            }
            let mark = if bad { "  <--" } else { "" };
            write!(f, "\n{:>33}  {}{mark}", count, self.describe(outcome))?;
        }
        if left != 0 {
            write!(f, "\n{left:>33}  others")?;
        }
        Ok(())
    }
}

/// How many threads this host runs at once.
pub fn host_processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Report {
    /// Whether anything speaks against the engine.
    pub fn is_failure(&self) -> bool {
        self.results.iter().any(Result::is_failure)
    }

    /// What a reader should know first: the columns, and how much the host can show.
    pub fn head() -> String {
        let processors = host_processors();
        let columns = format!("{:<20} {:>2} {:>9}  verdict, outcomes", "test", "n", "rounds");
        match processors {
            1 => format!(
                "ATTENTION: this host has one processor. vCPUs take turns on it, so tests of more than one mean little.\n{columns}"
            ),
            2 | 3 => format!(
                "This host has {processors} processors: of tests with more vCPUs (n), not all run at once.\n{columns}"
            ),
            _ => columns,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Self::head())?;
        self.results.iter().try_for_each(|result| write!(f, "\n{result}"))
    }
}
