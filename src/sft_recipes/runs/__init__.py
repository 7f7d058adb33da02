"""What is in a run's directory, who may write it, is it still what it was, and what does it depend on?"""
