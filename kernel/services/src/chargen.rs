//! The character generator protocol's pattern (RFC 864): lines of 72 of the 95
//! printable ASCII characters, each line starting one character further on.

const FIRST: u32 = b' ' as u32;
const CHARACTERS: u32 = 95;
const COLUMNS: u32 = 72;
/// A line and its CR LF.
const LINE: u32 = COLUMNS + 2;
/// After this many bytes the pattern repeats.
const PERIOD: u32 = CHARACTERS * LINE;

/// All of the pattern, until it repeats.
static TEXT: [u8; PERIOD as usize] = text();

const fn text() -> [u8; PERIOD as usize] {
    let mut text = [0; PERIOD as usize];
    let mut position = 0;
    while position < PERIOD {
        let (line, column) = (position / LINE, position % LINE);
        text[position as usize] = match column {
            COLUMNS => b'\r',
            c if c > COLUMNS => b'\n',
            // At most 126: the remainder is below 95.
            c => (FIRST + (line + c) % CHARACTERS) as u8,
        };
        position += 1;
    }
    text
}

/// A place in the endless text.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pattern {
    position: usize,
}

impl Pattern {
    /// Fills `buffer` with the text from here on and moves behind it.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) {
        let mut rest = buffer;
        while !rest.is_empty() {
            let text = TEXT.get(self.position..).unwrap_or_default();
            let length = text.len().min(rest.len());
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&text[..length]);
            rest = later;
            self.position += length;
            if self.position >= TEXT.len() {
                self.position = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use alloc::vec::Vec;

    #[test]
    fn the_lines_are_those_of_the_rfc() {
        let mut text = vec![0; 3 * LINE as usize];
        let mut pattern = Pattern::default();
        // In pieces, as a socket takes it.
        for piece in text.chunks_mut(7) {
            pattern.fill(piece);
        }
        let text = core::str::from_utf8(&text).unwrap();
        let expected =
            " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefgh";
        let lines: Vec<_> = text.split("\r\n").collect();
        assert_eq!(lines[..2], [&expected[..72], &expected[1..]]);
    }

    #[test]
    fn it_repeats_after_95_lines() {
        let mut twice = vec![0; 2 * PERIOD as usize];
        Pattern::default().fill(&mut twice);
        let (first, second) = twice.split_at(PERIOD as usize);
        assert!(first == second);
        let is_text = |b: &u8| matches!(b, b' '..=b'~' | b'\r' | b'\n');
        assert!(twice.iter().all(is_text));
    }
}
