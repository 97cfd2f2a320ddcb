//! strongSwan: this machine's 5.9.8 and Debian 13's 6.0.

use anyhow::Result;
use espada_tests::peer::Connection;
use espada_tests::peer_root::Release;
use espada_tests::process::WorkDir;
use espada_tests::strongswan::{self, StrongSwan};
use espada_tests::topology::Line;

use super::{Kind, SAME, cases, transport};

/// Debian 12's.
struct Five;

impl Kind for Five {
    const NAME: &'static str = "strongswan5";

    const REKEYS: bool = true;

    const TRANSPORT: &'static str = "mode = transport";

    type Peer = StrongSwan;

    fn missing() -> Option<String> {
        strongswan::missing()
    }

    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer> {
        let kind = strongswan::Kind::Kernel;
        StrongSwan::start(&line.gw_b, work, connection, kind, false)
    }
}

/// Debian 13's.
struct Six;

impl Kind for Six {
    const NAME: &'static str = "strongswan6";

    const REKEYS: bool = true;

    const TRANSPORT: &'static str = "mode = transport";

    type Peer = StrongSwan;

    fn missing() -> Option<String> {
        strongswan::missing_newer(Release::Trixie)
    }

    fn start(line: &Line, work: &WorkDir, connection: &Connection<'_>) -> Result<Self::Peer> {
        let kind = strongswan::Kind::Newer;
        StrongSwan::start(&line.gw_b, work, connection, kind, false)
    }
}

const GCM: [&str; 2] = ["aes256gcm16-prfsha256-x25519", "aes256gcm16"];
const GCM_ESN: [&str; 2] = ["aes256gcm16-prfsha256-x25519", "aes128gcm16-esn"];
const GCM_ICV8_ESN: [&str; 2] = ["aes256gcm8-prfsha256-x25519", "aes256gcm8-esn"];
const AZURE: [&str; 2] = ["aes256-sha256-modp2048", "aes256-sha256"];
const CHACHA20: [&str; 2] = ["chacha20poly1305-prfsha256-x25519", "chacha20poly1305"];
const CHACHA20_ESN: [&str; 2] = ["aes256gcm16-prfsha256-x25519", "chacha20poly1305-esn"];

mod five {
    use super::*;

    cases! { Five;
        native_gcm: Switch, Espada, GCM, SAME;
        native_gcm_begins: Switch, Peer, GCM, SAME;
        native_gcm_esn: Switch, Espada, GCM_ESN, SAME;
        native_gcm_icv8_esn: Switch, Espada, GCM_ICV8_ESN, SAME;
        azure_custom_policy: Switch, Espada, AZURE, SAME;
        cbc_sha1_esn_begins: Switch, Peer, ["aes128-sha256-ecp256", "aes128-sha1-esn"], SAME;
        cbc_sha384: Switch, Espada, ["aes256-sha384-ecp384", "aes256-sha384"], SAME;
        cbc_sha512: Switch, Espada, ["aes192-sha512-ecp521", "aes192-sha512"], SAME;
        native_chacha20: Switch, Espada, CHACHA20, SAME;
        behind_nat: Nat, Espada, GCM, SAME;
    }

    transport! { Five;
        transport: Switch, Espada, GCM, SAME;
        transport_behind_nat: Nat, Espada, GCM, SAME;
    }
}

mod six {
    use super::*;

    cases! { Six;
        native_gcm: Switch, Espada, GCM, SAME;
        native_gcm_begins: Switch, Peer, GCM, SAME;
        native_chacha20: Switch, Espada, CHACHA20_ESN, SAME;
        chacha20_behind_nat: Nat, Espada, CHACHA20, SAME;
    }

    transport! { Six; Peer, GCM, SAME }
}
