"""Compares analyses of a GPT-2-small-sized checkpoint: this project, TransformerLens, and what the matrix products cost.

    python analyse.py FOLDER ANALYSE_SPEED_BINARY

Writes the checkpoint (12 layers, d_model 768, vocabulary 50257: 124 M parameters, random) into FOLDER unless it is there.
Both sides read the same 16 rows of 101 tokens (a BOS token, 50 random tokens twice) and compute the same numbers, which are
compared. TransformerLens runs once with a cache of the patterns; head scores are those of its head_detector (`TransformerLens`)
or of vectorised code that its user would have to write (`vectorised`). Measured in turns, model in memory, medians; `make bench-analyse` runs this.
On a busy machine run it with OMP_NUM_THREADS=1: then processor time counts, on both sides.

- set    induction-heads, head-detector, attention-stats, per-token-loss
- all    the set with in-context-learning, copying and composition; in TransformerLens all_composition_scores, and
         an experiment that reads other tokens takes a pass of its own there too
- floor  floating-point operations of the set's one pass, divided by the measured rate of matrix products of its shapes, the
         best of the BLAS' and two of oneDNN's: at its best, which on a shared machine lasts for some ten milliseconds, and
         as sustained, the median of nine

Each side computes the set once, untimed, before it is timed, as a worker does that analyses one checkpoint behind the other.
"""

import importlib.metadata
import json
import math
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
from transformer_lens.head_detector import compute_head_attention_similarity_score as score
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.utilities.lm_utils import lm_cross_entropy_loss

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "7"))
S, ROWS = 50, 16
T = 2 * S + 1
GOALS = {"set": 1.4, "all": 3.0}
GOAL_FLOOR = 1.25


class Ours:
    def __init__(self, binary, folder):
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen([binary, folder], **pipes)
        self.load_seconds = json.loads(self.process.stdout.readline())["load_seconds"]

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def patterns_and_logits(bridge, tokens):
    is_pattern = lambda name: name.endswith("attn.hook_pattern")
    logits, cache = bridge.run_with_cache(tokens, names_filter=is_pattern)
    return logits, [cache[f"blocks.{layer}.attn.hook_pattern"] for layer in range(bridge.cfg.n_layers)]


def detection(tokens):
    equal = (tokens[:, :, None] == tokens[:, None, :]).float().tril(-1)
    after = torch.cat([torch.zeros_like(equal[:, :, :1]), equal[:, :, :-1]], 2).tril()
    previous = torch.diag(torch.ones(T - 1), -1).expand_as(equal)
    return {"previous_token_head": previous, "duplicate_token_head": equal, "induction_head": after}


def detect(pattern, mask, measure):
    """One layer's scores as detect_head computes them, prompt by prompt and head by head; the mean over prompts."""
    options = dict(exclude_bos=False, exclude_current_token=False, error_measure=measure)
    rows = [[score(head, detection_pattern=wanted, **options) for head in row] for row, wanted in zip(pattern, mask)]
    return torch.tensor(rows).mean(0)


def transformer_lens_set(bridge, tokens, own_detector=True):
    """What the four experiments emit, by our names."""
    logits, patterns = patterns_and_logits(bridge, tokens)
    found = {}
    put = lambda name, by_layer: found.__setitem__(name, torch.stack(by_layer))
    losses = lm_cross_entropy_loss(logits, tokens, per_token=True)
    found["per-token-loss.loss"] = losses.mean()
    found["per-token-loss.loss_per_token"] = losses
    found["induction-heads.induction_loss"] = losses[:, S + 1 :].mean()
    stripe = [p.diagonal(dim1=-2, dim2=-1, offset=1 - S).mean((0, 2)) for p in patterns]
    put("induction-heads.induction_stripe", stripe)
    masks = detection(tokens)
    matches = masks["induction_head"].clone()
    matches[:, : S + 1] = 0
    put("induction-heads.prefix_matching", [(p * matches[:, None]).sum((0, 2, 3)) / (ROWS * S) for p in patterns])
    for name, mask in masks.items():
        if own_detector:
            put(f"head-detector.{name}", [detect(p, mask, "mul") for p in patterns])
            put(f"head-detector.{name}_abs", [detect(p, mask, "abs") for p in patterns])
            continue
        scores = [(p * mask[:, None]).sum((2, 3)) / p.sum((2, 3)) for p in patterns]
        put(f"head-detector.{name}", [score.mean(0) for score in scores])
        differences = [(p - mask[:, None]).abs().mean((2, 3)) * T for p in patterns]
        put(f"head-detector.{name}_abs", [(1 - d.round(decimals=3)).mean(0) for d in differences])
    distance = (torch.arange(T)[:, None] - torch.arange(T)).float()
    of_queries = lambda x: x[:, :, 1:].mean((0, 2))
    put("attention-stats.first_token", [of_queries(p[..., 0]) for p in patterns])
    put("attention-stats.current_token", [of_queries(p.diagonal(dim1=-2, dim2=-1)) for p in patterns])
    put("attention-stats.distance", [of_queries((p * distance).sum(-1)) for p in patterns])
    entropies = [-(p * p.clamp_min(1e-37).log()).sum(-1) for p in patterns]
    put("attention-stats.entropy", [of_queries(e) for e in entropies])
    largest = torch.arange(1, T + 1).log().clamp_min(1e-30)
    put("attention-stats.entropy_normalized", [of_queries(e / largest) for e in entropies])
    previous = [p.diagonal(dim1=-2, dim2=-1, offset=-1).mean((0, 2)) for p in patterns]
    put("attention-stats.previous_token", previous)
    put("induction-heads.previous_token", previous)
    return found


def transformer_lens_all(bridge, tokens, sample):
    found = transformer_lens_set(bridge, tokens)
    losses = found["per-token-loss.loss_per_token"].mean(0)
    found["in-context-learning.icl_score"] = losses[-1] - losses[T // 10 - 1]
    for kind in "QKV":
        found[f"composition.{kind.lower()}_composition"] = bridge.all_composition_scores(kind).scores
    found.update(transformer_lens_copying(bridge, sample))
    return found


def transformer_lens_copying(bridge, sample):
    wanted = lambda name: name.endswith(("attn.hook_pattern", "attn.hook_v"))
    _, cache = bridge.run_with_cache(sample, names_filter=wanted)
    columns = bridge.W_U[:, sample].permute(1, 0, 2)[:, None]
    if bridge.cfg.normalization_type == "LN":
        columns = bridge.W_U * bridge.ln_final.weight[:, None]
        columns = (columns - columns.mean(0))[:, sample].permute(1, 0, 2)[:, None]
    scores, eigen = [], []
    around = bridge.W_U @ bridge.W_E
    for layer in range(bridge.cfg.n_layers):
        values = cache[f"blocks.{layer}.attn.hook_v"]
        if values.dim() == 3:
            values = values.view(*values.shape[:2], bridge.cfg.n_heads, -1)
        logits = values.transpose(1, 2) @ bridge.W_O[layer] @ columns
        raised = (logits - logits.mean(-1, keepdim=True)).relu()
        share = 2 * raised.diagonal(dim1=-2, dim2=-1) / raised.sum(-1) - 1
        attention = cache[f"blocks.{layer}.attn.hook_pattern"].sum(-2)
        scores.append(((share * attention).sum(-1) / attention.sum(-1)).mean(0))
        values = torch.linalg.eigvals(bridge.W_O[layer] @ around @ bridge.W_V[layer])
        eigen.append(values.sum(-1).real / values.abs().sum(-1))
    return {"copying.copying": torch.stack(scores), "copying.ov_copying": torch.stack(eigen)}


def compare(ours, theirs):
    """Largest difference; NaN and missing numbers are an error."""
    worst = {}
    for name, expected in theirs.items():
        found = torch.tensor(ours[name], dtype=torch.float64).reshape(expected.shape)
        difference = (found - expected.double()).abs().max().item()
        tolerance = 2e-3 if name.endswith("_abs") else 1e-4
        assert difference <= tolerance, (name, difference)
        worst[name] = difference
    return worst


def seconds(function):
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    begun = clock()
    result = function()
    return clock() - begun, result


def floors(ours, config):
    """Seconds of the pass's matrix products at the rates that this machine has now, by kind of rate; operations."""
    d, d_mlp, vocabulary, n = config.n_embd, 4 * config.n_embd, config.vocab_size, ROWS * T
    block = config.n_layer * 2 * n * (4 * d * d + 2 * d * d_mlp)
    attention = config.n_layer * 4 * n * T * d
    unembedding = 2 * n * d * vocabulary
    in_blocks, in_readout = (ours.ask({"matmul": shape}) for shape in [(n, d, d_mlp), (n, d, 1024)])
    times = {kind: (block + attention) / in_blocks[kind] + unembedding / in_readout[kind] for kind in in_blocks}
    return times, block + attention + unembedding


def main():
    transformers.logging.disable_progress_bar()
    folder, binary = pathlib.Path(sys.argv[1]), sys.argv[2]
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
    torch.manual_seed(1)
    half = torch.randint(100, 20000, (ROWS, S))
    tokens = torch.cat([torch.full((ROWS, 1), 50256), half, half], 1)
    load, bridge = seconds(lambda: TransformerBridge.boot_transformers(str(folder), device="cpu"))
    ours = Ours(binary, folder)
    rows = {"tokens": tokens.tolist()}
    names = ["induction-heads", "head-detector", "attention-stats", "per-token-loss"]
    jobs = {"set": [{"name": name, "params": rows} for name in names]}
    more = [{"name": name, "params": rows} for name in ("in-context-learning", "composition")]
    jobs["all"] = jobs["set"] + more + [{"name": "copying", "params": {"prepend_bos": False}}]
    sample = torch.stack([torch.randperm(19900)[:25] + 100 for _ in range(10)])
    theirs = {
        "set": lambda: transformer_lens_set(bridge, tokens),
        "all": lambda: transformer_lens_all(bridge, tokens, sample),
    }
    times, rates = {}, []
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            measured = {}
            for what in ("set", "all"):
                # A worker analyses one checkpoint behind the other: memory is warm, and is here after the other side's turn.
                if what == "set":
                    theirs[what]()
                measured["TransformerLens", what], expected = seconds(theirs[what])
                if what == "set":
                    vectorised = lambda: transformer_lens_set(bridge, tokens, own_detector=False)
                    measured["vectorised", what], _ = seconds(vectorised)
                ours.ask({"jobs": jobs["set"]})
                answer = ours.ask({"jobs": jobs[what]})
                measured["ours", what] = answer["cpu_seconds" if torch.get_num_threads() == 1 else "seconds"]
                if turn == 0:
                    expected = {name: x for name, x in expected.items() if name != "copying.copying"}
                    worst = max(compare(answer["metrics"], expected).values())
                    print(f"{what}: {len(expected)} metrics agree, largest difference {worst:.1e}")
            found, operations = floors(ours, transformers.GPT2Config())
            measured.update((("floor", kind), time) for kind, time in found.items())
            turns = ", ".join(f"{' '.join(name)}: {taken:.2f}" for name, taken in measured.items())
            print(f"turn {turn}: {turns}", file=sys.stderr)
            if turn > 0:  # the first one warms everything up
                rates.append(operations / found["best"])
                for name, time_taken in measured.items():
                    times.setdefault(name, []).append(time_taken)
    report(times, rates, load, ours.load_seconds)


def report(times, rates, load, our_load):
    median = {name: statistics.median(found) for name, found in times.items()}
    versions = f"torch {torch.__version__}, TransformerLens {importlib.metadata.version('transformer_lens')}"
    of = "processor time, " if torch.get_num_threads() == 1 else ""
    print(f"{torch.get_num_threads()} threads, {of}median of {ROUNDS} [best]; {versions}")
    print(f"load: TransformerLens {load:.2f} s, ours {our_load:.2f} s")
    print(f"floor {median['floor', 'best']:.3f} s at {statistics.median(rates) / 1e9:.0f} GFLOP/s")
    met = True
    for what, goal in GOALS.items():
        them, us = median["TransformerLens", what], median["ours", what]
        ratio = statistics.median(a / b for a, b in zip(times["TransformerLens", what], times["ours", what]))
        best = [min(times[side, what]) for side in ("TransformerLens", "ours")]
        verdict = "met" if ratio >= goal else "MISSED"
        met = met and ratio >= goal
        print(
            f"{what}: TransformerLens {them:.3f} [{best[0]:.3f}] s, ours {us:.3f} [{best[1]:.3f}] s, "
            f"{ratio:.2f} times as fast, goal {goal}: {verdict}"
        )
    plain = statistics.median(a / b for a, b in zip(times["vectorised", "set"], times["ours", "set"]))
    print(f"set, vectorised in PyTorch: {median['vectorised', 'set']:.3f} s, {plain:.2f} times ours")
    to_floor = lambda kind: statistics.median(a / b for a, b in zip(times["ours", "set"], times["floor", kind]))
    ratio = to_floor("best")
    verdict = "met" if ratio <= GOAL_FLOOR else "MISSED"
    print(f"set / floor: {ratio:.2f}, goal at most {GOAL_FLOOR}: {verdict}; to products as sustained: {to_floor('sustained'):.2f}")
    assert math.isfinite(ratio)


if __name__ == "__main__":
    main()
