//! Authorities, keys and certificates, made by `espada pki` as an administrator would, and by openssl what
//! that does not make.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::cmd;
use crate::espada;

/// A folder with an authority (`ca.pem`) and what it issues (`ID.pem`, `ID.key`).
#[derive(Debug)]
pub struct Pki(PathBuf);

impl Pki {
    /// Makes an authority in a folder, with a key of a kind such as `ecdsa256`.
    pub fn new(folder: &Path, kind: &str) -> Result<Self> {
        let this = Self(folder.to_owned());
        this.run(&["ca", "--type", kind])?;
        Ok(this)
    }

    /// Makes a key and a certificate for an identity.
    pub fn issue(&self, id: &str, kind: &str) -> Result<()> {
        self.run(&["issue", id, "--type", kind])
    }

    /// Makes an RSA key with openssl, and a certificate of it.
    pub fn issue_rsa(&self, id: &str) -> Result<()> {
        let key = self.file(&format!("{id}.key")).display().to_string();
        cmd::run(&["openssl", "genrsa", "-out", &key, "2048"])?;
        self.run(&["issue", id, "--key", &key])
    }

    /// Certifies the key of an identity again, by openssl with a serial number in hexadecimal and
    /// further extensions in its words.
    pub fn certify(&self, id: &str, serial: &str, extensions: &[&str]) -> Result<()> {
        let file = |name: &str| self.file(name).display().to_string();
        let (key, request) = (file(&format!("{id}.key")), file("request.pem"));
        let (subject, names) = (format!("/CN={id}"), format!("subjectAltName=DNS:{id}"));
        cmd::run(&[
            "openssl", "req", "-new", "-key", &key, "-subj", &subject, "-out", &request,
        ])?;
        let usual = [
            "basicConstraints=critical,CA:FALSE",
            "keyUsage=critical,digitalSignature",
            "authorityKeyIdentifier=keyid",
            &names,
        ];
        let words = file("extensions.cnf");
        std::fs::write(&words, [&usual, extensions].concat().join("\n"))?;
        let serial = format!("0x{serial}");
        cmd::run(&[
            "openssl",
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &file("ca.pem"),
            "-CAkey",
            &file("ca.key"),
            "-set_serial",
            &serial,
            "-days",
            "30",
            "-extfile",
            &words,
            "-out",
            &file(&format!("{id}.pem")),
        ])
        .map(drop)
    }

    /// Writes openssl's database of certificates, by serial numbers in hexadecimal: those that were
    /// revoked, and those that were not.
    pub fn write_database(&self, revoked: &[&str], good: &[&str]) -> Result<()> {
        let bad = revoked
            .iter()
            .map(|serial| format!("R\t400101000000Z\t200101000000Z\t{serial}\tunknown\t/CN=bad\n"));
        let good = good
            .iter()
            .map(|serial| format!("V\t400101000000Z\t\t{serial}\tunknown\t/CN=good\n"));
        std::fs::write(self.file("index.txt"), bad.chain(good).collect::<String>())?;
        Ok(())
    }

    /// Makes the authority's revocation list, in DER, of what the database says is revoked.
    pub fn write_list(&self, name: &str) -> Result<()> {
        let file = |name: &str| self.file(name).display().to_string();
        let (settings, pem) = (file("ca.cnf"), file("list.pem"));
        let text = format!(
            "[ca]\ndefault_ca = it\n[it]\ndatabase = {}\ndefault_md = sha256\ndefault_crl_days = 1\n",
            file("index.txt")
        );
        std::fs::write(&settings, text)?;
        cmd::run(&[
            "openssl",
            "ca",
            "-gencrl",
            "-config",
            &settings,
            "-keyfile",
            &file("ca.key"),
            "-cert",
            &file("ca.pem"),
            "-out",
            &pem,
        ])?;
        cmd::run(&[
            "openssl",
            "crl",
            "-in",
            &pem,
            "-outform",
            "DER",
            "-out",
            &file(name),
        ])
        .map(drop)
    }

    /// A file of the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Gives a gateway's folder what belongs there: the authority's certificate, its own, and its key.
    pub fn deliver(&self, id: &str, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        for name in [
            "ca.pem".to_owned(),
            format!("{id}.pem"),
            format!("{id}.key"),
        ] {
            // Copies keep the mode, which is what keys are examined for.
            std::fs::copy(self.file(&name), folder.join(&name))?;
        }
        Ok(())
    }

    fn run(&self, arguments: &[&str]) -> Result<()> {
        let binary = espada::binary()?.display().to_string();
        let dir = self.0.display().to_string();
        let command = [&[&binary[..], "pki"], arguments, &["--dir", &dir]].concat();
        cmd::run(&command).map(drop)
    }
}
