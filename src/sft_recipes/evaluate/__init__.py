"""Is the model better than something trivial, and how sure is that?

`likelihood`, `scoring` and `scoring_process` import torch, and are for processes of their own; `scoring_job` starts
one.
"""
