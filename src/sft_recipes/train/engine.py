"""What DeepSpeed does otherwise than it should for a run that may be anybody's, on a machine that may have no GPU."""

import sys


def only_where_it_wraps() -> None:
    """Keep accelerate from importing DeepSpeed, for most of a second, to ask whether a model is wrapped in it.

    None is where nobody has imported it.
    """
    from accelerate.utils import other

    other.is_deepspeed_available = lambda: "deepspeed" in sys.modules


def without_inference_kernel() -> None:
    """Keep DeepSpeed from building what it would at the start of any run on a CPU, and calls for inference alone.

    That takes a compiler and half a minute, and a build that is killed leaves a lock, for which every later run would
    wait without end.
    """
    import deepspeed.ops

    # Which operations can be built, asked by nothing but that build.
    deepspeed.ops.__compatible_ops__ = {}


def allow_its_state() -> None:
    """Name the classes that DeepSpeed keeps beside the tensors of a checkpoint; all others are refused unread.

    It asks torch to unpickle whatever is there, which TORCH_FORCE_WEIGHTS_ONLY_LOAD overrules (`quiet_environment`).
    """
    import torch
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    torch.serialization.add_safe_globals([DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address])
