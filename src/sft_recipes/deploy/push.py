"""Upload what a run trained to the Hub: only when asked, only what is named before, private unless told otherwise."""

import os
import re
from pathlib import Path
from typing import Any

from sft_recipes import errors
from sft_recipes.errors import InputError
from sft_recipes.files import difference
from sft_recipes.report import card
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage
from sft_recipes.terminal import count, say

Facts = dict[str, Any]

_ANSWERS = {
    401: "the Hub does not accept the token in HF_TOKEN; make one with write access at huggingface.co/settings/tokens",
    403: "the token in HF_TOKEN may not write to {repo}; take one with write access to it, or another REPO=",
    404: "the Hub knows no owner of {repo}, or the token may not see it; correct REPO=",
}


def push(name: str, repo: str, *, merged: bool = False, public: bool = False) -> Facts:
    """Create the repository if it is not there, and upload adapter or merged model with its card as one commit.

    Args:
        name: The run.
        repo: `org/name` on the Hub.
        merged: The merged model instead of the adapter.
        public: Whether everybody may see it.

    Returns:
        `repo`, `url` of the commit, `private` and `files` with their bytes.

    Raises:
        InputError: The run is nothing to publish, or the Hub refuses; every reason at once.
    """
    directory, files = chosen(name, repo, merged)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    sizes = {file: (directory / file).stat().st_size for file in files}
    listed = "\n".join(f"{file}, {size:,} bytes" for file, size in sizes.items())
    say(
        "uploading",
        f"{count(len(files), 'file')} of {directory} to {repo}, {'public' if public else 'private'}\n{listed}",
    )
    api = HfApi(token=os.environ["HF_TOKEN"])
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        if not public and not api.model_info(repo).private:
            raise InputError(
                f"{repo} is public already, and nothing was uploaded; say PUBLIC=1, or name another REPO="
            )
        commit = api.upload_folder(
            repo_id=repo, folder_path=directory, allow_patterns=files, commit_message=f"Upload {name}"
        )
    except InputError:
        raise
    except Exception as error:
        # The Hub's client raises whatever its transport raises; all of it means that nothing was uploaded.
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        reason = _ANSWERS[status].format(repo=repo) if status in _ANSWERS else errors.hub_reason(error)
        raise InputError(f"nothing was uploaded: {reason}") from None
    say("uploaded", commit.commit_url)
    return {"repo": repo, "url": commit.commit_url, "private": not public, "files": sizes}


def chosen(name: str, repo: str, merged: bool) -> tuple[Path, list[str]]:
    """The directory and its files that go: those that training or merging recorded, and the card.

    Raises:
        InputError: With everything that speaks against it.
    """
    run = Run.open(name)
    facts = run.facts()
    problems = []
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        problems.append(f"REPO={repo!r} is no repository; write it as org/name")
    if not os.environ.get("HF_TOKEN"):
        problems.append(
            "HF_TOKEN is not set; put a token with write access into the environment, not into a file here"
        )
    if facts.get("rehearsal"):
        problems.append(f"{run.directory} is a rehearsal: its model is tiny and random, and no result")
    if damage := adapter_damage(run):
        problems.append(damage)
    elif not merged:
        directory, files = run.adapter, facts["measured"]["saved"]
        recipe = run.values()
        base = recipe["model_name_or_path"]
        if recipe.get("use_peft") and not card.hub_id(base):
            problems.append(
                f"{run.adapter} is an adapter for {base}, a local directory that nobody else has; merge it "
                f"(make merge RUN={name}) and push with MERGED=1"
            )
    if merged and "merged" not in facts:
        problems.append(f"{run.directory} has no merged model; make one with: make merge RUN={name}")
    elif merged:
        directory, files = Path(facts["merged"]["directory"]), facts["merged"]["files"]
        if damage := difference(directory, files):
            problems.append(f"{directory} is not what was merged: {damage}; delete it and merge again")
    if problems:
        raise InputError(*problems)
    identity.check(run)
    if not (directory / card.CARD).is_file():
        raise InputError(f"{directory} has no {card.CARD}; a training that ends well writes it, as make evaluate does")
    return directory, [*files, card.CARD]
