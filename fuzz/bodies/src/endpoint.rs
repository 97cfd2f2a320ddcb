//! Two IKE endpoints with an attacker between them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use espada_common::sa::{Event, Mode, SecretBytes};
use espada_ike::config::*;
use espada_ike::proposal::Proposal;
use espada_ike::{Endpoint, Random, Transmit, selector};

use crate::input::{Input, Noise};

const A: &str = "192.0.2.1";
const B: &str = "198.51.100.2";
/// Steps of a run; settling afterwards takes as many as it takes.
const STEPS: usize = 60;

struct Rng(Noise);

impl Random for Rng {
    fn fill(&mut self, buffer: &mut [u8]) {
        self.0.fill(buffer);
    }
}

/// What the attacker sees of the two.
struct Network {
    ends: [Endpoint<Rng>; 2],
    now: Instant,
    /// Datagrams on their way, with which end they go to.
    under_way: VecDeque<(usize, Transmit)>,
}

/// Each octet says what happens next: a datagram arrives, is lost, damaged, cut short, repeated or late; another
/// comes from outside; time passes; an end begins something. At the end the two, left alone, understand each
/// other.
pub fn body(input: &[u8]) {
    let mut input = Input::new(input);
    let mut network = Network::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        network.step(&mut input);
    }
    // Peers that are out of step find out by dead peer detection or the end of retransmissions.
    network.run(Duration::from_secs(900));
    for end in &network.ends {
        let status = end.status(network.now);
        let mut sas = status.iter().flat_map(|connection| &connection.ike_sas);
        assert!(sas.any(|sa| !sa.children.is_empty()), "{status:?}");
    }
}

/// A connection from `local` to `remote` that starts as it is said.
fn connection(local: &str, remote: &str, start: StartAction, choice: u8) -> ConnectionConfig {
    let ike = [
        "aes256gcm16-prfsha256-x25519",
        "aes128-sha256-x25519",
        "chacha20poly1305-prfsha512-x25519",
    ][usize::from(choice) % 3];
    let lifetime = Lifetime {
        soft: Duration::from_secs(4 * 3600),
        hard: Duration::from_secs(5 * 3600),
        jitter: Duration::from_secs(600),
    };
    let side = |address: &str| {
        // Enough that IKE_AUTH goes in fragments.
        let count = if choice & 0x80 == 0 { 1 } else { 60 };
        let net = if address == A { 1 } else { 2 };
        let each = (0..count).map(|index| selector::parse(&format!("10.{net}.0.{index}/32")));
        each.map(|selector| selector.expect("a subnet")).collect()
    };
    ConnectionConfig {
        name: "site".into(),
        local_address: Some(local.parse().expect("an address")),
        remote_address: RemoteAddress::Address(remote.parse().expect("an address")),
        remote_port: 500,
        local_id: None,
        remote_id: RemoteIdentity::Address,
        local_auth: LocalAuth::Psk,
        send_cert: SendCert::Always,
        remote_auth: RemoteAuth::Psk,
        ppk: None,
        sha1_signatures: false,
        ike: vec![Proposal::parse_ike(ike, false).expect("a proposal")],
        esp: vec![Proposal::parse_esp("aes256gcm16", false).expect("a proposal")],
        mode: Mode::Tunnel,
        local_ts: side(local),
        remote_ts: side(remote),
        dpd: Some(Dpd {
            delay: Duration::from_secs(30),
            action: DpdAction::Restart,
        }),
        start,
        keying_tries: 0,
        encapsulation: EncapsulationPolicy::Auto,
        replay_window: 64,
        processors: None,
        ike_lifetime: lifetime,
        child_lifetime: lifetime,
        vips: Vec::new(),
        pools: Vec::new(),
        childless: Childless::Allow,
        mobike: choice & 0x40 != 0,
        single_pairs: false,
        child_bytes: None,
        child_packets: None,
        origin: SettingOrigin::default(),
    }
}

impl Network {
    fn new(input: &mut Input<'_>) -> Self {
        let now = Instant::now();
        let choice = input.octet();
        let mut ends = [(A, B, StartAction::Start), (B, A, StartAction::None)].map(
            |(local, remote, start)| {
                let settings = EndpointConfig {
                    fragment_size: Some(576),
                    ..EndpointConfig::default()
                };
                let seed = Noise::new(u64::from(local == A));
                let mut end = Endpoint::new(settings, Rng(seed));
                end.set_wall_clock(now, Duration::from_secs(1_800_000_000));
                end.set_secrets(vec![PskSecret {
                    ids: Vec::new(),
                    secret: SecretBytes::new(b"a secret between the two".to_vec()),
                    origin: "secrets.toml:1".to_owned(),
                }]);
                end.set_connections(now, vec![connection(local, remote, start, choice)]);
                end
            },
        );
        ends[0].handle_timeout(now);
        let mut network = Self {
            ends,
            now,
            under_way: VecDeque::new(),
        };
        network.poll();
        network
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.octet() % 16 {
            0..=5 => self.deliver(),
            6 => drop(self.under_way.pop_front()),
            7 => {
                if let Some((_, transmit)) = self.under_way.front_mut() {
                    let at = usize::from(input.word()) % transmit.payload.len().max(1);
                    let mask = input.octet();
                    if let Some(octet) = transmit.payload.get_mut(at) {
                        *octet ^= mask;
                    }
                }
            }
            8 => {
                if let Some((_, transmit)) = self.under_way.front_mut() {
                    transmit.payload.truncate(input.word().into());
                }
            }
            9 => self.under_way.extend(self.under_way.front().cloned()),
            10 => {
                if !self.under_way.is_empty() {
                    self.under_way.rotate_left(1);
                }
            }
            11 => {
                let (to, length) = (input.below(2), input.octet());
                let octets = input.slice(length.into());
                self.arrive(to, octets);
            }
            12 => {
                // Another chain of payloads, whole, behind the header of one that is under way.
                let length = usize::from(input.octet());
                if let Some((to, transmit)) = self.under_way.front().cloned() {
                    let mut octets = transmit.payload;
                    octets.truncate(28);
                    octets.extend(input.slice(length));
                    let total = (octets.len() as u32).to_be_bytes();
                    if let Some(field) = octets.get_mut(24..28) {
                        field.copy_from_slice(&total);
                    }
                    if let Some(next) = octets.get_mut(16) {
                        *next = input.octet();
                    }
                    self.arrive(to, &octets);
                }
            }
            13 => self.wait(Duration::from_millis(100 * u64::from(input.octet()))),
            14 => {
                let end = &mut self.ends[input.below(2)];
                let children: Vec<_> = end
                    .status(self.now)
                    .iter()
                    .flat_map(|connection| &connection.ike_sas)
                    .flat_map(|sa| &sa.children)
                    .map(|child| child.id)
                    .collect();
                for id in children {
                    let hard = input.below(2) == 1;
                    end.handle_event(self.now, &Event::Expire { id, hard });
                }
                self.poll();
            }
            _ => {
                let end = &mut self.ends[input.below(2)];
                // It may be there already: then this is refused.
                let _ = end.initiate(self.now, "site");
                self.poll();
            }
        }
    }

    fn deliver(&mut self) {
        if let Some((to, transmit)) = self.under_way.pop_front()
            && !transmit.keepalive
        {
            self.ends[to].handle_datagram(
                self.now,
                transmit.remote,
                transmit.local,
                &transmit.payload,
            );
            self.poll();
        }
    }

    /// A datagram in the other end's name.
    fn arrive(&mut self, to: usize, octets: &[u8]) {
        let address = |end: usize| SocketAddr::new([A, B][end].parse().expect("an address"), 500);
        self.ends[to].handle_datagram(self.now, address(to), address(1 - to), octets);
        self.poll();
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        for end in &mut self.ends {
            end.handle_timeout(self.now);
        }
        self.poll();
    }

    /// Takes what the endpoints have.
    fn poll(&mut self) {
        for (index, end) in self.ends.iter_mut().enumerate() {
            while let Some(transmit) = end.poll_transmit() {
                self.under_way.push_back((1 - index, transmit));
            }
            while end.poll_command().is_some() {}
            while let Some(notice) = end.poll_notice() {
                let _ = notice.to_string();
            }
            while end.poll_saved().is_some() {}
        }
    }

    /// Time passes, and nothing is lost.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            while !self.under_way.is_empty() {
                self.deliver();
            }
            let deadlines = self.ends.iter().filter_map(Endpoint::poll_timeout);
            match deadlines.min().filter(|deadline| *deadline <= end) {
                Some(deadline) => {
                    let wait = deadline.saturating_duration_since(self.now);
                    self.wait(wait);
                }
                None => break,
            }
        }
        self.now = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seeded;

    #[test]
    fn attackers_of_all_kinds() {
        seeded::random(150, 120, body);
    }
}
