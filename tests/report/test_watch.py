"""The live page of a run: what it wrote is served on this machine alone, and nothing else is."""

import json
import socket
import urllib.request
from pathlib import Path

import pytest
from finished import bare

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.report import watch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:html5lib's sanitizer:DeprecationWarning")
def test_what_a_run_writes_is_on_the_page(project: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    run = bare("mine")
    with SummaryWriter(str(run.directory / watch.FOLDER)) as writer:
        writer.add_scalar("train/loss", 1.5, 1)
    address = watch.serve("mine", 0)
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(f"{address}data/plugin/scalars/tags") as answer:  # noqa: S310, of our own
        assert [*json.load(answer).values()] == [{"train/loss": {"displayName": "train/loss", "description": ""}}]
    assert watch.folder(None) == Path("runs")


def test_what_has_nothing_to_show_is_refused(project: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match=r"no run in runs/ writes for TensorBoard; train one with: make train"):
        watch.serve(None, 0)
    run = bare("mine")
    run.recipe.write_text("report_to: none\n")
    assert main(["watch", "mine"]) == 2
    said = capsys.readouterr().err
    assert "report_to is none; train with: make train RECIPE=tiny SET=report_to=tensorboard" in said
    run.recipe.write_text("report_to: [tensorboard]\n")
    assert main(["watch", "mine"]) == 2
    assert "has logged nothing yet" in capsys.readouterr().err
    (run.directory / watch.FOLDER).mkdir()
    with socket.socket() as taken:
        taken.bind((watch.HOST, 0))
        taken.listen()
        assert main(["watch", "mine", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot be used (Address already in use); name another PORT=" in capsys.readouterr().err
