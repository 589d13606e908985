//! The words that both sides share, and the barriers.

use core::cell::RefCell;
use core::sync::atomic::{self, Ordering};
use std::collections::HashMap;
use std::sync::Arc;
use std::vec::Vec;
use std::{thread_local, vec};

use super::search::World;

/// Every barrier that the driver has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Barrier {
    Publish,
    Consume,
    StoreLoad,
    BeforeRegister,
    AfterRegister,
}

/// A thread of an exploration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Driver,
    Device,
}

impl Side {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Driver => Self::Device,
            Self::Device => Self::Driver,
        }
    }
}

thread_local! {
    /// The exploration that this thread takes part in.
    static HERE: RefCell<Option<(Arc<World>, Side)>> = const { RefCell::new(None) };
}

/// Has this thread take part, while `body` runs.
pub(super) fn take_part<T>(world: &Arc<World>, side: Side, body: impl FnOnce() -> T) -> T {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            HERE.set(None);
        }
    }
    HERE.set(Some((Arc::clone(world), side)));
    let _leave = Leave;
    body()
}

fn here() -> Option<(Arc<World>, Side)> {
    HERE.with_borrow(Clone::clone)
}

/// A barrier of the driver; nothing where no exploration runs.
pub(crate) fn barrier(which: Barrier) {
    if let Some((world, side)) = here() {
        world.driver_barrier(side, which);
    }
}

macro_rules! atomics {
    ($($name:ident $type:ty,)+) => {$(
        /// As the language's, over a word of the model while an exploration runs.
        #[repr(transparent)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            pub(crate) fn load(&self, order: Ordering) -> $type {
                match here() {
                    // A word that is as wide was stored.
                    Some((world, side)) => world.load(side, self.address()) as $type,
                    None => self.0.load(order),
                }
            }

            pub(crate) fn store(&self, value: $type, order: Ordering) {
                match here() {
                    Some((world, side)) => world.store(side, self.address(), value.into()),
                    None => self.0.store(value, order),
                }
            }

            fn address(&self) -> usize {
                core::ptr::from_ref(self).addr()
            }
        }
    )+};
}

atomics!(AtomicU16 u16, AtomicU32 u32,);

/// For each word, by its number, the oldest value that may be read.
#[derive(Clone, Debug, Default)]
pub(super) struct View(Vec<usize>);

impl View {
    fn of(&self, word: usize) -> usize {
        self.0.get(word).copied().unwrap_or(0)
    }

    fn raise(&mut self, word: usize, to: usize) {
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] = self.0[word].max(to);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (word, &to) in other.0.iter().enumerate() {
            self.raise(word, to);
        }
    }
}

/// A value that a word had, and what reading it shows to a thread that has a
/// barrier behind the load.
struct Stored {
    value: u32,
    shows: View,
}

/// What a thread has seen.
#[derive(Default)]
pub(super) struct Seen {
    /// What it must read, at least.
    now: View,
    /// What a `consume` would add.
    loaded: View,
    /// What its stores show: all that was seen at the last `publish`.
    published: View,
}

/// What a new word holds before the driver zeroes it: a queue's memory had another
/// use. Taken for a packed descriptor's flags it is available.
const GARBAGE: u32 = 0x3cbc_3cbc;

/// All the memory.
#[derive(Default)]
pub(super) struct Memory {
    numbers: HashMap<usize, usize>,
    words: Vec<Vec<Stored>>,
    seen: [Seen; 2],
    /// What was seen at any full barrier.
    full: View,
    /// Whether the device has been shown zeroed memory.
    is_set_up: bool,
}

impl Memory {
    fn number(&mut self, address: usize) -> usize {
        let next = self.words.len();
        let word = *self.numbers.entry(address).or_insert(next);
        if word == next {
            let stored = |value| Stored {
                value,
                shows: View::default(),
            };
            self.words.push(vec![stored(GARBAGE), stored(0)]);
        }
        word
    }

    /// How many values a load may take: 1 is the newest alone.
    pub(super) fn values(&mut self, side: Side, address: usize) -> usize {
        let word = self.number(address);
        self.words[word].len() - self.oldest(side, word)
    }

    fn oldest(&self, side: Side, word: usize) -> usize {
        let zeroed = usize::from(side == Side::Driver || self.is_set_up);
        self.seen[side as usize].now.of(word).max(zeroed)
    }

    /// Loads the value that is `back` older than the newest.
    pub(super) fn load(&mut self, side: Side, address: usize, back: usize) -> u32 {
        let word = self.number(address);
        let at = self.words[word].len() - 1 - back;
        let Stored { value, shows } = &self.words[word][at];
        let seen = &mut self.seen[side as usize];
        seen.now.raise(word, at);
        seen.loaded.join(shows);
        *value
    }

    pub(super) fn store(&mut self, side: Side, address: usize, value: u32) {
        let word = self.number(address);
        let at = self.words[word].len();
        let seen = &mut self.seen[side as usize];
        seen.now.raise(word, at);
        let mut shows = seen.published.clone();
        shows.raise(word, at);
        self.words[word].push(Stored { value, shows });
    }

    pub(super) fn publish(&mut self, side: Side) {
        let seen = &mut self.seen[side as usize];
        seen.published = seen.now.clone();
    }

    pub(super) fn consume(&mut self, side: Side) {
        let seen = &mut self.seen[side as usize];
        seen.now.join(&seen.loaded);
    }

    pub(super) fn full(&mut self, side: Side) {
        self.consume(side);
        let seen = &mut self.seen[side as usize];
        seen.now.join(&self.full);
        self.full = seen.now.clone();
        self.publish(side);
    }

    /// What a write of a register shows to who is told by it.
    pub(super) fn shown(&self, side: Side) -> View {
        self.seen[side as usize].published.clone()
    }

    /// A register was read that shows this.
    pub(super) fn told(&mut self, side: Side, shown: &View) {
        self.seen[side as usize].loaded.join(shown);
    }

    /// The device begins; `ordered` if the driver has seen to it that memory is
    /// zeroed before.
    pub(super) fn set_up(&mut self, ordered: bool) {
        self.is_set_up |= ordered;
    }
}
