"""What does another tool's configuration ask for, in the keys of a recipe?

Other wings use `audit`. `recognition` says whose a file is, `importers` what its keys mean, by `tables` and by
`meanings`.
"""
