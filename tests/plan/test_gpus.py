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
        assert (
            16 < spec.memory_bytes / 2**30 < 200
            and 50 < spec.bf16_tflops < 1000
            and spec.bandwidth_gb_per_second > 200
        )
