"""The little of ELF that judging a shared library needs: needs, symbols, symbol versions. 64-bit, little-endian."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from flash_attn3_sm121.errors import VerifyError

_PT_LOAD, _PT_DYNAMIC, _PT_GNU_STACK = 1, 2, 0x6474E551
_DT_NEEDED, _DT_STRTAB, _DT_SYMTAB, _DT_SONAME = 1, 5, 6, 14
_DT_RPATH, _DT_RUNPATH = 15, 29
_SHT_DYNSYM = 11
_DT_VERSYM, _DT_VERNEED, _DT_VERNEEDNUM = 0x6FFFFFF0, 0x6FFFFFFE, 0x6FFFFFFF
_STB_LOCAL, _STB_WEAK = 0, 2


@dataclass(frozen=True, kw_only=True)
class Symbol:
    """A dynamic symbol. `version` is what it asks for (GLIBC_2.34), empty where it asks for none."""

    name: str
    defined: bool
    weak: bool
    version: str


@dataclass(frozen=True, kw_only=True)
class SharedLibrary:
    """What the dynamic loader would see."""

    machine: int
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


class _Reader:
    """Bounds-checked access by file offset and by virtual address."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data, self.name = data, name
        self.loads: list[tuple[int, int, int]] = []  # (address, size in the file, offset)

    def fail(self, why: str) -> VerifyError:
        return VerifyError(f"{self.name}: not a readable 64-bit little-endian ELF library: {why}")

    def unpack(self, form: str, offset: int) -> tuple[int, ...]:
        size = struct.calcsize(form)
        if offset < 0 or offset + size > len(self.data):
            raise self.fail(f"a structure at offset {offset} lies outside the file")
        return struct.unpack_from(form, self.data, offset)

    def at(self, address: int) -> int:
        for start, size, offset in self.loads:
            if start <= address < start + size:
                return offset + address - start
        raise self.fail(f"address {address:#x} is in no segment")

    def text(self, offset: int) -> str:
        end = self.data.find(b"\0", offset)
        if offset < 0 or end < 0:
            raise self.fail(f"a string at offset {offset} does not end")
        return self.data[offset:end].decode("utf-8", "replace")


def parse(data: bytes, *, name: str) -> SharedLibrary:
    """Read a shared library's dynamic section. Raises VerifyError where it is not one."""
    reader = _Reader(data, name)
    if data[:6] != b"\x7fELF\x02\x01":
        raise reader.fail("wrong magic")
    kind, machine = reader.unpack("<HH", 16)
    if kind != 3:
        raise reader.fail(f"type {kind}, expected 3 (shared object)")
    dynamic, stack = _segments(reader)
    tags = _tags(reader, dynamic)
    strings = reader.at(tags[_DT_STRTAB][0])
    versions = _versions(reader, tags, strings)
    return SharedLibrary(
        machine=machine,
        needed=tuple(reader.text(strings + offset) for offset in tags.get(_DT_NEEDED, [])),
        soname="".join(reader.text(strings + offset) for offset in tags.get(_DT_SONAME, [])),
        run_path=":".join(reader.text(strings + x) for x in (*tags.get(_DT_RPATH, []), *tags.get(_DT_RUNPATH, []))),
        executable_stack=stack,
        versions=tuple(sorted({(library, version) for library, version in versions.values()})),
        symbols=tuple(_symbols(reader, tags, strings, versions)),
    )


def _segments(reader: _Reader) -> tuple[int, bool]:
    (table,) = reader.unpack("<Q", 32)
    size, count = reader.unpack("<HH", 54)
    dynamic, stack = -1, True
    for index in range(count):
        kind, flags, offset, address, _, in_file = reader.unpack("<IIQQQQ", table + index * size)
        if kind == _PT_LOAD:
            reader.loads.append((address, in_file, offset))
        elif kind == _PT_DYNAMIC:
            dynamic = offset
        elif kind == _PT_GNU_STACK:
            stack = bool(flags & 1)
    if dynamic < 0:
        raise reader.fail("no dynamic segment")
    return dynamic, stack


def _tags(reader: _Reader, offset: int) -> dict[int, list[int]]:
    tags: dict[int, list[int]] = {}
    while True:
        tag, value = reader.unpack("<QQ", offset)
        if tag == 0:
            break
        tags.setdefault(tag, []).append(value)
        offset += 16
    for tag in (_DT_STRTAB, _DT_SYMTAB):
        if tag not in tags:
            raise reader.fail(f"the dynamic section lacks tag {tag}")
    return tags


def _versions(reader: _Reader, tags: dict[int, list[int]], strings: int) -> dict[int, tuple[str, str]]:
    """Version index -> (library, version)."""
    found: dict[int, tuple[str, str]] = {}
    if _DT_VERNEED not in tags:
        return found
    offset = reader.at(tags[_DT_VERNEED][0])
    for _ in range(tags[_DT_VERNEEDNUM][0]):
        _, count, file, aux, following = reader.unpack("<HHIII", offset)
        inner = offset + aux
        for _ in range(count):
            _, _, index, name, after = reader.unpack("<IHHII", inner)
            found[index & 0x7FFF] = (reader.text(strings + file), reader.text(strings + name))
            inner += after
        offset += following
    return found


def _symbol_count(reader: _Reader) -> int:
    """From the section table: a hash table does not count undefined symbols where nothing is exported."""
    (table,) = reader.unpack("<Q", 40)
    size, count = reader.unpack("<HH", 58)
    for index in range(count):
        _, kind, _, _, _, bytes_, _, _, _, entry = reader.unpack("<IIQQQQIIQQ", table + index * size)
        if kind == _SHT_DYNSYM and entry == 24:
            return bytes_ // entry
    raise reader.fail("no section with dynamic symbols")


def _symbols(
    reader: _Reader, tags: dict[int, list[int]], strings: int, versions: dict[int, tuple[str, str]]
) -> Iterator[Symbol]:
    table = reader.at(tags[_DT_SYMTAB][0])
    versym = reader.at(tags[_DT_VERSYM][0]) if _DT_VERSYM in tags else None
    for index in range(1, _symbol_count(reader)):
        name, info, _, section, _, _ = reader.unpack("<IBBHQQ", table + 24 * index)
        if info >> 4 == _STB_LOCAL:  # linkers for aarch64 leave nameless section symbols; nobody can bind to them
            continue
        asked = reader.unpack("<H", versym + 2 * index)[0] & 0x7FFF if versym is not None else 0
        yield Symbol(
            name=reader.text(strings + name),
            defined=section != 0,
            weak=info >> 4 == _STB_WEAK,
            version=versions[asked][1] if asked in versions else "",
        )
