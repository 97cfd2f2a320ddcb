//! Files of certificates and keys: PEM (RFC 7468), several blocks in one, or plain DER.

use der::pem::Decoder;
use zeroize::Zeroizing;

/// What a line that begins a block begins with.
const BEGIN: &str = "-----BEGIN ";

/// One thing of a file.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its PEM label, such as `CERTIFICATE`; `None` in a file of DER.
    pub label: Option<String>,
    /// Its line, from 1.
    pub line: u32,
    /// What it holds; zeroized when dropped, as it may be a key.
    pub der: Zeroizing<Vec<u8>>,
}

/// A file that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// It is text without a block.
    #[error("there is no -----BEGIN … block in it, and it is not DER")]
    Nothing,
    /// A block is damaged, or has headers as keys encrypted in OpenSSL's old way do.
    #[error("line {0}: the block that begins here is damaged, or encrypted with a password")]
    Damaged(u32),
}

/// The blocks of a file.
pub fn blocks(octets: &[u8]) -> Result<Vec<Block>, PemError> {
    let begins = |octets: &[u8]| octets.starts_with(BEGIN.as_bytes());
    if !octets.windows(BEGIN.len()).any(begins) {
        // DER of everything that is looked for is a SEQUENCE.
        return match octets.first() {
            Some(0x30) => Ok(vec![Block {
                label: None,
                line: 1,
                der: Zeroizing::new(octets.to_vec()),
            }]),
            _ => Err(PemError::Nothing),
        };
    }
    let mut blocks = Vec::new();
    let mut start = None;
    let (mut at, mut line) = (0, 0u32);
    for text in octets.split_inclusive(|octet| *octet == b'\n') {
        line = line.saturating_add(1);
        if begins(text) {
            if let Some((_, line)) = start {
                return Err(PemError::Damaged(line));
            }
            start = Some((at, line));
        }
        at += text.len();
        if let Some((from, line)) = start.take_if(|_| text.starts_with(b"-----END ")) {
            let block = octets.get(from..at).unwrap_or_default();
            blocks.push(block_of(block, line)?);
        }
    }
    match start {
        Some((_, line)) => Err(PemError::Damaged(line)),
        None => Ok(blocks),
    }
}

fn block_of(text: &[u8], line: u32) -> Result<Block, PemError> {
    let damaged = |_| PemError::Damaged(line);
    let mut decoder = Decoder::new_detect_wrap(text).map_err(damaged)?;
    let mut der = Zeroizing::new(Vec::with_capacity(text.len()));
    decoder.decode_to_end(&mut der).map_err(damaged)?;
    Ok(Block {
        label: Some(decoder.type_label().to_owned()),
        line,
        der,
    })
}

/// A PEM block.
pub fn encode(label: &str, der: &[u8]) -> Option<Zeroizing<String>> {
    let text = der::pem::encode_string(label, der::pem::LineEnding::LF, der);
    text.ok().map(Zeroizing::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_blocks_and_text_between_them() {
        let one = encode("CERTIFICATE", &[0x30; 100]).unwrap();
        let two = encode("PRIVATE KEY", &[0x31; 10]).unwrap();
        let file = format!("Somebody's:\n{}\n\n{}", *one, two.replace('\n', "\r\n"));
        let blocks = blocks(file.as_bytes()).unwrap();
        let labels: Vec<_> = blocks.iter().map(|block| block.label.as_deref()).collect();
        assert_eq!(labels, [Some("CERTIFICATE"), Some("PRIVATE KEY")]);
        assert_eq!((blocks[0].line, blocks[1].line), (2, 9));
        assert_eq!(*blocks[0].der, [0x30; 100]);
        assert_eq!(*blocks[1].der, [0x31; 10]);
        let der = super::blocks(&[0x30, 0]).unwrap();
        assert_eq!((&der[0].label, &**der[0].der), (&None, &[0x30, 0][..]));
    }

    #[test]
    fn damage() {
        let good = encode("CERTIFICATE", &[0x30; 100]).unwrap();
        let cut = &good[..60];
        assert_eq!(blocks(cut.as_bytes()).unwrap_err(), PemError::Damaged(1));
        let bent = good.replacen("MDAw", "M*Aw", 1);
        assert_eq!(blocks(bent.as_bytes()).unwrap_err(), PemError::Damaged(1));
        let old = good.replacen('\n', "\nProc-Type: 4,ENCRYPTED\n\n", 1);
        assert_eq!(blocks(old.as_bytes()).unwrap_err(), PemError::Damaged(1));
        for nothing in [&b""[..], b"hello", &[0x31, 0]] {
            assert_eq!(blocks(nothing).unwrap_err(), PemError::Nothing);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(octets in proptest::collection::vec(proptest::num::u8::ANY, 1..200), cut in 0usize..400) {
            let _ = blocks(&octets);
            let good = encode("CERTIFICATE", &octets).unwrap();
            proptest::prop_assert_eq!(&**blocks(good.as_bytes()).unwrap()[0].der, &octets[..]);
            let mut text = good.as_bytes()[..cut % good.len()].to_vec();
            text.extend(&octets);
            let _ = blocks(&text);
        }
    }
}
