"""Who may be served at which address, and what a header must carry."""

from __future__ import annotations

import base64
import socket
from typing import Any

import pytest

from flash_attn3_sm121.errors import UsageError
from flash_attn3_sm121.hub.server.cli import greeting
from flash_attn3_sm121.hub.server.config import ServeConfig, allowed, is_loopback

TOKEN = "correct-horse-battery"


def config(**changes: Any) -> ServeConfig:
    return ServeConfig(root="hub", **changes)


@pytest.mark.parametrize(
    ("host", "yes"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("localhost", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.4", False),
        ("localhost.example", False),
        ("", False),
    ],
)
def test_loopback(host: str, yes: bool) -> None:
    assert is_loopback(host) is yes


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "hub.example", ""])
def test_other_addresses_want_a_token(host: str) -> None:
    with pytest.raises(UsageError, match="no token is set"):
        config(host=host)
    assert config(host=host, token=TOKEN).token == TOKEN
    assert config(host=host, insecure=True).token is None


@pytest.mark.parametrize(
    "changes",
    [
        {"port": -1},
        {"port": 65536},
        {"token": "short"},
        {"token": "with a space in it"},
        {"token": "ünprintable-token"},
        {"tls_key": "key.pem"},
        {"connections": 0},
    ],
    ids=str,
)
def test_nonsense_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        config(**changes)


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("::1", "http://[::1]:1"), ("0.0.0.0", "http://127.0.0.1:1")],
)
def test_url(host: str, url: str) -> None:
    assert config(host=host, insecure=True).url(1) == url


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "yes"),
    [
        (None, False),
        ("", False),
        (f"Bearer {TOKEN}", True),
        (f"bearer   {TOKEN} ", True),
        (basic(f"anybody:{TOKEN}"), True),
        (basic(f":{TOKEN}"), True),
        (basic(TOKEN), True),
        (basic(f"{TOKEN}:"), True),
        (basic(f"{TOKEN}:wrong"), False),
        ("Bearer wrong-horse-battery", False),
        (f"Bearer {TOKEN}x", False),
        ("Bearer", False),
        ("Bearer ", False),
        (TOKEN, False),
        (f"Digest {TOKEN}", False),
        ("Basic !!!", False),
        ("Basic /////w==", False),
        ("Bearer \udcff\udcfe", False),
    ],
)
def test_token(header: str | None, yes: bool) -> None:
    assert allowed(TOKEN, header) is yes


def test_the_greeting_names_an_address_that_others_reach() -> None:
    text = greeting(ServeConfig(root="/hub", host="0.0.0.0", token="correct-horse"), 80)
    assert f"export HF_ENDPOINT=http://{socket.gethostname()}:80  HF_TOKEN=" in text and "correct-horse" not in text


def test_without_a_token_everybody_reads() -> None:
    assert allowed(None, None) and allowed(None, "Bearer anything")
