"""Models and what they compute: facts, activations, the packed call, the teacher's stream."""
