"""The evidence of every key, the pages made of it, and that what it computes is what comes out."""

import importlib.util
import itertools
import json
import math
import re
import sys
from importlib.metadata import distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import ROOT

from sft_recipes.models import base_model
from sft_recipes.plan import lint, memory, schedule
from sft_recipes.recipes import recipe as recipes
from sft_recipes.recipes import schema, topology, why
from sft_recipes.recipes.recipe import load

KEYS = why.documented()
NAMES = sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").glob("*.md")])
CONTRADICTIONS = {
    title: item.value
    for title, item in recipes.read(ROOT / "src" / "sft_recipes" / "recipes" / "contradictions.yaml").items()
}
GRADES = ("measured here", "literature", "convention", "contested")
MARKS = ("verified", "read", "reported")
FIELDS = {
    "what": str,
    "group": str,
    "because": str,
    "range": str,
    "grade": str,
    "evidence": list,
    "first_change": str,
    "interacts": dict,
    "seed": dict,
    "no_key": str,
}
# As the seed and its repository link them.
ANCHORS = [
    "1-learning-rate-2e-4",
    "2-number-of-epochs-3",
    "3-batch-size-4-per-gpu-effective-16-with-4-gpus",
    "4-gradient-accumulation-steps-4",
    "5-warmup-steps-100",
    "6-weight-decay-001",
    "7-max-gradient-norm-10",
    "8-learning-rate-scheduler-cosine",
    "9-lora-rank-r-32",
    "10-lora-alpha-32",
    "11-lora-dropout-005",
    "12-target-modules-q_proj-v_proj",
    "13-lora-bias-none",
    "14-quantization-4-bit-nf4",
    "15-maximum-sequence-length-512",
]


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def entry(key: str) -> why.Entry:
    found = why.entry(key)
    assert found is not None, f"no evidence for {key}"
    return found


def sentences(text: str) -> int:
    return len(re.split(r"(?<=[.;?!]) (?=[A-Z\[])", text))


# The files


@pytest.mark.parametrize("name", NAMES)
def test_every_key_that_a_recipe_sets_has_evidence(name: str) -> None:
    without = [key for key in recipes.read(Path("recipes") / f"{name}.yaml") if key not in KEYS]
    assert without == [], "write src/sft_recipes/recipes/evidence/KEY.yaml"


@pytest.mark.parametrize("key", KEYS)
def test_an_entry_says_what_its_form_asks(key: str) -> None:
    found = entry(key)
    assert {name: type(found[name]) for name in found if name != "value"} == {
        name: FIELDS[name] for name in found if name != "value"
    }
    assert {"what", "group", "value", "because", "grade"} <= found.keys()
    assert found["group"] in why.GROUPS and found["grade"] in GRADES
    assert sentences(found["what"]) <= 2 and found["what"].endswith(".")
    # One line of `show --why`.
    assert len(found["because"]) <= 110 and not found["because"].endswith(".")
    assert (key in schema.known()) != ("no_key" in found)
    assert [other for other in found.get("interacts", {}) if other not in KEYS or other == key] == []
    assert found.get("seed", {}).keys() <= {"number", "heading", "says", "but"}
    assert found["grade"] == "convention" or found.get("evidence")


@pytest.mark.parametrize("key", KEYS)
def test_a_documented_value_is_the_default_recipe_s(key: str) -> None:
    default = topology.resolve(load("default"), topology.read("ddp", "a test"))
    if key in schema.known() or key == why.DERIVED:
        assert (entry(key)["value"], type(entry(key)["value"])) == (default[key], type(default[key]))


def statements() -> list[tuple[str, dict[str, Any]]]:
    found = [(key, each) for key in KEYS for each in entry(key).get("evidence", [])]
    return found + [(title, each) for title, item in CONTRADICTIONS.items() for each in item["evidence"]]


@pytest.mark.parametrize("title", CONTRADICTIONS)
def test_a_contradiction_says_what_its_form_asks(title: str) -> None:
    item = CONTRADICTIONS[title]
    assert item.keys() == {"says", "fact", "evidence", "here", "keys"} and item["evidence"]
    assert all(item[name].rstrip("'\"").endswith(".") for name in ("says", "fact", "here"))
    assert [key for key in item["keys"] if key not in KEYS] == []


def test_every_statement_has_a_mark_and_a_source_that_can_be_found() -> None:
    wrong = []
    for key, each in statements():
        assert each.keys() <= {"says", "source", "where", "mark"} and each["says"].endswith("."), (key, each)
        assert each["mark"] in MARKS, (key, each)
        wrong += [(key, source) for source in why.sources(each) if not found(source, each.get("where", ""))]
    assert wrong == []


def found(source: str, where: str) -> bool:
    """A paper or a page by the form of its identifier; a package by its version and file; a file by being there."""
    if package := re.fullmatch(r"(trl|transformers|peft|bitsandbytes|torch|accelerate|datasets) (\d+\.\d+)", source):
        installed = distribution(package[1])
        # Evidence about the libraries is about those that are run with: another version has to be read again.
        paths = [part.split(",")[0] for part in re.split(r"[;,] ", where) if part.startswith(f"{package[1]}/")]
        there = all(installed.locate_file(path).exists() for path in paths)  # type: ignore[attr-defined]
        return installed.version.startswith(f"{package[2]}.") and bool(paths) and there
    if re.match(r"arXiv:|doi:|https:", source):
        return bool(
            re.fullmatch(r"arXiv:\d{4}\.\d{4,5}v\d+|doi:10\.\d{4,}/\S+|https://[a-z0-9.-]+\.[a-z]+/\S+", source)
        )
    return (ROOT / source).is_file()


def cited_repositories(text: str) -> set[str]:
    """Repositories that a text names by their address alone, not by an issue, a file, a commit or for pip."""
    return set(re.findall(r"(?<!git\+)https://github\.com/([\w.-]+/[\w.-]*\w)(?![\w/#-]|\.\w)", text))


def test_every_repository_that_evidence_is_from_has_its_commit_and_date() -> None:
    known = json.loads(why.REPOSITORIES.read_text(encoding="utf-8"))["repositories"]
    for facts in known.values():
        assert re.fullmatch("[0-9a-f]{40}", facts["commit"]) and re.fullmatch(r"20\d\d-\d\d-\d\d", facts["date"])
    folder = ROOT / "src" / "sft_recipes"
    texts = [path.read_text(encoding="utf-8") for path in (folder / "recipes").rglob("*.yaml")]
    texts.append((folder / "plan" / "lint" / "rules.yaml").read_text(encoding="utf-8"))
    assert set().union(*map(cited_repositories, texts)) == known.keys()
    # And what is said of them says so.
    assert [rule.id for rule in lint.rules().values() if cited_repositories(rule.evidence)] == []
    for page in ("hyperparameters", "contradictions", "rules"):
        assert cited_repositories((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")) == set()
    shown = dict(label_text for label_text in why.render(why.why("max_grad_norm")) if label_text[0] == "evidence")
    assert all(not cited_repositories(text) for text in shown.values())


def test_the_address_of_a_repository_leads_to_what_was_read() -> None:
    facts = json.loads(why.REPOSITORIES.read_text(encoding="utf-8"))["repositories"]["artidoro/qlora"]
    at = f"https://github.com/artidoro/qlora/tree/{facts['commit'][:10]} ({facts['date']})"
    assert why.cited("see https://github.com/artidoro/qlora.") == f"see {at}."
    for other in (
        "https://github.com/artidoro/qlora/issues/1",
        "https://github.com/huggingface/trl#7",
        "arXiv:2305.14314v1",
    ):
        assert why.cited(other) == other


def test_counts_over_collections_of_recipes_are_those_of_the_script() -> None:
    """None is written by hand, so that scripts/count_recipes.py recounts all of them."""
    counted = {
        name
        for name, facts in json.loads(why.REPOSITORIES.read_text(encoding="utf-8"))["repositories"].items()
        if "counts" in facts
    }
    by_hand = []
    for key in KEYS:
        for each in recipes.read(why.EVIDENCE / f"{key}.yaml").get("evidence", recipes.Value([], "")).value:
            if any(source.removeprefix("https://github.com/") in counted for source in why.sources(each)):
                number = re.search(r"\b\d[\d,]* (of \d|LoRA|QLoRA|public|examples)", each["says"])
                by_hand += [(key, each["says"])] if number else []
    assert by_hand == []
    assert "Of 106 QLoRA examples of Axolotl 68 use an 8-bit AdamW, under 4 names" in said("optim")
    assert "0.5 (67 of 106) and 2 (32) in Axolotl" in said("lora_alpha") and "LitGPT (20 of 32)" in said("lora_alpha")
    assert "24 train three; 1 trains one, and 3 do not say" in said("num_train_epochs")
    assert "Of 615 public recipes of five collections 0 name their base by a whole commit, and 2 by a short" in said(
        "model_revision"
    )


def test_the_script_counts_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    script = importlib.import_module("count_recipes")
    names = (
        "adamw_bnb_8bit",
        "paged_adamw_8bit",
        "adamw_torch_8bit",
        "adamw_8bit",
        "adamw_torch",
        "paged_adamw_32bit",
    )
    found = [{"adapter": "qlora", "optimizer": name, "lora_r": 32, "lora_alpha": 16} for name in names]
    found += [{"adapter": "lora", "neftune_noise_alpha": 5, "optimizer": "adamw_8bit"}, {"revision": "6299b5a"}]
    counts = script.axolotl(found)
    assert (counts["qlora"], counts["adamw_8bit"], counts["adamw_8bit_spellings"]) == (6, 4, 4)
    assert (counts["adapters"], counts["neftune"], counts["alpha_half_of_rank"]) == (7, 1, 6)
    found += [{"model_revision": "main"}, {"model_revision": "it-SFT"}, {"revision_of_model": "0" * 40}]
    assert script.pins(found) == {"recipes": 11, "short_commits": 1, "whole_commits": 1}


def test_every_paper_is_named_with_its_version() -> None:
    folders = ("src", "docs", "recipes", "models", "scripts")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".yaml", ".md")
    ]
    assert len(files) > 200
    without = {
        f"{path.relative_to(ROOT)}: {paper}"
        for path in files
        for paper in re.findall(r"(?:arXiv[: ]|arxiv\.org/abs/)\d{4}\.\d{4,5}(?!\d|v\d)", path.read_text("utf-8"))
    }
    assert without == set()


@pytest.mark.parametrize("key", [key for key in KEYS if entry(key)["grade"] == "measured here"])
def test_what_is_graded_as_measured_here_names_the_file_that_measures_it(key: str) -> None:
    assert [source for each in entry(key)["evidence"] for source in why.sources(each) if (ROOT / source).is_file()]


def test_no_figure_is_left_unfilled() -> None:
    assert [key for key, each in statements() if re.search(r"[{}]", each["says"])] == []
    assert "44 MB in NF4, 63 MB in bfloat16" in entry("load_in_4bit")["evidence"][4]["says"]


# The pages


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_hyperparameters", ROOT / "scripts/write_hyperparameters.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["write_hyperparameters"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["hyperparameters", "contradictions"])
def test_a_page_is_what_its_script_writes(pages: ModuleType, name: str) -> None:
    written = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    assert written == getattr(pages, name)(), "run python scripts/write_hyperparameters.py"


def test_the_seed_s_links_lead_somewhere() -> None:
    headings = anchors(ROOT / "docs" / "hyperparameters.md")
    assert "hyperparameter-specifications" in headings
    assert [anchor for anchor in ANCHORS if anchor not in headings] == []
    numbers = sorted(found["number"] for key in KEYS if "number" in (found := entry(key).get("seed", {})))
    assert numbers == list(range(1, 16))


def prose(page: Path) -> str:
    """A page without its blocks of code, in which nothing is a heading or a link."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, by GitHub's rule: the second of a name gets -1, the third -2."""
    made: list[str] = []
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.MULTILINE):
        made.append(why.slug(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)))
    return {slug if n == 0 else f"{slug}-{n}" for i, slug in enumerate(made) for n in [made[:i].count(slug)]}


def links(page: Path) -> list[str]:
    text = re.sub(r"`[^`]*`", "", prose(page))
    return re.findall(r"\]\(<?([^)>\s]+)>?\)", text) + re.findall(r"<((?:https?:)[^>\s]+)>", text)


def dead(page: Path) -> list[str]:
    """The links of a page that lead nowhere; pages of others are only looked at by their form."""
    gone = []
    for link in links(page):
        if link.startswith("http"):
            if not re.fullmatch(r"https://[a-z0-9.-]+\.[a-z]+(/\S*)?", link):
                gone.append(link)
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            gone.append(link)
    return gone


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_no_link_of_a_page_is_dead(page: Path) -> None:
    assert dead(page) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `key`: 0.5\n\n## Twice\n\n## Twice\n\n[a](#one-key-05) [b](#twice-1) [c](page.md#twice)\n"
        "[d](#twice-2) [e](other.md) [f](page.md#three) [g](https:/example.org) `[h](no.md)`\n```\n[i](no.md)\n```\n"
    )
    assert dead(page) == ["#twice-2", "other.md", "page.md#three", "https:/example.org"]


# What the texts compute. 2,686 rows are those of the origin, on which the presets were run.


def said(key: str) -> str:
    """All that the evidence of a key says."""
    found = entry(key)
    parts = [found["what"], *found.get("seed", {}).values(), *found.get("interacts", {}).values()]
    return " ".join(map(str, [*parts, *(each["says"] for each in found.get("evidence", []))]))


def ledger(title: str) -> str:
    return CONTRADICTIONS[title]["fact"]


def planned(name: str, **overrides: Any) -> schedule.Schedule:
    recipe = load(name, {key: recipes.Value(value, "a test") for key, value in overrides.items()})
    return schedule.schedule(recipe, topology.read("ddp", "a test"), 2686)


def test_the_steps_that_are_stated_are_the_planner_s() -> None:
    default, quick, small = planned("default"), planned("quick_test"), planned("default", global_batch_size=16)
    assert f"100 of {default.steps} steps are {default.warmup_share:.0%}".replace("%", " %") in said("warmup_steps")
    assert f"50 are more than its {quick.steps} steps" in said("warmup_steps")
    rate = f"{quick.peak_learning_rate * 1e4:.2f}e-4"
    assert rate in said("warmup_steps") and rate in ledger("The quick test")
    assert f"leaves {default.steps} steps in three epochs, where 16 leaves {small.steps}" in " ".join(
        said("global_batch_size").replace("64 leaves", "leaves").split()
    )


def test_the_shrinkage_by_weight_decay_is_the_sum_of_the_schedule() -> None:
    plan = planned("default")
    rates = [min(n / plan.warmup_steps, 1.0) for n in range(plan.warmup_steps)]
    rest = plan.steps - plan.warmup_steps
    rates += [(1 + math.cos(math.pi * n / rest)) / 2 for n in range(rest)]
    shrunk = 1 - math.prod(1 - 2e-4 * rate * 0.01 for rate in rates)
    assert f"{100 * shrunk:.3f} % in all" in said("weight_decay")


def test_the_sizes_of_adapters_are_the_census_s() -> None:
    model = base_model.find(load("default")["model_name_or_path"])
    assert model is not None
    wide = model.adapters(base_model.Asked(("all-linear",))).parameters(16)
    narrow = model.adapters(base_model.Asked(("q_proj", "v_proj"))).parameters(32)
    assert f"r 16 is {wide / 1e6:.1f} million parameters" in said("lora_target_modules")
    assert f"r 32 are {narrow / 1e6:.1f} million" in said("lora_target_modules")


def test_what_checkpointing_would_save_on_80_gb_is_not_needed() -> None:
    model = base_model.find(load("default")["model_name_or_path"])
    assert model is not None
    recipe = load("default", {"activation_checkpointing": recipes.Value(False, "a test")})
    where = topology.read("ddp", "a test")
    rows, length = recipe["per_device_train_batch_size"], recipe["max_length"]
    needed = memory.estimate(model, memory.Setup.of(recipe, where, rows * length, length)).allocated
    assert needed < memory.HEADROOM * 80 * 2**30
    assert "On 80 GB an 8B model in 4 bit does not need it at 512 tokens" in said("activation_checkpointing")
    adapter = model.adapters(base_model.Asked.of(recipe)).parameters(recipe["lora_r"])
    assert f"{100 * adapter / model.elements():.1f} % of the parameters" in entry("use_peft")["because"]


def test_tokens_bits_and_bytes_add_up() -> None:
    whole, half = (load(name) for name in ("default", "memory_efficient"))
    tokens = [f"{recipe['global_batch_size'] * recipe['max_length']:,}" for recipe in (half, whole)]
    assert f"{tokens[0]} against {tokens[1]}" in ledger("About 30 % slower")
    bits = 8 * (0.5 + 1 / 64 + 4 / 64 / 256)
    assert f"{bits:.3f} bits with it and {8 * (0.5 + 4 / 64)} without" in said("use_bnb_nested_quant")
    # A fixed cost of 0.17 s and 0.24 ms a token, fitted to the rows of the file that is named.
    share = [f"{100 * 0.17 / (0.17 + 0.24e-3 * tokens):.0f} %" for tokens in (2048, 8192)]
    assert f"{share[0]} of its time at 2,048 tokens and {share[1]} at 8,192" in said("per_device_train_batch_size")
    assert f"{0.509 * 184:.0f} nats a row" in said("metric_for_best_model")
    assert f"{20.9 * 2:.1f} GB" in ledger("Sizes of the model")


def test_with_alpha_equal_to_r_early_steps_grow_with_the_rank() -> None:
    import torch

    def drop(rank: int, alpha: float) -> float:
        """By how much a regression's loss falls in five steps of AdamW on an adapter of a layer 512 wide."""
        torch.manual_seed(0)
        inputs, wanted = torch.randn(256, 512), torch.randn(256, 512)
        down = torch.nn.Parameter(torch.randn(rank, 512) / 512**0.5)
        up = torch.nn.Parameter(torch.zeros(512, rank))
        optimizer = torch.optim.AdamW([down, up], lr=2e-4)
        losses = []
        for _ in range(6):
            loss = (inputs @ down.T @ up.T * alpha / rank - wanted).square().mean()
            losses.append(loss.item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return losses[0] - losses[-1]

    constant = [drop(rank, 32) for rank in (16, 32, 64, 128)]
    following = [drop(rank, rank) for rank in (16, 32, 64, 128)]
    assert max(constant) / min(constant) < 1.1
    assert all(1.9 < after / before < 2.1 for before, after in itertools.pairwise(following))


def test_a_small_decay_rounds_away_in_bfloat16() -> None:
    import torch

    weights = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(weights.bfloat16() * (1 - 2e-4 * 0.01), weights.bfloat16())
    assert not torch.equal(weights * (1 - 2e-4 * 0.01), weights)


@pytest.mark.parametrize(
    ("losses", "stops_after"), [([0.765, 0.538, 0.515, 0.511, 0.509], 5), ([1.338, 0.545, 0.528], None)]
)
def test_early_stopping_on_the_origin_s_losses_stops_only_where_the_run_ends(
    losses: list[float], stops_after: int | None
) -> None:
    from transformers import EarlyStoppingCallback, TrainerControl, TrainerState
    from trl import SFTConfig

    args = SFTConfig(
        output_dir="unused",
        use_cpu=True,
        bf16=False,
        # TRL's own default of it is deprecated by transformers.
        gradient_checkpointing=None,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
    )
    default = load("default")
    callback = EarlyStoppingCallback(default["early_stopping_patience"], default["early_stopping_threshold"])
    state, control, stopped = TrainerState(), TrainerControl(), None
    for epoch, loss in enumerate(losses, 1):
        callback.on_evaluate(args, state, control, {"eval_loss": loss})
        # The Trainer moves the best value afterwards, by any improvement.
        state.best_metric = min(loss, state.best_metric or math.inf)
        if control.should_training_stop and stopped is None:
            stopped = epoch
    assert stopped == stops_after
