//! What the device is asked to do to frames that are sent: `etherparse` says
//! what must come out.

use core::num::NonZeroU16;

use etherparse::{PacketBuilder, PacketHeaders, TransportHeader};
use proptest::prelude::*;
use smoltcp::phy::{Device, PacketMeta, RxToken, TxToken};
use smoltcp::time::Instant;
use virtio_net::net::{Changes, Features, MAX_FRAME, NetError};
use virtio_net::smoltcp::Phy;
use virtio_net::vectors::Rung;

use crate::support::faults::{self, Step};
use crate::support::net::{HEADER, Machine, Net, Sent, feature, pattern, send};

const V4: ([u8; 4], [u8; 4]) = ([10, 0, 2, 15], [192, 168, 200, 254]);
const V6: ([u8; 16], [u8; 16]) = (
    [
        0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x4b, 0x50, 1,
    ],
    [
        0xfd, 0x6b, 0x69, 0x63, 0x6b, 0x70, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff,
    ],
);

/// A frame: over which IP, which transport, with how many VLAN tags.
#[derive(Clone, Copy, Debug)]
struct Kind {
    v6: bool,
    tcp: bool,
    vlan_tags: usize,
}

impl Kind {
    fn all() -> impl Iterator<Item = Self> {
        (0..12).map(|number| Self {
            v6: number & 1 != 0,
            tcp: number & 2 != 0,
            vlan_tags: number / 4,
        })
    }

    /// With right checksums.
    fn frame(self, payload: &[u8]) -> Vec<u8> {
        let link = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut frame = Vec::new();
        macro_rules! behind {
            ($link:expr) => {{
                let ip = if self.v6 {
                    $link.ipv6(V6.0, V6.1, 64)
                } else {
                    $link.ipv4(V4.0, V4.1, 64)
                };
                if self.tcp {
                    let tcp = ip.tcp(80, 50_000, 0xffff_ff00, 8192).ack(77).psh();
                    tcp.write(&mut frame, payload)
                } else {
                    ip.udp(7, 50_000).write(&mut frame, payload)
                }
            }};
        }
        match self.vlan_tags {
            0 => behind!(link),
            1 => behind!(link.single_vlan(5.try_into().unwrap())),
            _ => behind!(link.double_vlan(5.try_into().unwrap(), 6.try_into().unwrap())),
        }
        .unwrap();
        frame
    }

    fn transport_at(self) -> usize {
        14 + 4 * self.vlan_tags + if self.v6 { 40 } else { 20 }
    }

    fn checksum_at(self) -> usize {
        self.transport_at() + if self.tcp { 16 } else { 6 }
    }
}

/// 16 bits of the header.
fn field(sent: &Sent, at: usize) -> usize {
    u16::from_le_bytes([sent.header[at], sent.header[at + 1]]).into()
}

/// RFC 1071, in the plainest way.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The device does what the header asks for (specification 5.1.6.2: from
/// `csum_start` to the end, stored at `csum_offset`).
fn fill_in(sent: &Sent) -> Vec<u8> {
    let mut frame = sent.frame.clone();
    if sent.header[0] & 1 != 0 {
        let (start, offset) = (field(sent, 6), field(sent, 8));
        let sum = match checksum(&frame[start..]) {
            // RFC 768; for TCP both mean the same.
            0 => 0xffff,
            sum => sum,
        };
        frame[start + offset..start + offset + 2].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

/// Writes a frame, and leaves its checksum to the device.
fn send_offloaded(net: &mut Net, frame: &[u8], segment_size: u16) -> bool {
    let mut phy = Phy::of(net);
    let Some(mut token) = phy.transmit(Instant::ZERO) else {
        return false;
    };
    let mut meta = PacketMeta::default();
    meta.segmentation_offload_size = NonZeroU16::new(segment_size);
    token.set_meta(meta);
    token.consume(frame.len(), |bytes| bytes.copy_from_slice(frame));
    true
}

fn one(machine: &Machine, net: &mut Net) -> Sent {
    net.kick();
    let mut sent = machine.run_transmit();
    assert_eq!(sent.len(), 1);
    sent.remove(0)
}

#[test]
fn the_device_fills_in_the_checksum() {
    for layout in [0, feature::ANY_LAYOUT] {
        for mergeable in [0, feature::MRG_RXBUF] {
            let mut machine = Machine::new(feature::CSUM | layout | mergeable, 8);
            let mut net = machine.open();
            let mut count = 0;
            for kind in Kind::all() {
                for length in [0, 1, 2, 3, 64, 999, 1400] {
                    let right = kind.frame(&pattern(length, length));
                    let mut frame = right.clone();
                    // What was there before does not count.
                    frame[kind.checksum_at()..][..2].copy_from_slice(&[0x5a, 0xa5]);
                    assert!(send_offloaded(&mut net, &frame, 0));
                    let sent = one(&machine, &mut net);
                    assert_eq!(sent.header[..2], [1, 0], "NEEDS_CSUM, no segmentation");
                    assert_eq!(field(&sent, 6), kind.transport_at());
                    assert_eq!(field(&sent, 8), if kind.tcp { 16 } else { 6 });
                    assert!(
                        sent.header[2..6]
                            .iter()
                            .chain(&sent.header[10..])
                            .all(|&b| b == 0)
                    );
                    assert_eq!(fill_in(&sent), right, "{kind:?}, {length} bytes");
                    count += 1;
                }
            }
            assert_eq!(net.stats().tx_checksum_offloaded, count);
            assert_eq!(net.stats().tx_segmented, 0);
            machine.assert_no_violation();
        }
    }
}

/// What has no checksum of UDP or TCP, or only a part of the datagram, goes out
/// as it is.
#[test]
fn other_frames_are_left_alone() {
    let udp = |v6| {
        Kind {
            v6,
            tcp: false,
            vlan_tags: 0,
        }
        .frame(b"payload")
    };
    let arp = {
        let mut frame = udp(false);
        frame[12..14].copy_from_slice(&[8, 6]);
        frame
    };
    let icmp = {
        let mut frame = udp(false);
        frame[23] = 1;
        frame
    };
    let first_fragment = {
        let mut frame = udp(false);
        frame[20] = 0x20;
        frame
    };
    let later_fragment = {
        let mut frame = udp(false);
        frame[21] = 9;
        frame
    };
    let hop_by_hop = {
        let mut frame = udp(true);
        frame[20] = 0;
        frame
    };
    let mut machine = Machine::new(feature::CSUM | feature::ANY_LAYOUT, 8);
    let mut net = machine.open();
    for frame in [arp, icmp, first_fragment, later_fragment, hop_by_hop] {
        assert!(send_offloaded(&mut net, &frame, 100));
        let sent = one(&machine, &mut net);
        assert_eq!((sent.header, sent.frame), (vec![0; HEADER], frame));
    }
    // Every frame cut short is taken for what it is, or for nothing.
    for kind in Kind::all() {
        let frame = kind.frame(b"a payload");
        for length in 1..kind.transport_at() + 8 {
            assert!(send_offloaded(&mut net, &frame[..length], 1));
            let sent = one(&machine, &mut net);
            assert_eq!(
                (sent.header, &sent.frame[..]),
                (vec![0; HEADER], &frame[..length])
            );
        }
    }
    assert_eq!(net.stats().tx_checksum_offloaded, 0);
}

/// A header that asked for something is taken back by the next frame in that
/// buffer.
#[test]
fn the_next_frame_in_a_buffer_has_a_header_of_its_own() {
    for layout in [0, feature::ANY_LAYOUT] {
        let mut machine = Machine::new(feature::HOST | layout, 4);
        let mut net = machine.open();
        let kind = Kind {
            v6: false,
            tcp: true,
            vlan_tags: 0,
        };
        for round in 0..20 {
            assert!(send_offloaded(&mut net, &kind.frame(&[1; 100]), 50));
            assert_ne!(one(&machine, &mut net).header, [0; HEADER]);
            for _ in 0..round % 4 {
                let plain = pattern(round, 100);
                assert!(send(&mut net, &plain));
                let sent = one(&machine, &mut net);
                assert_eq!((sent.header, sent.frame), (vec![0; HEADER], plain));
            }
        }
        machine.assert_no_violation();
    }
}

/// The device cuts a large segment as the header asks: each piece is a right
/// frame, and together they have all the payload.
#[test]
fn the_device_cuts_large_segments() {
    for layout in [0, feature::ANY_LAYOUT] {
        for mergeable in [0, feature::MRG_RXBUF] {
            let mut machine = Machine::new(feature::HOST | layout | mergeable, 32);
            let mut net = machine.open();
            let mut count = 0;
            for kind in Kind::all().filter(|kind| kind.tcp) {
                let headers = kind.transport_at() + 20;
                for (length, size) in [
                    (1461, 1460),
                    (2920, 1460),
                    (10_000, 1448),
                    (65_535 - 40, 1460),
                    (30_000, 88),
                ] {
                    let payload = pattern(length, length);
                    let whole = kind.frame(&payload);
                    assert!(send_offloaded(&mut net, &whole, size));
                    let sent = one(&machine, &mut net);
                    assert_eq!(sent.header[..2], [1, if kind.v6 { 4 } else { 1 }]);
                    assert_eq!(field(&sent, 2), headers);
                    assert_eq!(field(&sent, 4), usize::from(size));
                    assert_eq!(field(&sent, 6), kind.transport_at());
                    // Without segmentation it would be this frame.
                    assert!(fill_in(&sent) == whole);
                    let pieces = cut(&sent, headers, size.into());
                    assert_eq!(pieces.len(), length.div_ceil(size.into()));
                    let mut together: Vec<u8> = Vec::new();
                    for (number, piece) in pieces.iter().enumerate() {
                        let parsed = PacketHeaders::from_ethernet_slice(piece).unwrap();
                        let Some(TransportHeader::Tcp(tcp)) = &parsed.transport else {
                            panic!("{parsed:?}");
                        };
                        let expected =
                            0xffff_ff00u32.wrapping_add((number * usize::from(size)) as u32);
                        assert_eq!(tcp.sequence_number, expected);
                        together.extend(parsed.payload.slice());
                    }
                    assert!(together == payload);
                    count += 1;
                }
                // Too small to be cut.
                assert!(send_offloaded(&mut net, &kind.frame(&[1; 1000]), 1000));
                assert_eq!(one(&machine, &mut net).header[..6], [1, 0, 0, 0, 0, 0]);
            }
            assert_eq!(net.stats().tx_segmented, count);
            machine.assert_no_violation();
            drop(net);
            machine.assert_nothing_left();
        }
    }
}

/// What a device makes of a large segment (Linux `tcp_gso_segment`, without the
/// checksums, which were checked for the whole).
fn cut(sent: &Sent, headers: usize, size: usize) -> Vec<Vec<u8>> {
    let (head, payload) = sent.frame.split_at(headers);
    let ip = head
        .windows(2)
        .position(|w| w == [8, 0] || w == [0x86, 0xdd]);
    let ip = ip.unwrap() + 2;
    payload
        .chunks(size)
        .enumerate()
        .map(|(number, chunk)| {
            let mut piece = head.to_vec();
            piece.extend(chunk);
            let length = (piece.len() - ip) as u16;
            if head[ip] >> 4 == 4 {
                piece[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
            } else {
                piece[ip + 4..ip + 6].copy_from_slice(&(length - 40).to_be_bytes());
            }
            let at = headers - 16;
            let sequence = u32::from_be_bytes(piece[at..at + 4].try_into().unwrap());
            let sequence = sequence.wrapping_add((number * size) as u32);
            piece[at..at + 4].copy_from_slice(&sequence.to_be_bytes());
            piece
        })
        .collect()
}

/// There are few large buffers. A sender that finds none waits and is woken;
/// small frames are not held up, and none is lost or changed.
#[test]
fn large_buffers_come_back() {
    for offered in [
        feature::HOST,
        feature::HOST | feature::ANY_LAYOUT | feature::EVENT_IDX,
    ] {
        let mut machine = Machine::new(offered, 64);
        let mut net = machine.open();
        let kind = Kind {
            v6: false,
            tcp: true,
            vlan_tags: 0,
        };
        let large: Vec<_> = (0..20)
            .map(|number| kind.frame(&pattern(number, 20_000 + number)))
            .collect();
        for _ in 0..5 {
            assert_eq!(net.poll(), Ok(Changes::empty()));
            let mut expected = Vec::new();
            for frame in &large {
                if !send_offloaded(&mut net, frame, 1460) {
                    break;
                }
                expected.push(frame.clone());
            }
            assert!((4..20).contains(&expected.len()), "{}", expected.len());
            let (_, tx) = net.queues().unwrap();
            assert!(!tx.has_large_room() && tx.has_room());
            assert!(!net.enable_interrupts(), "there is nothing to poll for");
            for number in 0..10 {
                let small = kind.frame(&pattern(number, 500));
                assert!(send(&mut net, &small));
                expected.push(small);
            }
            let interrupts = net.stats().interrupts;
            net.kick();
            let sent = machine.transmit(usize::MAX);
            assert!(sent.iter().map(fill_in).eq(expected));
            machine.deliver();
            assert!(
                net.stats().interrupts > interrupts,
                "nobody woke the sender"
            );
            assert!(net.has_work());
            assert_eq!(net.poll(), Ok(Changes::empty()));
            assert!(net.queues().unwrap().1.has_large_room());
        }
        machine.assert_no_violation();
        drop(net);
        machine.assert_nothing_left();
    }
}

/// Nobody is told again and again of room that nobody uses.
#[test]
fn a_sender_that_went_away_does_not_keep_the_guest_awake() {
    let mut machine = Machine::new(feature::HOST | feature::ALL, 64);
    let mut net = machine.open();
    assert_eq!(net.poll(), Ok(Changes::empty()));
    let kind = Kind {
        v6: false,
        tcp: true,
        vlan_tags: 0,
    };
    while send_offloaded(&mut net, &kind.frame(&[1; 9000]), 1460) {}
    net.kick();
    machine.transmit(usize::MAX);
    assert!(net.enable_interrupts(), "there is room");
    assert!(!net.enable_interrupts(), "which was said before");
}

#[test]
fn a_device_that_does_not_segment_has_no_large_buffers() {
    for offered in [feature::ALL, feature::ALL | feature::CSUM] {
        let mut machine = Machine::new(offered, 8);
        let mut net = machine.open();
        let (_, tx) = net.queues().unwrap();
        assert_eq!(tx.large_capacity(), None);
        assert!(tx.reserve_large().is_none());
        assert!(tx.has_large_room(), "any frame that can be sent at all");
        assert_eq!(tx.capacity(), MAX_FRAME);
        assert_eq!(tx.fills_checksums(), offered & feature::CSUM != 0);
    }
}

/// Specification 5.1.3.1.
#[test]
fn a_feature_without_what_it_requires_is_not_agreed_to() {
    let segmentation = feature::HOST_TSO4 | feature::HOST_TSO6;
    let receive = feature::GUEST_TSO4 | feature::GUEST_TSO6;
    for (offered, agreed) in [
        (segmentation, 0),
        (receive, 0),
        (receive | feature::CSUM, feature::CSUM),
        (segmentation | feature::GUEST_CSUM, feature::GUEST_CSUM),
        (feature::HOST, feature::HOST),
        (feature::GUEST, feature::GUEST),
    ] {
        let machine = Machine::new(offered, 8);
        let net = machine.probe().unwrap();
        assert_eq!(machine.device().features, agreed);
        drop(net);
        // The same when the guest does not want what is offered.
        let machine = Machine::new(offered | feature::CSUM | feature::GUEST_CSUM, 8);
        let refused = Features::from_bits_retain(u128::from(!offered));
        let _net = machine.probe_refusing(refused).unwrap();
        assert_eq!(machine.device().features, agreed);
    }
    // Chains of requirements, and those that one of two meets.
    let ecn = Features::GUEST_ECN | Features::GUEST_TSO6;
    assert_eq!(ecn.without_dangling(), Features::empty());
    let met = ecn | Features::GUEST_CSUM;
    assert_eq!(met.without_dangling(), met);
    let control = Features::MQ | Features::RSS | Features::CTRL_RX | Features::MAC;
    assert_eq!(control.without_dangling(), Features::MAC);
    let met = control | Features::CTRL_VQ;
    assert_eq!(met.without_dangling(), met);
}

/// A network stack was told once who does the checksums. A device that says
/// something else after a reset stays closed until it says the same again.
#[test]
fn a_device_that_changes_its_offloads_is_not_opened() {
    for bit in [feature::CSUM, feature::GUEST_CSUM, feature::HOST_TSO4] {
        for (first, then) in [
            (feature::IMPLEMENTED, feature::IMPLEMENTED & !bit),
            (
                feature::ALL | feature::GUEST_CSUM,
                feature::ALL | feature::CSUM,
            ),
        ] {
            let mut machine = Machine::new(first, 16);
            let mut net = machine.open();
            machine.device().offered = then;
            for _ in 0..2 {
                let error = net.open(&mut machine.controller, Rung::MsixPerQueue);
                let Err(NetError::OffloadsChanged { features }) = error else {
                    panic!("{error:?}");
                };
                assert!(!features.is_empty());
                assert_eq!(net.rung(), None);
                // Nor after an open that came no further than to agree.
                faults::plan_every(Step::Memory);
                let error = net.open(&mut machine.controller, Rung::MsixPerQueue);
                faults::take_strikes();
                assert!(matches!(error, Err(NetError::FindVqs(_))), "{error:?}");
                assert_eq!(net.rung(), None);
            }
            machine.device().offered = first;
            net.open(&mut machine.controller, Rung::MsixPerQueue)
                .unwrap();
            assert!(send(&mut net, &[1, 2, 3]));
            drop(net);
            machine.assert_nothing_left();
        }
    }
}

/// What a device did not offer when it was probed, be it for a moment, is not
/// taken later: the network stack counts on doing it.
#[test]
fn offloads_that_come_later_are_not_taken() {
    for bit in [feature::CSUM, feature::GUEST_CSUM, feature::HOST_TSO4] {
        let more = feature::IMPLEMENTED;
        let mut machine = Machine::new(more & !bit, 16);
        let mut net = machine.probe().unwrap();
        let agreed = net.info().negotiated;
        machine.device().offered = more;
        net.open(&mut machine.controller, Rung::MsixPerQueue)
            .unwrap();
        assert_eq!(
            net.info().negotiated & Features::OFFLOADS,
            agreed & Features::OFFLOADS
        );
        assert!(send(&mut net, &[1, 2, 3]));
        drop(net);
        machine.assert_nothing_left();
    }
}

/// For what the device does not vouch is verified before smoltcp reads it.
#[test]
fn a_wrong_checksum_without_a_mark_is_dropped_for_smoltcp() {
    let mut machine = Machine::new(feature::GUEST_CSUM | feature::ANY_LAYOUT, 8);
    let mut net = machine.open();
    for kind in Kind::all().filter(|kind| kind.vlan_tags == 0) {
        let right = kind.frame(b"a payload");
        let mut padded = right.clone();
        padded.resize(right.len().max(60) + 4, 0);
        let mut wrong = right.clone();
        wrong[kind.checksum_at()] ^= 1;
        let mut receive = |frame: &[u8], valid: bool, unverified: bool| {
            let mut header = [0; HEADER];
            header[0] = if valid { 2 } else { 0 };
            assert!(machine.receive_behind(&header, frame));
            let mut phy = Phy::of(&mut net);
            if unverified {
                phy = phy.unverified();
            }
            let received = phy.receive(Instant::ZERO);
            let received = received.map(|(token, _)| token.consume(<[u8]>::to_vec));
            drop(phy);
            net.kick();
            received
        };
        for frame in [&right, &padded] {
            assert_eq!(receive(frame, false, false).as_ref(), Some(frame));
        }
        assert_eq!(receive(&wrong, false, false), None, "{kind:?}");
        assert_eq!(
            receive(&wrong, true, false),
            Some(wrong.clone()),
            "{kind:?}"
        );
        assert_eq!(
            receive(&wrong, false, true),
            Some(wrong.clone()),
            "{kind:?}"
        );
    }
}

/// smoltcp looks behind hop-by-hop options, and nowhere else.
#[test]
fn a_checksum_behind_hop_by_hop_options_is_verified() {
    let mut machine = Machine::new(feature::GUEST_CSUM | feature::ANY_LAYOUT, 8);
    let mut net = machine.open();
    for tcp in [false, true] {
        let kind = Kind {
            v6: true,
            tcp,
            vlan_tags: 0,
        };
        let mut right = kind.frame(b"a payload");
        // Options of 16 bytes, all padding (RFC 8200, 4.2 and 4.3).
        let mut options = [0; 16];
        options[..4].copy_from_slice(&[std::mem::take(&mut right[20]), 1, 1, 12]);
        right.splice(54..54, options);
        right[19] += 16;
        PacketHeaders::from_ethernet_slice(&right).unwrap();
        let mut wrong = right.clone();
        wrong[kind.checksum_at() + 16] ^= 1;
        let mut receive = |frame: &[u8]| {
            assert!(machine.receive_behind(&[0; HEADER], frame));
            let received = Phy::of(&mut net)
                .receive(Instant::ZERO)
                .map(|(token, _)| token.consume(<[u8]>::to_vec));
            net.kick();
            received
        };
        assert_eq!(receive(&right).as_ref(), Some(&right), "{kind:?}");
        assert_eq!(receive(&wrong), None, "{kind:?}");
        // Cut off within them.
        right.truncate(60);
        assert_eq!(receive(&right), None, "{kind:?}");
    }
}

proptest! {
    #[test]
    fn any_payload_has_its_checksum(
        v6: bool, tcp: bool, vlan_tags in 0usize..3,
        payload in prop::collection::vec(any::<u8>(), 0..1400),
    ) {
        let kind = Kind { v6, tcp, vlan_tags };
        let mut machine = Machine::new(feature::CSUM | feature::ANY_LAYOUT, 2);
        let mut net = machine.open();
        let right = kind.frame(&payload);
        prop_assert!(send_offloaded(&mut net, &right, 0));
        prop_assert_eq!(fill_in(&one(&machine, &mut net)), right);
    }

    /// Nothing that a stack may write makes it panic, or write elsewhere.
    #[test]
    fn any_bytes_are_survived(
        mut bytes in prop::collection::vec(any::<u8>(), 1..200),
        size: u16,
        kind in 0usize..12,
    ) {
        let kind = Kind::all().nth(kind).unwrap();
        let right = kind.frame(&bytes);
        for (at, byte) in bytes.iter_mut().enumerate().take(54) {
            if *byte & 1 != 0 {
                *byte = right[at];
            }
        }
        let mut machine = Machine::new(feature::HOST | feature::ANY_LAYOUT, 2);
        let mut net = machine.open();
        prop_assert!(send_offloaded(&mut net, &bytes, size));
        let sent = one(&machine, &mut net);
        prop_assert_eq!(sent.frame.len(), bytes.len());
        let changed = sent.frame.iter().zip(&bytes).filter(|(a, b)| a != b).count();
        let most = if sent.header[0] == 0 { 0 } else { 2 };
        prop_assert!(changed <= most);
    }
}
