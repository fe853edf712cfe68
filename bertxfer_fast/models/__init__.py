"""Models and what they compute: their plain facts, their activations, the packed call, the teacher's stream."""
