"""What the dynamic loader would see of a shared library: needs, symbols, symbol versions. Read by pyelftools."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.construct import ConstructError
from elftools.elf.elffile import ELFFile

from flash_attn3_sm121.errors import VerifyError


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A dynamic symbol. `version` is what it asks for (GLIBC_2.34), empty where it asks for none."""

    name: str
    defined: bool
    weak: bool
    version: str


@dataclass(frozen=True, kw_only=True)
class SharedLibrary:
    """A library's dynamic section."""

    machine: str  # as pyelftools names it: EM_AARCH64
    needed: tuple[str, ...]
    soname: str
    run_path: str
    executable_stack: bool
    versions: tuple[tuple[str, str], ...]  # (library, symbol version) that are needed
    symbols: tuple[Symbol, ...]

    @property
    def undefined(self) -> tuple[Symbol, ...]:
        return tuple(symbol for symbol in self.symbols if not symbol.defined)

    @property
    def exported(self) -> tuple[str, ...]:
        return tuple(symbol.name for symbol in self.symbols if symbol.defined)


def parse(data: bytes, *, name: str) -> SharedLibrary:
    """Read a shared library's dynamic section.

    Raises:
        VerifyError: it is no 64-bit little-endian shared library, or a damaged one.
    """
    try:
        return _read(ELFFile(io.BytesIO(data)), name)
    # pyelftools checks little by itself: a cut file shows in whatever it stumbles over.
    except (ELFError, ConstructError, AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(name, str(error) or type(error).__name__) from error


def _unreadable(name: str, why: str) -> VerifyError:
    return VerifyError(f"{name}: not a readable 64-bit little-endian ELF library: {why}")


def _read(file: Any, name: str) -> SharedLibrary:
    if file.elfclass != 64 or not file.little_endian:
        raise _unreadable(name, f"{file.elfclass} bits, {'little' if file.little_endian else 'big'} endian")
    if file["e_type"] != "ET_DYN":
        raise _unreadable(name, f"type {file['e_type']}, expected ET_DYN (shared object)")
    dynamic, symbols = file.get_section_by_name(".dynamic"), file.get_section_by_name(".dynsym")
    if dynamic is None or symbols is None:
        raise _unreadable(name, "no dynamic section")
    tags = list(dynamic.iter_tags())
    versions = _needed_versions(file)
    stack = next((segment["p_flags"] & 1 for segment in file.iter_segments("PT_GNU_STACK")), 1)
    return SharedLibrary(
        machine=file["e_machine"],
        needed=tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"),
        soname="".join(tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"),
        run_path=":".join(
            [tag.rpath for tag in tags if tag.entry.d_tag == "DT_RPATH"]
            + [tag.runpath for tag in tags if tag.entry.d_tag == "DT_RUNPATH"]
        ),
        executable_stack=bool(stack),
        versions=tuple(sorted(set(versions.values()))),
        symbols=tuple(_symbols(symbols, file.get_section_by_name(".gnu.version"), versions)),
    )


def _needed_versions(file: Any) -> dict[int, tuple[str, str]]:
    """Version index -> (library, version)."""
    section = file.get_section_by_name(".gnu.version_r")
    if section is None:
        return {}
    return {
        aux["vna_other"] & 0x7FFF: (need.name, aux.name) for need, auxes in section.iter_versions() for aux in auxes
    }


def _symbols(section: Any, indices: Any, versions: dict[int, tuple[str, str]]) -> Iterator[Symbol]:
    for number, symbol in enumerate(section.iter_symbols()):
        binding = symbol["st_info"]["bind"]
        # The first is none; linkers for aarch64 leave nameless section symbols, which nobody can bind to.
        if number == 0 or binding == "STB_LOCAL":
            continue
        index = indices.get_symbol(number)["ndx"] if indices is not None else 0
        asked = index & 0x7FFF if isinstance(index, int) else 0
        yield Symbol(
            name=symbol.name,
            defined=symbol["st_shndx"] != "SHN_UNDEF",
            weak=binding == "STB_WEAK",
            version=versions[asked][1] if asked in versions else "",
        )
