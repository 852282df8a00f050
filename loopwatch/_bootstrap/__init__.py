"""The directory that ``loopwatch run`` puts first on PYTHONPATH; holds ``sitecustomize.py`` and is never imported itself."""
