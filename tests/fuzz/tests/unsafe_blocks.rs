//! docs/unsafe.md lists every `unsafe` block and implementation of the project with
//! its reason, as the code has it; docs/unsafe.zh.md has the same in Chinese, by the
//! sentences of `unsafe_blocks.zh.json`. `KICKPATH_WRITE_DOCS=1` writes both anew.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use kickpath_fuzz::document;
use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// How far above the keyword the comment may end, in lines.
const NEAR: usize = 4;

const COMMAND: &str = "KICKPATH_WRITE_DOCS=1 cargo test -p kickpath-fuzz --test unsafe_blocks";

/// From `docs`, where the Chinese of each reason is.
const CATALOGUE: &str = "../tests/fuzz/tests/unsafe_blocks.zh.json";

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

/// The files that vouch for something, by name, each with its reasons in the order of the code.
fn reasons() -> Vec<(String, Vec<String>)> {
    let top = document::workspace();
    let mut paths = Vec::new();
    for directory in ["boot", "kernel", "tests"] {
        files(&top.join(directory), &mut paths);
    }
    paths.sort();
    let (mut found, mut without) = (Vec::new(), Vec::new());
    for path in paths {
        let name = path.strip_prefix(&top).unwrap().display().to_string();
        let text = std::fs::read_to_string(&path).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut lines = Vec::new();
        places(tokens, &mut lines);
        let source: Vec<&str> = text.lines().collect();
        let mut reasons = Vec::new();
        for line in lines {
            match reason(&source, line) {
                Some(reason) => reasons.push(reason),
                None => without.push(format!("{name}:{line}")),
            }
        }
        if !reasons.is_empty() {
            found.push((name, reasons));
        }
    }
    assert!(without.is_empty(), "without a reason: {without:#?}");
    found
}

/// The reasons in Chinese, by the English sentence.
fn catalogue() -> BTreeMap<String, String> {
    serde_json::from_str(include_str!("unsafe_blocks.zh.json")).unwrap()
}

/// Reasons that `catalogue` has no Chinese for, as entries to be filled in, and entries that are
/// nobody's reason.
fn amiss(catalogue: &BTreeMap<String, String>, reasons: &BTreeSet<&str>) -> [Vec<String>; 2] {
    let lacks = |reason: &&&str| catalogue.get(**reason).is_none_or(|text| text.is_ascii());
    let lacking = reasons.iter().filter(lacks);
    let left_over = catalogue.keys().map(String::as_str);
    let left_over = left_over.filter(|reason| !reasons.contains(reason));
    [
        lacking.map(|reason| format!("{reason:?}: \"\",")).collect(),
        left_over.map(str::to_owned).collect(),
    ]
}

/// The list below `head`; reasons that follow each other and are the same stand there once.
fn list(
    head: &str,
    found: &[(String, Vec<String>)],
    times: impl Fn(usize) -> String,
    text: impl Fn(&str) -> String,
) -> String {
    let mut list = head.to_owned();
    for (name, reasons) in found {
        writeln!(list, "\n## {name}: {}\n", reasons.len()).unwrap();
        for same in reasons.chunk_by(PartialEq::eq) {
            let times = match same.len() {
                1 => String::new(),
                count => times(count),
            };
            writeln!(list, "- {times}{}", text(&same[0])).unwrap();
        }
    }
    list
}

#[test]
fn every_unsafe_block_has_its_reason_in_the_list() {
    let found = reasons();
    let total: usize = found.iter().map(|(_, reasons)| reasons.len()).sum();
    assert!(total > 200, "only {total} were found");
    let head = format!(
        "# Every unsafe block, and why it may be\n\n\
         {total} blocks and implementations, by file and in the order of the code, each with what its\n\
         `// SAFETY:` comment says.\n\
         [中文](unsafe.zh.md)\n\n\
         Made from the code, the Chinese edition also from [unsafe_blocks.zh.json]({CATALOGUE});\n\
         both are brought up to date by\n\n    {COMMAND}\n"
    );
    let times = |count| format!("({count} times) ");
    document::check("unsafe.md", COMMAND, |_| {
        list(&head, &found, times, str::to_owned)
    });

    let catalogue = catalogue();
    let distinct = found.iter().flat_map(|(_, reasons)| reasons);
    let distinct = distinct.map(String::as_str).collect();
    let [lacking, left_over] = amiss(&catalogue, &distinct);
    assert!(
        lacking.is_empty() && left_over.is_empty(),
        "tests/fuzz/tests/unsafe_blocks.zh.json lacks\n{}\nand has, though no comment says it,\n{}",
        lacking.join("\n"),
        left_over.join("\n")
    );
    let head = format!(
        "# 每个 unsafe 块，以及为什么可以这样写\n\n\
         {total} 个块和实现，按文件、按代码中的次序列出，每个都附有它的 `// SAFETY:` 注释\n\
         所说的理由，由英文译出。\n\
         [English](unsafe.md)\n\n\
         由代码生成，中文版还要用到 [unsafe_blocks.zh.json]({CATALOGUE})；\n\
         更新两者的命令是\n\n    {COMMAND}\n"
    );
    let times = |count| format!("（{count} 处）");
    document::check("unsafe.zh.md", COMMAND, |_| {
        list(&head, &found, times, |reason| catalogue[reason].clone())
    });
}

#[test]
fn what_the_catalogue_lacks_is_told_and_what_it_has_too_much() {
    let entries = [("a.", "甲。"), ("b.", "b."), ("c.", "丙。")];
    let entries = entries.map(|(reason, text)| (reason.to_owned(), text.to_owned()));
    let reasons = BTreeSet::from(["a.", "b.", "d `x`."]);
    assert_eq!(
        amiss(&entries.into(), &reasons),
        [vec!["\"b.\": \"\",", "\"d `x`.\": \"\","], vec!["c."]]
    );
}

#[test]
fn a_list_keeps_the_order_of_the_code() {
    let found = [(
        "f".to_owned(),
        ["b", "b", "a", "b"].map(str::to_owned).into(),
    )];
    let times = |count| format!("{count} * ");
    let text = list("head\n", &found, times, str::to_uppercase);
    assert_eq!(text, "head\n\n## f: 4\n\n- 2 * B\n- A\n- B\n");
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
