//! Text for people: aligned, at most 100 columns wide, in colour only on a
//! terminal that wants it (`NO_COLOR` and `CLICOLOR` are honoured).

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

use textwrap::core::display_width;
use textwrap::{Options, WordSeparator, WordSplitter, WrapAlgorithm};

use crate::command::Progress;
use crate::lang::Lang;

/// Widest line, in columns.
pub const WIDTH: usize = 100;

/// Width of the column of labels.
const LABEL: usize = 13;

/// Columns before a label.
const INDENT: usize = 2;

pub(crate) const TITLE: Style = Style::new().bold();
pub(crate) const NAME: Style = AnsiColor::Cyan.on_default();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default().bold();
pub(crate) const BAD: Style = AnsiColor::Red.on_default().bold();
pub(crate) const FAINT: Style = Style::new().dimmed();

/// Prints sections of labelled rows.
pub struct Story<W: Write> {
    out: W,
    lang: Lang,
}

impl Story<anstream::Stdout> {
    /// On the standard output.
    pub fn stdout() -> Self {
        Self::new(anstream::stdout())
    }
}

impl<W: Write> Story<W> {
    /// On any output.
    pub fn new(out: W) -> Self {
        let lang = Lang::default();
        Self { out, lang }
    }

    /// The same in another language: of what comes by its methods, but for [`Self::line`]
    /// and [`Self::columns`].
    pub fn in_language(self, lang: Lang) -> Self {
        Self { lang, ..self }
    }

    /// Its language.
    pub fn lang(&self) -> Lang {
        self.lang
    }

    /// A text in the story's language.
    pub fn say<'t>(&self, text: &'t str) -> Cow<'t, str> {
        self.lang.say(text)
    }

    /// The heading of a section.
    ///
    /// # Errors
    /// The output is closed; so for all methods.
    pub fn section(&mut self, title: &str) -> io::Result<()> {
        let title = self.say(title);
        writeln!(self.out, "\n{TITLE}{title}{TITLE:#}")?;
        self.out.flush()
    }

    /// A label and a text, which is wrapped beside it.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn row(&mut self, label: &str, text: &str) -> io::Result<()> {
        self.styled_row(label, text, Style::new())
    }

    /// A row whose text stands out as good or bad.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn verdict(&mut self, label: &str, good: bool, text: &str) -> io::Result<()> {
        let style = if good { Style::new() } else { BAD };
        self.styled_row(label, text, style)
    }

    fn styled_row(&mut self, label: &str, text: &str, style: Style) -> io::Result<()> {
        let mut label = pad(&self.say(label), LABEL);
        for line in wrap(&self.say(text), WIDTH - INDENT - LABEL - 1) {
            let indent = "";
            writeln!(
                self.out,
                "{indent:INDENT$}{NAME}{label}{NAME:#} {style}{line}{style:#}"
            )?;
            label = " ".repeat(LABEL);
        }
        self.out.flush()
    }

    /// A row whose text has columns of its own: nothing is wrapped.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn columns(&mut self, label: &str, text: &str) -> io::Result<()> {
        let (indent, label) = ("", pad(&self.say(label), LABEL));
        writeln!(self.out, "{indent:INDENT$}{NAME}{label}{NAME:#} {text}")?;
        self.out.flush()
    }

    /// A line as it is.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn line(&mut self, text: &str) -> io::Result<()> {
        writeln!(self.out, "{text}")?;
        self.out.flush()
    }

    /// A faint line, for what can be skipped.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn faint(&mut self, text: &str) -> io::Result<()> {
        let text = self.say(text);
        writeln!(self.out, "{FAINT}{text}{FAINT:#}")?;
        self.out.flush()
    }

    /// The last word.
    #[allow(clippy::missing_errors_doc, reason = "see `section`")]
    pub fn conclusion(&mut self, good: bool, text: &str) -> io::Result<()> {
        let style = if good { GOOD } else { BAD };
        writeln!(self.out)?;
        for line in wrap(&self.say(text), WIDTH) {
            writeln!(self.out, "{style}{line}{style:#}")?;
        }
        self.out.flush()
    }
}

/// Breaks a text into lines of at most `width` columns between words, or where Chinese
/// may be broken; a word longer than that has a line of its own. There is always one line
/// at least.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let separator = match text.is_ascii() {
        true => WordSeparator::AsciiSpace,
        false => WordSeparator::UnicodeBreakProperties,
    };
    let options = Options::new(width)
        .break_words(false)
        .word_separator(separator)
        .word_splitter(WordSplitter::NoHyphenation)
        .wrap_algorithm(WrapAlgorithm::FirstFit);
    let lines = textwrap::wrap(text, options).into_iter();
    lines.map(Cow::into_owned).collect()
}

/// A text with spaces behind it, `width` columns wide at least.
pub(crate) fn pad(text: &str, width: usize) -> String {
    let room = width.saturating_sub(display_width(text));
    format!("{text}{:room$}", "")
}

/// A text with spaces before it, `width` columns wide at least.
pub(crate) fn pad_left(text: &str, width: usize) -> String {
    let room = width.saturating_sub(display_width(text));
    format!("{:room$}{text}", "")
}

/// A number with its thousands apart: `1,234,567`.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Shows the progress of long tasks on the standard error: steps stay, what
/// programs print passes by in one line of a terminal.
pub struct Ticker {
    terminal: bool,
    shown: bool,
}

impl Ticker {
    /// Knows whether the standard error is a terminal.
    pub fn new() -> Self {
        Self {
            terminal: io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Takes a step or a line of output.
    pub fn show(&mut self, progress: Progress<'_>) {
        let mut stderr = anstream::stderr().lock();
        // A closed standard error is no reason to stop.
        let _ = match progress {
            Progress::Step(step) => {
                let clear = self.clear();
                writeln!(stderr, "{clear}{FAINT}- {step}{FAINT:#}")
            }
            Progress::Line(line) if self.terminal => {
                let line: String = line.chars().filter(|c| !c.is_control()).take(96).collect();
                let clear = self.clear();
                self.shown = true;
                write!(stderr, "{clear}  {FAINT}{line}{FAINT:#}")
            }
            Progress::Line(_) => Ok(()),
        };
        let _ = stderr.flush();
    }

    fn clear(&mut self) -> &'static str {
        // ECMA-48: to the first column, erase the line.
        if std::mem::take(&mut self.shown) {
            "\r\x1b[2K"
        } else {
            ""
        }
    }
}

impl Default for Ticker {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let clear = self.clear();
        let _ = write!(io::stderr(), "{clear}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: Vec<u8>) -> String {
        anstream::adapter::strip_str(&String::from_utf8(bytes).unwrap()).to_string()
    }

    #[test]
    fn rows_are_aligned_and_wrapped() {
        let mut bytes = Vec::new();
        let mut story = Story::new(&mut bytes);
        story.section("Device").unwrap();
        story.row("Offered", &"feature ".repeat(30)).unwrap();
        story.row("MAC", "").unwrap();
        let text = plain(bytes);
        assert!(text.starts_with("\nDevice\n  Offered       feature feature"));
        assert!(
            text.lines().all(|line| line.chars().count() <= WIDTH),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2 + 3 + 1);
        assert!(text.contains("\n                feature"));
    }

    #[test]
    fn a_word_that_is_too_long_is_kept_whole() {
        assert_eq!(wrap("a bbbbbbbb c", 4), ["a", "bbbbbbbb", "c"]);
        assert_eq!(wrap("", 4), [""]);
        assert_eq!(wrap("ab cd e", 5), ["ab cd", "e"]);
        assert_eq!(
            wrap("设备取走，virtqueue_pop。", 8),
            ["设备取", "走，", "virtqueue_pop。"]
        );
        assert_eq!(pad("设备", 6) + &pad_left("环", 3), "设备   环");
    }

    #[test]
    fn thousands_are_apart() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (1_234_567, "1,234,567"),
            (u64::MAX, "18,446,744,073,709,551,615"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }
}
