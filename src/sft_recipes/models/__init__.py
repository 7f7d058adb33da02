"""What is a base model, known from its config alone, and how is it loaded?

`loading` imports transformers, for processes that load a model; `base_model` is for everybody.
"""
