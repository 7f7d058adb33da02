"""What is a base model, known from its config alone, and how is it loaded?

`base_model` is for everybody; `census` and `loading` import transformers, and are for processes that build a model.
"""
