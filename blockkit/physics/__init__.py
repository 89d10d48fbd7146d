"""Scanner physics: trajectories, Fourier operators, coils and solvers. No network lives here."""
