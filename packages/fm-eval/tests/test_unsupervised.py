from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fm_eval import (
    MetricError,
    ODCorrStream,
    SpectrumStream,
    UnsupervisedStream,
    cka,
    odcorr,
    rankme,
    spectrum,
    uniformity,
    unsupervised_metrics,
)
from fm_eval.alignment import CKAStream
from fm_eval.metrics import AnyFloatArray, FloatArray


def _embeddings(rows: int = 150, dim: int = 40, *, seed: int = 0) -> FloatArray:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, dim)) * np.geomspace(1, 1e-5, dim) + np.linspace(0, 2, dim)


def _in_batches(stream: ODCorrStream | SpectrumStream | UnsupervisedStream, embeddings: FloatArray) -> None:
    for batch in np.split(embeddings, [1, 7, 8, 60, 149, 3000]):
        if len(batch):
            stream.update(batch)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fm_eval.rows._LEAST_CHUNK_ROWS", 37)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [2, 30, 150, 700])
def test_odcorr_is_equation_1_over_all_pairs(rows: int) -> None:
    embeddings = _embeddings(rows)
    pairs = np.corrcoef(embeddings)[~np.eye(rows, dtype=bool)]
    found = odcorr(embeddings)
    assert found.metric.value == pytest.approx(np.sqrt((pairs**2).mean()), rel=1e-9)
    assert found.noise_floor == pytest.approx(1 / np.sqrt(39))
    stream = ODCorrStream()
    _in_batches(stream, embeddings)
    streamed = stream.result()
    assert streamed.metric.value == pytest.approx(found.metric.value, rel=1e-12)
    assert (streamed.rows, streamed.dropped_rows) == (rows, 0)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("rows", [5, 40, 150, 700])
def test_the_streamed_spectrum_is_that_of_the_whole_matrix(rows: int) -> None:
    embeddings = _embeddings(rows)
    stream = SpectrumStream()
    _in_batches(stream, embeddings)
    for found in (spectrum(embeddings), stream.result()):
        whole = np.linalg.svd(embeddings, compute_uv=False)
        centred = np.linalg.svd(embeddings - embeddings.mean(axis=0), compute_uv=False)
        np.testing.assert_allclose(found.uncentred, whole, rtol=1e-9, atol=1e-13 * whole[0])
        np.testing.assert_allclose(found.centred, centred, rtol=1e-9, atol=1e-13 * whole[0])
        assert found.rank == min(rows - 1, 40)
        p = whole / whole.sum() + 1e-7
        assert found.rankme_uncentred().value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)
        assert found.nesum_centred().value == pytest.approx((centred**2).sum() / centred[0] ** 2, rel=1e-10)


def test_alpha_req_is_the_slope_of_a_power_law_and_says_how_good_the_fit_is() -> None:
    rank = np.arange(1, 129)
    columns = np.linalg.qr(np.random.default_rng(0).normal(size=(400, 129)) + np.eye(400, 129))[0]
    columns -= columns.mean(axis=0)
    columns = np.linalg.qr(columns)[0][:, :128]
    exact = columns * rank**-0.65
    for weighted in (False, True):
        fit = spectrum(exact).alpha_req(weighted=weighted)
        assert fit.metric.value == pytest.approx(1.3, rel=1e-9)
        assert (fit.ranks, fit.r_squared) == ((11, 100), pytest.approx(1.0))
    bent = spectrum(columns * np.where(rank < 50, 1.0, 0.01)).alpha_req(weighted=False)
    assert bent.r_squared is not None
    assert bent.r_squared < 0.9


def test_uniformity_is_its_definition_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings = _embeddings(100)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    squares = ((unit[:, None] - unit[None]) ** 2).sum(axis=2)[np.triu_indices(100, 1)]
    expected = np.log(np.exp(-2 * squares).mean())
    assert uniformity(embeddings).value == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("fm_eval.hypersphere._BLOCK_ROWS", 33)
    assert uniformity(embeddings).value == pytest.approx(expected, rel=1e-12)


def _kernel_cka(one: FloatArray, other: FloatArray) -> tuple[float, float]:
    """Both estimators from N x N kernels, as in Kornblith et al. (2019) and Song et al. (2012)."""
    rows = len(one)
    kernels = [x @ x.T for x in (one, other)]
    centring = np.eye(rows) - 1 / rows
    centred = [centring @ kernel @ centring for kernel in kernels]
    plain = (centred[0] * centred[1]).sum() / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    hollow = [kernel - np.diag(np.diag(kernel)) for kernel in kernels]

    def hsic(k: FloatArray, m: FloatArray) -> float:
        ones = np.ones(rows)
        value = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((rows - 1) * (rows - 2))
        return float(value - 2 * (ones @ k @ m @ ones) / (rows - 2))

    own, cross, others = hsic(hollow[0], hollow[0]), hsic(*hollow), hsic(hollow[1], hollow[1])
    return float(plain), float(cross / np.sqrt(own * others))


@pytest.mark.parametrize("rows", [6, 90])
def test_cka_is_that_of_the_kernels(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    one = random.normal(size=(rows, 20)) + 3
    other = one[:, :12] @ random.normal(size=(12, 12)) + random.normal(size=(rows, 12)) - 50
    expected = _kernel_cka(one, other)
    for chunk in (4096, 7):
        monkeypatch.setattr("fm_eval.alignment.CHUNK_ROWS", chunk)
        found = cka(one, other)
        assert (found.linear.value, found.debiased.value) == pytest.approx(expected, rel=1e-9)
    stream = CKAStream().update(one[:4], other[:4]).update(one[4:], other[4:])
    assert stream.result().debiased.value == pytest.approx(expected[1], rel=1e-9)


def test_cka_does_not_see_rotations_and_scale_and_debiasing_tells_the_unrelated() -> None:
    random = np.random.default_rng(2)
    one, other = random.normal(size=(60, 100)), random.normal(size=(60, 100))
    rotated = 1e-3 * one @ np.linalg.qr(random.normal(size=(100, 100)))[0] + 7
    assert cka(one, rotated).linear.value == pytest.approx(1)
    assert cka(one, rotated).debiased.value == pytest.approx(1)
    unrelated = cka(one, other)
    assert unrelated.linear.value is not None
    assert unrelated.linear.value > 0.5
    assert unrelated.debiased.value == pytest.approx(0, abs=0.1)
    assert "no variance" in str(cka(one, np.full((60, 3), 0.1)).linear.undefined)
    with pytest.raises(MetricError, match="60 and 59 rows"):
        cka(one, other[:-1])


def test_a_stream_of_patches_gives_the_metrics_of_the_array() -> None:
    embeddings = _embeddings(700)
    stream = UnsupervisedStream(uniformity_rows=100)
    stream.update(embeddings[:40])
    early = {metric.name: metric for metric in stream.result()}
    assert early["odcorr"].value == pytest.approx(odcorr(embeddings[:40]).metric.value)
    _in_batches(stream, embeddings[40:])
    late = {metric.name: metric for metric in stream.result()}
    whole = {metric.name: metric for metric in unsupervised_metrics(embeddings)}
    assert set(late) == {
        "odcorr", "rankme_uncentred", "rankme_centred", "nesum_centred", "uniformity_t2", "alpha_req_plain",
        "alpha_req_weighted",
    }  # fmt: skip
    for name in set(late) - {"uniformity_t2"}:
        assert late[name].value == pytest.approx(whole[name].value, rel=1e-9), name
    assert late["uniformity_t2"].value == pytest.approx(uniformity(embeddings[:100]).value)
    assert late["uniformity_t2"].details["rows"] == 100
    assert whole["uniformity_t2"].value == pytest.approx(uniformity(embeddings).value)
    assert late["rankme_centred"].details == {"ceiling": 40.0}


def test_arrays_on_disk_and_half_precision_are_read_as_they_are(tmp_path: Path) -> None:
    half = _embeddings(300).astype(np.float16)
    np.save(tmp_path / "e.npy", half)
    on_disk = np.load(tmp_path / "e.npy", mmap_mode="r")
    for metric in (lambda e: odcorr(e).metric, rankme, uniformity):
        assert metric(on_disk).value == pytest.approx(metric(half.astype(np.float64)).value, rel=1e-12)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    rows, dim = 100_000, 64
    on_disk = np.lib.format.open_memmap(tmp_path / "e.npy", mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, 10_000):
        on_disk[start : start + 10_000] = np.random.default_rng(start).normal(size=(10_000, dim))
    tracemalloc.start()
    odcorr(on_disk)
    spectrum(on_disk)
    cka(on_disk, on_disk)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < on_disk.nbytes / 2


def test_what_is_not_defined_says_why() -> None:
    found = odcorr(np.ones((5, 3)))
    assert (found.metric.value, found.dropped_rows) == (None, 5)
    assert "at least 2" in str(found.metric.undefined)
    assert odcorr(np.random.default_rng(0).normal(size=(4, 1))).noise_floor is None
    assert rankme(np.zeros((5, 3))).undefined == "all embeddings are zero"
    assert "all rows are equal" in str(spectrum(np.full((5, 3), 1.1)).nesum_centred().undefined)
    assert "1 rows" in str(uniformity(np.ones((1, 3))).undefined)
    undefined = {metric.name: metric for metric in unsupervised_metrics(np.full((5, 3), 1.1))}
    assert undefined["alpha_req_plain"].value is None
    assert undefined["rankme_centred"].undefined


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("metric", [odcorr, rankme, uniformity, unsupervised_metrics])
def test_values_that_are_not_finite_are_refused_by_row(metric: Callable[[AnyFloatArray], object], bad: float) -> None:
    embeddings = np.ones((6, 4))
    embeddings[4, 2] = bad
    with pytest.raises(MetricError, match="row 4 holds NaN or infinity"):
        metric(embeddings)
    with pytest.raises(MetricError, match="got shape"):
        metric(embeddings[:0])


def test_a_stream_refuses_another_width() -> None:
    with pytest.raises(MetricError, match="got 4 features after 3"):
        ODCorrStream().update(np.ones((2, 3))).update(np.ones((2, 4)))
