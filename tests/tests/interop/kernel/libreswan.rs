//! libreswan 5.

use anyhow::Result;
use espada_tests::libreswan::{self, Libreswan};
use espada_tests::peer::Connection;
use espada_tests::process::WorkDir;
use espada_tests::topology::Line;

use super::{Kind, cases, transport};

struct Kernel;

impl Kind for Kernel {
    const NAME: &'static str = "libreswan";

    const REKEYS: bool = true;

    const TRANSPORT: &'static str = "type=transport";

    type Peer = Libreswan;

    fn missing() -> Option<String> {
        libreswan::missing()
    }

    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer> {
        Libreswan::start(&line.gw_b, work, connection)
    }
}

const GCM: [&str; 2] = ["aes256gcm16-prfsha256-x25519", "aes256gcm16"];
const GCM_PEER: [&str; 3] = ["aes_gcm256-sha2_256-dh31", "aes_gcm256", "esn=no"];

cases! { Kernel;
    native_gcm: Switch, Espada, GCM, GCM_PEER;
    // It rekeys with the group of IKE unless it is told not to.
    native_gcm_begins: Switch, Peer, ["aes256gcm16-prfsha256-x25519", "aes256gcm16-x25519"], GCM_PEER;
    native_gcm_esn: Switch, Espada, ["aes256gcm16-prfsha256-x25519", "aes128gcm16-esn"],
        ["aes_gcm256-sha2_256-dh31", "aes_gcm128", "esn=yes"];
    native_gcm_aes192_icv12: Switch, Espada, ["aes256gcm16-prfsha256-x25519", "aes192gcm12"],
        ["aes_gcm256-sha2_256-dh31", "aes_gcm_12_192", "esn=no"];
    azure_custom_policy: Switch, Espada, ["aes256-sha256-modp2048", "aes256-sha256"],
        ["aes256-sha2_256-modp2048", "aes256-sha2_256", "esn=no"];
    native_chacha20: Switch, Espada, ["aes256gcm16-prfsha256-ecp256", "chacha20poly1305"],
        ["aes_gcm256-sha2_256-dh19", "chacha20_poly1305", "esn=no"];
    behind_nat: Nat, Espada, GCM, GCM_PEER;
}

transport! { Kernel; Espada, GCM, GCM_PEER }
