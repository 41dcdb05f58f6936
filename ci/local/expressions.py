"""The `${{ ... }}` language, as far as our workflows use it. What is not known here is an error, never a guess."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flash_attn3_sm121.errors import UsageError

_TOKEN = re.compile(r"\s*(?:(\|\||&&|==|!=|[!(),])|'((?:[^']|'')*)'|(-?\d+(?:\.\d+)?)|([A-Za-z_][\w.-]*))")
_HOLE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
_WORDS: dict[str, Any] = {"true": True, "false": False, "null": None}

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "fromJSON": json.loads,
    "startsWith": lambda text, start: str(text).lower().startswith(str(start).lower()),
    "contains": lambda whole, part: part in whole,
    "always": lambda: True,
    "success": lambda: True,
    "failure": lambda: False,
    "cancelled": lambda: False,
    # Keys of caches that are not used here.
    "hashFiles": lambda *patterns: "files",
}


def evaluate(text: str, context: Mapping[str, Any]) -> Any:
    """The value of one expression (without the braces)."""
    return _Parser(text, context).whole()


def expand(value: Any, context: Mapping[str, Any]) -> Any:
    """Replace every `${{ }}` in a value, down through lists and mappings. A value that is one hole keeps its type."""
    if isinstance(value, Mapping):
        return {key: expand(item, context) for key, item in value.items()}
    if isinstance(value, list):
        return [expand(item, context) for item in value]
    if not isinstance(value, str):
        return value
    only = _HOLE.fullmatch(value.strip())
    if only:
        return evaluate(only[1], context)
    return _HOLE.sub(lambda hole: as_text(evaluate(hole[1], context)), value)


def as_text(value: Any) -> str:
    """As GitHub writes a value into text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value if isinstance(value, str) else json.dumps(value)


def truth(value: Any) -> bool:
    return value not in (None, False, "", 0)


class _Parser:
    """Recursive descent: or, and, equality, not, primary."""

    def __init__(self, text: str, context: Mapping[str, Any]) -> None:
        self.text, self.context = text.strip(), context
        self.tokens = self._tokens()
        self.at = 0

    def _tokens(self) -> Sequence[tuple[str, str]]:
        found, position = [], 0
        while position < len(self.text):
            match = _TOKEN.match(self.text, position)
            if match is None:
                raise self._error(f"cannot read {self.text[position:]!r}")
            kind = ("op", "string", "number", "name")[(match.lastindex or 1) - 1]
            found.append((kind, match[match.lastindex or 1]))
            position = match.end()
        return found

    def _error(self, what: str) -> UsageError:
        return UsageError(f"expression {self.text!r}: {what}", hint="ci/local/expressions.py says what is known here")

    def _take(self, *ops: str) -> str | None:
        if self.at < len(self.tokens) and self.tokens[self.at][0] == "op" and self.tokens[self.at][1] in ops:
            self.at += 1
            return self.tokens[self.at - 1][1]
        return None

    def whole(self) -> Any:
        value = self._or()
        if self.at != len(self.tokens):
            raise self._error(f"unexpected {self.tokens[self.at][1]!r}")
        return value

    def _or(self) -> Any:
        value = self._and()
        while self._take("||"):
            other = self._and()
            value = value if truth(value) else other
        return value

    def _and(self) -> Any:
        value = self._equal()
        while self._take("&&"):
            other = self._equal()
            value = other if truth(value) else value
        return value

    def _equal(self) -> Any:
        value = self._not()
        while op := self._take("==", "!="):
            value = (value == self._not()) is (op == "==")
        return value

    def _not(self) -> Any:
        if self._take("!"):
            return not truth(self._not())
        return self._primary()

    def _primary(self) -> Any:
        if self._take("("):
            value = self._or()
            self._need(")")
            return value
        if self.at >= len(self.tokens) or self.tokens[self.at][0] == "op":
            raise self._error("a value is missing")
        kind, word = self.tokens[self.at]
        self.at += 1
        if kind == "string":
            return word.replace("''", "'")
        if kind == "number":
            return float(word) if "." in word else int(word)
        if self._take("("):
            return self._call(word)
        return _WORDS[word] if word in _WORDS else self._look_up(word)

    def _need(self, op: str) -> None:
        if not self._take(op):
            raise self._error(f"expected {op!r}")

    def _call(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise self._error(f"unknown function {name}")
        arguments = []
        if not self._take(")"):
            arguments.append(self._or())
            while self._take(","):
                arguments.append(self._or())
            self._need(")")
        return FUNCTIONS[name](*arguments)

    def _look_up(self, path: str) -> Any:
        """`a.b.c`; the first word must be a known context, anything below it may be absent."""
        first, *rest = path.split(".")
        if first not in self.context:
            raise self._error(f"unknown context {first}")
        value = self.context[first]
        for word in rest:
            value = value.get(word) if isinstance(value, Mapping) else None
        return value
