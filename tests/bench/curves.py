"""The sigmoid test of many curves beside the same test written with scipy, in one run: `make bench-curves`, or any Python with scipy on
`tests/bench/curves.py target/release/examples/curves_speed`.

Curves of 60 checkpoints, dense in log steps, with noise: steps, lines and power laws. Our side is `phase-transition` on one thread. The
other side fits the same five curves by `scipy.optimize.least_squares` (a logistic from 4 starts, two logistics from 8, places and widths
from a grid, as here) and refits the logistic to 200 resampled curves; it leaves out the test under correlated errors and the model-free
measures. The sides take turns; medians over rounds. Midpoints of the steps are compared.
"""

import json
import math
import statistics
import subprocess
import sys
import time

import numpy as np
from scipy.optimize import least_squares

N_POINTS, N_BOOTSTRAP, ROUNDS = 60, 200, 5
N_OURS, N_SCIPY = 900, 6


def draw(n_curves, rng):
    steps = [round(10 ** (5 * i / (N_POINTS - 1))) + i for i in range(N_POINTS)]
    x = np.log1p(steps)
    curves = []
    for curve in range(n_curves):
        place = 3 + 6 * rng.random()
        clean = [1 / (1 + np.exp(-(x - place) / 0.2)), x / 12, np.exp(-0.3 * x)][curve % 3]
        curves.append(clean + 0.03 * rng.standard_normal(N_POINTS))
    return steps, x, curves


def ours(binary, steps, curves):
    request = {"steps": steps, "curves": [list(curve) for curve in curves], "n_bootstrap": N_BOOTSTRAP}
    done = subprocess.run([binary], input=json.dumps(request), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def logistics(p, x):
    """Value and Jacobian of `c + sum A / (1 + exp(-(x - x0) / w))`, p = c, A, x0, ln w, …"""
    value, columns = np.full_like(x, p[0]), [np.ones_like(x)]
    for height, place, ln_w in zip(p[1::3], p[2::3], p[3::3]):
        w = math.exp(ln_w)
        s = 1 / (1 + np.exp(-np.clip((x - place) / w, -500, 500)))
        slope = height * s * (1 - s)
        value = value + height * s
        columns += [s, -slope / w, -slope * (x - place) / w]
    return value, np.stack(columns, 1)


def refine(start, x, y, most):
    low, high = x[0], x[-1]
    n = len(start) // 3
    bounds = ([-np.inf] + [-np.inf, low, math.log(1e-3 * (high - low))] * n, [np.inf] + [np.inf, high, math.log(high - low)] * n)
    inside = np.clip(start, np.array(bounds[0]) + 1e-9, np.array(bounds[1]) - 1e-9)
    return least_squares(
        lambda p: logistics(p, x)[0] - y, inside, jac=lambda p: logistics(p, x)[1], bounds=bounds, max_nfev=most
    )


def scipy_test(x, y, rng):
    """Midpoint of the logistic, BIC of the five fits, 95 % interval of the midpoint."""
    n, low, high = len(x), x[0], x[-1]
    bic = lambda rss, k: n * math.log(rss / n) + k * math.log(n)
    found = [bic(np.sum((y - y.mean()) ** 2), 1)]
    line = lambda column: np.linalg.lstsq(np.stack([np.ones(n), column], 1), y, rcond=None)[1][0]
    found.append(bic(line(x), 2))
    found.append(bic(min(line(np.exp(-c / 10 * (x - low))) for c in range(-30, 61) if c), 3))
    places = np.linspace(low, high, 61)
    widths = (high - low) * 0.003 * 100 ** (np.arange(8) / 7)
    columns = [(place, w, 1 / (1 + np.exp(-np.clip((x - place) / w, -500, 500)))) for place in places for w in widths]
    singles = []
    for place, w, column in columns:
        design = np.stack([np.ones(n), column], 1)
        (c, height), rss, rank, _ = np.linalg.lstsq(design, y, rcond=None)
        if rank == 2:
            singles.append((rss[0], [c, height, place, math.log(w)]))
    singles.sort(key=lambda single: single[0])
    starts = []
    for _, start in singles:
        if all(start[2] != known[2] for known in starts):
            starts.append(start)
        if len(starts) == 4:
            break
    rough = sorted((refine(start, x, y, 10) for start in starts), key=lambda fit: fit.cost)
    best = min((refine(fit.x, x, y, 200) for fit in rough[:2]), key=lambda fit: fit.cost)
    found.append(bic(2 * best.cost, 4))
    pairs = [[*first, *second[1:]] for i, first in enumerate(starts) for second in starts[:i]] + [[*starts[0], 0.0, *starts[0][2:]]]
    rough = sorted((refine(start, x, y, 10) for start in pairs), key=lambda fit: fit.cost)
    two = min((refine(fit.x, x, y, 200) for fit in rough[:2]), key=lambda fit: fit.cost)
    found.append(bic(2 * two.cost, 7))
    fitted = logistics(best.x, x)[0]
    residuals, block, midpoints = y - fitted, math.ceil(n ** (1 / 3)), []
    for _ in range(N_BOOTSTRAP):
        first = rng.integers(0, n - block + 1, math.ceil(n / block))
        drawn = np.concatenate([residuals[i : i + block] for i in first])[:n]
        midpoints.append(refine(best.x, x, fitted + drawn, 30).x[2])
    return math.exp(best.x[2]) - 1, found, np.quantile(midpoints, [0.025, 0.975])


def main():
    rng = np.random.default_rng(0)
    steps, x, curves = draw(N_OURS, rng)
    mine, theirs = [], []
    for _ in range(ROUNDS):
        done = ours(sys.argv[1], steps, curves)
        mine.append(1e3 * done["seconds"] / N_OURS)
        begun = time.perf_counter()
        tested = [scipy_test(x, curve, rng) for curve in curves[:N_SCIPY]]
        theirs.append(1e3 * (time.perf_counter() - begun) / N_SCIPY)
    differences = [abs(math.log(tested[i][0] / done["midpoint"][i])) for i in range(0, N_SCIPY, 3)]
    assert max(differences) < 1e-3, differences
    verdicts = [sum(done["verdict"][kind::3]) for kind in range(3)]
    print(f"{N_POINTS} points, {N_BOOTSTRAP} resamples, one thread, medians of {ROUNDS} rounds that take turns")
    print("| | ms per curve | |")
    print("|---|---|---|")
    print(f"| phase-transition, {N_OURS} curves | {statistics.median(mine):.2f} | 1 |")
    ratio = statistics.median(b / a for a, b in zip(mine, theirs))
    print(f"| scipy least_squares, {N_SCIPY} curves | {statistics.median(theirs):.0f} | {ratio:.0f} times |")
    print(f"transitions called: {verdicts[0]:.0f} of {N_OURS // 3} steps, {verdicts[1]:.0f} lines, {verdicts[2]:.0f} power laws")


if __name__ == "__main__":
    main()
