"""As newer nanochat has it: told which model, and which of its three measurements."""

import argparse

parser = argparse.ArgumentParser()
parser.add_argument("--eval", default="core,bpb,sample")
parser.add_argument("--model-tag")
parser.add_argument("--step", type=int)
parser.add_argument("--max-per-task", type=int, default=-1)
parser.add_argument("--device-type", default="")
args = parser.parse_args()
assert args.eval == "core" and args.model_tag
for name in ("hellaswag_zeroshot", "jeopardy"):
    print(f"Evaluating: {name} (0-shot, type: multiple_choice)... ", end="")
    print("accuracy: 0.5000 | centered: 0.2500 | time: 0.01s")
print("CORE metric: 0.2500")
