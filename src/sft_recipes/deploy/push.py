"""Upload what a run trained to the Hub: only when asked, only what is named before, private unless told otherwise."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sft_recipes import errors
from sft_recipes.deploy import merge
from sft_recipes.errors import InputError, refuse
from sft_recipes.files import write_whole
from sft_recipes.models import licences
from sft_recipes.models.licences import Licence
from sft_recipes.report import card
from sft_recipes.runs import identity
from sft_recipes.runs.run import Run, adapter_damage, rehearsed
from sft_recipes.terminal import count, say

Facts = dict[str, Any]

_ANSWERS = {
    401: "the Hub does not accept the token of HF_TOKEN, or of hf auth login; make one with write access at "
    "huggingface.co/settings/tokens",
    403: "the token of HF_TOKEN, or of hf auth login, may not write to {repo}; take one with write access to it, or "
    "another REPO=",
    404: "the Hub knows no owner of {repo}, or the token may not see it; correct REPO=",
}


def push(name: str, repo: str, *, merged: bool = False, public: bool = False) -> Facts:
    """Create the repository if it is not there, and upload adapter or merged model with its card as one commit.

    Returns:
        `repo`, `url` of the commit, `private` and `files` with their bytes.

    Raises:
        InputError: The run is nothing to publish, or the Hub refuses; every reason at once.
    """
    directory, files, recipe = chosen(name, repo, merged)
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    # With its own look-up of a token: HF_TOKEN, or what `hf auth login` stored.
    api = HfApi()
    try:
        files += named(api, directory, recipe, repo)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"nothing was uploaded: {errors.hub_reason(error)}") from None

    sizes = {file: (directory / file).stat().st_size for file in files}
    listed = "\n".join(f"{file}, {size:,} bytes" for file, size in sizes.items())
    say(
        "uploading",
        f"{count(len(files), 'file')} of {directory} to {repo}, {'public' if public else 'private'}\n{listed}",
    )
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


def named(api: Any, directory: Path, recipe: Facts, repo: str) -> list[str]:
    """Say the base's licence, name it in a card that does not, and give the files that it asks for.

    Where it is not known here, the base's page on the Hub is asked.

    Raises:
        InputError: The licence forbids the upload, or its name.
    """
    from huggingface_hub import ModelCard
    from huggingface_hub.errors import HfHubHTTPError

    base, revision = recipe["model_name_or_path"], recipe.get("model_revision", "main")
    licence = licences.of(base, revision)
    if licence is None and card.hub_id(base):
        # A page that may not be seen, or is none, says nothing.
        with contextlib.suppress(HfHubHTTPError):
            licence = licences.from_card(api.model_info(base, revision=revision).card_data)
    if licence is None:
        say("licence", f"that of the base {base} is not known here; it holds for these files too")
        return []
    refuse(forbidden(licence, base, repo))
    written = ModelCard.load(directory / card.CARD)
    if not written.data.license:
        for key, value in card.terms(licence).items():
            setattr(written.data, key, value)
        write_whole(directory / card.CARD, str(written))
        card.put_notice(directory, licence)
    copy = f"; it asks for a copy of it beside the files: {licence.link}" if licence.copy else ""
    say("licence", f"{licence.title}, that of the base {base}, as the card says{copy}")
    return [card.NOTICE] if licence.notice and (directory / card.NOTICE).is_file() else []


def forbidden(licence: Licence | None, base: str, repo: str) -> Iterator[str]:
    """What a base's licence does not allow of an upload."""
    if licence is None:
        return
    owner, _, name = repo.rpartition("/")
    if licence.closed:
        yield f"{base} is under {licence.title}, which lets nobody hand on what is made of it; keep it to yourself"
    if licence.begins and not name.lower().startswith(licence.begins.lower()):
        asked = f"the name of what is made of it begins with {licence.begins}"
        yield f"{base} is under {licence.title}, by which {asked}; write REPO={owner or 'org'}/{licence.begins}-{name}"


def chosen(name: str, repo: str, merged: bool) -> tuple[Path, list[str], Facts]:
    """The directory and its files that go, those that training or merging recorded and the card, and the recipe.

    Raises:
        InputError: With everything that speaks against it.
    """
    from huggingface_hub import get_token

    run = Run.open(name)
    facts = run.facts()
    problems: list[str | None] = []
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        problems.append(f"REPO={repo!r} is no repository; write it as org/name")
    if not get_token():
        problems.append(
            "there is no token of the Hub; log in with: hf auth login, or put one with write access into the "
            "environment as HF_TOKEN, not into a file here"
        )
    recipe = run.values()
    base = recipe["model_name_or_path"]
    problems += forbidden(licences.of(base, recipe.get("model_revision", "main")), base, repo)
    damage = adapter_damage(run)
    directory, problem = merge.product(run) if merged else (run.adapter, None)
    problems += [rehearsed(run), damage, problem]
    if not merged and not damage and recipe.get("use_peft") and not card.hub_id(base):
        problems.append(
            f"{run.adapter} is an adapter for {base}, a local directory that nobody else has; merge it "
            f"(make merge RUN={name}) and push with MERGED=1"
        )
    refuse(problems)
    identity.check(run)
    if not (directory / card.CARD).is_file():
        raise InputError(f"{directory} has no {card.CARD}; a training that ends well writes it, as make evaluate does")
    files = facts["merged"]["files"] if merged else facts["measured"]["saved"]
    return directory, [*files, card.CARD], recipe
