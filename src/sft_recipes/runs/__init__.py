"""What is in a run's directory, who may write it, and what does it depend on?"""
