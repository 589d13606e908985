//! The receive path: the gateway is pinged, and its answers are taken out once so
//! many are there.

use alloc::string::String;
use core::hint::black_box;

use kickpath_abi::config::{Bench, Config};
use smoltcp::wire::EthernetAddress;
use virtio_net::net::{NetError, QueueRole};

use super::{ASK_EVERY, BURST, BenchError, PATIENCE_US, copy, measure};
use crate::arch::time;
use crate::net::device::Nic;
use crate::net::gateway::{FRAME_LENGTH, Frame, Gateway};

/// Receives answers of 60 bytes, in batches, one by one and in place, and prints one line,
/// `kickpath: bench {json}`.
pub fn receive(nic: &mut Nic, config: &Config) -> Result<(), BenchError> {
    let gateway = Gateway::of(config, nic.info().mac);
    let batch = measure_taken(nic, &gateway, |nic| {
        let (rx, _) = nic.queues()?;
        rx.receive_batch(BURST.into(), |frame| {
            black_box(frame.as_ptr());
            true
        });
        Ok(())
    })?;
    let each = measure_taken(nic, &gateway, |nic| {
        let (rx, _) = nic.queues()?;
        for _ in 0..BURST {
            _ = black_box(rx.receive().map(|frame| frame.as_ptr()));
        }
        Ok(())
    })?;
    let in_place = measure_taken(nic, &gateway, |nic| {
        let (rx, _) = nic.queues()?;
        for _ in 0..BURST {
            // SAFETY: nobody reads it, whatever the device does.
            _ = black_box(unsafe { rx.receive_in_place() }.map(|frame| frame.as_ptr()));
        }
        Ok(())
    })?;
    log::info!(
        "kickpath: bench {{\"{}\":{{{batch}}},\"rx_each\":{{{each}}},\"rx_in_place\":{{{in_place}}}}}",
        Bench::Rx,
    );
    Ok(())
}

/// [`measure`]s a way to take frames out.
fn measure_taken(
    nic: &mut Nic,
    gateway: &Gateway,
    take: impl Fn(&mut Nic) -> Result<(), NetError>,
) -> Result<String, BenchError> {
    let request = gateway.ping(find(nic, gateway)?);
    measure(nic, BURST, |nic, number| {
        if number % ASK_EVERY == 0 {
            find(nic, gateway)?;
        }
        round(nic, &request, &take)
    })
}

/// Pings, waits until the answers are there, and returns the cycles that it takes to
/// take them out and to give their buffers back.
#[inline(always)]
fn round(
    nic: &mut Nic,
    request: &Frame,
    take: impl Fn(&mut Nic) -> Result<(), NetError>,
) -> Result<u64, BenchError> {
    send(nic, request)?;
    wait(nic, BURST)?;
    let start = time::cycles();
    take(nic)?;
    nic.kick();
    let end = time::cycles();
    drain(nic)?;
    Ok(end - start)
}

fn send(nic: &mut Nic, frame: &Frame) -> Result<(), BenchError> {
    let (_, tx) = nic.queues()?;
    tx.reclaim();
    tx.start_xmit_batch(BURST, |_, buffer| {
        copy(buffer, frame);
        FRAME_LENGTH
    });
    tx.kick();
    Ok(())
}

fn wait(nic: &mut Nic, frames: u16) -> Result<(), BenchError> {
    let is_there = || {
        nic.snapshots().any(|queue| {
            let come = queue.used_idx.wrapping_sub(queue.last_used_idx);
            queue.role == QueueRole::Receive && come >= frames
        })
    };
    match time::wait(PATIENCE_US, is_there) {
        true => Ok(()),
        false => Err(BenchError::NoAnswer),
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

fn find(nic: &mut Nic, gateway: &Gateway) -> Result<EthernetAddress, BenchError> {
    let answer = gateway.ask(nic)?.ok_or(BenchError::NoAnswer)?;
    drain(nic)?;
    Ok(answer)
}
