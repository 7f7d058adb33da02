"""Bytes on one GPU, from the config alone: what a training step holds, component by component.

A closed form, no torch. Weights are counted exactly, from the census of the model's modules
(`base_model.Model.groups`); activations follow from which tensors autograd keeps in one decoder layer of a Llama-like
model (RMSNorm, attention, gated MLP) with LoRA, term by term below. Every other architecture is estimated as if it
were one.
"""

import bisect
import dataclasses
import math
from collections.abc import Iterator

from sft_recipes.errors import InputError
from sft_recipes.models import base_model
from sft_recipes.models.base_model import Asked, Model
from sft_recipes.recipes.recipe import Recipe
from sft_recipes.recipes.topology import Topology

# What remains of a GPU's memory for what no formula sees (context, NCCL, fragmentation), as a share of the whole.
# nvidia-smi showed 1.07 to 1.17 times torch's own peak, and 0.5 to 0.6 GB more, in the fms-acceleration benchmark
# (scripts/benchmarks/refs/a100_80gb.csv, which holds both figures for every run).
HEADROOM = 0.85
ALLOCATOR = 1.12
CONTEXT = 0.6e9

# A process on a CPU beside its tensors, measured in runs of models of 1 to 130 million parameters
# (scripts/measure_processes.py; docs/memory.md has the errors): its libraries and what they set up in the first steps;
# and of what the layers of a step allocate and free, the share that the C library's heap keeps between blocks that are
# in use, which is more where matrices in 4 bit are made whole for each product, and again for what is recomputed.
# glibc 2.36 finds again little of what torch frees, which is aligned to 64 bytes. Larger blocks than its
# DEFAULT_MMAP_THRESHOLD_MAX (malloc/malloc.c) go back to the system at once.
CPU_LIBRARIES = 640 * 2**20
CPU_HEAP, CPU_HEAP_FOUR_BIT, CPU_HEAP_RECOMPUTED = 0.5, 0.1, 0.2
CPU_LARGE_BLOCK = 32 * 2**20

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# TRL's fused head works on so many tokens and vocabulary entries at a time (trl/kernels/chunked_logprob.py and
# trl/trainer/utils.py, 1.16).
HEAD_TOKENS, HEAD_ENTRIES = 4096, 32768
# DeepSpeed's defaults (deepspeed/runtime/zero/config.py, 0.19), which accelerate leaves as they are: elements of the
# bucket in which gradients are reduced, allocated whole however few gradients there are, and of gathered parameters.
REDUCE_BUCKET, LIVE_PARAMETERS = 500_000_000, 1_000_000_000
PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Setup:
    """Exactly what memory follows from, beside the model."""

    four_bit: bool = False
    double_quant: bool = False
    eight_bit: bool = False
    base_bytes: int = 2  # of one weight that is not quantised
    adapter_bytes: int = 4  # of one adapter weight, as `adapter_dtype` has it
    rank: int = 16
    targets: tuple[str, ...] = ("all-linear",)
    parameters: tuple[str, ...] = ()  # experts that are adapted, as `lora_target_parameters` names them
    saved: tuple[str, ...] = ()  # modules that are trained whole, as `lora_modules_to_save` names them
    dora: bool = False
    use_peft: bool = True  # false trains all weights
    dropout: float = 0.0
    optimizer: str = "adamw_torch"  # as `optim` names it
    checkpointing: bool = True
    selective: bool = False  # with checkpointing: whether the output of sdpa is kept, as TRL's `selective` asks for
    attention: str = "sdpa"  # as `attn_implementation` names it
    fused_head: bool = True  # whether logits are never held whole, as in TRL 1.16; false describes older software
    supervised_share: float = 1.0  # share of the tokens that the loss is computed on
    tokens: int = 2048  # of one micro-batch, padding included
    length: int = 2048  # of its longest row
    eval_tokens: int = 0  # of one batch of an evaluation, 0 without any
    eval_length: int = 0
    zero_stage: int | None = None
    processes: int = 1
    fsdp: bool = False
    offload_parameters: bool = False
    offload_optimizer: bool = False
    dequantised: bool = False  # whether a checkpoint that is stored quantised is made whole as it is loaded
    on_cpu: bool = False  # where torch computes in several operators what is one kernel on a GPU
    autocast: bool = True
    """Whether matrices are multiplied in 16 bit whatever the adapters' dtype, as `bf16: true` does."""

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        topology: Topology,
        tokens: int,
        length: int,
        supervised_share: float = 1.0,
        eval_length: int | None = None,
    ) -> "Setup":
        """What a recipe and its topology ask for, for a micro-batch of `tokens` in rows of up to `length`.

        Rows of an evaluation have up to `eval_length` tokens, as many as those of training if it is not given.
        """
        evaluated = 0 if recipe["eval_strategy"] == "no" else length if eval_length is None else eval_length
        chosen = recipe["activation_checkpointing"]
        devices = topology.config.get("deepspeed_config") or {}
        fsdp_offload = bool((topology.config.get("fsdp_config") or {}).get("fsdp_offload_params"))
        return cls(
            four_bit=recipe["load_in_4bit"],
            double_quant=recipe["use_bnb_nested_quant"],
            eight_bit=recipe["load_in_8bit"],
            # TRL loads in float32 when no dtype is given.
            base_bytes=DTYPE_BYTES.get(recipe["dtype"], 4),
            adapter_bytes=DTYPE_BYTES[recipe["adapter_dtype"]],
            rank=recipe["lora_r"],
            targets=tuple(recipe["lora_target_modules"] or ()),
            parameters=tuple(recipe["lora_target_parameters"] or ()),
            saved=tuple(recipe["lora_modules_to_save"] or ()),
            dora=recipe["use_dora"],
            use_peft=recipe["use_peft"],
            dropout=recipe["lora_dropout"] if recipe["use_peft"] else 0.0,
            optimizer=recipe["optim"],
            checkpointing=recipe["gradient_checkpointing"] if chosen is None else chosen,
            selective=bool((recipe["activation_checkpointing_kwargs"] or {}).get("selective")),
            attention=recipe["attn_implementation"] or "sdpa",
            supervised_share=supervised_share,
            tokens=tokens,
            length=length,
            eval_tokens=recipe["per_device_eval_batch_size"] * evaluated,
            eval_length=evaluated,
            zero_stage=topology.zero_stage,
            processes=topology.processes,
            fsdp=topology.backend == "fsdp",
            offload_parameters=fsdp_offload or devices.get("offload_param_device", "none") != "none",
            offload_optimizer=fsdp_offload or devices.get("offload_optimizer_device", "none") != "none",
            dequantised=base_model.dequantised(recipe.upstream()),
            on_cpu=topology.use_cpu,
            autocast=bool(recipe["bf16"] or recipe["fp16"]),
        )

    @property
    def keeps_attention(self) -> bool:
        """Whether checkpointing recomputes all but the attention."""
        return self.checkpointing and self.selective and self.attention == "sdpa"

    @property
    def asked(self) -> Asked:
        """What decides which modules get an adapter."""
        return Asked(self.targets, self.parameters, self.saved, self.dora, bool(self.dropout))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one GPU by component."""

    quantised: float  # base weights in 4 or 8 bit, with their constants
    unquantised: float  # the other base weights: embeddings, head, norms, experts held as one tensor, or all
    adapters: float
    gradients: float
    optimizer: float  # optimizer state, and DeepSpeed's float32 master weights
    activations: float
    """What is kept from forward to backward: every layer's tensors, or with checkpointing every layer's input."""
    layer: float  # what the backward pass of one layer needs beside that; with checkpointing the recomputed layer too
    loss_head: float
    buffers: float  # of the backend: reduction buckets and gathered parameters
    step: float  # temporaries of the optimizer's step, when the activations are gone
    evaluation: float
    """What a batch of an evaluation needs beside what is there then, which gradients are not unless sharded."""
    heap: float = 0.0  # of a process on a CPU: what it has freed and the C library keeps
    libraries: float = 0.0  # of a process on a CPU: what has been imported

    @property
    def static(self) -> float:
        """What is there from the first step to the last."""
        return self.quantised + self.unquantised + self.adapters + self.gradients + self.optimizer + self.buffers

    @property
    def allocated(self) -> float:
        """Torch's peak, `max_memory_allocated`; the loss and the backward of a layer are not at the same time."""
        return self.static + max(self.activations + max(self.layer, self.loss_head), self.step, self.evaluation)

    @property
    def device(self) -> float:
        """What nvidia-smi would show: what torch's allocator reserves, and the CUDA context."""
        return self.allocated * ALLOCATOR + CONTEXT

    @property
    def process(self) -> float:
        """What must fit: the resident memory of a process on a CPU, and what torch allocates on a GPU."""
        return self.allocated + self.heap + self.libraries


@dataclasses.dataclass(frozen=True)
class Shape:
    """The sizes of a decoder layer that its activations follow from."""

    layers: int
    hidden: int
    intermediate: int  # width of the MLP, or of all experts that one token visits
    queries: int  # heads x head_dim
    keys: int  # key-value heads x head_dim, which is also the values' width
    heads: int
    vocabulary: int
    normed_heads: bool  # whether queries and keys have a norm of their own, as in Qwen3
    experts: int  # experts that one token visits, 0 in a dense model

    @classmethod
    def of(cls, model: Model) -> "Shape":
        """Read from the config, under the names that transformers' configs use.

        Raises:
            InputError: The config names no such size.
        """
        config = model.text_config

        def size(*names: str, default: int | None = None) -> int:
            value = next((config[name] for name in names if isinstance(config.get(name), int)), default)
            if value is None:
                raise InputError(f"{model.source} has no {names[0]}, which its memory follows from; use a text model")
            return value

        hidden = size("hidden_size", "n_embd", "d_model")
        heads = size("num_attention_heads", "n_head", "n_heads")
        head = size("head_dim", default=hidden // heads)
        experts = size("num_experts_per_tok", "num_experts_per_token", "experts_per_token", default=0)
        width = size("intermediate_size", "n_inner", default=4 * hidden)
        if experts:
            width = experts * size("moe_intermediate_size", default=width)
            width += size("shared_expert_intermediate_size", default=0)
        return cls(
            layers=size("num_hidden_layers", "n_layer", "n_layers"),
            hidden=hidden,
            intermediate=width,
            queries=heads * head,
            keys=size("num_key_value_heads", default=heads) * head,
            heads=heads,
            vocabulary=size("vocab_size"),
            normed_heads=any(group.path.endswith("q_norm") for group in model.groups),
            experts=experts,
        )


def estimate(model: Model, setup: Setup) -> Memory:
    """The memory of one process's GPU in the step that needs most.

    Raises:
        InputError: The model's config lacks a size that memory follows from.
    """
    shape = Shape.of(model)
    quantised, unquantised = base_weights(model, setup)
    trained = adapted_parameters(model, setup) if setup.use_peft else model.elements()
    weights, gradients, optimizer, step = trained_weights(setup, trained)
    if not setup.use_peft:
        # The trained weights are the base.
        quantised, unquantised, weights = 0.0, weights, 0.0
    kept, layer = activations(model, setup, shape)
    backend = buffers(model, setup, trained)
    if setup.on_cpu:
        head = cpu_head(setup, shape, trained=trains_head(model, setup))
        # Adam's loop over the weights has two more tensors of the one at work, and nothing of the others.
        step = 0.0 if setup.use_peft else 2.0 * setup.base_bytes * max(_matrices(model))
    else:
        head = loss_head(setup, shape, trained=trains_head(model, setup))
    evaluated = max(0.0, evaluation(setup, shape) - (0.0 if setup.zero_stage or setup.fsdp else gradients))
    found = Memory(quantised, unquantised, weights, gradients, optimizer, kept, layer, head, backend, step, evaluated)
    if not setup.on_cpu:
        return found
    heap, libraries = beside_tensors(model, setup, shape)
    return dataclasses.replace(found, heap=heap, libraries=libraries)


def adapted_parameters(model: Model, setup: Setup) -> int:
    """Trainable parameters of the adapters that are asked for, and of modules that are trained whole."""
    return model.adapters(setup.asked).parameters(setup.rank)


def not_counted(model: Model, setup: Setup) -> str | None:
    """What the estimate leaves out for this model, as a sentence; None if nothing that is known."""
    method = (model.config.get("quantization_config") or {}).get("quant_method")
    if method and not setup.dequantised and not (setup.four_bit or setup.eight_bit) and model.stored_bits is None:
        return f"weights stored by {method} are counted as if they were not quantised"
    return None


def four_bit_bytes(elements: int, *, double_quant: bool) -> float:
    """Of a matrix in bitsandbytes' 4-bit form, with block constants.

    Two codes a byte and a float32 constant for each block of 64; with double quantisation a byte for each constant
    and a float32 for each 256 of these, and their mean (arXiv 2305.14314v1, section 3). Each matrix also has the table
    of 16 values, and with double quantisation one of 256 (bitsandbytes/functional.py, 0.50: `QuantState`).
    """
    blocks = math.ceil(elements / 64)
    constants = blocks + 4 * math.ceil(blocks / 256) + 4 + 4 * 256 if double_quant else 4 * blocks
    return math.ceil(elements / 2) + constants + 4 * 16


def base_weights(model: Model, setup: Setup) -> tuple[float, float]:
    """Of the frozen base on one GPU, quantised and not; sharded by ZeRO-3 and FSDP2, gone where they are offloaded.

    bitsandbytes quantises `nn.Linear` but for the head; experts held as one tensor stay as they are. LLM.int8 holds a
    byte for each weight and a float32 for each row (arXiv 2208.07339v2). A checkpoint that is stored quantised has the
    bits that its config says.
    """
    share = 0.0 if setup.offload_parameters else 1 / setup.processes if shards_weights(setup) else 1.0
    stored = None if setup.dequantised else model.stored_bits
    kinds = ("linear", "tower") if setup.four_bit or setup.eight_bit or stored else ()
    quantised, rest = 0.0, 0
    for group in model.groups:
        each = group.elements // group.count
        if group.kind not in kinds:
            rest += group.elements
        elif setup.four_bit:
            quantised += group.count * four_bit_bytes(each, double_quant=setup.double_quant)
        elif stored and not setup.eight_bit:
            quantised += group.elements * stored / 8
        else:
            quantised += group.count * (each + 4 * group.shape[0])
    return quantised * share, rest * setup.base_bytes * share


def shards_weights(setup: Setup) -> bool:
    """Whether each process holds its part of the weights only."""
    return setup.zero_stage == 3 or setup.fsdp


def trained_weights(setup: Setup, trained: int) -> tuple[float, float, float, float]:
    """Of `trained` parameters on one GPU: weights, gradients, optimizer state, and temporaries of a step.

    DeepSpeed trains 16-bit copies of float32 master weights, and shards state from stage 1, gradients from stage 2
    and weights in stage 3 (arXiv 1910.02054v3, section 5; `estimate_zero2_model_states_mem_needs` in
    deepspeed/runtime/zero/stage_1_and_2.py). FSDP2 shards all of them, in float32 under mixed precision
    (accelerate/utils/fsdp_utils.py: `fsdp2_prepare_model`). `foreach` updates, which adamw_torch chooses on a GPU,
    hold one more tensor for each weight during the step (torch.optim.AdamW's documentation: about sizeof(params)).
    """
    size = setup.adapter_bytes if setup.use_peft else setup.base_bytes
    if setup.zero_stage:
        part = trained / setup.processes
        weights = 0.0 if setup.offload_parameters else 2 * (part if setup.zero_stage == 3 else trained)
        gradients = 2 * (part if setup.zero_stage > 1 else trained)
        if setup.offload_optimizer:
            # Gradients go where the optimizer is.
            return weights, 0.0, 0.0, 0.0
        # Float32 master weights; their gradients are float32 while the step lasts.
        return weights, gradients, part * (4 + state_bytes(setup.optimizer, 4)), 4 * part
    if setup.fsdp:
        trained, size = math.ceil(trained / setup.processes), 4
        if setup.offload_parameters:
            return 0.0, 0.0, 0.0, 0.0
    step = trained * size if setup.optimizer == "adamw_torch" else 0.0
    return trained * size, trained * size, trained * state_bytes(setup.optimizer, size), step


# Tensors like the weight that an optimizer keeps, by a part of its name; Adam and its kin keep two.
_STATE = {"ademamix": 3, "lion": 1, "rmsprop": 1, "adagrad": 1, "schedule_free_sgd": 1}
# Plain SGD and LOMO keep none, adafactor one row and one column, which is nothing beside them.
_STATELESS = ("sgd", "lomo", "adalomo", "adafactor", "galore_adafactor", "galore_adafactor_layerwise")


def state_bytes(optimizer: str, size: int) -> float:
    """Bytes of optimizer state for a trained weight of `size` bytes.

    bitsandbytes' 8-bit forms keep a byte, and a float32 for each 256 (arXiv 2110.02861v2). Paged state may leave the
    GPU; it is counted as if it never did.
    """
    tensors = 0 if optimizer in _STATELESS else next((n for part, n in _STATE.items() if part in optimizer), 2)
    if optimizer.endswith("4bit"):
        return tensors * (0.5 + 4 / 128)
    return tensors * (1 + 4 / 256 if "8bit" in optimizer else size)


def activations(model: Model, setup: Setup, shape: Shape) -> tuple[float, float]:
    """What lives from forward to backward, and what the backward of one layer adds to it.

    Bytes for each token of one layer, h hidden, i intermediate, q queries, k keys, as autograd keeps them under bf16
    autocast over a frozen base (tests/plan/test_memory.py counts them in real layers):

        norms       2 x 4h         the float32 copy that each RMSNorm works on; 4q + 4k more for norms of heads
        attention   4q + 4k        queries, output, keys, values; eager and padded sdpa repeat keys and values to q
        MLP         6i             gate, its activation, up
        adapters    2 x in         the 16-bit input of an adapted layer: once for q, k, v and once for gate, up when
                                   adapters have the compute dtype, once for every adapted layer when they are cast;
                                   4 x in for float32 adapters without autocast
        dropout     1 + 2 x in     a mask of one byte and an output of its own for every adapted layer

    A frozen linear layer keeps nothing. With checkpointing a layer keeps its input, 2h, and one layer at a time is
    recomputed. Its backward peaks within the MLP, where three gradients of width i are alive beside what is kept.
    Where experts are adapted, one layer's have a copy of their weights, and the gradient of the larger tensor.
    For every pair of a row's tokens, eager attention keeps 4 + 2 bytes a head, and sdpa the 16-bit form of its mask.
    A float32 base without autocast doubles all but what is float32 anyway.
    """
    h, i = shape.hidden, shape.intermediate
    down = "down" in _adapted(model, setup)
    # At the gate's product down's input is gone; at a cast adapter of down, its gradients in both dtypes are not.
    gradients = max(6 * i - (2 * i if down else 0), 8 * i if down and _cast(setup) else 0) + 5 * h
    pairs = max(setup.tokens, setup.length) * setup.length
    square = pairs * {"eager": 6 * shape.heads, "sdpa": _width(setup) if setup.on_cpu else 2}.get(setup.attention, 0)
    # Adapters on parameters are added to a copy of them, which is kept as the weight of the product it is in.
    copies = [each for each in model.adapters(setup.asked).layers if each.copied] if setup.use_peft else []
    copied = setup.base_bytes * sum(each.elements for each in copies) / shape.layers
    saved = setup.tokens * saved_per_token(model, setup, shape) + square + copied
    # Eager's softmax has its gradient in both dtypes, too; the padded batch's mask itself is one byte.
    layer = setup.tokens * gradients * _width(setup) // 2 + (square if setup.attention == "eager" else pairs)
    # The gradient of one such copy is whole before it is that of its adapter.
    layer += setup.base_bytes * max((each.elements // each.count for each in copies), default=0)
    if setup.on_cpu and setup.four_bit:
        # bitsandbytes multiplies by the whole matrix.
        layer += _width(setup) * max(_matrices(model, "linear"), default=0)
    if setup.checkpointing:
        # An embedding that is trained whole has the adapters' dtype, which its output keeps.
        words = {group.path for group in model.groups if group.kind == "embedding"}
        whole = setup.use_peft and not words.isdisjoint(model.adapters(setup.asked).saved)
        size = max(setup.base_bytes, setup.adapter_bytes) if whole else setup.base_bytes
        # Queries wide, and for each head the float32 logarithm of its sum; TRL knows torch's own attention alone.
        attended = setup.tokens * (_width(setup) * shape.queries + 4 * shape.heads) if setup.keeps_attention else 0
        return shape.layers * (size * h * setup.tokens + attended), saved + layer
    # Autocast's 16-bit copies of the adapters.
    cast = 2 * adapted_parameters(model, setup) if _cast(setup) and setup.autocast else 0
    return shape.layers * saved + cast, layer


def saved_per_token(model: Model, setup: Setup, shape: Shape) -> int:
    """Bytes that autograd keeps of one layer for one token; see `activations`."""
    h, i, q, k, width = shape.hidden, shape.intermediate, shape.queries, shape.keys, _width(setup)
    normed = q + k if shape.normed_heads else 0
    repeated = k if "flash" in setup.attention else q
    float32 = 8 * h + 4 * normed
    kept = q + 2 * repeated + 3 * i
    # Each expert's output waits for its routing weight.
    kept += h * shape.experts
    if setup.attention != "eager":
        # The output, and for each head the float32 logarithm of its sum.
        kept += q
        float32 += 4 * shape.heads
    if not setup.use_peft:
        # Inputs of q, k, v and of gate, up, which are the norms' outputs, again for each expert; o's; down's; and the
        # normed values.
        kept += 2 * h + h * shape.experts + (q if setup.attention == "eager" else 0) + i + 2 * h + normed
        return float32 + width * kept
    adapted = _adapted(model, setup)
    inputs = sum(adapted.values())
    kept += setup.rank * len(adapted)
    # On a CPU the noise that dropout multiplies by, which is a mask of one byte on a GPU.
    masks = inputs * (setup.adapter_bytes if setup.on_cpu else 1) if setup.dropout else 0
    if _cast(setup):
        return float32 + masks + width * kept + (2 if setup.autocast else setup.adapter_bytes) * inputs
    return float32 + masks + width * (kept + (inputs if setup.dropout else _shared_inputs(adapted, setup)))


def _width(setup: Setup) -> int:
    """Bytes of a value that matrices are multiplied in."""
    return 2 if setup.autocast else setup.base_bytes


def _cast(setup: Setup) -> bool:
    """Whether every adapter's input is cast, because adapters have another dtype than matrices are multiplied in."""
    return setup.use_peft and setup.adapter_bytes != _width(setup)


def _adapted(model: Model, setup: Setup) -> dict[str, int]:
    """Input widths of the adapted layers of one decoder layer, by the last part of their name without `_proj`."""
    layers = model.adapters(setup.asked).layers if setup.use_peft else ()
    return {each.path.rpartition(".")[2].removesuffix("_proj"): each.shape[1] for each in layers if not each.copied}


def _shared_inputs(adapted: dict[str, int], setup: Setup) -> int:
    """Widths of the adapted layers' inputs, those of one input once, and o's not where attention keeps it anyway."""
    held = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "mlp", "up": "mlp"}
    distinct = {held.get(name, name): width for name, width in adapted.items()}
    if setup.attention != "eager":
        distinct.pop("o", None)
    return sum(distinct.values())


def trains_head(model: Model, setup: Setup) -> bool:
    """Whether the output embedding is trained, with all weights or as a module of `lora_modules_to_save`."""
    if not setup.use_peft:
        return True
    heads = {group.path for group in model.groups if group.kind == "head"}
    return not heads.isdisjoint(model.adapters(setup.asked).saved)


def evaluation(setup: Setup, shape: Shape) -> float:
    """Of a batch of an evaluation: one layer's tensors, or the head's, since none is kept for a backward pass.

    The most at a time is within the MLP, where four tensors of its width are alive (the gate's, up, up's adapter and
    their sum); or queries, repeated keys and values, and eager attention's matrix, twice and in float32.
    """
    width = _width(setup)
    mlp = 4 * width * shape.intermediate + 12 * shape.hidden
    square = (4 + 2 * width) * shape.heads if setup.attention == "eager" else 1
    attention = 12 * shape.hidden + 6 * width * shape.queries + square * setup.eval_length
    batch = dataclasses.replace(setup, tokens=setup.eval_tokens, length=setup.eval_length)
    head = cpu_head(batch, shape, backward=False) if setup.on_cpu else loss_head(batch, shape)
    return max(float(setup.eval_tokens * max(mlp, attention)), head)


def loss_head(setup: Setup, shape: Shape, *, trained: bool = False) -> float:
    """Of the output embedding and the loss.

    TRL 1.16 computes them on supervised tokens in tiles: the buffer of one tile of logits, which a smaller vocabulary
    does not narrow (trl/kernels/chunked_logprob.py: `mm_buf`), the tokens' hidden states, and their gradient in
    float32; when the head is trained, its gradient in float32 too. Without fusion there are 16-bit logits, and float32
    logits and gradient with what the softmax adds: 12 bytes for each token and vocabulary entry (transformers 5; 14
    with transformers 4.48 and TRL 0.13).
    """
    if not setup.fused_head:
        return 12.0 * shape.vocabulary * setup.tokens
    supervised = setup.tokens * setup.supervised_share
    tile = 2.0 * min(supervised, HEAD_TOKENS) * HEAD_ENTRIES
    weight = 4.0 * shape.vocabulary * shape.hidden if trained else 0.0
    return tile + 6.0 * supervised * shape.hidden + weight


def cpu_head(setup: Setup, shape: Shape, *, trained: bool = False, backward: bool = True) -> float:
    """Of the output embedding and the loss on a CPU.

    TRL 1.16 scores every token there, supervised or not, and computes by torch what a kernel does in place on a GPU
    (`compact` in trl/trainer/utils.py, `_forward_tile` and `_backward_tile` in trl/kernels/chunked_logprob.py). Bytes
    beside the tile for each of its tokens and entries: seven float32 tensors and a mask, and without a backward pass
    three and a mask. Of the tile's buffer a smaller vocabulary touches the first pages of each row alone.
    """
    if not setup.fused_head:
        return 12.0 * shape.vocabulary * setup.tokens
    width = _width(setup)
    tokens, entries = min(setup.tokens, HEAD_TOKENS), min(shape.vocabulary, HEAD_ENTRIES)
    tile = tokens * min(width * entries + PAGE, width * HEAD_ENTRIES)
    # The matrix that a 16-bit tile is multiplied by is made float32.
    product = 4.0 * entries * (tokens + shape.hidden) if width == 2 else 0.0
    beside = max(29.0 * tokens * entries, product) if backward else 13.0 * tokens * entries
    weight = 4.0 * shape.vocabulary * shape.hidden if trained else 0.0
    return tile + beside + (4.0 + width) * setup.tokens * shape.hidden + weight


def beside_tensors(model: Model, setup: Setup, shape: Shape) -> tuple[float, float]:
    """What a process on a CPU has beside its tensors: freed memory that its heap keeps, and its libraries.

    A layer allocates as much whether its tensors are kept for the backward pass or not, so that checkpointing frees
    tensors and hardly any memory.
    """
    layers = shape.layers * setup.tokens * saved_per_token(model, setup, shape)
    share, loaded = CPU_HEAP, 0.0
    if setup.four_bit:
        share += CPU_HEAP_FOUR_BIT + (CPU_HEAP_RECOMPUTED if setup.checkpointing else 0.0)
        # Each matrix is read whole before it is quantised.
        whole = (setup.base_bytes * each for each in _matrices(model, "linear"))
        loaded = sum(each for each in whole if each < CPU_LARGE_BLOCK)
    if _width(setup) * setup.tokens * shape.hidden >= CPU_LARGE_BLOCK:
        share = 0.0
    return share * layers + loaded, CPU_LIBRARIES


def _matrices(model: Model, *kinds: str) -> Iterator[int]:
    """Elements of each weight, or of those of these kinds."""
    return (
        group.elements // group.count
        for group in model.groups
        if not kinds or group.kind in kinds
        for _ in range(group.count)
    )


def buffers(model: Model, setup: Setup, trained: int) -> float:
    """Of the backend.

    DDP reduces gradients in buckets that are a copy of them. DeepSpeed allocates its whole reduction bucket, however
    few gradients there are (deepspeed/runtime/zero/stage_1_and_2.py: `setup_buckets`), and ZeRO-3 keeps up to
    `stage3_max_live_parameters` gathered. FSDP2 gathers the layer at work and the next, and embeddings and head.
    """
    if setup.zero_stage:
        gathered = 0.0
        if setup.zero_stage == 3:
            whole = dataclasses.replace(setup, zero_stage=None, offload_parameters=False)
            gathered = min(sum(base_weights(model, whole)), 2.0 * LIVE_PARAMETERS)
        return 2.0 * REDUCE_BUCKET + gathered
    if setup.fsdp:
        layered = sum(group.elements for group in model.groups if "*" in group.path)
        layers = max((group.count for group in model.groups if "*" in group.path), default=1)
        return 2.0 * (2 * layered / layers + model.elements() - layered)
    if setup.processes > 1:
        return float(trained * (setup.adapter_bytes if setup.use_peft else setup.base_bytes))
    return 0.0


def largest(model: Model, setup: Setup, vram_bytes: float) -> int:
    """Rows of `setup.length` in the largest micro-batch that fits; 0 if not even one does.

    It fits while torch's peak is at most `HEADROOM` of the GPU's memory.
    """

    def needed(rows: int) -> float:
        return estimate(model, dataclasses.replace(setup, tokens=rows * setup.length)).allocated

    return bisect.bisect_right(range(1, 2**20), HEADROOM * vram_bytes, key=needed)
