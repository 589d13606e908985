//! docs/unsafe.md lists every `unsafe` block and implementation of the project with
//! its reason, as the code has it. `KICKPATH_WRITE_DOCS=1` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kickpath_fuzz::document;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// How far above the keyword the comment may end, in lines.
const NEAR: usize = 4;

const COMMAND: &str = "KICKPATH_WRITE_DOCS=1 cargo test -p kickpath-fuzz --test unsafe_blocks";

/// The lines, from 1, on which an `unsafe` block begins or an `unsafe impl` does. What
/// only says that something else is unsafe (functions, traits, types, attributes) has its
/// conditions in its documentation.
fn places(tokens: TokenStream, lines: &mut Vec<usize>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Ident(word) if word == "unsafe" => {
                let vouches = match tokens.peek() {
                    Some(TokenTree::Group(group)) => group.delimiter() == Delimiter::Brace,
                    Some(TokenTree::Ident(next)) => next == "impl",
                    _ => false,
                };
                if vouches {
                    lines.push(word.span().start().line);
                }
            }
            TokenTree::Group(group) => places(group.stream(), lines),
            _ => (),
        }
    }
}

/// The text of a `// SAFETY:` comment of which the last line stands on `line`, from 1, or
/// a little above.
fn reason(source: &[&str], line: usize) -> Option<String> {
    let comment = |number: usize| {
        source
            .get(number.checked_sub(1)?)?
            .trim()
            .strip_prefix("//")
    };
    let last = (line.saturating_sub(NEAR)..line)
        .rev()
        .find(|number| comment(*number).is_some())?;
    let first = (1..=last)
        .rev()
        .take_while(|number| comment(*number).is_some())
        .find(|number| comment(*number).is_some_and(|text| text.trim().starts_with("SAFETY:")))?;
    let text: Vec<&str> = (first..=last).filter_map(comment).map(str::trim).collect();
    let text = text.join(" ");
    let reason = text.strip_prefix("SAFETY:")?.trim();
    (!reason.is_empty()).then(|| reason.to_owned())
}

/// Every file of Rust in a directory and below.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_unsafe_block_has_its_reason_in_the_list() {
    let top = document::workspace();
    let mut paths = Vec::new();
    for directory in ["boot", "kernel", "tests"] {
        files(&top.join(directory), &mut paths);
    }
    paths.sort();
    let (mut body, mut total, mut without) = (String::new(), 0, Vec::new());
    for path in paths {
        let name = path.strip_prefix(&top).unwrap().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut lines = Vec::new();
        places(tokens, &mut lines);
        if lines.is_empty() {
            continue;
        }
        total += lines.len();
        let source: Vec<&str> = text.lines().collect();
        let mut reasons = BTreeMap::new();
        for line in &lines {
            match reason(&source, *line) {
                Some(reason) => *reasons.entry(reason).or_insert(0) += 1,
                None => without.push(format!("{name}:{line}")),
            }
        }
        writeln!(body, "\n## {name}: {}\n", lines.len()).unwrap();
        for (reason, count) in reasons {
            let times = match count {
                1 => String::new(),
                _ => format!("({count} times) "),
            };
            writeln!(body, "- {times}{reason}").unwrap();
        }
    }
    assert!(without.is_empty(), "without a reason: {without:#?}");
    assert!(total > 200, "only {total} were found");
    let head = format!(
        "# Every unsafe block, and why it may be\n\n\
         {total} blocks and implementations, by file, each with what its `// SAFETY:` comment says.\n\
         Made from the code; it is brought up to date by\n\n    {COMMAND}\n"
    );
    document::check("unsafe.md", COMMAND, |_| head + &body);
}

#[test]
fn what_vouches_is_told_from_what_asks() {
    let text = "
        // SAFETY: one.
        unsafe impl Send for A {}
        unsafe fn f() { g(|| unsafe { \"unsafe {\" }) } // unsafe {
        #[unsafe(no_mangle)] extern \"C\" fn h(p: unsafe fn()) {}
        // SAFETY: two,
        // in two lines.

        let x =
            unsafe { 1 };
        m! { unsafe { 2 } }
    ";
    let mut lines = Vec::new();
    places(text.parse().unwrap(), &mut lines);
    assert_eq!(lines, [3, 4, 10, 11]);
    let source: Vec<&str> = text.lines().collect();
    assert_eq!(reason(&source, 3).as_deref(), Some("one."));
    assert_eq!(reason(&source, 10).as_deref(), Some("two, in two lines."));
    assert_eq!(reason(&source, 13), None);
}
