"""What the libraries say about themselves."""

import warnings

from sft_recipes import environment


def test_a_library_s_warning_is_printed_once_whatever_filters_change_meanwhile() -> None:
    with warnings.catch_warnings(record=True) as printed:
        environment.quiet()
        warnings.simplefilter("default")
        for number in range(38):
            with warnings.catch_warnings():
                warnings.simplefilter("always")
            warnings.warn("inputs will be cast", UserWarning, stacklevel=1)
            warnings.warn(f"of layer {number // 19}", UserWarning, stacklevel=1)
    assert [str(each.message) for each in printed] == ["inputs will be cast", "of layer 0", "of layer 1"]
