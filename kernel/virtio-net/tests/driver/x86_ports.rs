//! The instructions that reach a device's ports. A process may not execute
//! them: each raises a fault, which is caught here, noted and stepped over. So
//! a kick is seen to be one instruction, and which.

use std::cell::RefCell;
use std::sync::Once;

use virtio_net::doorbell::{Doorbell, Notify};
use virtio_net::interrupt::{InterruptState, IsrRegister};
use virtio_net::queue::{CommandRing, PositionalRing, RingLayout, RingShape, Virtqueue};
use virtio_net::transport::{Ports, X86Ports};

use crate::support::memory::GuestHal;
use crate::support::ring::{Carrier, Ends, shapes, writable};

/// A port access that was executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    /// Port and bytes.
    In(u16, u8),
    /// Port, bytes and value.
    Out(u16, u8, u32),
}

/// What an `in` reads, cut to its width.
const INPUT: u32 = 0x8765_4321;

thread_local! {
    // Room is made beforehand: the handler must not allocate.
    static ACCESSES: RefCell<Vec<Access>> = RefCell::new(Vec::with_capacity(16));
}

/// Notes the access and steps over it. Any other fault happens again and ends
/// the process, as it should.
extern "C" fn on_fault(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the context of this thread, which nobody else
    // uses; its instruction pointer points to the instruction that faulted.
    let (registers, code) = unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        let code = registers[libc::REG_RIP as usize] as *const [u8; 2];
        (registers, code.read())
    };
    // (length of the instruction, bytes of the access, is it a write)
    let (length, bytes, write) = match code {
        [0xec, _] => (1, 1, false),
        [0x66, 0xed] => (2, 2, false),
        [0xed, _] => (1, 4, false),
        [0xee, _] => (1, 1, true),
        [0x66, 0xef] => (2, 2, true),
        [0xef, _] => (1, 4, true),
        _ => {
            // SAFETY: it only resets the handler.
            unsafe { libc::signal(libc::SIGSEGV, libc::SIG_DFL) };
            return;
        }
    };
    let port = registers[libc::REG_RDX as usize] as u16;
    let mask = u32::MAX >> (32 - 8 * u32::from(bytes));
    let rax = &mut registers[libc::REG_RAX as usize];
    let access = if write {
        Access::Out(port, bytes, *rax as u32 & mask)
    } else {
        *rax = i64::from(*rax as u32 & !mask | INPUT & mask);
        Access::In(port, bytes)
    };
    registers[libc::REG_RIP as usize] += length;
    ACCESSES.with_borrow_mut(|accesses| {
        if accesses.len() < accesses.capacity() {
            accesses.push(access);
        }
    });
}

/// The port accesses that `run` executes, and what it returns.
fn accesses_of<T>(run: impl FnOnce() -> T) -> (Vec<Access>, T) {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: the structure is plain data, for which zeroes are valid;
        // the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            assert_eq!(
                libc::sigaction(libc::SIGSEGV, &action, std::ptr::null_mut()),
                0
            );
        }
    });
    ACCESSES.with_borrow_mut(Vec::clear);
    let value = run();
    (ACCESSES.with_borrow(Vec::clone), value)
}

#[test]
fn every_width_has_its_instruction() {
    // SAFETY: the accesses are stepped over.
    let mut ports = unsafe { X86Ports::new() };
    let (accesses, values) =
        accesses_of(|| (ports.read8(0x10), ports.read16(0x20), ports.read32(0xfffc)));
    assert_eq!(
        accesses,
        [
            Access::In(0x10, 1),
            Access::In(0x20, 2),
            Access::In(0xfffc, 4)
        ]
    );
    assert_eq!(values, (0x21, 0x4321, 0x8765_4321));
    let (accesses, ()) = accesses_of(|| {
        ports.write8(0x10, 0xab);
        ports.write16(0x20, 0xabcd);
        ports.write32(0xfffc, 0xabcd_ef01);
    });
    assert_eq!(
        accesses,
        [
            Access::Out(0x10, 1, 0xab),
            Access::Out(0x20, 2, 0xabcd),
            Access::Out(0xfffc, 4, 0xabcd_ef01)
        ]
    );
}

/// Publishing, deciding and telling the device takes one `outw`, or nothing.
#[test]
fn a_kick_is_one_instruction() {
    for shape in shapes() {
        // SAFETY: the process may access no port; the accesses are caught.
        let doorbell = unsafe { Doorbell::port(0xc050, 7) };
        let mut driver = PositionalRing::<GuestHal>::make(8, shape);
        (0..5).for_each(|_| driver.add_one().unwrap());
        let mut queue = Virtqueue::new(driver, doorbell);
        let (accesses, kicked) = accesses_of(|| queue.kick());
        assert!(kicked);
        assert_eq!(accesses, [Access::Out(0xc050, 2, 7)]);
        let Ends {
            driver, mut device, ..
        } = Ends::<CommandRing<GuestHal>>::shaped(8, shape);
        let mut queue = Virtqueue::new(driver, doorbell);
        for is_busy in [false, true] {
            if is_busy {
                device.disable_notification();
            }
            // SAFETY: nothing accesses the buffer, which is only a number.
            unsafe { queue.ring_mut().add(&[writable(0x1000, 64)]) }.unwrap();
            let (accesses, kicked) = accesses_of(|| queue.kick());
            assert_eq!(kicked, !is_busy);
            let expected = [Access::Out(0xc050, 2, 7)];
            assert_eq!(accesses, expected[..usize::from(kicked)]);
            let (head, _) = device.take().unwrap();
            device.give_back(head, 9);
            assert_eq!(queue.ring_mut().pop_used(), Ok(Some(9)));
        }
    }
}

/// With `VIRTIO_F_NOTIFICATION_DATA` it is one `outl` of the queue and how far
/// the driver has come (specification 4.1.5.2).
#[test]
fn a_kick_with_data_is_one_instruction_of_32_bits() {
    // SAFETY: the process may access no port; the accesses are caught.
    let doorbell = unsafe { Doorbell::port(0xc050, 7) };
    assert!(doorbell.takes_data());
    for shape in shapes() {
        let shape = RingShape {
            notification_data: true,
            ..shape
        };
        let mut driver = PositionalRing::<GuestHal>::make(8, shape);
        (0..5).for_each(|_| driver.add_one().unwrap());
        let mut queue = Virtqueue::new(driver, doorbell);
        let (accesses, kicked) = accesses_of(|| queue.kick());
        assert!(kicked);
        // A packed ring's wrap counter is 1 at first.
        let wrap = match shape.layout {
            RingLayout::Split => 0,
            RingLayout::Packed => 1 << 31,
        };
        assert_eq!(accesses, [Access::Out(0xc050, 4, wrap | 5 << 16 | 7)]);
    }
    // SAFETY: as above.
    let misaligned = unsafe { Doorbell::port(0xc052, 7) };
    assert!(!misaligned.takes_data());
}

/// An INTx handler reads the status once, which lowers the line.
#[test]
fn an_interrupt_reads_the_status_once() {
    let state = InterruptState::new();
    // SAFETY: the process may access no port; the accesses are caught.
    let isr = unsafe { IsrRegister::port(0xc053) };
    let (accesses, ()) = accesses_of(|| state.vp_interrupt(isr));
    assert_eq!(accesses, [Access::In(0xc053, 1)]);
    // The lowest bits of INPUT are 01: a queue, no change of configuration.
    assert_eq!((state.interrupts(), state.isr_reads()), (1, 1));
    assert!(!state.take_config_changed());
}
