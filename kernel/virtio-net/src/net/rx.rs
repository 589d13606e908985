//! The receive queue: every buffer is either at the device or, for the length
//! of one call, at the network stack.
//!
//! With `VIRTIO_NET_F_MRG_RXBUF` a frame may lie in several buffers: `merge`.

extern crate alloc;

mod merge;

use alloc::vec::Vec;
use core::sync::atomic::{AtomicU32, Ordering};

use kickpath_trace::{Event, tracepoint};
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
use super::rss::{FlowHash, HashKind};
use crate::doorbell::Doorbell;
use crate::queue::{Buffer, QueueError, Used, Virtqueue};

/// A receive virtqueue with its buffers.
pub struct RxQueue<H: Hal> {
    pub(super) queue: Virtqueue<H>,
    /// Tells this queue from all others, for [`RxFrame`].
    id: u32,
    buffers: FrameBuffers<H>,
    /// Number of buffers; the one of this number is the memory behind them.
    count: u16,
    /// Whether header and frame may be one descriptor
    /// (`VIRTIO_F_ANY_LAYOUT`, specification 2.7.4.3).
    any_layout: bool,
    /// `VIRTIO_NET_F_MRG_RXBUF`.
    mergeable: bool,
    /// `VIRTIO_NET_F_GUEST_CSUM`.
    guest_csum: bool,
    /// Nothing in the header says anything about a frame but `num_buffers`.
    plain: bool,
    /// What `gso_type` may be beside "none".
    segmented: [Option<u8>; 2],
    /// Largest frame that the device may deliver.
    largest: u32,
    /// A frame that the caller has lies in the memory behind the buffers.
    behind_in_use: bool,
    /// The buffers of the frame that is being put together; has room for all.
    parts: Vec<Used>,
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
    others: Vec<Doorbell>,
    /// How often those were rung.
    pub(super) kicks_of_others: u64,
    pub(super) error: Option<QueueError>,
}

/// A received frame that the device has given to the driver. It belongs to the
/// queue that it was taken from, until the device is stopped or that queue reset;
/// who gives it to another has made a mistake, and panics.
#[derive(Debug)]
pub struct RxFrame {
    /// [`RxQueue::id`].
    queue: u32,
    /// Where it begins.
    buffer: u16,
    /// Buffers from there on that are to be posted again; behind the last one
    /// comes the first.
    buffers: u16,
    length: u32,
    checksum_valid: bool,
}

impl RxFrame {
    /// Whether the device vouches for the checksum of the UDP datagram or TCP
    /// segment in it: it has verified it, or the frame comes from a sender on
    /// the same machine that left it incomplete. If not, it must be verified.
    /// The checksum of an IPv4 header must always be.
    #[inline]
    pub fn is_checksum_valid(&self) -> bool {
        self.checksum_valid
    }
}

impl<H: Hal> RxQueue<H> {
    pub(super) fn new(
        queue: Virtqueue<H>,
        negotiated: Features,
        mtu: u16,
    ) -> Result<Self, NetError> {
        let ring = queue.ring();
        let layout = Layout::receive(negotiated, mtu);
        let count = layout.receive_count(ring.capacity());
        let mergeable = negotiated.contains(Features::MRG_RXBUF);
        let largest = largest_received(negotiated, mtu);
        let behind = if mergeable {
            header_length(negotiated) + largest
        } else {
            0
        };
        let buffers = FrameBuffers::new(layout, count, 1, behind, BufferDirection::DeviceToDriver)
            .ok_or(NetError::NoBuffers {
                queue: ring.queue(),
                count,
                size: layout.stride(),
            })?;
        let guest_csum = negotiated.contains(Features::GUEST_CSUM);
        let hashes = Hashes::new(negotiated);
        let if_negotiated = |feature, gso_type| negotiated.contains(feature).then_some(gso_type);
        // No frame is kept over 2^32 queues.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Ok(Self {
            queue,
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            buffers,
            count,
            any_layout: negotiated.any_layout(),
            mergeable,
            guest_csum,
            plain: !guest_csum && !hashes.are_looked_at(),
            segmented: [
                if_negotiated(Features::GUEST_TSO4, GSO_TCPV4),
                if_negotiated(Features::GUEST_TSO6, GSO_TCPV6),
            ],
            // Less than 2^17.
            largest: largest as u32,
            behind_in_use: false,
            parts: Vec::with_capacity(if mergeable { count.into() } else { 0 }),
            packets: 0,
            bytes: 0,
            dropped: 0,
            merged: 0,
            checksum_valid: 0,
            hashes,
            others: Vec::new(),
            kicks_of_others: 0,
            error: None,
        })
    }

    /// Gives every buffer to the device (Linux `try_fill_recv`), without a
    /// kick.
    #[doc(alias = "try_fill_recv")]
    pub(super) fn fill(&mut self) -> Result<(), NetError> {
        for buffer in 0..self.count {
            self.post(buffer)?;
        }
        Ok(())
    }

    /// Whether the device vouches for the checksums of some frames
    /// (`VIRTIO_NET_F_GUEST_CSUM`): [`RxFrame::is_checksum_valid`] says of
    /// which.
    #[inline]
    pub fn verifies_checksums(&self) -> bool {
        self.guest_csum
    }

    /// Takes the next received frame, if there is one. It must go back by
    /// [`Self::recycle`], before the next one is taken: a frame that must be
    /// put together is lost when another such frame is still out.
    ///
    /// After an error of the queue nothing more is received until the device
    /// has been reset.
    #[inline]
    pub fn receive(&mut self) -> Option<RxFrame> {
        let first = self.queue.pop_seen();
        if let Some(used) = first
            && self.plain
            && let Some(length) = used.length.checked_sub(self.buffers.header_length())
            && length > 0
            && !(self.mergeable && self.num_buffers(used.token) != 1)
        {
            self.packets += 1;
            self.bytes += u64::from(length);
            return Some(RxFrame {
                queue: self.id,
                buffer: used.token,
                buffers: 1,
                length,
                checksum_valid: false,
            });
        }
        self.receive_from(first)
    }

    /// [`Self::receive`] for every case, from a buffer on that has been taken
    /// already.
    #[inline(never)]
    fn receive_from(&mut self, mut first: Option<Used>) -> Option<RxFrame> {
        loop {
            let used = match first.take() {
                Some(used) => used,
                None => match self.queue.pop_used() {
                    Ok(used) => used?,
                    Err(error) => {
                        self.error = Some(error);
                        return None;
                    }
                },
            };
            let Some(length) = used.length.checked_sub(self.buffers.header_length()) else {
                // Not even a header: nothing to hand on.
                self.drop_buffer(used.token);
                continue;
            };
            let mut frame = RxFrame {
                queue: self.id,
                buffer: used.token,
                buffers: 1,
                // `pop_used` made sure that it is at most what was posted.
                length,
                checksum_valid: false,
            };
            if self.mergeable && self.num_buffers(used.token) != 1 {
                frame = match self.merge(used) {
                    Some(frame) => frame,
                    None if self.error.is_some() => return None,
                    None => continue,
                };
            }
            if self.guest_csum && !self.judge(&mut frame) || frame.length == 0 {
                self.dropped += 1;
                self.recycle(frame);
                continue;
            }
            self.packets += 1;
            self.bytes += u64::from(frame.length);
            if self.hashes.are_looked_at() {
                self.look_at_hash(&frame);
            }
            return Some(frame);
        }
    }

    fn look_at_hash(&mut self, frame: &RxFrame) {
        let queue = self.queue.ring().queue();
        let reported = self.hash(frame);
        let mut hashes = core::mem::take(&mut self.hashes);
        hashes.look_at(queue, reported, self.frame(frame));
        self.hashes = hashes;
    }

    /// The hash that the device reports for a frame
    /// (`VIRTIO_NET_F_HASH_REPORT`, specification 5.1.6.4.4); `None` when it
    /// reports none.
    ///
    /// # Panics
    ///
    /// If the frame is another queue's.
    #[doc(alias = "virtio_skb_set_hash")]
    pub fn hash(&self, frame: &RxFrame) -> Option<FlowHash> {
        self.check(frame);
        if !self.hashes.are_reported() {
            return None;
        }
        let header: &[u8; size_of::<HashHeader>()] = self.header(frame.buffer);
        let header = HashHeader::read_from_bytes(header).ok()?;
        Some(FlowHash {
            value: header.hash_value.get(),
            kind: HashKind::from_report(header.hash_report.get())?,
        })
    }

    /// From now on compares what the device does with what `check` says.
    pub(super) fn check_hashes(&mut self, check: HashCheck) {
        // What it has used already it may have received before.
        let ring = self.queue.ring();
        let skip = ring.used_idx().wrapping_sub(ring.last_used_idx());
        self.plain = false;
        self.hashes.check(check, skip);
    }

    /// Tells the device of the buffers that it has back, if it wants to know.
    /// It does when it had none: then it may have frames for this queue waiting
    /// where they came in, and QEMU (7.2, `virtio_net_receive_rcu`) tries those
    /// again only when told of the queue there. So it is told of all.
    #[inline]
    pub(super) fn kick(&mut self) {
        if self.queue.kick() {
            self.kick_others();
        }
    }

    #[cold]
    fn kick_others(&mut self) {
        for doorbell in &self.others {
            tracepoint!(Event::Notify, doorbell.queue());
            doorbell.ring();
            self.kicks_of_others += 1;
        }
    }

    /// The device moves frames between these receive queues, of which this is
    /// one.
    pub(super) fn moves_between(&mut self, doorbells: &[Doorbell]) {
        // What is told with data can be told by the queue's owner alone.
        if self.queue.ring().notifies_with_data() {
            return;
        }
        let own = self.queue.ring().queue();
        let others = doorbells.iter().filter(|doorbell| doorbell.queue() != own);
        self.others = others.copied().collect();
    }

    /// Goes on where the queue was that this one replaces.
    pub(super) fn follow(&mut self, other: &mut Self) {
        self.others = core::mem::take(&mut other.others);
        if let Some(check) = other.hashes.checks() {
            self.check_hashes(check);
        }
    }

    /// The `num_buffers` of a header that has it.
    #[inline]
    fn num_buffers(&self, buffer: u16) -> u16 {
        let header: &[u8; size_of::<MergeableHeader>()] = self.header(buffer);
        MergeableHeader::read_from_bytes(header).map_or(0, |header| header.num_buffers.get())
    }

    /// The first `N` bytes of a buffer's header, which has at least so many.
    #[inline]
    fn header<const N: usize>(&self, buffer: u16) -> &[u8; N] {
        debug_assert!(N <= self.buffers.header_length() as usize);
        // SAFETY: every buffer begins with a header of that length; this one
        // is not at the device, and the memory was zeroed when it was
        // allocated.
        unsafe { self.buffers.header_pointer(buffer).cast().as_ref() }
    }

    /// Reads what the header says of the frame (Linux
    /// `virtio_net_hdr_to_skb`); returns whether it can be.
    #[doc(alias = "virtio_net_hdr_to_skb")]
    fn judge(&mut self, frame: &mut RxFrame) -> bool {
        let header: &[u8; size_of::<Header>()] = self.header(frame.buffer);
        let Ok(header) = Header::read_from_bytes(header) else {
            return false;
        };
        // ECN needs nothing from us: no connection here uses it.
        let gso_type = header.gso_type & !GSO_ECN;
        let is_segmented = gso_type != GSO_NONE;
        if is_segmented && (header.gso_size.get() == 0 || !self.segmented.contains(&Some(gso_type)))
        {
            return false;
        }
        if header.flags & F_NEEDS_CSUM != 0 {
            let end = u32::from(header.csum_start.get()) + u32::from(header.csum_offset.get()) + 2;
            if end > frame.length {
                return false;
            }
        }
        // Of a frame that needs its checksum, that one and all before it are
        // right (specification 5.1.6.4).
        frame.checksum_valid = header.flags & (F_NEEDS_CSUM | F_DATA_VALID) != 0;
        self.checksum_valid += u64::from(frame.checksum_valid);
        true
    }

    /// The bytes of a received frame, where the device wrote them, without the
    /// `virtio_net_hdr` before it (specification 5.1.6.4).
    ///
    /// # Panics
    ///
    /// If the frame is another queue's.
    #[inline]
    pub fn frame(&self, frame: &RxFrame) -> &[u8] {
        self.check(frame);
        // SAFETY: the frame is this queue's. The device has given its buffers
        // back, `recycle` consumes the `RxFrame`, and `receive` checked the
        // length against what was posted, so that these are initialised bytes of
        // buffers that nobody writes; those of several buffers have no gap
        // between them.
        unsafe {
            core::slice::from_raw_parts(
                self.buffers.frame(frame.buffer).as_ptr(),
                frame.length as usize,
            )
        }
    }

    /// The same, to change in place, such as to take a tag out.
    ///
    /// # Panics
    ///
    /// If the frame is another queue's.
    #[inline]
    pub fn frame_mut(&mut self, frame: &mut RxFrame) -> &mut [u8] {
        self.check(frame);
        // SAFETY: as in `frame`; both the queue and the frame are borrowed
        // for as long as the bytes are.
        unsafe {
            core::slice::from_raw_parts_mut(
                self.buffers.frame(frame.buffer).as_ptr(),
                frame.length as usize,
            )
        }
    }

    /// Panics if the frame is not this queue's.
    // It does not return a frame without bytes instead, which costs the way of
    // every other frame more.
    #[inline(always)]
    fn check(&self, frame: &RxFrame) {
        if frame.queue != self.id {
            foreign(self.queue.ring().queue());
        }
    }

    /// Gives the buffers of a frame back to the device; it sees them at the
    /// next kick (specification 5.1.6.3; Linux `try_fill_recv`).
    ///
    /// # Panics
    ///
    /// If it is another queue's.
    #[inline]
    pub fn recycle(&mut self, frame: RxFrame) {
        self.check(&frame);
        if frame.buffers == 1 {
            self.repost(frame.buffer);
        } else {
            self.recycle_merged(&frame);
        }
    }

    /// Gives a buffer back that holds nothing to hand on.
    fn drop_buffer(&mut self, buffer: u16) {
        self.dropped += 1;
        self.repost(buffer);
    }

    #[inline]
    fn repost(&mut self, buffer: u16) {
        if self.any_layout
            && !kickpath_trace::is_enabled()
            && let Some(head) = self.queue.ring().next_head()
        {
            let frame = self.whole(buffer);
            // SAFETY: as in `post`, and the head is the next one.
            unsafe { self.queue.add_untraced(head, frame, buffer) };
        } else if let Err(error) = self.post(buffer) {
            self.error = Some(error);
        }
    }

    /// Header and frame of a buffer as one piece.
    #[inline]
    fn whole(&self, buffer: u16) -> Buffer {
        let length = self.buffers.header_length() + self.buffers.capacity();
        Buffer::new(self.buffers.header(buffer), length, true)
    }

    #[inline(never)]
    fn post(&mut self, buffer: u16) -> Result<(), QueueError> {
        let header = self.buffers.header_length();
        let whole = self.whole(buffer);
        let parts = [
            Buffer::new(whole.address, header, true),
            Buffer::new(
                whole.address + u64::from(header),
                self.buffers.capacity(),
                true,
            ),
        ];
        let chain = if self.any_layout {
            &[whole][..]
        } else {
            &parts
        };
        // SAFETY: the buffer is part of `self.buffers`, which outlives the
        // device's use of it (`del_vqs` resets first), and it is not at the
        // device: it was never posted or has just come back.
        unsafe { self.queue.add(chain, buffer) }
    }

    /// The virtqueue and the memory of its buffers, which must outlive the
    /// device's use of them.
    pub(super) fn into_parts(self) -> (Virtqueue<H>, FrameBuffers<H>) {
        (self.queue, self.buffers)
    }
}

#[cold]
#[inline(never)]
fn foreign(queue: u16) -> ! {
    panic!("queue {queue}: the frame is another queue's, or of one that had this place before")
}
