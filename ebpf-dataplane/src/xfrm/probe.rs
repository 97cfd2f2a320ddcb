//! What the kernel can do for the XFRM engine, found out by asking it, and what to do where it
//! cannot.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use espada_common::sa::{
    ChildSa, ChildSaId, Cipher, Encapsulation, EspSuite, GcmIcv, HalfSa, Integrity, Mode, Path,
    SecretBytes, Share,
};

use super::identity::{add_link, remove_link};
use super::socket::Requests;
use super::state::{self, Common, Settings, Side, StateId};
use crate::engine::Interface;
use crate::netlink::{Netlink, NetlinkError};

/// Whether something works, and if not, why and what to do.
pub type Answer = Result<(), String>;

/// Algorithms whose presence differs from kernel to kernel. Key lengths do not, as the kernel's AES
/// takes all three, and its rfc4106 takes all three ICVs.
const SUITES: [(Cipher, Option<Integrity>); 13] = [
    (Cipher::AesGcm(256, GcmIcv::Sixteen), None),
    (Cipher::ChaCha20Poly1305, None),
    (Cipher::AesCbc(256), Some(Integrity::HmacSha1_96)),
    (Cipher::AesCbc(256), Some(Integrity::HmacSha256_128)),
    (Cipher::AesCbc(256), Some(Integrity::HmacSha384_192)),
    (Cipher::AesCbc(256), Some(Integrity::HmacSha512_256)),
    (Cipher::AesCbc(256), Some(Integrity::AesXcbc96)),
    (Cipher::AesCbc(256), Some(Integrity::AesCmac96)),
    (Cipher::AesCcm(256, GcmIcv::Sixteen), None),
    (Cipher::AesCtr(256), Some(Integrity::HmacSha256_128)),
    (Cipher::AesGmac(256), None),
    (Cipher::TripleDes, Some(Integrity::HmacSha256_128)),
    (Cipher::Null, Some(Integrity::HmacSha256_128)),
];

/// What this kernel offers.
#[derive(Clone, Debug)]
pub struct Probe {
    /// Netlink XFRM itself: CONFIG_XFRM_USER, and the right to use it.
    pub netlink: Answer,
    /// ESP over IPv4 (CONFIG_INET_ESP).
    pub esp4: Answer,
    /// ESP over IPv6 (CONFIG_INET6_ESP).
    pub esp6: Answer,
    /// Interfaces of kind `xfrm` (CONFIG_XFRM_INTERFACE), which tunnel mode needs.
    pub interface: Answer,
    /// Suites by name, with any key length and ICV of the cipher.
    pub suites: Vec<(EspSuite, Answer)>,
    /// Whether SAs may belong to one processor (XFRMA_SA_PCPU, from Linux 6.13 or a late 6.12 on).
    pub per_cpu: bool,
}

impl Probe {
    /// Whether the engine can be started: netlink, ESP of some family and the interface. Names
    /// everything that is missing.
    pub fn usable(&self) -> Answer {
        self.netlink.clone()?;
        let mut missing = Vec::new();
        if let (Err(v4), Err(v6)) = (&self.esp4, &self.esp6) {
            missing.extend([v4, v6]);
        }
        missing.extend(self.interface.as_ref().err());
        missing.dedup();
        if missing.is_empty() {
            return Ok(());
        }
        let missing: Vec<&str> = missing.into_iter().map(String::as_str).collect();
        Err(missing.join("; "))
    }

    /// Whether a suite's algorithms are there.
    pub fn suite(&self, suite: &EspSuite) -> Answer {
        let kind = |suite: &EspSuite| std::mem::discriminant(&suite.cipher);
        let of = |cipher: &EspSuite, integrity: Option<Integrity>| {
            let same = |known: &EspSuite| {
                kind(known) == kind(cipher) && (integrity.is_none() || known.integrity == integrity)
            };
            match self.suites.iter().find(|(known, _)| same(known)) {
                Some((_, answer)) => answer.clone(),
                None => Err(format!("the kernel has no ESP suite {suite}")),
            }
        };
        // Each integrity algorithm is tried with AES-CBC, and goes with every other cipher too.
        of(suite, None)?;
        match suite.integrity {
            Some(_) => of(&esp(&(Cipher::AesCbc(256), None)), suite.integrity),
            None => Ok(()),
        }
    }

    /// A kernel without XFRM.
    fn nothing(why: String) -> Self {
        let none = || Err(why.clone());
        Self {
            netlink: none(),
            esp4: none(),
            esp6: none(),
            interface: none(),
            suites: SUITES.iter().map(|suite| (esp(suite), none())).collect(),
            per_cpu: false,
        }
    }
}

fn esp((cipher, integrity): &(Cipher, Option<Integrity>)) -> EspSuite {
    EspSuite {
        cipher: *cipher,
        integrity: *integrity,
        esn: false,
    }
}

/// Asks the kernel in the calling thread's network namespace. For each question a state is added
/// that no packet can meet and removed at once: between documentation addresses (RFC 5737,
/// RFC 3849), with random SPI and keys, and gone after a second should this process be killed in
/// between. It loads the kernel's modules as using them would.
pub fn probe() -> Probe {
    let mut requests = match Requests::open() {
        Ok(requests) => requests,
        Err(error) => return Probe::nothing(explain_netlink(&error)),
    };
    if let Err(error) = state::list(&mut requests) {
        return Probe::nothing(explain_netlink(&error));
    }
    let mut suites = Vec::new();
    // Whether ESP is there is told apart from the algorithms by the kernel's error.
    let mut families: [Option<Answer>; 2] = [None, None];
    for suite in &SUITES {
        let suite = esp(suite);
        let mut answer = Err("no ESP".to_owned());
        for (family, v6) in families.iter_mut().zip([false, true]) {
            let tried = attempt(&mut requests, &suite, v6, None);
            match &tried {
                Err(Some(error)) if error.errno() == libc::EPROTONOSUPPORT => {
                    *family = Some(Err(explain_esp(v6)));
                }
                Err(Some(error)) if error.errno() == libc::EPERM => {
                    *family = Some(Err(error.to_string()));
                }
                Ok(()) => *family = Some(Ok(())),
                Err(_) => {}
            }
            if answer.is_err() {
                answer = tried.map_err(|error| explain_suite(&suite, error.as_ref()));
            }
        }
        suites.push((suite, answer));
    }
    let untold = || Err("no algorithm to try ESP with".to_owned());
    let [esp4, esp6] = families.map(|family| family.unwrap_or_else(untold));
    if let (Err(esp4), Err(_)) = (&esp4, &esp6) {
        for (_, answer) in &mut suites {
            *answer = Err(esp4.clone());
        }
    }
    let per_cpu = per_cpu(&mut requests, &suites);
    Probe {
        netlink: Ok(()),
        esp4,
        esp6,
        interface: probe_interface(),
        suites,
        per_cpu,
    }
}

/// Adds a state and removes it. The error is `None` where there were no random numbers.
fn attempt(
    requests: &mut Requests,
    suite: &EspSuite,
    v6: bool,
    processor: Option<u32>,
) -> Result<(), Option<NetlinkError>> {
    let sa = sample(suite, v6).map_err(|_| None)?;
    let settings = Settings {
        common: &Common::default(),
        reqid: 0,
        if_id: 0,
        path: sa.path,
        lifetime: sa.lifetime,
        offload: None,
        processor,
        replay: None,
    };
    let id = StateId::of(&sa, Side::Outbound);
    let body = state::describe(&sa, Side::Outbound, &settings);
    state::add(requests, &id, &body)?;
    state::remove(requests, &id, &Common::default())?;
    Ok(())
}

/// A pair that nobody else has, between addresses that nobody has.
fn sample(suite: &EspSuite, v6: bool) -> Result<ChildSa, getrandom::Error> {
    let [local, remote]: [IpAddr; 2] = if v6 {
        [1, 2].map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0xffff, 0, 0, 0, host).into())
    } else {
        [253, 254].map(|host| Ipv4Addr::new(203, 0, 113, host).into())
    };
    let half = || -> Result<HalfSa, getrandom::Error> {
        let key = |length| -> Result<SecretBytes, getrandom::Error> {
            let mut key = vec![0; length];
            getrandom::fill(&mut key)?;
            Ok(SecretBytes::new(key))
        };
        Ok(HalfSa {
            // SPIs up to 255 are reserved (RFC 4303 section 2.1).
            spi: getrandom::u32()? | 0x100,
            encryption_key: key(suite.cipher.keymat_len())?,
            integrity_key: key(suite.integrity.map_or(0, Integrity::key_len))?,
        })
    };
    Ok(ChildSa {
        id: ChildSaId(0),
        connection: "probe".into(),
        suite: *suite,
        inbound: half()?,
        outbound: half()?,
        path: Path {
            local: SocketAddr::new(local, 0),
            remote: SocketAddr::new(remote, 0),
            encapsulation: Encapsulation::Esp,
        },
        mode: Mode::Tunnel,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        share: Share::Whole,
        replay_window: 32,
        allowances: Default::default(),
        lifetime: Duration::from_secs(1),
    })
}

/// A kernel that knows the attribute refuses a processor that cannot be as out of range; one that
/// does not takes the state, or finds something else wrong.
fn per_cpu(requests: &mut Requests, suites: &[(EspSuite, Answer)]) -> bool {
    const NO_PROCESSOR: u32 = u32::MAX - 1;
    let working = suites.iter().find(|(_, answer)| answer.is_ok());
    let Some((suite, _)) = working else {
        return false;
    };
    [false, true].into_iter().any(|v6| {
        let tried = attempt(requests, suite, v6, Some(NO_PROCESSOR));
        matches!(tried, Err(Some(error)) if error.errno() == libc::ERANGE)
    })
}

/// A kernel that has the kind refuses one with id 0.
fn probe_interface() -> Answer {
    const NAME: &str = "espada-probe";
    let mut netlink = Netlink::open().map_err(|error| error.to_string())?;
    match add_link(&mut netlink, NAME, 0) {
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        Err(error) if error.errno() == libc::EOPNOTSUPP => Err(
            "this kernel has no xfrm interfaces (CONFIG_XFRM_INTERFACE); load them with \
             `modprobe xfrm_interface`, or use a kernel that has them"
                .into(),
        ),
        Err(error) => Err(error.to_string()),
        Ok(()) => {
            // Kernels before 5.16 make it.
            if let Ok(link) = netlink.link(NAME) {
                let interface = Interface {
                    name: link.name,
                    index: link.index,
                };
                remove_link(&mut netlink, &interface).map_err(|error| error.to_string())?;
            }
            Ok(())
        }
    }
}

fn explain_netlink(error: &NetlinkError) -> String {
    match error.errno() {
        libc::EPROTONOSUPPORT => {
            "this kernel has no netlink XFRM (CONFIG_XFRM_USER); load it with `modprobe xfrm_user`, \
             or use a kernel that has it"
                .into()
        }
        _ => error.to_string(),
    }
}

fn explain_esp(v6: bool) -> String {
    let (family, option, module) = if v6 {
        (6, "CONFIG_INET6_ESP", "esp6")
    } else {
        (4, "CONFIG_INET_ESP", "esp4")
    };
    format!(
        "this kernel has no ESP over IPv{family} ({option}); load it with `modprobe {module}`, or \
         use a kernel that has it"
    )
}

/// Why a state with these algorithms is refused.
pub fn explain_suite(suite: &EspSuite, error: Option<&NetlinkError>) -> String {
    let Some(error) = error else {
        return format!("ESP suite {suite} was not tried: no random numbers");
    };
    match error.errno() {
        libc::ENOSYS | libc::ENOENT => {
            let integrity = suite.integrity.map(state::integrity_name);
            let algorithms = [Some(state::cipher_name(suite.cipher)), integrity];
            let names: Vec<&str> = algorithms.into_iter().flatten().collect();
            format!(
                "this kernel lacks the algorithms of ESP suite {suite}: {}; load the modules that \
                 `cat /proc/crypto` does not show, or offer other suites",
                names.join(" and ")
            )
        }
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xfrm::wire::{self, Body, SaInfo, attribute};

    #[test]
    fn a_kernel_without_xfrm_says_so_everywhere() {
        let probe = Probe::nothing("no XFRM".into());
        assert_eq!(probe.usable(), Err("no XFRM".into()));
        let suite = esp(&(Cipher::AesGcm(128, GcmIcv::Sixteen), None));
        assert_eq!(probe.suite(&suite), Err("no XFRM".into()));
    }

    #[test]
    fn the_kernel_is_told_the_icv_in_bits() {
        for (icv, bits) in [
            (GcmIcv::Eight, 64u32),
            (GcmIcv::Twelve, 96),
            (GcmIcv::Sixteen, 128),
        ] {
            let sa = sample(&esp(&(Cipher::AesGcm(192, icv), None)), false).unwrap();
            let body = state::algorithms(Body::new(&SaInfo::default()), &sa, &sa.outbound);
            let (_, attributes) = wire::split::<SaInfo>(body.octets()).unwrap();
            let aead = attributes.find(attribute::ALG_AEAD).unwrap();
            assert!(aead.starts_with(b"rfc4106(gcm(aes))\0"));
            let lengths = [(192 + 32u32).to_ne_bytes(), bits.to_ne_bytes()];
            assert_eq!(aead[64..72], *lengths.as_flattened());
        }
    }

    #[test]
    fn one_family_of_esp_is_enough() {
        let mut probe = Probe {
            netlink: Ok(()),
            esp4: Ok(()),
            esp6: Err(explain_esp(true)),
            interface: Ok(()),
            suites: SUITES.iter().map(|suite| (esp(suite), Ok(()))).collect(),
            per_cpu: false,
        };
        assert_eq!(probe.usable(), Ok(()));
        probe.esp4 = Err(explain_esp(false));
        let why = probe.usable().unwrap_err();
        assert!(
            why.contains("modprobe esp4") && why.contains("modprobe esp6"),
            "{why}"
        );
        let cbc = EspSuite {
            cipher: Cipher::AesCbc(128),
            integrity: Some(Integrity::HmacSha256_128),
            esn: true,
        };
        assert_eq!(probe.suite(&cbc), Ok(()));
        let short = esp(&(Cipher::AesGcm(192, GcmIcv::Eight), None));
        assert_eq!(probe.suite(&short), Ok(()));
    }
}
