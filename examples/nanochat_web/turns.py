"""Whose turn it is: which waiting chat starts, which model is loaded, which one has to make room. Pure.

The line is first come, first served, with one exception: a chat whose model is in memory need not wait for one ahead
of it that needs room for another model. So that the one ahead is not kept out for ever, one model is set aside for it:
that model takes no new chat, and goes as soon as its last one has ended.

Nobody waits for ever. The first in line has nobody ahead of it: its model is in memory and has a place once a chat
ends, or one model is set aside for it, and every chat ends.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Reason = Literal["place", "loading", "room"]


@dataclass(frozen=True, kw_only=True)
class Held:
    """A model in memory, or on its way there (`ready` is false). `used` is when it last had something to do."""

    ready: bool
    chats: int
    used: float


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Why one chat waits: for a place on its model, for its model to be loaded, or for room in memory.

    `ahead` counts the chats that are served before this one; `on` is the model that makes room for it, if one does.
    """

    reason: Reason
    ahead: int
    on: str | None = None


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What to do now. `start` and `waits` are positions in the line.

    `load` maps each model to load to the one that goes for it, or to None where there is room; `set_aside` each wanted
    model to the one that makes room for it.
    """

    start: tuple[int, ...]
    load: Mapping[str, str | None]
    set_aside: Mapping[str, str]
    waits: Mapping[int, Wait]


def decide(
    line: Sequence[str], memory: Mapping[str, Held], set_aside: Mapping[str, str], *, models: int, slots: int
) -> Decision:
    """Decide about everybody in line.

    Args:
        line: the model that each waiting chat wants, the longest waiting first.
        memory: every model in memory or being loaded.
        set_aside: `set_aside` of the decision before this one.
        models: how many models may be in memory.
        slots: how many chats one model answers at once.
    """
    chats = {key: held.chats for key, held in memory.items()}
    wanted = set(line)
    ahead: set[str] = set()  # models in memory that somebody further ahead waits for
    going: set[str] = set()  # models that go at once, or that were set aside
    load: dict[str, str | None] = {}
    aside: dict[str, str] = {}
    start: list[int] = []
    waits: dict[int, Wait] = {}
    without_room = 0

    def make_room(key: str) -> tuple[str | None, bool]:
        """Which model goes for this one, and whether it can go at once."""
        candidates = [one for one in memory if one not in ahead | going]
        chosen = set_aside.get(key)
        if chosen not in candidates:
            chosen = None
        # What others in line want goes only if there is no other choice, and never half loaded.
        idle = [
            one
            for one in candidates
            if chats[one] == 0 and (one not in wanted or (memory[one].ready and chosen in (None, one)))
        ]
        if idle:
            return min(idle, key=lambda one: (one in wanted, memory[one].used)), True
        if chosen is None:
            chosen = min(candidates, key=lambda one: (one in wanted, chats[one], memory[one].used), default=None)
        return chosen, False

    for position, key in enumerate(line):
        before = sum(line[other] == key for other in waits)
        if key in load:
            waits[position] = Wait(reason="loading", ahead=before)
        elif key in memory and key not in going:
            if memory[key].ready and chats[key] < slots:
                chats[key] += 1
                start.append(position)
            else:
                waits[position] = Wait(reason="place" if memory[key].ready else "loading", ahead=before)
                ahead.add(key)
        elif key not in memory and len(memory) + sum(victim is None for victim in load.values()) < models:
            load[key] = None
            waits[position] = Wait(reason="loading", ahead=before)
        else:
            # One that is going itself comes back when its turn comes; one that has a model set aside needs no second.
            victim, at_once = make_room(key) if key not in memory and key not in aside else (aside.get(key), False)
            if victim is not None:
                going.add(victim)
            if victim is not None and at_once:
                load[key] = victim
                waits[position] = Wait(reason="loading", ahead=before)
                continue
            if victim is not None:
                aside[key] = victim
            waits[position] = Wait(reason="room", ahead=without_room, on=victim)
            without_room += 1
    return Decision(start=tuple(start), load=load, set_aside=aside, waits=waits)
