"""Secrets and personal data are found, and ordinary numbers and codes of tickets are not taken for them."""

from __future__ import annotations

import time

import pytest

from distill_dagster.config import InboxSpec
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.intake.masking import WINDOW_CHARS, mask_id, mask_json, mask_text
from distill_dagster.tasks import TaskFolder

REGIONS = InboxSpec().phone_regions

# Put together here, so that no scanner takes this file for a leak.
GITHUB = "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8"
STRIPE = "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc"
JWT = (
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"
    + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0"
    + ".dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U"
)
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEabc\nde+/f==\n-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("write to jane.doe+shop@example.co.uk.", "write to <EMAIL>."),
        ("Müller@bücher.de", "<EMAIL>"),
        ("call +49 171 2345678 or (415) 555-2671", "call <PHONE> or <PHONE>"),
        ("0171 2345678, 020 7946 0958", "<PHONE>, <PHONE>"),
        ("pay to DE89 3704 0044 0532 0130 00 please", "pay to <IBAN> please"),
        ("iban:GB82WEST12345698765432.", "iban:<IBAN>."),
        ("card 4111 1111 1111 1111 exp 12/27", "card <CARD> exp 12/27"),
        ("amex 378282246310005", "amex <CARD>"),
        ("my key AKIAIOSFODNN7EXAMPLE leaked", "my key <SECRET> leaked"),
        (f"token {GITHUB} does not work", "token <SECRET> does not work"),
        (f"we used {STRIPE}", "we used <SECRET>"),
        (f"log: {JWT} end", "log: <SECRET> end"),
        (f"see {PEM} thanks", "see <SECRET> thanks"),
        ("key -----BEGIN RSA PRIVATE KEY----- MIIE cut off", "key <SECRET>"),
        ("https://user:pa55w0rd@example.com/x fails", "https://<SECRET>@example.com/x fails"),
        ("sk-proj-abc123DEF456ghi789JKL012mno345PQR678", "<SECRET>"),
        ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: Bearer <SECRET>"),
        ("my password is hunter2.", "my password is <SECRET>."),
        ("api_key='f3a9c7d1'", "api_key='<SECRET>'"),
        ("a@b.co and a@b.co", "<EMAIL> and <EMAIL>"),
    ],
)
def test_secrets_and_personal_data_are_masked(text: str, masked: str) -> None:
    found = mask_text(text, REGIONS)
    assert found.text == masked
    assert sum(found.counts.values()) == masked.count("<")
    assert mask_text(found.text, REGIONS).text == found.text


@pytest.mark.parametrize(
    "text",
    [
        "order 8842-119-22, order #114-3941689-8772232, invoice INV-2024-000123456",
        "order number 4485920193, ticket 20245551234, case 00123456",
        "on 2024-11-03 14:05 and 03.11.2024, 2024-11-03T14:05:33+01:00",
        "version 10.2.3.4 build 20231104.1 on 198.51.100.23",
        "error 0x80070005, codes 500 504 502, $1,234,567.89",
        "tracking 1Z999AA10123456784 and 9400111899223197428490, bar code 4006381333931",
        "IMEI 353879234252633, commit 9fceb02d0ae598e95dc970b74767f19372d61af8",
        "id 123e4567-e89b-12d3-a456-426614174000, time 1700000000",
        "password is wrong, password: forgotten! The password reset came 3 days ago, token expired 2024-11-03",
        "card 4111111111111112 has a wrong digit",
        "we have 150 000 000 rows and +100 points, UTC+2",
    ],
)
def test_ordinary_numbers_and_codes_are_not_masked(text: str) -> None:
    assert mask_text(text, REGIONS).text == text


def test_no_text_of_the_bundled_task_is_masked() -> None:
    folder = TaskFolder(PROJECT_FOLDER / "data" / "tasks" / "support_triage")
    slices = [folder.read_slice(key) for key in folder.list_slice_keys()]
    texts = [seed.text for slice_ in slices for seed in slice_.seeds]
    texts += [prompt.text for slice_ in slices for prompt in slice_.shipped]
    texts += [row.text for row in [*folder.golden, *folder.dev, *folder.examples, *folder.human]]
    assert len(texts) > 1800
    assert [text for text in texts if mask_text(text, REGIONS).counts] == []


@pytest.mark.parametrize("part", ["eyJ", "://a:", "/", "sk-", "1 ", "+1 2 ", "a@a.", "DE89 1", "password is ", "[~"])
def test_crafted_texts_take_little_time(part: str) -> None:
    mask_text("the first call loads the libraries")
    started = time.process_time()
    mask_text((part * WINDOW_CHARS)[:WINDOW_CHARS], REGIONS)
    assert time.process_time() - started < 10  # of this process's own time, whatever else the machine does


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("card pin is 4111 1111 1111 1111 ok", "1111"),
        ("my token: DE89 3704 0044 0532 0130 00", "3704"),
    ],
)
def test_a_value_that_overlaps_a_secret_is_masked_whole(text: str, rest: str) -> None:
    assert rest not in mask_text(text, ["DE"]).text


@pytest.mark.parametrize("place", [0, 5_990, 9_995, 12_000, 29_970])
@pytest.mark.parametrize("value", ["jane.doe@example.org", "+49 171 2345678", "4111 1111 1111 1111", GITHUB, PEM])
def test_a_value_in_a_long_text_is_masked_wherever_it_is(value: str, place: int) -> None:
    words = "some words in a row, "
    before = (words * 2_000)[:place].rsplit(" ", 1)[0] + " " if place else ""
    masked = mask_text(f"{before}{value} {words * 500}", REGIONS)
    assert masked.text.startswith(f"{before}<")
    assert masked.text.endswith(f"> {words * 500}")
    assert sum(masked.counts.values()) == 1


def test_a_secret_that_is_longer_than_a_window_is_masked_whole() -> None:
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + "MIIEabc+/f\n" * 5_000 + "-----END RSA PRIVATE KEY-----"
    token = "eyJhbGciOiJIUzI1NiJ9." + "a1B2" * 10_000
    assert mask_text(f"see {key} and {token} here").text == "see <SECRET> and <SECRET> here"


@pytest.mark.parametrize("part", ["BEGIN RSA PRIVATE KEY ", "eyJ", "a@a.", "1 "])
def test_a_long_crafted_text_takes_little_time(part: str) -> None:
    mask_text("the first call loads the libraries")
    started = time.process_time()
    mask_text((part * 60_000)[:60_000], REGIONS)
    assert time.process_time() - started < 30


def test_every_text_of_a_json_value_is_masked() -> None:
    value = {"name": "a@b.org", "rows": [{"phone": "+49 171 2345678"}, 4111111111111111, 7, True, None], "a@b.org": 1}
    assert mask_json(value, lambda text: mask_text(text, REGIONS).text) == {
        "name": "<EMAIL>",
        "rows": [{"phone": "<PHONE>"}, "<CARD>", 7, True, None],
        "a@b.org": 1,
    }


def test_an_id_with_personal_data_is_stored_as_a_hash() -> None:
    assert mask_id("ticket-17") == "ticket-17"
    first, second = mask_id("a@b.org"), mask_id("c@b.org")
    assert first == mask_id("a@b.org")
    assert first != second
    assert first.startswith("masked-")
