//! UDP, one datagram at a time. For many see [`super::flood`].

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use smoltcp::socket::udp;

use super::stack::{MAX_PACKET, Stack, endpoint};
use crate::wire::far_end::{check_datagram, fill_pattern};
use crate::wire::{ECHO_PORT, Echo, WireError};

/// Largest content: an IPv4 packet less its header and that of UDP.
const MAX_SIZE: usize = MAX_PACKET - 20 - 8;

/// A datagram that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Its content.
    pub payload: Vec<u8>,
    /// Time since the request was sent.
    pub rtt: Duration,
}

impl Stack {
    pub fn udp_exchange(
        &mut self,
        to: SocketAddr,
        payload: &[u8],
        bound: Duration,
    ) -> Result<Datagram, WireError> {
        if payload.len() > MAX_SIZE {
            let size = payload.len();
            return Err(WireError::Argument(format!(
                "a UDP datagram of {size} bytes: at most {MAX_SIZE} fit into a packet"
            )));
        }
        let buffer = |bytes| {
            let metadata = vec![udp::PacketMetadata::EMPTY; 8];
            udp::PacketBuffer::new(metadata, vec![0; bytes])
        };
        let mut socket = udp::Socket::new(buffer(MAX_SIZE), buffer(payload.len().max(1)));
        // A fresh socket takes every port but 0.
        let bound_socket = socket.bind(self.ephemeral_port());
        debug_assert!(bound_socket.is_ok());
        let handle = self.sockets.add(socket);
        let result = self.exchange(handle, to, payload, bound);
        self.sockets.remove(handle);
        result
    }

    fn exchange(
        &mut self,
        handle: SocketHandle,
        to: SocketAddr,
        payload: &[u8],
        bound: Duration,
    ) -> Result<Datagram, WireError> {
        let what = format!("UDP datagram of {} bytes to {to}", payload.len());
        let remote = endpoint(to.ip(), to.port());
        let sent = Instant::now();
        let socket = self.sockets.get_mut::<udp::Socket>(handle);
        socket
            .send_slice(payload, remote)
            .map_err(|error| WireError::Argument(format!("{what}: {error}")))?;
        self.run(&what, bound, |stack| {
            let came = stack.last_frame;
            let socket = stack.sockets.get_mut::<udp::Socket>(handle);
            while let Ok((payload, metadata)) = socket.recv() {
                if metadata.endpoint == remote {
                    return Some(Datagram {
                        payload: payload.to_vec(),
                        rtt: came.saturating_duration_since(sent),
                    });
                }
            }
            None
        })
    }

    pub fn udp_echo(
        &mut self,
        guest: IpAddr,
        size: usize,
        bound: Duration,
    ) -> Result<Echo, WireError> {
        let mut payload = vec![0; size];
        let seed = size as u64;
        fill_pattern(seed, 0, &mut payload);
        let to = SocketAddr::new(guest, ECHO_PORT);
        let answer = self.udp_exchange(to, &payload, bound)?;
        let what = format!("UDP echo of {size} bytes");
        check_datagram(&what, seed, size, &answer.payload)?;
        Ok(Echo {
            bytes: size,
            elapsed: answer.rtt,
        })
    }
}
