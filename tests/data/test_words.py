"""Text that is cut into words here has the tokens that its tokenizer makes of it."""

import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, normalizers, pre_tokenizers

from sft_recipes.data import tokens, words


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return tokens.read(tiny_model)


def split(pattern: str) -> Any:
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


@pytest.mark.parametrize("pattern", [None, *sorted(words._KNOWN)])
def test_words_have_the_tokens_of_their_text(tokenizer: Any, pattern: str | None) -> None:
    if pattern:
        tokenizer.backend_tokenizer.pre_tokenizer = split(pattern)
    known = words.of(tokenizer)
    assert known is not None
    rng = random.Random(1)  # noqa: S311, seeded texts, no secrets
    often = [" ", "  ", "\n", "\r\n", "'s", "'LL", "<|im_end|>", "<|im_", "order", "don", "12"] * 8
    letters = [chr(code) for code in range(128)] + often
    texts = ["".join(rng.choices(letters, k=rng.randint(0, 60))) for _ in range(3000)]
    assert [*known.ids(texts)] == tokenizer(texts, add_special_tokens=False)["input_ids"]
    assert [*known.ids(["caf\u00e9"])] == [None]


def test_what_is_not_known_to_be_cut_so_is_left_to_the_tokenizer(tokenizer: Any) -> None:
    backend = tokenizer.backend_tokenizer
    for own in (split(r"\w+"), pre_tokenizers.Metaspace(), pre_tokenizers.ByteLevel(add_prefix_space=True)):
        before, backend.pre_tokenizer = backend.pre_tokenizer, own
        assert words.of(tokenizer) is None
        backend.pre_tokenizer = before
    assert words.of(tokenizer) is not None
    backend.normalizer = normalizers.Lowercase()
    assert words.of(tokenizer) is None
