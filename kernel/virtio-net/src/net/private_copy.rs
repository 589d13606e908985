//! Memory of the driver's own, into which a received frame is copied before
//! anything looks at it.
//!
//! The device may write its buffers at any time, also after it has said that it is done.
//! A length that is read twice from there may be two lengths. So no reference to such
//! memory is ever made: it is read once, word by word, and what was read is looked at.

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec;
use core::ops::DerefMut;
use core::ptr::NonNull;

use super::header::MergeableHeader;

/// What is copied at once, in bytes.
const WORD: usize = size_of::<u64>();

/// See the module. There is room for the largest copy, and two words more: the last
/// word is copied whole, and there is always a header.
pub(super) struct PrivateCopy<B = Box<[u8]>>(B);

impl PrivateCopy {
    /// For up to `largest` bytes.
    pub(super) fn new(largest: usize) -> Self {
        Self(vec![0; largest.next_multiple_of(WORD) + 2 * WORD].into())
    }

    /// The same, with its address in a variable.
    #[inline(always)]
    pub(super) fn local(&mut self) -> PrivateCopy<&mut [u8]> {
        PrivateCopy(&mut self.0)
    }
}

impl<B: DerefMut<Target = [u8]>> PrivateCopy<B> {
    /// Copies `length` bytes at `from` behind the first `offset` bytes. What is behind
    /// them is then anything.
    ///
    /// # Safety
    ///
    /// `offset` and `length` are at most the largest together. `from` is aligned to 8
    /// bytes, and can be read up to the next multiple of 8 bytes behind `length`.
    /// Somebody else may write there meanwhile: then any mixture of both is copied.
    #[inline(always)]
    pub(super) unsafe fn fill(&mut self, offset: usize, from: NonNull<u8>, length: usize) {
        let words = length.div_ceil(WORD);
        debug_assert!(offset + words * WORD <= self.0.len());
        // SAFETY: there is room for so many words, and they can be read, says the caller.
        unsafe { copy_words(self.0.as_mut_ptr().add(offset), from.cast(), words) };
    }

    /// The first `header` bytes, and the `length` bytes behind them.
    ///
    /// # Safety
    ///
    /// Together they are at most the largest.
    #[inline(always)]
    pub(super) unsafe fn parts(&mut self, header: usize, length: usize) -> (&mut [u8], &mut [u8]) {
        debug_assert!(header + length <= self.0.len());
        // SAFETY: there are so many bytes, says the caller.
        let bytes = unsafe { self.0.get_unchecked_mut(..header + length) };
        bytes.split_at_mut(header)
    }

    /// What it begins with.
    #[inline(always)]
    pub(super) fn header(&self) -> &MergeableHeader {
        debug_assert!(size_of::<MergeableHeader>() <= self.0.len());
        // SAFETY: `new` made room for more; any bytes are a header, which needs no
        // alignment.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

/// Copies words that somebody else may write meanwhile.
///
/// # Safety
///
/// So many words can be read at `from`, which is aligned, and written at `to`,
/// where nobody else reads or writes.
#[inline(always)]
unsafe fn copy_words(to: *mut u8, from: NonNull<u64>, words: usize) {
    #[cfg(target_arch = "x86_64")]
    // One instruction, which the compiler does not look into: so there is no data
    // race that it knows of.
    // SAFETY: the caller's promise. The direction flag is clear, as the System V
    // ABI has it.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            inout("rcx") words => _,
            inout("rsi") from.as_ptr() => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags),
        );
    }
    #[cfg(not(target_arch = "x86_64"))]
    for word in 0..words {
        // SAFETY: the caller's promise; volatile, because somebody else may write it.
        unsafe {
            let value = from.add(word).read_volatile();
            to.cast::<u64>().add(word).write_unaligned(value);
        }
    }
}
