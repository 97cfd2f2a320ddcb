//! The kernel's own IPsec, for the xfrm engine.

use std::io;

use espada_dataplane::device;
use espada_dataplane::features::Presence;
use espada_dataplane::{nl, xfrm};
use serde::Serialize;

use super::fact::{Answer, Fact};
use super::host::Symbols;

/// What the kernel's IPsec can do.
#[derive(Clone, Debug, Serialize)]
pub struct Ipsec {
    /// States and policies can be set (XFRM and its netlink family).
    pub xfrm: Fact,
    /// ESP over IPv4.
    pub esp4: Fact,
    /// ESP over IPv6.
    pub esp6: Fact,
    /// Interfaces of kind `xfrm`.
    pub interface: Fact,
    /// SAs for single processors (RFC 9611).
    pub per_cpu: Fact,
    /// ESP's ciphers that are in use or were, in the kernel's names; it loads others when needed.
    pub algorithms: Vec<String>,
    /// States and policies in this network namespace, whoever's; `None` where they may not be seen.
    pub states: Option<u32>,
    /// See `states`.
    pub policies: Option<u32>,
}

const NETLINK_XFRM: isize = 6;

impl Ipsec {
    /// Looks, without installing anything.
    pub fn look(symbols: &Symbols) -> Self {
        let states = states();
        let xfrm = match &states {
            Ok(_) => Fact::plain(Answer::Yes),
            Err(error) => match error.raw_os_error() {
                // The family is there, and keeps its answers to root.
                Some(libc::EPERM) => Fact::plain(Answer::Yes),
                Some(libc::EPROTONOSUPPORT) => Fact::no("CONFIG_XFRM_USER is off in this kernel"),
                _ => Fact::unknown(error.to_string()),
            },
        };
        let looked = Self {
            xfrm,
            esp4: symbols.has("esp_init_state", "esp4", "CONFIG_INET_ESP"),
            esp6: symbols.has("esp6_init_state", "esp6", "CONFIG_INET6_ESP"),
            interface: match device::kind_supported("xfrm") {
                Presence::Present => Fact::plain(Answer::Yes),
                _ => symbols.has("xfrmi_newlink", "xfrm_interface", "CONFIG_XFRM_INTERFACE"),
            },
            per_cpu: Fact::unknown("it takes root to try"),
            algorithms: esp_algorithms(
                &std::fs::read_to_string("/proc/crypto").unwrap_or_default(),
            ),
            states: states.ok(),
            policies: policies().ok(),
        };
        looked.tried()
    }

    /// What the engine itself finds out by trying, where this user may try.
    fn tried(mut self) -> Self {
        let probe = xfrm::probe();
        if probe.netlink.is_ok() {
            let fact = |answer: &xfrm::Answer| match answer {
                Ok(()) => Fact::plain(Answer::Yes),
                Err(reason) => Fact::no(reason.clone()),
            };
            self.esp4 = fact(&probe.esp4);
            self.esp6 = fact(&probe.esp6);
            self.interface = fact(&probe.interface);
            self.per_cpu = if probe.per_cpu {
                Fact::plain(Answer::Yes)
            } else {
                Fact::no("Linux 6.13 brought them")
            };
        }
        self
    }

    /// Whether the xfrm engine can work: yes, no with the reason, or not known.
    pub fn usable(&self) -> Fact {
        let parts = [
            ("XFRM", "CONFIG_XFRM_USER", &self.xfrm),
            ("ESP over IPv4", "CONFIG_INET_ESP", &self.esp4),
            ("xfrm interfaces", "CONFIG_XFRM_INTERFACE", &self.interface),
        ];
        let with = |answer: Answer| parts.iter().filter(move |part| part.2.answer == answer);
        let lacking: Vec<&str> = with(Answer::No).map(|part| part.0).collect();
        if !lacking.is_empty() {
            let options: Vec<&str> = with(Answer::No).map(|part| part.1).collect();
            return Fact::no(format!(
                "this kernel lacks {}: use one with {}",
                lacking.join(" and "),
                options.join(" and ")
            ));
        }
        match with(Answer::Unknown).next() {
            Some((name, _, fact)) => Fact::unknown(format!("{name}: {}", fact.words())),
            None => Fact::plain(Answer::Yes),
        }
    }
}

/// `XFRM_MSG_GETSADINFO`: how many states there are.
fn states() -> io::Result<u32> {
    const XFRM_MSG_GETSADINFO: u16 = 0x23;
    const XFRMA_SAD_CNT: u16 = 1;
    let value = info(XFRM_MSG_GETSADINFO, XFRMA_SAD_CNT)?;
    nl::read_u32(&value).ok_or(io::ErrorKind::InvalidData.into())
}

/// `XFRM_MSG_GETSPDINFO`: how many policies there are, in, out and forward.
fn policies() -> io::Result<u32> {
    const XFRM_MSG_GETSPDINFO: u16 = 0x25;
    const XFRMA_SPD_INFO: u16 = 1;
    let value = info(XFRM_MSG_GETSPDINFO, XFRMA_SPD_INFO)?;
    let counts = value.chunks_exact(4).take(3).filter_map(nl::read_u32);
    Ok(counts.fold(0, u32::saturating_add))
}

fn info(question: u16, wanted: u16) -> io::Result<Vec<u8>> {
    let answers = nl::ask(NETLINK_XFRM, question, 0, &0u32.to_ne_bytes())?;
    let payload = answers.first().map(|answer| answer.payload.as_slice());
    // Flags come before the attributes.
    nl::attributes(payload.and_then(|payload| payload.get(4..)).unwrap_or(&[]))
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value.to_vec())
        .ok_or(io::ErrorKind::InvalidData.into())
}

/// AEADs and authenticated encryption that IPsec made the kernel put together.
pub(super) fn esp_algorithms(crypto: &str) -> Vec<String> {
    let mut names: Vec<String> = crypto
        .lines()
        .filter_map(|line| line.strip_prefix("name")?.trim().strip_prefix(':'))
        .map(str::trim)
        .filter(|name| {
            [
                "rfc4106(",
                "rfc4309(",
                "rfc4543(",
                "rfc7539esp(",
                "authenc(",
                "echainiv(",
            ]
            .iter()
            .any(|start| name.starts_with(start))
        })
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    names
}
