//! LAN interfaces whose packets go past the kernel.

use std::os::fd::AsRawFd;

use espada_common::abi::LanEntry;

use super::{FrontEnd, FrontEndError, attach};

impl FrontEnd {
    /// Attaches the program for LAN interfaces to one. Until [`Self::set_lan`] it passes everything.
    pub fn attach_lan(&mut self, interface: &str) -> Result<(), FrontEndError> {
        let links = self.links();
        let mut attached = [attach::attach_lan(
            &mut self.ebpf,
            interface,
            links.as_deref(),
        )?];
        if let Some(links) = links {
            attach::pin_links(&mut self.ebpf, &mut attached, &links)?;
        }
        self.attachments.extend(attached);
        Ok(())
    }

    /// Tells the program about a LAN interface, by its number.
    pub fn set_lan(&mut self, interface: u32, entry: LanEntry) -> Result<(), FrontEndError> {
        self.maps.lan_set(interface, entry)
    }

    /// Has the program pass all packets of a LAN interface.
    pub fn remove_lan(&mut self, interface: u32) -> Result<(), FrontEndError> {
        self.maps.lan_unset(interface)
    }

    /// The AF_XDP socket of a LAN interface's queue, at its place in the table of all of them
    /// ([`LanEntry::first_socket`] plus the queue).
    pub fn set_lan_xsk(&mut self, place: u32, socket: &impl AsRawFd) -> Result<(), FrontEndError> {
        self.maps.lan_xsk_set(place, socket)
    }

    /// Takes that socket out again.
    pub fn remove_lan_xsk(&mut self, place: u32) -> Result<(), FrontEndError> {
        self.maps.lan_xsk_unset(place)
    }
}
