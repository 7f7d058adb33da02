"""What will happen? The job that a recipe makes, its steps, memory, time and findings, before anything runs."""
