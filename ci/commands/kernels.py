"""`python -m ci kernels`: what each kernel takes, and what the host code launches, without a GPU."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from ci.commands import common, options
from ci.prove.standin import document, library
from ci.prove.standin.calls import DEVICES, calls
from ci.verify import kernels
from ci.verify.executed import executed
from ci.verify.reading import Disassembler
from flash_attn3_sm121.arch import Family
from flash_attn3_sm121.errors import UsageError, VerifyError

DEVICE = "GB10"


def configure_kernels(parser: argparse.ArgumentParser) -> None:
    options.add_build_arguments(parser)
    parser.add_argument("--summary", action="store_true", help="a line a head dim and dtype, not one a kernel")
    parser.add_argument(
        "--only", action="append", default=[], metavar="WORD", help="these dtypes and head dims: bf16, fp16, hd64, ..."
    )
    parser.add_argument("--write", type=Path, help="write the page there instead of to stdout")


def do_kernels(args: argparse.Namespace) -> int:
    common.require_torch()
    session = common.begin(options.from_arguments(args))
    family = next((item for item in session.plan.families if item.family is Family.SM8X), None)
    if family is None:
        raise UsageError("the page is of kernels for 12.1", hint="add 12.1 to the architectures")
    chosen_rows = document.choice(args.only, family.selection)
    inputs = common.gather_inputs(session)
    with tempfile.TemporaryDirectory(prefix="fa3-standin-") as scratch:
        builder = common.builder(session, inputs)
        made = library.make(builder, family, output=Path(scratch))
        chosen = list(calls(family.selection))
        answers = made.ask(DEVICES[DEVICE], chosen)
        tool = Disassembler.of(inputs.toolchain, session.settings.narrate)
        code: dict[str, kernels.Code] = {}
        for report in (report for report in made.reports if report.usage):  # the host file holds no device code
            codes = kernels.parse_sass(tool.listing("-sass", builder.store.object(report.key)))
            code |= {name: counts for (image, name), counts in codes.items() if image == family.images[0]}
    failed = [answer for answer in answers if answer.error]
    if failed:
        raise VerifyError(f"{len(failed)} calls failed, the first: {failed[0].call.name}: {failed[0].error}")
    usage = [item for report in made.reports for item in report.usage if item.image == family.images[0]]
    ran = executed(session.settings.cache, made.reports, builder.store.kernels(made.reports, family.images[0]))
    shown = document.rows(usage, code, answers, ran)
    words = ["python -m ci kernels", *([f"--profile {args.profile}"] if args.profile else [])]
    words += [*(["--summary"] if args.summary else []), *(f"--only {word}" for word in args.only)]
    words += [*([f"--write {args.write}"] if args.write else [])]
    about = document.About(
        profile=", ".join((session.plan.profile, *args.only)),
        image=family.images[0],
        limit=DEVICES[DEVICE].smem,
        calls=len(chosen),
        unreached=len(document.unreached(usage, answers)),
        pin=inputs.tree.lock.short,
        cuda=inputs.toolchain.cuda,
        command=" ".join(words),
    )
    page = document.to_summary if args.summary else document.to_text
    text = page([row for row in shown if chosen_rows(row)], about)
    common.put_page(session, text, args.write)
    return 0
