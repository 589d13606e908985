//! Texts of a page.

use super::javascript;

/// What people read of a page, and the strings of its scripts.
pub fn strings(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = page;
    while let Some((text, behind)) = rest.split_once('<') {
        content(text, &mut found);
        let mut quoted = false;
        let end = behind.find(|c: char| {
            quoted ^= c == '"';
            c == '>' && !quoted
        });
        let (tag, behind) = behind.split_at(end.unwrap_or(behind.len()));
        rest = behind.get(1..).unwrap_or_default();
        for name in ["aria-label=\"", "title=\""] {
            let values = tag.split(name).skip(1);
            values
                .for_each(|value| content(value.split('"').next().unwrap_or_default(), &mut found));
        }
        let name = tag.split([' ', '\n']).next().unwrap_or_default();
        if matches!(name, "script" | "style" | "code" | "pre") {
            let end = rest.find(&format!("</{name}")).unwrap_or(rest.len());
            if name == "script" && !tag.contains("json") {
                found.extend(javascript::strings(&rest[..end]));
            }
            rest = &rest[end..];
        }
    }
    content(rest, &mut found);
    found
}

/// The texts of a string that may be a piece of a page, with the holes of each counted from 0.
pub fn texts(string: &str) -> Vec<String> {
    let is_page = string.match_indices('<').any(|(at, _)| {
        let next = string[at + 1..].chars().next();
        next.is_some_and(|next| next.is_ascii_lowercase() || next == '/')
            && string[at..].contains('>')
    });
    match is_page {
        true => strings(string)
            .iter()
            .map(|text| renumbered(text))
            .collect(),
        false => vec![string.trim().to_owned()],
    }
}

fn content(text: &str, found: &mut Vec<String>) {
    let text = text.trim();
    if !text.is_empty() {
        let text = text.replace("&lt;", "<").replace("&gt;", ">");
        found.push(text.replace("&quot;", "\"").replace("&amp;", "&"));
    }
}

fn renumbered(text: &str) -> String {
    let mut parts = text.split('{');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (hole, part) in parts.enumerate() {
        let (_, behind) = part.split_once('}').unwrap_or(("", part));
        out += &format!("{{{hole}}}{behind}");
    }
    out
}
