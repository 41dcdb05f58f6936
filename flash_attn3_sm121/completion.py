"""`flash-attn3 completion bash`: a script that completes commands, actions and options; made by shtab."""

from __future__ import annotations

import argparse

from flash_attn3_sm121.errors import FlashAttn3Error


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = 'Use it as: eval "$(flash-attn3 completion bash)"'
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))


def run(args: argparse.Namespace) -> int:
    from flash_attn3_sm121.cli import PROGRAM

    try:
        import shtab
    except ModuleNotFoundError as error:
        raise FlashAttn3Error("`flash-attn3 completion` needs shtab", hint="pip install shtab") from error
    print(shtab.complete(PROGRAM.parser(), shell=args.shell))
    return 0
