//! Who has which address on the cable.

use std::net::{Ipv4Addr, Ipv6Addr};

use kickpath_abi::config::{Config, Ipv4Cidr, Ipv4Config};

/// Prefix of the unique local IPv6 network on the cable (RFC 4193), /64.
pub const ULA_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfd6b, 0x6963, 0x6b70, 0, 0, 0, 0, 0);

/// Length of [`ULA_PREFIX`] in bits.
pub const ULA_PREFIX_LEN: u8 = 64;

/// Addresses of the two ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The guest, and the network that both are in. With DHCP this is what
    /// our server offers.
    pub guest: Ipv4Cidr,
    /// The host: gateway and DHCP server.
    pub host: Ipv4Addr,
    /// Whether the guest asks by DHCP.
    pub dhcp: bool,
}

/// Why no two ends fit into a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no room for a second host.
    #[error(
        "--ip {0}/{1}: no room for the host's end of the cable; the prefix must be 8 to 30 bits"
    )]
    Prefix(Ipv4Addr, u8),
    /// The network's own address or its broadcast address.
    #[error("--ip {0}/{1}: this is the network's own or its broadcast address, not a host's")]
    NotAHost(Ipv4Addr, u8),
    /// Not an address that can be used on a cable.
    #[error("--ip {0}: a loopback or reserved address cannot be used on a cable")]
    Reserved(Ipv4Addr),
}

impl Plan {
    /// Gives the host an address in the guest's network: the second one, as
    /// QEMU's user network does (10.0.2.2), or the first when the guest has
    /// the second.
    ///
    /// # Errors
    /// The guest's address leaves no room, or is not a host's.
    pub fn new(ipv4: Ipv4Config) -> Result<Self, PlanError> {
        let (guest, dhcp) = match ipv4 {
            Ipv4Config::Dhcp => (Ipv4Config::FALLBACK, true),
            Ipv4Config::Static(cidr) => (cidr, false),
        };
        let Ipv4Cidr { address, prefix } = guest;
        if !(8..=30).contains(&prefix) {
            return Err(PlanError::Prefix(address, prefix));
        }
        if address.is_loopback() || address.octets()[0] == 0 || address.octets()[0] >= 224 {
            return Err(PlanError::Reserved(address));
        }
        let mask = u32::MAX << (32 - prefix);
        let network = address.to_bits() & mask;
        let broadcast = network | !mask;
        if address.to_bits() == network || address.to_bits() == broadcast {
            return Err(PlanError::NotAHost(address, prefix));
        }
        let second = network + 2;
        let host = if second == address.to_bits() || second == broadcast {
            network + 1
        } else {
            second
        };
        Ok(Self {
            guest,
            host: Ipv4Addr::from_bits(host),
            dhcp,
        })
    }

    /// The netmask of the network.
    pub fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - self.guest.prefix))
    }

    /// The host's unique local IPv6 address.
    pub fn host_ula(&self) -> Ipv6Addr {
        Ipv6Addr::from_bits(ULA_PREFIX.to_bits() | 2)
    }

    /// Enters the guest's side into its configuration.
    pub fn configure(&self, config: &mut Config) {
        if self.dhcp {
            config.ipv4 = Ipv4Config::Dhcp;
        } else {
            config.ipv4 = Ipv4Config::Static(self.guest);
            config.gateway = Some(self.host);
        }
    }
}

#[cfg(test)]
mod tests {
    use kickpath_abi::config::parse_ipv4;

    use super::*;

    fn plan(text: &str) -> Result<Plan, PlanError> {
        Plan::new(parse_ipv4(text).unwrap())
    }

    #[test]
    fn the_host_is_in_the_guests_network_and_not_the_guest() {
        for (guest, host) in [
            ("dhcp", "10.0.2.2"),
            ("10.0.2.15/24", "10.0.2.2"),
            ("10.0.2.2/24", "10.0.2.1"),
            ("192.168.1.5/30", "192.168.1.6"),
            ("192.168.1.6/30", "192.168.1.5"),
            ("172.16.200.9/12", "172.16.0.2"),
        ] {
            assert_eq!(plan(guest).unwrap().host.to_string(), host, "{guest}");
        }
    }

    #[test]
    fn what_cannot_work_is_refused() {
        for guest in ["10.0.2.15/31", "10.0.2.15/0", "10.0.2.15/7"] {
            assert!(matches!(plan(guest), Err(PlanError::Prefix(..))), "{guest}");
        }
        for guest in ["10.0.2.0/24", "10.0.2.255/24", "10.0.2.3/30"] {
            assert!(
                matches!(plan(guest), Err(PlanError::NotAHost(..))),
                "{guest}"
            );
        }
        for guest in ["127.0.0.2/8", "0.1.2.3/8", "240.0.0.1/8"] {
            assert!(
                matches!(plan(guest), Err(PlanError::Reserved(_))),
                "{guest}"
            );
        }
    }

    #[test]
    fn the_guest_is_told_its_side() {
        let mut config = Config::default();
        plan("10.0.2.15/24").unwrap().configure(&mut config);
        assert_eq!(config.to_string(), "ip=10.0.2.15/24 gateway=10.0.2.2");
        plan("dhcp").unwrap().configure(&mut config);
        assert_eq!(config.ipv4, Ipv4Config::Dhcp);
    }
}
