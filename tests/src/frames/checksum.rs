//! Checksums of frames that were changed on purpose.

use super::{IP, IPV4_PAYLOAD};

/// Sets the checksum of an IPv4 header of `length` bytes right.
pub fn fix_ipv4_checksum(frame: &mut [u8], length: usize) {
    frame[IP + 10..IP + 12].fill(0);
    let sum: u32 = frame[IP..IP + length]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let checksum = !((folded & 0xffff) + (folded >> 16)) as u16;
    frame[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
}

/// The frame with the checksum of its TCP segment, in IPv4 without options, set
/// right.
pub fn tcp_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[IPV4_PAYLOAD + 16..IPV4_PAYLOAD + 18].fill(0);
    let addresses = &frame[IP + 12..IP + 20];
    let segment = &frame[IPV4_PAYLOAD..];
    let mut sum: u32 = 6 + segment.len() as u32;
    for word in addresses.chunks(2).chain(segment.chunks(2)) {
        sum += u32::from(word[0]) << 8 | u32::from(word.get(1).copied().unwrap_or(0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[IPV4_PAYLOAD + 16..IPV4_PAYLOAD + 18].copy_from_slice(&(!sum as u16).to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::somebody;

    #[test]
    fn checksums_that_are_set_right_are_right() {
        let route = somebody();
        let honest = route.udp4(1, b"x");
        let mut again = honest.clone();
        again[IP + 10] ^= 0xff;
        fix_ipv4_checksum(&mut again, 20);
        assert_eq!(again, honest);
        let honest = route.syn(1);
        let mut again = honest.clone();
        again[IPV4_PAYLOAD + 16] ^= 0xff;
        assert_eq!(tcp_checksum(again), honest);
    }
}
