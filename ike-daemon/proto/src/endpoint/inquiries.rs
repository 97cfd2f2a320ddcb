//! Servers that are asked about certificates: what is open, who waits for it, what is known.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::{Endpoint, wall_time};
use crate::crypto::Random;
use crate::notice::Notice;
use crate::x509::ocsp::NONCE;
use crate::x509::{Answers, Inquiry};

/// A server that has not answered by then is given up: peers repeat their requests for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A question to a server, as it is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// What is asked, and where.
    pub inquiry: Inquiry,
    /// An OCSP request, which is to be sent by POST. Lists are fetched by GET.
    pub post: Option<Vec<u8>>,
}

/// What is open and what is known.
#[derive(Default)]
pub(super) struct Inquiries {
    pub answers: Answers,
    open: HashMap<Inquiry, Open>,
    /// Those that are still to be handed out.
    new: VecDeque<Question>,
}

struct Open {
    nonce: [u8; NONCE],
    /// When it is given up.
    until: Instant,
    /// Our SPIs of the IKE SAs that wait for it.
    waiting: BTreeSet<u64>,
}

impl Inquiries {
    /// When the first is given up.
    pub fn deadline(&self) -> Option<Instant> {
        self.open.values().map(|open| open.until).min()
    }
}

impl<R: Random> Endpoint<R> {
    /// An IKE SA wants to know.
    pub(super) fn inquire(&mut self, now: Instant, spi: u64, inquiries: Vec<Inquiry>) {
        let connection = self.sas.get(&spi).and_then(|entry| entry.sa.connection());
        for inquiry in inquiries {
            let Inquiries { open, new, .. } = &mut self.inquiries;
            let open = open.entry(inquiry).or_insert_with_key(|inquiry| {
                let mut nonce = [0; NONCE];
                self.rng.fill(&mut nonce);
                new.push_back(Question {
                    inquiry: inquiry.clone(),
                    post: inquiry.request(&nonce),
                });
                self.out.notices.push_back(Notice::Inquiring {
                    connection: connection.cloned(),
                    uri: inquiry.uri().clone(),
                });
                Open {
                    nonce,
                    until: now + PATIENCE,
                    waiting: BTreeSet::new(),
                }
            });
            open.waiting.insert(spi);
        }
    }

    /// The next question to a server. It is to be asked by HTTP, and what comes of it handed to
    /// [`Self::handle_answer`]; IKE SAs wait for that, so their peers had better not.
    pub fn poll_inquiry(&mut self) -> Option<Question> {
        self.inquiries.new.pop_front()
    }

    /// Takes in what a server sent, or in words why it sent nothing.
    pub fn handle_answer(&mut self, now: Instant, inquiry: &Inquiry, reply: Result<&[u8], String>) {
        let Some(open) = self.inquiries.open.remove(inquiry) else {
            return; // It comes too late.
        };
        // Who waits has been told the time of day, or would not have got so far.
        let wall = wall_time(self.wall, now).unwrap_or_default();
        let answers = &mut self.inquiries.answers;
        answers.store(inquiry, &open.nonce, wall, reply);
        for spi in open.waiting {
            self.with_sa(now, spi, |sa, cx| sa.answered(cx));
        }
    }

    /// Gives up the servers that have been waited for long enough.
    pub(super) fn give_up_inquiries(&mut self, now: Instant) {
        let open = self.inquiries.open.iter();
        let late: Vec<Inquiry> = open
            .filter(|(_, open)| open.until <= now)
            .map(|(inquiry, _)| inquiry.clone())
            .collect();
        for inquiry in late {
            self.inquiries.new.retain(|new| new.inquiry != inquiry);
            let reason = format!("no answer within {} s", PATIENCE.as_secs());
            self.handle_answer(now, &inquiry, Err(reason));
        }
    }
}
