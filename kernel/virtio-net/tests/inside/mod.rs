//! Tests of what is the crate's own. They are compiled into it, with what `driver`
//! has of devices and memory.

mod find_vqs;
mod mmio_ladder;
mod modern_ladder;

use virtio_net::interrupt::{InterruptState, IsrRegister};
use virtio_net::net::Features;
use virtio_net::net::buffers::{Layout, MAX_LARGE_FRAME};
use virtio_net::net::rss::{HashLimits, HashTypes};
use virtio_net::transport::isr::{ISR_CONFIG, ISR_QUEUE};
use virtio_net::transport::{TransportError, check_access_platform};

use crate::support::memory;
use crate::support::modern::{ModernMachine, VERSION_1};

#[test]
fn translated_accesses_are_refused_unless_the_embedder_can() {
    let machine = ModernMachine::new();
    let offered = VERSION_1 | 1 << 33;
    let transport = machine.transport().unwrap();
    assert_eq!(check_access_platform(&transport, VERSION_1), Ok(()));
    assert_eq!(
        check_access_platform(&transport, offered),
        Err(TransportError::AccessPlatform)
    );
    // The `Hal` is asked, and says that it cannot, or that it can.
    let transport = transport.with_access_platform();
    let refused = Err(TransportError::AccessPlatform);
    assert_eq!(check_access_platform(&transport, offered), refused);
    memory::set_access_platform(true);
    let transport = transport.with_access_platform();
    assert_eq!(check_access_platform(&transport, offered), Ok(()));
}

/// Buffers are as large as the MTU asks, and no more memory than a small guest
/// has goes into them.
#[test]
fn buffers_follow_the_mtu() {
    for features in [
        Features::empty(),
        Features::VERSION_1,
        Features::HASH_REPORT,
    ] {
        for mtu in [68u16, 1500, 2000, 9000, 65_535] {
            let frame = usize::from(mtu) + 18;
            let transmit = Layout::transmit(features, mtu);
            assert!(transmit.capacity >= frame);
            let receive = Layout::receive(features, mtu);
            assert!(receive.capacity >= frame);
            let count = receive.receive_count(256);
            assert!(count >= 16);
            assert!(usize::from(count) * receive.stride <= 2 << 20);
            if mtu <= 1500 {
                assert_eq!((transmit.stride, receive.stride, count), (2048, 2048, 256));
            }
        }
        // A frame goes on in the next buffer.
        let mergeable = Layout::receive(features | Features::MRG_RXBUF, 9000);
        assert_eq!(
            (mergeable.stride, mergeable.receive_count(1024)),
            (2048, 1024)
        );
        let large = Layout::segmented(features);
        assert!(large.capacity >= MAX_LARGE_FRAME);
    }
}

/// What a handler of the line does when it reads this status.
fn interrupt(state: &InterruptState, mut status: u8) {
    // SAFETY: it is read as the register that it stands for.
    state.vp_interrupt(unsafe { IsrRegister::mmio((&mut status).into()) });
}

#[test]
fn isr_zero_is_tolerated_and_counted() {
    let state = InterruptState::new();
    interrupt(&state, 0);
    interrupt(&state, 0x80);
    assert_eq!((state.interrupts(), state.not_ours()), (0, 2));
    assert!(!state.take_config_changed());
}

#[test]
fn a_config_change_is_reported_once() {
    let state = InterruptState::new();
    interrupt(&state, ISR_QUEUE);
    assert!(!state.take_config_changed());
    interrupt(&state, ISR_QUEUE | ISR_CONFIG);
    assert_eq!(state.interrupts(), 2);
    assert!(state.take_config_changed());
    assert!(!state.take_config_changed());
}

#[test]
fn limits_without_use_are_known() {
    const LIMITS: HashLimits = HashLimits {
        max_key_size: 40,
        max_table_length: 128,
        types: HashTypes::all(),
    };
    assert!(LIMITS.is_usable());
    for useless in [
        HashLimits {
            max_key_size: 0,
            ..LIMITS
        },
        HashLimits {
            max_key_size: 39,
            ..LIMITS
        },
        HashLimits {
            types: HashTypes::empty(),
            ..LIMITS
        },
        HashLimits {
            types: HashTypes::IP_EX | HashTypes::from_bits_retain(1 << 31),
            ..LIMITS
        },
    ] {
        assert!(!useless.is_usable(), "{useless:?}");
    }
}
