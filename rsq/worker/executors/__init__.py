"""How bodies run: one module for each way, behind one small interface."""
