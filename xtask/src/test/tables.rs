//! The tables after the summary: engines by kernels by peers, and the eBPF programs by kernels.

use super::Outcome;

/// Passed cases of every engine against every peer, by the kernel they ran on.
pub fn matrix(results: &[Outcome]) -> String {
    let kernels = kernels(results);
    let mut rows: Vec<(&str, &str)> = Vec::new();
    for case in results.iter().flat_map(|outcome| &outcome.tally.cases) {
        let row = (case.engine.as_str(), case.peer.as_str());
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    if rows.is_empty() {
        return String::new();
    }
    rows.sort_unstable();
    let cell = |kernel: &str, row: (&str, &str)| {
        let ended = |result: &str| {
            results
                .iter()
                .filter(|outcome| outcome.kernel == kernel)
                .flat_map(|outcome| &outcome.tally.cases)
                .filter(|case| (case.engine.as_str(), case.peer.as_str()) == row)
                .filter(|case| case.result == result)
                .count()
        };
        match (ended("ok"), ended("failed"), ended("skipped")) {
            (0, 0, 0) => "-".to_owned(),
            (0, 0, _) => "skipped".to_owned(),
            (passed, 0, _) => passed.to_string(),
            (passed, failed, _) => format!("{passed} of {}", passed + failed),
        }
    };
    let body = rows.iter().map(|&row| {
        let cells = kernels.iter().map(|kernel| cell(kernel, row));
        [row.0.to_owned(), row.1.to_owned()]
            .into_iter()
            .chain(cells)
            .collect()
    });
    table(
        "cases passed: engines of Espada, peers, kernels",
        &["engine", "peer"],
        &kernels,
        body,
    )
}

/// What every eBPF program cost each kernel's verifier.
pub fn programs(results: &[Outcome]) -> String {
    let kernels = kernels(results);
    let mut names: Vec<&str> = results
        .iter()
        .flat_map(|outcome| &outcome.tally.programs)
        .map(|program| program.name.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        return String::new();
    }
    let body = names.iter().map(|name| {
        let cells = kernels.iter().map(|kernel| {
            results
                .iter()
                .filter(|outcome| outcome.kernel == *kernel)
                .flat_map(|outcome| &outcome.tally.programs)
                .find(|program| program.name == *name)
                .map_or("-".to_owned(), |program| {
                    format!("{} {} ms", program.instructions, program.load_ms)
                })
        });
        [(*name).to_owned()].into_iter().chain(cells).collect()
    });
    table(
        "eBPF programs: instructions the verifier walked through, time to load (virtual machines are slow)",
        &["program"],
        &kernels,
        body,
    )
}

/// The kernels that anything ran on, in order.
fn kernels(results: &[Outcome]) -> Vec<&'static str> {
    let mut kernels: Vec<&'static str> = Vec::new();
    for outcome in results {
        if !kernels.contains(&outcome.kernel) {
            kernels.push(outcome.kernel);
        }
    }
    kernels
}

fn table(
    title: &str,
    labels: &[&str],
    kernels: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> String {
    let head = labels.iter().chain(kernels).map(|&name| name.to_owned());
    let all: Vec<Vec<String>> = std::iter::once(head.collect()).chain(rows).collect();
    let width = |column: usize| {
        all.iter()
            .filter_map(|row| row.get(column))
            .map(String::len)
            .max()
            .unwrap_or(0)
    };
    let mut text = format!("\n{title}\n");
    for row in &all {
        let mut line = String::from(" ");
        for (column, cell) in row.iter().enumerate() {
            let width = width(column);
            // Labels begin in one place, counts end in one.
            line += &if column < labels.len() {
                format!(" {cell:width$}")
            } else {
                format!("  {cell:>width$}")
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tally::Tally;
    use super::*;

    fn outcome(kernel: &'static str, lines: &[&str]) -> Outcome {
        let mut tally = Tally::default();
        for line in lines {
            tally.read(line);
        }
        Outcome {
            title: String::new(),
            kernel,
            tally,
            success: true,
            took: Duration::ZERO,
        }
    }

    #[test]
    fn cases_are_counted_by_kernel() {
        let results = [
            outcome(
                "host",
                &["MATRIX: engine=xfrm peer=openiked case=a skipped"],
            ),
            outcome(
                "6.1",
                &[
                    "MATRIX: engine=xfrm peer=openiked case=a ok",
                    "MATRIX: engine=xfrm peer=openiked case=b failed",
                    "MATRIX: engine=ebpf peer=espada case=a ok",
                ],
            ),
        ];
        assert_eq!(
            matrix(&results),
            "\ncases passed: engines of Espada, peers, kernels\n\
             \x20 engine peer         host     6.1\n\
             \x20 ebpf   espada          -       1\n\
             \x20 xfrm   openiked  skipped  1 of 2\n"
        );
    }

    #[test]
    fn programs_are_shown_by_kernel() {
        let results = [
            outcome("host", &[]),
            outcome(
                "6.1",
                &["VERIFIER: kernel=6.1.0 program=espada_xdp insns=4321 load_ms=12.5"],
            ),
        ];
        let text = programs(&results);
        assert!(
            text.ends_with(
                "\n  program     host           6.1\n  espada_xdp     -  4321 12.5 ms\n"
            ),
            "{text}"
        );
    }
}
