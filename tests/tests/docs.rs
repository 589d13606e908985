//! The tables of docs/kick-path.md name code that exists.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Links of table rows: what is named, and the file that must have it.
fn links(page: &str) -> BTreeSet<(String, String)> {
    let rows = page.lines().filter(|line| line.starts_with("| "));
    rows.flat_map(|row| {
        row.split("[`").skip(1).filter_map(|rest| {
            let (name, rest) = rest.split_once("`](../")?;
            let (path, _) = rest.split_once(')')?;
            Some((name.to_owned(), path.to_owned()))
        })
    })
    .collect()
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page(name: &str) -> String {
    std::fs::read_to_string(workspace().join("docs").join(name)).unwrap()
}

#[test]
fn every_row_names_code_that_exists() {
    let links = links(&page("kick-path.md"));
    assert!(links.len() > 25, "{links:?}");
    for (name, path) in &links {
        let source = std::fs::read_to_string(workspace().join(path)).unwrap();
        let item = name.rsplit("::").next().unwrap();
        let defined = ["fn", "trait", "struct", "enum"].iter().any(|kind| {
            source
                .match_indices(&format!("{kind} {item}"))
                .any(|(at, found)| {
                    let next = source[at + found.len()..].chars().next();
                    !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
                })
        });
        assert!(defined, "{path} has no {name}");
    }
}

#[test]
fn the_translation_has_the_same_rows() {
    assert_eq!(
        links(&page("kick-path.md")),
        links(&page("kick-path.zh.md"))
    );
}
