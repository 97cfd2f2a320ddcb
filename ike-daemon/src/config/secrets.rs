//! `secrets.toml`: pre-shared keys and PPKs, readable by their owner only. Nothing read here is ever
//! quoted in a message.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use espada_common::sa::SecretBytes;
use espada_ike::Identity;
use espada_ike::config::{Ppk, PskSecret};
use toml::de::DeValue;
use zeroize::Zeroizing;

use super::SecretsPolicy;
use super::document::{Diagnostic, Document, Severity, Span, Table};

/// Longest secrets file that is read, in octets.
const MAX_SECRETS: u64 = 1 << 20;

/// What the file holds.
#[derive(Default)]
pub(super) struct Secrets {
    /// Keys to authenticate with.
    pub psks: Vec<PskSecret>,
    /// Keys that go into those of the SA (RFC 8784); `required` is for each connection to say.
    pub ppks: Vec<Ppk>,
}

/// Secrets, if they could be read, and what there is to say about the file.
pub(super) fn load(path: &Path, policy: SecretsPolicy) -> (Option<Secrets>, Vec<Diagnostic>) {
    let place = path.display().to_string();
    let complaint = |severity, message: String, help: Option<String>| {
        let place = place.clone();
        (
            None,
            vec![Diagnostic {
                severity,
                place,
                message,
                excerpt: None,
                help,
            }],
        )
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return complaint(
                Severity::Error,
                "there is no file of pre-shared keys here".to_owned(),
                Some(format!(
                    "create it with `install -m 600 /dev/null {place}` and put in:\n        [[psk]]\n        ids = [\"OUR-ID\", \"PEER-ID\"]\n        secret = \"…\""
                )),
            );
        }
        Err(error)
            if error.kind() == io::ErrorKind::PermissionDenied
                && policy == SecretsPolicy::IfReadable =>
        {
            return complaint(
                Severity::Warning,
                "not readable by this user: the pre-shared keys were not checked".to_owned(),
                None,
            );
        }
        Err(error) => {
            return complaint(
                Severity::Error,
                format!("cannot open the pre-shared keys: {error}"),
                None,
            );
        }
    };
    // The open file is examined, not the path, so that it cannot be exchanged in between.
    let metadata = match file.metadata() {
        Ok(metadata) => metadata,
        Err(error) => {
            return complaint(
                Severity::Error,
                format!("cannot examine the file: {error}"),
                None,
            );
        }
    };
    if let Err((message, help)) = exposure(
        path,
        "the pre-shared keys",
        metadata.mode(),
        metadata.uid(),
        crate::syscall::effective_uid(),
    ) {
        return complaint(Severity::Error, message, Some(help));
    }
    let text = match read_open(file, MAX_SECRETS) {
        Ok(text) => text,
        Err(error) => {
            return complaint(
                Severity::Error,
                format!("cannot read the pre-shared keys: {error}"),
                None,
            );
        }
    };
    let (secrets, diagnostics) = parse(&place, &text);
    (Some(secrets), diagnostics)
}

/// Whether anybody but the owner, root or us, can read or replace the keys: what and the cure.
pub(super) fn exposure(
    path: &Path,
    keys: &str,
    mode: u32,
    owner: u32,
    us: u32,
) -> Result<(), (String, String)> {
    let shown = path.display();
    if owner != 0 && owner != us {
        return Err((
            format!(
                "{keys}: the file belongs to user {owner}, not to root or to the user who runs Espada ({us})"
            ),
            format!("chown {us} {shown}"),
        ));
    }
    if mode & 0o077 != 0 {
        return Err((
            format!(
                "other users have access to {keys} (mode {:04o})",
                mode & 0o7777
            ),
            format!("chmod 600 {shown}"),
        ));
    }
    Ok(())
}

fn parse(name: &str, text: &Zeroizing<String>) -> (Secrets, Vec<Diagnostic>) {
    let document = Document::new(name, text, false);
    let mut root = document.parse();
    let mut secrets = Secrets::default();
    {
        let top = Table::new(&document, root.get_ref(), &(0..0), "");
        top.only(&["psk", "ppk"]);
        each(&top, "psk", |table| secrets.psks.extend(read_psk(table)));
        each(&top, "ppk", |table| secrets.ppks.extend(read_ppk(table)));
    }
    wipe(&mut root);
    (secrets, document.into_diagnostics())
}

/// Every table of an array of tables.
fn each(top: &Table<'_, '_>, name: &str, mut read: impl FnMut(&Table<'_, '_>)) {
    let document = top.document();
    let wrong = || format!("`{name}` must be written as [[{name}]] tables");
    match top.value(name).map(|value| (value.span(), value.get_ref())) {
        Some((_, DeValue::Array(entries))) => {
            for entry in entries.iter() {
                match entry.get_ref() {
                    DeValue::Table(table) => {
                        read(&Table::new(document, table, &entry.span(), name));
                    }
                    _ => document.error(&entry.span(), wrong(), None),
                }
            }
        }
        Some((span, _)) => document.error(
            &span,
            wrong(),
            Some(format!(
                "write [[{name}]] with two brackets: there may be several"
            )),
        ),
        None => {}
    }
}

fn read_ppk(table: &Table<'_, '_>) -> Option<Ppk> {
    let document = table.document();
    table.only(&["id", "secret"]);
    let (id, secret) = (table.string("id", "a name"), read_secret(table, "ppk"));
    if table.value("id").is_none() {
        let help = "both ends call the key by the same name, as in id = \"site-2026\"";
        document.error(&table.span(), "`ppk.id` is missing", Some(help.to_owned()));
    }
    let (id, (octets, span)) = (id?, secret?);
    if octets.len() < 32 {
        document.warning(
            &span,
            format!(
                "a PPK of {} octets: RFC 8784 asks for 256 bits of entropy, as quantum computers halve it",
                octets.len()
            ),
            Some("make one with `head -c 32 /dev/urandom | base64` and set it on both sides".to_owned()),
        );
    }
    Some(Ppk {
        id: id.value.to_owned(),
        secret: SecretBytes::new(octets),
        required: true,
        origin: document.origin(&table.span()),
    })
}

/// The octets of a table's `secret`, and where it stands.
fn read_secret(table: &Table<'_, '_>, name: &str) -> Option<(Vec<u8>, Span)> {
    let document = table.document();
    let Some(secret) = table.string("secret", "a string") else {
        if table.value("secret").is_none() {
            document.error(&table.span(), format!("`{name}.secret` is missing"), None);
        }
        return None;
    };
    match decode_secret(secret.value) {
        Ok(octets) => Some((octets, secret.span)),
        Err(why) => {
            document.error(&secret.span, why, None);
            None
        }
    }
}

fn read_psk(table: &Table<'_, '_>) -> Option<PskSecret> {
    let document = table.document();
    table.only(&["ids", "secret"]);
    let mut ids = Vec::new();
    let mut bad = false;
    for id in table
        .strings("ids", "a list of identities")
        .unwrap_or_default()
    {
        if id.value == "%any" {
            continue;
        }
        match id.value.parse::<Identity>() {
            Ok(identity) => ids.push(identity),
            Err(_) => {
                bad = true;
                document.error(&id.span, "this is no identity: expected an address, a name, an e-mail address or keyid:…", None);
            }
        }
    }
    let (octets, span) = read_secret(table, "psk")?;
    if octets.len() < 16 {
        document.warning(
            &span,
            format!("a pre-shared key of {} octets can be guessed from one captured handshake", octets.len()),
            Some("make a strong one with `head -c 32 /dev/urandom | base64` and set it on both sides".to_owned()),
        );
    }
    (!bad).then(|| PskSecret {
        ids,
        secret: SecretBytes::new(octets),
        origin: document.origin(&table.span()),
    })
}

/// Text as it stands, `0x` and hexadecimal, or `0s` and base64.
fn decode_secret(text: &str) -> Result<Vec<u8>, &'static str> {
    let octets = if let Some(hex) = text.strip_prefix("0x") {
        decode_hex(hex).ok_or("after \"0x\" an even number of hexadecimal digits is expected")?
    } else if let Some(base64) = text.strip_prefix("0s") {
        decode_base64(base64).ok_or("after \"0s\" base64 is expected")?
    } else {
        text.as_bytes().to_vec()
    };
    if octets.is_empty() {
        Err("the pre-shared key is empty")
    } else {
        Ok(octets)
    }
}

fn decode_hex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    let digit = |c: u8| char::from(c).to_digit(16);
    let octets = pairs
        .iter()
        .map(|[high, low]| u8::try_from(digit(*high)? << 4 | digit(*low)?).ok());
    octets.collect()
}

/// RFC 4648 section 4; padding may be left out.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    if text.len() % 4 == 1 {
        return None;
    }
    let mut octets = Vec::with_capacity(text.len() * 3 / 4);
    let mut bits = 0u32;
    let mut held = 0;
    for c in text.bytes() {
        let six = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6 | u32::from(six)) & 0x3fff;
        held += 6;
        if held >= 8 {
            held -= 8;
            octets.push((bits >> held) as u8);
        }
    }
    Some(octets)
}

/// Overwrites strings the parser copied out of the text because of their escapes.
fn wipe(root: &mut toml::Spanned<toml::de::DeTable<'_>>) {
    fn value(node: &mut DeValue<'_>) {
        use zeroize::Zeroize;
        match node {
            DeValue::String(std::borrow::Cow::Owned(text)) => text.zeroize(),
            DeValue::Array(items) => items.iter_mut().for_each(|item| value(item.get_mut())),
            DeValue::Table(table) => table.iter_mut().for_each(|(_, item)| value(item.get_mut())),
            _ => {}
        }
    }
    root.get_mut()
        .iter_mut()
        .for_each(|(_, item)| value(item.get_mut()));
}

/// A file's text, if it is not longer than `limit` octets; the buffer is zeroized when dropped.
pub(super) fn read_bounded(path: &Path, limit: u64) -> io::Result<Zeroizing<String>> {
    read_open(File::open(path)?, limit)
}

fn read_open(file: File, limit: u64) -> io::Result<Zeroizing<String>> {
    let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let about = file.metadata()?;
    if about.len() > limit {
        return Err(invalid(format!("it is larger than {limit} octets")));
    }
    // Pipes do not say how much they hold.
    let most = if about.is_file() { about.len() } else { limit };
    // Reserved at once: growing would leave unwiped copies behind.
    let mut octets = Zeroizing::new(Vec::with_capacity(usize::try_from(most).unwrap_or(0) + 1));
    file.take(most + 1).read_to_end(&mut octets)?;
    if octets.len() as u64 > most {
        return Err(invalid(format!("there is more in it than {most} octets")));
    }
    let text =
        std::str::from_utf8(&octets).map_err(|_| invalid("it is not UTF-8 text".to_owned()))?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ppks_have_a_name_and_much_entropy() {
        let parse = |text: &str| {
            let (secrets, diagnostics) = parse("secrets.toml", &Zeroizing::new(text.to_owned()));
            let shown: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
            (secrets.ppks, shown.join("\n"))
        };
        let key = "0x".to_owned() + &"5a".repeat(32);
        let text = format!(
            "[[psk]]\nsecret = \"0123456789abcdef\"\n[[ppk]]\nid = \"alpha\"\nsecret = \"{key}\"\n"
        );
        let (ppks, shown) = parse(&text);
        assert_eq!(shown, "");
        assert_eq!(
            (&ppks[0].id[..], ppks[0].secret.expose()),
            ("alpha", &[0x5a; 32][..])
        );
        let (_, shown) = parse("[[ppk]]\nsecret = \"short\"\n");
        assert!(shown.contains("`ppk.id` is missing"), "{shown}");
        let (_, shown) = parse("[[ppk]]\nid = \"a\"\nsecret = \"short\"\n");
        assert!(shown.contains("warning: a PPK of 5 octets"), "{shown}");
        let (_, shown) = parse("ppk = 1\n");
        assert!(shown.contains("[[ppk]] with two brackets"), "{shown}");
    }

    fn parse_text(text: &str) -> (Vec<PskSecret>, String) {
        let (secrets, diagnostics) = parse("secrets.toml", &Zeroizing::new(text.to_owned()));
        let shown: Vec<String> = diagnostics.iter().map(ToString::to_string).collect();
        (secrets.psks, shown.join("\n"))
    }

    #[test]
    fn all_three_secret_forms() {
        assert_eq!(decode_secret("plain text").unwrap(), b"plain text");
        assert_eq!(decode_secret("0x00ffAb").unwrap(), [0, 255, 0xab]);
        assert_eq!(decode_secret("0sAP+r").unwrap(), [0, 255, 0xab]);
        assert_eq!(decode_secret("0sZm9vYg==").unwrap(), b"foob");
        assert_eq!(decode_secret("0sZm9vYg").unwrap(), b"foob");
        for bad in ["", "0x", "0x1", "0xzz", "0s", "0sA", "0s!!!!"] {
            assert!(decode_secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn exposed_files_are_refused_with_the_cure() {
        let path = Path::new("/etc/espada/secrets.toml");
        assert!(exposure(path, "the pre-shared keys", 0o100_600, 0, 0).is_ok());
        assert!(exposure(path, "the pre-shared keys", 0o100_400, 1000, 1000).is_ok());
        let (message, help) = exposure(path, "the pre-shared keys", 0o100_644, 0, 0).unwrap_err();
        assert_eq!(
            message,
            "other users have access to the pre-shared keys (mode 0644)"
        );
        assert_eq!(help, "chmod 600 /etc/espada/secrets.toml");
        let (_, help) = exposure(path, "the pre-shared keys", 0o100_600, 1000, 0).unwrap_err();
        assert_eq!(help, "chown 0 /etc/espada/secrets.toml");
    }

    #[test]
    fn secrets_never_show_in_messages() {
        let text = "[[psk]]\nids = [\"a b\"]\nsecret = \"0xHUSHHUSH\"\n[[psk]]\nsecret = 12345678\nhush = \"HUSHHUSH\"\n[[psk]]\nsecret = HUSHHUSH\n";
        let (_, shown) = parse_text(text);
        assert!(shown.contains("secrets.toml:2:8: error"), "{shown}");
        assert!(shown.contains("secrets.toml:3:10: error"), "{shown}");
        assert!(shown.contains("secrets.toml:5:10: error"), "{shown}");
        assert!(
            !shown.contains("HUSH") && !shown.contains("1234"),
            "{shown}"
        );
    }

    #[test]
    fn weak_keys_are_warned_about() {
        let (secrets, shown) =
            parse_text("[[psk]]\nids = [\"10.0.0.1\", \"gw.example\"]\nsecret = \"short\"\n");
        assert_eq!(secrets.len(), 1);
        assert_eq!(secrets[0].ids.len(), 2);
        assert_eq!(secrets[0].origin, "secrets.toml:1");
        assert!(
            shown.contains("warning: a pre-shared key of 5 octets"),
            "{shown}"
        );
    }
}
