//! The receive queue. A frame is copied out of the device's buffers once,
//! before anything looks at it, and the buffers go straight back: what the
//! network stack reads, the device cannot change any more.
//!
//! With `VIRTIO_NET_F_MRG_RXBUF` a frame may lie in several buffers: `merge`.

extern crate alloc;

mod merge;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use core::ops::{ControlFlow, Deref, DerefMut};
use core::ptr::NonNull;

use crate::trace::tracepoint;
use virtio_drivers::{BufferDirection, Hal};
use zerocopy::FromBytes;

use super::buffers::{FrameBuffers, Layout, largest_received};
use super::error::NetError;
use super::features::Features;
use super::hashes::{HashCheck, Hashes};
use super::header::{
    F_DATA_VALID, F_NEEDS_CSUM, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, HashHeader, Header,
    MergeableHeader, header_length,
};
use super::lease::Lease;
use super::private_copy::PrivateCopy;
use super::rss::{FlowHash, HashKind};
use crate::doorbell::{self, Doorbell, Notify};
use crate::prefetch::{AHEAD, prefetch};
use crate::queue::{PositionalRing, QueueError, QueueRing, UsedSlot, Virtqueue};

/// Bytes of the header on the legacy interface without `VIRTIO_NET_F_MRG_RXBUF`.
const LEGACY_HEADER: u32 = size_of::<Header>() as u32;
/// And else, but with `VIRTIO_NET_F_HASH_REPORT`.
const MERGEABLE_HEADER: u32 = size_of::<MergeableHeader>() as u32;

/// Receive buffers that go back together while frames are polled for: their descriptors,
/// four lines, are the driver's alone until then. Of a small ring each goes back at once,
/// because a frame of 64 KiB may need them all.
const TOGETHER: u16 = 16;

/// Asks for the two lines of a header and a small frame, without waiting for the length.
#[inline(always)]
fn fetch(start: NonNull<u8>) {
    prefetch::<false, _>(start.as_ptr());
    prefetch::<false, _>(start.as_ptr().wrapping_add(64));
}

/// A receive virtqueue with its buffers.
pub struct RxQueue<H: Hal, N = Doorbell> {
    pub(super) queue: ManuallyDrop<Virtqueue<PositionalRing<H>, N>>,
    buffers: ManuallyDrop<FrameBuffers<H>>,
    /// For how long both are the device's.
    lease: Lease,
    /// The frame that was received last, with its header.
    copy: PrivateCopy,
    /// `VIRTIO_NET_F_MRG_RXBUF`.
    mergeable: bool,
    agreed: Agreed,
    /// Largest frame that the device may deliver.
    largest: u32,
    pub(super) packets: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
    /// Frames over several buffers.
    pub(super) merged: u64,
    /// Frames whose checksum the device vouches for.
    pub(super) checksum_valid: u64,
    pub(super) hashes: Hashes,
    /// The doorbells of the other pairs' receive queues, where the device moves
    /// frames from one queue to another (`VIRTIO_NET_F_RSS`).
    others: Vec<N>,
    /// How often those were rung.
    pub(super) kicks_of_others: u64,
    pub(super) error: Option<QueueError>,
}

/// A received frame: bytes of the driver's own ([`RxQueue::receive_in_place`] aside),
/// which nobody else changes. It is gone with the next one; dropped, there is nothing to do.
#[must_use = "a frame that is not looked at is lost"]
#[derive(Debug)]
pub struct RxFrame<'q> {
    bytes: &'q mut [u8],
    /// The header, if it has a hash (`VIRTIO_NET_F_HASH_REPORT`).
    header: Option<&'q [u8]>,
    checksum_valid: bool,
}

impl RxFrame<'_> {
    /// Whether the device vouches for the checksum of the UDP datagram or TCP
    /// segment in it: it has verified it, or the frame comes from a sender on
    /// the same machine that left it incomplete. If not, it must be verified.
    /// The checksum of an IPv4 header must always be.
    #[inline]
    pub fn is_checksum_valid(&self) -> bool {
        self.checksum_valid
    }

    /// The hash that the device reports for it (`VIRTIO_NET_F_HASH_REPORT`,
    /// specification 5.1.6.4.4); `None` when it reports none.
    #[doc(alias = "virtio_skb_set_hash")]
    pub fn hash(&self) -> Option<FlowHash> {
        let (header, _) = HashHeader::read_from_prefix(self.header?).ok()?;
        Some(FlowHash {
            value: header.hash_value.get(),
            kind: HashKind::from_report(header.hash_report.get())?,
        })
    }
}

/// The bytes, without the `virtio_net_hdr` before them (specification 5.1.6.4).
impl Deref for RxFrame<'_> {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

/// To change them in place, such as to take a tag out.
impl DerefMut for RxFrame<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

/// What is known of the frame in [`RxQueue::copy`].
#[derive(Clone, Copy)]
struct Received {
    /// Bytes, without the header.
    length: u32,
    checksum_valid: bool,
}

impl Received {
    #[inline]
    fn frame(self, copy: &mut PrivateCopy, header: u32, reports_hash: bool) -> RxFrame<'_> {
        // SAFETY: who made it has copied them.
        let (header, bytes) = unsafe { copy.parts(header as usize, self.length as usize) };
        RxFrame {
            bytes,
            header: reports_hash.then_some(header),
            checksum_valid: self.checksum_valid,
        }
    }
}

/// Where the checksum ends that is asked for, in bytes from the start of the frame.
fn checksum_end(header: &Header) -> u32 {
    u32::from(header.csum_start.get()) + u32::from(header.csum_offset.get()) + 2
}

/// What the device may say of a frame.
struct Agreed {
    /// `VIRTIO_NET_F_GUEST_CSUM`.
    guest_csum: bool,
    /// With that [`F_DATA_VALID`], else 0.
    trusted: u32,
    /// What `gso_type` may be beside "none".
    segmented: [Option<u8>; 2],
}

impl Agreed {
    fn new(negotiated: Features) -> Self {
        let if_negotiated = |feature, gso_type| negotiated.contains(feature).then_some(gso_type);
        let guest_csum = negotiated.contains(Features::GUEST_CSUM);
        Self {
            guest_csum,
            trusted: if guest_csum { F_DATA_VALID.into() } else { 0 },
            segmented: [
                if_negotiated(Features::GUEST_TSO4, GSO_TCPV4),
                if_negotiated(Features::GUEST_TSO6, GSO_TCPV6),
            ],
        }
    }

    /// [`F_DATA_VALID`] when the device vouches for the checksum of a frame of `length`
    /// bytes with this header, else 0; `None` when the header cannot be.
    #[inline(always)]
    fn vouches(&self, header: &Header, length: u32) -> Option<u32> {
        self.vouches_plainly(header, length).or_else(|| {
            let is_valid = self.is_checksum_valid(header, length)?;
            Some(if is_valid { F_DATA_VALID.into() } else { 0 })
        })
    }

    /// The same where nothing is asked, or no more than a checksum, as by every sender on
    /// the same machine; `None` where something else is.
    #[inline(always)]
    fn vouches_plainly(&self, header: &Header, length: u32) -> Option<u32> {
        let asked = u32::from(u16::from_le_bytes([header.flags, header.gso_type]));
        if asked & !u32::from(F_DATA_VALID) == 0 {
            return Some(asked & self.trusted);
        }
        let is_right = asked == u32::from(F_NEEDS_CSUM) && self.guest_csum;
        (is_right && checksum_end(header) <= length).then_some(self.trusted)
    }

    /// The same where more may be asked (Linux `virtio_net_hdr_to_skb`).
    #[doc(alias = "virtio_net_hdr_to_skb")]
    #[inline(never)]
    fn is_checksum_valid(&self, header: &Header, length: u32) -> Option<bool> {
        // kvmtool leaves checksums out although nobody has agreed to that.
        if !self.guest_csum && header.flags & F_NEEDS_CSUM == 0 {
            return Some(false);
        }
        let wrong = (!self.guest_csum).then_some(false);
        // ECN needs nothing from us: no connection here uses it.
        let gso_type = header.gso_type & !GSO_ECN;
        let is_segmented = gso_type != GSO_NONE;
        if is_segmented && (header.gso_size.get() == 0 || !self.segmented.contains(&Some(gso_type)))
        {
            return wrong;
        }
        if header.flags & F_NEEDS_CSUM != 0 && checksum_end(header) > length {
            return wrong;
        }
        // Of a frame that needs its checksum, that one and all before it are
        // right (specification 5.1.6.4).
        Some(header.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0)
    }
}

impl<H: Hal, N: Notify> RxQueue<H, N> {
    /// Makes the queue with all its buffers given to the device (Linux
    /// `try_fill_recv`), which sees them at the first kick.
    #[doc(alias = "try_fill_recv")]
    pub(super) fn new(
        mut queue: Box<Virtqueue<PositionalRing<H>, N>>,
        negotiated: Features,
        mtu: u16,
        lease: &Lease,
    ) -> Result<Box<Self>, NetError> {
        let ring = queue.ring_mut();
        let layout = Layout::receive(negotiated, mtu);
        let count = layout.receive_count(ring.slots());
        let largest = largest_received(negotiated, mtu);
        let direction = BufferDirection::DeviceToDriver;
        let buffers = FrameBuffers::new(ring.queue(), layout, count, direction)?;
        let whole = buffers.slots(negotiated, direction);
        // SAFETY: the buffers are a part of the queue, which keeps them as long as the
        // device may use them (`lease`), and are added whole. They are read by
        // `PrivateCopy::fill`, which allows that the device writes them, and by
        // `receive_in_place`, whose caller answers for it.
        unsafe { ring.prepare(count, whole, |slot| buffers.header(slot)) };
        ring.refill();
        // A buffer is copied behind what there is of the largest frame.
        let copy = PrivateCopy::new(header_length(negotiated) + largest + layout.stride);
        let lease = lease.clone();
        Ok(Self::assemble(
            queue, buffers, lease, copy, largest, negotiated,
        ))
    }

    /// Apart from [`Self::new`], because it needs much stack.
    #[inline(never)]
    fn assemble(
        queue: Box<Virtqueue<PositionalRing<H>, N>>,
        buffers: FrameBuffers<H>,
        lease: Lease,
        copy: PrivateCopy,
        largest: usize,
        negotiated: Features,
    ) -> Box<Self> {
        // Made where it stays, without a copy of the ring on the stack.
        let place = Box::new_uninit();
        let this = Self {
            buffers: ManuallyDrop::new(buffers),
            lease,
            copy,
            mergeable: negotiated.contains(Features::MRG_RXBUF),
            agreed: Agreed::new(negotiated),
            // Less than 2^17.
            largest: largest as u32,
            packets: 0,
            bytes: 0,
            dropped: 0,
            merged: 0,
            checksum_valid: 0,
            hashes: Hashes::new(negotiated),
            others: Vec::new(),
            kicks_of_others: 0,
            error: None,
            queue: ManuallyDrop::new(*queue),
        };
        Box::write(place, this)
    }

    /// As [`QueuePair::begin_poll`](super::QueuePair::begin_poll).
    ///
    /// # Errors
    ///
    /// [`QueueError::Broken`].
    #[inline]
    pub fn begin_poll(&mut self) -> Result<(), QueueError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if crate::trace::is_enabled() && self.has_work() {
            tracepoint!(Event::Poll, crate::trace::NO_QUEUE);
        }
        self.queue.disable_interrupts();
        Ok(())
    }

    /// As [`QueuePair::enable_interrupts_after`](super::QueuePair::enable_interrupts_after).
    #[must_use = "the caller must poll again, if so"]
    #[inline]
    pub fn enable_interrupts_after(&mut self, frames: u16) -> bool {
        self.queue.ring_mut().refill();
        self.publish();
        self.error.is_some() || self.queue.enable_interrupts_after(frames)
    }

    /// Whether the device has used a buffer that was not looked at.
    #[inline]
    pub fn has_work(&self) -> bool {
        self.queue.ring().has_used()
    }

    /// Takes the next received frame, if there is one. Its buffers go back to the
    /// device at the next kick.
    ///
    /// After an error of the queue nothing more is received until the device
    /// has been reset.
    #[inline]
    pub fn receive(&mut self) -> Option<RxFrame<'_>> {
        self.receive_if(|_| true)
    }

    /// As [`Self::receive`], without the frames that `wanted` says no to.
    #[inline]
    pub fn receive_if(
        &mut self,
        mut wanted: impl FnMut(&mut RxFrame<'_>) -> bool,
    ) -> Option<RxFrame<'_>> {
        loop {
            let received = self.next()?;
            if wanted(&mut self.lend(received)) {
                return Some(self.lend(received));
            }
        }
    }

    /// Takes `most` frames or, where there are fewer, all that have come, and hands them
    /// to `take` one after the other while that says to go on. Returns how many: what
    /// each costs by itself is then done once.
    #[inline]
    pub fn receive_batch(&mut self, most: u32, mut take: impl FnMut(RxFrame<'_>) -> bool) -> u32 {
        let mut left = most;
        while left != 0 {
            let ended = match self.buffers.header_length() {
                _ if self.hashes.are_looked_at => ControlFlow::Continue(None),
                LEGACY_HEADER => self.take_run::<LEGACY_HEADER>(&mut left, &mut take),
                _ => self.take_run::<MERGEABLE_HEADER>(&mut left, &mut take),
            };
            let received = match ended {
                ControlFlow::Continue(copied) if left != 0 => self.next_of(copied),
                _ => None,
            };
            let Some(received) = received else {
                break;
            };
            left -= 1;
            if !take(self.lend(received)) {
                break;
            }
        }
        most - left
    }

    /// Hands up to `left` frames, which are counted there, to `take`, while they are in
    /// one buffer each, behind a header of that many bytes. Goes on with the bytes that
    /// were copied of another, if one ended it; breaks when `take` does. Apart, because
    /// it then has all registers.
    #[inline(never)]
    fn take_run<const HEADER: u32>(
        &mut self,
        left: &mut u32,
        take: &mut impl FnMut(RxFrame<'_>) -> bool,
    ) -> ControlFlow<(), Option<u32>> {
        let (mut total, mut valid, mut dropped) = (0, 0, 0);
        let mut ended = ControlFlow::Continue(None);
        // In variables, because the device's memory is read in between.
        let agreed = &self.agreed;
        let (headers, mut copy) = (self.buffers.starts(), self.copy.local());
        let taken = self
            .queue
            .ring_mut()
            .pop_run(*left, HEADER + 1, |slot, written| {
                if let Some(&later) = headers.get(slot + AHEAD) {
                    fetch(later);
                }
                // SAFETY: as in `take_in`.
                unsafe { copy.fill(0, *headers.get_unchecked(slot), written as usize) };
                let header = copy.header();
                let length = written - HEADER;
                if HEADER == MERGEABLE_HEADER && header.num_buffers != 1 {
                    ended = ControlFlow::Continue(Some(written));
                    return false;
                }
                let Some(vouched) = agreed.vouches(&header.header, length) else {
                    dropped += 1;
                    return true;
                };
                valid += vouched;
                // At most 2^15 frames, of less than 2^17 bytes each.
                total += length;
                // SAFETY: together they were copied.
                let (_, bytes) = unsafe { copy.parts(HEADER as usize, length as usize) };
                let goes_on = take(RxFrame {
                    bytes,
                    header: None,
                    checksum_valid: vouched != 0,
                });
                if !goes_on {
                    ended = ControlFlow::Break(());
                }
                goes_on
            });
        let is_left = matches!(ended, ControlFlow::Continue(Some(_)));
        let packets = taken - dropped - u32::from(is_left);
        *left -= packets;
        self.packets += u64::from(packets);
        self.bytes += u64::from(total);
        self.dropped += u64::from(dropped);
        self.checksum_valid += u64::from(valid / u32::from(F_DATA_VALID));
        ended
    }

    /// Copies the next frame, if there is one; its buffers are free. What is rare is
    /// called last of all: so nothing need be kept on the stack.
    #[inline]
    fn next(&mut self) -> Option<Received> {
        if self.queue.ring().has_quick() {
            self.next_quickly()
        } else {
            self.look_for_next()
        }
    }

    #[inline(never)]
    fn look_for_next(&mut self) -> Option<Received> {
        match self.queue.ring_mut().look_for_used() {
            Ok(false) => None,
            // `next_of` comes to the error.
            _ => self.next_quickly(),
        }
    }

    #[inline(always)]
    fn next_quickly(&mut self) -> Option<Received> {
        let Some(used) = self.queue.ring_mut().pop_quickly() else {
            return self.next_of(None);
        };
        let written = self.copy_in(0, used);
        match self.vouches_plainly(self.copy.header(), written) {
            Some(vouched) => Some(self.count(written, vouched)),
            None => self.next_of(Some(written)),
        }
    }

    /// As [`Agreed::vouches_plainly`], of a frame in one buffer, into which so many bytes
    /// were written.
    #[inline(always)]
    fn vouches_plainly(&self, header: &MergeableHeader, written: u32) -> Option<u32> {
        let is_plain = written > self.buffers.header_length()
            && !self.hashes.are_looked_at
            && (!self.mergeable || header.num_buffers == 1);
        let length = written.wrapping_sub(self.buffers.header_length());
        is_plain.then(|| self.agreed.vouches_plainly(&header.header, length))?
    }

    #[inline(always)]
    fn count(&mut self, written: u32, vouched: u32) -> Received {
        let length = written - self.buffers.header_length();
        let checksum_valid = vouched != 0;
        self.packets += 1;
        self.bytes += u64::from(length);
        self.checksum_valid += u64::from(checksum_valid);
        Received {
            length,
            checksum_valid,
        }
    }

    /// As [`Self::receive`], but without a copy where the frame is in one buffer that is
    /// used in its turn, with nothing asked: it is where the device wrote it, which has
    /// the buffer again after the next kick.
    ///
    /// # Safety
    ///
    /// The device writes nothing into a buffer that it has given back. The caller answers
    /// for that: who reads the frame takes it for memory that stays as it is.
    #[inline]
    pub unsafe fn receive_in_place(&mut self) -> Option<RxFrame<'_>> {
        let ring = self.queue.ring_mut();
        let is_there = ring.has_quick() || matches!(ring.look_for_used(), Ok(true));
        let Some(used) = is_there.then(|| ring.pop_quickly()).flatten() else {
            return self.receive();
        };
        // SAFETY: as in `copy_in`; every buffer is longer than any header, and nobody
        // writes it now.
        let (start, header) = unsafe {
            let start = *self.buffers.starts().get_unchecked(usize::from(used.slot));
            (start, start.cast::<MergeableHeader>().as_ref())
        };
        let Some(vouched) = self.vouches_plainly(header, used.length) else {
            let written = self.copy_in(0, used);
            let received = self.next_of(Some(written))?;
            return Some(self.lend(received));
        };
        let received = self.count(used.length, vouched);
        // SAFETY: so many bytes were written behind the header; while they are looked at,
        // this value is borrowed, and so there is no kick.
        let bytes = unsafe {
            let frame = start.add(self.buffers.header_length() as usize);
            core::slice::from_raw_parts_mut(frame.as_ptr(), received.length as usize)
        };
        Some(RxFrame {
            bytes,
            header: None,
            checksum_valid: received.checksum_valid,
        })
    }

    /// The frame that was copied last.
    #[inline]
    fn lend(&mut self, received: Received) -> RxFrame<'_> {
        let header = self.buffers.header_length();
        received.frame(&mut self.copy, header, self.hashes.are_reported())
    }

    /// The next frame, whatever it is, from the buffer on of which so many bytes have
    /// been copied, if any was.
    #[inline(never)]
    fn next_of(&mut self, mut copied: Option<u32>) -> Option<Received> {
        loop {
            let written = match copied.take() {
                Some(written) => written,
                None => self.take_in(0)?,
            };
            if let Some(received) = self.judge(written) {
                self.packets += 1;
                self.bytes += u64::from(received.length);
                if self.hashes.are_looked_at {
                    self.look_at_hash(received);
                }
                return Some(received);
            }
            if self.error.is_some() {
                return None;
            }
            self.dropped += 1;
        }
    }

    /// Takes the next buffer, if there is one, and copies it; see [`Self::copy_in`].
    fn take_in(&mut self, offset: usize) -> Option<u32> {
        match self.queue.ring_mut().pop_used() {
            Ok(used) => Some(self.copy_in(offset, used?)),
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    /// Copies what the device wrote into a buffer behind the `offset` bytes that there
    /// are, a whole frame at most. Returns how much that was.
    #[inline(always)]
    fn copy_in(&mut self, offset: usize, used: UsedSlot) -> u32 {
        // SAFETY: every slot has a buffer, which begins at a multiple of 64 bytes and has
        // a length that is one; the ring made sure that the device wrote no more than was
        // posted, for which there is room behind a frame. Its memory lives as long
        // as `buffers`, and the device may change it meanwhile, which `fill` allows.
        unsafe {
            let from = *self.buffers.starts().get_unchecked(usize::from(used.slot));
            fetch(from);
            self.copy.fill(offset, from, used.length as usize);
        }
        used.length
    }

    fn look_at_hash(&mut self, received: Received) {
        let queue = self.queue.ring().queue();
        let (copy, header) = (&mut self.copy, self.buffers.header_length());
        let frame = received.frame(copy, header, self.hashes.are_reported());
        self.hashes.look_at(queue, frame.hash(), &frame);
    }

    /// From now on compares what the device does with what `check` says.
    pub(super) fn check_hashes(&mut self, check: HashCheck) {
        // What it has used already it may have received before.
        let ring = self.queue.ring();
        let skip = ring.used_idx().wrapping_sub(ring.last_used_idx());
        self.hashes.check(check, skip);
    }

    /// Gives the free buffers back to the device (specification 5.1.6.3; Linux
    /// `try_fill_recv`) once there are 16, and tells it of them, if it wants to know.
    /// It does when it had none: then it may have frames for this queue waiting
    /// where they came in, and QEMU (7.2, `virtio_net_receive_rcu`) tries those
    /// again only when told of the queue there. So it is told of all.
    #[inline]
    pub fn kick(&mut self) {
        let ring = self.queue.ring_mut();
        if ring.free() >= TOGETHER || ring.slots() < 4 * TOGETHER {
            ring.refill();
        }
        self.publish();
    }

    #[inline]
    fn publish(&mut self) {
        if self.queue.kick() {
            self.kick_others();
        }
    }

    #[cold]
    fn kick_others(&mut self) {
        for doorbell in &self.others {
            tracepoint!(Event::Notify, doorbell.queue());
            doorbell::ring(doorbell, None);
            self.kicks_of_others += 1;
        }
    }

    /// The device moves frames between these receive queues, of which this is one.
    pub(super) fn moves_between(&mut self, doorbells: &[N]) {
        // What is told with data can be told by the queue's owner alone.
        if self.queue.ring().notifies_with_data() {
            return;
        }
        let own = self.queue.ring().queue();
        let others = doorbells.iter().filter(|doorbell| doorbell.queue() != own);
        self.others = others.cloned().collect();
    }

    /// See [`TxQueue::was_reset`](super::tx::TxQueue::was_reset).
    pub(super) fn was_reset(mut self: Box<Self>, queue: u16, lease: &Lease) {
        if self.lease == *lease && self.queue.ring().queue() == queue {
            self.lease = Lease::default();
        }
    }

    /// Goes on where the queue was that this one replaces.
    pub(super) fn follow(&mut self, other: &mut Self) {
        self.others = core::mem::take(&mut other.others);
        if let Some(check) = other.hashes.check.take() {
            self.check_hashes(check);
        }
    }

    /// What the header says of the frame whose first `written` bytes were copied
    /// (Linux `receive_buf`); takes the rest in, if it lies in several buffers. `None`
    /// when there is nothing to hand on.
    #[doc(alias = "receive_buf")]
    fn judge(&mut self, written: u32) -> Option<Received> {
        let mut length = written.checked_sub(self.buffers.header_length())?;
        if self.mergeable && self.copy.header().num_buffers != 1 {
            length = self.merge(written)?;
        }
        if length == 0 {
            return None;
        }
        let header = self.copy.header().header;
        let checksum_valid = self.agreed.vouches(&header, length)? != 0;
        self.checksum_valid += u64::from(checksum_valid);
        Some(Received {
            length,
            checksum_valid,
        })
    }
}

impl<H: Hal, N> Drop for RxQueue<H, N> {
    /// As long as the device may use its memory, that is never used again.
    fn drop(&mut self) {
        if !self.lease.is_running() {
            // SAFETY: once, and nobody uses them after it.
            unsafe {
                ManuallyDrop::drop(&mut self.queue);
                ManuallyDrop::drop(&mut self.buffers);
            }
        }
    }
}
