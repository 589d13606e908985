//! Frames that are not what they say: what was on the cable, cut, changed and made up.

/// Frames with an address in them that no checksum protects (ARP) are not changed: they could
/// tell the guest another address of ours, which it must believe.
const ARP: [u8; 2] = [0x08, 0x06];

/// Where the EtherType is.
const KIND: usize = 12;

/// Numbers of no other quality than that they repeat (xorshift, Marsaglia 2003).
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// A series that depends on `seed` alone.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end as u64) as usize
    }
}

/// A frame like `frame`, for the guest, and wrong.
pub fn spoil(frame: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bad = frame.to_vec();
    let is_arp = bad.get(KIND..KIND + 2).is_none_or(|kind| kind == ARP);
    match numbers.below(4) {
        // Cut.
        0 if bad.len() > 1 => bad.truncate(1 + numbers.below(bad.len() - 1)),
        // Other bits behind the EtherType: a checksum is wrong.
        1 | 2 if !is_arp && bad.len() > KIND + 2 => {
            for _ in 0..=numbers.below(3) {
                let at = KIND + 2 + numbers.below(bad.len() - KIND - 2);
                bad[at] ^= 1 << numbers.below(8);
            }
        }
        // Another EtherType, and anything behind it.
        _ => {
            bad.truncate(KIND);
            bad.extend([0x88, numbers.below(256) as u8]);
            let length = numbers.below(1500);
            bad.extend((0..length).map(|_| numbers.below(256) as u8));
        }
    }
    bad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spoilt_frame_is_another_and_never_empty() {
        let mut numbers = Numbers::new(7);
        let frame: Vec<u8> = (0..60).collect();
        for _ in 0..10_000 {
            let bad = spoil(&frame, &mut numbers);
            assert!(!bad.is_empty() && bad.len() <= 1514);
            assert_eq!(bad[..bad.len().min(KIND)], frame[..bad.len().min(KIND)]);
        }
        let mut arp = frame;
        arp[KIND..KIND + 2].copy_from_slice(&ARP);
        for _ in 0..10_000 {
            // Cut, or no ARP any more.
            let bad = spoil(&arp, &mut numbers);
            assert!(bad.len() < arp.len() || bad[KIND..KIND + 2] != ARP);
        }
    }
}
