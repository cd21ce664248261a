"""What the user gets to see of a model besides its answers: numbers and pictures."""
