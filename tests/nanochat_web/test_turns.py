"""The line of waiting chats: nobody waits for ever, whatever comes, goes and dies; and what a page is told."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples.nanochat_web.turns import Decision, Held, decide

LONGEST_CHAT, LONGEST_LOAD = 9, 5


@dataclass
class Model:
    ready_at: int
    ends: list[int] = field(default_factory=list)  # of its chats
    used: int = 0


@dataclass
class Chat:
    name: int
    model: str
    lasts: int
    first_since: int | None = None


@dataclass
class Machine:
    """Plays a server, one tick at a time; does what `decide` says and nothing else."""

    models: int
    slots: int
    loads: int
    idle: int
    now: int = 0
    line: list[Chat] = field(default_factory=list)
    memory: dict[str, Model] = field(default_factory=dict)
    set_aside: dict[str, str] = field(default_factory=dict)
    served: list[Chat] = field(default_factory=list)
    failed: list[Chat] = field(default_factory=list)

    def decide(self) -> Decision:
        memory = {
            key: Held(ready=one.ready_at <= self.now, chats=len(one.ends), used=one.used)
            for key, one in self.memory.items()
        }
        return decide([chat.model for chat in self.line], memory, self.set_aside, models=self.models, slots=self.slots)

    def act(self) -> None:
        for _ in range(2):  # a change brings another decision; the second must find nothing undone that it can do
            decision = self.decide()
            line = list(self.line)
            assert set(decision.start) | set(decision.waits) == set(range(len(line)))
            self.set_aside = dict(decision.set_aside)
            for key, victim in decision.load.items():
                if victim is not None:
                    assert not self.memory[victim].ends, "a model was unloaded while it answered"
                    del self.memory[victim]
                assert key not in self.memory
                self.memory[key] = Model(ready_at=self.now + self.loads, used=self.now + self.loads)
            for position in decision.start:
                chat = line[position]
                earlier = [other for other in self.line if other.model == chat.model]
                assert earlier[0] is chat, "two chats of one model changed places"
                self.line.remove(chat)
                self.served.append(chat)
                self.memory[chat.model].ends.append(self.now + chat.lasts)
            assert len(self.memory) <= self.models
            assert all(len(one.ends) <= self.slots for one in self.memory.values())

    def tick(self) -> None:
        self.now += 1
        for model in self.memory.values():
            if any(end <= self.now for end in model.ends):
                model.used = self.now
            model.ends = [end for end in model.ends if end > self.now]
        for key, model in list(self.memory.items()):
            if model.ready_at <= self.now and not model.ends and self.now - model.used > self.idle:
                del self.memory[key]
        self.act()
        if self.line:
            first = self.line[0]
            first.first_since = self.now if first.first_since is None else first.first_since
            # Whoever is first waits for one chat to end and for two models to load at the most.
            assert self.now - first.first_since <= LONGEST_CHAT + 2 * self.loads + 2, f"{first} waits for ever"


ARRIVAL = st.tuples(st.just("come"), st.sampled_from("ABCDE"), st.integers(1, LONGEST_CHAT))
EVENT = st.one_of(
    ARRIVAL,
    ARRIVAL,
    st.tuples(st.just("leave"), st.integers(0, 30), st.just(0)),
    st.tuples(st.just("die"), st.sampled_from("ABCDE"), st.just(0)),
    st.tuples(st.just("pass"), st.integers(1, 7), st.just(0)),
)


@settings(max_examples=400)
@given(
    models=st.integers(1, 3),
    slots=st.integers(1, 3),
    loads=st.integers(0, LONGEST_LOAD),
    idle=st.sampled_from([2, 1_000_000]),
    events=st.lists(EVENT, max_size=60),
)
def test_nobody_waits_for_ever(
    models: int, slots: int, loads: int, idle: int, events: list[tuple[str, object, int]]
) -> None:
    machine = Machine(models=models, slots=slots, loads=loads, idle=idle)
    came = left = 0
    for kind, value, lasts in events:
        if kind == "come":
            machine.line.append(Chat(name=came, model=str(value), lasts=lasts))
            came += 1
        elif kind == "leave" and machine.line:
            machine.line.pop(int(str(value)) % len(machine.line))
            left += 1
        elif kind == "die" and str(value) in machine.memory:
            del machine.memory[str(value)]
            machine.failed += [chat for chat in machine.line if chat.model == value]
            machine.line = [chat for chat in machine.line if chat.model != value]
        elif kind == "pass":
            for _ in range(int(str(value))):
                machine.tick()
        machine.act()
    for _ in range((came + 1) * (LONGEST_CHAT + 2 * loads + 4)):
        if not machine.line:
            break
        machine.tick()
    assert machine.line == []
    assert len(machine.served) + len(machine.failed) + left == came


READY = {"A": Held(ready=True, chats=1, used=1.0), "B": Held(ready=True, chats=2, used=2.0)}


def told(line: str, memory: dict[str, Held], *, models: int, slots: int = 4) -> list[tuple[str, int, str | None]]:
    decision = decide(list(line), memory, {}, models=models, slots=slots)
    return [("start", 0, None) if at in decision.start else _wait(decision, at) for at in range(len(line))]


def _wait(decision: Decision, at: int) -> tuple[str, int, str | None]:
    wait = decision.waits[at]
    return (wait.reason, wait.ahead, wait.on)


@pytest.mark.parametrize(
    ("line", "memory", "models", "slots", "expected"),
    [
        ("C", {}, 1, 1, [("loading", 0, None)]),
        ("BA", {"A": READY["A"]}, 1, 4, [("room", 0, "A"), ("room", 1, None)]),
        ("CA", READY, 2, 4, [("room", 0, "B"), ("start", 0, None)]),
        ("CB", READY, 2, 4, [("room", 0, "A"), ("start", 0, None)]),
        ("CDAB", READY, 2, 4, [("room", 0, "A"), ("room", 1, "B"), ("room", 2, None), ("room", 3, None)]),
        ("AAC", {"A": READY["A"]}, 1, 1, [("place", 0, None), ("place", 1, None), ("room", 0, None)]),
        ("CC", READY, 3, 4, [("loading", 0, None), ("loading", 1, None)]),
    ],
)
def test_what_each_waits_for(
    line: str, memory: dict[str, Held], models: int, slots: int, expected: list[tuple[str, int, str | None]]
) -> None:
    assert told(line, memory, models=models, slots=slots) == expected


def test_a_model_that_was_set_aside_stays_so_until_it_is_idle() -> None:
    decision = decide(["C"], READY, {}, models=2, slots=4)
    assert decision.set_aside == {"C": "A"}
    busier = {"A": Held(ready=True, chats=3, used=1.0), "B": Held(ready=True, chats=1, used=2.0)}
    assert decide(["C"], busier, decision.set_aside, models=2, slots=4).set_aside == {"C": "A"}
    idle = {"A": Held(ready=True, chats=0, used=9.0), "B": READY["B"]}
    assert decide(["C"], idle, decision.set_aside, models=2, slots=4).load == {"C": "A"}
