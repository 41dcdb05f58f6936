"""The templates of the pages: jinja2 with what they all need. Everything is escaped."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import Any

from flash_attn3_sm121._version import __version__
from flash_attn3_sm121.console import format_bytes

FLAVOUR_NAMES = {
    "fa3": "FlashAttention-3's own interface",
    "vllm": "The interface of vLLM's fork: attention sinks, and always (out, lse)",
    "sgl": "The interface of SGLang's fork: attention sinks, pages for packed queries, forward only",
}
BASE = "http://HUB"  # the script puts the page's own address in its place


def moment(stamp: str) -> str:
    return stamp.replace("T", " ").removesuffix("Z") + (" UTC" if stamp.endswith("Z") else "")


@cache
def read(name: str) -> str:
    """A file of `static/`; the name is one of ours."""
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


def _address(name: str) -> str:
    """An asset's address below the root; it changes with the content."""
    return f"-/{name}?v={hashlib.sha256(read(name).encode()).hexdigest()[:12]}"


@cache
def _environment() -> Any:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(read), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        human=format_bytes,
        moment=moment,
        relative=lambda path, folder: path.removeprefix(f"{folder}/" if folder else ""),
    )
    environment.globals.update(address=_address, base=BASE, version=__version__, about=FLAVOUR_NAMES)
    return environment


def render(template: str, **values: Any) -> str:
    """A template of `static/` with these values."""
    return str(_environment().get_template(template).render(**values))
