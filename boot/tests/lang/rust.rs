//! Strings of a Rust source.

use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

use super::html;

/// Macros and functions whose texts are not for readers of pages and traces: errors,
/// defects, and progress on the standard error.
const OTHERS: [&str; 18] = [
    "anyhow",
    "assert",
    "assert_eq",
    "assert_ne",
    "bail",
    "debug_assert",
    "debug_assert_eq",
    "deviation",
    "ensure",
    "panic",
    "unreachable",
    "warn",
    "expect",
    "with_context",
    "Step",
    "custom",
    "include_str",
    "Lacks",
];

/// Strings outside of attributes and tests, with holes instead of what is formatted;
/// where one is a piece of a page, its texts.
pub fn strings(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(source.parse().expect("a Rust source"), &mut found);
    found
}

fn walk(tokens: TokenStream, found: &mut Vec<String>) {
    let mut tokens = tokens.into_iter().peekable();
    while let Some(token) = tokens.next() {
        match token {
            TokenTree::Punct(punct) if punct.as_char() == '#' => {
                tokens.next_if(|next| next.to_string() == "!");
                let attribute = tokens.next_if(|next| group(next, Delimiter::Bracket).is_some());
                if attribute.is_some_and(|attribute| is_test(&attribute)) {
                    // The item goes with it.
                    for token in tokens.by_ref() {
                        if group(&token, Delimiter::Brace).is_some() || token.to_string() == ";" {
                            break;
                        }
                    }
                }
            }
            TokenTree::Ident(name) if OTHERS.iter().any(|other| name == other) => {
                tokens.next_if(|next| next.to_string() == "!");
                tokens.next_if(|next| group(next, Delimiter::Parenthesis).is_some());
            }
            TokenTree::Group(group) => walk(group.stream(), found),
            TokenTree::Literal(literal) => {
                if let Ok(string) = syn::parse_str::<syn::LitStr>(&literal.to_string()) {
                    found.extend(html::texts(&with_holes(&string.value())));
                }
            }
            _ => {}
        }
    }
}

fn is_test(attribute: &TokenTree) -> bool {
    let text: String = attribute.to_string().split_whitespace().collect();
    text.contains("cfg(test)")
}

fn group(token: &TokenTree, delimiter: Delimiter) -> Option<&Group> {
    match token {
        TokenTree::Group(group) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

/// A format string with `{0}`, `{1}`, … where something is put in.
fn with_holes(format: &str) -> String {
    let mut text = String::new();
    let (mut rest, mut hole) = (format, 0);
    while let Some(at) = rest.find(['{', '}']) {
        text += &rest[..at];
        let end = rest[at..].find('}');
        if rest[at..].starts_with("{{") || rest[at..].starts_with("}}") {
            text += &rest[at..=at];
            rest = &rest[at + 2..];
        } else if let Some(end) = end.filter(|end| *end > 0) {
            text += &format!("{{{hole}}}");
            hole += 1;
            rest = &rest[at + end + 1..];
        } else {
            text += &rest[at..=at];
            rest = &rest[at + 1..];
        }
    }
    text + rest
}
