//! Which hook, and how the programs get there.

use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    self, NlOptions, SchedClassifierLink, SchedClassifierLinkId, TcAttachOptions, TcError,
};
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{
    LinkOrder, Program, ProgramError, SchedClassifier, TcAttachType, Xdp, XdpMode,
};
use espada_common::abi::esp::TAIL_IN;

use super::{FrontEndError, chain, pin};
use crate::netlink::Netlink;

/// How the user wants the ingress program attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeChoice {
    /// XDP in the driver where it is supported and does not cost offloads, else tc.
    #[default]
    Auto,
    /// XDP in the driver where it is supported, else behind it: never tc.
    Xdp,
    /// XDP in the driver, or fail.
    XdpNative,
    /// XDP behind the driver, on packets already in the kernel's form.
    XdpGeneric,
    /// tc.
    Tc,
}

impl std::str::FromStr for ModeChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "xdp" => Ok(Self::Xdp),
            "xdp-native" => Ok(Self::XdpNative),
            "xdp-generic" => Ok(Self::XdpGeneric),
            "tc" => Ok(Self::Tc),
            _ => Err(format!(
                "unknown mode `{text}`: expected auto, xdp, xdp-native, xdp-generic or tc"
            )),
        }
    }
}

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// XDP, on arrival.
    Xdp,
    /// tc, on arrival.
    TcIngress,
    /// tc, on departure.
    TcEgress,
}

impl Hook {
    /// `xdp`, `tc ingress` or `tc egress`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::TcIngress => "tc ingress",
            Self::TcEgress => "tc egress",
        }
    }
}

/// In which way a hook runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// XDP in the driver.
    Native,
    /// XDP behind the driver.
    Generic,
    /// tc through the multi-program hook of Linux 6.6 and later.
    Tcx,
    /// tc through a filter of the clsact queueing discipline.
    Clsact,
}

impl Mode {
    /// `native`, `generic`, `tcx` or `clsact`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// One attached program.
#[derive(Debug)]
pub struct Attachment {
    /// Interface name.
    pub interface: String,
    /// Where.
    pub hook: Hook,
    /// In which way.
    pub mode: Mode,
    /// Name of the program.
    pub program: &'static str,
    /// The kernel's number of the program, as `bpftool prog` shows it.
    pub program_id: u32,
    /// Instructions that the kernel's verifier walked through, where the kernel says so.
    pub verified_instructions: Option<u32>,
    /// Why this hook and mode.
    pub why: String,
    link: Option<LinkId>,
}

impl Attachment {
    /// Where its link is pinned.
    pub(super) fn pin(&self, folder: &Path) -> PathBuf {
        link_pin(folder, &self.interface, self.hook, self.mode)
    }
}

fn link_pin(folder: &Path, interface: &str, hook: Hook, mode: Mode) -> PathBuf {
    let hook = hook.name().replace(' ', "_");
    let mode = mode.name();
    folder.join(format!("{}{interface}_{hook}_{mode}", pin::LINK_PREFIX))
}

/// The link that an earlier process pinned, if it did, taken over by `take`. A pin whose link does
/// not work any more (its interface is gone) is removed.
fn taken<T>(
    folder: Option<&Path>,
    interface: &str,
    hook: Hook,
    mode: Mode,
    take: impl FnOnce(FdLink) -> Option<T>,
) -> Option<T> {
    let path = link_pin(folder?, interface, hook, mode);
    let link = PinnedLink::from_pin(&path).ok()?;
    let link = take(FdLink::from(link));
    if link.is_none()
        && let Err(error) = std::fs::remove_file(&path)
    {
        tracing::warn!(path = %path.display(), %error, "a dead link stays pinned");
    }
    link
}

#[derive(Debug)]
enum LinkId {
    Xdp(XdpLinkId),
    Tc(SchedClassifierLinkId),
}

/// Attaches an ingress and an egress program to an interface; takes the place of programs whose links
/// are pinned in `links`.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    interface: &str,
    choice: ModeChoice,
    prefer_offloads: bool,
    links: Option<&Path>,
) -> Result<[Attachment; 2], FrontEndError> {
    let failed = |reason: String| FrontEndError::Attach {
        interface: interface.to_owned(),
        reason,
    };
    let link = Netlink::open()
        .and_then(|mut netlink| netlink.link(interface))
        .map_err(|error| failed(error.to_string()))?;
    let (tc_in, tc_out) = if link.ethernet {
        ("espada_tc_in", "espada_tc_out")
    } else {
        ("espada_tc_ip_in", "espada_tc_ip_out")
    };
    let tc_ingress = |ebpf: &mut Ebpf, why: String| {
        attach_tc(ebpf, interface, TcAttachType::Ingress, tc_in, why, links).map_err(failed)
    };
    let ingress = match choice {
        ModeChoice::Tc => tc_ingress(ebpf, "tc was asked for".to_owned())?,
        ModeChoice::Auto if prefer_offloads => tc_ingress(
            ebpf,
            "XDP would switch off segmentation offloads that the traffic uses".to_owned(),
        )?,
        ModeChoice::Auto if !link.ethernet => tc_ingress(
            ebpf,
            "XDP needs Ethernet headers, which this link has none of".to_owned(),
        )?,
        ModeChoice::Auto => {
            let why = "the driver supports XDP".to_owned();
            match attach_xdp(ebpf, interface, FRONT, Mode::Native, why, links) {
                Ok(attachment) => attachment,
                Err(refusal) => tc_ingress(ebpf, format!("XDP in the driver: {refusal}"))?,
            }
        }
        ModeChoice::Xdp | ModeChoice::XdpNative | ModeChoice::XdpGeneric if !link.ethernet => {
            return Err(failed(
                "XDP needs Ethernet headers, which this link has none of; use mode tc".to_owned(),
            ));
        }
        ModeChoice::Xdp => {
            let why = "the driver supports XDP".to_owned();
            match attach_xdp(ebpf, interface, FRONT, Mode::Native, why, links) {
                Ok(attachment) => attachment,
                Err(refusal) => attach_xdp(
                    ebpf,
                    interface,
                    FRONT,
                    Mode::Generic,
                    format!("XDP in the driver: {refusal}"),
                    links,
                )
                .map_err(failed)?,
            }
        }
        ModeChoice::XdpNative => attach_xdp(
            ebpf,
            interface,
            FRONT,
            Mode::Native,
            "native XDP was asked for".to_owned(),
            links,
        )
        .map_err(|reason| failed(format!("{reason}; mode xdp-generic or tc may work")))?,
        ModeChoice::XdpGeneric => attach_xdp(
            ebpf,
            interface,
            FRONT,
            Mode::Generic,
            "generic XDP was asked for".to_owned(),
            links,
        )
        .map_err(failed)?,
    };
    let why = "XDP has no egress hook".to_owned();
    let egress =
        attach_tc(ebpf, interface, TcAttachType::Egress, tc_out, why, links).map_err(failed)?;
    Ok([ingress, egress])
}

/// The front end's XDP program.
const FRONT: &str = "espada_xdp";

/// Attaches the eBPF engine's programs to the hidden end of its plaintext interface.
pub(super) fn attach_engine(
    ebpf: &mut Ebpf,
    port: &str,
    links: &Path,
    programs: &mut ProgramArray<MapData>,
) -> Result<Vec<Attachment>, FrontEndError> {
    let failed = |reason: String| FrontEndError::Attach {
        interface: port.to_owned(),
        reason,
    };
    let decrypting: &mut Xdp = loaded(ebpf, "espada_esp_in", Xdp::load).map_err(failed)?;
    let program = decrypting.fd().map_err(|error| failed(chain(&error)))?;
    programs
        .set(TAIL_IN, program, 0)
        .map_err(|error| failed(chain(&error)))?;
    let why = "encrypts what is routed into the plaintext interface".to_owned();
    let out = attach_xdp(ebpf, port, "espada_esp_out", Mode::Native, why, Some(links));
    let why = "sends where XDP does not know the neighbour".to_owned();
    let neigh = attach_tc(
        ebpf,
        port,
        TcAttachType::Ingress,
        "espada_esp_neigh",
        why,
        Some(links),
    );
    Ok(vec![out.map_err(failed)?, neigh.map_err(failed)?])
}

/// The program on LAN interfaces.
pub(super) const LAN: &str = "espada_lan_in";

/// Attaches the program that takes packets past the kernel to a LAN interface, in its driver.
pub(super) fn attach_lan(
    ebpf: &mut Ebpf,
    interface: &str,
    links: Option<&Path>,
) -> Result<Attachment, FrontEndError> {
    let why = "takes what is routed into the tunnel past the kernel".to_owned();
    attach_xdp(ebpf, interface, LAN, Mode::Native, why, links).map_err(|reason| {
        FrontEndError::Attach {
            interface: interface.to_owned(),
            reason,
        }
    })
}

fn attach_xdp(
    ebpf: &mut Ebpf,
    interface: &str,
    name: &'static str,
    mode: Mode,
    why: String,
    links: Option<&Path>,
) -> Result<Attachment, String> {
    let program: &mut Xdp = loaded(ebpf, name, Xdp::load)?;
    let flags = match mode {
        Mode::Generic => XdpMode::Skb,
        _ => XdpMode::Driver,
    };
    let known = taken(links, interface, Hook::Xdp, mode, |link| {
        program.attach_to_link(XdpLink::try_from(link).ok()?).ok()
    });
    let link = match known {
        Some(link) => link,
        None => program.attach(interface, flags).map_err(|error| {
            let text = chain(&error);
            match os_error(&error) {
                Some(libc::EBUSY) => format!("another XDP program is attached already ({text})"),
                Some(libc::EOPNOTSUPP) => format!("not supported by the driver ({text})"),
                _ => text,
            }
        })?,
    };
    let about = program.info().map_err(|error| chain(&error))?;
    Ok(Attachment {
        interface: interface.to_owned(),
        hook: Hook::Xdp,
        mode,
        program: name,
        program_id: about.id(),
        verified_instructions: about.verified_instruction_count(),
        why,
        link: Some(LinkId::Xdp(link)),
    })
}

fn attach_tc(
    ebpf: &mut Ebpf,
    interface: &str,
    side: TcAttachType,
    name: &'static str,
    why: String,
    links: Option<&Path>,
) -> Result<Attachment, String> {
    let program: &mut SchedClassifier = loaded(ebpf, name, SchedClassifier::load)?;
    // First on the way in, last on the way out: what other programs make of a packet is judged.
    let (hook, order) = match side {
        TcAttachType::Ingress => (Hook::TcIngress, LinkOrder::first()),
        _ => (Hook::TcEgress, LinkOrder::last()),
    };
    let known = taken(links, interface, hook, Mode::Tcx, |link| {
        let link = SchedClassifierLink::try_from(link).ok()?;
        program.attach_to_link(link).ok()
    });
    let (link, mode) = match known {
        Some(link) => (link, Mode::Tcx),
        None => {
            let options = TcAttachOptions::TcxOrder(order);
            match program.attach_with_options(interface, side, options) {
                Ok(link) => (link, Mode::Tcx),
                // Linux before 6.6 does not know the hook.
                Err(error) if os_error(&error) == Some(libc::EINVAL) => {
                    (attach_clsact(program, interface, side, name)?, Mode::Clsact)
                }
                Err(error) => return Err(format!("{}: {}", hook.name(), chain(&error))),
            }
        }
    };
    let about = program.info().map_err(|error| chain(&error))?;
    Ok(Attachment {
        interface: interface.to_owned(),
        hook,
        mode,
        program: name,
        program_id: about.id(),
        verified_instructions: about.verified_instruction_count(),
        why,
        link: Some(LinkId::Tc(link)),
    })
}

fn attach_clsact(
    program: &mut SchedClassifier,
    interface: &str,
    side: TcAttachType,
    name: &str,
) -> Result<SchedClassifierLinkId, String> {
    match tc::qdisc_add_clsact(interface) {
        Ok(()) | Err(TcError::AlreadyAttached) => {}
        Err(error) if os_error(&error) == Some(libc::EEXIST) => {}
        Err(error) => return Err(format!("cannot add the clsact qdisc: {}", chain(&error))),
    }
    // A filter outlives a process that was killed; ours of an earlier run would count twice.
    // There usually is none, which is an error to this call.
    let _ = tc::qdisc_detach_program(interface, side, name);
    program
        .attach_with_options(
            interface,
            side,
            TcAttachOptions::Netlink(NlOptions::default()),
        )
        .map_err(|error| format!("clsact: {}", chain(&error)))
}

/// A program of the object, loaded into the kernel if it is not yet.
pub(crate) fn loaded<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<&'a mut P, String>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("there is no program {name} in the eBPF object"))?;
    let program: &'a mut P = program.try_into().map_err(|error| chain(&error))?;
    match load(program) {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => Ok(program),
        Err(error) => Err(format!(
            "the kernel refused program {name}: {}",
            chain(&error)
        )),
    }
}

/// Pins the links, so that the programs stay attached when this process ends. Filters of clsact
/// have no link; they stay anyway once they are taken from the program.
pub(super) fn pin_links(
    ebpf: &mut Ebpf,
    attachments: &mut [Attachment],
    folder: &Path,
) -> Result<(), FrontEndError> {
    for attachment in attachments {
        let Some(link) = attachment.link.take() else {
            continue;
        };
        let result = take_link(ebpf, attachment.program, link).and_then(|link| {
            let path = attachment.pin(folder);
            match link {
                // One that was taken over is pinned already.
                Some(link) if !path.exists() => {
                    link.pin(path).map(drop).map_err(|error| chain(&error))
                }
                _ => Ok(()),
            }
        });
        result.map_err(|reason| FrontEndError::Attach {
            interface: attachment.interface.clone(),
            reason: format!("cannot pin the link: {reason}"),
        })?;
    }
    Ok(())
}

fn take_link(ebpf: &mut Ebpf, name: &str, link: LinkId) -> Result<Option<FdLink>, String> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| format!("there is no program {name}"))?;
    match link {
        LinkId::Xdp(id) => {
            let program: &mut Xdp = program
                .try_into()
                .map_err(|error: ProgramError| chain(&error))?;
            let link = program.take_link(id).map_err(|error| chain(&error))?;
            FdLink::try_from(link)
                .map(Some)
                .map_err(|error| chain(&error))
        }
        LinkId::Tc(id) => {
            let program: &mut SchedClassifier = program
                .try_into()
                .map_err(|error: ProgramError| chain(&error))?;
            let link = program.take_link(id).map_err(|error| chain(&error))?;
            match link.attach_type() {
                // A clsact filter: forgetting it leaves it in place.
                Ok(_) => {
                    std::mem::forget(link);
                    Ok(None)
                }
                Err(_) => FdLink::try_from(link)
                    .map(Some)
                    .map_err(|error| chain(&error)),
            }
        }
    }
}

/// Removes the clsact filters that a kernel without tcx keeps; returns how many there were.
pub fn detach_clsact(interface: &str) -> usize {
    [
        (TcAttachType::Ingress, "espada_tc_in"),
        (TcAttachType::Ingress, "espada_tc_ip_in"),
        (TcAttachType::Egress, "espada_tc_out"),
        (TcAttachType::Egress, "espada_tc_ip_out"),
        (TcAttachType::Ingress, "espada_esp_neigh"),
    ]
    .into_iter()
    .filter(|(side, name)| tc::qdisc_detach_program(interface, *side, name).is_ok())
    .count()
}

fn os_error(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    std::iter::successors(Some(error), |error| error.source())
        .find_map(|error| error.downcast_ref::<std::io::Error>()?.raw_os_error())
}
