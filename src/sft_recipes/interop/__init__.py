"""What does another tool's configuration ask for, in the keys of a recipe?"""
