//! The notify hook of a virtqueue: one precomputed write (Linux `vq->notify`).

use core::fmt;
use core::ptr::NonNull;

use crate::mmio;
use crate::trace::tracepoint;

/// How the device is told that a queue has new buffers (Linux `vq->notify`). A queue
/// has its own, made when it is set up, and takes it along to any CPU.
///
/// It is a [`Doorbell`] where one register is written. A transport with a way of its
/// own, such as a hypercall, has a type of its own with whatever that needs.
pub trait Notify: Clone + fmt::Display {
    /// Index of the queue that is told of, 0 to 65535.
    fn queue(&self) -> u16;

    /// Tells the device.
    fn ring(&self);

    /// Tells the device how far the driver has come as well
    /// (`VIRTIO_F_NOTIFICATION_DATA`, specification 4.1.5.2 and 4.2.3.3): 32
    /// bits, made by [`QueueRing::notification_data`]. Without [`Self::takes_data`]
    /// as [`Self::ring`].
    ///
    /// [`QueueRing::notification_data`]: crate::queue::QueueRing::notification_data
    #[inline]
    fn ring_with(&self, _data: u32) {
        self.ring();
    }

    /// Whether [`Self::ring_with`] tells the device more than [`Self::ring`].
    #[inline]
    fn takes_data(&self) -> bool {
        false
    }

    /// Kind and target as trace records have them.
    #[inline]
    fn trace_arguments(&self) -> [u64; 2] {
        [3, 0]
    }
}

/// Rings it, with the data if there is any: this is the VM exit.
#[inline]
pub(crate) fn ring<N: Notify>(doorbell: &N, data: Option<u32>) {
    let (queue, [kind, target]) = (doorbell.queue(), doorbell.trace_arguments());
    tracepoint!(Event::DoorbellRing, queue, kind, target);
    match data {
        Some(data) => doorbell.ring_with(data),
        None => doorbell.ring(),
    }
    tracepoint!(Event::DoorbellRang, queue, kind, target);
}

/// A register. Ringing it is a single store, and that store is the VM exit.
///
/// Those that name a register are made by [`Self::port`], [`Self::mmio16`] and
/// [`Self::mmio32`], whose callers answer for what is there:
///
/// ```compile_fail,E0639
/// # use {core::ptr::NonNull, kickpath_virtio_net::doorbell::Doorbell};
/// let anywhere = Doorbell::Mmio16 { register: NonNull::dangling(), queue: 1 };
/// ```
#[derive(Clone, Copy, Debug)]
#[doc(alias = "vp_notify")]
pub enum Doorbell {
    /// A 16-bit port write of the queue's index: the legacy interface's
    /// QUEUE_NOTIFY register (specification 4.1.4.10), or a notification
    /// structure that a modern device has in ports (4.1.4.4). Other CPUs have
    /// ports in a window of memory, if at all.
    #[cfg(target_arch = "x86_64")]
    #[non_exhaustive]
    Port {
        /// Port address of the register.
        port: u16,
        /// The queue's index.
        queue: u16,
    },
    /// A 16-bit memory write of the queue's index: virtio-pci's notification
    /// structure (specification 4.1.4.4).
    #[non_exhaustive]
    Mmio16 {
        /// Mapped address of the register, 2-byte aligned.
        register: NonNull<u16>,
        /// The queue's index.
        queue: u16,
    },
    /// A 32-bit memory write of the queue's index: virtio-mmio's QueueNotify
    /// (specification 4.2.2).
    #[non_exhaustive]
    Mmio32 {
        /// Mapped address of the register, 4-byte aligned.
        register: NonNull<u32>,
        /// The queue's index.
        queue: u16,
    },
}

// SAFETY: it is an address of a device register and a value to write there,
// which the device accepts from any CPU.
unsafe impl Send for Doorbell {}

impl Doorbell {
    /// The doorbell at a port.
    ///
    /// # Safety
    ///
    /// The port must be the notification register of a device that the driver
    /// owns, with 16 bits, or with 32 where they are written
    /// (`VIRTIO_F_NOTIFICATION_DATA`); on a CPU that may access it.
    #[cfg(target_arch = "x86_64")]
    pub const unsafe fn port(port: u16, queue: u16) -> Self {
        Self::Port { port, queue }
    }

    /// The doorbell at a mapped address.
    ///
    /// # Safety
    ///
    /// It must be the notification register of a device that the driver owns,
    /// mapped for as long as the program runs, with 16 bits, or with 32 where
    /// they are written (`VIRTIO_F_NOTIFICATION_DATA`); aligned to 2 bytes.
    pub const unsafe fn mmio16(register: NonNull<u16>, queue: u16) -> Self {
        Self::Mmio16 { register, queue }
    }

    /// As [`Self::mmio16`], of 32 bits always.
    ///
    /// # Safety
    ///
    /// As for [`Self::mmio16`]; aligned to 4 bytes.
    pub const unsafe fn mmio32(register: NonNull<u32>, queue: u16) -> Self {
        Self::Mmio32 { register, queue }
    }
}

impl Notify for Doorbell {
    #[inline]
    fn queue(&self) -> u16 {
        match *self {
            #[cfg(target_arch = "x86_64")]
            Self::Port { queue, .. } => queue,
            Self::Mmio16 { queue, .. } | Self::Mmio32 { queue, .. } => queue,
        }
    }

    /// Tells the device (Linux `vp_notify`; specification 4.1.5.2, 4.1.4.10 for
    /// the legacy interface, 4.2.3.3 for virtio-mmio). This is the instruction on
    /// which the VM exits.
    #[doc(alias = "vp_notify")]
    #[doc(alias = "vm_notify")]
    #[inline]
    fn ring(&self) {
        match *self {
            // SAFETY: the caller of `Self::port` answers for the register;
            // writing it makes the device read the queue, nothing else.
            #[cfg(target_arch = "x86_64")]
            Self::Port { port, queue } => unsafe { vp_notify_port(queue, port) },
            // SAFETY: the same of `Self::mmio16`.
            Self::Mmio16 { register, queue } => unsafe { vp_notify_mmio(queue, register) },
            // SAFETY: the same of `Self::mmio32`.
            Self::Mmio32 { register, queue } => unsafe { vm_notify(queue, register) },
        }
    }

    fn ring_with(&self, data: u32) {
        match *self {
            _ if !self.takes_data() => self.ring(),
            // SAFETY: as in `ring`; with this feature the register has 32
            // bits (specification 4.1.4.4), and is aligned for them, as
            // `takes_data` says.
            Self::Mmio16 { register, .. } => unsafe { notify_with_data(data, register.cast()) },
            // SAFETY: as in `ring`.
            Self::Mmio32 { register, .. } => unsafe { notify_with_data(data, register) },
            // SAFETY: as in `ring`; the four ports are the register's.
            #[cfg(target_arch = "x86_64")]
            Self::Port { port, .. } => unsafe { notify_port_with_data(data, port) },
        }
    }

    /// Whether the register is aligned to 4 bytes.
    fn takes_data(&self) -> bool {
        match *self {
            Self::Mmio16 { register, .. } => register.addr().get().is_multiple_of(4),
            Self::Mmio32 { .. } => true,
            #[cfg(target_arch = "x86_64")]
            Self::Port { port, .. } => port.is_multiple_of(4),
        }
    }

    #[inline]
    fn trace_arguments(&self) -> [u64; 2] {
        match *self {
            #[cfg(target_arch = "x86_64")]
            Self::Port { port, .. } => [0, u64::from(port)],
            Self::Mmio16 { register, .. } => [1, register.addr().get() as u64],
            Self::Mmio32 { register, .. } => [2, register.addr().get() as u64],
        }
    }
}

/// The port write of a kick. It is a function of its own, never inlined, so
/// that the whole program has one instruction that causes this VM exit: a trace
/// can name its address, and a debugger can stop there.
///
/// # Safety
///
/// `port` must be the QUEUE_NOTIFY register of a device that the driver owns.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(feature = "trace", inline(never), unsafe(no_mangle))]
unsafe extern "C" fn vp_notify_port(queue: u16, port: u16) {
    #[cfg(feature = "faults")]
    let queue = crate::faults::number_to_write(queue);
    // SAFETY: the caller's promise. Not `nomem`: the ring's stores stay before
    // it.
    unsafe {
        core::arch::asm!(
            "out dx, ax",
            in("dx") port,
            in("ax") queue,
            options(nostack, preserves_flags),
        );
    }
}

/// The 16-bit memory write of a kick (Linux `vp_notify` of a modern device); a
/// function of its own as [`vp_notify_port`] is.
///
/// # Safety
///
/// `register` must be the mapped notification register of a device that the
/// driver owns.
#[cfg_attr(feature = "trace", inline(never), unsafe(no_mangle))]
unsafe extern "C" fn vp_notify_mmio(queue: u16, register: NonNull<u16>) {
    // SAFETY: the caller's promise.
    unsafe { mmio::write(register, queue.to_le()) };
}

/// The 32-bit memory write of a kick (Linux `vm_notify` of virtio-mmio); a
/// function of its own as [`vp_notify_port`] is.
///
/// # Safety
///
/// `register` must be the mapped QueueNotify register of a device that the
/// driver owns.
#[cfg_attr(feature = "trace", inline(never), unsafe(no_mangle))]
unsafe extern "C" fn vm_notify(queue: u16, register: NonNull<u32>) {
    // SAFETY: the caller's promise.
    unsafe { mmio::write(register, u32::from(queue).to_le()) };
}

/// The 32-bit memory write of a kick with data (Linux `vp_notify_with_data`,
/// `vm_notify_with_data`).
///
/// # Safety
///
/// `register` must be the mapped notification register of a device that the
/// driver owns, of 32 bits and aligned for them.
#[cfg_attr(feature = "trace", inline(never))]
#[cfg_attr(feature = "trace", unsafe(export_name = "vp_notify_with_data"))]
#[doc(alias = "vm_notify_with_data")]
unsafe extern "C" fn notify_with_data(data: u32, register: NonNull<u32>) {
    // SAFETY: the caller's promise.
    unsafe { mmio::write(register, data.to_le()) };
}

/// The 32-bit port write of a kick with data.
///
/// # Safety
///
/// `port` must be that of a notification register of a device that the driver
/// owns.
#[cfg(target_arch = "x86_64")]
#[cfg_attr(feature = "trace", inline(never))]
#[cfg_attr(feature = "trace", unsafe(export_name = "vp_notify_port_with_data"))]
unsafe extern "C" fn notify_port_with_data(data: u32, port: u16) {
    // SAFETY: the caller's promise. Not `nomem`: the ring's stores stay before
    // it.
    unsafe {
        core::arch::asm!(
            "out dx, eax",
            in("dx") port,
            in("eax") data,
            options(nostack, preserves_flags),
        );
    }
}

/// The access in one line, such as `outw 1 -> port 0xc010`.
impl fmt::Display for Doorbell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Port { port, queue } => write!(f, "outw {queue} -> port {port:#x}"),
            Self::Mmio16 { register, queue } => write!(f, "movw {queue} -> {:p}", *register),
            Self::Mmio32 { register, queue } => write!(f, "movl {queue} -> {:p}", *register),
        }
    }
}
