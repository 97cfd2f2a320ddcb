//! Key exchanges after the first (RFC 9370).

use std::fmt;

use super::{DhGroup, Transform};

/// The additional key exchanges of an SA, each in the place of its transform type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Additional([Option<DhGroup>; Self::MOST]);

impl Additional {
    /// Most there can be: transform types 6 to 12.
    pub const MOST: usize = 7;

    /// Their methods in the order in which they are done.
    pub fn groups(&self) -> impl Iterator<Item = DhGroup> + '_ {
        self.0.iter().copied().flatten()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.groups().next().is_none()
    }

    /// Number `number`, from 1.
    pub(crate) fn set(&mut self, number: u8, group: DhGroup) {
        let place = usize::from(number).checked_sub(1);
        if let Some(entry) = place.and_then(|place| self.0.get_mut(place)) {
            *entry = Some(group);
        }
    }

    /// Their transforms.
    pub(crate) fn transforms(&self) -> impl Iterator<Item = Transform> + '_ {
        (1..).zip(self.0).filter_map(|(number, group)| {
            group.map(|group| Transform::additional(number, Some(group)))
        })
    }

    /// By transform type, whether done or not.
    pub(crate) fn by_type(&self) -> &[Option<DhGroup>; Self::MOST] {
        &self.0
    }
}

impl From<[Option<DhGroup>; Self::MOST]> for Additional {
    fn from(by_type: [Option<DhGroup>; Self::MOST]) -> Self {
        Self(by_type)
    }
}

/// Their proposal keywords, each with a "-" before it: `-ke1_mlkem768`.
impl fmt::Display for Additional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, group) in (1..).zip(self.0) {
            if let Some(group) = group {
                write!(f, "-ke{number}_{group}")?;
            }
        }
        Ok(())
    }
}
