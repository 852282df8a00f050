"""Foundation for running inside another program: patches, faults, threads. Imports no other folder of loopwatch."""
