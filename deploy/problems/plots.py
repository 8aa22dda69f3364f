"""Runs presets (setting cpu) and draws one figure of each into deploy/problems/plots.

Needs a release build and Pillow. `python deploy/problems/plots.py 5.4 5.22` draws these, no argument all (about an hour on two
cores). Stores stay in .sweep-problems and are used again; remove them to run anew.
"""

import pathlib
import subprocess
import sys

from PIL import Image

ROOT = pathlib.Path(__file__).parents[2]
SWEEP = ROOT / "target/release/sweep"
STORES = ROOT / ".sweep-problems"
# The figure that shows what the row says.
FIGURES = {
    "5.1": "addition.digits",
    "5.2": "digit-order.ranks",
    "5.3": "pca.path",
    "5.4": "grok-predict.predictions",
    "5.5": "frequency-choice.frequencies",
    "5.6": "knockout-delay.delay",
    "5.7": "component-cosine.half-lead",
    "5.8": "s-curve.loss",
    "5.9": "knockout-delay.delay",
    "5.10": "head-similarity.same-index",
    "5.11": "knockout-delay.delay",
    "5.12": "lead-lag.correlation",
    "5.13": "predict-pair.by-fraction",
    "5.14": "order.onsets",
    "5.15": "forgetting.accuracy",
    "5.16": "diff-examples.mean-difference",
    "5.17": "diff-examples.classes",
    "5.18": "patch-recovery.greedy",
    "5.19": "max-act-overlap.overlap",
    "5.20": "output-similarity.js",
    "5.21": "phase-transition.verdicts",
    "5.22": "induction-heads.prefix-matching",
    "5.23": "neuron-formation.formed",
    "5.24": "loss-pca.path",
    "5.25": "head-lifelines.lifelines",
    "5.26": "ioi.logit-diff",
    "5.27": "ioi-dla.dla",
    "5.28": "ioi-attention.best-head",
    "5.29": "sorting.accuracy",
    "5.30": "paired-synonyms.heads",
    "5.31": "multiple-choice.margins",
    "5.32": "multitask-parity.tasks",
    "5.33": "output-similarity.js-steps",
    "5.34": "seed-variance.items",
    "5.35": "ioi.logit-diff",
    "5.36": "scale-inversion-excess.excess",
    "5.37": "rebasin.barrier",
    "5.38": "rebasin-search.ratios",
}


def draw(problem):
    store = STORES / problem
    if not store.exists():
        subprocess.run([SWEEP, "local", "--problem", problem, "--dir", store], check=True)
    target = ROOT / f"deploy/problems/plots/{problem}.png"
    target.parent.mkdir(exist_ok=True)
    subprocess.run([SWEEP, "--dir", store, "plot", "--figure", FIGURES[problem], "--to", target], check=True)
    with Image.open(target) as image:
        image = image.convert("RGB").reduce(2) if image.width > 1600 else image.convert("RGB")
        image.quantize(48, dither=Image.Dither.NONE).save(target, optimize=True)


for problem in sys.argv[1:] or FIGURES:
    draw(problem)
