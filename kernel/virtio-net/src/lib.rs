//! A guest-side virtio-net driver without an operating system under it.
//!
//! It speaks the traits of the `virtio-drivers` crate: [`Hal`] gives it memory
//! to share with the device, [`Transport`] its registers. What that crate
//! lacks is here: the legacy port-I/O transport, modern PCI and virtio-mmio
//! transports whose kick is one store, MSI-X and the interrupt ladder,
//! virtqueues sized at run time, kicks that happen only when the device wants
//! one, interrupts that are masked while polling.
//!
//! # Example
//!
//! A kernel has implemented [`Hal`] and [`ConfigurationAccess`] for
//! `virtio-drivers`, found the device at `nic`, and answers one frame with the
//! same bytes:
//!
//! ```no_run
//! # use virtio_drivers::Hal;
//! # use virtio_drivers::transport::pci::bus::{ConfigurationAccess, DeviceFunction};
//! # use virtio_net::interrupt::InterruptState;
//! # use virtio_net::net::{Features, NetError, VirtioNet};
//! # use virtio_net::transport::{X86Ports, legacy_pci::LegacyPciTransport};
//! # use virtio_net::vectors::{NoInterrupts, Rung};
//! static INTERRUPTS: InterruptState = InterruptState::new();
//!
//! fn echo_one<H: Hal>(pci: impl ConfigurationAccess, nic: DeviceFunction) -> Result<(), NetError> {
//!     // SAFETY: a kernel may access ports, and nobody else drives `nic`.
//!     let transport = LegacyPciTransport::<H, _>::new(pci, unsafe { X86Ports::new() }, nic)?;
//!     let mut net = VirtioNet::<H, _>::probe(transport, Features::empty(), &INTERRUPTS)?;
//!     net.open(&mut NoInterrupts, Rung::Polling)?;
//!     loop {
//!         net.poll()?; // reports a device that broke down
//!         let (rx, tx) = net.queues()?;
//!         let Some(mut reply) = tx.reserve() else { continue };
//!         let Some(request) = rx.receive() else { continue };
//!         let bytes = rx.frame(&request); // where the device wrote them
//!         reply.frame_mut(bytes.len()).copy_from_slice(bytes);
//!         reply.start_xmit(bytes.len());
//!         rx.recycle(request);
//!         net.kick(); // one VM exit for all that was queued, or none
//!         return Ok(());
//!     }
//! }
//! ```
//!
//! With interrupts, the kernel gives its [`InterruptController`] instead, takes
//! the best rung of the ladder that works, and sleeps when there is nothing to
//! do; the handlers tell the driver by that [`InterruptState`]:
//!
//! ```no_run
//! # use virtio_drivers::Hal;
//! # use virtio_net::net::{NetError, VirtioNet};
//! # use virtio_net::transport::ConfigOps;
//! # use virtio_net::vectors::{InterruptController, Rung};
//! fn serve<H: Hal, T: ConfigOps>(
//!     mut net: VirtioNet<H, T>,
//!     controller: &mut impl InterruptController,
//!     mut work: impl FnMut(&mut VirtioNet<H, T>),
//!     wait_for_interrupt: fn(),
//! ) -> Result<(), NetError> {
//!     net.open(controller, Rung::MsixPerQueue)?;
//!     loop {
//!         net.poll()?; // masks interrupts
//!         work(&mut net);
//!         net.kick();
//!         if !net.enable_interrupts() {
//!             wait_for_interrupt(); // returns at once if one came since `poll`
//!         }
//!     }
//! }
//! ```
//!
//! Dropping the device resets it and gives its memory back;
//! [`stop`](net::VirtioNet::stop) also disconnects its interrupts.
//!
//! # With a transport of `virtio-drivers`
//!
//! Whoever has a `PciTransport` or a `MmioTransport` of that crate keeps it,
//! in a `static` so that the driver's doorbell finds it. What its trait cannot
//! do is missing: the driver polls, and a kick is what `notify` makes of it.
//! (This crate's own [`ModernPciTransport`] and [`MmioTransport`] have
//! interrupts, and kick by one store.)
//!
//! ```no_run
//! # use virtio_drivers::Hal;
//! # use virtio_drivers::transport::SomeTransport;
//! use spin::{Mutex, Once};
//! use virtio_drivers::transport::Transport;
//! use virtio_net::interrupt::InterruptState;
//! use virtio_net::net::{Features, NetError, VirtioNet};
//! use virtio_net::transport::adapter::Adapter;
//! use virtio_net::vectors::{NoInterrupts, Rung};
//!
//! static NIC: Once<Mutex<SomeTransport<'static>>> = Once::new();
//! static INTERRUPTS: InterruptState = InterruptState::new();
//!
//! fn send_one<H: Hal>(nic: SomeTransport<'static>, frame: &[u8]) -> Result<(), NetError> {
//!     let nic = NIC.call_once(|| Mutex::new(nic)); // PciTransport or MmioTransport, into()
//!     let kick = |queue| NIC.get().into_iter().for_each(|nic| nic.lock().notify(queue));
//!     let transport = Adapter::new(nic, kick);
//!     let mut net = VirtioNet::<H, _>::probe(transport, Features::empty(), &INTERRUPTS)?;
//!     net.open(&mut NoInterrupts, Rung::Polling)?;
//!     let (_, tx) = net.queues()?;
//!     if let Some(mut slot) = tx.reserve() {
//!         slot.frame_mut(frame.len()).copy_from_slice(frame);
//!         slot.start_xmit(frame.len());
//!     }
//!     net.kick();
//!     while !net.queues()?.1.all_used() {
//!         core::hint::spin_loop(); // a kernel would have a bound here
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What is left out
//!
//! [`Features::IMPLEMENTED`] is all that is ever acknowledged. Left out, and why:
//!
//! - `GSO`: `HOST_TSO4` and `HOST_TSO6` say the same exactly.
//! - `GUEST_ECN`, `HOST_ECN`: smoltcp, for which this was written, has no ECN.
//! - `GUEST_UFO`, `HOST_UFO`: UDP in large pieces, which Linux gave up.
//! - `GUEST_USO4`, `GUEST_USO6`, `HOST_USO`: UDP in large pieces of datagrams;
//!   smoltcp's sockets have a datagram for each.
//! - `RSC_EXT`: what a device has put together is taken as it is.
//! - `NOTF_COAL`, `VQ_NOTF_COAL`: the driver leaves frames waiting by itself
//!   ([`moderation`]), with a device of any kind.
//! - `HASH_TUNNEL`: nobody here has a tunnel.
//! - `DEVICE_STATS`: the driver counts for itself ([`net::Stats`]).
//! - `NOTIFY_ON_EMPTY`: one more interrupt; `EVENT_IDX` is better.
//! - `BAD_FEATURE`: a mark for drivers that acknowledge what they do not know.
//! - `ORDER_PLATFORM`: barriers for devices that are real hardware.
//! - `NOTIF_CONFIG_DATA`: for hardware that finds a queue faster by a number of
//!   its own.
//! - `SR_IOV`, `ADMIN_VQ`: a device's virtual functions are a matter of the PCI code.
//! - `SUSPEND`: a machine that sleeps is a matter of the kernel.
//! - `GUEST_HDRLEN`: header lengths in the driver's requests are exact anyway.
//! - `STANDBY`: failover between two devices is a matter of the network stack.
//!
//! # Where to read on
//!
//! In the order of a packet's way out: [`net::VirtioNet`] ->
//! [`net::tx::TxSlot::start_xmit`] -> [`queue::Ring::add`] ->
//! [`queue::Virtqueue::kick`] -> [`doorbell::Doorbell::ring`], and how it all
//! was set up: [`vectors::find_vqs`]. Items name the Linux function that they
//! answer to, also as search aliases.
//!
//! [`Features::IMPLEMENTED`]: net::Features::IMPLEMENTED
//! [`ConfigurationAccess`]: virtio_drivers::transport::pci::bus::ConfigurationAccess
//! [`InterruptController`]: vectors::InterruptController
//! [`InterruptState`]: interrupt::InterruptState
//! [`Hal`]: virtio_drivers::Hal
//! [`MmioTransport`]: transport::mmio::MmioTransport
//! [`ModernPciTransport`]: transport::modern_pci::ModernPciTransport
//! [`Transport`]: virtio_drivers::transport::Transport
#![no_std]
#![deny(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

pub mod doorbell;
pub mod interrupt;
pub mod moderation;
pub mod net;
mod patience;
pub mod queue;
pub mod transport;
pub mod vectors;
