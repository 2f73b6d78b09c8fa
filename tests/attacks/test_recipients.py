"""Adversary: whoever rewrites the header of a sealed file: its recipients, their order, kind and number.

Powers: every byte of the header; as an insider, also the file key and so a right MAC over any header.
Lacks: the sealing keys of others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from not_fed.age import BadContainer, BadKeyText, HybridIdentity, NotForThisKey, bech32, check_recipient
from not_fed.age.header import MAX_STANZAS, Stanza, decode64, encode64, write_header
from not_fed.age.hybrid import KIND, wrap
from not_fed.envelope import Expectation, seal_organ
from not_fed.envelope.checks import NotAddressed, WaybillMismatch
from not_fed.envelope.seal import BadRecipients
from not_fed.envelope.waybill import MAX_RECIPIENTS
from not_fed.keys import Opener
from not_fed.keys.sealing import recipient_fingerprint
from not_fed.trust.members import UnknownMember
from not_fed.trust.roster import revoke_member
from tests.support.attacks import (
    assert_not_sealed,
    assert_opens,
    assert_seals,
    header_with_foreign_mac,
    header_with_mac,
)
from tests.support.trust import (
    FEDERATION,
    NOW,
    Federation,
    Forger,
    Parcel,
    Site,
    assert_refused,
    build_container,
    days,
    split,
)

P = 2**255 - 19
LOW_ORDER = {  # all points of X25519 whose shared secret is zero, and their other spellings below 2**255
    "zero": 0, "one": 1, "of order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "of order 8, the other": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "minus one": P - 1, "zero, unreduced": P, "one, unreduced": P + 1,
}  # fmt: skip


def test_recipients_cannot_be_dropped_added_repeated_or_reordered(forger: Forger, parcel: Parcel) -> None:
    """A6. A recipient is left out, doubled, moved or exchanged; without the file key the MAC cannot be made again.

    Powers: rewrites the header on its way, has keys of its own. Control: each true recipient opens the original.
    """
    sealed = parcel.path.read_bytes()
    header, payload = split(sealed)
    hub, lab = header.stanzas
    outsider = wrap(os.urandom(16), recipient=Site.make("mallory").opener.recipient)
    for stanzas in ([hub], [hub, lab, hub], [lab, hub], [hub, lab, outsider], [outsider, hub, lab], [hub, outsider]):
        parcel.path.write_bytes(header_with_foreign_mac(stanzas, header.mac) + payload)
        assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(sealed)
    for site in (parcel.federation.hub, parcel.federation.lab):
        opened = assert_opens(parcel, site, label=parcel.sealed.label)
        assert (opened.sender, opened.author) == ("clinic", "clinic")


def test_a_recipient_of_a_weaker_kind_is_refused_even_under_a_right_mac(forger: Forger, parcel: Parcel) -> None:
    """A7. A downgrade: an X25519, scrypt, ssh or unknown stanza is added for somebody without post-quantum keys.

    Powers: an insider who holds the file key and can make the MAC. Control: two of the right kind open.
    """
    file_key, plain = os.urandom(16), forger.plain
    ours, other = (wrap(file_key, recipient=text) for text in forger.to)
    for weaker in (
        Stanza("X25519", (encode64(bytes(32)),), bytes(32)),
        Stanza("scrypt", (encode64(bytes(16)), "10"), bytes(32)),
        Stanza("ssh-ed25519", ("abcd", encode64(bytes(32))), bytes(32)),
        Stanza(KIND, (ours.arguments[0], "more"), ours.body),
        Stanza(KIND, (encode64(decode64(ours.arguments[0])[:-1]),), ours.body),
        Stanza(KIND, ours.arguments, ours.body + b"\0"),
        Stanza("joint-grease", (), b""),
    ):
        for stanzas in ([ours, weaker], [weaker, ours]):
            parcel.path.write_bytes(build_container(plain, recipients=[], stanzas=stanzas, file_key=file_key))
            assert "recipient" in assert_refused(parcel, BadContainer).got
    parcel.path.write_bytes(build_container(plain, recipients=[], stanzas=[ours, other], file_key=file_key))
    assert_opens(parcel)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"age-encryption.org/v1\n", id="version-only"),
        pytest.param(b"age-encryption.org/v2\n--- " + b"A" * 43 + b"\n", id="another-version"),
        pytest.param(b"age-encryption.org/v1\r\n", id="crlf"),
        pytest.param(b"-----BEGIN AGE ENCRYPTED FILE-----\n", id="armor"),
        pytest.param(b"age-encryption.org/v1\n--- " + b"A" * 43 + b"\n" + bytes(64), id="no-recipient"),
        pytest.param(b"age-encryption.org/v1\n-> " + b"a" * 1_000_000, id="a-line-of-a-megabyte"),
        pytest.param(b"age-encryption.org/v1\n" + b"-> a\n\n" * 10_000, id="ten-thousand-recipients"),
        pytest.param(b"age-encryption.org/v1\n->\n\n--- " + b"A" * 43 + b"\n", id="no-kind"),
        pytest.param(b"age-encryption.org/v1\n-> \xff\n\n--- " + b"A" * 43 + b"\n", id="not-ascii"),
        pytest.param(b"age-encryption.org/v1\n-> a\n\n---" + b"A" * 43 + b"\n", id="mac-without-space"),
        pytest.param(b"age-encryption.org/v1\n-> a\n\n--- " + b"A" * 42 + b"B\n", id="mac-not-canonical"),
        pytest.param(b"age-encryption.org/v1\n-> a\nAA==\n--- " + b"A" * 43 + b"\n", id="padded-base64"),
        pytest.param(bytes(100_000), id="zeros"),
    ],
)
def test_what_is_not_an_age_file_is_refused(parcel: Parcel, hostile: bytes) -> None:
    """A8. Anything but a header by the grammar: ten thousand recipients, a megabyte's line, CRLF, armor, nothing.

    Powers: puts any file in the place of the sealed one. Control: the sealed file itself opens.
    """
    sealed = parcel.path.read_bytes()
    parcel.path.write_bytes(hostile)
    started = time.process_time()
    assert_refused(parcel, BadContainer)
    assert time.process_time() - started < 2
    parcel.path.write_bytes(sealed)
    assert_opens(parcel)


def test_a_payload_of_nothing_is_refused(parcel: Parcel) -> None:
    """A8. A good header for the right recipients over an empty payload, or over no payload at all.

    Powers: any member, sealing to others. Control: the same header's recipients open an honest payload.
    """
    sealed = parcel.path.read_bytes()
    empty = build_container(b"", recipients=[parcel.federation.hub.opener.recipient])
    for hostile in (empty, empty[: split(empty)[0].size_bytes], empty[: split(empty)[0].size_bytes + 16]):
        parcel.path.write_bytes(hostile)
        assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(sealed)
    assert_opens(parcel)


def test_a_sender_cannot_give_two_recipients_two_organs(forger: Forger, parcel: Parcel) -> None:
    """A9. Equivocation: two file keys in one header. The MAC commits to one key, so the second recipient refuses.

    Powers: a member who seals by hand. Control: the first recipient, whose key the header commits to, opens it.
    """
    first, second = os.urandom(16), os.urandom(16)
    federation = parcel.federation
    stanzas = [
        wrap(first, recipient=federation.hub.opener.recipient),
        wrap(second, recipient=federation.lab.opener.recipient),
    ]
    parcel.path.write_bytes(build_container(forger.plain, recipients=[], stanzas=stanzas, file_key=first))
    assert parcel.open(federation.hub).sender == "clinic"  # control: the first one's header does hold
    assert_refused(parcel, BadContainer, by=federation.lab, out=parcel.folder / "second.organ")


def test_one_recipient_cannot_be_given_two_file_keys(forger: Forger, parcel: Parcel) -> None:
    """Own. Two copies of different file keys for the same recipient, in both orders, under the MAC of either.

    Powers: a member who seals by hand. Control: two copies of one file key for two recipients open.
    """
    first, second = os.urandom(16), os.urandom(16)
    hub = parcel.federation.hub.opener.recipient
    for file_keys, right in (((first, second), second), ((second, first), first)):
        stanzas = [wrap(file_key, recipient=hub) for file_key in file_keys]
        parcel.path.write_bytes(build_container(forger.plain, recipients=[], stanzas=stanzas, file_key=right))
        assert_refused(parcel, BadContainer)
    forger.write()
    assert_opens(parcel)


def _noncanonical(text: str) -> str:
    """The same bytes in another spelling: a spare bit of the last letter is set."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


SPELLINGS: dict[str, Callable[[bytes], bytes]] = {
    "the argument's last letter": lambda text: text.replace(
        (argument := text.split(b"\n")[1].split(b" ")[2]), _noncanonical(argument.decode()).encode(), 1
    ),
    "the body's last letter": lambda text: text.replace(
        (body := text.split(b"\n")[2]), _noncanonical(body.decode()).encode(), 1
    ),
    "a padded argument": lambda text: text.replace((line := text.split(b"\n")[1]), line + b"==", 1),
    "a padded body": lambda text: text.replace((body := text.split(b"\n")[2]), body + b"=", 1),
    "the url alphabet": lambda text: text.replace(b"+", b"-").replace(b"/", b"_").replace(b"org_v1", b"org/v1"),
    "a body in two lines": lambda text: text.replace((body := text.split(b"\n")[2]), body[:20] + b"\n" + body[20:], 1),
    "an empty line more": lambda text: text.replace((body := text.split(b"\n")[2]), body + b"\n", 1),
    "two spaces": lambda text: text.replace(b"-> ", b"->  ", 1),
    "a space at the end": lambda text: text.replace((line := text.split(b"\n")[1]), line + b" ", 1),
    "CRLF": lambda text: text.replace(b"\n", b"\r\n"),
    "upper case": lambda text: text.replace(KIND.encode(), KIND.upper().encode(), 1),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_header_has_one_spelling_even_under_a_right_mac(forger: Forger, parcel: Parcel, spelling: str) -> None:
    """A10. The header is spelled otherwise (base64 with spare bits set, padding, other line breaks), MAC made anew.

    Powers: an insider who holds the file key. Control: the canonical spelling under a MAC by the same hand opens.
    """
    file_key = os.urandom(16)
    whole = build_container(forger.plain, recipients=[], file_key=file_key,
                            stanzas=[wrap(file_key, recipient=text) for text in forger.to])  # fmt: skip
    header, payload = split(whole)
    text = write_header(header.stanzas, file_key=file_key)
    text = text[: text.rindex(b" ")]
    other = SPELLINGS[spelling](text)
    assert other != text
    parcel.path.write_bytes(header_with_mac(other, file_key=file_key) + payload)
    assert_refused(parcel, BadContainer)
    parcel.path.write_bytes(header_with_mac(text, file_key=file_key) + payload)
    assert_opens(parcel)


@pytest.mark.parametrize("size", [0, 15, 17, 32])
def test_a_file_key_of_another_length_is_refused(forger: Forger, parcel: Parcel, size: int) -> None:
    """A10. The wrapped file key is shorter or longer than 16 bytes, in a stanza that decrypts.

    Powers: a member who seals by hand. Control: a file key of 16 bytes, wrapped by the same hand, opens.
    """
    right = [wrap(os.urandom(16), recipient=text) for text in forger.to]
    wrong = wrap(os.urandom(size), recipient=forger.to[0])
    whole = build_container(forger.plain, recipients=[], stanzas=[wrong, right[1]], file_key=os.urandom(16))
    parcel.path.write_bytes(whole)
    assert_refused(parcel, BadContainer)
    forger.write()
    assert_opens(parcel)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_a_share_of_low_order_opens_nothing(forger: Forger, parcel: Parcel, point: str) -> None:
    """A11. The X25519 half of an encapsulation is a point of low order, so that its shared secret is known.

    Powers: a member who seals by hand and knows the ML-KEM half. Control: with the honest share it opens.
    """
    file_key = os.urandom(16)
    ours, other = (wrap(file_key, recipient=text) for text in forger.to)
    share = LOW_ORDER[point].to_bytes(32, "little")
    low = replace(ours, arguments=(encode64(decode64(ours.arguments[0])[:-32] + share),))
    parcel.path.write_bytes(build_container(forger.plain, recipients=[], stanzas=[low, other], file_key=file_key))
    assert_refused(parcel, NotForThisKey)
    parcel.path.write_bytes(build_container(forger.plain, recipients=[], stanzas=[ours, other], file_key=file_key))
    assert_opens(parcel)


@pytest.mark.parametrize("point", LOW_ORDER)
def test_nothing_is_sealed_to_a_key_of_low_order(parcel: Parcel, point: str) -> None:
    """Own. A member's sealing key on the roster has an X25519 half of low order, which anybody can open.

    Powers: hands in a crafted sealing key at enrolment. Control: the same member with its honest key is sealed to.
    """
    raw = bech32.decode(parcel.federation.lab.opener.recipient, prefix="age1pq")
    weak = bech32.encode("age1pq", raw[:-32] + LOW_ORDER[point].to_bytes(32, "little"))
    roster = parcel.federation.roster
    member = replace(roster.members["lab"], recipient=weak)
    weaker = replace(roster, members={**roster.members, "lab": member})
    assert_not_sealed(parcel, BadKeyText, roster=weaker)
    with pytest.raises(BadKeyText):
        check_recipient(weak)  # what enrolment and every reader of a roster ask
    assert check_recipient(parcel.federation.lab.opener.recipient)
    assert_seals(parcel)


def test_whoever_is_not_a_recipient_learns_nothing_but_that(forger: Forger, parcel: Parcel) -> None:
    """A86. An outsider tries files that are intact, damaged, misframed, stale or misaddressed: one and the same answer.

    Powers: holds any sealed file and a sealing key of its own. Control: the recipient opens the intact file.
    """
    outsider = Site.make("mallory")
    whole = assert_refused(parcel, NotForThisKey, by=outsider)
    sealed = bytearray(parcel.path.read_bytes())
    assert_opens(parcel)
    sealed[-1] ^= 1
    parcel.path.write_bytes(sealed)
    answers = [assert_refused(parcel, NotForThisKey, by=outsider)]
    forger.write(waybill=forger.waybill_with(to={"lab": "00" * 32}))
    answers.append(assert_refused(parcel, NotForThisKey, by=outsider, now=NOW + days(400)))
    parcel.path.write_bytes(build_container(b"no frame at all", recipients=forger.to))
    expect = Expectation(round_number=9, base_sha256="99" * 32)
    answers.append(assert_refused(parcel, NotForThisKey, by=outsider, expect=expect))
    assert all(answer.as_json() == whole.as_json() for answer in answers)


def test_a_former_key_learns_nothing_of_new_files(own_parcel: Parcel) -> None:
    """Own. A site that was given new sealing keys, and a thief of the old ones, try a file for the new keys.

    Powers: a revoked member's sealing key. Control: the remaining recipient opens the file.
    """
    federation = own_parcel.federation
    roster = revoke_member(federation.folder, name="lab", steward=federation.steward, now=NOW)
    own_parcel.path.unlink()
    seal_organ(
        own_parcel.organ_path, passport=own_parcel.passport_line, sender=federation.clinic.signer, recipients=["hub"],
        roster=roster, federation=FEDERATION, round_number=3, out=own_parcel.folder / "new.sealed", now=NOW,
    )  # fmt: skip
    own_parcel.path = own_parcel.folder / "new.sealed"
    own_parcel.federation = replace(federation, roster=roster)
    assert_refused(own_parcel, NotForThisKey, by=federation.lab)
    assert_opens(own_parcel)


def test_stanzas_of_others_do_not_slow_or_stop_a_recipient(forger: Forger, parcel: Parcel) -> None:
    """Own. As many recipients as a header may have, all strangers but one; and one more than that.

    Powers: a member who seals by hand to whom it likes. Control: the last of 250 named recipients opens its file.
    """
    stranger = Site.make("mallory").opener.recipient
    hub = parcel.federation.hub.opener.recipient
    many = [stranger] * (MAX_STANZAS - 1)
    started = time.process_time()
    forger.write(to=[*many, hub])
    assert_refused(parcel, WaybillMismatch)  # 256 recipients, where its waybill names two
    forger.write(to=[*many, hub, hub])
    assert_refused(parcel, BadContainer)
    named = {f"site-{number}": recipient_fingerprint(stranger) for number in range(MAX_RECIPIENTS - 1)}
    line = forger.waybill_with(to=named | {"hub": recipient_fingerprint(hub)})
    forger.write(waybill=line, to=[*many[: MAX_RECIPIENTS - 1], hub])
    assert_opens(parcel)
    assert time.process_time() - started < 10


def test_the_list_of_recipients_is_bounded(parcel: Parcel, federation: Federation) -> None:
    """Own. A list of 251 recipients, a hundred thousand of them, or one of a name of a megabyte, is sealed to.

    Powers: writes the list of recipients, as a careless script would. Control: two names seal.
    """
    for names in ([f"site-{n}" for n in range(MAX_RECIPIENTS + 1)], [f"site-{n}" for n in range(100_000)]):
        assert_not_sealed(parcel, BadRecipients, recipients=names)
    assert_not_sealed(parcel, UnknownMember, recipients=["x" * (1 << 20)])
    assert federation.roster.members.keys() == {"clinic", "hub", "lab"}
    assert_seals(parcel)


def test_another_sites_identity_under_ones_own_name_opens_nothing(forger: Forger, parcel: Parcel) -> None:
    """Own. The lab names itself hub, and the hub itself lab: neither a name nor a key opens without the other.

    Powers: a recipient who configures any name for itself. Control: under its own name the hub opens.
    """
    lab, hub = parcel.federation.lab, parcel.federation.hub
    for name, site in (("hub", lab), ("lab", hub), ("HUB", hub), ("hub ", hub), ("clinic", hub)):
        liar = replace(site, opener=Opener(name=name, identity=site.opener.identity))
        assert_refused(parcel, (NotAddressed, NotForThisKey), by=liar)
    stranger = replace(hub, opener=Opener(name="hub", identity=HybridIdentity(os.urandom(32))))
    assert_refused(parcel, NotForThisKey, by=stranger)
    assert_opens(parcel, hub)
