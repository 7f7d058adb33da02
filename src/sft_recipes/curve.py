"""The loss curve of a run, drawn from its log.jsonl."""

import json
from typing import Any

from sft_recipes.run import Run


def read_log(run: Run) -> list[dict[str, Any]]:
    """The objects of log.jsonl in order."""
    return [json.loads(line) for line in run.log.read_text(encoding="utf-8").splitlines()]


def draw(run: Run) -> None:
    """Write loss.png: training and held-out loss over steps, and the learning rate below them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    log = read_log(run)
    steps = [entry for entry in log if "loss" in entry]
    evaluations = [entry for entry in log if "eval_loss" in entry]
    figure, (loss, rate) = pyplot.subplots(
        2, 1, sharex=True, figsize=(8, 4.8), height_ratios=(3, 1), layout="constrained"
    )
    loss.plot([e["step"] for e in steps], [e["loss"] for e in steps], color="#4878a8", label="training")
    if evaluations:
        loss.plot(
            [e["step"] for e in evaluations],
            [e["eval_loss"] for e in evaluations],
            color="#c8553d",
            marker="o",
            label="held out",
        )
    loss.set_ylabel("loss (nats per answer token)")
    loss.set_ylim(bottom=0)
    loss.set_title(run.name, loc="left", fontsize=11)
    loss.legend(frameon=False)
    rate.plot([e["step"] for e in steps], [e["learning_rate"] for e in steps], color="#777777")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("optimizer step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss, rate):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(run.curve, dpi=120)
    pyplot.close(figure)
