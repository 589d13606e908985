//! An open network device that writes rings, headers, buffers and answers as it likes.

use virtio_net::net::{Features, NetError, Options, RxMode, VirtioNet};
use virtio_net::queue::QueueError;
use virtio_net::transport::{ConfigOps, TransportError};
use virtio_net::vectors::{NoInterrupts, Rung};
use vm_memory::{Bytes, GuestAddress};

use crate::input::Input;
use crate::registers::{
    INTERRUPTS, Kind, TRANSITIONAL, TRANSITIONAL_MASKS, install, legacy_pci, mmio, with,
};
use crate::support::memory::{DeviceWritable, GuestHal, guest_memory};

/// Features that a device may offer here.
const OFFERED: [u32; 20] = [
    0, 1, 2, 3, 5, 7, 8, 11, 12, 15, 16, 17, 18, 19, 20, 21, 23, 28, 29, 57,
];
/// Of packed rings, used in order, notified with data, reset alone.
const FORMS: [u32; 4] = [34, 35, 38, 40];
/// Descriptors of a ring. Few: a large frame's buffers are zeroed at each opening.
const QUEUE_SIZE: u16 = 8;
/// Largest frame that can have been received.
const MAX_FRAME: usize = 1 << 17;

type Net<T> = VirtioNet<GuestHal, T, &'static virtio_net::interrupt::InterruptState>;

/// Nothing panics, and what was received is of a size that can be.
pub fn run(data: &[u8]) {
    let mut input = Input(data);
    let mask = input.u32();
    let mut features = 1 << 32;
    for (at, bit) in OFFERED.into_iter().chain(FORMS).enumerate() {
        features |= u64::from(mask >> at & 1) << bit;
    }
    let kind = match mask >> 30 {
        2 => Kind::LegacyMmio,
        3 => Kind::LegacyPorts,
        _ => Kind::Mmio,
    };
    install(kind, features, &[]);
    match kind {
        Kind::LegacyPorts => {
            let transport = legacy_pci(TRANSITIONAL, TRANSITIONAL_MASKS);
            drive(transport.expect("a good device"), input);
        }
        _ => drive(mmio().expect("a good device"), input),
    }
}

fn drive(transport: impl ConfigOps, mut input: Input<'_>) {
    let options = Options::serving(Features::all());
    let probed = VirtioNet::<GuestHal, _, _>::probe(transport, options, &INTERRUPTS);
    let mut net = probed.expect("a good device");
    net.set_queue_size(QUEUE_SIZE);
    net.set_control_patience(1);
    net.open(&mut NoInterrupts, Rung::Polling)
        .expect("a good device");
    let mut openings = 0;
    while !input.is_at_end() {
        match input.u8() % 12 {
            0 => match net.poll() {
                Ok(_) => (),
                Err(_) if openings > 3 => break,
                Err(NetError::Queue(QueueError::Broken { queue, .. }))
                    if net.reset_queue(queue).is_ok() =>
                {
                    openings += 1;
                }
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    openings += 1;
                    net.open(&mut NoInterrupts, Rung::Polling)
                        .expect("a good device");
                }
            },
            1 => receive(&mut net),
            2 | 3 => send(&mut net, &mut input),
            4 => net.kick(),
            5..8 => write(&mut input),
            8 => use_one(&mut input),
            9 => {
                let _ = net.enable_interrupts_after(u16::from(input.u8()));
                if let Some(pair) = net.pairs().next() {
                    pair.watch(Some(0), 0);
                    pair.has_work();
                }
                net.snapshots().for_each(drop);
            }
            10 => {
                let result = net.set_rx_mode(RxMode::default());
                assert_ne!(result, Err(NetError::NotOpen));
            }
            _ => match net.reset_queue(u16::from(input.u8() % 4)) {
                // Where there is no such queue or no such reset, nothing has changed.
                Ok(())
                | Err(
                    NetError::NotOpen | NetError::Transport(TransportError::NoQueueReset { .. }),
                ) => (),
                Err(_) => net
                    .open(&mut NoInterrupts, Rung::Polling)
                    .expect("a good device"),
            },
        }
    }
    // And then it is good again.
    net.open(&mut NoInterrupts, Rung::Polling)
        .expect("a good device");
    net.poll().expect("a good device");
}

fn receive<T: ConfigOps>(net: &mut Net<T>) {
    let Ok((rx, _)) = net.queues() else { return };
    for _ in 0..64 {
        let Some(frame) = rx.receive() else { break };
        assert!(!frame.is_empty() && frame.len() < MAX_FRAME);
        let sum = frame.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        std::hint::black_box((sum, frame.hash(), frame.is_checksum_valid()));
    }
}

fn send<T: ConfigOps>(net: &mut Net<T>, input: &mut Input<'_>) {
    let Ok((_, tx)) = net.queues() else { return };
    let length = usize::from(input.u16() % 1515).max(1);
    let bytes = input.bytes(64);
    if !tx.has_room() {
        return;
    }
    if let Some(mut slot) = tx.reserve() {
        let frame = slot.frame_mut(length);
        for (to, from) in frame.iter_mut().zip(bytes) {
            *to = *from;
        }
        slot.start_xmit(length);
    }
}

/// The device writes anywhere that it may.
fn write(input: &mut Input<'_>) {
    let regions: Vec<(u64, usize)> = DeviceWritable::of_this_thread().with(|regions| {
        let regions = regions.iter();
        regions
            .map(|(start, region)| (*start, region.length))
            .collect()
    });
    let (start, length) = regions[usize::from(input.u8()) % regions.len()];
    let page = usize::from(input.u8()) << 12;
    let offset = (page + usize::from(input.u16() & 0xfff)) % length;
    let bytes = usize::from(input.u8() % 24);
    let bytes = input.bytes(bytes.min(length - offset));
    let to = GuestAddress(start + offset as u64);
    guest_memory().write_slice(bytes, to).unwrap();
}

/// The device uses a buffer of a data queue, and may be right.
fn use_one(input: &mut Input<'_>) {
    let number = u32::from(input.u8() % 2);
    let ring = with(|state| state.ring(number).map(|ring| (ring, state.is_packed())));
    let Some(((size, [table, _, used]), is_packed)) = ring else {
        return;
    };
    let memory = guest_memory();
    let (id, length) = (u16::from(input.u8()), u32::from(input.u16()));
    if is_packed {
        let slot = u64::from(input.u8()) % size;
        let flags = input.pick(&[0x8080u16, 0x8082, 0, 2, 0x80, 0x8000]);
        let mut element = length.to_le_bytes().to_vec();
        element.extend(id.to_le_bytes());
        element.extend(flags.to_le_bytes());
        let to = GuestAddress(table + 16 * slot + 8);
        memory.write_slice(&element, to).unwrap();
        return;
    }
    let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
    let to = GuestAddress(used + 4 + 8 * (u64::from(index) % size));
    memory.write_obj([u32::from(id), length], to).unwrap();
    let to = GuestAddress(used + 2);
    memory.write_obj(index.wrapping_add(1), to).unwrap();
}
