"""What does the demo train, and on what? Its rows, its base model, and tiny models like a real one."""
