//! Certificates and keys of a connection: the files its settings name.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use espada_ike::Identity;
use espada_ike::config::{Credential, LocalAuth, RemoteAuth, RemoteIdentity, SendCert};
use espada_ike::crypto::signature::{PrivateKey, PublicKey};
use espada_ike::pem::{self, Block};
use espada_ike::x509::{Certificate, Crl, Revocation, Trust, show_time};
use zeroize::Zeroizing;

use super::SecretsPolicy;
use super::document::{Document, Located, Span, Table};
use super::secrets::exposure;

/// Longest file of certificates or keys, in octets; revocation lists may be as long.
const MAX_FILE: u64 = 16 << 20;
/// A certificate that expires within this time is warned about.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// How a side authenticates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Method {
    Psk,
    PublicKey,
}

/// The words of `auth`, and those that other programs have.
pub(super) const METHODS: [(&str, Option<Method>); 3] = [
    ("psk", Some(Method::Psk)),
    ("pubkey", Some(Method::PublicKey)),
    ("eap", None),
];

/// What `local` or `remote` says of authentication.
#[derive(Default)]
pub(super) struct Files {
    pub auth: Option<Located<Option<Method>>>,
    pub certs: Vec<Located<String>>,
    pub cacerts: Vec<Located<String>>,
    pub pubkeys: Vec<Located<String>>,
    pub crls: Vec<Located<String>>,
    pub key: Option<Located<String>>,
    pub revocation: Revocation,
}

impl Files {
    /// Reads the settings of one side.
    pub fn read(end: &Table<'_, '_>) -> Self {
        let owned = |found: Located<&str>| Located {
            value: found.value.to_owned(),
            span: found.span,
        };
        let list = |key: &str| {
            let found = end.strings(key, "a file or a list of files");
            found.unwrap_or_default().into_iter().map(owned).collect()
        };
        let choices = [
            ("relaxed", Revocation::Relaxed),
            ("ifuri", Revocation::IfUri),
            ("strict", Revocation::Strict),
            ("ifpresent", Revocation::IfPresent),
            ("off", Revocation::Off),
        ];
        Self {
            auth: end.choice("auth", &METHODS),
            certs: list("certs"),
            cacerts: list("cacerts"),
            pubkeys: list("pubkeys"),
            crls: list("crls"),
            key: end.string("key", "the file of a private key").map(owned),
            revocation: end
                .choice("revocation", &choices)
                .map_or(Revocation::default(), |found| found.value),
        }
    }
}

/// When a connection's peer is sent our certificates.
pub(super) fn send_cert(connection: &Table<'_, '_>) -> SendCert {
    let choices = [
        ("always", SendCert::Always),
        ("ifasked", SendCert::IfAsked),
        ("never", SendCert::Never),
    ];
    let found = connection.choice("send_cert", &choices);
    found.map_or(SendCert::default(), |found| found.value)
}

/// Complains of a method that is not there yet.
pub(super) fn refuse_eap(document: &Document<'_>, auth: Option<&Located<Option<Method>>>) {
    if let Some(Located { value: None, span }) = auth {
        document.error(
            span,
            "EAP is not in this version of Espada",
            Some("use auth = \"psk\" or auth = \"pubkey\"".to_owned()),
        );
    }
}

/// The method of a side: its own `auth`, else the connection's, else what its files are for.
pub(super) fn method(files: &Files, connection: Option<&Located<Option<Method>>>) -> Method {
    match files.auth.as_ref().or(connection) {
        Some(found) => found.value.unwrap_or(Method::Psk),
        None if files.key.is_some() || !files.cacerts.is_empty() || !files.certs.is_empty() => {
            Method::PublicKey
        }
        None if !files.pubkeys.is_empty() => Method::PublicKey,
        None => Method::Psk,
    }
}

/// Loads files and complains about them where they are named.
pub(super) struct Loader<'a, 'i> {
    pub document: &'a Document<'i>,
    pub policy: SecretsPolicy,
}

impl Loader<'_, '_> {
    fn error(&self, span: &Span, message: impl Into<String>, help: Option<String>) {
        self.document.error(span, message, help);
    }

    /// A path as it was meant: from the folder of the configuration.
    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.document.name()).with_file_name(name)
    }

    fn blocks(&self, name: &Located<String>, secret: bool) -> Option<Vec<Block>> {
        let path = self.path(&name.value);
        let shown = path.display();
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error)
                if secret
                    && error.kind() == std::io::ErrorKind::PermissionDenied
                    && self.policy == SecretsPolicy::IfReadable =>
            {
                let message =
                    format!("{shown} is not readable by this user: the key was not checked");
                self.document.warning(&name.span, message, None);
                return None;
            }
            Err(error) => {
                self.error(&name.span, format!("cannot open {shown}: {error}"), None);
                return None;
            }
        };
        let read = || -> std::io::Result<Zeroizing<Vec<u8>>> {
            let metadata = file.metadata()?;
            if secret {
                let us = crate::syscall::effective_uid();
                let exposed = exposure(
                    &path,
                    "the private key",
                    metadata.mode(),
                    metadata.uid(),
                    us,
                );
                if let Err((message, help)) = exposed {
                    self.error(&name.span, format!("{shown}: {message}"), Some(help));
                }
            }
            if metadata.len() > MAX_FILE {
                return Err(std::io::Error::other(format!(
                    "it is larger than {MAX_FILE} octets"
                )));
            }
            // Reserved at once: growing would leave unwiped copies behind.
            let room = usize::try_from(metadata.len()).unwrap_or(0) + 1;
            let mut octets = Zeroizing::new(Vec::with_capacity(room));
            (&file).take(MAX_FILE).read_to_end(&mut octets)?;
            Ok(octets)
        };
        let octets = match read() {
            Ok(octets) => octets,
            Err(error) => {
                self.error(&name.span, format!("cannot read {shown}: {error}"), None);
                return None;
            }
        };
        match pem::blocks(&octets) {
            Ok(blocks) => Some(blocks),
            Err(error) => {
                self.error(&name.span, format!("{shown}: {error}"), None);
                None
            }
        }
    }

    /// Reads everything of one kind in files, whose PEM label is `label`.
    fn read_all<T>(
        &self,
        names: &[Located<String>],
        label: &str,
        parse: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Vec<Located<T>> {
        let mut all = Vec::new();
        for name in names {
            let Some(blocks) = self.blocks(name, false) else {
                continue;
            };
            let shown = self.path(&name.value);
            let fits = |block: &&Block| block.label.as_deref().is_none_or(|found| found == label);
            let mut found = false;
            for block in blocks.iter().filter(fits) {
                found = true;
                match parse(&block.der) {
                    Ok(value) => all.push(Located {
                        value,
                        span: name.span.clone(),
                    }),
                    Err(error) => {
                        let place = format!("{}:{}", shown.display(), block.line);
                        self.error(&name.span, format!("{place}: {error}"), None);
                    }
                }
            }
            if !found {
                let labels: Vec<&str> = blocks
                    .iter()
                    .filter_map(|block| block.label.as_deref())
                    .collect();
                let message = format!(
                    "{} has no {label} in it, only {}",
                    shown.display(),
                    labels.join(", ")
                );
                self.error(&name.span, message, None);
            }
        }
        all
    }

    fn certificates(&self, names: &[Located<String>]) -> Vec<Located<Arc<Certificate>>> {
        let parse = |der: &[u8]| {
            let certificate = Certificate::from_der(der).map_err(|error| error.to_string())?;
            Ok(Arc::new(certificate))
        };
        let all = self.read_all(names, "CERTIFICATE", parse);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = now.unwrap_or_default();
        for found in &all {
            let (subject, end) = (found.value.subject(), found.value.not_after());
            let message = if found.value.not_before() > now {
                format!(
                    "the certificate of \"{subject}\" is not valid before {}",
                    show_time(found.value.not_before())
                )
            } else if end < now {
                format!(
                    "the certificate of \"{subject}\" expired at {}",
                    show_time(end)
                )
            } else if end < now + SOON {
                format!(
                    "the certificate of \"{subject}\" expires soon, at {}",
                    show_time(end)
                )
            } else {
                continue;
            };
            let help = Some("get a new one from who issued it".to_owned());
            self.document.warning(&found.span, message, help);
        }
        all
    }

    fn key(&self, name: &Located<String>) -> Option<PrivateKey> {
        let blocks = self.blocks(name, true)?;
        let shown = self.path(&name.value);
        let is_key = |block: &&Block| {
            let label = block.label.as_deref();
            label.is_none_or(|label| label.ends_with("PRIVATE KEY"))
        };
        let Some(block) = blocks.iter().find(is_key) else {
            let message = format!("{} has no PRIVATE KEY in it", shown.display());
            self.error(&name.span, message, None);
            return None;
        };
        match PrivateKey::from_der(&block.der) {
            Ok(key) => Some(key),
            Err(error) => {
                let message = format!("{}:{}: {error}", shown.display(), block.line);
                self.error(&name.span, message, None);
                None
            }
        }
    }

    /// Our credential, and our identity where it is left to the certificate. `None` after a complaint.
    pub fn local(
        &self,
        table: &Table<'_, '_>,
        span: &Span,
        files: &Files,
        id: Option<&Located<String>>,
        local_id: &mut Option<Identity>,
    ) -> Option<LocalAuth> {
        let Some(key_name) = &files.key else {
            self.error(
                span,
                format!("`{}.local.key` is missing: auth = \"pubkey\" needs our private key", table.path()),
                Some("add key = \"FILE\" to local; `espada pki issue` makes a key and its certificate".to_owned()),
            );
            return None;
        };
        let errors = self.document.error_count();
        let certificates = self.certificates(&files.certs);
        let key = self.key(key_name);
        let mut chain: Vec<Arc<Certificate>> = certificates
            .iter()
            .map(|found| found.value.clone())
            .collect();
        // Without the key, for lack of permission, the first is taken for ours.
        let ours = match &key {
            Some(key) => chain.iter().position(|certificate| {
                certificate.key().is_ok_and(|public| public == key.public())
            }),
            None => (!chain.is_empty()).then_some(0),
        };
        if let (None, Some(first), Some(key)) = (ours, chain.first(), &key) {
            self.error(
                &key_name.span,
                format!(
                    "{} is not the key of the certificate of \"{}\": it is another {} key",
                    self.path(&key_name.value).display(),
                    first.subject(),
                    key.public().kind(),
                ),
                Some("set local.key to the key that the certificate was made for".to_owned()),
            );
        }
        if let Some(at) = ours {
            let own = chain.remove(at);
            match (&local_id, id) {
                (Some(identity), Some(id)) if !own.names(identity) => self.error(
                    &id.span,
                    format!(
                        "{identity} is not in our certificate, whose names are {}",
                        own.shown_names()
                    ),
                    Some("use one of these names, or get a certificate for this one".to_owned()),
                ),
                (None, None) => {
                    let name = Identity::Name(own.subject().clone());
                    if own.names(&name) {
                        *local_id = Some(name);
                    } else {
                        self.error(
                            span,
                            format!(
                                "`{}.local.id` is missing, and our certificate has no subject to take it from",
                                table.path()
                            ),
                            Some(format!("set id to one of {}", own.shown_names())),
                        );
                    }
                }
                _ => {}
            }
            chain.insert(0, own);
        }
        if self.document.error_count() > errors {
            return None;
        }
        Some(match key {
            Some(key) => LocalAuth::PublicKey(Arc::new(Credential {
                key,
                certificates: chain,
                origin: self.document.origin(&key_name.span),
            })),
            // `espada check` as somebody else: what needs the key is not done with this.
            None => LocalAuth::Psk,
        })
    }

    /// Whom we believe to be the peer. `None` after a complaint.
    pub fn remote(
        &self,
        table: &Table<'_, '_>,
        span: &Span,
        files: &Files,
        id: &mut RemoteIdentity,
        id_is_set: bool,
    ) -> Option<RemoteAuth> {
        let errors = self.document.error_count();
        if files.cacerts.is_empty() && files.certs.is_empty() && files.pubkeys.is_empty() {
            self.error(
                span,
                format!("`{}.remote.cacerts` is missing: auth = \"pubkey\" needs to know whom to trust", table.path()),
                Some("add cacerts = [\"FILE\"] with the authority's certificate, or certs = [\"FILE\"] with the peer's own".to_owned()),
            );
        }
        let authorities = self.certificates(&files.cacerts);
        for found in authorities
            .iter()
            .filter(|found| !found.value.is_authority())
        {
            self.error(
                &found.span,
                format!(
                    "\"{}\" is no authority: its certificate lacks CA in the basic constraints",
                    found.value.subject()
                ),
                Some("put a peer's own certificate into remote.certs".to_owned()),
            );
        }
        let pinned = self.certificates(&files.certs);
        if let ([only], false, true) = (&pinned[..], id_is_set, authorities.is_empty()) {
            let name = Identity::Name(only.value.subject().clone());
            if only.value.names(&name) {
                *id = RemoteIdentity::Is(name);
            }
        }
        if let RemoteIdentity::Is(identity) = id {
            for found in pinned.iter().filter(|found| !found.value.names(identity)) {
                self.document.warning(
                    &found.span,
                    format!(
                        "{identity}, the peer's identity, is not in this certificate, whose names are {}",
                        found.value.shown_names()
                    ),
                    Some("set remote.id to one of them".to_owned()),
                );
            }
        }
        let parse = |der: &[u8]| PublicKey::from_spki(der).map_err(|error| error.to_string());
        let keys = self.read_all(&files.pubkeys, "PUBLIC KEY", parse);
        if let (Some(first), false) = (
            files.pubkeys.first(),
            matches!(id, RemoteIdentity::Is(_) | RemoteIdentity::Address),
        ) {
            self.error(
                &first.span,
                "a raw public key has no names, so `remote.id` must say exactly whose it is",
                Some("set remote.id to the peer's identity".to_owned()),
            );
        }
        let parse = |der: &[u8]| {
            Crl::from_der(der)
                .map(Arc::new)
                .map_err(|error| error.to_string())
        };
        let crls = self.read_all(&files.crls, "X509 CRL", parse);
        if self.document.error_count() > errors {
            return None;
        }
        fn values<T>(list: Vec<Located<T>>) -> Vec<T> {
            list.into_iter().map(|found| found.value).collect()
        }
        Some(RemoteAuth::PublicKey(Arc::new(Trust {
            authorities: values(authorities),
            pinned: values(pinned),
            keys: values(keys),
            crls: values(crls),
            revocation: files.revocation,
        })))
    }
}
