from __future__ import annotations

import json
import os
import shutil
import threading
from pathlib import Path

import pytest
from nginx_server import NginxServer
from online_patching import PatchStream
from online_patching.bench import LEAST_PATCHES, REQUESTS_IN_FLIGHT, WARM_UP_PATCHES, bench, bench_lines, measure
from online_patching.cli import main
from online_patching.engine import settings, usable_cores
from online_patching.jobs import compute_foreground, index_cohort
from online_patching.limits import request_limits
from online_patching.stream import CHUNK_PATCHES


def _stream(catalog_url: str) -> PatchStream:
    return PatchStream(catalog_url, size_px=64, mpp=1.0)


def test_a_measurement_counts_what_was_received(catalog_url: str) -> None:
    stream = _stream(catalog_url)
    measured = measure(stream, LEAST_PATCHES + 1)
    # Whole chunks, after a warm-up that does not count.
    assert measured.patches == LEAST_PATCHES + CHUNK_PATCHES
    assert stream.state_dict()["position"] == WARM_UP_PATCHES + measured.patches
    assert measured.pixel_bytes == measured.patches * 64 * 64 * 3
    assert measured.slides == 3
    figures = measured.figures()
    assert figures["patches_per_second"] == pytest.approx(measured.patches / measured.seconds, abs=0.06)
    assert figures["decode_share"] + figures["wait_share"] == pytest.approx(1, abs=0.002)
    counts = measured.counts
    assert 0 < counts.decode_seconds < 1.1 * measured.seconds * settings().decode_threads
    assert figures["tiles_per_patch"] == pytest.approx(counts.tile_uses / counts.patches, abs=0.001)
    assert figures["tiles_saved_by_deduplication"] == pytest.approx(
        1 - counts.tiles_planned / counts.tile_uses, abs=0.001
    )
    assert 1 <= figures["over_read"] <= 1.25
    assert figures["requests_per_patch"] == counts.requests == 0


def test_threads_are_those_asked_for_and_end_with_the_measurement(catalog_url: str) -> None:
    before, limits = settings(), request_limits()
    report = bench(_stream(catalog_url), patches=1, threads=3)
    assert report["decode_threads"] == 3
    assert "growth" not in report
    assert (settings(), request_limits()) == (before, limits)
    assert not [each.name for each in threading.enumerate() if each.name.startswith("online-patching-decode")]


def test_growth_of_local_slides_is_that_with_threads(catalog_url: str) -> None:
    report = bench(_stream(catalog_url), patches=1, growth=True)
    by_threads = [each["decode_threads"] for each in report["growth"]["decode_threads"]]
    assert by_threads == sorted(set(by_threads))
    assert (by_threads[0], by_threads[-1]) == (1, usable_cores())
    assert report["growth"]["requests_in_flight"] == []
    assert len(bench_lines(report)) == 7 + 2 + len(by_threads)


def test_growth_of_remote_slides_is_that_with_requests_too(
    nginx_server: NginxServer, slide_folder: Path, tmp_path: Path
) -> None:
    shutil.copy(slide_folder / "a.svs", nginx_server.served / "measured.svs")
    index_cohort([nginx_server.url("open", "measured.svs")], str(tmp_path), progress=False)
    compute_foreground(str(tmp_path), progress=False)
    limits = request_limits()
    report = bench(_stream(str(tmp_path)), patches=1, growth=True)
    assert report["requests_per_patch"] > 0
    assert report["received_megabytes_per_second"] > 0
    by_requests = report["growth"]["requests_in_flight"]
    assert tuple(each["requests_in_flight"] for each in by_requests) == REQUESTS_IN_FLIGHT
    assert all(each["requests_per_second"] > 0 for each in by_requests)
    assert request_limits() == limits


def test_the_command_prints_json_for_programs_and_lines_for_people(
    catalog_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--size-px", "64", "--mpp", "1.0", "--patches", "800", "--threads", "1", "--decode", "fast"]
    assert main(["bench", "--catalog", catalog_url, *options]) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert report["patches"] == 800
    assert (report["format_version"], report["decode"], report["decode_threads"]) == (1, "fast", 1)
    assert report["health"] == {
        "slides": report["health"]["slides"],
        "corrupt_tiles": 0,
        "missing_tiles": 0,
        "outside_patches": report["health"]["outside_patches"],
        "enlarged_patches": 0,
    }
    assert report["machine"]["cores"] == usable_cores()
    assert report["machine"]["versions"]["online-patching"]
    assert f"{report['patches_per_second']:,.0f} patches/s" in shown.err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--patches", "0"], "patches: got 0, allowed at least 1"),
        (["--patches", "9", "--threads", "0"], "decode_threads: got 0"),
        (["--patches", "9", "--size-px", "0"], "size_px: got 0"),
        (["--patches", "9", "--mpp", "0.01"], "none of 3 slides serves"),
        (
            ["--patches", "9", "--mpp", "1", "--size-px", "20000", "--min-foreground", "0"],
            "raise configure(memory_mb=)",
        ),
    ],
)
def test_mistakes_end_in_one_line(
    options: list[str], reason: str, catalog_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = settings()
    assert main(["bench", "--catalog", catalog_url, *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("online-patching bench: ")
    assert reason in last
    assert settings() == before


def test_corrupt_tiles_are_told(slide_folder: Path, tmp_path: Path) -> None:
    slide = tmp_path / "torn.svs"
    shutil.copy(slide_folder / "a.svs", slide)
    index_cohort([str(slide)], str(tmp_path / "c"), progress=False)
    compute_foreground(str(tmp_path / "c"), progress=False)
    data = bytearray(slide.read_bytes())
    stat = slide.stat()
    # 64 zeros every 4 KB of the first half: some tiles do not decode, others are whole.
    for place in range(4096, len(data) // 2, 4096):
        data[place : place + 64] = bytes(64)
    slide.write_bytes(data)
    os.utime(slide, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    report = bench(PatchStream(str(tmp_path / "c"), size_px=64, mpp=0.5, most_corrupt_share=1), patches=1)
    assert report["health"]["corrupt_tiles"] > 0
    assert report["corrupt_patches"] > 0


def test_a_slide_that_changed_ends_the_command_in_one_line(
    slide_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slide = tmp_path / "changed.svs"
    shutil.copy(slide_folder / "a.svs", slide)
    index_cohort([str(slide)], str(tmp_path / "c"), progress=False)
    compute_foreground(str(tmp_path / "c"), progress=False)
    os.utime(slide)
    assert main(["bench", "--catalog", str(tmp_path / "c"), "--size-px", "64", "--mpp", "1.0"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"online-patching bench: {slide}: the object changed since it was indexed")
    assert shown.err.count("\n") == 1
