//! Many UDP echoes with several outstanding: prebuilt frames, written and read
//! past the stack, so that the far end is not what is measured.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, EthernetRepr, IpProtocol, Ipv4Address,
    Ipv4Packet, Ipv4Repr, UdpPacket, UdpRepr,
};

use super::stack::Stack;
use crate::interrupt;
use crate::wire::far_end::{fill_pattern, microseconds};
use crate::wire::{ECHO_PORT, Frame, WireError, left};

/// Where the content of a datagram is in a frame of ours.
const CONTENT: usize = 14 + 20 + 8;

/// Smallest content: the number of the request.
const MIN_SIZE: usize = 8;

/// Largest content that fits into one frame.
const MAX_SIZE: usize = 1500 - 20 - 8;

/// How long the guest has to answer ARP before a series.
const RESOLVE_BOUND: Duration = Duration::from_secs(30);

/// A series of echoes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// Requests in all.
    pub count: u64,
    /// Content bytes of each, 8 to 1472.
    pub size: usize,
    /// Requests on their way at a time, 1 to 4096.
    pub outstanding: usize,
    /// A request without an answer for so long is lost.
    pub patience: Duration,
    /// The whole series ends after this time, with what it has.
    pub bound: Duration,
}

/// What a series of echoes gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FloodReport {
    /// Requests sent.
    pub sent: u64,
    /// Answers that came in time, with the right content.
    pub received: u64,
    /// Requests without such an answer.
    pub lost: u64,
    /// Answers with a wrong content or checksum.
    pub corrupted: u64,
    /// Answers to a request that had been answered, or given up.
    pub unexpected: u64,
    /// Time from the first request to the last answer.
    #[serde(rename = "elapsed_us", serialize_with = "microseconds")]
    pub elapsed: Duration,
    /// Whether the bound of the series cut it short.
    pub cut_short: bool,
}

impl Stack {
    pub fn udp_echo_flood(
        &mut self,
        guest: Ipv4Address,
        flood: Flood,
    ) -> Result<FloodReport, WireError> {
        if !(MIN_SIZE..=MAX_SIZE).contains(&flood.size) {
            return Err(WireError::Argument(format!(
                "echo requests of {} bytes: {MIN_SIZE} to {MAX_SIZE} are possible",
                flood.size
            )));
        }
        if !(1..=4096).contains(&flood.outstanding) {
            return Err(WireError::Argument(format!(
                "{} outstanding echo requests: 1 to 4096 are possible",
                flood.outstanding
            )));
        }
        let mac = self.resolve(guest, RESOLVE_BOUND)?;
        let port = self.ephemeral_port();
        let template = Template::new(self, mac, guest, port, flood.size);
        Series {
            template,
            flood,
            window: VecDeque::with_capacity(flood.outstanding),
            oldest: 0,
            waiting: 0,
            report: FloodReport::default(),
        }
        .run(self)
    }
}

/// A series while it runs.
struct Series {
    template: Template,
    flood: Flood,
    /// When each request from number `oldest` on was sent; `None` once it is
    /// answered.
    window: VecDeque<Option<Instant>>,
    oldest: u64,
    /// How many of the window wait for an answer.
    waiting: usize,
    report: FloodReport,
}

impl Series {
    fn run(mut self, stack: &mut Stack) -> Result<FloodReport, WireError> {
        let start = Instant::now();
        let deadline = start + self.flood.bound;
        let mut last_answer = start;
        while self.report.sent < self.flood.count || self.waiting > 0 {
            if interrupt::requested() {
                return Err(WireError::Interrupted);
            }
            if left(deadline).is_zero() {
                self.report.cut_short = true;
                break;
            }
            while self.waiting < self.flood.outstanding && self.report.sent < self.flood.count {
                let frame = self.template.request(self.report.sent);
                stack.send(frame);
                self.window.push_back(Some(Instant::now()));
                self.waiting += 1;
                self.report.sent += 1;
            }
            // Takes all that has come before it sends again, as a network
            // driver does: one wake-up, many frames.
            let mut wait = Duration::from_millis(20);
            while let Some(frame) = stack.next_frame(wait) {
                wait = Duration::ZERO;
                let at = frame.at;
                if let Some(frame) = self.take(frame) {
                    stack.ingest(frame);
                } else {
                    last_answer = at;
                }
                if self.waiting == 0 {
                    break;
                }
            }
            self.give_up();
        }
        // What is still on its way when the series is cut short is lost, too.
        self.report.lost += self.waiting as u64;
        self.report.elapsed = last_answer.saturating_duration_since(start);
        Ok(self.report)
    }

    /// Looks at a frame; gives it back when it is no answer to this series.
    fn take(&mut self, frame: Frame) -> Option<Frame> {
        let Some(answer) = self.template.answer(&frame.bytes) else {
            return Some(frame);
        };
        let Ok(number) = answer else {
            self.report.corrupted += 1;
            return None;
        };
        let index = number.checked_sub(self.oldest).map(usize::try_from);
        let slot = match index {
            Some(Ok(index)) => self.window.get_mut(index).and_then(Option::take),
            _ => None,
        };
        if slot.is_some() {
            self.report.received += 1;
            self.waiting -= 1;
        } else {
            self.report.unexpected += 1;
        }
        None
    }

    /// Forgets what is answered, and what has waited too long.
    fn give_up(&mut self) {
        while let Some(&slot) = self.window.front() {
            if let Some(sent) = slot {
                if sent.elapsed() < self.flood.patience {
                    return;
                }
                self.report.lost += 1;
                self.waiting -= 1;
            }
            self.window.pop_front();
            self.oldest += 1;
        }
    }
}

/// A request frame, built once; only number, content and checksum change.
struct Template {
    frame: Vec<u8>,
    expected: Vec<u8>,
    ours: Ipv4Address,
    guest: Ipv4Address,
    port: u16,
}

impl Template {
    fn new(
        stack: &Stack,
        mac: EthernetAddress,
        guest: Ipv4Address,
        port: u16,
        size: usize,
    ) -> Self {
        let ours = stack.source_for(guest);
        let ethernet = EthernetRepr {
            src_addr: stack.mac(),
            dst_addr: mac,
            ethertype: EthernetProtocol::Ipv4,
        };
        let ip = Ipv4Repr {
            src_addr: ours,
            dst_addr: guest,
            next_header: IpProtocol::Udp,
            payload_len: 8 + size,
            hop_limit: 64,
        };
        let caps = ChecksumCapabilities::default();
        let mut bytes = vec![0; CONTENT + size];
        let mut frame = EthernetFrame::new_unchecked(&mut bytes);
        ethernet.emit(&mut frame);
        let mut packet = Ipv4Packet::new_unchecked(frame.payload_mut());
        ip.emit(&mut packet, &caps);
        let udp = UdpRepr {
            src_port: port,
            dst_port: ECHO_PORT,
        };
        udp.emit(
            &mut UdpPacket::new_unchecked(packet.payload_mut()),
            &ours.into(),
            &guest.into(),
            size,
            |_| {},
            &caps,
        );
        Self {
            frame: bytes,
            expected: vec![0; size],
            ours,
            guest,
            port,
        }
    }

    /// The frame of this request, good until the next call.
    fn request(&mut self, number: u64) -> &[u8] {
        content(number, &mut self.frame[CONTENT..]);
        let mut udp = UdpPacket::new_unchecked(&mut self.frame[14 + 20..]);
        udp.fill_checksum(&self.ours.into(), &self.guest.into());
        &self.frame
    }

    /// The number of the request that this frame answers; `Err` for an answer
    /// that is damaged, `None` for a frame that is no answer.
    fn answer(&mut self, frame: &[u8]) -> Option<Result<u64, ()>> {
        let frame = EthernetFrame::new_checked(frame).ok()?;
        if frame.ethertype() != EthernetProtocol::Ipv4 {
            return None;
        }
        let packet = Ipv4Packet::new_checked(frame.payload()).ok()?;
        if packet.src_addr() != self.guest
            || packet.dst_addr() != self.ours
            || packet.next_header() != IpProtocol::Udp
        {
            return None;
        }
        let udp = UdpPacket::new_checked(packet.payload()).ok()?;
        if udp.src_port() != ECHO_PORT || udp.dst_port() != self.port {
            return None;
        }
        let intact = packet.verify_checksum()
            && udp.verify_checksum(&self.guest.into(), &self.ours.into())
            && udp.payload().len() == self.expected.len();
        let number = udp.payload().first_chunk().copied().map(u64::from_be_bytes);
        let Some(number) = number.filter(|_| intact) else {
            return Some(Err(()));
        };
        content(number, &mut self.expected);
        Some(if udp.payload() == self.expected {
            Ok(number)
        } else {
            Err(())
        })
    }
}

/// The content of a request: its number, then a pattern that depends on it.
fn content(number: u64, out: &mut [u8]) {
    let (head, rest) = out.split_at_mut(MIN_SIZE);
    head.copy_from_slice(&number.to_be_bytes());
    fill_pattern(number, 0, rest);
}
