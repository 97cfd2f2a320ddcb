//! IKE fragmentation (RFC 7383): large messages in datagrams that IP need not fragment.
//!
//! Each fragment is encrypted and authenticated by itself, in an Encrypted Fragment payload. What is
//! kept of a message that is not complete yet is bounded, and only what authenticates is kept.

use zeroize::Zeroizing;

use super::context::{Common, Cx};
use super::respond;
use crate::status::IkeDrop;
use crate::wire::payload::Fragment;
use crate::wire::{HEADER_LEN, Notify, NotifyType, Payload, PayloadType, Writer};

/// Says in IKE_SA_INIT that we understand fragments, if we do.
pub(crate) fn write_support(writer: &mut Writer, cx: &Cx<'_>) {
    if cx.settings.fragment_size.is_some() {
        writer.notify(Notify::new(NotifyType::IKEV2_FRAGMENTATION_SUPPORTED, &[]));
    }
}

/// Whether we and the peer, by its IKE_SA_INIT message, understand fragments.
pub(crate) fn supported(cx: &Cx<'_>, payloads: &[Payload<'_>]) -> bool {
    cx.settings.fragment_size.is_some()
        && respond::notifies(payloads)
            .any(|notify| notify.kind == NotifyType::IKEV2_FRAGMENTATION_SUPPORTED)
}

/// Octets of a payload's generic header.
pub(crate) const PAYLOAD_HEADER_LEN: usize = 4;
/// Octets of the fragment's number and the number of fragments.
const FRAGMENT_HEADER_LEN: usize = 4;
/// Most fragments of a message that we send or accept.
const MOST_FRAGMENTS: u16 = 255;
/// Most octets of a message that is put together: no payload can be longer.
const MOST_OCTETS: usize = u16::MAX as usize;
/// Octets of a UDP header.
const UDP_HEADER_LEN: usize = 8;
/// Octets of the non-ESP marker (RFC 3948 section 2.2).
const MARKER_LEN: usize = 4;

/// A protected message as it is sent: one datagram, or one for each fragment. It is sent again as
/// it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub datagrams: Vec<Vec<u8>>,
}

/// Most octets of an IKE message in IP datagrams of `size` octets between the ends of an IKE SA.
pub(crate) fn message_limit(common: &Common, size: usize, nat_port: u16) -> usize {
    let ip = if common.remote.is_ipv4() { 20 } else { 40 };
    let marker = if common.local.port() == nat_port {
        MARKER_LEN
    } else {
        0
    };
    size.saturating_sub(ip + UDP_HEADER_LEN + marker)
}

/// Octets of an Encrypted Fragment payload's body in a message of `limit` octets.
pub(crate) fn body_limit(limit: usize) -> usize {
    limit.saturating_sub(HEADER_LEN + PAYLOAD_HEADER_LEN + FRAGMENT_HEADER_LEN)
}

/// The headers of an Encrypted Fragment payload (section 2.5) with a body of `body_len` octets. The
/// first fragment says what is inside, "for all others … MUST be set to zero".
pub(crate) fn write_headers(
    out: &mut Vec<u8>,
    first: PayloadType,
    fragment: Fragment,
    body_len: usize,
) {
    let Fragment { number, total } = fragment;
    let inside = if number == 1 {
        first
    } else {
        PayloadType::NONE
    };
    let length = PAYLOAD_HEADER_LEN + FRAGMENT_HEADER_LEN + body_len;
    out.extend([inside.0, 0]);
    out.extend(u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend(total.to_be_bytes());
}

/// Octets of a message with an Encrypted Fragment payload of `body_len` octets.
pub(crate) fn message_len(body_len: usize) -> usize {
    HEADER_LEN + PAYLOAD_HEADER_LEN + FRAGMENT_HEADER_LEN + body_len
}

/// Cuts what is to be protected into pieces of at most `capacity` octets, if that can be.
pub(crate) fn pieces(
    plaintext: &[u8],
    capacity: usize,
) -> Option<(u16, std::slice::Chunks<'_, u8>)> {
    if capacity == 0 {
        return None;
    }
    let chunks = plaintext.chunks(capacity);
    let total = u16::try_from(chunks.len()).ok()?;
    (total <= MOST_FRAGMENTS).then_some((total, chunks))
}

/// A message of which fragments have come (section 2.6).
pub(crate) struct Reassembly {
    message_id: u32,
    /// By number, from 1; as many as the message has.
    pieces: Vec<Option<Zeroizing<Vec<u8>>>>,
    octets: usize,
    /// Type of the first payload inside and the whole datagram, of the first fragment.
    first: Option<(PayloadType, Vec<u8>)>,
}

/// An authentic fragment.
pub(crate) struct Piece<'a> {
    pub message_id: u32,
    pub fragment: Fragment,
    /// Type of the first payload inside, in the first fragment.
    pub inner: PayloadType,
    pub plaintext: Zeroizing<Vec<u8>>,
    /// All that came.
    pub datagram: &'a [u8],
}

/// A message put together.
pub(crate) struct Reassembled {
    pub first: PayloadType,
    pub plaintext: Zeroizing<Vec<u8>>,
    /// The datagram of the first fragment, by which the message is told from others.
    pub datagram: Vec<u8>,
}

impl Reassembly {
    fn new(message_id: u32, total: u16) -> Self {
        Self {
            message_id,
            pieces: (0..total).map(|_| None).collect(),
            octets: 0,
            first: None,
        }
    }

    /// Whether a fragment is worth verifying, by what is there of its message.
    pub fn expects(
        this: Option<&Self>,
        message_id: u32,
        fragment: Fragment,
    ) -> Result<(), IkeDrop> {
        let Fragment { number, total } = fragment;
        if number == 0 || number > total || total > MOST_FRAGMENTS {
            return Err(IkeDrop::Malformed);
        }
        let Some(this) = this.filter(|this| this.message_id == message_id) else {
            return Ok(());
        };
        // More and smaller ones: the peer begins anew. Fewer: they are older.
        match usize::from(total).cmp(&this.pieces.len()) {
            std::cmp::Ordering::Less => Err(IkeDrop::Fragment),
            std::cmp::Ordering::Equal if this.piece(number).is_some() => {
                Err(IkeDrop::Retransmission)
            }
            _ => Ok(()),
        }
    }

    fn piece(&self, number: u16) -> Option<&Zeroizing<Vec<u8>>> {
        self.pieces
            .get(usize::from(number).checked_sub(1)?)?
            .as_ref()
    }

    /// Takes in an authentic fragment that [`Self::expects`] allows; gives the message when it was the
    /// last that was missing.
    pub fn add(slot: &mut Option<Self>, piece: Piece<'_>) -> Result<Option<Reassembled>, IkeDrop> {
        let Fragment { number, total } = piece.fragment;
        let same = |this: &Self| {
            this.message_id == piece.message_id && this.pieces.len() == usize::from(total)
        };
        let begun = slot.take().filter(same);
        let this = slot.insert(begun.unwrap_or_else(|| Self::new(piece.message_id, total)));
        this.octets += piece.plaintext.len();
        if this.octets > MOST_OCTETS {
            *slot = None;
            return Err(IkeDrop::Fragment);
        }
        if number == 1 {
            this.first = Some((piece.inner, piece.datagram.to_vec()));
        }
        let place = usize::from(number).checked_sub(1);
        if let Some(place) = place.and_then(|place| this.pieces.get_mut(place)) {
            *place = Some(piece.plaintext);
        }
        if this.pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let Some(Self {
            pieces,
            octets,
            first: Some((first, datagram)),
            ..
        }) = slot.take()
        else {
            return Ok(None);
        };
        // Reserved at once: growth would leave plaintext behind in freed memory.
        let mut plaintext = Zeroizing::new(Vec::with_capacity(octets));
        for piece in pieces.iter().flatten() {
            plaintext.extend_from_slice(piece);
        }
        Ok(Some(Reassembled {
            first,
            plaintext,
            datagram,
        }))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes a fragment in as [`super::super::protect::Protector`] does.
    fn take(
        slot: &mut Option<Reassembly>,
        message_id: u32,
        [number, total]: [u16; 2],
        plaintext: &[u8],
    ) -> Result<Option<Reassembled>, IkeDrop> {
        let fragment = Fragment { number, total };
        Reassembly::expects(slot.as_ref(), message_id, fragment)?;
        let piece = Piece {
            message_id,
            fragment,
            inner: PayloadType(number as u8),
            plaintext: Zeroizing::new(plaintext.to_vec()),
            datagram: &number.to_be_bytes(),
        };
        Reassembly::add(slot, piece)
    }

    fn held(slot: &Option<Reassembly>) -> usize {
        let pieces = slot.iter().flat_map(|this| this.pieces.iter().flatten());
        pieces.map(|piece| piece.len()).sum()
    }

    proptest! {
        #[test]
        fn any_order_with_repetitions_gives_the_message_once(
            message in proptest::collection::vec(any::<u8>(), 1..5000),
            capacity in 1usize..3000,
            order in proptest::collection::vec(any::<u16>(), 0..400),
        ) {
            let capacity = capacity.max(message.len().div_ceil(usize::from(MOST_FRAGMENTS)));
            let (total, cut) = pieces(&message, capacity).unwrap();
            let cut: Vec<_> = cut.collect();
            let mut slot = None;
            let mut seen = vec![false; cut.len()];
            // At random, then all in order: what is left comes then.
            let numbers = order.iter().map(|number| number % total + 1).chain(1..=total);
            for number in numbers {
                let place = usize::from(number) - 1;
                let result = take(&mut slot, 7, [number, total], cut[place]);
                let again = std::mem::replace(&mut seen[place], true);
                if again {
                    prop_assert_eq!(result.err(), Some(IkeDrop::Retransmission));
                } else if seen.iter().all(|seen| *seen) {
                    let whole = result.unwrap().expect("it is complete");
                    prop_assert_eq!(&*whole.plaintext, &message);
                    prop_assert_eq!(whole.first, PayloadType(1));
                    prop_assert_eq!(whole.datagram, vec![0, 1]);
                    prop_assert!(slot.is_none());
                    return Ok(());
                } else {
                    prop_assert!(result.unwrap().is_none());
                }
            }
            prop_assert!(false, "never complete");
        }

        #[test]
        fn whatever_comes_is_bounded(
            fragments in proptest::collection::vec(
                (0u32..3, 0u16..300, 0u16..300, 0usize..70_000), 0..60),
        ) {
            let mut slot = None;
            let octets = vec![0; 70_000];
            for (message_id, number, total, length) in fragments {
                let result = take(&mut slot, message_id, [number, total], &octets[..length]);
                if number == 0 || number > total || total > MOST_FRAGMENTS {
                    prop_assert_eq!(result.err(), Some(IkeDrop::Malformed));
                }
                prop_assert!(held(&slot) <= MOST_OCTETS);
            }
        }
    }

    #[test]
    fn smaller_fragments_begin_anew_and_larger_ones_are_old() {
        let mut slot = None;
        assert!(take(&mut slot, 1, [1, 2], b"aa").unwrap().is_none());
        assert!(take(&mut slot, 1, [2, 3], b"b").unwrap().is_none());
        assert_eq!(
            take(&mut slot, 1, [2, 2], b"bb").err(),
            Some(IkeDrop::Fragment)
        );
        assert!(take(&mut slot, 1, [3, 3], b"c").unwrap().is_none());
        let whole = take(&mut slot, 1, [1, 3], b"a").unwrap().unwrap();
        assert_eq!(&**whole.plaintext, b"abc");

        // Another message takes the place of one that never became complete.
        assert!(take(&mut slot, 2, [1, 2], b"x").unwrap().is_none());
        assert!(take(&mut slot, 3, [2, 2], b"y").unwrap().is_none());
        assert_eq!(held(&slot), 1);
    }

    #[test]
    fn what_needs_too_many_fragments_has_none() {
        assert!(pieces(&[0; 100], 0).is_none());
        assert!(pieces(&[0; 256], 1).is_none());
        assert_eq!(pieces(&[0; 255], 1).unwrap().0, 255);
    }
}
