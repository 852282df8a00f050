"""Facts of the kernel and the interpreter."""
