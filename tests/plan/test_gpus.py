import pytest

from sft_recipes.errors import InputError
from sft_recipes.plan import gpus
from sft_recipes.recipes.topology import Gpu


@pytest.mark.parametrize("name", ["a100-80gb", "A100 80GB", "RTX_4090", " h200 "])
def test_a_gpu_is_found_as_people_type_it(name: str) -> None:
    assert gpus.find(name).name == name.strip().lower().replace(" ", "-").replace("_", "-")


def test_a_misspelt_gpu_gets_the_nearest_name_and_all_others() -> None:
    with pytest.raises(InputError, match=r"'rtx4090'; did you mean rtx-4090\? There are a100-80gb, ") as caught:
        gpus.find("rtx4090")
    assert "h200" in str(caught.value)


def test_a_visible_gpu_is_recognised_by_the_name_nvidia_smi_gives_it() -> None:
    found = gpus.of(Gpu("NVIDIA A100-SXM4-40GB", 40960))
    assert found is not None and found.name == "a100-40gb"
    pcie = gpus.of(Gpu("NVIDIA H100 PCIe", 81559))
    assert pcie is not None and pcie.bf16_tflops < gpus.find("h100-80gb").bf16_tflops
    assert gpus.of(Gpu("NVIDIA GB10", 0)) is None


def test_every_figure_has_its_source_and_no_name_two_gpus() -> None:
    specs = gpus.known().values()
    names = [name for spec in specs for name in spec.nvidia_smi]
    assert len(names) == len(set(names))
    for spec in specs:
        assert "NVIDIA" in spec.source and ("datasheet" in spec.source or "whitepaper" in spec.source), spec
        assert 14 < spec.memory_bytes / 2**30 < 200 and spec.bandwidth_gb_per_second > 200
        assert spec.bf16_tflops is None or 50 < spec.bf16_tflops < 3000
        stands_for = gpus.find(spec.speed_of) if spec.speed_of else spec
        assert stands_for.bf16_tflops == spec.bf16_tflops and stands_for.speed_of is None
    assert gpus.find("a100-80gb-pcie").bandwidth_gb_per_second == 1935
    assert gpus.find("t4").bf16_tflops is None


@pytest.mark.parametrize("name", ["h100-nvl", "h200-nvl", "b200", "a6000", "rtx-6000-ada", "t4"])
def test_a_card_that_was_asked_for_is_known_by_the_name_nvidia_smi_gives_it(name: str) -> None:
    spec = gpus.find(name)
    assert gpus.of(Gpu(spec.nvidia_smi[0], spec.memory_mib)) == spec


@pytest.mark.parametrize("name", ["h100-80gb-3g.40gb", "H100-80GB MIG 3g.40gb"])
def test_a_part_of_a_divided_gpu_has_its_share(name: str) -> None:
    part = gpus.find(name)
    assert (part.name, part.memory_mib, part.speed_of) == ("h100-80gb-3g.40gb", 38146, None)
    assert part.bf16_tflops == pytest.approx(989 * 3 / 7)
    # As topology names the one that is visible.
    assert gpus.of(Gpu("NVIDIA H100 80GB HBM3 MIG 3g.40gb", 38146)) == part
    assert gpus.of(Gpu("NVIDIA H100 80GB HBM3 MIG 1g.10gb+me", 9536)) == gpus.find("h100-80gb-1g.10gb")


def test_a_part_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="a100-40gb has no part of 80 GB"):
        gpus.find("a100-40gb-7g.80gb")
    with pytest.raises(InputError, match="did you mean h100-80gb"):
        gpus.find("h100-80g-3g.40gb")
