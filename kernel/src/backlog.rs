//! Lines of the log that wait to be sent (netconsole). From the first line of
//! the boot on, until it is known whether anybody wants them.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use heapless::{Deque, Vec};
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// Bytes of lines that are kept; what comes when it is full is lost, and
/// counted.
const CAPACITY: usize = 16 * 1024;
/// Longest line in bytes; the rest is cut.
pub const MAX_LINE: usize = kickpath_services::netconsole::MAX_LINE;
/// How often another CPU's lock is tried before a line is lost.
const TRIES: u32 = 1_000_000;

/// A line while it is written.
pub struct Line(Vec<u8, MAX_LINE>);

impl Line {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Starts over with this text and a line feed.
    pub fn set(&mut self, text: fmt::Arguments<'_>) {
        self.0.clear();
        // What does not fit is cut.
        let _ = self.write_fmt(text);
        self.0.truncate(MAX_LINE - 1);
        let _ = self.write_str("\n");
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_LINE - self.0.len();
        self.0.extend(text.bytes().take(room));
        Ok(())
    }
}

struct Backlog {
    /// Length in two bytes, then the line, and so on.
    bytes: Deque<u8, CAPACITY>,
    line: Line,
}

static BACKLOG: Mutex<Backlog> = Mutex::new(Backlog {
    bytes: Deque::new(),
    line: Line::new(),
});
/// Whether lines are kept.
static ON: AtomicBool = AtomicBool::new(true);
/// Lines that wait, and lines that were lost.
static WAITING: AtomicU64 = AtomicU64::new(0);
static LOST: AtomicU64 = AtomicU64::new(0);

impl Backlog {
    fn push(&mut self) {
        let line = self.line.bytes();
        if CAPACITY - self.bytes.len() < 2 + line.len() {
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // At most MAX_LINE; there is room.
        let length = (line.len() as u16).to_le_bytes();
        self.bytes.extend(length.iter().chain(line).copied());
        WAITING.fetch_add(1, Ordering::Relaxed);
    }

    fn pop(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let lost = LOST.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.line
                .set(format_args!("({lost} lines are missing here)"));
            let line = self.line.bytes();
            buffer.get_mut(..line.len())?.copy_from_slice(line);
            return Some(line.len());
        }
        let length = u16::from_le_bytes([self.bytes.pop_front()?, self.bytes.pop_front()?]);
        let mut written = 0;
        for _ in 0..length {
            let byte = self.bytes.pop_front()?;
            if let Some(to) = buffer.get_mut(written) {
                *to = byte;
                written += 1;
            }
        }
        WAITING.fetch_sub(1, Ordering::Relaxed);
        Some(written)
    }
}

/// Keeps a line, if lines are kept. One that is logged while another is
/// written is lost.
pub fn push(text: fmt::Arguments<'_>) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    without_interrupts(|| {
        for _ in 0..TRIES {
            if let Some(mut backlog) = BACKLOG.try_lock() {
                backlog.line.set(text);
                backlog.push();
                return;
            }
            core::hint::spin_loop();
        }
        LOST.fetch_add(1, Ordering::Relaxed);
    });
}

#[inline]
pub fn is_waiting() -> bool {
    WAITING.load(Ordering::Relaxed) > 0
}

/// Takes the oldest line; returns its length. `None` when there is none, or
/// whoever was interrupted has the backlog.
pub fn pop(buffer: &mut [u8]) -> Option<usize> {
    without_interrupts(|| BACKLOG.try_lock()?.pop(buffer))
}

pub fn keep(on: bool) {
    ON.store(on, Ordering::Relaxed);
}
