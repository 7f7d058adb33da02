"""What does another tool's configuration ask for, in the keys of a recipe?

Other wings use `audit`; `importers` holds what it knows of the tools.
"""
