//! Tracepoints of the kick path.
//!
//! A [`tracepoint!`] costs one predictable branch while tracing is off. While
//! it is on, it stores a [`Record`] of 32 bytes in the [`Ring`]: what happened,
//! where in the source, at which queue, two arguments, and the time by the clock
//! that [`Ring::start`] was given. Nothing leaves the guest by itself: whoever can
//! read the guest's memory reads the ring, by the symbol [`RING_SYMBOL`].
//!
//! The ring keeps the first records and counts those for which there was no
//! room: the beginning of a journey is worth more than its end, and nothing
//! is lost in silence. Several CPUs may record at once: each draws a place of
//! its own. A record has the number of its CPU, if the kernel keeps it where
//! [`CPU_WORD`] says (feature `cpu-at-gs`).
//!
//! ```
//! use kickpath_trace::{Event, RING, tracepoint};
//!
//! // SAFETY: this program has no other thread.
//! unsafe { RING.start(|| 0) };
//! tracepoint!(Event::Publish, 1, 7, 6);
//! // SAFETY: as above.
//! unsafe { RING.stop() };
//! let records: Vec<_> = RING.records().collect();
//! assert_eq!(records.len(), 1);
//! assert_eq!((records[0].queue(), records[0].a, records[0].b), (1, 7, 6));
//! let site = records[0].site();
//! assert_eq!(site.event, Event::Publish);
//! assert!(site.file.ends_with(".rs") && site.line > 0);
//! ```
#![no_std]
#![deny(missing_docs)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering, compiler_fence};

/// Name of the symbol at which the ring lies in the guest's image.
pub const RING_SYMBOL: &str = "KICKPATH_TRACE_RING";

/// First word of a ring, so that a reader knows that it found one.
pub const MAGIC: u64 = u64::from_le_bytes(*b"KICKTRC1");

/// Records that the ring holds.
pub const CAPACITY: usize = 4096;

/// The number that a [`Record`] has for a queue when there is none. Those of
/// queues are lower: QEMU has up to 1,023 queues.
pub const NO_QUEUE: u16 = 0x3ff;

/// Offset in bytes from the base of the GS segment at which a kernel with the
/// feature `cpu-at-gs` keeps [`cpu_word`] of the CPU that runs: 64 bits.
pub const CPU_WORD: usize = 8;

/// Where the CPU's number is in [`Record::place`].
const CPU_SHIFT: u32 = 58;

/// What stands at [`CPU_WORD`] on the CPU of this number, at most 63: its number
/// as it is in [`Record::place`].
pub const fn cpu_word(number: u32) -> u64 {
    (number as u64) << CPU_SHIFT
}

macro_rules! events {
    ($($(#[$meta:meta])* $name:ident = $number:literal,)+) => {
        /// What a tracepoint reports. Numbers are never used again for
        /// another meaning. The documentation of each says what its arguments
        /// `a` and `b` are; `lo..hi` are bits, lowest first.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Event {
            $($(#[$meta])* $name = $number,)+
        }

        impl Event {
            /// Every event, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The event with this number.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $($number => Some(Self::$name),)+
                    _ => None,
                }
            }

            /// The event's name in the source.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }
        }
    };
}

events! {
    /// A rung of the interrupt ladder is tried. `a`: 0 MSI-X a vector a
    /// queue, 1 MSI-X shared, 2 INTx, 3 polling.
    FindVqsTry = 1,
    /// A rung was taken or not. `a`: the rung; `b`: 1 taken, 0 not.
    FindVqsResult = 2,
    /// A queue was set up. `a`: number of descriptors; `b`: address of the
    /// descriptor table as the device sees it.
    SetupQueue = 3,
    /// The notify hook was attached to a queue. `a`: 0 port, 1 16-bit memory,
    /// 2 32-bit memory, 3 call; `b`: port or address.
    AttachDoorbell = 4,
    /// A socket was given data to send. `a`: bytes; `b`: port it goes to.
    SocketSend = 10,
    /// smoltcp asks for room for a frame. `a`: bytes.
    TxTokenConsume = 11,
    /// A frame is put into the transmit queue. `a`: bytes; `b`: address of
    /// its header as the device sees it.
    StartXmit = 12,
    /// A descriptor other than the last of its chain was written. `a`: 0..16
    /// its number in the ring, or in the chain's table where descriptors are
    /// indirect, 32..64 length in bytes; `b`: 0..63 address, 63 the device
    /// writes it.
    Descriptor = 13,
    /// The last descriptor of a chain was written and the chain put into the
    /// available ring. `a`: 0..16 head of the chain, 16..32 entry of the ring,
    /// 32..64 length of the last descriptor in bytes; `b`: 0..63 its address,
    /// 63 the device writes it. Its number is the head's plus that of
    /// `Descriptor`s since the last `Add`. In a packed ring 0..16 is the
    /// buffer id and 16..32 the number of the last descriptor, which is also
    /// the place of the chain.
    Add = 14,
    /// The available index became visible to the device. `a`: the new index;
    /// `b`: the one before. In a packed ring the descriptors in between became
    /// available; both are 0..15 the next descriptor, 15 the wrap counter.
    Publish = 15,
    /// Whether the device wants to know. `a`: 0..16 new index, 16..32 old
    /// index, 32..48 the device's event or flags, 48 by event; `b`: 1 yes. In a
    /// packed ring indices and event are as in `Publish`.
    KickPrepare = 16,
    /// The device is going to be notified.
    Notify = 17,
    /// The instruction after this record is the doorbell. `a`: as in
    /// `AttachDoorbell`; `b`: port or address.
    DoorbellRing = 18,
    /// The instruction before this record was the doorbell: the guest runs
    /// again.
    DoorbellRang = 19,
    /// While the CPU ran, it took an interrupt that is no device's: its timer's, or
    /// the message of another CPU. `a`: the vector. (Those that end a sleep leave no
    /// record: of a CPU that has nothing to do they have no end.)
    OtherInterrupt = 27,
    /// The handler of an `OtherInterrupt` has ended. `a`: the vector.
    OtherInterruptEnd = 28,
    /// The CPU took an interrupt of a device; its handler is called next. `a`:
    /// the vector.
    InterruptVector = 29,
    /// A queue's MSI-X vector.
    VringInterrupt = 30,
    /// The INTx line. `a`: the interrupt status that was read.
    IntxInterrupt = 31,
    /// The MSI-X vector of configuration changes.
    ConfigInterrupt = 32,
    /// A poll begins, and received frames wait for it. (One that finds none
    /// leaves no record: without interrupts they would fill the ring.)
    Poll = 33,
    /// A used chain was taken back. `a`: 0..16 head, 16..32 entry of the used
    /// ring, 32..64 bytes written; `b`: 0..16 the device's used index. In a
    /// packed ring 0..16 is the buffer id, 16..32 the number of the used
    /// descriptor, and `b` where the next one will be, as in `Publish`.
    PopUsed = 34,
    /// smoltcp reads a received frame. `a`: bytes.
    RxTokenConsume = 35,
    /// A socket got data. `a`: bytes; `b`: port it came from.
    SocketReceive = 36,
    /// Interrupts are asked for again. `a`: 0..16 the event that was written,
    /// 48 by event; `b`: 1 when there is work already.
    EnableInterrupts = 37,
    /// Interrupts are masked. `a`: as in `EnableInterrupts`.
    DisableInterrupts = 38,
    /// The CPU sleeps until an interrupt. Recorded once until there is another
    /// record.
    Idle = 39,
}

/// A place in the source that has a tracepoint.
#[derive(Debug)]
#[repr(C)]
pub struct Site {
    /// What happens there.
    pub event: Event,
    /// Line of the file, from 1.
    pub line: u32,
    /// The file as the compiler knows it.
    pub file: &'static str,
    /// The module.
    pub module: &'static str,
}

/// What a tracepoint left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Record {
    /// The clock, on x86 the time stamp counter.
    pub tsc: u64,
    /// Address of the [`Site`] in bits 0 to 47 (the others repeat bit 47), the
    /// queue's index in bits 48 to 57 and the CPU's number in bits 58 to 63.
    pub place: u64,
    /// First argument; see [`Event`].
    pub a: u64,
    /// Second argument; see [`Event`].
    pub b: u64,
}

const _: () = assert!(size_of::<Record>() == 32);

impl Record {
    /// Address of the [`Site`] in the image that left the record.
    pub const fn site_address(&self) -> u64 {
        ((self.place << 16) as i64 >> 16) as u64
    }

    /// The queue's index, [`NO_QUEUE`] when it is about none.
    pub const fn queue(&self) -> u16 {
        (self.place >> 48) as u16 & NO_QUEUE
    }

    /// The number of the CPU that left it: 0 is the one that booted.
    pub const fn cpu(&self) -> u8 {
        (self.place >> CPU_SHIFT) as u8
    }

    /// The site, for a record of this very program.
    pub fn site(&self) -> &'static Site {
        let address = self.site_address() as usize;
        // SAFETY: records of this program's ring are made by `emit` alone,
        // from a `&'static Site` whose upper 16 bits repeat bit 47 as every
        // address of a four-level page table does. (`Record`'s fields are
        // public, but only the ring's are asked here: see `Ring::records`.)
        unsafe { &*core::ptr::with_exposed_provenance(address) }
    }
}

/// Where records are kept. Its layout is what a reader of the guest's memory
/// sees.
#[repr(C)]
pub struct Ring {
    /// Both 0 until recording begins: a ring of zeroes takes no room in the image.
    magic: UnsafeCell<u64>,
    capacity: UnsafeCell<u64>,
    /// Records that were made, including those that were lost.
    count: AtomicUsize,
    records: [UnsafeCell<Record>; CAPACITY],
}

/// Whether tracepoints record: a symbol of its own, so that a tracepoint can
/// ask for it in one instruction.
static ENABLED: Flag = Flag(UnsafeCell::new(false));

/// What records are stamped with.
static CLOCK: Clock = Clock(UnsafeCell::new(|| 0));

struct Clock(UnsafeCell<fn() -> u64>);

// SAFETY: as for `Flag`: only `Ring::start` writes it.
unsafe impl Sync for Clock {}

/// CPUs read it all the time: nothing that is written has its cache line.
#[repr(align(64))]
struct Flag(UnsafeCell<bool>);

/// Place of the last record, so that one that repeats can be left out; on a CPU
/// of 32 bits the address of its site alone.
static LAST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: it is written only by `Ring::start` and `Ring::stop`, whose callers
// promise that nobody reads it meanwhile.
unsafe impl Sync for Flag {}

// SAFETY: a record is written by whoever drew its index from `count`, which
// nobody else gets; it is read only by `records`, after `stop`, on the CPU
// that wrote it, or from outside of the guest.
unsafe impl Sync for Ring {}

/// Byte offsets of the fields of a [`Ring`] and of a [`Site`] in memory, for a
/// reader of it.
pub mod layout {
    use super::{Ring, Site};

    /// 64 bits: [`super::MAGIC`].
    pub const MAGIC: usize = core::mem::offset_of!(Ring, magic);
    /// 64 bits: number of records that there is room for.
    pub const CAPACITY: usize = core::mem::offset_of!(Ring, capacity);
    /// As wide as the CPU, 64 bits of x86-64: number of records made, lost ones
    /// included.
    pub const COUNT: usize = core::mem::offset_of!(Ring, count);
    /// The first record.
    pub const RECORDS: usize = core::mem::offset_of!(Ring, records);

    /// 32 bits: the event's number.
    pub const SITE_EVENT: usize = core::mem::offset_of!(Site, event);
    /// 32 bits: the line.
    pub const SITE_LINE: usize = core::mem::offset_of!(Site, line);
    /// The file: 64 bits of address, then 64 bits of length.
    pub const SITE_FILE: usize = core::mem::offset_of!(Site, file);
    /// The module, likewise.
    pub const SITE_MODULE: usize = core::mem::offset_of!(Site, module);
}

/// The ring of this program.
// SAFETY: nothing else in the program has this name.
#[unsafe(export_name = "KICKPATH_TRACE_RING")]
pub static RING: Ring = Ring {
    magic: UnsafeCell::new(0),
    capacity: UnsafeCell::new(0),
    count: AtomicUsize::new(0),
    records: [const {
        UnsafeCell::new(Record {
            tsc: 0,
            place: 0,
            a: 0,
            b: 0,
        })
    }; CAPACITY],
};

impl Ring {
    /// Begins to record, after what is there, and stamps each record by `clock`:
    /// on x86 the CPU's time stamp counter, if the runner shall join the records
    /// with what the host recorded. It is called anywhere, also in interrupts.
    ///
    /// # Safety
    ///
    /// No other thread may be at a tracepoint. (An interrupt handler of the
    /// same CPU may; it sees the one or the other.)
    pub unsafe fn start(&self, clock: fn() -> u64) {
        // SAFETY: the caller's promise; and only who records or reads a ring that is
        // recorded to looks at the rest.
        unsafe {
            *CLOCK.0.get() = clock;
            *self.magic.get() = MAGIC;
            *self.capacity.get() = CAPACITY as u64;
        }
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as above; who sees it sees the clock.
        unsafe { *ENABLED.0.get() = true };
        compiler_fence(Ordering::SeqCst);
    }

    /// Ends recording.
    ///
    /// # Safety
    ///
    /// As for [`Self::start`].
    pub unsafe fn stop(&self) {
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the caller's promise.
        unsafe { *ENABLED.0.get() = false };
    }

    /// Records that there was no room for.
    pub fn lost(&self) -> u64 {
        self.count.load(Ordering::Relaxed).saturating_sub(CAPACITY) as u64
    }

    /// The records, oldest first. To be called while recording is stopped.
    pub fn records(&self) -> impl Iterator<Item = Record> + '_ {
        let count = self.count.load(Ordering::Acquire).min(CAPACITY);
        self.records[..count]
            .iter()
            // SAFETY: the record was finished before `stop`.
            .map(|record| unsafe { *record.get() })
    }
}

/// Whether tracepoints record.
#[inline(always)]
pub fn is_enabled() -> bool {
    // A plain load, because the compiler takes an atomic one into a register
    // before it looks at it: an instruction more at every tracepoint.
    // SAFETY: the callers of `Ring::start` and `Ring::stop` promise that no
    // other thread is at a tracepoint when they write it.
    unsafe { *ENABLED.0.get() }
}

/// Stores a record. Called by [`tracepoint!`] alone.
#[cold]
#[inline(never)]
pub fn emit(site: &'static Site, queue: u16, a: u64, b: u64) {
    // SAFETY: `Ring::start` wrote it before it let anybody come here.
    let tsc = unsafe { *CLOCK.0.get() }();
    // An interrupt may come at any place here and make records of its own.
    let index = RING.count.fetch_add(1, Ordering::Relaxed);
    let Some(slot) = RING.records.get(index) else {
        return;
    };
    let place = place(site, queue);
    LAST.store(place as usize, Ordering::Relaxed);
    let record = Record { tsc, place, a, b };
    // SAFETY: the index is ours alone, so nobody else writes the slot, and
    // readers wait for `stop`.
    unsafe { slot.get().write(record) };
}

/// Stores a record unless the last one is of the same place. Called
/// by [`tracepoint_unless_repeated!`] alone.
#[cold]
#[inline(never)]
pub fn emit_unless_repeated(site: &'static Site, queue: u16, a: u64, b: u64) {
    if LAST.load(Ordering::Relaxed) != place(site, queue) as usize {
        emit(site, queue, a, b);
    }
}

#[inline(always)]
fn place(site: &'static Site, queue: u16) -> u64 {
    let address = core::ptr::from_ref(site).expose_provenance() as u64;
    with_cpu(address & 0xffff_ffff_ffff | u64::from(queue & NO_QUEUE) << 48)
}

#[cfg(all(target_arch = "x86_64", target_os = "none", feature = "cpu-at-gs"))]
#[inline(always)]
fn with_cpu(place: u64) -> u64 {
    let mut place = place;
    // SAFETY: a kernel with this feature promises that the word is there. It
    // is only read.
    unsafe {
        core::arch::asm!(
            "or {}, gs:[{}]",
            inout(reg) place,
            const CPU_WORD,
            options(pure, readonly, nostack),
        );
    }
    place
}

#[cfg(not(all(target_arch = "x86_64", target_os = "none", feature = "cpu-at-gs")))]
#[inline(always)]
fn with_cpu(place: u64) -> u64 {
    place
}

/// Reports an [`Event`] at a queue with up to two arguments (`u64`). Arguments
/// are evaluated only while tracing is on.
///
/// ```
/// use kickpath_trace::{Event, NO_QUEUE, tracepoint};
/// tracepoint!(Event::InterruptVector, NO_QUEUE);
/// tracepoint!(Event::StartXmit, 1, 60, 0x1000);
/// ```
#[macro_export]
macro_rules! tracepoint {
    ($event:expr, $queue:expr) => {
        $crate::tracepoint!($event, $queue, 0, 0)
    };
    ($event:expr, $queue:expr, $a:expr) => {
        $crate::tracepoint!($event, $queue, $a, 0)
    };
    ($event:expr, $queue:expr, $a:expr, $b:expr) => {
        if $crate::is_enabled() {
            $crate::emit($crate::site!($event), $queue, $a, $b);
        }
    };
}

/// A [`tracepoint!`] for a state that lasts: it leaves one record until there
/// is another.
///
/// ```
/// use kickpath_trace::{Event, NO_QUEUE, tracepoint_unless_repeated};
/// tracepoint_unless_repeated!(Event::Idle, NO_QUEUE);
/// ```
#[macro_export]
macro_rules! tracepoint_unless_repeated {
    ($event:expr, $queue:expr) => {
        if $crate::is_enabled() {
            $crate::emit_unless_repeated($crate::site!($event), $queue, 0, 0);
        }
    };
}

/// A [`tracepoint!`] that looks at a condition, but only while tracing is on.
///
/// ```
/// use kickpath_trace::{Event, NO_QUEUE, tracepoint_if};
/// let frames = 1;
/// tracepoint_if!(frames > 0, Event::Poll, NO_QUEUE);
/// ```
#[macro_export]
macro_rules! tracepoint_if {
    ($condition:expr, $event:expr, $queue:expr) => {
        $crate::tracepoint_if!($condition, $event, $queue, 0)
    };
    ($condition:expr, $event:expr, $queue:expr, $a:expr) => {
        if $crate::is_enabled() && $condition {
            $crate::emit($crate::site!($event), $queue, $a, 0);
        }
    };
}

/// The [`Site`] of the place where this is written.
#[doc(hidden)]
#[macro_export]
macro_rules! site {
    ($event:expr) => {{
        static SITE: $crate::Site = $crate::Site {
            event: $event,
            line: ::core::line!(),
            file: ::core::file!(),
            module: ::core::module_path!(),
        };
        &SITE
    }};
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    #[test]
    fn numbers_name_their_event() {
        for event in Event::ALL {
            assert_eq!(Event::from_number(*event as u32), Some(*event));
        }
        assert_eq!(Event::from_number(0), None);
        assert_eq!(Event::PopUsed.name(), "PopUsed");
    }

    #[test]
    fn a_kernel_address_survives_beside_queue_and_cpu() {
        let record = Record {
            place: 0xffff_ffff_8012_3450 & 0xffff_ffff_ffff | 0x234 << 48 | cpu_word(63),
            ..Record::default()
        };
        assert_eq!(record.site_address(), 0xffff_ffff_8012_3450);
        assert_eq!((record.queue(), record.cpu()), (0x234, 63));
    }

    static COUNTER: AtomicUsize = AtomicUsize::new(0);

    // One test alone uses the program's ring.
    #[test]
    fn the_ring_keeps_the_first_records_and_counts_the_rest() {
        tracepoint!(Event::Notify, 9);
        assert_eq!(RING.records().count(), 0);
        // SAFETY: no other test has a tracepoint.
        unsafe { RING.start(|| COUNTER.fetch_add(1, Ordering::Relaxed) as u64) };
        let idle = || tracepoint_unless_repeated!(Event::Idle, NO_QUEUE);
        idle();
        idle();
        tracepoint_if!(RING.lost() > 0, Event::Poll, NO_QUEUE);
        tracepoint_if!(RING.lost() == 0, Event::Poll, NO_QUEUE);
        idle();
        for index in 0..CAPACITY as u64 + 2 {
            tracepoint!(Event::Add, 1, index, !index);
        }
        // SAFETY: as above.
        unsafe { RING.stop() };
        tracepoint!(Event::Notify, 9);
        assert_eq!(RING.lost(), 5);
        let events: Vec<_> = RING.records().map(|r| r.site().event).take(4).collect();
        // What repeats is left out.
        let expected = [Event::Idle, Event::Poll, Event::Idle, Event::Add];
        assert_eq!(events, expected);
        let mut last = 0;
        for (index, record) in RING.records().skip(3).enumerate() {
            assert_eq!((record.a, record.b), (index as u64, !(index as u64)));
            assert_eq!(record.queue(), 1);
            assert_eq!(record.site().event, Event::Add);
            assert!(record.tsc > last);
            last = record.tsc;
        }
        assert_eq!(RING.records().count(), CAPACITY);
    }
}
