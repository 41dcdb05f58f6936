"""Op schemas: what a library registers against what upstream's source declares. Pure text work.

Both sides write a schema as adjacent C string literals; in the library they are one string. Spaces around `=` and `,`
mean nothing, so both are normalised before they are compared.
"""

from __future__ import annotations

import re

from flash_attn3_sm121.call.schemas import PUBLIC, differences, one_spelling
from flash_attn3_sm121.errors import VerifyError

_DEF = re.compile(r"m\.def\(\s*((?:\"(?:[^\"\\]|\\.)*\"\s*)+)\)", re.DOTALL)
_LITERAL = re.compile(r"\"((?:[^\"\\]|\\.)*)\"")
_SCHEMA = re.compile(rb"(?:fwd|bwd|fwd_combine|get_scheduler_metadata)\([A-Za-z][ -~]*\) -> [ -~]+(?=\0)")


def _by_name(schemas: list[str], *, origin: str) -> dict[str, str]:
    by_name: dict[str, str] = {}
    for schema in schemas:
        name = schema.partition("(")[0]
        if by_name.get(name, schema) != schema:
            raise VerifyError(f"{origin}: two different schemas of {name}")
        by_name[name] = schema
    return by_name


def from_source(text: str, *, origin: str) -> dict[str, str]:
    """Name -> schema of every m.def in a source file. Raises VerifyError where one of the ops is missing."""
    literals = ("".join(_LITERAL.findall(match[1])) for match in _DEF.finditer(text))
    declared = _by_name([one_spelling(literal) for literal in literals], origin=origin)
    missing = [name for name in PUBLIC if name not in declared]
    if missing:
        raise VerifyError(f"{origin}: no m.def of {', '.join(missing)} found")
    return declared


def from_library(data: bytes, *, origin: str) -> dict[str, str]:
    """Name -> schema of every schema string in a library's bytes."""
    return _by_name([one_spelling(match[0].decode("ascii")) for match in _SCHEMA.finditer(data)], origin=origin)


def check_interface(declared: dict[str, str], *, origin: str) -> dict[str, str]:
    """Refuse sources whose ops the Python interface cannot call, before anything is compiled from them."""
    different = differences(declared)
    if different:
        lines = "".join(f"\n  {line}" for line in different)
        raise VerifyError(
            f"{origin}: declares other ops than the Python interface calls:{lines}",
            hint="build a pin whose ops are the same, or bring flash_attn3_sm121/call/schemas.py in line with it",
        )
    return declared
