"""Two students of large teachers, made by the real command, and what each step of them is worth on a CPU."""
