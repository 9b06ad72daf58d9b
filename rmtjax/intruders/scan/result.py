"""The results of a scan: of a layer, and of a checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from rmtjax.intruders.pair import Skipped
from rmtjax.intruders.predict.prediction import Prediction
from rmtjax.spectra.bulk_fit import BulkFit

__all__ = ["LayerScan", "Scan", "Update"]


class Update(NamedTuple):
    """The update of a matrix.

    Attributes:
        strengths: its largest singular values, descending; all that do not vanish if it is a product BA.
        frobenius: its Frobenius norm.
        effective_rank: exp of the entropy of the normalised singular values (Roy & Vetterli 2007).
        stable_rank: squared Frobenius norm over squared largest singular value.
    """

    strengths: np.ndarray
    frobenius: float
    effective_rank: float
    stable_rank: float


@dataclasses.dataclass(frozen=True)
class LayerScan:
    """The comparison of one weight matrix before and after fine-tuning.

    Attributes:
        name: of the weight.
        shape: (outputs n, inputs m).
        values: the k largest singular values after tuning.
        cosines: the largest absolute cosine of each of their left vectors with any left singular vector of the base.
        lower, upper: bounds on the cosines; an intruder's upper one is below the threshold, a matched one's lower one is not.
        verdicts: "intruder" or "matched"; "null" of a matrix whose rank is smaller, where there is no singular vector;
            "undecidable" where singular values coincide up to rounding, so that the vectors are not defined, and the verdict
            depends on which are taken (`rmtjax.intruders.clusters`).
        algorithm: "bounds" or, for a small matrix, "eigh"; "svd" if those did not decide or were not used.
        similarity: absolute cosines of the k leading vectors after (rows) and before (columns).
        base_values: the k largest singular values before.
        update: the update.
        bulk: fit of the random part of the base.
        prediction: the predicted effect of an update of these strengths on a matrix of this spectrum.
        vectors: the k leading left singular vectors after, as columns (n, k).
        seconds: time taken.
    """

    name: str
    shape: tuple[int, int]
    values: np.ndarray
    cosines: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    verdicts: tuple[str, ...]
    algorithm: str
    similarity: np.ndarray
    base_values: np.ndarray
    update: Update
    bulk: BulkFit
    prediction: Prediction
    vectors: np.ndarray
    seconds: float

    def scaled(self, by: float) -> LayerScan:
        """Return the scan of this layer times `by`."""
        update, bulk, prediction = self.update, self.bulk, self.prediction
        return dataclasses.replace(
            self,
            values=by * self.values.astype(float),
            base_values=by * self.base_values,
            update=update._replace(strengths=by * update.strengths, frobenius=by * update.frobenius),
            bulk=bulk._replace(
                sigma=by * bulk.sigma, sigma_error=by * bulk.sigma_error, lower=by * bulk.lower, upper=by * bulk.upper,
                threshold=by * bulk.threshold,
            ),
            prediction=prediction._replace(threshold=by * prediction.threshold, outliers=by * prediction.outliers),
        )  # fmt: skip

    @property
    def intruders(self) -> int:
        """The number of intruders among the k vectors."""
        return self.verdicts.count("intruder")

    @property
    def open(self) -> bool:
        """Whether all verdicts are undecidable, so that no count is expected."""
        return set(self.verdicts) == {"undecidable"}

    @property
    def predicted(self) -> float:
        """The expected number of intruders; NaN if it is not known (`Prediction.intruders`)."""
        return self.prediction.intruders

    def to_dict(self) -> dict[str, Any]:
        """Return the scan as plain values."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "intruders": self.intruders,
            "which": [i for i, verdict in enumerate(self.verdicts) if verdict == "intruder"],
            "cosines": self.cosines,
            "lower": self.lower,
            "upper": self.upper,
            "verdicts": list(self.verdicts),
            "algorithm": self.algorithm,
            "singular_values": self.values,
            "base_singular_values": self.base_values,
            "similarity": self.similarity,
            "update": self.update._asdict(),
            "bulk": {"sigma": self.bulk.sigma, "edge": self.bulk.upper, "spikes": self.bulk.count},
            "predicted": self.prediction._asdict(),
            "seconds": self.seconds,
        }


@dataclasses.dataclass(frozen=True)
class Scan:
    """All layers of a checkpoint.

    Attributes:
        layers: those that were compared.
        skipped: tensors that were not, and why.
        remarks: reasons to doubt that base and tuned belong together.
        incomplete: names of updates and layers that should have been compared and could not be; `skipped` says why.
        settings: base, tuned, top_k, threshold_epsilon, exact.
        seconds: from beginning to end, reading included.
    """

    layers: tuple[LayerScan, ...]
    skipped: tuple[Skipped, ...]
    remarks: tuple[str, ...]
    incomplete: tuple[str, ...]
    settings: dict[str, Any]
    seconds: float

    @property
    def intruders(self) -> int:
        """The number of intruders in all layers."""
        return sum(layer.intruders for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Return the scan as plain values."""
        total = {
            "layers": len(self.layers),
            "intruders": self.intruders,
            "vectors": sum(len(layer.verdicts) for layer in self.layers),
            "predicted": sum(layer.predicted for layer in self.layers if not layer.open),
            "undecidable": sum(layer.verdicts.count("undecidable") for layer in self.layers),
            "skipped": len(self.skipped),
        }
        layers = [layer.to_dict() for layer in self.layers]
        skipped = [skip._asdict() for skip in self.skipped]
        left_out = {"skipped": skipped, "remarks": list(self.remarks), "incomplete": list(self.incomplete)}
        return {"layers": layers, "total": total, **left_out, **self.settings, "seconds": self.seconds}
