"""Texts to tokens, by Hugging Face's `tokenizers`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from rmtjax._errors import InputError, shown
from rmtjax.models.config import EncoderConfig

__all__ = ["Tokenizer"]


def _settings(folder: Path) -> dict:
    try:
        values = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError):
        return {}
    return values if isinstance(values, dict) else {}


def _read(folder: Path):
    """Return the fast tokeniser of a folder: `tokenizer.json`, or built from the vocabulary files of older ones."""
    from tokenizers import Tokenizer as Fast
    from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing

    if (folder / "tokenizer.json").is_file():
        return Fast.from_file(str(folder / "tokenizer.json"))
    settings = _settings(folder)
    if (folder / "vocab.txt").is_file():
        return BertWordPieceTokenizer(
            str(folder / "vocab.txt"),
            lowercase=settings.get("do_lower_case", True),
            strip_accents=settings.get("strip_accents"),
            handle_chinese_chars=settings.get("tokenize_chinese_chars", True),
        )
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        fast = ByteLevelBPETokenizer(
            str(folder / "vocab.json"),
            str(folder / "merges.txt"),
            add_prefix_space=settings.get("add_prefix_space", False),
        )
        fast.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
        end, start = (("</s>", fast.token_to_id("</s>")), ("<s>", fast.token_to_id("<s>")))
        fast._tokenizer.post_processor = RobertaProcessing(end, start, add_prefix_space=False)
        return fast
    raise InputError(f"model = {folder}: holds no tokenizer.json, no vocab.txt, and no vocab.json with merges.txt")


class Tokenizer:
    """Turns texts, or pairs of them, into the tokens that an encoder was trained on.

    Args:
        folder: of the model.
        config: of the model; its vocabulary must hold every token.

    Raises:
        InputError: if the folder has no tokeniser, it cannot be read, or does not fit the model.
    """

    def __init__(self, folder: str | os.PathLike, config: EncoderConfig) -> None:
        folder = self._folder = Path(folder)
        try:
            self._fast = _read(folder)
        except InputError:
            raise
        except Exception as error:  # tokenizers raises plain Exception, and panics, on a broken file
            raise InputError(f"model = {folder}: the tokeniser cannot be read ({shown(str(error))})") from None
        most = max(self._fast.get_vocab(with_added_tokens=True).values(), default=0)
        if most >= config.vocab_size:
            raise InputError(
                f"model = {folder}: the tokeniser has tokens up to {most}, but the model's vocabulary ends at"
                f" {config.vocab_size - 1}"
            )
        self._fast.no_padding()
        self._most = config.vocab_size - 1
        self._types = config.type_vocab_size
        self._longest = config.max_length
        self.pad = config.pad_token_id

    def __call__(
        self, first: Sequence[str], second: Sequence[str] | None = None, max_length: int = 128
    ) -> tuple[list[Int32[np.ndarray, " length"]], list[Int32[np.ndarray, " length"]]]:
        """Return tokens and token types of each text or pair; longer ones are cut to `max_length`, the longer text first.

        Raises:
            InputError: if `max_length` is below 3 (4 for RoBERTa's pairs, whose special tokens are as many) or above what
                the model has positions for, or the texts are not a list, or their number differs from that of the seconds.
        """
        for name, texts in (("first", first), ("second", second)):
            if isinstance(texts, str):
                raise InputError(f"{name} = {shown(texts)}: must be a list of texts")
        if second is not None and len(first) != len(second):
            raise InputError(f"second has {len(second)} texts: must have as many as first, {len(first)}")
        least = max(3, self._fast.num_special_tokens_to_add(second is not None))
        if not least <= max_length <= self._longest:
            raise InputError(f"max_length = {max_length}: must be {least} to {self._longest}, the model's positions")
        pairs = list(first) if second is None else list(zip(first, second, strict=True))
        try:
            self._fast.enable_truncation(max_length, strategy="longest_first")
            encoded = self._fast.encode_batch(pairs)
        except Exception as error:
            raise InputError(f"model = {self._folder}: the tokeniser cannot be used ({shown(str(error))})") from None
        ids = [np.asarray(e.ids, np.int32) for e in encoded]
        most = max((int(i.max(initial=0)) for i in ids), default=0)
        if most > self._most:  # from a template that names tokens outside the vocabulary
            raise InputError(
                f"model = {self._folder}: the tokeniser gives token {most}, but the model's vocabulary ends at {self._most}"
            )
        types = [np.minimum(np.asarray(e.type_ids, np.int32), self._types - 1) for e in encoded]
        return ids, types
