"""Compares loading of a GPT-2-small-sized checkpoint: `cp`, this project, transformers, TransformerLens.

    python load.py FOLDER LOAD_SPEED_BINARY

Writes the checkpoint (12 layers, d_model 768, vocabulary 50257, n_ctx 1024: 124 M parameters, random) into
FOLDER unless it is there, as model.safetensors and as pytorch_model.bin. Every loader runs once per round
with the files in the page cache, five rounds; medians are printed. Imports and process starts are not
counted, for anybody. transformers leaves the weights in the mapped file, so its time compares with "mapped
views"; `cp` and "float32 in memory" move every byte. `make bench-load` runs this.
"""

import importlib.metadata
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge

ROUNDS = 5
GOAL = 2.0


def write(folder):
    """One checkpoint in two folders, because transformers prefers safetensors where it sees one."""
    config = transformers.GPT2Config()
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(folder / "safetensors")
    config.save_pretrained(folder / "pickle")
    torch.save(model.state_dict(), folder / "pickle" / "pytorch_model.bin")


def seconds(function):
    begun = time.perf_counter()
    result = function()
    elapsed = time.perf_counter() - begun
    del result
    return elapsed


def ours(binary, file):
    output = subprocess.run([binary, file], check=True, capture_output=True, text=True).stdout
    return json.loads(output)


def one_round(folder, binary):
    """Seconds by name."""
    file = folder / "safetensors" / "model.safetensors"
    pickle = folder / "pickle" / "pytorch_model.bin"
    copy = folder / "copy"
    copy.unlink(missing_ok=True)
    times = {"cp": seconds(lambda: subprocess.run(["cp", file, copy], check=True))}
    copy.unlink()
    safetensors = ours(binary, file)
    times["ours, mapped views"] = safetensors["views"]
    times["ours, float32 in memory"] = safetensors["float32"]
    times["ours, float32 in memory, .bin"] = ours(binary, pickle)["float32"]
    pretrained = transformers.AutoModelForCausalLM.from_pretrained
    for label, part in (("", "safetensors"), (", .bin", "pickle")):
        model = folder / part
        times[f"transformers.from_pretrained{label}"] = seconds(lambda: pretrained(model))
    boot = TransformerBridge.boot_transformers
    times["TransformerLens boot_transformers"] = seconds(
        lambda: boot(str(folder / "safetensors"), device="cpu")
    )
    return times


def main():
    transformers.logging.disable_progress_bar()
    folder, binary = pathlib.Path(sys.argv[1]), sys.argv[2]
    file = folder / "safetensors" / "model.safetensors"
    if not (file.exists() and (folder / "pickle" / "pytorch_model.bin").exists()):
        write(folder)
    # Everything into the page cache, and every library through its first call.
    one_round(folder, binary)
    rounds = [one_round(folder, binary) for _ in range(ROUNDS)]
    medians = {name: statistics.median(times[name] for times in rounds) for name in rounds[0]}
    n_bytes = file.stat().st_size
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, "
    versions += f"TransformerLens {importlib.metadata.version('transformer_lens')}"
    print(f"{n_bytes / 1e6:.0f} MB, {os.cpu_count()} processors, median of {ROUNDS}; {versions}")
    print(f"{'':36} {'seconds':>8} {'GB/s':>6} {'time / cp':>10}")
    for name, median in medians.items():
        ratio = median / medians["cp"]
        print(f"{name:36} {median:8.3f} {n_bytes / median / 1e9:6.2f} {ratio:10.2f}")
    ratio = medians["ours, float32 in memory"] / medians["cp"]
    verdict = "met" if ratio <= GOAL else "MISSED"
    print(f"goal, at most {GOAL:.0f} times the time of cp: {verdict}")


if __name__ == "__main__":
    main()
