//! Free ports of the loopback interface.

use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use crate::qemu::{Forward, Protocol};
use crate::wire::{ECHO_PORT, HTTP_PORT};

/// How many ports are tried from the preferred one on.
const TRIES: u16 = 200;

/// No port of the loopback interface is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no port of 127.0.0.1 from {first} to {last} is free")]
pub struct NoPort {
    /// The first that was tried.
    pub first: u16,
    /// The last that was tried.
    pub last: u16,
}

/// The first port from `first` on that is free for all of `protocols`. Another
/// program may take it before QEMU does; QEMU then says so and ends.
///
/// # Errors
/// None of [`TRIES`] is free.
fn free_port(first: u16, protocols: &[Protocol]) -> Result<u16, NoPort> {
    let last = first.saturating_add(TRIES - 1);
    (first..=last)
        .find(|&port| protocols.iter().all(|protocol| is_free(port, *protocol)))
        .ok_or(NoPort { first, last })
}

fn is_free(port: u16, protocol: Protocol) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port);
    match protocol {
        Protocol::Tcp => TcpListener::bind(address).is_ok(),
        Protocol::Udp => UdpSocket::bind(address).is_ok(),
    }
}

/// Where a guest's services are on the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Services {
    /// TCP port of the status page.
    pub http: u16,
    /// UDP and TCP port of the echo.
    pub echo: u16,
}

impl Services {
    /// Finds free ports from the preferred ones on.
    ///
    /// # Errors
    /// There are none.
    pub fn find(http: u16, echo: u16) -> Result<Self, NoPort> {
        let http = free_port(http, &[Protocol::Tcp])?;
        let both = [Protocol::Tcp, Protocol::Udp];
        let echo = match free_port(echo, &both)? {
            taken if taken == http => {
                let none = NoPort {
                    first: echo,
                    last: taken,
                };
                free_port(taken.checked_add(1).ok_or(none)?, &both)?
            }
            free => free,
        };
        Ok(Self { http, echo })
    }

    /// The rules for QEMU.
    pub fn forwards(self) -> Vec<Forward> {
        let rule = |protocol, host_port, guest_port| Forward {
            protocol,
            host_port,
            guest_port,
        };
        vec![
            rule(Protocol::Tcp, self.http, HTTP_PORT),
            rule(Protocol::Udp, self.echo, ECHO_PORT),
            rule(Protocol::Tcp, self.echo, ECHO_PORT),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let found = free_port(port, &[Protocol::Tcp]);
        if port < u16::MAX {
            assert!(found.unwrap() > port);
        }
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = udp.local_addr().unwrap().port();
        assert!(!is_free(port, Protocol::Udp));
    }

    #[test]
    fn there_is_none_behind_the_last() {
        // Whoever has it, it is not free for two.
        assert_eq!(
            Services::find(u16::MAX, u16::MAX),
            Err(NoPort {
                first: u16::MAX,
                last: u16::MAX
            })
        );
    }

    #[test]
    fn the_two_ports_differ() {
        let first = free_port(20_000, &[Protocol::Tcp, Protocol::Udp]).unwrap();
        let services = Services::find(first, first).unwrap();
        assert_ne!(services.http, services.echo);
        assert_eq!(services.forwards().len(), 3);
    }
}
