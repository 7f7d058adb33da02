"""Is the model better than something trivial, and how sure is that?

`likelihood`, `scoring` and `scoring_process` import torch; other wings ask for a model's answers by `scoring_job`.
"""
