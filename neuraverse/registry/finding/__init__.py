"""Finding: the index of skills, searches of it, and what a robot can run."""
