"""What happened, for people to read and side by side: reports, charts, model cards, comparisons.

`pages` makes what a finished run leaves; other wings need no more of it than that and `compare`, `tables`, `page`.
"""
