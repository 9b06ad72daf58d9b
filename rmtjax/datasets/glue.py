"""The nine GLUE tasks (Wang et al. 2018): the sentences and labels of a split, and the score of predictions.

Both forms that GLUE is passed around in are read in place: the official folders of tab-separated files, and what the
`datasets` library keeps. Classes are numbered as in the data set `glue` of the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from rmtjax._checks import floats
from rmtjax._errors import InputError, shown, unknown
from rmtjax.datasets._folders import data_folder

__all__ = ["GLUE", "Examples", "Task", "find_glue", "load_glue", "score", "task"]

_PAIR, _SENTENCE = ("sentence1", "sentence2"), ("sentence",)
_QUESTION, _QUESTIONS, _STRINGS = ("question", "sentence"), ("question1", "question2"), ("#1 String", "#2 String")
_NLI, _ENTAILMENT = ("entailment", "neutral", "contradiction"), ("entailment", "not_entailment")
_BOTH, _COLA = ("accuracy", "f1"), ("source", "label", "star", "sentence")


@dataclass(frozen=True)
class Task:
    """One GLUE task.

    Attributes:
        name: Its name in the `datasets` library.
        folder: Its official folder.
        labels: The classes, in the order of their indices; () for regression.
        columns: The text columns in `datasets`, one or two.
        metrics: The metrics that GLUE defines for it, the headline first.
        tsv_columns: The text columns in the official files.
        tsv_label: The label's column there.
        tsv_labels: The classes as they are written there; () for regression.
        tsv_header: The columns of files that have no header line; else ().
    """

    name: str
    folder: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    tsv_columns: tuple[str, ...] = _PAIR
    tsv_label: str = "label"
    tsv_labels: tuple[str, ...] = ("0", "1")
    tsv_header: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The metric to quote: accuracy, but Matthews correlation for CoLA and Pearson correlation for STS-B."""
        return self.metrics[0]

    @property
    def regression(self) -> bool:
        """Whether labels are real numbers (0 to 5) instead of classes."""
        return not self.labels

    @property
    def num_labels(self) -> int:
        """Number of classes; 1 for regression."""
        return len(self.labels) or 1


GLUE: dict[str, Task] = {
    t.name: t
    for t in (
        Task("mnli", "MNLI", _NLI, ("premise", "hypothesis"), tsv_label="gold_label", tsv_labels=_NLI),
        Task("qnli", "QNLI", _ENTAILMENT, _QUESTION, tsv_columns=_QUESTION, tsv_labels=_ENTAILMENT),
        Task("mrpc", "MRPC", ("not_equivalent", "equivalent"), _PAIR, _BOTH, _STRINGS, "Quality"),
        Task("rte", "RTE", _ENTAILMENT, _PAIR, tsv_labels=_ENTAILMENT),
        Task("sst2", "SST-2", ("negative", "positive"), _SENTENCE, tsv_columns=_SENTENCE),
        Task("qqp", "QQP", ("not_duplicate", "duplicate"), _QUESTIONS, _BOTH, _QUESTIONS, "is_duplicate"),
        Task("cola", "CoLA", ("unacceptable", "acceptable"), _SENTENCE, ("matthews",), _SENTENCE, tsv_header=_COLA),
        Task("stsb", "STS-B", (), _PAIR, ("pearson", "spearman"), tsv_label="score", tsv_labels=()),
        Task("wnli", "WNLI", ("not_entailment", "entailment"), _PAIR),
    )
}


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of one split, in the order of the file.

    Attributes:
        first: First sentence of each.
        second: Second sentence of each, or None for a task of single sentences.
        labels: Class indices, (n,), int32; for regression the scores, (n,), float32.
        skipped: Number of lines left out: malformed ones of QQP, and those of MNLI whose annotators disagreed.
    """

    first: list[str]
    second: list[str] | None
    labels: np.ndarray
    skipped: int = 0

    def __len__(self) -> int:
        return len(self.first)


def task(name: str) -> Task:
    """Return the task of a name, in any case and with or without its hyphen: `"sst2"`, `"SST-2"`, `"sts-b"`.

    Raises:
        InputError: There is no such task.
    """
    plain = "".join(c for c in str(name).lower() if c.isalnum())
    if plain not in GLUE:
        raise unknown("task", str(name), GLUE)
    return GLUE[plain]


def find_glue() -> Path | None:
    """Return the folder `glue` in `$RMTJAX_DATA`, else in `../shared/data`; None if neither exists.

    `../shared/data` is seen from the current directory and from the repository's root.
    """
    return data_folder("glue")


def load_glue(name: str, data: str | os.PathLike[str], split: str = "train") -> Examples:
    """Return one split of one task.

    Args:
        name: The task, as `task` takes it.
        data: One of these folders. Official files: the task's own folder (`MRPC`) or the one that holds it; MRPC may
            also be `msr_paraphrase_train.txt`, whose pairs named in `dev_ids.tsv`, or found in `dev.tsv`, are the dev
            split, and without either are all in train. `datasets`: what `DatasetDict.save_to_disk` wrote, the parquet
            files of the hub's repository (the folder `mrpc` or the one that holds it), or any folder of its cache, in
            which the newest copy of the task is taken.
        split: `"train"` or `"dev"` (= `"validation"`); for MNLI also `"dev_matched"` (= `"dev"`) and
            `"dev_mismatched"`.

    Returns:
        The examples. Sentences are as in the file: no quote is interpreted and no space stripped.

    Raises:
        InputError: The task or split is unknown; the folder or the split's file is missing; a column is missing; a
            line has too few or too many fields (in QQP such lines are skipped); a label is outside the task's set; the
            split is empty; or the library `datasets` is needed and not installed.

    Source:
        Wang et al. (2018), gluebenchmark.com; the hub's data set `nyu-mll/glue`.
    """
    chosen = task(name)
    stem = str(split).replace("validation", "dev")
    splits = ("train", "dev", *(("dev_matched", "dev_mismatched") if chosen.name == "mnli" else ()))
    if stem not in splits:
        raise unknown(f"{chosen.folder} split", str(split), splits)
    stem = "dev_matched" if chosen.name == "mnli" and stem == "dev" else stem
    folder = Path(data)
    if not folder.is_dir():
        raise InputError(f"folder {folder} does not exist; allowed: a folder of GLUE data")
    for place in (folder / chosen.folder, folder / chosen.name, folder):
        if any(place.glob("*.tsv")) or (chosen.name == "mrpc" and any(place.glob("msr_paraphrase_*.txt"))):
            return _read_official(chosen, place, stem)
        if (place / "dataset_dict.json").is_file() or any(place.glob("*-of-*.parquet")):
            return _read_datasets(chosen, place, stem)
    if cached := _cached(chosen, folder):
        return _read_datasets(chosen, cached, stem)
    raise InputError(
        f"folder {folder} holds no {chosen.folder}; allowed: the official folder {chosen.folder} or the one that holds "
        "it, or a folder of the datasets library (dataset_dict.json, glue-train.arrow, train-*.parquet)"
    )


def score(name: str, predictions: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    """Return the scores of predictions by the task's metrics.

    Args:
        name: The task, as `task` takes it.
        predictions: Predicted class indices, or predicted scores for STS-B, (n,).
        labels: The true ones, (n,).

    Returns:
        Each of the task's metrics: `accuracy`; `f1` of class 1; `matthews`, `pearson` and `spearman` correlation. A
        correlation is 0 where the predictions or the labels are constant, and so is F1 where class 1 never occurs.

    Raises:
        InputError: The lengths differ or are 0; an array is not of shape (n,); a class is outside the task's set; a
            score is not finite.
    """
    chosen = task(name)
    predicted, true = _checked(chosen, "predictions", predictions), _checked(chosen, "labels", labels)
    if len(predicted) != len(true):
        raise InputError(f"predictions has {len(predicted)} entries and labels {len(true)}; allowed: the same number")
    return {metric: float(_METRICS[metric](true, predicted)) for metric in chosen.metrics}


def _correlation(metric: Callable[[np.ndarray, np.ndarray], Any]) -> Callable[[np.ndarray, np.ndarray], Any]:
    return lambda true, predicted: 0.0 if any((a == a[0]).all() for a in (true, predicted)) else metric(true, predicted)


_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "accuracy": accuracy_score,
    "f1": lambda true, predicted: f1_score(true, predicted, pos_label=1, zero_division=0.0),
    "matthews": _correlation(matthews_corrcoef),
    "pearson": _correlation(lambda true, predicted: pearsonr(true, predicted).statistic),
    "spearman": _correlation(lambda true, predicted: spearmanr(true, predicted).statistic),
}


def _checked(chosen: Task, name: str, values: ArrayLike) -> np.ndarray:
    allowed = "finite numbers" if chosen.regression else f"class indices 0 to {chosen.num_labels - 1}"
    array = floats(name, values, allowed)
    if array.ndim != 1 or not array.size:
        raise InputError(f"{name} has the shape {array.shape}; allowed: (n,), one entry per example, n at least 1")
    odd = array[~(np.isfinite(array) if chosen.regression else np.isin(array, range(chosen.num_labels)))]
    if odd.size:
        raise InputError(f"{name} holds {odd[0]:g}; allowed for {chosen.name}: {allowed}")
    return array if chosen.regression else array.astype(int)


def _encode(chosen: Task, raw: Sequence[Any], codes: dict[Any, int], where: Callable[[int], str]) -> np.ndarray:
    """Return labels as an array; `where` names the location of the k-th in an error."""

    def code(label: Any) -> float | None:
        try:
            if not chosen.regression:
                return codes.get(label)
            return value if 0 <= (value := float(label)) <= 5 else None
        except (TypeError, ValueError):
            return None

    encoded = [code(label) for label in raw]
    if None in encoded:
        k = encoded.index(None)
        allowed = "a number from 0 to 5" if chosen.regression else ", ".join(map(str, codes))
        raise InputError(f"{where(k)} holds the label {shown(raw[k])}; allowed: {allowed}")
    return np.array(encoded, np.float32 if chosen.regression else np.int32)


def _missing(file: Path, present: Iterable[str]) -> InputError:
    return InputError(f"{file} is missing; the folder holds ({', '.join(sorted(present)) or 'nothing'})")


def _lines(file: Path) -> Iterator[tuple[int, list[str]]]:
    """Return the number and fields of each line. Only a line feed ends a line, and a quote is an ordinary character."""
    try:
        with open(file, encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, 1):
                if line := line.rstrip("\r\n"):
                    yield number, line.split("\t")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"file {file} cannot be read ({shown(str(error))}); allowed: UTF-8 text") from error


def _mrpc_archive(place: Path, stem: str) -> tuple[Path, set[tuple[str, ...]]] | None:
    """Return the archive's train file, which is GLUE's train and dev splits, and the pairs of ids of the dev split."""
    file = place / "msr_paraphrase_train.txt"
    for name, columns in (("dev_ids.tsv", slice(2)), ("mrpc_dev_ids.tsv", slice(2)), ("dev.tsv", slice(1, 3))):
        if file.is_file() and (place / name).is_file():
            return file, {tuple(row[columns]) for _, row in _lines(place / name)}
    return (file, set()) if file.is_file() and stem == "train" else None


def _read_official(chosen: Task, place: Path, stem: str) -> Examples:
    file, dev = place / f"{stem}.tsv", None
    if chosen.name == "mrpc" and not file.is_file():
        file, dev = _mrpc_archive(place, stem) or (file, None)
    if not file.is_file():
        raise _missing(file, (f.name for pattern in ("*.tsv", "msr_*.txt") for f in place.glob(pattern)))
    lines = _lines(file)
    header = list(chosen.tsv_header) or next(lines, (0, None))[1]
    if header is None:
        raise InputError(f"file {file} is empty; allowed: at least one example")
    for column in (*chosen.tsv_columns, chosen.tsv_label):
        if column not in header:
            raise InputError(f"file {file} lacks the column {column!r}; it holds {shown(header, 100)}")
    picked = [header.index(column) for column in (*chosen.tsv_columns, chosen.tsv_label)]
    rows: list[tuple[Any, ...]] = []
    skipped = 0
    for number, row in lines:
        if len(row) != len(header):
            if chosen.name == "qqp":
                skipped += 1
                continue
            raise InputError(f"file {file}, line {number} has {len(row)} fields; allowed: {len(header)}, tab-separated")
        values = [row[k] for k in picked]
        if chosen.name == "mnli" and values[-1] == "-":
            skipped += 1
        elif dev is None or (tuple(row[1:3]) in dev) == (stem == "dev"):
            rows.append((number, *values))
    if not rows:
        raise InputError(f"file {file} is empty for this split; allowed: at least one example")
    numbers, *texts, labels = zip(*rows, strict=True)
    codes = {label: k for k, label in enumerate(chosen.tsv_labels)}
    encoded = _encode(chosen, labels, codes, lambda k: f"file {file}, line {numbers[k]}")
    return Examples(list(texts[0]), list(texts[1]) if texts[1:] else None, encoded, skipped)


def _cached(chosen: Task, folder: Path) -> Path | None:
    """Return the newest folder of a `datasets` cache that holds the task, preferring those of `glue` to other sets."""

    def holds(info: Path) -> bool:
        try:
            config = json.loads(info.read_text(encoding="utf-8")).get("config_name")
        except (OSError, ValueError, AttributeError):
            return False
        # A folder with a state file is one split, as save_to_disk writes it.
        return config == chosen.name and not (info.parent / "state.json").exists() and any(info.parent.glob("*.arrow"))

    folders = [info.parent for info in folder.rglob("dataset_info.json") if holds(info)]
    return max(folders, key=lambda p: (any(p.glob("glue-*.arrow")), p.stat().st_mtime, p), default=None)


def _read_datasets(chosen: Task, place: Path, stem: str) -> Examples:
    split = stem.replace("dev", "validation")
    where = f"{place}, split {split}"
    rows = _dataset(place, split)
    for column in (*chosen.columns, "label"):
        if column not in rows.column_names:
            raise InputError(f"{where} lacks the column {column!r}; it holds {shown(rows.column_names, 100)}")
    config, names = rows.info.config_name, getattr(rows.features["label"], "names", None)
    if config in GLUE and config != chosen.name:
        raise InputError(f"{where} holds the task {config!r}; allowed: {chosen.name!r}")
    if names is not None and sorted(names) != sorted(chosen.labels):
        raise InputError(f"{where} has the classes {shown(names)}; allowed: {', '.join(chosen.labels) or 'scores'}")
    if not len(rows):
        raise InputError(f"{where} is empty; allowed: at least one example")
    codes = {k: chosen.labels.index(label) for k, label in enumerate(names or chosen.labels)}
    labels = _encode(chosen, rows["label"][:], codes, lambda k: f"{where}, row {k}")
    texts = [list(rows[column][:]) for column in chosen.columns]
    if any(None in text for text in texts):
        raise InputError(f"{where} holds an example without text; allowed: text in {', '.join(chosen.columns)}")
    return Examples(texts[0], texts[1] if texts[1:] else None, labels)


def _dataset(place: Path, split: str) -> Any:
    """Return the split as a `datasets.Dataset`. Parquet is read by pyarrow, since `datasets` would copy it to its cache."""
    try:
        import datasets
        from pyarrow import parquet
    except ImportError:
        needs = "the datasets library, which is not installed; allowed: pip install 'rmtjax[datasets]'"
        raise InputError(f"folder {place} needs {needs}") from None
    patterns = (f"{split}-*-of-*.parquet", f"*-{split}.arrow", f"*-{split}-*-of-*.arrow")
    files, saved = sorted({file for pattern in patterns for file in place.glob(pattern)}), place / "dataset_dict.json"
    try:
        if saved.is_file():
            splits = json.loads(saved.read_text(encoding="utf-8"))["splits"]
            if split not in splits:
                raise _missing(place / split, splits)
            return datasets.load_from_disk(str(place / split)).with_format(None)
        if not files:
            raise _missing(place / split, (f.name for f in place.iterdir() if f.suffix in (".arrow", ".parquet")))
        last = files[0].stem.rpartition("-of-")[2]
        if len(files) != (shards := int(last) if last.isdigit() else 1):
            raise InputError(f"{place}, split {split} has {len(files)} of {shards} files; allowed: all of them")
        if files[0].suffix == ".arrow":
            return datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        tables = [datasets.table.InMemoryTable(parquet.read_table(file)) for file in files]
        return datasets.concatenate_datasets([datasets.Dataset(table) for table in tables])
    except InputError:
        raise
    except IndexError:  # how the library reads an empty split that it saved
        raise InputError(f"{place}, split {split} is empty; allowed: at least one example") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        failure = f"{place} cannot be read ({shown(str(error))})"
        raise InputError(f"folder {failure}; allowed: files written by the datasets library") from error
