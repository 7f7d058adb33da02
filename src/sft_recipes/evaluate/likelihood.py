"""How likely a model finds each of several answers to a prompt, with everything that they share computed once."""

import copy
import dataclasses
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import DynamicCache
from trl.data_utils import common_prefix_length

from sft_recipes.data import templates
from sft_recipes.errors import InputError, refuse
from sft_recipes.terminal import say

Prompt = str | templates.Prompt
"""A text, or the turns before the answer."""

# Tokens of a batch, padding and answers included: what keeps a large GPU busy. Generation takes as many on a CPU,
# because one of its steps computes a single token of each row.
BATCH_TOKENS = 8192
# Of a forward pass on a CPU, where the activations of a larger one leave the caches.
CPU_FORWARD_TOKENS = 2048

Output = TypeVar("Output")


@dataclasses.dataclass(frozen=True)
class Tree:
    """Answers as a tree of tokens, in which what several of them begin with is there once."""

    tokens: list[int]
    """Of each node. The last token of an answer is predicted and never read, so it has none."""
    depths: list[int]  # how many tokens of its answer come before a node
    sees: torch.Tensor  # (nodes, nodes): true for a node itself and what comes before it in its answer
    terms: list[tuple[int, int, int]]
    """For each token of each answer: the answer, what predicts it (0 the prefix, 1 + n node n), and the token."""

    @classmethod
    def of(cls, answers: Sequence[tuple[int, ...]]) -> "Tree":
        """The tree of the answers' tokens, each up to its stop token."""
        starts = list(dict.fromkeys(answer[:end] for answer in answers for end in range(1, len(answer))))
        node = {start: number for number, start in enumerate(starts)}
        sees = torch.eye(len(starts), dtype=torch.bool)
        for start, number in node.items():
            if len(start) > 1:
                sees[number] |= sees[node[start[:-1]]]
        terms = [
            (number, 1 + node[answer[:end]] if end else 0, token)
            for number, answer in enumerate(answers)
            for end, token in enumerate(answer)
        ]
        return cls([start[-1] for start in starts], [len(start) - 1 for start in starts], sees, terms)


@dataclasses.dataclass(frozen=True)
class Candidates:
    """The answers that one row may have."""

    prefix: list[int]
    """The tokens with which all of them begin: the prompt, and what a template puts before any answer."""
    tree: Tree  # what each goes on with


def candidates(model: Any, tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[Candidates]:
    """Every prompt with every answer, in the tokens that TRL trains on.

    An added token splits a text before it is tokenised, so what follows the last one before the answers is tokenised
    by itself: where rows end alike from there on, each answer is tokenised once, which takes a tenth of the time. That
    is not taken for granted. Each row is rendered with two of the answers and tokenised with one of them, and a row
    that differs, as texts without a template do, is tokenised with all.

    Raises:
        InputError: Two answers have the same tokens, one does not end, or nothing comes before them.
    """
    if len(answers) < 2:
        raise InputError(f"predict_by: likelihood compares labels, and there is only {', '.join(answers)}; name all")
    added = set(tokenizer.get_added_vocab().values())
    texts = _texts(tokenizer, prompts, [answers[0]] * len(prompts))
    turns = [1 + number % (len(answers) - 1) for number in range(len(prompts))]
    seconds = _texts(tokenizer, prompts, [answers[turn] for turn in turns])
    trees: dict[tuple[tuple[int, ...], ...], Tree] = {}
    # How rows end from that token on: the text with each answer, the tokens with the first, those before the answers.
    known: list[tuple[list[str], list[int], int, Tree]] = []
    rows = []
    tokens = _ids(tokenizer, texts, prompts[0])
    for prompt, text, ids, turn, second in zip(prompts, texts, tokens, turns, seconds, strict=True):
        for ends, last, before, tree in known:
            if second == text.removesuffix(ends[0]) + ends[turn] and ids[-len(last) :] == last:
                rows.append(Candidates(ids[: before - len(last)], tree))
                break
        else:
            every = _texts(tokenizer, [prompt] * len(answers), answers)
            wholes = _ids(tokenizer, every, prompt)
            start, own = _apart(wholes, answers, model.generation_config.eos_token_id)
            tree = trees[own] = trees.get(own) or Tree.of(own)
            rows.append(Candidates(ids[:start], tree))
            split = next((place for place in reversed(range(start)) if ids[place] in added), 0)
            if split:
                mark = tokenizer.convert_ids_to_tokens(ids[split])
                nth = ids[: split + 1].count(ids[split])
                parts = [each.split(mark, nth) for each in every]
                # A tokenizer that normalises such a token may have read it from another text.
                if all(len(each) > nth for each in parts):
                    known.append(([mark + each[nth] for each in parts], ids[split:], start - split, tree))
    return rows


def _texts(tokenizer: Any, prompts: Sequence[Prompt], answers: Sequence[str]) -> list[str]:
    """Each prompt with its answer, as SFTTrainer tokenises a row (TRL 1.16, `SFTTrainer._prepare_dataset`)."""
    pairs = list(zip(prompts, answers, strict=True))
    eos = tokenizer.eos_token
    plain = [f"{prompt}{answer.removesuffix(eos)}{eos}" for prompt, answer in pairs if isinstance(prompt, str)]
    rows = [
        templates.with_turns(prompt, [*templates.turns_of(prompt), {"role": "assistant", "content": answer}])
        for prompt, answer in pairs
        if not isinstance(prompt, str)
    ]
    return plain or templates.texts(tokenizer, rows)


def _ids(tokenizer: Any, texts: list[str], prompt: Prompt) -> list[list[int]]:
    """The tokens of such rows; those from a template hold its special tokens already."""
    return tokenizer(texts, add_special_tokens=isinstance(prompt, str))["input_ids"]


def _apart(
    wholes: list[list[int]], answers: Sequence[str], stops: Sequence[int]
) -> tuple[int, tuple[tuple[int, ...], ...]]:
    """How many tokens all rows share, and those that each goes on with, up to its first stop token."""
    start = common_prefix_length(min(wholes), max(wholes))
    own: list[tuple[int, ...]] = []
    problems = []
    for whole, answer in zip(wholes, answers, strict=True):
        end = next((place + 1 for place in range(start, len(whole)) if whole[place] in stops), None)
        tokens = tuple(whole[start:end])
        if tokens in own:
            problems.append(
                f"labels: {answer!r} and {answers[own.index(tokens)]!r} are the same tokens; give each label its own"
            )
        elif end is None:
            problems.append(
                f"no stop token ends the answer {answer!r}, so its likelihood cannot be compared with a longer one's; "
                "set eos_token to what ends a turn in the chat template, or predict_by: generation"
            )
        own.append(tokens)
    if start == 0:
        problems.append("nothing comes before an answer, so it has no likelihood; give each row a prompt")
    refuse(problems)
    return start, tuple(own)


@torch.inference_mode()
def likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    answers: Sequence[str],
    known: Sequence[Candidates] | None = None,
) -> Iterator[dict[int, list[float]]]:
    """The natural logarithm of each answer's probability after each prompt.

    It is the sum over an answer's tokens in float32, from where the answers part up to the stop token. What all
    prompts begin with is computed once and kept as keys and values. The rest of a prompt is computed once for all of
    its answers, which follow it side by side: each at the positions that it would have alone, seeing the prompt and
    itself (tree attention: SpecInfer, arXiv 2305.09781v4).

    Args:
        model: As `scoring.load` gives it.
        prompts: All texts, or all turns.
        answers: Two or more.
        known: What `candidates` has made of them, for another adapter of the same model.

    Yields:
        The number of a prompt to its log-likelihoods, in the order of the answers; a batch at a time.

    Raises:
        InputError: The answers cannot be told apart, the model has layers other than attention, or it is damaged.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    layers = set(getattr(model.config.get_text_config(), "layer_types", None) or [])
    other = sorted(layers - {"full_attention", "sliding_attention"})
    # How transformers marks models that keep a state, and those whose attention takes whatever mask it is given.
    if other or inner._is_stateful or not inner._supports_attention_backend:
        raise InputError(
            f"{type(inner).__name__} has {' and '.join(other) or 'attention of a kind'} that cannot take several "
            "answers side by side; set predict_by: generation"
        )
    rows = known or candidates(model, tokenizer, prompts, answers)
    prefixes = [row.prefix for row in rows]
    shared = shared_tokens(prefixes)
    past = DynamicCache() if shared else None
    if shared:
        ids = torch.tensor([prefixes[0][:shared]], device=model.device)
        model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
    limit = CPU_FORWARD_TOKENS if model.device.type == "cpu" else BATCH_TOKENS
    for tree in {id(row.tree): row.tree for row in rows}.values():
        sizes = {n: len(row.prefix) - shared + len(tree.tokens) for n, row in enumerate(rows) if row.tree is tree}

        def compute(batch: list[int], tree: Tree = tree) -> dict[int, list[float]]:
            scores = _score(model, [prefixes[number] for number in batch], tree, past, shared)
            if not scores.isfinite().all():
                raise InputError("the model's logits are not finite: its weights are damaged, or dtype is too narrow")
            return dict(zip(batch, scores.tolist(), strict=True))

        yield from in_batches(sizes, limit, compute)


def shared_tokens(prefixes: Sequence[list[int]]) -> int:
    """With how many tokens all begin, leaving each one or more, whose logits predict what comes next."""
    return min([common_prefix_length(min(prefixes), max(prefixes)), *(len(prefix) - 1 for prefix in prefixes)])


def _score(model: Any, prefixes: list[list[int]], tree: Tree, past: DynamicCache | None, shared: int) -> torch.Tensor:
    """(rows, answers): log-likelihoods, from one forward pass.

    A row's inputs are padding, its prefix without the `shared` tokens that `past` holds, and the tree's nodes.
    """
    device, size, nodes = model.device, len(prefixes), len(tree.tokens)
    lengths = torch.tensor([[len(prefix) - shared] for prefix in prefixes], device=device)
    width = int(lengths.max())
    ids = [[0] * (width + shared - len(prefix)) + prefix[shared:] + tree.tokens for prefix in prefixes]
    # Of a row's own tokens; negative for padding.
    places = torch.arange(width, device=device) - (width - lengths)
    depths = torch.tensor(tree.depths, dtype=torch.long, device=device)
    positions = shared + torch.cat([places.clamp(min=0), lengths + depths], 1)
    seen = torch.ones(width + nodes, shared + width + nodes, dtype=torch.bool, device=device).tril(shared)
    seen[width:, shared + width :] = tree.sees
    real = torch.nn.functional.pad(places >= 0, (shared, nodes), value=True)
    # Padding sees itself, because a softmax over nothing is not a number.
    itself = torch.ones_like(seen).triu(shared).tril(shared)
    logits = model(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=_masks(model, seen & real[:, None] | itself, positions, shared),
        position_ids=positions,
        past_key_values=_repeated(past, size) if past is not None else None,
        use_cache=past is not None,
        # Named one by one, they are copied before the head, which is faster on a CPU than what it makes of a slice.
        logits_to_keep=torch.arange(width - 1, width + nodes, device=device),
    ).logits
    answer, at, token = torch.tensor(tree.terms, device=logits.device).T
    # One place at a time, because a float32 copy of all logits can be larger than the model.
    totals = torch.stack([column.float().logsumexp(-1) for column in logits.unbind(1)], 1)
    terms = logits[:, at, token].float() - totals[:, at]
    return terms.new_zeros(size, tree.terms[-1][0] + 1).index_add_(1, answer, terms)


def _masks(model: Any, mask: torch.Tensor, positions: torch.Tensor, shared: int) -> Any:
    """The mask in the form that the model takes, as transformers' `create_masks_for_generate` decides.

    Args:
        model: Its layers attend to all tokens, or to a sliding window.
        mask: (rows, inputs, shared + inputs), true where a token is seen without a window.
        positions: (rows, inputs).
        shared: How many tokens come before the inputs, at the first positions.
    """
    config = model.config.get_text_config()
    window = getattr(config, "sliding_window", None)

    def form(kind: str) -> torch.Tensor:
        seen = mask
        if kind == "sliding_attention":
            before = torch.arange(shared, device=positions.device).expand(len(positions), -1)
            seen = mask & (positions[:, :, None] - torch.cat([before, positions], 1)[:, None] < window)
        if config._attn_implementation == "eager":
            return torch.zeros_like(seen, dtype=model.dtype).masked_fill(~seen, torch.finfo(model.dtype).min)[:, None]
        return seen[:, None]

    if kinds := getattr(config, "layer_types", None):
        return {kind: form(kind) for kind in set(kinds)}
    return form("sliding_attention" if window is not None else "full_attention")


def _repeated(past: DynamicCache, size: int) -> DynamicCache:
    """The cache of one row for `size` rows: they share its memory, and what a forward pass appends is theirs alone."""
    cache = copy.copy(past)
    cache.layers = [copy.copy(layer) for layer in past.layers]
    for layer in cache.layers:
        layer.keys, layer.values = (each.expand(size, -1, -1, -1) for each in (layer.keys, layer.values))
    return cache


def in_batches(
    sizes: Mapping[int, int], limit: int, compute: Callable[[list[int]], dict[int, Output]]
) -> Iterator[dict[int, Output]]:
    """What `compute` gives for rows in batches, the longest first, so that a batch too large shows at once.

    Args:
        sizes: Row number to its tokens.
        limit: Tokens of a batch, padding counted. Out of memory it is halved, and the batch done again.
    """
    left = sorted(sizes, key=sizes.__getitem__, reverse=True)
    said = False
    while left:
        longest = sizes[left[0]]
        batch = left[: max(1, limit // longest)]
        done = None
        try:
            done = compute(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        if done is not None:
            yield done
            del left[: len(batch)]
            continue
        # Only here, where the exception no longer holds what was computed.
        gc.collect()
        torch.cuda.empty_cache()
        limit = len(batch) // 2 * longest
        if not said:
            say("memory", f"full with {len(batch)} rows of {longest} tokens; going on with fewer at a time")
        said = True
