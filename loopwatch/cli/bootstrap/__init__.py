"""The directory that ``loopwatch run`` puts first on PYTHONPATH, for ``sitecustomize.py``; never imported itself."""
