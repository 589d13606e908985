//! The language of explanations.
//!
//! English stands in the code, where a sentence is made. Another language is a
//! catalogue: `{"The driver tries {0}.": "驱动尝试{0}。"}`. What is about to be
//! shown is looked up there, and what stood in the holes is looked up in turn. So a
//! recording is in no language, one of yesterday can be shown in any, and whoever
//! writes a sentence writes it once. `tests/lang.rs` reads every string of the
//! sources that explain, and fails where a catalogue lacks one.
//!
//! Names of functions, registers, events and commands, the titles of the
//! specification, errors and `--help` stay as they are.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use clap::ValueEnum;

use crate::html::{escape, unescape};

/// A language that explanations can be shown in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Lang {
    /// English, as it stands in the code.
    #[default]
    En,
    /// Chinese in simplified characters.
    Zh,
}

/// The catalogue of Chinese as it lies in the source: a JSON object.
pub const ZH: &str = include_str!("lang/zh.json");

/// The same look-up for a page's scripts.
const SCRIPT: &str = include_str!("lang/say.js");

static CHINESE: LazyLock<Catalogue> =
    LazyLock::new(|| Catalogue::new(serde_json::from_str(ZH).expect("tests/lang.rs reads it")));

impl Lang {
    /// Every language.
    pub const ALL: [Self; 2] = [Self::En, Self::Zh];

    /// Its tag (BCP 47), for the attribute `lang`.
    pub const fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::Zh => "zh-CN",
        }
    }

    fn catalogue(self) -> Option<&'static Catalogue> {
        match self {
            Self::En => None,
            Self::Zh => Some(&CHINESE),
        }
    }

    /// The text in this language; as it is where the catalogue does not have it.
    pub fn say(self, text: &str) -> Cow<'_, str> {
        match self.catalogue() {
            Some(catalogue) => catalogue.say(text),
            None => text.into(),
        }
    }

    /// A page in this language. Its scripts get a function `say` of the same effect.
    pub fn page(self, page: String) -> String {
        match self.catalogue() {
            Some(catalogue) => catalogue.page(&page, self.tag()),
            None => page,
        }
    }
}

/// Texts of one language by the English ones.
struct Catalogue {
    exact: BTreeMap<String, String>,
    /// Those with holes, the most particular first.
    patterns: Vec<(Vec<String>, String)>,
}

impl Catalogue {
    fn new(entries: BTreeMap<String, String>) -> Self {
        let is_pattern = |key: &str| key.contains("{0}");
        let with_holes = entries.iter().filter(|(key, _)| is_pattern(key));
        let mut patterns: Vec<_> = with_holes
            .map(|(key, text)| (literals(key), text.clone()))
            .collect();
        let length = |literals: &[String]| literals.iter().map(String::len).sum::<usize>();
        patterns.sort_by_key(|(literals, _)| std::cmp::Reverse(length(literals)));
        Self {
            exact: entries,
            patterns,
        }
    }

    /// Space around a text is no part of it, and goes where wide punctuation has its own.
    fn say<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let bare = text.trim();
        let Some(found) = self.find(bare) else {
            return text.into();
        };
        let wide = ['。', '，', '：', '；', '、', '（', '）'];
        let (mut before, mut behind) = text.split_once(bare).unwrap_or_default();
        if found.starts_with(wide) {
            before = "";
        }
        if found.ends_with(wide) {
            behind = "";
        }
        format!("{before}{found}{behind}").into()
    }

    fn find(&self, text: &str) -> Option<String> {
        let mut behind = text.chars();
        let small = behind.next()?.to_lowercase().to_string() + behind.as_str();
        let known = |text: &str| {
            let exact = self.exact.get(text).cloned();
            let patterns = &mut self.patterns.iter();
            exact.or_else(|| {
                patterns.find_map(|(literals, translation)| {
                    Some(self.filled(translation, &holes(literals, text)?))
                })
            })
        };
        // At the beginning of a sentence it is written with a capital letter.
        known(text)
            .or_else(|| known(&small))
            .or_else(|| {
                let (one, rest) = sentence_end(text)?;
                Some(self.find(one)? + &self.say(rest))
            })
            .or_else(|| self.list(text, "; ", "；"))
            .or_else(|| self.list(text, ", ", "、"))
    }

    /// A list of texts each of which the catalogue has.
    fn list(&self, text: &str, comma: &str, wide: &str) -> Option<String> {
        let parts = text.contains(comma).then(|| text.split(comma))?;
        let parts: Option<Vec<_>> = parts.map(|part| self.find(part)).collect();
        Some(parts?.join(wide))
    }

    fn filled(&self, translation: &str, holes: &[&str]) -> String {
        let mut text = translation.to_owned();
        // From the last on: what is filled in is not looked at again.
        let mut places: Vec<(usize, usize)> = (0..holes.len())
            .filter_map(|hole| Some((text.find(&format!("{{{hole}}}"))?, hole)))
            .collect();
        places.sort_unstable();
        for (place, hole) in places.into_iter().rev() {
            let end = place + format!("{{{hole}}}").len();
            let filled = self.say(holes[hole]);
            let before = text[..place].chars().next_back();
            let behind = text[end..].chars().next();
            let space = |one, other| if is_apart(one, other) { " " } else { "" };
            let before = space(before, filled.chars().next());
            let behind = space(behind, filled.chars().next_back());
            text.replace_range(place..end, &format!("{before}{filled}{behind}"));
        }
        text
    }

    fn page(&self, page: &str, tag: &str) -> String {
        let page = page.replacen("<html lang=\"en\">", &format!("<html lang=\"{tag}\">"), 1);
        let mut out = String::with_capacity(page.len() + ZH.len());
        let mut rest = page.as_str();
        while let Some((text, behind)) = rest.split_once('<') {
            self.content(text, &mut out);
            let (tag, behind) = tag_end(behind);
            let name = tag.split([' ', '\n']).next().unwrap_or_default();
            if name == "script" && !out.contains("id=\"catalogue\"") {
                let json = ZH.replace('<', "\\u003c");
                out += &format!(
                    "<script type=\"application/json\" id=\"catalogue\">{json}</script>\n\
                     <script>\n{SCRIPT}</script>\n"
                );
            }
            out.push('<');
            self.tag(tag, &mut out);
            out.push('>');
            rest = behind;
            // What is no prose goes by as it is.
            if matches!(name, "script" | "style" | "code" | "pre") {
                let end = rest.find(&format!("</{name}")).unwrap_or(rest.len());
                out += &rest[..end];
                rest = &rest[end..];
            }
        }
        self.content(rest, &mut out);
        out
    }

    fn content(&self, text: &str, out: &mut String) {
        match text.trim().is_empty() {
            true => out.push_str(text),
            false => out.push_str(&escape(&self.say(&unescape(text)))),
        }
    }

    /// A tag, with those attributes translated that people read.
    fn tag(&self, tag: &str, out: &mut String) {
        let mut rest = tag;
        while let Some(at) = ["aria-label=\"", "title=\""]
            .iter()
            .filter_map(|name| Some(rest.find(name)? + name.len()))
            .min()
        {
            let end = rest[at..].find('"').map_or(rest.len(), |end| at + end);
            out.push_str(&rest[..at]);
            self.content(&rest[at..end], out);
            rest = &rest[end..];
        }
        out.push_str(rest);
    }
}

/// Whether a space goes between two letters: one is Chinese, and the other is not.
fn is_apart(one: Option<char>, other: Option<char>) -> bool {
    let is_chinese = |c: Option<char>| c.is_some_and(|c| ('\u{4e00}'..='\u{9fff}').contains(&c));
    let is_latin = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    (is_chinese(one) && is_latin(other)) || (is_latin(one) && is_chinese(other))
}

/// What stands around the holes `{0}`, `{1}`, … of a key, in this order.
fn literals(key: &str) -> Vec<String> {
    let mut literals = Vec::new();
    let mut rest = key;
    for hole in 0.. {
        let Some((before, behind)) = rest.split_once(&format!("{{{hole}}}")) else {
            break;
        };
        literals.push(before.to_owned());
        rest = behind;
    }
    literals.push(rest.to_owned());
    literals
}

/// What stands in the holes between the literals, if the text is of this form. No hole
/// has the end of a sentence in it.
fn holes<'t>(literals: &[String], text: &'t str) -> Option<Vec<&'t str>> {
    let (first, others) = literals.split_first()?;
    let (last, inner) = others.split_last()?;
    let mut rest = text
        .strip_prefix(first.as_str())?
        .strip_suffix(last.as_str())?;
    let mut holes = Vec::with_capacity(others.len());
    for literal in inner {
        let (hole, behind) = rest.split_once(literal.as_str())?;
        holes.push(hole);
        rest = behind;
    }
    holes.push(rest);
    let is_whole = holes.iter().all(|hole| sentence_end(hole).is_none());
    is_whole.then_some(holes)
}

/// Parts a text behind its first sentence, if another one follows.
fn sentence_end(text: &str) -> Option<(&str, &str)> {
    [". ", "? "]
        .iter()
        .flat_map(|end| text.match_indices(end))
        .find_map(|(at, _)| {
            let (one, next) = (&text[..=at], &text[at + 2..]);
            let is_new = next.starts_with(|c: char| c.is_ascii_uppercase());
            is_new.then_some((one, next))
        })
}

/// Parts a page behind a tag whose `<` is gone.
fn tag_end(page: &str) -> (&str, &str) {
    let mut quoted = false;
    let end = page.find(|c: char| {
        quoted ^= c == '"';
        c == '>' && !quoted
    });
    end.map_or((page, ""), |end| (&page[..end], &page[end + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue() -> Catalogue {
        let entries = [
            ("The device takes {0}.", "设备取走{0}。"),
            ("The device takes {0} of {1}.", "设备从{1}取走{0}。"),
            ("the {0} queue", "{0}队列"),
            ("receive", "接收"),
            ("That is all.", "就这些。"),
            ("Play", "播放"),
        ];
        Catalogue::new(entries.map(|(key, text)| (key.into(), text.into())).into())
    }

    #[test]
    fn a_text_is_looked_up_and_so_is_what_stands_in_its_holes() {
        let catalogue = catalogue();
        for (text, said) in [
            ("Play", "播放"),
            (" Play ", " 播放 "),
            ("The receive queue", "接收队列"),
            (
                "The device takes 3 of the receive queue.",
                "设备从接收队列取走 3。",
            ),
            ("The device takes {1} of {0}.", "设备从{0}取走{1}。"),
            (
                "The device takes a chain. That is all.",
                "设备取走 a chain。就这些。",
            ),
            (
                "The device takes a. b. That is all.",
                "设备取走 a. b。就这些。",
            ),
            ("virtqueue_pop", "virtqueue_pop"),
            ("", ""),
        ] {
            assert_eq!(catalogue.say(text), said, "{text}");
        }
    }

    #[test]
    fn a_page_is_translated_but_for_its_code() {
        let page = "<!doctype html>\n<html lang=\"en\"><p title=\"Play\" class=\"Play\">Play <b>That is all.</b>\
                    <code>Play</code></p><script>\"Play\"</script><script>2</script>";
        let page = catalogue().page(page, "zh-CN");
        assert!(page.starts_with(
            "<!doctype html>\n<html lang=\"zh-CN\"><p title=\"播放\" class=\"Play\">播放 <b>就这些。</b>\
             <code>Play</code></p><script type=\"application/json\" id=\"catalogue\">"
        ));
        assert!(page.ends_with("<script>\"Play\"</script><script>2</script>"));
        assert_eq!(page.matches("id=\"catalogue\"").count(), 1);
    }

    #[test]
    fn english_is_as_it_is() {
        assert_eq!(Lang::En.say("Play"), "Play");
        assert_eq!(
            Lang::En.page("<html lang=\"en\">Play".into()),
            "<html lang=\"en\">Play"
        );
        assert_eq!(Lang::Zh.say("The device takes"), "The device takes");
    }
}
