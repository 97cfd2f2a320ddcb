//! Two gateways with recording data planes, joined without sockets: configuration files in,
//! answers of the control socket and commands to the data plane out.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use espada_common::sa::{ChildSaId, ChildSaStats, Command, HalfSaStats};
use espada_dataplane::mock::{MockBackend, Record};
use espada_ike::Transmit;
use tokio::sync::mpsc;

use super::SystemRandom;
use super::gateway::Gateway;
use super::plane::{Plane, Unobserved};
use crate::config::{self, GatewayConfig, SecretsPolicy};
use crate::control::{Answer, Request};
use crate::status::Report;

const A: &str = "192.0.2.1";
const B: &str = "192.0.2.2";

struct Setting<'a> {
    ours: &'a str,
    theirs: &'a str,
    esp: &'a str,
    secret: &'a str,
    subnets: [&'a str; 2],
}

impl Setting<'_> {
    fn load(&self) -> GatewayConfig {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("gw.toml");
        let [local, remote] = self.subnets;
        let (ours, theirs, esp) = (self.ours, self.theirs, self.esp);
        // Whoever is called by a name is still known by its address.
        let id = if theirs == A { A } else { B };
        let text = format!(
            "[dataplane]\nwan = \"eth0\"\n[connection.site]\n\
             local = {{ address = \"{ours}\", subnets = \"{local}\" }}\n\
             remote = {{ address = \"{theirs}\", id = \"{id}\", subnets = \"{remote}\" }}\n\
             ike = \"aes128gcm16-prfsha256-x25519\"\nesp = \"{esp}\"\n"
        );
        std::fs::write(&file, text).unwrap();
        let secrets = folder.path().join("secrets.toml");
        let text = format!(
            "[[psk]]\nids = [\"{A}\", \"{B}\"]\nsecret = \"{}\"\n",
            self.secret
        );
        std::fs::write(&secrets, text).unwrap();
        std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o600)).unwrap();
        config::load(&file, SecretsPolicy::Required).unwrap()
    }
}

const AT_A: Setting<'_> = Setting {
    ours: A,
    theirs: B,
    esp: "aes128gcm16",
    secret: "correct horse battery staple",
    subnets: ["10.1.0.0/24", "10.2.0.0/24"],
};

const AT_B: Setting<'_> = Setting {
    ours: B,
    theirs: A,
    subnets: ["10.2.0.0/24", "10.1.0.0/24"],
    ..AT_A
};

struct End {
    gateway: Gateway<SystemRandom>,
    record: Record,
}

impl End {
    fn new(now: Instant, setting: &Setting<'_>) -> Self {
        Self::with(now, setting, MockBackend::default())
    }

    /// Kills it and starts another on the data plane it leaves behind.
    fn restart(&mut self, now: Instant, setting: &Setting<'_>) {
        *self = Self::with(now, setting, self.record.successor());
    }

    fn with(now: Instant, setting: &Setting<'_>, backend: MockBackend) -> Self {
        Self::over(now, setting, backend, true)
    }

    fn over(
        now: Instant,
        setting: &Setting<'_>,
        backend: MockBackend,
        udp_is_faster: bool,
    ) -> Self {
        let record = backend.record();
        let plane = Plane {
            backend: Box::new(backend),
            reason: "a test".to_owned(),
            engines: Vec::new(),
            udp_is_faster,
            xsk: None,
            workers: None,
            lans: Vec::new(),
            observer: Box::new(Unobserved),
        };
        let boot = crate::syscall::boot_time().unwrap();
        let gateway = Gateway::new(now, boot, setting.load(), SystemRandom, plane);
        Self { gateway, record }
    }

    fn ask(&mut self, now: Instant, request: Request) -> mpsc::Receiver<Answer> {
        let (sender, answers) = mpsc::channel(64);
        self.gateway.call(now, request, sender);
        answers
    }

    fn report(&mut self, now: Instant) -> Report {
        self.gateway.report(now)
    }
}

struct Pair {
    a: End,
    b: End,
    now: Instant,
}

impl Pair {
    fn new(a: &Setting<'_>, b: &Setting<'_>) -> Self {
        let now = Instant::now();
        let mut pair = Self {
            a: End::new(now, a),
            b: End::new(now, b),
            now,
        };
        pair.settle();
        pair
    }

    /// Passes datagrams back and forth until there are none, without letting time pass.
    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for from_a in [true, false] {
                let (from, to) = if from_a {
                    (&mut self.a, &mut self.b)
                } else {
                    (&mut self.b, &mut self.a)
                };
                let mut sent: Vec<Transmit> = Vec::new();
                from.gateway
                    .drive(self.now, |transmit| sent.push(transmit.clone()));
                for transmit in sent {
                    quiet = false;
                    to.gateway.datagram(
                        self.now,
                        transmit.remote,
                        transmit.local,
                        &transmit.payload,
                    );
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn up(&mut self) -> Vec<Answer> {
        let request = Request::Up {
            connection: "site".to_owned(),
            wait: true,
        };
        let answers = self.a.ask(self.now, request);
        self.settle();
        drain(answers)
    }
}

fn drain(mut answers: mpsc::Receiver<Answer>) -> Vec<Answer> {
    std::iter::from_fn(|| answers.try_recv().ok()).collect()
}

fn last(answers: &[Answer]) -> &Answer {
    answers.last().expect("an answer")
}

#[test]
fn up_status_down() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    assert_eq!(pair.a.report(pair.now).connections[0].state, "down");
    assert!(matches!(
        pair.a.record.commands().as_slice(),
        [Command::InstallPolicy(_)]
    ));

    let answers = pair.up();
    let Answer::Done { message } = last(&answers) else {
        panic!("{answers:?}")
    };
    assert!(
        message.starts_with("site: established; child SA"),
        "{message}"
    );
    assert!(
        matches!(&answers[0], Answer::Progress { message } if message.contains("initiating from 192.0.2.1:500"))
    );

    let id = pair.a.record.installed()[0];
    let carried = HalfSaStats {
        packets: 3,
        bytes: 252,
        last_used: Some(pair.now),
        ..HalfSaStats::default()
    };
    pair.a.record.set_stats(ChildSaStats {
        id,
        inbound: carried,
        outbound: HalfSaStats::default(),
    });
    let (at_a, at_b) = (pair.a.report(pair.now), pair.b.report(pair.now));
    let (at_a, at_b) = (&at_a.connections[0], &at_b.connections[0]);
    assert_eq!(
        (at_a.state.as_str(), at_b.state.as_str()),
        ("established", "established")
    );
    let (ike_a, ike_b) = (at_a.ike.as_ref().unwrap(), at_b.ike.as_ref().unwrap());
    assert_eq!(
        (&ike_a.spi_initiator, &ike_a.spi_responder),
        (&ike_b.spi_initiator, &ike_b.spi_responder)
    );
    assert_eq!(
        (ike_a.role.as_str(), ike_b.role.as_str()),
        ("initiator", "responder")
    );
    assert!(ike_a.establish_ms.is_some());
    assert_eq!(at_a.children[0].inbound.spi, at_b.children[0].outbound.spi);
    assert_eq!(
        (
            at_a.children[0].inbound.packets,
            at_a.children[0].inbound.bytes
        ),
        (3, 252)
    );
    assert_eq!(at_a.children[0].local_ts, ["10.1.0.0/24"]);
    assert_eq!(at_a.children[0].mode, "tunnel");

    let again = pair.up();
    assert_eq!(
        last(&again),
        &Answer::Done {
            message: "site: established already".to_owned()
        }
    );

    let request = Request::Down {
        connection: "site".to_owned(),
        wait: true,
    };
    let answers = pair.a.ask(pair.now, request);
    pair.settle();
    assert_eq!(
        last(&drain(answers)),
        &Answer::Done {
            message: "site: down".to_owned()
        }
    );
    assert!(pair.a.record.installed().is_empty() && pair.b.record.installed().is_empty());
    assert_eq!(pair.b.report(pair.now).connections[0].state, "down");
}

#[test]
fn esp_goes_in_udp_where_both_data_planes_are_faster_so() {
    for (fast_at_a, fast_at_b) in [(true, true), (true, false), (false, true)] {
        let mut pair = Pair::new(&AT_A, &AT_B);
        pair.a = End::over(pair.now, &AT_A, MockBackend::default(), fast_at_a);
        pair.b = End::over(pair.now, &AT_B, MockBackend::default(), fast_at_b);
        pair.up();
        let agreed = fast_at_a && fast_at_b;
        for end in [&mut pair.a, &mut pair.b] {
            let report = end.report(pair.now);
            let child = &report.connections[0].children[0];
            let (encapsulation, reason) = match agreed {
                true => ("udp", Some("agreed")),
                false => ("esp", None),
            };
            assert_eq!(child.encapsulation, encapsulation);
            assert_eq!(child.udp_reason.as_deref(), reason);
            let text = report.to_text();
            let said = text.contains("ESP in UDP (agreed by both gateways) aes128gcm16");
            assert_eq!(said, agreed, "{text}");
        }
    }
}

#[test]
fn a_refusal_reaches_whoever_waits_and_the_status() {
    let other = Setting {
        esp: "aes256gcm16",
        ..AT_B
    };
    let mut pair = Pair::new(&AT_A, &other);
    let answers = pair.up();
    let Answer::Refused { error } = last(&answers) else {
        panic!("{answers:?}")
    };
    assert_eq!(error.kind, "NO_PROPOSAL_CHOSEN");
    let fix = error.fix.as_ref().unwrap();
    assert_eq!(fix.setting, "esp");
    assert!(
        fix.origin.as_ref().unwrap().ends_with("gw.toml:7"),
        "{fix:?}"
    );
    assert_eq!(fix.current.as_deref(), Some("\"aes128gcm16\""));
    let report = pair.b.report(pair.now);
    assert_eq!(report.connections[0].state, "refused");
    let details = report.connections[0]
        .last_error
        .as_ref()
        .unwrap()
        .details
        .join("\n");
    assert!(
        details.contains("aes128gcm16") && details.contains("aes256gcm16"),
        "{details}"
    );
}

#[test]
fn what_the_data_plane_refuses_is_not_called_established() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.a.record.refuse_next("no such cipher");
    let answers = pair.up();
    let Answer::Refused { error } = last(&answers) else {
        panic!("{answers:?}")
    };
    assert_eq!(error.kind, "DATAPLANE");
    assert!(
        error.summary.contains("install child SA") && error.summary.contains("no such cipher"),
        "{error}"
    );
    assert_eq!(pair.a.report(pair.now).connections[0].state, "refused");
    assert_eq!(pair.b.report(pair.now).connections[0].state, "down");
    assert!(pair.b.record.installed().is_empty(), "the peer was told");
    // The next attempt goes well, and the error is forgotten.
    assert!(matches!(last(&pair.up()), Answer::Done { .. }));
    let report = pair.a.report(pair.now);
    assert_eq!(
        (
            report.connections[0].state.as_str(),
            &report.connections[0].last_error
        ),
        ("established", &None)
    );
}

#[test]
fn unknown_connections_are_answered_with_the_known() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    for request in [
        Request::Up {
            connection: "siet".to_owned(),
            wait: true,
        },
        Request::Down {
            connection: "siet".to_owned(),
            wait: true,
        },
        Request::Status {
            connection: Some("siet".to_owned()),
        },
    ] {
        let answers = drain(pair.a.ask(pair.now, request));
        let [Answer::Failed { message }] = answers.as_slice() else {
            panic!("{answers:?}")
        };
        assert_eq!(message, "no connection is called `siet`; there are: site");
    }
}

#[test]
fn a_reload_keeps_the_tunnel_and_takes_the_new_in() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.up();
    let before = pair.a.record.installed();
    let message = pair.a.gateway.reload(pair.now, AT_A.load());
    assert_eq!(message, "configuration read again: 1 connections");
    pair.settle();
    assert_eq!(pair.a.record.installed(), before);
    let mut changed = AT_A.load();
    changed.dataplane.mss_clamp = false;
    assert!(
        pair.a
            .gateway
            .reload(pair.now, changed)
            .contains("wait for a restart")
    );
}

#[test]
fn stopping_tells_the_peer() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.up();
    pair.a.gateway.stop(pair.now);
    assert!(!pair.a.gateway.is_stopped());
    pair.settle();
    assert!(pair.a.gateway.is_stopped());
    assert!(pair.b.record.installed().is_empty());
}

#[test]
fn carried_packets_are_proof_of_life() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.up();
    let id = pair.a.record.installed()[0];
    let mut asked = 0;
    for _ in 0..100 {
        pair.now += Duration::from_secs(1);
        let carried = HalfSaStats {
            packets: 1,
            last_used: Some(pair.now),
            ..HalfSaStats::default()
        };
        pair.a.record.set_stats(ChildSaStats {
            id,
            inbound: carried,
            outbound: HalfSaStats::default(),
        });
        pair.a.gateway.report_traffic(pair.now);
        pair.a.gateway.timeout(pair.now);
        pair.a.gateway.drive(pair.now, |_| asked += 1);
    }
    assert_eq!(
        asked, 0,
        "a peer that sends packets is not asked whether it lives"
    );
    pair.now += Duration::from_secs(31);
    pair.a.gateway.timeout(pair.now);
    pair.a.gateway.drive(pair.now, |_| asked += 1);
    assert_eq!(asked, 1, "a silent one is");
}

#[test]
fn a_killed_daemon_is_followed_by_one_that_goes_on() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.up();
    for of_a in [true, false] {
        let before = pair.a.report(pair.now).connections[0].clone();
        let end = if of_a { &mut pair.a } else { &mut pair.b };
        let commands = end.record.commands().len();
        assert_eq!(end.record.kept().len(), 1);
        end.restart(pair.now, if of_a { &AT_A } else { &AT_B });
        pair.settle();
        let end = if of_a { &mut pair.a } else { &mut pair.b };
        assert!(
            matches!(
                &end.record.commands()[commands..],
                [Command::InstallPolicy(_)]
            ),
            "the pair is not touched"
        );
        let after = pair.a.report(pair.now).connections[0].clone();
        let spis = |ike: &Option<crate::status::IkeSa>| {
            let ike = ike.as_ref().unwrap();
            (ike.spi_initiator.clone(), ike.spi_responder.clone())
        };
        assert_eq!(spis(&before.ike), spis(&after.ike));
        assert_eq!(
            before.children[0].inbound.spi,
            after.children[0].inbound.spi
        );
        assert_eq!(
            after.children[0].mode, "tunnel",
            "it knows that it is installed"
        );
    }
    let request = Request::Down {
        connection: "site".to_owned(),
        wait: true,
    };
    let answers = pair.a.ask(pair.now, request);
    pair.settle();
    assert!(matches!(last(&drain(answers)), Answer::Done { .. }));
    for end in [&pair.a, &pair.b] {
        assert!(end.record.installed().is_empty());
        assert!(end.record.kept().is_empty());
    }
}

#[test]
fn states_and_pairs_that_do_not_go_together_are_sorted_out() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    pair.up();
    let lost = pair.a.record.installed()[0];
    pair.a.record.lose(lost);
    pair.a.record.find(ChildSaId(40));
    pair.a.restart(pair.now, &AT_A);
    pair.settle();
    assert_eq!(pair.a.record.installed(), [ChildSaId(41)]);
    assert_eq!(pair.b.record.installed().len(), 1);
    let (at_a, at_b) = (pair.a.report(pair.now), pair.b.report(pair.now));
    assert_eq!(
        at_a.connections[0].children[0].inbound.spi,
        at_b.connections[0].children[0].outbound.spi
    );
    // Another configuration: the peer is told, and nothing is left of it.
    let other = Setting {
        subnets: ["10.9.0.0/24", "10.2.0.0/24"],
        ..AT_A
    };
    pair.a.restart(pair.now, &other);
    pair.settle();
    for end in [&pair.a, &pair.b] {
        assert!(end.record.installed().is_empty());
        assert!(end.record.kept().is_empty());
    }
}

#[test]
fn a_state_is_stored_before_the_answer_leaves_and_forgotten_at_the_end() {
    let mut pair = Pair::new(&AT_A, &AT_B);
    let request = Request::Up {
        connection: "site".to_owned(),
        wait: false,
    };
    pair.a.ask(pair.now, request);
    let mut kept = Vec::new();
    for _ in 0..2 {
        for from_a in [true, false] {
            let (from, to) = if from_a {
                (&mut pair.a, &mut pair.b)
            } else {
                (&mut pair.b, &mut pair.a)
            };
            let record = from.record.clone();
            let mut sent = Vec::new();
            from.gateway.drive(pair.now, |transmit| {
                kept.push((record.installed().len(), record.kept().len()));
                sent.push(transmit.clone());
            });
            for transmit in sent {
                let (local, remote) = (transmit.remote, transmit.local);
                to.gateway
                    .datagram(pair.now, local, remote, &transmit.payload);
            }
        }
    }
    assert_eq!(kept, [(0, 0), (0, 0), (0, 0), (1, 1)]);
    pair.settle();
    // The peer does not hear of it; the next daemon does not go on all the same.
    pair.a.gateway.stop(pair.now);
    pair.a.gateway.drive(pair.now, |_| {});
    pair.a.gateway.forget();
    pair.a.gateway.drive(pair.now, |_| {});
    assert!(pair.a.record.kept().is_empty());
}

#[test]
fn a_peer_known_by_name_is_taken_over_before_its_name_is_looked_up() {
    let named = Setting {
        theirs: "b.example",
        ..AT_A
    };
    let mut pair = Pair::new(&named, &AT_B);
    let host = "b.example".to_owned();
    pair.a.gateway.resolve(pair.now, host, B.parse().unwrap());
    pair.up();
    assert_eq!(pair.a.report(pair.now).connections[0].state, "established");
    let commands = pair.a.record.commands().len();
    pair.a.restart(pair.now, &named);
    pair.settle();
    assert_eq!(pair.a.report(pair.now).connections[0].state, "established");
    assert_eq!(pair.a.record.commands().len(), commands + 1);
}
