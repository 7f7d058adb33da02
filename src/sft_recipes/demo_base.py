"""The demo's base model: a small causal LM pre-trained, in under a minute, on the shop's conversations.

It reads what customers write and what the shop's agents answer, and never sees the instruction with a label. So it
brings what a real base model brings to fine-tuning, an understanding of the text, and cannot do the task by itself.
"""

import hashlib
import inspect
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sft_recipes import demo_data

SEED = 7
STEPS = 230
BATCH = 16
BLOCK = 128
LEARNING_RATE = 4e-3
VOCABULARY = 1408

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

REPLIES = {
    "tracking": ["Let me look where it is now.", "The courier should bring it soon.", "I will trace the delivery."],
    "refund": ["Your money will be paid back.", "We return the full amount.", "I will repay what it cost."],
    "exchange": ["Which size or colour suits better?", "We swap it for another one.", "I will send the other model."],
    "cancel": ["The purchase is called off.", "Nothing will ship then.", "I will withdraw the order."],
    "address": ["Where should it go instead?", "The new street is noted.", "I will redirect it to that place."],
    "invoice": ["A copy of the bill is attached.", "Here is the receipt.", "I will send the tax document."],
    "account": ["You can sign in with a new password.", "Try to log in now.", "I will unlock your profile."],
    "damage": ["Sorry that it broke.", "Our workshop can repair it.", "I will send the missing part under warranty."],
}
REQUESTS = ["Answer the customer.", "Write the reply of the shop.", "A customer writes. What do we say?"]


def chat(user: str, assistant: str) -> str:
    """One exchange as the chat template writes it."""
    return f"{START}user\n{user}{END}\n{START}assistant\n{assistant}{END}\n"


def documents(seed: int) -> Iterator[str]:
    """Endless pre-training texts, none with a message of the validation or test split."""
    rng = random.Random(seed)
    rows = demo_data.splits()
    held_out = {demo_data.words(row["input"]) for name in ("validation", "test") for row in rows[name]}
    for text, label, _ in demo_data.messages(rng, held_out):
        reply = rng.choice(REPLIES[label])
        kind = rng.random()
        if kind < 0.7:
            yield chat(f"{rng.choice(REQUESTS)}\n\n{text}", reply)
        elif kind < 0.95:
            yield f"{text}\n{reply}\n"
        else:
            # The label words as words: not one of them is new in an answer, and none goes with a message.
            word = rng.choice(demo_data.LABELS)
            yield chat(f"Repeat this word: {word}", word)


def _fingerprint(steps: int) -> str:
    sources = (inspect.getsource(demo_data), Path(__file__).read_text(encoding="utf-8"), str(steps))
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


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
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(work)
        _pretrain(tokenizer, steps).save_pretrained(work)
        (work / "fingerprint").write_text(_fingerprint(steps), encoding="utf-8")
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(work, directory)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    rows = demo_data.splits()["train"]
    replies = [reply for choices in REPLIES.values() for reply in choices]
    texts = [text for row in rows for text in (row["input"], row["output"])]
    texts += [*replies, *REQUESTS, "Repeat this word:", demo_data.INSTRUCTION, "system\n", "user\n", "assistant\n"] * 20
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


def _pretrain(tokenizer, steps: int):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    stream: list[int] = []
    needed = steps * BATCH * BLOCK
    for document in documents(SEED):
        if len(stream) >= needed:
            break
        stream += tokenizer(document)["input_ids"]
    blocks = torch.tensor(stream[:needed]).view(steps, BATCH, BLOCK)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCABULARY,
                hidden_size=192,
                intermediate_size=512,
                num_hidden_layers=4,
                num_attention_heads=3,
                num_key_value_heads=3,
                head_dim=64,
                max_position_embeddings=512,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=max(steps, 2), pct_start=0.1)
    for block in blocks:
        model(input_ids=block, labels=block, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval()
