"""Search for the best target pieces under any StepModel."""
