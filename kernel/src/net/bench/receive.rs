//! The receive path: the gateway is pinged, and its answers are taken out once so
//! many are there.

use alloc::string::String;
use core::hint::black_box;
use core::net::Ipv4Addr;

use kickpath_abi::config;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Icmpv4Packet, Icmpv4Repr, IpProtocol, Ipv4Packet, Ipv4Repr,
};
use virtio_net::net::{NetError, QueueRole};

use super::{BenchError, FRAME_LENGTH, PATIENCE_US, ROUNDS, WARM_UP, sums};
use crate::arch::time;
use crate::memory::heap;
use crate::net::device::Nic;

/// Answers that are taken out at a time.
const BURST: u16 = 32;
/// Rounds after which the gateway is asked for again, so that it does not forget us.
const ASK_EVERY: u32 = 100;

type Frame = [u8; FRAME_LENGTH];

/// Receives answers of 60 bytes, in batches and one by one, and prints one line,
/// `kickpath: bench {json}`.
///
/// # Errors
///
/// [`BenchError`], when the device fails, or nobody answers.
pub fn receive(nic: &mut Nic, own: Ipv4Addr, gateway: Option<Ipv4Addr>) -> Result<(), BenchError> {
    let gateway = gateway.ok_or(BenchError::NoAnswer)?;
    let mac = EthernetAddress(nic.info().mac);
    let question = question(mac, own, gateway);
    let request = request(mac, find(nic, &question)?, own, gateway);
    let batch = measure(nic, &question, &request, |nic| {
        let (rx, _) = nic.queues()?;
        rx.receive_batch(BURST.into(), |frame| _ = black_box(frame.as_ptr()));
        Ok(())
    })?;
    let each = measure(nic, &question, &request, |nic| {
        let (rx, _) = nic.queues()?;
        for _ in 0..BURST {
            _ = black_box(rx.receive().map(|frame| frame.as_ptr()));
        }
        Ok(())
    })?;
    log::info!(
        "kickpath: bench {{\"{}\":{{{batch}}},\"rx_each\":{{{each}}}}}",
        config::Bench::Rx,
    );
    Ok(())
}

/// What [`ROUNDS`] rounds of a way to take frames out cost, as members of a JSON object.
fn measure(
    nic: &mut Nic,
    question: &Frame,
    request: &Frame,
    take: impl Fn(&mut Nic) -> Result<(), NetError>,
) -> Result<String, BenchError> {
    for _ in 0..WARM_UP {
        round(nic, request, &take)?;
    }
    let before = nic.stats();
    let allocations = heap::stats().allocations;
    let mut cycles = 0;
    for number in 0..ROUNDS {
        if number % ASK_EVERY == 0 {
            find(nic, question)?;
        }
        cycles += round(nic, request, &take)?;
    }
    let allocations = heap::stats().allocations - allocations;
    let packets = u64::from(ROUNDS) * u64::from(BURST);
    Ok(sums(packets, &before, &nic.stats(), cycles, allocations))
}

/// Pings, waits until the answers are there, and returns the cycles that it takes to
/// take them out and to give their buffers back.
#[inline(always)]
fn round(
    nic: &mut Nic,
    request: &Frame,
    take: impl Fn(&mut Nic) -> Result<(), NetError>,
) -> Result<u64, BenchError> {
    send(nic, request, BURST)?;
    wait(nic, BURST)?;
    let start = time::cycles();
    take(nic)?;
    nic.kick();
    let end = time::cycles();
    drain(nic)?;
    Ok(end - start)
}

/// Sends a frame so many times.
fn send(nic: &mut Nic, frame: &Frame, times: u16) -> Result<(), BenchError> {
    let (_, tx) = nic.queues()?;
    tx.reclaim();
    tx.start_xmit_batch(times, |_, buffer| {
        if let Some(place) = buffer.first_chunk_mut() {
            *place = *frame;
        }
        FRAME_LENGTH
    });
    tx.kick();
    Ok(())
}

/// Waits until so many frames have come.
fn wait(nic: &mut Nic, frames: u16) -> Result<(), BenchError> {
    let limit = time::now() + PATIENCE_US;
    loop {
        let mut queues = nic.snapshots();
        let receive = queues
            .find(|queue| queue.role == QueueRole::Receive)
            .ok_or(NetError::NotOpen)?;
        if receive.used_idx.wrapping_sub(receive.last_used_idx) >= frames {
            return Ok(());
        }
        if time::now() > limit {
            return Err(BenchError::NoAnswer);
        }
        core::hint::spin_loop();
    }
}

/// Takes out what else has come.
fn drain(nic: &mut Nic) -> Result<(), BenchError> {
    let (rx, _) = nic.queues()?;
    while rx.receive().is_some() {}
    nic.kick();
    nic.poll()?;
    Ok(())
}

/// Asks for the gateway, who then knows us too.
fn find(nic: &mut Nic, question: &Frame) -> Result<EthernetAddress, BenchError> {
    send(nic, question, 1)?;
    let limit = time::now() + PATIENCE_US;
    while time::now() <= limit {
        let (rx, _) = nic.queues()?;
        if let Some(frame) = rx.receive()
            && let Some(answer) = answer(&frame)
        {
            drain(nic)?;
            return Ok(answer);
        }
        nic.kick();
        nic.poll()?;
    }
    Err(BenchError::NoAnswer)
}

/// Who answers in an ARP frame.
fn answer(frame: &[u8]) -> Option<EthernetAddress> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            ..
        } if frame.ethertype() == EthernetProtocol::Arp => Some(source_hardware_addr),
        _ => None,
    }
}

fn question(mac: EthernetAddress, own: Ipv4Addr, gateway: Ipv4Addr) -> Frame {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: own,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: gateway,
    };
    let to = EthernetAddress::BROADCAST;
    framed(mac, to, EthernetProtocol::Arp, |payload| {
        arp.emit(&mut ArpPacket::new_unchecked(payload));
    })
}

fn request(mac: EthernetAddress, to: EthernetAddress, own: Ipv4Addr, gateway: Ipv4Addr) -> Frame {
    let checksums = ChecksumCapabilities::default();
    let icmp = Icmpv4Repr::EchoRequest {
        ident: 1,
        seq_no: 1,
        data: &[0x42; FRAME_LENGTH - 14 - 20 - 8],
    };
    let ip = Ipv4Repr {
        src_addr: own,
        dst_addr: gateway,
        next_header: IpProtocol::Icmp,
        payload_len: icmp.buffer_len(),
        hop_limit: 64,
    };
    framed(mac, to, EthernetProtocol::Ipv4, |payload| {
        let mut packet = Ipv4Packet::new_unchecked(payload);
        ip.emit(&mut packet, &checksums);
        let mut message = Icmpv4Packet::new_unchecked(packet.payload_mut());
        icmp.emit(&mut message, &checksums);
    })
}

fn framed(
    mac: EthernetAddress,
    to: EthernetAddress,
    ethertype: EthernetProtocol,
    write: impl FnOnce(&mut [u8]),
) -> Frame {
    let mut bytes = [0; FRAME_LENGTH];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes[..]);
    let link = EthernetRepr {
        src_addr: mac,
        dst_addr: to,
        ethertype,
    };
    link.emit(&mut frame);
    write(frame.payload_mut());
    bytes
}
