"""Training beside PyTorch eager, in one run: `make bench-train`, or any Python with torch on
`tests/bench/train.py target/release/examples/bench_train`.

Two settings of modular addition, full batch, loss in float64: a one-layer transformer (p = 71, width 64, 4 heads,
256 neurons, 40 % of the pairs) and a perceptron (p = 31, 256 neurons, 70 %). 1, 8 and 32 seeds. Our side is the
training loop of the worker (example `bench_train`), seeds side by side on as many threads as there are cores. The
other side is PyTorch eager in one process, one model after the other, with as many threads; it is written
twice: `published`, as the paper's code computes (logits at every position, the last one picked), and `last`, a
careful rewrite that computes the last position only.

The sides take turns, and every figure is the median over rounds, so that other work on the machine
falls on all of them. Processor time is summed over threads.
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time

WARM_UP = 5
SETTINGS = ["transformer", "mlp"]
SEEDS = [1, 8, 32]


def transformer(torch, device, careful, p=71, d=64, h=4, m=256):
    """Parameters, loss: one-layer ReLU transformer on `a b =`, without norms."""
    param = lambda *shape, fan=d: torch.nn.Parameter(torch.randn(*shape, device=device) / math.sqrt(fan))
    w_e, w_pos = param(p + 1, d), param(3, d)
    w_q, w_k, w_v = (param(h, d, d // h) for _ in range(3))
    w_o = param(h, d // h, d)
    zeros = lambda n: torch.nn.Parameter(torch.zeros(n, device=device))
    w_in, b_in, w_out, b_out = param(d, m), zeros(m), param(m, d), zeros(d)
    w_u = param(d, p, fan=p + 1)
    mask = torch.tril(torch.ones(3, 3, device=device)).bool()
    tokens, labels = pairs(torch, device, p, 0.4)
    tokens = torch.stack([tokens[:, 0], tokens[:, 1], torch.full_like(labels, p)], 1)

    def loss():
        x = w_e[tokens] + w_pos
        query_input = x[:, -1:] if careful else x
        q = torch.einsum("bpd,hde->bphe", query_input, w_q)
        k = torch.einsum("bpd,hde->bphe", x, w_k)
        v = torch.einsum("bpd,hde->bphe", x, w_v)
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(d // h)
        if not careful:
            scores = scores.masked_fill(~mask, -1e10)
        z = torch.einsum("bhqk,bkhe->bqhe", scores.softmax(-1), v)
        x = query_input + torch.einsum("bqhe,hem->bqm", z, w_o)
        x = x + torch.relu(x @ w_in + b_in) @ w_out + b_out
        logits = (x @ w_u)[:, -1].double()
        return torch.nn.functional.cross_entropy(logits, labels)

    return [w_e, w_pos, w_q, w_k, w_v, w_o, w_in, b_in, w_out, b_out, w_u], loss, 3e-3


def mlp(torch, device, careful, p=31, m=256):
    """Parameters, loss: one hidden ReLU layer on one-hot a beside one-hot b."""
    first = torch.nn.Parameter(torch.randn(2 * p, m, device=device) / math.sqrt(2 * p))
    last = torch.nn.Parameter(torch.randn(m, p, device=device) / math.sqrt(m))
    operands, labels = pairs(torch, device, p, 0.7)
    one_hot = torch.nn.functional.one_hot
    inputs = torch.cat([one_hot(operands[:, 0], p), one_hot(operands[:, 1], p)], 1).float()

    def loss():
        logits = torch.relu(inputs @ first) @ last
        return torch.nn.functional.cross_entropy(logits.double(), labels)

    return [first, last], loss, 1e-3


def pairs(torch, device, p, fraction):
    a = torch.arange(p).repeat_interleave(p)
    b = torch.arange(p).repeat(p)
    chosen = torch.randperm(p * p)[: int(fraction * p * p)]
    return torch.stack([a, b], 1)[chosen].to(device), ((a + b) % p)[chosen].to(device)


def eager(setting, n_seeds, steps, threads, device, careful):
    """Trains one model after the other; prints what `bench_train` prints. Runs in a process of its own."""
    import torch

    torch.set_num_threads(threads)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wall = processor = 0.0
    for seed in range(n_seeds):
        torch.manual_seed(seed)
        parameters, loss, lr = {"transformer": transformer, "mlp": mlp}[setting](torch, device, careful)
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=1.0, betas=(0.9, 0.98))
        for step in range(steps + WARM_UP):
            if step == WARM_UP:
                wait()
                start = time.perf_counter(), time.process_time()
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        wait()
        wall += time.perf_counter() - start[0]
        processor += time.process_time() - start[1]
    updates = n_seeds * steps
    print(json.dumps({
        "ms_per_step_per_seed": 1e3 * wall / updates,
        "processor_ms_per_step_per_seed": 1e3 * processor / updates,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))


def measure(command):
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def compare(arguments):
    steps = {"transformer": arguments.steps, "mlp": 10 * arguments.steps}
    libraries = os.path.join(os.environ.get("LIBTORCH", ".libtorch/torch"), "lib")
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    columns = ["ms_per_step_per_seed", "processor_ms_per_step_per_seed", "peak_memory_mib"]
    print(f"{arguments.threads} threads on {arguments.device}, medians of {arguments.rounds} rounds that take turns; ms per update and seed")
    print("| setting | seeds | ours | PyTorch published | last only | ratio | ratio to last only | processor ms: ours, PyTorch | MiB: ours, PyTorch |")
    print("|---|---|---|---|---|---|---|---|---|")
    for setting in arguments.settings:
        for n_seeds in arguments.seeds:
            # Fewer updates of many seeds: what is measured is a rate.
            n_steps = max(10, steps[setting] // n_seeds)
            ask = [setting, str(n_seeds), str(n_steps), str(arguments.threads), arguments.device]
            sides = {"ours": [arguments.binary, *ask]}
            for style in ["published", "last"]:
                if setting == "transformer" or style == "published":
                    sides[style] = [sys.executable, __file__, "--eager", style, *ask]
            found = {side: [] for side in sides}
            for _ in range(arguments.rounds):
                for side, command in sides.items():
                    found[side].append(measure(command))
            median = lambda side, key: statistics.median(run[key] for run in found[side])
            ours, theirs = ([median(side, key) for key in columns] for side in ["ours", "published"])
            ratio = lambda side: statistics.median(
                other[columns[0]] / own[columns[0]] for own, other in zip(found["ours"], found[side])
            )
            last = f"{median('last', columns[0]):.2f}" if "last" in found else "same"
            to_last = f"{ratio('last'):.2f}" if "last" in found else "same"
            print(
                f"| {setting} | {n_seeds} | {ours[0]:.2f} | {theirs[0]:.2f} | {last} | {ratio('published'):.2f} | {to_last}"
                f" | {ours[1]:.2f}, {theirs[1]:.2f} | {ours[2]:.0f}, {theirs[2]:.0f} |",
                flush=True,
            )
    if arguments.device == "cpu":
        print("On a GPU: not measured in this run (--device cuda).")


def main():
    if sys.argv[1] == "--eager":
        style, setting, n_seeds, steps, threads, device = sys.argv[2:]
        eager(setting, int(n_seeds), int(steps), int(threads), device, style == "last")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", help="the example bench_train")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60, help="updates of one transformer; the perceptron makes ten times as many")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=SETTINGS)
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
