//! Certificates and keys in the configuration: what is understood, and every complaint's text.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use espada_ike::Identity;
use espada_ike::config::{LocalAuth, RemoteAuth, RemoteIdentity, SendCert};
use espada_ike::crypto::signature::{Curve, KeyType, PrivateKey};
use espada_ike::pem;
use espada_ike::x509::Revocation;
use espada_ike::x509::issue::{Issuer, Template, alt_name};

use super::*;
use crate::daemon::SystemRandom;

const DAY: Duration = Duration::from_secs(86_400);

fn write(path: &Path, text: &str, mode: u32) {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes `ca.pem`, and for `a.example` and `b.example` a certificate and a key; `old` is expired.
fn files(folder: &Path) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap();
    let kind = KeyType::Ecdsa(Curve::P256);
    let (authority, _) = PrivateKey::generate(kind, &mut SystemRandom).unwrap();
    let name = "CN=Root".parse().unwrap();
    let issuer = Issuer {
        name: &name,
        key: &authority,
    };
    let template = Template::authority(name.clone(), now - DAY, now + 100 * DAY);
    let ca = template
        .issue(authority.public(), &issuer, &mut SystemRandom)
        .unwrap();
    let text = |label: &str, der: &[u8]| pem::encode(label, der).unwrap().to_string();
    write(
        &folder.join("ca.pem"),
        &text("CERTIFICATE", ca.der()),
        0o644,
    );
    write(&folder.join("ca.der"), "", 0o644);
    std::fs::write(folder.join("ca.der"), ca.der()).unwrap();
    for (file, id, end) in [
        ("a", "a.example", now + 90 * DAY),
        ("b", "b.example", now + 90 * DAY),
        ("old", "a.example", now - Duration::from_secs(60)),
    ] {
        let id: Identity = id.parse().unwrap();
        let (key, der) = PrivateKey::generate(kind, &mut SystemRandom).unwrap();
        let template = Template {
            subject: format!("CN={id}").parse().unwrap(),
            alt_names: alt_name(&id).into_iter().collect(),
            authority: None,
            not_before: now - DAY,
            not_after: end,
        };
        let certificate = template
            .issue(key.public(), &issuer, &mut SystemRandom)
            .unwrap();
        write(
            &folder.join(format!("{file}.pem")),
            &text("CERTIFICATE", certificate.der()),
            0o644,
        );
        write(
            &folder.join(format!("{file}.key")),
            &text("PRIVATE KEY", &der),
            0o600,
        );
        write(
            &folder.join(format!("{file}.pub")),
            &text("PUBLIC KEY", key.public().spki()),
            0o644,
        );
    }
    write(
        &folder.join("open.key"),
        &std::fs::read_to_string(folder.join("a.key")).unwrap(),
        0o644,
    );
    write(&folder.join("nothing"), "hello", 0o600);
}

/// Loads a connection with these settings of both sides.
fn load_sides(local: &str, remote: &str) -> Result<GatewayConfig, String> {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let file = folder.path().join("gw.toml");
    let text = format!(
        "[dataplane]\nwan = [\"eth0\"]\n[connection.x]\nlocal = {{ subnets = [\"10.1.0.0/16\"], {local} }}\n\
         remote = {{ address = \"192.0.2.2\", subnets = [\"10.2.0.0/16\"], {remote} }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let prefix = format!("{}/", folder.path().display());
    load(&file, SecretsPolicy::Required).map_err(|error| error.to_string().replace(&prefix, ""))
}

const LOCAL: &str = "id = \"a.example\", auth = \"pubkey\", certs = [\"a.pem\"], key = \"a.key\"";
const REMOTE: &str = "id = \"b.example\", auth = \"pubkey\", cacerts = [\"ca.pem\"]";

#[test]
fn certificates_on_both_sides_need_no_pre_shared_key() {
    let config = load_sides(LOCAL, REMOTE).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let settings = config.connections[0].settings();
    let LocalAuth::PublicKey(credential) = &settings.local_auth else {
        panic!()
    };
    assert_eq!(credential.certificates.len(), 1);
    assert!(
        credential.origin.ends_with("gw.toml:4"),
        "{}",
        credential.origin
    );
    let RemoteAuth::PublicKey(trust) = &settings.remote_auth else {
        panic!()
    };
    assert_eq!(trust.authorities.len(), 1);
    let summary = config.summary();
    assert!(
        summary.contains(
            "we prove \"CN=a.example\", a.example (ECDSA P-256), issued by \"CN=Root\", valid "
        ),
        "{summary}"
    );
    assert!(
        summary.contains("trusts   authority \"CN=Root\""),
        "{summary}"
    );
}

#[test]
fn what_is_asked_and_sent() {
    let of = |setting: &str| {
        let config = load_sides(LOCAL, &format!("{REMOTE}{setting}")).unwrap();
        match &config.connections[0].settings().remote_auth {
            RemoteAuth::PublicKey(trust) => trust.revocation,
            RemoteAuth::Psk => panic!(),
        }
    };
    assert_eq!(of(""), Revocation::Relaxed);
    for (word, meant) in [
        ("relaxed", Revocation::Relaxed),
        ("ifuri", Revocation::IfUri),
        ("strict", Revocation::Strict),
        ("ifpresent", Revocation::IfPresent),
        ("off", Revocation::Off),
    ] {
        assert_eq!(of(&format!(", revocation = \"{word}\"")), meant);
    }
    let error = load_sides(LOCAL, &format!("{REMOTE}, revocation = \"always\"")).unwrap_err();
    assert!(error.contains("revocation` must be \"relaxed\""), "{error}");
    let sent = |more: &str| {
        let remote = format!("{REMOTE} }}\n{more}dpd = {{ delay = \"0s\"");
        load_sides(LOCAL, &remote).unwrap().connections[0]
            .settings()
            .send_cert
    };
    assert_eq!(sent(""), SendCert::Always);
    assert_eq!(sent("send_cert = \"ifasked\"\n"), SendCert::IfAsked);
    assert_eq!(sent("send_cert = \"never\"\n"), SendCert::Never);
}

#[test]
fn what_is_left_out_follows_from_the_files() {
    // Without auth, files mean a certificate; without an identity, its subject. DER and a chain in any order.
    let config = load_sides(
        "certs = [\"ca.der\", \"a.pem\"], key = \"a.key\"",
        "certs = [\"b.pem\"]",
    );
    let config = config.unwrap();
    let settings = config.connections[0].settings();
    assert_eq!(
        settings.local_id.as_ref().unwrap().to_string(),
        "CN=a.example"
    );
    let LocalAuth::PublicKey(credential) = &settings.local_auth else {
        panic!()
    };
    let subjects: Vec<_> = credential
        .certificates
        .iter()
        .map(|found| found.subject().to_string())
        .collect();
    assert_eq!(subjects, ["CN=a.example", "CN=Root"]);
    let RemoteIdentity::Is(identity) = &settings.remote_id else {
        panic!()
    };
    assert_eq!(identity.to_string(), "CN=b.example");
    // Raw public keys.
    let config = load_sides(
        "id = \"a.example\", auth = \"pubkey\", key = \"a.key\"",
        "id = \"b.example\", pubkeys = [\"b.pub\"]",
    );
    assert!(
        config
            .unwrap()
            .summary()
            .contains("trusts   raw public key (ECDSA P-256)")
    );
    // A wildcard.
    let config = load_sides(LOCAL, "id = \"*.example\", cacerts = [\"ca.pem\"]").unwrap();
    let identity = &config.connections[0].settings().remote_id;
    assert!(matches!(identity, RemoteIdentity::Matches(_)));
}

#[test]
fn complaints() {
    for (local, remote, words) in [
        (
            "id = \"a.example\", auth = \"pubkey\"",
            REMOTE,
            "gw.toml:4:9: error: `connection.x.local.key` is missing",
        ),
        (
            "id = \"a.example\", certs = [\"a.pem\"], key = \"b.key\"",
            REMOTE,
            "b.key is not the key of the certificate of \"CN=a.example\": it is another ECDSA P-256 key",
        ),
        (
            "id = \"c.example\", certs = [\"a.pem\"], key = \"a.key\"",
            REMOTE,
            "c.example is not in our certificate, whose names are \"CN=a.example\", a.example",
        ),
        (
            "id = \"a.example\", certs = [\"a.pem\"], key = \"open.key\"",
            REMOTE,
            "open.key: other users have access to the private key (mode 0644)",
        ),
        (
            "id = \"a.example\", certs = [\"a.pem\"], key = \"missing.key\"",
            REMOTE,
            "cannot open missing.key: No such file",
        ),
        (
            "id = \"a.example\", certs = [\"a.pem\"], key = \"nothing\"",
            REMOTE,
            "nothing: there is no -----BEGIN … block in it, and it is not DER",
        ),
        (
            "id = \"a.example\", certs = [\"a.key\"], key = \"a.key\"",
            REMOTE,
            "a.key has no CERTIFICATE in it, only PRIVATE KEY",
        ),
        (
            LOCAL,
            "id = \"b.example\", auth = \"pubkey\"",
            "`connection.x.remote.cacerts` is missing: auth = \"pubkey\" needs to know whom to trust",
        ),
        (
            LOCAL,
            "id = \"b.example\", cacerts = [\"b.pem\"]",
            "\"CN=b.example\" is no authority",
        ),
        (
            LOCAL,
            "id = \"%any\", pubkeys = [\"b.pub\"]",
            "`remote.id` must say exactly whose it is",
        ),
        (
            LOCAL,
            "id = \"b.example\", auth = \"eap\"",
            "EAP is not in this version",
        ),
    ] {
        let error = load_sides(local, remote).unwrap_err();
        assert!(error.contains(words), "`{words}` is not in:\n{error}");
        assert_eq!(error.lines().last(), Some("1 error"), "{error}");
    }
    // The peer proves itself with a pre-shared key, and there is none.
    let error = load_sides(LOCAL, "id = \"b.example\"").unwrap_err();
    assert!(
        error.contains("there is no file of pre-shared keys here"),
        "{error}"
    );
    let old = load_sides(
        "id = \"a.example\", certs = [\"old.pem\"], key = \"old.key\"",
        REMOTE,
    )
    .unwrap();
    assert!(
        old.warnings[0]
            .message
            .contains("the certificate of \"CN=a.example\" expired at ")
    );
}
