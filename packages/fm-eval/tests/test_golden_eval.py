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
    MetricError,
    ProbeProtocol,
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    get_protocol,
    knn_predict,
    odcorr,
    rankme,
)
from fm_eval.head import Head
from numpy.typing import NDArray

pytestmark = pytest.mark.golden_eval

Arrays = dict[str, NDArray[Any]]

_REPOSITORY = Path(__file__).resolve().parents[3]
_FOLDER = Path(os.environ.get("GOLDEN_DIR") or _REPOSITORY.parent / "shared" / "golden") / "eval"
_METRIC_FILES = {"unsupervised_metrics.json", "adversarial_metrics.json"}
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


def _scores(labels: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> dict[str, float | None]:
    matrix = confusion_matrix(labels, predicted, classes=classes)
    return {"balanced_accuracy": balanced_accuracy(matrix).value, "accuracy": accuracy(matrix).value}


def _protocol(golden: dict[str, Any]) -> ProbeProtocol:
    """The preset of a release with what this case sets otherwise."""
    preset = get_protocol(_PRESETS[golden["protocol"]])
    steps = preset.steps_per_epoch(golden["n_train"])
    return dataclasses.replace(
        preset,
        runs=golden["n_runs"],
        nesterov=bool(golden["nesterov"]),
        weight_decay=golden["weight_decay"],
        max_steps=golden["max_steps"],
        patience_fraction=golden["patience_epochs"] * steps / golden["max_steps"],
    )


class _ProbeFromRecordedHeads(LinearProbe):
    """Starts where the release started: what an initial head gives by chance is not what is compared."""

    trace: Arrays

    def _initial_heads(self, features: int) -> list[Head]:
        starts = [(self.trace[f"run{run}_w0"], self.trace[f"run{run}_b0"]) for run in self.run_ids]
        heads = [Head(torch.from_numpy(w), torch.from_numpy(b), protocol=self.protocol) for w, b in starts]
        assert heads[0].weight_CK.shape[1] == features
        return heads


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
        head = Head(
            torch.from_numpy(trace[f"run{run}_w0"]),
            torch.from_numpy(trace[f"run{run}_b0"]),
            protocol=protocol,
        )
        ends = np.cumsum(trace[f"run{run}_batch_len"].astype(np.int64))
        batches = np.split(trace[f"run{run}_batch_rows"].astype(np.int64), ends[:-1])
        for step, rows in enumerate(batches):
            epoch = step // golden["steps_per_epoch"]
            lr = protocol.lr(step=step, epoch=epoch, train_rows=len(features))
            batch, batch_labels = features[rows], labels[rows]
            recorded_loss = trace[f"run{run}_train_loss_first_steps"][step]
            assert head.loss(batch, batch_labels) == pytest.approx(recorded_loss, abs=1e-6)
            head.step(batch, batch_labels, lr=lr)
            if f"run{run}_w{step + 1}" in trace:
                weight, bias = trace[f"run{run}_w{step + 1}"], trace[f"run{run}_b{step + 1}"]
                np.testing.assert_allclose(head.weight_CK.numpy(), weight, rtol=0, atol=1e-6)
                np.testing.assert_allclose(head.bias_C.numpy(), bias, rtol=0, atol=1e-6)
                replayed += 1
    assert replayed >= 1


@pytest.mark.parametrize("case", _PROBES)
def test_recorded_best_heads_have_the_recorded_metrics(case: str) -> None:
    golden, trace = _json(f"{case}.json"), _arrays(f"{case}_trace.npz")
    data = _arrays(f"{golden['dataset']}.npz")
    for run in range(golden["n_runs"]):
        weight, bias = trace[f"run{run}_w_best"], trace[f"run{run}_b_best"]
        for split, expected in golden["runs"][run]["from_best_head_float64"].items():
            logits = data[f"x_{split}"].astype(np.float64) @ weight.T.astype(np.float64) + bias
            predicted = (logits[:, 0] > 0).astype(np.int64) if len(bias) == 1 else logits.argmax(axis=1)
            found = _scores(data[f"y_{split}"], predicted, golden["classes"])
            assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("case", _PROBES)
def test_full_protocol_agrees_within_its_spread(case: str) -> None:
    golden = _json(f"{case}.json")
    if golden["batch"] > 256:
        pytest.skip("batch of 4096: minutes on two cores; its steps are replayed above")
    data = _arrays(f"{golden['dataset']}.npz")
    train, val = data["x_train"].astype(np.float32), data["x_val"].astype(np.float32)
    probe = _ProbeFromRecordedHeads(_protocol(golden), classes=golden["classes"])
    probe.trace = _arrays(f"{case}_trace.npz")
    probe.fit(train, data["y_train"], val, data["y_val"])
    for split, expected in golden["summary"].items():
        predicted = probe.predict(data[f"x_{split}"].astype(np.float32))
        ours = np.mean([_scores(data[f"y_{split}"], run, golden["classes"])["balanced_accuracy"] for run in predicted])
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
    embeddings, expected = _arrays(path.name)[f"x_{split}"], golden[split]
    rows = int(expected["odcorr"]["rows"].removeprefix("first "))
    assert odcorr(embeddings[:rows]).metric.value == pytest.approx(expected["odcorr"]["value"], rel=1e-9)
    everything = odcorr(embeddings)
    if "odcorr_all_rows" in expected:
        assert everything.metric.value == pytest.approx(expected["odcorr_all_rows"]["value"], rel=1e-9)
    assert everything.dropped_rows == expected["n_rows_zero_variance"]["value"]
    assert rankme(embeddings).value == pytest.approx(expected["rankme"]["value"], rel=1e-9)


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
    for case, expected in golden.items():
        if case == "knn":
            continue
        metrics, embeddings = expected["metrics"], arrays[case]
        rows = int(metrics["odcorr"].get("rows", f"first {len(embeddings)}").removeprefix("first "))
        found = odcorr(embeddings[:rows])
        assert found.metric.value == pytest.approx(metrics["odcorr"]["value"], rel=1e-9), case
        assert found.dropped_rows == metrics["n_rows_zero_variance"]["value"], case
        assert rankme(embeddings).value == pytest.approx(metrics["rankme"]["value"], rel=1e-9), case


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


def _assert_votes(train: tuple[Any, Any], query: tuple[Any, Any], expected: dict[str, Any], *, k: int = 20) -> None:
    """Both read-outs within one query row."""
    classes = int(max(train[1].max(), query[1].max())) + 1
    found = knn_predict(train[0], train[1], query[0], classes=classes, k=k)
    for vote, predicted in (("majority", found.majority), ("softmax007", found.softmax)):
        scores, one_row = _scores(query[1], predicted, classes), 1 / len(query[1])
        assert scores["accuracy"] == pytest.approx(expected[f"{vote}_accuracy"], abs=one_row + 1e-12), vote
        smallest = min(np.bincount(query[1])[np.unique(query[1])])
        tolerance = 1 / (smallest * len(np.unique(query[1]))) + 1e-12
        assert scores["balanced_accuracy"] == pytest.approx(expected[f"{vote}_balanced_accuracy"], abs=tolerance), vote
