"""What `execution: auto` chooses, what it must leave alone, and who says so; that it learns the same is shown by
tests/train/test_executions.py."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, write_rows

from sft_recipes.cli import main
from sft_recipes.errors import InputError
from sft_recipes.launch import launch, processes
from sft_recipes.models import base_model
from sft_recipes.plan import execution, fit, gpus, memory, plan
from sft_recipes.plan import job as jobs
from sft_recipes.plan.execution import Execution
from sft_recipes.plan.lint import Case
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import topology


@pytest.fixture
def project(project: Path) -> Path:
    """Whose tiny recipe computes activations twice, as `default` does."""
    tiny = project / "recipes" / "tiny.yaml"
    tiny.write_text(tiny.read_text().replace("activation_checkpointing: false\n", ""))
    return project


def case(*words: str, gpu: str | None = "a100-80gb", accel: str = "single_gpu", kind: str = "", **facts: Any) -> Case:
    """The rows of the project's recipe on an 8B model and a GPU."""
    model = base_model.find("Qwen/Qwen3-8B")
    assert model is not None
    if kind:
        model = dataclasses.replace(model, config=model.config | {"model_type": kind})
    job = jobs.resolve("tiny", accel=accel, overrides=["execution=auto", "lora_dropout=0", *words])
    found = dataclasses.replace(job.case, recipe=job.written, model=model, gpu=gpus.find(gpu) if gpu else None)
    return dataclasses.replace(found, **facts)


def chosen(found: Execution) -> dict[str, Any]:
    return {each.key: each.value for each in found.choices}


def ragged(lengths: dict[int, int]) -> None:
    """Rows whose questions are so many words long."""
    rows = [("dog " * words, number) for words, number in lengths.items()]
    write_rows(
        Path("data/train.jsonl"),
        [{"instruction": f"{text}{at}", "output": "even"} for text, number in rows for at in range(number)],
    )


def test_rows_of_a_step_are_sorted_where_that_saves_padding_and_changes_nothing(project: Path) -> None:
    ragged({4: 300, 150: 12})
    words = ("global_batch_size=64", "per_device_train_batch_size=4")
    assert chosen(execution.choose(case(*words, accel="ddp")))["sort_within_batch"] is True
    for other, key in (
        ("packing=true", "packing pads nothing"),
        ("padding_free=true max_length=null", "padding_free pads nothing"),
        ("train_sampling_strategy=group_by_length", "group_by_length orders rows by length already"),
    ):
        assert "sort_within_batch" not in chosen(execution.choose(case(*words, *other.split(), accel="ddp")))
        with pytest.raises(InputError, match=f"sort_within_batch has nothing to sort: .*{key}"):
            recipes.load("tiny", recipes.parse_overrides(["sort_within_batch=true", *other.split()]))
    # What is learned by the micro-batch is not sorted, and what is written stays.
    assert "sort_within_batch" not in chosen(execution.choose(case(*words, "label_smoothing_factor=0.1")))
    assert "sort_within_batch" not in chosen(execution.choose(case(*words, "sort_within_batch=false")))
    tuned = execution.candidates(case("global_batch_size=64", gpu=None, accel="cpu"))
    assert tuned["by estimate"]["sort_within_batch"] is True
    assert tuned["joined rows"]["padding_free"] is True and "sort_within_batch" not in tuned["joined rows"]


def test_a_gpu_with_room_gets_the_whole_batch_at_once_and_computes_nothing_twice(project: Path) -> None:
    found = execution.choose(case())
    assert chosen(found) == {
        "per_device_train_batch_size": 8,
        "activation_checkpointing": False,
        "optim": "adamw_torch_fused",
    }
    assert found.worth is not None and "times the tokens a second" in found.worth
    assert all("GiB allowed on a100-80gb" in each.reason for each in found.choices[:2])


def test_what_is_chosen_fits_with_the_margin_of_the_plan(project: Path) -> None:
    ragged({20: 200, 400: 8})
    words = ("global_batch_size=64", "max_length=1024")
    for name in ("a100-80gb", "rtx-4090", "l4"):
        before = case(*words, gpu=name)
        after = dataclasses.replace(before, recipe=execution.choose(before).applied(before.recipe))
        assert after.model is not None and after.gpu is not None
        needs = memory.estimate(after.model, jobs_setup(after)).allocated
        assert needs <= memory.HEADROOM * after.gpu.memory_bytes
        assert 64 % after.recipe["per_device_train_batch_size"] == 0


def jobs_setup(given: Case) -> memory.Setup:
    from sft_recipes.plan.lint.speed import largest_micro_batch

    return largest_micro_batch(given)


def test_long_rows_keep_the_attention_and_recompute_the_rest(project: Path) -> None:
    kept = execution.choose(case("max_length=8192", "packing=true", "per_device_train_batch_size=1", gpu="a100-40gb"))
    assert chosen(kept)["activation_checkpointing_kwargs"] == {"selective": True, "use_reentrant": False}
    sharded = case("max_length=8192", "packing=true", "per_device_train_batch_size=1", gpu="a100-40gb", accel="zero3")
    assert "activation_checkpointing_kwargs" not in chosen(execution.choose(sharded))


def test_ragged_rows_are_joined_where_their_masks_are_known_and_nothing_is_cut(project: Path) -> None:
    ragged({4: 300, 150: 12})
    batch = "global_batch_size=16"
    assert {"padding_free": True, "max_length": None}.items() <= chosen(execution.choose(case(batch))).items()
    # On a CPU torch's attention computes the whole square.
    nowhere: list[tuple[dict[str, Any], str, str]] = [
        ({"gpu": None, "accel": "cpu"}, batch, "costs a CPU more than padding"),
        ({"kind": "gpt_oss"}, batch, "nobody has shown that sdpa attention of gpt_oss keeps joined rows apart"),
        ({}, "attn_implementation=flex_attention", "nobody has shown that flex_attention attention of qwen3"),
        ({"accel": "ddp"}, batch, "would count rows twice on several processes"),
        ({}, "max_length=512", "padding_free or max_length is written"),
    ]
    for facts, word, why in nowhere:
        found = execution.choose(case(word, **facts))
        assert "padding_free" not in chosen(found) and any(why in each for each in found.kept), why
    joined = execution.choose(case(batch, "padding_free=true", "max_length=null"))
    assert not {"padding_free", "max_length"} & chosen(joined).keys() and not joined.kept
    with Path("recipes/tiny.yaml").open("a") as file:
        file.write("max_length: 64\n")
    found = execution.choose(case(batch))
    assert "padding_free" not in chosen(found) and any("cuts nothing at max_length" in each for each in found.kept)


@pytest.mark.parametrize(
    ("words", "why"),
    {
        "dataloader_drop_last=true": "dataloader_drop_last leaves out other rows",
        "train_sampling_strategy=batch_rebalance": "batch_rebalance shares rows out by it",
        "neftune_noise_alpha=5": "neftune_noise_alpha is noise by the length",
        "label_smoothing_factor=0.1": "label_smoothing_factor is averaged within it",
    }.items(),
)
def test_a_micro_batch_that_is_part_of_what_is_learned_stays(project: Path, words: str, why: str) -> None:
    found = execution.choose(case(words))
    assert "per_device_train_batch_size" not in chosen(found)
    assert any(why in each for each in found.kept)


def test_where_memory_or_model_are_not_known_it_stays_as_written_and_is_said(project: Path) -> None:
    nobody = case(gpu=None, gpus=(topology.Gpu("Apple GPU", 0),))
    for given, why in (
        (nobody, "nothing is known of the memory"),
        (case(model=None), "the config of the base is not here"),
        (case("max_length=null", data=None), "neither the rows nor max_length say"),
        (case("global_batch_size=9", accel="ddp"), "cannot share out the global batch evenly"),
    ):
        found = execution.choose(given)
        assert not {"per_device_train_batch_size", "activation_checkpointing"} & chosen(found).keys()
        assert any(why in each for each in found.kept)
    # An unknown GPU of known memory is one to fill.
    known = case(gpu=None, gpus=(topology.Gpu("NVIDIA X1", 81920),))
    assert chosen(execution.choose(known)) == chosen(execution.choose(case()))
    small = execution.choose(case("load_in_4bit=false", "bnb_4bit_quant_type=nf4", gpu="t4"))
    assert any("nothing fits t4: the least needs" in each for each in small.kept)


def test_nearer_to_the_user_wins_and_a_models_file_always(project: Path) -> None:
    Path("models/eager.yaml").write_text(
        "description: M.\nmodel_name_or_path: Qwen/Qwen3-8B\nmodel_revision: main\nattn_implementation: eager\n"
    )

    def pinned(name: str, *words: str) -> set[str]:
        return execution.pinned(recipes.load(name, recipes.parse_overrides(words)))

    both = "extends: default\nexecution: auto\nmodel_name_or_path: model\nper_device_train_batch_size: 2\n"
    Path("recipes/mine.yaml").write_text(both)
    # What default says is free, what the file with auto says is not, nor what SET= says.
    assert pinned("mine") == {"per_device_train_batch_size"}
    assert pinned("mine", "optim=sgd") == {"per_device_train_batch_size", "optim"}
    # Where SET= asks for it, files are free.
    assert pinned("mine", "execution=auto") == set()
    assert pinned("mine", "execution=auto", "max_length=64") == {"max_length"}
    # In a base, everything that derives from it is nearer, and so is what stands beside it.
    Path("recipes/base.yaml").write_text(
        "train_file: data/train.jsonl\nvalidation_split_size: 0.1\nlora_target_modules: [q_proj]\n"
        + both.replace("extends: default\n", "")
    )
    Path("recipes/derived.yaml").write_text("extends: base\noptim: sgd\nmax_length: 64\n")
    assert pinned("derived") == {"per_device_train_batch_size", "optim", "max_length"}
    # A model's needs are nobody's choice.
    assert pinned("mine", "model=eager", "execution=auto") == {"attn_implementation"}


def test_plan_show_and_run_see_the_same_values_with_their_reasons(
    project: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    words = ["execution=auto", "per_device_train_batch_size=4"]
    figures = plan.plan("tiny", overrides=words)
    assert figures["batch"]["per_device"] == 4
    chosen = {each["key"] for each in figures["execution"]["chosen"]}
    assert chosen == {"activation_checkpointing", "sort_within_batch", "optim"}
    assert main(["show", "tiny", "--origin", "--set", " ".join(words)]) == 0
    shown = capsys.readouterr().out
    assert "optim: adamw_torch_fused" in shown and "execution: auto (the same update in one kernel" in shown
    run = launch.create(jobs.check("tiny", overrides=words), "mine")
    facts, values = run.facts(), run.values()
    assert facts["own"]["execution"] == "auto" and values["optim"] == "adamw_torch_fused"
    assert values["activation_checkpointing"] is False
    assert facts["origins"]["activation_checkpointing"].startswith("execution: auto (nothing is computed twice")
    assert facts["origins"]["per_device_train_batch_size"] == "SET"
    # On a CPU, threads that wait leave the cores to others.
    assert processes.environment(run)["OMP_WAIT_POLICY"] == "passive"
    assert "OMP_WAIT_POLICY" not in processes.environment(launch.create(jobs.check("tiny"), "written"))


def test_a_plan_of_what_is_written_says_what_auto_would_change_and_be_worth(project: Path) -> None:
    written = dict(plan.render(plan.plan("tiny")))["execution"]
    assert written.startswith("as written; SET=execution=auto would take activation_checkpointing false, ")
    assert "worth: nothing is computed twice; 83 % -> 91 % of a batch are tokens" in written
    taken = ["sort_within_batch=true", "activation_checkpointing=false", "optim=adamw_torch_fused"]
    assert "execution" not in dict(plan.render(plan.plan("tiny", overrides=taken)))


def test_a_run_that_goes_on_keeps_what_was_chosen(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = launch.create(jobs.check("tiny", overrides=["execution=auto"]), "mine")
    # The machine has lost its memory, so that something else would be chosen today.
    monkeypatch.setattr(execution, "room", lambda given: (1e6, "this machine's memory"))
    today = jobs.check("tiny", overrides=["execution=auto"])
    with pytest.raises(InputError, match=r"sort_within_batch: true -> false"):
        launch.check_same_config(run, today)
    keeps = execution.chosen_before(run.facts()["origins"], run.values() | run.facts()["own"])
    launch.check_same_config(run, jobs.check("tiny", overrides=["execution=auto"], keeps=keeps))
    with pytest.raises(InputError, match=r"optim: adamw_torch_fused -> sgd"):
        launch.check_same_config(run, jobs.check("tiny", overrides=["execution=auto", "optim=sgd"], keeps=keeps))
    with pytest.raises(InputError, match=r"execution: auto -> as_written"):
        launch.check_same_config(run, jobs.check("tiny", keeps=keeps))


def test_wrong_rows_are_said_as_they_are_without_it(project: Path) -> None:
    write_rows(Path("data/train.jsonl"), [{"instruction": "x", "output": ""}])
    said = []
    for mode in ("as_written", "auto"):
        with pytest.raises(InputError) as refused:
            jobs.check("tiny", overrides=[f"execution={mode}", "report_to=mlflow", "lora_target_modules=[q_proj]"])
        said.append(refused.value.problems)
    assert said[0] == said[1] and len(said[0]) == 2


def test_fit_and_auto_take_the_same_micro_batch(project: Path) -> None:
    given = case("max_length=512", "global_batch_size=64", data=None)
    assert given.model is not None and given.gpu is not None
    found = fit.fit(given.recipe, given.model, {}, 1.0, 1, given.gpu.memory_bytes / fit.GIB)
    assert found.best is not None
    taken = execution.choose(given).applied(given.recipe)
    assert taken["per_device_train_batch_size"] == found.best.rows
    assert taken["activation_checkpointing"] == found.best.checkpointing


def test_the_page_has_the_cost_that_micro_batches_are_chosen_by() -> None:
    page = (ROOT / "docs" / "execution.md").read_text(encoding="utf-8")
    assert f"a micro-batch costs as much as {execution.FIXED_ON_CPU} tokens more" in page
    measured = json.loads((ROOT / "docs" / "micro_batches.json").read_text(encoding="utf-8"))["models"].values()
    worth = [each["fixed"] / each["token"] for each in measured]
    assert min(worth) <= execution.FIXED_ON_CPU <= max(worth)
