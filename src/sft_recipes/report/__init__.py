"""What happened, for people to read and side by side: reports, charts, model cards, comparisons.

`pages` makes what a finished run leaves. `charts` and `quality` are for this wing alone.
"""
