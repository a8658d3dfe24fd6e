"""What goes wrong in a chaos run, one generator function a fault. `tests.chaos.saboteur` deals them."""
