//! The results as JSON, and tables made from that JSON, be it of this run or of an earlier one.

use anyhow::{Context, Result};
use espada_tests::blast::TOLERATED;
use serde_json::{Map, Value, json};

use super::measure::{COLUMNS, CONGESTION_CONTROL, CPU, Column, Measures, Plan};
use super::systems::{INNER_MTU, System};
use crate::bench::machine;
use crate::bench::visits::{Visits, median};

/// Figures of the first table, in its order, with their headings and digits.
const FIGURES: [(&str, &str, usize); 12] = [
    ("tcp_1_gbps", "TCP 1 stream, Gbit/s", 2),
    ("tcp_4_gbps", "4 streams", 2),
    ("tcp_1_off_gbps", "1 stream, offloads off", 2),
    ("cpu_s_per_gb", "CPU-s per GB", 2),
    (ABOVE_PLAIN, "above plain", 2),
    ("cpu_off_s_per_gb", "CPU-s per GB, offloads off", 2),
    ("udp64_kpps", "UDP 64 B, kpps", 0),
    ("udp1372_kpps", "1372 B", 0),
    ("rtt_idle_p50_us", "RTT p50, µs", 0),
    ("rtt_idle_p99_us", "p99", 0),
    ("rtt_loaded_p50_us", "beside TCP p50, µs", 0),
    ("rtt_loaded_p99_us", "p99", 0),
];
/// Those that are compared with plain forwarding.
const RATIOS: [(&str, &str, usize); 5] = [
    ("tcp_1_gbps", "TCP 1 stream", 3),
    ("tcp_4_gbps", "4 streams", 3),
    ("tcp_1_off_gbps", "1 stream, offloads off", 3),
    ("udp64_kpps", "UDP 64 B", 3),
    ("udp1372_kpps", "1372 B", 3),
];
const ABOVE_PLAIN: &str = "cpu_s_per_gb_above_plain";

/// A system that was measured, with what it calls itself.
pub type Version = (System, String);

/// All of it.
pub fn to_json(
    visits: &Visits<System, Measures>,
    versions: &[Version],
    plan: &Plan,
    reps: u32,
    date: &str,
) -> Value {
    let others = visits.all().iter().filter_map(|it| it.measures.others);
    let systems: Vec<Value> = System::ALL
        .into_iter()
        .filter(|system| visits.of(*system).next().is_some())
        .map(|system| {
            let mut object = object(|column| visits.median(system, column));
            let ratios = object_of_ratios(visits, system);
            object.insert("name".into(), json!(system.name()));
            object.insert("path".into(), json!(system.path()));
            let version = versions.iter().find(|(other, _)| *other == system);
            object.insert("version".into(), json!(version.map(|(_, text)| text)));
            let above = visits.difference(system, System::Plain, &CPU);
            object.insert(ABOVE_PLAIN.into(), json!(above));
            object.insert("ratio_to_plain".into(), ratios.into());
            let limited: Vec<&str> = COLUMNS
                .iter()
                .filter(|column| visits.limited(system, column))
                .map(|column| column.name)
                .collect();
            object.insert("sender_limited".into(), json!(limited));
            let each: Vec<Value> = visits
                .of(system)
                .map(|visit| {
                    let it = &visit.measures;
                    json!({
                        "repetition": visit.rep + 1,
                        "values": object_of(it),
                        "udp64_loss": it.small.map(|highest| highest.loss),
                        "udp1372_loss": it.large.map(|highest| highest.loss),
                        "pings_lost": [it.idle.sent - it.idle.received, it.loaded.sent - it.loaded.received],
                        "others_before": visit.busy_before,
                        "others_during": it.others,
                    })
                })
                .collect();
            object.insert("visits".into(), each.into());
            object.into()
        })
        .collect();
    let skipped: Vec<Value> = visits
        .skipped
        .iter()
        .map(|it| json!({"name": it.case.name(), "reason": it.reason}))
        .collect();
    json!({
        "date": date,
        "machine": machine::to_json(),
        "repetitions": reps,
        "tcp_seconds": plan.tcp,
        "udp_step_seconds": plan.step,
        "pings": plan.pings,
        "inner_mtu": INNER_MTU,
        "congestion_control": CONGESTION_CONTROL,
        "tolerated_loss": TOLERATED,
        "others_before": visits.busy(),
        "others_during": median(others.collect()),
        "systems": systems,
        "skipped": skipped,
    })
}

fn object(value: impl Fn(&Column) -> Option<f64>) -> Map<String, Value> {
    COLUMNS
        .iter()
        .map(|column| (column.name.to_owned(), json!(value(column))))
        .collect()
}

fn object_of(measures: &Measures) -> Map<String, Value> {
    object(|column| (column.value)(measures))
}

fn object_of_ratios(visits: &Visits<System, Measures>, system: System) -> Map<String, Value> {
    object(|column| visits.ratio(system, System::Plain, column))
}

/// The systems of a result.
pub fn systems(results: &Value) -> Result<&Vec<Value>> {
    results["systems"]
        .as_array()
        .context("the results have no list of systems")
}

/// Tables for people, with what they were measured on.
pub fn to_markdown(results: &Value) -> Result<String> {
    let systems = systems(results)?;
    let machine = &results["machine"];
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let mut out = format!(
        "{}: {}, {} processors, Linux {}; medians of {} repetitions. TCP {} s, UDP {} s a rate, {} \
         echo requests.\n\n",
        text(&results["date"]),
        text(&machine["processor"]),
        machine["processors"],
        text(&machine["kernel"]),
        results["repetitions"],
        results["tcp_seconds"],
        results["udp_step_seconds"],
        results["pings"],
    );
    out += &table("", &FIGURES, systems, |system, name, digits| {
        let value = system[name].as_f64()?;
        let limited = system["sender_limited"]
            .as_array()
            .is_some_and(|list| list.iter().any(|other| other == name));
        let sign = if limited { "≥ " } else { "" };
        Some(format!("{sign}{value:.digits$}"))
    });
    out += "\n";
    out += &table(" ÷ plain", &RATIOS, systems, |system, name, digits| {
        let value = system["ratio_to_plain"][name].as_f64()?;
        Some(format!("{value:.digits$}"))
    });
    out += "\n| system | path | version |\n|---|---|---|\n";
    for system in systems {
        out += &format!(
            "| {} | {} | {} |\n",
            text(&system["name"]),
            text(&system["path"]),
            text(&system["version"])
        );
    }
    out += "\nUDP ≥: the sender could send no faster; where plain forwarding has it, ratios to it are to that limit.\n";
    let percent = |name: &str| results[name].as_f64().map(|part| part * 100.0);
    if let Some(before) = percent("others_before") {
        out += &format!("\nOther programs used {before:.0} % of the processors before the visits");
        if let Some(during) = percent("others_during") {
            out += &format!(" and {during:.0} % during them");
        }
        out += " (medians).\n";
    }
    for skipped in results["skipped"].as_array().into_iter().flatten() {
        let (name, reason) = (text(&skipped["name"]), text(&skipped["reason"]));
        out += &format!("\nLeft out: {name}: {reason}\n");
    }
    Ok(out)
}

fn table(
    what: &str,
    columns: &[(&str, &str, usize)],
    systems: &[Value],
    cell: impl Fn(&Value, &str, usize) -> Option<String>,
) -> String {
    let mut text = format!("| system{what} |");
    for (_, title, _) in columns {
        text += &format!(" {title} |");
    }
    text += "\n|---|";
    text += &"---:|".repeat(columns.len());
    text += "\n";
    for system in systems {
        text += &format!("| {} |", system["name"].as_str().unwrap_or("?"));
        for (name, _, digits) in columns {
            let shown = cell(system, name, *digits).unwrap_or_else(|| "–".to_owned());
            text += &format!(" {shown} |");
        }
        text += "\n";
    }
    text
}

#[cfg(test)]
pub mod tests {
    use espada_tests::blast::Highest;
    use espada_tests::traffic::RoundTrips;

    use super::*;
    use crate::bench::e2e::measure::Tcp;
    use crate::bench::visits::{Skipped, Visit};

    /// The results of two repetitions, in the second of which the machine was half as fast.
    pub fn results() -> Value {
        let measures = |scale: f64, sender_limited: bool| {
            let tcp = Tcp {
                gbps: 2.0 * scale,
                cpu_s_per_gb: Some(6.0 / scale),
            };
            let highest = Highest {
                pps: 100_000.0 * scale,
                loss: 0.001,
                sender_limited,
            };
            let trips = RoundTrips {
                sent: 1000,
                received: 998,
                p50_us: 40.0 / scale,
                p99_us: 900.0 / scale,
            };
            Measures {
                tcp_1: tcp,
                tcp_4: tcp,
                tcp_1_off: tcp,
                small: Some(highest),
                large: sender_limited.then_some(highest),
                idle: trips,
                loaded: trips,
                others: Some(0.01),
            }
        };
        let mut visits = Visits::default();
        for (rep, speed) in [(0, 1.0), (1, 0.5)] {
            for (case, measures) in [
                (System::Plain, measures(8.0 * speed, true)),
                (System::EspadaUdp, measures(4.0 * speed, false)),
            ] {
                visits.add(Visit {
                    rep,
                    case,
                    measures,
                    busy_before: 0.02,
                });
            }
        }
        visits.skipped.push(Skipped {
            case: System::OpenVpn,
            reason: "not installed".to_owned(),
        });
        let plan = Plan {
            tcp: 5,
            step: 2.0,
            pings: 1000,
        };
        let versions = [(System::EspadaUdp, "espada 0.1.0".to_owned())];
        to_json(&visits, &versions, &plan, 2, "2026-01-02")
    }

    #[test]
    fn the_json_has_the_promised_shape() {
        let results = results();
        let espada = &systems(&results).unwrap()[1];
        assert_eq!(espada["name"], "espada-udp");
        assert!(espada["path"].as_str().unwrap().contains("ESP in UDP"));
        assert_eq!(espada["version"], "espada 0.1.0");
        for (name, expected) in [
            ("tcp_1_gbps", 6.0),
            ("tcp_4_gbps", 6.0),
            ("tcp_1_off_gbps", 6.0),
            ("cpu_s_per_gb", 2.25),
            ("cpu_s_per_gb_above_plain", 1.125),
            ("udp64_kpps", 300.0),
            ("rtt_idle_p99_us", 337.5),
            ("rtt_loaded_p99_us", 337.5),
        ] {
            assert_eq!(espada[name], expected, "{name}");
        }
        assert_eq!(espada["udp1372_kpps"], Value::Null, "none was carried");
        assert_eq!(espada["ratio_to_plain"]["tcp_1_gbps"], 0.5);
        assert_eq!(espada["visits"][1]["values"]["tcp_1_gbps"], 4.0);
        assert_eq!(espada["visits"][0]["pings_lost"], json!([2, 2]));
        assert_eq!(results["systems"][0]["sender_limited"][0], "udp64_kpps");
        assert_eq!(results["skipped"][0]["name"], "openvpn");
        assert_eq!(results["others_before"], 0.02);
    }

    #[test]
    fn every_column_of_the_tables_is_in_the_json() {
        let results = results();
        for (name, _, _) in FIGURES.iter().chain(&RATIOS) {
            assert!(results["systems"][0][name].is_number(), "{name}");
        }
        for (name, _, _) in RATIOS {
            assert_eq!(results["systems"][0]["ratio_to_plain"][name], 1.0);
        }
    }

    #[test]
    fn tables_are_made_from_the_json() {
        let text = to_markdown(&results()).unwrap();
        for expected in [
            "medians of 2 repetitions",
            "| plain | 12.00 | 12.00 | 12.00 | 1.12 | 0.00 | 1.12 | ≥ 600 | ≥ 600 | 8 | 169 | 8 | 169 |",
            "| espada-udp | 6.00 | 6.00 | 6.00 | 2.25 | 1.12 | 2.25 | 300 | – |",
            "| espada-udp | 0.500 | 0.500 | 0.500 | 0.500 | – |",
            "| espada-udp | userspace engine, AES-256-GCM, ESP in UDP: TUN and UDP with GSO | espada 0.1.0 |",
            "Other programs used 2 % of the processors before the visits and 1 % during them",
            "Left out: openvpn: not installed",
        ] {
            assert!(text.contains(expected), "no \"{expected}\" in\n{text}");
        }
        assert!(to_markdown(&json!({})).is_err());
    }
}
