//! What repeated visits of several cases measured: medians, and ratios within each repetition.

use std::fmt::Display;

/// A figure of a visit.
pub struct Column<M: 'static> {
    /// Its name in JSON.
    pub name: &'static str,
    /// Its name in a table.
    pub title: &'static str,
    /// The figure, where it was measured.
    pub value: fn(&M) -> Option<f64>,
    /// Whether the sender of packets was the limit and not the way.
    pub limited: fn(&M) -> bool,
    /// Digits after the point in a table.
    pub digits: usize,
}

/// A visit of a case.
#[derive(Clone, Debug)]
pub struct Visit<K, M> {
    /// In which repetition, from 0.
    pub rep: u32,
    /// Of which case.
    pub case: K,
    /// What was measured.
    pub measures: M,
    /// Part of the processors that others used just before, 0 to 1.
    pub busy_before: f64,
}

/// A case that could not be measured.
#[derive(Clone, Debug)]
pub struct Skipped<K> {
    /// Which.
    pub case: K,
    /// Why.
    pub reason: String,
}

/// All visits.
#[derive(Clone, Debug)]
pub struct Visits<K, M> {
    list: Vec<Visit<K, M>>,
    /// What could not be measured.
    pub skipped: Vec<Skipped<K>>,
}

impl<K, M> Default for Visits<K, M> {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            skipped: Vec::new(),
        }
    }
}

impl<K: Copy + PartialEq + Display, M> Visits<K, M> {
    /// Adds a visit.
    pub fn add(&mut self, visit: Visit<K, M>) {
        self.list.push(visit);
    }

    /// All of them in the order of their time.
    pub fn all(&self) -> &[Visit<K, M>] {
        &self.list
    }

    /// The cases that were measured, in the order of their first visits.
    pub fn cases(&self) -> Vec<K> {
        let mut cases = Vec::new();
        for visit in &self.list {
            if !cases.contains(&visit.case) {
                cases.push(visit.case);
            }
        }
        cases
    }

    /// The visits of a case.
    pub fn of(&self, case: K) -> impl Iterator<Item = &Visit<K, M>> {
        self.list.iter().filter(move |visit| visit.case == case)
    }

    /// Median of a figure over the repetitions.
    pub fn median(&self, case: K, column: &Column<M>) -> Option<f64> {
        median(
            self.of(case)
                .filter_map(|visit| (column.value)(&visit.measures))
                .collect(),
        )
    }

    /// The median of the ratios within each repetition: what slows the whole machine down for a
    /// while slows both down.
    pub fn ratio(&self, case: K, reference: K, column: &Column<M>) -> Option<f64> {
        self.compare(case, reference, column, |own, reference| {
            (reference > 0.0).then(|| own / reference)
        })
    }

    /// The median of the differences within each repetition.
    pub fn difference(&self, case: K, reference: K, column: &Column<M>) -> Option<f64> {
        self.compare(case, reference, column, |own, reference| {
            Some(own - reference)
        })
    }

    fn compare(
        &self,
        case: K,
        reference: K,
        column: &Column<M>,
        compared: impl Fn(f64, f64) -> Option<f64>,
    ) -> Option<f64> {
        let values = self.of(case).filter_map(|visit| {
            let beside = self.of(reference).find(|other| other.rep == visit.rep)?;
            compared(
                (column.value)(&visit.measures)?,
                (column.value)(&beside.measures)?,
            )
        });
        median(values.collect())
    }

    /// Whether the sender was the limit in any visit.
    pub fn limited(&self, case: K, column: &Column<M>) -> bool {
        self.of(case).any(|visit| (column.limited)(&visit.measures))
    }

    /// Part of the processors that others used before a visit, 0 to 1; the median.
    pub fn busy(&self) -> f64 {
        median(self.list.iter().map(|visit| visit.busy_before).collect()).unwrap_or(0.0)
    }
}

/// The middle value; of an even number the mean of the two in the middle.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values.get(middle - 1)? + upper) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIGURE: Column<Option<f64>> = Column {
        name: "figure",
        title: "figure",
        value: |it| *it,
        limited: |_| false,
        digits: 0,
    };

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn comparisons_are_made_within_a_repetition() {
        let mut visits = Visits::default();
        // The machine was half as fast in the second repetition, and in the third the way failed.
        for (rep, case, measures) in [
            (0, "plain", Some(8.0)),
            (0, "tunnel", Some(2.0)),
            (1, "plain", Some(4.0)),
            (1, "tunnel", Some(1.0)),
            (2, "tunnel", None),
        ] {
            visits.add(Visit {
                rep,
                case,
                measures,
                busy_before: 0.1,
            });
        }
        assert_eq!(visits.cases(), ["plain", "tunnel"]);
        assert_eq!(visits.median("tunnel", &FIGURE), Some(1.5));
        assert_eq!(visits.ratio("tunnel", "plain", &FIGURE), Some(0.25));
        assert_eq!(visits.difference("tunnel", "plain", &FIGURE), Some(-4.5));
        assert_eq!(visits.ratio("tunnel", "other", &FIGURE), None);
    }
}
