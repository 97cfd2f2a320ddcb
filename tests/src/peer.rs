//! What every foreign peer is told and asked, whichever it is.

use std::sync::OnceLock;

use anyhow::Result;

use crate::cleanup::PREFIX;
use crate::cmd;
use crate::netns::Netns;

/// What a peer authenticates with besides the pre-shared key, in its own words.
#[derive(Clone, Debug)]
pub struct Pki<'a> {
    /// Its side of the authentication.
    pub local: &'a str,
    /// Our side.
    pub remote: &'a str,
    /// Files it is given: a name below its folder, and where to copy from.
    pub files: Vec<(&'a str, std::path::PathBuf)>,
    /// More of its daemon's settings.
    pub settings: &'a str,
}

/// One connection of a peer. Algorithms and `extra` are in the peer's own words.
#[derive(Clone, Debug)]
pub struct Connection<'a> {
    /// The peer's outer address.
    pub local: &'a str,
    /// Our outer address, as the peer sees it (`%any` where it cannot know).
    pub remote: &'a str,
    /// The peer's identity.
    pub local_id: &'a str,
    /// Our identity.
    pub remote_id: &'a str,
    /// IKE proposals.
    pub ike: &'a str,
    /// ESP proposals.
    pub esp: &'a str,
    /// Networks on the peer's side.
    pub local_ts: &'a str,
    /// Networks on our side.
    pub remote_ts: &'a str,
    /// The pre-shared key.
    pub psk: &'a str,
    /// Certificates and keys, for those peers that are given any.
    pub pki: Option<Pki<'a>>,
    /// More of what is said of the IKE SA (strongSwan only).
    pub ike_extra: &'a str,
    /// More of what the connection's configuration can say.
    pub extra: &'a str,
}

/// A running peer with one connection.
pub trait Peer {
    /// Brings the connection up from its side.
    fn initiate(&self) -> Result<()>;

    /// Waits until it has a child SA.
    fn wait_established(&self) -> Result<()>;

    /// Replaces the child SA from its side; an error where the peer does that by lifetime alone.
    fn rekey_child(&self) -> Result<()>;

    /// Takes the IKE SA down from its side.
    fn terminate(&self) -> Result<()>;

    /// What it logged so far.
    fn log(&self) -> String;
}

/// Why the kernel cannot carry a peer's ESP, if it cannot. The kernels of the virtual machines can:
/// there it is a panic.
pub fn missing_kernel_esp() -> Option<String> {
    static ANSWER: OnceLock<Option<String>> = OnceLock::new();
    let probe = || {
        let netns = Netns::new(&format!("{PREFIX}{}-xfrm", std::process::id()))?;
        let key = format!("0x{}", "11".repeat(20));
        let state =
            "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel aead";
        let mut arguments: Vec<&str> = state.split(' ').collect();
        arguments.extend(["rfc4106(gcm(aes))", &key, "128"]);
        netns.ip(&arguments)
    };
    let answer = ANSWER.get_or_init(|| {
        let error = probe().err()?.to_string();
        let last = error.lines().last().unwrap_or_default();
        let reason = format!("this kernel has no ESP of its own ({last})");
        assert!(!cmd::in_virtual_machine(), "{reason}");
        Some(reason)
    });
    answer.clone()
}
