"""Op schemas: what a library registers against what upstream's source declares. Pure text work.

Both sides write a schema as adjacent C string literals; in the library they are one string. Spaces around `=` and `,`
mean nothing, so both are normalised before they are compared.
"""

from __future__ import annotations

import re

from flash_attn3_sm121.errors import VerifyError

OPS = ("fwd", "bwd", "fwd_combine", "get_scheduler_metadata")

_DEF = re.compile(r"m\.def\(\s*((?:\"(?:[^\"\\]|\\.)*\"\s*)+)\)", re.DOTALL)
_LITERAL = re.compile(r"\"((?:[^\"\\]|\\.)*)\"")
_SCHEMA = re.compile(rb"(?:fwd|bwd|fwd_combine|get_scheduler_metadata)\([A-Za-z][ -~]*\) -> [ -~]+(?=\0)")


def normal(schema: str) -> str:
    """One spelling for a schema: no space around commas and equals signs, none doubled."""
    return re.sub(r"\s+", " ", re.sub(r"\s*([,=])\s*", r"\1", schema)).strip()


def _by_name(schemas: list[str], *, origin: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for schema in schemas:
        name = schema.partition("(")[0]
        if found.get(name, schema) != schema:
            raise VerifyError(f"{origin}: two different schemas of {name}")
        found[name] = schema
    return found


def from_source(text: str, *, origin: str) -> dict[str, str]:
    """Name -> schema of every m.def in a source file. Raises VerifyError where one of the ops is missing."""
    literals = ("".join(_LITERAL.findall(match[1])) for match in _DEF.finditer(text))
    found = _by_name([normal(literal) for literal in literals], origin=origin)
    missing = [name for name in OPS if name not in found]
    if missing:
        raise VerifyError(f"{origin}: no m.def of {', '.join(missing)} found")
    return found


def from_library(data: bytes, *, origin: str) -> dict[str, str]:
    """Name -> schema of every schema string in a library's bytes."""
    return _by_name([normal(match[0].decode("ascii")) for match in _SCHEMA.finditer(data)], origin=origin)
