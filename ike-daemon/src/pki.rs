//! `espada pki`: an authority for a few gateways, in files.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use espada_ike::crypto::signature::{KeyType, PrivateKey, PublicKey};
use espada_ike::x509::issue::{Issuer, Template, alt_name};
use espada_ike::x509::{Certificate, Crl, show_time};
use espada_ike::{DistinguishedName, Identity, pem};
use zeroize::Zeroizing;

use crate::daemon::SystemRandom;

/// Clocks differ: a certificate is valid from this long before it was made.
const BACKDATED: Duration = Duration::from_secs(3600);
/// Longest file that is read, in octets.
const MAX_FILE: u64 = 16 << 20;

#[derive(Subcommand)]
pub(crate) enum Pki {
    /// Make an authority: ca.pem, which peers trust, and ca.key, which signs.
    Ca {
        /// Its distinguished name.
        #[arg(long, value_name = "NAME", default_value = "CN=Espada CA")]
        name: DistinguishedName,
        #[command(flatten)]
        options: Options,
        /// Days until it expires.
        #[arg(long, value_name = "N", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..36_500))]
        days: u32,
    },
    /// Make a key and its certificate, signed by the authority in the same folder.
    Issue {
        /// Identity of the gateway: a name, an address, an e-mail address or a distinguished name.
        id: Identity,
        /// Further names of it.
        #[arg(long = "also", value_name = "ID")]
        also: Vec<Identity>,
        /// Certify the key of this file instead of making one.
        #[arg(long, value_name = "FILE")]
        key: Option<PathBuf>,
        #[command(flatten)]
        options: Options,
        /// Days until it expires.
        #[arg(long, value_name = "N", default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..36_500))]
        days: u32,
    },
    /// Show what is in a file of certificates, keys or revocation lists.
    Show {
        /// PEM or DER.
        file: PathBuf,
    },
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Kind of key: ecdsa256, ecdsa384, ecdsa521 or ed25519.
    #[arg(long = "type", value_name = "TYPE", default_value = "ecdsa256")]
    kind: KeyType,
    /// The folder of the authority, where the files are made.
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// Runs a command; gives what there is to say about it.
pub(crate) fn run(command: &Pki) -> anyhow::Result<String> {
    match command {
        Pki::Ca {
            name,
            options,
            days,
        } => make_authority(name, options, *days),
        Pki::Issue {
            id,
            also,
            key,
            options,
            days,
        } => issue(id, also, key.as_deref(), options, *days),
        Pki::Show { file } => show(file),
    }
}

fn now() -> anyhow::Result<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.context("this machine's clock is before 1970: set it first")
}

fn days(count: u32) -> Duration {
    Duration::from_secs(u64::from(count) * 86_400)
}

/// Writes a new file; one that is there stays, as it may be somebody's only copy.
fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| {
        format!(
            "cannot make {}: give another --dir, or move the file away",
            path.display()
        )
    })?;
    file.write_all(text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes key and certificate, the key first: a certificate without one is of no use.
fn write_pair(
    base: &Path,
    key: Option<&Zeroizing<Vec<u8>>>,
    certificate: &Certificate,
) -> anyhow::Result<(PathBuf, Option<PathBuf>)> {
    let with = |extension: &str| {
        let mut name = base.as_os_str().to_owned();
        name.push(extension);
        PathBuf::from(name)
    };
    let (certificate_file, key_file) = (with(".pem"), with(".key"));
    let text = pem::encode("CERTIFICATE", certificate.der()).context("a certificate in PEM")?;
    if certificate_file.exists() {
        bail!(
            "{} is there already: give another --dir, or move the file away",
            certificate_file.display()
        );
    }
    if let Some(key) = key {
        let text = pem::encode("PRIVATE KEY", key).context("a key in PEM")?;
        write_new(&key_file, 0o600, &text)?;
    }
    write_new(&certificate_file, 0o644, &text)?;
    Ok((certificate_file, key.map(|_| key_file)))
}

fn make_authority(
    name: &DistinguishedName,
    options: &Options,
    valid: u32,
) -> anyhow::Result<String> {
    let now = now()?;
    let (key, der) = PrivateKey::generate(options.kind, &mut SystemRandom)?;
    let template = Template::authority(
        name.clone(),
        now.saturating_sub(BACKDATED),
        now + days(valid),
    );
    let issuer = Issuer { name, key: &key };
    let certificate = template.issue(key.public(), &issuer, &mut SystemRandom)?;
    std::fs::create_dir_all(&options.dir)
        .with_context(|| format!("cannot make the folder {}", options.dir.display()))?;
    let (pem, key) = write_pair(&options.dir.join("ca"), Some(&der), &certificate)?;
    Ok(format!(
        "{}: authority \"{name}\", valid to {}; give it to every gateway as remote.cacerts\n\
         {}: its private key; keep it where no gateway is\n",
        pem.display(),
        show_time(certificate.not_after()),
        key.unwrap_or_default().display(),
    ))
}

fn read(path: &Path) -> anyhow::Result<Vec<pem::Block>> {
    let size = std::fs::metadata(path)
        .with_context(|| format!("cannot read {}", path.display()))?
        .len();
    if size > MAX_FILE {
        bail!("{} is larger than {MAX_FILE} octets", path.display());
    }
    let octets = Zeroizing::new(
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?,
    );
    pem::blocks(&octets).with_context(|| path.display().to_string())
}

fn read_key(path: &Path) -> anyhow::Result<PrivateKey> {
    let blocks = read(path)?;
    let is_key = |block: &&pem::Block| {
        let label = block.label.as_deref();
        label.is_none_or(|label| label.ends_with("PRIVATE KEY"))
    };
    let block = blocks.iter().find(is_key);
    let block = block.with_context(|| format!("{} has no PRIVATE KEY in it", path.display()))?;
    PrivateKey::from_der(&block.der).with_context(|| format!("{}:{}", path.display(), block.line))
}

/// A file name for an identity.
fn file_name(id: &Identity) -> String {
    let keep = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.@".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = id.to_string().chars().map(keep).collect();
    name.trim_start_matches('.').to_owned()
}

fn issue(
    id: &Identity,
    also: &[Identity],
    key_file: Option<&Path>,
    options: &Options,
    valid: u32,
) -> anyhow::Result<String> {
    let now = now()?;
    let authority_file = options.dir.join("ca.pem");
    let advice = "make an authority first with `espada pki ca`, or name its folder with --dir";
    let blocks = read(&authority_file).context(advice)?;
    let block = blocks.first().context("ca.pem has nothing in it")?;
    let authority =
        Certificate::from_der(&block.der).with_context(|| authority_file.display().to_string())?;
    let authority_key = read_key(&options.dir.join("ca.key")).context(advice)?;
    if authority.key().ok() != Some(authority_key.public()) {
        bail!(
            "ca.key is not the key of ca.pem in {}",
            options.dir.display()
        );
    }
    let (key, der) = match key_file {
        Some(file) => (read_key(file)?, None),
        None => {
            let (key, der) = PrivateKey::generate(options.kind, &mut SystemRandom)?;
            (key, Some(der))
        }
    };
    let subject = match id {
        Identity::Name(name) => name.clone(),
        Identity::KeyId(_) | Identity::Other { .. } => {
            bail!(
                "a certificate cannot be for {id}: give a name, an address, an e-mail address or a distinguished name"
            )
        }
        other => format!("CN={other}")
            .parse()
            .with_context(|| format!("{other} cannot be a subject's name"))?,
    };
    let template = Template {
        subject,
        alt_names: std::iter::once(id)
            .chain(also)
            .filter_map(alt_name)
            .collect(),
        authority: None,
        not_before: now.saturating_sub(BACKDATED),
        // It would not be believed beyond its authority's own time.
        not_after: (now + days(valid)).min(authority.not_after()),
    };
    let issuer = Issuer {
        name: authority.subject(),
        key: &authority_key,
    };
    let certificate = template.issue(key.public(), &issuer, &mut SystemRandom)?;
    let base = options.dir.join(file_name(id));
    let (pem, made) = write_pair(&base, der.as_ref(), &certificate)?;
    let key_shown = made
        .as_deref()
        .or(key_file)
        .unwrap_or(Path::new(""))
        .display();
    Ok(format!(
        "{}: certificate of {}, valid to {}\n{key_shown}: its private key, for that gateway alone\n\
         in its configuration:  local = {{ id = \"{id}\", certs = [\"{}\"], key = \"{}\", … }}\n\
         in its peers':         remote = {{ id = \"{id}\", cacerts = [\"ca.pem\"], … }}\n",
        pem.display(),
        certificate.shown_names(),
        show_time(certificate.not_after()),
        name_of(&pem),
        name_of(made.as_deref().or(key_file).unwrap_or(Path::new(""))),
    ))
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn show(file: &Path) -> anyhow::Result<String> {
    let mut text = String::new();
    for block in read(file)? {
        let place = format!("{}:{}", file.display(), block.line);
        text.push_str(&describe(&block).with_context(|| place)?);
    }
    Ok(text)
}

fn hexadecimal(octets: &[u8]) -> String {
    let pairs: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    pairs.join(":")
}

fn describe(block: &pem::Block) -> anyhow::Result<String> {
    let label = block.label.as_deref();
    // A file of DER does not say what it is.
    Ok(match label {
        Some("CERTIFICATE") => certificate(&Certificate::from_der(&block.der)?),
        Some("X509 CRL") => list(&Crl::from_der(&block.der)?),
        Some("PUBLIC KEY") => format!("public key: {}\n", PublicKey::from_spki(&block.der)?.kind()),
        Some(label) if label.ends_with("PRIVATE KEY") => {
            format!(
                "private key: {}\n",
                PrivateKey::from_der(&block.der)?.public().kind()
            )
        }
        Some(label) => format!("{label}: not shown\n"),
        None => match (
            Certificate::from_der(&block.der),
            PrivateKey::from_der(&block.der),
        ) {
            (Ok(found), _) => certificate(&found),
            (_, Ok(key)) => format!("private key: {}\n", key.public().kind()),
            (Err(error), _) => {
                match (Crl::from_der(&block.der), PublicKey::from_spki(&block.der)) {
                    (Ok(crl), _) => list(&crl),
                    (_, Ok(key)) => format!("public key: {}\n", key.kind()),
                    _ => return Err(error.into()),
                }
            }
        },
    })
}

fn list(crl: &Crl) -> String {
    let next = crl
        .next_update()
        .map_or("is not announced".to_owned(), show_time);
    format!(
        "revocation list\n  issuer    {}\n  revoked   {} certificates\n  the next  {next}\n",
        crl.issuer(),
        crl.len(),
    )
}

fn certificate(certificate: &Certificate) -> String {
    let key = match certificate.key() {
        Ok(key) => key.kind().to_string(),
        Err(error) => error.to_string(),
    };
    let names = certificate.alt_names();
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let what = if certificate.is_authority() {
        "authority"
    } else {
        "end"
    };
    format!(
        "certificate ({what})\n  subject   {}\n  names     {}\n  issuer    {}\n  serial    {}\n  valid     {} to {}\n  key       {key}\n  key id    {}\n",
        certificate.subject(),
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        },
        certificate.issuer(),
        hexadecimal(certificate.serial()),
        show_time(certificate.not_before()),
        show_time(certificate.not_after()),
        certificate.key_id().map_or("none".to_owned(), hexadecimal),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn options(dir: &Path, kind: &str) -> Options {
        Options {
            kind: kind.parse().unwrap(),
            dir: dir.to_owned(),
        }
    }

    #[test]
    fn an_authority_and_what_it_issues() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let id: Identity = "gw.example.org".parse().unwrap();
        let early = issue(&id, &[], None, &options(dir, "ecdsa256"), 10).unwrap_err();
        assert!(
            format!("{early:#}").contains("`espada pki ca`"),
            "{early:#}"
        );
        for (index, kind) in ["ecdsa256", "ecdsa384", "ecdsa521", "ed25519"]
            .into_iter()
            .enumerate()
        {
            let dir = dir.join(index.to_string());
            let options = options(&dir, kind);
            let name = "O=Example, CN=Root".parse().unwrap();
            make_authority(&name, &options, 10).unwrap();
            let mode = std::fs::metadata(dir.join("ca.key"))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o777, 0o600);
            let also = [
                "192.0.2.1".parse().unwrap(),
                "gw@example.org".parse().unwrap(),
            ];
            let said = issue(&id, &also, None, &options, 825).unwrap();
            assert!(
                said.contains("certs = [\"gw.example.org.pem\"], key = \"gw.example.org.key\""),
                "{said}"
            );
            let shown = show(&dir.join("gw.example.org.pem")).unwrap();
            for line in [
                "certificate (end)",
                "subject   CN=gw.example.org",
                "names     gw.example.org, 192.0.2.1, gw@example.org",
                "issuer    O=Example, CN=Root",
            ] {
                assert!(shown.contains(line), "{line}\n{shown}");
            }
            assert!(
                show(&dir.join("ca.pem"))
                    .unwrap()
                    .contains("certificate (authority)")
            );
            assert!(
                show(&dir.join("ca.key"))
                    .unwrap()
                    .starts_with("private key: ")
            );
            // Nothing is overwritten.
            assert!(make_authority(&name, &options, 10).is_err());
            assert!(issue(&id, &[], None, &options, 10).is_err());
        }
    }
}
