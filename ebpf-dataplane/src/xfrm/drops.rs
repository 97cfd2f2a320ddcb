//! Packets that the kernel dropped outside any state, from `/proc/net/xfrm_stat`.
//!
//! The kernel counts for the whole network namespace, other programs' states and policies
//! included; what it had counted when the engine started is subtracted.

use std::fs::File;
use std::io::{Read, Seek};

use espada_common::drops::DropReason;

use crate::backend::BackendError;

/// Where a counter of the kernel goes: direction (inbound, outbound) and reason. Counters of what
/// a state refused (`XfrmInStateProtoError`: ICV or padding, `XfrmInStateSeqError`: replay) are not
/// here: those packets are counted with their SAs.
const COUNTERS: [(&str, usize, DropReason); 27] = [
    // No memory.
    ("XfrmInError", 0, DropReason::Internal),
    ("XfrmInBufferError", 0, DropReason::Internal),
    ("XfrmInHdrError", 0, DropReason::Malformed),
    ("XfrmInNoStates", 0, DropReason::UnknownSpi),
    // For a state that still waits for its keys.
    ("XfrmAcquireError", 0, DropReason::UnknownSpi),
    ("XfrmInStateModeError", 0, DropReason::Malformed),
    ("XfrmInStateExpired", 0, DropReason::Expired),
    // Wrong encapsulation, or outside the state's own selector.
    ("XfrmInStateMismatch", 0, DropReason::SelectorMismatch),
    ("XfrmInStateInvalid", 0, DropReason::Expired),
    // Decrypted by another state than the policy for its addresses asks for, or in clear.
    ("XfrmInTmplMismatch", 0, DropReason::SelectorMismatch),
    // Decrypted, but outside every pair's selectors.
    ("XfrmInNoPols", 0, DropReason::SelectorMismatch),
    ("XfrmInPolBlock", 0, DropReason::ClearInbound),
    ("XfrmInPolError", 0, DropReason::Internal),
    ("XfrmInStateDirError", 0, DropReason::UnknownSpi),
    ("XfrmFwdHdrError", 0, DropReason::Malformed),
    ("XfrmOutError", 1, DropReason::Internal),
    ("XfrmOutBundleGenError", 1, DropReason::NoRoute),
    ("XfrmOutBundleCheckError", 1, DropReason::NoRoute),
    ("XfrmOutNoStates", 1, DropReason::NoSa),
    ("XfrmOutStateProtoError", 1, DropReason::Internal),
    // The outer packet does not fit.
    ("XfrmOutStateModeError", 1, DropReason::TooBig),
    ("XfrmOutStateSeqError", 1, DropReason::SequenceExhausted),
    ("XfrmOutStateExpired", 1, DropReason::Expired),
    ("XfrmOutStateInvalid", 1, DropReason::Expired),
    // A connection without trap blocks while it has no SA.
    ("XfrmOutPolBlock", 1, DropReason::NoSa),
    ("XfrmOutPolDead", 1, DropReason::NoPolicy),
    ("XfrmOutPolError", 1, DropReason::NoPolicy),
];

/// Drops by direction (inbound, outbound) and reason number.
pub type Totals = [[u64; DropReason::COUNT]; 2];

/// The counters of one network namespace.
pub struct DropFile {
    /// Of the namespace it was opened in, whatever thread reads it. `None` where the kernel was
    /// built without CONFIG_XFRM_STATISTICS.
    file: Option<File>,
    start: Totals,
}

impl DropFile {
    /// Opens the counters of the calling thread's network namespace.
    pub fn open() -> Self {
        let file = match File::open("/proc/thread-self/net/xfrm_stat") {
            Ok(file) => Some(file),
            Err(error) => {
                tracing::info!(%error, "the kernel does not count dropped packets (CONFIG_XFRM_STATISTICS)");
                None
            }
        };
        let mut counters = Self {
            file,
            start: Totals::default(),
        };
        if let Ok(start) = counters.read() {
            counters.start = start;
        }
        counters
    }

    /// Drops since it was opened.
    pub fn totals(&mut self) -> Result<Totals, BackendError> {
        let mut totals = self.read()?;
        for (total, start) in totals.iter_mut().flatten().zip(self.start.as_flattened()) {
            *total = total.saturating_sub(*start);
        }
        Ok(totals)
    }

    fn read(&mut self) -> Result<Totals, BackendError> {
        let Some(file) = &mut self.file else {
            return Ok(Totals::default());
        };
        let mut text = String::new();
        let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
        read.map_err(|source| BackendError::System {
            what: "cannot read /proc/net/xfrm_stat".into(),
            source,
        })?;
        Ok(parse(&text))
    }
}

/// Sums the lines `NAME COUNT`; what is not known or no number is passed over.
fn parse(text: &str) -> Totals {
    let mut totals = Totals::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(count)) = (words.next(), words.next()) else {
            continue;
        };
        let known = COUNTERS.iter().find(|(known, _, _)| *known == name);
        if let Some((_, direction, reason)) = known
            && let Ok(count) = count.parse::<u64>()
            && let Some(total) = totals
                .get_mut(*direction)
                .and_then(|totals| totals.get_mut(*reason as usize))
        {
            *total = total.saturating_add(count);
        }
    }
    totals
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_reasons() {
        let text = "XfrmInNoStates          \t3\nXfrmOutNoStates 4\nXfrmOutPolBlock 2\n\
                    XfrmInStateSeqError 9\nXfrmInNovelty 5\nXfrmInHdrError many\nbroken\n";
        let totals = parse(text);
        assert_eq!(totals[0][DropReason::UnknownSpi as usize], 3);
        assert_eq!(totals[1][DropReason::NoSa as usize], 6);
        assert_eq!(totals.iter().flatten().sum::<u64>(), 9);
    }
}
