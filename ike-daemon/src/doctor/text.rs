//! The report for people.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::fact::{Answer, Fact};
use super::{Interface, Report};

/// Width that lists are wrapped at.
const WIDTH: usize = 100;
/// Width of the column of names.
const NAMES: usize = 20;

impl Report {
    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let host = &self.host;
        let _ = writeln!(
            text,
            "Espada {} on Linux {} ({})",
            self.version, host.kernel, host.architecture
        );
        self.write_host(&mut text);
        self.write_bpf(&mut text);
        for interface in &self.interfaces {
            write_interface(&mut text, interface);
        }
        for lan in &self.lan {
            section(&mut text, &format!("LAN interface {}", lan.name));
            fact(&mut text, "past the kernel", &lan.bypass);
            fact(&mut text, "AF_XDP zero copy", &lan.zero_copy);
        }
        self.write_ipsec(&mut text);
        self.write_network(&mut text);
        self.write_engines(&mut text);
        self.write_advice(&mut text);
        text
    }

    fn write_host(&self, text: &mut String) {
        let host = &self.host;
        section(text, "host");
        let mut processors = host.processors.to_string();
        if let Some(model) = &host.processor {
            processors = format!("{processors} × {model}");
        }
        line(text, "processors", &processors);
        let instructions = if host.instructions.is_empty() {
            "none for ciphers that the kernel names".to_owned()
        } else {
            host.instructions.join(" ")
        };
        line(text, "instructions", &instructions);
        if !host.inside.is_empty() {
            line(text, "inside", &host.inside.join(", "));
        }
        let mut privileges = match host.uid {
            0 => "root".to_owned(),
            uid => format!("user {uid}"),
        };
        if host.missing_capabilities.is_empty() {
            privileges.push_str(", with every capability that the daemon uses");
        } else {
            let _ = write!(
                privileges,
                ", without {}",
                host.missing_capabilities.join(", ")
            );
        }
        if !host.first_user_namespace {
            privileges.push_str(", in a user namespace");
        }
        line(text, "privileges", &privileges);
    }

    fn write_bpf(&self, text: &mut String) {
        section(text, "BPF");
        let of = |answer: Answer| {
            self.bpf
                .features
                .iter()
                .filter(move |feature| feature.present == answer)
        };
        let present: Vec<&str> = of(Answer::Yes).map(|feature| feature.name).collect();
        if !present.is_empty() {
            line(text, "there", &present.join(", "));
        }
        for feature in of(Answer::No) {
            let mut words = format!("since Linux {}", feature.since);
            if let Some(option) = feature.option {
                let _ = write!(words, " with {option}");
            }
            let _ = write!(words, "; for {}", feature.purpose);
            if !feature.needed_by.is_empty() {
                let _ = write!(words, "; needed by {}", feature.needed_by.join(", "));
            }
            line(text, &format!("no {}", feature.name), &words);
        }
        let whys: BTreeSet<&str> = of(Answer::Unknown)
            .filter_map(|feature| feature.detail.as_deref())
            .collect();
        for why in whys {
            let names: Vec<&str> = of(Answer::Unknown)
                .filter(|feature| feature.detail.as_deref() == Some(why))
                .map(|feature| feature.name)
                .collect();
            line(text, "?", &format!("{}: {why}", names.join(", ")));
        }
        fact(text, "front end", &self.bpf.front_end.accepted);
        let counted: Vec<String> = self
            .bpf
            .front_end
            .programs
            .iter()
            .filter_map(|program| {
                Some(format!(
                    "{} {}",
                    program.name, program.verified_instructions?
                ))
            })
            .collect();
        if !counted.is_empty() {
            line(
                text,
                "  verified",
                &format!("{} instructions", counted.join(", ")),
            );
        }
        fact(text, "BPF file system", &self.bpf.file_system);
    }

    fn write_ipsec(&self, text: &mut String) {
        let ipsec = &self.ipsec;
        section(text, "the kernel's own IPsec");
        fact(text, "XFRM", &ipsec.xfrm);
        fact(text, "ESP over IPv4", &ipsec.esp4);
        fact(text, "ESP over IPv6", &ipsec.esp6);
        fact(text, "xfrm interfaces", &ipsec.interface);
        fact(text, "SAs per processor", &ipsec.per_cpu);
        if !ipsec.algorithms.is_empty() {
            line(text, "ciphers in use", &ipsec.algorithms.join(", "));
        }
        let count = |number: Option<u32>| number.map_or("?".to_owned(), |n| n.to_string());
        line(
            text,
            "installed",
            &format!(
                "{} states, {} policies (of any program)",
                count(ipsec.states),
                count(ipsec.policies)
            ),
        );
    }

    fn write_network(&self, text: &mut String) {
        let network = &self.network;
        section(text, "network");
        fact(text, "/dev/net/tun", &network.tun);
        fact(text, "IPv6", &network.ipv6);
        fact(text, "forwards IPv4", &network.forward4);
        fact(text, "forwards IPv6", &network.forward6);
        let mut ports = Vec::new();
        for port in [500, 4500] {
            let holder = network.ike_ports.iter().find(|holder| holder.port == port);
            ports.push(match holder {
                None => format!("{port} free"),
                Some(holder) => format!(
                    "{port} held by {}",
                    holder.program.as_deref().unwrap_or("an unseen program")
                ),
            });
        }
        line(text, "UDP ports", &ports.join(", "));
    }

    fn write_engines(&self, text: &mut String) {
        section(text, "engines");
        for engine in &self.engines {
            let verdict = match engine.usable {
                Answer::Yes => "works",
                Answer::No => "does not work",
                Answer::Unknown => "not known",
            };
            line(text, engine.name, verdict);
            let details = match engine.usable {
                Answer::Yes => &engine.carries,
                _ => &engine.reasons,
            };
            let indent = " ".repeat(NAMES + 2);
            for detail in details {
                wrapped(text, &format!("{indent}- "), &format!("{indent}  "), detail);
            }
        }
        let auto = match self.auto {
            Some(name) => format!("takes {name}"),
            None => "finds no engine".to_owned(),
        };
        line(text, "engine = \"auto\"", &auto);
    }

    fn write_advice(&self, text: &mut String) {
        for (problem, title) in [(true, "to change"), (false, "to know")] {
            let mut items = self
                .advice
                .iter()
                .filter(|advice| advice.problem == problem)
                .peekable();
            if items.peek().is_some() {
                section(text, title);
            }
            for advice in items {
                wrapped(text, "  - ", "    ", &advice.text);
            }
        }
    }
}

fn write_interface(text: &mut String, interface: &Interface) {
    section(
        text,
        &format!("interface {} ({})", interface.name, interface.why),
    );
    let mut driver = interface
        .driver
        .clone()
        .or_else(|| interface.kind.clone())
        .unwrap_or_else(|| "none that it names".to_owned());
    if let Some(kind) = &interface.kind
        && *kind != driver
    {
        let _ = write!(driver, " (kind {kind})");
    }
    let plural = if interface.rx_queues == 1 { "" } else { "s" };
    line(
        text,
        "driver",
        &format!(
            "{driver}; MTU {}, {} receive queue{plural}",
            interface.mtu, interface.rx_queues
        ),
    );
    fact(text, "native XDP", &interface.native_xdp);
    fact(text, "AF_XDP zero copy", &interface.zero_copy);
    fact(text, "redirect target", &interface.redirect_target);
    fact(text, "ESP in hardware", &interface.esp_offload);
}

fn section(text: &mut String, title: &str) {
    let _ = writeln!(text, "\n{title}");
}

fn fact(text: &mut String, name: &str, fact: &Fact) {
    let words = match &fact.detail {
        Some(detail) => format!("{}, {detail}", fact.answer.word()),
        None => fact.answer.word().to_owned(),
    };
    line(text, name, &words);
}

/// A name and what there is to say about it, wrapped.
fn line(text: &mut String, name: &str, words: &str) {
    let first = format!("  {name:NAMES$}");
    let mut first = first.as_str();
    let indent = " ".repeat(NAMES + 2);
    // A name longer than its column stands on a line of its own.
    if name.chars().count() >= NAMES {
        let _ = writeln!(text, "{}", first.trim_end());
        first = &indent;
    }
    wrapped(text, first, &indent, words);
}

/// Wraps between words; the first line starts with `first`, the others with `indent`.
fn wrapped(text: &mut String, first: &str, indent: &str, words: &str) {
    let mut current = first.to_owned();
    let mut empty = true;
    for word in words.split(' ') {
        if !empty && current.chars().count() + 1 + word.chars().count() > WIDTH {
            let _ = writeln!(text, "{}", current.trim_end());
            current = indent.to_owned();
            empty = true;
        }
        if !empty {
            current.push(' ');
        }
        current.push_str(word);
        empty = false;
    }
    let _ = writeln!(text, "{}", current.trim_end());
}
