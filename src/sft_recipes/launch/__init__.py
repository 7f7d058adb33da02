"""How does a job become a finished run? Processes, resuming, several seeds, sweeps, rehearsals."""
