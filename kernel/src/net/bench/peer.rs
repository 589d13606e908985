//! The network driver of `virtio-drivers`, [`VirtIONetRaw`], as the bench measures ours:
//! the same frames in the same kernel. That driver speaks modern PCI.
//!
//! It does not say how many frames the device has used, so each is taken back as soon as
//! it is there, and counted by itself. The reading of the counter is left out.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::hint::black_box;

use kickpath_abi::config::{Bench, Config};
use smoltcp::wire::EthernetAddress;
use virtio_drivers::Error;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::pci::PciTransport;
use virtio_drivers::transport::{DeviceType, SomeTransport};

use super::{ASK_EVERY, BURST, BenchError, DEPTH, PATIENCE_US, ROUNDS, WARM_UP, reading};
use crate::arch::time;
use crate::memory::{KernelHal, heap};
use crate::net::gateway::{Frame, Gateway, unanswered};
use crate::virtio::other::OtherError;
use crate::virtio::{self, Device};

/// Descriptors of each queue, which that driver takes from its caller: QEMU's own number.
const QUEUE: usize = 256;
const BUFFER: usize = 2048;
/// Bytes before a frame: the header of an offload, of which nothing is asked for.
const HEADER: usize = 12;

type Nic = VirtIONetRaw<KernelHal, PciTransport, QUEUE>;
type Buffer = [u8; BUFFER];

/// Sends and receives, and prints one line, `kickpath: bench {json}`.
pub fn peer(config: &Config) -> Result<(), BenchError> {
    // Each on a device that is opened anew: that driver's decision to kick is wrong once
    // 65,536 buffers have been added to a queue, and it would wait for ever.
    let sent = Peer::open(config)?.transmit()?;
    let received = Peer::open(config)?.receive(config)?;
    log::info!(
        "kickpath: bench {{\"{}\":{{\"tx\":{sent},\"rx\":{received}}}}}",
        Bench::Peer,
    );
    Ok(())
}

/// What was counted, as a JSON object.
fn measure(
    packets: u16,
    mut round: impl FnMut(u32) -> Result<u64, BenchError>,
) -> Result<String, BenchError> {
    for _ in 0..WARM_UP {
        round(1)?;
    }
    let allocations = heap::stats().allocations;
    let mut cycles = 0;
    for number in 0..ROUNDS {
        cycles += round(number)?;
    }
    Ok(format!(
        "{{\"packets\":{},\"instructions\":{cycles},\"heap_allocations\":{}}}",
        u64::from(ROUNDS) * u64::from(packets),
        heap::stats().allocations - allocations,
    ))
}

struct Peer {
    nic: Nic,
    /// What it costs to read the time stamp counter, in its cycles.
    reading: u64,
}

impl Peer {
    fn open(config: &Config) -> Result<Self, BenchError> {
        let devices = virtio::find(DeviceType::Network, config.transport);
        match devices.first().map(Device::open_other).transpose()? {
            Some(SomeTransport::Pci(transport)) => Ok(Self {
                nic: VirtIONetRaw::new(transport)?,
                reading: reading(),
            }),
            _ => Err(OtherError::NoPci.into()),
        }
    }

    /// [`ROUNDS`] times [`DEPTH`] frames.
    fn transmit(&mut self) -> Result<String, BenchError> {
        let frame = self.ready(&unanswered(self.nic.mac_address()))?;
        measure(DEPTH, |_| self.send(frame, DEPTH))
    }

    /// [`ROUNDS`] times [`BURST`] answers to pings.
    fn receive(&mut self, config: &Config) -> Result<String, BenchError> {
        let gateway = Gateway::of(config, self.nic.mac_address());
        let buffers = vec![[0; BUFFER]; QUEUE].leak();
        for buffer in &mut *buffers {
            // SAFETY: the memory is never freed, and nobody looks at it before `take` has
            // completed it.
            unsafe { self.nic.receive_begin(buffer)? };
        }
        let question = self.ready(&gateway.question())?;
        let request = gateway.ping(self.find(question, &gateway, buffers)?);
        let request = self.ready(&request)?;
        measure(BURST, |number| {
            if number % ASK_EVERY == 0 {
                self.find(question, &gateway, buffers)?;
            }
            self.send(request, BURST)?;
            let mut cycles = 0;
            for _ in 0..BURST {
                let taken = |nic: &mut Nic| take(nic, buffers, |frame| _ = black_box(frame));
                cycles += self.when_there(BenchError::NoAnswer, taken)?;
            }
            while take(&mut self.nic, buffers, |_| ())? {}
            Ok(cycles)
        })
    }

    /// A frame behind its header, in memory that is never freed.
    fn ready(&self, frame: &Frame) -> Result<&'static [u8], BenchError> {
        let mut buffer = vec![0; HEADER];
        self.nic.fill_buffer_header(&mut buffer)?;
        buffer.extend_from_slice(frame);
        Ok(buffer.leak())
    }

    /// Sends a frame so many times, and returns the cycles without the waits. The device
    /// only reads it, so all of them are the same memory.
    fn send(&mut self, frame: &'static [u8], times: u16) -> Result<u64, BenchError> {
        let start = time::cycles();
        for _ in 0..times {
            // SAFETY: nobody ever writes to that memory, nor frees it.
            unsafe { self.nic.transmit_begin(frame)? };
        }
        let mut cycles = time::cycles() - start;
        for outstanding in (1..=times).rev() {
            cycles += self.when_there(BenchError::Stuck { outstanding }, |nic| {
                let Some(token) = nic.poll_transmit() else {
                    return Ok(false);
                };
                // SAFETY: all frames on their way are this one.
                unsafe { nic.transmit_complete(token, frame)? };
                Ok(true)
            })?;
        }
        Ok(cycles)
    }

    /// Asks for the gateway, who then knows us too.
    fn find(
        &mut self,
        question: &'static [u8],
        gateway: &Gateway,
        buffers: &mut [Buffer],
    ) -> Result<EthernetAddress, BenchError> {
        self.send(question, 1)?;
        let mut found = None;
        self.when_there(BenchError::NoAnswer, |nic| {
            take(nic, buffers, |frame| found = gateway.answer(frame))?;
            Ok(found.is_some())
        })?;
        found.ok_or(BenchError::NoAnswer)
    }

    /// Does `work` once there is something to do, and returns the cycles of that alone;
    /// `failure`, where that takes too long.
    #[inline(always)]
    fn when_there(
        &mut self,
        failure: BenchError,
        mut work: impl FnMut(&mut Nic) -> Result<bool, BenchError>,
    ) -> Result<u64, BenchError> {
        let limit = time::now() + PATIENCE_US;
        loop {
            let start = time::cycles();
            let done = work(&mut self.nic)?;
            let end = time::cycles();
            if done {
                return Ok((end - start).saturating_sub(self.reading));
            }
            if time::now() > limit {
                return Err(failure);
            }
            core::hint::spin_loop();
        }
    }
}

/// Has a frame that has come looked at where the device wrote it, and gives its buffer
/// back. Returns whether one had come.
#[inline(always)]
fn take(
    nic: &mut Nic,
    buffers: &mut [Buffer],
    look: impl FnOnce(&[u8]),
) -> Result<bool, BenchError> {
    let Some(token) = nic.poll_receive() else {
        return Ok(false);
    };
    // All buffers are posted, so each gets the descriptor again that it had: the token is
    // the buffer's number.
    let buffer = buffers
        .get_mut(usize::from(token))
        .ok_or(Error::WrongToken)?;
    // SAFETY: the buffer was posted under this token.
    let (header, length) = unsafe { nic.receive_complete(token, buffer)? };
    let frame = buffer.get(header..).and_then(|rest| rest.get(..length));
    look(frame.ok_or(Error::IoError)?);
    // SAFETY: as for the first time, in `receive`.
    match unsafe { nic.receive_begin(buffer)? } {
        again if again == token => Ok(true),
        _ => Err(Error::WrongToken.into()),
    }
}
