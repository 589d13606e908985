//! Documents that tests make, or a part of: they fail when one is stale, and write it
//! when asked to.

use std::path::{Path, PathBuf};

/// Set, documents are written and not compared.
pub const WRITE_VARIABLE: &str = "KICKPATH_WRITE_DOCS";

/// The project's top directory.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Compares `name` in `docs` with what `make` makes of it, or writes it.
///
/// # Panics
/// When it is stale: `command` brings it up to date. When it cannot be read or written.
pub fn check(name: &str, command: &str, make: impl FnOnce(&str) -> String) {
    let path = workspace().join("docs").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let new = make(&text);
    if std::env::var_os(WRITE_VARIABLE).is_some_and(|value| !value.is_empty() && value != "0") {
        std::fs::write(&path, new).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        return;
    }
    let differs = text.lines().zip(new.lines()).find(|(old, new)| old != new);
    let (old, should) = differs.unwrap_or(("", "more, or fewer, lines"));
    assert!(
        text == new,
        "docs/{name} is stale. It has\n{old}\nand should have\n{should}\nWrite it by\n{command}"
    );
}

/// `text` with what is between two lines, `begin` and `end`, replaced by `new`.
///
/// # Panics
/// When the lines are not there.
pub fn replace(text: &str, begin: &str, end: &str, new: &str) -> String {
    let (before, rest) = text
        .split_once(begin)
        .unwrap_or_else(|| panic!("no {begin}"));
    let (_, after) = rest.split_once(end).unwrap_or_else(|| panic!("no {end}"));
    format!("{before}{begin}\n{new}{end}{after}")
}
