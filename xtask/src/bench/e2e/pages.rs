//! The results in `docs`: the JSON, the charts drawn from it, and the part of the page between two
//! marks.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{chart, report};
use crate::process::{self, say};

const PAGE: &str = "docs/BENCHMARKS.md";
const FOLDER: &str = "docs/bench";
const RESULTS: &str = "docs/bench/e2e.json";
const BEGIN: &str =
    "<!-- bench e2e: from here on written by `cargo xtask bench e2e --write-docs` -->";
const END: &str = "<!-- bench e2e: to here -->";

/// Stores the results and draws them.
pub fn write(results: &Value) -> Result<()> {
    write_in(&process::root(), results)
}

/// Draws the stored results once more.
pub fn render() -> Result<()> {
    let file = process::root().join(RESULTS);
    let text = fs::read_to_string(&file).with_context(|| {
        format!(
            "cannot read {}; `cargo xtask bench e2e --write-docs` makes it",
            file.display()
        )
    })?;
    let results =
        serde_json::from_str(&text).with_context(|| format!("{} is no JSON", file.display()))?;
    write(&results)
}

fn write_in(root: &Path, results: &Value) -> Result<()> {
    let page = root.join(PAGE);
    let old = fs::read_to_string(&page).with_context(|| format!("cannot read {PAGE}"))?;
    let charts = chart::draw(results)?;
    let mut part = report::to_markdown(results)?;
    for chart in &charts {
        part += &format!("\n![{}](bench/{})\n", chart.title, chart.file);
    }
    // The page first: without its marks nothing is changed.
    let new = replaced(&old, &part)?;
    let folder = root.join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {FOLDER}"))?;
    put(root.join(RESULTS), &format!("{results:#}\n"))?;
    for chart in &charts {
        put(folder.join(&chart.file), &chart.svg)?;
    }
    put(page, &new)
}

fn put(file: PathBuf, text: &str) -> Result<()> {
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    say(format_args!("wrote {}", file.display()));
    Ok(())
}

/// The page with another text between the marks.
fn replaced(page: &str, part: &str) -> Result<String> {
    let marks = page
        .split_once(BEGIN)
        .and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let (before, after) =
        marks.with_context(|| format!("{PAGE} has no lines \"{BEGIN}\" and \"{END}\""))?;
    ensure!(
        !after.contains(BEGIN),
        "{PAGE} has the line \"{BEGIN}\" twice"
    );
    Ok(format!(
        "{before}{BEGIN}\n\n{}\n\n{END}{after}",
        part.trim()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::e2e::report::tests::results;

    #[test]
    fn only_what_is_between_the_marks_changes() {
        let page = format!("before\n{BEGIN}\nold\n{END}\nafter\n");
        let once = replaced(&page, "new\n").unwrap();
        assert_eq!(once, format!("before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"));
        assert_eq!(replaced(&once, "new\n").unwrap(), once);
        assert!(replaced("nothing", "new").is_err());
        assert!(replaced(&format!("{page}{page}"), "new").is_err());
    }

    #[test]
    fn the_page_of_this_tree_has_its_place() {
        let page = fs::read_to_string(process::root().join(PAGE)).unwrap();
        replaced(&page, "new").unwrap();
    }

    #[test]
    fn results_can_be_drawn_again() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("docs")).unwrap();
        let page = root.path().join(PAGE);
        fs::write(&page, format!("{BEGIN}\n{END}\n")).unwrap();
        write_in(root.path(), &results()).unwrap();
        let stored = fs::read_to_string(root.path().join(RESULTS)).unwrap();
        let first = fs::read_to_string(&page).unwrap();
        assert!(first.contains("](bench/e2e-tcp.svg)"), "{first}");
        write_in(root.path(), &serde_json::from_str(&stored).unwrap()).unwrap();
        assert_eq!(fs::read_to_string(&page).unwrap(), first);
        for file in ["e2e-tcp.svg", "e2e-udp.svg", "e2e-rtt.svg", "e2e-cpu.svg"] {
            assert!(root.path().join(FOLDER).join(file).is_file(), "{file}");
        }
    }
}
