//! What has been measured, and what is made of it: figures, ratios, geometric means.

use super::counters::{self, Counters};
use super::engine::Engine;
use super::guest::Program;
use super::session::Sample;
use super::usage::Memory;

/// Which figure stands for all samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Statistic {
    /// The middle one.
    Median,
    /// The shortest: what other work on the host has disturbed least.
    Best,
}

impl Statistic {
    /// Its name, as tables have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Median => "median",
            Self::Best => "best",
        }
    }
}

/// One program on one engine.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    /// Seconds for a unit of work, a sample each.
    pub(super) seconds: Vec<f64>,
    /// The checksum.
    pub(super) sum: Option<String>,
    /// Units of work in all samples.
    pub(super) units: u64,
    /// What was counted while they were done.
    pub(super) counters: Counters,
    /// Why there is nothing, or nothing to be trusted.
    pub(super) failure: Option<String>,
}

/// One program on all engines.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// What runs.
    pub(super) program: Program,
    /// A cell for each engine.
    pub(super) cells: Vec<Cell>,
}

/// What an engine costs beside time.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cost {
    /// The share of one processor that it takes when its guest does nothing, in percent.
    pub(super) idle_percent: Option<f64>,
    /// The most memory that it had after a program.
    pub(super) memory: Option<Memory>,
    /// The time it was at work.
    pub(super) busy_seconds: f64,
    /// The processor's time that it took for that.
    pub(super) cpu_seconds: f64,
}

/// Everything.
pub(super) struct Results {
    /// What is made of samples.
    pub(super) statistic: Statistic,
    /// The engines, in the order of all cells.
    pub(super) engines: Vec<Engine>,
    /// A row for each program.
    pub(super) rows: Vec<Row>,
    /// The cost of each engine.
    pub(super) costs: Vec<Cost>,
}

impl Cost {
    /// Takes note of memory in use.
    pub(super) fn saw_memory(&mut self, memory: Memory) {
        self.memory = Some(self.memory.unwrap_or_default().max(memory));
    }
}

impl Cell {
    /// Adds a sample of `count` units.
    pub(super) fn add(&mut self, sample: &Sample, count: u64) {
        // Both marks at once tell no time: whoever reads them was kept waiting.
        if sample.seconds > 0.0 {
            self.seconds.push(sample.seconds / count as f64);
        }
        self.sum = Some(sample.sum.clone());
        self.units += count;
        counters::add(&mut self.counters, &sample.counters);
    }

    /// The figure of its samples, if the cell is good.
    fn figure(&self, statistic: Statistic) -> Option<f64> {
        if self.failure.is_some() {
            return None;
        }
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        match statistic {
            Statistic::Best => sorted.first().copied(),
            Statistic::Median if sorted.len() % 2 == 1 => sorted.get(middle).copied(),
            Statistic::Median => {
                Some(f64::midpoint(*sorted.get(middle.checked_sub(1)?)?, *sorted.get(middle)?))
            }
        }
    }
}

impl Results {
    /// None yet.
    pub(super) fn new(engines: &[Engine], statistic: Statistic) -> Self {
        let costs = vec![Cost::default(); engines.len()];
        Self { statistic, engines: engines.to_vec(), rows: Vec::new(), costs }
    }

    /// An empty row for a program; its index.
    pub(super) fn row(&mut self, program: &Program) -> usize {
        let cells = vec![Cell::default(); self.engines.len()];
        self.rows.push(Row { program: program.clone(), cells });
        self.rows.len() - 1
    }

    /// How long a unit takes on an engine.
    pub(super) fn time(&self, row: &Row, engine: usize) -> Option<f64> {
        row.cells.get(engine)?.figure(self.statistic)
    }

    /// How many times as long one engine takes as another.
    pub(super) fn ratio(&self, row: &Row, engine: usize, reference: usize) -> Option<f64> {
        let (time, other) = (self.time(row, engine)?, self.time(row, reference)?);
        (time > 0.0 && other > 0.0).then_some(time / other)
    }

    /// Marks every cell whose checksum is not that of the first engine that has one, and counts them.
    pub(super) fn compare_checksums(&mut self) -> usize {
        let mut mismatches = 0;
        for row in &mut self.rows {
            let Some((expected, first)) = row
                .cells
                .iter()
                .zip(&self.engines)
                .find_map(|(cell, engine)| Some((cell.sum.clone()?, engine)))
            else {
                continue;
            };
            for cell in &mut row.cells {
                if let Some(sum) = cell.sum.as_ref().filter(|sum| **sum != expected) {
                    cell.failure = Some(format!("checksum {sum}, {} has {expected}", first.name()));
                    mismatches += 1;
                }
            }
        }
        mismatches
    }

    /// The classes, in their order.
    pub(super) fn classes(&self) -> Vec<&str> {
        let mut classes: Vec<&str> = self.rows.iter().map(|row| row.program.class.as_str()).collect();
        classes.dedup();
        classes
    }

    /// The geometric mean of the ratios of two engines, over the programs of a class, or all.
    pub(super) fn mean(&self, class: Option<&str>, engine: usize, reference: usize) -> Option<f64> {
        let rows = self.rows.iter().filter(|row| class.is_none_or(|class| row.program.class == class));
        let logarithms: Vec<f64> =
            rows.filter_map(|row| self.ratio(row, engine, reference)).map(f64::ln).collect();
        let count = logarithms.len() as f64;
        (count > 0.0).then(|| (logarithms.iter().sum::<f64>() / count).exp())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(times: [[f64; 2]; 2]) -> Results {
        let mut results = Results::new(&[Engine::Native, Engine::Umbra], Statistic::Median);
        for (number, times) in times.into_iter().enumerate() {
            let row = results.row(&Program { class: "c".to_owned(), name: number.to_string() });
            for (cell, time) in results.rows[row].cells.iter_mut().zip(times) {
                cell.add(&Sample { seconds: time * 4.0, sum: "1".to_owned(), ..Sample::default() }, 4);
            }
        }
        results
    }

    #[test]
    fn means_are_geometric() {
        let results = results([[1.0, 2.0], [1.0, 8.0]]);
        assert!((results.mean(Some("c"), 1, 0).unwrap() - 4.0).abs() < 1e-9);
        assert_eq!(results.mean(Some("d"), 1, 0), None);
    }

    #[test]
    fn another_checksum_is_a_failure() {
        let mut results = results([[1.0, 2.0], [1.0, 8.0]]);
        results.rows[1].cells[1].sum = Some("2".to_owned());
        assert_eq!(results.compare_checksums(), 1);
        assert_eq!(results.ratio(&results.rows[1], 1, 0), None);
        assert!(results.ratio(&results.rows[0], 1, 0).is_some());
    }

    #[test]
    fn figures_of_few() {
        let median =
            |seconds: &[f64]| Cell { seconds: seconds.to_vec(), ..Cell::default() }.figure(Statistic::Median);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[3.0, 1.0]), Some(2.0));
        let cell = Cell { seconds: vec![3.0, 1.0, 2.0], ..Cell::default() };
        assert_eq!(cell.figure(Statistic::Best), Some(1.0));
    }
}
