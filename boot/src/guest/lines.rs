//! Bounded storage for the lines that a guest, or QEMU, prints.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::time::Duration;

/// Lines kept; older ones are forgotten.
const LINES: usize = 4096;

/// Longest line in bytes; a longer one is split.
const LINE_BYTES: u64 = 4096;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Its number since the start, from 0.
    pub number: u64,
    /// When it was complete, since QEMU was launched.
    pub at: Duration,
    /// The text, without its end, with control characters escaped.
    pub text: String,
}

/// The last lines of a stream.
#[derive(Debug, Default)]
pub(super) struct Log {
    lines: VecDeque<Line>,
    next: u64,
    /// The stream has ended: no line will follow.
    pub closed: bool,
}

impl Log {
    pub fn push(&mut self, at: Duration, text: String) {
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(Line {
            number: self.next,
            at,
            text,
        });
        self.next += 1;
    }

    /// The kept lines whose number is at least `from`.
    pub fn since(&self, from: u64) -> impl Iterator<Item = &Line> {
        let kept = self.next - self.lines.len() as u64;
        let skip = usize::try_from(from.saturating_sub(kept)).unwrap_or(usize::MAX);
        self.lines.iter().skip(skip)
    }

    /// The last `count` lines.
    pub fn tail(&self, count: usize) -> Vec<String> {
        let skip = self.lines.len().saturating_sub(count);
        self.lines
            .iter()
            .skip(skip)
            .map(|l| l.text.clone())
            .collect()
    }

    pub fn is_empty(&self) -> bool {
        self.next == 0
    }
}

/// Gives every line of `stream` to `line` until it ends. Nothing in the stream
/// can make this fail or grow: long lines are split, control characters (which
/// could drive a terminal) escaped, bytes that are not UTF-8 replaced.
pub(super) fn read_lines(stream: impl Read, mut line: impl FnMut(String)) {
    let mut stream = BufReader::new(stream);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match stream
            .by_ref()
            .take(LINE_BYTES)
            .read_until(b'\n', &mut bytes)
        {
            Ok(0) | Err(_) => return,
            Ok(_) => line(printable(&bytes)),
        }
    }
}

fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches(['\n', '\r']);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_split_and_made_harmless() {
        let mut input = b"one\r\n\x1b[31mred\n".to_vec();
        input.extend([b'x'; 5000]);
        input.extend(b"\n\xff end");
        let mut lines = Vec::new();
        read_lines(&input[..], |l| lines.push(l));
        assert_eq!(lines[0], "one");
        assert_eq!(lines[1], "\\u{1b}[31mred");
        assert_eq!((lines[2].len(), lines[3].len()), (4096, 904));
        assert_eq!(lines[4], "\u{fffd} end");
        assert_eq!(lines.len(), 5);
    }

    #[test]
    fn old_lines_are_forgotten_but_numbers_stay() {
        let mut log = Log::default();
        for n in 0..5000 {
            log.push(Duration::ZERO, n.to_string());
        }
        assert_eq!(log.since(0).count(), LINES);
        let first = log.since(0).next().unwrap();
        assert_eq!((first.number, first.text.as_str()), (904, "904"));
        assert_eq!(
            log.since(4998).map(|l| l.number).collect::<Vec<_>>(),
            [4998, 4999]
        );
        assert_eq!(log.since(9999).count(), 0);
        assert_eq!(log.tail(2), ["4998", "4999"]);
    }
}
