"""llama.cpp's converter, which also takes a tokenizer that it knows by no name but could know by what it does.

`python -m sft_recipes.deploy.convert CONVERTER ARGUMENTS`. The converter tells tokenizers by a hash of what they make
of one text, and refuses all others, such as the demo's own. One that splits as `ByteLevel` alone does splits as GPT-2.
"""

import importlib
import json
import runpy
import sys
from pathlib import Path
from typing import Any


def plain_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether a tokenizer.json splits a text by GPT-2's expression and by nothing else."""
    splits = tokenizer.get("pre_tokenizer") or {}
    level = splits.get("type") == "ByteLevel" and splits.get("use_regex", True) and not splits.get("add_prefix_space")
    return bool(level) and tokenizer.get("normalizer") is None


def main(converter: Path) -> None:
    """Run the converter as it is run by hand."""
    sys.path.insert(0, str(converter.parent))
    if (converter.parent / "gguf-py").is_dir():
        sys.path.insert(1, str(converter.parent / "gguf-py"))
    try:
        model = importlib.import_module("conversion.base").TextModel
    except ImportError:
        # An older converter is one file, and knows the tokenizers that it knows.
        model = None
    if model is not None:
        known = model.get_vocab_base_pre

        def named(self: Any, tokenizer: Any) -> str:
            try:
                return known(self, tokenizer)
            except NotImplementedError:
                written = json.loads((Path(self.dir_model) / "tokenizer.json").read_text(encoding="utf-8"))
                if not plain_byte_level(written):
                    raise
                return "gpt-2"

        model.get_vocab_base_pre = named
    runpy.run_path(str(converter), run_name="__main__")


if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    main(Path(sys.argv[0]))
