"""What are the rows? They are read, checked, converted and counted."""
