//! OpenIKED 7.4, which speaks PF_KEY to the kernel.

use anyhow::Result;
use espada_tests::openiked::{self, OpenIked};
use espada_tests::peer::Connection;
use espada_tests::process::WorkDir;
use espada_tests::topology::Line;

use super::{Kind, cases};

struct Kernel;

impl Kind for Kernel {
    const NAME: &'static str = "openiked";

    type Peer = OpenIked;

    fn missing() -> Option<String> {
        openiked::missing()
    }

    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer> {
        OpenIked::start(&line.gw_b, work, connection)
    }
}

const GCM: [&str; 2] = ["aes256gcm16-prfsha256-x25519", "aes256gcm16"];
const GCM_PEER: [&str; 3] = [
    "enc aes-256-gcm prf hmac-sha2-256 group curve25519",
    "enc aes-256-gcm noesn",
    "",
];

cases! { Kernel;
    native_gcm: Switch, Espada, GCM, GCM_PEER;
    native_gcm_begins: Switch, Peer, GCM, GCM_PEER;
    azure_custom_policy: Switch, Espada, ["aes256-sha256-modp2048", "aes256-sha256"],
        [
            "enc aes-256 auth hmac-sha2-256 prf hmac-sha2-256 group modp2048",
            "enc aes-256 auth hmac-sha2-256 noesn",
            "",
        ];
    cbc_sha512_begins: Switch, Peer, ["aes256-sha512-ecp521", "aes256-sha512"],
        [
            "enc aes-256 auth hmac-sha2-512 prf hmac-sha2-512 group ecp521",
            "enc aes-256 auth hmac-sha2-512 noesn",
            "",
        ];
    native_chacha20: Switch, Espada, ["aes256gcm16-prfsha256-ecp256", "chacha20poly1305"],
        [
            "enc aes-256-gcm prf hmac-sha2-256 group ecp256",
            "enc chacha20-poly1305 noesn",
            "",
        ];
    behind_nat: Nat, Espada, GCM, GCM_PEER;
}
