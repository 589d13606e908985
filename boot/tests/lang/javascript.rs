//! Strings of a script.

use std::iter::Peekable;
use std::str::Chars;

/// Its strings, with holes in templates; those of a template's holes come before it.
pub fn strings(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    code(&mut source.chars().peekable(), &mut found);
    found
}

/// Reads to the `}` that closes what was opened before, or to the end.
fn code(source: &mut Peekable<Chars<'_>>, found: &mut Vec<String>) {
    let mut depth = 0;
    let mut before = ';';
    while let Some(c) = source.next() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => return,
            '}' => depth -= 1,
            '"' | '\'' | '`' => {
                let text = string(source, c, found);
                found.push(text.trim().to_owned());
            }
            '/' if source.peek() == Some(&'/') => {
                source.find(|c| *c == '\n');
            }
            '/' if "(,=:[!&|?{};".contains(before) => pattern(source),
            _ => {}
        }
        if !c.is_whitespace() {
            before = c;
        }
    }
}

fn string(source: &mut Peekable<Chars<'_>>, quote: char, found: &mut Vec<String>) -> String {
    let mut text = String::new();
    let mut hole = 0;
    while let Some(c) = source.next() {
        match c {
            c if c == quote => break,
            '\\' => text.extend(match source.next() {
                Some('n') => Some('\n'),
                escaped => escaped,
            }),
            '$' if quote == '`' && source.next_if_eq(&'{').is_some() => {
                code(source, found);
                text += &format!("{{{hole}}}");
                hole += 1;
            }
            c => text.push(c),
        }
    }
    text
}

/// To the end of a regular expression.
fn pattern(source: &mut Peekable<Chars<'_>>) {
    let mut is_set = false;
    while let Some(c) = source.next() {
        match c {
            '\\' => drop(source.next()),
            '[' => is_set = true,
            ']' => is_set = false,
            '/' if !is_set => return,
            _ => {}
        }
    }
}
