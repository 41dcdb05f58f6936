"""nanochat's way of counting: one line, written over and over; then the last word. It counts as a gate lets it."""

import argparse
import os
from pathlib import Path

from nanochat.checkpoint_manager import load_model
from nanochat.common import autodetect_device_type, compute_init
from nanochat.script import wait_for

TASKS = ("ARC-Easy", "MMLU", "GSM8K")

parser = argparse.ArgumentParser()
parser.add_argument("-i", "--source", required=True)
parser.add_argument("-a", "--task-name", choices=TASKS)
parser.add_argument("-g", "--model-tag")
parser.add_argument("-s", "--step", type=int)
parser.add_argument("-x", "--max-problems", type=int, default=4)
parser.add_argument("--device-type", default="")
args = parser.parse_args()
device = compute_init(args.device_type or autodetect_device_type())[4]
load_model(args.source, device, phase="eval", model_tag=args.model_tag, step=args.step)
gate = Path(os.environ["STANDIN_GATES"]) / args.task_name
right = 0
for number in range(args.max_problems):
    wait_for(gate, above=number)
    if args.task_name == "MMLU":
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")
    right += number % 2
    print(f"\r\033[KRank 0 | {right}/{number + 1} ({100 * right / (number + 1):.2f}%)", end="", flush=True)
print()
print("\033[32m\033[1mINFO\033[0m - in colour, as nanochat's loggers do it")
print("=" * 50)
print(f"Final: {right}/{args.max_problems} ({100 * right / args.max_problems:.2f}%)")
