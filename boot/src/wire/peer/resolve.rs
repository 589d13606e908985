//! ARP by hand, for frames that are built without the stack.

use std::time::{Duration, Instant};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol,
    EthernetRepr, Ipv4Address,
};

use super::stack::Stack;
use crate::interrupt;
use crate::wire::{WireError, left};

/// How often a request is repeated.
const REPEAT: Duration = Duration::from_millis(500);
/// How long a wait sleeps before it looks for Ctrl-C again.
const SLICE: Duration = Duration::from_millis(50);

impl Stack {
    /// The hardware address that answers for `target`.
    pub fn resolve(
        &mut self,
        target: Ipv4Address,
        bound: Duration,
    ) -> Result<EthernetAddress, WireError> {
        let source = self.source_for(target);
        let request = request(self.mac(), source, target);
        let deadline = Instant::now() + bound;
        let mut due = Instant::now();
        // Not by `run`, which gives frames to the stack unseen.
        loop {
            let now = Instant::now();
            if now >= due {
                self.send(&request);
                due = now + REPEAT;
            }
            self.poll();
            if let Some(frame) = self.next_frame(SLICE.min(left(deadline))) {
                let answer = reply_from(&frame.bytes, target);
                self.ingest(frame);
                if let Some(mac) = answer {
                    return Ok(mac);
                }
            }
            if interrupt::requested() {
                return Err(WireError::Interrupted);
            }
            if left(deadline).is_zero() {
                let what = format!("ARP request for {target}");
                return Err(WireError::Timeout { what, bound });
            }
        }
    }
}

fn request(mac: EthernetAddress, source: Ipv4Address, target: Ipv4Address) -> Vec<u8> {
    let arp = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr: mac,
        source_protocol_addr: source,
        target_hardware_addr: EthernetAddress([0; 6]),
        target_protocol_addr: target,
    };
    let ethernet = EthernetRepr {
        src_addr: mac,
        dst_addr: EthernetAddress::BROADCAST,
        ethertype: EthernetProtocol::Arp,
    };
    let mut bytes = vec![0; ethernet.buffer_len() + arp.buffer_len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    ethernet.emit(&mut frame);
    arp.emit(&mut ArpPacket::new_unchecked(frame.payload_mut()));
    bytes
}

fn reply_from(frame: &[u8], target: Ipv4Address) -> Option<EthernetAddress> {
    let frame = EthernetFrame::new_checked(frame).ok()?;
    if frame.ethertype() != EthernetProtocol::Arp {
        return None;
    }
    let packet = ArpPacket::new_checked(frame.payload()).ok()?;
    match ArpRepr::parse(&packet).ok()? {
        ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Reply,
            source_hardware_addr,
            source_protocol_addr,
            ..
        } if source_protocol_addr == target && source_hardware_addr.is_unicast() => {
            Some(source_hardware_addr)
        }
        _ => None,
    }
}
