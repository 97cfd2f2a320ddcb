//! docs/PROTOCOL.md names the tests that show what it says.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::process;

/// The names in the last cells of the tables' rows.
fn named(page: &str) -> Vec<&str> {
    page.lines()
        .filter(|line| line.starts_with("| ") && line.ends_with(" |"))
        .filter_map(|line| line.trim_end_matches(" |").rsplit(" | ").next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect()
}

/// Adds the names of all test functions below a folder.
fn collect(folder: &Path, tests: &mut HashSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let is_source = path.extension().is_some_and(|extension| extension == "rs");
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, tests)?;
        } else if is_source {
            tests.extend(functions(&fs::read_to_string(&path)?));
        }
    }
    Ok(())
}

/// The functions behind `#[test]`, in macros too, other attributes in between.
fn functions(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in source.match_indices("#[test]") {
        let after = source.get(at..).unwrap_or_default();
        let name = after.split_once("fn ").map(|(_, name)| name);
        let end = |name: &str| name.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
        found.extend(name.and_then(|name| Some(name.get(..end(name)?)?.to_owned())));
    }
    found
}

#[test]
fn the_protocol_page_names_tests_that_exist() -> Result<()> {
    let root = process::root();
    let page = fs::read_to_string(root.join("docs/PROTOCOL.md"))?;
    let mut tests = HashSet::new();
    for folder in ["common", "ike-daemon", "ebpf-dataplane", "tests"] {
        collect(&root.join(folder), &mut tests)?;
    }
    let named = named(&page);
    ensure!(named.len() > 50, "only {} names were found", named.len());
    let missing: Vec<&&str> = named
        .iter()
        .filter(|name| !tests.contains(**name))
        .collect();
    ensure!(missing.is_empty(), "no such tests: {missing:?}");
    Ok(())
}

#[test]
fn names_are_taken_from_the_last_cell_alone() {
    let page = "| 1 | `a` | yes | `one_two`, `three` |\n|---|---|\nnot a `row`\n";
    assert_eq!(named(page), ["one_two", "three"]);
    let source = "#[test]\n#[ignore]\nfn one() {}\n#[test]\nfn two() -> Result<()> {";
    assert_eq!(functions(source), ["one", "two"]);
}
