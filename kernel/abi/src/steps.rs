//! A setting that changes while the guest serves.

use core::fmt;
use core::str::FromStr;

use alloc::string::String;
use alloc::vec::Vec;

/// The word for a list with nothing in it.
const NONE: &str = "none";

/// Lists of words, `A,B/A/none`: the first holds once the network is up, the
/// next from the device's next request for an announcement on (QEMU's command
/// `announce-self`, by which a test says when), and after the last one the first
/// again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Steps(String);

impl Steps {
    /// Reads the lists; every word must be a `T`.
    pub fn parse<T: FromStr>(value: &str) -> Option<Self> {
        let steps = Self(value.into());
        let good =
            |list: &str| list == NONE || list.split(',').all(|word| word.parse::<T>().is_ok());
        value.split('/').all(good).then_some(steps)
    }

    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The words of a step, counted from 0; `None` when nothing was said.
    pub fn step<T: FromStr>(&self, number: usize) -> Option<Vec<T>> {
        if self.is_empty() {
            return None;
        }
        let count = self.0.split('/').count();
        let list = self.0.split('/').nth(number % count)?;
        // `none` is no `T`, and every other word is one.
        Some(
            list.split(',')
                .filter_map(|word| word.parse().ok())
                .collect(),
        )
    }
}

impl fmt::Display for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_around() {
        let steps = Steps::parse::<u16>("5,6/none/7").unwrap_or_default();
        let read = |number| steps.step::<u16>(number);
        assert_eq!(read(0), Some([5, 6].into()));
        assert_eq!(read(1), Some([].into()));
        assert_eq!(read(2), Some([7].into()));
        assert_eq!(read(3), read(0));
        assert!(Steps::default().step::<u16>(0).is_none());
        for bad in ["", "5,", "5/", "/5", "5,x", "none,5"] {
            assert_eq!(Steps::parse::<u16>(bad), None, "{bad}");
        }
    }
}
