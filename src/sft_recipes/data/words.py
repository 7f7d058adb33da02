"""The tokens of plain ASCII text, word by word: the words of a text repeat, and its tokens are those of its words.

Tokenizers of byte-level BPE, as those of GPT-2, Llama 3 and Qwen are, cut a text into words by a regular expression,
and no word has a say in the tokens of another. Cutting costs `tokenizers` most of its time. Within ASCII Python's `re`
cuts the same, since letters, digits and white space are the same to both there, and the tokenizer's own model makes
the tokens of each word once. All other text is the tokenizer's.
"""

import itertools
import json
import re
import string
from collections.abc import Iterable, Iterator
from typing import Any

# What cuts within ASCII as the expression of a `tokenizer.json` does everywhere.
_LETTERS, _DIGITS = "a-zA-Z", "0-9"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_KNOWN = {_LLAMA3, _LLAMA3.replace("{1,3}", "")}
# Words that are remembered, about 200 bytes each.
_MOST = 1 << 17
_PROBE = (
    f"{string.printable}I'll we'RE  don't\tx\n\n y \r\n 12345 a1b2 <|x|> --> _i_(self, **k):  # {string.punctuation}"
)


class Words(dict[str, list[int]]):
    """Tokens by word, of a tokenizer that `of` knows."""

    def __init__(self, model: Any, pattern: str, letters: dict[int, str], added: dict[str, list[int]]) -> None:
        # Within square brackets, and outside of them.
        inside = re.sub(r"\[[^\]]*\]", lambda each: _plain(each.group()), pattern)
        self._words = re.compile(inside.replace(r"\p{L}", f"[{_LETTERS}]").replace(r"\p{N}", f"[{_DIGITS}]"), re.ASCII)
        self._model, self._letters, self._added = model, letters, added
        tokens = sorted(added, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None

    def __missing__(self, word: str) -> list[int]:
        ids = [token.id for token in self._model.tokenize(word.translate(self._letters))]
        if len(self) < _MOST:
            self[word] = ids
        return ids

    def ids(self, texts: Iterable[str]) -> Iterator[list[int] | None]:
        """The tokens of texts, of which what several have between control tokens is cut once; None where not ASCII."""
        known = dict(self._added)
        for text in texts:
            if not text.isascii():
                yield None
                continue
            found: list[int] = []
            for part in self._cut.split(text) if self._cut else [text]:
                if (held := known.get(part)) is None:
                    words = map(self.__getitem__, self._words.findall(part))
                    held = known[part] = [*itertools.chain.from_iterable(words)]
                found += held
            yield found


def _plain(within: str) -> str:
    return within.replace(r"\p{L}", _LETTERS).replace(r"\p{N}", _DIGITS)


def of(loaded: Any) -> Words | None:
    """The words of a loaded tokenizer; None where its tokens are not those of words that are cut as is known here."""
    if not loaded.is_fast or loaded.split_special_tokens:
        return None
    from tokenizers import models, normalizers, pre_tokenizers

    backend = loaded.backend_tokenizer
    model, normalizer, cuts = backend.model, backend.normalizer, backend.pre_tokenizer
    # As tokenizer.json has it, without the vocabulary.
    pattern = _pattern(json.loads(cuts.__getstate__())) if cuts is not None else None
    affixes = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    plain = isinstance(model, models.BPE) and not any(getattr(model, name) for name in affixes)
    # Composed characters are none of ASCII.
    plain &= normalizer is None or isinstance(normalizer, normalizers.NFC)
    added = [*loaded.added_tokens_decoder.items()]
    odd = any(each.normalized or each.lstrip or each.rstrip or each.single_word for _, each in added)
    if pattern is None or not plain or odd:
        return None
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = {code: level.pre_tokenize_str(chr(code))[0][0] for code in range(128)}
    words = Words(model, pattern, letters, {each.content: [token] for token, each in added})
    probe = _PROBE + "".join(words._added)
    return words if next(words.ids([probe])) in (None, loaded(probe, add_special_tokens=False)["input_ids"]) else None


def _pattern(described: dict[str, Any]) -> str | None:
    """The expression by which a pre-tokenizer of byte-level BPE cuts a text, if it is a known one."""
    *before, level = described.get("pretokenizers", [described])
    if level.get("type") != "ByteLevel" or level["add_prefix_space"]:
        return None
    if not before:
        return _GPT2 if level["use_regex"] else None
    split = before[0]
    if len(before) > 1 or split["type"] != "Split" or split["behavior"] != "Isolated" or split["invert"]:
        return None
    own = split["pattern"].get("Regex")
    return own if own in _KNOWN and not level["use_regex"] else None
