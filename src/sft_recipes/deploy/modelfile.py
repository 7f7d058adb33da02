"""Ollama's Modelfile of a GGUF: the chat template in Go's language, as far as it is one text around each turn."""

import json
from typing import Any

from sft_recipes.data import templates

UNKNOWN = "its chat template is more than a text around each turn; write its TEMPLATE into the Modelfile by hand"
_ROLES = ("system", "user", "assistant")


def modelfile(file: str, tokenizer: Any, stops: list[int]) -> tuple[str, bool]:
    """The Modelfile, and whether the template is in it (or there is none to be in it)."""
    lines = [f"FROM ./{file}", "PARAMETER temperature 0"]
    lines += [f"PARAMETER stop {json.dumps(tokenizer.convert_ids_to_tokens(stop))}" for stop in stops]
    template = go_template(tokenizer) if tokenizer.chat_template else "{{ .Prompt }}"
    if template is not None:
        lines.append(f'TEMPLATE """{template}"""')
    return "\n".join(lines) + "\n", template is not None


def go_template(tokenizer: Any) -> str | None:
    """The chat template in Go's language; None where it does more than put the same text around each turn of a role.

    What it puts there is found by rendering turns, and it is taken only if it makes the same of every probe of
    `templates.PROBES`, with a system turn and without one.
    """

    def render(turns: templates.Turns, ask: bool = False) -> str:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)

    mark = {role: f"\ue001{role}\ue002" for role in _ROLES}
    turns = [{"role": role, "content": mark[role]} for role in _ROLES]
    try:
        whole, without = render(turns), render(turns[1:2])
        header = render(turns[:2], ask=True).removeprefix(render(turns[:2]))
        around, rest = {}, whole
        for role, upto in zip(_ROLES, (render(turns[:1]), render(turns[:2]), whole), strict=True):
            part = upto.removeprefix(whole[: len(whole) - len(rest)])
            around[role] = part.split(mark[role])
            rest = whole[len(upto) :]
        head = without.removesuffix(mark["user"].join(around["user"]))
        if not all(len(each) == 2 for each in around.values()):
            return None
        for probe in templates.PROBES:
            system = probe[0]["role"] == "system"
            made = ("" if system else head) + "".join(turn["content"].join(around[turn["role"]]) for turn in probe)
            if made + header != render(probe, ask=True):
                return None
    except Exception:
        # A template may raise whatever it likes: then it is none of these.
        return None
    cases = "".join(
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        for role, (before, after) in around.items()
    )
    first = f"{{{{ if not .System }}}}{head}{{{{ end }}}}" if head else ""
    return f"{first}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{header}"
