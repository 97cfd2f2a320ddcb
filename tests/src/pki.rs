//! Authorities, keys and certificates, made by `espada pki` as an administrator would.

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
