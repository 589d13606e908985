//! What a ring owes its driver, whatever the device does: no token comes back
//! that is not outstanding, and what is broken stays so.

use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use virtio_net::queue::QueueError;

use super::ring::{Ends, writable};

/// Length of each buffer in bytes.
const BUFFER: u32 = 16;

/// Kept beside a ring while random things happen to it.
#[derive(Default)]
pub struct Book {
    /// How many buffers each outstanding token stands for.
    outstanding: BTreeMap<u16, u16>,
    broken: Option<QueueError>,
    last_token: u16,
}

impl Book {
    /// Adds a chain of so many writable buffers.
    pub fn add(&mut self, ends: &mut Ends, buffers: u16) -> Result<(), TestCaseError> {
        self.last_token += 1;
        let chain = vec![writable(0x1000, BUFFER); buffers.into()];
        match ends.add(&chain, self.last_token) {
            Ok(()) => {
                prop_assert_eq!(self.broken, None);
                self.outstanding.insert(self.last_token, buffers);
            }
            Err(QueueError::Full { .. } | QueueError::ChainLength { .. }) => {
                prop_assert_eq!(self.broken, None);
            }
            Err(error) => prop_assert_eq!(Some(error), self.broken),
        }
        Ok(())
    }

    /// Takes a used chain, if there is one; returns how many buffers it has.
    pub fn pop(&mut self, ends: &mut Ends) -> Result<Option<u16>, TestCaseError> {
        match ends.driver.pop_used() {
            Ok(Some(used)) => {
                prop_assert_eq!(self.broken, None);
                let buffers = self.outstanding.remove(&used.token);
                prop_assert!(buffers.is_some(), "token {} is not outstanding", used.token);
                let most = BUFFER * u32::from(buffers.unwrap_or(0));
                prop_assert!(used.length <= most);
                Ok(buffers)
            }
            Ok(None) => {
                prop_assert_eq!(self.broken, None);
                Ok(None)
            }
            Err(error) => {
                self.broke(error)?;
                Ok(None)
            }
        }
    }

    /// Discards the used chains; returns whether there were any. Which ones
    /// went cannot be known but by their slots: the book is closed then.
    pub fn discard(&mut self, ends: &mut Ends) -> Result<bool, TestCaseError> {
        let before = ends.driver.outstanding();
        let result = ends.driver.discard_used();
        let after = ends.driver.outstanding();
        prop_assert!(after <= before);
        match result {
            Ok(()) => prop_assert_eq!(self.broken, None),
            Err(error) => self.broke(error)?,
        }
        Ok(after != before)
    }

    fn broke(&mut self, error: QueueError) -> Result<(), TestCaseError> {
        prop_assert!(self.broken.is_none() || self.broken == Some(error));
        self.broken = Some(error);
        Ok(())
    }

    /// The ring says the same of itself.
    pub fn check(&self, ends: &Ends) -> Result<(), TestCaseError> {
        let outstanding = self.outstanding.len();
        if self.broken.is_none() {
            let free = usize::from(ends.driver.capacity()) - outstanding;
            prop_assert_eq!(usize::from(ends.driver.free()), free);
        }
        prop_assert_eq!(usize::from(ends.driver.outstanding()), outstanding);
        let reason = ends.driver.broken();
        let broken = reason.map(|reason| QueueError::Broken { queue: 7, reason });
        prop_assert_eq!(broken, self.broken);
        Ok(())
    }
}
