//! Gateways that ask by HTTP whether their peer's certificate was revoked.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use espada_tests::cmd;
use espada_tests::espada::Espada;
use espada_tests::http::Server;
use espada_tests::pki::Pki;
use espada_tests::process::{Process, WorkDir};
use espada_tests::scenario::{self, ID_A, ID_B, verify_v4};
use espada_tests::skip_unless_possible;
use espada_tests::topology::{Line, Wan};

const LOCAL_A: &str = "auth = \"pubkey\", certs = [\"a.example.pem\"], key = \"a.example.key\"";
const LOCAL_B: &str = "auth = \"pubkey\", certs = [\"b.example.pem\"], key = \"b.example.key\"";
const RELAXED: &str = "auth = \"pubkey\", cacerts = [\"ca.pem\"]";
const STRICT: &str = "auth = \"pubkey\", cacerts = [\"ca.pem\"], revocation = \"strict\"";
/// A host behind gateway B.
const SERVER: &str = "10.61.2.2:8080";
const LIST: &str = "crlDistributionPoints=URI:http://10.61.2.2:8080/ca.crl";
const RESPONDER: &str = "authorityInfoAccess=OCSP;URI:http://10.61.2.2:8081/";
const SERIAL_A: &str = "4A01";

/// Two gateways, of which B asks about A's certificate.
struct Scene {
    a: Espada,
    b: Espada,
    files_b: PathBuf,
    pki: Pki,
    line: Line,
    _work: WorkDir,
}

/// `asked`: where A's certificate says that is done.
fn scene(remote: &'static str, asked: &[&str], revoked: &[&str]) -> Result<Scene> {
    let line = Line::new(Wan::Switch)?;
    let work = WorkDir::new()?;
    let pki = Pki::new(&work.file("pki"), "ecdsa256")?;
    pki.issue(ID_A, "ecdsa256")?;
    pki.issue(ID_B, "ecdsa256")?;
    pki.certify(ID_A, SERIAL_A, asked)?;
    let good: &[&str] = if revoked.contains(&SERIAL_A) {
        &[]
    } else {
        &[SERIAL_A]
    };
    pki.write_database(revoked, good)?;
    pki.write_list("ca.crl")?;
    let folder = |name: &str| work.file(&format!("espada-{name}"));
    let files_b = folder(line.gw_b.name());
    pki.deliver(ID_A, &folder(line.gw_a.name()))?;
    pki.deliver(ID_B, &files_b)?;
    let (mut a, mut b) = (scenario::config_a(&line), scenario::config_b(&line));
    (a.local_auth, a.remote_auth) = (LOCAL_A, RELAXED);
    (b.local_auth, b.remote_auth) = (LOCAL_B, remote);
    let b = Espada::start(&line.gw_b, &work, &b, false)?;
    let a = Espada::start(&line.gw_a, &work, &a, false)?;
    Ok(Scene {
        a,
        b,
        files_b,
        pki,
        line,
        _work: work,
    })
}

impl Scene {
    fn serve(&self) -> Result<Server> {
        Server::start(&self.line.server, SERVER, &self.pki.file("."))
    }

    /// openssl's responder, which signs with a key of the folder.
    fn respond(&self, signer: &str) -> Result<Process> {
        let file = |name: &str| self.pki.file(name).display().to_string();
        let (index, ca) = (file("index.txt"), file("ca.pem"));
        let (certificate, key) = (
            file(&format!("{signer}.pem")),
            file(&format!("{signer}.key")),
        );
        let argv = self.line.server.argv(&[
            "openssl",
            "ocsp",
            "-index",
            &index,
            "-port",
            "8081",
            "-CA",
            &ca,
            "-rsigner",
            &certificate,
            "-rkey",
            &key,
            "-nmin",
            "60",
        ])?;
        let log = self.pki.file("ocsp.log");
        let responder = Process::start("openssl ocsp", &argv, &[], &log, false)?;
        cmd::wait_for("openssl's responder", Duration::from_secs(10), || {
            Ok(responder
                .log()
                .contains("waiting for OCSP client")
                .then_some(()))
        })?;
        Ok(responder)
    }
}

#[test]
fn a_peer_on_its_authoritys_list_is_refused() -> Result<()> {
    skip_unless_possible!("a_peer_on_its_authoritys_list_is_refused");
    let scene = scene(RELAXED, &[LIST], &[SERIAL_A])?;
    let server = scene.serve()?;
    ensure!(scene.a.up().is_err(), "B's log:\n{}", scene.b.log());
    let refusal = scene.b.wait_refusal()?.to_string();
    for words in ["was revoked at 2020-01-01", "remote.revocation"] {
        ensure!(refusal.contains(words), "{words}: {refusal}");
    }
    ensure!(server.requests() == 1, "{} requests", server.requests());
    Ok(())
}

#[test]
fn a_list_is_kept_for_the_next_daemon() -> Result<()> {
    skip_unless_possible!("a_list_is_kept_for_the_next_daemon");
    let mut scene = scene(STRICT, &[LIST], &["4A02"])?;
    let server = scene.serve()?;
    scene.a.up()?;
    scene.b.wait_established()?;
    verify_v4(&scene.line)?;
    scene.a.down()?;
    scene.a.up()?;
    ensure!(server.requests() == 1, "{} requests", server.requests());
    drop(server);
    scene.b.stop()?;
    scene.b = Espada::start_from(&scene.line.gw_b, &scene.files_b, false)?;
    scene.a.up()?;
    verify_v4(&scene.line)
}

#[test]
fn a_server_that_is_down_is_explained_or_passed_over() -> Result<()> {
    skip_unless_possible!("a_server_that_is_down_is_explained_or_passed_over");
    let strict = scene(STRICT, &[LIST], &[])?;
    ensure!(strict.a.up().is_err());
    let refusal = strict.b.wait_refusal()?.to_string();
    for words in ["it is not known whether", SERVER, "remote.revocation"] {
        ensure!(refusal.contains(words), "{words}: {refusal}");
    }
    drop(strict);
    let relaxed = scene(RELAXED, &[LIST], &[])?;
    relaxed.a.up()?;
    relaxed
        .b
        .wait_log("it is not known whether a certificate was revoked")?;
    verify_v4(&relaxed.line)
}

#[test]
fn a_responder_tells_good_from_revoked() -> Result<()> {
    skip_unless_possible!("a_responder_tells_good_from_revoked");
    let good = scene(STRICT, &[RESPONDER, LIST], &[])?;
    good.pki.issue("responder", "ecdsa256")?;
    good.pki
        .certify("responder", "4A03", &["extendedKeyUsage=OCSPSigning"])?;
    let responder = good.respond("responder")?;
    good.a.up()?;
    verify_v4(&good.line)?;
    let log = good.b.log();
    ensure!(
        log.contains("asking http://10.61.2.2:8081/") && !log.contains("ca.crl"),
        "{log}"
    );
    drop(responder);
    drop(good);
    let bad = scene(RELAXED, &[RESPONDER], &[SERIAL_A])?;
    let _responder = bad.respond("ca")?;
    ensure!(bad.a.up().is_err(), "B's log:\n{}", bad.b.log());
    let refusal = bad.b.wait_refusal()?.to_string();
    for words in ["was revoked at 2020-01-01", "remote.revocation"] {
        ensure!(refusal.contains(words), "{words}: {refusal}");
    }
    Ok(())
}
