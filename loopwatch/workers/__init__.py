"""The managed worker pool: processes, threads, interpreters, and the protocol between parent and worker."""
