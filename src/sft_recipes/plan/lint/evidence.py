"""Rules that compare values with the range that has been documented for them."""

from collections.abc import Iterator

from sft_recipes.plan.lint import Case, Said, rule
from sft_recipes.terminal import share

BILLION = 10**9
ORIGIN = "https://github.com/rramchan12/HateSpeechDetection_ver2"
REGRET = "https://doi.org/10.64434/tml.20250929 (LoRA Without Regret)"


def _outside(value: float, low: float, high: float) -> bool:
    return not low <= value <= high


@rule("loss-on-prompts", "warning", f"{ORIGIN} trained on prompts and padding: a fifth of its tokens were answers")
def loss_on_prompts(case: Case) -> Iterator[Said]:
    """The loss is computed on prompts too, so most of what is learned is to write prompts."""
    if case.recipe["completion_only_loss"] is not False:
        return
    train = case.data["splits"]["train"] if case.data else {}
    answers = (
        f", of which {share(train['supervised_tokens'], train['tokens'])} are answers" if train.get("tokens") else ""
    )
    yield Said(
        f"completion_only_loss is false: the loss, and the eval_loss that chooses checkpoints, are over all tokens"
        f"{answers}",
        "completion_only_loss: true",
    )


@rule("learning-rate-range", "info", f"https://arxiv.org/abs/2305.14314 table 9; {REGRET}; Tinker's sweep table")
def learning_rate_range(case: Case) -> Iterator[Said]:
    """The learning rate of a LoRA run is outside what has been reported to work for this size of model."""
    if case.model is None or not case.recipe["use_peft"]:
        return
    size = case.model.elements()
    # Below a hundred million parameters nothing has been published.
    if size < BILLION / 10:
        return
    low, high = (5e-5, 4e-4) if size >= 30 * BILLION else (5e-5, 1e-3)
    rate = case.recipe["learning_rate"]
    if _outside(rate, low, high):
        yield Said(
            f"learning_rate {rate:g} is outside {low:g} to {high:g}, reported for LoRA on models of "
            f"{'30' if size >= 30 * BILLION else 'up to 30'} billion parameters",
            "2e-4, about ten times the rate of full fine-tuning, and sweep from there",
        )


@rule("rank-range", "info", f"{REGRET}, r from 1 to 512; shipped recipes use 4 to 256")
def rank_range(case: Case) -> Iterator[Said]:
    """The rank is outside what shipped recipes use."""
    if case.recipe["use_peft"] and _outside(case.recipe["lora_r"], 4, 256):
        yield Said(f"lora_r {case.recipe['lora_r']} is outside 4 to 256", "8 to 64, on all linear layers first")


@rule("alpha-range", "info", "shipped recipes: axolotl 0.5 and 2, torchtune 2, ms-swift 4, QLoRA's paper 0.25")
def alpha_range(case: Case) -> Iterator[Said]:
    """Alpha / r, the scale of an update, is outside what shipped recipes use."""
    ratio = case.recipe["lora_alpha"] / case.recipe["lora_r"]
    if case.recipe["use_peft"] and not case.recipe["use_rslora"] and _outside(ratio, 0.25, 4):
        yield Said(f"lora_alpha / lora_r is {ratio:g}, outside 0.25 to 4", "lora_alpha: 32 for every rank")


@rule(
    "epochs-range", "info", "shipped recipes use 1 to 4; https://arxiv.org/abs/2405.09673 on what longer runs forget"
)
def epochs_range(case: Case) -> Iterator[Said]:
    """The rows are seen more often than in any documented recipe."""
    plan = case.schedule
    epochs = plan.steps / plan.steps_per_epoch if plan else case.recipe["num_train_epochs"]
    if epochs > 5:
        yield Said(f"every row is seen {epochs:.3g} times, documented are 1 to 4", "num_train_epochs: 2 or 3")


@rule("batch-range", "info", f"{REGRET}: LoRA falls behind full fine-tuning as the batch grows, at any rank")
def batch_range(case: Case) -> Iterator[Said]:
    """The global batch is outside what shipped LoRA recipes use."""
    total = case.recipe["global_batch_size"]
    if case.recipe["use_peft"] and _outside(total, 4, 128):
        yield Said(f"global_batch_size {total} is outside 4 to 128", "16 to 64")
