//! The moment from which a guest serves, and its report on itself.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use kickpath_abi::config::{Ipv4Cidr, LogLevel};
use kickpath_abi::status::Status;

use super::error::SessionError;
use super::prepared::Prepared;
use crate::guest::{Cause, Guest};
use crate::wire::{FarEnd, WireError};

/// What the guest prints, once, when its network is ready; ` ipv4=` and its
/// address with prefix follow.
pub const UP: &str = "kickpath: up";

impl Prepared {
    /// Waits until the guest serves, and returns its address.
    ///
    /// # Errors
    /// It does not get there in time.
    pub fn wait_until_up(&self, guest: &Guest, far: &dyn FarEnd) -> Result<Up, SessionError> {
        let bound = self.accel().boot_bound();
        if matches!(
            self.machine.config.log,
            LogLevel::Off | LogLevel::Error | LogLevel::Warn
        ) {
            return self.wait_until_it_answers(guest, far, bound);
        }
        let line = guest.wait_for_console(UP, bound)?;
        let address = address_of(&line.text).ok_or_else(|| {
            let text = format!("the guest's line '{}' names no IPv4 address", line.text);
            guest.failure(Cause::Other(text))
        })?;
        Ok(Up {
            address,
            after: line.at,
            next_line: line.number + 1,
        })
    }

    /// For a guest that was told to be silent.
    fn wait_until_it_answers(
        &self,
        guest: &Guest,
        far: &dyn FarEnd,
        bound: Duration,
    ) -> Result<Up, SessionError> {
        let address = self.plan.guest;
        while guest.launched().elapsed() < bound {
            guest.check()?;
            if fetch_status(far, address.address.into(), Duration::from_secs(1)).is_ok() {
                return Ok(Up {
                    address,
                    after: guest.launched().elapsed(),
                    next_line: 0,
                });
            }
            // A refused connection must not become a busy loop.
            std::thread::sleep(Duration::from_millis(20));
        }
        let waiting_for = format!("an answer of {}", address.address);
        Err(guest.failure(Cause::Timeout { waiting_for, bound }).into())
    }
}

/// A guest that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Up {
    /// The guest's address.
    pub address: Ipv4Cidr,
    /// When it said so, or answered, since QEMU was started.
    pub after: Duration,
    /// The number of the console line after the one that said so.
    pub next_line: u64,
}

impl Up {
    /// The guest's address without prefix.
    pub fn ip(&self) -> IpAddr {
        self.address.address.into()
    }
}

/// Reads the address in a line such as `kickpath: up ipv4=10.0.2.15/24`.
fn address_of(line: &str) -> Option<Ipv4Cidr> {
    let (_, words) = line.split_once(UP)?;
    let mut words = words.split_ascii_whitespace();
    let value = words.find_map(|word| word.strip_prefix("ipv4="))?;
    let (address, prefix) = value.split_once('/')?;
    let address: Ipv4Addr = address.parse().ok()?;
    let prefix = prefix.parse().ok().filter(|prefix| *prefix <= 32)?;
    Some(Ipv4Cidr { address, prefix })
}

/// Fetches the guest's report on itself.
///
/// # Errors
/// No answer, or not the report.
pub fn fetch_status(far: &dyn FarEnd, ip: IpAddr, bound: Duration) -> Result<Status, StatusError> {
    let page = far.http_get(ip, "/stats.json", bound)?;
    if page.status != 200 {
        return Err(StatusError::Code(page.status));
    }
    Ok(serde_json::from_slice(&page.body)?)
}

/// Why there is no report of the guest.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The far end got no answer.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The guest refused.
    #[error("GET /stats.json: status {0} instead of 200")]
    Code(u16),
    /// The answer is something else.
    #[error("GET /stats.json: {0}")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_read_from_the_guests_line() {
        let line = "[info] kickpath: up ipv4=192.0.2.7/28 ipv6=fe80::1/64";
        let address = address_of(line).unwrap();
        assert_eq!(address.address, Ipv4Addr::new(192, 0, 2, 7));
        assert_eq!(address.prefix, 28);
        for line in [
            "kickpath: up",
            "kickpath: up ipv4=none",
            "kickpath: up ipv4=1.2.3.4/33",
            "ipv4=1.2.3.4/24",
        ] {
            assert_eq!(address_of(line), None, "{line}");
        }
    }
}
