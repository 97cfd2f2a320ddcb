//! What `bench engines` measured: medians, ratios within each repetition, and how they are shown.

use std::fmt;

use espada_tests::blast::{Highest, TOLERATED};
use espada_tests::traffic::RoundTrips;
use serde_json::{Value, json};

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
    /// Part of the processors that others used just before, 0 to 1.
    pub busy_before: f64,
}

/// A column.
struct Column {
    /// Its name in JSON.
    name: &'static str,
    title: &'static str,
    value: fn(&Measures) -> f64,
    /// Whether the sender was the limit.
    limited: fn(&Measures) -> bool,
    digits: usize,
}

const COLUMNS: [Column; 7] = [
    Column {
        name: "udp64_pps",
        title: "64 B, kpps",
        value: |it| it.small.pps,
        limited: |it| it.small.sender_limited,
        digits: 0,
    },
    Column {
        name: "udp1372_pps",
        title: "1372 B, kpps",
        value: |it| it.large.pps,
        limited: |it| it.large.sender_limited,
        digits: 0,
    },
    Column {
        name: "tcp_gbit_s",
        title: "TCP, Gbit/s",
        value: |it| it.tcp_gbps,
        limited: |_| false,
        digits: 2,
    },
    Column {
        name: "rtt_p50_us",
        title: "RTT p50, µs",
        value: |it| it.idle.p50_us,
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "rtt_p99_us",
        title: "RTT p99, µs",
        value: |it| it.idle.p99_us,
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "loaded_rtt_p50_us",
        title: "beside TCP p50, µs",
        value: |it| it.loaded.p50_us,
        limited: |_| false,
        digits: 0,
    },
    Column {
        name: "loaded_rtt_p99_us",
        title: "beside TCP p99, µs",
        value: |it| it.loaded.p99_us,
        limited: |_| false,
        digits: 0,
    },
];

impl Column {
    fn shown(&self, value: f64) -> String {
        let value = if self.name.ends_with("_pps") {
            value / 1000.0
        } else {
            value
        };
        format!("{value:.*}", self.digits)
    }
}

/// A case that could not be measured.
#[derive(Clone, Debug)]
pub struct Skipped {
    /// Which.
    pub case: Case,
    /// Why.
    pub reason: String,
}

/// All visits.
#[derive(Debug)]
pub struct Results {
    reps: u32,
    cases: Vec<Case>,
    visits: Vec<(u32, Case, Measures)>,
    /// What could not be measured.
    pub skipped: Vec<Skipped>,
}

impl Results {
    /// Nothing yet.
    pub fn new(reps: u32) -> Self {
        Self {
            reps,
            cases: Vec::new(),
            visits: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// A visit.
    pub fn add(&mut self, rep: u32, case: &Case, measures: Measures) {
        if !self.cases.contains(case) {
            self.cases.push(*case);
        }
        self.visits.push((rep, *case, measures));
    }

    fn of(&self, case: Case) -> impl Iterator<Item = (u32, &Measures)> {
        self.visits
            .iter()
            .filter(move |(_, other, _)| *other == case)
            .map(|(rep, _, measures)| (*rep, measures))
    }

    fn at(&self, case: Case, rep: u32) -> Option<&Measures> {
        self.of(case)
            .find(|(other, _)| *other == rep)
            .map(|(_, measures)| measures)
    }

    fn median(&self, case: Case, column: &Column) -> Option<f64> {
        median(self.of(case).map(|(_, it)| (column.value)(it)).collect())
    }

    /// The median of the ratios within each repetition: what slows the whole machine down for a
    /// while slows both down.
    fn ratio(&self, case: Case, reference: Case, column: &Column) -> Option<f64> {
        let ratios = self.of(case).filter_map(|(rep, it)| {
            let reference = (column.value)(self.at(reference, rep)?);
            (reference > 0.0).then(|| (column.value)(it) / reference)
        });
        median(ratios.collect())
    }

    fn limited(&self, case: Case, column: &Column) -> bool {
        self.of(case).any(|(_, it)| (column.limited)(it))
    }

    fn busy(&self) -> f64 {
        let all = self.visits.iter().map(|(_, _, it)| it.busy_before);
        median(all.collect()).unwrap_or(0.0)
    }

    /// Three tables: medians, and the ratios to plain forwarding and to the userspace engine.
    pub fn to_markdown(&self) -> String {
        let mut text = format!(
            "Linux {}, {}, {} processors; medians of {} repetitions\n\n",
            read("/proc/sys/kernel/osrelease"),
            processor(),
            std::thread::available_parallelism().map_or(1, usize::from),
            self.reps
        );
        text += &self.table("", |case, column| {
            let sign = if self.limited(case, column) {
                "≥ "
            } else {
                ""
            };
            Some(format!(
                "{sign}{}",
                column.shown(self.median(case, column)?)
            ))
        });
        text += "\n";
        text += &self.table(", to plain", |case, column| {
            ratio_text(self.ratio(case, Case::Plain, column))
        });
        text += "\n";
        text += &self.table(", to userspace", |case, column| {
            ratio_text(self.ratio(case, case.reference()?, column))
        });
        text += &format!(
            "\nUDP: highest rate with at most {} % loss; ≥: the sender could send no faster. \
             RTT: {} echo requests a millisecond apart.\n",
            TOLERATED * 100.0,
            self.visits.first().map_or(0, |(_, _, it)| it.idle.sent)
        );
        let busy = self.busy();
        if busy > 0.05 {
            text += &format!(
                "Other programs used {:.0} % of the processors (median before each visit): \
                 compare ratios, not figures.\n",
                busy * 100.0
            );
        }
        for skipped in &self.skipped {
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
        for case in &self.cases {
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
            .cases
            .iter()
            .map(|&case| {
                let (engine, suite) = names(case);
                let limited: Vec<&str> = COLUMNS
                    .iter()
                    .filter(|column| self.limited(case, column))
                    .map(|column| column.name)
                    .collect();
                json!({
                    "engine": engine,
                    "suite": suite,
                    "median": columns(&|column| self.median(case, column)),
                    "ratio_to_plain": columns(&|column| self.ratio(case, Case::Plain, column)),
                    "ratio_to_userspace": columns(&|column| {
                        self.ratio(case, case.reference()?, column)
                    }),
                    "sender_limited": limited,
                    "visits": self.of(case).map(|(rep, it)| json!({
                        "repetition": rep + 1,
                        "values": columns(&|column| Some((column.value)(it))),
                        "udp64_loss": it.small.loss,
                        "udp1372_loss": it.large.loss,
                        "pings_lost": [it.idle.sent - it.idle.received, it.loaded.sent - it.loaded.received],
                        "busy_before": it.busy_before,
                    })).collect::<Vec<_>>(),
                })
            })
            .collect();
        let skipped: Vec<Value> = self
            .skipped
            .iter()
            .map(|skipped| {
                let (engine, suite) = names(skipped.case);
                json!({"engine": engine, "suite": suite, "reason": skipped.reason})
            })
            .collect();
        json!({
            "kernel": read("/proc/sys/kernel/osrelease"),
            "processor": processor(),
            "processors": std::thread::available_parallelism().map_or(1, usize::from),
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

/// The middle value; of an even number the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    if values.len() % 2 == 1 {
        return Some(upper);
    }
    Some((values.get(middle - 1)? + upper) / 2.0)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

fn processor() -> String {
    read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("?", |(_, model)| model)
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

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
            busy_before: 0.2,
        }
    }

    fn results() -> Results {
        let mut results = Results::new(2);
        // The machine was half as fast in the second repetition.
        for (rep, speed) in [(0, 1.0), (1, 0.5)] {
            results.add(rep, &Case::Plain, measures(8.0 * speed, true));
            results.add(rep, &USERSPACE, measures(2.0 * speed, false));
            results.add(rep, &XFRM, measures(1.0 * speed, false));
        }
        results.skipped.push(Skipped {
            case: Case::Tunnel {
                engine: "ebpf",
                suite: "aes256gcm16",
            },
            reason: "not carried".to_owned(),
        });
        results
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0]), Some(2.5));
    }

    #[test]
    fn ratios_are_taken_within_a_repetition() {
        let results = results();
        let tcp = &COLUMNS[2];
        assert_eq!(results.median(XFRM, tcp), Some(3.0));
        assert_eq!(results.ratio(XFRM, USERSPACE, tcp), Some(0.5));
        assert_eq!(results.ratio(XFRM, Case::Plain, tcp), Some(0.125));
        assert_eq!(results.ratio(USERSPACE, XFRM, tcp), Some(2.0));
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
