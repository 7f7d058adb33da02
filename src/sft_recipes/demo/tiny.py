"""A base model made small: its own architecture and tokenizer, two layers, random weights.

`preview.py` and `rehearse.py` need a model that upstream loads like the real one, and never its weights. Built in a
process of its own by `python -m sft_recipes.demo.tiny DIRECTORY`; nothing here imports torch before that.
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from sft_recipes import children
from sft_recipes.data import tokens
from sft_recipes.demo import demo_base
from sft_recipes.errors import InputError
from sft_recipes.files import sha256
from sft_recipes.models import base_model

CACHE = Path(".cache/rehearsal")
# A multiple of 64, the block size of NF4: a layer of other widths would be padded, which the real ones are not.
WIDTH = 64


@dataclasses.dataclass(frozen=True)
class Base:
    """What a tiny model is made from."""

    name: str
    config: dict[str, Any]
    """config.json of the real model."""
    tokenizer: Path | None
    """The directory of its tokenizer, or None where that is not on this machine."""

    @property
    def directory(self) -> Path:
        """Where the tiny model is, or will be: another directory whenever another model would be built."""
        sources = [Path(__file__), *demo_base.SOURCES, *_files(self.tokenizer)]
        contents = [*map(sha256, sources)]
        key = json.dumps([self.config, contents, metadata.version("transformers")], sort_keys=True)
        return CACHE / hashlib.sha256(key.encode()).hexdigest()[:16]


def find(name: str, revision: str) -> Base:
    """The base model of that name, from its directory, the Hub's cache or the bundled configs. Nothing is downloaded.

    Raises:
        InputError: Its config is on none of them.
    """
    found = base_model.find_config(name, revision)
    if found is None:
        raise InputError(
            f"model_name_or_path {name} (revision {revision}): its config is not on this machine. Fetch all but the "
            f"weights with: {fetch(name, revision)}"
        )
    return Base(name, found[0], tokens.directory_of(name, revision))


def fetch(name: str, revision: str) -> str:
    """The command that downloads a model's config and tokenizer, some megabytes, without its weights."""
    kinds = " ".join(f"--include '{kind}'" for kind in base_model.FETCHED)
    return f"hf download {name} --revision {revision} {kinds}"


def _files(directory: Path | None) -> list[Path]:
    """The files that come with a tokenizer, without the model's config."""
    if directory is None:
        return []
    return sorted(
        path
        for kind in base_model.FETCHED
        for path in directory.glob(kind)
        if path.name != "config.json" and not path.name.endswith(".index.json")
    )


def make(base: Base) -> Path:
    """The directory of the tiny model, built now if it is not there.

    Raises:
        InputError: transformers cannot build it.
    """
    if not base.directory.is_dir():
        asked = {"config": base.config, "tokenizer": base.tokenizer and str(base.tokenizer)}
        failure = f"transformers cannot build a tiny {base.name}"
        children.call("sft_recipes.demo.tiny", asked, str(base.directory), failure=failure)
    return base.directory


def build(directory: Path, config: dict[str, Any], tokenizer: Path | None) -> None:
    """Write the tiny model with the tokenizer, the demo's where there is none; it appears only when it is whole."""
    import torch
    from transformers import AutoTokenizer

    from sft_recipes.models import census

    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        work.chmod(0o755)
        words = AutoTokenizer.from_pretrained(str(tokenizer)) if tokenizer else demo_base.train_tokenizer()
        small = shrunk(config, len(words))
        if tokenizer is None:
            for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
                # Some configs want a number of each, and the demo's tokenizer has no beginning of a text.
                number = getattr(words, key)
                setattr(small.get_text_config(), key, words.eos_token_id if number is None else number)
        torch.manual_seed(0)
        census.build(small, dtype=torch.bfloat16).save_pretrained(work)
        if tokenizer is None:
            words.save_pretrained(work)
        # The files themselves, because a tokenizer that is read and written again need not be the same one.
        for path in _files(tokenizer):
            shutil.copyfile(path, work / path.name)
        if not directory.is_dir():
            work.replace(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def shrunk(config: dict[str, Any], vocabulary: int) -> Any:
    """A transformers config of the same architecture, small: one layer of each kind and at least two, narrow layers.

    The model type, the kinds of attention, the width of a head, the heads that share a key, experts and everything
    else stay. A list with an entry for each layer keeps those of the layers that stay.
    """
    from sft_recipes.models.census import config_of

    full = config_of({key: value for key, value in config.items() if key != "quantization_config"})
    text = full.get_text_config()
    layers, heads, full_width = text.num_hidden_layers, text.num_attention_heads, text.hidden_size
    # As they are written: what differs from layer to layer cannot be asked of the config as a whole.
    written = text.to_dict()
    kinds = written.get("layer_types") or [None] * layers
    firsts = sorted({kinds.index(kind) for kind in kinds})
    kept = firsts if len(firsts) > 1 else [*range(layers)][:2]
    for key, value in written.items():
        if isinstance(value, list) and len(value) == layers and key != "architectures":
            setattr(text, key, [value[index] for index in kept])
    shared = heads // (written.get("num_key_value_heads") or heads)
    text.num_hidden_layers = len(kept)
    if differing := {int(layer): values for layer, values in (written.get("per_layer_config") or {}).items()}:
        text.per_layer_config = {new: differing[old] for new, old in enumerate(kept) if old in differing}
    text.num_attention_heads = shared if shared > 1 else 2
    if written.get("num_key_value_heads"):
        text.num_key_value_heads = text.num_attention_heads // shared
    number, width = text.num_attention_heads, full_width // heads
    if written.get("head_dim"):
        text.hidden_size = WIDTH if WIDTH % number == 0 else WIDTH * number
    else:
        # A head's width is its share of the hidden size, and RoPE may have a factor for each of its pairs.
        text.hidden_size = number * (width if width % WIDTH == 0 else WIDTH)
    for key in ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"):
        if written.get(key):
            setattr(text, key, 2 * WIDTH)
    text.vocab_size = vocabulary
    if written.get("vocab_size_per_layer_input"):
        text.vocab_size_per_layer_input = vocabulary
    for part in (full, text):
        # An embedding has room for it, which that of fewer tokens need not have.
        if (getattr(part, "pad_token_id", None) or 0) >= vocabulary:
            part.pad_token_id = None
    for part in (getattr(full, name, None) for name in full.sub_configs):
        # Parts that see or hear, which rows of text never reach.
        if part is not None and part is not text:
            small = {
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "hidden_size": 2 * WIDTH,
                "intermediate_size": WIDTH,
            }
            for key in small.keys() & part.to_dict().keys():
                setattr(part, key, small[key])
    return full


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    build(Path(sys.argv[1]), asked["config"], asked["tokenizer"] and Path(asked["tokenizer"]))
