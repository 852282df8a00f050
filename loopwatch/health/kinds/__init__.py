"""One kind of executor each."""
