"""Training what was pruned: the recipe, augmentation of images, and the loop with its checkpoints."""
