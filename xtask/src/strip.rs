//! Takes the DWARF sections out of the eBPF object: BTF is all that the kernel and the loader
//! read, and the committed file is a tenth of the size.

use anyhow::{Context, Result, bail};

const HEADER_LEN: usize = 64;
const SECTION_LEN: usize = 64;
const SHT_NOBITS: u32 = 8;

/// The object without the contents of its `.debug*` sections. Their headers stay, empty and of
/// type SHT_NULL, so that no section changes its number.
pub fn strip(elf: &[u8]) -> Result<Vec<u8>> {
    if elf.get(..6) != Some(b"\x7fELF\x02\x01") {
        bail!("not a little-endian 64-bit ELF file");
    }
    let table = usize::try_from(u64_at(elf, 0x28)?)?;
    let count = usize::from(u16_at(elf, 0x3c)?);
    let names_index = usize::from(u16_at(elf, 0x3e)?);
    let mut headers: Vec<Vec<u8>> = (0..count)
        .map(|index| Ok(range(elf, table + index * SECTION_LEN, SECTION_LEN)?.to_vec()))
        .collect::<Result<_>>()?;
    let names = content(elf, headers.get(names_index).context("no section names")?)?;

    let mut out = range(elf, 0, HEADER_LEN)?.to_vec();
    for header in headers.iter_mut().skip(1) {
        let name = names
            .get(u32_at(header, 0)? as usize..)
            .context("a section name is out of range")?;
        if name.starts_with(b".debug") || name.starts_with(b".rel.debug") {
            header[4..].fill(0);
            continue;
        }
        let data = content(elf, header)?;
        let align = usize::try_from(u64_at(header, 0x30)?)?.max(1);
        out.resize(out.len().next_multiple_of(align), 0);
        let offset = out.len() as u64;
        header[0x18..0x20].copy_from_slice(&offset.to_le_bytes());
        out.extend_from_slice(data);
    }
    out.resize(out.len().next_multiple_of(8), 0);
    let table = out.len() as u64;
    out[0x28..0x30].copy_from_slice(&table.to_le_bytes());
    out.extend(headers.concat());
    Ok(out)
}

fn content<'a>(elf: &'a [u8], header: &[u8]) -> Result<&'a [u8]> {
    if u32_at(header, 4)? == SHT_NOBITS {
        return Ok(&[]);
    }
    range(
        elf,
        usize::try_from(u64_at(header, 0x18)?)?,
        usize::try_from(u64_at(header, 0x20)?)?,
    )
}

fn range(bytes: &[u8], start: usize, len: usize) -> Result<&[u8]> {
    bytes
        .get(start..)
        .and_then(|rest| rest.get(..len))
        .with_context(|| format!("the ELF file is truncated: {len} octets at {start}"))
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    Ok(u16::from_le_bytes(range(bytes, at, 2)?.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    Ok(u32::from_le_bytes(range(bytes, at, 4)?.try_into()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    Ok(u64::from_le_bytes(range(bytes, at, 8)?.try_into()?))
}
