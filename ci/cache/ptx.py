"""Kernels in the PTX that nvcc wrote: which of them are the same in two builds. Pure."""

from __future__ import annotations

import hashlib
import re

_ENTRY = re.compile(r"^[.\w ]*\.entry\s+([\w$]+)", re.MULTILINE)
_BRACE = re.compile(r"[{}]")
_COMMENT = re.compile(r"//.*")
# Labels and the stack's name hold the number of the function in its file.
_NUMBER = re.compile(r"(\$L__BB|__local_depot)\d+")
_VARIABLE = re.compile(r"\.(?:global|const|shared)\s+(?:\.\w+\s+(?:\d+\s+)?)*([\w$]+)")
_FUNCTION = re.compile(r"\.func\s+(?:\([^)]*\)\s*)?([\w$]+)")


def kernel_hashes(text: str) -> dict[str, str]:
    """Hash each kernel of a file, by its mangled name.

    What is hashed is the kernel, the file's directives (PTX version, GPU) and the declarations that the kernel uses. So
    a kernel has the same hash in every file, whatever else the file holds.
    """
    kernels: dict[str, str] = {}
    outside, end = [], 0
    for entry in _ENTRY.finditer(text):
        outside.append(text[end : entry.start()])
        end = _end(text, entry.end())
        kernels[entry[1]] = _NUMBER.sub(r"\1", _COMMENT.sub("", text[entry.start() : end]))
    outside.append(text[end:])
    common = _COMMENT.sub("", "".join(outside))
    head = [line for line in common.splitlines() if line.startswith((".version", ".target", ".address_size"))]
    variables = {found[1]: line for line in common.splitlines() if (found := _VARIABLE.search(line))}
    functions = _FUNCTION.findall(common)

    def sha256(kernel: str) -> str:
        used = [line for name, line in variables.items() if name in kernel]
        if any(name in kernel for name in functions):  # a function's own variables and calls belong to it
            used = [common]
        return hashlib.sha256("\n".join((*head, *used, kernel)).encode()).hexdigest()

    return {name: sha256(kernel) for name, kernel in kernels.items()}


def _end(text: str, start: int) -> int:
    """The place behind the bracket that closes the first one."""
    depth = 0
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    return len(text)
