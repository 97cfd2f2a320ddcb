//! Whether UDP goes to the kernel in packets that it is to cut: ESP in UDP by `UDP_SEGMENT`, and datagrams
//! from tunnels at the TUN device. Some releases do that wrongly for certain network cards or tunnels, which
//! no probe shows.

use crate::features::kernel_release;

/// The user's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UdpSegmentation {
    /// As far as this release is known to do it rightly.
    #[default]
    Auto,
    /// Wherever the kernel takes it.
    On,
    /// Packets one by one.
    Off,
}

impl UdpSegmentation {
    /// Whether ESP in UDP is sent so, by this kernel.
    pub fn sends(self) -> bool {
        self.allows(keeps_headers)
    }

    /// Whether datagrams out of tunnels are handed over so, by this kernel.
    pub fn delivers(self) -> bool {
        self.allows(reaches_tunnels)
    }

    fn allows(self, right: impl Fn(Version) -> bool) -> bool {
        match self {
            Self::Auto => right(version(&kernel_release())),
            Self::On => true,
            Self::Off => false,
        }
    }
}

type Version = (u32, u32, u32);

/// The numbers of `uname -r`; 0 for those that are not there.
fn version(release: &str) -> Version {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let mut next = || numbers.next().unwrap_or(0);
    (next(), next(), next())
}

/// From 7.0 (commit b10b446) to 7.1.4 UDP headers were spoiled in front of some network cards.
fn keeps_headers(version: Version) -> bool {
    !((7, 0, 0)..=(7, 1, 4)).contains(&version)
}

/// Before 6.9 (commit 3d010c8031e3), moreover, the kernel's own tunnels (VXLAN and others) lost joined
/// datagrams.
fn reaches_tunnels(version: Version) -> bool {
    version >= (6, 9, 0) && keeps_headers(version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_that_cut_wrongly_are_known() {
        for (release, sends, delivers) in [
            ("6.1.0-50-cloud-amd64", true, false),
            ("6.8.0-90-generic", true, false),
            ("6.9.0", true, true),
            ("6.12-rc1", true, true),
            ("6.18.44-amd64", true, true),
            ("7.0.2-6-pve", false, false),
            ("7.1.4", false, false),
            ("7.1.5", true, true),
            ("7.3.1", true, true),
            ("10.0.0", true, true),
            ("unknown", true, false),
        ] {
            let version = version(release);
            assert_eq!(keeps_headers(version), sends, "{release}");
            assert_eq!(reaches_tunnels(version), delivers, "{release}");
        }
    }

    #[test]
    fn the_user_has_the_last_word() {
        assert!(UdpSegmentation::On.sends() && UdpSegmentation::On.delivers());
        assert!(!UdpSegmentation::Off.sends() && !UdpSegmentation::Off.delivers());
    }
}
