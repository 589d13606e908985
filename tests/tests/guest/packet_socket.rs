//! Frames of an interface as they are, past the kernel's stack (packet(7)).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::libc;

/// Sends frames on an interface, and gets those of both directions.
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Of an interface of the calling thread's network namespace.
    pub fn bind(interface: &CStr) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: the calls get a name that ends with 0, and an address that is
        // as long as said; the descriptor is new.
        unsafe {
            let socket = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, protocol.into());
            if socket < 0 {
                return Err(io::Error::last_os_error());
            }
            let socket = OwnedFd::from_raw_fd(socket);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::if_nametoindex(interface.as_ptr()).cast_signed();
            let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            if libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) < 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Self(socket))
        }
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let sent = nix::unistd::write(&self.0, frame)?;
        ensure!(sent == frame.len(), "{sent} bytes of {}", frame.len());
        Ok(())
    }

    /// The next frame, `None` when there is none in time.
    pub fn receive(&self, bound: Duration) -> Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd {
            fd: self.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one `pollfd`, which outlives the call.
        if unsafe { libc::poll(&raw mut poll, 1, bound.as_millis() as i32) } <= 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 65_600];
        let length = nix::unistd::read(&self.0, &mut frame)?;
        frame.truncate(length);
        Ok(Some(frame))
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
