//! What `bench engines` measured: medians, ratios within each repetition, and how they are shown.

use std::fmt;

use espada_tests::blast::{Highest, TOLERATED};
use espada_tests::traffic::RoundTrips;
use serde_json::{Value, json};

use super::machine;
use super::visits::{self, Visits};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Case {
    /// The same way without a tunnel.
    Plain,
    /// A tunnel.
    Tunnel {
        /// Name of the engine at both gateways.
        engine: &'static str,
        /// ESP proposal.
        suite: &'static str,
    },
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("plain forwarding"),
            Self::Tunnel { engine, suite } => write!(f, "{engine} {suite}"),
        }
    }
}

impl Case {
    /// The case that it is compared with besides plain forwarding: the userspace engine with the
    /// same suite.
    fn reference(self) -> Option<Self> {
        match self {
            Self::Plain => None,
            Self::Tunnel { suite, .. } => Some(Self::Tunnel {
                engine: "userspace",
                suite,
            }),
        }
    }
}

/// One visit.
#[derive(Clone, Copy, Debug)]
pub struct Measures {
    /// UDP packets of 64 octets of payload.
    pub small: Highest,
    /// UDP packets of 1372 octets of payload.
    pub large: Highest,
    /// One TCP stream, Gbit/s.
    pub tcp_gbps: f64,
    /// Echo requests alone.
    pub idle: RoundTrips,
    /// Echo requests beside a TCP stream.
    pub loaded: RoundTrips,
}

type Column = visits::Column<Measures>;

const COLUMNS: [Column; 7] = [
    Column {
        name: "udp64_pps",
        title: "64 B, kpps",
        value: |it| Some(it.small.pps),
        limited: |it| it.small.sender_limited,
        digits: 0,
    },
    Column {
        name: "udp1372_pps",
        title: "1372 B, kpps",
        value: |it| Some(it.large.pps),
        limited: |it| it.large.sender_limited,
        digits: 0,
    },
    Column {
        name: "tcp_gbit_s",
        title: "TCP, Gbit/s",
        value: |it| Some(it.tcp_gbps),
        limited: |_| false,
        digits: 2,
    },
    Column {
        name: "rtt_p50_us",
        title: "RTT p50, µs",
        value: |it| Some(it.idle.p50_us),
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "rtt_p99_us",
        title: "RTT p99, µs",
        value: |it| Some(it.idle.p99_us),
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "loaded_rtt_p50_us",
        title: "beside TCP p50, µs",
        value: |it| Some(it.loaded.p50_us),
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "loaded_rtt_p99_us",
        title: "beside TCP p99, µs",
        value: |it| Some(it.loaded.p99_us),
        limited: |_| false,
        digits: 0,
    },
];

fn shown(column: &Column, value: f64) -> String {
    let value = if column.name.ends_with("_pps") {
        value / 1000.0
    } else {
        value
    };
    format!("{value:.*}", column.digits)
}

/// All visits.
#[derive(Debug)]
pub struct Results {
    reps: u32,
    /// What was measured and what could not be.
    pub visits: Visits<Case, Measures>,
}

impl Results {
    /// Nothing yet.
    pub fn new(reps: u32) -> Self {
        Self {
            reps,
            visits: Visits::default(),
        }
    }

    /// Three tables: medians, and the ratios to plain forwarding and to the userspace engine.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "Linux {}, {}, {} processors; medians of {} repetitions\n\n",
            machine::kernel(),
            machine::processor(),
            machine::processors(),
            self.reps
        );
        text += &self.table("", |case, column| {
            let sign = if self.visits.limited(case, column) {
                "≥ "
            } else {
                ""
            };
            Some(format!(
                "{sign}{}",
                shown(column, self.visits.median(case, column)?)
            ))
        });
        text += "\n";
        text += &self.table(", to plain", |case, column| {
            ratio_text(self.visits.ratio(case, Case::Plain, column))
        });
        text += "\n";
        text += &self.table(", to userspace", |case, column| {
            ratio_text(self.visits.ratio(case, case.reference()?, column))
        });
        text += &format!(
            "\nUDP: highest rate with at most {} % loss; ≥: the sender could send no faster. \
             RTT: {} echo requests a millisecond apart.\n",
            TOLERATED * 100.0,
            self.visits
                .all()
                .first()
                .map_or(0, |visit| visit.measures.idle.sent)
        );
        let busy = self.visits.busy();
        if busy > 0.05 {
            text += &format!(
                "Other programs used {:.0} % of the processors (median before each visit): \
                 compare ratios, not figures.\n",
                busy * 100.0
            );
        }
        for skipped in &self.visits.skipped {
            text += &format!("Left out: {}: {}\n", skipped.case, skipped.reason);
        }
        text
    }

    fn table(&self, what: &str, cell: impl Fn(Case, &Column) -> Option<String>) -> String {
        let mut text = format!("| engine and suite{what} |");
        for column in &COLUMNS {
            text += &format!(" {} |", column.title);
        }
        text += "\n|---|";
        text += &"---:|".repeat(COLUMNS.len());
        text += "\n";
        for case in &self.visits.cases() {
            let cells: Vec<Option<String>> =
                COLUMNS.iter().map(|column| cell(*case, column)).collect();
            // A row without anything to compare with says nothing.
            if cells.iter().all(Option::is_none) {
                continue;
            }
            text += &format!("| {case} |");
            for cell in cells {
                text += &format!(" {} |", cell.unwrap_or_default());
            }
            text += "\n";
        }
        text
    }

    /// Everything, single visits included.
    pub fn to_json(&self) -> Value {
        let columns = |value: &dyn Fn(&Column) -> Option<f64>| -> Value {
            COLUMNS
                .iter()
                .map(|column| (column.name.to_owned(), json!(value(column))))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        let cases: Vec<Value> = self
            .visits
            .cases()
            .into_iter()
            .map(|case| {
                let (engine, suite) = names(case);
                let limited: Vec<&str> = COLUMNS
                    .iter()
                    .filter(|column| self.visits.limited(case, column))
                    .map(|column| column.name)
                    .collect();
                json!({
                    "engine": engine,
                    "suite": suite,
                    "median": columns(&|column| self.visits.median(case, column)),
                    "ratio_to_plain": columns(&|column| self.visits.ratio(case, Case::Plain, column)),
                    "ratio_to_userspace": columns(&|column| {
                        self.visits.ratio(case, case.reference()?, column)
                    }),
                    "sender_limited": limited,
                    "visits": self.visits.of(case).map(|visit| {
                        let it = &visit.measures;
                        json!({
                            "repetition": visit.rep + 1,
                            "values": columns(&|column| (column.value)(it)),
                            "udp64_loss": it.small.loss,
                            "udp1372_loss": it.large.loss,
                            "pings_lost": [it.idle.sent - it.idle.received, it.loaded.sent - it.loaded.received],
                            "busy_before": visit.busy_before,
                        })
                    }).collect::<Vec<_>>(),
                })
            })
            .collect();
        let skipped: Vec<Value> = self
            .visits
            .skipped
            .iter()
            .map(|skipped| {
                let (engine, suite) = names(skipped.case);
                json!({"engine": engine, "suite": suite, "reason": skipped.reason})
            })
            .collect();
        json!({
            "kernel": machine::kernel(),
            "processor": machine::processor(),
            "processors": machine::processors(),
            "repetitions": self.reps,
            "tolerated_loss": TOLERATED,
            "cases": cases,
            "skipped": skipped,
        })
    }
}

fn names(case: Case) -> (&'static str, Option<&'static str>) {
    match case {
        Case::Plain => ("plain", None),
        Case::Tunnel { engine, suite } => (engine, Some(suite)),
    }
}

fn ratio_text(ratio: Option<f64>) -> Option<String> {
    Some(format!("{:.2}", ratio?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::visits::{Skipped, Visit};

    const USERSPACE: Case = Case::Tunnel {
        engine: "userspace",
        suite: "aes256gcm16",
    };
    const XFRM: Case = Case::Tunnel {
        engine: "xfrm",
        suite: "aes256gcm16",
    };

    fn measures(scale: f64, sender_limited: bool) -> Measures {
        let highest = Highest {
            pps: 100_000.0 * scale,
            loss: 0.001,
            sender_limited,
        };
        let trips = RoundTrips {
            sent: 1000,
            received: 998,
            p50_us: 40.0 * scale,
            p99_us: 90.0 * scale,
        };
        Measures {
            small: highest,
            large: highest,
            tcp_gbps: 4.0 * scale,
            idle: trips,
            loaded: trips,
        }
    }

    fn results() -> Results {
        let mut results = Results::new(2);
        // The machine was half as fast in the second repetition.
        for (rep, speed) in [(0, 1.0), (1, 0.5)] {
            for (case, measures) in [
                (Case::Plain, measures(8.0 * speed, true)),
                (USERSPACE, measures(2.0 * speed, false)),
                (XFRM, measures(1.0 * speed, false)),
            ] {
                results.visits.add(Visit {
                    rep,
                    case,
                    measures,
                    busy_before: 0.2,
                });
            }
        }
        results.visits.skipped.push(Skipped {
            case: Case::Tunnel {
                engine: "ebpf",
                suite: "aes256gcm16",
            },
            reason: "not carried".to_owned(),
        });
        results
    }

    #[test]
    fn tables_and_json_say_the_same() {
        let results = results();
        let text = results.to_markdown();
        for expected in [
            "| plain forwarding | ≥ 600 | ≥ 600 | 24.00 | 240 | 540 | 240 | 540 |",
            "| xfrm aes256gcm16 | 75 | 75 | 3.00 | 30 | 68 | 30 | 68 |",
            "| xfrm aes256gcm16 | 0.12 | 0.12 |",
            "| xfrm aes256gcm16 | 0.50 | 0.50 |",
            "Left out: ebpf aes256gcm16: not carried",
            "Other programs used 20 %",
        ] {
            assert!(text.contains(expected), "no \"{expected}\" in\n{text}");
        }
        // Plain forwarding has no place in the comparison with the userspace engine.
        assert_eq!(text.matches("| plain forwarding |").count(), 2, "{text}");
        let json = results.to_json();
        assert_eq!(json["cases"][2]["engine"], "xfrm");
        assert_eq!(json["cases"][2]["median"]["tcp_gbit_s"], 3.0);
        assert_eq!(json["cases"][2]["ratio_to_userspace"]["udp64_pps"], 0.5);
        assert_eq!(json["cases"][2]["visits"][1]["pings_lost"][0], 2);
        assert_eq!(json["cases"][0]["suite"], Value::Null);
        assert_eq!(json["skipped"][0]["reason"], "not carried");
    }
}
