"""A step as a function of the weights: a tape on a copy, or the user's own code, watched; and whether it is the step."""
