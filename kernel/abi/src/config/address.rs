//! Addresses as words.

use core::fmt;
use core::net::Ipv4Addr;

/// An IPv4 address with its prefix length, 0 to 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Cidr {
    /// The address of the interface.
    pub address: Ipv4Addr,
    /// Length of the network prefix in bits, 0 to 32.
    pub prefix: u8,
}

/// Where the guest's IPv4 address comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ipv4Config {
    /// DHCP, with [`Ipv4Config::FALLBACK`] when no server answers.
    #[default]
    Dhcp,
    /// This address; the gateway is the key `gateway`.
    Static(Ipv4Cidr),
}

impl Ipv4Config {
    /// The address taken when DHCP gets no answer: what QEMU's user network
    /// would have given.
    pub const FALLBACK: Ipv4Cidr = Ipv4Cidr {
        address: Ipv4Addr::new(10, 0, 2, 15),
        prefix: 24,
    };
}

impl fmt::Display for Ipv4Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dhcp => f.write_str("dhcp"),
            Self::Static(Ipv4Cidr { address, prefix }) => write!(f, "{address}/{prefix}"),
        }
    }
}

/// Shows a hardware address with colons.
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Reads six bytes in hexadecimal with colons between.
pub fn parse_mac(value: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = value.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// Reads `dhcp` or `ADDRESS/PREFIX`.
pub fn parse_ipv4(value: &str) -> Option<Ipv4Config> {
    if value == "dhcp" {
        return Some(Ipv4Config::Dhcp);
    }
    let (address, prefix) = value.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix: u8 = prefix.parse().ok()?;
    let usable = prefix <= 32
        && !address.is_unspecified()
        && !address.is_multicast()
        && !address.is_broadcast();
    usable.then_some(Ipv4Config::Static(Ipv4Cidr { address, prefix }))
}
