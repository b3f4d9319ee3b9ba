"""Do the paired test and the gate keep what they promise? Simulated pairs of models, thousands of times.

    python packages/fm-eval/benchmarks/significance.py [--simulations 1000] [--output FILE]

A row is right where a latent margin is above zero: difficulty that both models share (of the row and of its patient),
what a model finds hard by itself (of rows and of patients), what a run is off everywhere, and noise of each run. Alike
models draw from one distribution; a planted drop makes right rows wrong. Promises: at most 66 false positives in 1,000
null pairs at the nominal 5 % (the 99 % point of a binomial), however the data is clustered; the gate at 2,000 rows in
200 groups and 5 runs passes at least 95 of 100 pairs of alike models and catches at least 95 of 100 drops of 4 points.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from fm_eval.gate import judge
from fm_eval.metrics import FloatArray, IntArray
from fm_eval.significance import ALPHA, paired_difference

CLASSES, MAX_DROP = 4, 0.01
DROPS = (0.01, 0.02, 0.03, 0.04)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """What pairs of models are like; standard deviations of parts of the margin, that of a row's difficulty is 1.

    Attributes:
        groups: patients.
        rows: of each patient.
        runs: of each model.
        patient: difficulty of a patient, the same for both models.
        own_patient: what one model finds hard in a patient.
        own_row: what one model finds hard in a row.
        run: what a run is off in all rows.
        noise: of each row and run.
        easy: margin of the average row.
    """

    groups: int = 200
    rows: int = 10
    runs: int = 5
    patient: float = 0.7
    own_patient: float = 0.25
    own_row: float = 0.25
    run: float = 0.03
    noise: float = 0.3
    easy: float = 1.45

    def draw(self, random: np.random.Generator, *, drop: float = 0.0) -> tuple[IntArray, IntArray, list[FloatArray]]:
        """Labels and groups of the rows, and which runs (R, N) are right: of a model that dropped, and of another."""
        count = self.groups * self.rows
        labels = random.integers(0, CLASSES, count)
        patients = np.repeat(np.arange(self.groups), self.rows)
        shared = self.easy + random.normal(0, 1, count) + random.normal(0, self.patient, self.groups)[patients]
        models = []
        for planted in (drop, 0.0):
            own = random.normal(0, self.own_patient, self.groups)[patients] + random.normal(0, self.own_row, count)
            off = random.normal(0, self.run, (self.runs, 1)) + random.normal(0, self.noise, (self.runs, count))
            right = (shared + own + off > 0).astype(np.float64)
            # the same rows become wrong in every run
            right *= random.random(count) >= planted / right.mean()
            models.append(right)
        return labels, patients, models


SETTINGS = {
    "as the gate is judged": Pairs(),
    "one run": Pairs(runs=1, run=0),
    "one run, and runs differ, which nobody can know": Pairs(runs=1),
    "no clusters": Pairs(patient=0, own_patient=0),
    "strong clusters, 40 patients": Pairs(groups=40, rows=25, patient=1.5, own_patient=0.8),
    "runs that differ": Pairs(run=0.15),
}


def shown(pairs: Pairs, simulations: int, *, seed: int, drop: float = 0.0, clustered: bool = True) -> int:
    """In how many simulations the two-sided test shows a difference; not clustered: rows are taken for independent."""
    count = 0
    for number in range(simulations):
        labels, groups, (one, other) = pairs.draw(np.random.default_rng([seed, number]), drop=drop)
        units = groups if clustered else np.arange(len(labels))
        found = paired_difference(labels, units, one, other, permutations=1000, resamples=1, seed=number)
        count += found.p_value <= ALPHA
    return count


def failed(pairs: Pairs, simulations: int, *, seed: int, drop: float = 0.0) -> tuple[int, float]:
    """In how many simulations the gate fails, and the mean of the smallest drop that it says it can see."""
    count, smallest = 0, []
    for number in range(simulations):
        labels, groups, (new, old) = pairs.draw(np.random.default_rng([seed, number]), drop=drop)
        found = paired_difference(labels, groups, new, old, permutations=2000, resamples=1, seed=number)
        verdict = judge([("task", found, True)], max_drop=MAX_DROP)[0]
        count += not verdict.passed
        smallest.append(verdict.smallest_visible)
    return count, float(np.mean(smallest))


def main() -> None:
    """Simulate, print, and write the figures as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    count, seed, results = arguments.simulations, arguments.seed, {}
    for name, pairs in SETTINGS.items():
        nulls = shown(pairs, count, seed=seed)
        power = {f"{drop:g}": shown(pairs, count // 5, seed=seed, drop=drop) / (count // 5) for drop in DROPS}
        results[name] = {"false_positives": nulls, "of": count, "power": power, **asdict(pairs)}
        print(f"{name}: {nulls} of {count} nulls shown; power {power}", flush=True)
    naive = shown(SETTINGS["strong clusters, 40 patients"], count, seed=seed, clustered=False)
    print(f"strong clusters, rows taken for independent: {naive} of {count} nulls shown")
    gates = {}
    for drop in (0.0, *DROPS):
        caught, smallest = failed(Pairs(), count, seed=seed, drop=drop)
        gates[f"{drop:g}"] = {"failed": caught, "of": count, "smallest_visible": smallest}
        print(f"gate, planted drop {drop:g}: {caught} of {count} fail; says it can see {smallest:.4f}", flush=True)
    if arguments.output is not None:
        content = {
            "format_version": 1,
            "benchmark": "significance",
            "results": {"test": results, "naive_false_positives": naive, "gate": gates},
        }
        arguments.output.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
