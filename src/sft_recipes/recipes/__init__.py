"""What is asked for? Recipes, their keys and evidence, the task, and the topology that they run on."""
