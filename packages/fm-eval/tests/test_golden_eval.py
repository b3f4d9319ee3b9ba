"""Goldens: runs of two eva releases, and metrics computed independently; tolerances as in their README.

The folder is `../shared/golden/eval` beside the repository unless GOLDEN_DIR names another `golden`. Without
the variable an absent folder skips; with it, an absent or empty folder or a case that is not understood
fails.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fm_eval import (
    LinearProbe,
    Metric,
    MetricError,
    ProbeProtocol,
    Scores,
    get_protocol,
    knn_predict,
    odcorr,
    score,
    spectrum,
    uniformity,
)
from fm_eval.eigenvalues import PowerLaw
from fm_eval.linear_heads import HeadStack, LinearHead
from numpy.typing import NDArray

pytestmark = pytest.mark.golden_eval

Arrays = dict[str, NDArray[Any]]

_REPOSITORY = Path(__file__).resolve().parents[3]
_FOLDER = Path(os.environ.get("GOLDEN_DIR") or _REPOSITORY.parent / "shared" / "golden") / "eval"
_METRIC_FILES = {"unsupervised_metrics.json", "adversarial_metrics.json"}
# Names of scores that the goldens spell otherwise.
_NAMES = {"mean_loss": "log_loss", "macro_f1": "f1"}
_PRESETS = {"p002": "eva-0.0.2", "p045": "eva-0.4"}
_OTHER_FILES = {"README.md", "timings.json", "lung3_rows.csv", "adversarial.npz"}
_PROBES = sorted(path.stem for path in _FOLDER.glob("eva_*.json"))
_DATA = [path for path in sorted(_FOLDER.glob("*.npz")) if not path.stem.endswith("_trace")]
_SETS = [(path, split) for path in _DATA if path.stem != "adversarial" for split in ("train", "val", "test")]


def _json(name: str) -> dict[str, Any]:
    if not (_FOLDER / name).is_file():
        pytest.skip(f"no {name}")
    content: dict[str, Any] = json.loads((_FOLDER / name).read_text(encoding="utf-8"))
    return content


def _arrays(name: str) -> Arrays:
    with np.load(_FOLDER / name, allow_pickle=False) as file:
        return dict(file)


def _protocol(golden: dict[str, Any]) -> ProbeProtocol:
    """The preset of a release with what this case sets otherwise."""
    preset = get_protocol(_PRESETS[golden["protocol"]])
    return dataclasses.replace(
        preset,
        runs=golden["n_runs"],
        nesterov=bool(golden["nesterov"]),
        weight_decay=golden["weight_decay"],
        max_steps=golden["max_steps"],
        patience=golden["patience_epochs"],
    )


class _ProbeFromRecordedHeads(LinearProbe):
    """Starts where the release started: what an initial head gives by chance is not what is compared."""

    trace: Arrays

    def initial_head(self, run: int, features: int) -> LinearHead:
        head = LinearHead(*(torch.from_numpy(self.trace[f"run{run}_{name}0"]) for name in "wb"))
        assert head.weight.shape[1] == features
        return head


def test_every_golden_case_is_understood() -> None:
    if not _FOLDER.is_dir() and "GOLDEN_DIR" not in os.environ:
        pytest.skip("no golden data beside the repository")
    names = {path.name for path in _FOLDER.iterdir()} if _FOLDER.is_dir() else set()
    assert names - _OTHER_FILES, f"GOLDEN_DIR is set but {_FOLDER} is absent or empty"
    goldens = {f"{case}.json": _json(f"{case}.json") for case in _PROBES}
    for name, golden in goldens.items():
        assert golden["protocol"] in _PRESETS, f"{name}: unknown protocol {golden['protocol']}"
    known = set(goldens) | {f"{case}_trace.npz" for case in _PROBES} | _METRIC_FILES | _OTHER_FILES
    known |= {f"{golden['dataset']}.npz" for golden in goldens.values()}
    if "unsupervised_metrics.json" in names:
        known |= {f"{data}.npz" for data in _json("unsupervised_metrics.json")}
    assert not names - known


@pytest.mark.parametrize("case", _PROBES)
def test_preset_has_the_settings_of_the_release(case: str) -> None:
    golden = _json(f"{case}.json")
    preset, rows = get_protocol(_PRESETS[golden["protocol"]]), golden["n_train"]
    assert preset.max_steps == golden["max_steps"]
    assert preset.batch_size(rows) == golden["batch"]
    assert preset.steps_per_epoch(rows) == golden["steps_per_epoch"]
    assert preset.peak_lr(rows) == pytest.approx(golden["lr"], rel=1e-12)
    if golden["dataset"] in {"lung3", "gauss4"} or golden["protocol"] == "p002":
        # elsewhere eva-0.4 ran with the patience of larger tasks
        assert preset.patience_epochs(rows) == golden["patience_epochs"]
    recorded = golden["runs"][0].get("lr_after_epoch_first12", [])
    ours = [preset.lr(step=0, epoch=epoch + 1, train_rows=rows) for epoch in range(len(recorded))]
    assert ours == pytest.approx(recorded, rel=1e-6)


@pytest.mark.parametrize("case", _PROBES)
def test_replaying_the_recorded_rows_gives_the_recorded_heads_and_losses(case: str) -> None:
    golden, trace = _json(f"{case}.json"), _arrays(f"{case}_trace.npz")
    data, protocol = _arrays(f"{golden['dataset']}.npz"), _protocol(golden)
    features = torch.from_numpy(data["x_train"].astype(np.float32))
    labels = torch.from_numpy(data["y_train"])
    replayed = 0
    for run in range(golden["n_runs"]):
        if f"run{run}_batch_rows" not in trace:
            continue
        heads = [LinearHead(*(torch.from_numpy(trace[f"run{run}_{name}0"]) for name in "wb"))]
        stack = HeadStack(heads, protocol=protocol)
        ends = np.cumsum(trace[f"run{run}_batch_len"].astype(np.int64))
        batches = np.split(trace[f"run{run}_batch_rows"].astype(np.int64), ends[:-1])
        for step, rows in enumerate(batches):
            epoch = step // golden["steps_per_epoch"]
            lr = protocol.lr(step=step, epoch=epoch, train_rows=len(features))
            recorded_loss = trace[f"run{run}_train_loss_first_steps"][step]
            assert stack.head(0).loss(features[rows], labels[rows]) == pytest.approx(recorded_loss, abs=1e-6)
            stack.step(features, labels, torch.from_numpy(rows)[None], lr=lr)
            if f"run{run}_w{step + 1}" in trace:
                head, weight, bias = stack.head(0), trace[f"run{run}_w{step + 1}"], trace[f"run{run}_b{step + 1}"]
                np.testing.assert_allclose(head.weight.numpy(), weight, rtol=0, atol=1e-6)
                np.testing.assert_allclose(head.bias.numpy(), bias, rtol=0, atol=1e-6)
                replayed += 1
    assert replayed >= 1


@pytest.mark.parametrize("case", _PROBES)
def test_recorded_best_heads_have_the_recorded_metrics(case: str) -> None:
    golden, trace = _json(f"{case}.json"), _arrays(f"{case}_trace.npz")
    data = _arrays(f"{golden['dataset']}.npz")
    for run in range(golden["n_runs"]):
        head = LinearHead(*(torch.from_numpy(trace[f"run{run}_{name}_best"].astype(np.float64)) for name in "wb"))
        for split, expected in golden["runs"][run]["from_best_head_float64"].items():
            probabilities = head.probabilities(torch.from_numpy(data[f"x_{split}"].astype(np.float64))).numpy()
            found = _by_name(score(data[f"y_{split}"], probabilities[None]))
            assert {name: found[_NAMES.get(name, name)] for name in expected} == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", _PROBES)
def test_full_protocol_agrees_within_its_spread(case: str) -> None:
    golden = _json(f"{case}.json")
    data = _arrays(f"{golden['dataset']}.npz")
    probe = _ProbeFromRecordedHeads(_protocol(golden), classes=golden["classes"])
    probe.trace = _arrays(f"{case}_trace.npz")
    probe.fit(data["x_train"], data["y_train"], data["x_val"], data["y_val"])
    for split, expected in golden["summary"].items():
        ours = score(data[f"y_{split}"], probe.predict_proba(data[f"x_{split}"])).mean
        recorded = expected["balanced_accuracy"]
        spread = recorded["std_ddof1"]
        twin = f"{case.replace('0.0.2_p002', '0.4.5_p045').removesuffix('_nonesterov')}.json"
        if golden["protocol"] == "p002" and (_FOLDER / twin).is_file():
            spread = max(spread, _json(twin)["summary"][split]["balanced_accuracy"]["std_ddof1"])
        assert ours == pytest.approx(recorded["mean"], abs=max(0.004, 3 * spread * np.sqrt(2 / 5)))
    stops = [run["stop_step"] for run in golden["runs"]]
    assert min(stops) / 2 <= min(run.steps for run in probe.runs_)
    assert max(run.steps for run in probe.runs_) <= 2 * max(stops)


@pytest.mark.parametrize(("path", "split"), _SETS, ids=[f"{path.stem}-{split}" for path, split in _SETS])
def test_unsupervised_metrics(path: Path, split: str) -> None:
    golden = _json("unsupervised_metrics.json").get(path.stem, {})
    if split not in golden:
        pytest.skip("no such split")
    _assert_metrics(_arrays(path.name)[f"x_{split}"], golden[split], path.stem)


@pytest.mark.parametrize(("path", "split"), _SETS, ids=[f"{path.stem}-{split}" for path, split in _SETS])
def test_nearest_neighbours(path: Path, split: str) -> None:
    golden = _json("unsupervised_metrics.json").get(path.stem, {}).get("knn20_cosine", {})
    if split not in golden:
        pytest.skip("no such split")
    data, expected = _arrays(path.name), golden[split]
    train_rows = int(expected["train_rows"].removeprefix("first "))
    query_rows = int(expected["query_rows"].removeprefix("first "))
    _assert_votes(
        (data["x_train"][:train_rows], data["y_train"][:train_rows]),
        (data[f"x_{split}"][:query_rows], data[f"y_{split}"][:query_rows]),
        expected,
    )


def test_hostile_inputs() -> None:
    golden, arrays = _json("adversarial_metrics.json"), _arrays("adversarial.npz")
    for case in set(golden) - {"knn"}:
        _assert_metrics(arrays[case], golden[case]["metrics"], case)


def test_hostile_neighbours() -> None:
    cases, arrays = _json("adversarial_metrics.json")["knn"]["results"], _arrays("adversarial.npz")
    x, y = arrays["knn_x_train"], arrays["knn_y_train"]
    queries = arrays["knn_x_query"], arrays["knn_y_query"]
    ways: dict[str, tuple[tuple[Any, Any], tuple[Any, Any], int]] = {
        "plain": ((x, y), queries, 20),
        "query_scaled_by_7": ((x, y), (queries[0] * 7, queries[1]), 20),
        "train_fp16": ((x.astype(np.float16), y), queries, 20),
        "train_doubled": ((np.concatenate([x, x]), np.concatenate([y, y])), queries, 20),
        "k10_on_plain": ((x, y), queries, 10),
        "self_query_k1": ((x, y), (x, y), 1),
        "k_above_n_train": ((x[:12], y[:12]), queries, 20),
    }
    assert set(cases) <= set(ways), "unrecognised k-NN case"
    for case, expected in cases.items():
        train, query, k = ways[case]
        _assert_votes(train, query, expected, k=k)
    with pytest.raises(MetricError, match="all zero"):
        knn_predict(x, y, arrays["zero_row"], classes=int(y.max()) + 1)


def _assert_metrics(embeddings: NDArray[Any], expected: dict[str, Any], case: str) -> None:
    """Every metric of a case within 1e-9, or undefined with a reason where the golden says so."""

    def first(name: str) -> NDArray[Any]:
        rows = expected[name].get("rows", f"first {len(embeddings)}")
        return embeddings[: int(rows.removeprefix("first "))]

    found, correlation = spectrum(embeddings), odcorr(first("odcorr"))
    fits = {f"alpha_req_{name}": found.alpha_req(weighted=name == "weighted") for name in ("plain", "weighted")}
    values: dict[str, Metric | PowerLaw] = {
        "odcorr": correlation.metric,
        "odcorr_all_rows": odcorr(embeddings).metric,
        "rankme": found.rankme_uncentred(),
        "rankme_centred": found.rankme_centred(),
        "nesum": found.nesum_centred(),
        "uniformity_t2": uniformity(first("uniformity_t2")),
        "numerical_rank_centred": Metric(found.rank),
        "n_rows_zero_variance": Metric(odcorr(embeddings).dropped_rows),
        "alpha_req": fits["alpha_req_plain"],  # undefined in both variants
        **fits,
    }
    for name in set(expected) - {"_shape", "_wall_s"}:
        ours, golden = values[name], expected[name]
        metric = ours.metric if isinstance(ours, PowerLaw) else ours
        if golden["value"] is None:
            assert metric.value is None, (case, name)
            assert metric.undefined, (case, name)
            continue
        # the absolute part is for values that are zero but for rounding
        assert metric.value == pytest.approx(golden["value"], rel=1e-9, abs=1e-14), (case, name)
        if isinstance(ours, PowerLaw):
            assert list(ours.ranks) == golden["ranks"], (case, name)


def _by_name(scores: Scores) -> dict[str, float | None]:
    """The scores of one run."""
    further = {name: values[0] for name, values in scores.metrics.items()}
    return {"balanced_accuracy": scores.balanced_accuracy[0], "accuracy": scores.accuracy[0], **further}


def _assert_votes(train: tuple[Any, Any], query: tuple[Any, Any], expected: dict[str, Any], *, k: int = 20) -> None:
    """Both read-outs within one query row."""
    classes = int(max(train[1].max(), query[1].max())) + 1
    found = knn_predict(train[0], train[1], query[0], classes=classes, k=k)
    for vote, shares in (("majority", found.majority_votes), ("softmax007", found.softmax_votes)):
        scores, one_row = _by_name(score(query[1], shares[None])), 1 / len(query[1])
        assert scores["accuracy"] == pytest.approx(expected[f"{vote}_accuracy"], abs=one_row + 1e-12), vote
        smallest = min(np.bincount(query[1])[np.unique(query[1])])
        tolerance = 1 / (smallest * len(np.unique(query[1]))) + 1e-12
        assert scores["balanced_accuracy"] == pytest.approx(expected[f"{vote}_balanced_accuracy"], abs=tolerance), vote
