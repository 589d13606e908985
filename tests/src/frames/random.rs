//! Frames by chance, the same for the same seed.

use etherparse::ArpOperation;
use fastrand::Rng;

use super::Route;

/// A random frame: noise, noise behind an honest Ethernet header, or an honest
/// frame with one to four bits turned over and perhaps an end cut off.
pub fn random(route: &Route, random: &mut Rng) -> Vec<u8> {
    let mut noise = |length: usize| -> Vec<u8> { (0..length).map(|_| random.u8(..)).collect() };
    let kinds: [[u8; 2]; 4] = [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]];
    let mut frame = match noise(1)[0] % 8 {
        0 => {
            let length = 1 + random.usize(..1514);
            return (0..length).map(|_| random.u8(..)).collect();
        }
        1 | 2 => {
            let mut frame = route.to.to_vec();
            frame.extend(route.from);
            frame.extend(kinds[random.usize(..4)]);
            let length = random.usize(..200);
            frame.extend((0..length).map(|_| random.u8(..)));
            return frame;
        }
        3 => route.udp4(0xa100, &noise(64)),
        4 => route.udp6(0xa101, &noise(64)),
        5 => match random.usize(..3) {
            0 => route.syn(0xa102 + random.u16(..64)),
            1 => route.ping4(0xa180, &[7; 32]),
            _ => route.ping6(0xa181, &[7; 32]),
        },
        6 => match random.usize(..3) {
            0 => route.arp(ArpOperation::REQUEST),
            1 => route.arp(ArpOperation::REPLY),
            _ => route.neighbor_solicitation(),
        },
        _ => route.router_advertisement(64, [0xfd, random.u8(..16)]),
    };
    for _ in 0..=random.usize(..4) {
        // Not in the hardware address: the frame must reach the guest.
        let bit = 12 * 8 + random.usize(..(frame.len() - 12) * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    if random.usize(..4) == 0 {
        frame.truncate(1 + random.usize(..frame.len()));
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::somebody;

    #[test]
    fn random_frames_repeat_with_their_seed() {
        let list = |seed| {
            let mut source = Rng::with_seed(seed);
            (0..1000)
                .map(|_| random(&somebody(), &mut source))
                .collect::<Vec<_>>()
        };
        assert_eq!(list(1), list(1));
        assert_ne!(list(1), list(2));
        assert!(
            list(3)
                .iter()
                .all(|frame| (1..=1514).contains(&frame.len()))
        );
    }
}
