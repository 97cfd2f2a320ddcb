//! OpenIKED 7.4. On Linux it speaks PF_KEY to the kernel and therefore has neither AEADs nor extended
//! sequence numbers for ESP, and its HMAC-SHA2-256 is cut to 96 bits, unlike everybody else's.

use anyhow::Result;
use espada_tests::openiked::{self, OpenIked};
use espada_tests::peer::Connection;
use espada_tests::process::WorkDir;
use espada_tests::topology::Line;

use super::{Kind, cases, transport};

struct Kernel;

impl Kind for Kernel {
    const NAME: &'static str = "openiked";

    const REKEYS: bool = false;

    const TRANSPORT: &'static str = "transport";

    type Peer = OpenIked;

    fn missing() -> Option<String> {
        openiked::missing()
    }

    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer> {
        OpenIked::start(&line.gw_b, work, connection)
    }
}

const GCM_IKE: &str = "aes256gcm16-prfsha256-x25519";
const GCM_IKE_PEER: &str = "enc aes-256-gcm prf hmac-sha2-256 group curve25519";
const SHA512_PEER: &str = "enc aes-256 auth hmac-sha2-512 noesn";

cases! { Kernel;
    native_cbc: Switch, Espada, [GCM_IKE, "aes256-sha512"], [GCM_IKE_PEER, SHA512_PEER, ""];
    native_cbc_begins: Switch, Peer, [GCM_IKE, "aes256-sha512"], [GCM_IKE_PEER, SHA512_PEER, ""];
    cbc_sha384_begins: Switch, Peer, ["aes256-sha256-modp2048", "aes128-sha384"],
        [
            "enc aes-256 auth hmac-sha2-256 prf hmac-sha2-256 group modp2048",
            "enc aes-128 auth hmac-sha2-384 noesn",
            "",
        ];
    behind_nat: Nat, Espada, [GCM_IKE, "aes256-sha512"], [GCM_IKE_PEER, SHA512_PEER, ""];
}

transport! { Kernel; Peer, [GCM_IKE, "aes256-sha512"], [GCM_IKE_PEER, SHA512_PEER, ""] }
