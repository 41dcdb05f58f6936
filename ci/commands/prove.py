"""`python -m ci prove`: every kernel for 12.1, executed in software before anybody has to trust it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ci import ROOT
from ci.cache.objects import put_executed
from ci.commands import common, options
from ci.plan.plan import FamilyPlan
from ci.prove.gb10 import mutants, report, sentry
from ci.prove.gb10.cases import Case, cases
from ci.prove.gb10.executable import Executable, make
from ci.prove.gb10.pool import Pool
from ci.sources.lock import DEFAULT_LOCK
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.console import Narrator, show
from flash_attn3_sm121.errors import UsageError, VerifyError

EPILOG = """\
The PTX that nvcc made on the way to 12.1's machine code is executed on the CPU, launched by the library's own host
code, posing as a GB10 of 48 SMs, and of 4 and 1, which gives a block many tiles. Every access is checked (bounds,
alignment, what was written, races, copies that nobody waited for), every result is compared with the formula in fp64.
It proves nothing about what ptxas makes of the PTX, about timing, or about the approximations of ex2, rcp and lg2.
Kernels with WGMMA or TMA (Hopper's) are outside it.

What was done is kept in build/prove: an interrupted run goes on where it was, and one after a change executes the head
dims and directions whose kernels changed.
"""


def configure_prove(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    options.add_build_arguments(parser)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="WORD[,WORD]",
        help="cases with one of these words in their name; may be repeated, and each --only must hold",
    )
    parser.add_argument("--mutants", type=int, default=0, metavar="N", help="change N instructions: is each noticed?")
    parser.add_argument(
        "--draw", type=int, default=0, metavar="SEED", help="other instructions for --mutants (default 0)"
    )
    parser.add_argument(
        "--sentryward",
        metavar="PROGRAM",
        help="ask sentryward instead whether forward kernels are free of races (--only dense or window: one of them)",
    )
    parser.add_argument("--json", action="store_true", help="the whole document on stdout, not the table")
    parser.add_argument("--write", type=Path, help="write the document there as well")


def chosen_cases(found: tuple[Case, ...], only: list[str]) -> tuple[Case, ...]:
    """The cases whose names contain, for each of `only`, one of the words in it."""
    asked = [set(words.split(",")) for words in only]
    kept = tuple(case for case in found if all(words & set(case.name.split()) for words in asked))
    if not kept:
        raise UsageError(f"no case with the words {' '.join(only)}", hint=f"a case is called: {found[0].name}")
    return kept


def asked_calls(features: frozenset[str], only: list[str]) -> list[str]:
    """The calls that sentryward is asked about: all that have a kernel, or those that `only` names."""
    able = [call for call, needs in sentry.NEEDS.items() if needs <= features]
    words = {word for words in only for word in words.split(",")} or {*able}
    if unknown := sorted(words - {*able}):
        raise UsageError(f"--only {unknown[0]}: sentryward is not asked that", hint=f"one of {', '.join(able)}")
    return [call for call in able if call in words]


def second_opinion(
    args: argparse.Namespace, executable: Executable, family: FamilyPlan, *, folder: Path, narrate: Narrator
) -> int:
    """Print sentryward's opinions, one after the other: each takes minutes and gigabytes."""
    chosen, found = family.selection, []
    for call in asked_calls(chosen.features, args.only):
        dim = chosen.head_dims[0]
        narrate.note(f"sentryward: {call}, head dim {dim}; a minute or more")
        found.append(sentry.opinion(executable, call, dim, tool=args.sentryward, folder=folder, timeout=1800))
        narrate.note(f"  {found[-1]['result']}, {found[-1]['seconds']} s, {found[-1]['peak_mib']} MiB")
    text = json.dumps({"profile": chosen.profile, "opinions": found}, indent=1) + "\n"
    if args.write:
        args.write.write_text(text, encoding="utf-8")
    sys.stdout.write(text)
    return 0 if all(opinion["result"] == "race_free" for opinion in found) else VerifyError.exit_code


def do_prove(args: argparse.Namespace) -> int:
    common.require_torch()
    session = common.begin(options.from_arguments(args))
    family = next((found for found in session.plan.families if found.family is Family.SM8X), None)
    if family is None or "sm_121" not in family.images:
        raise UsageError("kernels for 12.1 are what can be executed", hint="add 12.1 to the architectures")
    inputs = common.gather_inputs(session)
    pin = "" if session.request.lock == DEFAULT_LOCK else f"-{inputs.tree.lock.short}"
    folder = ROOT / "build" / "prove" / f"{session.plan.profile}{pin}"
    folder.mkdir(parents=True, exist_ok=True)
    executable = make(common.builder(session, inputs), family, output=folder)
    jobs, narrate = session.settings.jobs or session.settings.cores, session.settings.narrate
    if args.sentryward:
        return second_opinion(args, executable, family, folder=folder, narrate=narrate)
    wanted = chosen_cases(cases(family.selection), args.only)
    pool = Pool(executable=executable, folder=folder, jobs=jobs, narrate=narrate)
    results, counts = pool.run(wanted)
    about: dict[str, Any] = {
        "profile": session.plan.profile,
        "pin": inputs.tree.lock.short,
        "edits": inputs.edited.digest,
        "cuda": inputs.toolchain.cuda,
        "only": args.only,
        "seeds": sorted({case.seed for case in wanted}),
    }
    made = report.document(results, counts, all_kernels=executable.kernels, about=about)
    if args.mutants:
        texts = mutants.texts_of(executable.ptx)
        trial = mutants.Trial(executable=executable, folder=folder, jobs=jobs, narrate=narrate)
        made["mutants"] = trial.run(mutants.choose(texts, counts, args.mutants, seed=args.draw), texts, results, wanted)
    if not args.only:
        put_executed(session.settings.cache, executable.keys, report.summary(made))
    if args.write:
        args.write.write_text(report.to_json(made), encoding="utf-8")
    if args.json:
        sys.stdout.write(report.to_json(made))
    else:
        show(report.to_blocks(made))
    whole = report.good(made) if not args.only else not made["failed"]
    return 0 if whole else VerifyError.exit_code
