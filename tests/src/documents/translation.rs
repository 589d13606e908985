//! The blocks of a Chinese edition: those of the English one, with the cells of tables in Chinese
//! by the phrases of `tables.zh.json`. Code, figures and versions stay as they are; a name is a
//! phrase that stands for itself.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

/// English phrases and the Chinese for each, the longest first.
struct Phrases(Vec<(String, String)>);

impl Phrases {
    fn new(phrases: BTreeMap<String, String>) -> Self {
        let mut phrases: Vec<_> = phrases.into_iter().collect();
        phrases.sort_by_key(|(phrase, _)| Reverse(phrase.len()));
        Self(phrases)
    }

    fn read() -> Result<Self> {
        let phrases = serde_json::from_str(include_str!("tables.zh.json"));
        Ok(Self::new(phrases.context("tables.zh.json")?))
    }

    /// The longest phrase that `text` begins with, and its Chinese.
    fn longest(&self, text: &str) -> Option<(usize, &str)> {
        let found = self.0.iter().find(|(phrase, _)| {
            let is_letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
            let rest = text.strip_prefix(phrase.as_str());
            // Not a part of a word.
            rest.is_some_and(|rest| {
                !is_letter(phrase.chars().last()) || !is_letter(rest.chars().next())
            })
        });
        found.map(|(phrase, chinese)| (phrase.len(), chinese.as_str()))
    }

    /// A row of a table.
    fn translate(&self, row: &str) -> Result<String> {
        let (mut made, mut rest) = (String::new(), row);
        while let Some(first) = rest.chars().next() {
            let (length, chinese) = if first == '`' {
                let end = rest[1..].find('`').context("a backquote has no other")? + 2;
                (end, &rest[..end])
            } else if let Some(found) = self.longest(rest) {
                found
            } else if first.is_ascii_digit() {
                let end = rest.find([' ', ',', ';', ')']).unwrap_or(rest.len());
                (end, &rest[..end])
            } else if first.is_alphabetic() {
                let cell = rest.split(" |").next().unwrap_or_default();
                bail!("tables.zh.json has no Chinese for the beginning of {cell:?} in {row}");
            } else {
                (first.len_utf8(), &rest[..first.len_utf8()])
            };
            made += chinese;
            rest = &rest[length..];
        }
        Ok(made)
    }
}

fn begins(line: &str) -> bool {
    line.starts_with("<!-- recorded: ") || line.ends_with(": begin -->")
}

fn ends(line: &str) -> bool {
    line == "<!-- end -->" || line.ends_with(": end -->")
}

/// `text`, a Chinese edition, with what is in its blocks made of the blocks of `english`.
///
/// # Errors
/// The English edition has no such block, or a cell has words without Chinese.
pub fn fill(text: &str, english: &str) -> Result<String> {
    let phrases = Phrases::read()?;
    let (mut filled, mut lines) = (String::new(), text.lines());
    while let Some(line) = lines.next() {
        filled += &format!("{line}\n");
        if !begins(line) {
            continue;
        }
        let block = english.lines().skip_while(|begin| *begin != line).skip(1);
        let mut block = block.take_while(|line| !ends(line)).peekable();
        ensure!(block.peek().is_some(), "{line} is not in English");
        for line in block {
            filled += &match line.starts_with('|') {
                true => phrases.translate(line)?,
                false => line.to_owned(),
            };
            filled.push('\n');
        }
        let end = lines.find(|line| ends(line));
        filled += &format!("{}\n", end.with_context(|| format!("{line} has no end"))?);
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::{document, text::TRANSLATED};

    #[test]
    fn cells_are_translated_but_for_code_figures_and_names() {
        let phrases = [
            ("gives", "给"),
            ("gives back", "归还"),
            ("; ", "；"),
            ("PCI", "PCI"),
        ];
        let phrases = phrases.map(|(phrase, chinese)| (phrase.to_owned(), chinese.to_owned()));
        let phrases = Phrases::new(phrases.into());
        let row = "| gives back; gives | `gives 1` | 0.50 / 1.2-dev | PCI |  | - |";
        let chinese = "| 归还；给 | `gives 1` | 0.50 / 1.2-dev | PCI |  | - |";
        assert_eq!(phrases.translate(row).unwrap(), chinese);
        for (cell, of) in [
            ("gives backs", "backs"),
            ("takes; gives", "takes; gives"),
            ("PCIe", "PCIe"),
        ] {
            let error = phrases.translate(&format!("| `a` | {cell} | PCI |"));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(&format!("{of:?}")), "{error}");
        }
        assert!(phrases.translate("| `gives |").is_err());
    }

    #[test]
    fn no_phrase_is_left_over() {
        let tables: String = TRANSLATED
            .iter()
            .flat_map(|(english, _)| {
                let text = document(english).unwrap();
                let rows = text.lines().filter(|line| line.starts_with('|'));
                rows.map(str::to_owned).collect::<Vec<_>>()
            })
            .collect();
        for (phrase, _) in Phrases::read().unwrap().0 {
            assert!(tables.contains(&phrase), "no table has {phrase:?}");
        }
    }
}
