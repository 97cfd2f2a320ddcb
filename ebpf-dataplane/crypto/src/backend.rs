//! Which instructions the code here may use.

/// The instruction sets of this processor that matter here, or fewer. A value never names one that
/// the processor lacks: that is what the `unsafe` code relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    aes: bool,
    vaes256: bool,
    sha: bool,
    avx2: bool,
    avx512: bool,
}

impl Features {
    /// None: the crates do all the work.
    pub const PLAIN: Self = Self {
        aes: false,
        vaes256: false,
        sha: false,
        avx2: false,
        avx512: false,
    };

    /// What this processor has.
    #[cfg(target_arch = "x86_64")]
    pub fn detect() -> Self {
        let aes = is_x86_feature_detected!("aes") && is_x86_feature_detected!("sse4.1");
        let avx2 = is_x86_feature_detected!("avx2");
        let vaes = aes && avx2 && is_x86_feature_detected!("vaes");
        // Processors with AVX-512 and without VAES run slower for a while after they used registers of 512 bits.
        let avx512 =
            vaes && is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw");
        Self {
            aes,
            vaes256: vaes,
            sha: is_x86_feature_detected!("sha")
                && is_x86_feature_detected!("ssse3")
                && is_x86_feature_detected!("sse4.1"),
            avx2,
            avx512,
        }
    }

    /// What this processor has.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn detect() -> Self {
        Self::PLAIN
    }

    /// Every different choice this processor allows, for tests and measurements, with its name.
    pub fn variants() -> Vec<(&'static str, Self)> {
        let all = Self::detect();
        let mut variants = vec![("plain", Self::PLAIN)];
        let candidates = [
            (
                "aes-ni",
                Self {
                    vaes256: false,
                    sha: false,
                    avx2: false,
                    avx512: false,
                    ..all
                },
            ),
            (
                "sha-ni",
                Self {
                    avx2: false,
                    avx512: false,
                    ..all
                },
            ),
            (
                "avx2",
                Self {
                    sha: false,
                    avx512: false,
                    ..all
                },
            ),
            (
                "avx2+sha-ni",
                Self {
                    avx512: false,
                    ..all
                },
            ),
            ("avx512", Self { sha: false, ..all }),
            ("all", all),
        ];
        for (name, features) in candidates {
            if variants.iter().all(|(_, known)| *known != features) {
                variants.push((name, features));
            }
        }
        variants
    }

    /// AES-NI and SSE4.1.
    pub const fn aes(self) -> bool {
        self.aes
    }

    /// VAES over 256-bit registers, with AVX2.
    pub const fn vaes256(self) -> bool {
        self.vaes256
    }

    /// The SHA extensions, SSSE3 and SSE4.1.
    pub const fn sha(self) -> bool {
        self.sha
    }

    /// AVX2.
    pub const fn avx2(self) -> bool {
        self.avx2
    }

    /// AVX-512 F and BW and VAES over 512-bit registers, with AVX2.
    pub const fn avx512(self) -> bool {
        self.avx512
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variants_start_plain_end_with_everything_and_do_not_repeat() {
        let variants = Features::variants();
        assert_eq!(variants[0].1, Features::PLAIN);
        assert_eq!(variants[variants.len() - 1].1, Features::detect());
        for (at, (_, features)) in variants.iter().enumerate() {
            assert!(variants[..at].iter().all(|(_, other)| other != features));
        }
    }
}
