//! The log by UDP (Linux netconsole), a panic's last words included.

use alloc::boxed::Box;
use core::fmt;
use core::net::SocketAddrV4;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::{AtomicPtr, Ordering};

use kickpath_services::Stack;
use kickpath_services::netconsole::{MAX_FRAME, Netconsole, Template};
use smoltcp::phy::Device;
use smoltcp::time::Instant;
use virtio_net::net::{LastWords, NetError, Netpoll};

use super::device::{self, Nic};
use crate::backlog::{self, Line, MAX_LINE};
use crate::console;
use crate::memory::KernelHal;

/// Lines that are sent in one turn at most.
const BATCH: usize = 16;

pub struct Sender {
    netconsole: Netconsole,
    template: Option<Template>,
}

/// What it takes to send last words.
struct Emergency {
    nic: NonNull<Nic>,
    /// `None` once it is in use.
    reserve: Option<Netpoll<KernelHal>>,
    last_words: Option<LastWords<KernelHal>>,
    template: Option<Template>,
    vlan: Option<u16>,
    line: Line,
    text: [u8; MAX_LINE],
    frame: [u8; MAX_FRAME],
}

/// Null before [`Sender::new`], and while last words are sent.
static EMERGENCY: AtomicPtr<Emergency> = AtomicPtr::new(null_mut());

impl Sender {
    /// Sends the log to `target` from now on, that of the boot included, and
    /// last words by the transmit queue in reserve that is `nic`'s.
    pub fn new(
        target: SocketAddrV4,
        reserve: Netpoll<KernelHal>,
        nic: &'static mut Nic,
        vlan: Option<u16>,
    ) -> (Self, &'static mut Nic) {
        let nic = NonNull::from(nic);
        let emergency = Box::new(Emergency {
            nic,
            reserve: Some(reserve),
            last_words: None,
            template: None,
            vlan,
            line: Line::new(),
            text: [0; MAX_LINE],
            frame: [0; MAX_FRAME],
        });
        EMERGENCY.store(Box::into_raw(emergency), Ordering::Release);
        console::LAST_WORDS.call_once(|| last_words);
        let netconsole = Netconsole::new(target);
        let sender = Self {
            netconsole,
            template: None,
        };
        // SAFETY: it is the pointer of a `&'static mut` that was given up for
        // it. The only other user of the pointer is `last_words`, after which
        // nobody returns to the user of this reference.
        (sender, unsafe { &mut *nic.as_ptr() })
    }

    pub fn send<D: Device>(&mut self, now: Instant, stack: &mut Stack, device: &mut D) {
        let mut left = BATCH;
        // What sending logs is not sent, or it might never end.
        backlog::keep(false);
        let template = stack.send_log(now, device, &mut self.netconsole, |line| {
            left = left.checked_sub(1)?;
            backlog::pop(line)
        });
        backlog::keep(true);
        if template != self.template {
            self.template = template;
            let emergency = EMERGENCY.load(Ordering::Acquire);
            if !emergency.is_null() {
                // SAFETY: it came from `Box::into_raw`, is never freed, and
                // its only other user is `last_words`, which does not return.
                unsafe { (*emergency).template = template };
            }
        }
    }

    /// Whether it is known where last words go.
    pub fn is_ready(&self) -> bool {
        self.template.is_some_and(|template| template.is_resolved())
    }
}

/// Sends what the log still holds, and this line. Only for the end of the
/// kernel, with interrupts off and all other CPUs stopped.
fn last_words(text: fmt::Arguments<'_>) -> Result<(), NetError> {
    // Taken away, so that a fault on the way does not come here again.
    let pointer = EMERGENCY.swap(null_mut(), Ordering::Acquire);
    // SAFETY: see `Sender::send`; whoever else used it has been interrupted for
    // good.
    let Some(emergency) = (unsafe { pointer.as_mut() }) else {
        return Ok(());
    };
    emergency.send(text)?;
    EMERGENCY.store(pointer, Ordering::Release);
    Ok(())
}

impl Emergency {
    fn send(&mut self, text: fmt::Arguments<'_>) -> Result<(), NetError> {
        let Some(template) = self.template else {
            return Ok(());
        };
        if let Some(reserve) = self.reserve.take() {
            // SAFETY: the NIC is a leaked box. The code that was working with
            // it has been interrupted for good, so that there is no other
            // reference any more that anybody uses.
            let nic = unsafe { self.nic.as_mut() };
            let mut last_words = nic.poll_controller(reserve)?;
            while let Some(length) = backlog::pop(&mut self.text) {
                let text = self.text.get(..length).unwrap_or_default();
                send_line(&mut last_words, &template, self.vlan, text, &mut self.frame)?;
            }
            self.last_words = Some(last_words);
        }
        let last_words = self.last_words.as_mut().ok_or(NetError::NotOpen)?;
        self.line.set(text);
        let line = self.line.bytes();
        send_line(last_words, &template, self.vlan, line, &mut self.frame)
    }
}

fn send_line(
    last_words: &mut LastWords<KernelHal>,
    template: &Template,
    vlan: Option<u16>,
    line: &[u8],
    buffer: &mut [u8],
) -> Result<(), NetError> {
    let length = template.write(line, buffer).unwrap_or(0);
    let frame = buffer.get(..length).unwrap_or_default();
    match vlan.zip(frame.split_at_checked(device::ADDRESSES)) {
        Some((id, (addresses, rest))) => last_words.send(&[addresses, &device::tag(id), rest]),
        None => last_words.send(&[frame]),
    }
}
