"""Facts from the kernel and the interpreter."""
