//! Features by their names.

use virtio_net::net::Features;

#[test]
fn names_read_back() {
    for flag in <Features as bitflags::Flags>::FLAGS {
        assert_eq!(Features::by_name(flag.name()), Some(*flag.value()));
    }
    assert_eq!(Features::by_name("event_idx"), Some(Features::EVENT_IDX));
    assert_eq!(Features::by_name("colour"), None);
    let features = Features::from_bits_retain(1 << 29 | 1 << 45 | 1 << 5 | 1 << 67 | 1 << 127);
    assert_eq!(
        features.to_string(),
        "MAC EVENT_IDX HOST_UDP_TUNNEL_GSO bit 45 bit 127"
    );
}
