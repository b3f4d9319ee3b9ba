"""How many patches a second does a stream give on this machine, and what do its threads spend their time on?

1. The stream is read until its chunks are all under way (``WARM_UP_PATCHES``), then ``measure`` reads so many patches
   more and takes the counters of the process (``read_counts``) before and after;
2. ``bench`` adds what the figures depend on, and on request measures again with other numbers of decoding threads and
   of requests under way;
3. ``bench_lines`` says it in a few lines.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from online_patching.engine import close, configure, settings, usable_cores
from online_patching.health import SlideHealth
from online_patching.limits import request_limits
from online_patching.read_counts import ReadCounts, read_counts
from online_patching.retry import fetch_counts
from online_patching.stream import CHUNK_PATCHES, CHUNKS_AHEAD, PatchStream

FORMAT_VERSION = 1
# What a stream begins at once; from then on as much is begun as is handed over.
WARM_UP_PATCHES = CHUNK_PATCHES * CHUNKS_AHEAD
# With fewer, what was read ahead during the warm-up would count as speed.
LEAST_PATCHES = 2 * WARM_UP_PATCHES
REQUESTS_IN_FLIGHT = (8, 16, 32, 64, 128, 256)
LIBRARIES = (
    "online-patching",
    "imagecodecs",
    "numpy",
    "nvidia-nvimgcodec-cu13",
    "obstore",
    "opencv-python-headless",
    "simplejpeg",
    "uvloop",
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Measurement:
    """What the process did while so many patches were received.

    Attributes:
        patches: Patches received.
        slides: Slides that they come from.
        pixel_bytes: Bytes of their pixels.
        seconds: Time on the clock.
        cpu_seconds: Processor time of the whole process.
        decode_threads: Threads that decoded.
        counts: Work that was done meanwhile.
        queued_s: Time that ranges waited for a place among the requests under way, summed over all.
        backoff_s: Time that ranges waited between attempts, summed over all.
    """

    patches: int
    slides: int
    pixel_bytes: int
    seconds: float
    cpu_seconds: float
    decode_threads: int
    counts: ReadCounts
    queued_s: float
    backoff_s: float

    def figures(self) -> Json:
        """What the README explains, as JSON values; None where there is nothing to divide by.

        The share of decoding is processor time, so that of waiting holds the waiting for a core. What zarr decodes
        itself (OME-Zarr) is not among it.
        """
        counts, seconds = self.counts, self.seconds
        decode_share = counts.decode_seconds / (seconds * self.decode_threads)
        return {
            "patches": self.patches,
            "slides": self.slides,
            "seconds": round(seconds, 3),
            "patches_per_second": round(self.patches / seconds, 1),
            "megabytes_per_second": round(self.pixel_bytes / 1e6 / seconds, 1),
            "decode_threads": self.decode_threads,
            "decode_share": round(decode_share, 3),
            "wait_share": round(max(0.0, 1 - decode_share), 3),
            "cores_used": round(self.cpu_seconds / seconds, 2),
            "tiles_per_patch": _ratio(counts.tile_uses, counts.patches),
            "tiles_saved_by_deduplication": _ratio(counts.tile_uses - counts.tiles_planned, counts.tile_uses),
            "over_read": _ratio(counts.bytes_planned, counts.bytes_needed),
            "stored_megabytes_per_second": round(counts.bytes_planned / 1e6 / seconds, 1),
            "requests_per_second": round(counts.requests / seconds, 1),
            "requests_per_patch": _ratio(counts.requests, counts.patches),
            "received_megabytes_per_second": round(counts.bytes_received / 1e6 / seconds, 1),
            "retries": counts.retries,
            "queued_seconds": round(self.queued_s, 2),
            "backoff_seconds": round(self.backoff_s, 2),
        }


def _ratio(part: float, whole: float) -> float | None:
    return round(part / whole, 3) if whole else None


def measure(stream: PatchStream, patches: int) -> Measurement:
    """Receive patches of a stream that runs already, in whole chunks, as fast as it gives them.

    Args:
        stream: Read on from where it stands.
        patches: How many; rounded up to whole chunks and to ``LEAST_PATCHES``.

    Raises:
        ValueError: ``patches`` is below 1.
        PatchingError: The stream cannot be read.
    """
    if patches < 1:
        raise ValueError(f"patches: got {patches}, allowed at least 1")
    wanted = -(-max(patches, LEAST_PATCHES) // CHUNK_PATCHES) * CHUNK_PATCHES
    received = iter(stream)
    for _ in itertools.islice(received, WARM_UP_PATCHES):
        pass
    counts, fetches, cpu, started = read_counts(), fetch_counts(), time.process_time(), time.perf_counter()
    pixel_bytes, slides = 0, set()
    for patch in itertools.islice(received, wanted):
        pixel_bytes += patch["image"].nbytes
        slides.add(patch["slide_id"])
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    later = fetch_counts()
    return Measurement(
        patches=wanted,
        slides=len(slides),
        pixel_bytes=pixel_bytes,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        decode_threads=settings().decode_threads,
        counts=read_counts() - counts,
        queued_s=later.queued_s - fetches.queued_s,
        backoff_s=later.backoff_s - fetches.backoff_s,
    )


def bench(stream: PatchStream, *, patches: int, threads: int | None = None, growth: bool = False) -> Json:
    """Measure a stream; the settings of the process are as before when it returns.

    Args:
        stream: Read on from where it stands.
        patches: How many are received each time; see ``measure``.
        threads: Threads that decode; None: as configured.
        growth: Measure 1, 2, 4, ... threads and, where slides are remote, 8 to 256 requests under way as well.

    Returns:
        A report of JSON values with a ``format_version``.

    Raises:
        ValueError: Numbers that are not allowed.
        PatchingError: The stream cannot be read.
    """
    with _measured_with(decode_threads=threads):
        main = measure(stream, patches)
    report: Json = {
        "format_version": FORMAT_VERSION,
        "benchmark": "online-patching stream",
        "catalog": stream.catalog.shown_url,
        "size_px": stream.sampler.size_px,
        "mpp": list(stream.sampler.mpp),
        "decode": stream.decode,
        **main.figures(),
    }
    if growth:
        report["growth"] = _growth(stream, patches, main)
    report["corrupt_patches"] = sum(stream.corrupt_patches.values())
    report["health"] = _total(stream.catalog.health())
    report["machine"] = machine()
    return report


def _growth(stream: PatchStream, patches: int, main: Measurement) -> Json:
    by_threads, by_requests = [], []
    for threads in _thread_counts():
        with _measured_with(decode_threads=threads):
            by_threads.append(measure(stream, patches).figures())
    # Files of a disk are not asked for by requests.
    for in_flight in REQUESTS_IN_FLIGHT if main.counts.requests else ():
        with _measured_with(decode_threads=main.decode_threads, requests=in_flight):
            by_requests.append({"requests_in_flight": in_flight, **measure(stream, patches).figures()})
    return {"decode_threads": by_threads, "requests_in_flight": by_requests}


def _thread_counts() -> list[int]:
    """Powers of two below the number of cores, and that."""
    cores = usable_cores()
    return [*itertools.takewhile(lambda count: count < cores, (1 << k for k in itertools.count())), cores]


@contextmanager
def _measured_with(*, decode_threads: int | None, requests: int | None = None) -> Iterator[None]:
    before, limits = settings(), request_limits()
    configure(decode_threads=decode_threads, requests_in_flight=requests, requests_per_host=requests)
    try:
        yield
    finally:
        # What the stream has begun beyond must not run on in the next measurement.
        close()
        configure(
            decode_threads=before.decode_threads,
            requests_in_flight=limits.in_flight,
            requests_per_host=limits.per_host,
        )


def _total(health: Mapping[str, SlideHealth]) -> Json:
    total = dict.fromkeys(asdict(SlideHealth()), 0)
    for slide in health.values():
        for name, count in asdict(slide).items():
            total[name] += count
    return {"slides": len(health), **total}


def machine(libraries: Iterable[str] = LIBRARIES) -> Json:
    """What the figures depend on beside the slides: cores, processor, and versions of the libraries installed."""
    return {
        "cores": usable_cores(),
        "cpu": _cpu_model(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version for name in libraries if (version := _version(name))},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def bench_lines(report: Json) -> list[str]:
    """A report of ``bench`` for people."""
    health, facts = report["health"], report["machine"]
    mpp = ", ".join(f"{each:g}" for each in report["mpp"])
    lines = [
        f"{report['catalog']}: {report['patches']:,} patches of {report['size_px']} px at {mpp} um/px"
        f" ({report['decode']}) from {report['slides']:,} slides in {report['seconds']:.1f} s;"
        f" {facts['cores']} cores of {facts['cpu']}",
        f"  speed       {report['patches_per_second']:,.0f} patches/s, {report['megabytes_per_second']:,.0f} MB/s of"
        " pixels",
        f"  threads     {report['decode_threads']} decode {report['decode_share']:.0%} of the time,"
        f" {report['wait_share']:.0%} assembling and waiting; the process uses {report['cores_used']:.1f} cores",
        f"  tiles       {_shown(report['tiles_per_patch'])} a patch,"
        f" {_shown(report['tiles_saved_by_deduplication'], '.1%')} of them shared and read once",
        f"  bytes       {report['stored_megabytes_per_second']:,.1f} MB/s of stored tiles,"
        f" {_shown(report['over_read'])} times those needed",
        f"  requests    {report['requests_per_second']:,.0f}/s, {_shown(report['requests_per_patch'])} a patch,"
        f" {report['retries']} retries; ranges queued {report['queued_seconds']:.1f} s,"
        f" backed off {report['backoff_seconds']:.1f} s",
        f"  health      {health['corrupt_tiles']} corrupt and {health['missing_tiles']} missing tiles,"
        f" {health['outside_patches']} patches reach outside, {health['enlarged_patches']} enlarged,"
        f" {report['corrupt_patches']} drawn again",
    ]
    for name, title in (("decode_threads", "threads"), ("requests_in_flight", "requests in flight")):
        measured = report.get("growth", {}).get(name, [])
        if measured:
            lines += ["", f"  {title:>18}  patches/s  decode share  cores used"]
        lines += [
            f"  {each[name]:>18}  {each['patches_per_second']:>9,.0f}  {each['decode_share']:>12.0%}"
            f"  {each['cores_used']:>10.2f}"
            for each in measured
        ]
    return lines


def _shown(value: float | None, form: str = ".2f") -> str:
    return "no" if value is None else format(value, form)
