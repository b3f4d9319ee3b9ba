"""Random patches from slides that are far away: how fast, at what cost, beside local files and other clients?

    python packages/online-patching/benchmarks/remote.py [--rounds 5] [--patches 4096] [--output FOLDER] [--quick]

A web server (nginx) on loopback holds the slides, behind a proxy that lets every request wait 0, 20 or 100 ms; the
catalog lies on the local disk. Server and proxy run on the first CPU, this process on another one, and so do the local
files it is compared with: the same patches through ``PatchStream``, from a catalog that is opened anew each round.

Beside throughput it tells: bytes fetched over bytes of the tiles needed and requests a patch (of batches of 128
patches, whose needs are known exactly); CPU time a request of this package's fetching and of bare obstore making the
same requests; tiffslide over fsspec on the same server; and how throughput grows with the patches in flight.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from cohort_maker import MPP, Cohort, cohort_of, index
from delaying_proxy import DelayingProxy
from line_plot import write_line_plot
from measuring import Json, in_turns, parsed, parser_of, ratio, summary, target, wait_until_idle, write_report
from nginx_server import NginxServer
from online_patching import Catalog, PatchRequest, PatchStream
from online_patching.sampler import PatchSampler
from reading_readers import BATCH_PATCHES, MIN_FOREGROUND, SIZE_PX, Window
from remote_fetching import BareObstore, OurFetching, cpu_seconds, read_with_tiffslide, tile_requests
from tile_layout import needs_of

LATENCIES_MS = (0, 20, 100)
IN_FLIGHT = (1, 2, 4, 8, 16, 32, 64, 128, 256)
LOCAL = "local files"


@dataclass(frozen=True, slots=True)
class Place:
    """The same slides on disk and behind the proxy.

    Attributes:
        name: For the report.
        local: Catalog of the local files.
        remote: Catalog of the same slides on the server.
    """

    name: str
    local: str
    remote: str

    def urls(self) -> dict[str, str]:
        """URL in the store of each local path."""
        there = {row.id: row.url for row in Catalog.open(self.remote)}
        return {row.url: there[row.id] for row in Catalog.open(self.local)}

    def windows(self, patches: int, seed: int) -> list[Window]:
        """What a stream of this seed reads, as squares of local files."""
        catalog = Catalog.open(self.local)
        urls = {row.id: row.url for row in catalog}
        sampler = PatchSampler(catalog, size_px=SIZE_PX, mpp=[MPP], min_foreground=MIN_FOREGROUND, seed=seed)
        samples = [sampler.draw(number) for number in range(patches)]
        return [Window(urls[s.slide_id], s.position.x_level0_px, s.position.y_level0_px, SIZE_PX) for s in samples]


def main() -> None:
    """Measure, print, and write JSON and a plot."""
    parser = parser_of(__doc__)
    parser.add_argument("--patches", type=int, default=4096, help="of a round")
    parser.add_argument("--requests", type=int, default=2048, help="whose CPU time is measured")
    arguments = parsed(parser)
    if arguments.patches < 1 or arguments.requests < 1:
        parser.error("--patches and --requests: allowed 1 or more")
    if arguments.quick:
        arguments.patches, arguments.requests = 48, 32
    cohort = cohort_of(parser, arguments, "jpeg")
    allowed = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = Path(os.path.commonpath([cohort.files[0], *cohort.entries.values()]))
        # A child inherits the CPUs that this process has when it starts.
        os.sched_setaffinity(0, allowed[:1])
        server = stack.enter_context(NginxServer(served))
        proxy = stack.enter_context(DelayingProxy(server.base_url, latency_ms=0))
        os.sched_setaffinity(0, allowed[-1:])
        places = _places(cohort, f"{proxy.endpoint_url}/open", served, temporary)[-1 if arguments.quick else 0 :]
        results: Json = {
            "cpus": {"server": allowed[:1], "client": allowed[-1:]},
            "throughput": [_throughput(place, proxy, arguments) for place in places],
            "over_read": [_over_read(place, proxy, min(arguments.patches, 1024)) for place in places],
            "cpu_per_request": _cpu_per_request(places[-1], proxy, arguments),
            "tiffslide": [_tiffslide(place, proxy, arguments) for place in places],
            "in_flight": [_growth(place, proxy, quick=arguments.quick) for place in places],
        }
    os.sched_setaffinity(0, allowed)
    results["targets"] = _targets(results)
    path = write_report(arguments, "remote", results)
    write_line_plot(
        arguments.output / "remote_in_flight.svg",
        title="Slides 20 ms away, one core",
        x_label="patches in flight",
        y_label="patches a second",
        lines={each["place"]: [(n, rate) for n, rate in each["points"]] for each in results["in_flight"]},
        log2_x=True,
    )
    print(f"written: {path}")


def _places(cohort: Cohort, base_url: str, served: Path, temporary: Path) -> list[Place]:
    def url(path: Path) -> str:
        return f"{base_url}/{path.relative_to(served).as_posix()}"

    large = index(temporary / "large", [url(cohort.files[0])])
    entries = index(temporary / "entries", [url(path) for path in cohort.entries.values()])
    return [
        Place("one slide", str(cohort.large_catalog), str(large)),
        Place(f"{len(cohort.entries)} entries", str(cohort.catalog), str(entries)),
    ]


def _stream_seconds(catalog: str, patches: int, seed: int) -> float:
    started = time.perf_counter()
    stream = PatchStream(Catalog.open(catalog), size_px=SIZE_PX, mpp=MPP, min_foreground=MIN_FOREGROUND, seed=seed)
    found = iter(stream)
    for _ in itertools.islice(found, patches):
        pass
    seconds = time.perf_counter() - started
    found.close()  # type: ignore[attr-defined]
    wait_until_idle()
    return seconds


def _throughput(place: Place, proxy: DelayingProxy, arguments: argparse.Namespace) -> Json:
    """Patches a second from local files and at every latency."""
    patches = arguments.patches

    def remote(latency_ms: int, seed: int) -> float:
        proxy.set_latency(latency_ms)
        return _stream_seconds(place.remote, patches, seed)

    work = {LOCAL: lambda seed: _stream_seconds(place.local, patches, seed)}
    work |= {f"{ms} ms": lambda seed, ms=ms: remote(ms, seed) for ms in LATENCIES_MS}
    # Connections are opened, and libraries imported, once in the life of a process.
    for run in work.values():
        run(arguments.rounds)
    seconds = in_turns(arguments.rounds, work)
    near = seconds["0 ms"]
    result: Json = {
        "place": place.name,
        "patches": patches,
        "patches_per_second": {name: summary([patches / each for each in taken]) for name, taken in seconds.items()},
        "share_of_0_ms": {name: ratio(near, taken) for name, taken in seconds.items() if name != LOCAL},
        "0_ms_share_of_local": ratio(seconds[LOCAL], near),
    }
    print(f"\n{place.name}, {patches} patches a round")
    for name, speed in result["patches_per_second"].items():
        print(f"  {name:12} {speed['median']:8.1f} patches/s ({speed['least']:.1f} to {speed['greatest']:.1f})")
    return result


def _over_read(place: Place, proxy: DelayingProxy, patches: int) -> Json:
    """What is fetched for batches of patches whose tiles are known."""
    proxy.set_latency(0)
    catalog = Catalog.open(place.remote)
    ids = {row.url: row.id for row in Catalog.open(place.local)}
    windows = place.windows(patches, seed=1000)
    for slide_id in {ids[window.path] for window in windows}:
        catalog.handle(slide_id)
    proxy.take_counts()
    for k in range(0, patches, BATCH_PATCHES):
        catalog.read_patches(
            [PatchRequest(ids[path], x, y, SIZE_PX, MPP) for path, x, y, _ in windows[k : k + BATCH_PATCHES]]
        )
    counts = proxy.take_counts()
    needs = needs_of(windows, batch=BATCH_PATCHES)
    result = {
        "place": place.name,
        "patches": patches,
        "batch_patches": BATCH_PATCHES,
        "requests_per_patch": counts.requests / patches,
        "tiles_per_patch": needs.tiles / patches,
        "tiles_saved_by_sharing": needs.saved_share,
        # Heads of answers are counted as fetched: about 250 bytes a request.
        "bytes_fetched_over_needed": counts.bytes_sent / needs.distinct_bytes,
    }
    print(
        f"  {place.name}: {result['bytes_fetched_over_needed']:.3f} bytes fetched per byte needed,"
        f" {result['requests_per_patch']:.2f} requests a patch of {result['tiles_per_patch']:.2f} tiles,"
        f" {needs.saved_share:.1%} of the tiles saved by sharing"
    )
    return result


def _cpu_per_request(place: Place, proxy: DelayingProxy, arguments: argparse.Namespace) -> list[Json]:
    """CPU time of fetching, without decoding, beside bare obstore."""
    requests = tile_requests(place.windows(arguments.requests, seed=2000), place.urls())
    clients: dict[str, BareObstore | OurFetching] = {
        "online-patching": OurFetching(requests),
        "bare obstore": BareObstore(f"{proxy.endpoint_url}/open", requests),
    }
    results = []
    for latency_ms in LATENCIES_MS[:2]:
        proxy.set_latency(latency_ms)
        made = {}
        for name, client in clients.items():
            proxy.take_counts()
            client.run()
            made[name] = proxy.take_counts().requests
        if set(made.values()) != {len(requests)}:
            raise RuntimeError(f"{len(requests)} requests were to be made by each client, got {made}")
        seconds = in_turns(
            arguments.rounds,
            {name: lambda _, client=client: cpu_seconds(client) for name, client in clients.items()},
        )
        result: Json = {
            "latency_ms": latency_ms,
            "requests": len(requests),
            "microseconds": {
                name: summary([each / len(requests) * 1e6 for each in taken]) for name, taken in seconds.items()
            },
            "times_bare_obstore": ratio(seconds["online-patching"], seconds["bare obstore"]),
        }
        results.append(result)
        costs = ", ".join(f"{name} {cost['median']:.0f} us" for name, cost in result["microseconds"].items())
        print(f"  CPU time a request at {latency_ms} ms: {costs} (x{result['times_bare_obstore']:.2f})")
    return results


def _tiffslide(place: Place, proxy: DelayingProxy, arguments: argparse.Namespace) -> Json:
    """Patches a second at 20 ms, beside tiffslide on the same server."""
    try:
        import tiffslide  # noqa: F401
    except ImportError:
        return {"place": place.name, "left_out": "tiffslide is not installed"}
    proxy.set_latency(20)
    few, urls = (2 if arguments.quick else 32), place.urls()
    seconds = in_turns(
        arguments.rounds,
        {
            "online-patching": lambda seed: _stream_seconds(place.remote, arguments.patches, seed) / arguments.patches,
            "tiffslide": lambda seed: read_with_tiffslide(place.windows(few, seed), urls) / few,
        },
    )
    times = ratio(seconds["tiffslide"], seconds["online-patching"])
    rates = {name: summary([1 / each for each in taken]) for name, taken in seconds.items()}
    print(
        f"  {place.name} at 20 ms: tiffslide over fsspec {rates['tiffslide']['median']:.1f} patches/s,"
        f" online-patching {rates['online-patching']['median']:.1f} (x{times:.0f})"
    )
    return {"place": place.name, "patches_per_second": rates, "times_as_fast": times}


def _growth(place: Place, proxy: DelayingProxy, *, quick: bool) -> Json:
    """Patches a second at 20 ms with so many patches in flight, each asked for alone."""
    proxy.set_latency(20)
    points = []
    for in_flight in IN_FLIGHT[:3] if quick else IN_FLIGHT:
        patches = min(max(64, 16 * in_flight), 1024) if not quick else 8
        windows = place.windows(patches, seed=3000)
        rates = [asyncio.run(_rate(place, windows, in_flight)) for _ in range(1 if quick else 3)]
        points.append((in_flight, statistics.median(rates)))
    print(f"  {place.name} at 20 ms: " + ", ".join(f"{n} in flight {rate:.0f}/s" for n, rate in points))
    return {"place": place.name, "points": points}


async def _rate(place: Place, windows: Sequence[Window], in_flight: int) -> float:
    catalog = Catalog.open(place.remote)
    ids = {row.url: row.id for row in Catalog.open(place.local)}
    remaining = iter(windows)

    async def work() -> None:
        for path, x, y, _ in remaining:
            await catalog.aread_patches([PatchRequest(ids[path], x, y, SIZE_PX, MPP)])

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(in_flight)))
    return len(windows) / (time.perf_counter() - started)


def _targets(results: Json) -> list[Json]:
    found = []
    for each in results["throughput"]:
        place, shares = each["place"], each["share_of_0_ms"]
        found += [
            target(f"{place}: throughput at 20 ms over 0 ms", shares["20 ms"], at_least=0.95),
            target(f"{place}: throughput at 100 ms over 0 ms", shares["100 ms"], at_least=0.85),
            target(f"{place}: throughput at 0 ms over local files", each["0_ms_share_of_local"], at_least=0.6),
        ]
    for each in results["over_read"]:
        found.append(target(f"{each['place']}: over-read", each["bytes_fetched_over_needed"], at_most=1.3))
    for each in results["cpu_per_request"]:
        name = f"CPU time a request over bare obstore's, {each['latency_ms']} ms"
        found.append(target(name, each["times_bare_obstore"], at_most=1.5))
    for each in results["tiffslide"]:
        if "times_as_fast" in each:
            found.append(target(f"{each['place']}: times tiffslide at 20 ms", each["times_as_fast"], at_least=20))
    return found


if __name__ == "__main__":
    main()
