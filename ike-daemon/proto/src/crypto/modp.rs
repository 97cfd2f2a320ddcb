//! MODP groups (RFC 2409, RFC 3526): g^x mod p with g = 2 and p a safe prime, by constant-time
//! Montgomery exponentiation over integers of fixed size.

use std::sync::LazyLock;

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{
    CtAssign, CtEq, Odd, U640, U1024, U1536, U2048, U3072, U4096, U6144, U8192, Uint,
};
use espada_common::sa::SecretBytes;
use zeroize::{Zeroize, Zeroizing};

use super::Random;
use crate::proposal::DhGroup;

/// Longest private exponent in octets.
const MAX_EXPONENT: usize = U640::BYTES;

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

/// RFC 3526 section 6.
const P6144: &str = "\
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
    93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C93402849236C3FAB4D27C7026\
    C1D4DCB2602646DEC9751E763DBA37BDF8FF9406AD9E530EE5DB382F413001AE\
    B06A53ED9027D831179727B0865A8918DA3EDBEBCF9B14ED44CE6CBACED4BB1B\
    DB7F1447E6CC254B332051512BD7AF426FB8F401378CD2BF5983CA01C64B92EC\
    F032EA15D1721D03F482D7CE6E74FEF6D55E702F46980C82B5A84031900B1C9E\
    59E7C97FBEC7E8F323A97A7E36CC88BE0F1D45B7FF585AC54BD407B22B4154AA\
    CC8F6D7EBF48E1D814CC5ED20F8037E0A79715EEF29BE32806A1D58BB7C5DA76\
    F550AA3D8A1FBFF0EB19CCB1A313D55CDA56C9EC2EF29632387FE8D76E3C0468\
    043E8F663F4860EE12BF2D5B0B7474D6E694F91E6DCC4024FFFFFFFFFFFFFFFF";

/// RFC 3526 section 7.
const P8192: &str = "\
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
    93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C93402849236C3FAB4D27C7026\
    C1D4DCB2602646DEC9751E763DBA37BDF8FF9406AD9E530EE5DB382F413001AE\
    B06A53ED9027D831179727B0865A8918DA3EDBEBCF9B14ED44CE6CBACED4BB1B\
    DB7F1447E6CC254B332051512BD7AF426FB8F401378CD2BF5983CA01C64B92EC\
    F032EA15D1721D03F482D7CE6E74FEF6D55E702F46980C82B5A84031900B1C9E\
    59E7C97FBEC7E8F323A97A7E36CC88BE0F1D45B7FF585AC54BD407B22B4154AA\
    CC8F6D7EBF48E1D814CC5ED20F8037E0A79715EEF29BE32806A1D58BB7C5DA76\
    F550AA3D8A1FBFF0EB19CCB1A313D55CDA56C9EC2EF29632387FE8D76E3C0468\
    043E8F663F4860EE12BF2D5B0B7474D6E694F91E6DBE115974A3926F12FEE5E4\
    38777CB6A932DF8CD8BEC4D073B931BA3BC832B68D9DD300741FA7BF8AFC47ED\
    2576F6936BA424663AAB639C5AE4F5683423B4742BF1C978238F16CBE39D652D\
    E3FDB8BEFC848AD922222E04A4037C0713EB57A81A23F0C73473FC646CEA306B\
    4BCBC8862F8385DDFA9D4B7FA2C087E879683303ED5BDD3A062B3CF5B3A278A6\
    6D2A13F83F44F82DDF310EE074AB6A364597E899A0255DC164F31CC50846851D\
    F9AB48195DED7EA1B1D510BD7EE74D73FAF36BC31ECFA268359046F4EB879F92\
    4009438B481C6CD7889A002ED5EE382BC9190DA6FC026E479558E4475677E9AA\
    9E3050E2765694DFC81F56E880B96E7160C980DD98EDD3DFFFFFFFFFFFFFFFFF";

/// Rows of an exponent that are worked on at once when the base is the generator.
const TEETH: usize = 6;

/// A group, and what makes powers of its generator quick.
struct Modp<const LIMBS: usize> {
    params: FixedMontyParams<LIMBS>,
    /// Columns of a private exponent written in [`TEETH`] rows.
    columns: usize,
    /// In Montgomery form: the generator to the power of each column that there can be, a comb
    /// (Lim and Lee, "More Flexible Exponentiation with Precomputation", 1994).
    comb: Vec<Uint<LIMBS>>,
}

type Shared<const LIMBS: usize> = LazyLock<Modp<LIMBS>>;

static MODP1024: Shared<{ U1024::LIMBS }> = LazyLock::new(|| modp(P1024, DhGroup::Modp1024));
static MODP1536: Shared<{ U1536::LIMBS }> = LazyLock::new(|| modp(P1536, DhGroup::Modp1536));
static MODP2048: Shared<{ U2048::LIMBS }> = LazyLock::new(|| modp(P2048, DhGroup::Modp2048));
static MODP3072: Shared<{ U3072::LIMBS }> = LazyLock::new(|| modp(P3072, DhGroup::Modp3072));
static MODP4096: Shared<{ U4096::LIMBS }> = LazyLock::new(|| modp(P4096, DhGroup::Modp4096));
static MODP6144: Shared<{ U6144::LIMBS }> = LazyLock::new(|| modp(P6144, DhGroup::Modp6144));
static MODP8192: Shared<{ U8192::LIMBS }> = LazyLock::new(|| modp(P8192, DhGroup::Modp8192));

fn modp<const LIMBS: usize>(prime: &str, group: DhGroup) -> Modp<LIMBS> {
    let params = FixedMontyParams::new_vartime(Odd::<Uint<LIMBS>>::from_be_hex(prime));
    let columns = (exponent_len(group) * 8).div_ceil(TEETH);
    let mut tooth = FixedMontyForm::new(&Uint::from_u64(2), &params);
    let mut comb = vec![FixedMontyForm::one(&params)];
    for _ in 0..TEETH {
        let with: Vec<_> = comb.iter().map(|power| *power * tooth).collect();
        comb.extend(with);
        for _ in 0..columns {
            tooth = tooth.square();
        }
    }
    let comb = comb.iter().map(FixedMontyForm::to_montgomery).collect();
    Modp {
        params,
        columns,
        comb,
    }
}

/// Octets of private exponents: at least the larger estimate of RFC 3526 section 8 for the group,
/// in whole words. In a safe-prime group a short exponent is as strong as its length / 2.
const fn exponent_len(group: DhGroup) -> usize {
    match group {
        DhGroup::Modp2048 => 320 / 8,
        DhGroup::Modp3072 => 448 / 8,
        DhGroup::Modp4096 => 512 / 8,
        DhGroup::Modp6144 => 576 / 8,
        DhGroup::Modp8192 => 640 / 8,
        _ => 256 / 8,
    }
}

/// A random private exponent.
pub(super) fn private_exponent(group: DhGroup, random: &mut impl Random) -> Zeroizing<Vec<u8>> {
    let mut exponent = Zeroizing::new(vec![0; exponent_len(group)]);
    random.fill(&mut exponent);
    exponent
}

/// Exponentiation in a group, whatever its size.
trait Powers: Sync {
    /// g^x mod p, padded to the length of p.
    fn of_generator(&self, exponent: &[u8]) -> Vec<u8>;

    /// base^x mod p, padded likewise; `None` unless 1 < base < p - 1.
    fn of(&self, base: &[u8], exponent: &[u8]) -> Option<SecretBytes>;
}

fn powers(group: DhGroup) -> Option<&'static dyn Powers> {
    Some(match group {
        DhGroup::Modp1024 => &*MODP1024,
        DhGroup::Modp1536 => &*MODP1536,
        DhGroup::Modp2048 => &*MODP2048,
        DhGroup::Modp3072 => &*MODP3072,
        DhGroup::Modp4096 => &*MODP4096,
        DhGroup::Modp6144 => &*MODP6144,
        DhGroup::Modp8192 => &*MODP8192,
        _ => return None,
    })
}

/// g^x mod p, padded to the length of p.
pub(super) fn public_value(group: DhGroup, exponent: &[u8]) -> Vec<u8> {
    let powers = powers(group).map(|powers| powers.of_generator(exponent));
    powers.unwrap_or_default()
}

/// peer^x mod p, padded to the length of p; `None` unless 1 < peer < p - 1 (RFC 6989 section 2.1).
pub(super) fn shared_secret(group: DhGroup, exponent: &[u8], peer: &[u8]) -> Option<SecretBytes> {
    powers(group)?.of(peer, exponent)
}

impl<const LIMBS: usize> Powers for Modp<LIMBS> {
    fn of_generator(&self, exponent: &[u8]) -> Vec<u8> {
        let bit = |number: usize| {
            let octet = exponent.iter().rev().nth(number / 8);
            octet.map_or(0, |octet| octet >> (number % 8) & 1)
        };
        let mut power = FixedMontyForm::one(&self.params);
        let mut factor = Uint::ZERO;
        for column in (0..self.columns).rev() {
            let rows = (0..TEETH).map(|row| bit(column + row * self.columns) << row);
            let wanted: u8 = rows.sum();
            // Which one is taken is secret: all are read.
            for (index, entry) in (0u8..).zip(&self.comb) {
                factor.ct_assign(entry, index.ct_eq(&wanted));
            }
            power = power.square() * FixedMontyForm::from_montgomery(factor, &self.params);
        }
        let public = power.retrieve().to_be_bytes().as_slice().to_vec();
        factor.zeroize();
        power.zeroize();
        public
    }

    fn of(&self, base: &[u8], exponent: &[u8]) -> Option<SecretBytes> {
        let params = &self.params;
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
        let mut exponent_value = U640::from_be_slice(padded.as_slice());
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
    fn check_prime<const L: usize>(modp: &Modp<L>, c: u64) {
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
        assert_eq!(*modp.params.modulus().as_ref(), expected, "modp{n}");
    }

    #[test]
    fn primes_are_those_of_the_rfcs() {
        check_prime(&MODP1024, 129_093);
        check_prime(&MODP1536, 741_804);
        check_prime(&MODP2048, 124_476);
        check_prime(&MODP3072, 1_690_314);
        check_prime(&MODP4096, 240_904);
        check_prime(&MODP6144, 929_484);
        check_prime(&MODP8192, 4_743_158);
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
    fn powers_of_the_generator_are_those_of_any_base() {
        for group in [
            DhGroup::Modp1024,
            DhGroup::Modp1536,
            DhGroup::Modp2048,
            DhGroup::Modp3072,
            DhGroup::Modp4096,
            DhGroup::Modp6144,
            DhGroup::Modp8192,
        ] {
            let mut two = vec![0; group.public_len()];
            *two.last_mut().unwrap() = 2;
            for fill in [0x00u8, 0x01, 0x80, 0xa7, 0xff] {
                let mut exponent = vec![fill; exponent_len(group)];
                exponent[0] ^= 0x5a;
                let any = shared_secret(group, &exponent, &two).unwrap();
                assert_eq!(
                    public_value(group, &exponent),
                    any.expose(),
                    "{group:?} {fill}"
                );
            }
        }
    }

    #[test]
    fn degenerate_values_are_refused() {
        let group = DhGroup::Modp1024;
        let exponent = [0x55; 32];
        let p = MODP1024.params.modulus().as_ref().to_owned();
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
