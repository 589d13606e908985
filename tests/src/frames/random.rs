//! Frames by chance, the same for the same seed.

use etherparse::ArpOperation;

use super::Route;

/// A reproducible source of arbitrary numbers (splitmix64).
pub struct Random(u64);

impl Random {
    /// The same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, which is at least 1.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit as u64) as usize
    }
}

/// A random frame: noise, noise behind an honest Ethernet header, or an honest
/// frame with one to four bits turned over and perhaps an end cut off.
pub fn random(route: &Route, random: &mut Random) -> Vec<u8> {
    let mut noise =
        |length: usize| -> Vec<u8> { (0..length).map(|_| random.word() as u8).collect() };
    let kinds: [[u8; 2]; 4] = [[0x08, 0x00], [0x86, 0xdd], [0x08, 0x06], [0x81, 0x00]];
    let mut frame = match noise(1)[0] % 8 {
        0 => {
            let length = 1 + random.below(1514);
            return (0..length).map(|_| random.word() as u8).collect();
        }
        1 | 2 => {
            let mut frame = route.to.to_vec();
            frame.extend(route.from);
            frame.extend(kinds[random.below(4)]);
            let length = random.below(200);
            frame.extend((0..length).map(|_| random.word() as u8));
            return frame;
        }
        3 => route.udp4(0xa100, &noise(64)),
        4 => route.udp6(0xa101, &noise(64)),
        5 => match random.below(3) {
            0 => route.syn(0xa102 + random.below(64) as u16),
            1 => route.ping4(0xa180, &[7; 32]),
            _ => route.ping6(0xa181, &[7; 32]),
        },
        6 => match random.below(3) {
            0 => route.arp(ArpOperation::REQUEST),
            1 => route.arp(ArpOperation::REPLY),
            _ => route.neighbor_solicitation(),
        },
        _ => route.router_advertisement(64, [0xfd, random.below(16) as u8]),
    };
    for _ in 0..=random.below(4) {
        // Not in the hardware address: the frame must reach the guest.
        let bit = 12 * 8 + random.below((frame.len() - 12) * 8);
        frame[bit / 8] ^= 1 << (bit % 8);
    }
    if random.below(4) == 0 {
        frame.truncate(1 + random.below(frame.len()));
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
            let mut source = Random::new(seed);
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
