//! Reading, offering, choosing and explaining proposals.

use proptest::prelude::*;

use super::*;

fn ike(text: &str) -> Proposal {
    Proposal::parse_ike(text, true).unwrap()
}

fn esp(text: &str) -> Proposal {
    Proposal::parse_esp(text, true).unwrap()
}

fn offered(proposals: &[Proposal]) -> Vec<WireProposal> {
    offer(proposals, &[], Groups::Negotiated)
}

/// A peer's proposal of bare numbers: type, ID, key length (0 for none).
fn raw(protocol: Protocol, transforms: &[(u8, u16, u16)]) -> WireProposal {
    let transforms = transforms.iter().map(|&(kind, id, bits)| Transform {
        kind: TransformType::from_id(kind),
        id,
        key_len: (bits != 0).then_some(bits),
    });
    WireProposal {
        number: 1,
        protocol,
        spi: Vec::new(),
        transforms: transforms.collect(),
    }
}

#[test]
fn reads_keywords_and_their_aliases() {
    let shown = [
        (
            Protocol::Ike,
            "aes256-sha256-modp2048",
            "aes256-sha256-modp2048",
        ),
        (
            Protocol::Ike,
            "AES256-SHA2_256-DH14",
            "aes256-sha256-modp2048",
        ),
        (Protocol::Ike, "aes-sha-group5", "aes128-sha1-modp1536"),
        (
            Protocol::Ike,
            "aes256gcm16-prfsha256-x25519",
            "aes256gcm16-prfsha256-x25519",
        ),
        (
            Protocol::Ike,
            "aes256gcm128-sha384-curve25519",
            "aes256gcm16-prfsha384-x25519",
        ),
        (
            Protocol::Ike,
            "aes256gcm-ecp384",
            "aes256gcm16-prfsha256-prfsha384-prfsha512-prfsha1-ecp384",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-prfsha512-modp2048",
            "aes256-sha256-prfsha512-modp2048",
        ),
        (Protocol::Esp, "aes256gcm16", "aes256gcm16"),
        (
            Protocol::Esp,
            "aes256gcm64-aes192gcm96-aes128gcm128",
            "aes256gcm8-aes192gcm12-aes128gcm16",
        ),
        (
            Protocol::Esp,
            "aes192gcm-AES128GCM8",
            "aes192gcm16-aes128gcm8",
        ),
        (
            Protocol::Esp,
            "aes_gcm256-aes_gcm_192-aes_gcm-128",
            "aes256gcm16-aes192gcm16-aes128gcm16",
        ),
        (
            Protocol::Esp,
            "aes_gcm_a-256-aes_gcm_b_192-aes_gcm_c128",
            "aes256gcm8-aes192gcm12-aes128gcm16",
        ),
        (
            Protocol::Esp,
            "aes_gcm_8_256-AES_GCM_12-192-aes_gcm_16_128-chacha20_poly1305",
            "aes256gcm8-aes192gcm12-aes128gcm16-chacha20poly1305",
        ),
        (
            Protocol::Ike,
            "aes_gcm256-sha2_256-dh31",
            "aes256gcm16-prfsha256-x25519",
        ),
        (
            Protocol::Ike,
            "aes256gcm8-aes192gcm16-prfsha256-x25519",
            "aes256gcm8-aes192gcm16-prfsha256-x25519",
        ),
        (
            Protocol::Ike,
            "aes_ccm_a-128-aes_ccm256-prfaesxcbc-DH group 32-dh28",
            "aes128ccm8-aes256ccm16-prfaesxcbc-x448-ecp256bp",
        ),
        (
            Protocol::Ike,
            "3des-aes_ctr-192-aes_cbc-256-aes_cmac_96-group18-ecp384bp",
            "3des-aes192ctr-aes256-aescmac-modp8192-ecp384bp",
        ),
        (
            Protocol::Esp,
            "null_auth_aes_gmac-256-null-hmac_sha2_512-aes_xcbc-ml_kem_768",
            "aes256gmac-null-sha512-aesxcbc-mlkem768",
        ),
        (Protocol::Esp, "aes256-sha1-noesn", "aes256-sha1"),
        (
            Protocol::Esp,
            "chacha20poly1305-esn-noesn-x25519",
            "chacha20poly1305-x25519-esn-noesn",
        ),
        (
            Protocol::Esp,
            "aes128-aes256-aes128-sha256!",
            "aes128-aes256-sha256",
        ),
    ];
    for (protocol, text, expected) in shown {
        let proposal = Proposal::parse(protocol, text, true).unwrap().proposal;
        assert_eq!(proposal.to_string(), expected);
        assert_eq!(
            Proposal::parse(protocol, expected, true).unwrap().proposal,
            proposal
        );
    }
}

#[test]
fn refusals_name_the_keyword_and_the_cure() {
    let errors = [
        (
            Protocol::Ike,
            "aes265-sha256-modp2048",
            "unknown keyword \"aes265\"; did you mean \"aes256\"?",
        ),
        (
            Protocol::Ike,
            "aes256-sha265-modp2048",
            "did you mean \"sha256\"?",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-modp2408",
            "did you mean \"modp2048\"?",
        ),
        (
            Protocol::Ike,
            "blabla-sha256-modp2048",
            "unknown keyword \"blabla\". Valid are",
        ),
        (
            Protocol::Ike,
            "3des-sha1-modp2048",
            "\"3des\" is insecure: after some gigabytes",
        ),
        (
            Protocol::Esp,
            "null-sha256",
            "\"null\" is insecure: it does not encrypt",
        ),
        (
            Protocol::Ike,
            "aes256gmac-prfsha256-x25519",
            "\"aes256gmac\" has no meaning in an IKE proposal",
        ),
        (
            Protocol::Esp,
            "camellia256-sha256",
            "\"camellia256\" (encryption) is known but not supported",
        ),
        (Protocol::Esp, "aes_gcm", "unknown keyword \"aes_gcm\""),
        (
            Protocol::Esp,
            "aes256gcm4",
            "unknown keyword \"aes256gcm4\"; did you mean \"aes256gcm",
        ),
        (Protocol::Esp, "aes_gcm-16", "unknown keyword"),
        (Protocol::Esp, "aes256-128", "unknown keyword \"128\""),
        (
            Protocol::Ike,
            "aes256-sha256-dh24",
            "\"dh24\" (DH group) is known but not supported",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-x25519-ke1_sha256",
            "\"ke1_sha256\": what follows \"ke1_\" to \"ke7_\" must be \"none\" or one of those for DH group",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-x25519-ke8_mlkem768",
            "unknown keyword \"ke8_mlkem768\"",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-x25519-ke1_modp1024",
            "\"modp1024\" (DH group 2) is insecure",
        ),
        (
            Protocol::Esp,
            "aes256-sha256-ke1_mlkem768",
            "names no DH group",
        ),
        (Protocol::Ike, "aes256-sha256", "names no DH group"),
        (Protocol::Ike, "aes256-modp2048", "names no integrity"),
        (Protocol::Esp, "sha256", "names no encryption"),
        (
            Protocol::Ike,
            "aes256-sha256-modp2048-esn",
            "\"esn\" has no meaning in an IKE proposal",
        ),
        (
            Protocol::Ike,
            "aes256-sha256-modp2048,aes128-sha1-modp2048",
            "as a list",
        ),
        (Protocol::Ike, " ! ", "the proposal is empty"),
        (Protocol::Ike, "aes256--modp2048", "unknown keyword \"\""),
    ];
    for (protocol, text, part) in errors {
        let error = Proposal::parse(protocol, text, false)
            .unwrap_err()
            .to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
}

#[test]
fn insecure_groups_need_the_setting() {
    let error = Proposal::parse_ike("aes256-sha1-modp1024", false).unwrap_err();
    assert_eq!(
        error,
        KeywordError::Insecure {
            group: DhGroup::Modp1024
        }
    );
    let text = error.to_string();
    assert!(
        text.contains("Logjam") && text.contains("insecure = true"),
        "{text}"
    );

    let parsed = Proposal::parse(Protocol::Ike, "aes256-sha1-modp1024", true).unwrap();
    assert_eq!(parsed.notes, [Note::InsecureGroup(DhGroup::Modp1024)]);
    assert!(parsed.notes[0].is_warning());
}

#[test]
fn notes_say_what_was_passed_over() {
    let notes = |protocol, text| Proposal::parse(protocol, text, false).unwrap().notes;
    assert_eq!(
        notes(Protocol::Ike, "aes256-sha256-modp2048!"),
        [Note::TrailingExclamation]
    );
    assert_eq!(
        notes(Protocol::Esp, "aes256gcm16-sha256-prfsha256"),
        [
            Note::PrfInEsp(Prf::HmacSha256),
            Note::IntegrityWithAead(Integrity::HmacSha256_128)
        ]
    );
    // Here the integrity keyword stands for the PRF.
    assert_eq!(notes(Protocol::Ike, "aes256gcm16-sha256-x25519"), []);
}

#[test]
fn defaults_can_be_offered_and_hold_nothing_weak() {
    for proposal in Proposal::default_ike()
        .iter()
        .chain(&Proposal::default_esp())
    {
        let text = proposal.to_string();
        let again = Proposal::parse(proposal.protocol, &text, false).unwrap();
        assert_eq!(again.proposal, *proposal, "{text}");
        assert!(!text.contains("sha1"), "{text}");
    }
    let proposals = Proposal::default_ike();
    assert!(select_ike(&proposals, &offered(&proposals), None).is_ok());
    let proposals = Proposal::default_esp();
    assert!(select_esp(&proposals, &offered(&proposals), Groups::Ignored, None).is_ok());
}

#[test]
fn aeads_are_offered_apart_from_other_ciphers() {
    let wire = offered(&[ike("aes256-aes256gcm16-sha256-prfsha256-x25519")]);
    let shown: Vec<String> = wire.iter().map(WireProposal::to_string).collect();
    assert_eq!(
        shown,
        [
            "aes256-prfsha256-sha256-x25519",
            "aes256gcm16-prfsha256-x25519"
        ]
    );
    assert_eq!([wire[0].number, wire[1].number], [1, 2]);
}

#[test]
fn numbers_on_the_wire_are_those_of_iana() {
    let wire = offered(&[ike("aes256-sha1-modp1024")]);
    assert_eq!(
        wire[0],
        raw(
            Protocol::Ike,
            &[(1, 12, 256), (2, 2, 0), (3, 2, 0), (4, 2, 0)]
        )
    );
    let wire = offered(&[ike("aes128gcm16-prfsha512-x25519")]);
    assert_eq!(
        wire[0],
        raw(Protocol::Ike, &[(1, 20, 128), (2, 7, 0), (4, 31, 0)])
    );
    let wire = offered(&[esp("aes256gcm8-aes128gcm12-aes192gcm16")]);
    assert_eq!(
        wire[0],
        raw(
            Protocol::Esp,
            &[(1, 18, 256), (1, 19, 128), (1, 20, 192), (5, 0, 0)]
        )
    );
    let wire = offered(&[esp("aes192-sha512-ecp521-esn")]);
    assert_eq!(
        wire[0],
        raw(
            Protocol::Esp,
            &[(1, 12, 192), (3, 14, 0), (4, 21, 0), (5, 1, 0)]
        )
    );
    let wire = offered(&[esp("chacha20poly1305-esn-noesn")]);
    assert_eq!(
        wire[0],
        raw(Protocol::Esp, &[(1, 28, 0), (5, 1, 0), (5, 0, 0)])
    );
    let wire = offer(
        &[esp("aes256-sha384-modp2048")],
        &[1, 2, 3, 4],
        Groups::Ignored,
    );
    let expected = raw(Protocol::Esp, &[(1, 12, 256), (3, 13, 0), (5, 0, 0)]);
    assert_eq!(
        wire[0],
        WireProposal {
            spi: vec![1, 2, 3, 4],
            ..expected
        }
    );
}

#[test]
fn our_order_decides() {
    let ours = [
        ike("aes256gcm16-prfsha256-x25519"),
        ike("aes256-sha256-ecp256-modp2048"),
    ];
    let theirs = offered(&[
        ike("aes128-sha1-modp1024"),
        ike("aes128-aes256-sha1-sha256-modp2048-ecp256"),
        ike("aes128gcm16-aes256gcm16-prfsha384-prfsha256-modp2048-x25519"),
    ]);
    let selection = select_ike(&ours, &theirs, None).unwrap();
    assert_eq!(selection.suite.to_string(), "aes256gcm16-prfsha256-x25519");
    assert_eq!((selection.index, selection.number), (2, 3));

    let selection = select_ike(&ours, &theirs[..2], None).unwrap();
    assert_eq!(selection.suite.to_string(), "aes256-sha256-ecp256");
    // The peer's KE payload is for modp2048: no need to ask for another.
    let selection = select_ike(&ours, &theirs[..2], Some(DhGroup::Modp2048)).unwrap();
    assert_eq!(selection.suite.to_string(), "aes256-sha256-modp2048");
    // Unless that group is none of ours.
    let selection = select_ike(&ours, &theirs[..2], Some(DhGroup::Modp1024)).unwrap();
    assert_eq!(selection.suite.group, DhGroup::Ecp256);
}

#[test]
fn initiator_takes_what_a_responder_selects() {
    let ours = [ike(
        "aes256gcm16-aes256-sha256-sha384-prfsha256-x25519-modp2048",
    )];
    let sent = offered(&ours);
    let selection = select_ike(&[ike("aes256-sha384-prfsha256-modp2048")], &sent, None).unwrap();
    let answer = WireProposal {
        number: selection.number,
        protocol: Protocol::Ike,
        spi: Vec::new(),
        transforms: selection.transforms,
    };
    assert_eq!(verify_ike(&ours, &answer).unwrap(), selection.suite);
}

#[test]
fn initiator_refuses_what_it_did_not_offer() {
    let ours = [ike("aes256-sha256-modp2048")];
    let good: [(u8, u16, u16); 4] = [(1, 12, 256), (2, 5, 0), (3, 12, 0), (4, 14, 0)];
    assert!(verify_ike(&ours, &raw(Protocol::Ike, &good)).is_ok());
    for index in 0..good.len() {
        let mut missing = good.to_vec();
        missing.remove(index);
        assert!(
            verify_ike(&ours, &raw(Protocol::Ike, &missing)).is_err(),
            "without {index}"
        );
    }
    let mut weaker = good;
    weaker[0].2 = 128;
    let error = verify_ike(&ours, &raw(Protocol::Ike, &weaker)).unwrap_err();
    assert!(error.to_string().contains("aes128"), "{error}");
    let twice = [&good[..], &good[3..]].concat();
    assert!(matches!(
        verify_ike(&ours, &raw(Protocol::Ike, &twice)),
        Err(VerifyError::Several {
            kind: TransformType::KeyExchange,
            ..
        })
    ));
    // An integrity algorithm beside an AEAD is forgiven in an offer, not in an answer.
    let aead = [esp("aes256gcm16")];
    let answer = raw(Protocol::Esp, &[(1, 20, 256), (3, 12, 0), (5, 0, 0)]);
    assert!(select_esp(&aead, std::slice::from_ref(&answer), Groups::Ignored, None).is_ok());
    assert!(matches!(
        verify_esp(&aead, &answer, Groups::Ignored),
        Err(VerifyError::NotOffered(_))
    ));
    // Nor a group in IKE_AUTH.
    let answer = raw(Protocol::Esp, &[(1, 20, 256), (4, 14, 0), (5, 0, 0)]);
    assert!(verify_esp(&aead, &answer, Groups::Ignored).is_err());
}

#[test]
fn none_and_missing_transforms() {
    let aead = [esp("aes256gcm16")];
    let select = |local: &[Proposal], transforms: &[(u8, u16, u16)]| {
        select_esp(
            local,
            &[raw(Protocol::Esp, transforms)],
            Groups::Negotiated,
            None,
        )
    };
    // NONE is answered where it was sent.
    let selection = select(&aead, &[(1, 20, 256), (3, 0, 0), (4, 0, 0), (5, 0, 0)]).unwrap();
    assert_eq!(selection.transforms.len(), 4);
    assert_eq!(selection.suite.group, None);
    // No ESN transform is 32-bit sequence numbers, and is not answered.
    let selection = select(&aead, &[(1, 20, 256)]).unwrap();
    assert_eq!(
        (selection.transforms.len(), selection.suite.suite.esn),
        (1, false)
    );
    assert!(select(&[esp("aes256gcm16-esn")], &[(1, 20, 256)]).is_err());
    // A group that only one side wants.
    assert!(select(&aead, &[(1, 20, 256), (4, 14, 0), (5, 0, 0)]).is_err());
    assert!(select(&[esp("aes256gcm16-modp2048")], &[(1, 20, 256), (5, 0, 0)]).is_err());
    // NONE is no key exchange, and no integrity for a cipher that needs one.
    assert!(
        select(
            &[esp("aes256gcm16-modp2048")],
            &[(1, 20, 256), (4, 0, 0), (5, 0, 0)]
        )
        .is_err()
    );
    assert!(select(&[esp("aes256-sha1")], &[(1, 12, 256), (3, 0, 0), (5, 0, 0)]).is_err());
    // AES without a key length is no AES we know.
    assert!(select(&aead, &[(1, 20, 0), (5, 0, 0)]).is_err());
    // Unknown transform types make a proposal unacceptable.
    assert!(select(&aead, &[(1, 20, 256), (5, 0, 0), (6, 0, 0)]).is_ok());
    assert!(select(&aead, &[(1, 20, 256), (5, 0, 0), (13, 0, 0)]).is_err());
}

/// Key length and ICV are chosen as they are offered: neither stands for another.
#[test]
fn icvs_and_key_lengths_of_aes_gcm() {
    let every = "aes256gcm16-aes128gcm16-aes192gcm16-aes256gcm12-aes192gcm12-aes128gcm12-\
                 aes256gcm8-aes192gcm8-aes128gcm8";
    for one in every.split('-') {
        let theirs = offered(&[esp(one)]);
        let selection = select_esp(&[esp(every)], &theirs, Groups::Ignored, None).unwrap();
        assert_eq!(selection.suite.suite.to_string(), one);
        let answer = raw(Protocol::Esp, &[(1, 17, 256), (5, 0, 0)]);
        assert!(verify_esp(&[esp(one)], &answer, Groups::Ignored).is_err());
        for other in every.split('-').filter(|other| *other != one) {
            assert!(select_esp(&[esp(other)], &theirs, Groups::Ignored, None).is_err());
        }
    }
    let mismatch = select_ike(
        &[ike("aes256gcm16-prfsha256-x25519")],
        &offered(&[ike("aes256gcm8-prfsha256-x25519")]),
        None,
    );
    let mismatch = mismatch.unwrap_err().to_string();
    assert!(mismatch.contains("aes256gcm8"), "{mismatch}");
}

#[test]
fn groups_are_not_looked_at_in_ike_auth() {
    let ours = [esp("aes256-sha256-modp2048")];
    for theirs in [
        "aes256-sha256",
        "aes256-sha256-modp2048",
        "aes256-sha256-ecp256",
    ] {
        let selection = select_esp(&ours, &offered(&[esp(theirs)]), Groups::Ignored, None).unwrap();
        assert_eq!(selection.suite.to_string(), "aes256-sha256");
    }
}

#[test]
fn a_mismatch_shows_the_closest_pair_and_the_cure() {
    let ours = [ike("aes256-sha256-modp2048")];
    let theirs = offered(&[ike("aes128-sha1-modp1024"), ike("aes256-sha1-modp2048")]);
    let mismatch = select_ike(&ours, &theirs, None).unwrap_err();
    assert_eq!(
        mismatch.to_string(),
        [
            "no IKE proposal in common; proposal 2 of the peer's 2 comes closest",
            "              we accept  the peer sent",
            "  encryption  aes256     aes256         ok",
            "  integrity   sha256     sha1           no match",
            "  PRF         prfsha256  prfsha1        no match",
            "  DH group    modp2048   modp2048       ok",
            "the peer sent  aes128-prfsha1-sha1-modp1024",
            "the peer sent  aes256-prfsha1-sha1-modp2048",
        ]
        .join("\n")
    );
    let suggestion = mismatch.suggestion().unwrap();
    assert_eq!(suggestion.to_string(), "aes256-sha1-modp2048");
    assert!(!suggestion.needs_insecure());
}

#[test]
fn a_suggestion_says_when_it_is_insecure() {
    let ours = [ike("aes256-sha256-modp2048")];
    let mismatch = select_ike(&ours, &offered(&[ike("aes256-sha1-modp1024")]), None).unwrap_err();
    let suggestion = mismatch.suggestion().unwrap();
    assert_eq!(suggestion.to_string(), "aes256-sha1-modp1024");
    assert!(suggestion.needs_insecure());
}

#[test]
fn a_suggestion_keeps_the_group_for_rekeying() {
    let ours = [esp("aes128-sha256-modp2048")];
    let theirs = offer(&[esp("aes256gcm16")], &[0; 4], Groups::Ignored);
    let mismatch = select_esp(&ours, &theirs, Groups::Ignored, None).unwrap_err();
    assert_eq!(
        mismatch.suggestion().unwrap().to_string(),
        "aes256gcm16-modp2048"
    );
    assert!(!mismatch.to_string().contains("DH group"), "{mismatch}");
}

#[test]
fn unknown_algorithms_are_named_and_never_suggested() {
    let theirs = raw(
        Protocol::Ike,
        &[
            (1, 2, 0),
            (1, 23, 256),
            (1, 999, 64),
            (2, 1, 0),
            (3, 1, 0),
            (4, 36, 0),
            (4, 77, 0),
            (6, 36, 0),
        ],
    );
    let mismatch = select_ike(
        &[ike("aes256-sha256-modp2048")],
        std::slice::from_ref(&theirs),
        None,
    )
    .unwrap_err();
    let text = mismatch.to_string();
    for name in [
        "des, camellia256, encryption 999 with key length 64",
        "prfmd5",
        "md5",
        "mlkem768, DH group 77",
        "ADDKE1",
        "ke1_mlkem768",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert_eq!(mismatch.suggestion(), None);
}

#[test]
fn other_protocols_are_no_offer() {
    let theirs = [raw(Protocol::Ah, &[(3, 12, 0), (5, 0, 0)])];
    let mismatch = select_esp(&[esp("aes256gcm16")], &theirs, Groups::Ignored, None).unwrap_err();
    assert_eq!(
        mismatch.to_string(),
        "the peer sent no ESP proposal, only AH"
    );
    assert!(mismatch.closest().is_none() && mismatch.suggestion().is_none());
}

#[test]
fn an_offer_is_listed_type_by_type() {
    let proposals = [ike("aes256-aes128-sha256-modp2048")];
    let text = Offer {
        proposals: &proposals,
        groups: Groups::Negotiated,
    }
    .to_string();
    assert_eq!(
        text,
        [
            "we offered",
            "     encryption  aes256, aes128",
            "     PRF         prfsha256",
            "     integrity   sha256",
            "     DH group    modp2048",
        ]
        .join("\n")
    );
}

#[test]
fn additional_key_exchanges_are_chosen_one_by_one() {
    let cases = [
        (
            "x25519-ke1_mlkem768",
            "x25519-ke1_mlkem768",
            Some("x25519-ke1_mlkem768"),
        ),
        ("x25519-ke1_mlkem768", "x25519", None),
        ("x25519", "x25519-ke1_mlkem768", None),
        ("x25519-ke1_mlkem768", "x25519-ke2_mlkem768", None),
        ("x25519-ke1_mlkem768", "x25519-ke1_mlkem512", None),
        ("x25519-ke1_mlkem768-ke1_none", "x25519", Some("x25519")),
        ("x25519", "x25519-ke1_mlkem768-ke1_none", Some("x25519")),
        (
            "x25519-ke1_mlkem1024-ke1_mlkem768-ke3_ecp256",
            "x25519-ke1_mlkem768-ke1_mlkem1024-ke3_ecp256",
            Some("x25519-ke1_mlkem1024-ke3_ecp256"),
        ),
        // No method twice.
        ("x25519-ke1_x25519", "x25519-ke1_x25519", None),
        (
            "x25519-ke1_x25519-ke1_mlkem512-ke2_mlkem512-ke2_mlkem768",
            "x25519-ke1_x25519-ke1_mlkem512-ke2_mlkem512-ke2_mlkem768",
            Some("x25519-ke1_mlkem512-ke2_mlkem768"),
        ),
    ];
    for (ours, theirs, expected) in cases {
        let proposal = |groups: &str| vec![ike(&format!("aes256gcm16-prfsha256-{groups}"))];
        let (ours, theirs) = (proposal(ours), proposal(theirs));
        let sent = offered(&theirs);
        let selection = select_ike(&ours, &sent, None);
        let suite = selection.as_ref().ok().map(|it| it.suite.to_string());
        let expected = expected.map(|groups| format!("aes256gcm16-prfsha256-{groups}"));
        assert_eq!(suite, expected, "{} {}", ours[0], theirs[0]);
        if let Ok(selection) = selection {
            let answer = WireProposal {
                number: selection.number,
                protocol: Protocol::Ike,
                spi: Vec::new(),
                transforms: selection.transforms,
            };
            assert_eq!(verify_ike(&theirs, &answer), Ok(selection.suite));
            // What it holds besides the first key exchange is not looked at in IKE_AUTH.
            let esp = esp("aes256gcm16-x25519-ke1_mlkem768");
            let first = offer(std::slice::from_ref(&esp), &[0; 4], Groups::Ignored);
            assert!(
                first[0]
                    .transforms
                    .iter()
                    .all(|it| !it.kind.is_key_exchange())
            );
            let chosen = select_esp(&[esp], &first, Groups::Ignored, None).unwrap();
            assert!(chosen.suite.additional.is_empty());
        }
    }
}

fn keyword() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "aes128",
        "aes256",
        "aes256gcm16",
        "chacha20poly1305",
        "sha1",
        "sha256",
        "sha512",
        "prfsha256",
        "prfsha384",
        "modp2048",
        "x25519",
        "ecp384",
        "modp1024",
        "ke1_mlkem768",
        "ke1_none",
        "ke2_mlkem512",
    ])
}

fn proposal() -> impl Strategy<Value = Proposal> {
    prop::collection::vec(keyword(), 1..7).prop_filter_map("incomplete", |words| {
        Proposal::parse_ike(&words.join("-"), true).ok()
    })
}

fn wire() -> impl Strategy<Value = Vec<WireProposal>> {
    let transform = (
        1u8..7,
        prop::sample::select(vec![0u16, 1, 2, 5, 12, 14, 20, 28, 31, 999]),
        prop::sample::select(vec![0u16, 128, 256, 7]),
    );
    let proposal = prop::collection::vec(transform, 0..10);
    prop::collection::vec(proposal.prop_map(|it| raw(Protocol::Ike, &it)), 0..4)
}

proptest! {
    #[test]
    fn reading_never_panics(text in "[a-z0-9!-]{0,40}|\\PC{0,20}") {
        for protocol in [Protocol::Ike, Protocol::Esp] {
            if let Err(error) = Proposal::parse(protocol, &text, false) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn shown_proposals_can_be_read_again(proposal in proposal()) {
        let again = Proposal::parse_ike(&proposal.to_string(), true).unwrap();
        prop_assert_eq!(again, proposal);
    }

    /// Whatever is selected was offered by the peer, is accepted by us, and passes the initiator's
    /// check; whatever is not has a suggestion that cures it, if one is given.
    #[test]
    fn selection_and_suggestion_hold_what_they_promise(
        ours in prop::collection::vec(proposal(), 1..3),
        theirs in prop::collection::vec(proposal(), 1..3),
    ) {
        let sent = offered(&theirs);
        match select_ike(&ours, &sent, None) {
            Ok(selection) => {
                let answer = WireProposal {
                    number: selection.number,
                    protocol: Protocol::Ike,
                    spi: Vec::new(),
                    transforms: selection.transforms,
                };
                prop_assert_eq!(verify_ike(&theirs, &answer).unwrap(), selection.suite);
                prop_assert_eq!(verify_ike(&ours, &answer).unwrap(), selection.suite);
            }
            Err(mismatch) => {
                let suggestion = mismatch.suggestion().unwrap().to_string();
                let cured = [Proposal::parse_ike(&suggestion, true).unwrap()];
                prop_assert!(select_ike(&cured, &sent, None).is_ok(), "{}", suggestion);
            }
        }
    }

    #[test]
    fn any_offer_is_selected_from_or_explained(sent in wire()) {
        if let Err(mismatch) = select_ike(&Proposal::default_ike(), &sent, Some(DhGroup::Ecp256)) {
            prop_assert!(!mismatch.to_string().is_empty());
            if let Some(suggestion) = mismatch.suggestion() {
                let cured = [Proposal::parse_ike(&suggestion.to_string(), true).unwrap()];
                prop_assert!(select_ike(&cured, &sent, None).is_ok(), "{}", suggestion);
            }
        }
    }
}
