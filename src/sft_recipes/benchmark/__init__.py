"""What this machine really does: one program that measures it, in sections, within a budget of seconds."""
