"""Which errors can a user of fm_eval cause, and how are they told apart?

FmEvalError (a ValueError)
├── DatasetError    the index, a split or an image
│   └── DatasetNotFoundError   nothing of the dataset is on disk
├── StoreError      stored embeddings that do not belong to the model, or cannot be read or written
├── BackboneError   a checkpoint folder, weights, an architecture name or a class path
├── SegmentationError   settings of a decoder, or training that cannot go on
├── ProbeError      labels, features or settings that no probe can be trained on
├── MetricError     embeddings that no metric may be computed from (NaN, infinite, wrong shape)
├── ResultError     a result file that cannot be read or written
└── ReportError     results that cannot stand in one report

Every message is one line: what, which file, got, allowed, remedy.
"""

from __future__ import annotations


class FmEvalError(ValueError):
    """Base of every error that bad input can cause."""


class DatasetError(FmEvalError):
    """The index, a split or an image of the dataset is not usable."""


class DatasetNotFoundError(DatasetError):
    """Nothing of the dataset is on disk."""


class StoreError(FmEvalError):
    """Stored embeddings are of another model or damaged, or the store cannot be written."""


class BackboneError(FmEvalError):
    """A backbone cannot be built or does not keep its contract."""


class SegmentationError(FmEvalError):
    """A decoder cannot be built or trained with these settings."""


class ProbeError(FmEvalError):
    """A probe cannot be trained with these settings on these arrays."""


class MetricError(FmEvalError):
    """Embeddings hold values, or have a shape, that no metric is defined on."""


class ResultError(FmEvalError):
    """A result file cannot be read or written."""


class ReportError(FmEvalError):
    """The given results cannot stand in one report."""
