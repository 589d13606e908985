//! TCP segments over IPv6, and a device that cuts large ones. Written with
//! `etherparse`, and with nothing of the driver.

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv6Header, LinkExtHeader, LinkHeader, NetHeaders,
    PacketHeaders, SingleVlanHeader, TcpHeader, TransportHeader,
};

use super::net::Sent;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM` and `VIRTIO_NET_HDR_GSO_TCPV6`.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// A frame with a TCP segment over IPv6.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    pub link: Ethernet2Header,
    pub vlan: Option<SingleVlanHeader>,
    pub ip: Ipv6Header,
    pub tcp: TcpHeader,
    pub payload: Vec<u8>,
}

impl Segment {
    /// Of a connection that `port` stands for.
    pub fn new(port: u16, sequence: u32, payload: Vec<u8>) -> Self {
        let mut tcp = TcpHeader::new(19, port, sequence, 8192);
        tcp.ack = true;
        tcp.acknowledgment_number = 77;
        Self {
            link: Ethernet2Header {
                source: [2; 6],
                destination: [4; 6],
                ether_type: EtherType::IPV6,
            },
            vlan: None,
            ip: Ipv6Header {
                hop_limit: 64,
                next_header: IpNumber::TCP,
                source: [0xfd; 16],
                destination: [0xfe; 16],
                ..Ipv6Header::default()
            },
            tcp,
            payload,
        }
    }

    /// With a tag of this VLAN.
    pub fn tagged(mut self, id: u16) -> Self {
        self.vlan = Some(SingleVlanHeader {
            vlan_id: id.try_into().unwrap(),
            ether_type: EtherType::IPV6,
            ..SingleVlanHeader::default()
        });
        self.link.ether_type = EtherType::VLAN_TAGGED_FRAME;
        self
    }

    /// `None` for any other frame.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let headers = PacketHeaders::from_ethernet_slice(frame).ok()?;
        let (
            Some(LinkHeader::Ethernet2(link)),
            Some(NetHeaders::Ipv6(ip, _)),
            Some(TransportHeader::Tcp(tcp)),
        ) = (headers.link, headers.net, headers.transport)
        else {
            return None;
        };
        let vlan = headers.link_exts.first().and_then(|tag| match tag {
            LinkExtHeader::Vlan(tag) => Some(tag.clone()),
            LinkExtHeader::Macsec(_) => None,
        });
        Some(Self {
            link,
            vlan,
            ip,
            tcp,
            payload: headers.payload.slice().to_vec(),
        })
    }

    /// The frame, with right lengths and the right checksum.
    pub fn frame(&self) -> Vec<u8> {
        let Self {
            link,
            vlan,
            mut ip,
            mut tcp,
            payload,
        } = self.clone();
        ip.set_payload_length(tcp.header_len() + payload.len())
            .unwrap();
        tcp.checksum = tcp.calc_checksum_ipv6(&ip, &payload).unwrap();
        let mut frame = link.to_bytes().to_vec();
        frame.extend(vlan.iter().flat_map(SingleVlanHeader::to_bytes));
        frame.extend(ip.to_bytes());
        frame.extend(tcp.to_bytes());
        frame.extend(payload);
        frame
    }

    /// Whose it is: ports that tests use.
    pub fn port(&self) -> u16 {
        self.tcp.destination_port
    }

    fn headers(&self) -> usize {
        let tag = self.vlan.as_ref().map_or(0, |_| 4);
        14 + tag + 40 + self.tcp.header_len()
    }
}

/// 16 bits of the header.
fn field(sent: &Sent, at: usize) -> usize {
    u16::from_le_bytes([sent.header[at], sent.header[at + 1]]).into()
}

/// What leaves a device that was given this: the frames on the wire. Checks what
/// the driver says of the frame.
pub fn wire(sent: &Sent) -> Vec<Vec<u8>> {
    let Some(whole) = Segment::parse(&sent.frame) else {
        assert_eq!(sent.header[1], 0, "only TCP is cut");
        return vec![sent.frame.clone()];
    };
    let headers = whole.headers();
    assert_eq!(sent.header[0], NEEDS_CSUM);
    assert_eq!(field(sent, 6), headers - whole.tcp.header_len());
    assert_eq!(field(sent, 8), 16);
    assert_eq!(
        usize::from(whole.ip.payload_length),
        whole.tcp.header_len() + whole.payload.len()
    );
    // What is there is the sum of the pseudo-header: with that of the segment
    // it makes the checksum right.
    assert_eq!(whole.tcp.checksum, pseudo_header_sum(&whole));
    let size = match sent.header[1] {
        0 => {
            assert_eq!((field(sent, 2), field(sent, 4)), (0, 0));
            return vec![whole.frame()];
        }
        kind => {
            assert_eq!(kind, GSO_TCPV6);
            assert_eq!(field(sent, 2), headers);
            field(sent, 4)
        }
    };
    assert!(size > 0 && whole.payload.len() > size, "nothing to cut");
    let count = whole.payload.len().div_ceil(size);
    let pieces = whole.payload.chunks(size).enumerate().map(|(at, chunk)| {
        let mut piece = whole.clone();
        piece.payload = chunk.to_vec();
        piece.tcp.sequence_number = whole
            .tcp
            .sequence_number
            .wrapping_add((at * size).try_into().unwrap());
        let is_last = at + 1 == count;
        piece.tcp.psh &= is_last;
        piece.tcp.fin &= is_last;
        piece.frame()
    });
    pieces.collect()
}

/// Of addresses, length and protocol (RFC 8200, 8.1), in the plainest way.
fn pseudo_header_sum(segment: &Segment) -> u16 {
    let length = u32::from(segment.ip.payload_length).to_be_bytes();
    let mut bytes = [segment.ip.source, segment.ip.destination].concat();
    bytes.extend(length);
    bytes.extend([0, 0, 0, IpNumber::TCP.0]);
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
