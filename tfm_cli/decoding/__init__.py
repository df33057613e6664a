"""Search for the best target tokens under any StepModel."""
