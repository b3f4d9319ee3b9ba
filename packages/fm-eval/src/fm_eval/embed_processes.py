"""How do several devices embed one list of images, so that the result does not tell how many there were?

1. Batch b belongs to process b mod n. Batches are cut before they are shared out: each holds the images that it would
   hold on one device.
2. Every process decodes and embeds its batches and puts the rows into a queue of its own.
3. The parent takes them in turns, so batches come back in order: what is kept of a run that was killed (see store) is
   what one device would have left.

A process a device and not a thread, because decoding and Python's part of a forward pass would share one interpreter.
Before: embed.
"""

from __future__ import annotations

import dataclasses
import pickle
import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from numpy.typing import NDArray
from torch import nn

from fm_eval.backbone import LoadedBackbone
from fm_eval.embed import EmbedSettings, embed_here
from fm_eval.errors import BackboneError, FmEvalError
from fm_eval.images import Images, SelectedImages

# Batches that a process may be ahead of the parent.
_AHEAD = 2
_POLL_SECONDS = 1.0


def embed_in_processes(
    images: Images, backbone: LoadedBackbone, settings: EmbedSettings
) -> Iterator[NDArray[np.float32]]:
    """Embed images on `settings.devices` devices; arguments and batches are those of `embed_batches`, unchecked.

    Raises:
        DatasetError: an image cannot be decoded.
        BackboneError: too few devices, a backbone that cannot be handed to another process, one that fails, or a
            process that ends early.
    """
    places = _places(settings)
    starts = range(0, len(images), settings.batch_size)
    if isinstance(backbone.model, nn.Module):
        backbone.model.cpu()
    context = mp.get_context("spawn")
    threads = max(1, torch.get_num_threads() // len(places))
    workers: list[tuple[Any, Any]] = []
    try:
        for number, place in enumerate(places[: len(starts)]):
            shared = SelectedImages(images, _rows_of(number, len(places), len(images), settings.batch_size))
            alone = dataclasses.replace(settings, device=place, devices=1, progress=False)
            results = context.Queue(_AHEAD)
            process = context.Process(target=_work, args=(shared, backbone, alone, threads, results), daemon=True)
            _start(process)
            workers.append((process, results))
        for batch in range(len(starts)):
            process, results = workers[batch % len(places)]
            yield _next(process, results, f"{batch % len(places) + 1} of {len(places)}")
    finally:
        for process, _ in workers:
            process.terminate()
        for process, _ in workers:
            process.join()


def _places(settings: EmbedSettings) -> list[str]:
    kind, _, number = settings.device.partition(":")
    if kind == "cpu":
        return [settings.device] * settings.devices
    there = torch.cuda.device_count() if kind == "cuda" else 1
    if number or settings.devices > there:
        raise BackboneError(
            f"embed: got devices={settings.devices} with device={settings.device}; this machine has {there} of "
            f"{kind}, and with several the device has no number"
        )
    return [f"{kind}:{number}" for number in range(settings.devices)]


def _rows_of(number: int, processes: int, images: int, batch_size: int) -> NDArray[np.int64]:
    """Rows of every batch of a process, in order."""
    rows = np.arange(images, dtype=np.int64)
    own: NDArray[np.int64] = rows[rows // batch_size % processes == number]
    return own


def _start(process: Any) -> None:
    try:
        process.start()
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise BackboneError(
            f"embed: the backbone cannot be handed to another process ({' '.join(str(error).split())}); "
            "use devices=1, or define its class in a module"
        ) from error


def _work(images: Images, backbone: LoadedBackbone, settings: EmbedSettings, threads: int, results: Any) -> None:
    """What a process does; mistakes go where the rows go."""
    torch.set_num_threads(threads)
    try:
        for rows in embed_here(images, backbone, settings):
            results.put(rows)
    except FmEvalError as error:
        results.put(error)


def _next(process: Any, results: Any, title: str) -> NDArray[np.float32]:
    """The next batch of a process, or what went wrong in it."""
    while True:
        ended = not process.is_alive()
        try:
            result = results.get(timeout=_POLL_SECONDS)
        except queue.Empty:
            if ended:
                raise BackboneError(
                    f"embed: process {title} ended with code {process.exitcode} before its work was done; its error "
                    "stands above, if it had the time to write one"
                ) from None
            continue
        if isinstance(result, FmEvalError):
            raise result
        rows: NDArray[np.float32] = result
        return rows
