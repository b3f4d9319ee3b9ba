"""What does it cost to index remote slides: this package beside tifffile, kerchunk, async-tiff and virtual-tiff?

    python packages/online-patching/benchmarks/indexing.py [--slides FOLDER] [--latency-ms 20] [--output FILE]

A real S3 server holds generated slides with headers of real size, and those of a folder. Every request waits
``--latency-ms`` in a proxy, which counts requests and bytes for all clients alike (a HEAD request counts). Each slide
is indexed by every client in turn, over several rounds; the tables give medians. Offsets and lengths of all tiles are
compared with ours first: a client that finds others, or refuses a slide, is named.

Last, a cohort is indexed in parallel; ours writes its catalog in the same time, the others keep nothing. Store, proxy
and client share the machine: where the store is at its limit, the requests a second show it. On loopback bytes cost
next to nothing, which favours whoever reads far ahead; ``--mb-per-second`` limits every answer as a network does.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import indexing_clients as peers
from indexing_clients import OURS, Client
from indexing_slides import COHORT_SLIDE, FULL, SMALL, header_size, write_slide
from latency_proxy import LatencyProxy
from online_patching import PatchingError
from s3_server import S3Server

FORMAT_VERSION = 1
SUFFIXES = (".svs", ".tif", ".tiff")
LIBRARIES = (
    "online-patching",
    "tifffile",
    "fsspec",
    "s3fs",
    "kerchunk",
    "async-tiff",
    "virtual-tiff",
    "virtualizarr",
    "obstore",
    "numpy",
)
Result = dict[str, Any]


def main() -> None:
    """Measure, and print what was found."""
    arguments = _arguments()
    # Peers warn about what they cannot promise; here only what they find is compared.
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as temporary, S3Server() as server:
        folder = Path(temporary) / "slides"
        folder.mkdir()
        slides = _upload_slides(server, folder, arguments)
        cohort = _upload_cohort(server, Path(temporary) / "cohort", 0 if arguments.caches else arguments.cohort)
        with LatencyProxy(
            server.endpoint_url, latency_ms=arguments.latency_ms, mb_per_second=arguments.mb_per_second
        ) as proxy:
            options = server.storage_options
            options["client_kwargs"]["endpoint_url"] = proxy.endpoint_url
            clients, missing = peers.clients(options)
            if arguments.caches:
                clients = [clients[0], *(peers.tifffile_client(options, cache) for cache in peers.CACHES)]
            results: list[Result] = []
            for slide in slides:
                results += _measure(slide, clients, proxy, arguments.repeats)
                _print_slide(slide, results[-len(clients) :])
            cohort_results = _measure_cohort(cohort, clients, proxy, arguments.repeats)
    for line in missing:
        print(line)
    for generated, title in ((True, "generated slides"), (False, "slides of the folder")):
        names = {slide["slide"] for slide in slides if slide["generated"] is generated}
        if names:
            _print_summary(title, [row for row in results if row["slide"] in names])
    _print_cohort(cohort_results)
    report = {
        "format_version": FORMAT_VERSION,
        "benchmark": "indexing",
        "latency_ms": arguments.latency_ms,
        "mb_per_second": arguments.mb_per_second,
        "tile_bytes": arguments.tile_bytes,
        "repeats": arguments.repeats,
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()},
        "versions": {name: version for name in LIBRARIES if (version := _version(name))},
        "slides": slides,
        "results": results,
        "cohort": cohort_results,
    }
    if arguments.output:
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    wrong = [f"{r['slide']}: {r['client']}" for r in results if r["same_tiles"] is False]
    if wrong:
        sys.exit(f"tiles other than ours were found: {'; '.join(wrong)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = os.environ.get("SLIDES_DIR")
    parser.add_argument(
        "--slides",
        type=Path,
        default=Path(named) if named else None,
        help="folder of SVS and TIFF files to index as well (default: SLIDES_DIR)",
    )
    parser.add_argument("--latency-ms", type=float, default=20.0, help="added to each request")
    parser.add_argument("--mb-per-second", type=float, help="limit of each answer (default: none)")
    parser.add_argument("--tile-bytes", type=int, default=1024, help="mean length of a tile of the generated slides")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cohort", type=int, default=64, help="slides of the cohort; 0 leaves it out")
    parser.add_argument("--small", action="store_true", help="two small generated slides only, for a quick look")
    parser.add_argument("--caches", action="store_true", help="tifffile with a grid of fsspec's caches instead")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    if arguments.slides is not None and not arguments.slides.is_dir():
        parser.error(f"--slides {arguments.slides}: no such folder")
    for name, least in (("repeats", 1), ("cohort", 0), ("tile_bytes", 2)):
        if getattr(arguments, name) < least:
            parser.error(f"--{name.replace('_', '-')}: got {getattr(arguments, name)}, allowed {least} or more")
    return arguments


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _upload_slides(server: S3Server, folder: Path, arguments: argparse.Namespace) -> list[Result]:
    """Put all slides into a bucket; what they are, one record a slide."""
    specs = [replace(spec, tile_bytes=arguments.tile_bytes) for spec in (SMALL if arguments.small else FULL)]
    generated = {write_slide(folder, spec).name for spec in specs}
    if arguments.slides is not None:
        for path in sorted(p for p in arguments.slides.rglob("*") if p.suffix.lower() in SUFFIXES):
            shutil.copyfile(path, folder / path.name)
    url = server.upload(folder, "slides")
    slides = []
    for path in sorted(folder.iterdir()):
        try:
            size = header_size(path)
            facts: Result = {"ifds": size.ifds, "header_bytes": size.header_bytes}
        except Exception as error:
            facts = {"ifds": None, "header_bytes": None, "no_tiff": _one_line(error)}
        about = {"slide": path.name, "url": f"{url}/{path.name}", "generated": path.name in generated}
        slides.append({**about, "bytes": path.stat().st_size, **facts})
    shutil.rmtree(folder)
    return slides


def _upload_cohort(server: S3Server, folder: Path, count: int) -> list[str]:
    if not count:
        return []
    folder.mkdir()
    first = write_slide(folder, COHORT_SLIDE)
    for k in range(count):
        (folder / f"cohort-{k:04}.svs").hardlink_to(first)
    first.unlink()
    url = server.upload(folder, "cohort")
    urls = [f"{url}/{path.name}" for path in sorted(folder.iterdir())]
    shutil.rmtree(folder)
    return urls


def _measure(slide: Result, clients: list[Client], proxy: LatencyProxy, repeats: int) -> list[Result]:
    """One record a client."""
    results: list[Result] = []
    able: list[tuple[Client, Result]] = []
    expected = None
    for client in clients:
        record: Result = {"slide": slide["slide"], "client": client.name, "refused": None, "same_tiles": None}
        results.append(record)
        try:
            # Also the warm-up: clients, sessions and imports are there when the clock runs.
            tiles = client.tiles(client.index(slide["url"]))
        except Exception as error:
            record["refused"] = _one_line(error)
            continue
        if client.name == OURS:
            expected = tiles
            slide["levels"], slide["tiles"] = len(tiles), sum(level.shape[1] for level in tiles)
        elif expected is not None:
            record["same_tiles"] = peers.same_tiles(expected, tiles)
        able.append((client, record))
    samples: dict[str, list[Result]] = {client.name: [] for client, _ in able}
    for _ in range(repeats):
        for client, _ in able:
            samples[client.name].append(_sample(partial(client.index, slide["url"]), proxy))
    for client, record in able:
        record.update(_medians(samples[client.name]))
    return results


def _measure_cohort(urls: list[str], clients: list[Client], proxy: LatencyProxy, repeats: int) -> list[Result]:
    """One record a client that indexes many slides at a time."""
    able = [client for client in clients if client.cohort is not None] if urls else []
    samples: dict[str, list[Result]] = {client.name: [] for client in able}
    for _ in range(repeats):
        for client in able:
            assert client.cohort is not None, "chosen so"
            samples[client.name].append(_sample(partial(client.cohort, urls), proxy))
    results = []
    for name, taken in samples.items():
        medians = _medians(taken)
        per_second = len(urls) / medians["seconds"]
        results.append({"client": name, "slides": len(urls), "slides_per_second": per_second, **medians})
    return results


def _sample(work: Callable[[], object], proxy: LatencyProxy) -> Result:
    """One run: this process's CPU time counts the client, since store and proxy are processes of their own."""
    proxy.take_counts()
    started, cpu_started = time.perf_counter(), time.process_time()
    work()
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    counts = proxy.take_counts()
    return {"requests": counts.requests, "bytes": counts.bytes_sent, "seconds": seconds, "cpu_seconds": cpu_seconds}


def _medians(samples: Iterable[Result]) -> Result:
    rows = list(samples)
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] if isinstance(error, PatchingError) else f"{type(error).__name__}: {text}"[:200]


def _print_slide(slide: Result, results: list[Result]) -> None:
    headers = f"{slide['ifds']} IFDs, {slide['header_bytes']:,} bytes of headers" if slide["ifds"] else "no TIFF"
    print(f"\n{slide['slide']}: {slide['bytes'] / 1e6:.1f} MB, {headers}, {slide.get('tiles', 0):,} tiles")
    for row in results:
        if row["refused"]:
            print(f"  {row['client']:28} refused: {row['refused']}")
        else:
            note = "" if row["same_tiles"] is not False else "  OTHER TILES THAN OURS"
            print(f"  {row['client']:28} {_costs(row)}{note}", flush=True)


def _print_summary(title: str, results: list[Result]) -> None:
    """Medians over the slides that a client and this package both index, and their ratio slide by slide."""
    done = {(row["client"], row["slide"]): row for row in results if not row["refused"]}
    ours = {slide: row for (client, slide), row in done.items() if client == OURS}
    print(f"\n{title}: medians over those that both index; x = median of its seconds over ours, slide by slide")
    for name in dict.fromkeys(row["client"] for row in results):
        rows = [row for (client, slide), row in done.items() if client == name and slide in ours]
        if not rows:
            print(f"  {name:28} none of {len(ours)} slides")
            continue
        middle = _medians([{key: row[key] for key in ("requests", "bytes", "seconds", "cpu_seconds")} for row in rows])
        ratio = statistics.median(row["seconds"] / ours[row["slide"]]["seconds"] for row in rows)
        print(f"  {name:28} {len(rows):3} of {len(ours)} slides {_costs(middle)}   x{ratio:.1f}")


def _costs(row: Result) -> str:
    return (
        f"{row['requests']:5.0f} requests {row['bytes'] / 1024:9,.0f} KiB {row['seconds'] * 1000:6.0f} ms"
        f" {row['cpu_seconds'] * 1000:6.0f} ms CPU"
    )


def _print_cohort(results: list[Result]) -> None:
    if results:
        print(f"\na cohort of {results[0]['slides']} slides, in parallel")
    for row in results:
        count = row["slides"]
        print(
            f"  {row['client']:28} {row['slides_per_second']:6.1f} slides/s; a slide: {row['requests'] / count:5.1f}"
            f" requests {row['bytes'] / count / 1024:7,.0f} KiB {row['cpu_seconds'] / count * 1000:5.1f} ms CPU;"
            f" {row['requests'] / row['seconds']:4.0f} requests/s"
        )


if __name__ == "__main__":
    main()
