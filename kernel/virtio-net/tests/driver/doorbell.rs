//! What a notify hook says of itself.

use std::ptr::{NonNull, without_provenance_mut};

use virtio_net::doorbell::Doorbell;

#[test]
fn it_is_shown_with_the_address_of_its_register() {
    let at = |address| NonNull::new(without_provenance_mut::<u8>(address)).unwrap();
    // SAFETY: none of them is rung.
    let doorbells = unsafe {
        [
            #[cfg(target_arch = "x86_64")]
            (Doorbell::port(0xc010, 1), "outw 1 -> port 0xc010"),
            (
                Doorbell::mmio16(at(0xfeb0_3004).cast(), 1),
                "movw 1 -> 0xfeb03004",
            ),
            (
                Doorbell::mmio32(at(0xfeb0_0050).cast(), 1),
                "movl 1 -> 0xfeb00050",
            ),
        ]
    };
    for (doorbell, text) in doorbells {
        assert_eq!(doorbell.to_string(), text);
    }
}
