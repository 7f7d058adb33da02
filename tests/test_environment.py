"""What the libraries say about themselves."""

import gc
import warnings
import weakref

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


def test_what_is_left_in_circles_while_rows_pass_is_not_kept_for_long() -> None:
    class Left:
        def __init__(self) -> None:
            self.itself = self

    before = gc.get_threshold()
    with environment.rows_passing():
        left = [weakref.ref(Left()) for _ in range(3 * environment.YOUNG)]
    assert sum(each() is not None for each in left) < 2 * environment.YOUNG
    assert gc.get_threshold() == before
