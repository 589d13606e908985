//! What all rings are made of: their memory and its layout.

use virtio_net::queue::DmaRegion;
use virtio_net::queue::split::Layout;

use crate::support::memory::{self, GuestHal};

#[test]
fn the_layout_is_the_specifications() {
    // Specification 2.7.2: ALIGN(16 n + 2 (3 + n)) + 2 * 3 + 8 n.
    for size in (0..=15).map(|shift| 1 << shift) {
        let n = usize::from(size);
        let layout = Layout::new(size);
        assert_eq!(layout.avail, 16 * n);
        assert_eq!(layout.used, (16 * n + 2 * (3 + n)).div_ceil(4096) * 4096);
        assert_eq!(layout.total, layout.used + 6 + 8 * n);
    }
    assert_eq!(
        Layout::new(256),
        Layout {
            avail: 4096,
            used: 8192,
            total: 8192 + 6 + 2048
        }
    );
}

#[test]
fn a_region_is_page_aligned_zeroed_and_given_back() {
    use virtio_drivers::BufferDirection::Both;
    assert!(DmaRegion::<GuestHal>::new(0, Both).is_none());
    for bytes in [1, 4096, 4097] {
        let region = DmaRegion::<GuestHal>::new(bytes, Both).unwrap();
        assert_eq!(region.size(), bytes.div_ceil(4096) * 4096);
        assert_eq!(memory::pages_in_use(), bytes.div_ceil(4096));
        assert!(region.physical().is_multiple_of(4096));
        assert!(region.pointer().addr().get().is_multiple_of(4096));
    }
    assert_eq!(memory::pages_in_use(), 0);
}
