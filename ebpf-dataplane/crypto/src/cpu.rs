//! What the processor can do, and which implementation follows from it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::backend::Features;

/// An implementation of the ciphers, named after the instructions it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// AVX-512 with VAES and VPCLMULQDQ: four blocks to a register.
    Vaes512,
    /// AVX2 with VAES and VPCLMULQDQ: two blocks to a register.
    Vaes256,
    /// SSE4.1 with AES-NI and PCLMULQDQ: one block to a register.
    AesNi,
    /// Any processor, by crates that choose for themselves.
    Portable,
}

impl Backend {
    /// Every backend, the fastest first.
    pub const ALL: [Self; 4] = [Self::Vaes512, Self::Vaes256, Self::AesNi, Self::Portable];

    /// Whether this processor has the instructions.
    pub fn is_available(self) -> bool {
        let features = Features::detect();
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Vaes512 => {
                features.avx512()
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("vpclmulqdq")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Vaes256 => features.vaes256() && is_x86_feature_detected!("vpclmulqdq"),
            #[cfg(target_arch = "x86_64")]
            Self::AesNi => {
                features.aes()
                    && is_x86_feature_detected!("ssse3")
                    && is_x86_feature_detected!("pclmulqdq")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Vaes512 | Self::Vaes256 | Self::AesNi => false,
            Self::Portable => true,
        }
    }

    /// The backends of this processor, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        Self::ALL
            .into_iter()
            .filter(|backend| backend.is_available())
    }

    /// The fastest backend of this processor, found out once.
    pub fn best() -> Self {
        static BEST: OnceLock<Backend> = OnceLock::new();
        *BEST.get_or_init(|| Self::available().next().unwrap_or(Self::Portable))
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vaes512 => "vaes512",
            Self::Vaes256 => "vaes256",
            Self::AesNi => "aesni",
            Self::Portable => "portable",
        })
    }
}

/// No backend has this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no crypto backend {0:?}: expected vaes512, vaes256, aesni or portable")]
pub struct UnknownBackend(pub String);

impl FromStr for Backend {
    type Err = UnknownBackend;

    fn from_str(name: &str) -> Result<Self, UnknownBackend> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.to_string() == name)
            .ok_or_else(|| UnknownBackend(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back() {
        for backend in Backend::ALL {
            assert_eq!(backend.to_string().parse(), Ok(backend));
        }
        assert!("sse".parse::<Backend>().is_err());
    }

    #[test]
    fn the_best_backend_is_the_first_available() {
        assert!(Backend::best().is_available());
        assert_eq!(Backend::available().next(), Some(Backend::best()));
    }
}
