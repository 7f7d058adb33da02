"""What happens inside one training process? It builds, verifies, steps and saves.

It imports torch. Other wings may use `train.build` and `verify`, in processes of their own.
"""
