//! Packets whose sender cannot be answered yet, because nobody has said where he
//! is.
//!
//! Such a packet is kept, its sender (or the router on the way to him) asked for,
//! and the packet taken in as if it came just then when he is heard (Linux keeps
//! the answer, `arp_queue` of `struct neighbour`). He may well be known
//! elsewhere: where several stacks share a device, another one may have heard of
//! him, and word of that is on its way.

use alloc::boxed::Box;
use alloc::vec::Vec;

use smoltcp::time::Instant;

use crate::neighbors::{ASK_INTERVAL, Neighbors, QUESTIONS};
use crate::packet::Address;

/// Frames that are kept at a time; more are lost, as anywhere on their way.
const MAX_FRAMES: usize = 64;
/// Neighbours that are asked for at a time.
const MAX_NEIGHBORS: usize = 16;

pub(crate) struct Waiting {
    frames: Vec<Held>,
    asked: Vec<Asked>,
    /// Of a frame that is kept.
    max_frame: usize,
}

/// A frame whose checksums are verified, as far as they are ours to verify.
pub(crate) struct Held {
    pub(crate) frame: Box<[u8]>,
    next_hop: Address,
}

struct Asked {
    neighbor: Address,
    ask_at: Instant,
    questions: u8,
}

impl Waiting {
    /// `max_frame` is the length of the longest frame of the device in bytes.
    pub(crate) fn new(max_frame: usize) -> Self {
        Self {
            frames: Vec::new(),
            asked: Vec::new(),
            max_frame,
        }
    }

    /// Keeps a frame until `next_hop` is heard.
    pub(crate) fn keep(&mut self, frame: &[u8], next_hop: Address, now: Instant) {
        if self.frames.len() >= MAX_FRAMES || frame.len() > self.max_frame {
            return;
        }
        if !self.asked.iter().any(|asked| asked.neighbor == next_hop) {
            if self.asked.len() >= MAX_NEIGHBORS {
                return;
            }
            self.asked.push(Asked {
                neighbor: next_hop,
                ask_at: now,
                questions: 0,
            });
        }
        self.frames.push(Held {
            frame: frame.into(),
            next_hop,
        });
    }

    /// The next frame that can be answered now.
    pub(crate) fn next(&mut self, neighbors: &Neighbors) -> Option<Held> {
        let mut held = self.frames.iter();
        let index = held.position(|held| neighbors.knows(held.next_hop))?;
        Some(self.frames.remove(index))
    }

    /// The next neighbour to be asked for, and forgets those that did not answer.
    /// To be called when there is room to ask.
    pub(crate) fn next_question(&mut self, neighbors: &Neighbors, now: Instant) -> Option<Address> {
        let frames = &mut self.frames;
        self.asked.retain(|asked| {
            let goes_on = now < asked.ask_at || asked.questions < QUESTIONS;
            if !goes_on {
                frames.retain(|held| held.next_hop != asked.neighbor);
            }
            goes_on && !neighbors.knows(asked.neighbor)
        });
        let due = self.asked.iter_mut().find(|asked| now >= asked.ask_at)?;
        due.questions += 1;
        due.ask_at = now + ASK_INTERVAL;
        Some(due.neighbor)
    }

    /// Whether nothing waits.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// When something is to be asked for or forgotten.
    #[inline]
    pub(crate) fn poll_at(&self) -> Option<Instant> {
        self.asked.iter().map(|asked| asked.ask_at).min()
    }
}
