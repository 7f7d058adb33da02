"""The demo's base model: a small causal LM pre-trained, in under a minute, on the shop's conversations.

It reads what customers write and what the shop's agents answer, and never sees the instruction with a label as its
answer. So it brings what a real base model brings to fine-tuning, an understanding of the text, and cannot do the task
by itself. (The answers follow from what the customer wants, as they would in a shop's log: they hold the task's
meaning, which a baseline that reads only the labelled rows does not get.)
"""

import hashlib
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from sft_recipes.demo import demo_data
from sft_recipes.files import sha256

DIRECTORY = Path(".cache/demo/base")
SAID = "building the demo's base model"

SEED = 7
STEPS = 400
BATCH = 16
WARM_UP = 20
MATRIX_RATE = 0.02
OTHER_RATE = 4e-3
VOCABULARY = 1408
# The first part reads mostly lists of phrases that mean the same: what each phrase means is soon learned from them,
# and only then can it be learned which of two topics is asked.
LIST_DOCUMENTS = 2000
LIST_SHARE = 0.8
# What customers write is mostly chance; what agents answer follows from it.
MESSAGE_WEIGHT = 0.1

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The system role needs no case of its own: it is written as it comes.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- else -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""
# What decides how the model comes out.
SOURCES = (Path(__file__), Path(demo_data.__file__), Path(__file__).with_name("phrases.yaml"))


class Document(NamedTuple):
    """A pre-training text; `context` is read mostly to be able to go on with `continuation`."""

    context: str
    continuation: str


def documents(seed: int) -> Iterator[Document]:
    """Endless pre-training texts, none with a message of the validation or test split."""
    rng = random.Random(seed)
    rows = demo_data.splits()
    held_out = {demo_data.words(row["input"]) for name in ("validation", "test") for row in rows[name]}

    def phrase(phrases: list[str]) -> str:
        return rng.choice(phrases).replace("{item}", rng.choice(demo_data.ITEMS))

    for number, (text, label, _, mentioned) in enumerate(demo_data.messages(rng, held_out)):
        actions, things, replies = (demo_data.INTENTS[label][kind] for kind in ("actions", "things", "replies"))
        draw = rng.random()
        if number < LIST_DOCUMENTS and draw < LIST_SHARE:
            same = rng.sample(actions + things + replies, 5)
            yield Document("", "".join(phrase([each]) + "\n" for each in same))
            continue
        reply = f"{rng.choice(replies)} You want to {phrase(actions)}, it is about {phrase(things)}"
        reply += f", not {phrase(demo_data.INTENTS[mentioned]['things'])}." if mentioned else "."
        request = rng.choice(demo_data.PHRASES["requests"])
        if rng.random() < 0.5:
            topics = rng.sample(demo_data.LABELS, rng.randrange(3, len(demo_data.LABELS) + 1))
            request += f" We help with {', '.join(topics)}."
            if rng.random() < 0.2:
                # Any of them, whatever the message: as an answer a label word is known, and says nothing.
                reply = rng.choice(topics)
        yield Document(_asked(f"{request}\n\n{text}"), f"{reply}{END}\n")


def _asked(user: str) -> str:
    return f"{START}user\n{user}{END}\n{START}assistant\n"


def _fingerprint(steps: int) -> str:
    return hashlib.sha256("\0".join([*map(sha256, SOURCES), str(steps)]).encode()).hexdigest()


def is_current(directory: Path, steps: int = STEPS) -> bool:
    """Whether the directory holds the model that `build` would write now."""
    marker = directory / "fingerprint"
    return marker.is_file() and marker.read_text(encoding="utf-8") == _fingerprint(steps)


def build(directory: Path, steps: int = STEPS) -> None:
    """Writes the model and its tokenizer; the directory appears, or is replaced, only when both are whole."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        work.chmod(0o755)
        tokenizer = train_tokenizer()
        tokenizer.save_pretrained(work)
        _pretrain(tokenizer, steps).save_pretrained(work)
        (work / "fingerprint").write_text(_fingerprint(steps), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        work.replace(directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def train_tokenizer() -> Any:
    """A byte-level BPE tokenizer of the demo's own text, with the chat template; the end of a turn ends the answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rows = demo_data.splits()["train"]
    replies = [reply for intent in demo_data.INTENTS.values() for reply in intent["replies"]]
    texts = [text for row in rows for text in (row["input"], row["output"])]
    fixed = [demo_data.INSTRUCTION, "We help with You want to, it is about", "system\n", "user\n", "assistant\n"]
    texts += [*replies, *demo_data.PHRASES["requests"], *fixed] * 20
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, additional_special_tokens=[START], model_max_length=512
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _batches(tokenizer: Any, steps: int) -> Iterator[tuple[Any, Any]]:
    """One document a row, so that none is read through another; rows of like length share a batch."""
    import torch

    source = documents(SEED)
    rng = random.Random(SEED)
    pool: list[list[tuple[list[int], list[float]]]] = []
    for _ in range(steps):
        if not pool:
            rows = []
            for context, continuation in islice(source, 16 * BATCH):
                before = tokenizer(context)["input_ids"] if context else []
                after = tokenizer(continuation)["input_ids"]
                rows.append((before + after, [MESSAGE_WEIGHT] * len(before) + [1.0] * len(after)))
            rows.sort(key=lambda row: len(row[0]))
            pool = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
            rng.shuffle(pool)
        batch = pool.pop()
        width = len(batch[-1][0])
        yield (
            torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batch]),
            torch.tensor([weights + [0.0] * (width - len(weights)) for _, weights in batch]),
        )


def _pretrain(tokenizer: Any, steps: int) -> Any:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3ForCausalLM(config).float()
    matrices = [p for name, p in model.named_parameters() if name.endswith("_proj.weight")]
    others = [p for name, p in model.named_parameters() if not name.endswith("_proj.weight")]
    momenta: dict[tuple[int, ...], torch.Tensor] = {}
    adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    for step, (ids, weights) in enumerate(_batches(tokenizer, steps)):
        rate = min(1.0, (step + 1) / WARM_UP) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        targets, counted = ids[:, 1:].reshape(-1), weights[:, 1:].reshape(-1)
        losses = torch.nn.functional.cross_entropy(logits.reshape(-1, VOCABULARY), targets, reduction="none")
        (losses * counted).sum().div(counted.sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.param_groups[0]["lr"] = OTHER_RATE * rate
        adam.step()
        _muon_step(matrices, momenta, MATRIX_RATE * rate)
        model.zero_grad()
    return model.eval()


def _muon_step(matrices: list[Any], momenta: dict[tuple[int, ...], Any], rate: float) -> None:
    """Muon: learns from several times fewer texts than AdamW. Torch's own computes in bfloat16, slow on CPUs."""
    import torch

    shapes = sorted({tuple(sorted(p.shape)) for p in matrices})
    with torch.no_grad():
        for shape in shapes:
            alike = [p for p in matrices if tuple(sorted(p.shape)) == shape]
            grads = torch.stack([p.grad if p.shape == shape else p.grad.T for p in alike])
            momentum = momenta.setdefault(shape, torch.zeros_like(grads)).lerp_(grads, 0.05)
            update = grads.lerp(momentum, 0.95)
            update = update / (update.norm(dim=(1, 2), keepdim=True) + 1e-7)
            for _ in range(4):
                gram = update @ update.mT
                update = 3.4445 * update + (-4.775 * gram + 2.0315 * gram @ gram) @ update
            for p, direction in zip(alike, update, strict=True):
                direction = direction if p.shape == shape else direction.T
                p.mul_(1 - 0.01 * rate).add_(direction, alpha=-rate * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
