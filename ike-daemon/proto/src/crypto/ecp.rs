//! ECDH over the NIST curves (RFC 5903). On the wire a point is x | y, without the octet 4 that
//! SEC 1 puts before it; the shared secret is x alone (section 7).

use espada_common::sa::SecretBytes;
use p256::elliptic_curve::array::typenum::Unsigned;
use p256::elliptic_curve::ecdh::diffie_hellman;
use p256::elliptic_curve::sec1::{FromSec1Point, ModulusSize, ToSec1Point};
use p256::elliptic_curve::{
    AffinePoint, Curve, CurveArithmetic, FieldBytes, FieldBytesSize, PublicKey, SecretKey,
};
use zeroize::Zeroize;

use super::Random;

/// The octet of SEC 1 that announces an uncompressed point.
const UNCOMPRESSED: u8 = 4;

/// A private scalar in 1..n.
pub(super) struct Secret<C: Curve>(SecretKey<C>);

impl<C> Secret<C>
where
    C: CurveArithmetic,
    AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
    FieldBytesSize<C>: ModulusSize,
{
    /// A uniform scalar: random octets, drawn again in the rare case that they are 0 or not below n.
    pub(super) fn generate(random: &mut impl Random) -> Self {
        loop {
            let mut octets = FieldBytes::<C>::default();
            random.fill(&mut octets);
            // P-521's order has 521 bits in 66 octets: without this all but 1 in 128 draws would miss.
            if FieldBytesSize::<C>::USIZE == 66
                && let Some(first) = octets.first_mut()
            {
                *first &= 1;
            }
            let key = SecretKey::from_bytes(&octets);
            octets.as_mut_slice().zeroize();
            if let Ok(key) = key {
                return Self(key);
            }
        }
    }

    pub(super) fn public_value(&self) -> Vec<u8> {
        let point = self.0.public_key().to_sec1_point(false);
        point.as_bytes().get(1..).unwrap_or_default().to_vec()
    }

    /// `None` if `peer` is no point of the curve.
    pub(super) fn shared_secret(&self, peer: &[u8]) -> Option<SecretBytes> {
        let mut encoded = Vec::with_capacity(1 + peer.len());
        encoded.push(UNCOMPRESSED);
        encoded.extend_from_slice(peer);
        let peer = PublicKey::<C>::from_sec1_bytes(&encoded).ok()?;
        let shared = diffie_hellman(self.0.to_nonzero_scalar(), peer.as_affine());
        Some(SecretBytes::new(shared.raw_secret_bytes().to_vec()))
    }

    #[cfg(test)]
    pub(super) fn from_octets(octets: &[u8]) -> Self {
        Self(SecretKey::from_slice(octets).unwrap())
    }
}

#[cfg(test)]
mod tests {
    use p256::NistP256;
    use p384::NistP384;
    use p521::NistP521;

    use super::*;
    use crate::crypto::brainpool512::BrainpoolP512r1;
    use crate::crypto::test_util::hex;

    fn check<C>(i: &str, public_i: &str, r: &str, public_r: &str, shared: &str)
    where
        C: CurveArithmetic,
        AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
        FieldBytesSize<C>: ModulusSize,
    {
        let (i, r) = (
            Secret::<C>::from_octets(&hex(i)),
            Secret::<C>::from_octets(&hex(r)),
        );
        assert_eq!(i.public_value(), hex(public_i));
        assert_eq!(r.public_value(), hex(public_r));
        assert_eq!(
            i.shared_secret(&r.public_value()).unwrap().expose(),
            hex(shared)
        );
        assert_eq!(
            r.shared_secret(&i.public_value()).unwrap().expose(),
            hex(shared)
        );
    }

    #[test]
    fn rfc5903_section_8_1() {
        check::<NistP256>(
            "C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433",
            "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180
             5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3",
            "C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53",
            "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63
             56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB",
            "D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE",
        );
    }

    #[test]
    fn rfc5903_section_8_2() {
        check::<NistP384>(
            "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655
             E35B538041E649EE3FAEF896783AB194",
            "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6
             DE3AC808ACB4BDB4C88732AEE95F41AA
             9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38E
             EB9FCFF3C2C947DAE69B4C634573A81C",
            "41CB0779B4BDB85D47846725FBEC3C9430FAB46CC8DC5060855CC9BDA0AA2942
             E0308312916B8ED2960E4BD55A7448FC",
            "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D
             0D1AC43A0336DEF96FDA41D0774A3571
             DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FF
             F83FA40142209DFF5EAAD96DB9E6386C",
            "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4
             D603135569B9E9D09CF5D4A270F59746",
        );
    }

    #[test]
    fn rfc5903_section_8_3() {
        check::<NistP521>(
            "0037ADE9319A89F4DABDB3EF411AACCCA5123C61ACAB57B5393DCE47608172A0
             95AA85A30FE1C2952C6771D937BA9777F5957B2639BAB072462F68C27A57382D
             4A52",
            "0015417E84DBF28C0AD3C278713349DC7DF153C897A1891BD98BAB4357C9ECBE
             E1E3BF42E00B8E380AEAE57C2D107564941885942AF5A7F4601723C4195D176C
             ED3E
             017CAE20B6641D2EEB695786D8C946146239D099E18E1D5A514C739D7CB4A10A
             D8A788015AC405D7799DC75E7B7D5B6CF2261A6A7F1507438BF01BEB6CA3926F
             9582",
            "0145BA99A847AF43793FDD0E872E7CDFA16BE30FDC780F97BCCC3F078380201E
             9C677D600B343757A3BDBF2A3163E4C2F869CCA7458AA4A4EFFC311F5CB15168
             5EB9",
            "00D0B3975AC4B799F5BEA16D5E13E9AF971D5E9B984C9F39728B5E5739735A21
             9B97C356436ADC6E95BB0352F6BE64A6C2912D4EF2D0433CED2B6171640012D9
             460F
             015C68226383956E3BD066E797B623C27CE0EAC2F551A10C2C724D9852077B87
             220B6536C5C408A1D2AEBB8E86D678AE49CB57091F4732296579AB44FCD17F0F
             C56A",
            "01144C7D79AE6956BC8EDB8E7C787C4521CB086FA64407F97894E5E6B2D79B04
             D1427E73CA4BAA240A34786859810C06B3C715A3A8CC3151F2BEE417996D19F3
             DDEA",
        );
    }

    #[test]
    fn rfc7027_appendix_a_3() {
        check::<BrainpoolP512r1>(
            "16302FF0DBBB5A8D733DAB7141C1B45ACBC8715939677F6A56850A38BD87BD59
             B09E80279609FF333EB9D4C061231FB26F92EEB04982A5F1D1764CAD57665422",
            "0A420517E406AAC0ACDCE90FCD71487718D3B953EFD7FBEC5F7F27E28C614999
             9397E91E029E06457DB2D3E640668B392C2A7E737A7F0BF04436D11640FD09FD
             72E6882E8DB28AAD36237CD25D580DB23783961C8DC52DFA2EC138AD472A0FCE
             F3887CF62B623B2A87DE5C588301EA3E5FC269B373B60724F5E82A6AD147FDE7",
            "230E18E1BCC88A362FA54E4EA3902009292F7F8033624FD471B5D8ACE49D12CF
             ABBC19963DAB8E2F1EBA00BFFB29E4D72D13F2224562F405CB80503666B25429",
            "9D45F66DE5D67E2E6DB6E93A59CE0BB48106097FF78A081DE781CDB31FCE8CCB
             AAEA8DD4320C4119F1E9CD437A2EAB3731FA9668AB268D871DEDA55A5473199F
             2FDC313095BCDD5FB3A91636F07A959C8E86B5636A1E930E8396049CB481961D
             365CC11453A06C719835475B12CB52FC3C383BCE35E27EF194512B71876285FA",
            "A7927098655F1F9976FA50A9D566865DC530331846381C87256BAF3226244B76
             D36403C024D7BBF0AA0803EAFF405D3D24F11A9B5C0BEF679FE1454B21C4CD1F",
        );
    }

    fn refuses<C>()
    where
        C: CurveArithmetic,
        AffinePoint<C>: FromSec1Point<C> + ToSec1Point<C>,
        FieldBytesSize<C>: ModulusSize,
    {
        let secret = Secret::<C>::from_octets(&vec![1; FieldBytesSize::<C>::USIZE]);
        let mut point = secret.public_value();
        assert!(secret.shared_secret(&vec![0; point.len()]).is_none());
        assert!(secret.shared_secret(&vec![0xff; point.len()]).is_none());
        *point.last_mut().unwrap() ^= 1;
        assert!(secret.shared_secret(&point).is_none());
    }

    #[test]
    fn points_off_the_curve_are_refused() {
        refuses::<NistP256>();
        refuses::<BrainpoolP512r1>();
    }
}
