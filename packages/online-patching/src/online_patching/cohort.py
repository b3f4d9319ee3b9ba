"""Which slides does a cohort open behind the URLs that a user names?

``listing`` finds candidates by their names. The DICOM files that it finds in a folder are the levels of one slide or of
several, so their folders are looked into; whatever else it finds is one slide each. A file that the user names is taken
at its word.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online_patching import loop
from online_patching.bytesource import PinnedObject
from online_patching.formats.dicom_slide import dicom_slides
from online_patching.listing import dicom_folders, find_slides
from online_patching.storage import Store


def cohort_slides(url: str, storage_options: Mapping[str, Any] | None = None) -> list[str | PinnedObject]:
    """The slides behind a URL, each once, in the order of their names.

    Args:
        url: A slide, a folder or a glob.
        storage_options: Options of the storage client, in fsspec's dialect.

    Returns:
        Slides as ``index_cohort`` takes them: what the listing told of an object where it did, else its URL.

    Raises:
        NotFoundError: A folder, bucket or file does not exist.
        StorageError: The store cannot be reached or listed, or there is no slide.
    """
    candidates = find_slides([url], storage_options)
    store = Store(storage_options)
    found: list[str | PinnedObject] = []
    for folder in dicom_folders(each for each in candidates if each.url != url):
        found += loop.run(dicom_slides(store, folder))
    found += [each.pinned or each.url for each in candidates if each.kind != "dicom" or each.url == url]
    return sorted(found, key=lambda slide: slide if isinstance(slide, str) else slide.url)
