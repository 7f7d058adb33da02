"""What can be wrong with the input, and how it is said."""


class InputError(Exception):
    """The recipe, data, topology or a name is wrong: for the person who wrote it, never with a traceback.

    Args:
        problems: one message each: what is wrong, where, and what to write instead. All that were found.
    """

    def __init__(self, *problems: str) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(problems))
