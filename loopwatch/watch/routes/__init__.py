"""The request that a blocked loop was serving: route, method and endpoint, read from the frames of its framework.

Nothing is patched and no framework is imported: where the loop's thread stands inside a request, the framework's own
frames are on the sampled stack, and their arguments lead to the request. A new framework is an entry in
:mod:`loopwatch.watch.routes.finder` and a reader in :mod:`loopwatch.watch.routes.frameworks`.
"""
