//! MODP groups (RFC 2409, RFC 3526): g^x mod p with g = 2 and p a safe prime, by constant-time
//! Montgomery exponentiation over integers of fixed size.

use std::sync::LazyLock;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U512, U1024, U1536, U2048, U3072, U4096, Uint};
use espada_common::sa::SecretBytes;
use zeroize::{Zeroize, Zeroizing};

use super::Random;
use crate::proposal::DhGroup;

/// Longest private exponent in octets.
const MAX_EXPONENT: usize = U512::BYTES;

/// RFC 2409 section 6.2 (group 2).
const P1024: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE65381FFFFFFFFFFFFFFFF";

/// RFC 3526 section 2 (group 5).
const P1536: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
    98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
    9ED529077096966D670C354E4ABC9804F1746C08CA237327FFFFFFFFFFFFFFFF";

/// RFC 3526 section 3 (group 14).
const P2048: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
    98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
    9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
    3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF";

/// RFC 3526 section 4 (group 15).
const P3072: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
    98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
    9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
    3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33\
    A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864\
    D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2\
    08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF";

/// RFC 3526 section 5 (group 16).
const P4096: &str = "\
    FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74\
    020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437\
    4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED\
    EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05\
    98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB\
    9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B\
    E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718\
    3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33\
    A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7\
    ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864\
    D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2\
    08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7\
    88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8\
    DBBBC2DB04DE8EF92E8EFC141FBECAA6287C59474E6BC05D99B2964FA090C3A2\
    233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9\
    93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF";

type Params<const LIMBS: usize> = LazyLock<FixedMontyParams<LIMBS>>;

static MODP1024: Params<{ U1024::LIMBS }> = LazyLock::new(|| params(P1024));
static MODP1536: Params<{ U1536::LIMBS }> = LazyLock::new(|| params(P1536));
static MODP2048: Params<{ U2048::LIMBS }> = LazyLock::new(|| params(P2048));
static MODP3072: Params<{ U3072::LIMBS }> = LazyLock::new(|| params(P3072));
static MODP4096: Params<{ U4096::LIMBS }> = LazyLock::new(|| params(P4096));

fn params<const LIMBS: usize>(prime: &str) -> FixedMontyParams<LIMBS> {
    FixedMontyParams::new_vartime(Odd::<Uint<LIMBS>>::from_be_hex(prime))
}

/// Octets of private exponents: at least the larger estimate of RFC 3526 section 8 for the group,
/// in whole words. In a safe-prime group a short exponent is as strong as its length / 2.
const fn exponent_len(group: DhGroup) -> usize {
    match group {
        DhGroup::Modp2048 => 320 / 8,
        DhGroup::Modp3072 => 448 / 8,
        DhGroup::Modp4096 => 512 / 8,
        _ => 256 / 8,
    }
}

/// A random private exponent.
pub(super) fn private_exponent(group: DhGroup, random: &mut impl Random) -> Zeroizing<Vec<u8>> {
    let mut exponent = Zeroizing::new(vec![0; exponent_len(group)]);
    random.fill(&mut exponent);
    exponent
}

/// g^x mod p, padded to the length of p.
pub(super) fn public_value(group: DhGroup, exponent: &[u8]) -> Vec<u8> {
    let mut generator = vec![0; group.public_len()];
    if let Some(last) = generator.last_mut() {
        *last = 2;
    }
    shared_secret(group, exponent, &generator)
        .map(|value| value.expose().to_vec())
        .unwrap_or_default()
}

/// peer^x mod p, padded to the length of p; `None` unless 1 < peer < p - 1 (RFC 6989 section 2.1).
pub(super) fn shared_secret(group: DhGroup, exponent: &[u8], peer: &[u8]) -> Option<SecretBytes> {
    match group {
        DhGroup::Modp1024 => power(&MODP1024, peer, exponent),
        DhGroup::Modp1536 => power(&MODP1536, peer, exponent),
        DhGroup::Modp2048 => power(&MODP2048, peer, exponent),
        DhGroup::Modp3072 => power(&MODP3072, peer, exponent),
        DhGroup::Modp4096 => power(&MODP4096, peer, exponent),
        _ => None,
    }
}

fn power<const LIMBS: usize>(
    params: &FixedMontyParams<LIMBS>,
    base: &[u8],
    exponent: &[u8],
) -> Option<SecretBytes> {
    if base.len() != Uint::<LIMBS>::BYTES {
        return None;
    }
    // The base is public: comparing it may take any time.
    let base = Uint::<LIMBS>::from_be_slice(base);
    let p_minus_1 = params.modulus().as_ref().wrapping_sub(&Uint::ONE);
    if base <= Uint::ONE || base >= p_minus_1 {
        return None;
    }

    let mut padded = Zeroizing::new([0; MAX_EXPONENT]);
    let start = MAX_EXPONENT.checked_sub(exponent.len())?;
    padded.get_mut(start..)?.copy_from_slice(exponent);
    let mut exponent_value = U512::from_be_slice(padded.as_slice());
    // The length of the exponent is fixed by the group and no secret.
    let bits = u32::try_from(exponent.len()).ok()?.checked_mul(8)?;

    let mut power = FixedMontyForm::new(&base, params).pow_bounded_exp(&exponent_value, bits);
    let mut value = power.retrieve();
    let mut octets = value.to_be_bytes();
    let secret = SecretBytes::new(octets.as_slice().to_vec());
    octets.zeroize();
    value.zeroize();
    power.zeroize();
    exponent_value.zeroize();
    Some(secret)
}

#[cfg(test)]
mod tests {
    use crypto_bigint::{Limb, NonZero};

    use super::*;

    /// 2^bits * arctan(1 / x), by its series.
    fn arctan_inverse<const L: usize>(x: u64, bits: u32) -> Uint<L> {
        let divide = |value: &Uint<L>, by: u64| {
            value
                .div_rem_limb(NonZero::new(Limb::from_u64(by)).unwrap())
                .0
        };
        let mut term = divide(&Uint::ONE.shl_vartime(bits), x);
        let mut sum = term;
        let mut n = 1;
        while term != Uint::ZERO {
            term = divide(&term, x * x);
            n += 2;
            let part = divide(&term, n);
            sum = if n % 4 == 3 {
                sum.wrapping_sub(&part)
            } else {
                sum.wrapping_add(&part)
            };
        }
        sum
    }

    /// "The prime is: 2^n - 2^(n-64) - 1 + 2^64 * { [2^(n-130) pi] + c }" (RFC 2409, RFC 3526).
    fn check_prime<const L: usize>(params: &FixedMontyParams<L>, c: u64) {
        const GUARD: u32 = 60;
        let n = Uint::<L>::BITS;
        // Machin: pi / 4 = 4 arctan(1/5) - arctan(1/239).
        let scale = n - 130 + GUARD;
        let pi = arctan_inverse::<L>(5, scale)
            .shl_vartime(4)
            .wrapping_sub(&arctan_inverse::<L>(239, scale).shl_vartime(2))
            .shr_vartime(GUARD);
        let expected = Uint::<L>::ZERO
            .wrapping_sub(&Uint::ONE.shl_vartime(n - 64))
            .wrapping_sub(&Uint::ONE)
            .wrapping_add(&pi.wrapping_add(&Uint::from_u64(c)).shl_vartime(64));
        assert_eq!(*params.modulus().as_ref(), expected, "modp{n}");
    }

    #[test]
    fn primes_are_those_of_the_rfcs() {
        check_prime(&MODP1024, 129_093);
        check_prime(&MODP1536, 741_804);
        check_prime(&MODP2048, 124_476);
        check_prime(&MODP3072, 1_690_314);
        check_prime(&MODP4096, 240_904);
    }

    /// Made with Python 3.11: `pow(2, int("c3" * 40, 16), p)`, the last 32 octets.
    #[test]
    fn power_equals_python_pow() {
        let value = public_value(DhGroup::Modp2048, &[0xc3; 40]);
        assert_eq!(value.len(), 256);
        assert_eq!(
            value[224..],
            crate::crypto::test_util::hex(
                "29c37d5a67d9be695467c39e283d59386968206aeda1b6f8714af3b7b04bdc66"
            )
        );
    }

    #[test]
    fn degenerate_values_are_refused() {
        let group = DhGroup::Modp1024;
        let exponent = [0x55; 32];
        let p = MODP1024.modulus().as_ref().to_owned();
        let encode = |value: Uint<{ U1024::LIMBS }>| value.to_be_bytes().as_slice().to_vec();
        for refused in [
            Uint::ZERO,
            Uint::ONE,
            p.wrapping_sub(&Uint::ONE),
            p,
            p.wrapping_add(&Uint::from_u64(2)),
        ] {
            assert!(shared_secret(group, &exponent, &encode(refused)).is_none());
        }
        for accepted in [Uint::from_u64(2), p.wrapping_sub(&Uint::from_u64(2))] {
            assert!(shared_secret(group, &exponent, &encode(accepted)).is_some());
        }
        assert!(shared_secret(group, &exponent, &[2; 127]).is_none());
    }
}
