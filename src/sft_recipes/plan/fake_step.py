"""One optimizer step of transformers' and PEFT's real modules on fake tensors, which have shapes and no memory.

`python -m sft_recipes.plan.fake_step` is the process that `trace.trace` starts.

What a GPU does in one kernel, a CPU does in several operators with tensors of their own between them. Three of these
would be counted although no GPU has them, and are replaced: attention, dropout, and the kernels of TRL's fused head;
on a CPU attention alone, which keeps the same there.
"""

import contextlib
import dataclasses
import functools
import json
import sys
import types
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest import mock

import torch
from bitsandbytes import functional
from bitsandbytes.nn import Params4bit
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AttentionInterface, BitsAndBytesConfig
from transformers.integrations import replace_with_bnb_linear
from transformers.quantizers.base import get_keys_to_not_convert
from trl import ModelConfig
from trl.kernels import chunked_logprob
from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE

from sft_recipes.models.census import beside_text, config_of, lora_config, on_meta
from sft_recipes.plan.memory import Setup

DTYPES = {2: torch.bfloat16, 4: torch.float32}
# torch's CUDA allocator hands out blocks of so many bytes (torch/c10/cuda/CUDACachingAllocator.h: kMinBlockSize).
BLOCK = 512


class LiveStorages(TorchDispatchMode):
    """How many bytes of tensors are alive, real or fake, and were at most.

    Within it, every storage that an operator returns is counted from then until it is freed. What an operator
    allocates and frees within itself is not seen. torch's own MemTracker needs a hook on every parameter, which frozen
    ones do not take.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def count(self, tensors: Iterable[Any]) -> int:
        """Count tensors that are alive, and give the bytes that were not counted yet."""
        before = self.bytes
        for each in tensors:
            if isinstance(each, torch.Tensor) and (storage := each.untyped_storage()) not in self._seen:
                size = -(-storage.nbytes() // BLOCK) * BLOCK
                self._seen.add(storage)
                self.bytes += size
                weakref.finalize(storage, self._free, size).atexit = False
        self.peak = max(self.peak, self.bytes)
        return self.bytes - before

    def _free(self, size: int) -> None:
        self.bytes -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count(tree_leaves(out))
        return out


def step(config: dict[str, Any], setup: Setup) -> dict[str, int]:
    """The bytes of the parts that stay from step to step, and of the `peak` of one.

    Gradients are there from the beginning, as in every micro-batch of a step but the first.
    """
    model = wrap(build(config_of(config), setup), setup)
    live = LiveStorages()
    with FakeTensorMode(), as_computed(setup.on_cpu):
        fill(model, setup)
        if setup.checkpointing:
            # As the Trainer and TRL do it.
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            if setup.use_peft:
                model.enable_input_require_grads()
        model.train()
        trained = [each for each in model.parameters() if each.requires_grad]
        # As the Trainer makes it; `foreach` is what torch chooses on a GPU.
        fused = setup.optimizer == "adamw_torch_fused"
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(trained, fused=fused, foreach=not fused)
        if setup.optimizer == "sgd":
            optimizer = torch.optim.SGD(trained, foreach=True)
        for each in trained:
            each.grad = torch.empty_like(each)
        optimizer.step()
        parts = {
            "base": live.count(held(model, trained=False)),
            "adapters": live.count(held(model, trained=True)),
            "gradients": live.count(each.grad for each in trained),
            "optimizer": live.count(value for state in optimizer.state.values() for value in state.values()),
        }
        if not setup.use_peft:
            parts["base"], parts["adapters"] = parts["base"] + parts["adapters"], 0
        with live:
            forward(model, setup).backward()
            optimizer.step()
        if setup.eval_tokens:
            optimizer.zero_grad()
            model.eval()
            batch = dataclasses.replace(setup, tokens=setup.eval_tokens, length=setup.eval_length)
            with live, torch.no_grad():
                forward(model, batch)
    return {**parts, "peak": live.peak}


def build(config: Any, setup: Setup) -> torch.nn.Module:
    """The base model on the meta device, with bitsandbytes' layers where they are asked for."""
    if setup.attention != "eager":
        AttentionInterface.register("held", functools.partial(attention, setup.attention == "sdpa"))
    config._attn_implementation = "eager" if setup.attention == "eager" else "held"
    dtype = DTYPES[setup.base_bytes]
    model = on_meta(config, dtype=dtype)
    if setup.four_bit:
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=setup.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )
        replace_with_bnb_linear(model, get_keys_to_not_convert(model), quantisation)
        model.is_loaded_in_4bit = True
    return model


def wrap(model: torch.nn.Module, setup: Setup) -> torch.nn.Module:
    if not setup.use_peft:
        return model
    asked = setup.asked.keys() | {"lora_dropout": setup.dropout}
    adapters = lora_config(ModelConfig(**asked, use_peft=True, lora_r=setup.rank), beside_text(model))
    # PEFT moves what it adds, which fake tensors do not survive; on the meta device they need not be moved.
    with torch.device("meta"):
        return get_peft_model(model, adapters)


def fill(model: torch.nn.Module, setup: Setup) -> None:
    """Fake tensors in place of those on the meta device, in the dtypes that they are trained in; shared ones once."""
    filled: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in filled:
                filled[id(parameter)] = fake(parameter, setup)
            module._parameters[name] = filled[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def fake(parameter: torch.nn.Parameter, setup: Setup) -> torch.nn.Parameter:
    if isinstance(parameter, Params4bit):
        whole = torch.empty(parameter.shape, dtype=DTYPES[setup.base_bytes])
        codes, state = functional.quantize_4bit(whole, quant_type="nf4", compress_statistics=setup.double_quant)
        # A plain parameter, because Params4bit would make a real tensor of it.
        quantised = torch.nn.Parameter(codes, requires_grad=False)
        quantised.__dict__.update(parameter.__dict__, quant_state=state, bnb_quantized=True)
        return quantised
    size = setup.adapter_bytes if parameter.requires_grad and setup.use_peft else setup.base_bytes
    return torch.nn.Parameter(torch.empty(parameter.shape, dtype=DTYPES[size]), requires_grad=parameter.requires_grad)


def held(model: torch.nn.Module, *, trained: bool) -> Iterator[Any]:
    """Parameters, frozen ones with the constants of their quantisation, and buffers."""
    for parameter in model.parameters():
        if parameter.requires_grad == trained:
            yield parameter
            if (state := getattr(parameter, "quant_state", None)) is not None:
                yield from (state.absmax, state.code, state.offset)
                if state.nested:
                    yield from (state.state2.absmax, state.state2.code)
    if not trained:
        yield from model.buffers()


def forward(model: torch.nn.Module, setup: Setup) -> torch.Tensor:
    """The loss of one micro-batch, as the Trainer's `bf16: true` or its absence computes it."""
    rows = max(1, round(setup.tokens / setup.length))
    tokens = torch.zeros(rows, setup.tokens // rows, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16, enabled=setup.autocast):
        if setup.fused_head:
            return fused_loss(model, tokens, setup)
        outputs = model(input_ids=tokens, labels=torch.zeros_like(tokens), use_cache=False)
        if setup.autocast:
            from accelerate.utils import convert_to_fp32

            # accelerate does so with all that a model returns, also with logits that nobody reads.
            outputs = convert_to_fp32(outputs)
        return outputs.loss


def fused_loss(model: torch.nn.Module, tokens: torch.Tensor, setup: Setup) -> torch.Tensor:
    """TRL's head, as `trl.trainer.utils.add_fused_lm_head` calls it: on the supervised tokens, and on a CPU on all.

    It picks them by a mask, whose number of tokens fake tensors do not know; here they are picked by index.
    """
    base = model.get_base_model() if setup.use_peft else model
    hidden = base.base_model(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    share = 1.0 if setup.on_cpu else setup.supervised_share
    supervised = max(1, round(hidden.shape[0] * hidden.shape[1] * share))
    picked = torch.zeros(supervised, dtype=torch.long)
    head = base.get_output_embeddings()
    log_probs, *_ = chunked_logprob.ChunkedLogProbFunction.apply(
        hidden[picked, picked],
        head.weight,
        head.bias,
        picked,
        1.0,
        _CHUNKED_LOGPROB_CHUNK_SIZE,
        None,
        1.0,
        ("log_probs", "entropy", "is_top1"),
    )
    return -log_probs.sum() / supervised


@contextlib.contextmanager
def as_computed(on_cpu: bool) -> Iterator[None]:
    """Dropout and TRL's head as CUDA and Triton have them, and what bitsandbytes computes once as a fake tensor.

    On a CPU the first two are what runs.
    """
    # Computed from numbers, which fake tensors do not have.
    with mock.patch.dict(functional.name2qmap, {"dynamic": torch.empty(256)}), contextlib.ExitStack() as stack:
        if on_cpu:
            yield
            return
        for owner, name, value in (
            (torch.nn.functional, "dropout", dropout),
            (chunked_logprob, "_use_triton", lambda device: True),
            (chunked_logprob, "_forward_kernel", NoKernel()),
            (chunked_logprob, "_backward_kernel", NoKernel()),
            (chunked_logprob, "_addmm_fp32", lambda total, a, b: None),
            (chunked_logprob, "triton", types.SimpleNamespace(cdiv=lambda a, b: -(-a // b))),
        ):
            # Where there is no GPU there may be no triton to replace.
            stack.enter_context(mock.patch.object(owner, name, value, create=True))
        yield


class NoKernel:
    """A Triton kernel that writes into the buffers it is given, and so allocates nothing."""

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        return lambda *args, **kwargs: None


def dropout(input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """What CUDA computes: the mask that is kept has one byte an element; on a CPU it would have the input's dtype."""
    return torch.native_dropout(input, p, training)[0] if training and p else input


def attention(
    masked: bool,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """In place of flash or memory-efficient attention: what they keep, which is never a matrix of length x length.

    On the CPU, sdpa would make one. Where rows are padded, transformers gives it a mask and repeats keys and values,
    and torch keeps the mask in the queries' dtype. A single row, which is not padded, needs less than is counted here.
    """
    mask = None
    if masked:
        from transformers.integrations.sdpa_attention import repeat_kv

        groups = getattr(module, "num_key_value_groups", 1)
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        mask = torch.empty(query.shape[0], 1, query.shape[2], query.shape[2], dtype=query.dtype)
    return Attention.apply(query, key, value, mask), None


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, mask: Any) -> Any:
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1])
        statistics = query.new_empty(rows, heads, length, dtype=torch.float32)
        ctx.save_for_backward(query, key, value, mask, output, statistics)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        # The queries' gradient is summed in float32.
        torch.empty(query.shape, dtype=torch.float32)
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), None


def main() -> None:
    asked = json.load(sys.stdin)
    print(json.dumps(step(asked["config"], Setup(**asked["setup"]))))


if __name__ == "__main__":
    main()
