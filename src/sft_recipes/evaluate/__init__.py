"""Is the model better than something trivial, and how sure is that?

Only `likelihood`, `scoring` and `scoring_process` import torch; others ask for the models' answers by `scoring_job`.
"""
