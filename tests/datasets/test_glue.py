"""The nine GLUE tasks: what is read from each form, how it is scored, and one clear line for what cannot be used."""

import json
import os
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from rmtjax._errors import InputError
from rmtjax.datasets import _folders
from rmtjax.datasets.glue import GLUE, Examples, find_glue, load_glue, score, task

DATA = find_glue()

# The official columns of each task, and lines of it with the sentences and labels that they hold.
HEADERS = {
    "mnli": "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
    "sentence1 sentence2 label1 gold_label",
    "qnli": "index question sentence label",
    "mrpc": "Quality|#1 ID|#2 ID|#1 String|#2 String",
    "rte": "index sentence1 sentence2 label",
    "sst2": "sentence label",
    "qqp": "id qid1 qid2 question1 question2 is_duplicate",
    "cola": "",
    "stsb": "index genre filename year old_index source1 source2 sentence1 sentence2 score",
    "wnli": "index sentence1 sentence2 label",
}
LINES = {
    "mnli": [
        "0|7|7n|fiction|( a )|( b )|(A)|(B)|A man .|A dog .|neutral|neutral",
        "1|8|8c|fiction|||||c|d|entailment|contradiction",
    ],
    "qnli": ["0|Who ?|He .|entailment", "1|When ?|There .|not_entailment"],
    "mrpc": ['1|11|12|He said " yes|Yes " , he said', "0|21|22|one|two"],
    "rte": ['0|It "rains.|It pours.|entailment', "1|c|d|not_entailment"],
    "sst2": ["a fine film |1", "dull |0"],
    "qqp": ["5|1|2|Why?|Why so?|1", "6|3|4|What?|Who?|0"],
    "cola": ["gj04|1||They ran.", "gj04|0|*|Ran they the."],
    "stsb": [
        "0|main-news|f|2012|24|none|none|a plane|an air plane|5.000",
        "1|main-news|f|2012|25|none|none|a cat|a fish|0.25",
    ],
    "wnli": ["0|a|b|1", "1|c|d|0"],
}
EXPECTED = {
    "mnli": (["A man .", "c"], ["A dog .", "d"], [1, 2]),
    "qnli": (["Who ?", "When ?"], ["He .", "There ."], [0, 1]),
    "mrpc": (['He said " yes', "one"], ['Yes " , he said', "two"], [1, 0]),
    "rte": (['It "rains.', "c"], ["It pours.", "d"], [0, 1]),
    "sst2": (["a fine film ", "dull "], None, [1, 0]),
    "qqp": (["Why?", "What?"], ["Why so?", "Who?"], [1, 0]),
    "cola": (["They ran.", "Ran they the."], None, [1, 0]),
    "stsb": (["a plane", "a cat"], ["an air plane", "a fish"], [5.0, 0.25]),
    "wnli": (["a", "c"], ["b", "d"], [1, 0]),
}
# The classes of the hub's data set, in its order.
CLASSES = {
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "mrpc": ("not_equivalent", "equivalent"),
    "rte": ("entailment", "not_entailment"),
    "sst2": ("negative", "positive"),
    "qqp": ("not_duplicate", "duplicate"),
    "cola": ("unacceptable", "acceptable"),
    "stsb": (),
    "wnli": ("not_entailment", "entailment"),
}


def text_of(name: str, lines: list[str] | None = None, header: str | None = None) -> str:
    """The text of an official file, from lines whose fields are parted by bars."""
    header = (HEADERS[name] if header is None else header).replace(" " if name != "mrpc" else "|", "\t")
    body = [line.replace("|", "\t") for line in (LINES[name] if lines is None else lines)]
    return "".join(f"{line}\n" for line in [header] * bool(header) + body)


def official(root: Path, name: str, text: str | None = None, file: str = "train.tsv") -> Path:
    """Write one official file under `root`, and return the task's folder."""
    folder = root / GLUE[name].folder
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes((text_of(name) if text is None else text).encode())
    return folder


def same(examples: Examples, expected: tuple) -> bool:
    return (examples.first, examples.second, examples.labels.tolist()) == expected


def refused(*parts: str):
    """Expect an InputError of one line that holds every part."""
    pattern = "".join(f"(?=.*{part})" for part in parts)
    return pytest.raises(InputError, match=rf"\A{pattern}[^\n]*\Z")


# --- the tasks ----------------------------------------------------------------------------------------------------


def test_tasks_are_those_of_glue():
    assert {name: t.labels for name, t in GLUE.items()} == CLASSES
    folders = {"MNLI", "QNLI", "MRPC", "RTE", "SST-2", "QQP", "CoLA", "STS-B", "WNLI"}
    assert {t.folder for t in GLUE.values()} == folders
    assert all(name == t.name for name, t in GLUE.items())
    assert {name for name, t in GLUE.items() if t.regression} == {"stsb"}
    assert {name: t.num_labels for name, t in GLUE.items() if t.num_labels != 2} == {"mnli": 3, "stsb": 1}


def test_headline_is_accuracy_but_for_two_correlations():
    headlines = {name: t.headline for name, t in GLUE.items()}
    assert headlines == dict.fromkeys(GLUE, "accuracy") | {"cola": "matthews", "stsb": "pearson"}


@pytest.mark.parametrize("name", ["sst2", "SST2", "SST-2", "sst-2", "sst_2"])
def test_task_takes_any_spelling(name):
    assert task(name) is GLUE["sst2"]


def test_official_folders_name_their_tasks():
    assert [task(t.folder) for t in GLUE.values()] == list(GLUE.values())


def test_unknown_task_and_split(tmp_path):
    with refused("task 'mrcp'", "did you mean 'mrpc'", "wnli"):
        task("mrcp")
    with refused("task 'ax'", "mnli"):
        load_glue("ax", tmp_path)
    with refused("RTE split 'devel'", "did you mean 'dev'", "train"):
        load_glue("rte", tmp_path, "devel")
    for split in ("dev_matched", "validation_mismatched", "test"):
        with refused(f"RTE split '{split}'", r"known: dev, train\)"):
            load_glue("rte", tmp_path, split)


# --- finding the folder -------------------------------------------------------------------------------------------


def test_environment_wins_over_the_shared_folder(tmp_path, monkeypatch):
    for place in ("data", "shared/data"):
        (tmp_path / place / "glue").mkdir(parents=True)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("RMTJAX_DATA", str(tmp_path / "data"))
    assert find_glue() == tmp_path / "data" / "glue"
    monkeypatch.delenv("RMTJAX_DATA")
    assert find_glue().resolve() == (tmp_path / "shared" / "data" / "glue").resolve()


def test_nothing_found_is_none(tmp_path, monkeypatch):
    (tmp_path / "amazon_reviews").mkdir()
    monkeypatch.setenv("RMTJAX_DATA", str(tmp_path))
    monkeypatch.setattr(_folders, "__file__", str(tmp_path / "a" / "b" / "c" / "amazon.py"))
    monkeypatch.chdir(tmp_path)
    assert find_glue() is None


# --- official files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GLUE)
def test_official_file(tmp_path, name):
    folder = official(tmp_path, name)
    for place in (folder, tmp_path, str(tmp_path)):
        examples = load_glue(name, place)
        assert same(examples, EXPECTED[name]) and len(examples) == 2 and examples.skipped == 0
        assert examples.labels.dtype == (np.float32 if name == "stsb" else np.int32)


@pytest.mark.parametrize("name", sorted(set(GLUE) - {"mnli"}))
def test_dev_is_validation_and_not_train(tmp_path, name):
    official(tmp_path, name)
    official(tmp_path, name, text_of(name, LINES[name][1:]), "dev.tsv")
    first, second, labels = EXPECTED[name]
    for split in ("dev", "validation"):
        assert same(load_glue(name, tmp_path, split), (first[1:], second and second[1:], labels[1:]))


def test_mnli_has_two_dev_splits_of_more_columns(tmp_path):
    header = HEADERS["mnli"].replace("label1", "label1 label2 label3 label4 label5")
    for kind, label in (("matched", "entailment"), ("mismatched", "contradiction")):
        line = f"0|1|1e|g|||||{kind}|b|neutral|neutral|entailment|entailment|neutral|{label}"
        official(tmp_path, "mnli", text_of("mnli", [line], header), f"dev_{kind}.tsv")
    for split in ("dev", "validation", "dev_matched", "validation_matched"):
        assert same(load_glue("mnli", tmp_path, split), (["matched"], ["b"], [0]))
    for split in ("dev_mismatched", "validation_mismatched"):
        assert same(load_glue("mnli", tmp_path, split), (["mismatched"], ["b"], [2]))


def test_mnli_without_a_majority_is_left_out(tmp_path):
    lines = [LINES["mnli"][0], "1|8|8n|fiction|||||x|y|neutral|-", LINES["mnli"][1]]
    examples = load_glue("mnli", official(tmp_path, "mnli", text_of("mnli", lines)))
    assert same(examples, EXPECTED["mnli"]) and examples.skipped == 1


def test_malformed_lines_of_qqp_are_counted(tmp_path):
    broken = ['7|5|6|Is this "one', 'question?"|Or two?|1', "8|7|8|a|b|c|0"]
    examples = load_glue("qqp", official(tmp_path, "qqp", text_of("qqp", [LINES["qqp"][0], *broken, LINES["qqp"][1]])))
    assert same(examples, EXPECTED["qqp"]) and examples.skipped == 3


@pytest.mark.parametrize("name", GLUE)
def test_byte_order_mark_carriage_returns_and_a_missing_last_line_feed(tmp_path, name):
    text = "\ufeff" + text_of(name).replace("\n", "\r\n")[:-2]
    assert same(load_glue(name, official(tmp_path, name, text)), EXPECTED[name])


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "\r", '"', "''", " "])
def test_only_a_line_feed_ends_a_line_and_only_a_tab_a_field(tmp_path, odd):
    lines = [f"{odd}one{odd}two{odd}|1", "three|0"]
    examples = load_glue("sst2", official(tmp_path, "sst2", text_of("sst2", lines)))
    assert same(examples, ([f"{odd}one{odd}two{odd}", "three"], None, [1, 0]))


def test_columns_are_found_by_their_names(tmp_path):
    text = text_of("rte", ["not_entailment|b|7|a"], "label sentence2 index sentence1")
    assert same(load_glue("rte", official(tmp_path, "rte", text)), (["a"], ["b"], [1]))


ARCHIVE = ["1|1|2|a|b", "0|3|4|c|d", "1|5|6|e|f", "1|4|3|g|h"]


@pytest.mark.parametrize("ids", ["dev_ids.tsv", "mrpc_dev_ids.tsv"])
def test_mrpc_archive_is_split_by_the_listed_ids(tmp_path, ids):
    folder = official(tmp_path, "mrpc", "\ufeff" + text_of("mrpc", ARCHIVE), "msr_paraphrase_train.txt")
    (folder / ids).write_text("3\t4\n5\t6\n")
    assert same(load_glue("mrpc", folder), (["a", "g"], ["b", "h"], [1, 1]))
    assert same(load_glue("mrpc", tmp_path, "dev"), (["c", "e"], ["d", "f"], [0, 1]))


def test_mrpc_archive_without_ids_keeps_out_the_dev_file(tmp_path):
    folder = official(tmp_path, "mrpc", text_of("mrpc", ARCHIVE), "msr_paraphrase_train.txt")
    assert load_glue("mrpc", folder).first == ["a", "c", "e", "g"]
    with refused("dev.tsv is missing", "msr_paraphrase_train.txt"):
        load_glue("mrpc", folder, "dev")
    official(tmp_path, "mrpc", text_of("mrpc", ARCHIVE[:1]), "dev.tsv")
    assert load_glue("mrpc", folder).first == ["c", "e", "g"]
    assert load_glue("mrpc", folder, "dev").first == ["a"]
    official(tmp_path, "mrpc", text_of("mrpc", ARCHIVE[1:2]))
    assert load_glue("mrpc", folder).first == ["c"]  # train.tsv comes first


# --- errors of official files -------------------------------------------------------------------------------------


def test_missing_folder_and_folder_of_nothing(tmp_path):
    with refused("nowhere", "does not exist", "allowed"):
        load_glue("rte", tmp_path / "nowhere")
    (tmp_path / "RTE").mkdir()
    for folder in (tmp_path, tmp_path / "RTE"):
        with refused("holds no RTE", "dataset_dict.json", "train-.*parquet"):
            load_glue("rte", folder)


def test_missing_split_names_what_is_there(tmp_path):
    folder = official(tmp_path, "qnli", file="dev.tsv")
    with refused("QNLI/train.tsv is missing", r"\(dev.tsv\)"):
        load_glue("qnli", folder)


@pytest.mark.parametrize("name", GLUE)
def test_label_outside_the_set(tmp_path, name):
    odd = {"cola": "gj04|2||x", "mrpc": "2|1|2|a|b", "stsb": LINES["stsb"][0].replace("5.000", "5.5")}
    line = odd.get(name) or LINES[name][0].rpartition("|")[0] + "|2"
    number = len(text_of(name).splitlines()) + 1
    allowed = {"mnli": "entailment, neutral, contradiction", "qnli": "entailment, not_entailment", "stsb": "0 to 5"}
    allowed["rte"] = allowed["qnli"]
    folder = official(tmp_path, name, text_of(name, [*LINES[name], line]))
    with refused("train.tsv", f"line {number} ", "label '(2|5.5)'", f"allowed: .*{allowed.get(name, '0, 1')}"):
        load_glue(name, folder)


@pytest.mark.parametrize("label", ["nan", "inf", "-0.1", "5.01", "", "high"])
def test_score_outside_its_range(tmp_path, label):
    folder = official(tmp_path, "stsb", text_of("stsb", [LINES["stsb"][0].replace("5.000", label)]))
    with refused("train.tsv, line 2", f"label '{label}'", "0 to 5"):
        load_glue("stsb", folder)


def test_line_numbers_count_the_lines_left_out(tmp_path):
    folder = official(tmp_path, "qqp", text_of("qqp", ["7|5|6", "", "8|7|8|a|b|yes"]))
    with refused("line 4 ", "label 'yes'", "0, 1"):
        load_glue("qqp", folder)


@pytest.mark.parametrize("name", sorted(set(GLUE) - {"cola"}))
def test_header_lacks_a_column(tmp_path, name):
    for column in (*GLUE[name].tsv_columns, GLUE[name].tsv_label):
        header = re.sub(rf"(?<![^ |]){column}(?![^ |])", "other", HEADERS[name])
        folder = official(tmp_path, name, text_of(name, header=header))
        with refused("train.tsv", f"lacks the column '{column}'", r"holds \['(index|other|label|sentence|id|Quality)'"):
            load_glue(name, folder)


@pytest.mark.parametrize("name", sorted(set(GLUE) - {"qqp"}))
def test_too_few_or_too_many_fields(tmp_path, name):
    number = len(text_of(name).splitlines()) + 1
    for line, count in ((LINES[name][0].replace("|", " ", 1), -1), (LINES[name][0] + "|more", 1)):
        folder = official(tmp_path, name, text_of(name, [*LINES[name], line]))
        fields = LINES[name][0].count("|") + 1
        with refused("train.tsv", f"line {number} ", f"{fields + count} fields", f"allowed: {fields}, "):
            load_glue(name, folder)


@pytest.mark.parametrize("name", GLUE)
def test_empty_split(tmp_path, name):
    for text in ("", text_of(name, [])):
        with refused("train.tsv is empty", "at least one"):
            load_glue(name, official(tmp_path, name, text))


def test_split_of_nothing_but_skipped_lines(tmp_path):
    with refused("train.tsv is empty"):
        load_glue("qqp", official(tmp_path, "qqp", text_of("qqp", ["1|2"])))


def test_file_that_is_not_text(tmp_path):
    folder = official(tmp_path, "rte")
    (folder / "train.tsv").write_bytes(b"index\tsentence1\xff\xfe\n")
    with refused("train.tsv cannot be read", "UTF-8"):
        load_glue("rte", folder)


# --- the datasets library -----------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch, tmp_path):
    """The library, quiet and cut off from the network and from the user's cache."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets", reason="the datasets library is not installed")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "user_cache")
    datasets.disable_progress_bars()
    yield datasets
    datasets.enable_progress_bars()


def rows_of(datasets, name: str, names: tuple[str, ...] | None = None, **columns):
    """The examples of a task as a Dataset in the hub's form; `names` and `columns` replace what it would hold."""
    first, second, labels = EXPECTED[name]
    names = GLUE[name].labels if names is None else names
    kind = datasets.ClassLabel(names=list(names)) if names else datasets.Value("float32")
    data = dict(zip(GLUE[name].columns, (first, second), strict=False)) | {"label": labels, "idx": [0, 1]} | columns
    strings = {column: datasets.Value("string") for column in GLUE[name].columns}
    features = datasets.Features(strings | {"label": kind, "idx": datasets.Value("int32")})
    return datasets.Dataset.from_dict(data, features=features)


def hub(datasets, root: Path, names: tuple[str, ...]) -> Path:
    """Write a copy of the hub's repository: parquet files in a folder for each task, and the file that lists them."""
    root = root / "glue"
    text = "---\nconfigs:\n"
    for name in names:
        (root / name).mkdir(parents=True)
        text += f"- config_name: {name}\n  data_files:\n"
        for split in (
            "train",
            *(("validation_matched", "validation_mismatched") if name == "mnli" else ("validation",)),
        ):
            rows = rows_of(datasets, name)
            keep = {"train": [0, 1], "validation_mismatched": [1]}.get(split, [0])
            rows.select(keep).to_parquet(root / name / f"{split}-00000-of-00001.parquet")
            text += f"  - split: {split}\n    path: {name}/{split}-*\n"
    (root / "README.md").write_text(text + "---\n")
    return root


def part(name: str, row: int) -> tuple:
    first, second, labels = EXPECTED[name]
    return first[row : row + 1], second and second[row : row + 1], labels[row : row + 1]


@pytest.mark.parametrize("name", GLUE)
def test_saved_dataset(library, tmp_path, name):
    dev = "validation_matched" if name == "mnli" else "validation"
    rows = rows_of(library, name)
    library.DatasetDict({"train": rows, dev: rows.select([1])}).save_to_disk(tmp_path / "saved")
    examples = load_glue(name, tmp_path / "saved")
    assert same(examples, EXPECTED[name]) and examples.skipped == 0
    assert examples.labels.dtype == (np.float32 if name == "stsb" else np.int32)
    assert all(type(text) is str for text in examples.first)
    assert same(load_glue(name, tmp_path / "saved", "dev"), part(name, 1))


def test_parquet_files_of_the_hub(library, tmp_path):
    root = hub(library, tmp_path, tuple(GLUE))
    for name in GLUE:
        for place in (root, root / name):
            assert same(load_glue(name, place), EXPECTED[name])
            assert same(load_glue(name, place, "dev"), part(name, 0))
    assert same(load_glue("mnli", root, "dev_mismatched"), part("mnli", 1))
    assert not (tmp_path / "user_cache").exists()  # reading copies nothing


def test_cache_of_the_library(library, tmp_path):
    names, cache = ("mrpc", "mnli", "stsb"), tmp_path / "cache"
    root = hub(library, tmp_path, names)
    for name in names:
        library.load_dataset(str(root), name, cache_dir=str(cache))
    written = {file.name for file in cache.rglob("*.arrow")}
    assert {"glue-train.arrow", "glue-validation.arrow", "glue-validation_mismatched.arrow"} <= written
    for name in names:
        deepest = next((cache / "glue" / name).rglob("glue-train.arrow")).parent
        for place in (cache, cache / "glue", cache / "glue" / name, deepest):
            assert same(load_glue(name, place), EXPECTED[name])
            assert same(load_glue(name, place, "dev"), part(name, 0))
    assert same(load_glue("mnli", cache, "dev_mismatched"), part("mnli", 1))
    for place in (cache, deepest):
        with refused("holds no RTE"):
            load_glue("rte", place)
    next((cache / "glue" / "mrpc").rglob("glue-validation.arrow")).unlink()
    with refused("mrpc.*validation is missing", "glue-train.arrow"):
        load_glue("mrpc", cache, "dev")


def cached(library, folder: Path, prefix: str, rows, config: str = "rte") -> Path:
    """Write one split as the library's cache has it."""
    folder.mkdir(parents=True)
    with library.arrow_writer.ArrowWriter(features=rows.features, path=str(folder / f"{prefix}.arrow")) as writer:
        for row in rows:
            writer.write(row)
        writer.finalize()
    (folder / "dataset_info.json").write_text(json.dumps({"config_name": config}))
    return folder


def test_cache_prefers_glue_and_then_the_newest(library, tmp_path):
    rows = rows_of(library, "rte")
    old = cached(library, tmp_path / "glue" / "rte" / "b", "glue-train", rows.select([0]))
    new = cached(library, tmp_path / "glue" / "rte" / "a", "glue-train", rows.select([1]))
    other = cached(library, tmp_path / "super_glue" / "rte" / "c", "super_glue-train", rows)
    for age, folder in enumerate((other, new, old)):
        os.utime(folder, (10**9 - age, 10**9 - age))
    assert same(load_glue("rte", tmp_path), part("rte", 1))
    os.utime(old, (10**9 + 9, 10**9 + 9))
    assert same(load_glue("rte", tmp_path), part("rte", 0))
    assert same(load_glue("rte", tmp_path / "super_glue"), EXPECTED["rte"])
    (new / "dataset_info.json").write_text("not json")
    with refused("holds no RTE"):
        load_glue("rte", new)


def test_shards_are_joined_in_order(library, tmp_path):
    rows = rows_of(library, "wnli")
    arrow = cached(library, tmp_path / "arrow", "glue-train-00001-of-00002", rows.select([1]), "wnli")
    first = cached(library, tmp_path / "first", "glue-train-00000-of-00002", rows.select([0]), "wnli")
    with refused("train has 1 of 2 files"):
        load_glue("wnli", arrow)
    (first / "glue-train-00000-of-00002.arrow").rename(arrow / "glue-train-00000-of-00002.arrow")
    assert same(load_glue("wnli", arrow), EXPECTED["wnli"])
    parquet = tmp_path / "parquet"
    parquet.mkdir()
    for k in (1, 0):
        rows.select([k]).to_parquet(parquet / f"train-0000{k}-of-00002.parquet")
        if k:
            with refused("train has 1 of 2 files"):
                load_glue("wnli", parquet)
    assert same(load_glue("wnli", parquet), EXPECTED["wnli"])


def test_classes_in_another_order_are_matched_by_name(library, tmp_path):
    rows = rows_of(library, "mnli", names=("contradiction", "entailment", "neutral"), label=[2, 0])
    library.DatasetDict({"train": rows}).save_to_disk(tmp_path / "saved")
    assert load_glue("mnli", tmp_path / "saved").labels.tolist() == [1, 2]


def test_labels_without_names_are_indices(library, tmp_path):
    rows = rows_of(library, "mnli").cast_column("label", library.Value("int64"))
    library.DatasetDict({"train": rows.with_format("numpy")}).save_to_disk(tmp_path / "saved")
    examples = load_glue("mnli", tmp_path / "saved")
    assert same(examples, EXPECTED["mnli"]) and {type(text) for text in examples.first} == {str}


@pytest.mark.parametrize(
    ("name", "change", "parts"),
    [
        ("rte", {"label": [0, -1]}, ["row 1 ", "label -1", "0, 1"]),
        ("stsb", {"label": [5.0, 5.5]}, ["row 1 ", "label 5.5", "0 to 5"]),
        ("stsb", {"label": [np.nan, 1.0]}, ["row 0 ", "label nan", "0 to 5"]),
        ("rte", {"label": [None, 1]}, ["row 0 ", "label None", "0, 1"]),
        ("rte", {"sentence2": ["x", None]}, ["without text", "sentence2"]),
        ("rte", {"names": ("no", "yes")}, [r"classes \['no', 'yes'\]", "entailment, not_entailment"]),
        ("rte", {"names": ("entailment",), "label": [0, 0]}, ["classes", "not_entailment"]),
        ("stsb", {"names": ("a", "b"), "label": [0, 1]}, ["classes", "scores"]),
    ],
)
def test_unusable_dataset(library, tmp_path, name, change, parts):
    library.DatasetDict({"train": rows_of(library, name, **change)}).save_to_disk(tmp_path / "saved")
    with refused("saved, split train", *parts):
        load_glue(name, tmp_path / "saved")


def test_dataset_of_another_task(library, tmp_path):
    rows = rows_of(library, "rte")
    with refused("lacks the column 'question'", "sentence1"):
        library.DatasetDict({"train": rows}).save_to_disk(tmp_path / "rte")
        load_glue("qnli", tmp_path / "rte")
    rows.info.config_name = "rte"  # WNLI has the same columns, and the same classes in another order
    library.DatasetDict({"train": rows}).save_to_disk(tmp_path / "more" / "named")
    assert same(load_glue("rte", tmp_path / "more" / "named"), EXPECTED["rte"])
    with refused("holds the task 'rte'", "allowed: 'wnli'"):
        load_glue("wnli", tmp_path / "more" / "named")
    for folder in (tmp_path / "more", tmp_path / "more" / "named" / "train"):  # a saved split is no cache
        with refused("holds no RTE"):
            load_glue("rte", folder)


def test_dataset_without_the_split_or_examples(library, tmp_path):
    saved, parquet = tmp_path / "saved", tmp_path / "parquet"
    library.DatasetDict({"train": rows_of(library, "rte").select([])}).save_to_disk(saved)
    with refused("saved/validation is missing", r"\(train\)"):
        load_glue("rte", saved, "dev")
    with refused("saved, split train is empty"):
        load_glue("rte", saved)
    parquet.mkdir()
    pq = pytest.importorskip("pyarrow.parquet")
    pq.write_table(rows_of(library, "rte").data.table.slice(0, 0), parquet / "train-00000-of-00001.parquet")
    with refused("parquet, split train is empty"):
        load_glue("rte", parquet)
    rows_of(library, "rte").to_parquet(parquet / "train-00000-of-00001.parquet")
    with refused("parquet/validation is missing", r"\(train-00000-of-00001.parquet\)"):
        load_glue("rte", parquet, "dev")


def test_files_that_the_library_did_not_write(library, tmp_path):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 not parquet")
    with refused("cannot be read", "datasets library"):
        load_glue("rte", tmp_path)
    for text in ("not json", "{}", '{"splits": ["train"]}'):
        (tmp_path / "dataset_dict.json").write_text(text)
        with refused("cannot be read", "datasets library"):
            load_glue("rte", tmp_path)


@pytest.mark.parametrize("module", ["datasets", "pyarrow"])
def test_library_is_not_installed(tmp_path, monkeypatch, module):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    monkeypatch.setitem(sys.modules, module, None)
    with refused("datasets library", "not installed", r"pip install 'rmtjax\[datasets\]'"):
        load_glue("rte", tmp_path)


def test_official_files_do_not_need_the_library(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(load_glue("rte", official(tmp_path, "rte"))) == 2


# --- scores -------------------------------------------------------------------------------------------------------


def test_metrics_are_glues():
    both, correlations = {"accuracy", "f1"}, {"pearson", "spearman"}
    expected = {"mrpc": both, "qqp": both, "cola": {"matthews"}, "stsb": correlations}
    for name in GLUE:
        scores = score(name, [0, 1, 1], [0, 1, 0])
        assert set(scores) == expected.get(name, {"accuracy"}) == set(GLUE[name].metrics)
        assert GLUE[name].headline in scores and all(type(value) is float for value in scores.values())


def test_scores_by_hand():
    given, true = [1, 1, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 1, 1, 0]  # 3 hits, 3 rejections, 1 false alarm, 1 miss
    assert score("rte", given, true) == {"accuracy": 0.75}
    assert score("mrpc", given, true) == pytest.approx({"accuracy": 0.75, "f1": 0.75})
    assert score("cola", given, true) == pytest.approx({"matthews": 0.5})  # (3·3 − 1·1) / √(4·4·4·4)
    # F1 is of class 1: 1 hit, 2 false alarms, 0 misses among 5 → 2/(2 + 2), and is not symmetric in the classes.
    assert score("QQP", [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]) == pytest.approx({"accuracy": 0.6, "f1": 0.5})
    assert score("mnli", [0, 1, 2, 2], [0, 1, 1, 2]) == {"accuracy": 0.75}
    # Deviations (−1, 0, 1) and (−1, −1, 2): 3/√(2·6); ranks 1, 2, 3 and 1.5, 1.5, 3: 1.5/√(2·1.5).
    found = score("stsb", [1.0, 2.0, 3.0], [0.0, 0.0, 3.0])
    assert found == pytest.approx({"pearson": 3 / np.sqrt(12), "spearman": np.sqrt(3) / 2})


def test_scores_by_other_formulas():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 2, 500)
    given = np.where(rng.random(500) < 0.7, true, rng.random(500) < 0.3).astype(int)
    precision, recall = np.mean(true[given == 1]), np.mean(given[true == 1])
    found = score("mrpc", given, true)
    assert found["f1"] == pytest.approx(2 / (1 / precision + 1 / recall), rel=1e-12)
    assert found["accuracy"] == 1 - np.abs(true - given).mean()
    # Matthews correlation is Pearson correlation of two binary variables.
    assert score("cola", given, true)["matthews"] == pytest.approx(np.corrcoef(true, given)[0, 1], rel=1e-12)
    truth = rng.integers(0, 11, 300) / 2
    guess = np.exp(truth) + 30 * rng.standard_normal(300)
    found = score("stsb", guess.astype(np.float32), truth.astype(np.float32))
    assert found["pearson"] == pytest.approx(np.corrcoef(guess, truth)[0, 1], rel=1e-6)
    ranks = [[np.sum(x < value) + np.sum(x == value) / 2 for value in x] for x in (guess, truth)]
    assert found["spearman"] == pytest.approx(np.corrcoef(ranks)[0, 1], rel=1e-9)
    assert abs(found["pearson"] - found["spearman"]) > 0.01


def test_constant_predictions_have_no_correlation_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given, true in (([1, 1, 1], [0, 1, 1]), ([0, 1, 1], [1, 1, 1]), ([1, 1], [1, 1]), ([0], [0])):
            assert score("cola", given, true) == {"matthews": 0.0}
            assert score("stsb", given, true) == {"pearson": 0.0, "spearman": 0.0}
        assert score("mrpc", [0, 0], [0, 0]) == {"accuracy": 1.0, "f1": 0.0}
        assert score("mrpc", [0, 0], [1, 1]) == {"accuracy": 0.0, "f1": 0.0}
        assert score("mrpc", [1, 1], [1, 1]) == {"accuracy": 1.0, "f1": 1.0}


@pytest.mark.parametrize(
    ("name", "given", "true", "parts"),
    [
        ("rte", [0, 1], [0, 1, 1], ["predictions has 2", "labels 3", "same number"]),
        ("rte", [], [], ["predictions", r"shape \(0,\)", "at least 1"]),
        ("rte", [[0.1, 0.9]], [1], ["predictions", r"shape \(1, 2\)", r"\(n,\)"]),
        ("rte", [0, 2], [0, 1], ["predictions holds 2", "rte", "0 to 1"]),
        ("mnli", [0, 2], [0, -1], ["labels holds -1", "mnli", "0 to 2"]),
        ("rte", [0, 0.5], [0, 1], ["predictions holds 0.5", "class indices"]),
        ("rte", [0, np.nan], [0, 1], ["predictions holds nan", "class indices"]),
        ("stsb", [0, np.inf], [0, 1], ["predictions holds inf", "finite"]),
        ("rte", ["entailment"], [0], ["predictions = ", "entailment", "class indices"]),
        ("rte", None, [0], ["predictions", "shape"]),
    ],
)
def test_score_refuses(name, given, true, parts):
    with refused(*parts):
        score(name, given, true)


def test_score_takes_what_load_glue_gives(tmp_path):
    for name in GLUE:
        labels = load_glue(name, official(tmp_path, name)).labels
        assert score(name, labels, labels)[GLUE[name].headline] == pytest.approx(1.0)


# --- the real files -----------------------------------------------------------------------------------------------

# Examples and the share of class 1 of each split, as the hub's data set has them.
PUBLISHED = {
    ("mrpc", "train"): (3668, 2474),
    ("mrpc", "dev"): (408, 279),
    ("rte", "train"): (2490, 1241),
    ("rte", "dev"): (277, 131),
    ("cola", "train"): (8551, 6023),
    ("cola", "dev"): (1043, 721),
    ("sst2", "train"): (67349, 37569),
    ("sst2", "dev"): (872, 444),
    ("qnli", "dev"): (5463, 2761),
}
# Copies are in use that lack one pair of MRPC's train split.
LACKING = {("mrpc", "train"): 1}


@pytest.mark.parametrize(("name", "split"), PUBLISHED)
def test_real_split(name, split):
    file = DATA and DATA / GLUE[name].folder / f"{split}.tsv"
    if not file or not file.is_file():
        pytest.skip(f"no glue/{GLUE[name].folder}/{split}.tsv under RMTJAX_DATA or ../shared/data")
    examples = load_glue(name, DATA, split)
    count, ones = PUBLISHED[name, split]
    lines = [line for line in file.read_bytes().split(b"\n") if line]
    assert len(examples) == len(lines) - (name != "cola") and examples.skipped == 0
    assert count - LACKING.get((name, split), 0) <= len(examples) <= count
    missing = count - len(examples)
    assert ones - missing <= np.count_nonzero(examples.labels) <= ones
    assert set(examples.labels.tolist()) == {0, 1} and all(examples.first)
    assert (examples.second is None) == (len(GLUE[name].columns) == 1)
    # Every sentence stands in its line as it is, quotes included.
    start = len(lines) - len(examples)
    for line, *texts in zip(lines[start:], *filter(None, (examples.first, examples.second)), strict=True):
        assert all(text.encode() in line for text in texts)


def test_real_mrpc_begins_as_it_should():
    if not DATA or not (DATA / "MRPC" / "train.tsv").is_file():
        pytest.skip("no glue/MRPC/train.tsv under RMTJAX_DATA or ../shared/data")
    examples = load_glue("mrpc", DATA)
    assert examples.first[0].startswith('Amrozi accused his brother , whom he called " the witness " ,')
    assert examples.second[0].startswith('Referring to him as only " the witness " ,') and examples.labels[0] == 1
    dev = load_glue("mrpc", DATA, "dev")
    pairs, dev_pairs = (set(zip(part.first, part.second, strict=True)) for part in (examples, dev))
    assert len(dev_pairs) > 400 and not pairs & dev_pairs
