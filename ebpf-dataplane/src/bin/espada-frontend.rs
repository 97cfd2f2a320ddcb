//! `cargo xtask load` and `unload`: the front end alone, attached until it is unloaded.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use espada_dataplane::frontend::{FrontEnd, ModeChoice, Options, attach, inspect, pin};
use espada_dataplane::netlink::Netlink;

const USAGE: &str = "usage: espada-frontend load IFACE [--mode auto|xdp-native|xdp-generic|tc] | unload IFACE | show IFACE";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words[..] {
        ["load", interface] => load(interface, "auto"),
        ["load", interface, "--mode", mode] => load(interface, mode),
        ["unload", interface] => unload(interface),
        ["show", interface] => show(interface),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Attaches the programs. No daemon tells them of SAs here, so ESP is counted by reason and
/// passed on, never dropped.
fn load(interface: &str, mode: &str) -> Result<()> {
    let mode: ModeChoice = mode.parse().map_err(anyhow::Error::msg)?;
    let folder = folder(interface)?;
    let mut front_end = FrontEnd::attach(&Options {
        interfaces: vec![interface.to_owned()],
        mode,
        pin_dir: Some(folder),
        ..Options::default()
    })
    .with_context(|| format!("cannot load the front end on {interface}"))?;
    let addresses: Vec<_> = Netlink::open()
        .and_then(|mut netlink| netlink.addresses())
        .context("cannot list this host's addresses")?
        .iter()
        .map(|address| address.prefix.address)
        .collect();
    front_end.set_addresses(&addresses, &[])?;
    for attached in front_end.persist()? {
        println!(
            "{}: {} at {} ({}), program {}, {}",
            attached.interface,
            attached.program,
            attached.hook.name(),
            attached.mode.name(),
            attached.program_id,
            attached.why,
        );
    }
    show(interface)
}

fn unload(interface: &str) -> Result<()> {
    let links = pin::remove(&folder(interface)?)
        .with_context(|| format!("the front end is not loaded on {interface}"))?;
    let filters = attach::detach_clsact(interface);
    println!(
        "{interface}: detached {} programs, removed the maps",
        links.len() + filters
    );
    Ok(())
}

fn show(interface: &str) -> Result<()> {
    let folder = folder(interface)?;
    let maps = inspect::pinned_maps(&folder)?;
    println!("maps in {}:", folder.display());
    for map in maps {
        println!(
            "  {:22} {:14} {:>6} of {} entries",
            map.name, map.kind, map.entries, map.max_entries
        );
    }
    Ok(())
}

/// The pin folder of an interface. Interfaces of different network namespaces may share a name,
/// and namespaces may share a BPF file system.
fn folder(interface: &str) -> Result<PathBuf> {
    if interface.is_empty() || interface.contains('/') || interface.starts_with('.') {
        bail!("`{interface}` is no interface name");
    }
    let namespace =
        std::fs::read_link("/proc/self/ns/net").context("cannot read /proc/self/ns/net")?;
    let digits: String = namespace
        .to_string_lossy()
        .chars()
        .filter(char::is_ascii_digit)
        .collect();
    Ok(pin::instance_dir(&format!("load-{digits}-{interface}")))
}
