"""`flash-attn3 explain`: the decision for a described call, with every refusal's reason."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from flash_attn3_sm121.api.explanation import explain
from flash_attn3_sm121.call.backend import use_backend
from flash_attn3_sm121.call.facts import FEATURE_WORDS
from flash_attn3_sm121.console import show
from flash_attn3_sm121.errors import UsageError


def configure_explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: the first GPU, else the CPU)")
    parser.add_argument("--capability", metavar="12.1", help="pretend a GPU of this capability")
    types = ("bf16", "fp16", "fp32", "e4m3")
    parser.add_argument("--dtype", default="bf16", choices=types, help="of q, k and v (default: bf16)")
    parser.add_argument("--dtype-kv", choices=types, help="of k and v, where they have another: a cache in e4m3")
    parser.add_argument("--head-dim", type=int, default=128, help="of q, k and v (default: 128)")
    parser.add_argument("--head-dim-v", type=int, help="of v, where it has another")
    parser.add_argument(
        "--feature",
        action="append",
        default=[],
        choices=tuple(FEATURE_WORDS),
        metavar="FEATURE",
        help=f"what the call asks for; may be given several times: {', '.join(FEATURE_WORDS)}",
    )
    parser.add_argument(
        "--backend", choices=("auto", "native", "flex", "sdpa"), help="as if FLASH_ATTN3_BACKEND were this"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.epilog = (
        "What serves decoding with a bf16 q over pages in e4m3 on a GB10: "
        "flash-attn3 explain --capability 12.1 --dtype-kv e4m3 --feature paged --feature varlen"
    )


def _capability(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    major, dot, minor = text.partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise UsageError(f"--capability: expected for example 12.1, found {text!r}")
    return int(major), int(minor)


def do_explain(args: argparse.Namespace) -> int:
    with use_backend(args.backend):
        found = explain(
            device=args.device,
            capability=_capability(args.capability),
            dtype=args.dtype,
            dtype_kv=args.dtype_kv,
            head_dim=args.head_dim,
            head_dim_v=args.head_dim_v,
            features=args.feature,
        )
    if args.json:
        data = asdict(found)
        data["call"]["features"] = sorted(found.call.features)
        for direction in ("forward", "backward"):
            if data[direction] is not None:
                del data[direction]["build"]  # family and machine code are there; `doctor` lists the rest
        print(json.dumps(data, indent=1))
    else:
        show(str(found).splitlines())
    return 0
