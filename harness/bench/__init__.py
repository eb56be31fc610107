"""Time methods beside the unpruned model on one clock."""
