"""Files from somebody else are refused in one line, or inert: bombs of aliases and links, wherever YAML is read."""

from pathlib import Path

import pytest

from sft_recipes import cli

BOMB = "a: &a [x, x]\n" + "".join(
    f"{here}: &{here} [{', '.join([f'*{before}'] * 9)}]\n" for before, here in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.promise("hostile", "bombs of YAML aliases")
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("recipes/evil.yaml", ["plan", "evil"]),
        ("recipes/evil.yaml", ["why", "lora_r", "evil"]),
        ("recipes/default.yaml", ["plan", "tiny"]),
        ("models/evil.yaml", ["plan", "tiny", "--model", "evil"]),
        ("accelerate_configs/evil.yaml", ["plan", "tiny", "--accel", "evil"]),
        ("evil.yaml", ["audit", "evil.yaml"]),
    ],
)
def test_a_bomb_of_aliases_is_refused_by_every_command_that_reads_yaml(
    project: Path, capsys: pytest.CaptureFixture[str], file: str, command: list[str]
) -> None:
    (project / file).write_text(BOMB)
    assert cli.main(command) == 2
    said = capsys.readouterr().err
    assert f"{file}:2: not YAML: aliases (*name) are not read; write the value" in said
    assert len(said) < 500


def test_an_alias_on_the_command_line_is_refused_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "tiny", "--set", "'labels=[&a [x], *a]'"]) == 2
    assert "'[&a [x], *a]' is not a YAML value" in capsys.readouterr().err
    assert cli.main(["sweep", "tiny", "--over", "'lora_target_modules=[&a x],*a'"]) == 2
    assert "error: OVER: " in capsys.readouterr().err
    assert not (project / "runs").exists()


@pytest.mark.promise("hostile", "links in the place of recipes")
def test_a_link_in_the_place_of_a_recipe_shows_nothing_of_what_it_leads_to(
    project: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    private = tmp_path_factory.mktemp("private") / "shadow"
    private.write_text("root:$6$of-nobody:20000:0:99999:7:::\nme:*:20000:0:99999:7:::\n")
    links = {"text": private, "folder": private.parent, "device": Path("/dev/zero"), "loop": Path("loop.yaml")}
    links |= {"nowhere": private.parent / "made"}
    for name, target in links.items():
        (project / "recipes" / f"{name}.yaml").symlink_to(target)
    for name in links:
        assert cli.main(["plan", name]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and "of-nobody" not in said, said
        assert cli.main(["new", name]) == 2
        assert "exists and is never overwritten" in capsys.readouterr().err
    assert not (private.parent / "made").exists()
